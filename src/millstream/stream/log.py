"""The event log: topics of partitions, appended by one writer each, read by anyone, replayable from any offset.

Rules of the room:
- Keys and values are opaque bytes. Values have passed guard.redact: their type says so, and nothing here looks inside.
- Order and offsets hold within a partition. A partition has one writer process; a process that needs to append takes
  a partition of its own.
- What a consumer group has read is its own statement (`commit`), kept beside the log. A group registers by its
  first commit, and from then on retention waits for it.
- What each write promises: append survives kill -9; append_durable, append_frame(sync=True) survive power loss.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec

from millstream import errors
from millstream.clock import Clock
from millstream.stream import segment
from millstream.stream.reader import Reader, Record
from millstream.stream.writer import LogLimits, Retained, Writer

__all__ = ["Log", "LogLimits", "Reader", "Record", "Retained", "Verified", "Writer", "open_log", "reached"]

GROUPS_VERSION = 1
TOPIC_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_SCHEMA = """CREATE TABLE IF NOT EXISTS positions (
    "group" TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    PRIMARY KEY (topic, "group", partition)) WITHOUT ROWID"""


def open_log(root: Path, clock: Clock, limits: LogLimits) -> Log:
    """The log that the settings name: on a Kafka cluster where `kafka` says which, else in folder `root`."""
    if not limits.kafka:
        return Log(root, clock, limits)
    from millstream.stream.kafka import KafkaLog

    return KafkaLog(root, clock, limits)


def reached(offsets: Mapping[str, Mapping[int, int]], cut: Mapping[str, Mapping[int, int]]) -> bool:
    """Whether these positions, by topic and partition, have everything before those of `cut`; topics that they do not
    name are nobody's here."""
    return all(
        read.get(partition, 0) >= offset
        for topic, read in offsets.items()
        for partition, offset in cut.get(topic, {}).items()
    )


class Verified(msgspec.Struct):
    """What Log.verify found in a topic. `tail_bytes`: past the last published frame, in flight or torn by a crash
    (the next writer cuts it); `corrupt`: a line for each damage, naming file and byte."""

    topic: str
    partitions: int = 0
    segments: int = 0
    frames: int = 0
    records: int = 0
    bytes: int = 0
    tail_bytes: int = 0
    corrupt: list[str] = []


