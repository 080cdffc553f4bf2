"""One process that answers: engine, Door, borders and gauges, built from its settings; alone or as a role."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from millstream.app.borders import Borders
from millstream.app.house import House
from millstream.app.place import Peers, Place
from millstream.app.steering import Steering
from millstream.clock import Clock
from millstream.engine import Engine, EngineLimits
from millstream.flows.predict import Predict
from millstream.front import HttpLimits
from millstream.front.access import AccessLog, AccessSettings
from millstream.front.grpc import GrpcLimits
from millstream.front.placing import Placing
from millstream.front.record import Observer, Sink
from millstream.front.trace import Ids, Traces, TraceSettings
from millstream.guard.auth import Keys
from millstream.guard.tls import Tls, TlsSettings
from millstream.machine import Gauges
from millstream.meter import Meter
from millstream.models.apart import Programs
from millstream.models.manifest import Manifest
from millstream.models.model import load
from millstream.models.recorded import Recorder, RecordSettings
from millstream.models.repository import Repository
from millstream.ops.memory import Watchdog
from millstream.types import Shadow
from millstream.watch.canary.guard import Guards
from millstream.watch.shadow import Comparisons

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
    workers: Annotated[
        int, msgspec.Meta(ge=1, le=256, description="processes that answer at the same ports; 1: no other process")
    ] = 1
    resident_bytes_max: Annotated[
        int, msgspec.Meta(ge=0, description="memory of all processes together; 0: the control group's, else the RAM")
    ] = 0
    resident_share_max: Annotated[
        float,
        msgspec.Meta(gt=0, le=1, description="share of it above which the largest of several workers is replaced"),
    ] = 0.85
    keys: Annotated[str, msgspec.Meta(description="keys file; empty: everybody may use the data plane")] = ""
    tls: TlsSettings = TlsSettings()
    access_log: AccessSettings = AccessSettings()
    trace: TraceSettings = TraceSettings()
    http: HttpLimits = HttpLimits()
    grpc: GrpcLimits = GrpcLimits()
    engine: EngineLimits = EngineLimits()
    record: RecordSettings = RecordSettings()


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
        place: Place | None = None,
    ) -> None:
        self.repository, self.settings, self.clock, self.meter = repository, settings, clock, meter
        self._programs = Programs(meter, settings.engine.instances or 1) if settings.allow_code else None
        comparisons = Comparisons(clock)
        self.engine = Engine(
            repository,
            clock,
            meter,
            settings.engine,
            admit=admit,
            shadow=shadow,
            on_load=on_load,
            on_first_answer=on_first_answer,
            load=partial(load, device=settings.device, programs=self._programs),
            compare=comparisons,
        )
        self._steering = Steering(repository, self.engine, meter, comparisons)
        self._guards = Guards(repository, meter, clock, self.engine.policies)
        self._recorder = Recorder(repository, settings.record, clock, self.engine.submit)
        processes = settings.workers if place else 1
        self._keys = Keys.load(folder / settings.keys, clock, meter, processes) if settings.keys else None
        self._tls = Tls(settings.tls, folder, clock, meter) if settings.tls.certificate else None
        self._observer = _observer(settings, folder, clock, meter)
        self._gauges = Gauges(meter, place.name if place else "serve", whole=place is None)
        self._place = place
        self._peers = Peers(place, self.engine, meter, clock) if place else None
        self._measuring: list[asyncio.Task[None]] = []

    def furnish(
        self,
        served: ServedLog | None = None,
        recommend: Recommend | None = None,
        collect: Collect | None = None,
    ) -> None:
        """Make the Door and the borders in front of it; a process with a log also ranks and takes outcomes."""
        submit = self._recorder.submit if self.settings.record.share else self.engine.submit
        predict = Predict(submit, self.clock, served)
        self.door = House(self.engine, predict, self.meter, self._keys, self._steering, recommend, collect, self._peers)
        of = self.settings
        self.borders = Borders(self.door, self.meter, self.clock, of.http, of.grpc, self._tls, self._observer)

    async def load(self, sessions: Path | None = None) -> None:
        """Load and warm what the policies name, and go on with the sessions that the process before this one left."""
        self._measuring = [asyncio.ensure_future(self._gauges.keep(self.clock))]
        if self._place is None:
            limits = self.settings.resident_bytes_max, self.settings.resident_share_max
            watchdog = Watchdog(lambda: {"serve": os.getpid()}, self.clock, self.meter, *limits)
            self._measuring.append(asyncio.ensure_future(watchdog.keep()))
        await self.engine.start()
        self._measuring.append(asyncio.ensure_future(self._guards.keep()))
        if self.settings.record.share:
            self._measuring.append(asyncio.ensure_future(self._recorder.keep()))
        for view in self.engine.views():
            logger.info("%s: %s", view.model, view.live or "; ".join(view.problems.values()))
        if sessions is not None:
            self.engine.take_over(sessions)

    def share_speech(self) -> None:
        """Have new clients of live speech go to the process that has the fewest of them, where there are several."""
        if self._place is None or self._place.of == 1:
            return
        if self._tls is not None:
            logger.info("over TLS each process keeps the clients of live speech that come to it")
            return
        try:
            self.borders.http.place(Placing(Path(self._place.run), self._place.number, self._place.of))
        except OSError as error:
            logger.error("clients of live speech stay with the process that they come to: %s", error.strerror or error)

    async def listen(self) -> int:
        """Open the ports, or share those of the place; the one of HTTP."""
        if self._place is not None and self._peers is not None:
            await self._peers.join()
            port = await self.borders.share(*self._place.sockets())
            self._peers.listens()
            return port
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
        if self._programs is not None:
            await asyncio.to_thread(self._programs.close)
        for task in self._measuring:
            task.cancel()
        await asyncio.to_thread(self._guards.close)
        await asyncio.to_thread(self._recorder.write)
        if self._peers is not None:
            self._peers.stop()


def _observer(settings: ServeSettings, folder: Path, clock: Clock, meter: Meter) -> Observer | None:
    """Who gets a record of each request; None where nobody wants one. Misconfigured, Missing."""
    sinks: list[Sink] = []
    if settings.trace.endpoint:
        sinks.append(Traces(settings.trace, clock, meter, "https" if settings.tls.certificate else "http"))
    if settings.access_log.file:
        if not sinks:
            sinks.append(Ids())
        sinks.append(AccessLog(settings.access_log, folder, meter))  # the last: lines name their trace
    return Observer(clock, sinks) if sinks else None
