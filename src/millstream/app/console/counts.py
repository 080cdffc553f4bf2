"""What the processes of an installation count, as rates: their pages of counters, read once a second and remembered for
some minutes.

Rules of the room:
- A reading is kept only of the series that pages show (`KEPT`): memory is bounded by these, not by what is counted.
- A counter that went down began anew with its process: the rate of that moment is 0, never negative.
- Rates are rounded to three digits, so that what stands still is equal to itself.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from millstream.meter import Meter, quantile

RATE_S: Final = 10.0
LATENCY_S: Final = 60.0
PAST_S: Final = 5.0
PAST: Final = 60
"""Rates that are remembered of a stream, one each PAST_S."""
STREAMS: Final = {
    "requests": "millstream_requests_total",
    "failures": "millstream_failures_total",
    "outcomes": "millstream_outcomes_total",
    "examples": "millstream_examples_total",
    "aside": "millstream_set_aside_total",
    "learnt": "millstream_examples_learnt_total",
    "pushes": "millstream_pushes_total",
    "applied": "millstream_deltas_applied_total",
}
ALIVE: Final = "process_resident_memory_bytes"
KEPT: Final = frozenset(
    {
        *STREAMS.values(),
        ALIVE,
        "millstream_answer_seconds",
        "millstream_compute_seconds",
        "millstream_rows_total",
        "millstream_memory_bytes",
        "millstream_staleness_seconds",
        "millstream_shadow_total",
        "millstream_shadow_lost_total",
        "millstream_shadow_compared_total",
        "millstream_shadow_differs_total",
        "millstream_alerts_delivered_total",
        "millstream_alerts_undelivered_total",
    }
)
Labels = tuple[tuple[str, str], ...]


class _Series:
    """One series: its bounds where it is a histogram, and its slots."""

    __slots__ = ("bounds", "values")

    def __init__(self, bounds: Sequence[float], values: list[float]) -> None:
        self.bounds, self.values = tuple(bounds), values


_Moment = dict[str, dict[Labels, _Series]]


class Counts:
    """Follows the counters. `poll` is called by one thread; the rest by any."""

    def __init__(self, folder: Path, monotonic: Callable[[], float]) -> None:
        self._meter, self._monotonic = Meter.reading(folder), monotonic
        self._moments: deque[tuple[float, _Moment]] = deque()
        self._past: dict[str, deque[float]] = {name: deque(maxlen=PAST) for name in STREAMS}
        self._next_past = -math.inf
        self._processes: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def poll(self) -> None:
        """Read the pages."""
        moment, processes = _Moment(), list[str]()
        for process, series in self._meter.by_process(KEPT):
            for one in series:
                if one.name == ALIVE and one.values[0] > 0:
                    processes.append(process)
                at = moment.setdefault(one.name, {})
                labels = tuple(sorted(one.labels.items()))
                seen = at.get(labels)
                if seen is None or len(seen.values) != len(one.values):
                    at[labels] = _Series(one.bounds, list(one.values))
                else:
                    seen.values = [a + b for a, b in zip(seen.values, one.values, strict=True)]
        now = self._monotonic()
        with self._lock:
            self._processes = tuple(processes)
            self._moments.append((now, moment))
            while now - self._moments[0][0] > LATENCY_S + 1.0:
                self._moments.popleft()
        if now >= self._next_past:
            self._next_past = now + PAST_S
            rates = {name: self.rate(metric) for name, metric in STREAMS.items()}
            with self._lock:
                for name, rate in rates.items():
                    self._past[name].append(rate)

    @property
    def processes(self) -> tuple[str, ...]:
        """The processes that live, by the names of their pages, in order."""
        with self._lock:
            return self._processes

    def past(self, stream: str) -> tuple[float, ...]:
        """The rates of a stream in the last minutes, oldest first."""
        with self._lock:
            return tuple(self._past[stream])

    def total(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """What all series of this name with these labels come to now; of a histogram, how many were observed."""
        with self._lock:
            moment = self._moments[-1][1] if self._moments else {}
        return sum(_count(one) for one in _of(moment, name, labels or {}))

    def rate(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """As `total`, a second over the last ten."""
        if (two := self._between(RATE_S)) is None:
            return 0.0
        length, before, now = two
        gone = sum(map(_count, _of(before, name, labels or {})))
        return rounded(max(0.0, sum(map(_count, _of(now, name, labels or {}))) - gone) / length)

    def grew(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """The sum of what a histogram observed in the last minute."""
        if (two := self._between(LATENCY_S)) is None:
            return 0.0
        _, before, now = two
        sums = [sum(one.values[-1] for one in _of(at, name, labels or {})) for at in (before, now)]
        return max(0.0, sums[1] - sums[0])

    def count(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """As `total`, what came in the last minute."""
        if (two := self._between(LATENCY_S)) is None:
            return 0.0
        _, before, now = two
        return max(
            0.0, sum(map(_count, _of(now, name, labels or {}))) - sum(map(_count, _of(before, name, labels or {})))
        )

    def quantile(self, name: str, q: float, labels: Mapping[str, str] | None = None) -> float:
        """Of a histogram over the last minute; NaN where nothing came."""
        if (two := self._between(LATENCY_S)) is None:
            return math.nan
        _, before, now = two
        bounds, counts = _buckets(now, name, labels or {})
        _, gone = _buckets(before, name, labels or {})
        came = [max(0.0, b - a) for a, b in zip(gone or [0.0] * len(counts), counts, strict=False)]
        return rounded(quantile(bounds, came, q)) if sum(came) else math.nan

    def _between(self, length: float) -> tuple[float, _Moment, _Moment] | None:
        """(seconds, the moment so long ago or the first there is, the last one)."""
        with self._lock:
            if len(self._moments) < 2:
                return None
            at, now = self._moments[-1]
            then, before = next(one for one in self._moments if at - one[0] <= length)
            if then == at:
                then, before = self._moments[-2]
        return at - then, before, now


def rounded(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")


def _of(moment: _Moment, name: str, labels: Mapping[str, str]) -> list[_Series]:
    wanted = set(labels.items())
    return [one for has, one in moment.get(name, {}).items() if wanted <= set(has)]


def _count(one: _Series) -> float:
    return sum(one.values[:-1]) if one.bounds else one.values[0]


def _buckets(moment: _Moment, name: str, labels: Mapping[str, str]) -> tuple[tuple[float, ...], list[float]]:
    found = [one for one in _of(moment, name, labels) if one.bounds]
    if not found:
        return (), []
    alike = [one.values[:-1] for one in found if one.bounds == found[0].bounds]
    return found[0].bounds, [sum(column) for column in zip(*alike, strict=True)]
