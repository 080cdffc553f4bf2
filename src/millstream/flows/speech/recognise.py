"""One open segment as a recogniser hears it: what its words are so far, and its final text.

Rules of the room:
- Both kinds of recogniser look the same from above: `step` up to a sample, `final` once. A step says which first words
  are stable; `final` begins with them, whatever the recogniser says in the end.
- A windowed one is given the whole segment, until that is long: then what is stable is cut off its window, in a pause.
  The stable words in the window are the `prefix` of a hypothesis, so that it can neither lose nor change them.
- A final text is heard anew, without a prefix: a wrong stable word would mislead what follows it. It is written behind
  the stable words, from where it goes on after what is most like them.
- In a pause it is asked as for a final text, a `draft`: if nobody speaks on, that is the final text.
- A streaming one is given what is new, in a session of the engine that lasts as long as the speech session.
- A step that fails is a hypothesis missed. A final that fails is asked for once more; then what was stable is the text.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from millstream import errors
from millstream.flows.predict import Submit
from millstream.flows.speech.agree import Agreement, behind, ends_sentence, timed
from millstream.flows.speech.cut import CUT_S, Ended
from millstream.flows.speech.settings import FRAME, RATE, Profile
from millstream.models.speech.heard import Heard, read
from millstream.spoken import Word, written
from millstream.types import Array, Output, Request, Turn

STEP, FINAL, RECORDING = 0, 1, 2
"""Priorities: a final text waits behind hypotheses, which are of no use later; recordings wait behind all live speech,
and share no call with it."""
BEAM: Final = 5
"""Hypotheses that a final text is the best of; one is followed in a step."""
WINDOW_S: Final = 5.0
"""A window that is longer is cut at stable words, if it can be: each of its words costs as much as a new one."""
KEPT_S: Final = 2.0
"""So much of it stays at least."""
NEAR: Final = RATE // 10
"""Samples around the end of a word that are looked at for the quietest 10 ms (PIECE)."""
PIECE: Final = RATE // 100
FINAL_TIMEOUT_S: Final = 60.0
LEAVE_S: Final = 2.0
"""So long an engine's session is asked to end; then it goes by itself, when it was idle for long enough."""
SILENT: Final = 0.6
"""A text of which the recogniser thinks so likely that nothing was said ..."""
UNSURE: Final = 0.5
"""... and of whose words it is no surer than this, is text on silence."""
LAG_S: Final = 0.4
"""Words that begin so long after speech has ended are said on silence, too."""
log = logging.getLogger(__name__)
Sound = Callable[[int, int], NDArray[np.float32]]
"""The session's audio from one sample to another."""


class Hypothesis:
    """What an open segment reads now: `words`, the first `stable` of which will not change; `language` as heard."""

    __slots__ = ("language", "stable", "words")

    def __init__(self, words: list[Word], stable: int, language: str = "") -> None:
        self.words, self.stable, self.language = words, stable, language

    @property
    def full_stop(self) -> bool:
        """Whether it reads like the end of a sentence."""
        return ends_sentence(self.words)


@dataclass(slots=True)
class Settled:
    """What a segment reads for good. `no_speech`, `compression`, `tokens` as in Heard; `stable`: so many of its words
    were stable before; `problem`: why it is no more than those, "" where it was recognised; `queue_s`, `compute_s`:
    how long it waited and took; `suppressed`: words left out for being said on silence; `timed`: whether the times of
    all words were measured, none is a hypothesis's guess."""

    words: list[Word]
    language: str = ""
    no_speech: float = 0.0
    compression: float = 0.0
    tokens: int = 0
    stable: int = 0
    problem: str = ""
    queue_s: float = 0.0
    compute_s: float = 0.0
    suppressed: int = 0
    timed: bool = False


def heard_words(heard: Heard, first: int) -> list[Word]:
    """Words whose times are seconds of the session; `first`: the sample that the recogniser was given first."""
    at = first / RATE
    return [
        Word(
            text=word.text,
            start=round(at + word.start, 3),
            end=round(at + max(word.end, word.start), 3),
            confidence=round(word.confidence, 4),
            space=word.space,
        )
        for word in heard.words
        if word.text
    ]


