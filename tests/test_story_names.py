"""What tokens stood for: texts are found again among what is known, numbers of a feature set within their step."""

import math

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.app.trace.names import Naming, matrix
from millstream.features import Column, Definition, Entities
from millstream.features.feature import Taken

PLAIN = Definition(
    user=(Column("id"), Column("age", bucket=10.0)),
    item=(Column("id"), Column("tags", places=3), Column("price", bucket=0.5)),
    crosses=("user.id*item.id",),
    set="kept",
)
KEPT = msgspec.structs.replace(
    PLAIN, taken=Taken("hash", (("likes", 1, False), ("liked", 2, True), ("mean", 1, False)))
)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6).map(float)


def rows(kept, user=None, item=None):
    """Rows as serving makes them, of a user and an item with these attributes."""
    entities = Entities(KEPT)
    entities.upsert("user", "u", user or {})
    entities.upsert("item", "i", item or {})
    made = entities.rows("u", ["i"] * len(kept), np.array(kept, np.float64))
    return matrix(made.tobytes(), len(kept), KEPT)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4))
def test_a_number_of_a_set_lies_in_the_step_that_is_told(pairs):
    kept = [[first, math.nan, math.nan, second] for first, second in pairs]
    for (first, second), features in zip(pairs, Naming(KEPT).of_set(rows(kept)), strict=True):
        by = {one.name: one for one in features}
        for value, name in ((first, "set.likes"), (second, "set.mean")):
            assert by[name].known == "about"
            (said,) = by[name].values
            low, _, high = said.partition(" to ")
            if high:  # written with four digits
                near = max(1e-3 * abs(float(low)), 1e-3 * abs(float(high)), 1e-300)
                assert float(low) - near <= value <= float(high) + near
            else:
                assert float(low) <= value < float(low) + 1 or abs(value) > 1e300
        assert by["set.liked"].known == "empty"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 15))
def test_a_small_count_is_told_as_it_was(count):
    (features,) = Naming(KEPT).of_set(rows([[float(count), math.nan, math.nan, math.nan]]))
    assert features[0].values == [str(count)]


def test_what_nobody_knows_the_text_of_stays_hidden():
    (row,) = made = rows([[math.nan, 77.0, math.nan, math.nan]], {"age": 34}, {"tags": ["a", "b"], "price": 2.75})
    naming = Naming(KEPT)
    (features,) = naming.of_set(made)
    assert (features[0].known, features[1].known, features[1].values) == ("empty", "hidden", [])
    user = {one.name: one for one in naming.side("user", "u", {"age": 34}, row)}
    assert user["user.age"].values == ["34"] and user["user.age"].known == "exact"
    near = naming.side("user", "u", {"age": 39}, row)[1]
    assert near.values == ["39"], "a bucket holds both, and what is known now is told"
    assert naming.side("user", "u", {"age": 40}, row)[1].known == "hidden"
    assert naming.side("user", "somebody else", {}, row)[0].known == "hidden"
    for told, values, known in (
        ({"tags": ["b", "a"]}, ["a", "b"], "exact"),
        ({"tags": "a|b"}, ["a", "b"], "exact"),
        ({"tags": ["a", "c"]}, ["a"], "hidden"),
        ({"tags": [None, {"odd": 1}]}, [], "hidden"),
        ({}, [], "hidden"),
    ):
        tags = naming.side("item", "i", told, row)[1]
        assert (sorted(tags.values), tags.known) == (values, known)
    assert naming.side("item", "i", {"price": 2.5}, row)[2].known == "exact"


def test_rows_of_another_width_are_no_rows():
    assert matrix(b"1234", 1, KEPT) is None and matrix(b"", 0, KEPT) is None


def test_a_definition_without_a_set_has_none():
    alone = msgspec.structs.replace(PLAIN, set="")
    assert Naming(alone).of_set(np.zeros((2, alone.width), np.uint32)) == [[], []]
