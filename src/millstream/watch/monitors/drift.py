"""The monitor of features: do the values that serving reads lie where they lay before?

From topic `features_read`, a sample of what serving read. Beside each other stand the last minutes and

    day       the same hour of the day before; until there is one (`hours`): the three hours before this one
    pinned    the same hour of the first day: of this definition of the set, or since the version that is live was made

Rules of the room:
- Readings are distances that are surely there (distance.py): few rows say nothing, and many no more than there is.
- A set that is defined anew begins anew. Reads of a definition that is no more (a process that is not yet replaced) do
  not count beside those of the one that is.
- All columns are looked at for what is dead or missing at each look; for distances PAIRS at a look, in turn.
- What is known survives the process in a file of one's own, written every ten minutes; without it, or with one that
  cannot be read, references begin anew.
- Of a set of more than TOLD columns, the TOLD readings of each kind that are largest are told.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from millstream.store.blob import write_atomic
from millstream.types import FeaturesRead
from millstream.watch.monitor import Logged, Sample
from millstream.watch.monitors.distance import Floats, Values, population, share_more, shift
from millstream.watch.monitors.reference import BLOCK_S, DAY, HOUR_S, HOURS, Hour, Kept, Lately
from millstream.watch.reading import Key

logger = logging.getLogger(__name__)

WINDOW_S: Final = 1200.0
SOON_S: Final = 180.0
"""What is dead or missing is looked for in the rows of so many seconds."""
LOOK_S: Final = 120.0
SAVE_S: Final = 600.0
SETS_MAX: Final = 16
ROWS_OF_A_READ: Final = 8
PAIRS: Final = 16
TOLD: Final = 64
READS_LEAST: Final = 20
ROWS_LEAST: Final = 200
SURE: Final = 1e-6
_FORMAT: Final = 1


class Columns(NamedTuple):
    """What a set reads: the `hash` of its definition, its columns, and those that are tokens of texts (0: missing)."""

    hash: str
    names: tuple[str, ...]
    tokens: frozenset[str] = frozenset()


class Drift:
    """Sets of features by name. `folder`: where what is known outlives the process, None: nowhere; `trained`: when the
    model was made that takes a set, unix seconds by the set's hash: later than the pinned day, it begins another."""

    name = "drift"
    metrics: frozenset[str] = frozenset()
    topics = frozenset({"features_read"})

    def __init__(
        self, sets: Mapping[str, Columns], folder: Path | None = None,
        trained: Callable[[], Mapping[str, float]] = dict, seed: int = 1,
    ) -> None:  # fmt: skip
        self._declared, self._trained = sets, trained
        self._file = folder / "drift" if folder is not None else None
        self._random = np.random.default_rng(seed)
        self._sets: dict[str, _Set] = {}
        self._full = False
        self._save_at = -np.inf
        self._restore()

    def observe(self, seen: Sample | Logged) -> None:
        """Take in one read. ValueError: it is not what its set reads."""
        assert isinstance(seen, Logged)
        read = seen.event
        if isinstance(read, FeaturesRead) and (one := self._of(read, seen.arrival)) is not None:
            one.add(_matrix(read, len(one.columns.names)), seen.arrival, self._random)

    def readings(self, now: float) -> Mapping[Key, float]:
        """Distances as they stand; sets that are not read any more are left out."""
        sets = list(self._sets.values())
        trained = self._trained() if any(one.turns(now) for one in sets) else {}
        found: dict[Key, float] = {}
        for one in sets:
            one.turn(now, trained.get(one.columns.hash, 0.0))
            one.look(now)
        due = [(at, one.name, *pair) for one in sets for at, pair in one.due(now)]
        for _, name, column, beside in heapq.nsmallest(PAIRS, due):
            self._sets[name].measure(column, beside, now, self._random)
        for one in sets:
            found |= one.told()
        if now >= self._save_at:
            if np.isfinite(self._save_at):
                self._save()
            self._save_at = now + SAVE_S
        return found

    def _of(self, read: FeaturesRead, at: float) -> _Set | None:
        known = self._sets.get(read.features)
        declared = self._declared.get(read.features)
        if known is not None and known.columns.hash == read.hash:
            return known
        defined = declared is not None and declared.hash == read.hash
        if known is not None and not defined and at < known.last + SOON_S:
            return None
        if known is None and len(self._sets) >= SETS_MAX:
            if not self._full:
                logger.warning("drift is looked for in %d sets of features; %s is not", SETS_MAX, read.features)
            self._full = True
            return None
        if declared is None or not defined:
            names = tuple(str(at) for at in range(len(read.values) // 8 // max(_rows(read), 1)))
            declared = Columns(read.hash, names)
        self._sets[read.features] = _Set(read.features, declared)
        return self._sets[read.features]

    def _save(self) -> None:
        if self._file is None:
            return
        saved = _Saved(_FORMAT, [one.saved() for one in self._sets.values()])
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file, msgspec.msgpack.encode(saved))
        except OSError as error:
            logger.error("what features looked like is not kept: %s", error)

    def _restore(self) -> None:
        if self._file is None or not self._file.exists():
            return
        try:
            saved = msgspec.msgpack.decode(self._file.read_bytes(), type=_Saved)
            for one in saved.sets if saved.format == _FORMAT else ():
                columns = self._declared.get(one.name)
                if columns is None or columns.hash != one.hash:
                    columns = Columns(one.hash, tuple(one.columns), frozenset(one.tokens))
                self._sets[one.name] = _Set.back(one, columns)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            self._sets = {}
            logger.error("%s: %s; what features looked like before is not known", self._file, error)


class _Set:
    """One set, in one definition."""

    def __init__(self, name: str, columns: Columns) -> None:
        self.name, self.columns = name, columns
        self.last = -np.inf
        width = len(columns.names)
        self._tokens = np.array([name in columns.tokens for name in columns.names], np.bool_)
        self._hours: dict[int, Hour] = {}
        self._pinned: dict[int, Hour] = {}  # by hour of the day
        self._pinned_from = -1
        self._lately = Lately(width)
        self._common: dict[int, Floats] = {}  # by hour: the share of each column's commonest value
        self._missing: dict[int, tuple[Floats, Floats]] = {}  # by hour: missing values and rows by block
        self._measured: dict[tuple[int, str], float] = {}  # when each pair of column and reference was looked at
        self._read: dict[Key, float] = {}
        self._now: dict[Key, float] = {}

    def add(self, rows: Floats, arrival: float, random: np.random.Generator) -> None:
        """The rows of a read."""
        at = self.last = max(self.last, arrival)
        if len(rows) > ROWS_OF_A_READ:
            rows = rows[np.sort(random.choice(len(rows), ROWS_OF_A_READ, replace=False))]
        if self._tokens.any():
            rows = np.where(self._tokens & (rows == 0), np.nan, rows)
        self._lately.add(rows, at)
        number = int(at // HOUR_S)
        if (hour := self._hours.get(number)) is None:
            hour = self._hours[number] = Hour(number, len(self.columns.names))
        hour.add(rows, int(at % HOUR_S // BLOCK_S), random)

    def turns(self, now: float) -> bool:
        """Whether an hour is over that was not looked at."""
        number = int(now // HOUR_S)
        return any(hour < number and hour not in self._common for hour in self._hours)

    def turn(self, now: float, trained: float) -> None:
        """Close hours that are over; forget what is old."""
        number = int(now // HOUR_S)
        for hour in sorted(self._hours):
            if hour < number and hour not in self._common:
                self._close(self._hours[hour])
            if hour < number - HOURS:
                del self._hours[hour]
        first = min(self._hours, default=number)
        if self._pinned_from < 0 or self._pinned_from < trained // HOUR_S <= number:
            self._pinned, self._pinned_from = {}, max(first, int(trained // HOUR_S))
        for hour, one in self._hours.items():
            if self._pinned_from <= hour < self._pinned_from + DAY and hour < number:
                self._pinned.setdefault(hour % DAY, one)
        known = self._hours.keys() | {one.hour for one in self._pinned.values()}
        for gone in self._common.keys() - known:
            del self._common[gone], self._missing[gone]

    def _close(self, hour: Hour) -> None:
        self._common[hour.hour] = _common(hour)
        self._missing[hour.hour] = _by_block(np.isnan(hour.rows), hour.blocks)

    def look(self, now: float) -> None:
        """What is dead, what is missing: of all columns at once."""
        self._now = {}
        rows, times, reads = self._lately.since(now - SOON_S)
        count = len(np.unique(reads))
        if count < READS_LEAST:
            return
        references = self._references(now - SOON_S)
        missing = np.isnan(rows)
        with np.errstate(invalid="ignore"):
            same = missing.all(axis=0) | (~missing.any(axis=0) & (rows == rows[0]).all(axis=0))
        dead = np.zeros(rows.shape[1], np.bool_)
        for beside, hours in references.items():
            common = np.min([self._common[hour.hour] for hour in hours], axis=0)
            dead |= same & (common ** (count / 2) < SURE)
            if beside != "pinned":
                self._look_for_nulls(missing, times, hours, beside)
        if references:
            self._tell_of("feature_dead", dead.astype(np.float64), {})

    def _look_for_nulls(self, missing: Floats, times: Floats, hours: list[Hour], beside: str) -> None:
        before = [self._missing[hour.hour] for hour in hours]
        counts, rows = (np.concatenate([one[part] for one in before]) for part in (0, 1))
        more = share_more(counts, rows, *_by_block(missing, times // (BLOCK_S / 2)))
        self._tell_of("feature_nulls_more", more, {"against": beside})

    def _tell_of(self, quantity: str, values: Floats, labels: Mapping[str, str]) -> None:
        for name, value in zip(self.columns.names, values.tolist(), strict=True):
            if len(values) <= TOLD or value > 0:
                self._now[Key.of(quantity, {"set": self.name, "feature": name, **labels})] = value

    def due(self, now: float) -> list[tuple[float, tuple[int, str]]]:
        """Pairs of a column and a reference that are to be looked at, with when they were."""
        pairs = [(at, beside) for beside in self._references(now - WINDOW_S / 2) for at in range(len(self._tokens))]
        waits = [(self._measured.get(pair, -np.inf), pair) for pair in pairs]
        gone = self._measured.keys() - set(pairs)
        for pair in gone:
            self._forget(*pair)
        return [(at, pair) for at, pair in waits if at <= now - LOOK_S]

    def measure(self, column: int, beside: str, now: float, random: np.random.Generator) -> None:
        """How far a column is from a reference."""
        self._forget(column, beside)
        self._measured[column, beside] = now
        hours = self._references(now - WINDOW_S / 2).get(beside, [])
        rows, times, _ = self._lately.since(now - WINDOW_S)
        before = _values(
            np.concatenate([hour.rows[:, column] for hour in hours]).astype(np.float64),
            np.concatenate([hour.hour * 60 + hour.blocks for hour in hours]),
        )
        after = _values(
            rows[:, column].astype(np.float32).astype(np.float64), (times // (BLOCK_S / 2)).astype(np.int64)
        )
        if not before.enough or not after.enough:
            return
        found = {}
        if self._tokens[column]:
            before, after, new = _coded(before, after)
            found["feature_new_values"] = new
        else:
            found["feature_shift"] = shift(before, after, random).surely
        found["feature_psi"] = population(before, after, random).surely
        labels = {"set": self.name, "feature": self.columns.names[column], "against": beside}
        self._read |= {Key.of(quantity, labels): value for quantity, value in found.items()}

    def _forget(self, column: int, beside: str) -> None:
        self._measured.pop((column, beside), None)
        labels = {"set": self.name, "feature": self.columns.names[column], "against": beside}
        for quantity in ("feature_psi", "feature_shift", "feature_new_values"):
            self._read.pop(Key.of(quantity, labels), None)

    def _references(self, at: float) -> dict[str, list[Hour]]:
        """The hours that stand beside this moment, by the name of the reference."""
        number = int(at // HOUR_S)
        found: dict[str, list[Hour]] = {}
        day = self._hours.get(number - DAY)
        hours = [one for hour, one in self._hours.items() if number - 3 <= hour < number and hour in self._common]
        if day is not None and day.hour in self._common and len(day.rows) >= ROWS_LEAST:
            found["day"] = [day]
        elif hours and sum(len(hour.rows) for hour in hours) >= ROWS_LEAST:
            found["hours"] = hours
        pinned = self._pinned.get(number % DAY)
        if pinned is not None and pinned.hour < number - DAY and len(pinned.rows) >= ROWS_LEAST:
            found["pinned"] = [pinned]
        return found

    def told(self) -> dict[Key, float]:
        """Its readings."""
        everything = self._read | self._now
        if len(self.columns.names) <= TOLD:
            return everything
        by: dict[str, list[tuple[float, Key]]] = {}
        for key, value in everything.items():
            if value > 0:
                by.setdefault(key.quantity, []).append((value, key))
        return {key: value for of in by.values() for value, key in sorted(of, reverse=True)[:TOLD]}

    def saved(self) -> _SavedSet:
        """As it goes into the file."""
        hours = {id(one): one for one in (*self._hours.values(), *self._pinned.values())}
        return _SavedSet(
            name=self.name,
            hash=self.columns.hash,
            columns=list(self.columns.names),
            tokens=sorted(self.columns.tokens),
            last=self.last,
            pinned_from=self._pinned_from,
            pinned=sorted(one.hour for one in self._pinned.values()),
            hours=[one.kept() for one in hours.values()],
        )

    @classmethod
    def back(cls, saved: _SavedSet, columns: Columns) -> _Set:
        """As it was. ValueError: it does not fit its columns."""
        one = cls(saved.name, columns)
        if list(columns.names) != saved.columns:
            raise ValueError(f"set {saved.name} of {saved.hash} has other columns")
        one.last, one._pinned_from = saved.last, saved.pinned_from
        for kept in saved.hours:
            hour = Hour.back(kept, len(columns.names))
            if hour.hour in saved.pinned:
                one._pinned[hour.hour % DAY] = hour
                one._close(hour)
            if hour.hour >= saved.last // HOUR_S - HOURS:
                one._hours[hour.hour] = hour
        return one


class _SavedSet(msgspec.Struct, frozen=True):
    name: str
    hash: str
    columns: list[str]
    tokens: list[str]
    last: float
    pinned_from: int
    pinned: list[int]
    hours: list[Kept]


class _Saved(msgspec.Struct, frozen=True):
    format: int
    sets: list[_SavedSet]


def _rows(read: FeaturesRead) -> int:
    return max([0, *map(len, read.keys.values()), *map(len, read.request.values())])


def _matrix(read: FeaturesRead, columns: int) -> Floats:
    values = np.frombuffer(read.values, "<f8")
    rows = _rows(read)
    if len(values) != rows * columns:
        raise ValueError(f"a read of {read.features}: {len(values)} values, and {rows} rows of {columns} columns")
    return np.asarray(values.reshape(rows, columns), np.float64)


def _common(hour: Hour) -> Floats:
    """The share of each column's commonest value, missing ones together."""
    rows = hour.rows
    if not len(rows):
        return np.ones(rows.shape[1])
    return np.array([np.unique(column, return_counts=True)[1].max() / len(rows) for column in rows.T])


def _values(values: Floats, blocks: np.ndarray) -> Values:
    known = np.isfinite(values)
    return Values(values[known], blocks[known].astype(np.int64))


def _by_block(missing: np.ndarray, blocks: np.ndarray) -> tuple[Floats, Floats]:
    """Missing values by block and column, and rows by block."""
    _, block = np.unique(blocks, return_inverse=True)
    rows = np.bincount(block).astype(np.float64)
    counts = np.zeros((len(rows), missing.shape[1]))
    np.add.at(counts, block, missing)
    return counts, rows


def _coded(before: Values, now: Values) -> tuple[Values, Values, float]:
    """Texts as ranks by how common they were, the nine commonest apart; and the share of new ones, surely: beyond
    how often the next one of the past would have been new (Good, 1953), and beyond chance."""
    kinds, which, counts = np.unique(before.values, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(kinds))
    rank[order] = np.minimum(np.arange(len(kinds)), 9)
    near = np.minimum(np.searchsorted(kinds, now.values), len(kinds) - 1)
    new = kinds[near] != now.values
    once = counts[which] == 1
    more = share_more(*_by_block(once[:, None], before.blocks), *_by_block(new[:, None], now.blocks))
    return Values(rank[which], before.blocks), Values(np.where(new, 9.0, rank[near]), now.blocks), float(more[0])
