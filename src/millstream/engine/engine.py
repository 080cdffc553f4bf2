"""The one door to models: route, check, queue, batch, compute, answer.

Rules of the room:
- One event loop's thread owns everything here; only `execute` (workers) and `_prepare` (a loader) run elsewhere.
- A free instance takes whatever waits; each version has its own, so that no model stalls another. A quick model runs on
  the loop itself. Timers exist only for what asks for them: waits, timeouts, idle sessions.
- A version answers only after it was verified, admitted, loaded and run on its example, off the loop (watch.py). Then
  one pointer changes; requests that wait on the old version and sessions that began on it are still answered by it, and
  it is freed when nothing needs it any more.
- Every answer comes from exactly one `version@delta`.

The life of a request: 1 submit: route, check, wait in a lane (a session's step: behind the step before it); 2 step,
once a pass of the loop: take a batch, run it here or hand it to a worker; 3 settle: give every caller its rows, move
sessions on, copy to shadows; 4 step again if any wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from millstream import errors
from millstream.clock import Clock, Timer
from millstream.engine import handover
from millstream.engine.batch import Answer, Batch
from millstream.engine.budget import Budget, estimate, taken
from millstream.engine.cache import key_of
from millstream.engine.catalogue import Catalogue
from millstream.engine.check import fitted
from millstream.engine.deadline import Deadlines
from millstream.engine.lane import Lane
from millstream.engine.limits import EngineLimits
from millstream.engine.parts import Parts
from millstream.engine.queue import NOBODY_HURRIES, Queue
from millstream.engine.retired import Retired
from millstream.engine.route import Arm
from millstream.engine.session import Sessions, only
from millstream.engine.shadow import Compare, Shadows
from millstream.engine.warm import try_recorded, warm
from millstream.engine.watch import Served, Watch
from millstream.engine.worker import Stepped, Workers, execute
from millstream.machine import Gpus, cores
from millstream.meter import Meter
from millstream.models import recorded
from millstream.models.chain import Chain
from millstream.models.manifest import Manifest
from millstream.models.model import Closing, Elsewhere, Model, Waiting, load
from millstream.models.repository import Repository
from millstream.types import Array, Delta, Output, Request, Shadow

log = logging.getLogger(__name__)

DECIDE_S = 1.0
KINDS_MAX = 256  # sizes that wait for one version at once: more of them would be looked through for every batch
SMOOTHING = 0.1
STOP_S = 30.0  # what is computed at a stop may take so long
SLOW = 20  # a call on the loop that takes so many times what is allowed there is the last one


class Engine(Catalogue):
    """Serves every model of a repository. Use from one event loop, between `start` and `stop`.

    `admit(model, manifest)` refuses a version by raising. `shadow` gets what a shadow version answered, `compare` what
    both versions did (see shadow.py; it runs in the shadows' thread).
    `on_load(model, version)` comes before a version's first request: the moment to apply the deltas it has missed.
    `on_first_answer(model, version, sequence)` follows the first answer computed after a delta (the last, when several
    were applied in between). `load` makes a version from its files. `admit` and `load` run in a loader's thread, the
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
        compare: Compare | None = None,
    ) -> None:
        self._repository, self._clock = repository, clock
        self._limits = limits or EngineLimits()
        self._admit, self._shadow, self._compare = admit, shadow, compare
        self._on_first_answer, self._load_model = on_first_answer, load
        self._inline_s = self._limits.inline_us_max / 1e6
        self._ready: deque[Lane] = deque()
        self._scheduled = False
        self._closing = False
        self._cores = max(1, cores() - 1)
        self._running = 0
        self._drained: asyncio.Future[None] | None = None
        self._now = clock.monotonic
        self._wake: Timer | None = None
        self._deadlines = Deadlines(clock)
        self._gpus = Gpus()
        self._workers: dict[Lane, Workers[Answer]] = {}
        keep_s = 0.0 if self._limits.memory_bytes_max else self._limits.keep_s
        self._retired = Retired(keep_s, self._now, self._free)
        self._sessions = Sessions(self._queue, self._retired.look)
        self._budget = Budget(self._limits.memory_bytes_max)
        self._watch = Watch(repository, meter, self._prepare, self, on_load, self._budget)
        self._served = self._watch.served

    async def start(self) -> None:
        """Load and warm what the policies name, then watch. A bad model stops no other: see `ready` and `views`."""
        self._loop = asyncio.get_running_loop()
        self._parts = Parts(self._loop, self._served, self._take)
        self._shadows = Shadows(self._loop, self._clock, self._shadow, self._shadowed, self.step, self._compare)
        await self.refresh()
        self._watching = asyncio.create_task(self._keep_watching())

    async def drain(self) -> None:
        """Begin no more sessions, and return when all have ended or `drain_s` is over. Requests are still answered."""
        self._sessions.closing = True
        until = self._now() + self._limits.drain_s
        while len(self._sessions) and self._now() < until:
            await self._clock.sleep(min(0.05, self._limits.drain_s))

    async def stop(self, hand_over: Path | None = None) -> None:
        """Refuse what comes, answer everything that waits, end the threads. Shadow work that waits is dropped. Sessions
        still open are written to `hand_over` for `take_over` of the next process; without it they end."""
        self._closing = self._sessions.closing = True
        self._watching.cancel()
        self._watch.stop()
        self._shadows.drop()
        self.step()
        if not self._idle():
            self._drained = self._loop.create_future()
            patience = asyncio.ensure_future(self._clock.sleep(STOP_S))
            await asyncio.wait({self._drained, patience}, return_when=asyncio.FIRST_COMPLETED)
            patience.cancel()
        stuck = {lane for lane in self._workers if lane.running}
        for lane in stuck:
            log.error("%s computes since over %g s and is left behind: its callers get no answer", lane.label, STOP_S)
        self._deadlines.stop()
        if self._wake is not None:
            self._wake.cancel()
        if hand_over is not None:
            handover.write(hand_over, self._sessions)
        elif len(self._sessions):
            log.warning("%d sessions end with this process", len(self._sessions))
        for session in self._sessions:
            self._sessions.close(session, "this process has stopped")
        for workers in self._workers.values():
            workers.stop()
        self._shadows.stop()
        joins = [workers.join for lane, workers in self._workers.items() if lane not in stuck]
        for join in joins if self._shadows.running else [*joins, self._shadows.join]:
            await self._loop.run_in_executor(None, join)
        for loaded in [lane.loaded for lane in self._workers]:
            if isinstance(loaded, Closing):
                await self._loop.run_in_executor(None, loaded.close)

    def take_over(self, path: Path) -> int:
        """Go on with the sessions that a process before this one wrote at its end; how many. Those whose version does
        not answer here are lost, which is said."""
        return handover.read(path, self._sessions, self.lane, self._now())

    # The hot path.

    def submit(self, request: Request) -> asyncio.Future[Output]:
        """The future of this request's answer; cancelling it gives its place in the queue up.

        Raises at once what can be told at once: NotFound, BadInput, TooLarge, Overloaded, Busy. The future holds
        BadInput for values that are refused (NaN, infinity, an index outside a table), Late when its time was over and
        Error when the model failed.
        """
        if request.turn is not None:
            return self._submit_step(request)
        if self._closing:
            raise self.not_here(request.model)
        return self._take(request)

    def _take(self, request: Request) -> asyncio.Future[Output]:
        """Route, check, let wait."""
        served = self._served.get(request.model)
        if served is None or served.route is None:
            if served is not None and served.asleep:
                return self._wake_for(served, request)
            raise self.not_here(request.model)
        route = served.route
        arm = route.live if route.plain and not request.version else route.choose(request)
        lane, asked = arm.lane, request
        if request.leeway is not None:
            request = fitted(request, lane.inputs)
        kind = lane.check(request)
        key = b""
        if lane.cache is not None:
            key = key_of(request)
            if (kept := lane.cache.get(lane.name, key, self._now())) is not None:
                return self._again(request, arm, kept)
        if (
            lane.rows_waiting + lane.steps_waiting + request.rows > lane.batching.queue_rows_max
            or lane.goal
            or len(lane.queues) > KINDS_MAX
        ):
            self._admit_rows(arm, request)
        answer = Answer(loop=self._loop)
        answer.request, answer.asked, answer.arm, answer.kind, answer.at = request, asked, arm, kind, self._now()
        answer.order, answer.session, answer.key = NOBODY_HURRIES, None, key
        if request.priority or request.timeout_s or lane.batching.timeout_ms:
            self._hurry(answer)
        lane.add(answer)
        if not (lane.listed and self._scheduled):
            self._schedule(lane)
        return answer

    def _again(self, request: Request, arm: Arm, kept: dict[str, Array]) -> asyncio.Future[Output]:
        """A request that its version has answered before."""
        lane = arm.lane
        lane.numbers.requests.add()
        lane.numbers.hits.add()
        lane.tally.answered += 1
        lane.tally.last_s = self._clock.now()
        answer: asyncio.Future[Output] = self._loop.create_future()
        answer.set_result(Output(kept, lane.model, lane.name, arm.policy, arm.name, cached=True))
        return answer

    def _submit_step(self, request: Request) -> asyncio.Future[Output]:
        """A step of a session: the version is the one that the session began with."""
        now = self._now()
        session = self._sessions.find(request)
        served = self._served.get(request.model)
        if session is None and served is not None and served.asleep and not self._closing:
            return self._wake_for(served, request)
        if self._closing or (session is None and (served is None or served.route is None)):
            raise self.not_here(request.model)
        if session is not None:
            arm = session.arm
            if request.version and request.version != arm.lane.version:
                raise errors.BadInput(
                    f"{request.model}: session {session.id!r} began on version {arm.lane.version} and stays there, got "
                    f"version {request.version}; leave it out"
                )
        else:
            assert served is not None and served.route is not None and request.turn is not None
            if not request.key:
                request = replace(request, key=request.turn.id)
            arm = served.route.choose(request)
        kind = arm.lane.check(request)
        self._admit_rows(arm, request)
        session = session or self._sessions.begin(request, arm, now)
        answer = Answer(loop=self._loop)
        answer.request, answer.asked, answer.arm, answer.kind, answer.at = request, request, arm, kind, now
        answer.order, answer.session, answer.key = NOBODY_HURRIES, session, b""
        self._hurry(answer)
        self._sessions.step(session, answer, now)
        return answer

    def _wake_for(self, served: Served, request: Request) -> asyncio.Future[Output]:
        """A request for a model that gave way to others: it is loaded, and the request waits for that. Overloaded."""
        if served.callers >= self._limits.queue_rows_max:
            raise errors.Overloaded(f"{served.name}: {served.callers} requests wait for it to be loaded; try again")
        return asyncio.ensure_future(self._woken(served, request))

    async def _woken(self, served: Served, request: Request) -> Output:
        served.callers += 1
        try:
            await asyncio.wait_for(self._watch.wake(served), request.timeout_s or None)
        except TimeoutError:
            raise errors.Late(f"{served.name}: it was not loaded within {request.timeout_s:g} s; ask again") from None
        finally:
            served.callers -= 1
        return await (self._take(request) if request.turn is None else self._submit_step(request))

    def _queue(self, answer: Answer) -> None:
        """Let a request wait in its lane."""
        lane = answer.arm.lane
        lane.add(answer)
        self._schedule(lane)

    def _schedule(self, lane: Lane) -> None:
        """Look at the lane after all sockets of this pass of the loop were read."""
        if not lane.listed:
            lane.listed = True
            self._ready.append(lane)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.step)

    def _hurry(self, answer: Answer) -> None:
        """Give an answer its place among others by priority and deadline, and see to it that the deadline is kept."""
        request = answer.request
        timeout_s = request.timeout_s or answer.arm.lane.batching.timeout_ms / 1e3
        deadline = answer.at + timeout_s if timeout_s else float("inf")
        answer.order = (request.priority, deadline)
        if timeout_s:
            self._deadlines.keep(answer)

    def step(self) -> None:
        """Start every batch that can start, lanes in turn."""
        self._scheduled = False
        now = self._now()
        again = float("inf")
        for _ in range(len(self._ready)):
            lane = self._ready.popleft()
            wake = self._start(lane, now)
            if lane.rows_waiting and wake is not None:
                self._ready.append(lane)
                again = min(again, wake)
            else:
                lane.listed = False
                if self._retired:
                    self._retired.look(lane)
        if again != float("inf"):
            self._look_again(again)
        if not self._ready:
            self._shadows.start()
        if self._drained and self._idle() and not self._drained.done():
            self._drained.set_result(None)

    def _start(self, lane: Lane, now: float) -> float | None:
        """Start what can start in a lane. When to look at it again (infinity: when a batch has ended); None: when its
        held deltas are applied, or somebody comes."""
        while lane.rows_waiting:
            if lane.held:
                return None
            if not lane.free:
                return float("inf")
            due = lane.due(now if not self._closing else float("inf"))
            if not isinstance(due, Queue):
                return due
            if lane.inline and lane.rows_waiting <= lane.rows_max:
                batch = Batch(lane, lane.take(due))
                execute(batch, self._now)
                self._settle(batch)
                lane.forget(due)
            else:
                lane.started(due)
                self._running += 1
                self._workers[lane].start(Batch(lane, lane.take(due), due))
        return None

    def _look_again(self, when: float) -> None:
        """Step again at a time, unless something makes it step before."""
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self._clock.later(when - self._now(), self.step)

    def _idle(self) -> bool:
        return not (self._ready or self._running or self._shadows.running)

    def _finished(self, batch: Batch[Answer]) -> None:
        assert batch.queue is not None
        self._running -= 1
        batch.lane.ended(batch.queue)
        self._settle(batch)
        self._left(batch.lane)
        self.step()

    def _shadowed(self, lane: Lane) -> None:
        """A batch of copies has ended."""
        self._left(lane)
        self.step()

    def _left(self, lane: Lane) -> None:
        """A batch of this lane has ended: the deltas that waited for it go in."""
        if lane.held and not lane.running:
            try:
                lane.apply_held()
            except Exception as error:
                self._failed(lane, error)
        if lane.rows_waiting and not lane.listed:
            lane.listed = True
            self._ready.append(lane)
        if self._retired:
            self._retired.look(lane)

    def _settle(self, batch: Batch[Answer]) -> None:
        """Give every caller its rows."""
        lane, started, name, ran = batch.lane, batch.started, batch.name, batch.ran
        numbers, goal = lane.numbers, lane.goal
        observe, observe_whole, looked_at = numbers.queue.observe, numbers.answer.observe, numbers.quality.answered
        ended = started + batch.wall
        answered = gone = 0
        queued = total = 0.0
        for answer, result in zip(batch.items, batch.results, strict=True):
            request, arm = answer.request, answer.arm
            waited = started - answer.at
            queued += waited
            total += ended - answer.at
            observe(waited)
            observe_whole(ended - answer.at)
            if answer.done():  # given up, or late, while it was computed
                gone += 1
            else:
                numbers.arms.get(arm.name, numbers.other).add()
            if not isinstance(result, dict):
                if getattr(result, "status", 500) >= 500:
                    numbers.failures.add()
                if not answer.done():  # a refusal too: what a caller does wrong, every arm refuses as often
                    arm.failed(request)
                self._failed(lane, result)
                if not answer.done():
                    answer.set_exception(result)
                if answer.session is not None:
                    if isinstance(result, Stepped):
                        self._sessions.close(answer.session, "its last step was nonsense, and so may be its state")
                    self._sessions.done(answer, None, ended)
                continue
            answered += 1
            if not answer.done():  # else it was late or given up, and counted
                arm.answered(request, ended - answer.at, result)
                looked_at(request.inputs, result)
            if goal is not None:
                goal.answered(ended - answer.at)
            if answer.session is None and answer.done():
                continue
            output = Output(result, lane.model, name, arm.policy, arm.name, waited, ran)
            if answer.session is not None:
                self._sessions.done(answer, output, ended)
                if answer.done():
                    continue
            if request.outputs:
                output = only(output, request.outputs)
            answer.set_result(output)
            if answer.key and lane.cache is not None:
                lane.cache.put(name, answer.key, output.outputs, ended)
            if arm.shadows and answer.session is None and not self._closing:
                self._shadows.copy(answer.asked, output, arm.shadows)
        numbers.requests.add(len(batch.items) - gone)
        self._account(batch, answered, queued, total)
        lane.ran(ran.rows, batch.wall)
        if lane.inline and max(lane.cost, batch.wall / SLOW) > self._inline_s:
            lane.inline = False
        if batch.sequence > lane.answered and answered:
            lane.answered = batch.sequence
            if self._on_first_answer:
                self._loop.call_soon(self._on_first_answer, lane.model, lane.version, batch.sequence)

    def _account(self, batch: Batch[Answer], answered: int, queued: float, total: float) -> None:
        """Count a batch: `queued` and `total` are the seconds that its requests waited, and took."""
        lane, ran = batch.lane, batch.ran
        numbers, tally = lane.numbers, lane.tally
        numbers.rows.add(ran.rows)
        numbers.batches.add()
        numbers.compute.observe(batch.wall)
        numbers.join.observe(ran.copy_s)
        numbers.split.observe(ran.split_s)
        if ran.padding:
            numbers.padding.add(ran.padding * ran.rows)
        tally.ran(ran)
        tally.queue_s += queued
        tally.last_s = self._clock.now()
        failed = len(batch.items) - answered
        if failed:
            tally.failed += failed
            tally.failed_s += total * failed / len(batch.items)
        tally.answered += answered
        tally.answered_s += total * answered / len(batch.items)
        before = batch.cpu if lane.cost == float("inf") else lane.cost
        lane.cost = before + SMOOTHING * (batch.cpu - before)
        lane.fastest = min(lane.fastest, batch.wall)

    def _failed(self, lane: Lane, error: Exception) -> None:
        """Remember, and log once, what is not a caller's mistake; of a lost process its keeper has told more."""
        if isinstance(error, errors.Error) and (error.status < 500 or isinstance(error, errors.Lost)):
            return
        if str(error) != lane.last_error:
            lane.last_error = str(error)
            log.error("%s", error, exc_info=error)

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

    def _admit_rows(self, arm: Arm, request: Request) -> None:
        """Refuse a request that would wait over a bound: TooLarge, Overloaded."""
        lane = arm.lane
        bound = lane.batching.queue_rows_max
        if request.rows > bound:
            raise errors.TooLarge(
                f"{lane.label}: {request.rows} rows in one request, at most {bound} are taken; split it"
            )
        if lane.rows_waiting + lane.steps_waiting + request.rows > bound or len(lane.queues) > KINDS_MAX:
            arm.refused(request)
            raise errors.Overloaded(
                f"{lane.label}: {lane.rows_waiting + lane.steps_waiting} rows wait already, at most {bound} may, of at "
                f"most {KINDS_MAX} sizes; try again"
            )
        if lane.goal is not None and not lane.goal.takes(*lane.ahead(request.rows)):
            arm.refused(request)
            raise errors.Overloaded(
                f"{lane.label}: {lane.rows_waiting} rows wait already; another would miss the goal of "
                f"{lane.batching.p99_ms:g} ms; try again"
            )

    def _prepare(self, model: str, version: str) -> Lane:
        """A version ready to answer, or an error that says why not. Runs in a loader's thread."""
        manifest = self._repository.manifest(model, version)
        if self._admit:
            self._admit(model, manifest)
        weight = sum(size for _, _, size in self._repository.stamp(model, version))
        self._watch.make_room(model, weight)
        # What loads in this process does so alone, so what is taken meanwhile is nearly all of this one.
        memory, before = taken(), self._gpus.used()
        loaded = self._load_model(self._repository, model, version)
        try:
            if isinstance(loaded, Chain):
                loaded.attach(partial(self._parts.ask, model))
            instances = loaded.instances if isinstance(loaded, Waiting) else self._cores
            lane = Lane(model, version, manifest, loaded, self._limits.over(manifest.batching), instances)
            warm(lane)
            served = self._served.get(model)
            answers = served is not None and served.route is not None
            try_recorded(lane, recorded.read(self._repository, model), refuse=answers)
            if isinstance(loaded, Elsewhere):
                lane.memory_bytes = max(weight, taken(loaded.pids()))
                self._budget.check(lane.label, lane.memory_bytes)
            else:
                lane.memory_bytes = estimate(weight, taken() - memory)
                self._budget.check(lane.label, weight)
            if self._closing:
                raise errors.Busy(f"{lane.label}: this process is stopping")
        except BaseException:
            if isinstance(loaded, Closing):
                loaded.close()
            raise
        lane.inline = self._quick(lane, lane.cost)
        lane.device_bytes = max(0.0, self._gpus.used() - before)
        return lane

    # What the watch asks for as versions come and go.

    def begin(self, lane: Lane) -> None:
        """A version was loaded: give it its threads."""
        lane.numbers.device.set(lane.device_bytes)
        lane.numbers.memory.set(lane.memory_bytes)
        lane.loaded_s = self._clock.now()
        name = f"millstream-{lane.label}"
        self._workers[lane] = Workers(lane.instances, name, self._loop, self._now, self._finished)

    def retire(self, lane: Lane, live: bool = False) -> None:
        """No route names this version any more; it was `live` until now. It goes when nothing needs it."""
        self._retired.add(lane, live)

    def let_go(self, model: str) -> None:
        """Keep no version of this model for a roll back."""
        self._retired.let_go(model)

    def revive(self, model: str, version: str, stamp: object) -> Lane | None:
        """A version that was retired, is still here, and is named again."""
        return self._retired.revive(model, version, stamp)

    def _free(self, lane: Lane) -> None:
        """Nothing needs this version any more: end its threads."""
        self._workers.pop(lane).stop()
        lane.numbers.waiting.set(0)
        lane.numbers.memory.set(0)
        lane.numbers.release()
        if isinstance(lane.loaded, Closing):
            self._loop.run_in_executor(None, lane.loaded.close)

    # Time passing.

    async def refresh(self) -> None:
        """Look at the repository now, and return when everything that its policies need is loaded or refused."""
        await self._watch.refresh()

    async def _keep_watching(self) -> None:
        decided = self._now()
        while True:
            await self._clock.sleep(self._limits.poll_s)
            try:
                self._watch.look()
            except Exception:  # a folder that cannot be read now must not end the watch
                log.exception("looking at the repository failed; it will be looked at again")
            if self._now() - decided >= DECIDE_S:
                decided = self._now()
                self._decide()
                self._sessions.expire(decided)
                self._retired.look_at_all()

    def _decide(self) -> None:
        """Which versions are quick enough for the loop. CPU time alone would miss a model that sleeps; wall time alone
        would blame a model in a thread for waiting on the loop."""
        for lane in self._workers:
            wall = 0.0 if lane.fastest == float("inf") else lane.fastest
            lane.inline = self._quick(lane, max(lane.cost, wall))
            lane.fastest = float("inf")
            lane.numbers.waiting.set(lane.rows_waiting)
            if lane.goal is not None:
                lane.goal.correct()

    def _quick(self, lane: Lane, seconds: float) -> bool:
        return seconds <= self._inline_s and self._inline_s > 0 and not lane.off_loop
