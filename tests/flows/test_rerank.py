"""Laws of the list builder, over slates and rules that chance makes, and beside builders written down plainly."""

import math
import tomllib
from contextlib import suppress
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_house import NAN, NOW, rules, slate, slates

from millstream.errors import BadInput, Corrupt, Later, Misconfigured
from millstream.flows.rerank import Rules, Slate
from millstream.flows.rerank import slate as slates_module
from millstream.flows.rerank.diversity import Window
from millstream.flows.rerank.exposure import Ads, Fresh
from millstream.flows.rerank.sift import Pins

lengths = st.integers(0, 30)
law = settings(max_examples=60, deadline=None)


def same(one, other):
    return (
        one.places.tolist() == other.places.tolist()
        and one[1:4] == other[1:4]
        and {name: gone.tolist() for name, gone in one.dropped.items()}
        == {name: gone.tolist() for name, gone in other.dropped.items()}
    )


@law
@given(slates(), rules(), lengths)
def test_a_list_has_all_it_can_have_once_and_nothing_that_was_dropped(made, steps, n):
    order = steps.order(made, n)
    dropped = [place for gone in order.dropped.values() for place in gone.tolist()]
    places = order.places.tolist()
    assert order.places.dtype == np.int32
    assert len(set(dropped)) == len(dropped)
    assert len(places) == len(set(places)) == len(order.reasons) == min(n, len(made) - len(dropped))
    assert not set(places) & set(dropped)
    assert set(order.charges) <= set(places)
    said = [word.removeprefix("relaxed:") for reason in order.reasons for word in reason.split() if "relaxed" in word]
    assert {name: said.count(name) for name in said} == order.relaxed


@law
@given(slates(), st.one_of(rules(), rules("fresh", "ads", "mmr", "category")), lengths, st.booleans())
def test_what_is_logged_gives_the_same_list(made, steps, n, names):
    packed = made.pack(names)
    again = Slate.unpack(packed, None if names else made.items)
    order = steps.order(made, n)
    assert made.pack(names) == packed  # nothing was written into it
    assert again.pack(names) == packed
    assert same(steps.order(again, n), order)
    assert same(steps.order(made, n), order)


@law
@given(slates(), rules("category", "author", "pins", "ads", "fresh"), lengths)
def test_windows_hold_everywhere_but_where_it_is_said(made, steps, n):
    order = steps.order(made, n)
    for step in steps.steps:
        if isinstance(step, Window):
            codes = made.column(step.by)[order.places].tolist()
            flagged = [f"relaxed:{step.name}" in reason.split() for reason in order.reasons]
            size = step.window or len(codes)
            for at in range(len(codes)):
                window = codes[at : at + size]
                for code in set(window) - {-1}:
                    held = [p for p in range(at, at + len(window)) if codes[p] == code]
                    assert sum(flagged[p] for p in held) >= len(held) - step.most


def plainly(made, windows, n):
    """The builder for windows and scores alone, one candidate at a time."""
    codes = [made.column(step.by).tolist() for step in windows]
    base, left, places, said = made.finite().tolist(), list(range(len(made))), [], []
    while left and len(places) < n:

        def stands(place, which):
            step, own = windows[which], codes[which]
            span = places[max(0, len(places) + 1 - step.window) :] if step.window else places
            return own[place] < 0 or sum(own[p] == own[place] for p in span) < step.most

        able, kept = left, []
        for which in range(len(windows)):
            if fewer := [place for place in able if stands(place, which)]:
                able = fewer
                kept.append(which)
        best = max(able, key=lambda place: (base[place], -place))
        said.append([windows[w].name for w in range(len(windows)) if not stands(best, w)])
        places.append(best)
        left.remove(best)
    return places, said


@law
@given(slates(), rules("category", "author"), lengths)
def test_steps_give_way_as_in_a_builder_written_down_plainly(made, steps, n):
    made = msgspec.structs.replace(made, first=-1)
    order = steps.order(made, n)
    places, said = plainly(made, steps.steps, n)
    assert order.places.tolist() == places
    assert order.reasons == [" ".join(["score", *(f"relaxed:{name}" for name in names)]) for names in said]


def test_the_last_step_gives_way_first():
    made = slate([3, 2, 1], category=[0, 0, 1], author=[0, 1, 0])
    category, author = Window(most=1, window=2), Window(by="author", most=1, window=2)
    order = Rules((category, author)).order(made, 3)
    assert order.places.tolist() == [0, 2, 1]  # the author stands twice in a row, the category does not
    assert order.reasons == ["score", "score relaxed:window:author", "score"]
    order = Rules((author, category)).order(made, 3)
    assert order.places.tolist() == [0, 1, 2]
    assert order.relaxed == {"window:category": 1}


