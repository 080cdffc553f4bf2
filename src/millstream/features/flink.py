"""The same definition as Flink SQL: a job that follows the events and says every value as of every hop.

Rules of the room:
- docs/features.md is the law. Flink's time is *arrival*, not the event's own: an event is in the hopping windows that
  its arrival is in, and counts in those whose far edge its time is not before. So what is late counts in every window
  that still holds its time, from its arrival on, as everywhere else; Flink itself drops only what comes after a later
  arrival by more than the watermark allows.
- At a whole hop T the rule of windows is `T - window <= time < T`, and `T` is a window's end. Windows are longer by one
  hop than what they count, so a key's last row is the one that says that nothing is left.
- Flink's time is of milliseconds, and of no zone. Hops are whole seconds, so an event is on the right side of T; order
  and edges are decided by whole microseconds.
- What Flink has no exact words for is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from millstream import errors
from millstream.features import sql_ops
from millstream.features.define import Aggregate, Feature, Ratio, Source, span
from millstream.features.sets import FeatureSet
from millstream.features.sql import LARGEST, checked, micros
from millstream.features.sql_ops import number

Options = Mapping[str, Mapping[str, str]]
DIALECT: Final = "flink"
_REFUSED: Final = {
    "top_k": "it would count every value of every window",
    "quantile": "it would keep every value of every window, and its own PERCENTILE interpolates",
    "decay": "its value changes while no event comes",
}
_SECOND: Final = 1_000_000
_UNITS: Final = {"DAY": 86400, "HOUR": 3600, "MINUTE": 60, "SECOND": 1}
_EPOCH: Final = "TIMESTAMP '1970-01-01 00:00:00.000'"
_AT: Final = (  # a difference in seconds is an INT, which ends in 2038
    f"CAST(TIMESTAMPDIFF(DAY, {_EPOCH}, window_end) AS BIGINT) * 86400 + "
    "TIMESTAMPDIFF(SECOND, FLOOR(window_end TO DAY), window_end)"
)
_BY_HOP: Final = "GROUP BY _key, window_start, window_end"
_SHIFT, _WIDTH = 20_000_000_000_000_000, 53
_PLACE: Final = (  # a text that has the order of events: of 17, 17 and 19 digits
    f"CAST(_time + {_SHIFT} AS STRING) || CAST(_arrival + {_SHIFT} AS STRING) || "
    "LPAD(CAST(COALESCE(_position, 0) AS STRING), 19, '0') AS _place"
)


class Table(msgspec.Struct, frozen=True):
    """What is answered together, at the same times: features of one entity over one window (`span`, `hop`:
    microseconds, 0 without end). `lists`: the values that came latest, each once, or the latest of all time."""

    name: str
    entity: str
    span: int
    hop: int
    lists: bool
    features: tuple[Feature, ...]
    aggregates: tuple[Aggregate, ...]
    by_name: dict[str, Feature]

    @property
    def known(self) -> str:
        """The view of its events."""
        return f"_known_{self.name}"


def flink(features: FeatureSet, options: Options | None = None, disorder: str = "1s") -> str:
    """A script for Flink's SQL client (2.3): see `statements`."""
    said = (
        f"-- Features of {features.name} ({features.hash}), for Flink SQL. Fill in every WITH.\n"
        "-- A table of events has the columns of its source, event_time and arrival (unix seconds), and position,\n"
        "-- which rises in the order of arrival (of Kafka: BIGINT METADATA FROM 'offset' VIRTUAL). Others wait for a\n"
        "-- topic that is quiet, as long as SET 'table.exec.source.idle-timeout' says.\n\n"
    )
    return said + "".join(f"{one};\n\n" for one in statements(features, options, disorder)).rstrip("\n") + "\n"


