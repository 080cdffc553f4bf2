"""The HTTP server: a port in front of a Door, its connections, their deadlines, and its end.

Rules of the room:
- One sweep a second looks after the deadlines of all connections; a request costs no timer.
- A stop accepts nothing more, answers what is in flight, and cuts off what is left after `drain_s`.
"""

from __future__ import annotations

import asyncio

from millstream.clock import Clock
from millstream.front.connection import Connection
from millstream.front.door import Door
from millstream.front.limits import HttpLimits
from millstream.front.routes import Routes
from millstream.meter import Meter


class Http:
    """An HTTP server in front of a Door. `start` binds and returns the port; `stop` drains."""

    def __init__(self, door: Door, meter: Meter, clock: Clock, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.routes = Routes(door, meter, clock, self.limits)
        self.monotonic = clock.monotonic
        self.draining = False
        self.held_bytes = 0
        self.under_way = 0  # requests begun and not answered
        self.timed_out = meter.counter("millstream_http_timeouts_total", "Requests and readers cut off for slowness")
        self._open = meter.gauge("millstream_http_connections", "Open connections")
        self._refused = meter.counter("millstream_http_refused_total", "Connections over the bound")
        self._clock = clock
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._empty: asyncio.Event = asyncio.Event()

    async def start(self, host: str = "127.0.0.1", port: int = 8000, reuse_port: bool = False) -> int:
        """Bind and serve. `port` 0 takes a free one; `reuse_port` lets several processes share it."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), host, port, backlog=1024, reuse_port=reuse_port or None
        )
        self._sweeper = loop.create_task(self._sweep())
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Accept no more, finish what is in flight within `drain_s`, then cut off the rest."""
        self.draining = True
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
        if self._sweeper is not None:
            self._sweeper.cancel()

    def opened(self, connection: Connection) -> bool:
        """Count a connection in; False when there are too many or the server is stopping."""
        if len(self._connections) >= self.limits.connections_max or self.draining:
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