def test_one_column_may_have_two_windows():
    made = slate(range(9, 0, -1), category=[0, 0, 0, 0, 1, 1, 1, 2, 2])
    order = Rules((Window(most=1, window=2), Window(most=2, window=4))).order(made, 6)
    assert made.columns["category"][order.places].tolist() == [0, 1, 0, 1, 0, 1]
    order = Rules((Window(most=2, window=2), Window(most=3, window=6))).order(made, 6)
    assert made.columns["category"][order.places].tolist() == [0, 0, 0, 1, 1, 1]
    order = Rules((Window(most=2, window=3), Window(most=3, window=6))).order(made, 7)
    assert made.columns["category"][order.places].tolist() == [0, 0, 1, 0, 1, 1, 0]
    assert order.relaxed == {}


@law
@given(slates(), rules("pins", "category", "seen", "blocks", "near", "ads"), lengths)
def test_pins_stand(made, steps, n):
    order = steps.order(msgspec.structs.replace(made, first=-1), n)
    places = order.places.tolist()
    dropped = {place for gone in order.dropped.values() for place in gone.tolist()}
    pins = next(step for step in steps.steps if isinstance(step, Pins))
    last = 0
    for item, position in sorted(pins.items.items(), key=lambda pin: pin[1]):
        place = int(item[1:])
        if place < len(made) and place not in dropped and position <= len(places):
            assert places[position - 1] == place
            assert order.reasons[position - 1].startswith("pin")
            last = position
        elif place < len(made) and place not in dropped and position <= n and last < len(places):
            assert place in places


def test_a_pin_beyond_the_candidates_stands_at_the_end_and_one_beyond_the_page_does_not():
    pins = Rules((Pins(items={"i3": 5, "i0": 9}),))
    assert pins.order(slate([4, 3, 2, 1]), 20).places.tolist() == [1, 2, 0, 3]
    order = pins.order(slate([4, 3, 2, 1]), 2)
    assert (order.places.tolist(), order.reasons) == ([0, 1], ["score", "score"])


@law
@given(slates(), rules(), st.integers(1, 30))
def test_what_chance_puts_first_stands_first_unless_it_was_dropped(made, steps, n):
    order = steps.order(made, n)
    if made.first >= 0 and all(made.first not in gone for gone in order.dropped.values()):
        assert order.places[0] == made.first
        assert order.reasons[0].split()[0] == "explore"


@law
@given(slates(), rules(), lengths, st.floats(0, 1))
def test_chances_of_the_first_place_sum_to_one_over_the_list(made, steps, n, share):
    chances = steps.first(made, n, share)
    order = steps.order(msgspec.structs.replace(made, first=-1), n)
    assert chances.sum() == pytest.approx(1.0 if len(order.places) else 0.0)
    assert set(np.flatnonzero(chances)) <= set(order.places.tolist())
    if len(order.places):
        assert chances[order.places[0]] == pytest.approx(1 - share + share / len(order.places))


@law
@given(slates(), rules("ads", "category", "pins", "fresh", "seen"), lengths)
def test_ads_stay_within_every_cap_and_pay_at_most_their_bid(made, steps, n):
    order = steps.order(made, n)
    places = order.places.tolist()
    ads = next(step for step in steps.steps if isinstance(step, Ads))
    at = [position for position, place in enumerate(places) if place in order.charges]
    assert [p for p, reason in enumerate(order.reasons) if reason.split()[0] == "ad"] == at
    assert all(b - a > ads.spacing for a, b in pairwise(at))
    assert all(position + 1 >= ads.first for position in at)
    assert len(at) + made.facts.get("ads_shown", 0) <= ads.user_most or not at
    for start in range(0, len(places), ads.page):
        size = min(ads.page, len(places) - start)
        assert sum(start <= position < start + size for position in at) <= ads.share * size + 1e-6
    for place, price in order.charges.items():
        bid, chance = float(made.columns["bid"][place]), float(made.columns["probability"][place])
        assert 0 < bid < math.inf and 0 < chance <= 1
        assert 0 <= price <= bid
        assert bid * chance * 1000 >= ads.ecpm_least
        assert not ads.quality_least or made.column("quality")[place] >= ads.quality_least


