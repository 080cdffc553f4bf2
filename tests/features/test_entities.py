"""Known users and items: the same rows as the columnar path, a bound, and a welcome for strangers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.features import Definition, Entities, Rows, Texts

DEFINITION = Definition.read(
    {
        "user": [{"name": "id"}, {"name": "age", "bucket": 10}, {"name": "sex"}],
        "item": [{"name": "id"}, {"name": "genres", "places": 3}],
        "crosses": ["user.id*item.genres", "user.sex*item.id"],
    }
)
IDS = st.text(max_size=6)
VALUES = st.text(alphabet="ab|é", max_size=4)


def entities(limit: int = 100) -> Entities:
    return Entities(DEFINITION, limit)


@settings(max_examples=100, deadline=None)
@given(
    user=IDS, sex=VALUES, age=st.integers(-5, 200), items=st.dictionaries(IDS, st.lists(VALUES, max_size=5), max_size=6)
)
def test_entities_and_raw_columns_give_the_same_rows(
    user: str, sex: str, age: int, items: dict[str, list[str]]
) -> None:
    known = entities()
    known.upsert("user", user, {"sex": sex, "age": age})
    for id, genres in items.items():
        known.upsert("item", id, {"genres": genres, "title": "not a feature"})
    asked = [*items, "stranger"]
    rows = Rows(DEFINITION)
    users = rows.tokens(
        "user",
        {"id": Texts.of([user.encode()]), "age": Texts.of([str(age).encode()]), "sex": Texts.of([sex.encode()])},
    )
    columns = {
        "id": Texts.of([id.encode() for id in asked]),
        "genres": Texts.of(["|".join(items.get(id, [])).encode() for id in asked]),
    }
    expected = rows.many(np.repeat(users, len(asked), axis=0), rows.tokens("item", columns))
    got = known.rows(user, asked)
    assert got.dtype == np.uint32 and got.tobytes() == expected.tobytes()


ODD = st.one_of(st.none(), VALUES, st.integers(0, 99), st.just([]), st.lists(VALUES, max_size=3), st.just(math.nan))


@settings(max_examples=100, deadline=None)
@given(told=st.lists(st.tuples(st.sampled_from("abcd"), ODD, ODD), max_size=12))
def test_many_at_once_are_as_one_after_the_other(told: list[tuple[str, Any, Any]]) -> None:
    """With all that is refused or forgotten."""
    several = [(id, {"age": age, "sex": sex, "genres": sex}) for id, age, sex in told]
    for kind in ("user", "item"):
        together, alone = entities(3), entities(3)
        found = together.upsert_many(kind, several)
        for (id, attributes), error in zip(several, found, strict=True):
            try:
                alone.upsert(kind, id, attributes)
                assert error is None
            except errors.BadInput as wanted:
                assert str(error) == str(wanted)
        assert together.forgotten == alone.forgotten and together.count(kind) == alone.count(kind)
        assert together.tokens(kind, list("abcde")).tobytes() == alone.tokens(kind, list("abcde")).tobytes()


def test_a_stranger_has_his_id_alone() -> None:
    known = entities()
    known.upsert("item", "1", {"genres": ["a"]})
    row = known.rows("nobody", ["1", "nothing"])
    assert np.count_nonzero(row[0]) == 4  # user.id, item.id, one genre, user.id*genre
    assert np.count_nonzero(row[1]) == 2
    assert known.rows("nobody", []).shape == (0, DEFINITION.width)


def test_attributes_are_replaced_not_merged() -> None:
    known = entities()
    known.upsert("user", "1", {"sex": "F", "age": 30})
    known.upsert("user", "1", {"sex": None, "age": 30})
    assert known.rows("1", ["x"])[0, 2] == 0 and known.rows("1", ["x"])[0, 1] != 0
    assert known.count("user") == 1 and known.count("item") == 0


def test_the_id_is_the_entity_not_an_attribute() -> None:
    known = entities()
    before = known.rows("1", ["x"])
    known.upsert("user", "1", {"id": "2"})
    assert (known.rows("1", ["x"]) == before).all()


@pytest.mark.parametrize("same", [(25, 25.0, "25"), (True, "true"), (["a", "b"], ("b", "a"), "a|b", ["b", "a", "b"])])
def test_one_value_in_several_dresses_is_one_value(same: tuple[Any, ...]) -> None:
    known = entities()
    column = "genres" if "a|b" in same else "sex"
    seen = set()
    for value in same:
        known.upsert("item" if column == "genres" else "user", "1", {column: value})
        seen.add(known.rows("1", ["1"]).tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"sex": {"a": 1}}, "send text"),
        ({"sex": math.nan}, "finite"),
        ({"sex": ["F", "M"]}, "one place"),
        ({"sex": "x" * 5000}, "5000 bytes"),
    ],
)
def test_a_bad_attribute_is_refused_and_nothing_changes(attributes: dict[str, Any], says: str) -> None:
    known = entities()
    known.upsert("user", "1", {"sex": "F"})
    before = known.rows("1", ["x"])
    with pytest.raises(errors.BadInput, match=f"user '1': attribute 'sex'.*{says}"):
        known.upsert("user", "1", attributes)
    assert (known.rows("1", ["x"]) == before).all()


def test_a_kind_that_is_not_one_is_refused() -> None:
    with pytest.raises(errors.BadInput, match="'users'"):
        entities().upsert("users", "1", {})  # type: ignore[arg-type]


def test_past_the_limit_the_one_described_longest_ago_is_forgotten() -> None:
    known = entities(limit=3)
    for id in "abc":
        known.upsert("item", id, {"genres": [id]})
    known.upsert("item", "a", {"genres": ["a"]})
    rows = {id: known.rows("u", [id]) for id in "abc"}
    known.upsert("item", "d", {"genres": ["d"]})
    assert known.count("item") == 3 and known.forgotten == 1
    assert np.count_nonzero(known.rows("u", ["b"])) == 2
    for id in "ac":
        assert (known.rows("u", [id]) == rows[id]).all()
    assert (known.rows("u", ["d"]) != rows["a"]).any() and np.count_nonzero(known.rows("u", ["d"])) == 4
    with pytest.raises(errors.Misconfigured, match="at least 1"):
        entities(limit=0)


def test_any_text_can_be_an_id() -> None:
    known = entities()
    known.upsert("item", "\ud800", {"genres": ["\udfff"]})
    assert np.count_nonzero(known.rows("\x00", ["\ud800"])) == 4


def test_rows_do_not_change_when_entities_do() -> None:
    known = entities()
    known.upsert("user", "1", {"sex": "F"})
    row = known.rows("1", ["x"])
    before = row.copy()
    known.upsert("user", "1", {"sex": "M"})
    assert (row == before).all()
