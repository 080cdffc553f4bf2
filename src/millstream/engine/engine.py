"""The one door to models: route, check, queue, batch, compute, answer.

Rules of the room:
- One event loop's thread owns everything here; only `execute` (workers) and `_prepare` (the loader) run elsewhere.
- Batching has no timers: a free instance takes whatever waits. A quick model runs on the loop itself.
- A version answers only after it was verified, admitted, loaded and run on its example, off the loop (watch.py). Then
  one pointer changes; requests that wait on the old version are still answered by it, and it is freed when nothing
  refers to it.
- Every answer comes from exactly one `version@delta`.

The life of a request: 1 submit: route, check, append to a lane; 2 pump, once a pass of the loop: take a batch, run it
here or hand it to a worker; 3 settle: give every caller its rows, copy to shadows; 4 pump again if any wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

import msgspec

from millstream import errors
from millstream.clock import Clock
from millstream.engine.batch import Answer, Batch, Copy, Lane
from millstream.engine.watch import ModelView, Watch
from millstream.engine.worker import Workers, execute, warm
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.model import Model, load
from millstream.models.repository import Repository
from millstream.types import Array, Delta, Description, Output, Request, Shadow

log = logging.getLogger(__name__)

DECIDE_S = 1.0
SMOOTHING = 0.1


class EngineLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much the engine takes on at once."""

    rows_max: Annotated[
        int, msgspec.Meta(ge=1, le=65536, description="most rows in one call of a model that does not say itself")
    ] = 128
    queue_rows_max: Annotated[
        int, msgspec.Meta(ge=1, le=1_000_000, description="most rows that wait for one version; more are refused (503)")
    ] = 8192
    instances: Annotated[
        int, msgspec.Meta(ge=0, le=1024, description="batches computed at once in threads; 0: one less than the cores")
    ] = 0
    inline_us_max: Annotated[
        int, msgspec.Meta(ge=0, le=10_000, description="models with quicker batches run on the loop, microseconds")
    ] = 150
    poll_s: Annotated[
        float, msgspec.Meta(ge=0.001, le=60, description="between two looks at policies and versions, seconds")
    ] = 0.2


