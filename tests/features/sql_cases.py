"""Small streams with values worked out by hand from docs/features.md, for whatever engine runs the SQL.

Rules of the room:
- Where it can be, the value of event i is 2**i: a sum then says which events were in the window.
- `tables`: events by source; of one arrival the one that came first is listed first. `wanted`: columns of the answer, a
  value a label.
- `tables_of` puts events in the order in which they came and fills in what every table has. Engines differ in how they
  take it, not in what they are given.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from millstream.features.define import Aggregate, Attribute, Ratio, Sequence, Source
from millstream.features.sets import FeatureSet

DAY = 1_699_920_000.0
"""The beginning of a day, unix seconds: every hop and every window of up to a day begins there."""
MICRO = 1e-6
T = DAY + 7330
"""Two hours, two minutes and ten seconds into it: an hour's window begins at 3600."""
INF, NAN = math.inf, math.nan


class Case(NamedTuple):
    name: str
    features: FeatureSet
    tables: dict[str, list[dict[str, Any]]]
    labels: list[dict[str, Any]]
    wanted: dict[str, list[Any]]


Table = tuple[list[tuple[str, str]], list[dict[str, Any]]]


def tables_of(
    features: FeatureSet, tables: dict[str, list[dict[str, Any]]], labels: list[dict[str, Any]]
) -> dict[str, Table]:
    """Every table: its columns with their types (text, double, bigint), and rows with all of them."""
    made: dict[str, Table] = {}
    for source in features.sources:
        columns = [(name, "text" if kind == "text" else "double") for name, kind in source.columns.items()]
        columns += [("event_time", "double"), ("arrival", "double"), ("position", "bigint")]
        events = sorted(tables.get(source.name, []), key=lambda row: row["arrival"])
        rows = [{**row, "position": at} for at, row in enumerate(events)]
        made[source.name] = columns, [{name: row.get(name) for name, _ in columns} for row in rows]
    columns = [("row", "bigint"), *((name, "text") for name in features.entities), ("event_time", "double")]
    rows = [{**row, "row": at} for at, row in enumerate(labels)]
    made["labels"] = columns, [{name: row.get(name) for name, _ in columns} for row in rows]
    return made


def came(event_time: float, arrival: float | None = None, **more: Any) -> dict[str, Any]:
    return {"event_time": event_time, "arrival": event_time if arrival is None else arrival, **more}


def of(name: str, source: Source, op: Any, column: str = "", **more: Any) -> Aggregate:
    key = more.pop("key", "user")
    return Aggregate(name=name, source=source, key=key, op=op, column=column, **more)


ORDERS = Source(name="orders", columns={"user": "text", "item": "text", "word": "text", "value": "number"})
SENT = Source(name="sent", columns={"user": "text", "id": "text", "value": "number"}, id="id", again="1h")


