"""Sums of each person, from parts of a log in any order.

A group is an arm, or `PAST`: what somebody did before the experiment began. Memory: 8 bytes a column and 8 beside them
for each person and group, and three times that while parts come.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PAST: Final = 15
ARMS_MAX: Final = 15
_GROUP: Final = np.uint64(15)  # the low bits of a key: persons are hashes, of which sixty bits tell them apart
_PENDING: Final = 1 << 18


class People:
    """Sums of `width` columns."""

    def __init__(self, width: int) -> None:
        self._keys: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._sums: Floats = np.zeros((width, 0))
        self._parts: list[tuple[NDArray[np.uint64], Floats]] = []
        self._pending = 0

    def add(self, person: NDArray[np.uint64], group: NDArray[np.int64], columns: Floats) -> None:
        """Count n things: `person` [n], a hash of who did it; `group` [n], 0 to 15; `columns` float64 [width, n]."""
        key = (person & ~_GROUP) | group.astype(np.uint64)
        self._parts.append(_summed(key, columns))
        self._pending += len(self._parts[-1][0])
        if self._pending > max(_PENDING, len(self._keys)):
            self._merge()

    def apart(self, arms: int) -> tuple[list[Floats], int]:
        """Of each arm, whose people were in it alone: their columns in the arm, and then in the past, 0 where they had
        none, float64 [2 * width, people]; and how many people were in several arms, who are left out."""
        self._merge()
        group = (self._keys & _GROUP).astype(np.int64)
        person = self._keys & ~_GROUP
        there = group < arms
        seen, times = np.unique(person[there], return_counts=True)
        crossed = seen[times > 1]
        past = np.flatnonzero(group == PAST)
        found = []
        for arm in range(arms):
            mine = np.flatnonzero((group == arm) & ~np.isin(person, crossed))
            before = np.zeros((len(self._sums), len(mine)))
            if len(past) and len(mine):
                near = np.minimum(np.searchsorted(person[past], person[mine]), len(past) - 1)
                hit = person[past[near]] == person[mine]
                before[:, hit] = self._sums[:, past[near[hit]]]
            found.append(np.concatenate((self._sums[:, mine], before)))
        return found, len(crossed)

    def _merge(self) -> None:
        if self._parts:
            parts = [(self._keys, self._sums), *self._parts]
            keys, sums = (np.concatenate(one, axis=-1) for one in zip(*parts, strict=True))
            self._keys, self._sums = _summed(keys, sums)
            self._parts, self._pending = [], 0


def _summed(keys: NDArray[np.uint64], columns: Floats) -> tuple[NDArray[np.uint64], Floats]:
    """Each key once, in order, with the sums of its columns."""
    found, place = np.unique(keys, return_inverse=True)
    place = place.reshape(-1)
    sums = [np.bincount(place, column, len(found)) for column in columns]
    return found, np.array(sums, np.float64).reshape(len(columns), len(found))
