"""How good are scores, once the labels are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting half (Mann-Whitney U).

    `labels` [n] 0/1, `scores` [n]. NaN when one of the classes is missing.
    """
    positive = np.asarray(labels, np.bool_)
    _, place, count = np.unique(np.asarray(scores, np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    ranks = (ends - (count - 1) / 2)[place]
    n, p = len(positive), int(positive.sum())
    if p in (0, n):
        return float("nan")
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))
