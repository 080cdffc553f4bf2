"""Definitions: what is refused and in which words, and what makes another hash."""

from __future__ import annotations

import msgspec
import pytest

from millstream import errors
from millstream.features.define import (
    HOPS_MAX,
    SECOND,
    Aggregate,
    Attribute,
    Cross,
    Ratio,
    Sequence,
    Source,
    Transform,
    hop_of,
    span,
)
from millstream.features.sets import FeatureSet

MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
COLUMNS = {"user": "text", "item": "text", "kind": "text", "value": "number", "id": "text"}


def source(**more):
    return Source(**{"name": "outcomes", "columns": COLUMNS, "id": "id"} | more)


def aggregate(**more):
    return Aggregate(**{"name": "clicks", "source": source(), "key": "item", "op": "count", "window": "7d"} | more)


def numeric(**more):
    return aggregate(**{"op": "sum", "column": "value"} | more)


def ratio(**more):
    return Ratio(**{"name": "rate", "over": "clicks", "under": "shown"} | more)


def feature_set(*features, **more):
    return FeatureSet(**{"name": "ranker", "features": features or (aggregate(),)} | more)


def doubled(of):
    return of["clicks"] * 2


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [("90s", 90 * SECOND), ("30m", 30 * MINUTE), ("1h", HOUR), ("7d", 7 * DAY), ("100000d", 100_000 * DAY),
     ("lifetime", 0)],
)  # fmt: skip
def test_a_span_is_written_as_people_write_it(text, microseconds):
    assert span(text) == microseconds


@pytest.mark.parametrize(
    "text", ["", "h", "1", "1w", "1.5h", "-1h", " 1h", "1h ", "1H", "0s", "100001d", "1h30m", "Lifetime", "1h\n"]
)
def test_other_spans_are_refused(text):
    with pytest.raises(errors.Misconfigured, match=r"^feature x: .* is no span of time; write .*lifetime"):
        span(text, "feature x")


@pytest.mark.parametrize(
    ("window", "hop", "of_sketches"),
    [
        ("1m", 5 * SECOND, 5 * SECOND),
        ("2m", 5 * SECOND, 15 * SECOND),
        ("5m", 15 * SECOND, 15 * SECOND),
        ("30m", MINUTE, 5 * MINUTE),
        ("1h", 5 * MINUTE, 5 * MINUTE),
        ("61m", MINUTE, MINUTE),
        ("6h", 15 * MINUTE, HOUR),
        ("1d", HOUR, 4 * HOUR),
        ("7d", 4 * HOUR, DAY),
        ("14d", DAY, DAY),
        ("30d", DAY, DAY),
        ("61d", DAY, DAY),
        ("90d", DAY, DAY),
        ("84d", 7 * DAY, 7 * DAY),
        ("180d", 15 * DAY, 30 * DAY),
        ("365d", 5 * DAY, 5 * DAY),
    ],
)
def test_the_hop_is_the_windows_grain(window, hop, of_sketches):
    assert hop_of(span(window)) == hop
    assert hop_of(span(window), sketch=True) == of_sketches
    assert aggregate(window=window).hop == hop
    assert numeric(op="quantile", window=window).hop == of_sketches


WINDOWS = [*(f"{n}m" for n in range(1, 61)), *(f"{n}h" for n in range(1, 25)), *(f"{n}d" for n in range(1, 366))]


@pytest.mark.parametrize("sketch", [False, True])
def test_a_window_is_whole_hops_or_is_refused(sketch):
    """And whatever the refusal's sentence names is taken: whole minutes up to an hour, whole hours, days up to 100."""
    refused = []
    for window in WINDOWS:
        whole = span(window)
        hop = hop_of(whole, sketch)
        if hop == 0:
            refused.append(window)
            continue
        assert whole % hop == 0
        assert (6 if sketch else 12) <= whole // hop <= HOPS_MAX
    assert all(window.endswith("d") and int(window[:-1]) > HOPS_MAX for window in refused)


