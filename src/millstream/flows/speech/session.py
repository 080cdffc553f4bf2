"""A live transcription: audio in, messages out. The life of a second of audio:

1 `hear` decodes it (sound.py) and lets it wait. 2 The walker takes it in order (walk.py): level, speech detector,
cutter. 3 What the cutter says is done at once: a segment is opened, a hypothesis asked for and waited for, the final
text asked for. 4 What comes of it goes to the teller, in the order of the audio (tell.py): words pass the gate,
speakers are named, the state is written. 5 Messages wait in the outbox until somebody takes them.

Rules of the room:
- A connection that is cut, a process that is killed and a move to another are one and the same: the session's file says
  where to go on, and the client sends its audio again from there.
- Bounded: audio that waits (behind_s_max), final texts under way, what waits to be told, messages; each makes the one
  before it wait, and the first one the client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from millstream import errors
from millstream.flows.speech.outbox import Outbox
from millstream.flows.speech.recognise import Asker
from millstream.flows.speech.ribbon import Samples
from millstream.flows.speech.settings import RATE, SpeechSettings
from millstream.flows.speech.sound import BYTES_MAX, Intake
from millstream.flows.speech.store import Held, State
from millstream.flows.speech.tell import Teller
from millstream.flows.speech.walk import Walker
from millstream.flows.speech.wiring import Wiring
from millstream.spoken import Ack, Edit, Finish, Ready, Said, Start, Told, Trouble

log = logging.getLogger(__name__)

PIECE_S: Final = 0.5
"""A message of more audio is taken in pieces, so that there are marks within it."""
TOGETHER: Final = RATE // 50
"""Messages of fewer samples wait together: what waits is bounded in their number, too."""
LOOK_S: Final = 1.0
"""A session that hears nothing looks so often whether somebody else wants it."""


@dataclass(slots=True)
class _Heard:
    """Audio that waits, and the state of what decoded it, after it."""

    sounds: list[Samples] = field(default_factory=list)
    samples: int = 0
    intake: dict[str, Any] = field(default_factory=dict)
    audio_ms: int = 0

    def join(self, later: _Heard) -> None:
        """What came after it is heard with it."""
        self.sounds += later.sounds
        self.samples += later.samples
        self.intake, self.audio_ms = later.intake, later.audio_ms


class Session:
    """One client's stream. `state` says what it is and, where it is gone on with, where it stood; `held` is its file,
    None where it has none. Use from one event loop: `open`, then `hear` beside `messages`, at last `close`."""

    def __init__(self, state: State, settings: SpeechSettings, wiring: Wiring, held: Held | None = None) -> None:
        self._state, self._settings, self._wiring, self._held = state, settings, wiring, held
        start, place = state.start, state.place
        self.id, self.token = state.session, f"{state.session}.{state.secret}"
        self.owner, self.version = state.owner, state.version
        self._intake = Intake(start.form, start.rate, start.channels)
        if place.intake:
            self._intake.restore(place.intake)
        speakers = wiring.speakers(state.profile, state.speakers or None)
        self._enrolled = len(speakers.known)
        gate = wiring.gate()
        if state.gate:
            gate.restore(state.gate)
        asker = Asker(wiring.submit, state.model, state.version, state.language, wiring.fills)
        asker.waited, asker.name = wiring.waited, state.session
        self._walker = Walker(wiring, state.profile, asker, speakers, place, state.resumed)
        self._outbox = Outbox(state.seq, state.lost, state.ring)
        self._teller = Teller(wiring, state.profile, state, held, self._walker, speakers, gate, self._outbox)
        self._came = place.samples
        self._inbox: deque[_Heard] = deque()
        self._waiting = 0  # samples in it
        self._news, self._taken = asyncio.Event(), asyncio.Event()
        self._finishing = state.ended
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: asyncio.Task[None] | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._counted = 0
        self.ended = asyncio.Event()
        """Set once nothing more will be told."""

    async def open(self, heard: int = 0) -> None:
        """Begin, or go on: the first messages are Ready and what came after the number `heard`. Conflict: that is not
        remembered any more."""
        state, outbox = self._state, self._outbox
        ready = Ready(
            session=self.id, resume_token=self.token, audio_ms=state.place.audio_ms, seq=outbox.next, caps=self._caps()
        )
        if heard < outbox.lost:
            outbox.replay(heard)  # raises
        outbox.put([ready])
        if state.resumed:
            outbox.replay(heard)
        self._counted = 1
        self._wiring.numbers.sessions.add(self._counted)
        if state.ended:
            outbox.close()
            self.ended.set()
            return
        await self._teller.begin()
        self._tasks = [asyncio.create_task(self._run(part)) for part in (self._walk, self._tell)]

    async def hear(self, data: bytes) -> None:
        """Audio, in the form that it was begun with (Opus: one packet). Waits while too much waits to be heard.
        BadInput, TooLarge: it is none; what is told so far stays. Conflict: the session was finished."""
        if self._finishing or self._closed:
            raise errors.Conflict("this session takes no more audio: it was finished, or it has ended")
        if len(data) > BYTES_MAX:
            raise errors.TooLarge(f"a message of {len(data)} bytes of audio, {BYTES_MAX} are taken: send smaller ones")
        for piece in self._pieces(data):
            self._take(self._intake.feed(piece))
        bound = self._settings.behind_s_max * RATE
        while self._waiting > bound and not self._closed:
            self._taken.clear()
            await self._taken.wait()

    async def say(self, said: Said, by: str = "") -> None:
        """What a client says beside audio. BadInput: a second start; else what `edit` raises."""
        match said:
            case Ack(seq=seq):
                self.ack(seq)
            case Edit():
                await self.edit(said, by)
            case Finish():
                self.finish()
            case Start():
                raise errors.BadInput("the session has begun: start comes once, first of all")

    def ack(self, seq: int) -> None:
        """Everything up to `seq` has arrived. What was never told cannot have."""
        self._outbox.acknowledged(min(seq, self._outbox.next - 1))
        if self._state.ended and not self._outbox.ring and self._held is not None:
            self._held.drop()
            self._held = None

    async def edit(self, edit: Edit, by: str = "") -> None:
        """A person's change of a final segment, told to everybody once it is kept. NotFound, BadInput, TooLarge."""
        await self._teller.edit(edit, by)

    def finish(self) -> None:
        """No more audio comes: what is open becomes final, then End is told. Again is harmless."""
        if not self._finishing:
            self._finishing = True
            self._take(self._intake.flush())

    async def messages(self) -> AsyncIterator[Told]:
        """What is told, once, to its end: after End, a fatal Trouble, or `close`."""
        async for told in self._outbox.messages():
            yield told

    async def close(self) -> None:
        """The connection is gone. What was not told yet is told to who goes on with the session. Again is harmless;
        who is cancelled while it waits here, as a connection can be lost twice, does not keep the file from others."""
        if self._closing is None:
            self._closed = True
            self._wiring.numbers.sessions.add(-self._counted)
            self._outbox.close()
            self._taken.set()
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._walker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            await self._leave()
        elif self._held is not None:
            self._held.release(self._wiring.clock.now())
        self.ended.set()

    @property
    def closed(self) -> bool:
        """Whether it was closed, and has let go of its file."""
        return self._closing is not None and self._closing.done()

    def _caps(self) -> dict[str, str | float | bool]:
        profile = self._state.profile
        return {
            "profile": self._state.start.profile or self._settings.profile,
            "model": self._state.model,
            "version": self._state.version,
            "partials": profile.partials,
            "step_ms": profile.step_ms,
            "hangover_ms": profile.hangover_ms,
            "look_ahead_ms": profile.look_ahead_ms,
            "first_token_ms_max": profile.first_token_ms_max,
            "speakers": profile.speakers,
            "corrections": profile.corrections,
            "enrolled": self._enrolled,
        }

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        start = self._state.start
        if start.form == "opus":
            yield data
            return
        size = max(1, int(PIECE_S * start.rate)) * start.channels * (2 if start.form == "pcm16" else 4)
        if len(data) <= size:
            yield data
            return
        for at in range(0, len(data), size):
            yield data[at : at + size]

    def _take(self, sound: Samples) -> None:
        self._came += len(sound)
        self._teller.arrivals.came(self._came, self._wiring.clock.monotonic())
        if not self._inbox or self._inbox[-1].samples >= TOGETHER:
            self._inbox.append(_Heard())
        last = self._inbox[-1]
        last.sounds.append(sound)
        last.samples += len(sound)
        last.intake, last.audio_ms = self._intake.save(), self._intake.audio_ms
        self._waiting += len(sound)
        self._news.set()

    async def _walk(self) -> None:
        """Walk through what comes; the end of the audio, or too long a silence of the client, is the end."""
        clock = self._wiring.clock
        heard = clock.monotonic()
        while True:
            while self._inbox:
                some = self._inbox.popleft()
                while self._inbox and some.samples + self._inbox[0].samples <= PIECE_S * RATE:  # behind: more at once
                    some.join(self._inbox.popleft())
                self._waiting -= some.samples
                self._taken.set()
                await self._walker.walk(np.concatenate(some.sounds), some.intake, some.audio_ms)
                await asyncio.sleep(0)
                heard = clock.monotonic()
            if self._finishing:
                return await self._walker.finish()
            self._teller.arrivals.forget(self._walker.needed_from)
            self._news.clear()
            if not await self._woken(clock.monotonic() - heard):
                why = f"no audio came for {self._settings.silence_s_max:g} s: the session ends"
                self._outbox.put([_trouble("silent", why, fatal=False)])
                self.finish()

    async def _woken(self, silent_s: float) -> bool:
        """Wait for audio. False: none has come for too long."""
        left = self._settings.silence_s_max - silent_s
        if left <= 0:
            return False
        clock = self._wiring.clock
        timer = clock.later(min(left, LOOK_S), self._news.set)
        await self._news.wait()
        timer.cancel()
        if not self._inbox and not self._finishing and self._held is not None and self._held.wanted:
            raise errors.Conflict("the session was gone on with over another connection")
        return True

    async def _tell(self) -> None:
        await self._teller.tell()
        self._outbox.close()
        self.ended.set()

    async def _run(self, part: Callable[[], Awaitable[None]]) -> None:
        """One of the two tasks: what ends it ends the session, in words."""
        try:
            await part()
        except errors.Error as error:
            self._end(_trouble(error.code.lower(), str(error)))
        except Exception:
            log.exception("session %s ends", self.id)
            self._end(
                _trouble("internal", "the session has failed here; go on with it by its resume_token", retry_s=1.0)
            )

    def _end(self, trouble: Trouble) -> None:
        """It cannot go on here."""
        self._outbox.put([trouble])
        self._outbox.close()
        self._finishing = True
        self._taken.set()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._walker.stop()
        self._leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        """Give back what the engine keeps, and let go of the file, once nobody writes it: who goes on has both."""
        await asyncio.wait(self._tasks)
        await self._walker.leave()
        await self._teller.written()
        if self._held is not None:
            self._held.release(self._wiring.clock.now())
        self.ended.set()


def _trouble(code: str, error: str, fatal: bool = True, retry_s: float = 0.0) -> Trouble:
    return Trouble(code=code, error=error, fatal=fatal, retry_s=retry_s)