def _edges() -> Case:
    """What is in a window of an hour as of T, and what is known at all."""
    times = [
        (DAY + 3600, None),  # 1: at the far edge
        (DAY + 3600 - MICRO, None),  # 2: a microsecond before it
        (T - 10, T),  # 4: arrived exactly at T, which is not before T
        (T - MICRO, None),  # 8: the last that can be known
        (DAY + 3700, T - 1),  # 16: late, of the block before
        (DAY + 3700, T + 5),  # 32: late, not yet known
        (T + 1000, T - 5),  # 64: a clock ahead: its time is its arrival
        (T, None),  # 128: exactly at T
        (DAY - 10_000, T - 1),  # 256: came longer after its time than the window
    ]
    events = [came(*pair, user="u", value=float(2**at)) for at, pair in enumerate(times)]
    hour: dict[str, Any] = {"window": "1h"}
    features = (
        of("count_1h", ORDERS, "count", **hour),
        of("sum_1h", ORDERS, "sum", "value", **hour),
        of("mean_1h", ORDERS, "mean", "value", **hour),
        of("var_1h", ORDERS, "var", "value", **hour),
        of("std_1h", ORDERS, "std", "value", **hour),
        of("min_1h", ORDERS, "min", "value", **hour),
        of("max_1h", ORDERS, "max", "value", **hour),
        of("last_1h", ORDERS, "last", "value", **hour),
        of("since_1h", ORDERS, "since", **hour),
        of("last_n_1h", ORDERS, "last_n", "value", n=3, **hour),
        of("distinct_n_1h", ORDERS, "distinct_n", "value", n=2, **hour),
        of("top_k_1h", ORDERS, "top_k", "value", n=2, **hour),
        of("different_1h", ORDERS, "approx_distinct", "value", **hour),
        of("half_1h", ORDERS, "quantile", "value", q=0.5, **hour),
        of("count_ever", ORDERS, "count"),
        of("sum_ever", ORDERS, "sum", "value"),
        of("mean_ever", ORDERS, "mean", "value"),
        of("min_ever", ORDERS, "min", "value"),
        of("last_ever", ORDERS, "last", "value"),
        of("since_ever", ORDERS, "since"),
        of("list_ever", ORDERS, "last_n", "value", n=7),
        of("quarter_ever", ORDERS, "quantile", "value", q=0.25),
        of("sum_1d", ORDERS, "sum", "value", window="1d"),
    )
    key = [{"user": name, "event_time": at} for name, at in [
        ("u", T), ("u", T), ("nobody", T), (None, T), ("", T), ("u", None), ("u", T - MICRO), ("u", DAY + 3600),
        ("u", T + 100_000),
    ]]  # fmt: skip
    nothing, none = [None] * 5, [0.0] * 5
    # At T - 1us all but 8 is known; at 3600 only 2 is; a day later the hour holds nothing, and 4, 8, 32, 128 came.
    wanted: dict[str, list[Any]] = {
        "count_1h": [4, 4, *none[1:], 3, 1, 0],
        "sum_1h": [89, 89, *nothing[1:], 81, 2, None],
        "mean_1h": [22.25, 22.25, *nothing[1:], 27.0, 2, None],
        "var_1h": [609.1875, 609.1875, *nothing[1:], 722.0, 0, None],
        "std_1h": [math.sqrt(609.1875), math.sqrt(609.1875), *nothing[1:], math.sqrt(722), 0, None],
        "min_1h": [1, 1, *nothing[1:], 1, 2, None],
        "max_1h": [64, 64, *nothing[1:], 64, 2, None],
        "last_1h": [8, 8, *nothing[1:], 64, 2, None],
        "since_1h": [MICRO, MICRO, *nothing[1:], 5 - MICRO, MICRO, None],
        "last_n_1h_0": [8, 8, *nothing[1:], 64, 2, None],
        "last_n_1h_1": [64, 64, *nothing[1:], 16, None, None],
        "last_n_1h_2": [16, 16, *nothing[1:], 1, None, None],
        "distinct_n_1h_0": [8, 8, *nothing[1:], 64, 2, None],
        "distinct_n_1h_1": [64, 64, *nothing[1:], 16, None, None],
        "top_k_1h_0": [1, 1, *nothing[1:], 1, 2, None],
        "top_k_1h_1": [8, 8, *nothing[1:], 16, None, None],
        "different_1h": [4, 4, *none[1:], 3, 1, 0],
        "half_1h": [8, 8, *nothing[1:], 16, 2, None],
        "count_ever": [6, 6, *none[1:], 5, 1, 9],
        "sum_ever": [347, 347, *nothing[1:], 339, 2, 511],
        "mean_ever": [347 / 6, 347 / 6, *nothing[1:], 339 / 5, 2, 511 / 9],
        "min_ever": [1, 1, *nothing[1:], 1, 2, 1],
        "last_ever": [8, 8, *nothing[1:], 64, 2, 128],
        "since_ever": [MICRO, MICRO, *nothing[1:], 5 - MICRO, MICRO, 100_000],
        "list_ever_0": [8, 8, *nothing[1:], 64, 2, 128],
        "list_ever_1": [64, 64, *nothing[1:], 16, None, 8],
        "list_ever_2": [16, 16, *nothing[1:], 1, None, 64],
        "list_ever_3": [1, 1, *nothing[1:], 2, None, 4],
        "list_ever_4": [2, 2, *nothing[1:], 256, None, 32],
        "list_ever_5": [256, 256, *nothing[1:], None, None, 16],
        "list_ever_6": [None, None, *nothing[1:], None, None, 1],
        "quarter_ever": [2, 2, *nothing[1:], 2, 2, 4],
        # Of T: from 2 o'clock of the day before; of a day later: from 05:00 of this day
        "sum_1d": [347, 347, *nothing[1:], 339, 2, None],
    }
    return Case("edges", FeatureSet(name="edges", features=features), {"orders": events}, key, wanted)