REFUSED = [
    # (what is made, what the sentence begins with, what it says)
    (lambda: source(name="Outcomes"), "source 'Outcomes':", "a name is a letter"),
    (lambda: source(name=""), "source '':", "a name is a letter"),
    (lambda: source(name="o" * 65), "source 'ooo", "at most 63"),
    (lambda: source(name="o\n"), "source 'o\\n':", "a name is a letter"),
    (lambda: source(columns={"User": "text"}, id=""), "source outcomes 'User':", "a name is a letter"),
    (lambda: source(columns={**COLUMNS, "arrival": "number"}), "source outcomes:", "leave them out"),
    (lambda: source(columns={**COLUMNS, "event_time": "number"}), "source outcomes:", "leave them out"),
    (lambda: source(id="nothing"), "source outcomes:", "id = 'nothing' is no column of text"),
    (lambda: source(id="value"), "source outcomes:", "id = 'value' is no column of text"),
    (lambda: source(again="an hour"), "source outcomes:", "'an hour' is no span of time"),
    (lambda: source(again="lifetime"), "source outcomes:", "again must end"),
    (lambda: aggregate(name="Clicks"), "feature 'Clicks':", "a name is a letter"),
    (lambda: aggregate(name="1st"), "feature '1st':", "a name is a letter"),
    (lambda: aggregate(key="nobody"), "feature clicks:", "key = 'nobody' is no column of text of source outcomes"),
    (lambda: aggregate(key="value"), "feature clicks:", "key = 'value' is no column of text of source outcomes"),
    (lambda: aggregate(column="value"), "feature clicks:", "op 'count' takes no column"),
    (lambda: aggregate(op="since", column="value"), "feature clicks:", "op 'since' takes no column"),
    (lambda: aggregate(op="sum"), "feature clicks:", "op 'sum' takes a column"),
    (lambda: aggregate(op="sum", column="price"), "feature clicks:", "source outcomes has no column 'price'"),
    (lambda: aggregate(op="sum", column="kind"), "feature clicks:", "op 'sum' takes a number, and 'kind' is text"),
    (lambda: aggregate(op="last", column="kind"), "feature clicks:", "UINT32 (tokens), got FP32"),
    (lambda: numeric(datatype="UINT32"), "feature clicks:", "FP32 or FP64, got UINT32"),
    (lambda: aggregate(op="approx_distinct", column="kind", datatype="UINT32"), "feature clicks:", "FP32 or FP64"),
    (lambda: numeric(op="last_n", n=0), "feature clicks:", "n = 0: 1 to 64"),
    (lambda: numeric(op="last_n", n=65), "feature clicks:", "n = 65: 1 to 64"),
    (lambda: numeric(n=2), "feature clicks:", "for last_n, distinct_n and top_k alone"),
    (lambda: numeric(op="quantile", q=1.01), "feature clicks:", "q = 1.01: a quantile lies between 0 and 1"),
    (lambda: numeric(op="quantile", q=-0.1), "feature clicks:", "between 0 and 1"),
    (lambda: numeric(op="quantile", q=float("nan")), "feature clicks:", "between 0 and 1"),
    (lambda: numeric(op="decay", window="lifetime"), "feature clicks:", "has a half_life that ends"),
    (lambda: numeric(op="decay", window="lifetime", half_life="lifetime"), "feature clicks:", "half_life that ends"),
    (lambda: numeric(op="decay", window="lifetime", half_life="2"), "feature clicks:", "'2' is no span of time"),
    (lambda: numeric(half_life="1h"), "feature clicks:", 'op "decay", and no other'),
    (lambda: numeric(op="decay", half_life="1h"), "feature clicks:", 'has the window "lifetime"'),
    (lambda: aggregate(window="week"), "feature clicks:", "'week' is no span of time"),
    (lambda: aggregate(window="3601s"), "feature clicks:", "has no usual grain; take whole minutes"),
    (lambda: aggregate(window="101d"), "feature clicks:", "has no usual grain"),
    (lambda: aggregate(window="55s"), "feature clicks:", "window '55s'"),
    (lambda: numeric(op="quantile", window="30s"), "feature clicks:", "is shorter than a minute"),
    (lambda: aggregate(where="nothing == 1"), "feature clicks: where =", "no column 'nothing'"),
    (lambda: ratio(name="Rate"), "feature 'Rate':", "a name is a letter"),
    (lambda: ratio(prior=(float("inf"), 1.0)), "feature rate:", "finite numbers"),
    (lambda: ratio(prior=(0.0, float("nan"))), "feature rate:", "finite numbers"),
    (lambda: Transform(name="T", function=doubled, inputs=("clicks",)), "feature 'T':", "a name is a letter"),
    (lambda: Transform(name="t", function=doubled), "feature t:", "takes features or values of the request"),
    (lambda: Transform(name="t", function=len, inputs=("clicks",)), "feature t:", "the text of its function cannot be"),
    (lambda: Cross(name="C", left="a", right="b"), "feature 'C':", "a name is a letter"),
    (lambda: feature_set(name="the ranker"), "feature set 'the ranker':", "a name is a letter"),
    (lambda: FeatureSet(name="ranker", features=()), "feature set ranker:", "it names no feature"),
    (lambda: feature_set(ttl="a while"), "feature set ranker:", "'a while' is no span of time"),
    (lambda: feature_set(ttl="6d"), "feature set ranker:", "clicks looks back 7d, longer than rows are kept (ttl 6d)"),
    (lambda: feature_set(aggregate(window="lifetime"), ttl="90d"), "feature set ranker:", "looks back lifetime"),
    (lambda: feature_set(aggregate(), aggregate(window="1d")), "feature set ranker:", "two features are named clicks"),
    (lambda: feature_set(aggregate(), parts=(numeric(),)), "feature set ranker:", "two features are named clicks"),
    (
        lambda: feature_set(ratio(), parts=(aggregate(),)),
        "feature set ranker:",
        "rate is made of shown, which is in neith",
    ),
    (lambda: feature_set(ratio(over="rate", under="rate")), "feature rate is made of itself:", "rate -> rate"),
    (
        lambda: feature_set(ratio(over="b", under="b"), Cross(name="b", left="rate", right="rate")),
        "feature rate is made of itself:",
        "rate -> b -> rate",
    ),
    (
        lambda: feature_set(aggregate(), aggregate(name="other", source=source(again="2h"))),
        "feature set ranker:",
        "two sources are named outcomes",
    ),
]


