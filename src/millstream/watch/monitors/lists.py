"""The monitor of what lists are worth: user experience, content ecosystem and revenue, by arm of rules, lately.

Rules of the room:
- Figures are those of `millstream report`, of the last hour, made every EVERY_S by who can read the log.
- `list_worse` is what an arm surely lacks beside the best known of its placement, `list_fell` what an arm surely lacks
  beside itself a day before, each as a share of that: of a measure of which less is better, what it has too much.
- A day of figures is kept, of ARMS_MAX arms; it is forgotten with the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from millstream.watch.monitor import Logged, Sample
from millstream.watch.reading import Key

EVERY_S: Final = 600.0
DAY_S: Final = 86400.0
ARMS_MAX: Final = 64
SURE: Final = 2.0
"""Half intervals of 95 % that are taken off: a measure of an arm is looked at 144 times a day."""


class Arm(NamedTuple):
    """An arm of a placement's rules. `figures` by measure: its value, half of its interval of 95 %, and 1 where more is
    better, -1 where less is."""

    tenant: str
    placement: str
    arm: str
    figures: Mapping[str, tuple[float, float, int]]


class Worse(NamedTuple):
    """An arm that is surely worse than the one it is compared with: by this share of that one's figure."""

    tenant: str
    placement: str
    arm: str
    measure: str
    axis: str
    share: float


class Lists:
    """The monitor. `look(now)`: the arms as they are, and which are worse."""

    name = "lists"
    metrics: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()

    def __init__(self, look: Callable[[float], tuple[list[Arm], list[Worse]]]) -> None:
        self._look = look
        self._due = float("-inf")
        self._read: dict[Key, float] = {}
        self._past: deque[tuple[float, dict[Key, tuple[float, float]]]] = deque()

    def observe(self, seen: Sample | Logged) -> None:
        """Nothing is wanted: `look` reads."""

    def readings(self, now: float) -> Mapping[Key, float]:
        """As of the last look."""
        if now >= self._due:
            self._due, self._read = now + EVERY_S, {}
            arms, worse = self._look(now)
            self._read = self._told(now, arms[:ARMS_MAX], worse)
        return self._read

    def _told(self, now: float, arms: list[Arm], worse: list[Worse]) -> dict[Key, float]:
        while self._past and self._past[0][0] < now - DAY_S - EVERY_S / 2:
            self._past.popleft()
        there = self._past and self._past[0][0] < now - DAY_S + EVERY_S / 2
        before = self._past[0][1] if there else {}
        figures: dict[Key, tuple[float, float]] = {}
        found: dict[Key, float] = {}
        for one in arms:
            labels = {"tenant": one.tenant, "placement": one.placement, "arm": one.arm}
            for measure, (value, half, better) in one.figures.items():
                key = Key.of("list_figure", {**labels, "measure": measure})
                found[key], figures[key] = value, (value, half)
                found[Key.of("list_worse", {**labels, "measure": measure})] = 0.0
                if key in before:
                    was, spread = before[key]
                    lost = better * (was - value) - SURE * (half**2 + spread**2) ** 0.5
                    fell = max(0.0, lost) / abs(was) if was else 0.0
                    found[Key.of("list_fell", {**labels, "measure": measure})] = fell
        for less in worse:
            labels = {"tenant": less.tenant, "placement": less.placement, "arm": less.arm}
            key = Key.of("list_worse", {**labels, "measure": less.measure})
            if key in found:
                found[key] = less.share
        self._past.append((now, figures))
        return found
