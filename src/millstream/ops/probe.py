"""A server started for measuring, and the windows of load that are run on it.

Rules of the room:
- The server is `millstream serve` as anybody would start it, in a process of its own, and is ended again.
- Requests go to the model as its V2 metadata describes it; a body that it refuses ends the measuring, with its reason.
- The overload is a crowd: more connections, and requests on each that do not wait for the answer before them.
"""

from __future__ import annotations

import asyncio
import re
import resource
import statistics
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np

from millstream import errors
from millstream.ops.body import Bodies
from millstream.ops.generator import SCHEDULED_MAX, Order, Tally
from millstream.ops.load import Load, numbers
from millstream.ops.observe import BUSY, Observer, Seen, ask
from millstream.ops.search import Found, Tried, judge, ms
from millstream.types import TensorSpec

REQUESTS_MIN = 200  # of a window, so that its p99 means something
LONGEST = 10  # a window of a slow model is longer, by so much at most
WARM_S = 0.3
FACTOR = 10.0
REACHED = 2.0  # less than this many times the rate is no overload
CROWD, PIPELINE = 1024, 16
OPEN_BYTES_MAX = 128 << 20
GOODPUT = 0.9
RECOVERED = 0.9
START_S, END_S = 300.0, 30.0
LINES = 50
_SERVING = re.compile(r"serving at http://[^ ]*:(\d+)")


class Overload(msgspec.Struct, frozen=True, kw_only=True):
    """Ten times the rate found. `factor`: how many times it really was, as sent; `goodput`: 200s a second in the second
    half of the window; `share`: of the peak; `p99_ms`: of the answered, from when they were sent; `refused`: status ->
    count; `broken`: without any answer. `recovers`: right after, nine tenths of the rate found hold.

    `verdict`: "sheds" (goodput stays, the rest is refused), "queues" (goodput stays, nothing is refused), "collapses",
    or "not told" when the generator could not overload the server, or took cores that the server needed.
    """

    factor: float
    verdict: str
    why: str
    goodput: float
    share: float
    p99_ms: float
    refused: dict[str, int]
    broken: int
    recovers: bool


