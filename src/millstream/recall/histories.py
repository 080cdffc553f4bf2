"""What users did and were shown, lately: bounded, in arrays.

Rules of the room:
- A user has three short lists: things done, items shown, items blocked. Each is in order of time; when it is full its
  oldest goes. Only what speaks for an item is kept as done: a list of blocks is apart.
- Lists of about one length lie in one array and move to the next as they grow, so a million users with five clicks do
  not pay for a hundred.
- `users_max` bounds them: those asked of or told of longest ago are forgotten, some at a time.
- One thread writes. What a reader gets is a copy, made under a lock of a few microseconds.
- A visitor who turned out to be a user is that user from then on, under either name.
- Users are named as the log names them (guard.pii.pseudonym).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.recall.scene import History, Numbers

_FIRST: Final = 4
_PLACE: Final = 5  # bits of a place that say which class it is in
_EVICTED: Final = 64  # one in so many users goes at a time


class Shown(NamedTuple):
    """What a user was shown: `numbers` [m] of items, newest last; `times` float64 [m], unix seconds."""

    numbers: Numbers
    times: NDArray[np.float64]


class Histories:
    """The lists of users by name. `kinds`: what people do that counts as done, at most 255."""

    def __init__(
        self, kinds: tuple[str, ...], history_max: int = 100, users_max: int = 1_000_000, shown_max: int = 200,
        blocks_max: int = 500,
    ) -> None:  # fmt: skip
        if len(kinds) > 255 or len(set(kinds)) < len(kinds):
            raise ValueError(f"kinds of things done: at most 255 and none twice, got {len(kinds)}")
        self.kinds, self.users_max = kinds, users_max
        self._codes = {kind: code for code, kind in enumerate(kinds)}
        self._lock = threading.RLock()
        self._sizes = history_max, shown_max, blocks_max
        self._begin()

    def _begin(self) -> None:
        self._places: dict[str, int] = {}
        self._same: OrderedDict[str, str] = OrderedDict()  # visitor -> user
        self._names: list[str] = []
        self._free: list[int] = []
        self._used = np.zeros(64, np.int64)
        self._tick = 0
        self._done, self._shown, self._blocks = (_Ring(most) for most in self._sizes)

    def clear(self) -> None:
        """Know nobody again."""
        with self._lock:
            self._begin()

    @property
    def count(self) -> int:
        """Users of whom something is known."""
        return len(self._places)

    def users(self) -> list[str]:
        """The names of those of whom something is known."""
        with self._lock:
            return list(self._places)

    def add(self, user: str, number: int, kind: str, time: float) -> None:
        """The user did something with an item; `kind`: one of `kinds`, else KeyError. The same again is harmless."""
        code = self._codes[kind]
        with self._lock:
            self._done.add(self._place(user), number, time, code)

    def show(self, user: str, number: int, time: float) -> None:
        """The user was shown an item."""
        with self._lock:
            self._shown.add(self._place(user), number, time, 0)

    def block(self, user: str, number: int, time: float) -> None:
        """The user wants no more of an item."""
        with self._lock:
            self._blocks.add(self._place(user), number, time, 0, once=True)

    def of(self, user: str) -> History:
        """What the user did, newest last; nothing of one who is not known."""
        with self._lock:
            numbers, kinds, times = self._done.of(self._touched(user))
        return History(numbers, kinds, times)

    def shown(self, user: str) -> Shown:
        """What the user was shown, newest last."""
        with self._lock:
            numbers, _, times = self._shown.of(self._touched(user))
        return Shown(numbers, times)

    def blocks(self, user: str) -> Numbers:
        """Items that the user wants no more of."""
        with self._lock:
            return self._blocks.of(self._touched(user))[0]

    def name(self, user: str) -> str:
        """Who this is: the user that a visitor turned out to be, else the same."""
        while (other := self._same.get(user)) is not None:
            user = other
        return user

    def merge(self, visitor: str, user: str) -> None:
        """The visitor is the user: what either did, in order of time, and will do is the user's. `users_max` visitors
        are remembered so, those merged last."""
        with self._lock:
            user = self.name(user)
            if visitor == user or self._same.get(visitor) == user:
                return
            old = self._places.get(visitor, -1)
            if old >= 0:
                place = self._place(user)
                if visitor in self._places:  # unless it went to make room for the user
                    for lists in (self._done, self._shown, self._blocks):
                        for number, kind, time in zip(*(part.tolist() for part in lists.of(old)), strict=True):
                            lists.add(place, number, time, kind, once=lists is self._blocks)
                    self._drop(visitor)
            self._same[visitor] = user
            if len(self._same) > self.users_max:
                self._same.popitem(last=False)

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Forget users, and visitors who are or were them, by their names; how many were known."""
        with self._lock:
            gone = [user for user in self._places if mine(user)]
            for user in gone:
                self._drop(user)
            for visitor in [one for one, user in self._same.items() if mine(one) or mine(user)]:
                del self._same[visitor]
        return len(gone)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for `restore`."""
        with self._lock:
            order = sorted(self._places.items(), key=lambda one: int(self._used[one[1]]))
            places = np.array([place for _, place in order], np.int64)
            texts: dict[str, list[str]] = {
                "names": [user for user, _ in order], "kinds": list(self.kinds), "visitors": list(self._same),
                "merged": list(self._same.values()),
            }  # fmt: skip
            state: dict[str, NDArray[Any]] = {
                name: np.frombuffer(msgspec.msgpack.encode(value), np.uint8) for name, value in texts.items()
            }
            for name, lists in self._named():
                arrays: tuple[NDArray[Any], ...] = lists.all(places)
                for part, array in zip(("lengths", "numbers", "kinds", "times"), arrays, strict=True):
                    state[f"{name}_{part}"] = array
        return state

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """What `state` gave takes the place of all that is here; of lists that may be shorter now, the newest. Things
        done of a kind that is no more among `kinds` are left out. Anything else than `state` gave: KeyError,
        ValueError or msgspec.MsgspecError; then this is empty."""
        names, kinds, visitors, merged = (
            msgspec.msgpack.decode(state[name].tobytes(), type=list[str])
            for name in ("names", "kinds", "visitors", "merged")
        )
        codes = [self._codes.get(kind, -1) for kind in kinds]
        with self._lock:
            self._begin()
            self._same.update(zip(visitors, merged, strict=True))
            places = [self._place(user) for user in names[-self.users_max :]]
            skipped = len(names) - len(places)
            for name, lists in self._named():
                lengths, *columns = (state[f"{name}_{part}"] for part in ("lengths", "numbers", "kinds", "times"))
                if len(lengths) != len(names) or any(len(one) != lengths.sum() for one in columns):
                    self._begin()
                    raise ValueError(f"{name} of {len(names)} users: {[len(lengths), *map(len, columns)]}")
                ends = np.cumsum(lengths)
                for place, end, length in zip(places, ends[skipped:].tolist(), lengths[skipped:].tolist(), strict=True):
                    part = [column[end - length : end] for column in columns]
                    lists.put(place, *(_recoded(part, codes) if name == "done" else part))

    def _named(self) -> tuple[tuple[str, _Ring], ...]:
        return ("done", self._done), ("shown", self._shown), ("blocks", self._blocks)

    def _touched(self, user: str) -> int:
        place = self._places.get(self.name(user), -1)
        if place >= 0:
            self._tick += 1
            self._used[place] = self._tick
        return place

    def _place(self, user: str) -> int:
        user = self.name(user)
        place = self._places.get(user, -1)
        if place < 0:
            if len(self._places) >= self.users_max:
                self._evict()
            if self._free:
                place = self._free.pop()
                self._names[place] = user
            else:
                place = len(self._names)
                self._names.append(user)
                if place == len(self._used):
                    self._used = np.concatenate((self._used, np.zeros(place, np.int64)))
            self._places[user] = place
        self._tick += 1
        self._used[place] = self._tick
        return place

    def _evict(self) -> None:
        """Forget those who were heard of longest ago: at least one."""
        count = max(1, self.users_max // _EVICTED)
        used = self._used[: len(self._names)].copy()
        used[np.array(self._free, np.int64)] = np.iinfo(np.int64).max
        for place in np.argpartition(used, count - 1)[:count].tolist():
            self._drop(self._names[place])

    def _drop(self, user: str) -> None:
        place = self._places.pop(user)
        self._names[place] = ""
        self._free.append(place)
        for _, lists in self._named():
            lists.drop(place)


class _Class:
    """Lists of up to `room` entries, a row each."""

    def __init__(self, room: int) -> None:
        self.room, self.rows, self.free = room, 0, list[int]()
        self.lengths = np.zeros(0, np.int32)
        self.numbers = np.zeros((0, room), np.int32)
        self.kinds = np.zeros((0, room), np.uint8)
        self.times = np.zeros((0, room), np.float64)

    def row(self) -> int:
        """An empty row."""
        if self.free:
            return self.free.pop()
        if self.rows == len(self.lengths):
            more = max(16, self.rows)
            self.lengths = np.concatenate((self.lengths, np.zeros(more, np.int32)))
            self.numbers = np.concatenate((self.numbers, np.zeros((more, self.room), np.int32)))
            self.kinds = np.concatenate((self.kinds, np.zeros((more, self.room), np.uint8)))
            self.times = np.concatenate((self.times, np.zeros((more, self.room), np.float64)))
        self.rows += 1
        return self.rows - 1


class _Ring:
    """A list of at most `most` entries a place, in order of time, in classes of 4, 8, 16 ... `most` entries."""

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"a list has room for at least 1 entry, got {most}")
        rooms = [_FIRST << step for step in range(28) if _FIRST << step < most]
        self._classes = [_Class(room) for room in (*rooms, most)]
        self._most = most
        self._rows = np.full(64, -1, np.int64)  # row << _PLACE | class

    def of(self, place: int) -> tuple[Numbers, NDArray[np.uint8], NDArray[np.float64]]:
        """(numbers, kinds, times) of a place, oldest first, copied; empty where there is nothing."""
        where = int(self._rows[place]) if 0 <= place < len(self._rows) else -1
        if where < 0:
            return np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.float64)
        at, row = self._classes[where & 31], where >> _PLACE
        length = at.lengths[row]
        return at.numbers[row, :length].copy(), at.kinds[row, :length].copy(), at.times[row, :length].copy()

    def add(self, place: int, number: int, time: float, kind: int, once: bool = False) -> None:
        """An entry, in its place by time; of equal times behind. The same again, or with `once` the same number, is
        left out; so is one older than all of a full list."""
        if place >= len(self._rows):
            more = max(place + 1, 2 * len(self._rows)) - len(self._rows)
            self._rows = np.concatenate((self._rows, np.full(more, -1, np.int64)))
        where = int(self._rows[place])
        at, row = (self._classes[where & 31], where >> _PLACE) if where >= 0 else self._moved(place, -1)
        length = int(at.lengths[row])
        times, numbers = at.times[row], at.numbers[row]
        if once and number in numbers[:length]:
            return
        spot = length
        if length and time < times[length - 1]:
            spot = int(np.searchsorted(times[:length], time, side="right"))
        before = spot
        while before and times[before - 1] == time:
            before -= 1
            if numbers[before] == number and at.kinds[row, before] == kind:
                return
        if length == at.room:
            if length < self._most:
                at, row = self._moved(place, where)
            elif spot == 0:
                return
            else:  # the oldest goes
                spot -= 1
                for column in (at.numbers, at.kinds, at.times):
                    column[row, :spot] = column[row, 1 : spot + 1]
                self._write(at, row, spot, number, kind, time)
                return
        for column in (at.numbers, at.kinds, at.times):
            column[row, spot + 1 : length + 1] = column[row, spot:length]
        self._write(at, row, spot, number, kind, time)
        at.lengths[row] = length + 1

    def put(self, place: int, numbers: Numbers, kinds: NDArray[np.uint8], times: NDArray[np.float64]) -> None:
        """All entries of an empty place at once, in order; the newest where there are too many."""
        numbers, kinds, times = numbers[-self._most :], kinds[-self._most :], times[-self._most :]
        if not len(numbers):
            return
        if place >= len(self._rows):
            more = max(place + 1, 2 * len(self._rows)) - len(self._rows)
            self._rows = np.concatenate((self._rows, np.full(more, -1, np.int64)))
        code = next(code for code, one in enumerate(self._classes) if one.room >= len(numbers))
        at = self._classes[code]
        row = at.row()
        at.lengths[row] = length = len(numbers)
        at.numbers[row, :length], at.kinds[row, :length], at.times[row, :length] = numbers, kinds, times
        self._rows[place] = row << _PLACE | code

    def drop(self, place: int) -> None:
        """Nothing is at this place any more."""
        if place < len(self._rows) and (where := int(self._rows[place])) >= 0:
            self._clear(where)
            self._rows[place] = -1

    def all(
        self, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], Numbers, NDArray[np.uint8], NDArray[np.float64]]:
        """(lengths [p], numbers, kinds, times) of these places, one behind the other."""
        found = [self.of(place) for place in places.tolist()]
        lengths = np.array([len(one[0]) for one in found], np.int32)
        numbers, kinds, times = (
            np.concatenate([np.empty(0, kind), *(one[part] for one in found)])
            for part, kind in enumerate((np.int32, np.uint8, np.float64))
        )
        return lengths, numbers, kinds, times

    @staticmethod
    def _write(at: _Class, row: int, spot: int, number: int, kind: int, time: float) -> None:
        at.numbers[row, spot], at.kinds[row, spot], at.times[row, spot] = number, kind, time

    def _moved(self, place: int, where: int) -> tuple[_Class, int]:
        """The list of a place, with more room."""
        code = (where & 31) + 1 if where >= 0 else 0
        at = self._classes[code]
        row = at.row()
        if where >= 0:
            old, from_row = self._classes[code - 1], where >> _PLACE
            length = int(old.lengths[from_row])
            for column, earlier in ((at.numbers, old.numbers), (at.kinds, old.kinds), (at.times, old.times)):
                column[row, :length] = earlier[from_row, :length]
            at.lengths[row] = length
            self._clear(where)
        self._rows[place] = row << _PLACE | code
        return at, row

    def _clear(self, where: int) -> None:
        """An empty row, and nothing left of what it said."""
        at, row = self._classes[where & 31], where >> _PLACE
        at.lengths[row] = 0
        at.numbers[row], at.kinds[row], at.times[row] = 0, 0, 0.0
        at.free.append(row)


def _recoded(part: list[NDArray[Any]], codes: list[int]) -> tuple[NDArray[Any], ...]:
    """Entries with the codes that their kinds have now."""
    numbers, kinds, times = part
    now = np.array([*codes, -1])[np.minimum(kinds, len(codes))]
    kept = now >= 0
    return numbers[kept], now[kept].astype(np.uint8), times[kept]
