"""Follow a topic without depending on it: a role that answers goes on with what can be read.

Rules of the room:
- Damage is counted, said once, and not read again. What follows it in its segment is lost to this reader; it goes on
  at the next segment, as soon as there is one.
- An event that cannot be decoded comes as None, alone.
- A log that is on other machines and away has nothing new.
- Who must not go on without a record (the join, the fold) reads with a Reader, which raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from millstream.errors import Busy, Corrupt, NotFound
from millstream.meter import Meter
from millstream.stream.event import Event, decode
from millstream.stream.reader import Reader, Record

SOON_S = 0.25  # nobody here waits longer for a log that is on other machines
_RECORDS = 1000
T = TypeVar("T")
logger = logging.getLogger(__name__)


class LenientReader:
    """The events of a topic, each partition from wherever the caller stands."""

    def __init__(self, reader: Reader, meter: Meter) -> None:
        self._reader = reader
        reader.patience_s = SOON_S
        self._lost: set[tuple[int, int]] = set()
        self._unreadable = meter.counter(
            "millstream_log_unreadable_total", "Places of a topic that could not be read.", {"topic": reader.topic}
        )

    def partitions(self) -> list[int]:
        """The partitions that exist now, in order; none while the log is away."""
        try:
            return self._reader.partitions()
        except Busy:
            return []

    def events(self, partition: int, offset: int, start: bytes = b"") -> Iterator[tuple[int, Event | None]]:
        """(offset, event) from `offset`, or from the first that retention left, to the end, stepping over damage. Of
        keys that do not begin with `start`: None."""
        for record, event in self.decoded(partition, offset, decode, start):
            yield record.offset, event

    def decoded(
        self, partition: int, offset: int, read: Callable[[bytes], T], start: bytes = b""
    ) -> Iterator[tuple[Record, T | None]]:
        """As `events`, each with its record, for who needs an arrival, and as `read` decodes it, for who needs part."""
        for record in self.records(partition, offset):
            if start and not record.key.startswith(start):
                yield record, None
                continue
            try:
                event = read(record.value)
            except Corrupt as error:
                self.lose(error)
                yield record, None
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self.lose(Corrupt(f"partition {partition}, offset {record.offset}: {error}"))
                yield record, None
            else:
                yield record, event

    def past(self, partition: int, at: int, offset: int) -> bool:
        """Whether somebody who stands at `at` has read everything before `offset` that can be read."""
        return at >= offset or next(iter(self.records(partition, at)), None) is None

    def records(self, partition: int, offset: int) -> Iterator[Record]:
        """As `events`, not decoded."""
        at, bound = offset, _RECORDS
        while at < self.end(partition):
            try:
                at = max(at, self._reader.start(partition))
                if (partition, at) in self._lost:
                    after, bound = self._reader.after(partition, at), _RECORDS
                    if after is None:
                        return
                    at = after
                    continue
                records = self._reader.read(partition, at, bound)
            except Busy:  # it is away: what is new comes when it is back
                return
            except (Corrupt, NotFound) as error:
                if bound == 1:
                    self.lose(error)
                    self._lost.add((partition, at))
                bound = 1  # a read that meets damage gives nothing: what lies before it comes one by one
                continue
            if not records:
                return
            for record in records:
                at = record.offset + 1
                yield record

    def lose(self, error: Exception) -> None:
        """Count and say that a place cannot be read."""
        self._unreadable.add()
        logger.error("topic %s: %s; going on without it", self._reader.topic, error)

    def end(self, partition: int) -> int:
        """The offset after the last record; 0 where that cannot be told."""
        try:
            return self._reader.end(partition)
        except Busy:
            return 0
        except Corrupt as error:
            if (partition, -1) not in self._lost:
                self._lost.add((partition, -1))
                self.lose(error)
            return 0
