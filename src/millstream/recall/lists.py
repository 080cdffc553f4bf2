"""Lists of codes by item number, and of item numbers by code: packed, changed by one thread, read by any.

Rules of the room:
- What a reader got stays as it was: growing and removing make new arrays and swap them in, adding writes behind what
  was handed out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream.recall.scene import Numbers

Codes = NDArray[np.int32]
LENGTH_MAX: Final = 255
_NONE: Final = np.empty(0, np.int32)


class Lists:
    """Codes int32 by item number. A list is written behind the others; when the room is out, that of replaced ones is
    taken back."""

    def __init__(self) -> None:
        # Where a list lies is one number, start * 256 + length, so that a reader never sees half of it.
        self._kept = (np.empty(1024, np.int32), np.zeros(1024, np.int64))
        self._end = 0

    def put(self, number: int, codes: Codes) -> None:
        """Replace the list of `number`. At most LENGTH_MAX codes."""
        flat, where = self._kept
        if number >= len(where):
            where = np.concatenate((where, np.zeros(max(number + 1, 2 * len(where)) - len(where), np.int64)))
        if self._end + len(codes) > len(flat):
            flat, where = self._packed(flat, where, number, len(codes))
        flat[self._end : self._end + len(codes)] = codes
        where[number] = self._end * 256 + len(codes)
        self._end += len(codes)
        self._kept = flat, where

    def of(self, number: int) -> Codes:
        """The list of `number`, empty where none was put."""
        flat, where = self._kept
        if not 0 <= number < len(where):
            return _NONE
        start, length = divmod(int(where[number]), 256)
        return flat[start : start + length]

    def lengths(self, numbers: Numbers) -> NDArray[np.int64]:
        """int64, as many as `numbers`: how long the list of each is. Every number is one of the catalogue's."""
        where = self._kept[1]
        found: NDArray[np.int64] = where[np.minimum(numbers, len(where) - 1)] & 255
        found[numbers >= len(where)] = 0
        return found

    def flat(self, count: int) -> tuple[NDArray[np.int64], Codes]:
        """(starts int64 [count + 1], codes): all lists one behind the other, that of number i from starts[i] to
        starts[i + 1]."""
        flat, where = self._kept
        lengths, first = np.zeros(count, np.int64), where[:count]
        lengths[: len(first)] = first & 255
        starts = np.concatenate(([0], np.cumsum(lengths)))
        old = np.zeros(count, np.int64)
        old[: len(first)] = first >> 8
        return starts, flat[np.repeat(old - starts[:-1], lengths) + np.arange(starts[-1])]

    @classmethod
    def made(cls, starts: NDArray[np.int64], codes: Codes) -> Lists:
        """What `flat` gave, again."""
        lists = cls()
        lists._kept = codes.copy(), starts[:-1] * 256 + np.diff(starts)
        lists._end = len(codes)
        return lists

    def _packed(self, flat: Codes, where: NDArray[np.int64], number: int, room: int) -> tuple[Codes, NDArray[np.int64]]:
        """Copies with room for so many more, without what was replaced."""
        where = where.copy()
        where[number] = 0
        lengths = where & 255
        starts = np.cumsum(lengths) - lengths
        self._end = int(lengths.sum())
        grown = np.empty(max(1024, 2 * (self._end + room)), np.int32)
        grown[: self._end] = flat[np.repeat((where >> 8) - starts, lengths) + np.arange(self._end)]
        return grown, starts * 256 + lengths


class Inverted:
    """Item numbers by code, in the order in which they were added, -1 in the place of those that were removed."""

    def __init__(self) -> None:
        self._lists: list[Numbers] = []
        self._counts: list[int] = []  # entries, with those that were removed
        self._gone: list[int] = []

    def of(self, code: int) -> Numbers:
        """The numbers under `code`, each once, and -1 here and there; empty where there are none."""
        if not 0 <= code < len(self._counts):
            return _NONE
        count = self._counts[code]
        return self._lists[code][:count]

    def count(self, code: int) -> int:
        """How many numbers are under `code`."""
        return self._counts[code] - self._gone[code] if 0 <= code < len(self._counts) else 0

    def add(self, codes: Iterable[int], number: int) -> None:
        """Put `number` under each of `codes`; it is under none of them yet."""
        for code in codes:
            while code >= len(self._counts):
                self._lists.append(_NONE)
                self._gone.append(0)
                self._counts.append(0)
            numbers, count = self._lists[code], self._counts[code]
            if count == len(numbers):
                numbers = np.concatenate((numbers, np.empty(max(4, count), np.int32)))
                self._lists[code] = numbers
            numbers[count] = number
            self._counts[code] = count + 1

    def remove(self, codes: Iterable[int], number: int) -> None:
        """Take `number` from under each of `codes`; it is there. Costs a look through each list."""
        for code in codes:
            numbers = self.of(code)
            numbers[np.flatnonzero(numbers == number)] = -1
            self._gone[code] += 1
            if 2 * self._gone[code] > len(numbers):
                kept = numbers[numbers >= 0]
                self._counts[code], self._gone[code] = len(kept), 0  # the count first: no reader runs over the end
                self._lists[code] = kept

    @classmethod
    def made(cls, starts: NDArray[np.int64], codes: Codes) -> Inverted:
        """Of all lists by number at once, as `Lists.flat` gives them."""
        inverted = cls()
        if len(codes):
            owners = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
            order = np.argsort(codes, kind="stable")
            counts = np.bincount(codes)
            inverted._lists = np.split(owners[order], np.cumsum(counts)[:-1])
            inverted._counts, inverted._gone = counts.tolist(), [0] * len(counts)
        return inverted
