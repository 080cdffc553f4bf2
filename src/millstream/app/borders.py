"""HTTP and gRPC in front of one Door: they open together and they drain together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from millstream.clock import Clock
from millstream.errors import Misconfigured
from millstream.front import Door, Http, HttpLimits
from millstream.front.grpc import Call, Grpc, GrpcLimits, Receiver, Service
from millstream.meter import Meter

logger = logging.getLogger("millstream")

NEXT_PORT = -1
"""As a port of gRPC: the one after HTTP's, or a free one beside a free one. Nobody asked for that very port, so one
that is taken is said and keeps no service from starting."""


class Borders:
    """The ports of a process that answers."""

    def __init__(
        self, door: Door, meter: Meter, clock: Clock, http: HttpLimits | None = None, grpc: GrpcLimits | None = None
    ) -> None:
        self.http = Http(door, meter, clock, http)
        self.grpc = Grpc(_AtFirstCall(door, clock), meter, clock, grpc)

    async def start(self, host: str, http_port: int, grpc_port: int = NEXT_PORT) -> int:
        """Bind both and say where; the port of HTTP. An address that was asked for and cannot be had: Misconfigured."""
        asked = grpc_port != NEXT_PORT
        try:
            bound = await _listen(self.grpc.start, host, grpc_port if asked else http_port and http_port + 1, "gRPC")
            logger.info("serving gRPC at %s:%d", host, bound)
        except Misconfigured as error:
            if asked:
                raise
            logger.error("gRPC is not served: %s; name one with --grpc-port or grpc_port", error)
        port = await _listen(self.http.start, host, http_port, "HTTP")
        logger.info("serving at http://%s:%d", host, port)
        return port

    async def stop(self) -> None:
        """Take nothing more, and answer what is under way."""
        await asyncio.gather(self.http.stop(), self.grpc.stop())


class _AtFirstCall:
    """The service of gRPC, made when somebody calls: its messages take 4 MB that HTTP alone has no use for."""

    def __init__(self, door: Door, clock: Clock) -> None:
        self._door, self._clock = door, clock
        self._service: Service | None = None

    def open(self, call: Call) -> Receiver:
        """Begin a call."""
        if self._service is None:
            from millstream.front.grpc.service import Inference

            self._service = Inference(self._door, self._clock)
        return self._service.open(call)


async def _listen(start: Callable[[str, int], Awaitable[int]], host: str, port: int, what: str) -> int:
    try:
        return await start(host, port)
    except OSError as error:
        why = (
            os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        )  # a host that has no address
        raise Misconfigured(
            f"cannot listen on {host}:{port} ({what}): {why}; free it, or choose another (0: any free port)"
        ) from None
