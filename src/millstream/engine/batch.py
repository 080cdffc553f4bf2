"""What the engine moves about: the caller's answer, a shadow's copy, and a batch of either.

Rules of the room:
- A batch comes from one lane and, where lengths matter, from one bucket; nobody in it changes version.
- All of this belongs to the event loop's thread; a worker sees only a batch that was handed to it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from millstream.engine.queue import Order, Queue
from millstream.types import Array, Output, Ran, Request

if TYPE_CHECKING:
    from millstream.engine.check import Kind
    from millstream.engine.lane import Lane
    from millstream.engine.route import Arm
    from millstream.engine.session import Session

Result = dict[str, Array] | Exception


class Answer(asyncio.Future[Output]):
    """The caller's future and, at the same time, the request's place in its lane: cancelling it gives the place up."""

    __slots__ = ("arm", "asked", "at", "key", "kind", "order", "request", "session")

    request: Request
    asked: Request  # as it came: `request` has what its version takes of it
    arm: Arm
    kind: Kind
    at: float
    order: Order
    session: Session | None
    key: bytes  # of its version's cache; empty where there is none

    def cancel(self, msg: object = None) -> bool:
        gone = super().cancel(msg)
        if gone:
            self.arm.given_up(self.request)
            self.withdraw()
        return gone

    def withdraw(self) -> None:
        """Give the place up, wherever that is; one that is being computed has none."""
        left = self.arm.lane.leave(self)
        if self.session is not None and (left or self.session.busy is not self):
            self.session.leave(self)


class Copy:
    """A request that a shadow version computes again; nobody waits for it. `due`: when, monotonic; `live`: what was
    answered; `scores`: what the shadow says, None: nothing; `differs`: whether that is something else, None: not
    compared."""

    __slots__ = ("differs", "due", "kind", "live", "request", "scores", "session")

    def __init__(self, request: Request, kind: Kind, due: float = 0.0, live: Output | None = None) -> None:
        self.request, self.kind, self.due, self.live = request, kind, due, live
        self.session: Session | None = None
        self.scores: bytes | None = None
        self.differs: bool | None = None


ItemT = TypeVar("ItemT", Answer, Copy)


class Batch(Generic[ItemT]):
    """What one call of a worker computes: `results[i]` belongs to `items[i]`; `wall` and `cpu` in seconds."""

    __slots__ = ("cpu", "items", "lane", "name", "queue", "ran", "results", "sequence", "started", "wall")

    def __init__(self, lane: Lane, items: list[ItemT], queue: Queue | None = None) -> None:
        self.lane: Lane = lane
        self.items: list[ItemT] = items
        self.queue: Queue | None = queue
        self.name, self.sequence = lane.name, lane.sequence
        self.results: list[Result] = []
        self.ran = Ran(len(items), 0)
        self.started = self.wall = self.cpu = 0.0
