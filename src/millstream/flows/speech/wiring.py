"""What sessions are made with: the parts of the house that they ask, and the parts that each has to itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from millstream.clock import Clock
from millstream.flows.predict import Submit
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.recognise import Settled
from millstream.flows.speech.settings import Profile
from millstream.flows.speech.speakers import Speakers
from millstream.models.speech.turns import Spoken
from millstream.models.speech.vad import Vad
from millstream.spoken import Edited, Segment, Word

Embed = Callable[[Sequence[NDArray[np.float32]]], Awaitable[NDArray[np.float32]]]
"""Voices of windows of audio at 16 kHz: float32 [n, d], each of length one."""
Listen = Callable[[Sequence[NDArray[np.float32]]], Awaitable[list[Spoken]]]
"""Turns in windows of sound, float32 [n] each, up to 10 s: see models/speech/turns.py."""


class Gate(Protocol):
    """What words pass before they leave or are kept. Calls come in the order of the audio: all of a segment before
    those of the next. What a partial was given as stable stays in what later calls give for that segment."""

    def partial(self, words: list[Word], stable: int, onset: float) -> tuple[list[Word], int]:
        """What may be shown of an open segment whose speech begins at `onset`, in seconds of the session, and how many
        words of that are stable."""
        ...

    def final(self, words: list[Word], onset: float, end: float) -> tuple[list[Word], list[tuple[float, float]]]:
        """What may be shown of a segment for good, whose speech lies from `onset` to `end`, and the seconds of audio
        (start, end) in which something is said that may not."""
        ...

    def edit(self, text: str) -> str:
        """What may be shown of a person's text."""
        ...

    def name(self, text: str) -> str:
        """What may be shown of the name that a person gives a speaker."""
        ...

    def save(self) -> dict[str, Any]: ...

    def restore(self, saved: dict[str, Any]) -> None: ...


class OpenGate:
    """Lets everything through."""

    def partial(self, words: list[Word], stable: int, onset: float) -> tuple[list[Word], int]:
        """See Gate."""
        return words, stable

    def final(self, words: list[Word], onset: float, end: float) -> tuple[list[Word], list[tuple[float, float]]]:
        """See Gate."""
        return words, []

    def edit(self, text: str) -> str:
        """See Gate."""
        return text

    def name(self, text: str) -> str:
        """See Gate."""
        return text

    def save(self) -> dict[str, Any]:
        """Nothing: it remembers nothing."""
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Nothing to go on from."""


@dataclass(frozen=True, slots=True)
class Settling:
    """A segment that became final, for who looks at all of them. `told`: as it was told, nothing where it had no words;
    `heard`: what the recogniser said, before the gate: it must not be kept; `spans`: seconds of audio that must not be
    either; `speech_s`: how much of it was speech; `audio()`: its audio, float32 at 16 kHz, `first_s` its first second.
    """

    session: str
    told: Sequence[Segment]
    heard: Settled
    spans: Sequence[tuple[float, float]]
    speech_s: float
    first_s: float
    audio: Callable[[], NDArray[np.float32]]


def _at_ease() -> int:
    return 0


def _speakers(profile: Profile, saved: dict[str, Any] | None) -> Speakers:
    return Speakers("none") if saved is None else Speakers.restored(saved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """`model`, `version`: of the recogniser; `streaming`: its kind; `fills`: the engine fills `samples` of a windowed
    one. `embed` None: nobody tells voices apart; `voice_model`: what does, and which version, as voices of two cannot
    be compared. `listen` None: voices alone tell where one speaker gives way to another, and nothing where two speak at
    once. `load()`: 0 at ease, 1 hypotheses come half as often, 2 there are none; `waited(seconds, final)`: how long a
    hypothesis or a final text waited in the engine. `speakers(profile, saved)`: those of a new session, or of one that
    goes on. `look`: gets every segment that becomes final; `edited`: what a person changed, and in which session. What
    they raise is logged."""

    submit: Submit
    model: str
    vad: Vad
    clock: Clock
    numbers: Numbers
    version: str = ""
    streaming: bool = False
    fills: bool = True
    embed: Embed | None = None
    listen: Listen | None = None
    voice_model: str = ""
    load: Callable[[], int] = _at_ease
    waited: Callable[[float, bool], None] | None = None
    gate: Callable[[], Gate] = OpenGate
    speakers: Callable[[Profile, dict[str, Any] | None], Speakers] = field(default=_speakers)
    look: Callable[[Settling], None] | None = None
    edited: Callable[[str, Edited], None] | None = None
