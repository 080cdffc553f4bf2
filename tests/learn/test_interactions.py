"""A table of interactions becomes history: what is odd is counted, what belongs together is one showing, and what means
a like is proposed."""

import numpy as np
import pytest

from millstream.errors import BadInput
from millstream.learn.columns import Part
from millstream.learn.interactions import Liked, propose, read, told, window_s

MAP = {"user": Part("u"), "item": Part("i"), "event_time": Part("t", "s"), "kind": Part("k")}
RATED = {"user": Part("u"), "item": Part("i"), "event_time": Part("t", "s"), "rating": Part("r", "float")}
NOW = 2e9


def events(*rows):
    return [dict(zip("uitk", row, strict=True)) for row in rows]


def rated(*values):
    return read(
        [{"u": f"u{n % 7}", "i": f"i{n}", "t": 1e9 + n, "r": value} for n, value in enumerate(values)], RATED, 10**6,
        NOW, "file",
    )  # fmt: skip


def test_what_one_does_with_an_item_in_a_while_is_one_showing():
    found = read(
        events(
            ("a", "x", 1000, "View"), ("b", "x", 1500, "view"), ("a", "x", 1600, "buy"), ("a", "y", 1700, "view"),
            ("a", "x", 9000, "view"), ("b", "y", 500, "impression"),
        ), MAP, 100, NOW, "file",
    )  # fmt: skip
    assert found.counts() == {"view": 4, "buy": 1, "impression": 1}
    assert [*told(found, Liked(kinds=("buy",)))] == [
        {"user": "b", "item": "y", "event_time": 500.0},
        {"user": "a", "item": "x", "event_time": 1000.0, "view": 1.0, "buy": 1.0},
        {"user": "b", "item": "x", "event_time": 1500.0, "view": 1.0},
        {"user": "a", "item": "y", "event_time": 1700.0, "view": 1.0},
        {"user": "a", "item": "x", "event_time": 9000.0, "view": 1.0},
    ]
    assert window_s(found, Liked(kinds=("buy",))) == 600.0, "600 s from the view to the purchase"


def test_ratings_are_showings_with_a_like_that_is_yes_or_no():
    found = rated(5, 3, "", 4)
    assert [(row["like"], row.get("rating")) for row in told(found, Liked(least=4.0))] == [
        (1.0, 5.0), (0.0, 3.0), (0.0, None), (1.0, 4.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "amount", "least"),
    [
        ([1, 2, 3, 4, 5] * 4, False, 4.0), ([0.5 * n for n in range(1, 11)] * 3, False, 4.0),
        ([*range(11)] * 2, False, 8.0), ([0, 1] * 5, False, 1.0), ([1, 1, 1, 2, 9, 80], True, 2.0),
        ([3, 8, 20, 100], True, 20.0), ([-1, 1] * 4, False, 1.0),
    ],
)  # fmt: skip
def test_a_threshold_is_proposed(values, amount, least):
    assert propose(rated(*values), amount) == Liked(least=least)


def test_kinds_that_are_more_than_a_look_are_proposed():
    def of(*kinds):
        return propose(
            read(events(*(("a", "x", n, kind) for n, kind in enumerate(kinds, 1))), MAP, 99, NOW, "f"), False
        )

    assert of("view", "addtocart", "transaction", "view") == Liked(kinds=("addtocart", "transaction"))
    assert of("impression", "click", "impression") == Liked(kinds=("click",))
    assert of("pv", "cart", "fav", "buy", "dislike") == Liked(kinds=("cart", "fav", "buy"))
    assert of("listen", "listen") == Liked() == propose(rated(5, 5, 5), False), "nothing tells them apart"


def test_the_newest_are_kept_whatever_the_order_of_the_file():
    order = np.random.default_rng(1).permutation(300_000)
    found = read(({"u": "u", "i": f"i{n}", "t": 1 + n, "k": "v"} for n in order.tolist()), MAP, 1000, NOW, "file")
    assert found.times.tolist() == [*range(299_001, 300_001)] and found.older == 299_000
    assert [found.item_names[n] for n in found.items[:2]] == ["i299000", "i299001"]


def test_odd_rows_are_counted_and_many_of_them_are_an_error():
    good = [("a", "x", 1000 + n, "v") for n in range(97)]
    found = read(events(*good, ("", "x", 5, "v"), ("a", None, 5, "v"), ("a", "x", "soon", "v")), MAP, 500, NOW, "file")
    assert (found.odd, found.read, len(found.times)) == (3, 100, 97)
    map = MAP | {"event_time": Part("t", "iso")}
    dated = [(user, item, time, kind) for (user, item, _, kind), time in zip(good, ["2020-01-01"] * 97, strict=True)]
    found = read(events(*dated, ("  ", "x", "2020-01-01", "v"), ("a", "x", "0001-01-02", "v")), map, 500, NOW, "file")
    assert (found.odd, len(found.times)) == (2, 97), "nobody is called by spaces, and nothing happened in year 1"
    for cell, said in (("soon", r"column 't' should be a time \(s\), got 'soon'"), (NOW * 1000, ".*in the future")):
        with pytest.raises(BadInput, match=rf"file row 98: {said}.*and 9 more of 107.*--map") as told_:
            read(events(*good, *[("a", "x", cell, "v")] * 10), MAP, 500, NOW, "file")
        assert "\n" not in str(told_.value)
    with pytest.raises(BadInput, match="no rows"):
        read([], MAP, 500, NOW, "file")
    with pytest.raises(BadInput, match="more than 32 kinds"):
        read(events(*(("a", "x", 9, f"k{n}") for n in range(40))), MAP, 500, NOW, "file")


def test_without_times_the_order_of_the_file_counts():
    found = read(
        events(*(("a", f"x{n}", None, "v") for n in range(5))), {k: MAP[k] for k in ("user", "item")}, 9, NOW, "f"
    )
    assert found.times.tolist() == [NOW - 4, NOW - 3, NOW - 2, NOW - 1, NOW]
