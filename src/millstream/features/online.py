"""Rows of a feature set where serving reads them: written as the state changes, gathered into one matrix a request.

Rules of the room:
- A row holds what an entity's values are until they change: by an event, or because a window moves on. The writer
  writes it again at either; `vouch` says as of when all rows are right.
- What is missing is said, beside the values: an unknown entity, or one whose row is older than the set's `ttl`, and how
  old the rows are as a whole. Ranking goes on with what there is.
- Reading takes no lock, and asks each store once a request.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.features.define import SECOND, span
from millstream.features.events import Events, Hashes, Times, keys_of
from millstream.features.matrix import Columns
from millstream.features.plan import Plan, Values
from millstream.features.sets import FeatureSet
from millstream.features.state import Entities, State
from millstream.features.tiles import FOREVER
from millstream.store.rows import RowStore

ROWS_MAX: Final = 100_000
_WRITE: Final = 65_536  # rows at once: what they take in memory is bounded


class Matrix(msgspec.Struct):
    """One request's features: `values` float32 or float64 [n, columns], C-contiguous; a missing number is NaN, a
    missing token 0. `missing` bool [n] by kind of entity: there is no row. Read as of `at`, of rows as of `as_of`
    (microseconds)."""

    values: NDArray[Any]
    columns: tuple[str, ...]
    missing: dict[str, NDArray[np.bool_]]
    at: int
    as_of: int

    @property
    def age_s(self) -> float:
        """How long ago the rows were as they should be, seconds."""
        return (self.at - self.as_of) / SECOND


class Writer:
    """Keeps the rows of a state: `stores` has one for each kind of entity."""

    def __init__(self, state: State, stores: Mapping[str, RowStore]) -> None:
        self.state, self._stores = state, stores
        self._until = {name: np.zeros(0, np.int64) for name in state.entities}
        self._changed: dict[str, list[Times]] = {name: [] for name in state.entities}

    def apply(self, source: str, events: Events) -> None:
        """Take events; their rows are written by the next `write`."""
        for name, places in self.state.apply(source, events).items():
            self._changed[name].append(places)

    def write(self, at: int, vouched: int | None = None) -> int:
        """Write the rows that changed, as of `at` (microseconds, not before the arrival of any event), and vouch for
        all, or as of `vouched`; how many. A store that is away, or full: Busy, Full; the next call writes them."""
        count = 0
        for name, table in self.state.entities.items():
            until = self._until[name]
            if table.places.count > len(until):
                room = max(table.places.count, 2 * len(until)) - len(until)
                until = self._until[name] = np.concatenate((until, np.full(room, FOREVER, np.int64)))
            due = until <= at
            for places in self._changed[name]:
                due[places] = True
            changed = np.flatnonzero(due)
            self._changed[name] = [changed]  # until all of them are written
            for places, stored, change in _ahead(table, changed, at):
                until[places] = change
                self._stores[name].put(table.places.keys[places], table.plan.pack(stored), at)
            self._changed[name] = []
            self._stores[name].vouch(at if vouched is None else vouched)
            count += len(changed)
        return count

    def write_later(self) -> None:
        """Have the next `write` write every row: of a state that was restored, or filled from files."""
        self.write_again({name: np.arange(table.places.count) for name, table in self.state.entities.items()})

    def write_again(self, places: Mapping[str, Times]) -> None:
        """Have the next `write` write the rows of these places too."""
        for name, some in places.items():
            self._changed[name].append(some)


def _ahead(table: Entities, changed: Times, at: int) -> Iterator[tuple[Times, Values, Times]]:
    """(places, stored values, when they change), in pieces: one is read, without the GIL, while the last is written."""
    pieces = [changed[first : first + _WRITE] for first in range(0, len(changed), _WRITE)]
    if len(pieces) < 2:
        yield from ((piece, *table.stored(piece, at)) for piece in pieces)
        return
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(table.stored, pieces[0], at)
        for piece, after in itertools.zip_longest(pieces, pieces[1:]):
            found = coming.result()
            if after is not None:
                coming = thread.submit(table.stored, after, at)
            yield piece, *found


class Reader:
    """Reads a feature set's rows."""

    def __init__(self, features: FeatureSet, stores: Mapping[str, RowStore]) -> None:
        self.features = features
        self._kinds = [(name, Plan(features, name), stores[name]) for name in features.entities]
        self._columns = Columns(features)
        self._ttl = span(features.ttl)

    def read(
        self, keys: Mapping[str, Sequence[str]], at: int, request: Mapping[str, NDArray[Any]] | None = None
    ) -> Matrix:
        """The features of n rows as of `at` (unix microseconds): `keys` has n names of each kind of entity, or one that
        all rows share; `request` [n] what transforms take of the request. BadInput: what is not given, or too long."""
        n = self._rows(keys, request or {})
        values: dict[str, Values] = {}
        missing: dict[str, NDArray[np.bool_]] = {}
        as_of = at
        for name, plan, store in self._kinds:
            found, gone = self._one(plan, store, keys_of(keys[name]), at)
            values[name] = found if len(found) == n else np.broadcast_to(found, (n, found.shape[1]))
            missing[name] = gone if len(gone) == n else np.broadcast_to(gone, n)
            as_of = min(as_of, store.vouched())
        return Matrix(self._columns.make(values, request or {}, n), self.features.columns, missing, at, as_of)

    def _one(self, plan: Plan, store: RowStore, keys: Hashes, at: int) -> tuple[Values, NDArray[np.bool_]]:
        found = store.get(keys)
        missing = found.written == 0
        if self._ttl:
            missing |= found.written < at - self._ttl
        values = plan.finish(plan.unpack(found.rows), at)
        if missing.any():
            values[missing] = plan.nothing
        return values, missing

    def _rows(self, keys: Mapping[str, Sequence[str]], request: Mapping[str, NDArray[Any]]) -> int:
        lengths = {name: len(keys.get(name, ())) for name, _, _ in self._kinds}
        lengths |= {name: len(request.get(name, ())) for name in self._columns.request}
        if gone := [name for name, length in lengths.items() if not length]:
            raise errors.BadInput(f"feature set {self.features.name} needs {', '.join(gone)}: send them")
        n = max(lengths.values())
        if odd := [name for name, length in lengths.items() if length not in (1, n)]:
            raise errors.BadInput(f"{odd[0]} has {lengths[odd[0]]} rows where others have {n}; send as many, or one")
        if n > ROWS_MAX:
            raise errors.TooLarge(f"{n} rows in one request, at most {ROWS_MAX} are read at once; split it")
        return n
