"""The gRPC server: a port in front of a Service, its connections, the calls' deadlines, and its end.

Rules of the room:
- One sweep a second looks after slow and idle clients, one timer after the deadlines of all calls.
- A stop tells the clients to go elsewhere, answers what is in flight, and cuts off what is left after `drain_s`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging

from millstream.clock import Clock, Timer
from millstream.front.grpc.call import Receiver, Service
from millstream.front.grpc.connection import Connection
from millstream.front.grpc.headers import CODES
from millstream.front.grpc.limits import GrpcLimits
from millstream.front.grpc.stream import Stream
from millstream.meter import Meter

logger = logging.getLogger(__name__)

DEAD_MAX = 1024  # deadlines of calls that are over: more of them than of open calls, and the heap is made anew


class Grpc:
    """A gRPC server in front of a Service. `start` binds and returns the port; `stop` drains."""

    def __init__(self, service: Service, meter: Meter, clock: Clock, limits: GrpcLimits | None = None) -> None:
        self.service = service
        self.limits = limits or GrpcLimits()
        self.monotonic = clock.monotonic
        self.deadlines = Deadlines(clock)
        self.held_bytes = 0
        self.timed_out = meter.counter("millstream_grpc_timeouts_total", "Messages and readers cut off for slowness")
        self._open = meter.gauge("millstream_grpc_connections", "Open connections")
        self._refused = meter.counter("millstream_grpc_refused_total", "Connections over the bound")
        self._seconds = meter.histogram("millstream_grpc_seconds", "From a call's headers to its trailers").observe
        self._answers = {
            code: meter.counter("millstream_grpc_answers_total", "Calls that ended, by code", {"code": code}).add
            for code in CODES
        }
        self._clock = clock
        self._draining = False
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._empty: asyncio.Event = asyncio.Event()

    async def start(self, host: str = "127.0.0.1", port: int = 8001, reuse_port: bool = False) -> int:
        """Bind and serve. `port` 0 takes a free one; `reuse_port` lets several processes share it."""
        loop = asyncio.get_running_loop()
        self.call_soon = loop.call_soon
        self._server = await loop.create_server(
            lambda: Connection(self), host, port, backlog=1024, reuse_port=reuse_port or None
        )
        self._sweeper = loop.create_task(self._sweep())
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Accept no more, finish what is in flight within `drain_s`, then cut off the rest."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.drain()
        deadline = asyncio.ensure_future(self._clock.sleep(self.limits.drain_s))
        emptied = asyncio.ensure_future(self._emptied())
        await asyncio.wait({deadline, emptied}, return_when=asyncio.FIRST_COMPLETED)
        for connection in tuple(self._connections):
            connection.abort()
        await emptied
        deadline.cancel()
        self.deadlines.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def opened(self, connection: Connection) -> bool:
        """Count a connection in; False when there are too many or the server is stopping."""
        if len(self._connections) >= self.limits.connections_max or self._draining:
            self._refused.add()
            return False
        self._connections.add(connection)
        self._open.set(len(self._connections))
        return True

    def closed(self, connection: Connection) -> None:
        """Count a connection out; the last one ends a `stop` that waits."""
        self._connections.discard(connection)
        self._open.set(len(self._connections))
        if not self._connections:
            self._empty.set()

    def count(self, code: str, seconds: float) -> None:
        """Count a call that is over."""
        self._answers[code]()
        self._seconds(seconds)

    def tell_cancelled(self, receiver: Receiver) -> None:
        """Tell a service that nobody waits any more. What it raises is logged: the call is over already."""
        try:
            receiver.cancelled()
        except Exception:
            logger.exception("a cancelled call could not be given up")

    async def _emptied(self) -> None:
        while self._connections:
            self._empty.clear()
            await self._empty.wait()

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(1.0)
            now = self.monotonic()
            for connection in tuple(self._connections):
                connection.sweep(now)


class Deadlines:
    """When calls expire: a heap with one timer. The entry of a call that is over stays until its time or a clearing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Stream]] = []
        self._order = itertools.count()
        self._dead = 0
        self._next = float("inf")  # when the timer rings
        self._timer: Timer | None = None

    def add(self, stream: Stream, due: float) -> None:
        """Expire a call at `due`, a monotonic time."""
        stream.timed = True
        heapq.heappush(self._heap, (due, next(self._order), stream))
        if due < self._next:
            self._set()

    def over(self) -> None:
        """A call with a deadline has ended."""
        self._dead += 1
        if self._dead > DEAD_MAX and self._dead > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].connection is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def stop(self) -> None:
        """Expire nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next = float("inf")
        if self._heap:
            self._next = self._heap[0][0]
            self._timer = self._clock.later(max(0.0, self._next - self._clock.monotonic()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].connection is None):
            stream = heapq.heappop(self._heap)[2]
            if stream.connection is None:
                self._dead -= 1
            else:
                stream.timed = False
                stream.expire()
        self._set()