def statements(features: FeatureSet, options: Options | None = None, disorder: str = "1s") -> list[str]:
    """The statements, in order, without semicolons: tables of events and of answers, views, and one statement set.

    `options`: WITH of a table by its name, the connector and its settings; of a table without, an example for Kafka.
    `disorder`: by how much arrivals may come out of order; what is further behind, Flink leaves out.

    A table of answers is named SET_ENTITY_WINDOW and has the entity, `event_time` (T, unix seconds) and the columns of
    the features of that window. Windows: a row for every hop T at which an event of the entity arrived within the
    window or the hop before it; the values are those as of T, what is missing is NULL, and the last row is that of an
    empty window. `lifetime`: a row for every event, as of the millisecond after its arrival. A list over `lifetime`,
    and a `distinct_n`, have a table each, and the former has no T: it is updated as events come.

    What it takes: an event is in as many windows as a window has hops, and one more (13 of an hour, 43 of 7 days).
    Lists keep the values of their windows, and copies are told by an entry for every id, for ever.

    A `Transform`, a `Cross`, an op that Flink cannot compute exactly, a `Ratio` of parts of different tables:
    Misconfigured."""
    checked(features)
    given = options or {}
    tables = _tables(features)
    _check_columns(tables)
    named = [one.name for one in features.sources] + [one.name for one in tables]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise errors.Misconfigured(f"feature set {features.name}: Flink would have two tables {twice!r}; rename one")
    if unknown := set(given) - set(named):
        raise errors.Misconfigured(f"flink: options for {sorted(unknown)}; the tables are {', '.join(named)}")
    made = []
    for source in features.sources:
        made += [_source(source, given.get(source.name), disorder), *_events(source)]
    for table in tables:
        made += [_answers(table, given.get(table.name)), _known(table)]
    inserts = "".join(f"INSERT INTO {quoted(one.name)}{_answer(one)};\n" for one in tables)
    return [*made, f"EXECUTE STATEMENT SET\nBEGIN\n{inserts}END"]


def quoted(name: str) -> str:
    return f"`{name}`"


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def interval(length: int) -> str:
    """A span of whole seconds, microseconds, as a literal: of one unit where two digits do, which is all that Flink
    takes by itself."""
    seconds = length // _SECOND
    for unit, size in _UNITS.items():
        if seconds % size == 0 and seconds // size < 100:
            return f"INTERVAL '{seconds // size}' {unit}"
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"INTERVAL '{days} {clock}' DAY({len(str(days))}) TO SECOND"


# --- what is answered together ---------------------------------------------------------------------------------------


def _tables(features: FeatureSet) -> list[Table]:
    """Features by entity and window; lists that cannot be computed beside others have a table each."""
    found: dict[tuple[object, ...], list[Feature]] = {}
    for one in features.features:
        found.setdefault(_place_of(features, one), []).append(one)
    tables: list[Table] = []
    for (entity, _, _, alone), group in found.items():
        made_of = {part.name: part for one in group for part in _parts(features, one)}
        first = next(iter(made_of.values()))
        name = f"{features.name}_{entity}_{first.window}" + (f"_{alone}" if alone else "")
        if any(one.name == name for one in tables):  # a window of sketches has hops of its own
            name += f"_{first.hop // _SECOND}s"
        made = tuple(made_of.values())
        tables.append(Table(name, first.of, first.span, first.hop, bool(alone), tuple(group), made, features.by_name))
    return tables


def _place_of(features: FeatureSet, one: Feature) -> tuple[object, ...]:
    """(entity, window, hop, its own name where it has a table of its own): of all that a feature is made of."""
    places = {(part.of, part.span, part.hop, part.name if _alone(part) else ""): part for part in _parts(features, one)}
    if len(places) > 1:
        said = ", ".join(f"{part.name} of {part.of} over {part.window}" for part in places.values())
        raise errors.Misconfigured(
            f"feature set {features.name}: {one.name} is made of {said}, which Flink knows as of different times; ask "
            "for its parts, and divide where they are read"
        )
    return next(iter(places))


def _parts(features: FeatureSet, one: Feature) -> list[Aggregate]:
    """The aggregates that a feature is made of."""
    where = f"feature set {features.name}: {one.name}"
    if not isinstance(one, Aggregate):
        return [part for name in one.inputs for part in _parts(features, features.by_name[name])]
    if one.op in _REFUSED:
        raise errors.Misconfigured(f"{where} is a {one.op}, which Flink cannot keep: {_REFUSED[one.op]}; leave it out")
    if one.op == "since" and not one.span:
        raise errors.Misconfigured(
            f"{where} is a since without a window, whose value changes while no event comes; give it a window"
        )
    return [one]


def _op(one: Aggregate) -> str:
    """A list of a single latest value is a `last`."""
    return "last" if one.op in ("last_n", "distinct_n") and one.n == 1 else one.op


def _alone(one: Aggregate) -> bool:
    return _op(one) == "distinct_n" or (_op(one) == "last_n" and not one.span)


def _check_columns(tables: list[Table]) -> None:
    for table in tables:
        names = [table.entity, "event_time", *(name for one in table.features for name in _names(one))]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise errors.Misconfigured(f"flink: table {table.name} would have two columns {twice!r}; rename one")


# --- tables and events -----------------------------------------------------------------------------------------------


def _with(options: Mapping[str, str]) -> str:
    return "WITH (\n" + ",\n".join(f"  {text(name)} = {text(value)}" for name, value in options.items()) + "\n)"


