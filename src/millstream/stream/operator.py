"""The one stateful shape of the room: an Operator folds topics into outputs, and `Operation` makes it exactly once.

How exactly once works, with nothing but an append-only log:
- A *step* feeds the operator a bounded batch of every input topic, then tells it the time. All outputs of a step and
  the step's own description (input positions after it, the time it was told) are appended as **one atomic frame**.
  A crash leaves the whole frame or none of it, so outputs and input positions can never disagree.
- The operator is deterministic: same steps, same outputs. State is snapshotted now and then; recovery loads the
  snapshot and feeds it the later steps again, exactly as their frames describe them, throwing the outputs away: they
  are in the log already (their number is checked).
- Clocks are read once a step and recorded in the frame, so a replay sees the same times: the wall clock, and *steady*
  seconds, which pass only while this process runs and cannot jump.
- Topics are merged by arrival: with a backlog, a record of a later topic waits until the earlier topics have been read
  beyond its arrival, so an outcome never overtakes the answer that it belongs to. Nor do the earlier topics run ahead
  of a later one by more than a step and two minutes: else the state would grow with the backlog, past its bounds.
- The snapshot keeps the operator's configuration, and so does the first frame after a start and after a snapshot. A
  replay runs under the one that the steps were made under, also where the snapshot is lost; a changed one applies from
  the first new step.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from millstream.clock import Clock
from millstream.errors import Corrupt, Full, Later
from millstream.store.blob import write_atomic
from millstream.stream.event import Event, decode_all, encode_all
from millstream.stream.log import Log, Reader, Record, reached
from millstream.types import Forgotten


class Operator(Protocol):
    """State folded from events. Outputs are (key, event) pairs, in order: it appends them to `out`.

    `gone`: how often what the state refers to was not in the log any more, so that a replay may make other outputs.
    """

    @property
    def gone(self) -> int: ...

    def attach(self, log: Log) -> None:
        """Before all else: the log in which it may look up again what it has read before."""
        ...

    def on_items(
        self, topic: str, records: Sequence[Record], events: Sequence[Event], out: list[tuple[str, Event]]
    ) -> None:
        """Input events and the records they stood in, in order. Those of the first input topic of a step come before
        those of the second."""
        ...

    def on_time(self, now: float, steady: float, out: list[tuple[str, Event]]) -> None:
        """The step's time, after its events: unix seconds, and steady seconds (see above)."""
        ...

    def wake_at(self) -> float | None:
        """When `on_time` has something to do though no event comes (steady seconds), or None."""
        ...

    def pending(self) -> bool:
        """Whether the last step left outputs over: the next one then takes no events."""
        ...

    def snapshot(self) -> bytes:
        """The state, without what the log holds anyway."""
        ...

    def restore(self, state: bytes, log: Log) -> None:
        """Take over a state that `snapshot` gave, under the same configuration."""
        ...

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Drop, without an output, what the state has of people by their names; of how many requests."""
        ...

    def configuration(self) -> bytes:
        """Everything but the state that decides the outputs."""
        ...

    def configure(self, configuration: bytes) -> None:
        """Go on under another configuration, with the state as it is."""
        ...

    def needed(self, topic: str) -> dict[int, int]:
        """Per partition of `topic`, the first offset the state still refers to: retention must keep it."""
        ...


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a frame says of the step that made it: its number, the times it was told, input offsets after it; and the
    operator's configuration, empty where it is that of the step before. Earlier releases do not say it."""

    number: int
    now: float
    steady: float
    offsets: dict[str, dict[int, int]]
    configuration: bytes = b""


class _Snapshot(msgspec.Struct, frozen=True):
    step: Step
    output: int
    configuration: bytes
    state: bytes
    format: int = 1


class _AnySnapshot(msgspec.Struct, frozen=True):
    format: int = 1


SNAPSHOT_FORMAT = 2  # 1: a join without tasks; stream/earlier.py reads it
REORDER_S = 60.0  # how far the arrival stamps of two topics may be apart, after a clock jump, say
SLOW_S = 1.0  # a replay that takes longer says so
AHEAD_S = 2 * REORDER_S  # more than what a later topic's next record waits for
logger = logging.getLogger("millstream.stream")


_Batch = list[tuple[str, list[Record]]]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collector meanwhile: events come and go by the thousand, none in a circle, and it would look through
    them again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def group(output: str) -> str:
    """The consumer group under which the operation that writes topic `output` tells retention what it still needs."""
    return f"{output}.operation"


