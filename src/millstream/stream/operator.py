"""The one stateful shape of the room: an Operator folds topics into outputs, and `Operation` makes it exactly once.

How exactly once works, with nothing but an append-only log:
- A *step* feeds the operator a bounded batch of every input topic, then tells it the time. All outputs of a step and
  the step's own description (input positions after it, the time it was told) are appended as **one atomic frame**.
  A crash leaves the whole frame or none of it, so outputs and input positions can never disagree.
- The operator is deterministic: same steps, same outputs. State is snapshotted now and then; recovery loads the
  snapshot and feeds it the later steps again, exactly as their frames describe them, throwing the outputs away: they
  are in the log already (their number is checked).
- A wall clock is read once a step and recorded in the frame, so a replay sees the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from millstream.clock import Clock
from millstream.errors import Corrupt
from millstream.store.blob import write_atomic
from millstream.stream.event import Event, decode, encode
from millstream.stream.log import Log, Record


class Operator(Protocol):
    """State folded from events. Outputs are (key, event) pairs, in order."""

    def on_item(self, topic: str, record: Record, event: Event) -> Iterable[tuple[str, Event]]:
        """One input event. Events of the first input topic of a step come before those of the second."""
        ...

    def on_time(self, now: float) -> Iterable[tuple[str, Event]]:
        """The step's time, after its events: unix seconds of this machine's clock when the step ran."""
        ...

    def wake_at(self) -> float | None:
        """When `on_time` has something to do though no event comes (unix seconds), or None."""
        ...

    def snapshot(self) -> bytes: ...

    def restore(self, state: bytes, log: Log) -> None: ...

    def needed(self, topic: str) -> dict[int, int]:
        """Per partition of `topic`, the first offset the state still refers to: retention must keep it."""
        ...


class Step(msgspec.Struct, frozen=True):
    """What a frame says of the step that made it: its number, the time it was told, input offsets after it."""

    number: int
    now: float
    offsets: dict[str, dict[int, int]]


class _Snapshot(msgspec.Struct, frozen=True):
    step: Step
    output: int
    state: bytes


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
        self.step_done = Step(0, 0.0, {topic: {} for topic in inputs})
        self._snapshotted = 0
        self._recover()

    def step(self) -> int:
        """Take what waits, up to a bound, and commit it with its outputs. Returns how many events it took."""
        batch, offsets = self._gather({})
        now = self._clock.now()
        wake = self.operator.wake_at()
        if not batch and (wake is None or wake > now):
            return 0
        done = Step(self.step_done.number + 1, now, offsets)
        outputs = self._feed(batch, now)
        items = [(key.encode(), encode(event)) for key, event in outputs]
        self._writer.append_frame(items, meta=msgspec.msgpack.encode(done), sync=True)
        self.step_done = done
        if self._observe is not None:
            for _, event in outputs:
                self._observe(event)
        if done.number - self._snapshotted >= self._snapshot_steps:
            self.save()
        return len(batch)

    def save(self) -> None:
        """Snapshot the state, and let retention have what neither the state nor a replay needs."""
        step = self.step_done
        state = _Snapshot(step, self._writer.end, self.operator.snapshot())
        write_atomic(self._path, msgspec.msgpack.encode(state))
        self._snapshotted = step.number
        for topic, reader in self._readers.items():
            read = step.offsets[topic]
            needed = self.operator.needed(topic)
            keep = {p: min(needed.get(p, end), end) for p, end in read.items()}
            self._log.commit(f"{self._output}.operation", reader.topic, keep)

    def close(self) -> None:
        self.save()
        self._writer.close()

    def abandon(self) -> None:
        """Let go without saving, as a crash would; tests recover from what is on disk."""
        self._writer.close()

    def _gather(self, until: dict[str, dict[int, int]]) -> tuple[list[tuple[str, Record]], dict[str, dict[int, int]]]:
        """The next events of every input and the offsets after them; up to the offsets `until` where given."""
        ends = {
            topic: until.get(topic) or {p: reader.end(p) for p in reader.partitions()}
            for topic, reader in reversed(self._readers.items())
        }
        batch: list[tuple[str, Record]] = []
        offsets: dict[str, dict[int, int]] = {}
        for topic, reader in self._readers.items():
            offsets[topic] = dict(self.step_done.offsets[topic])
            for partition, end in sorted(ends[topic].items()):
                at = offsets[topic].get(partition, reader.start(partition))
                room = end - at if until else self._records_max
                while at < end and room > 0:
                    # offsets may leap after a power loss, so a step is bounded by offset and by count
                    records = [r for r in reader.read(partition, at, min(room, self._records_max)) if r.offset < end]
                    batch += [(topic, record) for record in records]
                    room -= len(records)
                    at = records[-1].offset + 1 if records else end
                offsets[topic][partition] = at
        return batch, offsets

    def _feed(self, batch: list[tuple[str, Record]], now: float) -> list[tuple[str, Event]]:
        outputs: list[tuple[str, Event]] = []
        for topic, record in batch:
            outputs += self.operator.on_item(topic, record, decode(record.value))
        outputs += self.operator.on_time(now)
        return outputs

    def _recover(self) -> None:
        at = 0
        if self._path.exists():
            saved = msgspec.msgpack.decode(self._path.read_bytes(), type=_Snapshot)
            self.operator.restore(saved.state, self._log)
            self.step_done, at = saved.step, saved.output
            self._snapshotted = saved.step.number
        reader = self._log.reader(self._output)
        for frame in reader.frames(0, max(at, reader.start(0))):
            step = msgspec.msgpack.decode(frame.meta, type=Step)
            if step.number <= self.step_done.number:
                continue
            batch, offsets = self._gather(step.offsets)
            made = len(self._feed(batch, step.now))
            if made != frame.count or offsets != step.offsets:
                raise Corrupt(
                    f"replaying step {step.number} of {self._output} made {made} outputs where the log holds "
                    f"{frame.count}: the inputs in the log are not those it was computed from"
                )
            self.step_done = step
