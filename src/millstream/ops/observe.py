"""What a server and its machine did while a window of load ran, and which of it was the limit.

Rules of the room:
- The figures come from /proc and from the server's own /metrics; nothing is asked of the server inside a window.
- The thread that carries the process's id is the event loop's; the other threads, and child processes, compute.
- A limit is named only with the figure that shows it; where nothing was busy, that is what is said.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from millstream import machine
from millstream.machine import PROC, Gpu
from millstream.ops.generator import Tally

BUSY = 0.85
FULL = 0.95
STARVED = 0.1
MEMORY_LEFT = 0.05
COMPUTES = 0.5
TIMEOUT_S = 60.0
GPU_EVERY_S = 0.1
_SERIES = re.compile(r"^millstream_(queue|compute)_seconds_(sum|count){([^}]*)} (\S+)$", re.M)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One window as the server and the machine had it.

    In cores (1.0 is one of them all the time): `loop`: the event loop's thread; `waited`: what it wanted and did not
    get; `workers`: the server's other threads and processes; `client`: the busiest generator, `clients`: all of them.
    `machine`: all cores together, 0 to 1. `computing`: calls of the model under way on average; `queue_ms`,
    `compute_ms`: mean of a request's wait and of a call. None: not told here.
    """

    seconds: float
    cores: int
    loop: float | None = None
    workers: float | None = None
    waited: float = 0.0
    machine: float | None = None
    client: float = 0.0
    clients: float = 0.0
    lag_ms: float = 0.0
    computing: float = 0.0
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    requests_a_call: float = 0.0
    memory_mb: float | None = None
    memory_left: float | None = None
    gpu: float | None = None
    power_w: float | None = None

    @property
    def server_cores(self) -> float:
        """What the server used; 0 where it is not told."""
        return (self.loop or 0.0) + (self.workers or 0.0)

    @property
    def others(self) -> float:
        """Cores that went to neither server nor generators; 0 where it is not told."""
        return max(0.0, (self.machine or 0.0) * self.cores - self.server_cores - self.clients)


class Limit(msgspec.Struct, frozen=True):
    """What keeps the rate from being higher, the figure that shows it, and what changes it."""

    what: str
    figure: str
    change: str


class _Point(NamedTuple):
    at: float
    loop: float | None
    workers: float
    waited: float
    series: dict[tuple[str, str], float]


class Observer:
    """Watches the server `pid`, which serves `model` on `port` of this machine."""

    def __init__(self, pid: int, port: int, model: str, proc: Path = PROC) -> None:
        self._pid, self._port, self._proc = pid, port, proc
        self._label = f'model="{model}"'
        self._gpus, self._power, self._cpu = machine.Gpus(), machine.Power(), machine.Cpu(proc)

    async def during(self, window: Coroutine[None, None, Tally]) -> tuple[Tally, Seen]:
        """Run a window and see what it did."""
        before = await asyncio.to_thread(self._point)
        self._cpu.read()
        self._power.read()
        running = asyncio.ensure_future(window)
        cards = await self._cards(running)
        tally = await running
        busy, zones = self._cpu.read(), self._power.read()
        after = await asyncio.to_thread(self._point)
        watts = [zone.watts for zone in zones if zone.zone.count(":") == 1]
        watts += [card.power_w for card in cards if card.power_w is not None]
        return tally, self._seen(before, after, tally, busy, cards, sum(watts) if watts else None)

    async def _cards(self, running: asyncio.Future[Tally]) -> list[Gpu]:
        """The GPUs while the window ran, each as it was busiest: the driver tells means of the last second at most."""
        busiest = self._gpus.read()
        while busiest:
            await asyncio.wait({running}, timeout=GPU_EVERY_S)
            if running.done():
                break
            now = await asyncio.to_thread(self._gpus.read)
            busiest = [max(pair, key=lambda one: one.utilization or 0.0) for pair in zip(now, busiest, strict=True)]
        return busiest

    def _point(self) -> _Point:
        loop, whole = _cpu_s(self._pid, self._proc)
        waited = _waited_s(self._pid, self._proc)
        return _Point(time.perf_counter(), loop, whole - (loop or 0.0), waited, self._series())

    def _series(self) -> dict[tuple[str, str], float]:
        """Sums and counts of the model's queue and compute times, over its versions."""
        text = ask(self._port, "GET", "/metrics")[1].decode()
        found: dict[tuple[str, str], float] = {}
        for phase, kind, labels, value in _SERIES.findall(text):
            if self._label in labels.split(","):
                found[phase, kind] = found.get((phase, kind), 0.0) + float(value)
        return found

    def _seen(
        self, before: _Point, after: _Point, tally: Tally, busy: float | None, cards: list[Gpu], watts: float | None
    ) -> Seen:
        seconds = after.at - before.at
        spent = {key: value - before.series.get(key, 0.0) for key, value in after.series.items()}
        calls, requests = spent.get(("compute", "count"), 0.0), spent.get(("queue", "count"), 0.0)
        memory, resident = machine.memory(self._proc), machine.resident(self._pid, self._proc)
        used = [card.utilization for card in cards if card.utilization is not None]
        return Seen(
            seconds=seconds,
            cores=machine.cores(),
            loop=None if before.loop is None or after.loop is None else (after.loop - before.loop) / seconds,
            workers=None if before.loop is None else max(0.0, after.workers - before.workers) / seconds,
            waited=(after.waited - before.waited) / seconds,
            machine=busy,
            client=tally.cpu,
            clients=tally.cpu_all,
            lag_ms=tally.lag_ms,
            computing=spent.get(("compute", "sum"), 0.0) / seconds,
            queue_ms=spent.get(("queue", "sum"), 0.0) / max(1.0, requests) * 1e3,
            compute_ms=spent.get(("compute", "sum"), 0.0) / max(1.0, calls) * 1e3,
            requests_a_call=requests / max(1.0, calls),
            memory_mb=None if resident is None else resident / 1e6,
            memory_left=None if memory is None else memory[0] / memory[1],
            gpu=max(used, default=None),
            power_w=watts,
        )


