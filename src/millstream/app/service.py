"""One process that answers: engine, Door, borders and gauges, built from its settings; alone or as a role."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from millstream.app.borders import Borders
from millstream.app.house import House
from millstream.clock import Clock
from millstream.engine import Engine, EngineLimits
from millstream.flows.predict import Predict
from millstream.front import HttpLimits
from millstream.front.grpc import GrpcLimits
from millstream.guard.auth import Keys
from millstream.machine import Gauges
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.types import Shadow

if TYPE_CHECKING:  # serving models alone imports neither the log nor the compiler of feature rows
    from millstream.flows.collect import Collect
    from millstream.flows.recommend import Recommend
    from millstream.flows.served import ServedLog

logger = logging.getLogger("millstream")


class ServeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a process that answers is told, by the options of `serve` or in `millstream.toml`."""

    host: Annotated[str, msgspec.Meta(description="address of the data plane")] = "127.0.0.1"
    http_port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="port of the data plane; 0: a free one")] = 8000
    grpc_port: Annotated[
        int, msgspec.Meta(ge=-1, le=65535, description="port of gRPC; 0: a free one; -1: the one after http_port")
    ] = -1
    device: Annotated[
        str, msgspec.Meta(description="cpu, cuda:0 or tensorrt:0, for models that do not say themselves")
    ] = "cpu"
    allow_code: Annotated[
        bool,
        msgspec.Meta(description="serve models that are programs (pickle, torch, keras, Python), each in its process"),
    ] = False
    keys: Annotated[str, msgspec.Meta(description="keys file; empty: everybody may use the data plane")] = ""
    http: HttpLimits = HttpLimits()
    grpc: GrpcLimits = GrpcLimits()
    engine: EngineLimits = EngineLimits()


class Service:
    """Loads, then listens, then answers until `stop`. `folder` is what file names in the settings are relative to; the
    callables are the engine's."""

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        folder: Path,
        clock: Clock,
        meter: Meter,
        admit: Callable[[str, Manifest], None] | None = None,
        shadow: Callable[[Shadow], None] | None = None,
        on_load: Callable[[str, str], None] | None = None,
        on_first_answer: Callable[[str, str, int], None] | None = None,
    ) -> None:
        self.repository, self.settings, self.clock, self.meter = repository, settings, clock, meter
        self.engine = Engine(
            repository,
            clock,
            meter,
            settings.engine,
            admit=admit,
            shadow=shadow,
            on_load=on_load,
            on_first_answer=on_first_answer,
            load=partial(load, device=settings.device),
        )
        self._keys = Keys.load(folder / settings.keys, clock) if settings.keys else None
        self._gauges = Gauges(meter)
        self._measuring: asyncio.Task[None] | None = None

    def furnish(
        self,
        served: ServedLog | None = None,
        recommend: Recommend | None = None,
        collect: Collect | None = None,
    ) -> None:
        """Make the Door and the borders in front of it; a process with a log also ranks and takes outcomes."""
        predict = Predict(self.engine.submit, self.clock, served)
        self.door = House(self.engine, predict, self.meter, self._keys, recommend, collect)
        self.borders = Borders(self.door, self.meter, self.clock, self.settings.http, self.settings.grpc)

    async def load(self, sessions: Path | None = None) -> None:
        """Load and warm what the policies name, and go on with the sessions that the process before this one left."""
        self._measuring = asyncio.ensure_future(self._gauges.keep(self.clock))
        await self.engine.start()
        for view in self.engine.views():
            logger.info("%s: %s", view.model, view.live or "; ".join(view.problems.values()))
        if sessions is not None:
            self.engine.take_over(sessions)

    async def listen(self) -> int:
        """Open the ports; the one of HTTP."""
        return await self.borders.start(self.settings.host, self.settings.http_port, self.settings.grpc_port)

    async def stop(self, sessions: Path | None = None) -> None:
        """Answer what is under way; open sessions are handed over in the file `sessions`, else they may end first."""
        if sessions is None:
            await self.engine.drain()
        await self.borders.stop()
        await self.close(sessions)

    async def close(self, sessions: Path | None = None) -> None:
        """Let go of what `load` made, where nothing was listened to or nothing is any more."""
        await self.engine.stop(sessions)
        if self._measuring is not None:
            self._measuring.cancel()
