"""A gRPC server on a real port with a service made of small methods, and raw HTTP/2 clients for it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable

import h2.config
import h2.connection
import h2.events
import uvloop

from millstream import errors
from millstream.clock import Clock, FakeClock, SystemClock
from millstream.front.grpc import Call, Grpc, GrpcLimits, Receiver, frames
from millstream.front.grpc.connection import Connection
from millstream.front.grpc.hpack import Decoder, literal
from millstream.meter import Meter

ERRORS = {
    kind.__name__: kind
    for kind in (
        errors.BadInput,
        errors.Unauthenticated,
        errors.Forbidden,
        errors.NotFound,
        errors.Conflict,
        errors.TooLarge,
        errors.Busy,
        errors.Overloaded,
        errors.Late,
        errors.Corrupt,
        errors.Full,
        errors.Misconfigured,
        errors.Missing,
    )
}
SENTENCE = "café: 100 % wrong\nsend less"


class Small:
    """A call of one of the methods below, chosen by the last part of its path."""

    def __init__(self, call: Call, service: SmallService) -> None:
        self.call, self.service = call, service
        self.method = call.path.decode().rpartition("/")[2]
        self.messages: list[bytes] = []
        self.has_ended = self.was_cancelled = False
        call.metadata.get(b"x-first")
        if self.method.startswith("Refuse"):
            raise ERRORS[self.method.removeprefix("Refuse")](SENTENCE)
        if self.method == "Nothing":
            raise errors.Missing(f"no method {call.path.decode()}")

    def message(self, data: bytes) -> None:
        assert not self.has_ended and not self.was_cancelled
        assert type(data) is bytes
        self.messages.append(data)
        if self.method == "Stream":
            self.call.send(data)
        elif self.method == "Hold":
            self.call.hold()
        elif self.method == "Raise":
            raise ValueError("secret")
        elif self.method == "Early":
            self.call.finish(errors.BadInput("no more of this"))

    def ended(self) -> None:
        assert not self.has_ended and not self.was_cancelled
        self.has_ended = True
        if self.method == "Echo":
            self.call.send(b"".join(self.messages))
            self.call.finish()
        elif self.method == "Metadata":
            sent = self.call.metadata
            self.call.send(
                sent[b"x-first"], ((b"x-answer", sent[b"x-first"] * 2), (b"x-timeout", b"%f" % self.call.timeout_s))
            )
            self.call.send(self.call.peer.encode(), ((b"x-late", b"1"),))
            self.call.finish()
        elif self.method == "Big":
            self.call.send(bytes(int(self.messages[0])))
            self.call.finish()
        elif self.method == "Many":
            count, size = map(int, self.messages[0].split())
            for at in range(count):
                self.call.send(at.to_bytes(4, "big") * (size // 4))
            self.call.finish()
        elif self.method == "Stream":
            self.call.finish()
        elif self.method.startswith("Fail"):
            self.call.finish(ERRORS[self.method.removeprefix("Fail")](SENTENCE))
        elif self.method == "Bare":
            self.call.finish(errors.Error("secret"))

    def cancelled(self) -> None:
        assert not self.was_cancelled
        self.was_cancelled = True
        self.call.send(b"to nobody")
        self.call.finish()


class SmallService:
    """Echo, Stream, Never, Hold and so on. `calls`: all there were."""

    def __init__(self) -> None:
        self.calls: list[Small] = []

    def open(self, call: Call) -> Receiver:
        small = Small(call, self)
        self.calls.append(small)
        return small


class Rig:
    """`async with Rig() as rig:`: a server and its port."""

    def __init__(self, limits: GrpcLimits | None = None, clock: Clock | None = None) -> None:
        self.meter = Meter()
        self.service = SmallService()
        self.server = Grpc(self.service, self.meter, clock or SystemClock(), limits)
        self.port = 0

    async def __aenter__(self) -> Rig:
        self.port = await self.server.start(port=0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in tuple(self.server.connections):
            connection.abort()
        await self.server.stop()
        assert self.server.held_bytes == 0

    def answers(self, code: str) -> float:
        return self.meter.counter("millstream_grpc_answers_total", "", {"code": code}).value

    async def raw(self, greet: bool = True) -> Raw:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", self.port))
        if greet:
            raw.send(frames.PREFACE + frames.settings({}))
        return raw

    async def http2(self) -> Http2:
        client = Http2(*await asyncio.open_connection("127.0.0.1", self.port))
        client.connection.initiate_connection()
        client.flush()
        return client


def with_rig(
    test: Callable[[Rig], Awaitable[None]], limits: GrpcLimits | None = None, clock: FakeClock | None = None
) -> None:
    """Run a test on the loop that the program uses; nothing may be left for the loop to complain about."""
    complaints: list[dict[str, object]] = []

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        # grpc.aio has one queue of events a process, and gives this loop those of clients of a loop that is closed.
        if "PollerCompletionQueue" not in str(context["message"]):
            complaints.append(context)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(complain)
        async with asyncio.timeout(60), Rig(limits, clock) as rig:
            await test(rig)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    assert not complaints, complaints


async def until(true: Callable[[], object]) -> None:
    """Let the loop turn until something holds; the surrounding timeout is the bound."""
    while not true():
        await asyncio.sleep(0.001)


async def pass_time(clock: FakeClock, seconds: float) -> None:
    """Let what is on the sockets arrive, then move the clock second by second."""
    for _ in range(int(seconds)):
        for _ in range(3):
            await asyncio.sleep(0.002)
        clock.advance(1.0)
    for _ in range(3):
        await asyncio.sleep(0.005)


def message(data: bytes, packed: int = 0) -> bytes:
    """A message of gRPC."""
    return struct.pack(">BI", packed, len(data)) + data


REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"), (b"te", b"trailers")]


def fields(method: str, **more: str) -> list[tuple[bytes, bytes]]:
    """The headers of a call; `more` has _ for -."""
    extra = [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    if "content_type" not in more:
        extra.append((b"content-type", b"application/grpc"))
    return [*REQUEST[:2], (b":path", f"/t.Small/{method}".encode()), *REQUEST[2:], *extra]


def block(method: str, **more: str) -> bytes:
    """The same as a header block without any indexing."""
    return b"".join(literal(name, value) for name, value in fields(method, **more))


def unary(sid: int, method: str = "Echo", data: bytes = b"hello", **more: str) -> bytes:
    """A whole call: its HEADERS and its DATA."""
    head = frames.frame(frames.HEADERS, frames.END_HEADERS, sid, block(method, **more))
    return head + frames.frame(frames.DATA, frames.END_STREAM, sid, message(data))


class Frame:
    """One frame from the server."""

    def __init__(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.kind, self.flags, self.stream, self.payload = kind, flags, stream, payload

    @property
    def code(self) -> int:
        """Of a GOAWAY or a RST_STREAM."""
        return int.from_bytes(self.payload[4:8] if self.kind == frames.GOAWAY else self.payload, "big")

    def __repr__(self) -> str:
        return f"Frame({self.kind}, {self.flags:#x}, {self.stream}, {self.payload[:60]!r})"


class Raw:
    """Bytes out, frames in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = Decoder()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def frame(self) -> Frame | None:
        """The next frame; None at the end."""
        try:
            head = await self.reader.readexactly(9)
            payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None
        return Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)

    async def next(self, kind: int, stream: int | None = None) -> Frame:
        """The next frame of a kind, past all others."""
        while (frame := await self.frame()) is not None:
            if frame.kind == kind and stream in (None, frame.stream):
                return frame
        raise AssertionError(f"the connection ended before a frame of type {kind}")

    async def rest(self) -> list[Frame]:
        """Everything until the end."""
        found = []
        while (frame := await self.frame()) is not None:
            found.append(frame)
        return found

    async def answer(self, stream: int) -> tuple[bytes, dict[bytes, bytes]]:
        """(DATA, headers and trailers) of a call, to its end or its reset."""
        data, headers = b"", {}
        while (frame := await self.frame()) is not None:
            if frame.kind == frames.HEADERS:
                found = dict(self.decoder.decode(frame.payload, 1 << 20)[0])
                if frame.stream == stream:
                    headers |= found
            elif frame.kind == frames.DATA and frame.stream == stream:
                data += frame.payload
            if frame.stream == stream and frame.kind == frames.RESET:
                return data, {b"reset": b"%d" % frame.code}
            if frame.stream == stream and frame.flags & 1 and frame.kind in (0, 1):
                return data, headers
        raise AssertionError("the connection ended within an answer")

    async def alive(self) -> bool:
        """Whether the connection still answers a ping."""
        self.send(frames.frame(frames.PING, 0, 0, b"alive?!?"))
        found = self.frame()
        while (got := await found) is not None:
            if got.kind == frames.PING and got.payload == b"alive?!?":
                return True
            found = self.frame()
        return False

    def close(self) -> None:
        self.writer.close()


