"""Copies of live requests, computed again by shadow versions when nobody waits.

Rules of the room:
- One thread for all shadows, behind everything that somebody waits for; what does not fit is dropped and counted.
- Copies wait GATHER_S for others: each waking of the thread holds up a caller a little, and so does a long turn of it.
- A caller's answer never waits for a copy of it. Steps of sessions are not copied: a shadow has not their state.
- Both answers are compared in the shadows' thread: what that costs slows shadows, so that copies are dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from millstream import errors
from millstream.clock import Clock, Timer
from millstream.engine.batch import Batch, Copy
from millstream.engine.check import fitted
from millstream.engine.lane import Lane
from millstream.engine.worker import Workers
from millstream.types import Array, Output, Ran, Request, Shadow


class Pair(msgspec.Struct):
    """A request, what was answered to it, and what a shadow version made of it: `outputs` and the call that it was
    `ran` in, or `why` there are none."""

    request: Request
    live: Output
    version: str
    outputs: dict[str, Array] | None = None
    ran: Ran | None = None
    why: str = ""


GATHER_S = 0.02
Compare = Callable[[Pair], bool | None]
"""Told of every pair in the shadows' thread, and on the loop of copies that could not even be tried. Gives whether the
answers differ; None: not compared."""


class Shadows:
    """`tell` gets what a shadow answered, `compare` both answers; `ended(lane)` follows every batch of copies. `step`
    is asked for when copies are due, and calls `start` when nobody waits for anything else."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        tell: Callable[[Shadow], None] | None,
        ended: Callable[[Lane], None],
        step: Callable[[], None],
        compare: Compare | None = None,
    ) -> None:
        self._loop, self._clock, self._step = loop, clock, step
        self._tell, self._ended, self._compare = tell, ended, compare
        self._lanes: deque[Lane] = deque()
        self._gathering: Timer | None = None
        self._worker: Workers[Copy] = Workers(1, "millstream-shadow", loop, clock.monotonic, self._done, self._look)
        self.running = False
        self.stop, self.join = self._worker.stop, self._worker.join

    def copy(self, request: Request, live: Output, shadows: tuple[Lane, ...]) -> None:
        """Have these versions compute an answered request again, some time."""
        for lane in shadows:
            if lane.copy_rows + request.rows > lane.batching.queue_rows_max:
                lane.numbers.lost.add()
                continue
            given = fitted(request, lane.inputs)
            try:
                kind = lane.check(given)
            except errors.Error as error:  # the shadow takes other inputs than the version that answered
                lane.numbers.lost.add()
                if self._compare is not None:
                    self._compare(Pair(request, live, lane.name, why=str(error)))
                continue
            if not lane.copies:
                self._lanes.append(lane)
            due = self._clock.monotonic() + GATHER_S
            lane.copies.append(Copy(given, kind, due, live if self._compare is not None else None))
            lane.copy_rows += request.rows

    def start(self) -> None:
        """Compute the next batch of copies, if one is due and none runs."""
        if self.running or self._gathering or not self._lanes:
            return
        wait = self._lanes[0].copies[0].due - self._clock.monotonic()
        if wait > 0:
            self._gathering = self._clock.later(wait, self._gathered)
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

    def _gathered(self) -> None:
        self._gathering = None
        self._step()

    def drop(self) -> None:
        """Give up what waits."""
        if self._gathering:
            self._gathering.cancel()
            self._gathering = None
        for lane in self._lanes:
            lane.numbers.lost.add(len(lane.copies))
            lane.copies.clear()
        self._lanes.clear()

    def _look(self, batch: Batch[Copy]) -> None:
        """What the shadow says, and whether that differs from what was answered; in the shadows' thread."""
        for copy, result in zip(batch.items, batch.results, strict=True):
            if isinstance(result, dict):
                copy.scores = _scores(result)
            if self._compare is None:
                continue
            assert copy.live is not None
            pair = Pair(copy.request, copy.live, batch.name, ran=batch.ran)
            if isinstance(result, dict):
                pair.outputs = result
            else:
                pair.why = str(result)
            copy.differs = self._compare(pair)

    def _done(self, batch: Batch[Copy]) -> None:
        lane = batch.lane
        self.running = False
        lane.running -= 1
        answered = [copy for copy in batch.items if copy.scores is not None]
        lane.numbers.copies.add(len(answered))
        lane.numbers.lost.add(len(batch.items) - len(answered))
        lane.numbers.compared.add(sum(copy.differs is not None for copy in batch.items))
        lane.numbers.differs.add(sum(copy.differs is True for copy in batch.items))
        if self._tell is not None:
            for copy in answered:
                shadow = Shadow(
                    request=copy.request.id, model=lane.model, version=batch.name, scores=copy.scores or b""
                )
                self._loop.call_soon(self._tell, shadow)
        self._ended(lane)


def _scores(outputs: dict[str, Array]) -> bytes | None:
    """The first numeric output as float32; None when there is none."""
    for array in outputs.values():
        if array.dtype.kind in "fiub":
            return array.astype("<f4").tobytes()
    return None
