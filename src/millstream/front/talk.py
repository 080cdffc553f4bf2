"""One conversation of live speech, whatever carries it: what a client says goes to its session, what that tells to it.

Rules of the room:
- The first that is said is `start`; nothing is heard before it. Everything is taken in the order in which it came.
- What the session has not taken yet is bounded, in bytes and in number: beyond that the wire is held.
- A message is told when the client has room for it. A session that is not read keeps what must not be lost itself.
- Whatever ends a conversation is told as `error` or `move` before the wire is hung up; the session stays for who comes
  with its token.
- A conversation lasts minutes, so it has tasks, as no request of this border has: one takes, one tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Protocol

from millstream import errors
from millstream.front import answer
from millstream.front.bugs import told as is_told
from millstream.front.door import Door, SpeechSession
from millstream.spoken import Ack, Edit, End, Finish, Move, Said, Start, Told, Trouble
from millstream.types import Principal

log = logging.getLogger(__name__)

ITEMS_MAX = 64
EDIT_CHARS_MAX = 1 << 15  # ITEMS_MAX of them may wait
LAST_S = 1.0  # for what a session says of its own end, and for a client to acknowledge that
JOINED_BYTES_MAX = 1 << 14  # messages of samples in a row are one piece up to this: tiny ones cost as large ones do


class Wire(Protocol):
    """What carries a conversation. None of it raises, also when nobody is there any more."""

    def tell(self, told: Told) -> None:
        """Send a message."""

    async def room(self) -> None:
        """Return when the client has read so much that it may be told more."""

    def hold(self) -> None:
        """Take nothing more from the client for now."""

    def go_on(self) -> None:
        """Take more."""

    def hang_up(self, last: End | Move | Trouble | None, error: Exception | None) -> None:
        """It is over: `last` was told, None where the session ended without a word; `error`: what went wrong."""


class Talk:
    """A conversation with the session that the Door opens. `waiting_bytes_max`: audio that waits before the wire is
    held."""

    def __init__(self, door: Door, wire: Wire, principal: Principal, waiting_bytes_max: int) -> None:
        self._door, self._wire, self._principal, self._most = door, wire, principal, waiting_bytes_max
        self._waiting: deque[bytes | bytearray | Ack | Edit | Finish] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self._held = self._joins = self._finished = False
        self._why = ""
        self._last: End | Move | Trouble | None = None
        self._acked, self._ackd = -1, asyncio.Event()  # of those that the session has been told of
        self._task: asyncio.Task[None] | None = None
        self.over = False

    @property
    def started(self) -> bool:
        """Whether the client has said `start`."""
        return self._task is not None

    # The wire's side.

    def say(self, said: Said) -> None:
        """The client says something. BadInput: not now."""
        if isinstance(said, Start):
            if self._task is not None:
                raise errors.BadInput("start: said already; a connection carries one session, open another one")
            self._joins = said.form != "opus"  # a packet is a message
            self._task = asyncio.get_running_loop().create_task(self._run(said))
            return
        self._must_go_on(said.__struct_config__.tag)
        if (
            isinstance(said, Edit)
            and sum(map(len, (said.segment, said.speaker or "", said.text or ""))) > EDIT_CHARS_MAX
        ):
            self._wire.tell(trouble(errors.TooLarge(f"edit: it has over {EDIT_CHARS_MAX} characters"), fatal=False))
            return
        self._finished = self._finished or isinstance(said, Finish)
        self._put(said)

    def hear(self, audio: bytes | bytearray) -> None:
        """The client sends audio. BadInput: not now."""
        self._must_go_on("audio")
        self._bytes += len(audio)
        last = self._waiting[-1] if self._waiting else None
        if self._joins and isinstance(last, bytes | bytearray) and len(last) + len(audio) <= JOINED_BYTES_MAX:
            if not isinstance(last, bytearray):
                last = self._waiting[-1] = bytearray(last)
            last += audio
            self._hold()
        else:
            self._put(audio)

    def finish(self) -> None:
        """The client can say nothing more: as if it had said so."""
        if self._task is None:
            self._fail(errors.BadInput("the conversation ended before it began: say start first"))
        elif not (self._finished or self.over):
            self.say(Finish())

    def gone(self) -> None:
        """The client is no more; what it said stays with the session."""
        self.over = True
        if self._task is not None:
            self._task.cancel()

    def move(self, why: str) -> None:
        """Have the client go on elsewhere."""
        if self._task is None:
            self._end(Move(why=why), None)
        elif not self.over:
            self._why = why
            self._task.cancel()

    def fail(self, error: Exception) -> None:
        """End it, as the client did what it may not."""
        if self.over:
            return
        if self._task is not None:
            self._task.cancel()
        self._fail(error)

    def _must_go_on(self, what: object) -> None:
        if self._task is None:
            raise errors.BadInput(f"{what}: say start first")
        if self._finished and what != "ack" and what != "edit":
            raise errors.BadInput(f"{what}: finish was said already; nothing but ack and edit comes after it")

    def _put(self, item: bytes | bytearray | Ack | Edit | Finish) -> None:
        self._waiting.append(item)
        self._more.set()
        self._hold()

    def _hold(self) -> None:
        if not self._held and (self._bytes > self._most or len(self._waiting) > ITEMS_MAX):
            self._held = True
            self._wire.hold()

    # The session's side.

    async def _run(self, start: Start) -> None:
        session: SpeechSession | None = None
        try:
            session = await self._door.speech(start, self._principal)
            taking = asyncio.ensure_future(self._take(session))
            telling = asyncio.ensure_future(self._tell(session))
            try:
                await asyncio.wait({taking, telling}, return_when=asyncio.FIRST_COMPLETED)
                if taking.done() and isinstance(taking.exception(), errors.Conflict):
                    await asyncio.wait({telling}, timeout=LAST_S)  # the session says itself what was wrong
            finally:
                await _ended(taking, telling)
            if self._last is None:
                for one in (taking, telling):
                    if not one.cancelled():
                        one.result()
            self._end(self._last, None)
        except asyncio.CancelledError:
            if self._why:
                self._end(Move(why=self._why), None)
        except Exception as error:
            self._fail(error)
        finally:
            if session is not None:
                await session.close()

    async def _take(self, session: SpeechSession) -> None:
        """Give the session what was said, piece by piece, as it takes it."""
        while True:
            while self._waiting:
                item = self._waiting.popleft()
                if isinstance(item, bytes | bytearray):
                    await session.hear(bytes(item))
                    self._bytes -= len(item)
                else:
                    await self._pass_on(session, item)
                if self._held and self._bytes <= self._most // 2 and len(self._waiting) <= ITEMS_MAX // 2:
                    self._held = False
                    self._wire.go_on()
            self._more.clear()
            await self._more.wait()

    async def _pass_on(self, session: SpeechSession, said: Ack | Edit | Finish) -> None:
        """What was wrong with an edit or an acknowledgement ends nothing."""
        try:
            await session.say(said)
            if isinstance(said, Ack):
                self._acked = max(self._acked, said.seq)
                self._ackd.set()
        except errors.Error as error:
            if isinstance(said, Finish) or error.status >= 500:
                raise
            self._wire.tell(trouble(error, fatal=False))

    async def _tell(self, session: SpeechSession) -> None:
        """Tell what the session tells, up to its last message."""
        async for told in session.messages():
            await self._wire.room()
            self._wire.tell(told)
            if isinstance(told, End | Move) or (isinstance(told, Trouble) and told.fatal):
                self.over, self._last = True, told
                if isinstance(told, End) and self._acked >= 0:
                    await self._acknowledged(told.seq)
                return

    async def _acknowledged(self, seq: int) -> None:
        """A session whose end has arrived need not be kept: wait for a client that says so to say so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                while self._acked < seq:
                    self._ackd.clear()
                    await self._ackd.wait()

    def _fail(self, error: Exception) -> None:
        if not self.over:
            last = trouble(error)
            self._wire.tell(last)
            self.over = True
            self._wire.hang_up(last, error)

    def _end(self, last: End | Move | Trouble | None, error: Exception | None) -> None:
        if isinstance(last, Move) and not self.over:
            self._wire.tell(last)
        self.over = True
        self._wire.hang_up(last, error)


def trouble(error: Exception, fatal: bool = True) -> Trouble:
    """What went wrong as a message; a bug of ours is logged, and says nothing more."""
    code, sentence = errors.Error.code, answer.INTERNAL
    if is_told(log, error, "live speech failed") and isinstance(error, errors.Error):
        code, sentence = error.code, str(error)[: answer.SENTENCE_CHARS_MAX].encode(errors="replace").decode()
    retry_s = error.retry_after_s if isinstance(error, errors.Busy) else 0.0
    return Trouble(code=code.lower(), error=sentence, fatal=fatal, retry_s=retry_s)


async def _ended(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # what matters of it is asked for by whom it concerns
