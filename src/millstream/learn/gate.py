"""The gate between what was learnt and what is served. It refuses; it never repairs.

Two rules, both about harm that would be visible only after the fact:
- weights are finite and within a bound: a slot of 1e6 answers 0 or 1 whatever the other features say;
- over the last examples, the answers that were given *before* learning from them (progressive validation) predict no
  worse than the plain rate of positives would have, by more than a margin. A burst of wrong labels shows here first.

Positives come at once and negatives a window later, so the last examples alone may be of one kind whenever traffic
begins or stops, and their own rate would be a prophet. The plain rate is therefore that of a long past (`HISTORY`
windows, fading), and nothing is judged until the window holds enough of both kinds (`enough`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

HISTORY = 20  # windows after which an example counts 1/e in the plain rate
_BOTH = 50  # of each kind: with fewer, the chance of their number alone moves the plain logloss by the margin


class GateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When learning must stop by itself."""

    weight_max: Annotated[float, msgspec.Meta(gt=0, description="largest magnitude of a weight that may be served")] = (
        50.0
    )
    window: Annotated[
        int, msgspec.Meta(ge=100, le=1_000_000, description="examples that progressive validation looks back on")
    ] = 5000
    logloss_over: Annotated[
        float, msgspec.Meta(ge=0, description="how much worse than the plain rate the logloss may be, as a share of it")
    ] = 0.25


class Gate:
    """Feed it every progressive prediction with its label; ask it before every push."""

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._seen = 0
        self._predicted = np.zeros(settings.window)
        self._labels = np.zeros(settings.window)
        self._past = self._past_positive = 0.0  # fading counts

    def observe(self, predicted: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        """`predicted`: probabilities given before the labels were learnt; both of shape [rows]."""
        window = self._settings.window
        ages = np.arange(len(labels))[::-1]
        kept = np.exp(-np.append(ages, len(labels)) / (HISTORY * window))
        self._past = self._past * kept[-1] + kept[:-1].sum()
        self._past_positive = self._past_positive * kept[-1] + kept[:-1] @ labels
        predicted, labels = predicted[-window:], labels[-window:]
        at = (self._seen + np.arange(len(labels))) % window
        self._predicted[at], self._labels[at] = predicted, labels
        self._seen += len(labels)

    def refuses(self, weights: NDArray[np.float32]) -> str:
        """Why these weights must not be served, or "" when they may."""
        if not np.isfinite(weights).all():
            return f"{int((~np.isfinite(weights)).sum())} of {len(weights)} weights are not finite"
        largest = float(np.abs(weights).max(initial=0.0))
        if largest > self._settings.weight_max:
            return f"a weight of {largest:.3g} is beyond the bound of {self._settings.weight_max:g}"
        if not self.enough():
            return ""
        rate = self._past_positive / self._past
        ours, plain = _logloss(self._predicted, self._labels), _logloss(rate, self._labels)
        if ours > plain * (1 + self._settings.logloss_over):
            return (
                f"logloss {ours:.3f} over the last {self._settings.window} examples, where answering the plain rate "
                f"{rate:.3f} to everybody would have had {plain:.3f}"
            )
        return ""

    def enough(self) -> bool:
        """Whether the window is full and holds 50 of each label (of a window below 5,000: 1 %)."""
        positives = int(self._labels.sum())
        both = min(positives, len(self._labels) - positives)
        return self._seen >= len(self._labels) and both >= min(_BOTH, len(self._labels) / 100)


def _logloss(predicted: NDArray[np.float64] | float, labels: NDArray[np.float64]) -> float:
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(-(labels * np.log(p) + (1 - labels) * np.log1p(-p)).mean())
