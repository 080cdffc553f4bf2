"""One loaded version: the requests that wait for it by kind, its threads, its slots, and its numbers.

Rules of the room:
- A lane is one version of one model: requests in a lane never change version.
- A batch is whatever waits of the most urgent kind, up to `rows_max`. Nobody waits for a batch to fill unless the model
  asks for it (`wait_ms`); preferred sizes only round down.
- Where lengths have buckets, one kind never takes all instances: long calls must not stand before short ones.
- Deltas go in between batches: while one waits for running batches to end, no new batch starts on that lane.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import deque

import numpy as np

from millstream import errors
from millstream.engine.batch import Answer, Copy
from millstream.engine.cache import Cache
from millstream.engine.check import Check, Kind
from millstream.engine.goal import SHARE, Goal, Pace
from millstream.engine.join import Join, check_length
from millstream.engine.queue import Queue
from millstream.engine.tally import Numbers, Tally
from millstream.models.manifest import Batching, Manifest
from millstream.models.model import Learner, Model, Stateful, Waiting
from millstream.types import Config, Delta, Description, Leeway

DELTAS_HELD_MAX = 64
# Where nobody says how many rows a call may have: as many as take so long, within these bounds.
CALL_S, ROWS_FIRST, ROWS_MAX = 0.01, 32, 1024
_PLATFORMS = {"onnx": "onnxruntime_onnx"}


class Lane:
    """One version that answers. `name` is its `version@delta`; `running` counts its batches under way; `free` its
    instances that compute nothing."""

    numbers: Numbers

    def __init__(
        self, model: str, version: str, manifest: Manifest, loaded: Model, batching: Batching, instances: int = 1
    ) -> None:
        self.model, self.version, self.manifest, self.loaded = model, version, manifest, loaded
        self.batching = batching
        self.label = f"{model} {version}"
        length = batching.length
        if length:
            check_length(self.label, length, loaded.inputs, loaded.outputs)
            if isinstance(loaded, Stateful):
                raise errors.Misconfigured(
                    f"{self.label}: [batching.length] pads inputs, and padding would stay in the state of [sessions]; "
                    "choose one, or send steps of one length"
                )
        filled = length.lengths if length else ""
        self.inputs = tuple(spec for spec in loaded.inputs if spec.name != filled)
        self.check = Check(self.label, self.inputs, loaded.outputs, manifest.non_finite == "refuse", length)
        self.names = {spec.name for spec in loaded.outputs}
        self.joins = self.check.joins
        if strange := set(batching.once) - {spec.name for spec in self.inputs if self.joins}:
            raise errors.Misconfigured(
                f"{self.label}: [batching] once: {min(strange)!r} is no input whose first dimension is free; "
                f"there are: {', '.join(spec.name for spec in self.inputs)}"
            )
        self.join = Join(loaded.inputs, length, self.joins, batching.once)
        self.rows_max = batching.rows_max or ROWS_MAX
        self.bound = batching.rows_max or ROWS_FIRST  # most rows of a batch now
        self.wait_s = batching.wait_ms / 1e3
        self.preferred = sorted(size for size in batching.preferred if size <= self.rows_max)
        self.instances = self.free = batching.instances or instances
        self.shared = length is not None and len(length.buckets) > 1 and self.instances > 1
        self.pace = Pace()
        self.goal = Goal(batching.p99_ms / 1e3, self.instances, self.pace) if batching.p99_ms else None
        self.off_loop = isinstance(loaded, Waiting)
        self.cache = Cache(manifest.cache) if manifest.cache is not None else None
        sessions = manifest.sessions
        self.slots = loaded.slots(sessions.slots) if isinstance(loaded, Stateful) else None
        self.slots_free = list(range(sessions.slots if self.slots else 0))
        self.sessions = 0  # open on this version, with a slot or without
        self.steps_waiting = 0  # behind the steps of their sessions that wait here
        self.stamp: object = None  # of the files that it was loaded from
        self.sequence = 0
        self.name = f"{version}@0"
        self.answered = 0  # the highest delta that an answer was computed after
        self.queues: dict[Kind, Queue] = {}
        self.rows_waiting = 0
        self.copies: deque[Copy] = deque()
        self.copy_rows = 0
        self.running = 0
        self.listed = False  # in the engine's list of lanes that have work
        self.cost = float("inf")  # CPU seconds of a batch, smoothed; infinite until one is known
        self.fastest = float("inf")  # wall seconds of the quickest batch since the last decision
        self.inline = False
        self.last_error = ""
        self.loaded_s = 0.0  # unix seconds
        self.memory_bytes = 0.0  # taken by loading and warming it, in its own processes too
        self.device_bytes = 0.0  # taken on GPUs by loading and warming it
        self.tally = Tally()
        self.held: list[Delta] = []  # deltas that wait for running batches to end

    def describe(self, versions: tuple[str, ...]) -> Description:
        """What a caller may know of it."""
        platform = _PLATFORMS.get(self.manifest.format, f"millstream_{self.manifest.format}")
        return Description(self.model, versions, platform, self.inputs, self.loaded.outputs)

    def alike(self, other: Lane) -> bool:
        """Whether both take and give the same tensors."""
        return set(self.inputs) == set(other.inputs) and set(self.loaded.outputs) == set(other.loaded.outputs)

    def suits(self, other: Lane, leeway: Leeway) -> bool:
        """Whether it can answer what is asked of the other with so much leeway."""
        taken, others = ({spec for spec in one.inputs if spec.name not in leeway.spare} for one in (self, other))
        return taken == others and self.names.issuperset(leeway.reads)

    def config(self, description: Description) -> Config:
        """How it is batched."""
        batching, sessions = self.batching, self.manifest.sessions
        return Config(
            description=description,
            version=self.version,
            rows_max=self.rows_max if self.joins else 0,
            instances=self.instances,
            device=getattr(self.loaded, "device", "cpu"),
            preferred=tuple(self.preferred),
            wait_s=self.wait_s,
            timeout_s=batching.timeout_ms / 1e3,
            p99_s=batching.p99_ms / 1e3,
            queue_rows_max=batching.queue_rows_max,
            sessions=sessions.slots if self.slots else 0,
            idle_s=sessions.idle_s,
        )

    # Requests that wait.

    def add(self, answer: Answer) -> None:
        """Let a request wait."""
        queue = self.queues.get(answer.kind)
        if queue is None:
            queue = self.queues[answer.kind] = Queue(answer.kind)
        rows, items = answer.request.rows, queue.items
        if items and answer.order < items[-1].order:
            queue.insert(answer)
        else:
            items.append(answer)
        queue.rows += rows
        self.rows_waiting += rows

    def leave(self, answer: Answer) -> bool:
        """Give up the place of an answer; False when it has none: it is being computed, or was."""
        queue = self.queues.get(answer.kind)
        if queue is None or not queue.leave(answer):
            return False
        self.rows_waiting -= answer.request.rows
        self.forget(queue)
        return True

    def due(self, now: float) -> Queue | float:
        """The most urgent kind that may start now, or when to look again (infinity: when a batch has ended)."""
        if len(self.queues) == 1 and not self.wait_s and not self.shared:
            return next(iter(self.queues.values()))
        found: Queue | None = None
        again = float("inf")
        for queue in self.queues.values():
            if not queue.items or (self.shared and self._reserved(queue)):
                continue
            if self.wait_s and queue.rows < self.bound:
                ready = queue.oldest() + self.wait_s
                if ready > now:
                    again = min(again, ready)
                    continue
            if found is None or _urgency(queue) < _urgency(found):
                found = queue
        return found or again

    def ahead(self, rows: int) -> tuple[int, int, int]:
        """(what waits, what a request of `rows` adds, most of a call) in the unit that a call's pace is told in: rows,
        or requests where rows do not join."""
        if self.joins:
            return self.rows_waiting, rows, self.bound
        return sum(len(queue.items) for queue in self.queues.values()), 1, 1

    def _reserved(self, queue: Queue) -> bool:
        """Whether what is free is kept from this kind: all but the shortest bucket leave one instance to that one."""
        return queue.kind[0] != 0 and self.instances - 1 <= sum(
            other.running for other in self.queues.values() if other.kind[0] != 0
        )

    def ran(self, rows: int, wall_s: float) -> None:
        """A call has ended: learn from it how many rows the next may have."""
        if not self.joins:
            self.pace.ran(1, wall_s)  # a call is a request, whatever its rows
            return
        if rows > self.rows_max:
            return  # computed in pieces: not one call
        self.pace.ran(rows, wall_s)
        if self.goal is not None:
            self.bound = self.pace.within(SHARE * self.goal.p99_s, 1, self.rows_max)
        elif not self.batching.rows_max:
            self.bound = self.pace.within(CALL_S, ROWS_FIRST, ROWS_MAX)

    def take(self, queue: Queue) -> list[Answer]:
        """The next batch of a kind, which has some."""
        most = self.bound
        if self.preferred and min(queue.rows, most) >= self.preferred[0]:
            most = self.preferred[bisect_right(self.preferred, min(queue.rows, most)) - 1]
        before = queue.rows
        batch = queue.take(most, self.joins)
        self.rows_waiting += queue.rows - before
        return batch

    def started(self, queue: Queue) -> None:
        """A batch of this kind begins on an instance."""
        self.free -= 1
        self.running += 1
        queue.running += 1

    def ended(self, queue: Queue) -> None:
        """It has ended."""
        self.free += 1
        self.running -= 1
        queue.running -= 1
        self.forget(queue)

    def take_copies(self) -> list[Copy]:
        """The next batch of shadow work; at least one must wait."""
        batch = [self.copies.popleft()]
        rows = batch[0].request.rows
        while self.joins and self.copies and self.copies[0].kind == batch[0].kind:
            if rows + self.copies[0].request.rows > self.rows_max:
                break
            rows += self.copies[0].request.rows
            batch.append(self.copies.popleft())
        self.copy_rows -= rows
        return batch

    def idle(self) -> bool:
        """Whether nobody needs it any more: nothing waits, runs or is carried from step to step."""
        return not (self.rows_waiting or self.running or self.sessions or self.copies)

    def forget(self, queue: Queue) -> None:
        """Kinds without end (every size is one) must not stay when nobody waits."""
        if not queue.items and not queue.running and self.check.free:
            self.queues.pop(queue.kind, None)

    # Learning while serving.

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
        got = 0
        parts = (delta.slots, delta.weights, delta.dense, delta.calibration)
        for part in parts:
            got = zlib.crc32(part, got)
        if got != delta.checksum or not _fit(delta):
            sizes = ", ".join(str(len(part)) for part in parts)
            raise errors.Corrupt(
                f"{self.label}: delta {delta.sequence} expected checksum {delta.checksum}, got {got} over slots, "
                f"weights, dense and calibration of {sizes} bytes; read it again"
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
            slots, weights = np.frombuffer(delta.slots, "<u4"), np.frombuffer(delta.weights, "<f4")
            if len(weights) != len(slots):
                weights = weights.reshape(len(slots), -1)
            dense, calibration = np.frombuffer(delta.dense, "<f4"), np.frombuffer(delta.calibration, "<f8")
            self.loaded.apply(slots, weights, dense, calibration)
        except Exception as error:
            raise errors.Error(f"{self.label} refuses delta {delta.sequence}, and stays as it is: {error}") from error
        self.sequence = delta.sequence
        self.name = f"{self.version}@{delta.sequence}"


def _fit(delta: Delta) -> bool:
    """Whether its parts hold whole numbers, as many weights to each slot."""
    slots, weights, dense, calibration = map(len, (delta.slots, delta.weights, delta.dense, delta.calibration))
    if slots % 4 or weights % 4 or dense % 4 or calibration not in (0, 16):
        return False
    return weights % slots == 0 < weights if slots else not weights


def _urgency(queue: Queue) -> tuple[tuple[int, float], float]:
    head = queue.items[0]
    return head.order, head.at
