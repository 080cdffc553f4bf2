"""Requests of one kind that wait for one version: who is next, and who goes with whom.

Rules of the room:
- Requests of one kind may share a call of the model: same sizes, or lengths of one bucket. They are of one priority: an
  urgent one does not wait for what a later one adds to its call.
- Order: lowest priority number, then earliest deadline, then who came first. Nobody overtakes without a reason.
- The unit is rows. A request is never split over batches.
"""

from __future__ import annotations

from bisect import insort_right
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millstream.engine.batch import Answer
    from millstream.engine.check import Kind

Order = tuple[int, float]
NOBODY_HURRIES: Order = (0, float("inf"))
_ORDER = attrgetter("order")


class Queue:
    """What waits, in order. `rows` is their sum; `running` counts the batches of this kind under way."""

    __slots__ = ("items", "jumped", "kind", "rows", "running")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.items: list[Answer] = []
        self.rows = 0
        self.running = 0
        self.jumped = False  # somebody stands before one who came earlier

    def insert(self, answer: Answer) -> None:
        """Into its place before others; the end is `items.append`, by whoever adds the rows."""
        insort_right(self.items, answer, key=_ORDER)
        self.jumped = True

    def leave(self, answer: Answer) -> bool:
        """Give a place up; False when it has none any more."""
        try:
            self.items.remove(answer)
        except ValueError:
            return False
        self.rows -= answer.request.rows
        return True

    def oldest(self) -> float:
        """When the one that waits longest came; there must be one."""
        return min(answer.at for answer in self.items) if self.jumped else self.items[0].at

    def take(self, rows_max: int, joins: bool) -> list[Answer]:
        """The next batch: from the head on, whole requests, up to `rows_max` rows; a larger one goes alone."""
        items = self.items
        level = items[0].order[0]
        if joins and self.rows <= rows_max and items[-1].order[0] == level:
            self.items, self.rows, self.jumped = [], 0, False
            return items
        count, rows = 1, items[0].request.rows
        if joins:
            for answer in items[1:]:
                if rows + answer.request.rows > rows_max or answer.order[0] != level:
                    break
                rows += answer.request.rows
                count += 1
        batch = items[:count]
        del items[:count]
        self.rows -= rows
        if not items:
            self.jumped = False
        return batch
