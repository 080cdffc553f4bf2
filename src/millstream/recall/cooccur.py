"""Who liked this also liked: neighbours of items, and of users, counted over people's latest positives.

Rules of the room:
- A person counts with the last M different items that they liked, their window, and with each pair in it once. So the
  counts are a function of the windows alone: however the events were cut into steps, and whoever was forgotten since.
- An index has the neighbours of all items as of its build (`neighbours`, a pure function of the positives). What joined
  since is counted as it happens (`Cooccurrence`), with a bound on everything; the two agree to the last count while no
  bound is reached.
- People are row numbers in an index; no name of anybody is in it.
- Similarity is the cosine of two items' columns of 0 and 1, shrunk towards 0 where few people stand behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.native import f32, f64, given, i32, i64, inner, kernel, void
from millstream.recall.ann import Places
from millstream.recall.scene import Found, History, Numbers, Scene, best
from millstream.recall.settings import SHRINK, WINDOW

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]
Rows = NDArray[np.int32]

RECENT: Final = 20  # positives that a request's answer goes by
FADE: Final = 0.93  # weight of a positive beside the one after it


class Positives(NamedTuple):
    """What was liked, in order of arrival: `users`, `items` int32 [p], rows from 0; `times` float64 [p], unix s."""

    users: Rows
    items: Rows
    times: NDArray[np.float64]


class Csr(NamedTuple):
    """Rows of different lengths: row i is `columns[starts[i]:starts[i + 1]]`, int32; `starts` int64 [n + 1]."""

    starts: Whole
    columns: Rows

    @classmethod
    def of(cls, rows: NDArray[np.int32], columns: Rows, n: int) -> Csr:
        """`columns`, in the order of the `rows` that they belong to, ascending, below `n`."""
        starts = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=n), out=starts[1:])
        return cls(starts, columns.astype(np.int32))

    def turned(self, n: int) -> Csr:
        """Columns become rows, `n` of them; within one, the old rows ascend."""
        rows = np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))
        order = np.argsort(self.columns, kind="stable")
        return Csr.of(self.columns[order], rows[order], n)

    def gather(self, rows: Rows) -> tuple[Rows, NDArray[np.int64], Whole]:
        """(columns of `rows` one after the other, for each the place in `rows`, for each its place in `columns`).
        Negative rows have none."""
        known = np.flatnonzero((rows >= 0) & (rows < len(self.starts) - 1))
        first = self.starts[rows[known]]
        lengths = self.starts[rows[known] + 1] - first
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + lengths, lengths)
        return self.columns[at], np.repeat(known, lengths), at


class Neighbours(NamedTuple):
    """Of each item row its nearest ones, best first, and their similarities float32, as `lists.columns`."""

    lists: Csr
    scores: Floats


class Near(NamedTuple):
    """What `UserCf` searches: each user row's window, oldest first, and each item row's latest users."""

    windows: Csr
    takers: Csr


def windows(positives: Positives, users: int, window: int = WINDOW) -> Csr:
    """The last `window` different items of each user row, oldest first; of one time, the later arrival is newer."""
    whose, items, times = positives
    pair = whose.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    order = np.lexsort((times, pair))
    last = order[np.append(pair[order][1:] != pair[order][:-1], True)] if len(order) else order
    last.sort()  # of one time, order of arrival
    last = last[np.lexsort((times[last], whose[last]))]
    ends = np.cumsum(np.bincount(whose[last], minlength=users))
    last = last[ends[whose[last]] - np.arange(len(last)) <= window]
    return Csr.of(whose[last], items[last], users)


def neighbours(of: Csr, items: int, most: int = 100, shrink: float = SHRINK) -> Neighbours:
    """The `most` items nearest to each of `items` rows, by windows `of` users. Exact; of equals the lower row. Costs
    the sum of the squares of the windows' lengths: seconds for five million positives, without the GIL."""
    people = of.turned(items)
    near, scores, counts = (
        np.empty((items, most), np.int32),
        np.empty((items, most), np.float32),
        np.empty(items, np.int64),
    )
    _neighbours(of.starts, of.columns, people.starts, people.columns, shrink, np.zeros(items, np.float32),
                np.empty(items, np.int32), near, scores, counts)  # fmt: skip
    kept = np.arange(most) < counts[:, None]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Neighbours(Csr(starts, near[kept]), scores[kept])