class Wire(asyncio.Transport):
    """A transport in memory, which makes the cuts between reads ours to choose."""

    def __init__(self, server: Grpc) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = self.has_eof = False
        self.protocol = Connection(server)
        self.protocol.connection_made(self)

    def feed(self, data: bytes, cuts: list[int]) -> None:
        """Give the bytes in pieces that end at `cuts`."""
        ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
        at = 0
        for end in ends:
            if not self.closed and end > at:
                self.protocol.data_received(data[at:end])
            at = end

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed and not self.has_eof
        self.written += data

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True
        self.protocol.connection_lost(None)


def parsed(data: bytes) -> list[Frame]:
    """Bytes that are whole frames, as frames."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        assert at + 9 + size <= len(data), "a frame is cut short"
        sid = int.from_bytes(data[at + 5 : at + 9], "big")
        found.append(Frame(data[at + 3], data[at + 4], sid, bytes(data[at + 9 : at + 9 + size])))
        at += 9 + size
    return found


class Http2:
    """The `h2` package as a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))

    def flush(self) -> None:
        self.writer.write(self.connection.data_to_send())

    def ask(self, sid: int, method: str, data: bytes | None = None, end: bool = True, **more: str) -> None:
        self.connection.send_headers(sid, fields(method, **more), end_stream=data is None and end)
        if data is not None:
            self.connection.send_data(sid, message(data), end_stream=end)
        self.flush()

    async def events(self) -> list[h2.events.Event]:
        """What the next read brings; [] at the end."""
        data = await self.reader.read(1 << 16)
        found = self.connection.receive_data(data) if data else []
        self.flush()
        return list(found)

    def close(self) -> None:
        self.writer.close()
