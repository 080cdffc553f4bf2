"""Sums of weights by item: of a few lists of items, each of some thousands, among up to millions."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from millstream.native import f32, f64, given, i32, i64, kernel, u8
from millstream.recall.scene import Bits, Numbers


class Sums:
    """Adds weights by item number, one user of it at a time in each thread, without clearing what nobody touched."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def over(self, count: int) -> Sums:
        """For so many items."""
        kept: NDArray[np.float32] | None = getattr(self._mine, "sums", None)
        if kept is None or len(kept) < count:
            self._mine.sums = np.zeros(max(1024, count + count // 8), np.float32)
        self._mine.touched, self._mine.count = np.empty(1024, np.int32), 0
        return self

    def __enter__(self) -> Sums:
        return self

    def __exit__(self, *_: object) -> None:
        self._mine.sums[self._mine.touched[: self._mine.count]] = 0

    def add(self, numbers: Numbers, weight: float, allowed: Bits) -> None:
        """Add `weight`, above 0, to those of `numbers`, none twice, that are allowed."""
        mine = self._mine
        if (room := mine.count + len(numbers)) > len(mine.touched):
            mine.touched = np.resize(mine.touched, max(room, 2 * len(mine.touched)))
        packed, n = allowed.bytes, min(allowed.n, len(mine.sums))
        mine.count = int(_add(np.ascontiguousarray(numbers), weight, packed, n, mine.sums, mine.touched, mine.count))

    def found(self) -> tuple[Numbers, NDArray[np.float32]]:
        """Every number that got something, once, and its sum."""
        numbers = self._mine.touched[: self._mine.count].copy()
        return numbers, self._mine.sums[numbers]


@kernel(i64(given(i32), f64, given(u8), i64, f32[::1], i32[::1], i64))
def _add(
    numbers: Numbers, weight: float, allowed: NDArray[np.uint8], n: int, sums: NDArray[np.float32], touched: Numbers,
    count: int,
) -> int:  # fmt: skip
    """How many of `touched` there are then. One pass without the GIL: as numpy's steps it is five times the work, and
    who answers waits for each of them."""
    for at in range(len(numbers)):
        number = numbers[at]
        if 0 <= number < n and (allowed[number >> 3] >> (number & 7)) & 1:
            if sums[number] == 0:
                touched[count] = number
                count += 1
            sums[number] += np.float32(weight)
    return count
