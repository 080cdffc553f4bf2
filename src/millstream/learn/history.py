"""Bring existing history into the log: users, items, and who was shown what and did what (CSV, TSV, JSONL, Parquet).

A *map* says which column becomes which field: `FIELD=COLUMN[:TYPE][>=NUMBER]`.
- topic `users` or `items`: `id` is required, every other field is an attribute. Types: str, int, float, list (values
  separated by spaces, commas or "|").
- topic `outcomes`: `user`, `item`, `event_time` are required; every other field is a feedback kind whose value is the
  column's number, or 1/0 when a comparison is given (`like=rating>=4`). Each row becomes a request with one candidate,
  its impression, and its feedback, in order of event time (ties stay in the order of the file).

History carries its own arrival stamps, event time plus a declared delay, or nothing computed "as known at the time"
could ever be right. Where rows take a feature set, it is read as of each request's time, by what had arrived before: of
what the log has already, and of this history. Its last event moves event time past the windows of all the join's tasks,
so every row ends as an example of each.

Where there are tenants names stand as the log has them, `acme/42`: a row's request is of the tenant of its user.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.clock import FakeClock
from millstream.errors import BadInput, Missing
from millstream.features import Entities
from millstream.features.events import micros
from millstream.features.pipeline import group_of
from millstream.features.replay import Came, events_from, matrix, whole
from millstream.features.sets import FeatureSet
from millstream.guard.pii import pseudonym
from millstream.guard.tenants import inside, outside, person, tenant_of
from millstream.stream.event import Event, encode
from millstream.stream.log import Log, LogLimits, open_log
from millstream.stream.operator import group
from millstream.types import Entity, Outcome, Served

Row = Mapping[str, Any]
_ENTRY = re.compile(
    r"\s*(?P<field>\w+)\s*=\s*(?P<column>[^:>=]*[^:>=\s])\s*(?::\s*(?P<type>\w+)\s*)?(?:>=\s*(?P<least>-?\d+(?:\.\d+)?)\s*)?"
)
_TYPES: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "list": lambda text: [one for one in re.split(r"[\s,|]+", text) if one],
}


class Field(msgspec.Struct, frozen=True):
    """One entry of a map."""

    column: str
    type: str = "str"
    least: float | None = None

    def of(self, row: Row, where: str) -> Any:
        """The row's value in the declared type; None for an empty or missing cell."""
        if self.column not in row:
            raise BadInput(f"{where}: no column {self.column!r}; the columns are {', '.join(map(str, row))}")
        value = row[self.column]
        if value is None or value == "":
            return None
        try:
            if self.least is not None:
                return float(float(value) >= self.least)
            if isinstance(value, list):  # a column of lists, as Parquet and JSON have them
                return [str(one) for one in value]
            made = _TYPES[self.type](value)
            if isinstance(made, float) and not math.isfinite(made):
                raise ValueError
            return made
        except (TypeError, ValueError, OverflowError):
            wanted = "a number" if self.least is not None else "a finite float" if self.type == "float" else self.type
            raise BadInput(f"{where}: column {self.column!r} should be {wanted}, got {value!r}") from None


