"""The event log on the Kafka protocol: the same topics, partitions and promises, kept by a cluster.

Rules of the room:
- What `append` returns from is on the brokers (acks=all), so it survives kill -9 of this process and a broker's loss.
  Where nobody may wait, `append_soon` hands over and `append_durable` is awaited.
- A frame is one Kafka transaction, its meta a control record at the frame's end. Readers are read_committed and never
  show control records, so offsets leap over them and over Kafka's own markers.
- A transaction's id is its topic and partition: who opens one ends an older one's, whose next frame is a Conflict. On
  one machine a lock file refuses the second writer before that. A writer's first frame looks whether the partition
  has grown meanwhile, so nobody decides by a log that somebody else has written since.
- `arrival` is a header, 8 bytes: a record's own timestamp has milliseconds, and retention counts by it.
- The cluster away: what waits is bounded in bytes and in time. Who must not wait is refused at once, until a thread
  of this log has seen the cluster again.
- Retention is the cluster's. What a group has read is its committed offset, and keeps nothing from being deleted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from millstream import errors
from millstream.clock import Clock
from millstream.stream.log import TOPIC_NAME, Log, LogLimits, Verified
from millstream.stream.reader import CALL_S

try:
    from confluent_kafka import (
        OFFSET_INVALID,
        Consumer,
        IsolationLevel,
        KafkaError,
        KafkaException,
        Producer,
        TopicPartition,
    )
    from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec
except ImportError:
    raise errors.Missing.extra("kafka", "log.kafka") from None

if TYPE_CHECKING:
    from millstream.stream.kafka_reader import KafkaReader
    from millstream.stream.kafka_writer import KafkaWriter

_TRY_S, _AGAIN_S, _PROBE_S = 3.0, 0.05, 0.25
_LOOK_S, _LIST_S, _WATCH_S, _COMMIT_S = 0.02, 1.0, 1.0, 3.0
KEPT = ("users", "items", "identities")
"""Topics of state, not of events: they are made with a retention of their own, which is none."""
_OURS = frozenset(
    ("acks", "enable.idempotence", "enable.auto.commit", "isolation.level", "transactional.id", "group.id",
     "enable.partition.eof", "auto.offset.reset", "bootstrap.servers", "enable.auto.offset.store")
)  # fmt: skip
_REFUSED = frozenset(
    (
        KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_VERSION, KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.POLICY_VIOLATION, KafkaError._AUTHENTICATION,
        KafkaError._INVALID_ARG, KafkaError._UNSUPPORTED_FEATURE,
    )
)  # fmt: skip
_UNKNOWN = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC)
R = TypeVar("R")
Settled = tuple["asyncio.Future[int]", int, "errors.Error | None"]
logger = logging.getLogger(__name__)


class Cluster:
    """The connection of one log: what it asks brokers, the producer of plain appends, and whether they are there."""

    def __init__(self, limits: LogLimits) -> None:
        self.limits, self.prefix = limits, limits.kafka_prefix
        if taken := sorted(_OURS & set(limits.kafka_options)):
            raise errors.Misconfigured(f"log.kafka_options: {', '.join(taken)} decide what the log promises: leave out")
        self.away = ""  # why requests are refused at once; "" while the cluster answers
        self.failure = ""
        self.readers: WeakSet[KafkaReader] = WeakSet()
        self._known: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._settled: dict[asyncio.AbstractEventLoop, list[Settled]] = {}
        self._producer: Producer | None = None
        self._groups: dict[str, Consumer] = {}
        self._commits = concurrent.futures.ThreadPoolExecutor(1, "kafka commits")
        self._consumer = self.consumer()
        self._admin = self._made(AdminClient, {})
        self._closing = threading.Event()
        self._followed: dict[str, dict[int, tuple[int, int]]] = {}
        self._threads = [threading.Thread(target=self._run, name="kafka", daemon=True)]
        self._threads[0].start()

    def name(self, topic: str) -> str:
        """What the cluster calls a topic."""
        return self.prefix + topic

    def consumer(self, group: str = "millstream", properties: Mapping[str, Any] = MappingProxyType({})) -> Consumer:
        """A consumer that commits nothing by itself and sees whole transactions only."""
        ours = {
            "group.id": self.prefix + group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
        }
        return self._made(Consumer, {**ours, **properties})

    def producer(self, transactional_id: str = "") -> Producer:
        """The producer of plain appends, which all writers share; or one for transactions."""
        limits = self.limits
        ours = {
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 1,
            "message.timeout.ms": int(CALL_S * 1000),
            "message.max.bytes": limits.value_bytes_max + (64 << 10),
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": max(1024, 2 * limits.frame_bytes_max >> 10),
            "error_cb": self._on_error,
        }
        if transactional_id:
            mine = {"transactional.id": transactional_id, "transaction.timeout.ms": int(CALL_S * 1000)}
            return self._made(Producer, ours | mine)
        with self._lock:
            if self._producer is None or self.failure:
                self._producer, self.failure = self._made(Producer, ours), ""
            return self._producer

    def call(self, what: str, ask: Callable[[float], R], patience_s: float = CALL_S) -> R:
        """`ask(seconds it may take)`, again while the cluster is away. Busy after `patience_s`, or at once for who has
        less than CALL_S while it is known to be away; Misconfigured where it refuses."""
        until = time.monotonic() + patience_s
        while True:
            if self.away and patience_s < CALL_S:
                raise self.busy(what, self.away)
            try:
                return ask(max(0.01, min(_TRY_S, until - time.monotonic())))
            except KafkaException as error:
                why: KafkaError = error.args[0]
                if why.code() in _REFUSED:
                    raise errors.Misconfigured(f"Kafka refuses {what}: {why.str()}; see docs/operations.md") from None
                if time.monotonic() >= until - _AGAIN_S:
                    self.lose(why.str())
                    raise self.busy(what, why.str()) from None
            time.sleep(_AGAIN_S)

    def busy(self, what: str, why: str) -> errors.Busy:
        return errors.Busy(f"Kafka at {self.limits.kafka} is away ({what}: {why}): try again when it is back")

    def lose(self, why: str) -> None:
        """Note that the cluster is away: who must not wait is refused until it was seen again."""
        if not self.away:
            logger.error("Kafka at %s is away: %s", self.limits.kafka, why)
        self.away = why or "no answer"

    def topics(self, timeout: float) -> dict[str, list[int]]:
        """What there is below the prefix: topic -> its partitions. KafkaException."""
        found = self._consumer.list_topics(timeout=timeout).topics
        size = len(self.prefix)
        return {
            name[size:]: sorted(topic.partitions)
            for name, topic in found.items()
            if name.startswith(self.prefix) and TOPIC_NAME.fullmatch(name[size:]) and not topic.error
        }

    def range(self, topic: str, partition: int, patience_s: float = CALL_S) -> tuple[int, int]:
        """(first offset that is kept, offset after what is committed); (0, 0) where nobody has written."""
        at = TopicPartition(self.name(topic), partition)

        def ask(timeout: float) -> tuple[int, int]:
            try:
                found = self._consumer.get_watermark_offsets(at, timeout=timeout, cached=False)
            except KafkaException as error:  # also said while no broker can be reached
                if error.args[0].code() in _UNKNOWN and partition not in self.topics(timeout).get(topic, ()):
                    return 0, 0
                raise
            if found is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            return int(found[0]), int(found[1])

        return self.call(f"the end of {topic}/{partition}", ask, patience_s)

    def follow(self, topic: str) -> dict[int, tuple[int, int]]:
        """As `range`, of every partition of a topic, as a thread has seen it a moment ago: no request waits for it but
        the first."""
        found = self._followed.get(topic)
        if found is None:
            found = self._followed[topic] = self._look(topic, CALL_S)
            with self._lock:
                if len(self._threads) == 1:
                    self._threads.append(threading.Thread(target=self._watch, name="kafka ends", daemon=True))
                    self._threads[1].start()
        return found

    def _look(self, topic: str, patience_s: float) -> dict[int, tuple[int, int]]:
        partitions = self.call(f"partitions of {topic}", self.topics, patience_s).get(topic, [])
        return {partition: self.range(topic, partition, patience_s) for partition in partitions}

    def _watch(self) -> None:
        """Keep what is followed; which partitions there are it asks more rarely."""
        listed = 0.0
        while not self._closing.wait(_LOOK_S):
            due = time.monotonic() - listed > _LIST_S
            listed = time.monotonic() if due else listed
            for topic, was in list(self._followed.items()):
                with suppress(errors.Error):  # it is away: what was seen last stays
                    self._followed[topic] = (
                        self._look(topic, _WATCH_S) if due else {p: self.range(topic, p, _WATCH_S) for p in was}
                    )

    def dangling(self, topic: str, partition: int) -> bool:
        """Whether a transaction is open there."""
        at = TopicPartition(self.name(topic), partition)

        def ask(timeout: float) -> bool:
            ends = [
                next(iter(self._admin.list_offsets(
                    {at: OffsetSpec.latest()}, isolation_level=level, request_timeout=timeout
                ).values())).result().offset
                for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
            ]  # fmt: skip
            return bool(ends[0] < ends[1])

        self.acquaint(self._admin, topic, partition)
        return self.call(f"open transactions of {topic}/{partition}", ask)

    def acquaint(self, client: Producer | AdminClient, topic: str, partition: int) -> None:
        """Let a client know a partition: it remembers what it has heard of topics, and this one may be new."""
        name = self.name(topic)

        def ask(timeout: float) -> None:
            found = client.list_topics(name, timeout=timeout).topics
            if name not in found or partition not in found[name].partitions:
                raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))

        self.call(f"{topic}/{partition}", ask)

    def ensure(self, topic: str, partition: int) -> None:
        """Make the topic, and partitions up to this one, where they are missing."""
        if (topic, partition) in self._known:
            return
        name = self.name(topic)

        def ask(timeout: float) -> None:
            found = self.topics(timeout).get(topic)
            if found is None:
                kept = {"retention.ms": "-1"} if topic in KEPT else {}
                sizes = {"max.message.bytes": str(self.limits.value_bytes_max + (64 << 10))}
                new = NewTopic(name, num_partitions=partition + 1, replication_factor=-1, config=kept | sizes)
                made = self._admin.create_topics([new], request_timeout=timeout)
            elif partition not in found:
                made = self._admin.create_partitions([NewPartitions(name, partition + 1)], request_timeout=timeout)
            else:
                return
            try:
                made[name].result()
            except KafkaException as error:
                if error.args[0].code() not in (KafkaError.TOPIC_ALREADY_EXISTS, KafkaError.INVALID_PARTITIONS):
                    raise
            raise KafkaException(KafkaError(KafkaError._WAIT_CACHE))  # look again: every broker has to hear of it

        self.call(f"to make topic {name} with {partition + 1} partitions", ask)
        self._known.add((topic, partition))

    def group(self, group: str) -> Consumer:
        """The consumer by which positions of a group are told and asked; never a member."""
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self.consumer(group)
            return self._groups[group]

    def commit(self, group: str, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        """Commit positions, by a thread of its own: the client's call has no bound, and who calls may answer people."""
        consumer = self.group(group)
        done = self._commits.submit(consumer.commit, offsets=places, asynchronous=False)
        try:
            return done.result(timeout) or []
        except concurrent.futures.TimeoutError:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None

    def groups(self) -> list[str]:
        """The groups below the prefix."""

        def ask(timeout: float) -> list[str]:
            found = self._admin.list_consumer_groups(request_timeout=timeout).result()
            return [one.group_id for one in found.valid]

        names = self.call("the groups", ask)
        return sorted(name[len(self.prefix) :] for name in names if name.startswith(self.prefix))

    def drop(self, group: str) -> None:
        """Forget all positions of a group; harmless for one that has none."""

        def ask(timeout: float) -> None:
            name = self.prefix + group
            try:
                self._admin.delete_consumer_groups([name], request_timeout=timeout)[name].result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    raise

        self.call(f"to drop group {group}", ask)

    def settle(self, future: asyncio.Future[int], offset: int, error: errors.Error | None) -> None:
        """Answer one who waits in an event loop; called by the thread that hears of deliveries."""
        self._settled.setdefault(future.get_loop(), []).append((future, offset, error))

    def close(self) -> None:
        """Let go of the brokers. Again is harmless."""
        if self._closing.is_set():
            return
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._commits.shutdown(wait=False, cancel_futures=True)
        for reader in list(self.readers):
            reader.close()
        while self._groups:
            self._groups.popitem()[1].close()
        self._consumer.close()
        self._admin = self._producer = None  # a client ends when nobody holds it

    def _made(self, kind: Callable[[dict[str, Any]], Any], ours: dict[str, Any]) -> Any:
        """A client. It logs what ends it; that the cluster is away is said here, once."""
        base: dict[str, Any] = {
            "bootstrap.servers": self.limits.kafka,
            "client.id": "millstream",
            "log_level": 2,
            "reconnect.backoff.max.ms": 1000,
            "socket.timeout.ms": 10_000,
        }
        try:
            return kind(base | self.limits.kafka_options | ours)
        except (KafkaException, TypeError, ValueError) as error:
            raise errors.Misconfigured(f"log.kafka or log.kafka_options: {error}") from None

    def _run(self) -> None:
        """Hear of deliveries, and look for a cluster that is away."""
        looked = 0.0
        while not self._closing.is_set():
            if self._producer is None or self.failure:
                self._closing.wait(0.05)
            else:
                self._hear(self._producer)
            if self.away and time.monotonic() - looked > _PROBE_S:
                looked = time.monotonic()
                try:
                    self._consumer.list_topics(timeout=1.0)
                except KafkaException:
                    continue
                self.away = ""
                logger.info("Kafka at %s is back", self.limits.kafka)

    def _hear(self, producer: Producer) -> None:
        """Wait a moment for deliveries and tell of them. What a producer that failed has left is given up, and told."""
        try:
            producer.poll(0.05)
        except KafkaException as error:
            self._on_error(error.args[0])
        if self.failure:
            producer.purge()
            while len(producer):
                with suppress(KafkaException):
                    producer.poll(0.05)
        self._wake()

    def _wake(self) -> None:
        """One wake-up a loop for all that was delivered."""
        while self._settled:
            loop, settled = self._settled.popitem()
            try:
                loop.call_soon_threadsafe(_answer, settled)
            except RuntimeError:  # the loop is closed: nobody is left to hear it
                continue

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() and error.code() != KafkaError._FENCED:
            self.failure = f"Kafka at {self.limits.kafka}: {error.str()}; open the log again"
            logger.error("%s", self.failure)
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.lose(error.str())


