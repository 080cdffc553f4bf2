"""Load on an HTTP server: requests at a fixed rate, or as fast as answers come back. A process of its own.

    python -m millstream.ops.generator      frames of MessagePack on stdin and stdout; `load.Load` speaks them

Rules of the room:
- At a fixed rate a latency counts from the moment when the request was *due* (Poisson arrivals), not from when it left:
  a server that stalls is charged for every request that would have come meanwhile.
- A request costs prepared bytes and little else, so that one core sends many thousands a second (bench/generator.py).
- What the generator itself was late with is measured (`lag_ms`, `cpu`) and reported beside what the server did.
- Connections, pipelining, requests of a window and the wait at its end are all bounded.
"""

from __future__ import annotations

import gc
import os
import select
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

SCHEDULED_MAX = 1_000_000
ANSWER_BYTES_MAX = 256 << 20
HEAD_BYTES_MAX = 64 << 10
BURST = 32  # requests that leave between two looks at the answers
REST_S_MAX = 0.1
_READ = 1 << 18
_SPIN_S = 20e-6


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """Where the load goes, and the whole requests (head and body) that take turns."""

    host: str
    port: int
    requests: list[bytes]


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """One window of load. `rate` requests a second; 0: every connection sends when its last answer is there.

    `pipeline`: requests that a connection may have without answer; `grace_s`: how long the last answers are waited for.
    """

    rate: float
    seconds: float
    connections: int
    pipeline: int = 1
    grace_s: float = 2.0
    seed: int = 0


class Tally(msgspec.Struct, kw_only=True):
    """What became of a window's requests, each in exactly one place: `statuses`, `broken` (no answer but an end of the
    connection), `unanswered` (still open after the grace) or `unsent` (no connection was free in time).

    Of every 200: `due`, seconds into the window; `took_ms` from then; `served_ms` from when it was sent: float32.
    `in_time` 200s came within the window. `lag_ms`: 99 % of the requests that could leave at once left within so much;
    `cpu`: the generator's share of a core (of several, the busiest's), `cpu_all`: of all together.
    """

    seconds: float
    scheduled: int
    statuses: dict[int, int]
    broken: int = 0
    unanswered: int = 0
    unsent: int = 0
    in_time: int = 0
    due: bytes = b""
    took_ms: bytes = b""
    served_ms: bytes = b""
    lag_ms: float = 0.0
    cpu: float = 0.0
    cpu_all: float = 0.0
    failure: str = ""


