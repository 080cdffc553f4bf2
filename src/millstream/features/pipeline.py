"""From the log to the rows: follow the topics of a feature set, keep its state, write what changed.

Rules of the room:
- One process does this for an installation. Everything it knows is a snapshot (state, and the position in every topic
  that the state contains, in one file) and what the log holds beyond: killed at any moment, it takes up the snapshot,
  reads on, and stands where it stood. It writes rows only when it has caught up, so that none goes back in time.
- Within a step, what was served is read before what people did, so that an outcome finds who was asked; and the
  partitions of a topic are merged by arrival.
- Rows are as of the clock, or of the last arrival where that is later. Where the clock was put back, all rows are
  written again, as of the earlier time: nothing has left the state by the clock alone.
- Rows are vouched for as of when everything that had arrived by then was in: while there is more to take than a step
  may, that is the arrival of what was taken last.
- Of a source whose files were taken in before (backfill.py), the log's events count from where the files ended.
- Retention waits for the snapshot.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from millstream import errors
from millstream.clock import Clock
from millstream.features.define import SECOND, span
from millstream.features.events import Hashes, micros
from millstream.features.health import Health
from millstream.features.online import Writer
from millstream.features.plan import Plan
from millstream.features.rows import Requests, events_of
from millstream.features.sets import FeatureSet
from millstream.features.snapshot import SNAPSHOT, Stand, read, write
from millstream.features.state import State
from millstream.meter import Meter
from millstream.store.rows import RowFile
from millstream.stream.event import Event, decode
from millstream.stream.log import Log, reached
from millstream.stream.operator import uncollected
from millstream.stream.reader import Record

SAVE_S: Final = 60.0
DROP_S: Final = 3600.0  # between two looks for entities whose time is over
CHECK_S: Final = 60.0
RECORDS_MAX: Final = 20_000  # of a topic in one step
PUBLISHED_S: Final = 0.01  # from the stamp of an arrival to where readers see it
GROUPS: Final = "features."
logger = logging.getLogger(__name__)


def stores_of(features: FeatureSet, folder: Path, limit: int, write: bool) -> dict[str, RowFile]:
    """The row files of a feature set in `folder`, one for each kind of entity; for writing they are made."""
    opened: dict[str, RowFile] = {}
    try:
        for name in features.entities:
            path, width = folder / f"{name}.rows", Plan(features, name).bytes
            if write:
                opened[name] = RowFile.create(path, width, features.hash, limit=limit)
            else:
                opened[name] = RowFile.open(path, width, features.hash)
    except BaseException:
        for one in opened.values():
            one.close()
        raise
    return opened


def folder_of(features: FeatureSet, root: Path) -> Path:
    """Where the rows of a set lie: those of another hash lie elsewhere, so that both are served."""
    return root / f"{features.name}-{features.hash}"


def group_of(features: FeatureSet) -> str:
    """The name under which a set tells retention what it still needs."""
    return f"{GROUPS}{features.name}.{features.hash}"


class Pipeline:
    """Keeps the rows of one feature set; `root` is the folder of all."""

    def __init__(
        self, features: FeatureSet, log: Log, root: Path, clock: Clock, meter: Meter, limit: int = 1_000_000
    ) -> None:
        self.features, self._log, self._clock = features, log, clock
        self.folder = folder_of(features, root)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = State(features, limit)
        self._requests = Requests()
        self._topics = {source.name: source.log_topic for source in features.sources}
        # What was served comes first, what people did last: see the rules.
        self._order = sorted(
            {"served", *self._topics.values()}, key=lambda topic: (topic != "served", topic == "outcomes")
        )
        self._readers = {topic: log.reader(topic) for topic in self._order}
        labels = {"set": features.name}
        self._taken = meter.counter("millstream_feature_events_total", "Events taken into features.", labels)
        self._written = meter.counter("millstream_feature_rows_total", "Rows of features written.", labels)
        self._odd = meter.counter(
            "millstream_feature_values_odd_total", "Values of events that were not of their column's type.", labels
        )
        self._refused = meter.gauge(
            "millstream_feature_entities_refused",
            "Entities beyond feature_store.entities_max, counted each time they come.", labels,
        )  # fmt: skip
        self._lag = meter.gauge("millstream_feature_age_seconds", "How old the rows are that serving reads.", labels)
        self._stores = stores_of(features, self.folder, limit, write=True)  # the lock, before the snapshot is looked at
        try:
            self._stand = read(self.folder / SNAPSHOT, self.state) or Stand()
        except BaseException:
            self.abandon()
            raise
        self._requests.users.update(self._stand.users)
        self.offsets = {topic: dict(self._stand.offsets.get(topic, {})) for topic in self._order}
        self._at = self._arrived = self._stand.at
        self._writer = Writer(self.state, self._stores)
        self._writer.write_later()
        self._health = Health(features, meter)
        self._saved_at = self._dropped_at = self._checked_at = clock.monotonic()
        self._catching_up = True

    def step(self) -> int:
        """Take what came, up to a bound, and write what changed; how many events that was."""
        began = int((self._clock.now() - PUBLISHED_S) * SECOND)  # what arrived before has been published by now
        ends = {topic: self._ends(topic) for topic in reversed(self._order)}
        taken, until = 0, math.inf
        with uncollected():
            for topic in self._order:
                count, until = self._follow(topic, ends[topic], until)
                taken += count
        behind = not reached(self.offsets, ends)
        self._catching_up = self._catching_up and behind
        if not self._catching_up:
            self._write(began, int(until * SECOND) if behind else None)
        self._refused.set(sum(table.refused for table in self.state.entities.values()))
        now = self._clock.monotonic()
        if now - self._saved_at >= SAVE_S:
            self.save()
        if not self._catching_up and now - self._checked_at >= CHECK_S:
            self._checked_at = now
            self._writer.write_again(self._health.look(self.state, self._stores, self._at))
        if (ttl := span(self.features.ttl)) and now - self._dropped_at >= DROP_S:
            self._dropped_at = now
            for store in self._stores.values():
                store.drop(self._at - ttl)
        return taken

    def _write(self, began: int, until: int | None) -> None:
        """Write what changed, as of `began` or the last arrival; vouch for it, or where more waits for what arrived by
        `until`."""
        at = max(began, self._arrived + 1)
        if at < self._at:
            if at < self._at - SECOND:
                logger.warning(
                    "feature set %s: the clock was put back by %.0f s: all rows are written again",
                    self.features.name, (self._at - at) / SECOND,
                )  # fmt: skip
            self._writer.write_later()
        self._at = at
        vouched = at if until is None else min(at, until)
        self._written.add(self._writer.write(at, vouched))
        self._lag.set(max(0.0, self._clock.now() - vouched / SECOND))

    def save(self) -> None:
        """Keep the state and where it stands, and let retention have what came before. No room: Full, and the last
        snapshot stays."""
        self._saved_at = self._clock.monotonic()
        self._stand = msgspec.structs.replace(
            self._stand, at=self._at, offsets=self.offsets, users=dict(self._requests.users)
        )
        write(self.folder / SNAPSHOT, self.state, self._stand)
        for topic, offsets in self.offsets.items():
            if offsets:
                self._log.commit(group_of(self.features), topic, offsets)

    def reached(self, cut: Mapping[str, Mapping[int, int]]) -> bool:
        """Whether everything before these offsets of its topics has been taken."""
        return reached(self.offsets, cut)

    def forget(self, kind: str, keys: Hashes, mine: Callable[[str], bool]) -> int:
        """Remove entities of a kind from state, rows and snapshot, by their keys, and whose requests were whose, by
        their names; how many rows there were. All of it is on the disk when this returns."""
        if kind == "user":
            self._requests.forget(mine)
        rows = 0
        if kind in self._stores:
            rows = self._stores[kind].forget(keys)
            if self.state.entities[kind].forget(keys):
                self._writer = Writer(self.state, self._stores)  # what it knew of places is of others now
                self._writer.write_later()
        self.save()
        return rows

    def close(self) -> None:
        """Save and let go."""
        self.save()
        self.abandon()

    def abandon(self) -> None:
        """Let go without saving, as a crash would."""
        for store in self._stores.values():
            store.close()

    def _ends(self, topic: str) -> dict[int, int]:
        reader = self._readers[topic]
        return {partition: reader.end(partition) for partition in reader.partitions()}

    def _follow(self, topic: str, ends: dict[int, int], until: float) -> tuple[int, float]:
        """Take the records of a topic that came before `ends` and arrived by `until`, as many as a step may have. How
        many, and the arrival up to which all were taken."""
        records, until = self._read(topic, ends, until)
        for partition, found in records.items():
            if found:
                self.offsets[topic][partition] = found[-1].offset + 1
        merged = [record for found in records.values() for record in found]
        if len(records) > 1:
            merged.sort(key=lambda record: (record.arrival, record.partition, record.offset))
        if merged:
            self._take(topic, merged)
        return len(merged), until

    def _read(self, topic: str, ends: dict[int, int], until: float) -> tuple[dict[int, list[Record]], float]:
        """What each partition has next. While one has more than a step may take, no other gets ahead of it."""
        reader, bound = self._readers[topic], max(1, RECORDS_MAX // max(1, len(ends)))
        records: dict[int, list[Record]] = {}
        for partition, end in sorted(ends.items()):
            at = self._kept(topic, partition, self.offsets[topic].get(partition, 0))
            found = records[partition] = []
            while at < end and len(found) < bound:
                try:
                    some = [one for one in reader.read(partition, at, bound - len(found)) if one.offset < end]
                except errors.NotFound:
                    if (kept := self._kept(topic, partition, at)) == at:
                        raise
                    at = kept  # retention took it since that was looked up
                    continue
                found += some
                at = some[-1].offset + 1 if some else end
            if at < end:
                until = min(until, found[-1].arrival)
        return {number: [one for one in found if one.arrival <= until] for number, found in records.items()}, until

    def _kept(self, topic: str, partition: int, at: int) -> int:
        """This offset, or the first one that retention has left behind it, which is said."""
        start = self._readers[topic].start(partition)
        if at < start:
            self._say_gone(topic, partition, at, start)
        return max(at, start)

    def _say_gone(self, topic: str, partition: int, at: int, start: int) -> None:
        name = self.features.name
        if at:
            logger.error(
                "feature set %s: retention took %s/%d from offset %d to %d before it was read; the events are not in "
                "its rows", name, topic, partition, at, start,
            )  # fmt: skip
        elif any(self._topics[source.name] == topic and not source.table for source in self.features.sources):
            logger.warning(
                "feature set %s begins at offset %d of %s/%d, before which the log has nothing any more: windows that "
                "reach further back have what came since; export the log each day, and fill a new set from the files",
                name, start, topic, partition,
            )  # fmt: skip

    def _take(self, topic: str, records: list[Record]) -> None:
        try:
            events: list[tuple[float, Event | None]] = [(one.arrival, decode(one.value)) for one in records]
        except errors.Corrupt:
            events = [(one.arrival, self._decoded(one)) for one in records]
        if topic == "served":
            self._requests.add([event for _, event in events])
        self._arrived = max(self._arrived, int(records[-1].arrival * SECOND) + 1)
        arrivals = micros([arrival for arrival, _ in events])
        for source in self.features.sources:
            if self._topics[source.name] != topic:
                continue
            # What came before `since` was in the files of the source's table; see backfill.py.
            news = events[int(np.searchsorted(arrivals, self._stand.since.get(source.name, 0))) :]
            if news:
                self._stand.followed[source.name] = int(arrivals[-1])
                self._writer.apply(source.name, events_of(source, topic, news, self._requests, self._odd.add))
        self._taken.add(len(records))

    def _decoded(self, record: Record) -> Event | None:
        try:
            return decode(record.value)
        except errors.Corrupt as error:
            self._odd.add()
            logger.error("feature set %s goes on without an event: %s", self.features.name, error)
            return None