def limit(seen: Seen, goal_ms: float, instances: int) -> Limit:
    """What kept a rate beyond the one that was held from being held. `instances`: calls that can run at once."""
    loop, workers = seen.loop or 0.0, seen.workers or 0.0
    inline = seen.computing > COMPUTES * loop and workers < COMPUTES * seen.computing
    if seen.memory_left is not None and seen.memory_left < MEMORY_LEFT:
        figure = f"{seen.memory_left:.0%} of the machine's memory was left; the server had {seen.memory_mb or 0:.0f} MB"
        return Limit("memory", figure, "a machine with more memory, fewer models on it, or a smaller model")
    if seen.gpu is not None and seen.gpu >= BUSY:
        figure = f"the GPU computed {seen.gpu:.0%} of the time"
        return Limit("the GPU", figure, "a smaller or quantised model, more rows a call, or another GPU")
    if not inline and seen.computing >= BUSY * instances:
        figure = (
            f"{seen.computing:.2f} of {instances} instances computed on average; a call takes {seen.compute_ms:.2f} ms "
            f"for {seen.requests_a_call:.1f} requests, which waited {seen.queue_ms:.2f} ms; it used {workers:.2f} cores"
        )
        return Limit("the model's compute", figure, "more cores and instances, or a smaller or quantised model")
    if loop >= BUSY:
        figure = f"the event loop's thread used {loop:.0%} of its core"
        if inline:
            figure += f", {seen.computing / loop:.0%} of it in the model, which is quick enough to run there"
            return Limit("the model's compute", figure, "a smaller or quantised model, or more machines")
        return Limit("the event loop", figure, "more rows a request, or more machines; more cores change little")
    if (seen.waited >= STARVED and loop + seen.waited >= BUSY) or (seen.machine or 0.0) >= FULL:
        figure = (
            f"all {seen.cores} cores were {seen.machine or 1.0:.0%} busy: the event loop {loop:.2f}, computing "
            f"{workers:.2f}, the load generator {seen.clients:.2f}, other programs {seen.others:.2f}; the event loop "
            f"waited {seen.waited:.0%} of the time for a core"
        )
        return Limit(
            "the machine's cores",
            figure,
            "more cores; without load generator and other programs this machine holds more",
        )
    if seen.client >= BUSY or seen.lag_ms > goal_ms / 2:
        figure = f"the load generator used {seen.client:.0%} of a core and was {seen.lag_ms:.2f} ms late itself (p99)"
        return Limit("the client", figure, "the server can do more: give the generator more cores, or more time")
    if seen.loop is None:
        return Limit("unknown", "this system has no /proc to read CPU times from", "run it on Linux to know")
    figure = (
        f"nothing was busy (event loop {loop:.0%} of a core, computing {workers:.2f} cores): requests waited "
        f"{seen.queue_ms:.2f} ms and a call took {seen.compute_ms:.2f} ms on average"
    )
    return Limit("latency", figure, "a quicker model, a shorter batching delay, or a goal that leaves more room")


def ask(port: int, method: str, path: str, whole: bytes = b"") -> tuple[int, bytes]:
    """(status, body) of one request to a port of this machine. `whole`: its head and body, as they go over the wire."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        if whole:
            connection.connect()
            connection.sock.sendall(whole)
            answer = http.client.HTTPResponse(connection.sock, method=method)
            answer.begin()
        else:
            connection.request(method, path)
            answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _cpu_s(pid: int, proc: Path) -> tuple[float | None, float]:
    """Seconds of CPU of the process's first thread, and of all threads of it and of the processes below it."""
    first, total = None, 0.0
    for one in _tree(pid, proc):
        for task in (proc / str(one) / "task").glob("[0-9]*"):
            try:
                fields = (task / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            total += spent
            if task.name == str(pid):
                first = spent
    return first, total


def _tree(pid: int, proc: Path) -> list[int]:
    """A process and those below it."""
    found = [pid]
    for one in found:
        for task in (proc / str(one) / "task").glob("[0-9]*"):
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def _waited_s(pid: int, proc: Path) -> float:
    """Seconds that the process's first thread could run and no core was free; 0 where the kernel does not say."""
    try:
        return int((proc / str(pid) / "task" / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
