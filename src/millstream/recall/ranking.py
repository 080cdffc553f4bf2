"""Numbers in order of a key, kept as keys change: what "most liked" and "newest" are made of.

Rules of the room:
- Most numbers lie in sorted arrays that nobody writes to; those whose keys changed lately stand apart, and are merged
  in when they are many. So a change costs little, a look at the top costs what it looks at, and both are exact.
- Of equal keys the lower number comes first: the order is a function of the keys, not of how they came about.
- One thread writes, any number look.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.recall.scene import Bits, Numbers

Keys = NDArray[np.float64]
_LATELY_MAX: Final = 1024
_LATELY_PART: Final = 256  # or one in so many: a merge copies all, so many small ones would cost by the square
_CHUNK: Final = 1024
_SCAN_MAX: Final = 1 << 16
"""So far down the order somebody looks; with less found, what is allowed is looked up instead."""


class _Base(NamedTuple):
    """`ordered` numbers, highest key first, and their `keys`; `numbers` ascending, and the keys of those (`values`)."""

    ordered: Numbers
    keys: Keys
    numbers: Numbers
    values: Keys


class Ranking:
    """Numbers by key, highest first. A number without a key is not in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base = _based(np.empty(0, np.int32), np.empty(0, np.float64))
        self._lately: dict[int, float] = {}
        self._apart: tuple[Numbers, Keys] | None = None

    def __len__(self) -> int:
        """About how many numbers are in it: those that were put lately may count twice."""
        return len(self._base.numbers) + len(self._lately)

    def key(self, number: int) -> float | None:
        """The key of a number; None without one. For the thread that writes."""
        found = self._lately.get(number)
        if found is None:
            numbers = self._base.numbers
            at = int(np.searchsorted(numbers, np.int32(number)))  # of another type it would cast all of them
            if at < len(numbers) and numbers[at] == number:
                return float(self._base.values[at])
        return found

    def put(self, number: int, key: float) -> None:
        """Give a number its key, or another one."""
        with self._lock:
            self._lately[number] = key
            self._apart = None
        if len(self._lately) >= max(_LATELY_MAX, len(self._base.numbers) // _LATELY_PART):
            self._merge()

    def fill(self, numbers: Numbers, keys: Keys) -> None:
        """These, none twice, take the place of all that is here."""
        self._swap(_based(numbers, keys))

    def scale(self, factor: float) -> None:
        """Multiply all keys by `factor`, above 0. Exact for a power of two, down to where numbers end."""
        self._merge()
        base = self._base
        self._swap(base._replace(keys=base.keys * factor, values=base.values * factor))

    def trim(self, count: int) -> None:
        """Keep the `count` highest alone."""
        self._merge()
        self._swap(_based(self._base.ordered[:count].copy(), self._base.keys[:count].copy()))

    def all(self) -> tuple[Numbers, Keys]:
        """(numbers ascending, their keys). For the thread that writes."""
        self._merge()
        return self._base.numbers, self._base.values

    def top(self, k: int, allowed: Bits) -> tuple[Numbers, Keys]:
        """The `k` allowed numbers with the highest keys, highest first, and the keys."""
        with self._lock:
            base = self._base
            if self._apart is None:
                count = len(self._lately)
                order = np.argsort(lately := np.fromiter(self._lately, np.int32, count))
                self._apart = lately[order], np.fromiter(self._lately.values(), np.float64, count)[order]
            apart, apart_keys = self._apart
        numbers, keys = _from_base(base, k, allowed, apart)
        if len(apart):
            may = allowed.test(apart)
            numbers, keys = np.concatenate((numbers, apart[may])), np.concatenate((keys, apart_keys[may]))
            order = np.lexsort((numbers, -keys))[:k]
            numbers, keys = numbers[order], keys[order]
        return numbers, keys

    def _merge(self) -> None:
        """Put what changed lately in its place among the others."""
        if not self._lately:
            return
        count = len(self._lately)
        numbers = np.fromiter(self._lately, np.int32, count)
        keys = np.fromiter(self._lately.values(), np.float64, count)
        order = np.lexsort((numbers, -keys))
        numbers, keys = numbers[order], keys[order]
        base = self._base
        kept = ~np.isin(base.ordered, numbers)
        ordered, ordered_keys = base.ordered[kept], base.keys[kept]
        low = np.searchsorted(-ordered_keys, -keys, side="left")
        high = np.searchsorted(-ordered_keys, -keys, side="right")
        for at in np.flatnonzero(low < high).tolist():  # among equal keys, by number
            low[at] += np.searchsorted(ordered[low[at] : high[at]], numbers[at])
        ordered, ordered_keys = np.insert(ordered, low, numbers), np.insert(ordered_keys, low, keys)
        ascending = np.argsort(numbers)
        numbers, keys = numbers[ascending], keys[ascending]
        old, values = base.numbers, base.values.copy()
        places = np.searchsorted(old, numbers)
        known = places < len(old)
        known[known] = old[places[known]] == numbers[known]
        values[places[known]] = keys[known]
        new = ~known
        old, values = np.insert(old, places[new], numbers[new]), np.insert(values, places[new], keys[new])
        self._swap(_Base(ordered, ordered_keys, old, values))

    def _swap(self, base: _Base) -> None:
        with self._lock:
            self._base, self._lately, self._apart = base, {}, None


def _based(numbers: Numbers, keys: Keys) -> _Base:
    order, ascending = np.lexsort((numbers, -keys)), np.argsort(numbers)
    return _Base(numbers[order], keys[order], numbers[ascending], keys[ascending])


def _from_base(base: _Base, k: int, allowed: Bits, without: Numbers) -> tuple[Numbers, Keys]:
    """The highest `k` of the base that are allowed and not among `without`, ascending numbers."""
    found: list[NDArray[np.int64]] = []
    count, start, step = 0, 0, _CHUNK
    while count < k and start < len(base.ordered):
        if start >= _SCAN_MAX:
            return _looked_up(base, k, allowed, without)
        chunk = base.ordered[start : start + step]
        places = np.flatnonzero(allowed.test(chunk) & ~_among(chunk, without)) + start
        found.append(places)
        count, start, step = count + len(places), start + step, 2 * step
    if not found:
        return base.ordered[:0], base.keys[:0]
    chosen = np.concatenate(found)[:k]
    return base.ordered[chosen], base.keys[chosen]


def _looked_up(base: _Base, k: int, allowed: Bits, without: Numbers) -> tuple[Numbers, Keys]:
    may = allowed.numbers()
    may = may[~_among(may, without)]
    places = np.searchsorted(base.numbers, may)
    known = places < len(base.numbers)
    known[known] = base.numbers[places[known]] == may[known]
    numbers, keys = may[known], base.values[places[known]]
    if len(keys) > k:
        high = keys >= np.partition(keys, len(keys) - k)[len(keys) - k]
        numbers, keys = numbers[high], keys[high]
    order = np.lexsort((numbers, -keys))[:k]
    return numbers[order], keys[order]


def _among(numbers: Numbers, ascending: Numbers) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(numbers), np.bool_)
    places = np.minimum(np.searchsorted(ascending, numbers), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[places] == numbers
    return found
