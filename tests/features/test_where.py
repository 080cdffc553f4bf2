"""Conditions: what is read, what is refused and in which words, and SQL's three values."""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import oracle
import pytest
import streams
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.features.define import Source
from millstream.features.events import Events, keys_of
from millstream.features.where import DEPTH_MAX, VALUES_MAX, Both, Comparison, Not, columns_of, parse, select, texts_of

COLUMNS = {"kind": "text", "item": "text", "value": "number", "score": "number"}
SOURCE = Source(name="s", columns=COLUMNS)
QUICK = settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)


def read(text):
    return parse(text, COLUMNS, "feature f")


def selected(text, rows):
    """Which rows a condition is true of, by the code that selects from batches."""
    events = Events.of(SOURCE, [{"event_time": 1.0, "arrival": 1.0} | row for row in rows])
    return select(read(text), events.numbers, events.texts, lambda one: int(keys_of([one])[0])).tolist()


def is_(column, operator, *values):
    return Comparison(column, operator, values)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kind == 'click'", is_("kind", "==", "click")),
        ('kind != "click"', is_("kind", "!=", "click")),
        ("  value < 4  ", is_("value", "<", 4.0)),
        ("value <= -4.5", is_("value", "<=", -4.5)),
        ("value > 1e3", is_("value", ">", 1000.0)),
        ("value >= 1_000", is_("value", ">=", 1000.0)),
        ("4 < value", is_("value", ">", 4.0)),
        ("4 <= value", is_("value", ">=", 4.0)),
        ("4 > value", is_("value", "<", 4.0)),
        ("4 >= value", is_("value", "<=", 4.0)),
        ("4 == value", is_("value", "==", 4.0)),
        ("'a' != kind", is_("kind", "!=", "a")),
        ("kind in ('b', 'a')", is_("kind", "in", "a", "b")),
        ("kind not in ['a']", is_("kind", "not in", "a")),
        ("value in {1, 2}", is_("value", "in", 1.0, 2.0)),
        ("not kind == 'a'", Not(is_("kind", "==", "a"))),
        ("kind == 'a' and value > 1", Both("and", (is_("kind", "==", "a"), is_("value", ">", 1.0)))),
        ("kind == 'a' or value > 1", Both("or", (is_("kind", "==", "a"), is_("value", ">", 1.0)))),
        ("1 < value <= 2", Both("and", (is_("value", ">", 1.0), is_("value", "<=", 2.0)))),
        (
            "kind == 'a' or kind == 'b' and not value > 1",
            Both("or", (is_("kind", "==", "a"), Both("and", (is_("kind", "==", "b"), Not(is_("value", ">", 1.0)))))),
        ),
        ("kind == 'or 1 == 1 --'", is_("kind", "==", "or 1 == 1 --")),
        ("kind == 'ünï\\'c'", is_("kind", "==", "ünï'c")),
    ],
)
def test_conditions_are_read_as_python_reads_them(text, wanted):
    assert read(text) == wanted


@pytest.mark.parametrize("text", ["kind == 'a' and value > 1 or not item in ('x', 'y')", "1 < value < 5"])
def test_a_condition_is_data(text):
    condition = read(text)
    again = msgspec.json.decode(msgspec.json.encode(condition), type=Comparison | Both | Not)
    assert again == condition


def test_a_condition_knows_its_columns_and_texts():
    condition = read("not (kind in ('a', 'b') or value > 1) and item != 'c'")
    assert columns_of(condition) == {"kind", "value", "item"}
    assert texts_of(condition, COLUMNS) == {"a", "b", "c"}


