"""Policies and versions as they change on disk, turned into routes.

Rules of the room:
- Looking is a few stat calls a model, on the loop. Reading, verifying, admitting, loading and warming a version is work
  for the loader's one thread; meanwhile the model answers as before.
- A policy takes effect when its live version answers; its other arms join as they load. A newer policy whose live
  version is there takes effect at once, whatever is still loading.
- What cannot be used (a policy, a version) replaces nothing, is logged, counted and shown once, and is tried again only
  when it, or the policy that asks for it, changes.
- A process that starts while a policy cannot be used follows the last one of the model's history that can.
- A model whose folder vanishes is still served: a file system that blinks must not unload what works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from millstream import errors
from millstream.engine.batch import Lane, Numbers
from millstream.engine.route import Route
from millstream.meter import Meter
from millstream.models.policy import Policy
from millstream.models.repository import Repository, Stamp

log = logging.getLogger(__name__)


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
        self.lanes: dict[str, Lane] = {}
        self.loading: dict[str, asyncio.Task[None]] = {}
        self.refused: dict[str, tuple[Stamp, str]] = {}

    def problems(self) -> dict[str, str]:
        """A version, or "policy" -> why it is not in use; empty when all is well."""
        problems = {version: f"{self.name} {version}: {why}" for version, (_, why) in self.refused.items()}
        if self.policy_problem:
            problems["policy"] = self.policy_problem
        return problems

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


class Watch:
    """Keeps `served` in step with the repository. `prepare(model, version)` makes a lane, or raises why not, in the
    loader's thread; `loaded(model, version)` is called on the loop before that version gets its first request."""

    def __init__(
        self,
        repository: Repository,
        meter: Meter,
        prepare: Callable[[str, str], Lane],
        loaded: Callable[[str, str], None] | None,
    ) -> None:
        self._repository, self._meter = repository, meter
        self._prepare, self._loaded = prepare, loaded
        self._bad = meter.counter("millstream_refused_total", "Policies and versions that could not be used")
        self._loader = ThreadPoolExecutor(1, "millstream-load")
        self._closing = False
        self.served: dict[str, Served] = {}

    def stop(self) -> None:
        """Load nothing more. A load under way ends by itself and changes nothing."""
        self._closing = True
        for served in self.served.values():
            for task in served.loading.values():
                task.cancel()
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def refresh(self) -> None:
        """Look now, and return when nothing is loading any more."""
        self.look()
        while tasks := [task for served in self.served.values() for task in served.loading.values()]:
            await asyncio.wait(tasks)

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
        if policy is None or self._closing:
            return
        named = policy.named()
        for version in named:
            if not (version in served.lanes or version in served.refused or version in served.loading):
                served.loading[version] = asyncio.create_task(self._load(served, version))
        if policy.live not in served.lanes:
            return
        served.lanes = {version: lane for version, lane in served.lanes.items() if version in named}
        served.route = Route(served.name, policy, served.lanes)

    async def _load(self, served: Served, version: str) -> None:
        stamp = self._repository.stamp(served.name, version)
        try:
            lane = await asyncio.get_running_loop().run_in_executor(self._loader, self._prepare, served.name, version)
        except Exception as error:  # a model may raise anything while it loads
            served.refused[version] = stamp, str(error) or repr(error)
            self._bad.add()
            log.error("%s %s is not served: %s", served.name, version, error)
        else:
            lane.numbers = Numbers(self._meter, served.name, version)
            served.lanes[version] = lane
            self._tell(served.name, version)
        del served.loading[version]
        self._advance(served)

    def _tell(self, model: str, version: str) -> None:
        if self._loaded:
            try:
                self._loaded(model, version)
            except Exception:
                log.exception("%s %s is served, though what follows its loading failed", model, version)
