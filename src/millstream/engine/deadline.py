"""Requests whose time is limited: each is ended the moment it is over, whether it waits or is being computed.

One timer for all of them, and none while nobody has a deadline.
"""

from __future__ import annotations

import heapq
from weakref import ref

from millstream import errors
from millstream.clock import Clock, Timer
from millstream.engine.batch import Answer

SWEPT = 1024


class Deadlines:
    """The answers that have a deadline, earliest first: the second of their `order`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, ref[Answer]]] = []  # weak: an answered request is not kept until then
        self._timer: Timer | None = None
        self._kept = 0

    def keep(self, answer: Answer) -> None:
        """End this one when its deadline passes."""
        self._kept += 1
        heapq.heappush(self._heap, (answer.order[1], self._kept, ref(answer)))
        if len(self._heap) > SWEPT and self._kept % SWEPT == 0:  # most were answered long ago
            self._heap = [one for one in self._heap if not _over(one[2]())]
            heapq.heapify(self._heap)
        if self._timer is None or self._heap[0][1] == self._kept:
            self._set()

    def stop(self) -> None:
        """End nothing more."""
        self._heap.clear()
        self._set()

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._heap:
            self._timer = self._clock.later(self._heap[0][0] - self._clock.monotonic(), self._drop)

    def _drop(self) -> None:
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            answer = heapq.heappop(self._heap)[2]()
            if answer is not None and not answer.done():
                lane = answer.arm.lane
                answer.arm.late(answer.request)
                waited = (now - answer.at) * 1e3
                answer.set_exception(
                    errors.Late(
                        f"{lane.label}: no answer within {waited:.3g} ms, {lane.rows_waiting} rows wait; allow more "
                        "time, or ask less"
                    )
                )
                answer.withdraw()
        self._set()


def _over(answer: Answer | None) -> bool:
    return answer is None or answer.done()
