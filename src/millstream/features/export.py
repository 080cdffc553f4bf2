"""What the log has of a source, as Parquet files by day of arrival: FOLDER/day=2026-01-31/part-0.parquet.

Rules of the room:
- A file has the source's columns (text, float64), `event_time` and `arrival` (float64, unix seconds) and `position`
  (int64), which orders all events of all days as they came. Text is what the log has: nothing is redacted here, because
  nothing else gets into the log.
- A file is whole or not there, and says between which arrivals it has everything (`Cover`). One that has its whole day
  is left as it is; the current day is written anew, up to SETTLE_S ago: what arrived later may not be published yet.
- What a file holds is never given up: where retention has taken from the log what a file of a part of that day has, the
  file stays, and the report says so.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from millstream import errors
from millstream.clock import Clock
from millstream.features.define import SECOND, Source
from millstream.features.rows import Requests, Said
from millstream.store.blob import writing
from millstream.stream.event import Event, decode
from millstream.stream.log import Log
from millstream.stream.reader import Reader, Record

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise errors.Missing.extra("parquet", "files of events") from None

DAY: Final = 86400 * SECOND
SETTLE_S: Final = 5.0
ROWS: Final = 65_536  # of a row group
SERVED_MAX: Final = 20_000  # requests between two groups, so that none is forgotten before its outcomes are written
AHEAD_S: Final = 60.0  # what was served is read so much before what people did: clocks of two processes differ
META: Final = b"millstream"
FILE: Final = "part-0.parquet"
logger = logging.getLogger(__name__)
Tell = Callable[[str], None]


class Cover(msgspec.Struct, frozen=True):
    """What an exported file says of itself: it has every event of `source` that arrived in [begin, until),
    microseconds, with these `columns`. `begin` is 0 where none came before its day."""

    source: str
    columns: dict[str, str]
    begin: int
    until: int


class Exported(msgspec.Struct, frozen=True):
    """What an export did: `files` written, with `rows` events; `kept`: days that are as they were; `incomplete`: those
    among them that are not all there, and of which retention has left too little; `odd`: values that were not of their
    column's type, and events that cannot be read."""

    source: str
    days: int
    rows: int
    files: int
    kept: int
    incomplete: int
    odd: int


