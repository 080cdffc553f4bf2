"""When each token was said, by where a decoder looked (Radford et al., 2022, and their code): attention of some heads,
evened out, and the way through it that costs least."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTH = 7
# A network of comparisons that leaves the median of seven in the fourth place (Knuth, volume 3; Devillard, 1998).
_MEDIAN = ((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4))


def costs(seen: NDArray[np.float32]) -> NDArray[np.float64]:
    """[tokens, positions] of seen [heads, tokens, positions], which is how much of a head's attention went where."""
    sure = seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1e-30)
    spread = np.maximum(sure.std(axis=-2, keepdims=True), 1e-30)
    evened = _median((sure - sure.mean(axis=-2, keepdims=True)) / spread)
    found: NDArray[np.float64] = -evened.mean(axis=0, dtype=np.float64)
    return found


def path(cost: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Dynamic time warping: pairs of token and position from the first to the last of both, each next to the one
    before, of the least cost in all."""
    spent = np.empty(cost.shape)
    before = np.full(cost.shape[1], np.inf)
    for row, (one, sums) in enumerate(zip(cost, np.cumsum(cost, axis=1), strict=True)):
        # the way into a place comes from the row before, or goes on in this one from such a place
        into = np.minimum(before, np.concatenate([[np.inf if row else 0.0], before[:-1]])) + one
        before = spent[row] = sums + np.minimum.accumulate(into - sums)
    return _back(spent)


def _back(spent: NDArray[np.float64]) -> list[tuple[int, int]]:
    rows: list[list[Any]] = spent.tolist()
    token, position = len(rows) - 1, len(rows[0]) - 1
    found = [(token, position)]
    while token or position:
        ways = []
        if token and position:
            ways.append((rows[token - 1][position - 1], token - 1, position - 1))
        if token:
            ways.append((rows[token - 1][position], token - 1, position))
        if position:
            ways.append((rows[token][position - 1], token, position - 1))
        _, token, position = min(ways, key=lambda way: way[0])
        found.append((token, position))
    return found[::-1]


def _median(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The median of each seven places next to each other; ends are mirrored. Fewer than four stay as they are."""
    count = values.shape[-1]
    if count <= _WIDTH // 2:
        return values
    wide = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(_WIDTH // 2, _WIDTH // 2)], mode="reflect")
    lanes = [wide[..., at : at + count] for at in range(_WIDTH)]
    for low, high in _MEDIAN:
        lanes[low], lanes[high] = np.minimum(lanes[low], lanes[high]), np.maximum(lanes[low], lanes[high])
    return lanes[_WIDTH // 2]
