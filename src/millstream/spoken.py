"""The messages of live speech, the same over WebSocket, gRPC and in the log: what a client says, and what it hears.

Rules of the room:
- Times are seconds of the session's audio, from its first sample; `audio_ms` counts what was taken in.
- `seq` grows with every message that has one, over reconnects too; numbers may be left out. Whoever has acknowledged
  up to a number is told what came after it once more, and nothing twice.
- A segment keeps its `id`; `rev` grows with every change. `partial` may change in every word, `stable` words
  (the first `stable` of `words`) never change again; `final` comes once and locks the text for ever. After it only
  `speaker` may change, as `correction`; what a person changes is an `edited` of its own.
- A client that keeps, for each id, what has the highest `rev` holds what the server holds: see `Transcript`.
- An id of a speaker is never given to another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

Form = Literal["pcm16", "float32", "opus"]
"""Audio as it is sent: samples of 16 bits (little endian) or float32 (-1 .. 1), or one packet of Opus a message."""
State = Literal["partial", "stable", "final"]


class Start(msgspec.Struct, omit_defaults=True, tag="start", kw_only=True):
    """The first that a client says. `rate` in Hz and `channels` (mixed to one) of its audio; `profile` as configured;
    `language` "" lets the first speech decide, once for the session. `speakers`: the policy, "" as the profile has it.
    `user`: whose speech it is, by the name that other calls use, so that it can be forgotten by it. To go on with a
    session: its `resume_token`, and `seq`, the last that was heard."""

    form: Form = "pcm16"
    rate: Annotated[int, msgspec.Meta(ge=4000, le=192_000)] = 16_000
    channels: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    profile: str = ""
    language: str = ""
    speakers: str = ""
    resume_token: str = ""
    seq: Annotated[int, msgspec.Meta(ge=0)] = 0
    user: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Ack(msgspec.Struct, tag="ack"):
    """Everything up to `seq` has arrived, and need not be kept for this client."""

    seq: int


class Edit(msgspec.Struct, omit_defaults=True, tag="edit", kw_only=True):
    """A person says what a final segment should read, or who spoke; what is None stays."""

    segment: str
    text: str | None = None
    speaker: str | None = None


class Finish(msgspec.Struct, tag="finish"):
    """No more audio comes: finish what is open, then end."""


Said = Start | Ack | Edit | Finish
"""What a client says, beside audio."""


class Word(msgspec.Struct, omit_defaults=True):
    """`text` as it is written, with its punctuation and without spaces around it; `confidence` 0 .. 1, 0 where the
    recogniser tells none; `stability` 0 .. 1: how likely it stays as it is, 1 of a stable word. `space`: whether one
    goes before it."""

    text: str
    start: float
    end: float
    confidence: float = 0.0
    stability: float = 1.0
    space: bool = True


class Speaker(msgspec.Struct, omit_defaults=True):
    """Who speaks. `id` "" is nobody known: `name` then says "unknown" or "analysing". `score` 0 .. 1; `overlap`: more
    than one voice is heard."""

    id: str = ""
    name: str = "unknown"
    score: float = 0.0
    overlap: bool = False


class Ready(msgspec.Struct, omit_defaults=True, tag="ready", kw_only=True):
    """The session is open. `audio_ms`: where the client's next audio must begin (0 of a new session); `seq`: of the
    next message; `caps`: what this server does, as settings by name."""

    session: str
    resume_token: str
    audio_ms: int = 0
    seq: int = 1
    caps: dict[str, str | float | bool] = {}


class Vad(msgspec.Struct, tag="vad", kw_only=True):
    """Speech begins or ends at `t`."""

    seq: int
    state: Literal["start", "end"]
    t: float


class Segment(msgspec.Struct, omit_defaults=True, tag="segment", kw_only=True):
    """What was said between two pauses, as it is known now. `stable`: so many words will not change; `lat_ms`: from the
    end of the audio that this tells of to the message."""

    seq: int
    id: str
    rev: int
    state: State
    start: float
    end: float
    words: list[Word]
    stable: int = 0
    speaker: Speaker = msgspec.field(default_factory=Speaker)
    lat_ms: int = 0
    language: str = ""

    @property
    def text(self) -> str:
        """The words as one reads them."""
        return written(self.words)


class SpeakerTold(msgspec.Struct, omit_defaults=True, tag="speaker", kw_only=True):
    """There is a new voice `id`, or it has a `name` now, or was `into`'s all along."""

    seq: int
    op: Literal["new", "merge", "rename"]
    id: str
    name: str = ""
    into: str = ""


