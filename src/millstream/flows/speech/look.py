"""How good final texts are when nobody wrote down what was said: signs of each, counted, and what a person should see.

Rules of the room:
- Signs are of the text as it was told, masked; of what was heard only its counts are taken.
- Characters are letters and digits, without spaces and marks. Chinese is spoken at 3 to 5 of them a second of speech,
  English at about 12: far fewer mean that words are missing.
- A segment is told of for review by its strongest sign, with at most AN_HOUR of a process in any hour.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from millstream.clock import Clock
from millstream.flows.speech.kept import Kept
from millstream.flows.speech.wiring import Settling
from millstream.guard.pii import pseudonym
from millstream.meter import Meter
from millstream.models.speech.loops import looping
from millstream.spoken import Edited, Word, written
from millstream.types import Review

UNSURE: Final = 0.5
"""Mean confidence of words under which a final is worth a look."""
REPEATED: Final = 0.3
"""Share of words that repeat those before."""
THIN: Final = {"zh": 1.0, "yue": 1.0, "ja": 1.5}
THIN_ELSE: Final = 4.0
"""Characters a second of speech under which words are missing, of languages written in letters."""
SPEECH_S_MIN: Final = 2.0
"""Less speech says nothing about its pace."""
AN_HOUR: Final = 60
GAPS: Final = frozenset(("speech-failed", "speech-loop", "speech-thin"))
"""Reasons by which something was said that stands in no text: so nobody knows what would have to be muted."""
VOICE: Final = 0.55
"""Score of a speaker under which the voice might as well be another one's."""
LANGUAGES_MAX: Final = 32
TEXT_MAX: Final = 2000
Shown = dict[str, str | int | float | list[str | int | float] | None]
DEFINITION: Final = "speech"
"""`Review.definition` of final texts: they are no rows of a model that learns from labels. Their `user` is the session:
by its id what was put up of it can be forgotten."""
log = logging.getLogger(__name__)


class Signs(msgspec.Struct, frozen=True):
    """What can be seen of a final text. `pace`: characters a second of speech; `repeated`: share of words that repeat
    what stands right before; `confidence`: mean over words, 0 where the recogniser tells none; `loop`: the recogniser
    lost its place."""

    characters: int = 0
    words: int = 0
    pace: float = 0.0
    repeated: float = 0.0
    confidence: float = 0.0
    loop: bool = False


def signs(words: Sequence[Word], speech_s: float, tokens: int) -> Signs:
    """Of a final text over so much speech, that took so many tokens."""
    if not words:
        return Signs()
    text = written(words)
    characters = sum(char.isalnum() for char in text)
    return Signs(
        characters=characters,
        words=len(words),
        pace=characters / speech_s if speech_s > 0 else 0.0,
        repeated=repeats([word.text for word in words]) / len(words),
        confidence=sum(word.confidence for word in words) / len(words),
        loop=looping(text, tokens, speech_s),
    )


def repeats(words: Sequence[str]) -> int:
    """How many of these belong to one to four words that say again what stands right before them."""
    plain = [word.strip(".,!?;:，。！？；：、").lower() for word in words]
    again = [False] * len(plain)
    for size in range(1, 5):
        for at in range(size, len(plain) - size + 1):
            if plain[at : at + size] == plain[at - size : at]:
                again[at : at + size] = [True] * size
    return sum(again)


class Why(NamedTuple):
    """Why a final text is worth a look: the name of the reason, how much in [0, 1], and in words."""

    reason: str
    worth: float
    said: str