class Engine:
    """Serves every model of a repository. Use from one event loop, between `start` and `stop`.

    `admit(model, manifest)` refuses a version by raising. `shadow` gets what a shadow version answered.
    `on_load(model, version)` comes before a version's first request: the moment to apply the deltas it has missed.
    `on_first_answer(model, version, sequence)` follows the first answer computed after a delta (the last, when several
    were applied in between). `load` makes a version from its files. `admit` and `load` run in the loader's thread, the
    others on the loop.
    """

    def __init__(
        self,
        repository: Repository,
        clock: Clock,
        meter: Meter,
        limits: EngineLimits | None = None,
        admit: Callable[[str, Manifest], None] | None = None,
        shadow: Callable[[Shadow], None] | None = None,
        on_load: Callable[[str, str], None] | None = None,
        on_first_answer: Callable[[str, str, int], None] | None = None,
        load: Callable[[Repository, str, str], Model] = load,
    ) -> None:
        self._repository, self._clock = repository, clock
        self._limits = limits or EngineLimits()
        self._admit, self._shadow = admit, shadow
        self._on_first_answer, self._load_model = on_first_answer, load
        self._inline_s = self._limits.inline_us_max / 1e6
        self._ready: deque[Lane] = deque()
        self._copying: deque[Lane] = deque()
        self._scheduled = False
        self._closing = False
        self._free = self._limits.instances or max(1, _cores() - 1)
        self._running = 0
        self._shadow_free = True
        self._drained: asyncio.Future[None] | None = None
        self._watch = Watch(repository, meter, self._prepare, on_load)
        self._served = self._watch.served

    async def start(self) -> None:
        """Load and warm what the policies name, then watch. A bad model stops no other: see `ready` and `views`."""
        self._loop = asyncio.get_running_loop()
        self._workers = Workers(self._free, "millstream-worker", self._loop, self._finished)
        self._shadow_worker = Workers(1, "millstream-shadow", self._loop, self._shadowed)
        await self.refresh()
        self._watching = asyncio.create_task(self._keep_watching())

    async def stop(self) -> None:
        """Refuse what comes, answer everything that waits, end the threads. Shadow work that waits is dropped."""
        self._closing = True
        self._watching.cancel()
        self._watch.stop()
        for lane in self._copying:
            lane.numbers.lost.add(len(lane.copies))
            lane.copies.clear()
        self._copying.clear()
        if not self._idle():
            self._drained = self._loop.create_future()
            await self._drained
        for workers in (self._workers, self._shadow_worker):
            await self._loop.run_in_executor(None, workers.stop)

    # The hot path.

    def submit(self, request: Request) -> asyncio.Future[Output]:
        """The future of this request's answer; cancelling it gives its place in the queue up.

        Raises at once what can be told at once: NotFound, BadInput, TooLarge, Busy. The future holds BadInput for
        values that are refused (NaN, infinity, an index outside a table) and Error when the model failed.
        """
        served = self._served.get(request.model)
        if served is None or served.route is None or self._closing:
            raise self._not_here(request.model)
        route = served.route
        arm = route.live if route.plain and not request.version else route.choose(request)
        lane = arm.lane
        tails = lane.check(request)
        rows = lane.rows_waiting + request.rows
        if rows > self._limits.queue_rows_max:
            raise self._too_many(lane, request)
        answer = Answer(loop=self._loop)
        answer.request, answer.arm, answer.tails, answer.at = request, arm, tails, time.perf_counter()
        lane.waiting.append(answer)
        lane.rows_waiting = rows
        if not lane.listed:
            lane.listed = True
            self._ready.append(lane)
        if not self._scheduled:  # after all sockets that are ready in this pass of the loop were read
            self._scheduled = True
            self._loop.call_soon(self._pump)
        return answer

    def _pump(self) -> None:
        """Start every batch that can start, lanes in turn."""
        self._scheduled = False
        ready, passed = self._ready, 0
        while passed < len(ready):
            lane = ready.popleft()
            if not lane.waiting or lane.held:
                lane.listed = False
                continue
            if lane.inline and lane.rows_waiting <= lane.rows_max:
                batch = Batch(lane, lane.take())
                execute(batch)
                self._settle(batch)
            elif self._free:
                self._free -= 1
                self._running += 1
                lane.running += 1
                self._workers.start(Batch(lane, lane.take()))
            else:
                passed += 1
            if lane.waiting:
                ready.append(lane)
            else:
                lane.listed = False
        if self._copying and not ready and self._shadow_free:
            self._start_copies()
        if self._drained and self._idle() and not self._drained.done():
            self._drained.set_result(None)

    def _idle(self) -> bool:
        return not (self._ready or self._running) and self._shadow_free

    def _finished(self, batch: Batch[Answer]) -> None:
        self._free += 1
        self._running -= 1
        self._settle(batch)
        self._left(batch.lane)
        self._pump()

    def _left(self, lane: Lane) -> None:
        """A batch of this lane has ended: the deltas that waited for it go in."""
        lane.running -= 1
        if lane.held and not lane.running:
            try:
                lane.apply_held()
            except Exception as error:
                self._failed(lane, error)
            if lane.waiting and not lane.listed:
                lane.listed = True
                self._ready.append(lane)

    def _settle(self, batch: Batch[Answer]) -> None:
        """Give every caller its rows."""
        lane, started, name = batch.lane, batch.started, batch.name
        numbers = lane.numbers
        observe = numbers.queue.observe
        rows = answered = 0
        for answer, result in zip(batch.items, batch.results, strict=True):
            request, arm = answer.request, answer.arm
            rows += request.rows
            observe(started - answer.at)
            if not isinstance(result, dict):
                numbers.failures.add()
                self._failed(lane, result)
                if not answer.done():
                    answer.set_exception(result)
                continue
            answered += 1
            if answer.done():
                continue
            if request.outputs:
                result = {wanted: result[wanted] for wanted in request.outputs}
            answer.set_result(Output(result, lane.model, name, arm.policy, arm.name))
            if arm.shadows:
                self._copy(request, arm.shadows)
        numbers.requests.add(len(batch.items))
        numbers.rows.add(rows)
        numbers.batches.add()
        numbers.compute.observe(batch.wall)
        lane.cost += SMOOTHING * (batch.cpu - lane.cost)
        lane.fastest = min(lane.fastest, batch.wall)
        if lane.inline and lane.cost > self._inline_s:
            lane.inline = False
        if batch.sequence > lane.answered and answered:
            lane.answered = batch.sequence
            if self._on_first_answer:
                self._loop.call_soon(self._on_first_answer, lane.model, lane.version, batch.sequence)

    def _failed(self, lane: Lane, error: Exception) -> None:
        """Remember, and log once, what is not a caller's mistake."""
        if isinstance(error, errors.Error) and error.status < 500:
            return
        if str(error) != lane.last_error:
            lane.last_error = str(error)
            log.error("%s", error, exc_info=error)

    # Shadows: the same inputs again, when nobody waits.

    def _copy(self, request: Request, shadows: tuple[Lane, ...]) -> None:
        for lane in shadows:
            if lane.copy_rows + request.rows > self._limits.queue_rows_max or self._closing:
                lane.numbers.lost.add()
                continue
            try:
                lane.check(request)
            except errors.Error:  # the shadow takes other inputs than the version that answered
                lane.numbers.lost.add()
                continue
            if not lane.copies:
                self._copying.append(lane)
            lane.copies.append(Copy(request))
            lane.copy_rows += request.rows

    def _start_copies(self) -> None:
        lane = self._copying.popleft()
        if lane.held:
            self._copying.append(lane)
            return
        batch = Batch(lane, lane.take_copies())
        if lane.copies:
            self._copying.append(lane)
        self._shadow_free = False
        lane.running += 1
        self._shadow_worker.start(batch)

    def _shadowed(self, batch: Batch[Copy]) -> None:
        lane = batch.lane
        self._shadow_free = True
        for copy, result in zip(batch.items, batch.results, strict=True):
            scores = _scores(result) if isinstance(result, dict) else None
            if scores is None:
                lane.numbers.lost.add()
                continue
            lane.numbers.copies.add()
            if self._shadow:
                shadow = Shadow(request=copy.request.id, model=lane.model, version=batch.name, scores=scores)
                self._loop.call_soon(self._shadow, shadow)
        self._left(lane)
        self._pump()

    # Learning while serving.

    def apply(self, delta: Delta) -> bool:
        """Change the weights of one loaded version between two of its batches. False: the delta was there already.

        NotFound: its base is not loaded. Conflict: a gap in the sequence, or a model that does not learn. Corrupt: the
        checksum differs; Error: the model refuses it. Nothing changed then; read the base's deltas again.
        """
        served = self._served.get(delta.model)
        lane = served.lanes.get(delta.base) if served else None
        if lane is None:
            raise errors.NotFound(f"delta {delta.sequence}: {delta.model} {delta.base} is not loaded here")
        return lane.accept(delta)

    # What operators and borders ask.

    def models(self) -> tuple[str, ...]:
        """Models that answer."""
        return tuple(sorted(name for name, served in self._served.items() if served.route))

    def ready(self) -> bool:
        """Whether every model of the repository answers, and at least one does."""
        return bool(self._served) and all(served.route for served in self._served.values()) and not self._closing

    def describe(self, model: str, version: str = "") -> Description:
        """Inputs and outputs of a model's live version, or of `version`; NotFound says what there is."""
        served = self._served.get(model)
        if served is None or served.route is None:
            raise self._not_here(model)
        route = served.route
        known = route.described.get(version)
        if known is None:
            arm = route.explicit(version) if version else route.live
            known = route.described[version] = arm.lane.describe(tuple(sorted(served.lanes, key=int)))
        return known

    def views(self) -> list[ModelView]:
        """The state of every model, problems included."""
        return [served.view() for _, served in sorted(self._served.items())]

    def _not_here(self, model: str) -> errors.Error:
        if self._closing:
            return errors.Busy("this process is stopping; ask another, or again when it is back")
        served = self._served.get(model)
        if served is None:
            return errors.NotFound(f"no model {model[:80]!r} here; there are: {', '.join(self.models()) or 'none yet'}")
        why = "; ".join(served.problems().values()) or "it is still loading"
        return errors.Misconfigured(f"{model} has no version that answers: {why}")

    def _too_many(self, lane: Lane, request: Request) -> errors.Error:
        bound = self._limits.queue_rows_max
        if request.rows > bound:
            return errors.TooLarge(
                f"{lane.label}: {request.rows} rows in one request, at most {bound} are taken; split it"
            )
        lane.numbers.refused.add()
        return errors.Busy(f"{lane.label}: {lane.rows_waiting} rows wait already, at most {bound} may; try again")

    def _prepare(self, model: str, version: str) -> Lane:
        """A version ready to answer, or an error that says why not. Runs in the loader's thread."""
        manifest = self._repository.manifest(model, version)
        if self._admit:
            self._admit(model, manifest)
        lane = Lane(model, version, manifest, self._load_model(self._repository, model, version), self._limits.rows_max)
        warm(lane)
        lane.inline = self._quick(lane.cost)
        return lane

    # Time passing.

    async def refresh(self) -> None:
        """Look at the repository now, and return when everything that its policies need is loaded or refused."""
        await self._watch.refresh()

    async def _keep_watching(self) -> None:
        decided = self._clock.monotonic()
        while True:
            await self._clock.sleep(self._limits.poll_s)
            try:
                self._watch.look()
            except Exception:  # a folder that cannot be read now must not end the watch
                log.exception("looking at the repository failed; it will be looked at again")
            if self._clock.monotonic() - decided >= DECIDE_S:
                decided = self._clock.monotonic()
                self._decide()

    def _decide(self) -> None:
        """Which versions are quick enough for the loop. CPU time alone would miss a model that sleeps; wall time alone
        would blame a model in a thread for waiting on the loop."""
        for served in self._served.values():
            for lane in served.lanes.values():
                wall = 0.0 if lane.fastest == float("inf") else lane.fastest
                lane.inline = self._quick(max(lane.cost, wall))
                lane.fastest = float("inf")

    def _quick(self, seconds: float) -> bool:
        return seconds <= self._inline_s and self._inline_s > 0


def _scores(outputs: dict[str, Array]) -> bytes | None:
    """The first numeric output as float32; None when there is none."""
    for array in outputs.values():
        if array.dtype.kind in "fiub":
            return array.astype("<f4").tobytes()
    return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
