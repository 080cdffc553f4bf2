"""What the catalogue got of it all: how much of it was shown, how evenly, and how well known that was.

How many different items are shown grows with how much is shown, so policies are compared after as many impressions:
of each block of people as many are drawn as the smallest block has (rarefaction: Hurlbert, 1971). What blocks say apart
makes the interval.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream.watch.report.part import Floats

LEAST: Final = 20
"""Impressions of a block below which nothing is said of it."""
SEED: Final = 20_260_101


def coverage(shown: NDArray[Any]) -> float:
    """Share of the items, of impressions [items], that were shown at all."""
    return float((shown > 0).mean()) if len(shown) else float("nan")


def gini(shown: NDArray[Any]) -> float:
    """How unevenly impressions [items] lie: 0 where each item has as many, towards 1 where one has all (Gini, 1912).
    Items that were never shown count. No impression: no number."""
    total, n = float(shown.sum()), len(shown)
    if not total:
        return float("nan")
    ranks = np.arange(1, n + 1)
    return float((2.0 * (ranks * np.sort(shown.astype(np.float64))).sum() / total - (n + 1)) / n)


def surprise(liked: NDArray[np.int64], shown: NDArray[Any]) -> Floats:
    """How little known each item is, float64 [items], bits: -log2 of its share of all that was liked, or where nothing
    was, of all that was shown; each with one more, so that none is beyond all measure. The mean over impressions is
    the novelty of what was shown (mean self-information: Zhou et al., 2010)."""
    counts = liked if liked.any() else shown
    share = (counts + 1.0) / (float(counts.sum()) + len(counts))
    return np.asarray(-np.log2(share), np.float64)


def novelty(shown: NDArray[Any], bits: Floats) -> float:
    """Mean bits of what was shown; no number for nothing."""
    total = float(shown.sum())
    return float(shown @ bits) / total if total else float("nan")


def alike(blocks: list[NDArray[Any]], seed: int = SEED) -> list[NDArray[np.int64]]:
    """Each policy's blocks [BLOCKS, items] as if every block, of every policy, had as many impressions as the smallest
    of those with LEAST or more; the others are left out. Which ones, chance says, the same for the same `seed`."""
    sizes = [block.sum(axis=1, dtype=np.int64) for block in blocks]
    enough = [int(size) for of in sizes for size in of if size >= LEAST]
    if not enough:
        return [np.zeros((0, block.shape[1]), np.int64) for block in blocks]
    least, random = min(enough), np.random.default_rng(seed)
    found = []
    for block, size in zip(blocks, sizes, strict=True):
        rows = [
            random.multivariate_hypergeometric(row.astype(np.int64), least, method="marginals")
            for row in block[size >= LEAST]
        ]
        found.append(np.array(rows, np.int64).reshape(len(rows), block.shape[1]))
    return found
