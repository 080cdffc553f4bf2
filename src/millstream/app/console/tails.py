"""The tails of all topics, followed from when the console began, for the page of the log and for what others read.

Rules of the room:
- A topic's tail is so many records and so many bytes at most; a record that is larger is remembered by its size alone.
- Finding the end of a topic that was never read passes headers of its last segment, once: in the following thread, not
  when a page is opened.
- Records are decoded when they are shown.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import numpy as np

from millstream.app import story
from millstream.app.console.tail import Tail
from millstream.app.installation import Installation
from millstream.console.views import Found, Record, Topic
from millstream.errors import BadInput, Busy, Corrupt
from millstream.stream import Log
from millstream.stream import reader as streams
from millstream.stream.event import Event, decode
from millstream.stream.keyed import Keyed
from millstream.types import (
    Alert,
    Delta,
    Entity,
    Example,
    Fact,
    Merge,
    Outcome,
    PolicyChange,
    Readings,
    Served,
    SetAside,
    Shadow,
)

LAST: Final = 200
BYTES: Final = 4 << 20
"""Of the values that are remembered of one topic."""
VALUE_BYTES: Final = 256 << 10
WHOLE_CHARS: Final = 20_000
SHOWN: Final = 50
FOUND_MAX: Final = 100
KEY_BYTES: Final = 4096
SEARCHES_MAX: Final = 3
"""Searches of the log at one moment: each keeps a thread, and pages need some, too."""
RATE_S: Final = 10.0
"""A rate is of this long."""


class _Followed:
    """The tail of one topic."""

    def __init__(self, log: Log, topic: str) -> None:
        self.reader, self.tail = log.reader(topic), Tail(log, topic, LAST)
        self.records: deque[streams.Record] = deque()
        self.bytes, self.total, self.ready = 0, 0, False
        self.seen: deque[tuple[float, int]] = deque()  # (monotonic seconds, records in all)

    def add(self, record: streams.Record) -> None:
        if len(record.value) > VALUE_BYTES:
            record = msgspec.structs.replace(record, value=b"")
        self.records.append(record)
        self.bytes += len(record.value)
        while len(self.records) > LAST or self.bytes > BYTES:
            self.bytes -= len(self.records.popleft().value)


class Tails:
    """The views of the log. `poll` is called by one thread; the rest by any."""

    def __init__(self, at: Installation) -> None:
        self._at, self._log, self._clock = at, at.log, at.clock
        self._topics: dict[str, _Followed] = {}
        self._lock, self._searches = threading.Lock(), threading.BoundedSemaphore(SEARCHES_MAX)

    def poll(self) -> None:
        """Follow what came."""
        for topic in self._log.topics():
            if topic not in self._topics:
                made = _Followed(self._log, topic)
                with self._lock:
                    self._topics[topic] = made
            self._follow(self._topics[topic])

    def _follow(self, one: _Followed) -> None:
        new = sorted((record for record, _ in one.tail.new(_kept)), key=lambda record: record.arrival)
        total = sum(one.reader.end(partition) for partition in one.reader.partitions())
        now = self._clock.monotonic()
        with self._lock:
            for record in new:
                one.add(record)
            one.total, one.ready = total, True
            one.seen.append((now, total))
            while now - one.seen[0][0] > RATE_S:
                one.seen.popleft()

    def topics(self) -> list[Topic]:
        """The topics of the log."""
        with self._lock:
            return [Topic(name, one.total, _rate(one), one.ready) for name, one in sorted(self._topics.items())]

    def latest(self, topic: str) -> list[streams.Record]:
        """The newest records, oldest first, as they lie in the log."""
        with self._lock:
            found = self._topics.get(topic)
            return list(found.records) if found else []

    def tail(self, topic: str) -> list[Record]:
        """The newest records of a topic, newest first."""
        return [shown(topic, record) for record in self.latest(topic)[-SHOWN:][::-1]]

    def find(self, key: str, topics: tuple[str, ...]) -> Found:
        """Records of this key, newest first. BadInput; Busy: others search."""
        wanted = _key(key)
        found, looked, more = list[Record](), 0, False
        with self._searching():
            for topic in topics or tuple(self._log.topics()):
                look = Keyed(self._log.reader(topic))
                for record in look.newest([wanted]):
                    if len(found) == FOUND_MAX:
                        more = True
                        break
                    found.append(shown(topic, record))
                looked += look.passed
        return Found(sorted(found, key=lambda one: -one.arrival), looked, more)

    def story(self, request: str) -> dict[str, Any]:
        """What is known of a request. BadInput; NotFound; Busy: others search."""
        _key(request)
        with self._searching():
            told: dict[str, Any] = msgspec.to_builtins(story.tell(self._at, request))
        return told

    @contextmanager
    def _searching(self) -> Iterator[None]:
        if not self._searches.acquire(blocking=False):
            raise Busy(f"the log is searched {SEARCHES_MAX} times at this moment; wait for an end, and ask again")
        try:
            yield
        finally:
            self._searches.release()


def _key(text: str) -> bytes:
    key = text.encode("utf-8", "replace")
    if not 0 < len(key) <= KEY_BYTES:
        raise BadInput(f"an id has 1 to {KEY_BYTES} bytes, this one {len(key)}")
    return key


def _kept(value: bytes) -> bytes:
    return value


def _rate(one: _Followed) -> float:
    if len(one.seen) < 2:
        return 0.0
    (then, before), (now, after) = one.seen[0], one.seen[-1]
    return float(f"{max(0, after - before) / max(now - then, 1e-9):.3g}")


def shown(topic: str, record: streams.Record) -> Record:
    """A record as a person reads it."""
    key = record.key.decode("utf-8", "replace")[:200]
    kind, said, whole = "", "", ""
    if not record.value:
        said = "too large to show"
    else:
        try:
            event = decode(record.value)
        except Corrupt as error:
            said = str(error)[:300]
        else:
            kind, said, whole = _kind(event), line(event), _whole(event)
    return Record(topic, record.partition, record.offset, record.arrival, key, kind, said[:300], whole)


def line(event: Event) -> str:
    """An event in a line."""
    match event:
        case Served():
            place = f" for {event.placement}" if event.placement else ""
            who = event.user or "somebody"
            return f"{event.model} {event.version} answered {who}{place}: {len(event.candidates)} items"
        case Outcome():
            return f"{event.kind} of {event.item or 'nothing'} in {event.request}" + (
                f": {event.text}" if event.text else ""
            )
        case Example():
            label = f"{event.label:g} ({event.task or 'label'})"
            return f"{event.item} was {label}, scored {event.score:.3f} by {event.version}"
        case SetAside():
            return f"{event.outcome or event.count} set aside: {event.cause}"
        case Delta():
            learnt = f"{len(event.slots) // 4} weights of {len(event.arrivals) // 8} examples"
            return f"{event.model} {event.base}@{event.sequence}: {learnt}"
        case PolicyChange():
            return f"{event.model} policy {event.version} by {event.who}: {event.why}"
        case Alert():
            return f"{event.state}: {event.said}"
        case Readings():
            return f"{len(event.values) // 8} readings"
        case Entity():
            return ", ".join(f"{name} {value}" for name, value in list(event.attributes.items())[:8])
        case Shadow():
            return f"{event.model} {event.version}: {len(event.scores) // 4} scores"
        case Merge():
            return f"{event.visitor} is {event.user}"
        case Fact():
            return ", ".join(f"{name} {value}" for name, value in list(event.values.items())[:8])
    return ""


def _kind(event: Event) -> str:
    return str(event.__struct_config__.tag)


def _whole(event: Event) -> str:
    built = msgspec.to_builtins(event, builtin_types=(bytes,))
    text = msgspec.json.format(msgspec.json.encode(_plain(event, built)), indent=2).decode()
    return text if len(text) <= WHOLE_CHARS else f"{text[:WHOLE_CHARS]}\n…"


_ARRAYS: Final = {
    "scores": "<f4", "propensities": "<f4", "recalled": "<f4", "prices": "<f4", "tokens": "<u4", "order": "<u4",
    "sources": "<u4", "slots": "<u4", "weights": "<f4", "dense": "<f4", "arrivals": "<f8", "calibration": "<f8",
    "values": "<f8",
}  # fmt: skip
_ELEMENTS: Final = 64


def _plain(event: Event, value: Any, name: str = "") -> Any:
    """What is in an event, with its packed arrays as numbers, the first of them."""
    if isinstance(value, dict):
        return {str(key): _plain(event, one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(event, one, name) for one in value]
    if isinstance(value, bytes):
        dtype = np.dtype(_ARRAYS.get(name, "u1"))
        if name not in _ARRAYS or len(value) % dtype.itemsize:
            return f"{len(value)} bytes"
        numbers = np.frombuffer(value, dtype)
        few = [_plain(event, one) for one in numbers[:_ELEMENTS].tolist()]
        return few + ([f"… {len(numbers):,} in all"] if len(numbers) > _ELEMENTS else [])
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value
