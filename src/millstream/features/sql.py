"""The same definition as one statement of SQL: what a warehouse answers where the stream and the files are not at hand.

Rules of the room:
- docs/features.md is the law. What follows from exact arithmetic is exact here too: times are whole microseconds, the
  far edge is found without division, nothing is ever subtracted from a sum.
- Values depend on the entity and on T alone, so they are computed once for each such pair (an *ask*) and joined back:
  labels in are labels out, whatever they are, and no row number decides anything.
- The text is plain SQL-92 with window functions, written once; SQLGlot turns it into dialects. What a dialect would
  answer differently (order of NULLs, LEAST of NULL, partitions by numbers, division by zero) is not used.
- Names made up here begin with an underscore, which no name of a source, entity or feature does; all are quoted.

How the values themselves are computed is in sql_ops.py.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, get_args

from millstream import errors
from millstream.features import sql_ops
from millstream.features.define import Aggregate, Ratio, Source, span
from millstream.features.sets import FeatureSet
from millstream.features.sql_ops import Look, number, quoted

Dialect = Literal["duckdb", "bigquery", "spark", "hive", "snowflake"]
DIALECTS: Final[tuple[str, ...]] = get_args(Dialect)
TIME_LIMIT: Final = 9007199254
"""Unix seconds, either side of 1970: what lies beyond is no time, as where events are read."""
LARGEST: Final = "1.7976931348623157e308"
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_$-]*(\.[A-Za-z_][A-Za-z0-9_$-]*){0,2}")
_COUNTS: Final = ("count", "approx_distinct")


def sql(features: FeatureSet, dialect: str = "duckdb", labels: str = "labels") -> str:
    """One SELECT: every row and column of the table `labels`, as they are, and behind them the set's `columns` as of
    each row's time. Missing is NULL; numbers are doubles, whatever datatype they are stored as in serving.

    `labels`: a text column for each of the set's entities, named as the entity; `event_time` (double, unix seconds),
    which is T; any other columns. A table has no order: bring a column to order by. For each source a table of its
    name: its columns, `event_time` and `arrival` (double, unix seconds) and `position` (bigint), by which events of
    one arrival came one after the other; rows without both times are no events.

    Unlike in serving, text stays text (serving makes tokens of it); `top_k` and `approx_distinct` are exact, `quantile`
    is the exact value that the sketch comes near; of texts that are equally frequent `top_k` takes the smaller text,
    since tokens are not there. Snowflake's names are the upper-case ones that unquoted names mean there.

    A `Transform`, a `Cross`, a dialect that is not among DIALECTS: Misconfigured. Without SQLGlot: Missing."""
    if dialect not in DIALECTS:
        raise errors.Misconfigured(f"sql: no dialect {dialect!r}; there are {', '.join(DIALECTS)}; and flink")
    if not _TABLE.fullmatch(labels):
        raise errors.Misconfigured(f"sql: labels = {labels[:80]!r} names no table; write labels, or schema.labels")
    checked(features)
    return _in_dialect(_statement(features, labels), dialect)


def checked(features: FeatureSet) -> None:
    """Refuse what no SQL can compute: Misconfigured."""
    for one in features.ordered:
        where = f"feature set {features.name}: {one.name}"
        if not isinstance(one, (Aggregate, Ratio)):
            raise errors.Misconfigured(
                f"{where} is a {type(one).__name__}, which SQL cannot compute (it is Python, or needs tokens); ask for "
                "a set of what it is made of, and compute it from that"
            )
    for source in features.sources:
        if "position" in source.columns:
            raise errors.Misconfigured(
                f"source {source.name}: a column is named position, by which SQL knows the order of events; rename it"
            )


def _statement(features: FeatureSet, labels: str) -> str:
    table = ".".join(map(quoted, labels.split(".")))
    parts: dict[str, str] = {}
    for at, source in enumerate(features.sources, 1):
        of_source = [one for one in features.aggregates if one.source.name == source.name]
        parts |= _events(f"_{at}_{source.name}", source, of_source)
    for at, entity in enumerate(features.entities, 1):
        parts[f"_asks_{at}_{entity}"] = (
            f"SELECT DISTINCT {quoted(entity)} AS _key, {micros('event_time')} AS _at FROM {table} "
            f"WHERE {quoted(entity)} <> '' AND ABS(event_time) < {TIME_LIMIT}"
        )
    looks = _looks(features)
    for look in looks:
        parts |= sql_ops.parts(look)
    ctes = ", ".join(f"{quoted(name)} AS ({text})" for name, text in parts.items())
    columns = _columns(features, {one.name: look for look in looks for one in look.aggregates})
    joins = " ".join(
        f"LEFT JOIN {quoted(look.name)} ON {quoted(look.name)}._key = _labels.{quoted(look.entity)} "
        f"AND {quoted(look.name)}._at = {micros('_labels.event_time')}"
        for look in looks
    )
    return f"WITH {ctes} SELECT _labels.*, {', '.join(columns)} FROM {table} AS _labels {joins}"


def micros(column: str) -> str:
    """Whole microseconds; NULL of what is no time."""
    return f"CASE WHEN ABS({column}) < {TIME_LIMIT} THEN CAST(ROUND({column} * 1e6) AS BIGINT) END"


def _events(suffix: str, source: Source, aggregates: list[Aggregate]) -> dict[str, str]:
    """The events of a source: times in microseconds, what is missing NULL, no copies; and then those of each key."""
    used = {source.id, *(name for one in aggregates for name in one.looks_at)}
    columns = [quoted(name) for name in source.columns if name in used]
    read = [
        f"NULLIF({quoted(name)}, '') AS {quoted(name)}"
        if kind == "text"
        # NaN compares in every dialect as larger than all, or not at all
        else f"CASE WHEN ABS(CAST({quoted(name)} AS DOUBLE)) <= {LARGEST} THEN CAST({quoted(name)} AS DOUBLE) END "
        f"AS {quoted(name)}"
        for name, kind in source.columns.items()
        if name in used
    ]
    times = f"{micros('event_time')} AS _said, {micros('arrival')} AS _arrival, position AS _position"
    parts = {f"_read{suffix}": f"SELECT {', '.join([*read, times])} FROM {quoted(source.name)}"}
    whole, rows = "_said IS NOT NULL AND _arrival IS NOT NULL", f"_read{suffix}"
    if source.id:
        name = quoted(source.id)
        before = f"LAG(_arrival) OVER (PARTITION BY {name} ORDER BY _arrival, _position)"
        parts[f"_copies{suffix}"] = f"SELECT *, {before} AS _before FROM {quoted(rows)} WHERE {whole}"
        whole, rows = (
            f"{name} IS NULL OR _before IS NULL OR _arrival - _before > {span(source.again)}",
            f"_copies{suffix}",
        )
    time = "CASE WHEN _said < _arrival THEN _said ELSE _arrival END AS _time"
    parts[f"_events{suffix}"] = (
        f"SELECT {', '.join([*columns, time])}, _arrival, _position FROM {quoted(rows)} WHERE {whole}"
    )
    for at, key in enumerate(dict.fromkeys(one.key for one in aggregates), 1):
        order = f"ROW_NUMBER() OVER (PARTITION BY {quoted(key)} ORDER BY _time, _arrival, _position) AS _rank"
        ranked = [order] if any(one.key == key and sql_ops.by_rank(one) for one in aggregates) else []
        parts[f"_of{suffix}_{at}_{key}"] = (
            f"SELECT {quoted(key)} AS _key, {', '.join([*columns, '_time', '_arrival', *ranked])} "
            f"FROM {quoted('_events' + suffix)} WHERE {quoted(key)} IS NOT NULL"
        )
    return parts


def _looks(features: FeatureSet) -> list[Look]:
    """What is looked at together: one way of computing, over one window, of one source and key, for one entity."""
    found: dict[tuple[object, ...], list[Aggregate]] = {}
    for one in features.aggregates:
        way, shared = sql_ops.way_of(one), sql_ops.shared(one)
        found.setdefault((one.source.name, one.key, one.of, way, one.span, one.hop, shared), []).append(one)
    sources, entities = {}, {name: at for at, name in enumerate(features.entities, 1)}
    for at, source in enumerate(features.sources, 1):
        of_source = (one.key for one in features.aggregates if one.source.name == source.name)
        sources[source.name] = (at, list(dict.fromkeys(of_source)))
    looks = []
    for number_of, group in enumerate(found.values(), 1):
        first = group[0]
        at, keys = sources[first.source.name]
        looks.append(
            Look(
                number=number_of,
                way=sql_ops.way_of(first),
                entity=first.of,
                asks=f"_asks_{entities[first.of]}_{first.of}",
                events=f"_of_{at}_{first.source.name}_{keys.index(first.key) + 1}_{first.key}",
                span=first.span,
                hop=first.hop,
                aggregates=tuple(group),
            )
        )
    return looks


def _columns(features: FeatureSet, looks: dict[str, Look]) -> list[str]:
    """The set's columns, in order."""

    def value(name: str) -> str:
        one = features.by_name[name]
        if isinstance(one, Ratio):
            over, under = value(one.over), value(one.under)
            return f"(({over} + {number(one.prior[0])}) / NULLIF({under} + {number(one.prior[1])}, 0e0))"
        found = f"{quoted(looks[name].name)}.{quoted(name)}"
        return f"COALESCE({found}, 0e0)" if isinstance(one, Aggregate) and one.op in _COUNTS else found

    columns = []
    for one in features.features:
        if one.width == 1:
            columns.append(f"{value(one.name)} AS {quoted(one.name)}")
        else:
            several = [quoted(f"{one.name}_{at}") for at in range(one.width)]
            columns += [f"{quoted(looks[one.name].name)}.{name} AS {name}" for name in several]
    return columns


def _in_dialect(statement: str, dialect: str) -> str:
    try:
        import sqlglot
        from sqlglot import exp
    except ImportError:
        raise errors.Missing.extra("sql", "printing features as SQL") from None
    tree: Any = sqlglot.parse_one(statement)
    order = sqlglot.Dialect.get_or_raise(dialect).NULL_ORDERING
    for one in tree.find_all(exp.Ordered):
        # No NULL is ever among what order decides: ask for what the dialect does by itself, so that nothing is written
        small_first = order == "nulls_are_small" and not one.args.get("desc")
        one.set("nulls_first", small_first or (order == "nulls_are_large" and bool(one.args.get("desc"))))
    for one in list(tree.find_all(exp.VariancePop)):
        one.replace(exp.Anonymous(this="VAR_POP", expressions=[one.this]))  # every dialect's name for it
    for one in tree.find_all(exp.Identifier):
        if dialect == "snowflake":
            one.set("this", one.name.upper())
        one.set("quoted", True)
    return str(tree.sql(dialect, pretty=True, max_text_width=110)) + "\n"