def windowed(sound: NDArray[np.float32], language: str, prefix: str, beam: int, stamps: bool) -> dict[str, Array]:
    """One row of a windowed recogniser's inputs, for audio float32 [n]; see models/speech/tensors.py; without
    `samples`, which the engine fills where the model's manifest says so."""
    return {
        "audio": sound[np.newaxis],
        "language": _text(language),
        "prefix": _text(prefix),
        "beam": np.array([beam], np.int32),
        "stamps": np.array([stamps]),
    }


@dataclass(slots=True)
class Asker:
    """What a session asks of one version of a recogniser, through the engine, and what that cost. `language` "" is
    found out by the model. `fills`: the engine fills `samples` of a windowed one. `waited(seconds, final)`: how long
    a hypothesis or a final text waited. `name`: of the session in the engine that a streaming one is heard in. `final`,
    `final_timeout_s`: the priority of a final text, and how long it may take."""

    submit: Submit
    model: str
    version: str = ""
    language: str = ""
    fills: bool = True
    step_timeout_s: float = 10.0
    final: int = FINAL
    final_timeout_s: float = FINAL_TIMEOUT_S
    waited: Callable[[float, bool], None] | None = None
    name: str = ""
    queue_s: float = 0.0
    compute_s: float = 0.0
    asked: int = 0
    turn: Turn | None = None
    began: bool = False

    async def ask(self, inputs: dict[str, Array], priority: int, timeout_s: float, turn: Turn | None = None) -> Output:
        """One answer of the engine; raises what that says. Where the version answers no more, as another one was
        promoted, that one is asked from now on: nobody's words are lost with a version."""
        request = Request(
            self.model, inputs, 1, version=self.version, priority=priority, timeout_s=timeout_s, turn=turn
        )
        try:
            output = await self.submit(request)
        except errors.NotFound:
            if not self.version or (turn is not None and not turn.start):
                raise
            output = await self.submit(replace(request, version=""))
            now = output.version.partition("@")[0]
            log.warning("%s: version %s answers no more, %s is asked instead", self.model, self.version, now)
            self.version = now
        self.asked += 1
        self.queue_s += output.queue_s
        if self.waited is not None:
            self.waited(output.queue_s, priority > STEP)
        if output.ran is not None:
            self.compute_s += output.ran.compute_s / max(output.ran.rows, 1)
        return output

    async def leave(self) -> None:
        """Give the engine's session back, if there may be one, within LEAVE_S. Again is harmless."""
        if not self.began:
            return
        nothing: dict[str, Array] = {
            "audio": np.zeros((1, FRAME), np.float32),
            "samples": np.array([FRAME], np.int32),
            "end": np.array([True]),
        }
        # Without a number, as the answer of the latest step may be lost; of a first one its name alone is known.
        last = Turn(id=self.name, token=self.turn.token if self.turn is not None else "", end=True)
        with contextlib.suppress(errors.Error):  # it goes by itself, later
            await self.ask(nothing, STEP, LEAVE_S, last)
        self.turn, self.began = None, False

    async def heard(
        self,
        sound: NDArray[np.float32],
        prefix: str = "",
        beam: int = 1,
        stamps: bool = False,
        priority: int = STEP,
        timeout_s: float = 0.0,
    ) -> tuple[Heard, Output]:
        """What a windowed recogniser says of a stretch of audio, float32 [n]."""
        inputs = windowed(sound, self.language, prefix, beam, stamps)
        if not self.fills:
            inputs["samples"] = np.array([len(sound)], np.int32)
        output = await self.ask(inputs, priority, timeout_s or self.step_timeout_s)
        return heard_of(output), output


