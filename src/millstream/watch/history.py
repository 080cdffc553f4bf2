"""What was read, for as long as rules look back.

Rules of the room:
- Four resolutions: 10 s for an hour, a minute for 26 hours, ten minutes for three days, an hour for 31 days. A window
  is answered by the finest that reaches so far back, in whole steps.
- A count adds up within a step; of a level the mean within a step is kept. Columns are shared by all keys, as all are
  read at the same moments.
- Time only goes on: what was read before the newest step is counted into the newest.
- Bounded: at most `keys_max` keys; when more come, the one that was not read for longest goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from millstream.watch.reading import Key

STEPS: Final = ((10.0, 361), (60.0, 1561), (600.0, 433), (3600.0, 745))
"""Seconds of a step, and how many of them."""
_ROWS = 64
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class _Ring:
    """One resolution: a row a key, a column a step."""

    def __init__(self, step: float, columns: int) -> None:
        self.step, self.columns = step, columns
        self.sums = np.zeros((_ROWS, columns))
        self.times = np.zeros((_ROWS, columns), np.int32)  # how often it was read within the step
        self.stamps = np.full(columns, -1, np.int64)

    def column(self, at: float) -> int:
        """The column of this moment, emptied if it was another's."""
        number = int(at // self.step)
        column = number % self.columns
        if self.stamps[column] != number:
            self.stamps[column] = number
            self.sums[:, column] = 0.0
            self.times[:, column] = 0
        return column

    def within(self, begin: float, end: float) -> Ints:
        """The columns of the steps of (begin, end]."""
        last, first = int(end // self.step), int(begin // self.step) + 1
        numbers = np.arange(max(first, last - self.columns + 1), last + 1)
        columns = numbers % self.columns
        there: Ints = columns[self.stamps[columns] == numbers]
        return there

    def grow(self, rows: int) -> None:
        """Have room for so many keys."""
        more = rows - len(self.sums)
        self.sums = np.concatenate([self.sums, np.zeros((more, self.columns))])
        self.times = np.concatenate([self.times, np.zeros((more, self.columns), np.int32)])


class History:
    """Readings by key and time."""

    def __init__(self, keys_max: int = 4096) -> None:
        self._keys_max = keys_max
        self._rings = [_Ring(step, columns) for step, columns in STEPS]
        self._rows: dict[Key, int] = {}
        self._of: dict[str, dict[Key, None]] = {}  # by quantity
        self._read: Floats = np.full(_ROWS, -np.inf)  # when each row was read last
        self._order: tuple[tuple[Key, ...], Ints] = ((), np.zeros(0, np.int64))
        self.memo: dict[object, object] = {}
        """What others made of its keys; emptied when they change."""
        self.last = -np.inf
        self.forgotten = 0
        """Keys that went for want of room."""

    def add(self, at: float, readings: Mapping[Key, float]) -> None:
        """Take in what was read at `at`, unix seconds."""
        self.take(at, tuple(readings), np.fromiter(readings.values(), np.float64, len(readings)))

    def take(self, at: float, keys: tuple[Key, ...], values: Floats) -> None:
        """As `add`: `values` float64, one a key. Quick where the keys are those of the call before."""
        self.last = at = max(at, self.last)
        if keys != self._order[0]:
            self._order = keys, np.array([self._row(key) for key in keys], np.int64)
        rows = self._order[1]
        self._read[rows] = at
        for ring in self._rings:
            column = ring.column(at)
            ring.sums[rows, column] += values
            ring.times[rows, column] += 1

    def keys(self, quantity: str) -> list[Key]:
        """Everything that this quantity was read of."""
        return list(self._of.get(quantity, ()))

    def counts(self, keys: Sequence[Key], seconds: float, ago: float = 0.0) -> Floats:
        """What each of these counted in the last `seconds`, until `ago` seconds before the last reading."""
        sums, _ = self.window(keys, seconds, ago)
        return sums

    def steps(self, keys: Sequence[Key], seconds: float, ago: float = 0.0) -> Floats:
        """As `counts`, of each step of the window apart: [keys, steps], oldest first; steps without a look are left
        out."""
        rows = self._places(keys)
        ring = self._reaching(seconds + ago)
        columns = ring.within(self.last - ago - seconds, self.last - ago)
        if not len(columns) or not len(rows):
            return np.zeros((len(rows), 0))
        found: Floats = ring.sums[np.ix_(np.maximum(rows, 0), columns)] * (rows >= 0)[:, None]
        return found

    def levels(self, keys: Sequence[Key], seconds: float, ago: float = 0.0) -> Floats:
        """The mean level of each over such a window; NaN where it was not read."""
        sums, times = self.window(keys, seconds, ago)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(times > 0, sums / times, np.nan)

    def series(self, key: Key, seconds: float, level: bool) -> tuple[Floats, Floats]:
        """(unix seconds at which a step began, its count or mean level) over the last `seconds`, oldest first; steps
        in which it was not read are left out."""
        row = self._rows.get(key)
        if row is None:
            return np.zeros(0), np.zeros(0)
        ring = self._reaching(seconds)
        columns = ring.within(self.last - seconds, self.last)
        columns = columns[np.argsort(ring.stamps[columns])]
        columns = columns[ring.times[row, columns] > 0]
        sums, times = ring.sums[row, columns], ring.times[row, columns]
        return ring.stamps[columns] * ring.step, sums / times if level else sums

    def window(self, keys: Sequence[Key], seconds: float, ago: float = 0.0) -> tuple[Floats, Floats]:
        """(the sum of what each of these was, how many looks read it) over such a window."""
        rows = self._places(keys)
        ring = self._reaching(seconds + ago)
        columns = ring.within(self.last - ago - seconds, self.last - ago)
        if not len(columns) or not len(rows):
            return np.zeros(len(rows)), np.zeros(len(rows))
        there = (rows >= 0)[:, None]
        at = np.ix_(np.maximum(rows, 0), columns)
        return (ring.sums[at] * there).sum(axis=1), (ring.times[at] * there).sum(axis=1).astype(np.float64)

    def _places(self, keys: Sequence[Key]) -> Ints:
        """The rows of these keys, -1 of one that was never read. Of a tuple they are known until keys change."""
        memo = cast("dict[object, tuple[Sequence[Key], Ints]]", self.memo)
        if not isinstance(keys, tuple):
            return np.array([self._rows.get(key, -1) for key in keys], np.int64)
        known = memo.get(id(keys))
        if known is None or known[0] is not keys:
            known = memo[id(keys)] = keys, np.array([self._rows.get(key, -1) for key in keys], np.int64)
        return known[1]

    def _reaching(self, seconds: float) -> _Ring:
        return next((ring for ring in self._rings if ring.step * (ring.columns - 1) >= seconds), self._rings[-1])

    def _row(self, key: Key) -> int:
        if (row := self._rows.get(key)) is not None:
            return row
        if len(self._rows) >= self._keys_max:
            row = self._forget()
        else:
            row = len(self._rows)
            if row == len(self._read):
                size = min(2 * row, self._keys_max)
                for ring in self._rings:
                    ring.grow(size)
                self._read = np.concatenate([self._read, np.full(size - row, -np.inf)])
        self._rows[key] = row
        self._of.setdefault(key.quantity, {})[key] = None
        self.memo.clear()
        self._read[row] = self.last
        return row

    def _forget(self) -> int:
        """The row of the key that was not read for longest, emptied."""
        row = int(np.argmin(self._read))
        key = next(key for key, at in self._rows.items() if at == row)
        del self._rows[key], self._of[key.quantity][key]
        for ring in self._rings:
            ring.sums[row] = 0.0
            ring.times[row] = 0
        self.forgotten += 1
        self._order = (), np.zeros(0, np.int64)
        return row
