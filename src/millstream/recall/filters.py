"""What may be shown to somebody, as a bitmap over all items, made in the time of a few passes over packed bits.

Rules of the room:
- Each rule of the catalogue has a bitmap that is kept current as items change. A request ANDs those that it needs, and
  clears the items that this user must not get: no pass over the items.
- What cannot be known forbids: without an age only items without one, without a region only items without any.
- A request sees each item as it was before a change or after it, never half of it: a lock is held for the ANDs.
- What is forbidden is never given up for want of candidates; see flows/rerank.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.recall.attributes import AGE_MAX
from millstream.recall.catalogue import Catalogue
from millstream.recall.histories import Shown
from millstream.recall.scene import Bits, History, Numbers

Packed = NDArray[np.uint8]
NONE: Final = np.empty(0, np.int32)
_LEAST: Final = 128  # bytes of a mask: 1024 items


class Rule(msgspec.Struct, frozen=True):
    """What holds for a request. `region`: where it is from, empty: unknown; `age`: of the user in years, NaN: unknown;
    `stock`: only what is in stock; `seen_s`: what was shown to the user within so many seconds does not come, 0: it
    may; `done`: nor what the user did one of these kinds of things with (places in Histories.kinds)."""

    region: str = ""
    age: float = math.nan
    stock: bool = True
    seen_s: float = 0.0
    done: tuple[int, ...] = ()


class Filters:
    """Bitmaps over the items of a catalogue, which it watches."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._begin(_LEAST)
        catalogue.watch(self)

    def _begin(self, size: int) -> None:
        self._n = 0
        self._there, self._stocked, self._everywhere = (np.zeros(size, np.uint8) for _ in range(3))
        self._regions = np.zeros((0, size), np.uint8)  # a row a region
        # Row i has the items that somebody of ages[i] may see, so a request needs one of them. There is a step for
        # each age that an item asks for, and 0 for those that ask for none.
        self._ages, self._by_age = [0], np.zeros((1, size), np.uint8)

    @property
    def n(self) -> int:
        """How many items the bitmaps are over."""
        return self._n

    def allowed(
        self, rule: Rule, history: History | None = None, blocked: Numbers = NONE, exclude: Numbers = NONE,
        shown: Shown | None = None, now: float = 0.0,
    ) -> Bits:  # fmt: skip
        """A fresh bitmap of what may be recommended. `blocked`: items that the user wants no more of; `exclude`: that
        the caller does not want; -1 and strange numbers in either are harmless. `now`: unix seconds, for `seen_s`."""
        with self._lock:
            size = (self._n + 7) // 8
            found = Bits((self._stocked if rule.stock else self._there)[:size].copy(), self._n)
            packed = found.bytes
            code = self._catalogue.regions.code(rule.region.strip()) if rule.region else -1
            if 0 <= code < len(self._regions):
                packed &= self._everywhere[:size] | self._regions[code][:size]
            else:
                packed &= self._everywhere[:size]
            packed &= self._by_age[self._step(rule.age)][:size]
        away = gone(rule, history, blocked, exclude, shown, now)
        if len(away):
            found.clear(away)
        return found

    def there(self, numbers: Numbers) -> NDArray[np.bool_]:
        """bool, as many as `numbers`: which of them are there now and blocked for nobody. An item may go between a
        scene and its answer."""
        with self._lock:
            return Bits(self._there[: (self._n + 7) // 8], self._n).test(numbers)

    def changed(self, number: int) -> None:
        """Take in how an item is now. For the catalogue."""
        catalogue = self._catalogue
        there = bool(catalogue.alive[number] and not catalogue.blocked[number])
        regions, age = catalogue.regions_of(number).tolist(), float(catalogue.min_age[number])
        with self._lock:
            self._grow(number, len(catalogue.regions.names))
            if age <= AGE_MAX:
                self._insert(int(age))
            _put(self._there, number, there)
            _put(self._stocked, number, there and bool(catalogue.stock[number]))
            _put(self._everywhere, number, not regions)
            at, bit = number >> 3, 1 << (number & 7)
            if len(self._regions):
                self._regions[:, at] &= 255 - bit
                self._regions[[code for code in regions if code >= 0], at] |= bit
            step = bisect_left(self._ages, age)
            self._by_age[:step, at] &= 255 - bit
            self._by_age[step:, at] |= bit
            self._n = max(self._n, number + 1)

    def rebuilt(self) -> None:
        """Make every bitmap anew from the columns. For the catalogue."""
        catalogue, n = self._catalogue, self._catalogue.count
        there = catalogue.alive[:n] & ~catalogue.blocked[:n]
        starts, codes = catalogue.region_lists()
        owners = np.repeat(np.arange(n, dtype=np.int32), np.diff(starts))
        ages = catalogue.min_age[:n]
        steps = sorted({0, *np.unique(ages[ages <= AGE_MAX]).astype(int).tolist()})
        with self._lock:
            self._begin(max(_LEAST, (n + 7) // 8))
            size = len(self._there)
            self._there, self._stocked = _packed(there, size), _packed(there & catalogue.stock[:n], size)
            self._everywhere = _packed(np.diff(starts) == 0, size)
            self._regions = np.zeros((len(catalogue.regions.names), size), np.uint8)
            for code, row in enumerate(self._regions):
                mask = np.zeros(n, np.bool_)
                mask[owners[codes == code]] = True
                row[:] = _packed(mask, size)
            self._ages, self._by_age = steps, np.stack([_packed(ages <= step, size) for step in steps])
            self._n = n

    def _step(self, age: float) -> int:
        return max(0, bisect_right(self._ages, age) - 1) if age > 0 else 0  # false for NaN

    def _insert(self, age: int) -> None:
        """A step for an age, beginning with what those of the step below may see."""
        at = bisect_left(self._ages, age)
        if at == len(self._ages) or self._ages[at] != age:
            self._ages.insert(at, age)
            self._by_age = np.insert(self._by_age, at, self._by_age[at - 1], axis=0)

    def _grow(self, number: int, regions: int) -> None:
        if number >> 3 >= (size := len(self._there)):
            self._there, self._stocked, self._everywhere, self._regions, self._by_age = (
                np.concatenate((masks, np.zeros((*masks.shape[:-1], size), np.uint8)), axis=-1)
                for masks in (self._there, self._stocked, self._everywhere, self._regions, self._by_age)
            )
        if (more := regions - len(self._regions)) > 0:
            self._regions = np.concatenate((self._regions, np.zeros((more, self._regions.shape[1]), np.uint8)))


def gone(
    rule: Rule, history: History | None = None, blocked: Numbers = NONE, exclude: Numbers = NONE,
    shown: Shown | None = None, now: float = 0.0,
) -> Numbers:  # fmt: skip
    """The items that one user must not get, by the part of a rule that goes by who it is; see `Filters.allowed`."""
    return np.concatenate((blocked, exclude, _done(rule, history), _seen(rule, shown, now)), dtype=np.int32)


def _done(rule: Rule, history: History | None) -> Numbers:
    if history is None or not rule.done or not len(history.numbers):
        return NONE
    kinds = history.kinds
    mask = np.zeros(len(kinds), np.bool_)
    for kind in rule.done:
        mask |= kinds == kind
    return history.numbers[mask]


def _seen(rule: Rule, shown: Shown | None, now: float) -> Numbers:
    if shown is None or rule.seen_s <= 0:
        return NONE
    lately: Numbers = shown.numbers[shown.times > now - rule.seen_s]
    return lately


def _packed(mask: NDArray[np.bool_], size: int) -> Packed:
    packed = np.zeros(size, np.uint8)
    bits = np.packbits(mask, bitorder="little")
    packed[: len(bits)] = bits
    return packed


def _put(mask: Packed, number: int, on: bool) -> None:
    bit = 1 << (number & 7)
    if on:
        mask[number >> 3] |= bit
    else:
        mask[number >> 3] &= 255 - bit
