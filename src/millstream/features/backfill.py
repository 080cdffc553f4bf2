"""From files of events to rows: fill a feature set from the tables of its sources, before the stream takes over.

Rules of the room:
- The files are applied to the state that the stream keeps, in the order in which their events arrived, a day at a
  time; the snapshot after each says up to which arrival (`since`) they are in it. The next run goes on from there, and
  so does one after a crash. The pipeline takes up the same snapshot, and leaves out what arrived before `since` of the
  sources that have a table: no event is lost or counted twice. Sources without a table come from the log alone.
- Once the log's events of such a source are in the state, files cannot be: the run is refused.
- The last snapshot follows the rows, so that a run that was killed in between writes them again.
- One process has the rows of a set: the lock of their files is held all along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from millstream import errors
from millstream.features.define import SECOND, Source
from millstream.features.events import Events
from millstream.features.export import DAY, cover_of
from millstream.features.offline import events_of, files_of
from millstream.features.online import Writer
from millstream.features.pipeline import folder_of, stores_of
from millstream.features.sets import FeatureSet
from millstream.features.snapshot import SNAPSHOT, Stand, read, write
from millstream.features.state import State

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError:
    raise errors.Missing.extra("parquet", "files of events") from None

EVENTS_MAX: Final = 4_000_000  # read at once, where the files' row groups allow it
SHORTEST: Final = 60 * SECOND
FOREVER: Final = 2**62
Tell = Callable[[str], None]


class Filled(msgspec.Struct, frozen=True):
    """What a run did: `events` taken, `rows` written, up to which arrival the files are in the set (`since`, as text).
    `rows_s`: rows written a second; 0 where nothing was to be done."""

    set: str
    events: int
    rows: int
    seconds: float
    rows_s: float
    since: str


class Table:
    """The Parquet files of a source, wherever they come from: what arrived between two moments is read from those row
    groups that may have it."""

    def __init__(self, source: Source, path: str | Path) -> None:
        self.source, self._where = source, f"source {source.name}"
        files = files_of(path, self._where)
        self._covers = [cover_of(file) for file in files]
        self._groups = [group for file in files for group in self._groups_of(file)]

    @property
    def begin(self) -> int:
        """Where the files begin; FOREVER where they have no event."""
        covered = min((cover.begin for cover in self._covers if cover), default=0)
        return max(covered, min((group.low for group in self._groups), default=FOREVER))

    def check(self, begin: int, end: int) -> None:
        """Of files that say what they have: that they have all of [begin, end). BadInput."""
        if not all(self._covers):
            return
        at, then = begin, end
        for cover in sorted((cover for cover in self._covers if cover), key=lambda cover: cover.begin):
            if cover.begin > at:
                then = min(end, cover.begin)
                break
            at = max(at, cover.until)
        if at < end:
            raise errors.BadInput(
                f"{self._where}: the files lack what arrived from {said(at)} to {said(then)}; `millstream features "
                f"export {self.source.name}` writes what the log has of it, else take --from or --to beside it"
            )

    def events(self, begin: int, end: int) -> Iterator[Events]:
        """What arrived in [begin, end), in the order in which it came."""
        groups = [group for group in self._groups if group.low < end and group.high >= begin]
        if sum(group.rows for group in groups) > EVENTS_MAX and end - begin >= 2 * SHORTEST:
            middle = (begin + end) // 2
            yield from self.events(begin, middle)
            yield from self.events(middle, end)
        elif groups:
            events = events_of(self.source, self._read(groups))
            first, last = np.searchsorted(events.arrivals, (begin, end))
            if last > first:
                yield events.take(np.arange(first, last))

    def _read(self, groups: Sequence[_Group]) -> Any:
        columns = ["event_time", "arrival", "position", *self.source.columns]
        try:
            tables = []
            for file in dict.fromkeys(group.file for group in groups):
                with pq.ParquetFile(file) as opened:
                    known = [name for name in columns if name in opened.schema_arrow.names]
                    numbers = [group.number for group in groups if group.file == file]
                    tables.append(opened.read_row_groups(numbers, columns=known))
            return pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowException, OSError) as error:
            raise errors.BadInput(f"{self._where}: its files cannot be read: {error}") from None

    def _groups_of(self, file: Path) -> Iterator[_Group]:
        try:
            with pq.ParquetFile(file) as opened:
                if "arrival" not in opened.schema_arrow.names:
                    raise errors.BadInput(f"{self._where}: {file} has no column 'arrival'")
                for number in range(opened.metadata.num_row_groups):
                    rows = opened.metadata.row_group(number).num_rows
                    if rows:
                        yield _Group(file, number, rows, *_range(opened, number))
        except (pa.ArrowException, OSError) as error:
            raise errors.BadInput(f"{self._where}: {file} cannot be read: {error}") from None


class _Group(NamedTuple):
    """A row group, and between which arrivals its events are (microseconds, a second more at either end)."""

    file: Path
    number: int
    rows: int
    low: int
    high: int


def materialise(
    features: FeatureSet,
    root: Path,
    tables: Mapping[str, str | Path],
    to: int,
    begin: int | None = None,
    *,
    now: int,
    limit: int = 1_000_000,
    tell: Tell = lambda line: None,
) -> Filled:
    """Fill a set's rows below `root` with what arrived before `to` (microseconds), from `tables`: of each source that
    has one its Parquet files. Goes on from where the last run ended; the first begins at `begin` (None: with the first
    event). The rows are as of `to`.

    A process keeps these rows, or has taken events of such a source from the log: Conflict. `to` is after `now`, or
    `begin` leaves a gap: BadInput. Nothing to do where the files are in already.
    """
    started = perf_counter()
    known = [source for source in features.sources if source.name in tables]
    if not known:
        raise errors.BadInput(f"feature set {features.name}: none of its sources names a table; it comes from the log")
    if to > now:
        raise errors.BadInput(f"--to {said(to)} is still to come: what arrives until then would be lost")
    folder = folder_of(features, root)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stores = stores_of(features, folder, limit, write=True)
    except errors.Conflict:
        raise errors.Conflict(
            f"feature set {features.name}: another process keeps its rows; stop `millstream up` (its role learn), then "
            "materialise"
        ) from None
    try:
        run = _Run(features, folder, State(features, limit), tell)
        events = run.fill([Table(source, tables[source.name]) for source in known], begin, to)
        if events is None:
            return Filled(features.name, 0, 0, perf_counter() - started, 0.0, run.since)
        writer = Writer(run.state, stores)
        writer.write_later()
        writing = perf_counter()
        rows = writer.write(to)
        took = perf_counter() - writing
        run.save(to)
    finally:
        for store in stores.values():
            store.close()
    return Filled(features.name, events, rows, perf_counter() - started, rows / max(took, 1e-9), run.since)


class _Run:
    """One run over the files of a set."""

    def __init__(self, features: FeatureSet, folder: Path, state: State, tell: Tell) -> None:
        self.features, self.state, self._folder, self._tell = features, state, folder, tell
        self._stand = read(folder / SNAPSHOT, state) or Stand()
        self._tables: list[Table] = []

    @property
    def since(self) -> str:
        """Up to which arrival files are in the set."""
        return said(max(self._stand.since.values(), default=0))

    def fill(self, tables: list[Table], begin: int | None, to: int) -> int | None:
        """Apply what is missing of [begin, to), and keep it but for what came last; how many events. None: all of it is
        in already."""
        self._tables = tables
        at = self._from(begin, to)
        if at >= to:
            self._tell(f"{self.features.name}: nothing to be done, files are in up to {self.since}")
            return None
        for table in tables:
            table.check(at, to)
        begun = {table.source.name: at for table in tables}
        self._stand = msgspec.structs.replace(self._stand, begun=begun | self._stand.begun)
        total = 0
        while at < to:
            end = min(at // DAY * DAY + DAY, to)
            count = sum(self._apply(table, at, end) for table in tables)
            total, at = total + count, end
            if count and at < to:
                self.save(at)
            if count:
                self._tell(f"{self.features.name}: up to {said(at)}, {total} events")
        return total

    def save(self, at: int) -> None:
        """Keep the state: files are in it up to `at`."""
        since = self._stand.since | {table.source.name: at for table in self._tables}
        self._stand = msgspec.structs.replace(self._stand, at=max(at, self._stand.at), since=since)
        write(self._folder / SNAPSHOT, self.state, self._stand)

    def _apply(self, table: Table, begin: int, end: int) -> int:
        count = 0
        for events in table.events(begin, end):
            self.state.apply(table.source.name, events)
            count += len(events)
        return count

    def _from(self, begin: int | None, to: int) -> int:
        """Where this run goes on."""
        stand, names = self._stand, [table.source.name for table in self._tables]
        set_, away = f"feature set {self.features.name}", f"stop the role learn and move {self._folder} away first"
        followed = max((stand.followed.get(name, 0) for name in names), default=0)
        since = min((stand.since.get(name, 0) for name in names), default=0)
        if followed:
            if to <= max(since, followed):
                return to
            raise errors.Conflict(
                f"{set_}: the log's events are in it up to {said(followed)}, and files can be no more; start the role "
                f"learn, which goes on from there, or, to fill the set from files, {away}"
            )
        if not any(name in stand.since for name in names):
            at = min(to // DAY * DAY, *(table.begin for table in self._tables)) if begin is None else begin
            if at >= to:
                raise errors.BadInput(f"{set_}: --to {said(to)} is not after {said(at)}, where it would begin")
            return at
        if lacking := [name for name in names if name not in stand.since]:
            raise errors.BadInput(f"{set_}: it was filled when {lacking[0]} had no table; to fill it again, {away}")
        if to <= since:
            return to
        if begin is not None and begin > since:
            raise errors.BadInput(
                f"{set_}: files are in it up to {said(since)}; --from {said(begin)} would leave out what arrived in "
                f"between; take --from {said(since)}, or leave it out"
            )
        if begin is not None and begin < min(stand.begun.get(name, since) for name in names):
            earliest = said(min(stand.begun.get(name, since) for name in names))
            raise errors.BadInput(f"{set_}: it was filled from {earliest} on; to fill it from earlier on, {away}")
        return since


def said(at: int) -> str:
    """A moment as the command line takes it."""
    moment = datetime.fromtimestamp(at // SECOND, UTC).replace(microsecond=at % SECOND)
    return moment.isoformat().replace("+00:00", "Z")


def _range(file: Any, number: int) -> tuple[int, int]:
    """Between which arrivals the events of a row group are, microseconds, with a second to spare."""
    group = file.metadata.row_group(number)
    place = next(at for at in range(group.num_columns) if group.column(at).path_in_schema == "arrival")
    found = group.column(place).statistics
    if found is not None and found.has_min_max:
        low, high = found.min, found.max
    else:
        values = pc.min_max(file.read_row_group(number, columns=["arrival"]).column(0)).as_py()
        low, high = values["min"], values["max"]
    return _seconds(low, 0.0) * SECOND - SECOND, _seconds(high, 2.0**33) * SECOND + SECOND


def _seconds(value: Any, otherwise: float) -> int:
    """A time of a file as whole seconds, rounded down; what is none is found when it is read."""
    if isinstance(value, datetime):
        return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() // 1)
    return int((value if isinstance(value, (int, float)) and value == value else otherwise) // 1)