def _answer(settled: list[Settled]) -> None:
    for future, offset, error in settled:
        if future.done():
            continue
        if error is None:
            future.set_result(offset)
        else:
            future.set_exception(error)


class KafkaLog(Log):
    """The log of a cluster, by log.kafka. In `root` are lock files only.

    Any method raises errors.Busy when the cluster is away for CALL_S, errors.Misconfigured when it refuses."""

    def __init__(self, root: Path, clock: Clock, limits: LogLimits) -> None:
        super().__init__(root, clock, limits)
        self._cluster = Cluster(limits)

    def topics(self) -> list[str]:
        return sorted(self._cluster.call("the topics", self._cluster.topics))

    def writer(self, topic: str, partition: int = 0) -> KafkaWriter:
        """The writer of a partition, which is made if need be. A transaction that a crash left open is ended.

        Raises errors.Conflict while another writer on this machine has it."""
        from millstream.stream.kafka_writer import KafkaWriter

        if partition < 0:
            raise errors.BadInput(f"partition {partition} of topic {topic}: it must be 0 or more")
        writer = KafkaWriter(self._cluster, self._folder(topic) / str(partition), topic, partition, self._clock)
        self._writers.append(writer)
        return writer

    @property
    def failed(self) -> str:
        return self._cluster.failure or super().failed

    def reader(self, topic: str) -> KafkaReader:
        from millstream.stream.kafka_reader import KafkaReader

        return KafkaReader(self._cluster, self._folder(topic))

    def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """As Log.commit, by the group's committed offsets. Full while the cluster is away."""
        self._folder(topic)
        cluster, name = self._cluster, self._cluster.name(topic)
        if not offsets:
            return
        if cluster.away:
            raise errors.Full(f"{group} has read {topic}, and cannot say so: {cluster.busy('commit', cluster.away)}")
        try:
            cluster.ensure(topic, max(offsets))
            places = [TopicPartition(name, partition, offset) for partition, offset in offsets.items()]

            def ask(timeout: float) -> None:
                for place in cluster.commit(group, places, timeout):
                    if place.error:
                        raise KafkaException(place.error)

            cluster.call(f"positions of {group}", ask, _COMMIT_S)
        except errors.Busy as error:
            raise errors.Full(f"{group} has read {topic}, and cannot say so: {error}") from error

    def committed(self, group: str, topic: str) -> dict[int, int]:
        self._folder(topic)
        cluster, name = self._cluster, self._cluster.name(topic)

        def ask(timeout: float) -> dict[int, int]:
            places = [TopicPartition(name, partition) for partition in cluster.topics(timeout).get(topic, ())]
            found = cluster.group(group).committed(places, timeout=timeout) if places else []
            return {one.partition: one.offset for one in found if one.offset > OFFSET_INVALID and one.offset >= 0}

        return cluster.call(f"positions of {group}", ask)

    def groups(self) -> list[str]:
        """The groups that have committed anything, of others below the same prefix too."""
        return self._cluster.groups()

    def forget(self, group: str) -> None:
        self._cluster.drop(group)

    def verify(self, topic: str) -> Verified:
        """Read every record of a topic; its checksums are those of Kafka's batches, and nothing can be mended here."""
        reader, found = self.reader(topic), Verified(topic)
        for partition in reader.partitions():
            found.partitions += 1
            try:
                for record in reader.records(partition):
                    found.records += 1
                    found.bytes += len(record.key) + len(record.value)
                found.frames += sum(1 for _ in reader.frames(partition, reader.start(partition)))
            except errors.Corrupt as error:
                found.corrupt.append(str(error))
        return found

    def close(self) -> None:
        super().close()
        self._cluster.close()