def _source(source: Source, options: Mapping[str, str] | None, disorder: str) -> str:
    if options is None:
        options = {"connector": "kafka", "topic": source.log_topic}
        options |= {"properties.bootstrap.servers": "FILL IN", "scan.startup.mode": "earliest-offset"}
        options |= {"format": "json"}
    kinds = {"text": "STRING", "number": "DOUBLE"}
    columns = [f"  {quoted(name)} {kinds[kind]}," for name, kind in source.columns.items()]
    arrived = f"TIMESTAMPADD(MILLISECOND, ({micros('arrival')}) / 1000, {_EPOCH})"
    lines = [
        f"CREATE TEMPORARY TABLE {quoted(source.name)} (",
        *columns,
        "  `event_time` DOUBLE,\n  `arrival` DOUBLE,\n  `position` BIGINT,",
        f"  _when AS COALESCE({arrived}, {_EPOCH}),",
        f"  WATERMARK FOR _when AS _when - {interval(span(disorder, 'disorder'))}",
        f") {_with(options)}",
    ]
    return "\n".join(lines)


def _events(source: Source) -> list[str]:
    """What counts as events: times in microseconds, what is missing NULL, no copies."""
    columns = ", ".join(map(quoted, source.columns))
    read = [
        f"NULLIF({quoted(name)}, '') AS {quoted(name)}"
        if kind == "text"
        # Of 0 and -0, which Flink tells apart where it counts what is different, one is left
        else f"CASE WHEN {quoted(name)} = 0e0 THEN 0e0 WHEN ABS({quoted(name)}) <= {LARGEST} THEN {quoted(name)} END "
        f"AS {quoted(name)}"
        for name, kind in source.columns.items()
    ]
    times = [f"{micros('event_time')} AS _said", f"{micros('arrival')} AS _arrival", "`position` AS _position, _when"]
    rows, first = quoted(f"_read_{source.name}"), quoted(f"_first_{source.name}")
    whole = "_said IS NOT NULL AND _arrival IS NOT NULL"
    made = [f"CREATE TEMPORARY VIEW {rows} AS{_list([*read, *times])}\nFROM {quoted(source.name)}"]
    if source.id:  # those without an id are no copies of one another, and need not come together
        name = quoted(source.id)
        taken = f"{columns}, _said, _arrival, _position, _when"
        before = f"LAG(_arrival) OVER (PARTITION BY {name} ORDER BY _when) AS _before"
        made.append(
            f"CREATE TEMPORARY VIEW {first} AS\nSELECT {taken}\nFROM {rows}\nWHERE {name} IS NULL\nUNION ALL\n"
            f"SELECT {taken}\nFROM (\n  SELECT *, {before}\n  FROM {rows}\n  WHERE {name} IS NOT NULL AND {whole}\n"
            f") AS _all\nWHERE _before IS NULL OR _arrival - _before > {span(source.again)}"
        )
        rows = first
    time = "CASE WHEN _said < _arrival THEN _said ELSE _arrival END AS _time"
    events = f"SELECT {columns}, {time}, _arrival, _position, _when\n  FROM {rows}\n  WHERE {whole}"
    view = quoted(f"_events_{source.name}")
    made.append(f"CREATE TEMPORARY VIEW {view} AS\nSELECT *, {_PLACE}\nFROM (\n  {events}\n) AS _all")
    return made


def _list(columns: list[str], before: str = "") -> str:
    """A SELECT, a column a line."""
    return f"\n{before}SELECT\n" + ",\n".join(f"{before}  {one}" for one in columns)


def _inputs(table: Table) -> dict[tuple[str, str, str], str]:
    """What is taken of an event, by source, key and text of the expression: the name of its column."""
    found: dict[tuple[str, str, str], str] = {}
    for one in table.aggregates:
        found.setdefault(_input(one), f"_x{len(found)}")
    return found


def _input(one: Aggregate) -> tuple[str, str, str]:
    """(source, key, what of an event that counts is aggregated; NULL of any other)."""
    value = {"count": "1", "since": "_time"}.get(one.op, quoted(one.column))
    if _op(one) in ("last", "last_n"):
        value = f"_place || {_as_text(one)}"
    if _op(one) == "distinct_n":
        value = _as_text(one)
    if one.condition:
        value = f"CASE WHEN {sql_ops.condition(one.condition, one.source.columns, quoted)} THEN {value} END"
    return one.source.name, one.key, value


def _as_text(one: Aggregate) -> str:
    column = quoted(one.column)
    return column if one.source.columns[one.column] == "text" else f"CAST({column} AS STRING)"


