"""What Flink answers to the SQL of a feature set, on a mini-cluster: every row, beside docs/features.md done slowly.

`python tests/features/test_flink.py` writes the golden file anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import streams
from sql_cases import DAY, MICRO, ORDERS, SENT, came, of
from test_sql import GOLDEN, approx

from millstream import errors
from millstream.cli import main
from millstream.features.define import Aggregate, Cross, Ratio, Sequence, Source, Transform
from millstream.features.flink import flink, interval, statements
from millstream.features.sets import FeatureSet

SECOND = 1_000_000
EVIL = "x') OR 1 = 1; --\\`\"ü"
Rows = dict[str, list[dict[str, Any]]]


def small() -> FeatureSet:
    """The set whose text is kept."""
    clicks = of("clicks_7d", SENT, "count", window="7d", where="value > 0.5 and id != 'x'")
    return FeatureSet(
        name="small",
        features=(
            Ratio(name="rate", over="clicks_7d", under="orders_7d", prior=(1, 20)),
            of("mean_1h", ORDERS, "mean", "value", key="item", window="1h"),
            of("last", ORDERS, "last", "word", datatype="UINT32"),
            of("std", ORDERS, "std", "value", where="""word not in ('a', "it's")"""),
            of("seen", ORDERS, "distinct_n", "word", n=2, window="1d", datatype="UINT32"),
            Sequence("history", ORDERS, key="user", column="item", n=3),
        ),
        parts=(clicks, of("orders_7d", ORDERS, "count", window="7d")),
    )


def page() -> FeatureSet:
    """The set of the page."""
    outcomes, hour = streams.sources("1h")[0], {"window": "1h"}
    clicks = of("clicks_7d", outcomes, "count", key="item", window="7d", where="kind == 'click'")
    shown = of("shown_7d", outcomes, "count", key="item", window="7d", where="kind != 'click'")
    rate = Ratio(name="avg_click_rate_7d", over="clicks_7d", under="shown_7d", prior=(1, 20))
    user_clicks = of("user_clicks_1h", outcomes, "count", where="kind == 'click'", **hour)
    history = Sequence("history", outcomes, key="user", column="item", n=3, where="kind == 'click'")
    return FeatureSet(name="page", features=(rate, user_clicks, history), parts=(clicks, shown))


def every() -> FeatureSet:
    """Every op that Flink has, over windows and for ever, of two sources for one entity."""
    outcomes, orders = streams.sources("1h")
    found = []
    for window in ("1h", "lifetime"):
        for op in ("count", "sum", "mean", "var", "std", "min", "max", "last", "last_n", "approx_distinct", "since"):
            if op == "since" and window == "lifetime":
                continue
            more: dict[str, Any] = {"window": window} | ({"n": 3} if op == "last_n" else {})
            column = "" if op in streams.BARE_OPS else "score"
            found.append(of(f"{op}_{window}", outcomes, op, column, where="kind != 'like'", **more))
        word: dict[str, Any] = {"window": window, "datatype": "UINT32", "key": "who", "entity": "user"}
        found.append(of(f"label_{window}", orders, "last", "label", **word))
        found.append(of(f"labels_{window}", orders, "distinct_n", "label", n=2, **word))
        found.append(of(f"scores_{window}", outcomes, "distinct_n", "value", n=2, window=window))
    listed = tuple(f"v{number}" for number in range(40))
    found.append(of("listed", orders, "count", key="who", entity="user", window="1h", where=f"label not in {listed}"))
    found.append(of("sum_orders", orders, "sum", "amount", key="who", entity="user", window="1h", where="item == 'u1'"))
    found.append(of("latest", outcomes, "distinct_n", "value", window="1h", datatype="FP64"))
    ratio = Ratio(name="both", over="sum_1h", under="listed", prior=(0, 2), datatype="FP64")
    more_of_it = Ratio(name="of_both", over="both", under="latest", prior=(1, 1), datatype="FP64")
    return FeatureSet(name="every", features=(*found, more_of_it), parts=(ratio,))


def evil() -> FeatureSet:
    """Texts that look like the end of one, and what is equal."""
    where = f"word in ({EVIL!r}, 'b')"
    return FeatureSet(
        name="evil",
        features=(
            of("those", ORDERS, "count", where=f"word == {EVIL!r}", window="90d"),
            Sequence("seen", ORDERS, key="user", column="word", n=2, where=where, window="90d"),
            of("values", ORDERS, "distinct_n", "value", n=2, window="90d"),
            of("different", ORDERS, "approx_distinct", "value", window="90d"),
        ),
    )


# --- on Flink --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(on_flink: Callable[[], Any], tmp_path: Path) -> Callable[[FeatureSet, Rows], Rows]:
    """The rows of every table of answers of a set, over these events; of one that is updated, those that are left."""
    return lambda features, events: _answers(on_flink(), features, events, tmp_path / features.name)


def _answers(flink: Any, features: FeatureSet, events: Rows, folder: Path) -> Rows:
    options: dict[str, dict[str, str]] = {}
    for source in features.sources:
        file = folder / "events" / f"{source.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(one) + "\n" for one in events[source.name]))
        options[source.name] = {"connector": "filesystem", "path": str(file), "format": "json"}
    for name in tables(features):
        # Only this format has words for rows that are taken back
        options[name] = {"connector": "filesystem", "path": str(folder / name), "format": "debezium-json"}
    for statement in statements(features, options):
        result = flink.executeSql(statement)
    getattr(result, "await")()
    return {name: _left(folder / name) for name in tables(features)}


def _left(folder: Path) -> list[dict[str, Any]]:
    """What was written and not taken back."""
    found: list[dict[str, Any]] = []
    for file in sorted(folder.iterdir()):
        for line in file.read_text().splitlines():
            said = json.loads(line)
            if said["op"] == "c":
                found.append(said["after"])
            else:
                found.remove(said["before"])
    return found


def tables(features: FeatureSet) -> list[str]:
    """The names of its tables of answers, as the script has them."""
    inserted = [line for line in flink(features).splitlines() if line.startswith("INSERT INTO")]
    return [line.split("`")[1] for line in inserted]


def stream(features: FeatureSet, count: int, days: int) -> Rows:
    """Events with copies, late ones, clocks ahead and pieces missing, and one that is no event."""
    found: Rows = {one.name: [] for one in features.sources}
    for name, event in streams.long_stream(11, features, count, days)[1]:
        found[name].append(event)
    for events in found.values():
        events.insert(len(events) // 2, {"user": "u1", "who": "u1", "item": "u1", "event_time": DAY})
        events[:] = [event | {"position": at} for at, event in enumerate(events)]
    return found


def as_the_page_says(features: FeatureSet, events: Rows, answers: Rows) -> int:
    """Compare every row of every table; how many there are."""
    whole = {name: [event for event in of_source if "arrival" in event] for name, of_source in events.items()}
    by_columns = {tuple(rows[0]): rows for rows in answers.values()}
    assert len(by_columns) == len(answers) and set(answers) == set(tables(features))
    seen: set[str] = set()
    for columns, rows in by_columns.items():
        parts = [one for one in features.features if set(_names(one)) <= set(columns)]
        aggregates = _aggregates(features, parts)
        seen |= {one.name for one in parts}
        of_key = {(one.name, key): _of_key(one, whole, key) for one in aggregates for key in streams.KEYS}
        entity = aggregates[0].of
        expected = {key: _times(aggregates, of_key, key) for key in streams.KEYS}
        listed = "event_time" not in columns
        got = [(row[entity], None if listed else oracle.micros(row["event_time"])) for row in rows]
        if listed:  # the rows that are left: as of the end
            last = max(time for times in expected.values() for time in times)
            assert sorted(got) == sorted(
                (key, None) for key, times in expected.items() if _any(aggregates[0], of_key[aggregates[0].name, key])
            )
        elif aggregates[0].span:
            assert sorted(got) == sorted((key, time) for key, times in expected.items() for time in times)
        else:  # events of one millisecond are a row each, all the same
            assert set(got) == {(key, time) for key, times in expected.items() for time in times}
        for key in () if listed else expected:  # what comes last of a key is what is so now
            times = [time for name, time in got if name == key]
            assert times == sorted(times), key
        for row in rows:
            at = (last if listed else oracle.micros(row["event_time"])) / SECOND
            for one in aggregates:
                if one in parts:
                    said = [row[name] for name in _names(one)]
                    found = oracle.encoded(one, said, oracle.plain)
                    wrong = oracle.wrong(one, found, of_key[one.name, row[entity]], row[entity], at, oracle.plain)
                    assert not wrong and _exact(one, said, of_key[one.name, row[entity]], row[entity], at), wrong
            for one in parts:
                if isinstance(one, Ratio):
                    wanted = _ratio(features, one, of_key, row[entity], at)
                    assert row[one.name] == (None if wanted is None else approx(wanted)), (one.name, at)
    assert seen == {one.name for one in features.features}
    return sum(len(rows) for rows in answers.values())


def _names(one: Any) -> list[str]:
    return [one.name] if one.width == 1 else [f"{one.name}_{at}" for at in range(one.width)]


def _aggregates(features: FeatureSet, parts: list[Any]) -> list[Aggregate]:
    found: dict[str, Aggregate] = {}
    for one in parts:
        inner = _aggregates(features, [features.by_name[name] for name in one.inputs])
        found |= {part.name: part for part in ([one] if isinstance(one, Aggregate) else inner)}
    return list(found.values())


def _ratio(
    features: FeatureSet, one: Any, events: dict[tuple[str, str], list[oracle.Event]], key: str, at: float
) -> float | None:
    """The value of a number, or of one number over another."""
    if not isinstance(one, Ratio):
        found = oracle.value(one, events[one.name, key], key, at)
        found = found[0] if isinstance(found, list) else found
        assert found is None or isinstance(found, float)
        return found
    over, under = (_ratio(features, features.by_name[name], events, key, at) for name in one.inputs)
    if over is None or under is None or under + one.prior[1] == 0:
        return None
    return (over + one.prior[0]) / (under + one.prior[1])


def _of_key(one: Aggregate, events: Rows, key: str) -> list[oracle.Event]:
    """What counts as events of a key: nothing of a value is different if the rest is left out."""
    found = oracle.firsts(one.source, events[one.source.name])
    return [event for event in found if oracle.filled(one.source, event, one.key) == key]


def _any(one: Aggregate, events: list[oracle.Event]) -> bool:
    """Whether it has a value at the end of time."""
    return bool(events) and bool(oracle.of_window(one, events, events[0][one.key], 4e9))


def _times(aggregates: list[Aggregate], events: dict[tuple[str, str], list[oracle.Event]], key: str) -> set[int]:
    """The times, microseconds, as of which a key has a row."""
    found: set[int] = set()
    for one in aggregates:
        for event in events[one.name, key]:
            arrival = oracle.micros(event["arrival"])
            if one.span:
                first = arrival // one.hop * one.hop + one.hop
                found.update(range(first, first + one.span + one.hop, one.hop))
            else:
                found.add(arrival // 1000 * 1000 + 1000)
    return found


def _exact(one: Aggregate, said: list[Any], events: list[oracle.Event], key: str, at: float) -> bool:
    """What is a sketch elsewhere is exact here, and text is text."""
    if one.op != "approx_distinct" and not one.tokens:
        return True
    truth = oracle.value(one, events, key, at)
    return said == (truth if isinstance(truth, list) else [truth])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("features", "count", "days"), [(page(), 400, 12), (every(), 250, 2)], ids=["page", "every"])
def test_every_row_is_as_the_page_says(
    features: FeatureSet, count: int, days: int, run: Callable[[FeatureSet, Rows], Rows]
) -> None:
    events = stream(features, count, days)
    assert as_the_page_says(features, events, run(features, events)) > 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_edges_and_texts_are_exact(run: Callable[[FeatureSet, Rows], Rows]) -> None:
    """Microseconds beside the edges of hops, and what SQL could take for its own."""
    far = DAY - 90 * 86400.0
    times = [(DAY, None), (DAY - MICRO, None), (far, DAY - 1), (far - MICRO, DAY - 1), (DAY + 5, DAY - MICRO)]
    words = (EVIL, "b", "b", EVIL, "a")
    events = [
        came(*pair, user="u1", word=word, value=value)
        for pair, word, value in zip(times, words, (0.0, -0.0, 0.0, -0.0, 2.0), strict=True)
    ]
    rows = sorted(events, key=lambda event: event["arrival"])
    given = {"orders": [event | {"position": at} for at, event in enumerate(rows)]}
    answers = run(evil(), given)
    assert as_the_page_says(evil(), given, answers) > 10
    (found,) = (row for row in answers["evil_user_90d"] if row["event_time"] == DAY)
    assert (found["those"], found["seen_0"], found["seen_1"]) == (0, "b", "b")
    (found,) = (row for row in answers["evil_user_90d"] if row["event_time"] == DAY + 86400)
    assert (found["those"], found["seen_0"], found["seen_1"]) == (1, EVIL, "b")


# --- its text --------------------------------------------------------------------------------------------------------


def test_the_text_is_as_it_was() -> None:
    assert flink(small()) == (GOLDEN / "small.flink.sql").read_text(), (
        "run this file as a script if the change is meant"
    )


def test_tables_take_the_connectors_that_are_given() -> None:
    given = {"orders": {"connector": "filesystem", "path": "/it's/here"}}
    made = flink(small(), given, disorder="5m")
    assert "  'connector' = 'filesystem',\n  'path' = '/it''s/here'\n" in made and "'topic' = 'orders'" not in made
    assert made.count("AS _when - INTERVAL '5' MINUTE") == 2 and "'topic' = 'sent'" in made
    with pytest.raises(
        errors.Misconfigured, match=r"options for \['other'\]; the tables are sent, orders, small_user_7d"
    ):
        flink(small(), {"other": {}})


def test_spans_are_literals_that_flink_reads() -> None:
    spans = {5: "'5' SECOND", 99: "'99' SECOND", 120: "'2' MINUTE", 65 * 60: "'65' MINUTE", 7 * 86400: "'7' DAY"}
    spans |= {101: "'0 00:01:41' DAY(1) TO SECOND", 172 * 3600: "'7 04:00:00' DAY(1) TO SECOND"}
    spans |= {370 * 86400: "'370 00:00:00' DAY(3) TO SECOND"}
    assert {seconds: interval(seconds * SECOND) for seconds in spans} == {
        seconds: f"INTERVAL {said}" for seconds, said in spans.items()
    }


def test_a_text_cannot_leave_its_quotes() -> None:
    made = flink(evil())
    assert made.count("'" + EVIL.replace("'", "''") + "'") == made.count("OR 1 = 1") == 2
    for script in (flink(small()), flink(every())):
        assert script.count("'") % 2 == 0 and script.count("(") == script.count(")")


def test_what_flink_cannot_say_is_refused() -> None:
    def refused(what: str, *features: Any, parts: Any = ()) -> None:
        with pytest.raises(errors.Misconfigured, match=what):
            flink(FeatureSet(name="x", features=features, parts=parts))

    total, word = of("total", ORDERS, "sum", "value"), of("word", ORDERS, "last", "word", datatype="UINT32")
    hour = of("hour", ORDERS, "count", window="1h")
    refused("crossed is a Cross, which SQL", Cross(name="crossed", left="word", right="word"), parts=(word,))
    refused("doubled is a Transform", Transform(name="doubled", function=_twice, inputs=("total",)), parts=(total,))
    refused("often is a top_k, which Flink cannot keep", of("often", ORDERS, "top_k", "value", n=2))
    refused("half is a quantile, .* PERCENTILE interpolates", of("half", ORDERS, "quantile", "value"))
    refused("faded is a decay", of("faded", ORDERS, "decay", "value", half_life="1h"))
    refused("ago is a since without a window", of("ago", ORDERS, "since"))
    refused("share is made of hour of user over 1h, total of user over lifetime",
            Ratio(name="share", over="hour", under="total"), parts=(hour, total))  # fmt: skip
    refused("two columns 'event_time'", of("event_time", ORDERS, "count", window="1h"))
    placed = Source(name="placed", columns={"user": "text", "position": "number"})
    refused("source placed: a column is named position", of("count", placed, "count"))
    beside = Source(name="x_user_1h", columns={"user": "text"})
    refused("two tables 'x_user_1h'", hour, of("other", beside, "count", window="1d"))


def _twice(columns: Any) -> Any:
    return 2 * columns["total"]


def test_the_command_line_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "features.py"
    file.write_text(
        "from millstream.features import Aggregate, FeatureSet, Source\n"
        'pages = Source(name="pages", columns={"user": "text"})\n'
        'seen = Aggregate(name="seen", source=pages, key="user", op="count", window="7d")\n'
        'small = FeatureSet(name="small", features=(seen,))\n'
    )
    asked = ["features", "sql", "small", "--dialect", "flink", "--definitions", str(file)]
    main(asked)
    assert "INSERT INTO `small_user_7d`\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--labels: Flink answers for every entity at every hop"):
        main([*asked, "--labels", "labels"])


def write_golden() -> None:
    """The golden file as it is now."""
    (GOLDEN / "small.flink.sql").write_text(flink(small()))


if __name__ == "__main__":
    write_golden()