@pytest.mark.parametrize(("make", "begins", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_what_makes_no_sense_is_refused_with_a_sentence(make, begins, says):
    with pytest.raises(errors.Misconfigured) as caught:
        make()
    assert str(caught.value).startswith(begins)
    assert says in str(caught.value)


def test_what_is_a_near_thing_is_taken():
    aggregate(name="a" + "_9" * 31 + "z")
    aggregate(window="60s")
    numeric(op="last_n", n=64)
    aggregate(op="top_k", column="kind", datatype="UINT32", n=64)
    numeric(op="quantile", q=0)
    numeric(op="quantile", q=1)
    feature_set(ttl="7d")
    feature_set(aggregate(), parts=(aggregate(),))


@pytest.mark.parametrize("unknown", [{"colour": "red"}, {"windows": "1h"}])
def test_fields_that_are_none_are_refused(unknown):
    with pytest.raises(TypeError):
        aggregate(**unknown)


AGGREGATE_CHANGES = [
    {"key": "user"},
    {"entity": "thing"},
    {"op": "since"},
    {"op": "sum", "column": "value"},
    {"op": "last", "column": "kind", "datatype": "UINT32"},
    {"op": "last", "column": "item", "datatype": "UINT32"},
    {"op": "last_n", "column": "value", "n": 2},
    {"op": "last_n", "column": "value", "n": 3},
    {"op": "quantile", "column": "value"},
    {"op": "quantile", "column": "value", "q": 0.9},
    {"op": "decay", "column": "value", "window": "lifetime", "half_life": "1h"},
    {"op": "decay", "column": "value", "window": "lifetime", "half_life": "2h"},
    {"window": "14d"},
    {"window": "lifetime"},
    {"where": "kind == 'click'"},
    {"where": "kind == 'like'"},
    {"where": "kind != 'click'"},
    {"where": "not kind == 'click'"},
    {"where": "value == 1"},
    {"datatype": "FP64"},
    {"source": source(name="others")},
    {"source": source(id="")},
    {"source": source(id="item")},
    {"source": source(again="2h")},
    {"source": source(columns={**COLUMNS, "kind": "number"})},
    {"source": source(columns={**COLUMNS, "more": "number"})},
]


def test_each_thing_that_decides_values_makes_another_hash():
    made = [aggregate(), *(aggregate(**change) for change in AGGREGATE_CHANGES)]
    hashes = [feature_set(one).hash for one in made]
    assert len(set(hashes)) == len(hashes)
    single = [feature_set(one).hash_of("clicks") for one in made]
    assert len(set(single)) == len(single)
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in (*hashes, *single))


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "ranking"},
        {"description": "clicks of a week"},
        {"source": source(owner="someone", description="what came of it")},
        {"source": source(topic="elsewhere")},
        {"source": source(table="elsewhere")},
        {"source": source(columns=dict(reversed(COLUMNS.items())))},
        {"source": source(again="60m")},
        {"window": "168h"},
        {"entity": "item"},
        {"q": 0.9},  # of a count, that decides nothing
    ],
)
def test_what_decides_no_value_makes_no_other_hash(change):
    assert feature_set(aggregate(**change)).hash == feature_set(aggregate()).hash


