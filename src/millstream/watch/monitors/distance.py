"""How far what is seen now lies from what was seen before, and how much of that is surely no chance.

Rules of the room:
- Functions of arrays; randomness is an argument.
- Values come in blocks (of half a minute, say): what belongs together, as one person's rows do, comes at one time and
  counts as one. Chance is found by drawing whole blocks again, from each of the two apart, and looking at what moves
  about what was seen (the recentred bootstrap: Hall, The Bootstrap and Edgeworth Expansion, 1992, sections 3.7, 4.4).
- `surely` is the distance less what chance explains in all but one of 400 times, and never below zero: with many rows a
  tiny shift is sure, and is tiny. Below PSI_LEAST and SHIFT_LEAST it is zero without asking chance: that is nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS: Final = 10
DRAWS: Final = 400
CHANCE: Final = 0.9975
SUPPORT: Final = 128
"""Values at which distributions are compared by chance; more are joined by rank."""
BLOCKS_LEAST: Final = 8
ROWS_LEAST: Final = 100
PSI_LEAST: Final = 0.02
SHIFT_LEAST: Final = 0.04


class Values(NamedTuple):
    """Numbers [n], none of them missing, and the block that each came with, int [n]."""

    values: Floats
    blocks: Ints

    @property
    def enough(self) -> bool:
        """Whether they say anything."""
        return len(self.values) >= ROWS_LEAST and len(np.unique(self.blocks)) >= BLOCKS_LEAST


class Distance(NamedTuple):
    """A distance, and what it surely is at least."""

    value: float
    surely: float


def edges(reference: Floats, bins: int = BINS) -> Floats:
    """Upper edges, inclusive, of cells that hold about as much of the reference each; one less than there are cells. A
    reference of few different values has a cell for each, and between them."""
    kinds = np.unique(reference)
    if len(kinds) <= bins:
        return np.unique(np.concatenate([kinds, np.nextafter(kinds, -np.inf)]))
    return np.unique(np.quantile(reference, np.arange(1, bins) / bins))


def psi(expected: Floats, found: Floats) -> float:
    """The population stability index of counts by cells: sum of (q - p) ln(q / p) over their shares p and q (Siddiqi,
    Credit Risk Scorecards, 2006). An empty cell counts as half a row."""
    p, q = _shares(expected), _shares(found)
    return float(((q - p) * np.log(q / p)).sum())


def wasserstein(one: Floats, other: Floats) -> float:
    """Wasserstein's first distance: the area between two distribution functions, in the units of the values."""
    everything = np.sort(np.concatenate([one, other]))
    steps = np.diff(everything)
    below = np.searchsorted(np.sort(one), everything[:-1], "right") / len(one)
    others = np.searchsorted(np.sort(other), everything[:-1], "right") / len(other)
    return float((np.abs(below - others) * steps).sum())


def population(reference: Values, now: Values, random: np.random.Generator) -> Distance:
    """The PSI of two, in cells of the reference."""
    cells = edges(reference.values)
    before, after = _table(reference, cells), _table(now, cells)
    value = psi(before.sum(axis=0), after.sum(axis=0))
    if value < PSI_LEAST:
        return Distance(value, 0.0)
    both = _shares(before.sum(axis=0)) + _shares(after.sum(axis=0))
    moved = _moves(before, after, random)
    return _less_chance(value, (2.0 * moved**2 / both).sum(axis=1))


def shift(reference: Values, now: Values, random: np.random.Generator) -> Distance:
    """Wasserstein's distance of two, in standard deviations of the reference; 0 where that does not vary."""
    scale = float(reference.values.std())
    if not scale > 0:
        return Distance(0.0, 0.0)
    value = wasserstein(reference.values, now.values) / scale
    if value < SHIFT_LEAST:
        return Distance(value, 0.0)
    everything = np.concatenate([reference.values, now.values])
    support = np.unique(everything)
    if len(support) > SUPPORT:
        support = np.unique(np.quantile(everything, np.arange(1, SUPPORT + 1) / SUPPORT, method="inverted_cdf"))
    moved = _moves(_table(reference, support[:-1]), _table(now, support[:-1]), random)
    area = np.abs(np.cumsum(moved, axis=1)[:, :-1]) @ np.diff(support)
    return _less_chance(value, area / scale)


def share_more(before: Floats, rows_before: Floats, now: Floats, rows: Floats) -> Floats:
    """How much larger a share surely is than before: counts by block [blocks, columns] of so many rows [blocks], each;
    float64 [columns]. By the ratio's standard error over blocks (Cochran, Sampling Techniques, 1977, section 6.4), with
    one row more in either, as none of few is not surely never."""
    (was, error_before), (is_, error) = _share(before, rows_before), _share(now, rows)
    surely = is_ - was - 2.81 * np.sqrt(error_before**2 + error**2)
    return np.maximum(surely, 0.0)


def _share(counts: Floats, rows: Floats) -> tuple[Floats, Floats]:
    n, blocks = rows.sum(), len(rows)
    share = counts.sum(axis=0) / n
    spread = ((counts - share * rows[:, None]) ** 2).sum(axis=0) * blocks / max(blocks - 1, 1)
    safe = (counts.sum(axis=0) + 1.0) / (n + 2.0)
    return share, np.maximum(np.sqrt(spread), np.sqrt(n * safe * (1.0 - safe))) / n


def _less_chance(value: float, chance: Floats) -> Distance:
    return Distance(value, max(0.0, value - float(np.quantile(chance, CHANCE))))


def _shares(counts: Floats) -> Floats:
    return np.asarray(np.maximum(counts, 0.5) / counts.sum(), np.float64)


def _table(of: Values, cells: Floats) -> Floats:
    """Counts by block and cell."""
    names, block = np.unique(of.blocks, return_inverse=True)
    width = len(cells) + 1
    at = block * width + np.searchsorted(cells, of.values, "left")
    return np.bincount(at, minlength=len(names) * width).astype(np.float64).reshape(len(names), width)


def _moves(before: Floats, now: Floats, random: np.random.Generator) -> Floats:
    """By how much chance alone moves the difference of shares, [draws, cells]."""
    return _drawn(now, random) - _drawn(before, random)


def _drawn(table: Floats, random: np.random.Generator) -> Floats:
    blocks = len(table)
    which = random.integers(0, blocks, (DRAWS, blocks)) + np.arange(0, DRAWS * blocks, blocks)[:, None]
    times = np.bincount(which.ravel(), minlength=DRAWS * blocks).reshape(DRAWS, blocks).astype(np.float32)
    drawn = times @ table.astype(np.float32)
    rows = np.maximum(drawn.sum(axis=1, keepdims=True), 1.0)
    shares = table.sum(axis=0) / table.sum()
    return np.asarray((drawn / rows - shares) * np.sqrt(blocks / max(blocks - 1, 1)), np.float64)
