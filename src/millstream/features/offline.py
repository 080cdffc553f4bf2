"""Training frames: the features of given rows as they were known at the time of each, from files of events.

Rules of the room:
- Labels in are rows out, in their order, whatever is known of them.
- The events are replayed through the very state that serving keeps, compiled: a row is read between the events that had
  arrived before its time and those that had not. There is no second way to compute a feature.
- Tables are Arrow's inside; what comes as pandas or polars goes back as that.
- Names that are an address or a number of a person become their pseudonyms here, as they did in the log: files that it
  was exported to have them, labels and tables of other origin need not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.features.define import Source
from millstream.features.events import Events, Hashes, Times, hashes_of
from millstream.features.events import micros as micros_of
from millstream.features.feature import Texts
from millstream.features.matrix import Columns
from millstream.features.registry import names_of
from millstream.features.sets import FeatureSet
from millstream.features.state import State
from millstream.guard.pii import pseudonym

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError:
    raise errors.Missing.extra("parquet", "training frames and files of events") from None

FILES_MAX: Final = 100_000
LIMIT: Final = 2**31  # entities: memory is the bound here
_FRONT: Final = r"(?i:^|[^0-9a-f_]|[g-z][a-f]+)"  # not within a hex string, as most of a UUID is
_MAYBE_PERSONAL: Final = (
    r"@|[\x{FF01}-\x{FF5E}\x{00A0}\x{2007}\x{2009}\x{202F}\x{3000}\x{2010}-\x{2014}\x{2212}]"
    r"|\+\(?[0-9]|[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11}|[Ss][Ss][Nn]|(?i:social security)|" + _FRONT + "[0-9]{10}"
)
_IN_GROUPS: Final = (_FRONT + r"[0-9](?:[ .()/-]{0,3}[0-9]){6}", r"[0-9][ .()/-]{1,3}[0-9]")
"""A name in which guard.pii finds something matches the first, or both of these: a look at every name, which may be a
million, would take as long as the replay."""


def training_frame(features: FeatureSet, labels: Any, events: Mapping[str, Any] | None = None) -> Any:
    """`labels` (a pandas or polars frame, or an Arrow table) with the set's columns added: for each of its rows their
    values as of its `event_time` (unix seconds, or timestamps), for the entities that it names.

    `labels` has a column for each kind of entity, those that transforms take of the request, and any others. `events`:
    for each source the same kinds of table, or a path of Parquet files; of a source that is not given, its `table`.
    Columns that are missing, of another type or named like a feature: BadInput.
    """
    table = _table(labels, "labels")
    if both := [name for name in features.columns if name in table.column_names]:
        raise errors.BadInput(
            f"labels have a column {both[0]!r} already, which is a feature of {features.name}; rename it"
        )
    at = _times(table, "event_time", "labels")
    keys = {name: _hashes(table, name, "labels", named=name != "item") for name in features.entities}
    sources = {source.name: source for source in features.sources}
    if unknown := set(events or ()) - set(sources):
        raise errors.BadInput(
            f"feature set {features.name} has no source {min(unknown)!r}; it has {', '.join(sources)}"
        )
    state = State(features, LIMIT)
    came: dict[str, Events] = {}
    for name, source in sources.items():
        given = events_of(source, (events or {}).get(name, source.table or None), features)
        new = state.copies[name].new(given)
        if new is not None and not new.all():
            given = given.take(new)
        came[name] = given
    columns = Columns(features)
    request = {name: _numbers(table, name, "labels") for name in columns.request}
    matrix = columns.make(state.replayed(came, keys, at, at), request, len(at))
    return _like(labels, _with_features(table, features, matrix))


def events_of(source: Source, table: Any, features: FeatureSet | None = None) -> Events:
    """The events of a source in the order in which they came: of a frame, an Arrow table, or a path of Parquet files
    (a file, a folder, or a pattern). Of equal arrivals the column `position` decides if there is one, else the order of
    the table. What names something for `features` is named as the log does. A column that is missing or of another
    type: BadInput."""
    names = names_of(source, features.aggregates if features else ())
    where = f"source {source.name}"
    if table is None:
        raise errors.BadInput(f"{where}: no events were given, and it names no table; give them")
    columns = ["event_time", "arrival", *source.columns]
    found = _read(table, columns, where) if isinstance(table, (str, Path)) else _table(table, where)
    arrivals = _times(found, "arrival", where)
    times = np.minimum(_times(found, "event_time", where), arrivals)
    positions = _numbers(found, "position", where) if "position" in found.column_names else np.zeros(len(arrivals))
    numbers = {name: _numbers(found, name, where) for name, kind in source.columns.items() if kind == "number"}
    texts = {
        name: _hashes(found, name, where, name in names) for name, kind in source.columns.items() if kind == "text"
    }
    events = Events(times, arrivals, numbers, texts)
    if (np.diff(arrivals) >= 0).all() and (np.diff(positions) >= 0).all():
        return events
    return events.take(np.lexsort((positions, arrivals)))


def files_of(path: str | Path, where: str) -> list[Path]:
    """The Parquet files of a path: a file, a folder, or a pattern. None, or more than FILES_MAX: BadInput."""
    text = str(path)
    if any(mark in text for mark in "*?["):
        root = Path(text[: min(text.index(mark) for mark in "*?[" if mark in text)]).parent
        files = sorted(one for one in root.glob(str(Path(text).relative_to(root))) if one.is_file())
    else:
        files = sorted(Path(text).rglob("*.parquet")) if Path(text).is_dir() else [Path(text)]
    if not files or len(files) > FILES_MAX or not files[0].exists():
        raise errors.BadInput(f"{where}: no Parquet files at {text}")
    return files


def _table(frame: Any, where: str) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if hasattr(frame, "to_arrow"):  # polars
        return frame.to_arrow()
    if type(frame).__module__.startswith("pandas"):
        return pa.Table.from_pandas(frame, preserve_index=False)
    raise errors.BadInput(f"{where}: a pandas or polars frame or an Arrow table, got {type(frame).__name__}")


def _like(frame: Any, table: pa.Table) -> Any:
    if isinstance(frame, pa.Table):
        return table
    if hasattr(frame, "to_arrow"):
        import polars

        return polars.from_arrow(table)
    made = table.to_pandas()
    made.index = frame.index
    return made


def _read(path: str | Path, columns: Sequence[str], where: str) -> pa.Table:
    files = files_of(path, where)
    try:
        known = set(pq.read_schema(files[0]).names)
        wanted = [name for name in (*columns, "position") if name in known]
        return pa.concat_tables([pq.read_table(file, columns=wanted, partitioning=None) for file in files])
    except (pa.ArrowException, OSError) as error:
        raise errors.BadInput(f"{where}: {path} cannot be read: {error}") from None


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise errors.BadInput(f"{where}: no column {name!r}; there are {', '.join(table.column_names)}")
    return table.column(name)


def _times(table: pa.Table, name: str, where: str) -> Times:
    """A column of times as microseconds."""
    column = _column(table, name, where)
    if pa.types.is_timestamp(column.type):
        if column.null_count:
            raise errors.BadInput(f"{where}: {name} is missing in {column.null_count} rows; every row has a time")
        return np.asarray(pc.cast(column, pa.timestamp("us"), safe=False).cast(pa.int64()), np.int64)
    return micros_of(_numbers(table, name, where), f"{where}: {name}")


def _numbers(table: pa.Table, name: str, where: str) -> NDArray[np.float64]:
    column = _column(table, name, where)
    kind = column.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    ):
        raise errors.BadInput(f"{where}: {name} is a column of numbers, got {kind}")
    found = np.array(column.cast(pa.float64()).to_numpy(), np.float64)
    found[np.isinf(found)] = np.nan
    return found


def _hashes(table: pa.Table, name: str, where: str, named: bool) -> Hashes:
    """A column of text as hashes; whole numbers are their digits. `named`: as the log names them."""
    column = _column(table, name, where)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_dictionary(kind) or pa.types.is_null(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise errors.BadInput(f"{where}: {name} is a column of text, got {kind}")
    column = _named(column.cast(pa.large_string())) if named else column.cast(pa.large_string())
    chunks = [_spans(chunk) for chunk in column.chunks]
    return np.concatenate([hashes_of(chunk) for chunk in chunks]) if chunks else np.zeros(0, np.uint64)


def _named(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names with pseudonyms for those that are personal."""
    different = pc.unique(column)
    maybe, *groups = (pc.match_substring_regex(different, one) for one in (_MAYBE_PERSONAL, *_IN_GROUPS))
    looked_at = different.filter(pc.or_(maybe, pc.and_(*groups))).to_pylist()
    changed = {name: kept for name in looked_at if (kept := pseudonym(name)) is not name}
    if not changed:
        return column
    at = pc.index_in(column, pa.array(changed, pa.large_string()))
    return pc.coalesce(pc.take(pa.array(changed.values(), pa.large_string()), at), column)


def _spans(array: pa.Array) -> Texts:
    """An Arrow array as it lies; what is null is empty."""
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    starts = ends[:-1]
    finishes = (
        np.where(array.is_null().to_numpy(zero_copy_only=False), starts, ends[1:]) if array.null_count else ends[1:]
    )
    return Texts(np.frombuffer(data or b"", np.uint8), starts, finishes, check=False)


def _with_features(table: pa.Table, features: FeatureSet, matrix: NDArray[Any]) -> pa.Table:
    types = {"FP32": np.float32, "FP64": np.float64, "UINT32": np.uint32}
    names = iter(features.columns)
    at = 0
    for one in features.features:
        for _ in range(one.width):
            column = np.ascontiguousarray(matrix[:, at]).astype(types[one.datatype])
            table = table.append_column(next(names), pa.array(column))
            at += 1
    return table
