"""Readers of a topic that a Kafka cluster keeps.

Rules of the room:
- A partition that is read has a consumer of its own, assigned to an offset: no group decides who reads what.
- An end is asked of the cluster each time, so a record is found once its append has returned; but not for who must not
  wait: a thread asks for them.
- Between the last record and the end may lie nothing but markers: a read there gives nothing, and costs nothing twice.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from millstream import errors
from millstream.stream.reader import CALL_S, Reader, Record
from millstream.stream.segment import Frame

if TYPE_CHECKING:
    from millstream.stream.kafka import Cluster

ARRIVAL, META = "a", "m"
"""Headers: when it arrived, float64, little endian; of a control record, how many records its frame has, u32."""
ARRIVED, COUNT = struct.Struct("<d"), struct.Struct("<I")
_BACK = (64, 1024, 16384, 1 << 40)
_FETCH = 1000
_PROPERTIES = {
    "enable.partition.eof": True,
    "check.crcs": True,
    "fetch.error.backoff.ms": 50,
    "fetch.queue.backoff.ms": 10,
    "queued.max.messages.kbytes": 16 << 10,
}


class KafkaReader(Reader):
    """Reads one topic; made by KafkaLog.reader. As Reader, and errors.Busy when the cluster is away for longer than
    `patience_s`."""

    here = False

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(folder)
        self._cluster = cluster
        self._at: dict[int, _Place] = {}
        cluster.readers.add(self)

    def partitions(self) -> list[int]:
        cluster = self._cluster
        if self.patience_s < CALL_S:
            return sorted(cluster.follow(self.topic))
        return cluster.call(f"partitions of {self.topic}", cluster.topics).get(self.topic, [])

    def range(self, partition: int) -> tuple[int, int]:
        """(first offset that is kept, offset after what is committed); for who must not wait, as of a moment ago."""
        if self.patience_s < CALL_S:
            return self._cluster.follow(self.topic).get(partition, (0, 0))
        return self._cluster.range(self.topic, partition)

    def start(self, partition: int) -> int:
        return self.range(partition)[0]

    def end(self, partition: int) -> int:
        """The offset after the last committed transaction or record."""
        return self.range(partition)[1]

    def after(self, partition: int, offset: int) -> int | None:
        return offset + 1 if offset + 1 < self.end(partition) else None

    def read(self, partition: int, offset: int, max_records: int = 1000, max_bytes: int = 8 << 20) -> list[Record]:
        """As Reader.read; where markers alone are left before the end it gives nothing."""
        place = self._of(partition)
        records: list[Record] = []
        for message in place.messages(offset, self.patience_s):
            if message is None:  # none waits here, and some were found
                if records:
                    break
                continue
            if _meta(message) is None:
                record = _record(message)
                records.append(record)
                max_bytes -= len(record.key) + len(record.value)
                if len(records) >= max_records or max_bytes <= 0:
                    break
        place.stands(records[-1].offset + 1 if records else offset)
        return records

    def frames(self, partition: int, offset: int = 0) -> Iterator[Frame]:
        """As Reader.frames, of frames that have a meta; the last one before `offset` is repeated first."""
        place, start = _Place(self._cluster, self, partition), self.start(partition)
        try:
            last: Frame | None = None
            for back in _BACK if offset > start else ():
                begin = max(start, offset - back)
                for message in place.messages(begin, self.patience_s):
                    if message is not None and _offset(message) >= offset:
                        break
                    last = _frame(message) or last
                if last is not None or begin == start:
                    break
            if last is not None:
                yield last
            for message in place.messages(max(start, offset), self.patience_s):
                if (frame := _frame(message)) is not None:
                    yield frame
        finally:
            place.close()

    def last_arrival(self, partition: int) -> float:
        """When the last record arrived; 0.0 where none is left."""
        start, end = self.range(partition)
        place, arrival = _Place(self._cluster, self, partition), 0.0
        try:
            for back in _BACK if end > start else ():
                begin = max(start, end - back)
                for message in place.messages(begin, self.patience_s):
                    arrival = arrival if message is None else _arrival(message)
                if arrival or begin == start:
                    break
        finally:
            place.close()
        return arrival

    def close(self) -> None:
        """Let go of the consumers; reading on makes new ones."""
        while self._at:
            self._at.popitem()[1].close()

    def _of(self, partition: int) -> _Place:
        if partition not in self._at:
            self._at[partition] = _Place(self._cluster, self, partition)
        return self._at[partition]


class _Place:
    """Where a reader stands in one partition: a consumer, and what it has fetched that nobody has asked for yet."""

    def __init__(self, cluster: Cluster, reader: KafkaReader, partition: int) -> None:
        self._cluster, self._partition = cluster, partition
        self._topic, self._range = reader.topic, reader.range
        self._consumer: Consumer | None = None
        self._offset = -1
        self._fetched: deque[Message] = deque()
        self._end, self._reached = 0, -1  # from _offset to _reached there is nothing that a reader is shown
        self._streams = self._paused = False

    def stands(self, offset: int) -> None:
        """Whoever reads has taken everything before this offset."""
        self._offset = offset

    def messages(self, offset: int, patience_s: float) -> Iterator[Message | None]:
        """Committed messages from `offset` to the end as it is now, control records too; None before each wait.
        NotFound for an offset that is not there."""
        if offset != self._offset:
            self._offset = self._reached = -1
        if max(offset, self._reached) >= self._end:
            start, self._end = self._range(self._partition)
            if offset > self._end:
                raise errors.NotFound(f"{self._topic}/{self._partition} ends at offset {self._end}: {offset} was never")
            if offset < start:
                raise self._deleted(offset)
        end = self._end
        if self._reached >= end or offset == end:
            return
        if self._reached < 0 or self._consumer is None:
            self._seek(offset)
        elif self._paused:
            self._assign(self._reached)
        until = time.monotonic() + (patience_s if self._streams else max(patience_s, 3.0))
        while self._reached < end:
            if not self._fetched:
                self._fetched.extend(self._fetch(0.0))
            if not self._fetched:
                yield None
                if self._cluster.away and patience_s < CALL_S:
                    raise self._cluster.busy(f"{self._topic}/{self._partition}", self._cluster.away)
                if time.monotonic() > until:
                    self._cluster.lose("no answer to a fetch")
                    raise self._cluster.busy(f"{self._topic}/{self._partition}", "nothing came")
                self._fetched.extend(self._fetch(min(0.1, patience_s)))
                continue
            message = self._fetched.popleft()
            if (error := message.error()) is None:
                self._streams = True
                self._offset = self._reached = _offset(message) + 1
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                self._reached = max(self._reached, message.offset() or 0)
            else:
                self._raise(error)
        if not self._fetched and self._consumer is not None:  # nobody asks brokers for more before there is more
            self._consumer.unassign()
            self._paused = True

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _seek(self, offset: int) -> None:
        if self._consumer is None:
            self._consumer = self._cluster.consumer(properties=_PROPERTIES)
        self._fetched.clear()
        self._offset = self._reached = offset
        self._assign(offset)

    def _assign(self, offset: int) -> None:
        assert self._consumer is not None
        self._consumer.assign([TopicPartition(self._cluster.name(self._topic), self._partition, offset)])
        self._paused = False

    def _fetch(self, wait_s: float) -> list[Message]:
        assert self._consumer is not None
        try:
            if wait_s == 0.0:
                return list(self._consumer.consume(_FETCH, 0.0))
            first = self._consumer.poll(wait_s)
            return [] if first is None else [first, *self._consumer.consume(_FETCH, 0.0)]
        except KafkaException:
            return []

    def _raise(self, error: KafkaError) -> None:
        """What ends reading; anything else passes, and is waited for."""
        at, self._offset = self._reached, -1
        where = f"{self._topic}/{self._partition} at offset {at}"
        if error.code() in (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET):
            self._end = 0
            raise self._deleted(at)
        if error.code() in (KafkaError._BAD_MSG, KafkaError.INVALID_MSG):
            raise errors.Corrupt(f"{where}: {error.str()}; the cluster holds a damaged batch")
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise errors.Misconfigured(f"{where}: {error.str()}; let this user read the topic")
        self._offset = at

    def _deleted(self, offset: int) -> errors.NotFound:
        start, _ = self._cluster.range(self._topic, self._partition)
        return errors.NotFound(
            f"{self._topic}/{self._partition}: offset {offset} is no longer kept (the topic's retention); the first "
            f"one available is {start}"
        )


def _offset(message: Message) -> int:
    return int(message.offset())


def _header(message: Message, name: str) -> bytes | None:
    for key, value in message.headers() or ():
        if key == name:
            return value if isinstance(value, bytes) else None
    return None


def _arrival(message: Message) -> float:
    """When it arrived; what another program has written says so in milliseconds."""
    packed = _header(message, ARRIVAL)
    return float(ARRIVED.unpack(packed)[0]) if packed else message.timestamp()[1] / 1000


def _meta(message: Message) -> bytes | None:
    return _header(message, META)


def _record(message: Message) -> Record:
    key, value = message.key() or b"", message.value() or b""
    return Record(message.partition() or 0, _offset(message), _arrival(message), bytes(key), bytes(value))


def _frame(message: Message | None) -> Frame | None:
    """The frame that a control record ends; it has no place in a file."""
    if message is None or (packed := _meta(message)) is None:
        return None
    count, end = int(COUNT.unpack(packed)[0]), _offset(message)
    return Frame(-1, -1, end - count, count, _arrival(message), bytes(message.value() or b""), -1)
