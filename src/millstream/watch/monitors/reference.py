"""What rows of a feature set looked like before: samples by the hour, and the rows of the last minutes.

Rules of the room:
- Bounded: an hour keeps a fair sample of its rows (algorithm R: Vitter, "Random sampling with a reservoir", 1985), a
  set keeps HOURS hours and a day that is pinned; rows are fewer where columns are many.
- An hour that is over does not change.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.watch.monitors.distance import Floats, Ints

HOUR_S: Final = 3600.0
HOURS: Final = 26
ROWS_MAX: Final = 4096
CELLS_MAX: Final = 1 << 18
"""Numbers that an hour keeps at most."""
BLOCK_S: Final = 60.0
DAY: Final = 24


def rows_max(columns: int) -> int:
    """How many rows an hour keeps."""
    return max(16, min(ROWS_MAX, CELLS_MAX // max(columns, 1)))


class Kept(msgspec.Struct, frozen=True):
    """An hour in a file: `rows` float32 LE, `blocks` int16 LE, of `seen` rows a sample."""

    hour: int
    seen: int
    rows: bytes
    blocks: bytes


class Hour:
    """A sample of the rows of one hour (hours since 1970). A whole number above 2**24 is as near as float32 has it."""

    def __init__(self, hour: int, columns: int) -> None:
        self.hour, self.seen = hour, 0
        self._rows = np.zeros((rows_max(columns), columns), np.float32)
        self._blocks = np.zeros(len(self._rows), np.int16)

    @property
    def rows(self) -> NDArray[np.float32]:
        """The sample, [n, columns]."""
        return self._rows[: min(self.seen, len(self._rows))]

    @property
    def blocks(self) -> Ints:
        """The minute of each, [n]."""
        return self._blocks[: len(self.rows)].astype(np.int64)

    def add(self, rows: NDArray[Any], block: int, random: np.random.Generator) -> None:
        """Take in rows of one minute."""
        room = len(self._rows)
        for row in rows:
            place = self.seen if self.seen < room else int(random.integers(0, self.seen + 1))
            self.seen += 1
            if place < room:
                self._rows[place] = row
                self._blocks[place] = block

    def kept(self) -> Kept:
        """As it goes into a file."""
        return Kept(self.hour, self.seen, self.rows.astype("<f4").tobytes(), self.blocks.astype("<i2").tobytes())

    @classmethod
    def back(cls, kept: Kept, columns: int) -> Hour:
        """As it was. ValueError: it is of other columns."""
        one = cls(kept.hour, columns)
        rows = np.frombuffer(kept.rows, "<f4").reshape(-1, columns)
        blocks = np.frombuffer(kept.blocks, "<i2")
        if len(rows) != min(kept.seen, len(one._rows)) or len(blocks) != len(rows):
            raise ValueError(f"hour {kept.hour}: {len(rows)} rows of {kept.seen}")
        one.seen = kept.seen
        one._rows[: len(rows)] = rows
        one._blocks[: len(blocks)] = blocks
        return one


class Lately:
    """The last rows, in a ring: [n, columns] float64, when each came, and the number of the read that it came with."""

    def __init__(self, columns: int) -> None:
        room = 2 * rows_max(columns)
        self._rows: Floats = np.zeros((room, columns))
        self._times: Floats = np.full(room, -np.inf)
        self._reads: Ints = np.zeros(room, np.int64)
        self._next = self._read = 0

    def add(self, rows: NDArray[Any], at: float) -> None:
        """The rows of one read."""
        room = len(self._rows)
        places = (self._next + np.arange(len(rows))) % room
        self._rows[places], self._times[places], self._reads[places] = rows, at, self._read
        self._next = (self._next + len(rows)) % room
        self._read += 1

    def since(self, at: float) -> tuple[Floats, Floats, Ints]:
        """(rows, times, reads) of those that came then or later."""
        there = self._times >= at
        return self._rows[there], self._times[there], self._reads[there]
