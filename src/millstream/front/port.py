"""A port and its connections, whatever is spoken there: opened, counted, swept, drained.

Rules of the room:
- One sweep a second looks after the deadlines of all connections; a request costs no timer.
- A stop accepts nothing more, lets what is in flight end, and cuts off what is left after `drain_s`. Who has just
  connected, or asks all the time, knows nothing of it: the next answer tells him to go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from socket import socket
from typing import Protocol

from millstream.clock import Clock
from millstream.front.tls import Context, Listener, bind
from millstream.meter import Meter

BACKLOG = 1024
FRESH_S = 0.5  # who asked so lately that his next request may be on its way
IDLE_S = 1.0  # a connection that has just been made, or answered, is not idle yet


class Connection(Protocol):
    """What a port asks of its connections."""

    @property
    def fresh(self) -> bool:
        """Whether a request may be on its way that knows nothing of a stop."""

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
    makes a connection; `tls` gives the context that is in force, asked for with every connection."""

    def __init__(
        self,
        protocol: str,
        meter: Meter,
        clock: Clock,
        connections_max: int,
        drain_s: float,
        head_s: float,
        linger_s: float,
        tls: Context | None = None,
    ) -> None:
        labels = {"port": protocol}
        self.monotonic = clock.monotonic
        self.draining = False
        self.held_bytes = 0
        self.connections: set[Connection] = set()
        self.timed_out = meter.counter("millstream_timeouts_total", "Clients cut off for slowness", labels)
        self._open = meter.gauge("millstream_connections", "Open connections", labels)
        self._refused = meter.counter("millstream_connections_refused_total", "Connections over the bound", labels)
        self._clock, self._connections_max, self._drain_s = clock, connections_max, drain_s
        self.unshaken = meter.counter("millstream_handshakes_failed_total", "TLS handshakes that failed", labels)
        self._tls, self._head_s, self._linger_s = tls, head_s, linger_s
        self._servers: list[asyncio.Server | Listener] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._empty: asyncio.Event = asyncio.Event()

    def connect(self) -> asyncio.Protocol:
        """A connection that has just been made."""
        raise NotImplementedError

    async def start(self, host: str = "127.0.0.1", port: int = 0, sockets: Sequence[socket] = ()) -> int:
        """Serve, and return the port; 0 takes a free one. `sockets`: bound already by who shares a port out to several
        processes, in place of `host` and `port`."""
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            sockets = sockets or await bind(host, port)
            self._servers = [Listener(self, one, self._tls, self._head_s, self._linger_s) for one in sockets]
        elif sockets:
            self._servers = [await loop.create_server(self.connect, sock=one, backlog=BACKLOG) for one in sockets]
        else:
            self._servers = [await loop.create_server(self.connect, host, port, backlog=BACKLOG)]
        self._sweeper = loop.create_task(self._sweep())
        return int(self._servers[0].sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Accept no more, finish what is in flight within `drain_s`, then cut off the rest."""
        self.draining = True
        await self._close_listeners()
        await asyncio.sleep(0)  # what the loop has accepted is a connection by the next turn
        letting_go = asyncio.ensure_future(self._let_go())
        deadline = asyncio.ensure_future(self._clock.sleep(self._drain_s))
        emptied = asyncio.ensure_future(self._emptied())
        await asyncio.wait({deadline, emptied}, return_when=asyncio.FIRST_COMPLETED)
        for connection in tuple(self.connections):
            connection.abort()
        await emptied
        deadline.cancel()
        letting_go.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def opened(self, connection: Connection) -> bool:
        """Count a connection in; False when there are too many that do something."""
        if len(self.connections) >= self._connections_max and not self._make_room():
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

    async def _close_listeners(self) -> None:
        """Listen no more. What was connected by then is taken in: a socket that closes resets whatever waits in it."""
        loop = asyncio.get_running_loop()
        plain = (server for server in self._servers if not isinstance(server, Listener))
        last = [one.dup() for server in plain for one in server.sockets]
        for server in self._servers:
            server.close()
        await asyncio.sleep(0)
        accepted: list[socket] = []
        for listening in last:
            listening.setblocking(False)
            with suppress(OSError):
                while len(accepted) < BACKLOG:
                    accepted.append(listening.accept()[0])
            listening.close()
        for one in accepted:
            with suppress(OSError):
                await loop.connect_accepted_socket(self.connect, one)

    async def _let_go(self) -> None:
        """Ask every connection to close, those last that may be about to ask."""
        for connection in tuple(self.connections):
            if not connection.fresh:
                connection.drain()
        await self._clock.sleep(FRESH_S)
        for connection in tuple(self.connections):
            connection.drain()

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
