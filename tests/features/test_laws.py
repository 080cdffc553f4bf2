"""The laws of features: the compiled state says what a plain recomputation from all events says, whatever came when and
however it was cut into batches."""

from __future__ import annotations

import itertools
import math
import random
from collections import abc
from typing import Any

import numpy as np
import oracle
import pytest
import streams
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millstream.features.define import Aggregate, Cross, Ratio, Sequence, Transform
from millstream.features.events import Events, keys_of, tokens_of
from millstream.features.matrix import Columns, crossed
from millstream.features.sets import FeatureSet
from millstream.features.state import State

QUICK = settings(
    max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
LONG = settings(QUICK, max_examples=1000)
STRANGER = "nobody has heard of it"


def token(text: str) -> float:
    return float(tokens_of([text])[0])


def apply(state: State, rows: abc.Sequence[streams.Row], cuts: abc.Sequence[int] = ()) -> None:
    """Apply rows in their order: batches end where another source begins, and at `cuts`."""
    sources = {one.name: one for one in state.features.sources}
    for start, end in itertools.pairwise((0, *sorted(cuts), len(rows))):
        for name, run in itertools.groupby(rows[start:end], key=lambda row: row[0]):
            state.apply(name, Events.of(sources[name], [event for _, event in run]))


def until(rows: abc.Sequence[streams.Row], at: int) -> int:
    """How many rows had arrived before `at`."""
    return sum(1 for _, event in rows if oracle.micros(event["arrival"]) < at)


def read(state: State, at: int) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    """What the state says of every key, of one that nobody has heard of, and of the missing one."""
    keys = (*streams.KEYS, STRANGER, "")
    found = {entity: state.read(entity, keys_of(keys), at) for entity in state.features.entities}
    return {(entity, key): values[row] for entity, values in found.items() for row, key in enumerate(keys)}


def complaints(features: FeatureSet, rows: abc.Sequence[streams.Row], state: State, at: int) -> list[str]:
    """All that is wrong with the state as of `at`, to which exactly the events before `at` were applied."""
    by_source: dict[str, list[oracle.Event]] = {one.name: [] for one in features.sources}
    for name, event in rows:
        by_source[name].append(event)
    found = []
    for (entity, key), values in read(state, at).items():
        place = 0
        for one in (one for one in features.aggregates if one.of == entity):
            got = values[place : place + one.width].tolist()
            found.append(oracle.wrong(one, got, by_source[one.source.name], key, at / streams.SECOND, token))
            place += one.width
        assert place == len(values)
    return [one for one in found if one]


def check(features: FeatureSet, times: abc.Sequence[int], rows: abc.Sequence[streams.Row]) -> None:
    state, applied = State(features), 0
    for at in times:
        known = until(rows, at)
        apply(state, rows[applied:known])
        applied = known
        assert complaints(features, rows, state, at) == []


@settings(QUICK, max_examples=120)
@given(streams.examples())
def test_the_state_says_what_a_recomputation_says(example: Any) -> None:
    check(*example)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@LONG
@given(streams.examples())
def test_the_state_says_what_a_recomputation_says_at_length(example: Any) -> None:
    check(*example)


OPS = (*streams.NUMBER_OPS, *streams.BOTH_OPS, *streams.BARE_OPS)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("op", OPS)
def test_every_op_alone_says_what_a_recomputation_says(op: str) -> None:
    @settings(LONG, max_examples=150)
    @given(streams.examples(ops=(op,)))
    def law(example: Any) -> None:
        check(*example)

    law()


def every_op(windows: abc.Sequence[str], again: str = "1h") -> FeatureSet:
    """A feature of each op for each window, over both sources in turn."""
    outcomes, orders = streams.sources(again)
    found = []
    for number, (op, window) in enumerate(itertools.product(OPS, windows)):
        source, column, key = (outcomes, "value", "user") if number % 2 else (orders, "amount", "who")
        more: dict[str, Any] = {"window": window}
        if op in streams.NUMBER_OPS:
            more["column"] = column
        elif op in streams.BOTH_OPS:
            more |= {"column": "item"} if op == "approx_distinct" else {"column": "item", "datatype": "UINT32"}
        if op == "decay":
            more = {"column": column, "half_life": "3h"}
        if op in ("last_n", "distinct_n", "top_k"):
            more["n"] = 5
        more |= {"source": source, "key": key, "entity": "user", "op": op}
        found.append(Aggregate(name=f"f{number}", **more))
    return FeatureSet(name="every", features=tuple(found))


@pytest.mark.parametrize("seed", range(2))
def test_long_streams_say_what_a_recomputation_says(seed: int) -> None:
    features = every_op(("1h", "7d", "lifetime"))
    check(features, *streams.long_stream(seed, features, 600, 12))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(2))
