"""The monitor of everything that processes count: a table (watch/quantities.py) turned into readings."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from millstream.meter import Series, quantile
from millstream.watch.monitor import Logged, Sample
from millstream.watch.quantities import QUANTITIES, Quantity
from millstream.watch.reading import Key

MINUTE_S: Final = 60.0
GONE_S: Final = 3600.0
"""A page that cannot be read for a moment must not make its counters look new."""
_Counted = tuple[float, tuple[float, ...], list[float]]  # when, bounds, the slots of a histogram


class Meters:
    """Counts: what went up since the reading before; a counter that begins anew has counted what it shows. Counters
    that were there when this monitor began say nothing of when they were counted, and are left out. Levels: gauges of
    processes that live, and quantiles of what a histogram took in the last minute."""

    name = "meters"
    topics: frozenset[str] = frozenset()

    def __init__(self, quantities: Iterable[Quantity] | None = None) -> None:
        taken = [one for one in (QUANTITIES.values() if quantities is None else quantities) if one.metric]
        self._by_metric: dict[str, list[Quantity]] = {}
        for one in taken:
            self._by_metric.setdefault(one.metric, []).append(one)
        self.metrics = frozenset(self._by_metric)
        self._patterns = {one.name: {k: re.compile(v) for k, v in one.where.items()} for one in taken}
        self._last: dict[Key, float] = {}
        self._begun = False
        self._counts: dict[Key, float] = {}
        self._levels: dict[Key, float] = {}
        self._spread: dict[Key, deque[_Counted]] = {}
        self._seen: dict[Key, float] = {}  # when each was there last

    def observe(self, seen: Sample | Logged) -> None:
        """Take in what one process has counted."""
        assert isinstance(seen, Sample)
        self._levels = {key: at for key, at in self._levels.items() if key.get("server") != seen.process}
        for series in seen.series:
            for one in self._by_metric.get(series.name, ()):
                if all(of.fullmatch(series.labels.get(label, "")) for label, of in self._patterns[one.name].items()):
                    key = Key.of(one.name, {**series.labels, "server": seen.process})
                    self._seen[key] = seen.at
                    if one.kind == "count":
                        self._count(key, _number(one, series))
                    elif one.take == "quantile":
                        self._spread.setdefault(key, deque()).append((seen.at, series.bounds, series.values))
                    else:
                        self._levels[key] = series.values[0]

    def readings(self, now: float) -> Mapping[Key, float]:
        """Counts since the last call; the levels."""
        counts, self._counts, self._begun = self._counts, {}, True
        self._forget(now)
        found = counts | self._levels
        for key, taken in self._spread.items():
            while len(taken) > 1 and taken[1][0] <= now - MINUTE_S:
                taken.popleft()
            (_, bounds, before), (_, _, last) = taken[0], taken[-1]
            came = [max(0.0, b - a) for a, b in zip(before[:-1], last[:-1], strict=False)]
            if len(taken) > 1 and sum(came) > 0:
                found[key] = quantile(bounds, came, QUANTITIES[key.quantity].q)
        return found

    def _forget(self, now: float) -> None:
        """Series that are gone for long: of versions that are no longer loaded, of processes that are no more."""
        for key in [key for key, at in self._seen.items() if at < now - GONE_S]:
            del self._seen[key]
            self._last.pop(key, None)
            self._spread.pop(key, None)
            self._levels.pop(key, None)

    def _count(self, key: Key, value: float) -> None:
        before = self._last.get(key, 0.0 if self._begun else value)  # what came while we looked is new
        self._last[key] = value
        came = value - before if value >= before else value
        self._counts[key] = self._counts.get(key, 0.0) + came


def _number(one: Quantity, series: Series) -> float:
    if one.take == "sum":
        return series.values[-1]
    if one.take == "over":
        slow = (count for low, count in zip((0.0, *series.bounds), series.values[:-1], strict=True) if low >= one.edge)
        return sum(slow)
    return series.values[0] if series.kind != "histogram" else sum(series.values[:-1])
