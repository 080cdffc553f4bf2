"""The newest events of a topic, followed by who shows them and must never read the whole log.

Rules of the room:
- A tail begins `last` records before the end of each partition, and jumps there again when it has fallen behind by
  more: what it costs is bounded, whatever the log holds.
- It belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from millstream.meter import Meter
from millstream.stream import LenientReader, Log
from millstream.stream.reader import Record

T = TypeVar("T")


class Tail:
    """Follows a topic. `last`: records of a partition that are looked back at; `read`: decodes a value."""

    def __init__(self, log: Log, topic: str, last: int) -> None:
        self._topic, self._last = LenientReader(log.reader(topic), Meter()), last
        self._at: dict[int, int] = {}

    def new(self, read: Callable[[bytes], T]) -> Iterator[tuple[Record, T]]:
        """What came since it was asked last; damage is stepped over."""
        for partition in self._topic.partitions():
            begin = max(self._at.get(partition, 0), self._topic.end(partition) - self._last, 0)
            for record, event in self._topic.decoded(partition, begin, read):
                self._at[partition] = record.offset + 1
                if event is not None:
                    yield record, event
            self._at.setdefault(partition, begin)