class Operation:
    """An operator with its inputs, its output topic (one partition, this process its only writer) and its snapshot."""

    def __init__(
        self,
        operator: Operator,
        log: Log,
        inputs: Sequence[str],
        output: str,
        snapshot: Path,
        clock: Clock,
        *,
        observe: Callable[[Event], None] | None = None,
        records_max: int = 2000,
        snapshot_steps: int = 500,
    ) -> None:
        """`inputs` are read in this order within a step, the *last* topic's end being looked up first, so that an
        event of an earlier topic that was appended before one of a later topic is always fed before it. `observe` is
        told every output once it is committed."""
        self.operator, self._log, self._clock, self._path = operator, log, clock, snapshot
        self._readers = {topic: log.reader(topic) for topic in inputs}
        self._output, self._observe = output, observe
        self._writer = log.writer(output, 0)
        self._records_max, self._snapshot_steps = records_max, snapshot_steps
        self.step_done = Step(0, 0.0, 0.0, {topic: {} for topic in inputs})
        self._snapshotted = self._gone = 0
        self._told = False  # whether a frame since the start and the snapshot says the configuration
        self._early: dict[tuple[str, int], tuple[int, float]] = {}  # a record that waits: its offset and arrival
        self._came: dict[tuple[str, int], float] = {}  # the arrival up to which a partition has been read
        self._behind = dict.fromkeys(self._readers, float("inf"))  # the least of these where more is left than a step
        operator.attach(log)
        with uncollected():
            self._recover()
        self._steady = self.step_done.steady - clock.monotonic()
        with contextlib.suppress(Full):  # later, then: nothing is lost but the right to change the configuration
            self.save()

    def step(self) -> int:
        """Take what waits, up to a bound, and commit it with its outputs. Returns how many events it took."""
        with uncollected():  # what it made is gone again when the collector is back
            count = self._step()
        if self.step_done.number - self._snapshotted >= self._snapshot_steps:
            self.save()
        return count

    def _step(self) -> int:
        batch, offsets = ([], self.step_done.offsets) if self.operator.pending() else self._gather({})
        now, steady = self._clock.now(), self._steady + self._clock.monotonic()
        wake = self.operator.wake_at()
        if not batch and (wake is None or wake > steady):
            return 0
        under = b"" if self._told else self.operator.configuration()
        done = Step(self.step_done.number + 1, now, steady, offsets, under)
        outputs = self._feed(batch, done)
        self._writer.append_frame(encode_all(outputs), meta=msgspec.msgpack.encode(done), sync=True)
        self.step_done, self._told = done, True
        if self._observe is not None:
            for _, event in outputs:
                self._observe(event)
        return sum(len(records) for _, records in batch)

    def save(self) -> None:
        """Snapshot the state, and let retention have what neither the state nor a replay needs."""
        step = self.step_done
        state = _Snapshot(
            step, self._writer.end, self.operator.configuration(), self.operator.snapshot(), SNAPSHOT_FORMAT
        )
        write_atomic(self._path, msgspec.msgpack.encode(state))
        self._snapshotted, self._told = step.number, False
        for topic, reader in self._readers.items():
            read = step.offsets[topic]
            needed = self.operator.needed(topic)
            keep = {p: min(needed.get(p, end), end) for p, end in read.items()}
            self._log.commit(group(self._output), reader.topic, keep)

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Drop what the state has of people by their names, and save: no replay needs what the log had of them before.
        Of how many requests."""
        count = self.operator.forget(mine)
        self.save()
        return count

    def reached(self, cut: Mapping[str, Mapping[int, int]]) -> bool:
        """Whether everything before these offsets of its inputs is in the state."""
        return reached(self.step_done.offsets, cut)

    def close(self) -> None:
        """Save and let go: the next one has nothing to replay."""
        self.save()
        self._writer.close()

    def abandon(self) -> None:
        """Let go without saving, as a crash would; tests recover from what is on disk."""
        self._writer.close()

    def _gather(self, until: dict[str, dict[int, int]]) -> tuple[_Batch, dict[str, dict[int, int]]]:
        """The next events of every input and the offsets after them; exactly up to the offsets `until` where given."""
        ends = {
            topic: until[topic] if until else {p: reader.end(p) for p in reader.partitions()}
            for topic, reader in reversed(self._readers.items())
        }
        bounded = not until
        batch, offsets = self._merge(ends, bounded)
        if bounded and not batch:  # what is behind goes on after a pause, and waits for what was held back for it
            self._behind = dict.fromkeys(self._readers, float("inf"))
            batch, offsets = self._merge(ends, bounded)
        return batch, offsets

    def _merge(self, ends: dict[str, dict[int, int]], bounded: bool) -> tuple[_Batch, dict[str, dict[int, int]]]:
        """The next events of every input before its `ends`, and the offsets after them."""
        batch: _Batch = []
        offsets: dict[str, dict[int, int]] = {}
        horizon = float("inf")  # arrival up to which every earlier topic has been read
        later = list(self._readers)
        for topic in self._readers:
            later.remove(topic)
            limit = min((self._behind[one] for one in later), default=float("inf")) + AHEAD_S
            offsets[topic] = dict(self.step_done.offsets[topic])
            reached, behind = horizon, float("inf")
            for partition, end in sorted(ends[topic].items()):
                place = topic, partition
                if bounded and self._came.get(place, 0.0) > limit:
                    records, at = list[Record](), offsets[topic][partition]
                else:
                    records, at = self._take(topic, partition, end, horizon, bounded)
                    waits, arrival = self._early.get(place, (-1, 0.0))
                    self._came[place] = arrival if waits == at else records[-1].arrival if records else 0.0
                if records:
                    batch.append((topic, records))
                offsets[topic][partition] = at
                if at < end:
                    reached = min(reached, self._came[place] - REORDER_S)
                if end - at > self._records_max:
                    behind = min(behind, self._came[place])
            self._behind[topic] = behind if bounded else float("inf")
            horizon = reached if bounded else float("inf")
        return batch, offsets

    def _take(self, topic: str, partition: int, end: int, horizon: float, bounded: bool) -> tuple[list[Record], int]:
        """The next records of a partition before offset `end` that arrived by `horizon`, and the offset after them."""
        reader = self._readers[topic]
        start = reader.start(partition)
        at = self.step_done.offsets[topic].get(partition, start)
        if at < start:
            logger.error("%s/%d: retention took offsets %d to %d before they were read", topic, partition, at, start)
            self._gone += start - at
            at = start
        taken: list[Record] = []
        waits, arrival = self._early.get((topic, partition), (-1, 0.0))
        if waits == at and arrival > horizon:
            return taken, at
        while at < end and (not bounded or len(taken) < self._records_max):
            # offsets may leap after a power loss, so a step is bounded by offset and by count
            found = [r for r in reader.read(partition, at, min(self._records_max, end - at)) if r.offset < end]
            ready = [r for r in found if r.arrival <= horizon]
            taken += ready
            at = found[len(ready)].offset if len(ready) < len(found) else found[-1].offset + 1 if found else end
            if len(ready) < len(found):
                self._early[topic, partition] = at, found[len(ready)].arrival
                break
        return taken, at

    def _feed(self, batch: _Batch, step: Step) -> list[tuple[str, Event]]:
        outputs: list[tuple[str, Event]] = []
        for topic, records in batch:
            events = decode_all([record.value for record in records])
            for event in events:
                self._gone += type(event) is Forgotten  # a replay of steps that saw more may make other outputs
            self.operator.on_items(topic, records, events, outputs)
        self.operator.on_time(step.now, step.steady, outputs)
        return outputs

    def _recover(self) -> None:
        """The snapshot, and every later step again, its outputs thrown away: they are in the log already."""
        at, ours = 0, self.operator.configuration()
        under = ours
        began: float | None = self._clock.monotonic()
        if self._path.exists():
            saved = _read(self._path)
            self.operator.configure(saved.configuration)
            self.operator.restore(saved.state, self._log)
            self.step_done, at, under = saved.step, saved.output, saved.configuration
        reader, first = self._log.reader(self._output), self.step_done.number
        for frame in reader.frames(0, max(at, reader.start(0))):
            step = msgspec.msgpack.decode(frame.meta, type=Step)
            if step.number > self.step_done.number:
                if step.configuration and step.configuration != under:
                    under = step.configuration
                    self.operator.configure(under)
                self._replay(step, frame.count)
                if began is not None and self._clock.monotonic() - began > SLOW_S:
                    began = None
                    logger.info("%s: replaying %d steps after the snapshot", self._output, _last(reader) - first)
        self.operator.configure(ours)

    def _replay(self, step: Step, count: int) -> None:
        batch, offsets = self._gather(step.offsets)
        made = len(self._feed(batch, step))
        if (made != count or offsets != step.offsets) and not (self._gone or self.operator.gone):
            raise Corrupt(
                f"replaying step {step.number} of {self._output} made {made} outputs where the log holds {count}: "
                "the inputs in the log are not those it was computed from, or its settings were others, which steps of "
                "an earlier release do not say: start once with those of that time"
            )
        self.step_done = step


def _last(reader: Reader) -> int:
    """The number of the last step that a topic of outputs holds."""
    number = 0
    for frame in reader.frames(0, max(reader.start(0), reader.end(0) - 1)):
        number = msgspec.msgpack.decode(frame.meta, type=Step).number
    return number


def _read(path: Path) -> _Snapshot:
    data = path.read_bytes()
    try:
        said = msgspec.msgpack.decode(data, type=_AnySnapshot).format
        if said > SNAPSHOT_FORMAT:
            raise Later(path, said, SNAPSHOT_FORMAT)
        return msgspec.msgpack.decode(data, type=_Snapshot)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{path}: {error}; move it away: the log rebuilds it from all that retention has left") from error
