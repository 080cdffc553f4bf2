"""Copies of live requests, computed again by shadow versions when nobody waits.

Rules of the room:
- One thread for all shadows, behind everything that somebody waits for; what does not fit is dropped and counted.
- A caller's answer never waits for a copy of it. Steps of sessions are not copied: a shadow has not their state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from millstream import errors
from millstream.engine.batch import Batch, Copy
from millstream.engine.lane import Lane
from millstream.engine.worker import Workers
from millstream.types import Array, Request, Shadow


class Shadows:
    """`tell` gets what a shadow answered; `ended(lane)` follows every batch of copies."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        tell: Callable[[Shadow], None] | None,
        ended: Callable[[Lane], None],
    ) -> None:
        self._loop, self._tell, self._ended = loop, tell, ended
        self._lanes: deque[Lane] = deque()
        self._worker: Workers[Copy] = Workers(1, "millstream-shadow", loop, now, self._done)
        self.running = False
        self.stop, self.join = self._worker.stop, self._worker.join

    def copy(self, request: Request, shadows: tuple[Lane, ...]) -> None:
        """Have these versions compute an answered request again, some time."""
        for lane in shadows:
            if lane.copy_rows + request.rows > lane.batching.queue_rows_max:
                lane.numbers.lost.add()
                continue
            try:
                kind = lane.check(request)
            except errors.Error:  # the shadow takes other inputs than the version that answered
                lane.numbers.lost.add()
                continue
            if not lane.copies:
                self._lanes.append(lane)
            lane.copies.append(Copy(request, kind))
            lane.copy_rows += request.rows

    def start(self) -> None:
        """Compute the next batch of copies, if there is one and none runs."""
        if self.running or not self._lanes:
            return
        lane = self._lanes.popleft()
        if lane.held:
            self._lanes.append(lane)
            return
        batch = Batch[Copy](lane, lane.take_copies())
        if lane.copies:
            self._lanes.append(lane)
        self.running = True
        lane.running += 1
        self._worker.start(batch)

    def drop(self) -> None:
        """Give up what waits."""
        for lane in self._lanes:
            lane.numbers.lost.add(len(lane.copies))
            lane.copies.clear()
        self._lanes.clear()

    def _done(self, batch: Batch[Copy]) -> None:
        lane = batch.lane
        self.running = False
        lane.running -= 1
        for copy, result in zip(batch.items, batch.results, strict=True):
            scores = _scores(result) if isinstance(result, dict) else None
            if scores is None:
                lane.numbers.lost.add()
                continue
            lane.numbers.copies.add()
            if self._tell:
                shadow = Shadow(request=copy.request.id, model=lane.model, version=batch.name, scores=scores)
                self._loop.call_soon(self._tell, shadow)
        self._ended(lane)


def _scores(outputs: dict[str, Array]) -> bytes | None:
    """The first numeric output as float32; None when there is none."""
    for array in outputs.values():
        if array.dtype.kind in "fiub":
            return array.astype("<f4").tobytes()
    return None