def near(of: Csr, newest: Floats | NDArray[np.float64], items: int, takers: int = 200) -> Near:
    """What `UserCf` needs: windows, and of each item the `takers` users who did something latest, by `newest` [users],
    their last times; the newest first."""
    order = np.argsort(-newest, kind="stable").astype(np.int32)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    rows = np.repeat(np.arange(len(newest), dtype=np.int32), np.diff(of.starts))
    by_item = np.lexsort((rank[rows], of.columns))
    whose, whom = of.columns[by_item], rows[by_item]
    starts = Csr.of(whose, whom, items).starts
    kept = np.arange(len(whose)) - starts[whose] < takers
    return Near(of, Csr.of(whose[kept], whom[kept], items))


def recent(history: History, kinds: Collection[int] | None = None, most: int = RECENT) -> tuple[Numbers, Floats]:
    """The last `most` different items of a history, newest first, and their weights: 1, FADE, FADE ** 2 ... `kinds`:
    codes of what counts as liked; None: all of them."""
    numbers = history.numbers
    if kinds is not None:
        numbers = numbers[np.isin(history.kinds, list(kinds))]
    last = numbers[::-1]
    first = np.sort(np.unique(last, return_index=True)[1])[:most]
    return last[first], (FADE ** np.arange(len(first))).astype(np.float32)