class Look:
    """Looks at every final text: the `look` of a Wiring. `put` takes what a person should see, None: nobody does;
    `kept`: where its audio goes, None: nowhere. `version()`: of the recogniser that is live."""

    def __init__(
        self,
        meter: Meter,
        clock: Clock,
        model: str,
        version: Callable[[], str],
        put: Callable[[Review], None] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._meter, self._clock, self._model, self._version = meter, clock, model, version
        self._put, self._kept = put, kept
        self._languages: set[str] = set()
        self._told: deque[float] = deque(maxlen=AN_HOUR)
        self._repeated = meter.counter(
            "millstream_speech_words_repeated_total", "words that say again those before them"
        )
        self._confidence = meter.counter("millstream_speech_confidence_total", "sum of the confidences of final words")
        self._loops = meter.counter(
            "millstream_speech_loops_total", "final texts in which the recogniser lost its place"
        )
        self._masked = meter.counter(
            "millstream_speech_masked_total", "runs of words masked as personal in final texts"
        )
        self._reviews = meter.counter("millstream_speech_reviews_total", "final texts put up for a person's look")
        self._passed = meter.counter(
            "millstream_speech_reviews_passed_total", "those that were one too many for an hour"
        )

    def __call__(self, settling: Settling) -> None:
        """Count a segment that became final, and put it up for a look where it is worth one."""
        words = [word for one in settling.told for word in one.words]
        found = signs(words, settling.speech_s, settling.heard.tokens)
        language = self._language(settling.told[0].language if settling.told else settling.heard.language)
        self._count(found, settling, language)
        why = reason(found, settling, language)
        if why is not None and settling.told and self._put is not None and self._room():
            self._put(self._review(settling, found, why, self._keep(settling, words, why)))

    def edited(self, session: str, told: Edited) -> None:
        """Put up what a person made of a final text: where the recogniser was wrong, as people say."""
        if self._put is None or not self._room():
            return
        now = self._clock.now()
        shown: Shown = {
            "text": told.text,
            "speaker": told.speaker.name if told.speaker else None,
            "by": pseudonym(told.by),
        }
        said = "a person changed its " + " and its ".join(
            name for name, value in (("text", told.text), ("speaker", told.speaker)) if value is not None
        )
        why = Why("speech-edited", 0.8, said)
        self._put(self._entry(session, told.id, f"edited {told.rev}", why, 0.0, shown, now))

    def _room(self) -> bool:
        """Whether this hour has room for one more."""
        now = self._clock.now()
        if len(self._told) == AN_HOUR and self._told[0] > now - 3600.0:
            self._passed.add()
            return False
        self._told.append(now)
        self._reviews.add()
        return True

    def _keep(self, settling: Settling, words: Sequence[Word], why: Why) -> str:
        """Keep its audio, where it is known what was said in it; the name of the file, or ""."""
        if self._kept is None or why.reason in GAPS:
            return ""
        return self._kept.put(
            settling.session, settling.told[0].id, settling.audio, settling.first_s, words, settling.spans,
            settling.heard.timed, self._clock.now(),
        )  # fmt: skip

    def _count(self, found: Signs, settling: Settling, language: str) -> None:
        of = {"language": language}
        spoken = self._meter.counter("millstream_speech_spoken_seconds_total", "seconds of speech of segments", of)
        spoken.add(settling.speech_s)
        characters = self._meter.counter("millstream_speech_characters_total", "letters and digits of final texts", of)
        characters.add(found.characters)
        self._repeated.add(round(found.repeated * found.words))
        self._confidence.add(found.confidence * found.words)
        self._loops.add(found.loop)
        self._masked.add(len(settling.spans))

    def _language(self, said: str) -> str:
        """As a label, which has few values."""
        language = said.lower()[:8]
        if language not in self._languages and len(self._languages) >= LANGUAGES_MAX:
            return "other"
        self._languages.add(language)
        return language

    def _review(self, settling: Settling, found: Signs, why: Why, name: str) -> Review:
        first, last = settling.told[0], settling.told[-1]
        shown: Shown = {
            "text": " ".join(one.text for one in settling.told)[:TEXT_MAX],
            "speaker": first.speaker.name or first.speaker.id,
            "start": first.start,
            "end": last.end,
            "pace": round(found.pace, 2),
            "audio": name,
        }
        now = self._clock.now()
        return self._entry(settling.session, first.id, "final", why, found.confidence, shown, now)

    def _entry(self, session: str, segment: str, what: str, why: Why, score: float, shown: Shown, now: float) -> Review:
        key = f"{session}\0{segment}\0{what}".encode("utf-8", "surrogatepass")
        return Review(
            id=blake2b(key, digest_size=8).hexdigest(), request=session, item=segment, user=session, model=self._model,
            version=self._version(), definition=DEFINITION, tokens=b"", score=score, calibrated=score,
            reasons=[why.reason], worth=why.worth, event_time=now, at=now, said=why.said, shown=shown,
        )  # fmt: skip


def reason(found: Signs, settling: Settling, language: str) -> Why | None:
    """The strongest sign that a final text is worth a look; None: there is none."""
    if settling.heard.problem:
        return Why("speech-failed", 1.0, "its final text could not be had: what was stable before stands there")
    if found.loop or found.repeated > REPEATED:
        return Why("speech-loop", 0.9, f"{found.repeated:.0%} of its words say again what stands before them")
    least = THIN.get(language, THIN_ELSE)
    if found.words and settling.speech_s >= SPEECH_S_MIN and found.pace < least:
        said = f"{found.pace:.1f} characters a second of speech, where {least:g} is little"
        return Why("speech-thin", min(1.0, 1.0 - found.pace / (2 * least)), said)
    if 0 < found.confidence < UNSURE:
        said = f"the mean confidence of its words is {found.confidence:.2f}"
        return Why("speech-unsure", 1.0 - found.confidence, said)
    if any(one.speaker.overlap for one in settling.told):
        return Why("speech-voices", 0.4, "more than one voice is heard at once")
    if any(one.speaker.id and one.speaker.score < VOICE for one in settling.told):
        return Why("speech-voices", 0.3, "whose voice it is was not clear")
    return None