def export(
    source: Source,
    log: Log,
    folder: Path,
    clock: Clock,
    begin: int | None = None,
    until: int | None = None,
    tell: Tell = lambda line: None,
) -> Exported:
    """Write the days of a source from that of `begin` (microseconds; None: of the first event that the log has) up to
    `until` (None: now). No room on the disk: Full; what is whole by then stays."""
    topic = source.log_topic
    settled = int((clock.now() - SETTLE_S) * SECOND)
    until = settled if until is None else min(until, settled)
    first, lost = _ends(log.reader(topic))
    begin = min(until, until if first is None else first) if begin is None else begin
    days = range(begin // DAY * DAY, until, DAY)
    wanted, incomplete = _wanted(source, folder, days, until, lost)
    records = _Records(source, topic, log, set(wanted), until)
    rows = 0
    for number, day in enumerate(wanted):
        begin = 0 if not lost and (first is None or day <= first) else max(day, lost)
        cover = Cover(source.name, dict(source.columns), begin, min(day + DAY, until))
        if cover.begin > day:
            tell(f"{_named(day)}: the log has lost what arrived before {_moment(lost)}")
        count = _write(source, folder, day, cover, records.of(day))
        rows += count
        tell(f"{_named(day)}: {count} rows ({number + 1} of {len(wanted)} days)")
    kept = len(days) - len(wanted)
    return Exported(source.name, len(days), rows, len(wanted), kept, incomplete, records.odd)


def cover_of(file: Path) -> Cover | None:
    """What an exported file says of itself; None of a file that was made elsewhere. Not to be read: BadInput."""
    try:
        found = (pq.read_schema(file).metadata or {}).get(META)
        return msgspec.json.decode(found, type=Cover) if found else None
    except (pa.ArrowException, OSError, msgspec.MsgspecError) as error:
        raise errors.BadInput(f"{file} cannot be read: {error}; move it away and export its day again") from None


def _ends(reader: Reader) -> tuple[int | None, int]:
    """(arrival of the first event that a topic has, arrival before which retention may have deleted some; 0: none)."""
    first: int | None = None
    lost = 0
    for partition in reader.partitions():
        start = reader.start(partition)
        found = reader.read(partition, start, 1) if start < reader.end(partition) else []
        if found:
            arrival = _micros(found[0].arrival)
            first = arrival if first is None else min(first, arrival)
            lost = max(lost, arrival if start else 0)
    return first, lost


def _wanted(source: Source, folder: Path, days: range, until: int, lost: int) -> tuple[list[int], int]:
    """The days to be written; and how many others are not all there."""
    wanted, incomplete = [], 0
    for day in days:
        file, end = folder / f"day={_named(day)}" / FILE, min(day + DAY, until)
        cover = cover_of(file) if file.exists() else None
        if file.exists() and (cover is None or cover.source != source.name):
            raise errors.BadInput(f"{file} has other events than those of source {source.name}; name another folder")
        if cover and cover.until >= end and cover.columns == source.columns:
            continue
        if lost >= end or (cover and lost > max(day, cover.begin)):
            incomplete += 1
            logger.warning("%s: the log has lost what arrived before %s; it stays as it is", file, _moment(lost))
        else:
            wanted.append(day)
    return wanted, incomplete


class _Records:
    """The events of some days, in groups, in the order in which they came; read once, day after day."""

    def __init__(self, source: Source, topic: str, log: Log, days: set[int], until: int) -> None:
        self._source, self._topic, self._days, self._until = source, topic, days, until
        self._last = max(days, default=0) + DAY
        self._requests, self.odd = Requests(), 0
        asks = topic == "outcomes" and "user" in source.columns
        self._topics = ["served", topic] if asks else [topic]
        self._merged = heapq.merge(*(one for name in self._topics for one in _ordered(log.reader(name), name)))
        self._groups = self._grouped()
        self._next = next(self._groups, None)

    def of(self, day: int) -> Iterator[Said]:
        """Those of a day; ask for days in ascending order."""
        while self._next is not None and self._next[0] <= day:
            if self._next[0] == day:
                yield Said.of(self._source, self._topic, self._next[1], self._requests, self._count)
            self._next = next(self._groups, None)

    def _grouped(self) -> Iterator[tuple[int, list[tuple[float, Event | None]]]]:
        group: list[tuple[float, Event | None]] = []
        day, served = -1, 0
        for _, is_event, _, _, record in self._merged:
            arrival = _micros(record.arrival)
            if is_event and (arrival >= self._until or arrival >= self._last):
                break
            if not is_event:
                self._requests.add([self._decoded(record)])
                served += 1
            elif (today := arrival // DAY * DAY) in self._days:
                if group and (today != day or len(group) >= ROWS or served >= SERVED_MAX):
                    yield day, group
                    group, served = [], 0
                day = today
                group.append((record.arrival, self._decoded(record)))
        if group:
            yield day, group

    def _decoded(self, record: Record) -> Event | None:
        try:
            return decode(record.value)
        except errors.Corrupt:
            self._count()
            return None

    def _count(self) -> None:
        self.odd += 1


def _ordered(reader: Reader, topic: str) -> Iterator[Iterator[tuple[float, bool, int, int, Record]]]:
    """The records of each partition, to be merged by arrival."""
    ahead, is_event = (AHEAD_S, False) if topic == "served" else (0.0, True)

    def of(partition: int) -> Iterator[tuple[float, bool, int, int, Record]]:
        for record in reader.records(partition):
            yield record.arrival - ahead, is_event, partition, record.offset, record

    return (of(partition) for partition in reader.partitions())


def _write(source: Source, folder: Path, day: int, cover: Cover, groups: Iterator[Said]) -> int:
    """One day's file; how many rows."""
    path = folder / f"day={_named(day)}" / FILE
    types = {"number": pa.float64(), "text": pa.string()}
    fields = [(name, types[kind]) for name, kind in source.columns.items()]
    fields += [("event_time", pa.float64()), ("arrival", pa.float64()), ("position", pa.int64())]
    schema = pa.schema(fields, {META: msgspec.json.encode(cover)})
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with writing(path) as file, pq.ParquetWriter(file, schema) as parquet:
        for said in groups:
            count = len(said.arrivals)
            # The day's number above, so that positions of all days ascend; below 2^53, so that a float holds them.
            position = (day // DAY << 32) + rows + np.arange(count)
            parquet.write_table(pa.table(_columns(source, said) | {"position": position}, schema))
            rows += count
    return rows


def _columns(source: Source, said: Said) -> dict[str, Any]:
    found: dict[str, Any] = {"event_time": said.event_times, "arrival": said.arrivals}
    for name, kind in source.columns.items():
        if kind == "text":
            found[name] = pa.array([text or None for text in said.texts[name]], pa.string())
        else:
            found[name] = pa.array(said.numbers[name], from_pandas=True)
    return found


def _micros(seconds: float) -> int:
    return round(seconds * SECOND)


def _named(day: int) -> str:
    return datetime.fromtimestamp(day // SECOND, UTC).strftime("%Y-%m-%d")


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at / SECOND, UTC).isoformat(timespec="seconds")