def _lists() -> Case:
    """Texts: order of ties, what comes again, what is missing, which is the smaller."""
    words = ["b", "a", None, "a", "", "c", "b", "d"]
    # All of one time but the last two; of one time the one that came later is the newer
    times = [T - 50] * 6 + [T - 60, T - 70]
    events = [
        came(time, T - 20 + at, user="u", word=word) for at, (time, word) in enumerate(zip(times, words, strict=True))
    ]
    token: dict[str, Any] = {"datatype": "UINT32"}
    features = (
        Sequence("history", ORDERS, key="user", column="word", n=6, window="1h"),
        of("newest", ORDERS, "distinct_n", "word", n=4, **token),
        of("often", ORDERS, "top_k", "word", n=3, window="1d", **token),
        of("commonest", ORDERS, "top_k", "word", **token),
        of("one", ORDERS, "distinct_n", "word", window="1h", **token),
        Attribute("said", ORDERS, key="user", column="word"),
        of("words", ORDERS, "approx_distinct", "word"),
        of("odd", ORDERS, "last_n", "word", n=2, where="word not in ('a', 'c')", **token),
        of("late", ORDERS, "last", "word", where="word == 'nothing'", **token),
    )
    labels = [{"user": "u", "event_time": T}, {"user": "u", "event_time": T - 20 + MICRO}]
    wanted = {
        "history_0": ["c", "b"], "history_1": ["a", None], "history_2": ["a", None], "history_3": ["b", None],
        "history_4": ["b", None], "history_5": ["d", None],
        "newest_0": ["c", "b"], "newest_1": ["a", None], "newest_2": ["b", None], "newest_3": ["d", None],
        "often_0": ["a", "b"], "often_1": ["b", None], "often_2": ["c", None], "commonest": ["a", "b"],
        "one": ["c", "b"], "said": ["c", "b"], "words": [4, 1], "odd_0": ["b", "b"], "odd_1": ["b", None],
        "late": [None, None],
    }  # fmt: skip
    return Case("lists", FeatureSet(name="lists", features=features), {"orders": events}, labels, wanted)


def _copies() -> Case:
    """Which of those with one id counts."""
    hour = 3600
    told = [
        (0, "x"),  # 1: the first
        (10, "x"),  # 2: a copy
        (10 + hour, "x"),  # 4: an hour after the one before it, to the microsecond: a copy still
        (10 + 2 * hour + MICRO, "x"),  # 8: more than an hour after the copy before it: new
        (10 + 2 * hour + 2, None),  # 16, 32: no ids, all different
        (10 + 2 * hour + 2, ""),
        (10 + 2 * hour + 3, "y"),  # 64: of a user who is missing, and the first of its id all the same
        (10 + 2 * hour + 4, "y"),  # 128: its copy
    ]
    events = [came(DAY + after, user="u", id=name, value=float(2**at)) for at, (after, name) in enumerate(told)]
    events[6]["user"] = None
    # 256: a microsecond less than an hour after the one before it
    events.append(came(DAY + 10 + 2 * hour - 5, DAY + 10 + 3 * hour, user="u", id="x", value=256.0))
    at = [{"user": "u", "event_time": DAY + 10 + hours * hour} for hours in (1, 2, 3, 4)]
    features = (of("sum_ever", SENT, "sum", "value"), of("sum_1h", SENT, "sum", "value", window="1h"))
    wanted = {"sum_ever": [1, 1, 57, 57], "sum_1h": [1, None, 56, None]}
    return Case("copies", FeatureSet(name="copies", features=features), {"sent": events}, at, wanted)


