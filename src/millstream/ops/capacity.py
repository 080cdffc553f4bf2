"""How many requests a second this machine answers at a stated p99, what limits it, and what that means in machines.

Rules of the room:
- Every number is measured here and now, over the whole way: HTTP, queue, model, answer; the load is made on the same
  machine, and what it took away is said.
- What could not be told is said to be so: a limit, a verdict and a gauge are never guessed.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import msgspec

from millstream import errors
from millstream.machine import cores
from millstream.models.repository import Repository
from millstream.ops.body import candidates
from millstream.ops.generator import Setup
from millstream.ops.load import Load
from millstream.ops.observe import Limit, Observer, Seen, limit
from millstream.ops.probe import Overload, Probe, metadata, serving, taken
from millstream.ops.search import Found, Tried, search

HEADROOM, SPARE = 0.7, 1
DAY_S = 86400.0
GENERATORS_MAX = 4


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """Machines for a day's requests: ceil(peak / (rate * headroom)) + spare. Costs are in the unit of the hour's price.

    `answers_per_day`: of one machine that is kept at `headroom` all day; `full_cost_per_million`: what they cost then.
    With `requests_per_day` 0 there are no `machines`, and only these two are of use.
    """

    requests_per_day: float
    average: float
    peak_factor: float
    peak: float
    rate: float
    headroom: float
    spare: int
    machines: int
    machine_cost_per_hour: float
    cost_per_day: float
    cost_per_million: float
    answers_per_day: float
    full_cost_per_million: float


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What `millstream capacity` found. Rates are requests a second of `rows` rows each; `rate` 0: the goal is out of
    reach. `p50_ms`, `p99_ms`: medians of the windows at `rate`; `p99_worst_ms`: the worst of them. `alone_ms`: the
    median of one connection; `peak`: answers a second when `connections` never pause; `cpu_us`, `joules`: of the server
    and of the machine, an answer, at `rate`. `others`: cores that other programs used meanwhile; `seen`: the
    window that the limit was read from."""

    model: str
    version: str
    rows: int
    source: str
    goal_ms: float
    rate: float
    p50_ms: float
    p99_ms: float
    p99_worst_ms: float
    alone_ms: float
    connections: int
    peak: float
    cpu_us: float | None
    joules: float | None
    limit: Limit
    overload: Overload
    fleet: Fleet | None
    others: float
    seen: Seen
    tried: list[Tried]


async def capacity(
    path: Path,
    *,
    p99_ms: float,
    model: str = "",
    rows: int = 1,
    connections: int = 64,
    requests_per_day: float = 0,
    machine_cost_per_hour: float = 0,
    peak_factor: float = 3.0,
    seconds: float = 2.0,
    progress: Callable[[str], None],
) -> Capacity:
    """Serve `path` and find the highest rate of one model (to be named where there are several) that keeps `p99_ms`.

    `rows` a request, at most `connections` at once, windows of `seconds`, longer for slow models. BadInput: no such
    model, or it refuses the requests; Misconfigured: it cannot be served.
    """
    if not (p99_ms > 0 and rows > 0 and connections > 0 and seconds > 0 and peak_factor >= 1):
        raise errors.BadInput("capacity wants p99_ms, rows, connections and seconds above 0, and a peak factor from 1")
    repository = Repository.open(path)
    name = _choose(repository, path, model)
    progress(f"starting a server for {name}")
    async with serving(path) as (pid, port):
        described = await asyncio.to_thread(metadata, port, name)
        manifest = repository.manifest(name, repository.policy(name).live)
        offers = candidates(name, described.inputs, manifest, rows)
        bodies = await asyncio.to_thread(taken, port, name, offers, bool(manifest.example))
        progress(f"requests with {bodies.rows} row(s), {len(bodies.requests[0])} bytes each: {bodies.source}")
        generators = max(1, min(GENERATORS_MAX, cores() // 4))
        async with Load(Setup("127.0.0.1", port, bodies.requests), generators) as load:
            probe = Probe(load, Observer(pid, port, name), p99_ms, connections, seconds, progress)
            alone_ms = await probe.alone_ms()
            peak = await probe.peak()
            found = Found(rate=0.0, windows=[], above=None, tried=[])
            if alone_ms <= p99_ms:
                found = await search(probe.attempt, peak)
            seen, at_rate = probe.seen_at(found.above.rate if found.above else found.rate), probe.seen_at(found.rate)
            progress("ten times as many requests")
            overload = await probe.overload(found, peak, len(bodies.requests[0]))
    limited = limit(seen, p99_ms, manifest.batching.instances or max(1, cores() - 1))
    if alone_ms > p99_ms:
        figure = f"one request alone takes {alone_ms:.3g} ms, the goal is {p99_ms:.3g} ms"
        limited = Limit("the model's latency", figure, "a quicker model, fewer rows a request, or another goal")
    windows = found.windows
    return Capacity(
        model=name,
        version=", ".join(described.versions),
        rows=bodies.rows,
        source=bodies.source,
        goal_ms=p99_ms,
        rate=found.rate,
        p50_ms=statistics.median(one.p50_ms for one in windows) if windows else 0.0,
        p99_ms=statistics.median(one.p99_ms for one in windows) if windows else 0.0,
        p99_worst_ms=max((one.p99_ms for one in windows), default=0.0),
        alone_ms=alone_ms,
        connections=connections,
        peak=peak,
        cpu_us=at_rate.server_cores / found.rate * 1e6 if found.rate and at_rate.loop is not None else None,
        joules=at_rate.power_w / found.rate if found.rate and at_rate.power_w is not None else None,
        limit=limited,
        overload=overload,
        fleet=fleet(found.rate, requests_per_day, peak_factor, machine_cost_per_hour),
        others=probe.others(),
        seen=seen,
        tried=found.tried,
    )


def fleet(rate: float, requests_per_day: float, peak_factor: float, machine_cost_per_hour: float) -> Fleet | None:
    """The arithmetic of machines and cost, for machines that hold `rate`; None when that is 0."""
    if rate <= 0:
        return None
    average = requests_per_day / DAY_S
    peak = average * peak_factor
    machines = math.ceil(peak / (rate * HEADROOM)) + SPARE if requests_per_day > 0 else 0
    cost = machines * machine_cost_per_hour * 24
    answers = rate * HEADROOM * DAY_S
    return Fleet(
        requests_per_day=requests_per_day,
        average=average,
        peak_factor=peak_factor,
        peak=peak,
        rate=rate,
        headroom=HEADROOM,
        spare=SPARE,
        machines=machines,
        machine_cost_per_hour=machine_cost_per_hour,
        cost_per_day=cost,
        cost_per_million=cost / requests_per_day * 1e6 if requests_per_day > 0 else 0.0,
        answers_per_day=answers,
        full_cost_per_million=machine_cost_per_hour * 24 / answers * 1e6,
    )


def _choose(repository: Repository, path: Path, model: str) -> str:
    models = repository.models()
    if model in models:
        return model
    listed = ", ".join(models)
    if model:
        raise errors.BadInput(f"no model {model!r} in {path}; there are: {listed}")
    if len(models) > 1:
        raise errors.BadInput(f"{path} holds several models; say which with --model: {listed}")
    return models[0]
