"""Policies and versions as they change on disk, turned into routes.

Rules of the room:
- Looking is a few stat calls a model, on the loop. Reading, verifying, admitting, loading and warming a version is work
  for a loader's thread; meanwhile the model answers as before.
- A policy takes effect when its live version answers; its other arms join as they load. A newer policy whose live
  version is there takes effect at once, whatever is still loading.
- What cannot be used (a policy, a version) replaces nothing, is logged, counted and shown once, and is tried again only
  when it, or the policy that asks for it, changes.
- A process that starts while a policy cannot be used follows the last one of the model's history that can.
- A model whose folder vanishes is still served: a file system that blinks must not unload what works.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from millstream import errors
from millstream.engine.budget import Budget, Tenant
from millstream.engine.lane import Lane
from millstream.engine.loader import Loader
from millstream.engine.route import Route
from millstream.engine.tally import Numbers, Watched
from millstream.guard.pii import pseudonym, redact
from millstream.meter import Meter
from millstream.models.model import Elsewhere
from millstream.models.policy import Policy
from millstream.models.repository import Repository, Stamp
from millstream.models.runtimes import PROGRAMS
from millstream.types import Description, Listed

log = logging.getLogger(__name__)


PROGRAMS_AT_ONCE = 4
UNREADY: Stamp = ()
"""The stamp of a version that was refused for what is not there yet: no files have it."""


class ModelView(msgspec.Struct, frozen=True):
    """What an operator sees of one model. `versions`: version@delta -> role; `problems`: "policy" or a version -> why
    it is not in use."""

    model: str
    live: str
    policy: int
    versions: dict[str, str]
    problems: dict[str, str]
    rows_waiting: int


class Served:
    """One model: the policy it should follow, the route it follows, and what is on the way between the two."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stamp: Stamp | None = None
        self.policy: Policy | None = None
        self.policy_problem = ""
        self.route: Route | None = None
        self.followed: Policy | None = None  # last, and said so in the log
        self.lanes: dict[str, Lane] = {}
        self.loading: dict[str, asyncio.Task[None]] = {}
        self.refused: dict[str, tuple[Stamp, str]] = {}
        self.said: dict[str, str] = {}  # version -> why it is not served, as it was logged last; "": it waits
        self.waits: set[str] = set()  # versions that were refused for what was not there yet, and have not come since
        self.asleep: dict[str, Description] = {}  # of a model that gave way: a version, or "", as it was described
        self.waking = False
        self.callers = 0  # that wait for it to wake
        self.unloaded = False  # an operator wants it not served here, until it is loaded or the process starts again

    def follow(self, route: Route | None) -> None:
        """Answer by this route from now on, or by none."""
        before, self.route = self.route, route
        if before is not None:
            before.left()

    def problems(self) -> dict[str, str]:
        """A version, or "policy" -> why it is not in use; empty when all is well."""
        problems = {version: f"{self.name} {version}: {why}" for version, (_, why) in self.refused.items()}
        if self.policy_problem:
            problems["policy"] = self.policy_problem
        for version in self.route.unasked() if self.route else ():
            problems[version] = (
                f"{self.name} {version}: it takes or gives other tensors than the live version, so canary and split "
                "send it nothing; ask for it by its number"
            )
        for version in self.lanes:
            if why := self.stuck(version):
                problems[version] = f"{self.name} {version}: {why}"
        if self.unloaded:
            problems["unloaded"] = f"{self.name} was unloaded here; load it again"
        return problems

    def stuck(self, version: str) -> str:
        """Why a loaded version does not answer for now; "" when it does, or is not loaded."""
        lane = self.lanes.get(version)
        return lane.loaded.problem if lane and isinstance(lane.loaded, Elsewhere) else ""

    def listed(self, version: str) -> Listed:
        """One of its versions as the repository's index shows it."""
        if self.route is not None and version in self.lanes:
            why = self.stuck(version)
            return Listed(self.name, version, "UNAVAILABLE" if why else "READY", why)
        if version in self.loading:
            return Listed(self.name, version, "LOADING")
        refused = self.refused.get(version)
        why = refused[1] if refused else "its policy does not name it"
        if self.asleep or self.unloaded:
            why = "unloaded" if self.unloaded else "it gave way to others; its next request loads it"
        return Listed(self.name, version, "UNAVAILABLE", self.policy_problem or why)

    def view(self) -> ModelView:
        """Its state as an operator sees it now."""
        named = self.route.policy.named() if self.route else {}
        return ModelView(
            model=self.name,
            live=self.route.live.lane.name if self.route else "",
            policy=self.route.policy.version if self.route else 0,
            versions={lane.name: named.get(version, "loaded") for version, lane in self.lanes.items()},
            problems=self.problems(),
            rows_waiting=sum(lane.rows_waiting for lane in self.lanes.values()),
        )