def _kind(one: Aggregate) -> str:
    if one.op in ("count", "since"):
        return "BIGINT"
    listed = one.op in ("last", "last_n", "distinct_n") or one.source.columns.get(one.column) == "text"
    return "STRING" if listed else "DOUBLE"


def _known(table: Table) -> str:
    """The events of all sources that are of the entity, with what is aggregated of them."""
    inputs = _inputs(table)
    kinds = {_input(one): _kind(one) for one in table.aggregates}
    parts = []
    for source, key in dict.fromkeys((source, key) for source, key, _ in inputs):
        taken = [
            f"{what if (of, by) == (source, key) else f'CAST(NULL AS {kinds[of, by, what]})'} AS {name}"
            for (of, by, what), name in inputs.items()
        ]
        columns = [f"{quoted(key)} AS _key", "_time, _arrival, _place, _when", *taken]
        parts.append(f"{_list(columns)}\nFROM {quoted('_events_' + source)}\nWHERE {quoted(key)} IS NOT NULL")
    return f"CREATE TEMPORARY VIEW {quoted(table.known)} AS" + "\nUNION ALL".join(parts)


# --- answers ---------------------------------------------------------------------------------------------------------


def _names(one: Feature) -> list[str]:
    return [one.name] if one.width == 1 else [f"{one.name}_{at}" for at in range(one.width)]


def _answers(table: Table, options: Mapping[str, str] | None) -> str:
    """Rows are added, each of an entity and a T; only what is updated has a key that Flink knows of."""
    updated = table.lists and not table.span
    if options is None:
        options = {"connector": "upsert-kafka" if updated else "kafka", "topic": table.name}
        options |= {"properties.bootstrap.servers": "FILL IN", "key.format": "json"}
        options |= {} if updated else {"key.fields": table.entity}
        options |= {"value.format": "json"}
    lines = [f"{quoted(table.entity)} STRING"] + ([] if updated else ["`event_time` DOUBLE"])
    for one in table.features:
        tokens = isinstance(one, Aggregate) and one.tokens
        lines += [f"{quoted(name)} {'STRING' if tokens else 'DOUBLE'}" for name in _names(one)]
    lines += [f"PRIMARY KEY ({quoted(table.entity)}) NOT ENFORCED"] if updated else []
    columns = ",\n".join(f"  {line}" for line in lines)
    return f"CREATE TEMPORARY TABLE {quoted(table.name)} (\n{columns}\n) {_with(options)}"


def _answer(table: Table) -> str:
    if table.lists:
        return _listed_in_window(table) if table.span else _listed_for_ever(table)
    return _in_window(table) if table.span else _for_ever(table)


def _in_window(table: Table) -> str:
    """A row for every key and hop."""
    inputs = _inputs(table)
    made = [f"{_aggregated(one, inputs[_input(one)], '')} AS {quoted(one.name)}" for one in table.aggregates]
    hops = _hops(table, list(inputs.values()))
    return _of(table, f"{_list([f'_key, {_AT} AS _at', *made], '  ')}\n  FROM ({hops}\n  ) AS _all\n  {_BY_HOP}")


def _of(table: Table, rows: str) -> str:
    """The answers, of rows of `_key`, `_at` and what the values are made of."""
    at = "CAST(_at AS DOUBLE)" if table.span else "CAST(_at AS DOUBLE) / 1000e0"
    return f"{_list(['_key', at, *_values(table)])}\nFROM ({rows}\n) AS _all"


def _hops(table: Table, names: list[str]) -> str:
    """Events beside every window that their arrival is in; what is of a time before the far edge is NULL there."""
    far = f"({_AT} - {table.span // _SECOND}) * {_SECOND} AS _far"
    inside = [f"CASE WHEN _time >= _far THEN {name} END AS {name}" for name in names]
    hop = f"{interval(table.hop)}, {interval(table.span + table.hop)}"
    return (
        f"{_list(['_key, window_start, window_end, _place', *inside], '    ')}\n    FROM (\n"
        f"      SELECT *, {far}\n      FROM TABLE(HOP(TABLE {quoted(table.known)}, DESCRIPTOR(_when), {hop}))\n"
        "    ) AS _all"
    )


def _for_ever(table: Table) -> str:
    """A row for every event, with all that arrived up to its millisecond."""
    inputs = _inputs(table)
    so_far = " OVER _so_far"
    made = [f"{_aggregated(one, inputs[_input(one)], so_far)} AS {quoted(one.name)}" for one in table.aggregates]
    window = "PARTITION BY _key ORDER BY _when RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"
    rows = _list(["_key, _arrival / 1000 + 1 AS _at", *made], "  ")
    return _of(table, f"{rows}\n  FROM {quoted(table.known)}\n  WINDOW _so_far AS ({window})")


