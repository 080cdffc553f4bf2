"""Counts of labels as the join makes them, by the model and version whose score they are of.

Of examples as they are told: a negative that stands for others counts once, a label that takes one back counts too. A
score of 0 was not logged, and has no loss. Versions are without their deltas; the counters of all but the VERSIONS_MAX
that had labels last are let go.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final, NamedTuple

from millstream.meter import Counter, Meter
from millstream.types import Example

VERSIONS_MAX: Final = 32
_EDGE: Final = 1e-6


class _Counters(NamedTuple):
    labels: Counter
    positive: Counter
    scored: Counter
    loss: Counter
    squares: Counter


class LabelCounts:
    """Called with each example."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._of: OrderedDict[tuple[str, str, str], _Counters] = OrderedDict()

    def __call__(self, example: Example) -> None:
        """Count one."""
        place = example.model, example.version.partition("@")[0], example.task
        counters = self._of.get(place) or self._make(place)
        self._of.move_to_end(place)
        positive = example.label > 0
        counters.labels.add()
        if positive:
            counters.positive.add()
        if 0.0 < example.score <= 1.0:
            p = min(max(example.score, _EDGE), 1.0 - _EDGE)
            loss = -math.log(p) if positive else -math.log1p(-p)
            counters.scored.add()
            counters.loss.add(loss)
            counters.squares.add(loss * loss)

    def _make(self, place: tuple[str, str, str]) -> _Counters:
        if len(self._of) >= VERSIONS_MAX:
            gone, _ = self._of.popitem(last=False)
            self._meter.release(_labels(gone))
        labels = _labels(place)
        self._meter.claim(labels)
        with self._meter.together():
            made = _Counters(
                self._meter.counter("millstream_labels_total", "Labels of scores, by who scored.", labels),
                self._meter.counter("millstream_labels_positive_total", "Of these, positives.", labels),
                self._meter.counter("millstream_labels_scored_total", "Of these, those with a logged score.", labels),
                self._meter.counter("millstream_labels_loss_total", "Sum of their log loss.", labels),
                self._meter.counter("millstream_labels_loss_squares_total", "Sum of its squares.", labels),
            )
        self._of[place] = made
        return made


def _labels(place: tuple[str, str, str]) -> dict[str, str]:
    model, version, task = place
    return {"model": model, "version": version, "task": task}
