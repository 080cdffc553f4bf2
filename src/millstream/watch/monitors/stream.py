"""The monitor of levels that change at once: ADWIN (Bifet and Gavalda, SIAM International Conference on Data Mining,
2007; River's) over means by the minute of scores, confidence, empty answers, labels and missing features.

Rules of the room:
- The detector says when, and what was before; `change` says by how much: the mean since then beside the mean before, in
  standard deviations of one value (of a share p: sqrt(p (1 - p))), for HOLD_S. Else it is zero. So a change that is
  sure and tiny is tiny, and a day's tide, which is many small changes, stays small. The deviation is the median of the
  minutes before; where most of them had none, the largest of all.
- ADWIN takes values for bounded by 1. It is given minutes in units of four times the noise between neighbours (their
  differences' median), so noise fits its bound; the first WARM minutes are for measuring that.
- A detector that is new is shown what the history has of the hours before.
- Bounded: SERIES_MAX series; others are not followed, which is said once. Without River (extra `watch`) there are no
  readings, which is said once, too.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from millstream.errors import Missing
from millstream.watch.history import Floats, History
from millstream.watch.monitor import Logged, Sample
from millstream.watch.reading import Key

logger = logging.getLogger(__name__)

MINUTE_S: Final = 60.0
HOLD_S: Final = 1800.0
PAST_S: Final = 6 * 3600.0
WARM: Final = 30
LEAST: Final = 20.0
"""Fewer values within a minute are no mean of it."""
SERIES_MAX: Final = 256
KEPT: Final = 180
BESIDE: Final = 60
"""Minutes that are kept, and those before a change that it is beside."""
MOST: Final = 1000.0
SAMPLE: Final = 256.0
"""Rows that a share of missing features is of (features/health.py)."""


class Source(NamedTuple):
    """What is averaged: counts of how many, of their sum (less those behind it) and sum of squares, by these labels."""

    of: str
    number: str
    sums: tuple[str, ...]
    squares: str
    by: tuple[str, ...]


SOURCES: Final = (
    Source("score", "scores", ("score_above", "score_below"), "score_squares", ("model", "version")),
    Source("confidence", "confident", ("confidence",), "confidence_squares", ("model", "version")),
    Source("empty", "answers", ("empty",), "empty", ("model", "version")),
    Source("positives", "labels", ("labels_positive",), "labels_positive", ("model", "task")),
)


class Streams:
    """The monitor. `history`: where the role keeps what was read."""

    name = "stream"
    metrics: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()

    def __init__(self, history: History) -> None:
        self._history = history
        self._series: dict[Key, Series] = {}
        self._minute = -1
        self._full = False
        try:
            from river.drift import ADWIN
        except ImportError:
            self._detector: Any = None
            logger.warning("%s; levels that change at once are not looked for", Missing.extra("watch", "ADWIN"))
        else:
            self._detector = ADWIN

    def observe(self, seen: Sample | Logged) -> None:
        """Nothing is wanted: what was read is in the history."""

    def readings(self, now: float) -> Mapping[Key, float]:
        """What changed. Looked at once a minute."""
        minute = int(now // MINUTE_S)
        if self._detector is None or not math.isfinite(self._history.last):
            return {}
        if minute > self._minute:
            self._minute = minute
            for key, table in self._tables(MINUTE_S).items():
                self._follow(key, table, now)
        return {key: one.change(now) for key, one in self._series.items() if one.seen_at > now - HOLD_S}

    def _follow(self, key: Key, table: Floats, now: float) -> None:
        one = self._series.get(key)
        if one is None:
            if len(self._series) >= SERIES_MAX and not self._room(now):
                if not self._full:
                    logger.warning("changes are looked for in %d levels; %s is not", SERIES_MAX, key)
                self._full = True
                return
            one = self._series[key] = Series(self._detector(clock=1))
            past = self._tables(PAST_S).get(key)
            if past is not None:
                for step in range(past.shape[1] - 1):
                    one.add(past[:, step], now - MINUTE_S * (past.shape[1] - step))
        one.add(table.sum(axis=1), now)

    def _room(self, now: float) -> bool:
        """Let go of what is not seen any more; whether there was any."""
        gone = [key for key, one in self._series.items() if one.seen_at < now - PAST_S]
        for key in gone:
            del self._series[key]
        return bool(gone)

    def _tables(self, seconds: float) -> dict[Key, Floats]:
        """Number, sum and sum of squares of every series, [3, steps]."""
        found: dict[Key, Floats] = {}
        for source in SOURCES:
            parts = [(0, 1.0, source.number), (1, 1.0, source.sums[0]), (2, 1.0, source.squares)]
            parts += [(1, -1.0, name) for name in source.sums[1:]]
            for part, sign, name in parts:
                keys = self._history.keys(name)
                steps = self._history.steps(keys, seconds)
                for key, row in zip(keys, steps, strict=True):
                    place = Key.of("change", {"of": source.of, **{label: key.get(label) for label in source.by}})
                    if place not in found:
                        found[place] = np.zeros((3, len(row)))
                    found[place][part] += sign * row
        for key in self._history.keys("feature_nulls"):
            _, shares = self._history.series(key, seconds, level=True)
            place = Key.of("change", {"of": "nulls", "set": key.get("set"), "feature": key.get("feature")})
            found[place] = SAMPLE * np.array([np.ones(len(shares)), shares, shares])
        return {key: table for key, table in found.items() if table.shape[1]}


class Series:
    """One mean, by the minute."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self._lately: deque[tuple[float, float]] = deque(maxlen=KEPT)  # mean and standard deviation
        self._scale = self._base = 0.0
        self._detected = self.seen_at = -np.inf

    def add(self, minute: Sequence[float] | Floats, at: float) -> None:
        """Take in a minute: number, sum and sum of squares."""
        count, total, squares = (float(one) for one in minute)
        if count < LEAST:
            return
        mean = total / count
        self.seen_at = at
        self._lately.append((mean, math.sqrt(max(squares / count - mean * mean, 0.0))))
        if not self._scale:
            self._measure()
            return
        self._detector.update((mean - self._base) / self._scale)
        if self._detector.drift_detected:
            self._detected = at

    def change(self, now: float) -> float:
        """By how much it changed, if it did lately: the minutes that the detector holds, beside the hour before."""
        since = int(self._detector.width)
        if now - self._detected > HOLD_S or not 0 < since <= BESIDE or since >= len(self._lately):
            return 0.0  # a cut that is longer ago is a tide
        means, spreads = np.array(self._lately).T
        before = slice(max(0, len(means) - since - BESIDE), len(means) - since)
        moved = abs(float(means[-since:].mean() - means[before].mean()))
        spread = float(np.median(spreads[before])) or float(spreads[before.start :].max())
        return min(moved / spread, MOST) if spread > 0 else MOST * (moved > 0)

    def _measure(self) -> None:
        """How much neighbours differ by chance, once there are enough."""
        if len(self._lately) < WARM:
            return
        means, spreads = np.array(self._lately).T
        noise = float(np.median(np.abs(np.diff(means)))) * 1.4826 / math.sqrt(2.0)
        self._base = float(means.mean())
        self._scale = 4.0 * (max(noise, 1e-3 * float(np.median(spreads))) or 1e-9)
        for value in means.tolist():
            self._detector.update((value - self._base) / self._scale)
