"""The HTTP server: a port in front of a Door."""

from __future__ import annotations

from millstream.clock import Clock
from millstream.front.connection import Connection
from millstream.front.door import Door
from millstream.front.limits import HttpLimits
from millstream.front.port import Port
from millstream.front.routes import Routes
from millstream.meter import Meter


class Http(Port):
    """An HTTP server in front of a Door. `start` binds and returns the port; `stop` drains."""

    def __init__(self, door: Door, meter: Meter, clock: Clock, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        super().__init__("http", meter, clock, self.limits.connections_max, self.limits.drain_s)
        self.routes = Routes(door, meter, clock, self.limits)
        self.under_way = 0  # requests begun and not answered

    def connect(self) -> Connection:
        """A connection that has just been made."""
        return Connection(self)
