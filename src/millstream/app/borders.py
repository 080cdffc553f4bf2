"""HTTP and gRPC in front of one Door: they open together and they drain together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from socket import socket

from millstream.clock import Clock
from millstream.errors import Misconfigured
from millstream.front import Door, Http, HttpLimits
from millstream.front.grpc import Call, Grpc, GrpcLimits, Receiver, Service
from millstream.front.record import Observer
from millstream.guard.tls import Tls
from millstream.meter import Meter

logger = logging.getLogger("millstream")

NEXT_PORT = -1
"""As a port of gRPC: the one after HTTP's, or a free one beside a free one. Nobody asked for that very port, so one
that is taken is said and keeps no service from starting."""


class Borders:
    """The ports of a process that answers."""

    def __init__(
        self,
        door: Door,
        meter: Meter,
        clock: Clock,
        http: HttpLimits | None = None,
        grpc: GrpcLimits | None = None,
        tls: Tls | None = None,
        observer: Observer | None = None,
    ) -> None:
        service = _AtFirstCall(door, clock, observer)
        self.http = Http(door, meter, clock, http, tls.http if tls else None, observer)
        self.grpc = Grpc(service, meter, clock, grpc, tls.grpc if tls else None, observer)
        self._tls, self._observer = tls, observer
        self._watching: asyncio.Task[None] | None = None

    async def start(self, host: str, http_port: int, grpc_port: int = NEXT_PORT) -> int:
        """Bind both and say where; the port of HTTP. An address that was asked for and cannot be had: Misconfigured."""
        asked = grpc_port != NEXT_PORT
        self._begin()
        try:
            bound = await _listen(self.grpc.start, host, grpc_port if asked else http_port and http_port + 1, "gRPC")
            logger.info("serving gRPC at %s:%d", host, bound)
        except Misconfigured as error:
            if asked:
                raise
            logger.error("gRPC is not served: %s; name one with --grpc-port or grpc_port", error)
        port = await _listen(self.http.start, host, http_port, "HTTP")
        logger.info("serving at %s://%s:%d", "https" if self._tls else "http", host, port)
        return port

    async def share(self, http: Sequence[socket], grpc: Sequence[socket]) -> int:
        """Serve at sockets that were bound for several processes, none where gRPC has no port; the port of HTTP."""
        self._begin()
        if grpc:
            await self.grpc.start(sockets=grpc)
        return await self.http.start(sockets=http)

    async def stop(self) -> None:
        """Take nothing more, and answer what is under way."""
        await asyncio.gather(self.http.stop(), self.grpc.stop())
        if self._watching is not None:
            self._watching.cancel()
        if self._observer is not None:
            await asyncio.to_thread(self._observer.stop)

    def _begin(self) -> None:
        """What runs beside the ports."""
        if self._tls is not None:
            self._watching = asyncio.ensure_future(self._tls.keep())
        if self._observer is not None:
            self._observer.start()


class _AtFirstCall:
    """The service of gRPC, made when somebody calls: its messages take 4 MB that HTTP alone has no use for."""

    def __init__(self, door: Door, clock: Clock, observer: Observer | None) -> None:
        self._door, self._clock, self._observer = door, clock, observer
        self._service: Service | None = None

    def open(self, call: Call) -> Receiver:
        """Begin a call."""
        if self._service is None:
            from millstream.front.grpc.service import Inference

            self._service = Inference(self._door, self._clock, self._observer)
        return self._service.open(call)


def cannot_listen(host: str, port: int, what: str, error: OSError) -> Misconfigured:
    """What to tell somebody who asked for an address that cannot be had."""
    known = error.errno and error.errno > 0  # a host that has no address has no such number
    why = os.strerror(error.errno) if known and error.errno else error.strerror
    return Misconfigured(
        f"cannot listen on {host}:{port} ({what}): {why}; free it, or choose another (0: any free port)"
    )


async def _listen(start: Callable[[str, int], Awaitable[int]], host: str, port: int, what: str) -> int:
    try:
        return await start(host, port)
    except OSError as error:
        raise cannot_listen(host, port, what, error) from None
