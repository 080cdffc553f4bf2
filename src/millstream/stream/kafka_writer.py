"""The one writer of a partition that a Kafka cluster keeps.

Rules of the room:
- `_order` orders what this writer hands over; it is held while a frame's transaction runs, so nothing comes between.
- Plain appends go by the log's idempotent producer, frames by a producer of this partition's transactions. A frame
  begins when all before it is acknowledged.
- A transaction whose end is not known is never guessed at: the writer refuses from then on, and a new one finds out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from millstream import errors
from millstream.clock import Clock
from millstream.stream.kafka import Cluster, logger
from millstream.stream.kafka_reader import ARRIVAL, ARRIVED, COUNT, META, KafkaReader
from millstream.stream.reader import CALL_S
from millstream.stream.writer import Retained, Writer, hold

if TYPE_CHECKING:
    from millstream.guard.pii import Redacted

_APPEND_S = 2.0
_Future = asyncio.Future[int] | concurrent.futures.Future[int] | None


class KafkaWriter(Writer):
    """Appends to one partition; made by KafkaLog.writer. As Writer; errors.Full says that the cluster is away and that
    nothing was acknowledged, errors.Conflict that a newer writer has the partition."""

    far = True

    def __init__(self, cluster: Cluster, folder: Path, topic: str, partition: int, clock: Clock) -> None:
        # Nothing of what Writer opens is here: it is files.
        self.folder, self.topic, self.partition = folder, topic, partition
        self._cluster, self._clock, self._limits, self._name = cluster, clock, cluster.limits, cluster.name(topic)
        self.unread_deleted = 0
        self._failure, self._closed = "", False
        self._order, self._idle = threading.RLock(), threading.Condition()
        self._count = self._bytes = 0  # handed over and not settled
        self._frames: Producer | None = None
        self._lost = False
        folder.mkdir(parents=True, exist_ok=True)
        self._held = hold(folder)
        try:
            cluster.ensure(topic, partition)
            self._seen = cluster.range(topic, partition)[1]
            if cluster.dangling(topic, partition):
                self._transactions()
            self._arrival = KafkaReader(cluster, folder.parent).last_arrival(partition)
            self._producer = cluster.producer()
            cluster.acquaint(self._producer, topic, partition)
        except BaseException:
            os.close(self._held)
            raise

    @property
    def end(self) -> int:
        """The offset after what is committed; the next append has it, or a later one."""
        return self._cluster.range(self.topic, self.partition)[1]

    @property
    def away(self) -> bool:  # type: ignore[override]
        return bool(self._cluster.away)

    @property
    def failed(self) -> str:
        return self._failure or self._cluster.failure

    def last_meta(self) -> bytes:
        meta = b""
        for frame in KafkaReader(self._cluster, self.folder.parent).frames(self.partition, self.end):
            meta = frame.meta
        return meta

    def append(self, key: bytes, value: Redacted) -> int:
        """Its offset, once the brokers have it: this blocks for a round trip. Full at once while they are away."""
        self._admit(len(key) + len(value))
        if self._cluster.away:
            raise errors.Full(f"nothing was kept: {self._cluster.busy(str(self.folder), self._cluster.away)}")
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._hand_over(key, value, future)
        try:
            return future.result(_APPEND_S)
        except concurrent.futures.TimeoutError:
            self._cluster.lose("an append was not acknowledged")
            raise errors.Full(f"not acknowledged: {self._cluster.busy(str(self.folder), 'no answer')}") from None
        except errors.Busy as error:
            raise errors.Full(str(error)) from None

    def append_soon(self, key: bytes, value: Redacted) -> None:
        """Hand it over to be sent; it is lost with this process. Full while the cluster is away."""
        self._admit(len(key) + len(value))
        if self._cluster.away:
            raise errors.Full(f"nothing was kept: {self._cluster.busy(str(self.folder), self._cluster.away)}")
        try:
            self._hand_over(key, value, None)
        except errors.Busy as error:
            raise errors.Full(str(error)) from None

    def append_durable(self, key: bytes, value: Redacted) -> asyncio.Future[int]:
        """Its offset, once all replicas in sync have it. The future fails with errors.Busy when they did not within
        CALL_S: not acknowledged, and it may or may not be there."""
        self._admit(len(key) + len(value))
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._hand_over(key, value, future)
        return future

    def append_durable_wait(self, key: bytes, value: Redacted) -> int:
        self._admit(len(key) + len(value))
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._hand_over(key, value, future)
        return future.result()

    def append_frame(self, items: Iterable[tuple[bytes, Redacted]], meta: bytes = b"", sync: bool = False) -> int:
        """As Writer.append_frame, as one transaction, which is always waited for."""
        pairs = list(items)
        for key, value in pairs:
            self._admit(len(key) + len(value))
        size = len(meta) + sum(len(key) + len(value) for key, value in pairs)
        if size > self._limits.frame_bytes_max:
            raise errors.TooLarge(
                f"a frame of {size} bytes for {self.folder}; the limit is frame_bytes_max = "
                f"{self._limits.frame_bytes_max}: split it"
            )
        with self._order:
            self._ready()
            self._settle_all(CALL_S)
            producer = self._transactions()
            if not pairs and not meta:
                return self.end
            return self._transact(producer, pairs, meta)

    def roll(self) -> int:
        """There are no segments here: where a later record begins."""
        return self.end

    def retain(self) -> Retained:
        """The cluster deletes what the topic's retention says; nothing here."""
        return Retained()

    def close(self) -> None:
        """Wait for what is on its way, give the partition free. Again is harmless."""
        with self._order:
            if self._closed:
                return
            self._closed = True
        try:
            self._settle_all(CALL_S + 1.0)
        except errors.Error as error:
            logger.error("%s", error)
        self._frames = self._producer = None
        os.close(self._held)

    def _ready(self) -> None:
        if self._failure or self._closed or self._cluster.failure:
            raise self._refusal()

    def _refusal(self) -> errors.Error:
        why = self._failure or self._cluster.failure
        if self._lost:
            return errors.Conflict(why)
        return errors.Corrupt(why) if why else errors.Error(f"the writer of {self.folder} is closed")

    def _stamp(self) -> bytes:
        now = self._clock.now()
        self._arrival = max(self._arrival, now)
        return ARRIVED.pack(self._arrival)

    def _hand_over(self, key: bytes, value: bytes, future: _Future) -> None:
        size = len(key) + len(value)
        with self._order:
            self._ready()
            if self._count and self._bytes + size > self._limits.frame_bytes_max:
                raise errors.Busy(
                    f"{self._bytes} bytes wait for Kafka, topic {self._name}; the limit is frame_bytes_max = "
                    f"{self._limits.frame_bytes_max}: try again"
                )
            heard = partial(self._heard, size, future)
            try:
                self._producer.produce(
                    self._name, value, key, self.partition, on_delivery=heard, headers=[(ARRIVAL, self._stamp())]
                )
            except BufferError:
                raise errors.Busy(f"too many records wait for Kafka, topic {self._name}: try again") from None
            except KafkaException as error:
                raise self._busy(error.args[0]) from None
            with self._idle:
                self._count, self._bytes = self._count + 1, self._bytes + size

    def _heard(self, size: int, future: _Future, error: KafkaError | None, message: Message) -> None:
        """What became of a record; called by the log's thread."""
        offset, problem = -1, None
        if error is None:
            offset = message.offset() or 0
            self._seen = max(self._seen, offset + 1)
        else:
            problem = self._busy(error)
        with self._idle:
            self._count, self._bytes = self._count - 1, self._bytes - size
            if not self._count:
                self._idle.notify_all()
        if isinstance(future, asyncio.Future):
            self._cluster.settle(future, offset, problem)
        elif future is not None:
            if problem is None:
                future.set_result(offset)
            else:
                future.set_exception(problem)
        elif problem is not None:
            logger.error("a record that nobody waited for is lost: %s", problem)

    def _busy(self, error: KafkaError) -> errors.Error:
        """What to tell who appended, for what the cluster or its client said."""
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return errors.TooLarge(f"topic {self._name} takes no record so large: raise its max.message.bytes")
        if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
            return errors.Misconfigured(f"topic {self._name}: {error.str()}; let this user write it")
        if error.fatal():
            self._cluster.failure = self._cluster.failure or f"topic {self._name}: {error.str()}; open the log again"
            return errors.Corrupt(self._cluster.failure)
        if error.code() in (KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
            self._cluster.lose(error.str())
        return errors.Busy(f"topic {self._name}: not acknowledged: {error.str()}; try again")

    def _settle_all(self, seconds: float) -> None:
        """Wait until everything handed over was answered."""
        with self._idle:
            if not self._idle.wait_for(lambda: not self._count, seconds):
                raise self._cluster.busy(str(self.folder), f"{self._count} records wait")

    def _transactions(self) -> Producer:
        """The producer of this partition's transactions. The first time it ends those of an older writer."""
        if self._frames is not None:
            return self._frames
        cluster, seen = self._cluster, self._seen
        producer = cluster.producer(f"{self._name}.{self.partition}")
        cluster.acquaint(producer, self.topic, self.partition)
        cluster.call(f"transactions of {self._name}", lambda timeout: producer.init_transactions(timeout))
        reader, end = KafkaReader(cluster, self.folder.parent), self.end
        frames = reader.frames(self.partition, seen) if end > seen else ()
        if any(frame.next >= seen for frame in frames) or (end > seen and reader.read(self.partition, seen, 1)):
            self._fail(f"somebody has written it since this writer was opened, from offset {seen} on", lost=True)
            raise self._refusal()
        self._frames, self._seen = producer, end
        return producer

    def _transact(self, producer: Producer, pairs: list[tuple[bytes, Redacted]], meta: bytes) -> int:
        offsets: list[int] = []

        def heard(error: KafkaError | None, message: Message) -> None:
            offsets.append(-1 if error else message.offset() or 0)

        try:
            producer.begin_transaction()
            stamp = (ARRIVAL, self._stamp())
            for key, value in pairs:
                producer.produce(self._name, value, key, self.partition, on_delivery=heard, headers=[stamp])
            if meta:
                control = (META, COUNT.pack(len(pairs)))
                producer.produce(self._name, meta, b"", self.partition, on_delivery=heard, headers=[stamp, control])
            self._commit(producer)
        except BufferError:
            self._abort(producer)
            raise errors.TooLarge(f"a frame of {len(pairs)} records for {self._name}: split it") from None
        except KafkaException as error:
            self._give_up(producer, error.args[0])
        self._seen = max(offsets) + 1
        return min(offsets)

    def _commit(self, producer: Producer) -> None:
        """The transaction's end; tried again while it is not known."""
        until = time.monotonic() + CALL_S
        while True:
            try:
                producer.commit_transaction(max(0.1, until - time.monotonic()))
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > until:
                    raise

    def _give_up(self, producer: Producer, error: KafkaError) -> None:
        """Take a frame back that could not be committed, and say so; refuse from now on where that is not sure."""
        if error.code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
            self._fail("a newer writer has taken it; nothing of this frame is there", lost=True)
            raise self._refusal() from None
        if error.txn_requires_abort() and self._abort(producer):
            why = self._cluster.busy(self._name, error.str())
            raise errors.Full(f"nothing of this frame was kept: {why}") from None
        self._cluster.lose(error.str())
        self._fail(f"whether its last frame is there is not known ({error.str()})")
        raise self._refusal() from None

    def _abort(self, producer: Producer) -> bool:
        try:
            producer.abort_transaction(CALL_S)
        except KafkaException as error:
            self._fail(f"a transaction could not be taken back ({error.args[0].str()})")
            return False
        return True

    def _fail(self, why: str, lost: bool = False) -> None:
        self._failure = f"{self._name}/{self.partition}: {why}. Close this writer and open it again"
        self._lost = lost
        logger.error("%s", self._failure)