REFUSED = [
    ("", "it is no condition"),
    ("   ", "it is no condition"),
    ("value ==", "it is no condition"),
    ("value == 1; import os", "it is no condition"),
    ("import os", "it is no condition"),
    ("value = 1", "it is no condition"),
    ("kind == 'a' and", "it is no condition"),
    ("kind == 'a\x00'", "it is no condition"),
    ("kind == \ud800", "it is no condition"),
    ("value == " + "9" * 5000, "it is no condition"),
    ("(" * 500 + "value == 1" + ")" * 500, "it is no condition"),
    ("not " * 5000 + "value == 1", "it is no condition"),
    ("value", "'value' is no comparison"),
    ("not value", "'value' is no comparison"),
    ("True", "'True' is no comparison"),
    ("lambda: value == 1", "is no comparison"),
    ("value == 1 if True else value == 2", "is no comparison"),
    ("(value == 1,)", "is no comparison"),
    ("[value == 1 for one in 'a']", "is no comparison"),
    ("(one := value) ", "is no comparison"),
    ("__import__('os').system('true')", "is no comparison"),
    ("exec('1')", "is no comparison"),
    ("await value", "is no comparison"),
    ("value + 1 == 2", "compare a column with constants"),
    ("-value == 1", "compare a column with constants"),
    ("kind.__class__ == 'a'", "compare a column with constants"),
    ("kind['a'] == 'b'", "compare a column with constants"),
    ("len(kind) == 1", "compare a column with constants"),
    ("1 < 2", "compare a column with constants"),
    ("value is 1", "compare a column with constants"),
    ("kind is not None", "compare a column with constants"),
    ("'a' in kind", "compare a column with constants"),
    ("value == 1 == 2", "compare a column with constants"),
    ("price == 1", "no column 'price'; there are item, kind, score, value"),
    ("event_time > 1", "no column 'event_time'"),
    ("value == score", "'score' is no constant"),
    ("value == -value", "is no constant"),
    ("value == (lambda: 1)", "is no constant"),
    ("value == __import__('os')", "is no constant"),
    ("kind == f'a'", "is no constant"),
    ("kind == 'a'.upper()", "is no constant"),
    ("value == 2 * 3", "is no constant"),
    ("value in [*kind]", "is no constant"),
    ("value in {[1]}", "is no constant"),
    ("value in range(3)", "is no constant"),
    ("kind in 'abc'", "does not go with 'in'"),
    ("kind in ('a')", "does not go with 'in'"),
    ("value in 1", "does not go with 'in'"),
    ("value in {1: 2}", "does not go with 'in'"),
    ("kind == ('a', 'b')", "does not go with '=='"),
    ("value < [1]", "does not go with '<'"),
    ("value in ()", f"1 to {VALUES_MAX} values"),
    ("value in set()", f"1 to {VALUES_MAX} values"),
    (f"value in {list(range(VALUES_MAX + 1))}", f"1 to {VALUES_MAX} values"),
    (f"value in {list(range(200_000))}", f"1 to {VALUES_MAX} values"),
    ("kind < 'a'", "'kind' is text, which has no order; use == != in or not in"),
    ("'a' <= kind", "'kind' is text, which has no order"),
    ("kind == 1", "'kind' is a text column, and 1 is no text"),
    ("kind == ''", "'kind' is a text column, and '' is no text"),
    ("kind == None", "'kind' is a text column, and None is no text"),
    ("kind == b'a'", "'kind' is a text column, and b'a' is no text"),
    ("kind in ('a', '')", "'kind' is a text column, and '' is no text"),
    ("kind in ('a', ('b',))", "'kind' is a text column"),
    ("value == '1'", "'value' is a number column, and '1' is no number"),
    ("value == None", "'value' is a number column, and None is no number"),
    ("value == 1e999", "'value' is a number column, and inf is no number"),
    ("value == 1j", "'value' is a number column, and 1j is no number"),
    ("value == ...", "'value' is a number column"),
    ("value in ((1, 2), 3)", "'value' is a number column"),
    ("not " * (DEPTH_MAX + 1) + "value == 1", f"nested more than {DEPTH_MAX} deep"),
    ("(value == 1 or kind == 'a' and " * 20 + "value == 1" + ")" * 20, f"nested more than {DEPTH_MAX} deep"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED, ids=[text[:40] for text, _ in REFUSED])
def test_what_is_no_condition_is_refused_with_a_sentence(text, says):
    with pytest.raises(errors.Misconfigured) as caught:
        read(text)
    assert str(caught.value).startswith(f"feature f: where = {text[:120]!r}: ")
    assert says in str(caught.value)


NESTED = {
    "minus": "value == " + "-" * 800 + "1",
    "plus": "value == " + "1+" * 800 + "1",
    "attributes": "kind" + ".a" * 800,
    "choices": "1 if 1 else " * 800 + "value == 1",
    "lambdas": "lambda: " * 800 + "1",
}


@pytest.mark.parametrize("text", list(NESTED.values()), ids=list(NESTED))
def test_deep_nests_are_refused_with_a_sentence(text):
    with pytest.raises(errors.Misconfigured, match=r"^feature f: where = "):
        read(text)


@pytest.mark.parametrize(
    "text",
    ["value == 1" + "0" * 400, "value in (1, 1" + "0" * 400 + ")", "value == True", "kind == '\\ud800'"],
    ids=["huge", "huge among others", "bool", "surrogate"],
)
def test_constants_that_no_event_could_have_are_refused_with_a_sentence(text):
    with pytest.raises(errors.Misconfigured, match=r"^feature f: where = "):
        read(text)


@given(st.text(max_size=40) | st.text("value kind=<>!'()1andornotin,[]{}.:*\\\n\t", max_size=60))
@settings(QUICK, max_examples=400)
def test_any_text_is_a_condition_or_is_refused(text):
    try:
        condition = read(text)
    except errors.Misconfigured as error:
        assert str(error).startswith("feature f: where = ")
    else:
        assert columns_of(condition) <= set(COLUMNS)


def test_what_is_just_within_the_bounds_is_taken():
    read("not " * DEPTH_MAX + "value == 1")
    assert len(read(f"value in {list(range(VALUES_MAX))}").values) == VALUES_MAX


# Of `value`: 1 makes `value == 1` true, 2 makes it false, None leaves it unknown.
THREE = (True, False, None)
FIGURE = {True: 1.0, False: 2.0, None: None}


def conjunction(a, b):
    return False if False in (a, b) else None if None in (a, b) else True


def disjunction(a, b):
    return True if True in (a, b) else None if None in (a, b) else False


def negation(a):
    return None if a is None else not a


def truth(text, **columns):
    """What a condition is of a row: selected by it, selected by its opposite, or by neither."""
    (yes,), (no,) = selected(text, [columns]), selected(f"not ({text})", [columns])
    assert not (yes and no)
    return True if yes else False if no else None


@pytest.mark.parametrize(("a", "b"), list(itertools.product(THREE, THREE)))
def test_logic_has_sqls_three_values(a, b):
    row = {"value": FIGURE[a], "score": FIGURE[b]}
    left, right = "value == 1", "score == 1"
    assert truth(left, **row) is a
    assert truth(f"{left} and {right}", **row) is conjunction(a, b)
    assert truth(f"{left} or {right}", **row) is disjunction(a, b)
    assert truth(f"not {left} or {right}", **row) is disjunction(negation(a), b)
    assert truth(f"not ({left} and {right})", **row) is negation(conjunction(a, b))
    for text in (f"{left} and {right}", f"{left} or {right}", f"not ({left} or {right})"):
        assert oracle.holds(text, SOURCE, row) is truth(text, **row)


@pytest.mark.parametrize("operator", ["==", "!=", "<", "<=", ">", ">=", "in", "not in"])
@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_what_compares_with_a_missing_number_is_unknown(operator, missing):
    assert truth(f"value {operator} {'(1, 2)' if 'in' in operator else 1}", value=missing) is None


@pytest.mark.parametrize("operator", ["==", "!=", "in", "not in"])
@pytest.mark.parametrize("missing", [None, ""])
def test_what_compares_with_a_missing_text_is_unknown(operator, missing):
    assert truth(f"kind {operator} {('a', 'b') if 'in' in operator else 'a'!r}", kind=missing) is None


@st.composite
def judged(draw):
    source = streams.sources("1h")[draw(st.integers(0, 1))]
    times = [streams.START]
    made = draw(streams.aggregates("f", source, ops=("count",)))
    features = streams.FeatureSet(name="s", features=(made,))
    return source, draw(streams.wheres(source)), draw(streams.rows(features, times, 5, 30))


def judge(example):
    source, text, rows = example
    events = [event for _, event in rows]
    batch = Events.of(source, events)
    found = select(parse(text, source.columns, "f"), batch.numbers, batch.texts, lambda one: int(keys_of([one])[0]))
    assert found.dtype == np.bool_
    assert found.tolist() == [oracle.holds(text, source, event) is True for event in events]


@QUICK
@given(judged())
def test_what_is_selected_is_what_another_reading_of_the_condition_finds_true(example):
    judge(example)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@settings(QUICK, max_examples=2000)
@given(judged())
def test_what_is_selected_is_what_another_reading_of_the_condition_finds_true_at_length(example):
    judge(example)


def test_nothing_is_selected_of_nothing():
    assert selected("value == 1 or kind == 'a' and not item in ('x', 'y')", []) == []