def test_a_condition_is_what_it_says_not_how_it_is_written():
    written = [
        "kind in ('a', 'b') and value>1",
        "(kind in {'b', 'a'})   and 1.0 < value",
        "kind in ['a','b'] and 1 < value",
    ]
    assert len({feature_set(aggregate(where=one)).hash for one in written}) == 1


def test_owners_of_sets_do_not_count_and_features_of_sets_do():
    plain, other = aggregate(), aggregate(name="views", window="1d")
    assert feature_set(plain).hash == feature_set(plain, owner="me", description="mine", name="another").hash
    both = feature_set(plain, other)
    assert both.columns == ("clicks", "views")
    turned = feature_set(other, plain)
    assert turned.columns == ("views", "clicks")
    different = [
        feature_set(plain), both, turned, feature_set(plain, parts=(other,)), feature_set(plain, other, ttl="30d"),
        feature_set(plain, msgspec.structs.replace(other, name="looks")),
    ]  # fmt: skip
    assert len({one.hash for one in different}) == len(different)
    assert both.hash_of("clicks") == turned.hash_of("clicks")


def test_the_layout_of_rows_is_part_of_the_hash():
    """Parts in another order are kept in another order: such rows are not one another's."""
    parts = aggregate(), aggregate(name="shown", window="1d")
    one, other = feature_set(ratio(), parts=parts), feature_set(ratio(over="shown", under="clicks"), parts=parts)
    assert [part.name for part in one.aggregates] != [part.name for part in other.aggregates]
    assert one.hash != other.hash
    bare = aggregate(name="bare")
    straight, turned = feature_set(bare, parts=parts), feature_set(bare, parts=parts[::-1])
    assert straight.columns == turned.columns
    assert straight.hash != turned.hash