class Connection:
    """One socket; `open` requests without answer: (due, sent)."""

    __slots__ = ("got", "need", "open", "rest", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, 5.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.open: deque[tuple[float, float]] = deque()
        self.got = bytearray()
        self.need = 0  # bytes that the answer at the front of `got` has; 0: not known yet
        self.rest = b""  # what the socket did not take yet

    def send(self, request: bytes) -> None:
        """Send, or keep what does not fit; OSError when the connection is gone."""
        if self.rest:
            self.rest += request
            return
        try:
            taken = self.socket.send(request)
        except BlockingIOError:
            taken = 0
        if taken < len(request):
            self.rest = request[taken:]

    def flush(self) -> None:
        """Send what was kept."""
        try:
            self.rest = self.rest[self.socket.send(self.rest) :]
        except BlockingIOError:
            return

    def receive(self) -> list[int]:
        """Statuses of the answers that are whole now; ConnectionError at the end of the stream, or on nonsense."""
        try:
            data = self.socket.recv(_READ)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        self.got += data
        statuses = []
        while len(self.got) >= max(self.need, 1):
            if not self.need:
                self.need = answer_bytes(self.got)
                if not self.need or len(self.got) < self.need:
                    break
            statuses.append(int(self.got[9:12]))
            del self.got[: self.need]
            self.need = 0
        return statuses


def answer_bytes(got: bytearray) -> int:
    """How long the answer at the front of `got` is, head included; 0 while its head is not whole."""
    end = got.find(b"\r\n\r\n")
    if end < 0:
        if len(got) > HEAD_BYTES_MAX:
            raise ConnectionError(f"no end of an answer's head within {HEAD_BYTES_MAX} bytes")
        return 0
    head = bytes(got[:end]).lower()
    at = head.find(b"\r\ncontent-length:")
    length = head[at + 17 :].split(b"\r\n", 1)[0].strip() if at >= 0 else b""
    if not head.startswith(b"http/1.1 ") or not head[9:12].isdigit() or not length.isdigit():
        raise ConnectionError(f"not an HTTP/1.1 answer with a Content-Length: {head[:80]!r}")
    if int(length) > ANSWER_BYTES_MAX:
        raise ConnectionError(f"an answer of {int(length)} bytes, at most {ANSWER_BYTES_MAX} are read")
    return end + 4 + int(length)


class Generator:
    """Runs windows against one server, over connections that it keeps."""

    def __init__(self, setup: Setup) -> None:
        self._address, self._requests = (setup.host, setup.port), setup.requests
        self._turn = 0
        self._poll = selectors.DefaultSelector()
        self._all: set[Connection] = set()

    def run(self, order: Order) -> Tally:
        """One window. OSError when the server cannot be reached at its start."""
        while len(self._all) < order.connections:
            self._connect()
        while len(self._all) > order.connections:
            self._drop(next(iter(self._all)))
        gc.collect()
        gc.disable()  # a pause for old garbage would be charged to the server
        try:
            return Window(self, order).run()
        finally:
            gc.enable()

    def request(self) -> bytes:
        """The next in turn."""
        self._turn += 1
        return self._requests[self._turn % len(self._requests)]

    def connections(self) -> list[Connection]:
        return list(self._all)

    def events(self, seconds: float) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready, waiting at most so long: to some microseconds, where epoll's own timeout has milliseconds."""
        if seconds > _SPIN_S:
            select.select([self._poll.fileno()], (), (), seconds)
        return self._poll.select(0)

    def watch(self, connection: Connection) -> None:
        """Wake up for answers, and for room while something waits to be sent."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.rest else 0)
        self._poll.modify(connection.socket, events, connection)

    def replace(self, connection: Connection) -> Connection | None:
        """A new connection in place of one that is of no use any more; None when the server takes none."""
        self._drop(connection)
        try:
            return self._connect()
        except OSError:
            return None

    def _connect(self) -> Connection:
        made = Connection(self._address)
        self._all.add(made)
        self._poll.register(made.socket, selectors.EVENT_READ, made)
        return made

    def _drop(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._poll.unregister(connection.socket)
        connection.socket.close()


class Window:
    """One window's books while it runs."""

    def __init__(self, generator: Generator, order: Order) -> None:
        self.generator, self.order = generator, order
        self.free = deque(generator.connections())  # those that may take one more request
        self.open = 0
        self.dues = schedule(order)
        self.statuses: dict[int, int] = {}
        self.broken = self.in_time = self.sent = 0
        self.good: list[tuple[float, float, float]] = []  # due, sent, answered
        self.lags: list[float] = []
        self.behind = False  # requests are due and no connection is free: what leaves late then is not our lag
        self.start = self.end = 0.0

    def run(self) -> Tally:
        now = time.perf_counter
        cpu = time.process_time()
        self.start = now()
        self.end = self.start + self.order.seconds
        while (at := now()) < self.end and (self.free or self.open) and not self._all_sent():
            rest = self._send(at)
            self._take(self.generator.events(min(rest, self.end - at)))
        if self.order.rate:  # due before the end, and we woke up after it: late, but sent
            self._send(now())
        spent = (time.process_time() - cpu) / max(1e-9, now() - self.start)
        latest = max(self.end, now()) + self.order.grace_s
        while self.open and (at := now()) < latest:
            self._take(self.generator.events(min(REST_S_MAX, latest - at)))
        return self._tally(spent)

    def _all_sent(self) -> bool:
        return bool(self.order.rate) and self.sent == len(self.dues)

    def _send(self, now: float) -> float:
        """Send what is due, a burst at most; seconds until there is something to send again."""
        if not self.order.rate:
            while self.free:
                self._give(now, now)
            return REST_S_MAX
        for _ in range(BURST):
            if self.sent == len(self.dues):
                return REST_S_MAX
            due = self.start + self.dues[self.sent]
            if (now := time.perf_counter()) < due:
                self.behind = False
                return due - now
            if not self.free:
                self.behind = True
                return REST_S_MAX
            if not self.behind:
                self.lags.append(now - due)
            self._give(due, now)
        return 0.0

    def _give(self, due: float, now: float) -> None:
        connection = self.free.popleft()
        self.sent += 1
        self.open += 1
        connection.open.append((due, now))
        try:
            connection.send(self.generator.request())
        except OSError:
            return self._lost(connection)
        if connection.rest:
            self.generator.watch(connection)
        if len(connection.open) < self.order.pipeline:
            self.free.append(connection)
        return None

    def _take(self, events: Iterable[tuple[selectors.SelectorKey, int]]) -> None:
        for key, mask in events:
            connection: Connection = key.data
            try:
                if mask & selectors.EVENT_WRITE:
                    connection.flush()
                    if not connection.rest:
                        self.generator.watch(connection)
                if mask & selectors.EVENT_READ:
                    self._answered(connection, connection.receive())
            except OSError:
                self._lost(connection)

    def _answered(self, connection: Connection, statuses: Sequence[int]) -> None:
        if not statuses:
            return
        now = time.perf_counter()
        if len(statuses) > len(connection.open):
            raise ConnectionError("more answers than requests")
        was_full = len(connection.open) >= self.order.pipeline
        for status in statuses:
            due, sent = connection.open.popleft()
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.good.append((due, sent, now))
                self.in_time += now <= self.end
        self.open -= len(statuses)
        if was_full:
            self.free.append(connection)

    def _lost(self, connection: Connection) -> None:
        """The connection ended: what was open on it is broken, and another takes its place."""
        self.broken += len(connection.open)
        self.open -= len(connection.open)
        if connection in self.free:
            self.free.remove(connection)
        made = self.generator.replace(connection)
        if made is not None:
            self.free.append(made)

    def _tally(self, cpu: float) -> Tally:
        unanswered = self.open
        for connection in self.generator.connections():
            if connection.open:
                self.generator.replace(connection)
        good = np.array(self.good, np.float64).reshape(-1, 3)
        return Tally(
            seconds=self.order.seconds,
            scheduled=len(self.dues) if self.order.rate else self.sent,
            statuses=self.statuses,
            broken=self.broken,
            unanswered=unanswered,
            unsent=len(self.dues) - self.sent if self.order.rate else 0,
            in_time=self.in_time,
            due=(good[:, 0] - self.start).astype("<f4").tobytes(),
            took_ms=((good[:, 2] - good[:, 0]) * 1e3).astype("<f4").tobytes(),
            served_ms=((good[:, 2] - good[:, 1]) * 1e3).astype("<f4").tobytes(),
            lag_ms=float(np.quantile(self.lags, 0.99)) * 1e3 if self.lags else 0.0,
            cpu=cpu,
            cpu_all=cpu,
        )


def schedule(order: Order) -> list[float]:
    """When each request is due, seconds into the window: Poisson arrivals; none without a rate."""
    count = int(order.rate * order.seconds)
    if count > SCHEDULED_MAX:
        raise ValueError(f"{count} requests in one window, at most {SCHEDULED_MAX}: a lower rate or a shorter window")
    if not count:
        return []
    # Given their number, Poisson arrivals lie uniformly; so a window has exactly rate * seconds of them.
    found: list[float] = np.sort(np.random.default_rng(order.seed).random(count) * order.seconds).tolist()
    return found


def main() -> None:
    """A generator: a `Setup` on stdin, then an `Order` and its `Tally` on stdout, until stdin ends."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    decoder = msgspec.msgpack.Decoder(Setup | Order)
    generator: Generator | None = None
    while len(length := source.read(4)) == 4:
        message = decoder.decode(source.read(int.from_bytes(length, "big")))
        if isinstance(message, Setup):
            generator = Generator(message)
            continue
        assert generator is not None
        try:
            tally = generator.run(message)
        except (OSError, ValueError) as error:
            tally = Tally(seconds=message.seconds, scheduled=0, statuses={}, failure=str(error))
        frame = msgspec.msgpack.encode(tally)
        sink.write(len(frame).to_bytes(4, "big") + frame)
        sink.flush()


if __name__ == "__main__":
    main()