def read_map(entries: Sequence[str]) -> dict[str, Field]:
    """`["user=user_id", "like=rating>=4"]` as fields."""
    fields: dict[str, Field] = {}
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None or (match["type"] or "str") not in _TYPES:
            raise BadInput(
                f"map {entry!r}: write FIELD=COLUMN, FIELD=COLUMN:TYPE (TYPE is one of {', '.join(_TYPES)}) "
                "or FIELD=COLUMN>=NUMBER"
            )
        if match["field"] in fields:
            raise BadInput(f"map {entry!r}: {match['field']} is mapped twice; leave one")
        least = float(match["least"]) if match["least"] else None
        fields[match["field"]] = Field(match["column"], match["type"] or "str", least)
    return fields


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, by its ending: .csv, .tsv, .jsonl, .parquet. Unreadable: BadInput."""
    formats = {".csv": _delimited, ".tsv": _delimited, ".jsonl": _json_lines, ".parquet": _parquet}
    if path.suffix not in formats:
        raise BadInput(f"{path}: cannot tell the format; name it .csv, .tsv, .jsonl or .parquet")
    try:
        yield from formats[path.suffix](path)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: {error.object[error.start : error.end]!r} is not UTF-8; convert the file") from None
    except (csv.Error, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise BadInput(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from None


def _delimited(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a byte order mark
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        header = reader.fieldnames or []
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise BadInput(f"{path}: its header names column {twice[0]!r} twice; give each a name of its own")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                cells, names = len(row.get(None, ())), len(reader.fieldnames or ())
                cells += sum(value is not None for name, value in row.items() if name is not None)
                raise BadInput(
                    f"{path} row {number}: {cells} cells where the header names {names} columns; quote or mend it"
                )
            yield row


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path} line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise BadInput(f"{path} line {number}: a row is an object of columns, got {line.strip()[:40]}")
            yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise Missing.extra("parquet", f"reading {path}") from None
    for batch in parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def import_entities(
    folder: Path, limits: LogLimits, topic: str, rows: Iterable[Row], fields: Mapping[str, Field], arrival: float,
    tenants: Collection[str] = (),
) -> int:  # fmt: skip
    """Append users or items (of `tenants`, where there are any) to their topic; how many. Rows before a bad one are
    there: import the mended file again."""
    if "id" not in fields:
        raise BadInput(f"a map for {topic} needs id=COLUMN, got {', '.join(fields) or 'nothing'}")
    count = 0
    with open_log(folder, FakeClock(arrival), limits) as log:
        log.commit("known", topic, {0: 0})  # what is known of somebody is state, not an event: it never gets too old
        writer = log.writer(topic, 0)
        for count, row in enumerate(rows, 1):
            values = {name: field.of(row, f"row {count}") for name, field in fields.items()}
            named = values.pop("id")
            if named is None:
                raise BadInput(f"row {count}: column {fields['id'].column!r} is the id and must not be empty")
            id = _person(str(named), tenants) if topic == "users" else str(named)
            attributes = {name: value for name, value in values.items() if value is not None}
            writer.append_soon(id.encode(), encode(Entity(id=id, attributes=attributes)))
    return count


class _Shown(msgspec.Struct):
    user: str
    item: str
    event_time: float
    feedback: dict[str, float]


def import_outcomes(
    folder: Path,
    limits: LogLimits,
    entities: Entities,
    model: str,
    rows: Iterable[Row],
    fields: Mapping[str, Field],
    *,
    delay_s: float,
    window_s: float,
    features: FeatureSet | None = None,
    tenants: Collection[str] = (),
) -> int:
    """Append history as served events and outcomes, in order of event time; how many rows. `window_s`: event time in
    which every task of the join is done with an impression; `features`: the set that the rows of `entities`' definition
    take; `tenants`: those there are."""
    shown = _in_order(rows, fields, tenants)
    clock = FakeClock(0.0)
    with open_log(folder, clock, limits) as log:
        groups = [group("examples"), *([group_of(features)] if features else [])]
        for name, topic in product(groups, ("served", "outcomes")):  # history is old: retention must wait for these
            if not log.committed(name, topic):
                log.commit(name, topic, {0: 0})
        served, outcomes = log.writer("served", 0), log.writer("outcomes", 0)
        requests = [
            inside(_tenant(one.user, tenants), f"history-{number}") for number, one in enumerate(shown, served.end)
        ]
        kept = _as_known(features, log, shown, requests, delay_s) if features else None
        for number, (request, one) in enumerate(zip(requests, shown, strict=True)):
            clock.jump(one.event_time - clock.now())
            tokens = entities.rows(one.user, [one.item], None if kept is None else kept[number : number + 1])
            event = Served(
                request=request, model=model, version="history", policy=0, arm="history", user=one.user,
                candidates=[one.item], event_time=one.event_time, definition=entities.definition.hash,
                tokens=tokens.tobytes(),
            )  # fmt: skip
            served.append_soon(request.encode(), encode(event))
            clock.jump(delay_s)
            for outcome in _done(one, request, delay_s):
                outcomes.append_soon(request.encode(), encode(outcome))
        if shown:
            clock.jump(window_s)  # no outcome moves time far beyond its own arrival
            end = Outcome(kind="watermark", event_time=shown[-1].event_time + delay_s + window_s)
            outcomes.append_frame([(b"", encode(end))], sync=True)
    return len(shown)


def _done(one: _Shown, request: str, delay_s: float) -> list[Outcome]:
    """The impression, and the feedback after the delay; all of them arrive then."""
    seen = Outcome(request=request, item=one.item, kind="impression", event_time=one.event_time)
    return [seen] + [
        Outcome(request=request, item=one.item, kind=kind, value=value, event_time=one.event_time + delay_s)
        for kind, value in one.feedback.items()
    ]


def _as_known(
    features: FeatureSet, log: Log, shown: Sequence[_Shown], requests: Sequence[str], delay_s: float
) -> NDArray[Any]:
    """The set's matrix [rows, columns], each row as of its own time."""
    news: dict[str, list[tuple[float, Event]]] = {"served": [], "outcomes": []}
    for one, request in zip(shown, requests, strict=True):
        asked = Served(
            request=request, model="", version="", policy=0, arm="", user=one.user, candidates=[], event_time=0.0
        )
        news["served"].append((one.event_time, asked))
        news["outcomes"] += [(one.event_time + delay_s, outcome) for outcome in _done(one, request, delay_s)]

    def came(topic: str) -> Came:
        return chain(whole(log, topic), news.get(topic, ()))

    events = {source.name: events_from(source, came("served"), came(source.log_topic)) for source in features.sources}
    names = {"user": [one.user for one in shown], "item": [one.item for one in shown]}
    return matrix(features, events, names, micros([one.event_time for one in shown], "event_time"))


