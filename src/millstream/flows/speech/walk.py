"""The walk through a session's audio: what is heard at each sample, in order, and what is to be told of it.

Rules of the room:
- Everything is decided at samples, whatever the audio arrived in: finals, their times and what is stable are the same.
- A hypothesis is waited for before the next frame is looked at, so a session has one under way at most. A final text
  is waited for by who tells it alone, unless what comes next depends on it: the language, a streaming model's slot.
- Between two looks at the audio there is a mark: the states of all that listens. Of those the newest before anything
  that is still needed goes with what is told, as the place to go on from.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from millstream import errors
from millstream.flows.speech.cut import Began, Cutter, Ended, Event, Step
from millstream.flows.speech.level import Level
from millstream.flows.speech.recognise import Asker, Hypothesis, Settled, Streamed, Windowed
from millstream.flows.speech.ribbon import Ribbon, Samples
from millstream.flows.speech.settings import FRAME, RATE, Profile
from millstream.flows.speech.speakers import Look, Speakers, Voiced, looked
from millstream.flows.speech.store import Place
from millstream.flows.speech.wiring import Wiring
from millstream.models.speech.turns import Span, Spoken
from millstream.models.speech.vad import Hearing

TICK: Final = 32 * FRAME
"""Samples between two looks at what is due: 1.024 s."""
QUIET_TICKS: Final = 4
"""In silence there is a new place to go on from after so many."""
FINALS_MAX: Final = 4
"""Final texts under way; then the walk waits."""
JOBS_MAX: Final = 64
"""What waits to be told; then the walk waits."""
MARK: Final = RATE // 4
"""Samples between marks, at least."""
LANGUAGE_S: Final = 3.0
"""Seconds of a segment by which its language is the session's, before it is final."""
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Open:
    """A segment from its first sample on: what tells of it needs this."""

    id: str
    start: int
    onset: int
    heard: Windowed | Streamed
    rev: int = 0
    shown: list[str] | None = None
    """Texts of the words that were shown last; None: nothing was."""
    worded: bool = False
    voices: list[tuple[list[Span], asyncio.Future[Samples]]] = field(default_factory=list)
    looks: list[tuple[list[Span], asyncio.Future[list[Spoken]]]] = field(default_factory=list)

    def heard_voices(self, upto: int) -> list[Voiced]:
        """The voices of its windows up to a sample that are known by now; of those that failed there are none. Speech
        that is cut for its length ends before windows that a step asked for."""
        return [
            Voiced(start, end, voice)
            for windows, future in self.voices
            if _done(future)
            for (start, end), voice in zip(windows, future.result(), strict=True)
            if end <= upto
        ]

    def heard_turns(self, upto: int) -> list[Look]:
        """What is known by now of turns in its windows up to a sample."""
        found = [look for windows, future in self.looks if _done(future) for look in looked(windows, future.result())]
        return [look for look in found if look.end <= upto]

    async def listened(self) -> list[Exception]:
        """All that was asked of its windows is known, or failed, which costs no word: why."""
        asked: list[asyncio.Future[Any]] = [future for _, future in self.voices]
        asked += [future for _, future in self.looks]
        return [why for why in await asyncio.gather(*asked, return_exceptions=True) if isinstance(why, Exception)]


@dataclass(slots=True)
class Noticed:
    """Speech begins, or ends, at a sample."""

    begins: bool
    at: int


@dataclass(slots=True)
class Guessed:
    """How an open segment reads up to a sample."""

    segment: Open
    rev: int
    hypothesis: Hypothesis
    upto: int


@dataclass(slots=True)
class Closed:
    """A segment has ended. `text` None: it was too little to be asked for. `audio`: that its final text is made of."""

    segment: Open
    rev: int
    ended: Ended
    text: asyncio.Task[Settled] | None
    audio: Ribbon
    place: Place


@dataclass(slots=True)
class Ticked:
    """So far the audio was heard. `place`: nothing is open there, and the session may go on from it."""

    at: int
    place: Place | None


@dataclass(slots=True)
class Over:
    """The audio has ended."""

    at: int
    place: Place


Job = Noticed | Guessed | Closed | Ticked | Over


@dataclass(slots=True)
class _Mark:
    at: int
    audio_ms: int
    intake: dict[str, Any]
    level: dict[str, Any]
    hearing: Hearing


