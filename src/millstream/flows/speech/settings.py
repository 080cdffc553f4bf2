"""What a live transcription is configured by: [speech] and its profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec.structs import replace

from millstream.errors import BadInput, Misconfigured

RATE: Final = 16_000
"""Hz of all audio inside: one channel, float32, -1 .. 1."""
FRAME: Final = 512
"""Samples that speech is told from silence by: 32 ms."""
Policy = Literal["correctable", "delayed", "enrolled", "none"]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """How one kind of session is heard. Times are of audio, and rounded up to whole frames of 32 ms."""

    first_token_ms_max: Annotated[
        int, msgspec.Meta(ge=50, description="most from the first sample of speech to its first words, 95 of 100 times")
    ] = 1300
    step_ms: Annotated[
        int, msgspec.Meta(ge=96, le=5000, description="open speech is recognised again after so much more of it")
    ] = 992
    look_ahead_ms: Annotated[
        int, msgspec.Meta(ge=0, le=5000, description="words that end closer to what was heard last are not stable yet")
    ] = 1500
    hangover_ms: Annotated[
        int, msgspec.Meta(ge=96, le=5000, description="silence that ends a segment; its final text comes so much later")
    ] = 608
    punctuation_ms: Annotated[
        int, msgspec.Meta(ge=0, le=5000, description="silence that is enough behind a full stop; 0: as hangover_ms")
    ] = 0
    pre_roll_ms: Annotated[
        int, msgspec.Meta(ge=0, le=2000, description="audio before speech was noticed that belongs to it")
    ] = 300
    trailing_ms: Annotated[
        int, msgspec.Meta(ge=0, le=2000, description="audio behind speech that its final text is made with")
    ] = 400
    segment_s_max: Annotated[
        float, msgspec.Meta(ge=2, le=30, description="speech without a pause is cut after so long")
    ] = 28.0
    partials: Annotated[bool, msgspec.Meta(description="whether words are shown before they are final")] = True
    speakers: Annotated[Policy, msgspec.Meta(description="who spoke: see docs/speech.md")] = "correctable"
    corrections: Annotated[bool, msgspec.Meta(description="whether a speaker may change once shown")] = True
    instant: Annotated[bool, msgspec.Meta(description="whether a speaker is shown with the first words")] = True
    decide_s: Annotated[
        float, msgspec.Meta(ge=0, le=30, description="policy delayed: a speaker is decided so long after the words")
    ] = 2.5
    horizon_s: Annotated[
        float, msgspec.Meta(ge=0, le=86_400, description="a speaker is corrected at most so long after the words")
    ] = 3600.0

    def check(self, where: str) -> None:
        """Misconfigured: it asks for what cannot be had at once."""
        if self.speakers in ("correctable", "none"):
            if self.speakers == "correctable" and not self.corrections:
                raise Misconfigured(
                    f"{where}: speakers = 'correctable' with corrections = false: a voice heard for the first time "
                    "cannot be told from the next one at once and for ever. Allow corrections, wait with "
                    "speakers = 'delayed' (decide_s), or enrol the voices: speakers = 'enrolled'"
                )
            return
        if self.speakers == "delayed" and self.instant:
            raise Misconfigured(
                f"{where}: speakers = 'delayed' shows a speaker after {self.decide_s:g} s, instant = true wants it "
                "with the first words: say instant = false, or take 'correctable' or 'enrolled'"
            )


PROFILES: Final = {
    "assistant": Profile(
        first_token_ms_max=300,
        step_ms=128,
        look_ahead_ms=384,
        hangover_ms=384,
        segment_s_max=15.0,
        speakers="none",
        instant=False,
    ),
    "caption": Profile(first_token_ms_max=1300, hangover_ms=512, segment_s_max=12.0),
    "meeting": Profile(first_token_ms_max=2000, hangover_ms=704),
    "court": Profile(
        first_token_ms_max=2000, hangover_ms=800, speakers="delayed", corrections=False, instant=False, decide_s=2.5
    ),
}
"""What is there without a word in the configuration; [speech.profiles.NAME] changes or adds to them."""


def _said(kind: Any) -> Any:
    """The type of a setting that need not be said."""
    meta = kind.__metadata__[0]
    return Annotated[kind | None, msgspec.Meta(description=meta.description)]


if TYPE_CHECKING:
    ProfileSaid = Profile
else:
    ProfileSaid = msgspec.defstruct(
        "ProfileSaid",
        [(field.name, _said(field.type), None) for field in msgspec.structs.fields(Profile)],
        frozen=True,
        forbid_unknown_fields=True,
        omit_defaults=True,
        kw_only=True,
        namespace={"__doc__": "What a configuration says of a profile: the rest is as it is built in, or by default."},
        module=__name__,
    )


class SpeechSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Live transcription, [speech]. Without `recogniser` there is none."""

    recogniser: Annotated[str, msgspec.Meta(description="the model that makes words of speech, of the repository")] = ""
    vad: Annotated[str, msgspec.Meta(description="the model that tells speech from silence")] = "silero-vad"
    voice: Annotated[str, msgspec.Meta(description="the model that tells voices apart; empty: nobody does")] = ""
    turns: Annotated[
        str,
        msgspec.Meta(description="the model that tells where speakers take turns, or speak at once; empty: voices do"),
    ] = ""
    profile: Annotated[str, msgspec.Meta(description="of clients that name none")] = "caption"
    profiles: dict[str, ProfileSaid] = {}
    language: Annotated[
        str, msgspec.Meta(description="of clients that name none; empty: what is said first decides")
    ] = ""
    sessions_max: Annotated[
        int, msgspec.Meta(ge=0, le=100_000, description="sessions of one process; 0: as many as its cores can follow")
    ] = 0
    key_share_max: Annotated[
        float,
        msgspec.Meta(gt=0, le=1, description="share of sessions_max for one key, rounded up, where several may speak"),
    ] = 0.75
    behind_s_max: Annotated[
        float, msgspec.Meta(gt=0, le=600, description="audio of a session that waits; a client that sends more waits")
    ] = 30.0
    resume_s: Annotated[
        float, msgspec.Meta(ge=0, le=86_400, description="a session may be gone on with so long after its connection")
    ] = 600.0
    silence_s_max: Annotated[
        float, msgspec.Meta(gt=0, le=86_400, description="a session that sends nothing for so long is ended")
    ] = 120.0
    degrade_queue_ms: Annotated[
        int, msgspec.Meta(ge=10, description="steps that wait longer mean overload: steps widen, then partials stop")
    ] = 500
    keep_audio: Annotated[
        bool, msgspec.Meta(description="whether audio of segments that need a look is kept, without what is personal")
    ] = False
    keep_audio_days: Annotated[float, msgspec.Meta(gt=0, le=3650, description="and for how long")] = 30.0

    def __post_init__(self) -> None:
        for name in {*PROFILES, *self.profiles}:
            self.profile_of(name).check(f"speech.profiles.{name}")
        self.profile_of("")
        if self.turns and not self.voice:
            raise Misconfigured(
                f"speech.turns = {self.turns!r}: turns are those of speakers, and nothing tells them apart: say "
                'voice = "wespeaker" too'
            )

    def profile_of(self, name: str) -> Profile:
        """A profile by name ("": the default one): what is said of it, over what is built in. Misconfigured: there is
        none."""
        name = name or self.profile
        if name not in PROFILES and name not in self.profiles:
            raise Misconfigured(f"speech: no profile {name[:80]!r}; there are: {', '.join(self.names())}")
        said = msgspec.structs.asdict(self.profiles[name]) if name in self.profiles else {}
        return replace(
            PROFILES.get(name, Profile()), **{key: value for key, value in said.items() if value is not None}
        )

    def names(self) -> list[str]:
        """Of all profiles."""
        return sorted({*PROFILES, *self.profiles})

    def asked(self, name: str, speakers: str = "") -> Profile:
        """The profile that a client asks for, with another policy for speakers if it names one. BadInput: there is no
        such profile or policy, or the one cannot have the other."""
        if name and name not in self.names():
            raise BadInput(f"no profile {name[:80]!r}; there are: {', '.join(self.names())}")
        profile = self.profile_of(name)
        if not speakers or speakers == profile.speakers:
            return profile
        if speakers not in get_args(Policy):
            raise BadInput(f"no policy {speakers[:80]!r} for speakers; there are: {', '.join(get_args(Policy))}")
        profile = replace(profile, speakers=speakers, instant=speakers in ("correctable", "enrolled"))
        try:
            profile.check(name or self.profile)
        except Misconfigured as error:
            raise BadInput(str(error)) from None
        return profile
