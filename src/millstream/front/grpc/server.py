"""The gRPC server: a port in front of a Service, its connections, the calls' deadlines, and its end.

Rules of the room:
- One timer looks after the deadlines of all calls.
- A stop tells the clients to go elsewhere before it waits for what is in flight.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Sequence
from socket import socket

from millstream.clock import Clock, Timer
from millstream.front.grpc.call import Receiver, Service
from millstream.front.grpc.connection import Connection
from millstream.front.grpc.headers import CODES
from millstream.front.grpc.limits import GrpcLimits
from millstream.front.grpc.stream import Stream
from millstream.front.port import Port
from millstream.front.record import Observer
from millstream.front.tls import Context
from millstream.meter import Meter

logger = logging.getLogger(__name__)

DEAD_MAX = 1024  # deadlines of calls that are over: more of them than of open calls, and the heap is made anew


class Grpc(Port):
    """A gRPC server in front of a Service. `start` binds and returns the port; `stop` drains."""

    def __init__(
        self,
        service: Service,
        meter: Meter,
        clock: Clock,
        limits: GrpcLimits | None = None,
        tls: Context | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.limits = limits or GrpcLimits()
        super().__init__(
            "grpc",
            meter,
            clock,
            self.limits.connections_max,
            self.limits.drain_s,
            self.limits.head_s,
            self.limits.linger_s,
            tls,
        )
        self.service, self.observer = service, observer
        self.deadlines = Deadlines(clock)
        self._seconds = meter.histogram("millstream_grpc_seconds", "From a call's headers to its trailers").observe
        self._answers = {
            code: meter.counter("millstream_grpc_answers_total", "Calls that ended, by code", {"code": code}).add
            for code in CODES
        }

    def connect(self) -> Connection:
        """A connection that has just been made."""
        return Connection(self)

    async def start(self, host: str = "127.0.0.1", port: int = 0, sockets: Sequence[socket] = ()) -> int:
        """Serve, and return the port; `sockets` as of any port."""
        self.call_soon = asyncio.get_running_loop().call_soon
        return await super().start(host, port, sockets)

    async def stop(self) -> None:
        """Tell clients to go elsewhere, finish what is in flight within `drain_s`, then cut off the rest."""
        await super().stop()
        self.deadlines.stop()

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
