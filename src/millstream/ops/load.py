"""Load generators as processes: started, given windows of load, and their books added up.

Rules of the room:
- The generators are no threads of this process: what measures must not disturb what is measured more than it has to.
- Several of them share one order by connections and rate; a window's books are the sum of theirs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import Error
from millstream.ops.generator import Order, Setup, Tally


def merge(tallies: Sequence[Tally]) -> Tally:
    """Windows that ran at the same time on one server, as one."""
    statuses: dict[int, int] = {}
    for tally in tallies:
        for status, count in tally.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    return Tally(
        seconds=max(tally.seconds for tally in tallies),
        scheduled=sum(tally.scheduled for tally in tallies),
        statuses=statuses,
        broken=sum(tally.broken for tally in tallies),
        unanswered=sum(tally.unanswered for tally in tallies),
        unsent=sum(tally.unsent for tally in tallies),
        in_time=sum(tally.in_time for tally in tallies),
        due=b"".join(tally.due for tally in tallies),
        took_ms=b"".join(tally.took_ms for tally in tallies),
        served_ms=b"".join(tally.served_ms for tally in tallies),
        lag_ms=max(tally.lag_ms for tally in tallies),
        cpu=max(tally.cpu for tally in tallies),
        cpu_all=sum(tally.cpu_all for tally in tallies),
        failure=next((tally.failure for tally in tallies if tally.failure), ""),
    )


def numbers(packed: bytes) -> NDArray[np.float32]:
    """The packed column of a tally."""
    return np.frombuffer(packed, "<f4")


class Load:
    """`processes` generators on one server, each with its share. `async with`, then `measure`."""

    def __init__(self, setup: Setup, processes: int = 1) -> None:
        self._setup, self._count = setup, processes
        self._processes: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Load:
        command = (sys.executable, "-m", "millstream.ops.generator")
        pipe = asyncio.subprocess.PIPE
        try:
            for _ in range(self._count):
                made = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
                self._processes.append(made)
                _write(made, self._setup)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
        self._processes.clear()

    async def measure(self, order: Order) -> Tally:
        """One window, over all generators together. Error when one of them failed or the server cannot be reached."""
        shares = _shares(order, self._count)
        for process, share in zip(self._processes, shares, strict=False):
            _write(process, share)
        tallies = await asyncio.gather(*(_read(process) for process, _ in zip(self._processes, shares, strict=False)))
        whole = merge(tallies)
        if whole.failure:
            raise Error(f"the load on {self._setup.host}:{self._setup.port} failed: {whole.failure}")
        return whole


def _shares(order: Order, count: int) -> list[Order]:
    """The order in `count` parts, or fewer where there are fewer connections."""
    count = min(count, order.connections)
    replace = msgspec.structs.replace
    return [
        replace(
            order,
            rate=order.rate / count,
            connections=order.connections // count + (at < order.connections % count),
            seed=order.seed * 1000 + at,
        )
        for at in range(count)
    ]


def _write(process: asyncio.subprocess.Process, message: Setup | Order) -> None:
    assert process.stdin
    frame = msgspec.msgpack.encode(message)
    process.stdin.write(len(frame).to_bytes(4, "big") + frame)


async def _read(process: asyncio.subprocess.Process) -> Tally:
    assert process.stdout
    try:
        length = int.from_bytes(await process.stdout.readexactly(4), "big")
        return msgspec.msgpack.decode(await process.stdout.readexactly(length), type=Tally)
    except asyncio.IncompleteReadError:
        raise Error(
            f"the load generator ended (exit code {await process.wait()}); its own lines above say why"
        ) from None
