"""Contract checks that any implementation of a room's protocol must pass: ours, an adapter, or a user's own.

Rules of the room:
- A check takes `make`, drives the real thing through its public methods only, and fails with a sentence.
- A check proves the contract, not the speed, and leaves nothing running.
"""

from __future__ import annotations

import asyncio
import math
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.clock import Clock
from millstream.guard.pii import Redacted
from millstream.meter import Series
from millstream.models.manifest import Manifest
from millstream.models.model import Model, Slots, Stateful
from millstream.models.policy import Policy
from millstream.models.repository import Repository
from millstream.models.speech import heard, tensors
from millstream.stream import Log, Writer
from millstream.types import Array
from millstream.watch.monitor import Logged, Monitor, Sample
from millstream.watch.quantities import QUANTITIES
from millstream.watch.reading import Key

R = TypeVar("R")


class RecordLike(Protocol):
    """What a log hands back; `arrival` unix seconds."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def arrival(self) -> float: ...
    @property
    def key(self) -> bytes: ...
    @property
    def value(self) -> bytes: ...


class WriterLike(Protocol):
    """Appends to one partition of one topic."""

    @property
    def end(self) -> int: ...
    def append(self, key: bytes, value: Redacted) -> int: ...
    def append_frame(self, items: Iterable[tuple[bytes, Redacted]], meta: bytes = b"", sync: bool = False) -> int: ...
    def append_durable(self, key: bytes, value: Redacted) -> asyncio.Future[int]: ...
    def last_meta(self) -> bytes: ...
    def close(self) -> None: ...


class ReaderLike(Protocol):
    """Reads one topic from any place."""

    def partitions(self) -> list[int]: ...
    def start(self, partition: int) -> int: ...
    def end(self, partition: int) -> int: ...
    def read(
        self, partition: int, offset: int, max_records: int = 1000, max_bytes: int = 8 << 20
    ) -> Iterable[RecordLike]: ...


class LogLike(Protocol):
    """Topics, their writers and readers, and what groups have read."""

    def topics(self) -> list[str]: ...
    def writer(self, topic: str, partition: int = 0) -> WriterLike: ...
    def reader(self, topic: str) -> ReaderLike: ...
    def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None: ...
    def committed(self, group: str, topic: str) -> dict[int, int]: ...
    def close(self) -> None: ...


def check_log(make: Callable[[], LogLike]) -> None:
    """`make()` opens the same log each time; it is empty at first, and the one before is closed by then.

    Raises AssertionError with a sentence naming the promise that was broken.
    """
    for promise in (_opaque, _ordered, _bounded, _partitions, _frames, _durable, _one_writer, _groups):
        log = make()
        try:
            promise(log)
        finally:
            log.close()
    log = make()
    try:
        _kept(log)
    finally:
        log.close()


def _all(reader: ReaderLike, partition: int = 0) -> list[RecordLike]:
    records: list[RecordLike] = []
    at = reader.start(partition)
    while more := list(reader.read(partition, at, max_records=3)):
        records += more
        at = more[-1].offset + 1
    return records


def _opaque(log: LogLike) -> None:
    pairs = [
        (b"", b""),
        (b"", b"v"),
        (b"k", b""),
        (bytes(range(256)), bytes(range(256)) * 40),
        (b"\n\0", "é水".encode()),
    ]
    writer = log.writer("check-opaque")
    offsets = [writer.append(key, Redacted(value)) for key, value in pairs]
    records = _all(log.reader("check-opaque"))
    assert [(r.key, r.value) for r in records] == pairs, "keys and values must come back byte for byte"
    assert [r.offset for r in records] == offsets, "a record must have the offset that append returned"
    assert "check-opaque" in log.topics(), "a topic that was written must be listed"


def _ordered(log: LogLike) -> None:
    reader = log.reader("check-order")
    assert reader.partitions() == [] and list(reader.read(0, 0)) == [], "an unwritten topic must read as empty"
    writer = log.writer("check-order")
    for number in range(50):
        writer.append(b"k", Redacted(b"%d" % number))
        assert int(next(reversed(_all(reader))).value) == number, "an append must be readable when it returns"
    records = _all(reader)
    assert [int(r.value) for r in records] == list(range(50)), "order must be the order of appends"
    arrivals = [r.arrival for r in records]
    assert arrivals == sorted(arrivals), "arrivals must never decrease within a partition"
    for place, record in enumerate(records):
        again = [int(r.value) for r in reader.read(0, record.offset)]
        assert again == list(range(place, 50)), "reading must replay from any offset, backwards too"
    assert reader.end(0) == writer.end == records[-1].offset + 1, "the end must be the offset after the last record"
    assert list(reader.read(0, reader.end(0))) == [], "reading at the end must give nothing"
    try:
        reader.read(0, reader.end(0) + 1)
    except errors.NotFound:
        pass
    else:
        raise AssertionError("reading past the end must raise NotFound: the log is not the one that was read before")


def _bounded(log: LogLike) -> None:
    writer = log.writer("check-bounds")
    for _ in range(10):
        writer.append(b"", Redacted(bytes(100)))
    reader = log.reader("check-bounds")
    first = reader.start(0)
    assert len(list(reader.read(0, first, max_records=4))) == 4, "max_records must bound a read"
    assert len(list(reader.read(0, first, max_bytes=250))) == 3, "a read must stop once it has max_bytes"
    assert len(list(reader.read(0, first, max_bytes=1))) == 1, "a read before the end must give one record at least"


def _partitions(log: LogLike) -> None:
    first, third = log.writer("check-partitions", 0), log.writer("check-partitions", 3)
    first.append(b"a", Redacted(b"0"))
    third.append(b"a", Redacted(b"3"))
    reader = log.reader("check-partitions")
    assert {0, 3} <= set(reader.partitions()), "every written partition must be listed"
    found = {p: [(r.partition, r.value) for r in _all(reader, p)] for p in (0, 3)}
    assert found == {0: [(0, b"0")], 3: [(3, b"3")]}, "partitions must not share records"


def _frames(log: LogLike) -> None:
    writer = log.writer("check-frames")
    assert writer.last_meta() == b"", "without a frame's meta, last_meta must be empty"
    first = writer.append_frame([(b"k", Redacted(b"%d" % n)) for n in range(5)], meta=b"step 1", sync=True)
    writer.append(b"k", Redacted(b"5"))
    records = _all(log.reader("check-frames"))
    assert records[0].offset == first, "append_frame must return its first record's offset"
    assert [int(r.value) for r in records] == list(range(6)), "a frame's records must be in order"
    assert writer.last_meta() == b"step 1", "last_meta must be that of the last frame that had one"
    writer.append_frame([], meta=b"step 2")
    assert writer.last_meta() == b"step 2", "a frame may carry a meta alone"


def _durable(log: LogLike) -> None:
    writer = log.writer("check-durable")

    async def mixed() -> list[int]:
        waiting = [writer.append_durable(b"k", Redacted(b"0")), writer.append_durable(b"k", Redacted(b"1"))]
        plain = writer.append(b"k", Redacted(b"2"))
        waiting.append(writer.append_durable(b"k", Redacted(b"3")))
        done = await asyncio.gather(*waiting)
        return [done[0], done[1], plain, done[2]]

    offsets = asyncio.run(mixed())
    records = _all(log.reader("check-durable"))
    assert [int(r.value) for r in records] == [0, 1, 2, 3], "order must hold when append and append_durable are mixed"
    assert [r.offset for r in records] == offsets, "a durable append must resolve to its record's offset"


def _one_writer(log: LogLike) -> None:
    writer = log.writer("check-conflict")
    try:
        log.writer("check-conflict")
    except errors.Conflict:
        pass
    else:
        raise AssertionError("a second writer of a partition must get Conflict")
    writer.close()
    log.writer("check-conflict").append(b"", Redacted(b""))


def _groups(log: LogLike) -> None:
    assert log.committed("readers", "check-order") == {}, "a group that never committed must have nothing"
    log.commit("readers", "check-order", {0: 7, 2: 1})
    log.commit("readers", "check-order", {0: 9})
    log.commit("others", "check-order", {0: 3})
    assert log.committed("readers", "check-order") == {0: 9, 2: 1}, "the last commit of each partition must hold"
    assert log.committed("readers", "check-frames") == {}, "a commit must be for its topic alone"


def _kept(log: LogLike) -> None:
    """What the promises before this one wrote, found after the log was closed and opened."""
    assert len(_all(log.reader("check-order"))) == 50, "records must outlive the log that wrote them"
    assert log.committed("others", "check-order") == {0: 3}, "commits must outlive the log that took them"
    writer = log.writer("check-frames")
    assert writer.last_meta() == b"step 2", "last_meta must outlive the writer"
    before = writer.end
    assert writer.append(b"", Redacted(b"6")) == before, "a new writer must go on where the last one ended"


class Crash(BaseException):
    """The process died here. Not an Exception: nothing in the house may catch it and go on."""


class Fuse:
    """Burns at the `write`-th write to disk, `before` or after it took effect. From then on every write dies too, as it
    would in a process that is gone. `writes` counts what came through."""

    def __init__(self, write: int | None = None, before: bool = True) -> None:
        self._write, self._before = write, before
        self.writes = 0
        self.burnt = False

    def around(self, write: Callable[[], R]) -> R:
        if self.burnt:
            raise Crash
        self.writes += 1
        due = self.writes == self._write
        if due and self._before:
            self.burnt = True
            raise Crash
        result = write()
        if due:
            self.burnt = True
            raise Crash
        return result


class CrashingWriter(Writer):
    """A log writer that dies when its fuse burns."""

    fuse: Fuse

    def append(self, key: bytes, value: Redacted) -> int:
        return self.fuse.around(lambda: super(CrashingWriter, self).append(key, value))

    def append_frame(self, items: Iterable[tuple[bytes, Redacted]], meta: bytes = b"", sync: bool = False) -> int:
        return self.fuse.around(lambda: super(CrashingWriter, self).append_frame(items, meta, sync))

    def append_durable(self, key: bytes, value: Redacted) -> asyncio.Future[int]:
        return self.fuse.around(lambda: super(CrashingWriter, self).append_durable(key, value))


class CrashingLog(Log):
    """A log whose appends and commits die when the fuse burns."""

    def __init__(self, root: Path, clock: Clock, fuse: Fuse) -> None:
        super().__init__(root, clock)
        self._fuse = fuse

    def writer(self, topic: str, partition: int = 0) -> Writer:
        writer = super().writer(topic, partition)
        writer.__class__ = CrashingWriter
        writer.fuse = self._fuse  # type: ignore[attr-defined]
        return writer

    def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        self._fuse.around(lambda: super(CrashingLog, self).commit(group, topic, offsets))


class CrashingRepository(Repository):
    """A repository whose versions and policies die when the fuse burns."""

    def __init__(self, root: Path, fuse: Fuse) -> None:
        super().__init__(root)
        self._fuse = fuse

    def put(
        self,
        model: str,
        manifest: Manifest,
        files: Mapping[str, bytes | Path],
        check: Callable[[Path, Manifest], None] | None = None,
    ) -> str:
        return self._fuse.around(lambda: super(CrashingRepository, self).put(model, manifest, files, check))

    def change_policy(self, model: str, change: Callable[[Policy], Policy], who: str, why: str) -> Policy:
        return self._fuse.around(lambda: super(CrashingRepository, self).change_policy(model, change, who, why))


LOOKS, EVERY_S = 12, 60.0


def check_monitor(make: Callable[[], Monitor], events: Callable[[float], Iterable[Logged]] = lambda at: ()) -> None:
    """`make()` is a new monitor that has seen nothing. It gets series that go by the names of its metrics, and
    `events(at)`: what the log had in the minute before `at`, unix seconds, of its topics.

    Raises AssertionError with a sentence naming the promise that was broken.
    """
    for promise in (_says_what_it_wants, _nothing, _adds_up, _no_order, _time_backwards, _odd_numbers, _forgets):
        promise(make, events)


_Events = Callable[[float], Iterable[Logged]]
_BEGAN = 1_700_000_000.0
_BOUNDS = (0.25, 0.5, 1.0)


def _series(metrics: Iterable[str], count: float, version: str = "1") -> list[Series]:
    """Counters and histograms that have counted so much, and gauges that stand there."""
    labels = {"model": "m", "version": version, "label": "1", "status": "500"}
    made = []
    for name in sorted(metrics):
        if name.endswith("_total"):
            made.append(Series(name, "counter", labels, (), [count]))
        elif name.endswith(("_seconds", "_score", "_confidence", "_scores")):
            buckets = [count, 2 * count, 0.0, count]
            made.append(Series(name, "histogram", labels, _BOUNDS, [*buckets, 2.5 * count]))
        else:
            made.append(Series(name, "gauge", labels, (), [count % 7]))
    return made


def _show(monitor: Monitor, at: float, counts: Mapping[str, float], events: _Events, version: str = "1") -> None:
    """What there is to be seen at a moment: `counts` by process."""
    for process, count in counts.items():
        if monitor.metrics:
            monitor.observe(Sample(at, process, _series(monitor.metrics, count, version)))
    for one in events(at):
        if one.topic in monitor.topics:
            monitor.observe(one)


def _counts(read: Mapping[Key, float]) -> dict[Key, float]:
    return {key: value for key, value in read.items() if QUANTITIES[key.quantity].kind == "count"}


def _says_what_it_wants(make: Callable[[], Monitor], events: _Events) -> None:
    monitor = make()
    assert monitor.name, "a monitor must have a name"
    topics = {one.topic for one in events(_BEGAN)}
    assert topics <= monitor.topics, f"{monitor.name} does not want the topics of these events: {topics}"


def _nothing(make: Callable[[], Monitor], events: _Events) -> None:
    monitor = make()
    for at in (_BEGAN, _BEGAN + EVERY_S):
        read = monitor.readings(at)
        assert not any(_counts(read).values()), f"{monitor.name} has seen nothing and must not count: {read}"


def _adds_up(make: Callable[[], Monitor], events: _Events) -> None:
    """Asked often or once, a count is the same; asked again with no news it is nothing."""
    often, once = make(), make()
    total: dict[Key, float] = {}
    for monitor in (often, once):
        _show(monitor, _BEGAN, {"a": 5.0, "b": 7.0}, events)
        monitor.readings(_BEGAN)
    for look in range(1, LOOKS):
        at = _BEGAN + look * EVERY_S
        for monitor in (often, once):
            _show(monitor, at, {"a": 5.0 + 10 * look, "b": 7.0 + look * look}, events)
        read = often.readings(at)
        known = [key for key in read if key.quantity not in QUANTITIES]
        assert not known, f"{often.name} reads what is in no table (watch/quantities.py): {known}"
        for key, value in _counts(read).items():
            total[key] = total.get(key, 0.0) + value
        again = _counts(often.readings(at))
        assert not any(again.values()), f"{often.name}: asked again with no news, counts must be 0, got {again}"
    last = _counts(once.readings(_BEGAN + LOOKS * EVERY_S))
    for key in total.keys() | last.keys():
        one, other = total.get(key, 0.0), last.get(key, 0.0)
        assert abs(one - other) <= 1e-9 * max(1.0, abs(one)), (
            f"{often.name}: {key} adds up to {one} when it is asked at each look, and to {other} when once"
        )


def _no_order(make: Callable[[], Monitor], events: _Events) -> None:
    one, other = make(), make()
    for look in range(LOOKS):
        at, counts = _BEGAN + look * EVERY_S, {"a": 5.0 + 10 * look, "b": 7.0 + look * look}
        _show(one, at, counts, events)
        _show(other, at, dict(reversed(counts.items())), events)
        read, turned = dict(one.readings(at)), dict(other.readings(at))
        assert read == turned, f"{one.name}: readings must not depend on the order of processes"


def _time_backwards(make: Callable[[], Monitor], events: _Events) -> None:
    monitor = make()
    for look, at in enumerate((_BEGAN, _BEGAN + EVERY_S, _BEGAN - 7200.0, _BEGAN + 86400.0, _BEGAN + 2 * EVERY_S)):
        _show(monitor, at, {"a": 5.0 + 10 * look}, events)
        read = monitor.readings(at)
        assert all(value >= 0.0 for value in _counts(read).values()), (
            f"{monitor.name}: a clock that goes back must not make counts negative: {read}"
        )


def _odd_numbers(make: Callable[[], Monitor], events: _Events) -> None:
    monitor = make()
    for look, count in enumerate((5.0, float("nan"), float("inf"), -1.0, 3.0, 20.0, 30.0, 40.0)):
        at = _BEGAN + look * EVERY_S
        with suppress(Exception):  # it may refuse them, if it stays whole
            _show(monitor, at, {"a": count}, events)
        with suppress(Exception) if look < 4 else nullcontext():
            read = monitor.readings(at)
    odd = {key: value for key, value in read.items() if not math.isfinite(value)}
    assert not odd, f"{monitor.name} does not get over counters that were no numbers for a moment: {odd}"


def _forgets(make: Callable[[], Monitor], events: _Events) -> None:
    """Versions come and go for years."""
    monitor = make()

    def years(numbers: range) -> int:
        for number in numbers:
            at = _BEGAN + number * 3600.0
            _show(monitor, at, {"a": float(number)}, events, version=str(number))
            monitor.readings(at)
        return len(monitor.readings(at))

    few, many = years(range(1, 10)), years(range(10, 80))
    assert many <= 2 * max(few, 64), f"{monitor.name} goes on reading {many} things of versions that are gone"
    tracemalloc.start()
    try:
        years(range(80, 120))
        before = tracemalloc.get_traced_memory()[0]
        years(range(120, 220))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100 * 256, f"{monitor.name} keeps {grown / 100:,.0f} bytes of each version that comes and goes"


Sound = NDArray[np.float32]


def check_recogniser(make: Callable[[], Model], speech: Sound) -> None:
    """`make()` is a loaded recogniser, of either kind (models/speech/tensors.py); `speech` some seconds in which it
    hears words, float32 [n] at 16 kHz. Drives `predict`, or `step` of its slots, as the engine does.

    Raises AssertionError with a sentence naming the promise that was broken.
    """
    model = make()
    if isinstance(model, Stateful):
        assert set(model.inputs) == set(tensors.STREAMING), f"a streaming recogniser takes {tensors.STREAMING}"
        assert set(model.outputs) == set(tensors.STREAMING_OUTPUTS), f"it gives {tensors.STREAMING_OUTPUTS}"
        return _streams(model, speech)
    assert set(model.inputs) == set(tensors.WINDOWED), f"a windowed recogniser takes {tensors.WINDOWED}"
    assert set(model.outputs) == set(tensors.WINDOWED_OUTPUTS), f"it gives {tensors.WINDOWED_OUTPUTS}"
    whole, quiet = np.asarray(speech, np.float32), np.zeros(tensors.RATE, np.float32)
    rows = [whole, whole[: len(whole) // 2], quiet, whole[len(whole) // 3 :]]
    alone = [_window(model, [row])[0] for row in rows]
    _in_order(alone[0], len(whole))
    assert alone[0].words, "it must hear words in `speech`"
    assert not alone[2].words or alone[2].no_speech > 0.5, f"silence has no words, or is told as such; got {alone[2]}"
    for number, one in enumerate(_window(model, rows)):
        assert one == alone[number], f"row {number} is another beside others than alone: neighbours must not matter"
    assert _window(make(), rows[:1])[0] == alone[0], "the same audio must be told the same way by the next process"
    assert not _window(model, [whole[:0]])[0].words, "no audio has no words"
    words = alone[0].words[: max(1, len(alone[0].words) // 2)]
    prefix = "".join(f" {word.text}" if word.space else word.text for word in words).strip()
    again = _window(model, [whole], prefix)[0]
    said = [word.text for word in again.words[: len(words)]]
    assert said == [word.text for word in words], f"an answer begins with its prefix {prefix!r}, got {said}"
    _in_order(again, len(whole))
    _refused(lambda: model.predict(_windowed([whole]) | {"samples": np.array([len(whole) + 1], np.int32)}))
    return None


def _windowed(rows: list[Sound], prefix: str = "") -> dict[str, Array]:
    count = len(rows)
    return {
        "audio": _padded(rows),
        "samples": np.array([len(row) for row in rows], np.int32),
        "language": np.full(count, "en", np.object_),
        "prefix": np.full(count, prefix, np.object_),
        "beam": np.ones(count, np.int32),
        "stamps": np.zeros(count, np.bool_),
    }


def _padded(rows: list[Sound]) -> Sound:
    found = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found


def _window(model: Model, rows: list[Sound], prefix: str = "") -> list[heard.Heard]:
    return [heard.read(cell) for cell in model.predict(_windowed(rows, prefix))["heard"].tolist()]


def _in_order(one: heard.Heard, samples: int) -> None:
    at = 0.0
    for word in one.words:
        assert word.text and word.text == word.text.strip(), f"a word has text and no spaces around it, got {word}"
        assert at <= word.start <= word.end <= samples / tensors.RATE + 1e-6, (
            f"words are in order and within the audio of {samples / tensors.RATE:.2f} s, got {word} after {at:.2f} s"
        )
        assert 0 <= word.confidence <= 1, f"confidence is 0 .. 1, got {word}"
        at = word.start


def _refused(call: Callable[[], object]) -> None:
    try:
        call()
    except errors.BadInput:
        return
    raise AssertionError("`samples` over the audio's length must be BadInput")


def _streams(model: Stateful, speech: Sound) -> None:
    slots = model.slots(3)
    size = tensors.RATE // 2
    steps = [np.asarray(speech[at : at + size], np.float32) for at in range(0, len(speech), size)]
    alone = _utterance(slots, 0, steps)
    assert alone[-1].words, "it must hear words in `speech`"
    _in_order(alone[-1], len(speech))
    assert _utterance(slots, 0, steps) == alone, "a slot must be fresh after `end`: the same audio gives the same words"
    _step(slots, [1], steps[:1])
    slots.reset(np.array([1]))
    assert _utterance(slots, 1, steps) == alone, "a slot must be as new after reset"
    _crossed(slots, steps, alone)
    for step in steps[:2]:
        _step(slots, [2], [step])
    saved = slots.save(2)
    slots.reset(np.array([2]))
    slots.restore(1, saved)
    rest = [_step(slots, [1], [step], number == len(steps) - 1)[0][0] for number, step in enumerate(steps[2:], 2)]
    assert rest == alone[2:], "a saved state must go on in another slot as if it had stayed"
    length_one = _step(slots, [-1, -1], [steps[0], steps[0]])[0]
    assert length_one[0] == length_one[1] == alone[0], "slot -1 is a session of length one"
    wrong = _streamed(steps[:1]) | {"samples": np.array([size + 1], np.int32)}
    _refused(lambda: slots.step(wrong, np.array([0])))


def _crossed(slots: Slots, steps: list[Sound], alone: list[heard.Heard]) -> None:
    """Two sessions, one a step behind and the other way round in the batch; a third holds still meanwhile."""
    _step(slots, [2], [steps[0]])
    first, second = [_step(slots, [0], [steps[0]])[0][0]], []
    for number in range(1, len(steps)):
        told, _ = _step(slots, [1, 0], [steps[number - 1], steps[number]], False, number == len(steps) - 1)
        second.append(told[0])
        first.append(told[1])
    second.append(_step(slots, [1], [steps[-1]], True)[0][0])
    third = [_step(slots, [2], [step], number == len(steps) - 1)[0][0] for number, step in enumerate(steps[1:], 1)]
    assert first == second == alone, "sessions that step together must not hear each other"
    assert third == alone[1:], "a session must hold still while others step"


def _utterance(slots: Slots, slot: int, steps: list[Sound]) -> list[heard.Heard]:
    """What is told at each step, once what was committed is known to stay."""
    found: list[heard.Heard] = []
    kept: list[str] = []
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        (told,), (committed,) = _step(slots, [slot], [step], last)
        said = [word.text for word in told.words]
        assert said[: len(kept)] == kept, f"committed words never change: {kept} became {said}"
        assert len(kept) <= committed <= len(said), f"{committed} of {len(said)} words committed after {len(kept)}"
        assert not last or committed == len(said), "at the end all words are committed"
        kept = said[:committed]
        found.append(told)
    return found


def _streamed(rows: list[Sound], *end: bool) -> dict[str, Array]:
    return {
        "audio": _padded(rows),
        "samples": np.array([len(row) for row in rows], np.int32),
        "end": np.array([*end, *[False] * (len(rows) - len(end))], np.bool_),
    }


def _step(slots: Slots, numbers: list[int], rows: list[Sound], *end: bool) -> tuple[list[heard.Heard], list[int]]:
    out = slots.step(_streamed(rows, *end), np.array(numbers))
    return [heard.read(cell) for cell in out["heard"].tolist()], out["committed"].tolist()
