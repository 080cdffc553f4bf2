"""Training frames: labels in are rows out, and every value is what serving would have read at that time."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import row

from millstream import errors
from millstream.features import Aggregate, Cross, FeatureSet, Ratio, Source, Transform
from millstream.features.events import Events, keys_of, tokens_of
from millstream.features.matrix import Columns
from millstream.features.offline import events_of, training_frame
from millstream.features.online import Reader, Writer
from millstream.features.state import State
from millstream.store.rows import RowFile

CLICKS = Source(
    name="clicks", columns={"user": "text", "item": "text", "kind": "text", "value": "number", "id": "text"}, id="id"
)
VIEWS = Source(name="views", columns={"user": "text", "seconds": "number"})


def of(name, op, source=CLICKS, key="user", **more):
    return Aggregate(name=name, source=source, key=key, op=op, **{"datatype": "FP64"} | more)


def price_of_night(columns):
    return np.where(columns["hour"] > 20, columns["mean"], 0.0)


FEATURES = FeatureSet(
    name="frame",
    features=(
        of("count_1h", "count", window="1h"),
        of("liked", "count", key="item", where="kind == 'like'"),
        of("mean", "mean", column="value", window="1d"),
        of("last", "last", column="item", datatype="UINT32"),
        of("history", "last_n", column="item", n=2, datatype="UINT32"),
        of("seconds", "sum", VIEWS, column="seconds", window="7d"),
        of("ago", "since", key="item"),
        of("recent", "decay", key="item", column="value", half_life="1h"),
        Ratio(name="rate", over="liked", under="count_1h", prior=(1, 2), datatype="FP64"),
        Cross(name="pair", left="last", right="last"),
        Transform(name="night", function=price_of_night, inputs=("mean",), request=("hour",), datatype="FP64"),
    ),
)
HOUR = 3600.0
TIMES = st.integers(0, 200).map(lambda n: 1_700_000_000.0 + n * 600.0)
MAYBE = st.sampled_from(["a", "b", None])


@st.composite
def streams(draw):
    """Events of both sources, in the order in which they came, and labels in any order."""
    arrivals = sorted(draw(st.lists(TIMES, max_size=30)))
    clicks = [
        {
            "user": draw(MAYBE), "item": draw(MAYBE), "kind": draw(st.sampled_from(["like", "view"])),
            "value": draw(st.sampled_from([None, 1.0, -2.5])), "id": draw(st.sampled_from([None, "x", "y"])),
            "arrival": arrival, "event_time": arrival + draw(st.sampled_from([0.0, -HOUR, -90 * HOUR, 50.0])),
        }
        for arrival in arrivals
    ]  # fmt: skip
    views = [
        {"user": draw(MAYBE), "seconds": 3.0, "arrival": arrival, "event_time": arrival}
        for arrival in sorted(draw(st.lists(TIMES, max_size=10)))
    ]
    labels = draw(
        st.lists(st.tuples(TIMES, st.sampled_from(["a", "b", "nobody", None]), MAYBE), min_size=1, max_size=12)
    )
    return clicks, views, labels


def tables(clicks, views, labels):
    def frame(source, rows):
        types = {"number": pa.float64(), "text": pa.string()}
        fields = [(name, types[kind]) for name, kind in source.columns.items()]
        return pa.Table.from_pylist(rows, pa.schema([*fields, ("arrival", pa.float64()), ("event_time", pa.float64())]))

    wanted = pa.table({
        "event_time": [at for at, _, _ in labels], "user": pa.array([user for _, user, _ in labels], pa.string()),
        "item": pa.array([item for _, _, item in labels], pa.string()),
        "hour": [float(i % 24) for i in range(len(labels))],
        "label": list(range(len(labels))),
    })  # fmt: skip
    return wanted, {"clicks": frame(CLICKS, clicks), "views": frame(VIEWS, views)}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(streams())
def test_a_frame_says_what_a_recomputation_says_and_loses_no_label(stream):
    labels, events = tables(*stream)
    frame = training_frame(FEATURES, labels, events)
    assert frame.column("label").to_pylist() == list(range(len(stream[2])))
    for at, (time, user, item) in enumerate(stream[2]):
        wanted = row(
            FEATURES_KNOWN, {"clicks": stream[0], "views": stream[1]}, {"user": user or "", "item": item or ""}, time,
            token=lambda text: int(tokens_of([text])[0]),
        )  # fmt: skip
        for name, value in wanted.items():
            np.testing.assert_allclose(frame.column(name)[at].as_py(), value, rtol=1e-9, atol=1e-9, err_msg=name)


FEATURES_KNOWN = FeatureSet(name="known", features=FEATURES.features[:9])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(streams())
def test_a_frame_and_a_state_that_is_fed_and_read_on_the_way_have_the_same_bits(stream):
    clicks, views, labels = stream
    table, events = tables(clicks, views, labels)
    frame, columns = training_frame(FEATURES, table, events), Columns(FEATURES)
    for at, (time, user, item) in enumerate(labels):
        state = State(FEATURES)
        for source, rows in ((CLICKS, clicks), (VIEWS, views)):
            state.apply(source.name, Events.of(source, [one for one in rows if one["arrival"] < time]))
        when = round(time * 1e6)
        values = {name: state.read(name, keys_of([key or ""]), when) for name, key in (("user", user), ("item", item))}
        read = columns.make(values, {"hour": np.array([float(at % 24)])}, 1)
        np.testing.assert_array_equal([frame.column(name)[at].as_py() for name in FEATURES.columns], read[0])


def single(name, op, **more):
    return of(name, op, **{"datatype": "FP32"} | more)


MEAN, COUNT = single("mean", "mean", column="value"), single("count", "count", window="1d")
SINGLES = (
    Ratio(name="rate", over="mean", under="count", prior=(1, 20)),
    MEAN,
    single("ago", "since"),
    single("recent", "decay", column="value", half_life="1h"),
    Transform(name="most", function=lambda of: of["rate"] * 1e30, inputs=("rate",)),
    Transform(name="third", function=lambda of: of["recent"] / 3, inputs=("recent",)),
)
PLAIN = FeatureSet(name="plain", features=SINGLES, parts=(COUNT,))
MIXED = FeatureSet(
    name="mixed", features=(*SINGLES, of("last", "last", column="item", datatype="UINT32")), parts=(COUNT,)
)
MOVING = FeatureSet(name="moving", features=(SINGLES[2], SINGLES[3], MIXED.features[-1]))


def served(features, rows, users, when, folder):
    """The matrix that serving reads, out of a file of rows."""
    state = State(features)
    with RowFile.create(folder / "user.rows", state.entities["user"].plan.bytes, features.hash) as store:
        writer = Writer(state, {"user": store})
        writer.apply("clicks", Events.of(CLICKS, rows))
        writer.write(when)
        return Reader(features, {"user": store}).read({"user": users}, when).values


@pytest.mark.parametrize("features", [PLAIN, MIXED, MOVING], ids=lambda one: one.name)
def test_serving_and_training_have_the_same_bits_whatever_else_is_in_the_set(features, tmp_path):
    users, random = [*(f"u{n}" for n in range(20)), "nobody"], np.random.default_rng(5)
    values = random.lognormal(3, 4, 400) * random.choice([-1, 1], 400)
    values[random.random(400) < 0.02] = 1e300  # an FP32 holds none of this
    rows = [
        {"user": users[n % 20], "item": f"i{n % 7}", "value": value, "arrival": 1e9 + n, "event_time": 1e9 + n * 0.9}
        for n, value in enumerate(values.tolist())
    ]
    when = 1_000_003_333_333_333
    matrix = served(features, rows, users, when, tmp_path)
    labels = pa.table({"user": users, "event_time": [when / 1e6] * len(users)})
    table = pa.Table.from_pylist([{"kind": "like", "id": None} | row for row in rows]).cast(
        pa.schema([(name, pa.string()) for name in ("kind", "id", "user", "item")]
                  + [(name, pa.float64()) for name in ("value", "arrival", "event_time")])
    )  # fmt: skip
    frame = training_frame(features, labels, {"clicks": table})
    assert matrix.dtype == (np.float32 if features is PLAIN else np.float64)
    for at, name in enumerate(features.columns):
        np.testing.assert_array_equal(matrix[:, at], frame.column(name).to_numpy(), err_msg=name)
        assert not np.isinf(matrix[:, at]).any(), name
        assert frame.column(name).type == (pa.uint32() if name == "last" else pa.float32())


def test_what_fp32_does_not_hold_is_missing(tmp_path):
    features = FeatureSet(
        name="large",
        features=(
            single("last", "last", column="value"), single("total", "sum", column="value"),
            of("exact", "last", column="value"), single("recent", "decay", column="value", half_life="1h"),
            Ratio(name="share", over="exact", under="last", prior=(0, 1), datatype="FP64"),
            Ratio(name="large", over="exact", under="one"), single("one", "count"),
        ),
    )  # fmt: skip
    rows = [
        {"user": user, "value": value, "arrival": 100.0, "event_time": 100.0}
        for user, value in (("over", 1e300), ("under", -4e38), ("held", 3.4e38))
    ]
    with np.errstate(all="raise"):
        over, under, held = served(features, rows, ["over", "under", "held"], 101_000_000, tmp_path)
    nan = float("nan")
    np.testing.assert_array_equal(over[[0, 1, 2, 3, 4, 5]], [nan, nan, 1e300, nan, nan, nan])
    np.testing.assert_array_equal(under[[0, 1, 2, 4, 5]], [nan, nan, -4e38, nan, nan])
    assert held[0] == held[1] == held[5] == np.float32(3.4e38) and held[2] == 3.4e38


def small():
    clicks = [
        {"user": "a", "item": "b", "kind": "like", "value": 1.0, "id": None, "arrival": 100.0, "event_time": 100.0}
    ]
    return tables(clicks, [], [(101.0, "a", "b"), (100.0, "a", "b"), (101.0, "nobody", None)])


def test_pandas_gives_pandas_with_its_index_and_polars_gives_polars():
    labels, events = small()
    arrow = training_frame(FEATURES, labels, events)
    frame = labels.to_pandas().set_index(pd.Index([7, 3, 5]))
    made = training_frame(FEATURES, frame, {name: one.to_pandas() for name, one in events.items()})
    assert isinstance(made, pd.DataFrame) and made.index.tolist() == [7, 3, 5]
    assert made["count_1h"].tolist() == [1.0, 0.0, 0.0] == arrow.column("count_1h").to_pylist()
    polars = training_frame(FEATURES, pl.from_arrow(labels), events)
    assert isinstance(polars, pl.DataFrame) and polars["count_1h"].to_list() == [1.0, 0.0, 0.0]


def test_times_may_be_timestamps_and_entities_whole_numbers():
    clicks = Source(name="clicks", columns={"user": "text"})
    features = FeatureSet(name="x", features=(of("n", "count", clicks),))
    when = pa.array([1_000_000, 2_000_000], pa.timestamp("us", tz="UTC"))
    events = pa.table({"user": [5, 5], "event_time": when, "arrival": when})
    labels = pa.table({"user": pa.array(["5", "5"]), "event_time": pa.array([1_500, 3_000], pa.timestamp("ms"))})
    assert training_frame(features, labels, {"clicks": events}).column("n").to_pylist() == [1.0, 2.0]


def test_events_come_from_parquet_by_day(tmp_path):
    labels, events = small()
    for day in ("2023-01-01", "2023-01-02"):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(events["clicks"], tmp_path / f"day={day}" / "part-0.parquet")
    pq.write_table(events["views"], tmp_path / "views.parquet")
    given = {"clicks": str(tmp_path / "day=*" / "*.parquet"), "views": tmp_path / "views.parquet"}
    assert training_frame(FEATURES, labels, given).column("count_1h").to_pylist() == [2.0, 0.0, 0.0]
    clicks = tmp_path / "day=2023-01-01"
    assert training_frame(FEATURES, labels, given | {"clicks": clicks}).column("count_1h").to_pylist() == [
        1.0,
        0.0,
        0.0,
    ]


def test_the_position_decides_among_events_that_came_at_once():
    rows = [{"user": "u", "value": float(n), "arrival": 5.0, "event_time": 5.0, "position": 3 - n} for n in range(3)]
    source = Source(name="s", columns={"user": "text", "value": "number"})
    assert events_of(source, pa.Table.from_pylist(rows)).numbers["value"].tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels, events: (labels.drop(["user"]), events), "labels: no column 'user'"),
        (lambda labels, events: (labels.drop(["hour"]), events), "labels: no column 'hour'"),
        (lambda labels, events: (labels.append_column("liked", labels["hour"]), events), "column 'liked' already"),
        (lambda labels, events: (labels, {**events, "other": labels}), "no source 'other'"),
        (lambda labels, events: (labels, {"clicks": events["clicks"]}), "source views: no events were given"),
        (lambda labels, events: (labels, {**events, "views": "/no/such.parquet"}), "no Parquet files at /no/such"),
        (lambda labels, events: (labels, {**events, "views": [1]}), "got list"),
        (
            lambda labels, events: (labels, {**events, "views": events["views"].drop(["seconds"])}),
            "no column 'seconds'",
        ),
        (
            lambda labels, events: (labels.set_column(1, "user", pa.array([1.5] * 3)), events),
            "user is a column of text, got double",
        ),
        (
            lambda labels, events: (labels.set_column(0, "event_time", pa.array([None, 1.0, 2.0])), events),
            "event_time: row 0 says nan, which is no time",
        ),
        (
            lambda labels, events: (labels.set_column(3, "hour", pa.array(["x"] * 3)), events),
            "hour is a column of numbers",
        ),
    ],
)
def test_what_does_not_fit_is_told(change, said):
    with pytest.raises(errors.BadInput, match=said):
        training_frame(FEATURES, *change(*small()))