@law
@given(slates(), rules("fresh"), lengths)
def test_new_items_have_their_floor_on_every_page(made, steps, n):
    (fresh,), order = steps.steps, steps.order(made, n)
    new = made.now - made.column("created") <= fresh.age_s_max
    if fresh.quality_least:
        new &= made.column("quality") >= fresh.quality_least
    need = np.where(new, 1 - made.column("impressions") / fresh.impressions, 0)
    there = (need[order.places] > 0).cumsum()
    for position, count in enumerate(there.tolist()):
        owed = math.floor(fresh.share * max(need.max(), 0) * (position + 1) + 1e-9)
        assert count >= min(owed, (need > 0).sum())


def test_toml_makes_steps_and_a_mistake_says_what():
    text = """
    [[steps]]
    step = "seen"
    [[steps]]
    step = "window"
    by = "author"
    most = 1
    [[steps]]
    step = "pins"
    items = { a = 1, b = 3 }
    """
    made = msgspec.convert(tomllib.loads(text), Rules)
    assert [step.name for step in made.steps] == ["seen", "window:author", "pins"]
    assert made.reads == {"seen", "clicked_at", "author"}
    assert (made.items, made.named) == (("a", "b"), {})
    with pytest.raises(msgspec.ValidationError, match="wndow"):
        msgspec.convert({"steps": [{"step": "wndow"}]}, Rules)
    with pytest.raises(msgspec.ValidationError, match="msot"):
        msgspec.convert({"steps": [{"step": "window", "msot": 1}]}, Rules)
    with pytest.raises(Misconfigured, match="one position"):
        msgspec.convert({"steps": [{"step": "pins", "items": {"a": 1, "b": 1}}]}, Rules)
    with pytest.raises(Misconfigured, match="stands twice"):
        Rules((Ads(), Ads(page=5)))


def test_every_setting_has_its_help_and_its_bounds():
    import millstream.flows.rerank.rules as module

    for kind in module.AnyStep.__args__:
        for field in msgspec.structs.fields(kind):
            if kind.__name__ in ("Window", "Mmr", "Boost") and field.name in ("by", "value"):
                assert field.type.__metadata__[0].description
                continue
            meta = field.type.__metadata__[0]
            assert meta.description, (kind, field.name)
            assert field.type.__origin__ is bool or not {meta.ge, meta.gt, meta.max_length} <= {None}, field.name


def test_a_slate_that_is_wrong_is_refused():
    with pytest.raises(BadInput, match="float32"):
        Slate(items=["a"], scores=np.zeros(1))
    with pytest.raises(BadInput, match="'bid' has the shape"):
        slate([1.0, 2.0], bid=[1.0])
    with pytest.raises(BadInput, match="embedding"):
        slate([1.0], embedding=[1.0])
    with pytest.raises(BadInput, match="numbers or booleans"):
        Slate(items=["a"], scores=np.zeros(1, np.float32), columns={"category": np.array(["x"], object)})
    with pytest.raises(BadInput, match="first is 1"):
        slate([1.0], first=1)
    with pytest.raises(BadInput, match="seed"):
        slate([1.0], seed=-1)
    with pytest.raises(BadInput, match="ask for 0 to"):
        Rules().order(slate([1.0]), 1001)


@given(st.integers(0, 400), st.integers(0, 255))
@law
def test_a_damaged_slate_is_corrupt_and_never_another_error(at, byte):
    data = bytearray(slate([1.0, 2.0], category=[1, 2], embedding=[[1, 2], [3, 4]]).pack())
    data[at % len(data)] = byte
    for damaged in (bytes(data), bytes(data[: at % len(data)])):
        with suppress(Corrupt, Later):
            Slate.unpack(damaged)


def test_a_slate_names_what_is_missing(monkeypatch):
    made = slate([1.0, 2.0])
    with pytest.raises(Corrupt, match="no names"):
        Slate.unpack(made.pack(names=False))
    with pytest.raises(Corrupt, match="1 names"):
        Slate.unpack(made.pack(names=False), ["a"])
    monkeypatch.setattr(slates_module, "FORMAT", 0)
    with pytest.raises(Later, match="format version 1"):
        Slate.unpack(made.pack())


def test_the_largest_list_of_nothing_is_empty():
    order = Rules((Fresh(), Ads(), Window())).order(slate([]), 20)
    assert (order.places.tolist(), order.reasons, order.charges) == ([], [], {})
    assert Rules().order(slate([NAN, 1.0, NAN], now=NOW), 3).places.tolist() == [1, 0, 2]
