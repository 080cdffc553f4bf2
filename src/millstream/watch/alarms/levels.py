"""Service levels: how many requests may miss what was promised, how many do, and how fast that spends the budget.

Rules of the room:
- A model has two objectives. `available`: of the requests that came (answered, failed, refused as the queue was full,
  late), so many are answered. `quick`: of those that were computed, so many are within `latency_ms`, which counts as
  the next edge of the histogram `millstream_answer_seconds` above it.
- Two counts, of each server, model and objective, carry both: `missed`, and `allowed`, what came times what may miss.
  Their ratio is the burn rate: at 1 the budget of a period is gone at its end, at 14.4 that of 30 days in 50 hours.
- Alerts look at a long and a short window: the long one says that it matters, the short one that it still goes on
  (Beyer et al., The Site Reliability Workbook, chapter 5, "Multiwindow, multi-burn-rate alerts").
- A process that is down counts nothing: that nobody answers is seen from outside (docs/alerts.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from millstream.meter import SECONDS
from millstream.watch import quantities
from millstream.watch.alarms.rule import Rule, Severity
from millstream.watch.history import History
from millstream.watch.monitor import Logged, Sample
from millstream.watch.monitors.meters import Meters
from millstream.watch.quantities import Quantity
from millstream.watch.reading import Key

PERIOD_S: Final = 30 * 86400.0
MISSED_MIN: Final = 10.0
"""So many must have missed it at the limit: one request that fails in a quiet hour wakes nobody."""
DEFAULT: Final = "default"

quantities.add(
    Quantity(name="missed", kind="count", help="requests that missed what was promised, by model and objective"),
    Quantity(name="allowed", kind="count", help="requests that might have missed it: what came, times 1 - objective"),
)


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is promised of a model."""

    available: Annotated[float, Meta(gt=0, lt=1, description="share of requests that are answered")] = 0.999
    latency_ms: Annotated[
        float,
        Meta(gt=0, le=60_000, description="a quick answer takes no longer; the next edge of the histogram counts"),
    ] = 500.0
    quick: Annotated[float, Meta(gt=0, lt=1, description="share of computed requests that are quick")] = 0.99

    @property
    def edge_s(self) -> float:
        """What counts as `latency_ms`, seconds."""
        return next(edge for edge in SECONDS if edge * 1e3 >= self.latency_ms)


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of an objective's budget. `goal`: the share promised; `kept`: the share that was kept over the last
    30 days, or as far back as readings go; `left`: of the budget, 1 none spent, below 0 overspent; `burn`: its rate
    over the last hour."""

    model: str
    objective: str
    goal: float
    kept: float
    left: float
    burn: float


class Levels:
    """The monitor of what was promised: `levels` by model, that of `default` for all others."""

    name = "levels"
    topics: frozenset[str] = frozenset()

    def __init__(self, levels: Mapping[str, Level]) -> None:
        self._levels, self._default = levels, levels.get(DEFAULT, Level())
        edges = sorted({level.edge_s for level in (self._default, *levels.values())})
        self._slow = {edge: f"slow_{edge:g}" for edge in edges}
        counted = [
            Quantity(name=name, kind="count", metric=f"millstream_{name}_total", help=name)
            for name in ("requests", "failures", "busy", "late")
        ]
        answers = "millstream_answer_seconds"
        counted += [
            Quantity(name=name, kind="count", metric=answers, take="over", edge=edge, help=name)
            for edge, name in self._slow.items()
        ]
        counted.append(Quantity(name="computed", kind="count", metric=answers, help="computed"))
        self._meters = Meters(counted)
        self.metrics = self._meters.metrics

    def of(self, model: str) -> Level:
        """What is promised of a model."""
        return self._levels.get(model, self._default)

    def observe(self, seen: Sample | Logged) -> None:
        """Take in what one process has counted."""
        self._meters.observe(seen)

    def readings(self, now: float) -> Mapping[Key, float]:
        """What missed and what might have, since the last call."""
        counts: dict[tuple[str, str], dict[str, float]] = {}
        for key, value in self._meters.readings(now).items():
            if model := key.get("model"):  # of what was folded into "other", too
                of = counts.setdefault((key.get("server"), model), {})
                of[key.quantity] = of.get(key.quantity, 0.0) + value
        found: dict[Key, float] = {}
        for (server, model), of in counts.items():
            level = self.of(model)
            missed = of.get("failures", 0.0) + of.get("busy", 0.0) + of.get("late", 0.0)
            came = of.get("requests", 0.0) + of.get("busy", 0.0) + of.get("late", 0.0)
            slow, computed = of.get(self._slow[level.edge_s], 0.0), of.get("computed", 0.0)
            for objective, missing, all_, goal in (
                ("available", missed, came, level.available),
                ("quick", slow, computed, level.quick),
            ):
                labels = {"server": server, "model": model, "objective": objective}
                found[Key.of("missed", labels)] = missing
                found[Key.of("allowed", labels)] = all_ * (1.0 - goal)
        return found

    def budgets(self, history: History) -> list[Budget]:
        """How every model stands that had requests, by what `history` has of its readings."""
        sums: dict[tuple[str, str], list[float]] = {}
        for column, (quantity, seconds) in enumerate(
            (name, span) for span in (PERIOD_S, 3600.0) for name in ("missed", "allowed")
        ):
            if not (keys := history.keys(quantity)):
                return []
            for key, count in zip(keys, history.counts(keys, seconds).tolist(), strict=True):
                place = key.get("model"), key.get("objective")
                sums.setdefault(place, [0.0] * 4)[column] += count
        return [
            self._budget(model, objective, *counted)
            for (model, objective), counted in sorted(sums.items())
            if counted[1] > 0
        ]

    def _budget(
        self, model: str, objective: str, missed: float, allowed: float, lately: float, allowed_lately: float
    ) -> Budget:
        level = self.of(model)
        goal = level.available if objective == "available" else level.quick
        return Budget(
            model=model,
            objective=objective,
            goal=goal,
            kept=1.0 - missed / allowed * (1.0 - goal),
            left=1.0 - missed / allowed,
            burn=lately / allowed_lately if allowed_lately > 0 else 0.0,
        )


def _burns(limit: float, over_s: float, also_s: float, for_s: float, severity: Severity) -> Rule:
    return Rule(
        quantity="missed",
        of="allowed",
        above=limit,
        over_s=over_s,
        also_s=also_s,
        for_s=for_s,
        least=MISSED_MIN / limit,
        by=("model", "objective"),
        says="the error budget goes too fast",
        severity=severity,
        runbook="docs/runbooks.md#budget",
    )


RULES: Final[dict[str, Rule]] = {
    "budget-fast": _burns(14.4, 3600, 300, 120, "page"),
    "budget-slow": _burns(6.0, 6 * 3600, 1800, 300, "page"),
    "budget-days": _burns(1.0, 3 * 86400, 6 * 3600, 900, "ticket"),
}
"""Of 30 days' budget these fire when 2 %, 5 % and 10 % are gone, and some minutes later: rules that see what is wrong
have the first say."""