def test_longer_streams_say_what_a_recomputation_says(seed: int) -> None:
    features = every_op(("1m", "1h", "1d", "7d", "30d", "lifetime"), again=random.Random(seed).choice(streams.AGAINS))
    check(features, *streams.long_stream(100 + seed, features, 4000, 90))


@st.composite
def cut_examples(draw: st.DrawFn) -> Any:
    features, times, rows = draw(streams.examples())
    known = until(rows, times[-1])
    return features, times, rows[:known], sorted(draw(st.lists(st.integers(0, known), max_size=6)))


@QUICK
@given(cut_examples())
def test_batches_may_be_cut_anywhere(example: Any) -> None:
    features, times, rows, cuts = example
    whole, cut, single = State(features), State(features), State(features)
    apply(whole, rows)
    apply(cut, rows, cuts)
    apply(single, rows, range(1, len(rows)))
    wanted = _bits(whole, times[-1])
    assert _bits(cut, times[-1]) == wanted
    assert _bits(single, times[-1]) == wanted


@QUICK
@given(streams.examples())
def test_reading_changes_nothing(example: Any) -> None:
    features, times, rows = example
    read_often, read_once, applied = State(features), State(features), 0
    for at in times:
        known = until(rows, at)
        apply(read_often, rows[applied:known])
        apply(read_once, rows[applied:known])
        applied = known
        first = _bits(read_often, at)
        assert _bits(read_often, at) == first
    assert _bits(read_once, times[-1]) == first


@QUICK
@given(streams.examples(), st.randoms(use_true_random=False))
def test_sources_whose_events_arrive_together_may_come_in_any_order(example: Any, rng: random.Random) -> None:
    features, times, rows = example
    known = rows[: until(rows, times[-1])]
    mixed: list[streams.Row] = []
    for _, together in itertools.groupby(known, key=lambda row: row[1]["arrival"]):
        group = list(together)
        names = sorted({name for name, _ in group})
        rng.shuffle(names)
        mixed += [row for name in names for row in group if row[0] == name]
    one, other = State(features), State(features)
    apply(one, known)
    apply(other, mixed)
    assert _bits(one, times[-1]) == _bits(other, times[-1])


def _bits(state: State, at: int) -> dict[tuple[str, str], bytes]:
    return {name: values.tobytes() for name, values in read(state, at).items()}


def whole() -> FeatureSet:
    """A set with a feature of each kind."""
    outcomes, orders = streams.sources("1m")
    clicks = Aggregate(name="clicks", source=outcomes, key="item", op="count", window="1h", where="kind == 'click'")
    shown = Aggregate(name="shown", source=outcomes, key="item", op="count", window="1d")
    kind = Aggregate(name="kind", source=outcomes, key="user", op="last", column="kind", datatype="UINT32")
    spent = Aggregate(
        name="spent", source=orders, key="who", entity="user", op="max", column="amount", window="7d", datatype="FP64"
    )
    label = Aggregate(
        name="label", source=orders, key="who", entity="user", op="top_k", column="label", datatype="UINT32"
    )
    return FeatureSet(
        name="whole",
        features=(
            Ratio(name="rate", over="clicks", under="shown"),
            Sequence("history", outcomes, key="user", column="item", n=3),
            label,
            Cross(name="both", left="kind", right="label"),
            Ratio(name="smooth", over="clicks", under="shown", prior=(1, 20)),
            Transform(
                name="left", function=lambda of: of["budget"] - of["spent"], inputs=("spent",), request=("budget",)
            ),
        ),
        parts=(shown, spent, kind, clicks),
    )


WHOLE = whole()


@st.composite
def whole_examples(draw: st.DrawFn) -> Any:
    times = draw(streams.readings())
    return times[-1], draw(streams.rows(WHOLE, times, 10, 30))


