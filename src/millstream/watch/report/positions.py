"""What a position is worth by itself: how often one looks at it, whatever stands there."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream.watch.report.part import Floats

TURNS: Final = 100
ENOUGH: Final = 20.0
"""Positives at a position below which nothing is said of it."""


def examination(shown: NDArray[Any], positive: NDArray[Any]) -> Floats:
    """How often each position is looked at, beside the first, float64 [positions]: from impressions and positives
    [items, positions]. NaN where too little was liked.

    The examination hypothesis (Richardson, Dominowska and Ragno, 2007; Craswell et al., 2008): a positive at position p
    of item i comes with probability look[p] * worth[i]. Both are found by turns, as the likeliest of Poisson counts. An
    item is taken to be worth the same to all: where a good ranker puts up for each person what this person likes,
    positions far up look better than they are.
    """
    n, liked = np.asarray(shown, np.float64), np.asarray(positive, np.float64)
    moving = (liked.sum(axis=1) > 0) & ((n > 0).sum(axis=1) > 1)  # an item that stood in one place tells nothing
    n, liked = n[moving], liked[moving]
    by_position, by_item = liked.sum(axis=0), liked.sum(axis=1)
    look: Floats = np.ones(n.shape[1])
    for _ in range(TURNS):
        worth = by_item / np.maximum(n @ look, 1e-12)
        look = by_position / np.maximum(worth @ n, 1e-12)
        if not look[0] > 0:
            return np.full(len(look), np.nan)
        look = look / look[0]
    return np.where(by_position >= ENOUGH, look, np.nan)
