"""What two towers learn from: who liked what, with what each liked before.

Rules of the room:
- A row is a like, in order of time; somebody who likes an item again says nothing new.
- A row's history is what the same person liked before it, never after: as serving knows it then.
- Attributes are those known now: a log of catalogues as they were is not kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.recall.cooccur import Positives

Tokens = NDArray[np.uint32]
Rows = NDArray[np.int64]


class Known(NamedTuple):
    """What is known of people and items: `people` uint32 [users, user_width], `items` uint32 [items, item_width],
    `marks` uint32 [items]: the token by which a history names each."""

    people: Tokens
    items: Tokens
    marks: Tokens


class Likes:
    """n likes in order of time: `whose`, `what` int64 [n], rows of `known`; `times` float64 [n], unix seconds."""

    def __init__(self, positives: Positives, known: Known) -> None:
        order = np.argsort(positives.times, kind="stable")
        users, items = positives.users[order].astype(np.int64), positives.items[order].astype(np.int64)
        first = np.sort(np.unique(users * len(known.items) + items, return_index=True)[1])
        self.known = known
        self.whose, self.what, self.times = users[first], items[first], positives.times[order][first]
        self._by_user = np.argsort(self.whose, kind="stable")  # each one's likes together, in order of time
        self._spot = np.empty(len(first), np.int64)
        self._spot[self._by_user] = np.arange(len(first))
        self._ends = np.cumsum(np.bincount(self.whose, minlength=len(known.people)))
        self._starts = np.concatenate(([0], self._ends[:-1])).astype(np.int64)

    def __len__(self) -> int:
        return len(self.whose)

    def liked(self, user: int, end: int) -> Rows:
        """Items that somebody liked in rows before `end`, oldest first."""
        mine = self._by_user[self._starts[user] : self._ends[user]]
        found: Rows = self.what[mine[mine < end]]
        return found

    def histories(self, rows: Rows, h: int) -> Tokens:
        """uint32 [m, h]: what the same person liked last before each of `rows`, newest last, behind empty places."""
        spots = self._spot[rows]
        return self._past(spots, self._starts[self.whose[rows]], h)

    def pasts(self, users: Rows, end: int, h: int) -> Tokens:
        """uint32 [m, h]: what these people liked last in rows before `end`."""
        counts = np.array([len(self.liked(user, end)) for user in users.tolist()], np.int64)
        return self._past(self._starts[users] + counts, self._starts[users], h)

    def _past(self, spots: Rows, starts: Rows, h: int) -> Tokens:
        at = spots[:, None] + np.arange(-h, 0)
        there = at >= starts[:, None]
        items = self.what[self._by_user[np.where(there, at, 0)]]
        return np.where(there, self.known.marks[items], np.uint32(0))
