"""Recordings as transcripts: the cascade of a live session with its window opened, and no clock.

Rules of the room:
- A recording is cut, recognised and told apart by the same code as live audio: each segment once, whole, as its final
  text is made. There are no steps, so nothing is said twice.
- Segments of all recordings are asked for side by side, AT_ONCE of them; the engine makes batches of what is alike in
  length. A recording waits for room before it is read on, so that memory does not grow with its length.
- They wait behind all live speech, also for long.
- The language is that of the first segment with LANGUAGE_WORDS words; until it is known, segments are asked for one by
  one.
- What could not be recognised is an error of the whole recording: a transcript with a silent hole is worse than none.
  So nothing is read on behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import msgspec
import numpy as np

from millstream.errors import Error, Failed
from millstream.flows.speech import files
from millstream.flows.speech.cut import Cutter, Ended, Event
from millstream.flows.speech.languages import Languages
from millstream.flows.speech.level import Level
from millstream.flows.speech.recognise import RECORDING, Asker, Settled, Windowed, heard_of, heard_words
from millstream.flows.speech.resample import Sound
from millstream.flows.speech.settings import FRAME, RATE, Policy, Profile
from millstream.flows.speech.speakers import Change, Known, Look, Named, Speakers, Voiced, looked
from millstream.flows.speech.wiring import Gate, Wiring
from millstream.models.speech.turns import Span
from millstream.models.speech.vad import Vad
from millstream.spoken import Correction, Line, Segment, Speaker, SpeakerTold, Transcript, Word
from millstream.types import Array

AT_ONCE: Final = 8
TIMEOUT_S: Final = 600.0
"""Of a segment: where people talk without a pause, it may have to wait."""
LANGUAGE_WORDS: Final = 3
PROFILE: Final = Profile(partials=False, speakers="none", instant=False)
"""How recordings are cut: as captions are, in segments as long as a recogniser takes."""
_NOTHING = np.zeros(0, np.float32)
log = logging.getLogger("millstream")
Read = Callable[[float], None]
"""Is told how many seconds of a recording were read."""


@dataclass(slots=True)
class Recording:
    """A recording as text: `lines` in the order of their audio. `seconds` it lasts, `speech_s` of them in segments;
    `language` as it was heard or said; `compute_s`: what the recogniser took."""

    name: str
    transcript: Transcript
    language: str = ""
    seconds: float = 0.0
    speech_s: float = 0.0
    compute_s: float = 0.0
    segments: int = 0
    lines: list[Line] = field(default_factory=list)

    def who(self, line: Line) -> str:
        """What a line's speaker is called, "" for nobody known."""
        return self.transcript.who(line) if line.speaker.id else ""


@dataclass(slots=True)
class Piece:
    """A segment to be recognised: its audio from `ended.start` on, the windows whose voices are wanted, those that are
    listened to for turns, and its channel (0: all are one)."""

    ended: Ended
    sound: Sound
    windows: list[Span]
    looks: list[Span]
    channel: int

    def cut(self, start: int, end: int) -> Sound:
        """Its audio between two samples of the recording."""
        return self.sound[max(start - self.ended.start, 0) : max(end - self.ended.start, 0)]


class _Heard(NamedTuple):
    """Of a piece."""

    settled: Settled
    voices: list[Voiced]
    seen: list[Look]


class Walk:
    """One channel on its way from sound to pieces."""

    def __init__(self, vad: Vad, profile: Profile, speakers: Speakers | None = None, channel: int = 0) -> None:
        self._vad, self._speakers, self._channel = vad, speakers, channel
        self._level, self._hearing = Level(), vad.fresh()
        self._cutter = Cutter(msgspec.structs.replace(profile, partials=False))
        self._kept, self._first = _NOTHING, 0

    def feed(self, sound: Sound) -> list[Piece]:
        """Take audio in, float32 [n]; the segments that it ends."""
        return self._hear(self._level.feed(sound))

    def finish(self) -> list[Piece]:
        """No more comes: what is open ends here."""
        rest = self._level.flush()
        found = self._hear(np.pad(rest, (0, -len(rest) % FRAME)))
        return found + self._pieces(self._cutter.finish())

    def _hear(self, sound: Sound) -> list[Piece]:
        self._kept = np.concatenate([self._kept, sound])
        likely, self._hearing = self._vad.probabilities(sound, self._hearing)
        found = self._pieces(self._cutter.feed(likely.tolist()))
        needless = min(self._cutter.needed_from - self._first, len(self._kept))
        if needless > 0:
            self._kept, self._first = self._kept[needless:].copy(), self._first + needless
        return found

    def _pieces(self, events: Iterator[Event]) -> list[Piece]:
        found = []
        for ended in events:
            if isinstance(ended, Ended) and ended.why != "click":
                edges = ended.onset, ended.speech_end
                windows = self._speakers.wants(*edges, True) if self._speakers else []
                looks = self._speakers.looks(*edges, True) if self._speakers else []
                sound = self._kept[ended.start - self._first : max(ended.end, ended.speech_end) - self._first].copy()
                found.append(Piece(ended, sound, windows, looks, self._channel))
        return found