class Walker:
    """Walks through one session. `jobs` are to be told, in order; `resumed`: how often the session was gone on with."""

    def __init__(
        self, wiring: Wiring, profile: Profile, asker: Asker, speakers: Speakers, place: Place, resumed: int
    ) -> None:
        self._wiring, self._profile, self._asker, self._speakers = wiring, profile, asker, speakers
        self._numbers = wiring.numbers
        self.jobs: asyncio.Queue[Job] = asyncio.Queue(JOBS_MAX)
        self.cutter, self._level = Cutter(profile, not wiring.streaming), Level()
        self._hearing = wiring.vad.fresh()
        self._base = resumed * 1000
        self.segments = place.segments
        self._open: Open | None = None
        if place.cutter:
            self.cutter.restore(place.cutter)
            self._level.restore(place.level)
            self._hearing = Hearing.restored(place.hearing)
        self._ribbon = Ribbon(place.samples)
        self._marks = deque([_Mark(place.samples, place.audio_ms, place.intake, self._level.save(), self._hearing)])
        self._finals = asyncio.Semaphore(FINALS_MAX)
        self._quiet = 0
        self._detecting_s = self._counted_s = 0.0
        self._seen = (0, 0.0)
        self.began_at = place.samples
        """The sample that this walk began with."""
        self._wait: set[asyncio.Future[Any]] = set()
        if self.cutter.open:
            self._begin(self.cutter.start, self.cutter.onset)

    @property
    def open(self) -> Open | None:
        """The segment that is open."""
        return self._open

    @property
    def needed_from(self) -> int:
        """Nothing before this sample is asked for any more."""
        return min(self.cutter.needed_from, self._open.start if self._open else self.cutter.at)

    @property
    def language(self) -> str:
        """The session's, "" while it is not known."""
        return self._asker.language

    @property
    def busy_s(self) -> float:
        """Seconds of computing that this walk took so far."""
        return self._asker.compute_s + self._detecting_s

    def queue_ms(self) -> int:
        """How long what was asked since the last look at this had to wait, on average."""
        asked, waited = self._asker.asked - self._seen[0], self._asker.queue_s - self._seen[1]
        self._seen = (self._asker.asked, self._asker.queue_s)
        return round(1000 * waited / asked) if asked else 0

    async def walk(self, sound: Samples, intake: dict[str, Any] | None, audio_ms: int) -> None:
        """Hear more: float32 [n]. `intake`: the state of what decoded it, after it (None: nobody may begin behind it);
        `audio_ms`: of the client's audio up to there."""
        await self._hear(self._level.feed(sound))
        if intake is not None and self._ribbon.end - self._marks[-1].at >= MARK:
            self._marks.append(_Mark(self._ribbon.end, audio_ms, intake, self._level.save(), self._hearing))
        while len(self._marks) > 1 and self._marks[1].at <= self.needed_from:
            self._marks.popleft()
        self._ribbon.forget(min(self.needed_from, self._marks[0].at))

    async def finish(self) -> None:
        """No more comes: what is open ends, after silence up to a whole frame."""
        rest = self._level.flush()
        end = self._ribbon.end + len(rest)
        if len(rest):
            await self._hear(np.concatenate([rest, np.zeros(-len(rest) % FRAME, np.float32)]))
        for event in self.cutter.finish():
            await self._meet(event)
        await self._asker.leave()
        self._count()
        await self.jobs.put(Over(end, self._place()))

    async def leave(self) -> None:
        """Give back what the engine keeps for this walk, which has ended; see Asker."""
        await self._asker.leave()

    def stop(self) -> None:
        """Give up what is under way."""
        for future in self._wait:
            future.cancel()

    async def _hear(self, sound: Samples) -> None:
        """Whole frames, up to a tick at a time."""
        while len(sound):
            many = TICK - self._ribbon.end % TICK
            some, sound = sound[:many], sound[many:]
            self._ribbon.append(some)
            began = self._wiring.clock.monotonic()
            probabilities, self._hearing = self._wiring.vad.probabilities(some, self._hearing)
            took = self._wiring.clock.monotonic() - began
            self._detecting_s += took
            self._numbers.detecting.add(took)
            self._numbers.audio.add(len(some) / RATE)
            known = max(0, self.cutter.at - (self._ribbon.end - len(some))) // FRAME  # gone on with: decided before
            for event in self.cutter.feed(probabilities[known:].tolist()):
                await self._meet(event)
            if self._ribbon.end % TICK == 0 and self._ribbon.end == self.cutter.at:
                await self._tick()

    async def _tick(self) -> None:
        self._count()
        self._quiet = 0 if self._open else self._quiet + 1
        place = self._place() if self._quiet and self._quiet % QUIET_TICKS == 0 else None
        await self.jobs.put(Ticked(self.cutter.at, place))

    def _count(self) -> None:
        self._numbers.recognising.add(self._asker.compute_s - self._counted_s)
        self._counted_s = self._asker.compute_s

    async def _meet(self, event: Event) -> None:
        match event:
            case Began(start=start, onset=onset):
                self._begin(start, onset)
                await self.jobs.put(Noticed(True, onset))
            case Step():
                await self._step(event)
            case Ended():
                await self._end(event)

    def _begin(self, start: int, onset: int) -> None:
        self.segments += 1
        kind = Streamed if self._wiring.streaming else Windowed
        heard = kind(self._asker, self._profile, start)
        self._open = Open(f"{self.segments}", start, onset, heard, self._base)

    async def _step(self, step: Step) -> None:
        """Ask for a hypothesis, unless the process is overloaded."""
        segment, at = self._open, step.at
        assert segment is not None
        segment.rev += 1
        load = self._wiring.load()
        if load > 1 or (load and (step.pause or segment.rev % 2 == 0)):
            self._numbers.skipped.add()
            return
        self._listen(segment, min(at, self.cutter.speech_end), False)
        self._numbers.steps.add()
        try:
            if step.pause:
                hypothesis = await segment.heard.draft(self._ribbon.cut, at, self.cutter.speech_end)
            else:
                hypothesis = await segment.heard.step(self._ribbon.cut, at)
        except errors.Error:
            self._numbers.missed.add()
            return
        if not self._asker.language and hypothesis.words and at - segment.start >= LANGUAGE_S * RATE:
            self._asker.language = hypothesis.language
        self.cutter.worded = self.cutter.worded or bool(hypothesis.words)
        self.cutter.full_stop = hypothesis.full_stop
        self.cutter.stable_to = segment.heard.stable_to
        await self.jobs.put(Guessed(segment, segment.rev, hypothesis, at))

    async def _end(self, ended: Ended) -> None:
        """Ask for the final text, and let it be told."""
        segment, self._open = self._open, None
        assert segment is not None
        segment.rev += 1
        await self._finals.acquire()
        text = None
        audio = Ribbon(ended.start)
        audio.append(self._ribbon.cut(ended.start, ended.end))
        if ended.why != "click" or segment.rev > self._base + 1:
            self._numbers.speech.add((ended.end - ended.start) / RATE)
            self._listen(segment, ended.speech_end, True)
            text = asyncio.create_task(segment.heard.final(audio.cut, ended))
            self._keep(text)
            text.add_done_callback(lambda _: self._finals.release())
            if self._wiring.streaming or not self._asker.language:
                settled = await asyncio.shield(text)
                if settled.words and not self._asker.language:
                    self._asker.language = settled.language
        else:
            self._finals.release()
        await self.jobs.put(Closed(segment, segment.rev, ended, text, audio, self._place()))
        await self.jobs.put(Noticed(False, ended.speech_end))

    def _listen(self, segment: Open, upto: int, closed: bool) -> None:
        """Have the windows of speech that are known by now embedded, and listened to for turns."""
        if self._wiring.embed is not None:
            windows = self._speakers.wants(segment.onset, upto, closed)
            segment.voices += self._asked(self._wiring.embed, windows)
        if self._wiring.listen is not None:
            windows = self._speakers.looks(segment.onset, upto, closed)
            segment.looks += self._asked(self._wiring.listen, windows)

    def _asked(
        self, ask: Callable[[list[Samples]], Awaitable[T]], windows: list[Span]
    ) -> list[tuple[list[Span], asyncio.Future[T]]]:
        """What is asked of these windows, where there are any."""
        if not windows:
            return []
        future = asyncio.ensure_future(ask([self._ribbon.cut(start, end) for start, end in windows]))
        self._keep(future)
        return [(windows, future)]

    def _keep(self, future: asyncio.Future[Any]) -> None:
        self._wait.add(future)
        future.add_done_callback(self._wait.discard)

    def _place(self) -> Place:
        """From where the session can be gone on with."""
        mark = next(mark for mark in reversed(self._marks) if mark.at <= self.needed_from or mark is self._marks[0])
        begun = self.segments - (self._open is not None)
        return Place(
            audio_ms=mark.audio_ms,
            samples=mark.at,
            intake=mark.intake,
            level=mark.level,
            hearing=mark.hearing.save(),
            cutter=self.cutter.save(),
            segments=begun,
        )


def _done(future: asyncio.Future[Any]) -> bool:
    """Whether it has a result."""
    return future.done() and not future.cancelled() and future.exception() is None
