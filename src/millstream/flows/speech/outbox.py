"""What a session tells: numbered, kept until it was acknowledged, and never more of it waiting than a bound.

Rules of the room:
- A partial that nobody has taken yet gives way to what its segment reads next, and metrics to newer ones. Nothing else
  is dropped: before more than WAITING_MAX others wait, the session stands still (`room`).
- What is told once more to whom it did not reach (`spoken.Kept`) is remembered up to RING_BYTES; who asks for what went
  before is refused rather than told half of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Final

import msgspec

from millstream import errors
from millstream.spoken import Kept, Metrics, Segment, Told

WAITING_MAX: Final = 256
"""Messages that wait for a reader, partials apart."""
RING_BYTES: Final = 1 << 20
"""Of messages that are remembered for a client that has not acknowledged them: an hour and more of speech."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode


class Outbox:
    """Of one session. `next`: the number of the next message; `lost`: up to which number messages are remembered no
    more; `ring`: those that are, by number, as bytes."""

    def __init__(self, next: int = 1, lost: int = 0, ring: Iterable[tuple[int, bytes]] = ()) -> None:
        self.next, self.lost = next, lost
        self.ring = deque((number, bytes(message)) for number, message in ring)
        self.dropped = 0
        self._bytes = sum(len(message) for _, message in self.ring)
        self._waiting: deque[Told] = deque()
        self._firm = 0  # of those that wait, the ones that are not dropped
        self._news, self._taken = asyncio.Event(), asyncio.Event()
        self._closed = False

    def number(self) -> int:
        """A number for a message: each once, growing."""
        self.next += 1
        return self.next - 1

    def keep(self, told: Iterable[Told]) -> None:
        """Remember those that are told once more, if need be; before they are told."""
        for message in told:
            if isinstance(message, Kept) and not _droppable(message):
                self.ring.append((message.seq, _encode(message)))
                self._bytes += len(self.ring[-1][1])
        while self._bytes > RING_BYTES and len(self.ring) > 1:
            number, gone = self.ring.popleft()
            self._bytes -= len(gone)
            self.lost = number

    def acknowledged(self, upto: int) -> None:
        """Everything up to that number has arrived."""
        while self.ring and self.ring[0][0] <= upto:
            self._bytes -= len(self.ring.popleft()[1])

    def replay(self, heard: int) -> None:
        """Tell what came after the number `heard` once more, first of all. Conflict: not all of it is remembered."""
        if heard < self.lost:
            raise errors.Conflict(
                f"messages up to {self.lost} are not remembered any more, and only those up to {heard} have arrived; "
                "begin a new session, and acknowledge what arrives"
            )
        self.acknowledged(heard)
        self.put(_decode(message) for _, message in self.ring)

    def put(self, told: Iterable[Told]) -> None:
        """Tell these, in order. What would be dropped for a newer one is dropped."""
        for message in told:
            self._forget(message)
            self._firm += not _droppable(message)
            self._waiting.append(message)
        self._news.set()

    async def room(self) -> None:
        """Wait until fewer messages wait than may."""
        while self._firm >= WAITING_MAX and not self._closed:
            self._taken.clear()
            await self._taken.wait()

    def close(self) -> None:
        """Nothing more comes: who takes messages gets those that wait, then the end."""
        self._closed = True
        self._news.set()
        self._taken.set()

    async def messages(self) -> AsyncIterator[Told]:
        """All messages, once, until the box is closed."""
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                if not _droppable(message):
                    self._firm -= 1
                    self._taken.set()
                yield message
            if self._closed:
                return
            self._news.clear()
            await self._news.wait()

    def _forget(self, newer: Told) -> None:
        """Drop what waits and is of no use beside a newer message."""
        for n, old in enumerate(self._waiting):
            same = isinstance(old, Segment) and isinstance(newer, Segment) and old.id == newer.id
            if _droppable(old) and (same or (isinstance(old, Metrics) and isinstance(newer, Metrics))):
                del self._waiting[n]
                self.dropped += 1
                return


def _droppable(told: Told) -> bool:
    return isinstance(told, Metrics) or (isinstance(told, Segment) and told.state != "final")