class Metadata(msgspec.Struct):
    """A model as `GET /v2/models/MODEL` describes it."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[int, int]]:
    """(process id, port) of a server of `path`; it is ended on the way out. One that does not start: Misconfigured."""
    command = (sys.executable, "-m", "millstream", "serve", str(path), "--http-port", "0")
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    said: deque[str] = deque(maxlen=LINES)
    drain: asyncio.Task[None] | None = None
    try:
        try:
            port = await asyncio.wait_for(_started(process, said), START_S)
        except TimeoutError:
            raise errors.Misconfigured(f"the server of {path} did not start within {START_S:.0f} s") from None
        drain = asyncio.create_task(_drain(process, said))
        yield process.pid, port
        if process.returncode is not None:
            raise errors.Error(f"the server of {path} ended by itself: {' '.join(said)}")
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), END_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        if drain is not None:
            await drain


async def _started(process: asyncio.subprocess.Process, said: deque[str]) -> int:
    assert process.stderr
    while line := (await process.stderr.readline()).decode(errors="replace").strip():
        said.append(line)
        if found := _SERVING.search(line):
            return int(found[1])
    why = said[-1].removeprefix("millstream: ") if said else "it said nothing"
    raise errors.Misconfigured(f"the server did not start: {why}")


async def _drain(process: asyncio.subprocess.Process, said: deque[str]) -> None:
    assert process.stderr
    while line := await process.stderr.readline():
        said.append(line.decode(errors="replace").strip())


def metadata(port: int, model: str) -> Metadata:
    """What the server says of a model that answers; BadInput with its own words when it does not."""
    status, body = ask(port, "GET", f"/v2/models/{quote(model)}")
    if status != 200:
        raise errors.BadInput(f"the server says of {model}: {_sentence(body)}")
    return msgspec.json.decode(body, type=Metadata)


def taken(port: int, model: str, offers: Iterable[Bodies], has_example: bool) -> Bodies:
    """The first of the offered requests that the model answers; BadInput with its reason when it refuses them all."""
    why = ""
    for bodies in offers:
        status, body = ask(port, "POST", "", bodies.requests[0])
        if status == 200:
            return bodies
        why = why or f"{status}: {_sentence(body)}"
    if has_example:
        raise errors.BadInput(f"{model} refuses the example of its own model.toml ({why})")
    raise errors.BadInput(
        f"{model} refuses requests made of guessed values ({why}); put it with an `example` in its model.toml, "
        "input name -> rows"
    )


def _sentence(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


class Probe:
    """Windows of load on one model, judged by `goal_ms`. What was seen in each is kept, by rate (0: nobody paused)."""

    def __init__(
        self,
        load: Load,
        observer: Observer,
        goal_ms: float,
        connections: int,
        seconds: float,
        progress: Callable[[str], None],
    ) -> None:
        self._load, self._observer, self._progress = load, observer, progress
        self._goal_ms, self._connections, self._seconds = goal_ms, connections, seconds
        self._seed = 0
        self.saw: list[tuple[float, Seen]] = []

    async def alone_ms(self) -> float:
        """The median of one connection, which sends when its last answer is there; after a warm-up."""
        await self._load.measure(Order(rate=0.0, seconds=WARM_S, connections=self._connections))
        tally = await self._load.measure(Order(rate=0.0, seconds=min(1.0, self._seconds), connections=1, grace_s=30.0))
        if tally.statuses.keys() != {200}:
            raise errors.Error(f"one connection alone is not always answered: {_told(tally)}")
        found = float(np.median(numbers(tally.took_ms)))
        self._progress(f"one connection alone: {ms(found)}")
        return found

    async def peak(self) -> float:
        """Answers a second when `connections` never pause."""
        tally, _ = await self._run(Order(rate=0.0, seconds=self._seconds, connections=self._connections, grace_s=30.0))
        if not tally.in_time:
            raise errors.Error(f"{self._connections} connections at once got no answer ({_told(tally)}); try fewer")
        found = tally.in_time / tally.seconds
        self._progress(f"{self._connections} connections that never pause: {found:.0f} answers a second")
        return found

    async def attempt(self, rate: float) -> Tried:
        """A window at a fixed rate."""
        seconds = min(max(self._seconds, REQUESTS_MIN / rate), LONGEST * self._seconds)
        order = Order(rate=rate, seconds=seconds, connections=self._connections, grace_s=self._grace_s())
        tally, _ = await self._run(order)
        found = judge(order, tally, self._goal_ms)
        errors = f", {found.errors} refused or cut off" if found.errors else ""
        errors += f", {found.late} without an answer in time" if found.late else ""
        held = "held" if found.held else "not held"
        self._progress(f"{rate:.0f} requests/s: p50 {ms(found.p50_ms)}, p99 {ms(found.p99_ms)}{errors}: {held}")
        return found

    async def overload(self, found: Found, peak: float, request_bytes: int) -> Overload:
        """Ten times the rate found (of the peak, where none was), as far as the generator can send it."""
        rate = found.rate or peak
        seconds = 2 * self._seconds
        crowd = max(self._connections, min(CROWD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        order = Order(
            rate=min(FACTOR * rate, SCHEDULED_MAX / seconds),
            seconds=seconds,
            connections=crowd,
            pipeline=max(1, min(PIPELINE, OPEN_BYTES_MAX // (crowd * request_bytes))),
            grace_s=self._grace_s(),
        )
        tally, seen = await self._run(order)
        again = await self.attempt(found.rate * RECOVERED) if found.rate else None
        if again is not None and not again.held:
            again = await self.attempt(found.rate * RECOVERED)
        cpu = seen.server_cores / max(1e-9, self.seen_at(0.0).server_cores) if seen.loop is not None else 1.0
        return overloaded(order, tally, seen, rate, peak, min(1.0, cpu), again is None or again.held)

    def others(self) -> float:
        """Cores that other programs used, in the middle of all windows."""
        return statistics.median(seen.others for _, seen in self.saw)

    def seen_at(self, rate: float) -> Seen:
        """What was seen at a rate that was tried, the last time."""
        return next(seen for tried, seen in reversed(self.saw) if tried == rate)

    async def _run(self, order: Order) -> tuple[Tally, Seen]:
        self._seed += 1
        tally, seen = await self._observer.during(self._load.measure(msgspec.structs.replace(order, seed=self._seed)))
        self.saw.append((order.rate, seen))
        return tally, seen

    def _grace_s(self) -> float:
        return max(1.0, 2 * self._goal_ms / 1e3)


def _told(tally: Tally) -> str:
    """What came in place of answers."""
    wrong = [f"{count} times {status}" for status, count in sorted(tally.statuses.items()) if status != 200]
    ended = [f"{tally.broken} ended connections"] if tally.broken else []
    return ", ".join(wrong + ended) or "nothing within the window: try a longer one"


def overloaded(
    order: Order, tally: Tally, seen: Seen, rate: float, peak: float, cpu: float, recovers: bool
) -> Overload:
    """What a window far above `rate` says. `cpu`: the server's CPU in it, as a share of what it had at the peak."""
    answered = numbers(tally.due) + numbers(tally.took_ms) / 1e3
    half = order.seconds / 2
    goodput = float(((answered >= half) & (answered <= order.seconds)).sum()) / half
    served = numbers(tally.served_ms)
    factor = (tally.scheduled - tally.unsent) / order.seconds / rate
    refused = {status: count for status, count in tally.statuses.items() if status != 200}
    if goodput < GOODPUT * peak and goodput >= GOODPUT * peak * cpu:
        verdict, why = "not told", f"beside the generator the server got {cpu:.0%} of the CPU that it had at the peak"
    elif goodput < GOODPUT * peak:
        verdict = "collapses"
        why = (
            f"fewer than {GOODPUT:.0%} of the peak's answers are given, by {seen.loop or 0:.2f} cores for the event "
            f"loop (which waited {seen.waited:.0%} of the time for one) and {seen.workers or 0:.2f} for computing"
        )
    elif factor < REACHED and seen.client >= BUSY:
        verdict, why = "not told", f"the generator could send {factor:.1f} times the rate only"
    else:
        verdict, why = ("sheds", "what it cannot answer is refused") if refused else ("queues", QUEUES)
    return Overload(
        factor=factor,
        verdict=verdict,
        why=why,
        goodput=goodput,
        share=goodput / peak,
        p99_ms=float(np.quantile(served, 0.99)) if len(served) else 0.0,
        refused={str(status): count for status, count in sorted(refused.items())},
        broken=tally.broken,
        recovers=recovers,
    )


QUEUES = "nothing is refused, everybody waits: a smaller `queue_rows_max` or a `timeout_ms` in its model.toml bounds it"
