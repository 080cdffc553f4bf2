"""What the SQL of a feature set answers: on DuckDB, by hand and beside docs/features.md done slowly; and its text.

`python tests/features/test_sql.py` writes the golden files anew."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb
import oracle
import pyarrow as pa
import pytest
import sqlglot
import streams
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_cases import CASES, ORDERS, SENT, Case, Table, came, of, tables_of

from millstream import errors
from millstream.features.define import Aggregate, Cross, Ratio, Sequence, Source, Transform
from millstream.features.sets import FeatureSet
from millstream.features.sql import DIALECTS, sql

GOLDEN = Path(__file__).parent / "golden"
TYPES = {"text": pa.string(), "double": pa.float64(), "bigint": pa.int64()}


def small() -> FeatureSet:
    """The set whose text is kept."""
    clicks = of("clicks_7d", SENT, "count", window="7d", where="value > 0.5 and id != 'x'")
    return FeatureSet(
        name="small",
        features=(
            Ratio(name="rate", over="clicks_7d", under="all", prior=(1, 20)),
            of("mean_1h", ORDERS, "mean", "value", key="item", window="1h"),
            of("last", ORDERS, "last", "word", datatype="UINT32"),
            of("often", ORDERS, "top_k", "value", n=2, window="1d"),
            of("faded", ORDERS, "decay", "value", half_life="1h", where="""word not in ('a', "it's")"""),
            of("std", ORDERS, "std", "value", window="7d"),
            Sequence("history", ORDERS, key="user", column="item", n=3, window="30d"),
        ),
        parts=(clicks, of("all", SENT, "count")),
    )


def run(features: FeatureSet, tables: dict[str, Table]) -> dict[str, list[Any]]:
    """The answer's columns, in the order of labels."""
    with duckdb.connect(config={"threads": 2}) as connection:
        for name, (columns, rows) in tables.items():
            arrays = [pa.array([row[column] for row in rows], TYPES[kind]) for column, kind in columns]
            connection.register(name, pa.table(arrays, names=[column for column, _ in columns]))
        found = connection.sql(f"SELECT * FROM ({sql(features)}) ORDER BY row").to_arrow_table()
    return {name: found[name].to_pylist() for name in found.column_names}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_values_worked_out_by_hand(case: Case) -> None:
    tables = tables_of(case.features, case.tables, case.labels)
    found = run(case.features, tables)
    assert list(found) == [name for name, _ in tables["labels"][0]] + list(case.features.columns)
    for name, _ in tables["labels"][0]:  # labels in are labels out
        assert found[name] == [row[name] for row in tables["labels"][1]]
    assert set(case.wanted) == set(case.features.columns)
    for name, wanted in case.wanted.items():
        assert found[name] == [one if isinstance(one, (str, type(None))) else approx(one) for one in wanted], name


def approx(value: float) -> Any:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def in_order(text: str) -> float:
    """A token that has the order of texts: of two that are equally frequent SQL takes the smaller text."""
    return float(sum(other < text for other in (*streams.WORDS, *streams.KEYS, *streams.MANY, "e1", "e2")) + 1)


@given(streams.examples(), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_set_is_as_the_page_says(
    example: tuple[FeatureSet, list[int], list[streams.Row]], data: st.DataObject
) -> None:
    features, times, rows = example
    of_source: dict[str, list[dict[str, Any]]] = {one.name: [] for one in features.sources}
    for name, event in rows:
        of_source[name].append(event)
    keys = st.sampled_from((*streams.KEYS[:2], streams.KEYS[0], None, "nobody"))
    labels = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {"event_time": st.sampled_from([at / streams.SECOND for at in times]), "user": keys, "item": keys}
            ),
            min_size=1,
            max_size=6,
        )
    )
    as_the_page_says(features, of_source, labels)


def test_a_long_stream_is_as_the_page_says() -> None:
    """Every op over every kind of window, with much that is late."""
    features = every_op(("1h", "7d", "lifetime"))
    times, rows = streams.long_stream(7, features, 400, 20)
    of_source: dict[str, list[dict[str, Any]]] = {one.name: [] for one in features.sources}
    for name, event in rows:
        of_source[name].append(event)
    labels = [
        {"event_time": at / streams.SECOND, "user": user, "item": item}
        for at in times
        for user, item in zip((*streams.KEYS, None), (*reversed(streams.KEYS), "u1"), strict=True)
    ]
    as_the_page_says(features, of_source, labels)


