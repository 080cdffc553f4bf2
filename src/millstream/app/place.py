"""One of several processes that answer at one address: what it was told, and how it keeps step with the others.

Rules of the room:
- Processes share a folder of meter pages and one file of orders, and no memory: who dies takes nothing along.
- A process takes connections when it answers whatever the others answer, so a new one never answers less than they.
- `load` and `unload` concern all: done here first, then written down, then awaited of the others for FOLLOW_S at most.
- A session lives in one process; another one does not know its token.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from socket import socket
from typing import Literal

import msgspec

from millstream.clock import Clock
from millstream.config import orphaned
from millstream.engine import Engine
from millstream.errors import Error, NotFound
from millstream.meter import Meter
from millstream.models.model import Stateful
from millstream.store.blob import locked, write_atomic

LOOK_S = 0.1
FOLLOW_S = 30.0
logger = logging.getLogger("millstream")

Verb = Literal["load", "unload"]


class Place(msgspec.Struct, frozen=True):
    """What a process is told by the one that starts it. `number`: which of the `of` processes it is; `page`: its own
    page of the meter and partition of the log, which two processes never have at once. `http`, `grpc`: file descriptors
    of bound sockets, `ready` of the pipe in which it says that it listens. `first`: nobody answers yet."""

    number: int
    of: int
    page: int
    run: str
    http: tuple[int, ...]
    grpc: tuple[int, ...]
    ready: int
    first: bool

    @property
    def name(self) -> str:
        """What logs and metrics call the process."""
        return f"serve-{self.number}"

    @property
    def page_name(self) -> str:
        """What its page of the meter is called."""
        return f"serve-{self.page}"

    @property
    def meters(self) -> Path:
        """The folder of the pages of all, where no installation has one."""
        return Path(self.run) / "meters"

    def sockets(self) -> tuple[list[socket], list[socket]]:
        """(HTTP's, gRPC's) as it inherited them."""
        return [socket(fileno=fd) for fd in self.http], [socket(fileno=fd) for fd in self.grpc]

    def listens(self) -> None:
        """Tell who started it that it takes connections."""
        os.write(self.ready, b"1")
        os.close(self.ready)

    async def alone(self, asked: asyncio.Event) -> None:
        """Ask this process to end when the one that started it is gone; the folder is nobody's then."""
        while not orphaned():
            await asyncio.sleep(LOOK_S)
        logger.warning("the supervisor is gone: this process ends too")
        shutil.rmtree(self.run, ignore_errors=True)
        asked.set()


