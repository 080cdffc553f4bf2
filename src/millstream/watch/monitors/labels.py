"""The monitor of what comes back: whether outcomes still come, and whether labels are as they were.

Rules of the room:
- Outcomes of a kind are expected as often as before, beside requests: as in the hour around this time of the day
  before, or where nobody saw that, in the three hours before these minutes. `outcomes_missing` is the share of those
  expected that is surely missing; a kind that is rare says nothing until enough of it is expected.
- Shifts of labels and of their log loss are in standard deviations of one, surely at least: chance is what minutes
  differ by. Labels told the wrong way round move the one or the other: with as many positives as negatives their number
  stays, and then scores that knew something lose.
- What the learner's books say (learn/judge.py) comes with the chance of as many labels: the AUC that served scores have
  lost beside the version that stands still, and how far mean scores are from the rate of positives.
- All of it is from the role's history of counts, so that a restart forgets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from millstream.watch.history import Floats, History
from millstream.watch.monitor import Logged, Sample
from millstream.watch.monitors.quality import moments, shift
from millstream.watch.reading import Key

WINDOWS_S: Final = (120.0, 1200.0)
"""Outcomes are looked for over the shorter; those that are rare over the longer."""
HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0
SURE: Final = 4.0
EXPECTED_LEAST: Final = 20.0
RATES_LEAST: Final = 50.0
_SHIFTS: Final = (
    ("labels_shift", ("labels", "labels_positive", "labels_positive")),
    ("loss_shift", ("labels_scored", "labels_loss", "labels_loss_squares")),
)


class Labels:
    """The monitor. `history`: where the role keeps what was read."""

    name = "labels"
    metrics: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()

    def __init__(self, history: History) -> None:
        self._history = history

    def observe(self, seen: Sample | Logged) -> None:
        """Nothing is wanted: what was counted is in the history."""

    def readings(self, now: float) -> Mapping[Key, float]:
        """Levels as they stand."""
        if not math.isfinite(self._history.last):
            return {}
        return self._missing() | self._shifts() | self._books()

    def _missing(self) -> dict[Key, float]:
        kinds = _by(self._history.keys("outcomes_told"), ("kind",))
        requests = self._history.keys("requests")
        if not requests:
            return {}
        found: dict[Key, float] = {}
        for kind, keys in kinds.items():
            for seconds in WINDOWS_S:
                missing = None
                for window in ((HOUR_S, DAY_S - HOUR_S / 2 + seconds / 2), (3 * HOUR_S, seconds + WINDOWS_S[0])):
                    before = self._sums((keys, requests), *window)
                    if before[1].sum() <= 0 or before[0].sum() < RATES_LEAST:
                        continue  # nobody saw it: look at the hours before
                    now = self._sums((keys, requests), seconds)
                    missing = gone(float(now[0].sum()), float(now[1].sum()), before)
                    break
                if missing is not None:
                    found[Key.of("outcomes_missing", dict(kind))] = missing
                    break
        return found

    def _shifts(self) -> dict[Key, float]:
        found: dict[Key, float] = {}
        for quantity, parts in _SHIFTS:
            grouped = [_by(self._history.keys(part), ("model", "task")) for part in parts]
            for group in grouped[0]:
                keys = [of.get(group, []) for of in grouped]
                now = moments(self._sums(keys, WINDOWS_S[1]))
                for against, window in (
                    ("hour", (HOUR_S, WINDOWS_S[1])),
                    ("day", (HOUR_S, DAY_S - HOUR_S / 2 + WINDOWS_S[1] / 2)),
                ):
                    if (value := shift(now, moments(self._sums(keys, *window)))) is not None:
                        found[Key.of(quantity, {**dict(group), "against": against})] = value
        return found

    def _books(self) -> dict[Key, float]:
        """By the learner's gauges, as they were read last."""
        books: dict[str, dict[tuple[str, str], float]] = {}
        for of in ("auc", "ratio", "examples", "positives"):
            keys = self._history.keys(f"learning_{of}")
            for key, value in zip(keys, self._history.levels(keys, 60.0).tolist(), strict=True):
                if value == value:
                    books.setdefault(key.get("slice"), {})[of, key.get("scores")] = value
        found: dict[Key, float] = {}
        for name, one in books.items():
            yes, n = one.get(("positives", "served"), 0.0), one.get(("examples", "served"), 0.0)
            if yes < RATES_LEAST or n - yes < RATES_LEAST:
                continue
            served, frozen = one.get(("auc", "served")), one.get(("auc", "frozen"))
            if served is not None and frozen is not None:
                error = math.hypot(auc_error(served, yes, n - yes), auc_error(frozen, yes, n - yes))
                found[Key.of("auc_lost", {"slice": name})] = max(0.0, frozen - served - 2.0 * error)
            if (ratio := one.get(("ratio", "served"))) is not None and ratio > 0:
                off = abs(math.log(ratio)) - SURE / math.sqrt(yes)
                found[Key.of("calibration_off", {"slice": name})] = max(0.0, math.expm1(off))
        return found

    def _sums(self, parts: Sequence[Sequence[Key]], seconds: float, ago: float = 0.0) -> Floats:
        """[parts, steps]"""
        steps = [self._history.steps(list(keys), seconds, ago).sum(axis=0) for keys in parts]
        width = max((len(one) for one in steps), default=0)
        return np.array([one if len(one) == width else np.zeros(width) for one in steps])


def gone(told: float, requests: float, before: Floats) -> float | None:
    """The share of the outcomes expected of so many requests that surely is missing; None: too few are expected.
    `before` [2, steps]: outcomes and requests. Their number is taken for Poisson's times the dispersion that the steps
    show, with SURE standard deviations on either side."""
    outcomes, of = before
    rate = float(outcomes.sum() / of.sum())
    there = of > 0
    expected = np.maximum(rate * of[there], 1e-9)
    apart = (outcomes[there] - expected) ** 2 / expected
    wide = max(1.0, float(apart.sum()) / max(len(apart) - 1, 1))
    low = rate * max(0.0, 1.0 - SURE * math.sqrt(wide / float(outcomes.sum()))) * requests
    if low < EXPECTED_LEAST:
        return None
    high = told + SURE * math.sqrt(wide * (told + wide))
    return max(0.0, 1.0 - high / low)


def auc_error(auc: float, positives: float, negatives: float) -> float:
    """The standard error of an AUC (Hanley and McNeil, Radiology 143, 1982)."""
    one, two = auc / (2.0 - auc), 2.0 * auc * auc / (1.0 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (one - auc * auc) + (negatives - 1) * (two - auc * auc)
    return math.sqrt(max(0.0, spread) / (positives * negatives))


def _by(keys: Sequence[Key], labels: Sequence[str]) -> dict[tuple[tuple[str, str], ...], list[Key]]:
    groups: dict[tuple[tuple[str, str], ...], list[Key]] = {}
    for key in keys:
        groups.setdefault(tuple((name, key.get(name)) for name in labels), []).append(key)
    return groups