def every_op(windows: tuple[str, ...]) -> FeatureSet:
    outcomes, orders = streams.sources("1h")
    found = []
    for window in windows:
        for op in (*streams.NUMBER_OPS, *streams.BOTH_OPS, *streams.BARE_OPS):
            more: dict[str, Any] = {} if op == "decay" else {"window": window}
            more |= {"n": 3} if op in oracle.SEVERAL else {}
            more |= {"half_life": "1h"} if op == "decay" else {}
            more |= {"column": "score"} if op not in streams.BARE_OPS else {"where": "kind != 'like'"}
            found.append(of(f"of_user_{op}_{window}", outcomes, op, **more))
            more |= {"column": "amount"} if op in streams.NUMBER_OPS else {}
            more |= {"column": "label"} if op in streams.BOTH_OPS else {"where": "amount > 0"}
            more |= {"datatype": "UINT32"} if op in streams.BOTH_OPS and op != "approx_distinct" else {}
            found.append(of(f"of_item_{op}_{window}", orders, op, key="item", **more))
    return FeatureSet(name="every", features=tuple(found))


def as_the_page_says(
    features: FeatureSet, of_source: dict[str, list[dict[str, Any]]], labels: list[dict[str, Any]]
) -> None:
    found = run(features, tables_of(features, of_source, labels))
    assert found["event_time"] == [label["event_time"] for label in labels]
    for one in features.aggregates:
        names = [one.name] if one.width == 1 else [f"{one.name}_{at}" for at in range(one.width)]
        for at, label in enumerate(labels):
            got = oracle.encoded(one, [found[name][at] for name in names], in_order)
            events = of_source[one.source.name]
            wrong = oracle.wrong(one, got, events, label[one.of] or "", label["event_time"], in_order)
            assert not wrong and exact(one, got, events, label), wrong or (one, got)


def exact(one: Aggregate, got: list[float], events: list[oracle.Event], label: dict[str, Any]) -> bool:
    """What is a sketch elsewhere is exact here."""
    if one.op not in ("top_k", "approx_distinct", "quantile"):
        return True
    truth = oracle.value(one, events, label[one.of] or "", label["event_time"], in_order)
    wanted = oracle.encoded(one, truth, in_order)
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_text_is_as_it_was(dialect: str) -> None:
    text = sql(small(), dialect)
    assert text == sql(small(), dialect)
    assert text == (GOLDEN / f"small.{dialect}.sql").read_text(), "run this file as a script if the change is meant"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("case", CASES[:4], ids=[case.name for case in CASES[:4]])
def test_every_dialect_reads_its_text(case: Case, dialect: str, caplog: pytest.LogCaptureFixture) -> None:
    text = sql(case.features, dialect, labels="somewhere.labels")
    tree = sqlglot.parse_one(text, read=dialect, error_level=sqlglot.ErrorLevel.RAISE)
    assert [name.lower() for name in tree.named_selects] == ["*", *case.features.columns]
    assert not caplog.records  # SQLGlot says so where a dialect lacks something
    for absent in ("NULLS ", "LEAST", "VARIANCE"):  # what dialects do not have, or have differently
        assert absent not in text


def test_what_sql_cannot_say_is_refused() -> None:
    total, word = of("total", ORDERS, "sum", "value"), of("word", ORDERS, "last", "word", datatype="UINT32")
    with pytest.raises(errors.Misconfigured, match=r"crossed is a Cross, .* compute it from that"):
        sql(FeatureSet(name="x", features=(Cross(name="crossed", left="word", right="word"),), parts=(word,)))
    doubled = Transform(name="doubled", function=_twice, inputs=("total",))
    with pytest.raises(errors.Misconfigured, match="doubled is a Transform"):
        sql(FeatureSet(name="x", features=(total,), parts=(doubled,)))
    one = FeatureSet(name="x", features=(total,))
    with pytest.raises(errors.Misconfigured, match="no dialect 'oracle'; there are duckdb"):
        sql(one, "oracle")
    for name in ("labels; DROP TABLE x", "", "a.b.c.d", '"labels"'):
        with pytest.raises(errors.Misconfigured, match="names no table"):
            sql(one, labels=name)
    placed = Source(name="placed", columns={"user": "text", "position": "number"})
    with pytest.raises(errors.Misconfigured, match="source placed: a column is named position"):
        sql(FeatureSet(name="x", features=(of("count", placed, "count"),)))


def _twice(columns: Any) -> Any:
    return 2 * columns["total"]


def test_a_text_cannot_leave_its_quotes() -> None:
    evil = "x') OR 1 = 1 --\\"
    features = FeatureSet(
        name="evil",
        features=(
            of("those", ORDERS, "count", where=f"word == {evil!r}"),
            Sequence("seen", ORDERS, key="user", column="word", n=2, where=f"word in ({evil!r}, 'b')"),
        ),
    )
    events = [came(float(at), user="u", word=word) for at, word in enumerate((evil, "a", "b"))]
    found = run(features, tables_of(features, {"orders": events}, [{"user": "u", "event_time": 9.0}]))
    assert (found["those"], found["seen_0"], found["seen_1"]) == ([1], ["b"], [evil])


def write_golden() -> None:
    """The golden files as they are now."""
    GOLDEN.mkdir(exist_ok=True)
    for dialect in DIALECTS:
        (GOLDEN / f"small.{dialect}.sql").write_text(sql(small(), dialect))


if __name__ == "__main__":
    write_golden()