def _tenant(name: str, tenants: Collection[str]) -> str:
    """Whose a name of the log is; "" where it is no tenant's."""
    tenant = tenant_of(name)
    return tenant if tenant in tenants else ""


def _person(name: str, tenants: Collection[str]) -> str:
    """Somebody as who answers names them in the log."""
    tenant = _tenant(name, tenants)
    return person(tenant, pseudonym(outside(tenant, name)))


def _in_order(rows: Iterable[Row], fields: Mapping[str, Field], tenants: Collection[str]) -> list[_Shown]:
    missing = {"user", "item", "event_time"} - set(fields)
    if missing:
        raise BadInput(f"a map for outcomes needs {', '.join(sorted(missing))} too: FIELD=COLUMN")
    kinds = [name for name in fields if name not in ("user", "item", "event_time")]
    found = []
    for number, row in enumerate(rows, 1):
        where = f"row {number}"
        user, item, time = (fields[name].of(row, where) for name in ("user", "item", "event_time"))
        if user is None or item is None or time is None:
            raise BadInput(f"{where}: user, item and event_time must not be empty")
        numbers = {"event_time": time} | {kind: fields[kind].of(row, where) for kind in kinds}
        values = {
            name: _finite(value, f"{where}: column {fields[name].column!r} ({name})")
            for name, value in numbers.items()
            if value is not None
        }
        found.append(_Shown(_person(str(user), tenants), str(item), values.pop("event_time"), values))
    order = np.argsort([one.event_time for one in found], kind="stable")
    return [found[i] for i in order.tolist()]


def _finite(value: Any, where: str) -> float:
    try:
        if math.isfinite(number := float(value)):
            return number
    except (TypeError, ValueError):
        pass
    raise BadInput(f"{where} should be a finite number (times are unix seconds), got {value!r}")
