"""A scripted live transcription behind the borders: what it hears is a function of the audio alone.

Every BLOCK bytes of 16 kHz PCM16 (100 ms) are a word, the checksum of the block; every WORDS of them are a segment. Its
state is kept at each final segment, as a file would be, and nothing else of it outlives a connection: `resume` finds
what a server that was killed at that moment would find.
"""

from __future__ import annotations

import asyncio
import copy
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from millstream import errors
from millstream.front.door import Recording, Transcribed
from millstream.spoken import (
    Ack,
    Edit,
    Edited,
    End,
    Finish,
    Ready,
    Segment,
    Speaker,
    Start,
    Told,
    Trouble,
    Word,
)
from millstream.types import Principal

BLOCK, WORDS = 3200, 4


def words_of(audio: bytes) -> list[str]:
    """What is heard in it, by an independent reading."""
    return [f"{zlib.crc32(audio[at : at + BLOCK]):08x}" for at in range(0, len(audio) // BLOCK * BLOCK, BLOCK)]


def texts_of(audio: bytes) -> list[str]:
    words = words_of(audio)
    return [" ".join(words[at : at + WORDS]) for at in range(0, len(words), WORDS)]


@dataclass
class Saved:
    token: str
    owner: str
    start: Start
    at: int = 0  # bytes
    seq: int = 0
    segments: int = 0
    kept: list[Any] = field(default_factory=list)


class Hearing:
    """All sessions of a server. They take audio while `go` is set."""

    def __init__(self) -> None:
        self.saved: dict[str, Saved] = {}
        self.open: list[Session] = []
        self.begun: list[tuple[Start, str]] = []
        self.closed = 0
        self.refuse: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.deaf = False  # counts what comes, and hears nothing in it

    async def speech(self, start: Start, principal: Principal) -> Session:
        self.begun.append((start, principal.name))
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        if start.resume_token:
            saved = self.saved.get(start.resume_token)
            if saved is None or saved.owner != principal.name:
                raise errors.NotFound("no session of this token: begin a new one")
            saved = copy.deepcopy(saved)
            for older in self.open:
                older.superseded |= older.token == start.resume_token
        else:
            token = f"token-{len(self.saved)}"
            saved = Saved(token, principal.name, start)
            self.saved[token] = copy.deepcopy(saved)
        session = Session(self, saved, start.seq)
        self.open.append(session)
        return session

    async def transcribe(self, recording: Recording, principal: Principal) -> Transcribed:
        await asyncio.sleep(0)
        return Transcribed(b'{"text":"%s"}' % " ".join(words_of(recording.data)).encode(), "application/json")


class Session:
    def __init__(self, hearing: Hearing, saved: Saved, heard: int) -> None:
        self._hearing, self._saved = hearing, saved
        self._audio = bytearray()
        self._words: list[Word] = []
        self._rev = 0
        self._seq = max(saved.seq, heard)
        self._at = saved.at
        self.token, self.superseded = saved.token, False
        self.taken = 0
        self.acked = 0
        self.closes = 0
        self.said: list[Any] = []
        self.out: asyncio.Queue[Told | None] = asyncio.Queue()
        again = [told for told in saved.kept if told.seq > heard]
        ready = Ready(
            session="s1",
            resume_token=saved.token,
            audio_ms=self._at // 32,
            seq=again[0].seq if again else self._seq + 1,
        )
        for told in (ready, *again):
            self.out.put_nowait(told)

    async def hear(self, audio: bytes) -> None:
        await self._hearing.go.wait()
        if self.superseded:
            return
        self.taken += len(audio)
        if audio == b"broken":
            raise errors.BadInput("audio: this is broken")
        if self._hearing.deaf:
            return
        self._audio += audio
        while len(self._audio) >= BLOCK:
            block, self._audio = bytes(self._audio[:BLOCK]), self._audio[BLOCK:]
            begin = self._at / 32000
            self._at += BLOCK
            self._words.append(Word(text=f"{zlib.crc32(block):08x}", start=begin, end=self._at / 32000))
            if len(self._words) == WORDS:
                self._final()
            else:
                self._segment("partial")
        await asyncio.sleep(0)

    async def say(self, said: Ack | Edit | Finish) -> None:
        self.said.append(said)
        if isinstance(said, Ack):
            self.acked = max(self.acked, said.seq)
        elif isinstance(said, Edit):
            if said.segment not in {told.id for told in self._saved.kept}:
                raise errors.NotFound(f"no segment {said.segment!r} is final")
            speaker = None if said.speaker is None else Speaker(id=said.speaker, name=said.speaker)
            self._keep(Edited(seq=self._next(), id=said.segment, rev=99, by="person", text=said.text, speaker=speaker))
        else:
            if self._words:
                self._final()
            self._keep(End(seq=self._next(), last_seq=self._seq, audio_ms=self._at // 32))
            self.out.put_nowait(None)

    async def messages(self) -> AsyncIterator[Told]:
        while (told := await self.out.get()) is not None:
            yield told

    async def close(self) -> None:
        self.closes += 1
        self._hearing.closed += 1

    def trouble(self, fatal: bool = True) -> None:
        self.out.put_nowait(Trouble(code="unavailable", error="too much to do", fatal=fatal, retry_s=0.01))
        if fatal:
            self.out.put_nowait(None)

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _segment(self, state: Any) -> Segment:
        self._rev += 1
        told = Segment(
            seq=self._next(),
            id=f"g{self._saved.segments}",
            rev=self._rev,
            state=state,
            start=self._words[0].start,
            end=self._words[-1].end,
            words=list(self._words),
        )
        if state == "partial":
            self.out.put_nowait(told)
        return told

    def _final(self) -> None:
        told = self._segment("final")
        self._saved.segments += 1
        self._saved.at, self._words, self._rev = self._at, [], 0
        self._keep(told)

    def _keep(self, told: Any) -> None:
        """It is on disk, and then it is told."""
        self._saved.seq = self._seq
        self._saved.kept.append(told)
        self._hearing.saved[self._saved.token] = copy.deepcopy(self._saved)
        self.out.put_nowait(told)