class Correction(msgspec.Struct, omit_defaults=True, tag="correction", kw_only=True):
    """The speaker of a final segment is another one, `reason` says why."""

    seq: int
    id: str
    rev: int
    speaker: Speaker
    reason: str = ""


class Edited(msgspec.Struct, omit_defaults=True, tag="edited", kw_only=True):
    """What a person made of a final segment; what is None stays. It is kept beside what was heard."""

    seq: int
    id: str
    rev: int
    by: str = ""
    text: str | None = None
    speaker: Speaker | None = None


class Metrics(msgspec.Struct, tag="metrics", kw_only=True):
    """How the session does: seconds of computing a second of audio, how long steps wait, first words after speech."""

    seq: int
    rtf: float
    queue_ms: int
    first_token_ms: int
    degraded: str = ""


class Trouble(msgspec.Struct, omit_defaults=True, tag="error", kw_only=True):
    """What went wrong, in words that say what to do. `fatal`: the session ends here; `retry_s`: try again after that
    many seconds, with the token if there is one. `code`: as errors have it, of what the client said; "final": a segment
    is told as far as it was stable; "silent": no audio came."""

    code: str
    error: str
    fatal: bool = True
    retry_s: float = 0.0


class Move(msgspec.Struct, tag="move", kw_only=True):
    """This process wants to be rid of the session: connect again, with the token."""

    why: str


class End(msgspec.Struct, tag="end", kw_only=True):
    """The last message: all audio is told of."""

    seq: int
    last_seq: int
    audio_ms: int


Told = Ready | Vad | Segment | SpeakerTold | Correction | Edited | Metrics | Trouble | Move | End
"""What a client hears."""
Kept = Segment | SpeakerTold | Correction | Edited | End
"""What is told once more to whom it did not reach; of segments the final ones."""


def written(words: Iterable[Word]) -> str:
    """Words as text: a space before each that wants one."""
    return "".join(f" {word.text}" if word.space else word.text for word in words).strip()


class Line(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A segment in a Transcript. `edited`: what a person made of its text. Words, speaker and edit have a revision
    each, so that it does not matter which of them arrives first; `rev` 0: of its words nothing was heard yet."""

    id: str
    rev: int = 0
    state: State = "partial"
    start: float = 0.0
    end: float = 0.0
    words: list[Word] = []
    speaker: Speaker = msgspec.field(default_factory=Speaker)
    speaker_rev: int = 0
    edited: str | None = None
    edited_rev: int = 0

    @property
    def text(self) -> str:
        """What it reads."""
        return written(self.words) if self.edited is None else self.edited

    def hear(self, told: Segment | Correction | Edited) -> None:
        """Take in what is newer than what is held."""
        if isinstance(told, Segment) and told.rev > self.rev:
            self.rev, self.state, self.start, self.end = told.rev, told.state, told.start, told.end
            self.words = told.words
        if isinstance(told, Edited) and told.text is not None and told.rev > self.edited_rev:
            self.edited, self.edited_rev = told.text, told.rev
        if told.speaker is not None and told.rev > self.speaker_rev:
            self.speaker, self.speaker_rev = told.speaker, told.rev


class Transcript:
    """What a client holds: the fold of what it heard, whatever came twice or in another order. `lines` by id, `seq`:
    the highest heard; `names`: of speakers by id; `into`: a speaker that was another one all along."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.names: dict[str, str] = {}
        self.into: dict[str, str] = {}
        self.seq = 0
        self.ended = False
        self._named: dict[str, int] = {}

    def hear(self, told: Told) -> None:
        """Take one message in."""
        if isinstance(told, Ready | Trouble | Move):
            return
        self.seq = max(self.seq, told.seq)
        match told:
            case Segment() | Correction() | Edited():
                self.lines.setdefault(told.id, Line(id=told.id)).hear(told)
            case SpeakerTold(op="merge"):
                self.into[told.id] = told.into
            case SpeakerTold() if told.seq > self._named.get(told.id, 0):
                self.names[told.id], self._named[told.id] = told.name, told.seq
            case End():
                self.ended = True
            case _:
                pass

    def who(self, line: Line) -> str:
        """Whose line it is, as one shows it."""
        ident = line.speaker.id
        for _ in range(len(self.into)):
            ident = self.into.get(ident, ident)
        return self.names.get(ident) or (line.speaker.name if ident == line.speaker.id else ident)

    def shown(self) -> list[Line]:
        """Its lines in the order of their audio."""
        return sorted((line for line in self.lines.values() if line.rev), key=lambda line: (line.start, line.id))
