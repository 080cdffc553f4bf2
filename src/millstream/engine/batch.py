"""One loaded version, the requests that wait for it, and which of them go together.

Rules of the room:
- A lane is one version of one model: requests in a lane never change version, and a batch comes from one lane.
- The unit is rows. A batch is whatever waits, oldest first, up to `rows_max`; nobody waits for a batch to fill.
- A request is never split over batches; one larger than `rows_max` is a batch of its own, computed in pieces.
- Deltas go in between batches: while one waits for running batches to end, no new batch starts on that lane.
- All of this belongs to the event loop's thread; a worker sees only a batch that was handed to it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from millstream import errors
from millstream.engine.check import Check, Tails
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.model import Learner, Model
from millstream.types import Array, Delta, Description, Output, Request

if TYPE_CHECKING:
    from millstream.engine.route import Arm

Result = dict[str, Array] | Exception
DELTAS_HELD_MAX = 64
_PLATFORMS = {"onnx": "onnxruntime_onnx"}


class Answer(asyncio.Future[Output]):
    """The caller's future and, at the same time, the request's place in its lane: cancelling it gives the place up."""

    __slots__ = ("arm", "at", "request", "tails")

    request: Request
    arm: Arm
    tails: Tails
    at: float

    def cancel(self, msg: object = None) -> bool:
        gone = super().cancel(msg)
        if gone:
            self.arm.lane.leave(self)
        return gone


class Copy:
    """A request that a shadow version computes again; nobody waits for it."""

    __slots__ = ("request",)

    def __init__(self, request: Request) -> None:
        self.request = request


ItemT = TypeVar("ItemT", Answer, Copy)


class Batch(Generic[ItemT]):
    """What one call of a worker computes: `results[i]` belongs to `items[i]`; `wall` and `cpu` in seconds."""

    __slots__ = ("cpu", "items", "lane", "name", "results", "sequence", "started", "wall")

    def __init__(self, lane: Lane, items: list[ItemT]) -> None:
        self.lane: Lane = lane
        self.items: list[ItemT] = items
        self.name, self.sequence = lane.name, lane.sequence
        self.results: list[Result] = []
        self.started = self.wall = self.cpu = 0.0


class Numbers:
    """The meter's slots of one version, so that counting is an addition."""

    def __init__(self, meter: Meter, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        self.requests = meter.counter("millstream_requests_total", "Requests answered or failed by a version", labels)
        self.rows = meter.counter("millstream_rows_total", "Rows computed for requests", labels)
        self.failures = meter.counter("millstream_failures_total", "Requests that the model failed", labels)
        self.batches = meter.counter("millstream_batches_total", "Calls of the model for requests", labels)
        self.refused = meter.counter("millstream_busy_total", "Requests refused because the queue was full", labels)
        self.copies = meter.counter("millstream_shadow_total", "Requests computed again as a shadow", labels)
        self.lost = meter.counter("millstream_shadow_lost_total", "Shadow requests dropped or failed", labels)
        self.queue = meter.histogram("millstream_queue_seconds", "From submit to the start of the batch", labels)
        self.compute = meter.histogram("millstream_compute_seconds", "Of a batch: join, model, split", labels)


class Lane:
    """One version that answers. `name` is its `version@delta`; `running` counts its batches under way."""

    def __init__(self, model: str, version: str, manifest: Manifest, loaded: Model, rows_max: int) -> None:
        self.model, self.version, self.manifest, self.loaded = model, version, manifest, loaded
        self.label = f"{model} {version}"
        self.check = Check(self.label, loaded.inputs, loaded.outputs, manifest.non_finite == "refuse")
        self.joins = self.check.joins
        self.rows_max = manifest.batching.rows_max or rows_max
        self.sequence = 0
        self.name = f"{version}@0"
        self.answered = 0  # the highest delta that an answer was computed after
        self.waiting: deque[Answer] = deque()
        self.rows_waiting = 0
        self.copies: deque[Copy] = deque()
        self.copy_rows = 0
        self.running = 0
        self.listed = False  # in the engine's list of lanes that have work
        self.cost = 0.0  # CPU seconds of a batch, smoothed
        self.fastest = float("inf")  # wall seconds of the quickest batch since the last decision
        self.inline = False
        self.last_error = ""
        self.numbers: Numbers
        self.held: list[Delta] = []  # deltas that wait for running batches to end

    def describe(self, versions: tuple[str, ...]) -> Description:
        platform = _PLATFORMS.get(self.manifest.format, f"millstream_{self.manifest.format}")
        return Description(self.model, versions, platform, self.loaded.inputs, self.loaded.outputs)

    def leave(self, answer: Answer) -> None:
        """Give up the place of a cancelled answer; one that is being computed has none."""
        try:
            self.waiting.remove(answer)
        except ValueError:
            return
        self.rows_waiting -= answer.request.rows

    def take(self) -> list[Answer]:
        """The next batch; at least one request must wait."""
        waiting = self.waiting
        if self.joins and not self.check.free:
            if self.rows_waiting <= self.rows_max:
                batch = list(waiting)
                waiting.clear()
                self.rows_waiting = 0
                return batch
            batch = [waiting.popleft()]
            rows = batch[0].request.rows
            while waiting and rows + waiting[0].request.rows <= self.rows_max:
                rows += waiting[0].request.rows
                batch.append(waiting.popleft())
        elif self.joins:
            batch, rows = self._take_alike()
        else:
            batch = [waiting.popleft()]
            rows = batch[0].request.rows
        self.rows_waiting -= rows
        return batch

    def take_copies(self) -> list[Copy]:
        """The next batch of shadow work; at least one must wait. Where lengths may differ, one alone."""
        batch = [self.copies.popleft()]
        rows = batch[0].request.rows
        if self.joins and not self.check.free:
            while self.copies and rows + self.copies[0].request.rows <= self.rows_max:
                rows += self.copies[0].request.rows
                batch.append(self.copies.popleft())
        self.copy_rows -= rows
        return batch

    def _take_alike(self) -> tuple[list[Answer], int]:
        """The oldest request and those behind it that have its sizes; the rest keep their order."""
        first = self.waiting.popleft()
        batch, rows, others = [first], first.request.rows, deque[Answer]()
        while self.waiting:
            answer = self.waiting.popleft()
            if answer.tails == first.tails and rows + answer.request.rows <= self.rows_max:
                batch.append(answer)
                rows += answer.request.rows
            else:
                others.append(answer)
        self.waiting = others
        return batch, rows

    def accept(self, delta: Delta) -> bool:
        """Take the next delta, now or when no batch runs. False: it was there already.

        A gap in the sequence: Conflict; damaged bytes: Corrupt; refused by the model: Error. Then nothing changed.
        """
        if not isinstance(self.loaded, Learner):
            raise errors.Conflict(f"{self.label} (format {self.manifest.format}) takes no deltas; it does not learn")
        last = self.held[-1].sequence if self.held else self.sequence
        if delta.sequence <= last:
            return False
        if delta.sequence != last + 1:
            raise errors.Conflict(
                f"{self.label}: delta {delta.sequence} after {last}; read the deltas of this base again from {last + 1}"
            )
        got = zlib.crc32(delta.weights, zlib.crc32(delta.slots))
        if got != delta.checksum or len(delta.slots) != len(delta.weights) or len(delta.slots) % 4:
            raise errors.Corrupt(
                f"{self.label}: delta {delta.sequence} expected checksum {delta.checksum}, got {got} over "
                f"{len(delta.slots)} bytes of slots and {len(delta.weights)} of weights; read it again"
            )
        if self.running:
            if len(self.held) >= DELTAS_HELD_MAX:
                raise errors.Busy(f"{self.label}: {len(self.held)} deltas wait for one batch to end")
            self.held.append(delta)
        else:
            self._apply(delta)
        return True

    def apply_held(self) -> None:
        """Apply what waited. One that the model refuses is given up with those behind it: the next shows as a gap."""
        held, self.held = self.held, []
        for delta in held:
            self._apply(delta)

    def _apply(self, delta: Delta) -> None:
        assert isinstance(self.loaded, Learner)
        try:
            self.loaded.apply(np.frombuffer(delta.slots, "<u4"), np.frombuffer(delta.weights, "<f4"))
        except Exception as error:
            raise errors.Error(f"{self.label} refuses delta {delta.sequence}, and stays as it is: {error}") from error
        self.sequence = delta.sequence
        self.name = f"{self.version}@{delta.sequence}"
