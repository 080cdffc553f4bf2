"""Events as columns, the one form in which they reach the state: from topics, from files, from plain rows.

Rules of the room:
- Text is a 64-bit hash from here on, 0 where it is missing; a token is its upper half, never 0 for a text. Two texts of
  one hash are one: with a million keys the odds of that are under one in a million millions.
- Times are int64 microseconds. An event's time is never after its arrival.
- What is no number (NaN, infinity) is missing.
- Batches of one source are given in the order in which the events came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.features.define import SECOND, Source, span
from millstream.features.feature import Texts
from millstream.native import given, i64, inner, kernel, u8, u64, void

Hashes = NDArray[np.uint64]
Times = NDArray[np.int64]
SECONDS_MAX: Final = 2**53 / SECOND  # the year 2255
_NEVER: Final = -(2**62)


class Events(msgspec.Struct, frozen=True):
    """n events of one source. `times`, `arrivals` int64 [n]; `numbers` float64 [n], NaN where missing; `texts`
    uint64 [n], 0 where missing."""

    times: Times
    arrivals: Times
    numbers: dict[str, NDArray[np.float64]]
    texts: dict[str, Hashes]

    def __len__(self) -> int:
        return len(self.times)

    @classmethod
    def of(cls, source: Source, rows: Sequence[Mapping[str, Any]]) -> Events:
        """From rows as dicts: `event_time` and `arrival` in unix seconds, and the columns of the source; what is None
        or left out is missing. A value that is not of its column's type, a time that is none: BadInput."""
        where = f"source {source.name}"
        columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in source.columns}
        numbers = {n: _numbers(columns[n], f"{where}: {n}") for n, kind in source.columns.items() if kind == "number"}
        texts = {n: _texts(columns[n], f"{where}: {n}") for n, kind in source.columns.items() if kind == "text"}
        event_times = micros([row.get("event_time") for row in rows], f"{where}: event_time")
        arrivals = micros([row.get("arrival") for row in rows], f"{where}: arrival")
        return cls(np.minimum(event_times, arrivals), arrivals, numbers, texts)

    def joined(self, later: Events) -> Events:
        """These, and behind them others of the same source."""
        numbers = {name: np.concatenate((column, later.numbers[name])) for name, column in self.numbers.items()}
        texts = {name: np.concatenate((column, later.texts[name])) for name, column in self.texts.items()}
        times = np.concatenate((self.times, later.times))
        return Events(times, np.concatenate((self.arrivals, later.arrivals)), numbers, texts)

    def take(self, chosen: NDArray[np.bool_] | Times) -> Events:
        """Some of them."""
        numbers = {name: column[chosen] for name, column in self.numbers.items()}
        return Events(
            self.times[chosen], self.arrivals[chosen], numbers, {n: column[chosen] for n, column in self.texts.items()}
        )


def micros(seconds: Sequence[Any] | NDArray[np.float64], where: str = "time") -> Times:
    """Unix seconds as whole microseconds, int64 [n]. No time, or one beyond 2255: BadInput."""
    try:
        found = np.asarray(seconds, np.float64) * SECOND
    except (TypeError, ValueError):
        raise errors.BadInput(f"{where}: unix seconds, got {_first_odd(seconds)!r}") from None
    good = np.abs(found) < SECONDS_MAX * SECOND  # false for NaN
    if not good.all():
        at = int(np.argmin(good))
        raise errors.BadInput(f"{where}: row {at} says {found[at] / SECOND:g}, which is no time; send unix seconds")
    return np.rint(found).astype(np.int64)


def hashes_of(texts: Texts) -> Hashes:
    """The hash of each text, uint64 [n]; 0 where it is empty."""
    out = np.empty(len(texts), np.uint64)
    _hash(texts.data, texts.starts, texts.ends, out)
    return out


_FIRST: Final = np.zeros(1, np.int64)


def keys_of(texts: Iterable[str]) -> Hashes:
    """The hashes of entities' names, uint64 [n]."""
    found = texts if isinstance(texts, (list, tuple)) else list(texts)
    if len(found) == 1:  # of a request with one user: most of what follows is the packing of many
        data = np.frombuffer(found[0].encode("utf-8", "surrogatepass"), np.uint8)
        return hashes_of(Texts(data, _FIRST, np.array([len(data)]), check=False))
    joined = "".join(found)
    if not joined.isascii():
        return hashes_of(Texts.of([text.encode("utf-8", "surrogatepass") for text in found]))
    ends = np.zeros(len(found) + 1, np.int64)
    ends[1:] = np.fromiter(map(len, found), np.int64, len(found))
    np.cumsum(ends, out=ends)
    return hashes_of(Texts(np.frombuffer(joined.encode(), np.uint8), ends[:-1], ends[1:], check=False))


def token_of(hashes: Hashes) -> NDArray[np.uint32]:
    """The token of each hash: its upper half, never 0 but for 0."""
    upper = (hashes >> np.uint64(32)).astype(np.uint32)
    return np.where((upper == 0) & (hashes != 0), np.uint32(1), upper)


def tokens_of(texts: Iterable[str]) -> NDArray[np.uint32]:
    """The tokens of texts, uint32 [n]; 0 where one is empty."""
    return token_of(keys_of(texts))


