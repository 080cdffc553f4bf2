"""The HTTP server: a port in front of a Door."""

from __future__ import annotations

from millstream.clock import Clock
from millstream.front.connection import Connection
from millstream.front.door import Door
from millstream.front.limits import HttpLimits
from millstream.front.placing import Placing
from millstream.front.port import Connection as Served
from millstream.front.port import Port
from millstream.front.record import Observer
from millstream.front.routes import Routes
from millstream.front.tls import Context
from millstream.meter import Meter


class Http(Port):
    """An HTTP server in front of a Door. `start` binds and returns the port; `stop` drains."""

    def __init__(
        self,
        door: Door,
        meter: Meter,
        clock: Clock,
        limits: HttpLimits | None = None,
        tls: Context | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.limits = limits or HttpLimits()
        super().__init__(
            "http",
            meter,
            clock,
            self.limits.connections_max,
            self.limits.drain_s,
            self.limits.head_s,
            self.limits.linger_s,
            tls,
        )
        self.routes = Routes(door, meter, clock, self.limits, observer)
        self.placing: Placing | None = None
        self.under_way = 0  # requests begun and not answered
        self.unread: dict[Served, int] = {}  # answers in bytes, by who does not read, the longest first
        self._unread_bytes = 0

    def connect(self, first: bytes = b"") -> Connection:
        """A connection that has just been made. `first`: what another process has read of it."""
        return Connection(self, first)

    def place(self, placing: Placing) -> None:
        """Share live speech with other processes from now on, until `stop`."""
        self.placing = placing
        placing.start(self)

    async def stop(self) -> None:
        """Accept no more, finish what is in flight within `drain_s`, then cut off the rest."""
        if self.placing is not None:
            self.placing.stop()
        await super().stop()

    def left_unread(self, connection: Served, size: int) -> None:
        """Count what a connection leaves unread now; too much of all: who has not read for longest is cut off."""
        self._unread_bytes += size - self.unread.get(connection, 0)
        self.unread[connection] = size
        while self._unread_bytes > self.limits.unread_bytes_max:
            longest = next(iter(self.unread))
            self.reads(longest)
            self.timed_out.add()
            longest.abort()

    def reads(self, connection: Served) -> None:
        """It reads again, or is gone."""
        self._unread_bytes -= self.unread.pop(connection, 0)