class Offline:
    """Recordings through one recogniser, as many at once as are asked for. `known`: enrolled voices."""

    def __init__(
        self, wiring: Wiring, profile: Profile = PROFILE, known: Sequence[Known] = (), at_once: int = AT_ONCE
    ) -> None:
        self.wiring, self.profile, self.known = wiring, profile, known
        self._languages = Languages(wiring)
        self.room = asyncio.Semaphore(at_once)

    async def transcribe(
        self, source: Path | IO[bytes], name: str, language: str = "", split: bool = False, speakers: bool = False,
        seconds_max: float = files.SECONDS_MAX, read: Read = lambda seconds: None, version: str = "",
    ) -> Recording:  # fmt: skip
        """The text of a file, all of it by one `version` of the recogniser ("": the wiring's). `split`: each channel is
        a speaker by itself; else `speakers` says whether voices are told apart. What `files.blocks` raises; BadInput: a
        language that the recogniser does not know; Failed: it failed on some of it."""
        language = await self._languages.known(language, version or self.wiring.version)
        apart = speakers and not split and self.wiring.embed is not None
        policy: Policy = ("enrolled" if self.profile.speakers == "enrolled" else "correctable") if apart else "none"
        blocks = files.blocks(source, name, split, seconds_max)
        told_apart = Speakers(policy, horizon_s=seconds_max, known=self.known)
        job = _Job(self, name, language, version or self.wiring.version, told_apart)
        return await job.run(blocks, split, read)


