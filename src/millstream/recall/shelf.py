"""Shelves of an index: vectors of items by name, also of items that nobody liked yet.

Rules of the room:
- A shelf is built with its index and lies in the same folder: `NAME_names.npy`, `NAME_name_starts.npy` and the base's.
- Rows are not catalogue numbers: a process maps them to its own when it attaches the shelf, and goes on doing so as it
  hears of more items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.recall.ann import Ann, Base, Places, mapped
from millstream.recall.catalogue import Catalogue

TOWERS: Final = "towers"
CONTENT: Final = "content"
_NAMES: Final = 10_000  # names looked up at a time: other threads get their turn between
Mine = Callable[[Sequence[str]], NDArray[np.bool_]]
"""Which of some items are this process's: bool, as many as they are."""


class Shelf(NamedTuple):
    """`base`: vectors of `items`; `version`: of the model that made them, "" for none. As it lies in a folder: `items`
    is empty, and `names` has them."""

    items: list[str]
    base: Base
    version: str = ""
    names: Names | None = None

    def save(self, folder: Path, name: str) -> None:
        """Not synced."""
        Names.save(folder, f"{name}_", self.items)
        self.base.save(folder, name)

    @classmethod
    def open(cls, folder: Path, name: str, version: str) -> Shelf:
        """What `save` wrote, mapped. Damaged or gone: Corrupt, OSError or ValueError."""
        return cls([], Base.open(folder, name), version, Names(folder, f"{name}_"))


class Names:
    """Items by row, as they lie in a folder."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self._blob: NDArray[np.uint8] = mapped(folder / f"{prefix}names.npy")
        self._starts: NDArray[np.int64] = mapped(folder / f"{prefix}name_starts.npy")

    @staticmethod
    def save(folder: Path, prefix: str, items: Sequence[str]) -> None:
        """Not synced."""
        encoded = [item.encode(errors="surrogatepass") for item in items]
        ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        np.save(folder / f"{prefix}names.npy", np.frombuffer(b"".join(encoded), np.uint8))
        np.save(folder / f"{prefix}name_starts.npy", np.concatenate([np.zeros(1, np.int64), ends]))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """(first row, items of the rows from there on), some thousands at a time."""
        for first in range(0, len(self), _NAMES):
            starts = self._starts[first : min(first + _NAMES, len(self)) + 1].tolist()
            blob = self._blob[starts[0] : starts[-1]].tobytes()
            yield (
                first,
                [blob[a - starts[0] : b - starts[0]].decode(errors="surrogatepass") for a, b in pairwise(starts)],
            )


class Placed:
    """Rows of an index in a process: `places` says which item each is. One thread refreshes, many read."""

    def __init__(self, names: Names, catalogue: Catalogue) -> None:
        self.places, self._catalogue = Places(len(names)), catalogue
        self._missing: dict[str, int] = {}
        self._seen = catalogue.count  # before the look: what comes meanwhile is looked at by refresh
        for first, some in names:
            numbers = catalogue.numbers(some)
            self.places.set(np.arange(first, first + len(some), dtype=np.int32), numbers)
            unknown = np.flatnonzero(numbers < 0).tolist()
            self._missing |= {some[at]: first + at for at in unknown}

    def refresh(self) -> int:
        """Take in items that the catalogue heard of since; how many rows they were. Call it now and then."""
        count, found = self._catalogue.count, 0
        while self._seen < count and self._missing:
            upto = min(self._seen + _NAMES, count)
            numbers = np.arange(self._seen, upto, dtype=np.int32)
            for number, name in zip(numbers.tolist(), self._catalogue.names(numbers), strict=True):
                row = self._missing.pop(name, -1)
                if row >= 0:
                    self.places.set(np.array([row], np.int32), np.array([number], np.int32))
                    found += 1
            self._seen = upto
        self._seen = count
        return found


class Shelved(Placed):
    """A shelf in a process: `ann` searches it. `mine`: the items that are searched; None: all."""

    def __init__(self, shelf: Shelf, catalogue: Catalogue, mine: Mine | None = None) -> None:
        assert shelf.names is not None  # it was opened
        super().__init__(shelf.names, catalogue)
        base = shelf.base if mine is None else shelf.base.part(rows_of(shelf.names, mine))
        self.version, self.ann = shelf.version, Ann(base, self.places)


def rows_of(names: Names, mine: Mine) -> NDArray[np.bool_]:
    """bool [rows]: which are this process's."""
    rows = np.zeros(len(names), np.bool_)
    for first, some in names:
        rows[first : first + len(some)] = mine(some)
    return rows