class Places:
    """Dense numbers for keys, in the order in which they first come; compiled."""

    def __init__(self) -> None:
        self._table = np.zeros(1024, np.int64)  # number + 1 by hash; 0: free
        self.keys = np.zeros(512, np.uint64)
        self.count = 0

    def find(self, keys: Hashes) -> Times:
        """The number of each key, int64 [n]; -1 where it has none."""
        out = np.empty(len(keys), np.int64)
        _find(keys, self._table, self.keys, out)
        return out

    def place(self, keys: Hashes) -> Times:
        """The number of each key, given now if it had none; -1 of key 0."""
        self._make_room(len(keys))
        out = np.empty(len(keys), np.int64)
        self.count = int(_place(keys, self._table, self.keys, self.count, out))
        return out

    def _make_room(self, more: int) -> None:
        most = self.count + more
        if most > len(self.keys):
            room = max(most, 2 * len(self.keys))
            self.keys = np.concatenate((self.keys[: self.count], np.zeros(room - self.count, np.uint64)))
        if 2 * most > len(self._table):
            self._table = np.zeros(1 << (4 * most - 1).bit_length(), np.int64)
            _index(self.keys[: self.count], self._table)


class Copies:
    """Tells the copies of a source's events: of one id the first counts, for as long as each copy comes within `again`
    of the one before it. Ids that have not come for so long are forgotten."""

    def __init__(self, source: Source) -> None:
        self._id, self._again = source.id, span(source.again)
        self._places, self._seen = Places(), np.zeros(0, np.int64)
        self._bound = 1 << 16

    def new(self, events: Events) -> NDArray[np.bool_] | None:
        """Which events count, bool [n]; None: all of them."""
        if not self._id or not len(events):
            return None
        ids = events.texts[self._id]
        if self._places.count + len(ids) > self._bound:
            self._forget(int(events.arrivals.min()))
        places = self._places.place(ids)
        if self._places.count > len(self._seen):
            room = max(self._places.count, 2 * len(self._seen)) - len(self._seen)
            self._seen = np.concatenate((self._seen, np.full(room, _NEVER, np.int64)))
        new = np.empty(len(ids), np.uint8)
        _new(places, events.arrivals, self._again, self._seen, new)
        return new.view(np.bool_)

    def state(self) -> tuple[Hashes, Times]:
        """(ids, when each came last), to be kept."""
        return self._places.keys[: self._places.count].copy(), self._seen[: self._places.count].copy()

    def restore(self, ids: Hashes, seen: Times) -> None:
        """Take over what `state` gave."""
        self._places = Places()
        self._places.place(ids)
        self._seen, self._bound = seen.copy(), max(self._bound, 2 * len(ids))

    def _forget(self, now: int) -> None:
        ids, seen = self.state()
        kept = now - seen <= self._again
        self._bound = 1 << 16
        self.restore(ids[kept], seen[kept])


def _numbers(values: list[Any], where: str) -> NDArray[np.float64]:
    try:
        found = np.array([math.nan if value is None else value for value in values], np.float64)
    except (TypeError, ValueError):
        raise errors.BadInput(f"{where} is a column of numbers, got {_first_odd(values)!r}") from None
    found[np.isinf(found)] = math.nan
    return found


def _texts(values: list[Any], where: str) -> Hashes:
    for value in values:
        if value is not None and not isinstance(value, str):
            raise errors.BadInput(f"{where} is a column of text, got {value!r}")
    return keys_of(value or "" for value in values)


def _first_odd(values: Iterable[Any]) -> object:
    return next((one for one in values if not isinstance(one, (int, float))), None)


# FNV-1a over the bytes (Fowler, Noll, Vo), finished by MurmurHash3's 64-bit mixer (Appleby).
_FNV: Final = np.uint64(0x100000001B3)
_BASIS: Final = np.uint64(0xCBF29CE484222325)
_MIX_1: Final = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_33: Final = np.uint64(33)


@kernel(void(given(u8), given(i64, 1, "A"), given(i64, 1, "A"), u64[::1]))
def _hash(data: Any, starts: Any, ends: Any, out: Any) -> None:
    for row in range(len(starts)):
        state = _BASIS
        for i in range(starts[row], ends[row]):
            state = (state ^ np.uint64(data[i])) * _FNV
        state = (state ^ (state >> _33)) * _MIX_1
        state = (state ^ (state >> _33)) * _MIX_2
        state ^= state >> _33
        if starts[row] == ends[row]:
            out[row] = 0
        else:
            out[row] = state if state != 0 else np.uint64(1)


@inner
def _slot(key: Any, table: Any, keys: Any) -> Any:
    """Where a key is in the table, or would be."""
    mask = np.int64(len(table) - 1)
    at = np.int64(key & np.uint64(mask))
    while table[at] != 0 and keys[table[at] - 1] != key:
        at = (at + 1) & mask
    return at


@kernel(void(given(u64, 1, "A"), given(i64), given(u64), i64[::1]))
def _find(wanted: Any, table: Any, keys: Any, out: Any) -> None:
    for i in range(len(wanted)):
        out[i] = table[_slot(wanted[i], table, keys)] - 1 if wanted[i] != 0 else -1


@kernel(i64(given(u64, 1, "A"), i64[::1], u64[::1], i64, i64[::1]))
def _place(wanted: Any, table: Any, keys: Any, count: int, out: Any) -> int:
    for i in range(len(wanted)):
        if wanted[i] == 0:
            out[i] = -1
            continue
        at = _slot(wanted[i], table, keys)
        if table[at] == 0:
            keys[count] = wanted[i]
            count += 1
            table[at] = count
        out[i] = table[at] - 1
    return count


@kernel(void(given(u64), i64[::1]))
def _index(keys: Any, table: Any) -> None:
    for number in range(len(keys)):
        table[_slot(keys[number], table, keys)] = number + 1


@kernel(void(given(i64), given(i64, 1, "A"), i64, i64[::1], u8[::1]))
def _new(places: Any, arrivals: Any, again: int, seen: Any, new: Any) -> None:
    for i in range(len(places)):
        place = places[i]
        if place < 0:  # an event without an id is like no other
            new[i] = 1
            continue
        new[i] = 1 if arrivals[i] - seen[place] > again else 0
        seen[place] = arrivals[i]
