"""Rows that are nearly the same, by the Jaccard similarity of their tokens.

Candidates are found by MinHash (A. Broder, "On the resemblance and containment of documents", 1997): the chance that
two sets have the same smallest hash is their similarity. Those that share a band of hashes are then compared exactly.
The hashes of a whole table of rows are made at once, in arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint32]
Keys = NDArray[np.uint64]

SEED: Final = 20_240_601
DEEP: Final = 2  # hashes of a band: of rows that share 0.8, 1 in 10^7 meets in none of BANDS
BANDS: Final = 16
WIDE: Final = 4  # of a cluster's bands, which should join fewer
GROUPS: Final = 4
_EMPTY: Final = np.uint64(2**64 - 1)


def bands(tokens: Tokens, count: int, deep: int) -> Keys:
    """MinHash of `tokens` [n, width], 0 being no token: uint64 [n, count], each of `deep` smallest hashes together.
    Rows without a token meet nobody."""
    random = np.random.default_rng(SEED)
    factors = random.integers(1, 2**63, count * deep, np.uint64) * np.uint64(2) + np.uint64(1)
    added = random.integers(0, 2**63, count * deep, np.uint64)
    wide = tokens.astype(np.uint64)
    nothing = tokens == 0
    found = np.zeros((len(tokens), count), np.uint64)
    for number in range(count * deep):
        hashes = (wide * factors[number] + added[number]) >> np.uint64(32)
        hashes[nothing] = _EMPTY
        least = hashes.min(axis=1, initial=_EMPTY)
        band = number // deep
        found[:, band] = (found[:, band] ^ least) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(band)
    bare = nothing.all(axis=1)
    found[bare] = np.arange(int(bare.sum()), dtype=np.uint64)[:, None]
    return found


def similarity(one: Tokens, others: Tokens) -> NDArray[np.float64]:
    """Jaccard similarity of the set of tokens `one` [width] to each of `others` [n, width]: float64 [n]."""
    own = np.unique(one[one != 0])
    ordered = np.sort(others, axis=1)
    first = np.ones(ordered.shape, np.bool_)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first &= ordered != 0
    both = (np.isin(ordered, own) & first).sum(axis=1)
    either = first.sum(axis=1) + len(own) - both
    return np.asarray(both / np.maximum(either, 1), np.float64)


class Kept:
    """Rows that are kept, against which another is held. `near`: the similarity from which it is a duplicate."""

    def __init__(self, near: float) -> None:
        self._near = near
        self._rows: list[Tokens] = []
        self._bands: list[dict[int, list[int]]] = [{} for _ in range(BANDS)]

    def add(self, row: Tokens, keys: Keys | None = None) -> bool:
        """Keep a row [width], unless one that is kept is nearly the same; whether it was kept. `keys`: its `bands`."""
        keys = bands(row[None], BANDS, DEEP)[0] if keys is None else keys
        words = [int(key) for key in keys]
        places = sorted({place for band, word in zip(self._bands, words, strict=True) for place in band.get(word, ())})
        alike = [self._rows[place] for place in places if len(self._rows[place]) == len(row)]
        if alike and float(similarity(row, np.stack(alike)).max()) >= self._near:
            return False
        for band, word in zip(self._bands, words, strict=True):
            band.setdefault(word, []).append(len(self._rows))
        self._rows.append(row)
        return True


def clusters(tokens: Tokens, alike: float, least: int, most: int) -> Iterator[NDArray[np.int64]]:
    """Groups of `least` to `most` rows of [n, width] that share `alike` of their tokens with the group's first row; a
    row may be in several. Of a larger group the first `most` rows are looked at."""
    keys = bands(tokens, GROUPS, WIDE)
    for band in range(GROUPS):
        order = np.argsort(keys[:, band], kind="stable")
        ordered = keys[order, band]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, np.int64)
        sizes = np.diff(np.append(starts, len(ordered)))
        for start, size in zip(starts[sizes >= least].tolist(), sizes[sizes >= least].tolist(), strict=True):
            rows = order[start : start + min(size, most)]
            rows = rows[similarity(tokens[rows[0]], tokens[rows]) >= alike]
            if len(rows) >= least:
                yield rows