class Cooccurrence:
    """Counts as events come, for what an index does not have yet: which catalogue numbers were liked by the same
    people. One thread adds, many read; a reader beside an `add` may miss it in part.

    Bounds: `users_max` windows and `items_max` items, the ones left alone longest go first; `slots` neighbours an item,
    a new one takes the place of the one with the fewest. About 8 bytes x (items_max x slots + users_max x window).
    Visitors who turn out to be users stay apart here: an index, which joins them, comes soon."""

    def __init__(self, users_max: int = 20_000, items_max: int = 50_000, slots: int = 64, window: int = WINDOW) -> None:
        self._users_max, self._items_max, self._window = users_max, items_max, window
        self._windows: OrderedDict[str, list[int]] = OrderedDict()
        self._row: OrderedDict[int, int] = OrderedDict()  # number -> row of the arrays
        self._ids = np.full((64, slots), -1, np.int32)
        self._counts = np.zeros((64, slots), np.int32)
        self._totals = np.zeros(64, np.int32)

    def add(self, user: str, number: int) -> None:
        """`user` liked item `number` now."""
        held = self._windows.pop(user, [])
        if number in held:
            held.remove(number)
            held.append(number)
            self._windows[user] = held
            return
        if len(held) == self._window:
            self._change(held.pop(0), held, -1)
        self._change(number, held, 1)
        held.append(number)
        self._windows[user] = held
        if len(self._windows) > self._users_max:
            self._leave(self._windows.popitem(last=False)[1])

    # As a listener of live.py

    name = "cooccurrence"

    def on_positive(self, user: str, number: int, time: float, segment: str) -> None:
        """As `add`."""
        self.add(user, number)

    def state(self) -> dict[str, NDArray[Any]]:
        """The windows, of which all the rest follows, for `restore`."""
        held = list(self._windows.values())
        return {
            "users": np.frombuffer(msgspec.msgpack.encode(list(self._windows)), np.uint8),
            "lengths": np.array([len(numbers) for numbers in held], np.int32),
            "numbers": np.array([number for numbers in held for number in numbers], np.int32),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """What `state` gave takes the place of all that is here. Anything else: KeyError, ValueError or
        msgspec.MsgspecError, and nothing changed."""
        users = msgspec.msgpack.decode(state["users"].tobytes(), type=list[str])
        whose, numbers = np.repeat(np.arange(len(users)), state["lengths"]), state["numbers"]
        pairs = list(zip(whose.tolist(), numbers.tolist(), strict=True))
        self.clear()
        for user, number in pairs:
            self.add(users[user], number)

    def clear(self) -> None:
        """Nothing has happened yet."""
        self._windows.clear()
        self._row.clear()
        self._ids[:], self._counts[:], self._totals[:] = -1, 0, 0

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Take out the users that `mine` says, and all that was counted for them; how many they were."""
        gone = [user for user in self._windows if mine(user)]
        for user in gone:
            self._leave(self._windows.pop(user))
        return len(gone)

    def counts(self, number: int) -> tuple[Numbers, NDArray[np.int32], int]:
        """(items liked together with `number`, by how many people each, by how many it was liked itself)."""
        row = self._row.get(number, -1)
        if row < 0:
            return np.empty(0, np.int32), np.empty(0, np.int32), 0
        ids, counts = self._ids[row].copy(), self._counts[row].copy()
        there = counts > 0
        return ids[there], counts[there], int(self._totals[row])

    def near(self, number: int, shrink: float = SHRINK) -> tuple[Numbers, Floats]:
        """Items liked together with `number` and their similarities, in no order."""
        ids, counts, total = self.counts(number)
        totals = self._totals[[self._row.get(one, 0) for one in ids.tolist()]]
        alike = counts / np.sqrt(np.maximum(total * totals.astype(np.float64), 1))
        return ids, (alike * counts / (counts + shrink)).astype(np.float32)

    def _leave(self, held: list[int]) -> None:
        while held:
            self._change(held.pop(), held, -1)

    def _change(self, number: int, others: list[int], by: int) -> None:
        """Item `number` enters (1) or leaves (-1) a window with `others` in it. What had to go has nothing to lose."""
        if by > 0:
            row, rows = self._place(number), [self._place(other) for other in others]
        else:
            row, rows = self._row.get(number, -1), [self._row.get(other, -1) for other in others]
        if row >= 0:
            self._totals[row] = max(self._totals[row] + by, 0)
        _count(self._ids, self._counts, row, np.array(rows, np.int64), number, np.array(others, np.int32), by)

    def _place(self, number: int) -> int:
        row = self._row.get(number, -1)
        if row >= 0:
            self._row.move_to_end(number)
            return row
        if len(self._row) == self._items_max:
            row = self._row.popitem(last=False)[1]
            self._ids[row], self._counts[row], self._totals[row] = -1, 0, 0
        else:
            row = len(self._row)
            if row == len(self._totals):
                self._ids = np.concatenate([self._ids, np.full_like(self._ids, -1)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
                self._totals = np.concatenate([self._totals, np.zeros_like(self._totals)])
        self._row[number] = row
        return row


class ItemCf:
    """Items near those that the user liked last. Pairs that the index knows count by it, pairs with an item born since
    by `live`."""

    name = "item_cf"

    def __init__(
        self, index: Neighbours, places: Places, live: Cooccurrence | None = None, kinds: Collection[int] | None = None
    ) -> None:
        self._index, self._places, self._live, self._kinds = index, places, live, kinds

    def recall(self, scene: Scene, k: int) -> Found:
        liked, weights = recent(scene.history, self._kinds)
        columns, whose, at = self._index.lists.gather(self._places.rows(liked))
        numbers = [self._places.numbers[columns]]
        scores = [self._index.scores[at] * weights[whose]]
        if self._live is not None:
            for one, weight in zip(liked.tolist(), weights.tolist(), strict=True):
                ids, alike = self._live.near(one)
                if self._places.rows(np.array([one]))[0] >= 0:
                    born = self._places.rows(ids) < 0
                    ids, alike = ids[born], alike[born]
                numbers.append(ids)
                scores.append(alike * np.float32(weight))
        return summed(np.concatenate(numbers), np.concatenate(scores), scene, k)


class UserCf:
    """What those liked last who liked what the user did: `people` of them, by how much they share, rare items more."""

    name = "user_cf"

    def __init__(self, index: Near, places: Places, people: int = 100, kinds: Collection[int] | None = None) -> None:
        self._index, self._places, self._people, self._kinds = index, places, people, kinds

    def recall(self, scene: Scene, k: int) -> Found:
        liked, weights = recent(scene.history, self._kinds)
        windows, takers = self._index
        rows = self._places.rows(liked)
        users, whose, _ = takers.gather(rows)
        if not len(users):
            return Found.nothing()
        many = takers.starts[rows[whose] + 1] - takers.starts[rows[whose]]
        met, at = np.unique(users, return_inverse=True)
        shared = np.bincount(at, weights=weights[whose] / np.log2(2 + many))
        alike = shared / np.sqrt(windows.starts[met + 1] - windows.starts[met])
        peers = best(met, alike.astype(np.float32), self._people)
        columns, whom, _ = windows.gather(peers.numbers)
        return summed(self._places.numbers[columns], peers.scores[whom], scene, k)


def summed(numbers: Numbers, scores: Floats, scene: Scene, k: int) -> Found:
    """The `k` best of what is allowed, the `scores` [m] of one of `numbers` [m] added up."""
    inside = scene.allowed.test(numbers)
    met, at = np.unique(numbers[inside], return_inverse=True)
    return best(met, np.bincount(at, weights=scores[inside], minlength=len(met)).astype(np.float32), k)


@inner
def _below(score: Any, item: Any, other_score: Any, other: Any) -> bool:
    return bool(score < other_score or (score == other_score and item > other))


@inner
def _sink(ids: Rows, scores: Floats, at: int, size: int) -> None:
    """Restore the heap (worst on top) below place `at`."""
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and _below(scores[child + 1], ids[child + 1], scores[child], ids[child]):
            child += 1
        if not _below(scores[child], ids[child], scores[at], ids[at]):
            return
        ids[at], ids[child] = ids[child], ids[at]
        scores[at], scores[child] = scores[child], scores[at]
        at = child


@kernel(
    void(given(i64), given(i32), given(i64), given(i32), f64, f32[::1], i32[::1], i32[:, ::1], f32[:, ::1], i64[::1])
)
def _neighbours(
    starts: Whole, columns: Rows, people_starts: Whole, people: Rows, shrink: float, together: Floats, met: Rows,
    ids: Rows, scores: Floats, counts: Whole,
) -> None:  # fmt: skip
    most = ids.shape[1]
    for item in range(len(counts)):
        found, mine = 0, people_starts[item + 1] - people_starts[item]
        for at in range(people_starts[item], people_starts[item + 1]):
            user = people[at]
            for place in range(starts[user], starts[user + 1]):
                other = columns[place]
                if other != item:
                    if together[other] == 0:
                        met[found] = other
                        found += 1
                    together[other] += 1
        size, heap_ids, heap_scores = 0, ids[item], scores[item]
        for place in range(found):
            other = met[place]
            count = np.float64(together[other])
            together[other] = 0
            theirs = people_starts[other + 1] - people_starts[other]
            score = np.float32(count / np.sqrt(np.float64(mine) * theirs) * count / (count + shrink))
            if size < most:
                heap_ids[size], heap_scores[size] = other, score
                size += 1
                if size == most:
                    for top in range(most // 2 - 1, -1, -1):
                        _sink(heap_ids, heap_scores, top, most)
            elif _below(heap_scores[0], heap_ids[0], score, other):
                heap_ids[0], heap_scores[0] = other, score
                _sink(heap_ids, heap_scores, 0, most)
        if size < most:
            for top in range(size // 2 - 1, -1, -1):
                _sink(heap_ids, heap_scores, top, size)
        for end in range(size - 1, 0, -1):  # the worst goes to the end, again and again
            heap_ids[0], heap_ids[end] = heap_ids[end], heap_ids[0]
            heap_scores[0], heap_scores[end] = heap_scores[end], heap_scores[0]
            _sink(heap_ids, heap_scores, 0, end)
        counts[item] = size


@inner
def _bump(ids: Rows, counts: Rows, other: int, by: int) -> None:
    free = least = -1
    for slot in range(len(ids)):
        if counts[slot] > 0 and ids[slot] == other:
            counts[slot] += by
            return
        if counts[slot] <= 0:
            if free < 0:
                free = slot
        elif least < 0 or counts[slot] < counts[least]:
            least = slot
    if by > 0:
        slot = free if free >= 0 else least
        ids[slot], counts[slot] = other, by


@kernel(void(i32[:, ::1], i32[:, ::1], i64, given(i64), i64, given(i32), i64))
def _count(ids: Rows, counts: Rows, row: int, rows: Whole, number: int, others: Rows, by: int) -> None:
    for place in range(len(rows)):
        if row >= 0:
            _bump(ids[row], counts[row], others[place], by)
        if rows[place] >= 0:
            _bump(ids[rows[place]], counts[rows[place]], number, by)
