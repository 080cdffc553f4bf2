"""Who gets which version, as a running service tells and changes it: policy, guard, comparisons, history."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

import msgspec

from millstream import errors
from millstream.engine import Engine, ModelView
from millstream.meter import Meter
from millstream.models import traffic
from millstream.models.policy import Policy
from millstream.models.repository import Repository
from millstream.models.traffic import Move
from millstream.watch.canary.guard import Word, last_word
from millstream.watch.shadow import Comparisons, Report

HISTORY = 20
T = TypeVar("T")


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """`policy`: as the file has it; `following`: the number of the one that this process (`process`: its id) acts on;
    `versions`: version@delta -> role here; `problems`: "policy" or a version -> why it is not in use; `guard`: what it
    said last; `history`: the last policies, newest first."""

    model: str
    policy: Policy
    process: int
    following: int
    versions: dict[str, str]
    problems: dict[str, str]
    guard: Word | None
    history: list[Policy]


class Shadowing(msgspec.Struct, frozen=True, kw_only=True):
    """One shadow version: what all processes counted of it (copies computed, lost, compared and differing), the memory
    that it and the live version took in this one (0: not loaded here), and what this one has seen in detail; None where
    it has seen nothing."""

    version: str
    copies: int
    lost: int
    compared: int
    differing: int
    memory_bytes: int
    live_memory_bytes: int
    seen: Report | None
    problem: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Every shadow version of a model."""

    model: str
    live: str
    process: int
    shadows: list[Shadowing]


class Steering:
    """What the Door asks about traffic. Whatever waits for a disk or a lock runs in a thread."""

    def __init__(self, repository: Repository, engine: Engine, meter: Meter, comparisons: Comparisons) -> None:
        self._repository, self._engine, self._meter, self._comparisons = repository, engine, meter, comparisons

    def traffic(self, model: str) -> asyncio.Future[Traffic]:
        """The state of a model's traffic. NotFound."""
        view, followed = self._view(model), self._engine.policies().get(model)
        return _beside(lambda: self._traffic(model, view, followed))

    def comparison(self, model: str) -> asyncio.Future[Comparison]:
        """What its shadows say. NotFound."""
        view, followed = self._view(model), self._engine.policies().get(model)
        memory = self._engine.memory(model)
        return _beside(lambda: self._comparison(model, view, followed, memory))

    def move(self, model: str, verb: str, move: Move) -> asyncio.Future[Policy]:
        """Make a move; the policy after it. NotFound, Conflict, Misconfigured, Full."""
        return _beside(lambda: traffic.make(self._repository, model, verb, move))

    def _view(self, model: str) -> ModelView | None:
        return next((view for view in self._engine.views() if view.model == model), None)

    def _policy(self, model: str, followed: Policy | None) -> tuple[Policy, dict[str, str]]:
        """The policy of the file, or as it is followed until somebody corrects the file, which is then a problem."""
        try:
            return self._repository.policy(model), {}
        except errors.Misconfigured as error:
            if followed is None:
                raise
            return followed, {"policy": str(error)}

    def _traffic(self, model: str, view: ModelView | None, followed: Policy | None) -> Traffic:
        policy, problems = self._policy(model, followed)
        problems |= view.problems if view else {}
        return Traffic(
            model=model,
            policy=policy,
            process=os.getpid(),
            following=view.policy if view else 0,
            versions=view.versions if view else {},
            problems=problems,
            guard=last_word(self._repository, model),
            history=self._repository.history(model, HISTORY)[::-1],
        )

    def _comparison(
        self, model: str, view: ModelView | None, followed: Policy | None, memory: dict[str, int]
    ) -> Comparison:
        policy, _ = self._policy(model, followed)
        seen = {report.shadow: report for report in self._comparisons.reports(model)}
        problems = view.problems if view else {}
        shadows = [
            self._shadowing(model, policy.live, version, seen.get(version), problems.get(version, ""), memory)
            for version in policy.shadow
        ]
        return Comparison(model=model, live=policy.live, process=os.getpid(), shadows=shadows)

    def _shadowing(
        self, model: str, live: str, version: str, seen: Report | None, problem: str, memory: dict[str, int]
    ) -> Shadowing:
        def counted(name: str) -> int:
            return int(sum(self._meter.values(name, {"model": model, "version": version})))

        if not problem and seen is not None:
            problem = seen.unlike or ("" if seen.compared or not seen.failed else seen.failure)
        return Shadowing(
            version=version,
            copies=counted("millstream_shadow_total"),
            lost=counted("millstream_shadow_lost_total"),
            compared=counted("millstream_shadow_compared_total"),
            differing=counted("millstream_shadow_differs_total"),
            memory_bytes=memory.get(version, 0),
            live_memory_bytes=memory.get(live, 0),
            seen=seen if seen is not None and seen.live == live else None,
            problem=problem,
        )


def _beside(work: Callable[[], T]) -> asyncio.Future[T]:
    return asyncio.get_running_loop().run_in_executor(None, work)