def _missing() -> Case:
    """Missing values, numbers that are none, and conditions of three values."""
    values = [1.0, None, NAN, INF, -INF, 32.0]
    events = [came(T - 100 + at, user="u", value=value, word=None) for at, value in enumerate(values)]
    events += [came(T - 50, user="u", value=64.0, word='it\'s \\ "so"'), came(T - 40, user="u", value=None, word="w")]
    events += [came(T - 30, user=None, value=128.0, word="w"), came(T - 20, user="", value=256.0, word="w")]
    # No event at all: it has no time
    events += [{"user": "u", "value": 512.0, "word": "w", "event_time": None, "arrival": T - 10}]
    events += [{"user": "u", "value": 1024.0, "word": "w", "event_time": T - 10, "arrival": NAN}]

    def count(name: str, where: str) -> Aggregate:
        return of(name, ORDERS, "count", where=where, window="1h")

    features = (
        count("all_of_them", ""),
        count("small", "value < 40"),
        count("not_small", "not (value < 40)"),
        count("between", "0 < value <= 32"),
        count("other", "value != 1"),
        count("either", "value == 1 or word == 'w'"),
        count("neither", "not (value == 1 or word == 'w')"),
        count("both", "value == 64 and word != 'w'"),
        count("none", "word not in ('w', 'v')"),
        count("said", """word == "it's \\\\ \\"so\\"" """),
        count("in_numbers", "value in (1, 64, 0.1)"),
        of("total", ORDERS, "sum", "value", window="1h"),
        of("mean", ORDERS, "mean", "value"),
        of("highest", ORDERS, "max", "value"),
        of("last", ORDERS, "last", "value"),
        of("list", ORDERS, "last_n", "value", n=4, window="1h"),
        of("since_w", ORDERS, "since", where="word == 'w'"),
        of("faded", ORDERS, "decay", "value", half_life="10s"),
        of("most", ORDERS, "quantile", "value", q=1.0),
        of("spread", ORDERS, "var", "value", where="value > 1"),
    )
    faded = 1 * 0.5**10 + 32 * 0.5**9.5 + 64 * 0.5**5
    wanted: dict[str, list[Any]] = {
        "all_of_them": [8], "small": [2], "not_small": [1], "between": [2], "other": [2], "either": [2], "neither": [1],
        "both": [1], "none": [1], "said": [1], "in_numbers": [2], "total": [97], "mean": [97 / 3], "highest": [64],
        "last": [64], "list_0": [64], "list_1": [32], "list_2": [1], "list_3": [None], "since_w": [40.0],
        "faded": [faded], "most": [64], "spread": [256],
    }  # fmt: skip
    label = [{"user": "u", "event_time": T}]
    return Case("missing", FeatureSet(name="missing", features=features), {"orders": events}, label, wanted)


