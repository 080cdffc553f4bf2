"""Rows: known tokens, one code for every path, and definitions that refuse typos."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.features import (
    Aggregate,
    Column,
    Definition,
    FeatureSet,
    Rows,
    Source,
    Texts,
    Transform,
    warm,
)
from millstream.features import feature as module

TABLE: dict[str, Any] = {
    "user": [{"name": "id"}, {"name": "age", "bucket": 10}, {"name": "sex"}],
    "item": [{"name": "id"}, {"name": "genres", "places": 3}],
    "crosses": ["user.id*item.genres", "user.sex*item.id"],
}
DEFINITION = Definition.read(TABLE)
MASK = 2**64 - 1
PINNED = [
    3202720725,
    230085995,
    3743849512,
    1548562255,
    1139812585,
    3508004566,
    0,
    1124674751,
    1825567701,
    0,
    1064247914,
]
PINNED_HASH = "0c3234229cb9cb13"


def finished(state: int) -> int:
    state = (state ^ (state >> 33)) * 0xFF51AFD7ED558CCD & MASK
    state = (state ^ (state >> 33)) * 0xC4CEB9FE1A85EC53 & MASK
    return ((state ^ (state >> 33)) >> 32) or 1


def folded(state: int, data: bytes) -> int:
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 & MASK
    return state


def token(column: str, value: bytes) -> int:
    """The token of a text value, independently of the compiled code: FNV-1a of column, NUL, value; mixed."""
    return finished(folded(0xCBF29CE484222325, column.encode() + b"\0" + value))


def crossed(left: int, right: int) -> int:
    return finished(left << 32 | right) if left and right else 0


def genres(value: bytes, places: int = 3) -> list[int]:
    rows = Rows(Definition((Column("id"),), (Column("g", places),)))
    return [int(t) for t in rows.tokens("item", {"g": Texts.of([value])})[0]]


def age(text: bytes, bucket: float = 10) -> int:
    rows = Rows(Definition((Column("age", bucket=bucket),), ()))
    return int(rows.tokens("user", {"age": Texts.of([text])})[0, 0])


def test_tokens_are_those_of_the_published_hash() -> None:
    row = Rows(DEFINITION).tokens("user", {"id": Texts.of([b"196"]), "sex": Texts.of(["Ж".encode()])})[0]
    assert row.tolist() == [token("user.id", b"196"), 0, token("user.sex", "Ж".encode())]


def test_tokens_never_change() -> None:
    """Models learn slots: a hash that gives other tokens makes every trained model worthless without an error."""
    rows = Rows(DEFINITION)
    user = rows.tokens("user", {"id": Texts.of([b"196"]), "age": Texts.of([b"49"]), "sex": Texts.of([b"M"])})
    item = rows.tokens("item", {"id": Texts.of([b"242"]), "genres": Texts.of([b"Comedy|Drama"])})
    assert rows.many(user, item)[0].tolist() == PINNED
    assert DEFINITION.hash == PINNED_HASH


def test_a_row_is_user_then_item_then_crosses() -> None:
    rows = Rows(DEFINITION)
    user = rows.tokens("user", {"id": Texts.of([b"1"]), "sex": Texts.of([b"F"])})
    item = rows.tokens("item", {"id": Texts.of([b"9"]), "genres": Texts.of([b"a|b"])})
    row = [int(t) for t in rows.one(user[0], item)[0]]
    u, i, g = token("user.id", b"1"), token("item.id", b"9"), sorted(token("item.genres", v) for v in (b"a", b"b"))
    sex = token("user.sex", b"F")
    assert row == [u, 0, sex, i, *g, 0, crossed(u, g[0]), crossed(u, g[1]), 0, crossed(sex, i)]
    assert (DEFINITION.user_width, DEFINITION.item_width, DEFINITION.width) == (3, 4, 11)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=12))
def test_every_text_has_a_token_and_only_the_empty_one_has_none(values: list[bytes]) -> None:
    got = Rows(DEFINITION).tokens("user", {"id": Texts.of(values)})[:, 0]
    assert got.tolist() == [token("user.id", value) if value else 0 for value in values]
    assert [t == 0 for t in got] == [value == b"" for value in values]


def test_the_hash_that_would_be_zero_is_one() -> None:
    assert finished(0) == 1  # the mixer maps 0, and one other upper half in 2**32, to 0
    assert module._token.py_func(np.uint64(0)) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b"", b"a", b"b", b"c", b"d", b"ee", b"f"]), max_size=9), st.integers(1, 5), st.randoms()
)
def test_several_values_are_a_set_and_the_smallest_tokens_stay(values: list[bytes], places: int, random: Any) -> None:
    expected = sorted({token("item.g", value) for value in values if value})
    if places > 1:
        kept = expected[:places]
        assert genres(b"|".join(values), places) == kept + [0] * (places - len(kept))
        random.shuffle(values)
        assert genres(b"|".join(values), places) == kept + [0] * (places - len(kept))


def test_a_column_of_one_place_does_not_split() -> None:
    assert genres(b"a|b", 1) == [token("item.g", b"a|b")]


def test_columns_and_sides_do_not_share_tokens() -> None:
    assert len({token("user.id", b"1"), token("item.id", b"1"), token("user.i", b"d1"), genres(b"1")[0]}) == 4


@pytest.mark.parametrize(
    "pair", ["40 49", "40 49.99", "40 4.5e1", "40 +4500E-2", "-10 -0.5", "0 .5", "1e3 1009", "4 04"]
)
def test_numbers_of_one_bucket_share_a_token(pair: str) -> None:
    one, other = pair.encode().split()
    assert age(one) == age(other) != 0


def test_buckets_have_exact_edges() -> None:
    assert age(b"39.999999") != age(b"40") == age(b"49") != age(b"50")
    assert age(b"-1") == age(b"-10") != age(b"-11")


NOT_NUMBERS = [
    "",
    "x",
    "-",
    ".",
    "1e",
    "1e+",
    "e5",
    "1.2.3",
    "1,5",
    "nan",
    "inf",
    "1e400",
    "1e30",
    "0x1",
    "--1",
    "1 ",
    " 1",
]


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_what_is_not_a_number_leaves_the_place_empty(text: str) -> None:
    assert age(text.encode()) == 0


# So near to nothing that dividing by the bucket underflows, Python's own sign is lost.
FLOATS = st.floats(-1e12, 1e12).filter(lambda x: x == 0 or abs(x) > 1e-250)


@settings(max_examples=300, deadline=None)
@given(FLOATS | st.integers(-(10**15), 10**15), st.sampled_from([0.5, 1.0, 10.0, 250.0]))
def test_numbers_are_read_as_python_reads_them(number: float, bucket: float) -> None:
    number = float(f"{number:.15g}")
    step = math.floor(number / bucket)
    state = folded(0xCBF29CE484222325, b"user.age\0")
    assert age(repr(number).encode(), bucket) == finished(folded(state, step.to_bytes(8, "little", signed=True)))


def test_one_request_and_many_pairs_give_the_same_rows() -> None:
    rows = Rows(DEFINITION)
    users = rows.tokens("user", {"id": Texts.of([b"1", b"2"]), "sex": Texts.of([b"F", b"M"])})
    items = rows.tokens("item", {"id": Texts.of([b"7", b"8"]), "genres": Texts.of([b"a", b"b|c|d|e"])})
    many = rows.many(users[[0, 0, 1, 1]], items[[0, 1, 0, 1]])
    assert many.tobytes() == rows.one(users[0], items).tobytes() + rows.one(users[1], items).tobytes()
    with pytest.raises(errors.BadInput, match="1 users beside 2 items"):
        rows.many(users[:1], items)
    for wrong in (users.astype(np.int64), users[:, :2], users[0]):
        with pytest.raises(errors.BadInput, match=r"uint32 \[n, 3\]"):
            rows.many(wrong, items)
    with pytest.raises(errors.BadInput, match=r"items .* uint32 \[n, 4\]"):
        rows.one(users[0], users)
    assert rows.many(np.asfortranarray(users), items).tobytes() == rows.many(users, items).tobytes()


def test_a_delimited_file_is_columns_as_it_lies() -> None:
    columns = Texts.table(b"1\tF\t\n22\tM\tx|y\n", 3)
    texts = [[bytes(c.data[a:b]) for a, b in zip(c.starts, c.ends, strict=True)] for c in columns]
    assert texts == [[b"1", b"22"], [b"F", b"M"], [b"", b"x|y"]]
    got = Rows(DEFINITION).tokens("user", {"id": columns[0], "sex": columns[1]})
    apart = Rows(DEFINITION).tokens("user", {"id": Texts.of([b"1", b"22"]), "sex": Texts.of([b"F", b"M"])})
    assert got.tobytes() == apart.tobytes()
    assert [len(c) for c in Texts.table(b"", 2)] == [0, 0]


@pytest.mark.parametrize("raw", [b"1\t2", b"1\n2\n", b"1\t2\t3\n4\n", b"1\t2\n3\t4\t\n", b"1\t2\n3\t4"])
def test_ragged_lines_are_refused(raw: bytes) -> None:
    with pytest.raises(errors.BadInput, match="2 fields"):
        Texts.table(raw, 2)


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (0, 4), (2, 1)])
def test_spans_outside_their_buffer_are_refused(start: int, end: int) -> None:
    with pytest.raises(errors.BadInput, match="buffer of 3 bytes"):
        Texts(b"abc", np.array([start]), np.array([end]))


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(errors.BadInput, match="one length"):
        Rows(DEFINITION).tokens("user", {"id": Texts.of([b"1"]), "sex": Texts.of([])})


def test_the_version_changes_when_a_row_would() -> None:
    assert Definition.read(TABLE).hash == DEFINITION.hash
    others = [
        {**TABLE, "crosses": TABLE["crosses"][:1]},
        {**TABLE, "user": TABLE["user"][::-1]},
        {**TABLE, "item": [{"name": "id"}, {"name": "genres", "places": 4}]},
        {**TABLE, "user": [{"name": "id"}, {"name": "age", "bucket": 5}, {"name": "sex"}]},
    ]
    assert len({DEFINITION.hash, *(Definition.read(other).hash for other in others)}) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"users": []}, "users"),
        ({"user": [{"name": "id", "place": 2}]}, "place"),
        ({"user": [{"nam": "id"}]}, "nam"),
        ({"user": "id"}, "user"),
        ({"crosses": ["user.id*item.genre"]}, r"'item.genre', which is not among \['item.genres'"),
        ({"crosses": ["user.id"]}, "user.COLUMN"),
        ({"crosses": ["user.id*item.id*item.genres"]}, "item.id"),
        ({"crosses": ["user.id*item.id"] * 2}, "twice"),
        ({"user": [{"name": "id"}, {"name": "id"}]}, "twice"),
        ({"user": [{"name": "id", "places": 0}], "crosses": []}, "places"),
        ({"user": [{"name": "id", "places": 65}], "crosses": []}, "places"),
        ({"user": [{"name": "id", "bucket": -1}], "crosses": []}, "bucket"),
        ({"user": [{"name": "id", "bucket": math.nan}], "crosses": []}, "bucket"),
        ({"user": [], "item": [], "crosses": []}, "row has 0 places"),
        (
            {
                "user": [{"name": "a", "places": 60}],
                "item": [{"name": "b", "places": 60}],
                "crosses": ["user.a*item.b"],
            },
            "1 to 512",
        ),
    ],
)
def test_a_definition_that_cannot_be_meant_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.Misconfigured, match=says):
        Definition.read({**TABLE, **change})


OUTCOMES = Source(name="outcomes", columns={"user": "text", "item": "text", "price": "number"})
SEEN = Aggregate(name="seen", source=OUTCOMES, key="user", op="count")
PRICE = Aggregate(name="price", source=OUTCOMES, key="item", op="mean", column="price", datatype="FP64")
LAST = Aggregate(name="last", source=OUTCOMES, key="user", op="last_n", column="item", n=2, datatype="UINT32")
RANKER = FeatureSet(name="ranker", features=(SEEN, PRICE, LAST))
WITH_SET = Definition.read({**TABLE, "set": "ranker", "crosses": ["set.last*item.id"]}).taking(RANKER)


def test_the_columns_of_a_set_are_places_and_cross_with_others() -> None:
    rows = Rows(WITH_SET)
    user = rows.tokens("user", {"id": Texts.of([b"u"])})
    items = rows.tokens("item", {"id": Texts.of([b"a", b"b"])})
    matrix = np.array([[3, -0.5, 77, 0], [0, math.nan, 5, 77]], np.float64)
    made = rows.one(user[0], items, matrix)
    assert WITH_SET.width == made.shape[1] == 3 + 4 + 4 + 2
    bits = lambda x: int(np.float64(x).view(np.uint64)) >> 49  # noqa: E731
    expected = [
        [("seen", bits(3)), ("price", bits(-0.5)), ("last", 77), None],
        [("seen", bits(0)), None, ("last", 5), ("last", 77)],
    ]
    for row, said in zip(made.tolist(), expected, strict=True):
        told = [token(f"set.{one[0]}", one[1].to_bytes(8, "little")) if one else 0 for one in said]
        assert row[7:11] == told
        assert row[11:] == [crossed(told[2], row[3]), crossed(told[3], row[3])]
    assert made[0, 9] == made[1, 10], "a token is the same wherever in the sequence it stands"
    assert not rows.one(user[0], items)[:, 7:].any(), "without a matrix, its places are empty"
    assert rows.many(user[[0, 0]], items, matrix).tobytes() == made.tobytes()
    with pytest.raises(errors.BadInput, match=r"\[2, 4\], got \(1, 4\)"):
        rows.one(user[0], items, matrix[:1])


def test_numbers_are_steps_within_an_eighth_and_small_whole_ones_are_told_apart() -> None:
    rows = Rows(WITH_SET)

    def steps(values: list[float]) -> list[int]:
        matrix = np.zeros((len(values), 4))
        matrix[:, 0] = values
        found: list[int] = rows.of_set(matrix, len(values))[:, 0].tolist()
        return found

    assert len(set(steps([float(n) for n in range(-16, 17)]))) == 33
    assert steps([0.0]) == steps([-0.0]) and steps([math.nan]) == [0]
    several = np.random.default_rng(3).lognormal(0, 9, 400).tolist()
    by_step: dict[int, list[float]] = {}
    for value, step in zip(several, steps(several), strict=True):
        by_step.setdefault(step, []).append(value)
    assert all(max(found) <= 1.125 * min(found) for found in by_step.values())
    assert len(set(steps([1.0, 1.124, 1.126]))) == 2


def test_a_set_is_part_of_the_hash_and_without_one_nothing_changes() -> None:
    assert WITH_SET.hash != Definition.read({**TABLE, "crosses": []}).hash
    other = FeatureSet(name="ranker", features=(SEEN, PRICE, msgspec.structs.replace(LAST, where="price > 1")))
    unlike = Definition.read({**TABLE, "set": "ranker", "crosses": ["set.last*item.id"]}).taking(other)
    assert (unlike.width, unlike.hash == WITH_SET.hash) == (WITH_SET.width, False)
    with pytest.raises(errors.Misconfigured, match="nobody has looked up what ranker is"):
        _ = Definition.read({**TABLE, "set": "ranker"}).hash


def test_a_set_that_a_ranking_cannot_read_is_refused() -> None:
    shops = Aggregate(name="shops", source=OUTCOMES, key="item", op="count", entity="shop")
    asks = Transform(name="asks", function=lambda given: given["seen"], inputs=("seen",), request=("hour",))
    for features, says in ((shops, "features of 'shop'"), (asks, "takes 'hour' of a request")):
        made = FeatureSet(name="ranker", features=(SEEN, features))
        with pytest.raises(errors.Misconfigured, match=says):
            Definition.read({**TABLE, "set": "ranker"}).taking(made)


def test_every_kernel_is_compiled_once_for_good() -> None:
    warm()
    for kernel in (module._seed, module._column, module._of_set, module._request, module._pairwise):
        assert len(kernel.signatures) == 1  # type: ignore[attr-defined]
        assert kernel._can_compile is False  # type: ignore[attr-defined]


def test_a_history_has_the_tokens_by_which_rows_name_items() -> None:
    rows = Rows(DEFINITION)
    ids = ["7", "8", "", "é|\ud800"]
    texts = Texts.of([one.encode("utf-8", "surrogatepass") for one in ids])
    tokens = rows.many(rows.tokens("user", {"id": texts}), rows.tokens("item", {"id": texts}))[:, DEFINITION.id_place]
    assert tokens[2] == 0 and len(set(tokens.tolist())) == 4
    assert tokens[0] == token("item.id", b"7")
    found = rows.history(ids, 6)
    assert found.dtype == np.uint32 and found.tolist() == [[0, 0, *tokens.tolist()]], "newest last, behind nothing"
    assert rows.history(ids, 2).tolist() == [tokens[2:].tolist()], "the newest count"
    assert rows.history([], 3).tolist() == [[0, 0, 0]]
    assert rows.history(ids, 0).shape == (1, 0)


@pytest.mark.parametrize("item", [[{"name": "genres"}], [{"name": "id", "places": 2}], [{"name": "id", "bucket": 5}]])
def test_a_history_needs_rows_that_name_their_item(item: list[dict[str, Any]]) -> None:
    rows = Rows(Definition.read({"user": [{"name": "id"}], "item": item}))
    for names in ([], ["7"]):
        with pytest.raises(errors.Misconfigured, match=r'features.item: .*\{name = "id"\}'):
            rows.history(names, 3)
