"""The gate between what was learnt and what is served. It refuses; it never repairs.

Two rules, both about harm that would be visible only after the fact:
- weights are finite and within a bound: a slot of 1e6 answers 0 or 1 whatever the other features say;
- over the last examples, the answers that were given *before* learning from them (progressive validation) predict no
  worse than the plain rate of positives would have, by more than a margin. A burst of wrong labels shows here first.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray


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

    def observe(self, predicted: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        """`predicted`: probabilities given before the labels were learnt; both of shape [rows]."""
        window = self._settings.window
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
        if self._seen < self._settings.window:
            return ""
        ours, plain = _logloss(self._predicted, self._labels), _logloss(self._labels.mean(), self._labels)
        if ours > plain * (1 + self._settings.logloss_over):
            return (
                f"logloss {ours:.3f} over the last {self._settings.window} examples, where answering the plain rate "
                f"{self._labels.mean():.3f} to everybody would have had {plain:.3f}"
            )
        return ""


def _logloss(predicted: NDArray[np.float64] | np.floating, labels: NDArray[np.float64]) -> float:
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(-(labels * np.log(p) + (1 - labels) * np.log1p(-p)).mean())
