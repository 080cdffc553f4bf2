"""The books must balance: what a client was acknowledged, against what the log made of it.

Independent of the join on purpose: it knows the topics' contents and one rule (a window), none of the join's code.
Each acknowledged outcome must end in at least one example, once a task at most, or be set aside once with a cause, or
still be waiting: for its item's window, or for the join to read it (`examples` says with every step how far its inputs
were read). Anything else is lost or duplicated. A client's retry is a second outcome with the same key: it must end
somewhere too. What was set aside as a number must be as many as have no other place, no fewer and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from millstream.errors import BadInput
from millstream.stream.event import decode
from millstream.stream.log import Log, Record
from millstream.stream.operator import Step
from millstream.types import Example, Outcome, SetAside


class Acknowledged(msgspec.Struct, frozen=True):
    """A line of the ledger: an outcome that a client was told is safe. `outcome` is its key."""

    outcome: str
    event_time: float


class Audit(msgspec.Struct, frozen=True):
    """The balance. It is sound when `lost` and `duplicated` are 0; `waiting`: in an open window or not read yet.

    `not_logged` (part of `lost`) counts acknowledged outcomes that are not even in the `outcomes` topic; `unnamed`
    (part of `set_aside`) those that have no place but among what was set aside as a number.
    """

    acknowledged: int
    learnt: int
    set_aside: int
    waiting: int
    lost: int
    duplicated: int
    not_logged: int
    unnamed: int
    examples: int
    causes: dict[str, int]
    lost_first: list[str]

    @property
    def balanced(self) -> bool:
        return self.lost == 0 and self.duplicated == 0


def read_ledger(path: Path) -> Iterator[Acknowledged]:
    """The lines of a ledger file (JSON, one a line). A torn last line is what a killed client leaves: it is ignored."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if line:
            try:
                yield msgspec.json.decode(line, type=Acknowledged)
            except msgspec.MsgspecError as error:
                if number < len(lines):
                    raise BadInput(
                        f'{path} line {number}: {error}; a ledger line is {{"outcome": key, "event_time": seconds}}'
                    ) from None


def audit(log: Log, ledger: Iterable[Acknowledged], window_s: float, ahead_s: float = 5.0) -> Audit:
    """Compare a ledger with topics `outcomes` and `examples`. Memory: a few hundred bytes an outcome.

    `window_s`: the longest window of the join's tasks; `ahead_s`: its setting of that name. They decide only what still
    waits.
    """
    logged = _Logged(log, read_upto(log), ahead_s)  # before `examples`: what has been read by now has its place there
    found = _Placed(log)
    acknowledged = {one.outcome: one.event_time for one in ledger}
    # what stands in the log and nowhere else, the last times of a key first: a retry may be the one that has a place
    nowhere = {key: times - found.places(key) for key, times in logged.times.items() if times > found.places(key)}
    waits = {key for key in nowhere if logged.waits(key, acknowledged.get(key, logged.time(key)), window_s)}
    missing = sum(times for key, times in nowhere.items() if key not in waits)
    unread = sum(times for key, times in nowhere.items() if key in waits)
    unnamed = min(found.unnamed, missing)
    gone = [key for key in acknowledged if key in nowhere and key not in waits and key not in found.learnt]
    not_logged = [key for key in acknowledged if key not in logged.times and not found.places(key)]
    lost = max(0, len(gone) - unnamed) + len(not_logged)
    waiting = sum(key in waits and key not in found.learnt for key in acknowledged)
    learnt = sum(key in found.learnt for key in acknowledged)
    both = sum(found.places(key) > max(1, logged.times[key]) for key in found.places_of)
    return Audit(
        acknowledged=len(acknowledged),
        learnt=learnt,
        set_aside=len(acknowledged) - learnt - waiting - lost,
        waiting=waiting,
        lost=lost,
        duplicated=found.twice + both + max(0, found.unnamed - missing - unread),
        not_logged=sum(key not in logged.times for key in acknowledged),
        unnamed=min(unnamed, len(gone)),
        examples=found.examples,
        causes=dict(Counter(cause for key, cause in found.aside.items() if key not in found.learnt)),
        lost_first=sorted(not_logged + gone)[:10] if lost else [],
    )


class _Placed:
    """Topic `examples`: which keys have a place, and how many were set aside without them."""

    def __init__(self, log: Log) -> None:
        self.learnt: set[str] = set()
        self.aside: dict[str, str] = {}
        self.unnamed = self.examples = self.twice = 0
        self.places_of: Counter[str] = Counter()
        told: Counter[tuple[str, ...]] = Counter()
        for event in (decode(record.value) for record in _records(log, "examples")):
            if isinstance(event, Example):
                self.examples += 1
                told[event.request, event.item, event.task, event.form] += 1
                told.update((key, event.task) for key in event.outcomes)
                self.learnt.update(event.outcomes)
            elif isinstance(event, SetAside) and not event.outcome:
                self.unnamed += event.count
            elif isinstance(event, SetAside):
                self.places_of[event.outcome] += 1
                if event.cause != "duplicate" or event.outcome not in self.aside:  # a retry hides no first cause
                    self.aside[event.outcome] = event.cause
        self.twice = sum(count - 1 for count in told.values())
        self.places_of.update(self.learnt)

    def places(self, key: str) -> int:
        """In how many places a key is; all its examples are one."""
        return self.places_of.get(key, 0)


class _Logged:
    """Topic `outcomes`: how often each key is there, which the join has not read, and how late each item's last is."""

    def __init__(self, log: Log, read: Mapping[int, int], ahead_s: float) -> None:
        self.times: Counter[str] = Counter()
        self._unread: set[str] = set()
        self._item: dict[str, tuple[str, str]] = {}
        self._latest: dict[tuple[str, str], tuple[float, float]] = {}
        self._watermark = float("-inf")
        for record in _records(log, "outcomes"):
            event = decode(record.value)
            if not isinstance(event, Outcome):
                continue
            key, item = event.key(), (event.request, event.item)
            if event.kind != "watermark":
                self.times[key] += 1
            if record.offset >= read.get(record.partition, 0):
                self._unread.add(key)
                continue
            self._item[key] = item
            self._watermark = max(self._watermark, min(event.event_time, record.arrival + ahead_s))
            latest, _ = self._latest.get(item, (event.event_time, 0.0))
            self._latest[item] = max(latest, event.event_time), self._watermark

    def time(self, key: str) -> float:
        """When the item of a key was last heard of."""
        return self._latest[self._item[key]][0] if key in self._item else float("-inf")

    def waits(self, key: str, event_time: float, window_s: float) -> bool:
        """Whether an outcome may have no place yet: unread, its item's window is open, or time has not moved since the
        item's last outcome came (windows close when it moves)."""
        if key in self._unread:
            return True
        if key not in self._item:
            return False
        latest, came_at = self._latest[self._item[key]]
        return max(event_time, latest) + window_s > self._watermark or came_at == self._watermark


def read_upto(log: Log) -> Mapping[int, int]:
    """Per partition of `outcomes`, the first offset that no step of the join has read; none where it has read none."""
    reader = log.reader("examples")
    meta = b""
    for frame in reader.frames(0, max(reader.start(0), reader.end(0) - 1)):
        meta = frame.meta or meta
    return msgspec.msgpack.decode(meta, type=Step).offsets.get("outcomes", {}) if meta else {}


def _records(log: Log, topic: str) -> Iterator[Record]:
    reader = log.reader(topic)
    for partition in reader.partitions():
        yield from reader.records(partition)