class Peers:
    """Keeps one process in step with the others at its address. Use from its event loop."""

    def __init__(self, place: Place, engine: Engine, meter: Meter, clock: Clock) -> None:
        self._place, self._engine, self._meter, self._clock = place, engine, meter, clock
        self._orders = Path(place.run) / "orders.json"
        self._looked: tuple[int, int] = (0, 0)
        self._done: dict[str, int] = {}
        self._followed = meter.gauge(
            "_orders_followed", "Latest order that a process follows", {"process": place.page_name}
        )
        self._listens = False
        self._following: asyncio.Task[None] | None = None

    @property
    def verbs(self) -> Mapping[str, Callable[[str], Awaitable[None]]]:
        """`load` and `unload` of a model, in every process."""
        return {"load": partial(self._order, "load"), "unload": partial(self._order, "unload")}

    async def join(self) -> None:
        """Follow what was ordered before this process came; return when it answers whatever the others answer."""
        await self._follow()
        self._hint()
        said = ""
        while not self._place.first and (missing := self._missing()):
            if missing != said:
                said = missing
                logger.error("no connection is taken here yet: %s", missing)
            await self._clock.sleep(LOOK_S)
            await self._follow()

    def _hint(self) -> None:
        """Say once for the service what several processes mean for models that keep sessions."""
        for model in self._engine.models() if self._place.first and not self._place.number else ():
            with suppress(Error):  # one that sleeps has no lane
                if not isinstance(self._engine.lane(model).loaded, Stateful):
                    continue
                logger.warning(
                    "%s keeps sessions, and each lives in one of %d processes: a client must send all steps of a "
                    "session over one connection, or serve it with one worker",
                    model,
                    self._place.of,
                )

    def listens(self) -> None:
        """This process takes connections: from now on others wait until they answer what it answers."""
        self._listens = True
        self._following = asyncio.ensure_future(self._keep())
        self._place.listens()

    def stop(self) -> None:
        """Follow nothing more."""
        if self._following is not None:
            self._following.cancel()

    async def _keep(self) -> None:
        while True:
            self._tell()
            await self._clock.sleep(LOOK_S)
            try:
                await self._follow()
            except OSError:
                logger.exception("the orders to all processes cannot be read now; they will be looked at again")

    def _tell(self) -> None:
        """Let the others know what is answered here."""
        answers = set(self._engine.models())
        for view in self._engine.views():
            labels = {"model": view.model}
            self._meter.gauge("_answers", "Processes that answer a model", labels).set(view.model in answers)

    def _missing(self) -> str:
        """The models that others answer and this process does not, with the reason; "" when there are none."""
        here, missing = set(self._engine.models()), []
        problems = {view.model: "; ".join(view.problems.values()) for view in self._engine.views()}
        for spec in self._meter.total().values():
            if spec["name"] == "_answers" and spec["values"] != [0.0]:
                model = spec["labels"]["model"]  # type: ignore[index]
                if model not in here:
                    why = problems.get(model) or "it is not in the repository"
                    missing.append(
                        f"other processes answer {model}, which cannot be loaded any more ({why}); put the version "
                        "back, make another one live, or unload the model"
                    )
        return "; ".join(sorted(missing))

    async def _order(self, verb: Verb, model: str) -> None:
        """Do it here; then have the others do it. Raises what it raised here."""
        await self._do(verb, model)
        number = await asyncio.to_thread(self._write, verb, model)
        self._done[model] = number
        await self._follow()
        until = self._clock.monotonic() + FOLLOW_S
        while behind := self._behind(number):
            if self._clock.monotonic() > until:
                logger.warning("%s of %s is not followed by %s yet", verb, model, ", ".join(behind))
                return
            await self._clock.sleep(LOOK_S / 2)

    async def _do(self, verb: Verb, model: str) -> None:
        await (self._engine.load(model) if verb == "load" else self._engine.unload(model))

    def _behind(self, number: int) -> list[str]:
        """The processes that have not followed an order yet."""
        followed = (spec for spec in self._meter.total().values() if spec["name"] == "_orders_followed")
        return [
            spec["labels"]["process"]  # type: ignore[index]
            for spec in followed
            if 0 < spec["values"][0] < number  # type: ignore[index]
        ]

    def _write(self, verb: Verb, model: str) -> int:
        """Note an order, the latest one of its model; its number. Orders count from 2: 1 is to have none to follow."""
        with locked(self._orders.with_suffix(".lock")):
            orders = self._read()
            number = max((number for number, _ in orders.values()), default=1) + 1
            orders[model] = number, verb
            write_atomic(self._orders, msgspec.json.encode(orders))
        return number

    def _read(self) -> dict[str, tuple[int, Verb]]:
        try:
            return msgspec.json.decode(self._orders.read_bytes(), type=dict[str, tuple[int, Verb]])
        except FileNotFoundError:
            return {}

    async def _follow(self) -> None:
        """Do what others were told since the last look. One that cannot be done here is said, and counts as done."""
        try:
            stat = self._orders.stat()
            looked = stat.st_mtime_ns, stat.st_ino
        except FileNotFoundError:
            looked = (0, 0)
        if looked != self._looked:
            self._looked = looked
            for model, (number, verb) in sorted(self._read().items(), key=lambda one: one[1][0]):
                if number <= self._done.get(model, 0):
                    continue
                self._done[model] = number
                if verb == "load" and not self._listens:  # it has just loaded whatever there is
                    continue
                try:
                    await self._do(verb, model)
                except NotFound:
                    pass
                except Error as error:
                    logger.error("%s of %s, as another process did: %s", verb, model, error)
        self._followed.set(max(self._done.values(), default=1))