def _aggregated(one: Aggregate, x: str, over: str) -> str:
    """What of the events makes the value: `_values` says the rest."""
    match _op(one):
        case "count":
            return f"COUNT({x}){over}"
        case "approx_distinct":
            return f"COUNT(DISTINCT {x}){over}"
        case "mean":
            return f"SUM({x}){over} / NULLIF(CAST(COUNT({x}){over} AS DOUBLE), 0e0)"
        case "var" | "std":
            return f"VAR_POP({x}){over}"
        case "since" | "last":
            return f"MAX({x}){over}"
        case "last_n":
            return f"ARRAY_SORT(ARRAY_AGG({x}) FILTER (WHERE {x} IS NOT NULL), FALSE)"
    return f"{one.op.upper()}({x}){over}"


def _values(table: Table) -> list[str]:
    """The table's columns, in order."""

    def value(one: Feature) -> str:
        name = quoted(one.name)
        if isinstance(one, Ratio):
            over, under = (value(table.by_name[part]) for part in one.inputs)
            return f"(({over} + {number(one.prior[0])}) / NULLIF({under} + {number(one.prior[1])}, 0e0))"
        assert isinstance(one, Aggregate)
        match _op(one):
            case "count" | "approx_distinct":
                return f"CAST({name} AS DOUBLE)"
            case "since":
                return f"CAST(_at * {_SECOND} - {name} AS DOUBLE) / 1e6"
            case "var" | "std":  # made of sums, it may be a little under 0
                least = f"CASE WHEN {name} < 0 THEN 0e0 ELSE {name} END"
                return least if one.op == "var" else f"SQRT({least})"
            case "last":
                return _told(one, f"SUBSTRING({name} FROM {_WIDTH + 1})")
        return name

    columns: list[str] = []
    for one in table.features:
        if isinstance(one, Aggregate) and _op(one) in ("last_n", "distinct_n"):
            columns += _listed(one, quoted(one.name))
        else:
            columns.append(value(one))
    return columns


def _listed(one: Aggregate, array: str) -> list[str]:
    """The columns of a list, of an array of places and values."""
    taken = [f"SUBSTRING({array}[{at}] FROM {_WIDTH + 1})" for at in range(1, one.n + 1)]
    return [_told(one, f"CASE WHEN CARDINALITY({array}) >= {at} THEN {x} END") for at, x in enumerate(taken, 1)]


def _told(one: Aggregate, said: str) -> str:
    """A value of what was made text of it."""
    return said if one.source.columns[one.column] == "text" else f"CAST({said} AS DOUBLE)"


def _listed_in_window(table: Table) -> str:
    """Every value with the place of its latest event first, then the latest of these."""
    (one,) = table.aggregates
    each = (
        "\n    SELECT _key, window_start, window_end, MAX(_place) || _x0 AS _x\n"
        f"    FROM ({_hops(table, ['_x0'])}\n    ) AS _all\n    {_BY_HOP}, _x0"
    )
    made = f"ARRAY_SORT(ARRAY_AGG(_x) FILTER (WHERE _x IS NOT NULL), FALSE) AS {quoted(one.name)}"
    return _of(table, f"{_list([f'_key, {_AT} AS _at', made], '  ')}\n  FROM ({each}\n  ) AS _all\n  {_BY_HOP}")


def _listed_for_ever(table: Table) -> str:
    """The n latest, which are all that Flink keeps; updated as they change."""
    (one,) = table.aggregates
    rows, value = f"FROM {quoted(table.known)}\n    WHERE _x0 IS NOT NULL", f"SUBSTRING(_x0 FROM {_WIDTH + 1})"
    rows = f"SELECT _key, _place, _x0\n    {rows}"
    if _op(one) == "distinct_n":
        rows, value = rows.replace("_place", "MAX(_place) AS _place") + "\n    GROUP BY _key, _x0", "_x0"
    taken = [_told(one, f"MAX(CASE WHEN _nth = {at} THEN {value} END)") for at in range(1, one.n + 1)]
    order = "ROW_NUMBER() OVER (PARTITION BY _key ORDER BY _place DESC) AS _nth"
    placed = f"\n  SELECT _key, _x0, {order}\n  FROM (\n    {rows}\n  ) AS _all\n"
    return f"{_list(['_key', *taken])}\nFROM ({placed}) AS _all\nWHERE _nth <= {one.n}\nGROUP BY _key"