def test_what_a_feature_is_made_of_is_part_of_its_hash():
    shown = aggregate(name="shown")

    def rate(**more):
        return feature_set(ratio(**more), parts=(aggregate(), shown)).hash_of("rate")

    def rate_of(part):
        return feature_set(ratio(), parts=(part, shown)).hash_of("rate")

    assert rate() == rate_of(aggregate(owner="someone")) == rate(description="a rate")
    others = [
        rate(), rate(prior=(1, 20)), rate(prior=(20, 1)), rate(datatype="FP64"), rate(over="shown", under="clicks"),
        rate_of(aggregate(window="1d")), rate_of(aggregate(where="kind == 'click'")),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    crosses = [
        Cross(name="both", left=left, right=right) for left in ("clicks", "shown") for right in ("clicks", "shown")
    ]
    hashes = {feature_set(one, parts=(aggregate(), shown)).hash for one in crosses}
    assert len(hashes) == 4


def transform(body: str, tmp_path, **more):
    """A transform whose function is the text `body`, in a module of its own, as a stranger's would be."""
    path = tmp_path / "theirs.py"
    path.write_text(f"def function(of):\n    return {body}\n")
    names: dict[str, object] = {}
    import linecache

    linecache.checkcache(str(path))
    exec(compile(path.read_text(), str(path), "exec"), names)
    return Transform(**{"name": "t", "function": names["function"], "inputs": ("clicks",)} | more)


def test_a_transforms_hash_follows_its_functions_text(tmp_path):
    def hash_of(one):
        return feature_set(one, parts=(aggregate(), aggregate(name="shown"))).hash

    hashes = [
        hash_of(transform("of['clicks'] * 2", tmp_path)),
        hash_of(transform("of['clicks'] * 3", tmp_path)),
        hash_of(transform("of['clicks'] * 2", tmp_path, inputs=("clicks", "shown"))),
        hash_of(transform("of['clicks'] * 2", tmp_path, inputs=("shown", "clicks"))),
        hash_of(transform("of['clicks'] * 2", tmp_path, request=("hour",))),
        hash_of(transform("of['clicks'] * 2", tmp_path, datatype="FP64")),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_of(transform("of['clicks'] * 2", tmp_path, owner="me")) == hashes[0]


def test_where_a_function_stands_does_not_count():
    def doubled(of):
        return of["clicks"] * 2

    inner = Transform(name="t", function=doubled, inputs=("clicks",))
    outer = Transform(name="t", function=globals()["doubled"], inputs=("clicks",))
    assert inner.content == outer.content


def test_hashes_stay_what_they_were():
    """Rows and models out there carry them: whoever changes one on purpose raises SEMANTICS and says so."""
    features = feature_set(ratio(prior=(1, 20)), parts=(aggregate(where="kind == 'click'"), aggregate(name="shown")))
    assert features.hash == "47458039cd52c09c"
    assert features.hash_of("rate") == "3b8eca1b7a464883"


def test_a_set_knows_its_columns_entities_and_order():
    others = Source(name="orders", columns={"who": "text", "amount": "number"})
    history = Sequence("history", source(), key="user", column="item", n=3)
    spent = Aggregate(name="spent", source=others, key="who", entity="user", op="sum", column="amount", window="1h")
    features = feature_set(ratio(), history, spent, parts=(aggregate(), aggregate(name="shown")))
    assert features.columns == ("rate", "history_0", "history_1", "history_2", "spent")
    assert features.entities == ("item", "user")
    assert [one.name for one in features.ordered] == ["clicks", "shown", "rate", "history", "spent"]
    assert [one.name for one in features.aggregates] == ["clicks", "shown", "history", "spent"]
    assert [one.name for one in features.sources] == ["outcomes", "orders"]
    assert (features.datatype, feature_set(spent).datatype) == ("FP64", "FP32")
    assert feature_set(numeric(datatype="FP64")).datatype == "FP64"
    assert feature_set(numeric(op="last_n", n=1)).columns == ("clicks",)


def test_the_datatype_of_attributes_and_sequences_is_that_of_the_column():
    assert Attribute("kind", source(), key="item", column="kind").datatype == "UINT32"
    assert Attribute("value", source(), key="item", column="value").datatype == "FP32"
    assert Attribute("value", source(), key="item", column="value", datatype="FP64").datatype == "FP64"
    assert Attribute("kind", source(), key="item", column="kind").op == "last"
    history = Sequence("history", source(), key="user", column="value", n=4, window="1d", where="value > 0")
    assert (history.op, history.n, history.width, history.window) == ("last_n", 4, 4, "1d")


def test_an_aggregate_says_what_it_looks_at():
    looked = numeric(where="kind == 'click' and (item != 'x' or value > 1)").looks_at
    assert looked == {"item", "value", "kind"}
    assert aggregate().looks_at == {"item"}
