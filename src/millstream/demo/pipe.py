"""The demo's connections to the service, and the books of what it was told is safe."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import httptools
import msgspec
import orjson

from millstream.clock import Clock
from millstream.errors import Error
from millstream.types import Outcome

PIPELINED_MAX = 48
RECONNECT_S_MAX = 30.0


class Unreachable(Error):
    """The service did not come back in time."""

    status = 503
    code = "UNAVAILABLE"


class Answer(msgspec.Struct):
    """A whole HTTP answer and how long it took, seconds."""

    status: int
    body: bytes
    seconds: float


class _Call(msgspec.Struct):
    raw: bytes
    future: asyncio.Future[Answer]
    began: float


class Pipe(asyncio.Protocol):
    """One keep-alive connection, pipelined. What a lost connection leaves unanswered is sent again, in order."""

    def __init__(self, host: str, port: int, clock: Clock) -> None:
        self._host, self._port, self._clock = host, port, clock
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.WriteTransport | None = None
        self._coming_back: asyncio.Task[None] | None = None
        self._closed = False
        self._room = asyncio.Semaphore(PIPELINED_MAX)

    async def post(self, path: str, body: bytes) -> asyncio.Future[Answer]:
        """Send as soon as fewer than PIPELINED_MAX calls wait; the returned future is the answer."""
        await self._room.acquire()
        raw = b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            path.encode(),
            self._host.encode(),
            len(body),
        )
        call = _Call(raw + body, asyncio.get_running_loop().create_future(), self._clock.monotonic())
        self._calls.append(call)
        if self._transport is not None:
            self._transport.write(call.raw)
        elif self._coming_back is None:
            self._coming_back = asyncio.create_task(self._connect())
        return call.future

    def close(self) -> None:
        """Hang up; what is unanswered stays so."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    async def _connect(self) -> None:
        loop, began = asyncio.get_running_loop(), self._clock.monotonic()
        while not self._closed:
            try:
                await loop.create_connection(lambda: self, self._host, self._port)
                break
            except OSError as error:
                if self._clock.monotonic() - began > RECONNECT_S_MAX:
                    gone = Unreachable(f"{self._host}:{self._port} did not answer for {RECONNECT_S_MAX:.0f} s: {error}")
                    while self._calls:
                        self._calls.popleft().future.set_exception(gone)
                    break
                await self._clock.sleep(0.1)
        self._coming_back = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, again perhaps: send everything that is unanswered."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one without being a subclass
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        for call in self._calls:
            self._transport.write(call.raw)

    def data_received(self, data: bytes) -> None:
        """Parse; whole answers go to those who wait."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """A piece of an answer's body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """A whole answer: it is the oldest call's."""
        call = self._calls.popleft()
        self._room.release()
        seconds = self._clock.monotonic() - call.began
        if not call.future.done():
            call.future.set_result(Answer(self._parser.get_status_code(), b"".join(self._body), seconds))
        self._body.clear()

    def connection_lost(self, error: Exception | None) -> None:
        """Come back as long as calls wait."""
        self._transport = None
        if self._calls and not self._closed and self._coming_back is None:
            self._coming_back = asyncio.create_task(self._connect())


class Books:
    """Which outcomes the service acknowledged, a line each in `ledger`, and what it answered that was no answer."""

    def __init__(self, ledger: Path) -> None:
        self._path = ledger
        self._file: IO[bytes] | None = None
        self.acknowledged = 0
        self.errors = 0
        self.first_error = ""

    def open(self) -> None:
        """Begin the ledger."""
        self._file = self._path.open("wb")

    def flush(self) -> None:
        """Let others read what there is."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """End it; again is harmless."""
        if self._file is not None:
            self._file.close()

    async def tell(self, pipe: Pipe, outcomes: Sequence[Outcome]) -> asyncio.Future[Answer]:
        """Send outcomes as one call, and note what becomes of it."""
        fields = ("request", "item", "kind", "value", "event_time")
        body = orjson.dumps([{name: getattr(one, name) for name in fields} for one in outcomes])
        future = await pipe.post("/v1/outcomes", body)
        future.add_done_callback(lambda done: self._note(outcomes, done))
        return future

    def count_error(self, answer: Answer) -> None:
        """An answer that is not what was asked for."""
        self.errors += 1
        self.first_error = self.first_error or f"{answer.status} {answer.body[:300].decode(errors='replace')}"

    def _note(self, outcomes: Sequence[Outcome], done: asyncio.Future[Answer]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        if done.result().status != 200:
            self.count_error(done.result())
            return
        for one in outcomes:
            if one.kind != "watermark" and self._file is not None:
                self.acknowledged += 1
                self._file.write(orjson.dumps({"outcome": one.key(), "event_time": one.event_time}) + b"\n")