class Log:
    """The log in folder `root`, which is made when first written."""

    def __init__(self, root: Path, clock: Clock, limits: LogLimits | None = None) -> None:
        self.root, self._clock, self._limits = root, clock, limits or LogLimits()
        self._writers: list[Writer] = []
        self._groups: sqlite3.Connection | None = None
        self._groups_lock = threading.Lock()

    def topics(self) -> list[str]:
        """The topics that have been written, in order."""
        if not self.root.exists():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and TOPIC_NAME.fullmatch(path.name))

    def writer(self, topic: str, partition: int = 0) -> Writer:
        """The writer of a partition, recovered from whatever crash came before.

        Raises errors.Conflict while another writer has it, errors.Corrupt for damage that no crash explains.
        """
        if partition < 0:
            raise errors.BadInput(f"partition {partition} of topic {topic}: it must be 0 or more")
        folder = self._folder(topic) / str(partition)
        writer = Writer(folder, self._clock, self._limits, lambda: self._lowest(topic, partition))
        self._writers.append(writer)
        return writer

    def roll(self) -> None:
        """Have every writer that this log gave out begin a new segment; see Writer.roll."""
        for writer in [*self._writers]:  # it may be another thread's
            if not writer.closed:
                writer.roll()

    @property
    def failed(self) -> str:
        """Why a writer that this log gave out takes nothing any more, or ""."""
        return next((writer.failed for writer in self._writers if writer.failed), "")

    @property
    def unread_deleted(self) -> int:
        """Records that disk_bytes_max forced out of this log's writers before every group had read them."""
        return sum(writer.unread_deleted for writer in self._writers)

    def reader(self, topic: str) -> Reader:
        """A new reader of a topic, which need not exist yet."""
        return Reader(self._folder(topic))

    def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """The group has read each partition up to (not including) its offset. The first commit registers the group.

        No room on the disk: Full, and nothing changed.
        """
        self._folder(topic)
        rows = [(group, topic, partition, offset) for partition, offset in offsets.items()]
        try:
            with self._groups_lock, self._positions() as positions:
                positions.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise errors.Full(f"{self.root}: no room to note that {group} has read {topic}; make room") from error

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """What the group has committed: partition -> next offset to read; empty for a group that never did."""
        with self._groups_lock:
            query = 'SELECT partition, offset FROM positions WHERE "group" = ? AND topic = ?'
            return dict(self._positions().execute(query, (group, topic)).fetchall())

    def groups(self) -> list[str]:
        """The groups that retention waits for, in order."""
        with self._groups_lock:
            return [name for (name,) in self._positions().execute('SELECT DISTINCT "group" FROM positions ORDER BY 1')]

    def forget(self, group: str) -> None:
        """Wait for a group no more: it will not come back, or begins anew."""
        with self._groups_lock, self._positions() as positions:
            positions.execute('DELETE FROM positions WHERE "group" = ?', (group,))

    def verify(self, topic: str) -> Verified:
        """Read every frame of a topic and check it; writers may go on meanwhile."""
        reader = self.reader(topic)
        found = Verified(topic)
        for partition in reader.partitions():
            found.partitions += 1
            _verify(reader, partition, found)
        return found

    def close(self) -> None:
        """Close every writer this log gave out, and the group offsets."""
        while self._writers:
            self._writers.pop().close()
        with self._groups_lock:
            if self._groups is not None:
                self._groups.close()
                self._groups = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _folder(self, topic: str) -> Path:
        if not TOPIC_NAME.fullmatch(topic):
            raise errors.BadInput(f"topic {topic!r}: a letter, then at most 63 of a-z, 0-9, _ and -")
        return self.root / topic

    def _positions(self) -> sqlite3.Connection:
        if self._groups is None:
            self.root.mkdir(parents=True, exist_ok=True)
            self._groups = sqlite3.connect(self.root / "groups.sqlite", timeout=10.0, check_same_thread=False)
            said = int(self._groups.execute("PRAGMA user_version").fetchone()[0])  # 0: before it was written, as 1
            if said > GROUPS_VERSION:
                self._groups.close()
                self._groups = None
                raise errors.Later(self.root / "groups.sqlite", said, GROUPS_VERSION)
            self._groups.execute("PRAGMA journal_mode = WAL")
            self._groups.execute(_SCHEMA)
            if said < GROUPS_VERSION:
                self._groups.execute(f"PRAGMA user_version = {GROUPS_VERSION}")
        return self._groups

    def _lowest(self, topic: str, partition: int) -> int | None:
        """The lowest offset a group still has to read; a group of the topic that never named the partition is at 0."""
        query = """SELECT MIN(position) FROM (SELECT MAX(CASE WHEN partition = ? THEN offset ELSE 0 END) AS position
                   FROM positions WHERE topic = ? GROUP BY "group")"""
        with self._groups_lock:
            lowest: int | None = self._positions().execute(query, (partition, topic)).fetchone()[0]
        return lowest


def _verify(reader: Reader, partition: int, found: Verified) -> None:
    """Add one partition to what was found."""
    folder, end = reader.folder / str(partition), reader.end(partition)
    bases = segment.segments(folder)
    due = bases[0] if bases else end
    for base in bases:
        path = segment.segment_path(folder, base)
        found.segments += 1
        if due < base < due + segment.GAP:
            found.corrupt.append(f"{path} byte 0: starts at offset {base} where {due} was due")
        due, whole = base, 0
        try:
            for frame in segment.frames(path, base):
                if frame.next > end:
                    break
                due, whole = frame.next, frame.end
                found.frames, found.records = found.frames + 1, found.records + frame.count
                found.bytes += frame.end - frame.position
        except segment.BadFrame as bad:
            if due < end:
                found.corrupt.append(str(bad))
                due = bases[bases.index(base) + 1] if base != bases[-1] else end
        if due >= end:
            found.tail_bytes += path.stat().st_size - max(whole, segment.SEGMENT.size)
    if due < end:
        found.corrupt.append(f"{folder}: the data ends at offset {due}, but {end} is published")
