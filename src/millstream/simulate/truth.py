"""What scores and orders are worth, where the probabilities behind the coins are known: no luck of the coin in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from millstream.simulate.world import Ask, looked_at


def auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """The AUC that `scores` [n] would have over all coins with probabilities `truth` [n]: the chance that of a click
    and a non-click the click has the higher score, ties counting half. NaN where there can be only one of the two."""
    found, chance = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    _, place = np.unique(found, return_inverse=True)
    yes, no = np.bincount(place, chance), np.bincount(place, 1 - chance)
    if (total := yes.sum() * no.sum()) <= 0:
        return float("nan")
    return float(((np.cumsum(no) - no / 2) * yes).sum() / total)


def expected(ask: Ask, order: NDArray[np.int64]) -> float:
    """Clicks that this order of the candidates has on average."""
    return float(looked_at(len(order)) @ ask.truth[order])


def best(ask: Ask) -> NDArray[np.int64]:
    """The order with the most clicks: by the truth."""
    return np.argsort(-ask.truth, kind="stable")


class Regret:
    """Clicks that the best order would have had and the given one had not, request by request."""

    def __init__(self) -> None:
        self.each: list[float] = []

    def add(self, ask: Ask, order: NDArray[np.int64]) -> float:
        """Of this request: 0 at best."""
        lost = expected(ask, best(ask)) - expected(ask, order)
        self.each.append(lost)
        return lost

    def curve(self) -> NDArray[np.float64]:
        """Summed up to each request: a straight line for who never learns, a bend for who does."""
        return np.cumsum(self.each)
