"""Several processes that answer at one address, and the one that starts them and keeps them running.

Rules of the room:
- The parent answers nothing and loads no model. It holds the ports: bound, so that nobody else gets them, and not
  listening. The workers' own sockets share them by SO_REUSEPORT, and the kernel deals connections out to those that
  listen.
- A worker is a fresh process of the same command line, never a fork. Its sockets belong to its place: one that replaces
  a living worker takes them over, with whatever waits in them; those of one that died are closed at once, so that what
  waits there is refused and not left hanging.
- A service whose first workers cannot start does not start; later on a worker is started again for ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from millstream.app.borders import NEXT_PORT, cannot_listen
from millstream.app.place import Place
from millstream.app.plain import until_asked
from millstream.app.service import ServeSettings
from millstream.clock import Clock, SystemClock
from millstream.errors import Misconfigured
from millstream.machine import Gauges
from millstream.meter import Meter
from millstream.models.source import open_source
from millstream.ops import Launch, Supervisor
from millstream.ops.memory import Watchdog

SHARED = Path("/dev/shm")
LEAVE_S = 5.0  # for a worker to end, beside what it may take to answer
logger = logging.getLogger("millstream")


async def serve_workers(where: str, settings: ServeSettings, line: Sequence[str]) -> None:
    """Serve the repository that `where` names by `settings.workers` processes of the command line `line`, until SIGTERM
    or SIGINT. Nothing there that can answer: Misconfigured."""
    open_source(where)
    with run_folder() as run, Workers([sys.executable, "-m", "millstream", *line], settings, run) as workers:
        meter, clock = Meter(run / "meters", "supervisor"), SystemClock()
        await workers.keep(Supervisor(workers.roles, clock, workers.grace_s, meter), meter, clock)


@contextmanager
def run_folder() -> Iterator[Path]:
    """A folder for as long as the service runs, in memory where the system has such a place: a disk that is full keeps
    no worker from starting."""
    top = SHARED if os.access(SHARED, os.W_OK | os.X_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="millstream-", dir=top))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Workers(ExitStack):
    """The places of the processes that answer, and the ports that they share; to be used in a `with`. `command`: what
    starts one, but for its place. `run`: a folder of theirs. Ports that cannot be had: Misconfigured."""

    def __init__(self, command: Sequence[str], settings: ServeSettings, run: Path) -> None:
        super().__init__()
        self.command, self.settings, self.run, self.failed = tuple(command), settings, run, asyncio.Event()
        self.first = True
        run.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # orders to the processes of an earlier start
            (run / "orders.json").unlink()
        host, http, grpc = settings.host, settings.http_port, settings.grpc_port
        self.http = self._held(host, http, "HTTP")
        self.grpc: list[socket.socket] = []
        try:
            self.grpc = self._held(host, (http and http + 1) if grpc == NEXT_PORT else grpc, "gRPC")
        except Misconfigured as error:
            if grpc != NEXT_PORT:
                raise
            logger.error("gRPC is not served: %s; name one with --grpc-port or grpc_port", error)
        places = [_Place(self, number) for number in range(settings.workers)]
        self.roles = {place.name: place.launch for place in places}
        self.grace_s = settings.engine.drain_s + max(settings.http.drain_s, settings.grpc.drain_s) + LEAVE_S

    async def keep(self, supervisor: Supervisor, meter: Meter, clock: Clock) -> None:
        """Run all roles of the supervisor until SIGTERM or SIGINT. Misconfigured when a first worker cannot start."""
        asked = until_asked()
        gauges = asyncio.ensure_future(Gauges(meter, "supervisor").keep(clock))
        try:
            await supervisor.start()
            if not await self._all_listen(supervisor, asked):
                return
            self.first = False
            if self.grpc:
                logger.info("serving gRPC at %s:%d", self.settings.host, self.grpc[0].getsockname()[1])
            http = self.http[0].getsockname()[1]
            scheme = "https" if self.settings.tls.certificate else "http"
            logger.info("serving at %s://%s:%d with %d processes", scheme, self.settings.host, http, len(self.roles))
            watching = asyncio.ensure_future(self._watchdog(supervisor, meter, clock).keep())
            await asked.wait()
            watching.cancel()
        finally:
            gauges.cancel()
            await supervisor.stop()

    async def _all_listen(self, supervisor: Supervisor, asked: asyncio.Event) -> bool:
        """Whether all workers came to listen before somebody asked for the end."""
        ready = asyncio.ensure_future(
            asyncio.wait({asyncio.ensure_future(supervisor.ready(r).wait()) for r in self.roles})
        )
        ends = [asyncio.ensure_future(event.wait()) for event in (asked, self.failed)]
        await asyncio.wait({ready, *ends}, return_when=asyncio.FIRST_COMPLETED)
        for one in (ready, *ends):
            one.cancel()
        if self.failed.is_set():
            raise Misconfigured("a process ended before it could answer; what it said stands above")
        return not asked.is_set()

    def _watchdog(self, supervisor: Supervisor, meter: Meter, clock: Clock) -> Watchdog:
        def pids() -> dict[str, int]:
            return {"supervisor": os.getpid()} | {role: supervisor.pid(role) for role in supervisor.restarts}

        bytes_max, share_max = self.settings.resident_bytes_max, self.settings.resident_share_max
        return Watchdog(pids, clock, meter, bytes_max, share_max, supervisor, self.roles)

    def _held(self, host: str, port: int, what: str) -> list[socket.socket]:
        """Hold a port, so that nobody else gets it: one that somebody listens on is not shared with him."""
        try:
            for one in _bound(_addresses(host, port), shared=False):
                one.close()
            held = _bound(_addresses(host, port), shared=True)
        except OSError as error:
            raise cannot_listen(host, port, what, error) from None
        for one in held:
            self.callback(one.close)
        return held


class _Place:
    """Where one worker after the other, for a moment two at once, do the same work."""

    def __init__(self, workers: Workers, number: int) -> None:
        self._workers, self._number, self.name = workers, number, f"serve-{number}"
        self._http: list[socket.socket] = []
        self._grpc: list[socket.socket] = []
        self._living: dict[int, _Worker] = {}

    def launch(self) -> Launch:
        """The next worker of this place."""
        workers = self._workers
        if not self._http:
            self._http = _bound([(one.family, one.getsockname()) for one in workers.http], shared=True)
            self._grpc = _bound([(one.family, one.getsockname()) for one in workers.grpc], shared=True)
        page = next(p for p in (self._number, self._number + workers.settings.workers) if p not in self._living)
        read, write = os.pipe()
        place = Place(
            number=self._number,
            of=workers.settings.workers,
            page=page,
            run=str(workers.run),
            http=tuple(one.fileno() for one in self._http),
            grpc=tuple(one.fileno() for one in self._grpc),
            ready=write,
            first=workers.first,
        )
        worker = self._living[page] = _Worker(self, workers, place, read)
        return worker

    def let_go(self) -> None:
        """Leave the sockets to the worker that has them: when it closes them, they are closed."""
        for one in (*self._http, *self._grpc):
            one.close()
        self._http, self._grpc = [], []

    def left(self, page: int, worker: _Worker) -> None:
        """A worker has gone."""
        if self._living.get(page) is worker:
            del self._living[page]
            if not self._living:
                self.let_go()


class _Worker(Launch):
    """A process that answers; it is ready when it says so in its pipe."""

    def __init__(self, home: _Place, workers: Workers, place: Place, read: int) -> None:
        told = msgspec.json.encode(place).decode()
        super().__init__([*workers.command, "--place", told], (*place.http, *place.grpc, place.ready))
        self._home, self._workers, self._place = home, workers, place
        self._read, self._write = read, place.ready

    def started(self) -> None:
        """It holds the other end of the pipe."""
        self._close_write()
        asyncio.get_running_loop().add_reader(self._read, self._heard)

    def leaving(self) -> None:
        """What waits in its sockets is its own from now on."""
        self._home.let_go()

    def ended(self) -> None:
        """It has gone."""
        if self._place.first and not self.ready.is_set():
            self._workers.failed.set()
        self._close_write()
        self._hang_up()
        self._home.left(self._place.page, self)

    def _heard(self) -> None:
        if os.read(self._read, 1):
            self.ready.set()
        self._hang_up()

    def _close_write(self) -> None:
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def _hang_up(self) -> None:
        if self._read >= 0:
            asyncio.get_running_loop().remove_reader(self._read)
            os.close(self._read)
            self._read = -1


Address = tuple[int, tuple[Any, ...]]


def _addresses(host: str, port: int) -> list[Address]:
    """(family, address) of every address of a host. OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((int(one[0]), tuple(one[4])) for one in found))


def _bound(addresses: Sequence[Address], shared: bool) -> list[socket.socket]:
    """A socket for each, bound and not listening, all of one port. `shared`: others of this user may bind it too, if
    theirs are shared as well. OSError."""
    made: list[socket.socket] = []
    try:
        for family, address in addresses:
            one = socket.socket(family, socket.SOCK_STREAM)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = made[0].getsockname()[1] if len(made) > 1 else address[1]
            one.bind((address[0], port, *address[2:]))
    except OSError:
        for one in made:
            one.close()
        raise
    return made