def _entities() -> Case:
    """Two entities and two sources in one set, a key that names an entity otherwise, ratios, and parts."""
    facts = Source(name="order", columns={"select": "text", "group": "number"})
    events = [
        came(T - 300, user="u", item="i", value=1.0),
        came(T - 200, user="u", item="j", value=2.0),
        came(T - 100, user="v", item="i", value=4.0),
    ]
    rows = [came(T - 400, select="i", group=5.0), came(T - 50, select="j", group=-7.0), came(T - 40, select="i")]
    mine = of("mine", ORDERS, "sum", "value", window="7d")
    shown = of("shown", ORDERS, "count", key="item")
    fact = Attribute("fact", facts, key="select", column="group", entity="item")
    bare = Ratio(name="bare", over="mine", under="shown")
    features = (
        Ratio(name="eased", over="mine", under="shown", prior=(1, 3)),
        fact,
        bare,
        Ratio(name="never", over="shown", under="shown", prior=(0, -2)),
        Ratio(name="deep", over="bare", under="fact"),
        of("theirs", ORDERS, "max", "value", key="item", window="1h"),
    )
    labels = [
        {"user": user, "item": item, "event_time": at}
        for user, item, at in [("u", "i", T), ("v", "j", T), ("w", "i", T), ("u", None, T), (None, "j", T - 150)]
    ]
    wanted: dict[str, list[Any]] = {
        "eased": [4 / 5, 5 / 4, None, 4 / 3, None],
        "fact": [5, -7, 5, None, None],
        "bare": [3 / 2, 4 / 1, None, None, None],
        "never": [None, -1, None, 0, -1],
        "deep": [0.3, -4 / 7, None, None, None],
        "theirs": [4, 2, 4, None, 2],
    }
    both = FeatureSet(name="entities", features=features, parts=(mine, shown))
    return Case("entities", both, {"orders": events, "order": rows}, labels, wanted)


def _before_1970() -> Case:
    """Times below zero: the far edge moves by whole hops there too."""
    # As of -10 s: from floor(-3610 / 300) * 300 = -3900
    told = [-3900.0, -3900 - MICRO, -3600.0, -10.0, -10 - MICRO, 5.0]
    events = [came(time, user="u", value=float(2**at)) for at, time in enumerate(told)]
    features = (
        of("sum_1h", ORDERS, "sum", "value", window="1h"),
        of("list", ORDERS, "last_n", "value", n=4, window="1h"),
        of("width", ORDERS, "std", "value", window="1h"),
    )
    labels = [{"user": "u", "event_time": -10.0}, {"user": "u", "event_time": 0.0}, {"user": "u", "event_time": 3300.0}]
    # As of -10 from -3900: 1, 4, 16. As of 0 from -3600: 4, 8, 16. As of 3300 from -300: 8, 16, 32.
    spread = [(1 + 16 + 256) / 3 - 7**2, (16 + 64 + 256) / 3 - (28 / 3) ** 2, (64 + 256 + 1024) / 3 - (56 / 3) ** 2]
    wanted: dict[str, list[Any]] = {
        "sum_1h": [21, 28, 56], "list_0": [16, 8, 32], "list_1": [4, 16, 8], "list_2": [1, 4, 16],
        "list_3": [None, None, None], "width": [math.sqrt(one) for one in spread],
    }  # fmt: skip
    return Case("before_1970", FeatureSet(name="before", features=features), {"orders": events}, labels, wanted)


def _cancelling() -> Case:
    """What has left the window leaves nothing behind, however large it was."""
    events = [came(DAY, user="u", value=1e300), came(DAY + 1, user="u", value=-1e17), came(T, user="u", value=0.1)]
    events += [
        came(T + 1, user="u", value=0.1),
        came(T + 2, user="u", value=0.1),
        came(T + 9000, user="u", value=1e300),
    ]
    features = (
        of("total", ORDERS, "sum", "value", window="1h"),
        of("mean", ORDERS, "mean", "value", window="1h"),
        of("std", ORDERS, "std", "value", window="1h"),
    )
    label = [{"user": "u", "event_time": T + 10}]
    wanted: dict[str, list[Any]] = {"total": [0.3], "mean": [0.1], "std": [0.0]}
    return Case("cancelling", FeatureSet(name="cancelling", features=features), {"orders": events}, label, wanted)


CASES = (_edges(), _lists(), _copies(), _missing(), _entities(), _before_1970(), _cancelling())