@settings(QUICK, max_examples=30)
@given(whole_examples())
def test_a_matrix_says_what_a_recomputation_of_its_rows_says(example: Any) -> None:
    at, rows = example
    state = State(WHOLE)
    apply(state, rows[: until(rows, at)])
    pairs = [*itertools.product(streams.KEYS[:2], streams.KEYS[:2]), (STRANGER, streams.KEYS[0]), ("", STRANGER)]
    values = {
        "user": state.read("user", keys_of(user for user, _ in pairs), at),
        "item": state.read("item", keys_of(item for _, item in pairs), at),
    }
    budgets = np.arange(len(pairs), dtype=np.float64)
    matrix = Columns(WHOLE).make(values, {"budget": budgets}, len(pairs))
    assert matrix.dtype == np.float64
    events = {one.name: [event for name, event in rows if name == one.name] for one in WHOLE.sources}

    def cross(left: float, right: float) -> float:
        return float(crossed(np.array([[left]]), np.array([[right]]), np.zeros((1, 1), bool))[0, 0])

    for got, (user, item), budget in zip(matrix.tolist(), pairs, budgets, strict=True):
        keys = {"user": user, "item": item}
        wanted = oracle.row(WHOLE, events, keys, at / streams.SECOND, token, cross, {"budget": float(budget)})
        assert list(wanted) == list(WHOLE.columns)
        assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(got, wanted.values(), strict=True))


@settings(QUICK, max_examples=200)
@given(st.lists(st.text(max_size=12) | st.just("\ud800"), min_size=2, max_size=5))
def test_a_name_alone_has_the_key_that_it_has_among_others(names: list[str]) -> None:
    assert [int(keys_of([name])[0]) for name in names] == keys_of(names).tolist()
    assert [key == 0 for key in keys_of(names).tolist()] == [name == "" for name in names]


@pytest.mark.parametrize(("distinct", "entities"), [(20, 200), (50, 200), (500, 40), (2000, 20)])
def test_distinct_values_are_counted_within_their_standard_error(distinct: int, entities: int) -> None:
    source = streams.sources("1h")[1]
    made = Aggregate(name="f", source=source, key="who", op="approx_distinct", column="label", window="7d")
    state = State(FeatureSet(name="s", features=(made,)))
    moment = {"event_time": streams.START / streams.SECOND, "arrival": streams.START / streams.SECOND}
    who = [f"u{one}" for one in range(entities)]
    rows = [{"who": one, "label": f"{one} {value}", **moment} for one in who for value in range(distinct)]
    state.apply(source.name, Events.of(source, rows + rows[:1000]))  # what came before is nothing new
    found = state.read("who", keys_of(who), streams.START + 1)[:, 0] / distinct - 1
    assert math.sqrt(float((found**2).mean())) < oracle.STANDARD_ERROR * 1.15
    assert abs(found.mean()) < 0.02


@pytest.mark.parametrize("sign", [1, -1])
def test_quantiles_are_within_their_error_from_the_smallest_to_the_largest(sign: int) -> None:
    source = streams.sources("1h")[1]
    qs = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999, 1.0)
    made = [
        Aggregate(name=f"q{at}", source=source, key="who", op="quantile", q=q, column="amount", window="1d")
        for at, q in enumerate(qs)
    ]
    state = State(FeatureSet(name="s", features=tuple(made)))
    amounts = sign * 10.0 ** np.random.default_rng(3).uniform(-4, 6, 5000)
    amounts[:2] = sign * 1e-4, sign * 1e6
    moments = streams.START / streams.SECOND + np.arange(5000)
    rows = [
        {"who": "u", "amount": amount, "event_time": at, "arrival": at}
        for amount, at in zip(amounts.tolist(), moments.tolist(), strict=True)
    ]
    state.apply(source.name, Events.of(source, rows))
    found = state.read("who", keys_of(["u"]), streams.START + 5000 * streams.SECOND)[0]
    ranks = np.maximum(np.ceil(np.array(qs) * 5000 - 1e-9).astype(int), 1)
    wanted = np.sort(amounts)[ranks - 1]
    assert (np.abs(found - wanted) <= oracle.QUANTILE_ERROR * np.abs(wanted) * (1 + 1e-9)).all()
