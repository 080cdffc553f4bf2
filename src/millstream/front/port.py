"""A port and its connections, whatever is spoken there: opened, counted, swept, drained.

Rules of the room:
- One sweep a second looks after the deadlines of all connections; a request costs no timer.
- A stop accepts nothing more, lets what is in flight end, and cuts off what is left after `drain_s`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from millstream.clock import Clock
from millstream.meter import Meter

IDLE_S = 1.0  # a connection that has just been made, or answered, is not idle yet


class Connection(Protocol):
    """What a port asks of its connections."""

    def sweep(self, now: float) -> None:
        """Enforce its deadlines."""

    def drain(self) -> None:
        """Close when nothing is under way any more."""

    def abort(self) -> None:
        """Close at once."""

    def idle_s(self, now: float) -> float:
        """How long nothing was under way; 0 while something is."""


class Port:
    """Listens, and keeps its `connections` within bounds. `protocol` ("http", "grpc") labels its metrics; `connect`
    makes a connection."""

    def __init__(self, protocol: str, meter: Meter, clock: Clock, connections_max: int, drain_s: float) -> None:
        labels = {"port": protocol}
        self.monotonic = clock.monotonic
        self.draining = False
        self.held_bytes = 0
        self.connections: set[Connection] = set()
        self.timed_out = meter.counter("millstream_timeouts_total", "Clients cut off for slowness", labels)
        self._open = meter.gauge("millstream_connections", "Open connections", labels)
        self._refused = meter.counter("millstream_connections_refused_total", "Connections over the bound", labels)
        self._clock, self._connections_max, self._drain_s = clock, connections_max, drain_s
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._empty: asyncio.Event = asyncio.Event()

    def connect(self) -> asyncio.Protocol:
        """A connection that has just been made."""
        raise NotImplementedError

    async def start(self, host: str = "127.0.0.1", port: int = 0, reuse_port: bool = False) -> int:
        """Bind and serve. `port` 0 takes a free one; `reuse_port` lets several processes share it."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self.connect, host, port, backlog=1024, reuse_port=reuse_port or None)
        self._sweeper = loop.create_task(self._sweep())
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Accept no more, finish what is in flight within `drain_s`, then cut off the rest."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.drain()
        deadline = asyncio.ensure_future(self._clock.sleep(self._drain_s))
        emptied = asyncio.ensure_future(self._emptied())
        await asyncio.wait({deadline, emptied}, return_when=asyncio.FIRST_COMPLETED)
        for connection in tuple(self.connections):
            connection.abort()
        await emptied
        deadline.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def opened(self, connection: Connection) -> bool:
        """Count a connection in; False when there are too many that do something, or the port is closing."""
        if self.draining or (len(self.connections) >= self._connections_max and not self._make_room()):
            self._refused.add()
            return False
        self.connections.add(connection)
        self._open.set(len(self.connections))
        return True

    def closed(self, connection: Connection) -> None:
        """Count a connection out; the last one ends a `stop` that waits."""
        self.connections.discard(connection)
        self._open.set(len(self.connections))
        if not self.connections:
            self._empty.set()

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest: idle ones must not keep out who wants to ask."""
        now = self.monotonic()
        longest = max(self.connections, key=lambda connection: connection.idle_s(now))
        if longest.idle_s(now) < IDLE_S:
            return False
        self.closed(longest)
        longest.abort()
        return True

    async def _emptied(self) -> None:
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(1.0)
            now = self.monotonic()
            for connection in tuple(self.connections):
                connection.sweep(now)