class _Job:
    """One recording on its way."""

    def __init__(self, offline: Offline, name: str, language: str, version: str, speakers: Speakers) -> None:
        self._wiring, self._profile, self._room = offline.wiring, offline.profile, offline.room
        self._asker = Asker(self._wiring.submit, self._wiring.model, version, language, fills=self._wiring.fills)
        self._asker.final, self._asker.final_timeout_s = RECORDING, TIMEOUT_S
        self._speakers = speakers
        self._recording = Recording(name, Transcript(), language)
        self._failed = False
        self._seq = 0
        self._revs: dict[str, int] = {}

    async def run(self, blocks: Iterator[list[Sound]], split: bool, read: Read) -> Recording:
        tasks: list[asyncio.Task[_Heard]] = []
        pieces: list[Piece] = []
        walked = self._walk(blocks, split)
        try:
            while not self._failed and (found := await asyncio.to_thread(next, walked, None)) is not None:
                read(self._recording.seconds)
                for piece in found:
                    await self._room.acquire()
                    pieces.append(piece)
                    task = asyncio.create_task(self._hear(piece))
                    task.add_done_callback(lambda done: self._room.release())
                    tasks.append(task)
                    if not self._asker.language:
                        self._decide((await tasks[-1]).settled)
            heard = [await task for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._check([one.settled for one in heard])
        in_order = sorted(zip(pieces, heard, strict=True), key=lambda each: (each[0].ended.at, each[0].channel))
        await asyncio.to_thread(self._tell, in_order)  # hours take seconds, and live sessions are heard beside it
        recording = self._recording
        worded = (one.settled.language for one in heard if one.settled.words)
        recording.language = self._asker.language or next(worded, "")
        recording.compute_s, recording.segments = self._asker.compute_s, len(pieces)
        recording.speech_s = sum(piece.ended.speech for piece in pieces) / RATE
        recording.lines = recording.transcript.shown()
        return recording

    def _walk(self, blocks: Iterator[list[Sound]], split: bool) -> Iterator[list[Piece]]:
        """The pieces of a block, for each; in whatever thread asks for the next."""
        walks: list[Walk] = []
        for block in blocks:
            if not walks:
                channels = range(1, len(block) + 1) if split else [0]
                walks = [Walk(self._wiring.vad, self._profile, self._speakers, channel) for channel in channels]
            self._recording.seconds += len(block[0]) / RATE
            yield [piece for walk, sound in zip(walks, block, strict=True) for piece in walk.feed(sound)]
        yield [piece for walk in walks for piece in walk.finish()]

    async def _hear(self, piece: Piece) -> _Heard:
        """What is said in a piece, by which voices, and in which turns. Its audio is let go of."""
        settled = await self._settled(piece)
        self._failed = self._failed or bool(settled.problem)
        voices: list[Voiced] = []
        seen: list[Look] = []
        if settled.words:
            rows = await self._listened(self._wiring.embed, piece, piece.windows)
            voices = [Voiced(*window, row) for window, row in zip(piece.windows, rows, strict=False)]
            heard = await self._listened(self._wiring.listen, piece, piece.looks)
            seen = looked(piece.looks, heard) if heard else []
        piece.sound = _NOTHING
        return _Heard(settled, voices, seen)

    async def _listened(
        self, listen: Callable[[Sequence[Sound]], Awaitable[Any]] | None, piece: Piece, at: list[Span]
    ) -> Any:
        """What is heard of who speaks in windows of a piece; nothing where that fails, which costs no word."""
        if listen is None or not at:
            return []
        try:
            return await listen([piece.cut(*window) for window in at])
        except Exception as error:  # whatever a model raises
            log.warning("%s: who speaks was not heard in a segment: %r", self._recording.name, error)
            return []

    async def _settled(self, piece: Piece) -> Settled:
        if not self._wiring.streaming:
            return await Windowed(self._asker, self._profile, piece.ended.start).final(piece.cut, piece.ended)
        sound = piece.cut(piece.ended.start, piece.ended.end)
        samples = np.array([len(sound)], np.int32)
        inputs: dict[str, Array] = {"audio": sound[np.newaxis], "samples": samples, "end": np.array([True])}
        try:  # a session of length one: no slot is kept for it
            output = await self._asker.ask(inputs, RECORDING, TIMEOUT_S)
            heard = heard_of(output)
        except Error as error:
            return Settled([], problem=str(error))
        return Settled(heard_words(heard, piece.ended.start), heard.language)

    def _decide(self, settled: Settled) -> None:
        if len(settled.words) >= LANGUAGE_WORDS:
            self._asker.language = settled.language

    def _check(self, heard: list[Settled]) -> None:
        failed = [settled.problem for settled in heard if settled.problem]
        if failed:
            raise Failed(
                f"{self._recording.name}: {len(failed)} of the first {len(heard)} segments were not recognised "
                f"({failed[0]}); try again"
            )

    # -- telling

    def _tell(self, heard: Sequence[tuple[Piece, _Heard]]) -> None:
        """Everything as a session would have told it, into the transcript that a client would hold."""
        gates: defaultdict[int, Gate] = defaultdict(self._wiring.gate)  # by channel: a number goes on in its own
        for number, (piece, (settled, voices, seen)) in enumerate(heard, 1):
            ended, gate = piece.ended, gates[piece.channel]
            words, _ = gate.final(settled.words, ended.onset / RATE, ended.speech_end / RATE)
            if not words:
                continue
            self._changed(self._speakers.due(ended.at))
            if piece.channel:
                speaker = Speaker(id=f"C{piece.channel}", name=f"channel {piece.channel}", score=1.0)
                self._segment(f"{number}", ended.onset, ended.speech_end, words, speaker)
                continue
            for part, run in enumerate(self._speakers.split(words, voices, ended.onset, ended.speech_end, seen)):
                ident = f"{number}.{part}" if part else f"{number}"
                shown = self._speakers.hear(ident, run.start, run.end, voices, ended.at, seen)
                self._changed(shown.told)
                self._segment(ident, run.start, run.end, words[run.first : run.last], shown.speaker)
        if heard:
            self._changed(self._speakers.end(max(piece.ended.at for piece, _ in heard)))

    def _segment(self, ident: str, start: int, end: int, words: list[Word], speaker: Speaker) -> None:
        self._revs[ident] = 1
        self._recording.transcript.hear(
            Segment(
                seq=self._next(), id=ident, rev=1, state="final", start=start / RATE, end=end / RATE, words=words,
                stable=len(words), speaker=speaker, language=self._asker.language,
            )
        )  # fmt: skip

    def _changed(self, changes: Sequence[Change]) -> None:
        transcript = self._recording.transcript
        for one in changes:
            if isinstance(one, Named):
                transcript.hear(SpeakerTold(seq=self._next(), op=one.op, id=one.id, name=one.name, into=one.into))
            else:
                self._revs[one.segment] += 1
                rev = self._revs[one.segment]
                transcript.hear(Correction(seq=self._next(), id=one.segment, rev=rev, speaker=one.speaker))

    def _next(self) -> int:
        self._seq += 1
        return self._seq