class Windowed:
    """A segment that begins at the sample `start`, heard by a recogniser that is given windows."""

    def __init__(self, asker: Asker, profile: Profile, start: int) -> None:
        self._asker, self._from = asker, start
        self._late = start + (profile.segment_s_max - CUT_S) * RATE  # it may be cut behind its stable words soon
        self._agreement = Agreement(profile.look_ahead_ms * RATE // 1000)
        self._before = 0  # stable words that lie before the window
        self._exact = True  # whether stable words that the window was cut behind have measured times
        self._draft: tuple[int, Heard, Output] | None = None  # the sample where speech ended, and what was heard then

    @property
    def stable_to(self) -> int:
        """The sample behind the last stable word, 0 before there is one."""
        stable = self._agreement.stable
        return round(stable[-1].end * RATE) if stable else 0

    async def step(self, sound: Sound, upto: int) -> Hypothesis:
        """What it reads up to a sample. Raises what the engine does; it may be gone on with after that."""
        timed = upto - self._from > WINDOW_S * RATE or upto > self._late
        heard, _ = await self._asker.heard(sound(self._from, upto), self._prefix(), stamps=timed)
        hypothesis = self._agree(heard, upto)
        if timed:
            again = self._agreement.retime(heard_words(heard, self._from), self._before)
            self._exact = self._exact and again and heard.timed
        if upto - self._from > WINDOW_S * RATE:
            self._trim(sound, upto)
        return hypothesis

    async def draft(self, sound: Sound, upto: int, speech_end: int) -> Hypothesis:
        """What it reads in a pause, up to a sample, where speech ended before that: its final text, if it ends so.
        Raises what the engine does; it may be gone on with after that."""
        heard, output = await self._finely(sound, upto, self._asker.step_timeout_s)
        self._draft = (speech_end, heard, output)
        return self._agree(heard, upto)

    async def final(self, sound: Sound, ended: Ended) -> Settled:
        """Its final text, or what is stable of it. Never raises an Error."""
        stable, problem = self._agreement.stable, ""
        if self._draft is not None and self._draft[0] == ended.speech_end and ended.why != "length":
            return self._settle(ended, *self._draft[1:])
        for _ in range(2):
            try:
                return self._settle(ended, *await self._finely(sound, ended.end, self._asker.final_timeout_s))
            except errors.Error as error:
                problem = str(error)
        return Settled(list(stable), self._asker.language, stable=len(stable), problem=problem)

    async def _finely(self, sound: Sound, upto: int, timeout_s: float) -> tuple[Heard, Output]:
        return await self._asker.heard(sound(self._from, upto), "", BEAM, True, self._asker.final, timeout_s)

    def _prefix(self) -> str:
        return written(self._agreement.stable[self._before :])

    def _agree(self, heard: Heard, upto: int) -> Hypothesis:
        stable = self._agreement.stable
        found = [] if not stable and dreamt(heard) else heard_words(heard, self._from)
        words = self._agreement.hear(found, upto, self._before)
        return Hypothesis(words, len(stable), heard.language)

    def _settle(self, ended: Ended, heard: Heard, output: Output) -> Settled:
        stable = self._agreement.stable
        words = [*stable[: self._before], *heard_words(heard, self._from)]
        return _settled(stable, words, ended, heard, output, heard.timed and self._exact)

    def _trim(self, sound: Sound, upto: int) -> None:
        """Let the window begin behind a stable word, where it is quietest around the word's end."""
        stable, quietest, begin = self._agreement.stable, np.inf, self._from
        for n in range(self._before, len(stable)):
            at = round(stable[n].end * RATE)
            if not self._from < at <= upto - KEPT_S * RATE:
                continue
            first = max(at - NEAR, self._from)
            first += (at + NEAR - first) % PIECE
            around = sound(first, at + NEAR).reshape(-1, PIECE)
            loudness = np.einsum("ij,ij->i", around, around)
            if loudness.min() <= quietest:
                quietest, begin = float(loudness.min()), first + int(loudness.argmin()) * PIECE
                self._before = n + 1
        self._from = begin


class Streamed:
    """A segment heard by a recogniser that keeps what it was given."""

    def __init__(self, asker: Asker, profile: Profile, start: int) -> None:
        self._asker, self._start, self._sent = asker, start, start
        self._look_ahead_s = profile.look_ahead_ms / 1000
        self._stable: list[Word] = []
        self._language = ""

    @property
    def stable_to(self) -> int:
        """The sample up to which it was given audio: that cannot be taken back."""
        return self._sent

    async def draft(self, sound: Sound, upto: int, speech_end: int) -> Hypothesis:
        """As a step: its text is final when it is told that no more comes."""
        return await self.step(sound, upto)

    async def step(self, sound: Sound, upto: int) -> Hypothesis:
        """What it reads up to a sample. Raises what the engine does; it may be gone on with after that."""
        heard, committed, _ = await self._send(sound, upto, end=False)
        words = heard_words(heard, self._start)
        whole = [*self._stable, *behind(self._stable, words)]
        for word in whole[len(self._stable) : committed]:
            if word.end > upto / RATE - self._look_ahead_s:
                break
            self._stable.append(replace(word, stability=1.0))
        tail = [replace(word, stability=0.5) for word in whole[len(self._stable) :]]
        self._language = heard.language
        return Hypothesis([*self._stable, *tail], len(self._stable), heard.language)

    async def final(self, sound: Sound, ended: Ended) -> Settled:
        """Its final text. Never raises an Error."""
        problem = ""
        for _ in range(2):
            try:
                heard, _, output = await self._send(sound, max(ended.end, self._sent), end=True)
            except errors.Error as error:
                problem = str(error)
                continue
            return _settled(self._stable, heard_words(heard, self._start), ended, heard, output, heard.timed)
        return Settled(list(self._stable), self._language, stable=len(self._stable), problem=problem)

    async def _send(self, sound: Sound, upto: int, end: bool) -> tuple[Heard, int, Output]:
        asker = self._asker
        first = self._sent if asker.turn is not None else self._start
        try:
            output = await self._step(sound(first, upto), asker.turn, end)
        except errors.NotFound:  # idle for too long, or its version was loaded anew: once more from the beginning
            output = await self._step(sound(self._start, upto), None, end)
        except errors.Error:
            asker.turn = None  # whether it heard that is not known: the next one begins anew
            raise
        self._sent = upto
        asker.turn = output.turn
        committed = int(output.outputs["committed"][0])
        return heard_of(output), committed, output

    async def _step(self, sound: NDArray[np.float32], turn: Turn | None, end: bool) -> Output:
        if not len(sound):
            sound = np.zeros(FRAME, np.float32)
        samples = np.array([len(sound)], np.int32)
        inputs: dict[str, Array] = {"audio": sound[np.newaxis], "samples": samples, "end": np.array([end])}
        asker = self._asker
        asked, asker.began = Turn(id=asker.name, start=True), True
        if turn is not None:
            asked = Turn(id=turn.id, token=turn.token, step=turn.step + 1)
        return await asker.ask(inputs, STEP, FINAL_TIMEOUT_S if end else asker.step_timeout_s, asked)


def dreamt(heard: Heard) -> bool:
    """Whether a text is one of those that recognisers say on silence."""
    sure = sum(word.confidence for word in heard.words) / max(len(heard.words), 1)
    return heard.no_speech > SILENT and sure < UNSURE


def _settled(stable: list[Word], words: list[Word], ended: Ended, heard: Heard, output: Output, exact: bool) -> Settled:
    """The final text of what was heard: the stable words, with the times of this hearing where it begins with the same
    ones, and what was said behind them while somebody spoke. `exact`: these times were measured."""
    again = timed(stable, words)
    first = stable if again is None else again
    rest = [replace(word, stability=1.0) for word in behind(stable, words)]
    said = [word for word in rest if word.start < ended.speech_end / RATE + LAG_S]
    if not first and dreamt(heard):
        said = []
    return Settled(
        [*first, *said],
        heard.language,
        heard.no_speech,
        heard.compression,
        heard.tokens,
        len(stable),
        queue_s=output.queue_s,
        compute_s=output.ran.compute_s if output.ran is not None else 0.0,
        suppressed=len(rest) - len(said),
        timed=exact and again is not None,
    )


def _text(text: str) -> Array:
    cell = np.empty(1, np.object_)
    cell[0] = text
    return cell


def heard_of(output: Output) -> Heard:
    """What a recogniser's answer of one row says. Failed: it is none."""
    cell = output.outputs["heard"][0]
    try:
        return read(cell if isinstance(cell, bytes) else str(cell).encode())
    except msgspec.MsgspecError as error:
        raise errors.Failed(
            f"{output.model} {output.version}: its `heard` is not as in docs/models.md: {error}"
        ) from None