class Lanes(Protocol):
    """Who computes. All of it is called on the loop."""

    def begin(self, lane: Lane) -> None:
        """A lane is new, and will get requests."""

    def retire(self, lane: Lane, live: bool = False) -> None:
        """No route names it any more; it was `live` until now."""

    def let_go(self, model: str) -> None:
        """Keep no version of a model that is no longer served here."""

    def revive(self, model: str, version: str, stamp: object) -> Lane | None:
        """A retired lane of these very files that is still needed by somebody, to be used again."""


class Watch:
    """Keeps `served` in step with the repository. `prepare(model, version)` makes a lane, or raises why not, in a
    loader's thread; `loaded(model, version)` is called on the loop before that version gets its first request."""

    def __init__(
        self,
        repository: Repository,
        meter: Meter,
        prepare: Callable[[str, str], Lane],
        lanes: Lanes,
        loaded: Callable[[str, str], None] | None,
        budget: Budget,
    ) -> None:
        self._repository, self._meter = repository, meter
        self._prepare, self._lanes, self._loaded = prepare, lanes, loaded
        self._bad = meter.counter("millstream_refused_total", "Policies and versions that could not be used")
        # One at a time in this process: what each takes is measured. Programs load in their own, and may take minutes.
        self._loader, self._programs = Loader[Lane](1), Loader[Lane](PROGRAMS_AT_ONCE)
        self._budget = budget
        self._closing = False
        self._arrived = 0  # versions that were loaded so far
        self.served: dict[str, Served] = {}

    def stop(self) -> None:
        """Load nothing more. A load under way ends by itself and changes nothing."""
        self._closing = True
        for served in self.served.values():
            for task in served.loading.values():
                task.cancel()

    async def refresh(self) -> None:
        """Look now, and return when nothing is loading any more."""
        self._loop = asyncio.get_running_loop()
        self.look()
        while tasks := [task for served in self.served.values() for task in served.loading.values()]:
            await asyncio.wait(tasks)

    async def load(self, name: str) -> None:
        """Serve a model as the repository has it now, versions that were refused included. NotFound, Misconfigured."""
        if name not in self._repository.models():
            raise errors.NotFound(
                f"no model {name[:80]!r} in the repository; there are: "
                f"{', '.join(sorted(self._repository.models())) or 'none'}"
            )
        served = self.served.setdefault(name, Served(name))
        served.unloaded, served.stamp = False, None
        served.refused.clear()
        stale = {v: lane for v, lane in served.lanes.items() if lane.stamp != self._repository.stamp(name, v)}
        for version in stale:
            del served.lanes[version]  # the route still has it, until the files' own is there
        self._look_at(served)
        while served.loading:
            await asyncio.wait(served.loading.values())
        for version, lane in stale.items():
            if version in served.refused:
                served.lanes[version] = lane
            else:
                self._lanes.retire(lane)
        self._advance(served)
        if served.route is None or served.problems():
            raise errors.Misconfigured(f"{name}: {'; '.join(served.problems().values())}")

    def unload(self, name: str) -> None:
        """Serve a model no more, until `load`; what waits and sessions that are open are still answered. NotFound."""
        served = self.served.get(name)
        if served is None:
            raise errors.NotFound(f"no model {name[:80]!r} here; there are: {', '.join(sorted(self.served)) or 'none'}")
        served.unloaded, served.policy = True, None
        self._drop(served)
        self._lanes.let_go(name)

    async def wake(self, served: Served) -> None:
        """Load a model that gave way, and return when it answers or does not."""
        served.waking = True
        try:
            self._advance(served)
            while served.loading:
                await asyncio.wait(served.loading.values())
        finally:
            served.waking = bool(served.loading)  # a caller who went away: the others wait on
        if served.route is None:
            served.asleep = {}  # what keeps it from answering is told from now on

    def make_room(self, name: str, size: float) -> None:
        """Have others give way to a version of this model that is about to be loaded; from the loader's thread."""
        if self._budget.bytes_max:
            gone = concurrent.futures.Future[None]()

            def give_way() -> None:
                self._give_way(name, size)
                gone.set_result(None)

            self._loop.call_soon_threadsafe(give_way)
            with contextlib.suppress(TimeoutError):  # a loop that stops has no use for room
                gone.result(1.0)

    def _give_way(self, coming: str, size: float = 0.0) -> None:
        tenants = [
            Tenant(
                served.name,
                sum(lane.memory_bytes for lane in served.lanes.values()),
                max((max(lane.tally.last_s, lane.loaded_s) for lane in served.lanes.values()), default=0.0),
                served.route is not None and not served.loading and all(lane.idle() for lane in served.lanes.values()),
            )
            for served in self.served.values()
        ]
        for name in self._budget.leave(tenants, coming, size):
            served = self.served[name]
            log.info("%s gives way to %s and is unloaded; its next request loads it again", name, coming)
            versions = tuple(sorted(served.lanes, key=int))
            served.asleep = {version: lane.describe(versions) for version, lane in served.lanes.items()}
            assert served.route is not None
            served.asleep[""] = served.asleep[served.route.policy.live]
            self._drop(served)

    def _drop(self, served: Served) -> None:
        """Answer by none of a model's versions any more."""
        served.follow(None)
        lanes, served.lanes = served.lanes, {}
        for lane in lanes.values():
            self._lanes.retire(lane)

    def index(self) -> list[Listed]:
        """Every version of the repository, by model and version."""
        return [
            self.served[name].listed(version) if name in self.served else Listed(name, version, "UNAVAILABLE", "new")
            for name in sorted(self._repository.models())
            for version in self._repository.versions(name)
        ]

    def look(self) -> None:
        """Compare every model with its files, and start what a difference asks for."""
        for name in self._repository.models():
            served = self.served.get(name)
            if served is None:
                served = self.served[name] = Served(name)
            self._look_at(served)

    def _look_at(self, served: Served) -> None:
        """Follow a policy that changed, and try again a version that was refused and has changed."""
        name = served.name
        if served.unloaded:
            return
        changed = [v for v, (stamp, _) in served.refused.items() if stamp != self._repository.stamp(name, v)]
        for version in changed:
            del served.refused[version]
        stamp = self._repository.stamp(name)
        if stamp != served.stamp:
            served.stamp = stamp
            self._read_policy(served)
            self._advance(served)
        elif changed:
            self._advance(served)

    def _read_policy(self, served: Served) -> None:
        try:
            policy = self._repository.policy(served.name)
        except errors.Error as error:
            if str(error) != served.policy_problem:
                self._bad.add()
                log.error("%s; %s", error, self._fall_back(served))
            served.policy_problem = str(error)
            return
        served.policy_problem = ""
        if policy != served.policy:
            served.policy = policy
            served.refused.clear()

    def _fall_back(self, served: Served) -> str:
        """Have a policy in force although the file has none: what is, in words."""
        if served.policy is not None:
            return "the last good policy stays in force"
        try:
            served.policy = self._repository.last_usable(served.name)
        except errors.Error as error:
            log.error("%s", error)
        if served.policy is None:
            return f"its history holds none to fall back on: {served.name} does not answer until the file is corrected"
        return f"policy {served.policy.version} of its history is in force (live = {served.policy.live}) until then"

    def _advance(self, served: Served) -> None:
        """Start loading what the policy names and is not there; when its live version is, route by it."""
        policy = served.policy
        if policy is None or self._closing or served.unloaded or (served.asleep and not served.waking):
            return
        named = policy.named()
        for version in named:
            if version in served.lanes or version in served.refused or version in served.loading:
                continue
            again = self._lanes.revive(served.name, version, self._repository.stamp(served.name, version))
            if again is not None:
                served.lanes[version] = again
            else:
                served.loading[version] = asyncio.create_task(self._load(served, version))
        if policy.live not in served.lanes:
            return
        served.asleep = {}
        was_live = served.route.policy.live if served.route is not None else ""
        before, served.lanes = served.lanes, {v: lane for v, lane in served.lanes.items() if v in named}
        served.follow(Route(served.name, policy, served.lanes, self._watched))
        _say_followed(served, policy)
        for version, lane in before.items():
            if version not in named:
                self._lanes.retire(lane, live=version == was_live)

    def _watched(self, lane: Lane, arm: str) -> Watched:
        return Watched(self._meter, lane.model, arm, lane.loaded.outputs)

    async def _load(self, served: Served, version: str) -> None:
        stamp, arrived = self._repository.stamp(served.name, version), self._arrived
        try:
            apart = self._repository.manifest(served.name, version).format in PROGRAMS
            loader, call = self._programs if apart else self._loader, partial(self._prepare, served.name, version)
            lane = await loader.run(f"{served.name} {version}", call)
            lane.stamp = stamp
            lane.numbers = Numbers(self._meter, served.name, version, lane.inputs, lane.loaded.outputs)
            self._lanes.begin(lane)
            if served.unloaded or not served.policy or version not in served.policy.named():  # no longer wanted
                self._lanes.retire(lane)
            else:
                served.lanes[version] = lane
                served.said.pop(version, None)
                served.waits.discard(version)
                self._arrived += 1
                self._tell(served.name, version)
        except errors.Busy as error:  # nothing is wrong with its files: it is tried again at every look
            self._refuse(served, version, UNREADY, str(error))
        except Exception as error:  # a model may raise anything while it loads
            self._refuse(served, version, stamp, str(error) or repr(error))
        finally:
            del served.loading[version]
        self._advance(served)
        self._give_way(served.name)
        if self._arrived != arrived:
            self._try_the_unready()

    def _refuse(self, served: Served, version: str, stamp: Stamp, why: str) -> None:
        served.refused[version] = stamp, why
        if stamp is UNREADY:
            if version not in served.waits:
                log.info("%s %s waits: %s", served.name, version, why)
            served.waits.add(version)
            if any(coming not in one.waits for one in self.served.values() for coming in one.loading):
                return  # what it waits for may be on its way
        told = "" if stamp is UNREADY else why  # what it waits for changes at every look, when others wait too
        if served.said.get(version) != told:
            served.said[version] = told
            self._bad.add()
            log.error("%s %s is not served: %s", served.name, version, why)

    def _try_the_unready(self) -> None:
        """Versions have come: one may be what others waited for."""
        for served in self.served.values():
            unready = [version for version, (stamp, _) in served.refused.items() if stamp is UNREADY]
            for version in unready:
                del served.refused[version]
            if unready:
                self._advance(served)

    def _tell(self, model: str, version: str) -> None:
        if self._loaded:
            try:
                self._loaded(model, version)
            except Exception:
                log.exception("%s %s is served, though what follows its loading failed", model, version)


def _say_followed(served: Served, policy: Policy) -> None:
    """One line in the log for each policy that is followed from now on."""
    before, served.followed = served.followed, policy
    if policy == before or not (before or policy.version):  # nobody has decided anything yet
        return
    arms = [f"{version} {role}" for version, role in policy.named().items() if role != "live"]
    moved = f", was {before.live}" if before and before.live != policy.live else ""
    log.info(
        "%s: policy %d by %s (%s): live %s%s%s",
        served.name,
        policy.version,
        pseudonym(policy.who) or "nobody named",
        redact(policy.why) or "no reason given",
        policy.live,
        moved,
        "".join(f", {arm}" for arm in arms),
    )
