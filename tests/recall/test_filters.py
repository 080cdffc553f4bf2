"""Filters: bitmaps kept as items change are those made anew, and both say what the rules say of each item."""

from __future__ import annotations

import math
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from shelves import ITEMS, QUICK, RULES, SOME, STEPS, known, may, tell

from millstream.recall.catalogue import Catalogue, CatalogueSettings
from millstream.recall.filters import Filters, Rule
from millstream.recall.histories import Shown
from millstream.recall.scene import History


def numbers(*some: int) -> np.ndarray:
    return np.array(some, np.int32)


@QUICK
@given(STEPS, st.lists(RULES, min_size=1, max_size=8), SOME, SOME, SOME)
def test_what_is_allowed_is_what_the_rules_say_of_each_item(steps, rules, blocked, exclude, past):
    catalogue = Catalogue()
    filters = Filters(catalogue)
    tell(catalogue, steps)
    history = History(numbers(*past), np.arange(len(past)).astype(np.uint8) % 3, np.zeros(len(past)))
    shown = Shown(numbers(*past), np.arange(len(past)) * 20.0)
    for rule in rules:
        allowed = filters.allowed(rule, history, numbers(*blocked), numbers(*exclude), shown, now=100.0)
        gone = {*blocked, *exclude} | {one for at, one in enumerate(past) if at % 3 in rule.done}
        gone |= {one for at, one in enumerate(past) if rule.seen_s and at * 20.0 > 100.0 - rule.seen_s}
        want = [may(attributes, rule) and at not in gone for at, attributes in enumerate(known(steps).values())]
        assert allowed.mask().tolist() == want
        assert allowed.bytes.tobytes() == type(allowed).of(allowed.mask()).bytes.tobytes(), "nothing beyond the end"


@QUICK
@given(STEPS, RULES)
def test_bitmaps_kept_are_bitmaps_made_anew(steps, rule):
    catalogue = Catalogue()
    kept = Filters(catalogue)
    for step in steps:
        tell(catalogue, [step])
    assert kept.allowed(rule) == Filters(catalogue).allowed(rule)
    again = Catalogue()
    restored = Filters(again)
    again.restore(catalogue.state())
    assert restored.allowed(rule) == kept.allowed(rule)
    together = Catalogue()
    later = Filters(together)
    with together.together():
        tell(together, steps)
    assert later.allowed(rule) == kept.allowed(rule)


def test_bitmaps_grow_with_the_catalogue():
    catalogue = Catalogue()
    filters = Filters(catalogue)
    for number in range(5000):
        catalogue.upsert(f"i{number}", {"regions": ["de"] if number % 2 else [], "min_age": number % 20}, 1.0)
        if number in (1023, 1024, 2047, 2048, 4999):
            want = [one % 20 <= 10 for one in range(number + 1)]
            assert filters.allowed(Rule(region="de", age=10.0)).mask().tolist() == want
            assert filters.allowed(Rule(age=10.0)).mask().tolist() == [
                one % 20 <= 10 and one % 2 == 0 for one in range(number + 1)
            ]


def test_a_fresh_bitmap_is_the_callers_own():
    catalogue = Catalogue()
    filters = Filters(catalogue)
    tell(catalogue, [(item, {}) for item in ITEMS])
    mine = filters.allowed(Rule())
    mine.clear(numbers(0, 1, 2))
    assert filters.allowed(Rule()).count() == len(ITEMS)


def test_an_item_that_goes_between_a_scene_and_its_answer_is_known_to_be_gone():
    catalogue = Catalogue()
    filters = Filters(catalogue)
    tell(catalogue, [("a", {}), ("b", {}), ("c", {"blocked": 1})])
    catalogue.remove("b")
    assert filters.there(numbers(0, 1, 2, -1, 7)).tolist() == [True, False, False, False, False]


def test_an_item_of_a_region_over_the_bound_is_shown_nowhere():
    catalogue = Catalogue(CatalogueSettings(regions_max=1))
    filters = Filters(catalogue)
    tell(catalogue, [("a", {"regions": "de"}), ("b", {"regions": "fr"}), ("c", {"regions": "de|fr"})])
    assert filters.allowed(Rule(region="fr")).numbers().tolist() == []
    assert filters.allowed(Rule(region="de")).numbers().tolist() == [0, 2]
    assert Filters(catalogue).allowed(Rule()).count() == 0


def test_no_request_sees_half_of_a_change(often):
    """An item is for adults in one region, then for all in another: a child of the first region never sees it."""
    catalogue = Catalogue()
    filters = Filters(catalogue)
    for number in range(20_000):
        catalogue.upsert(f"i{number}", {"min_age": 30}, 1.0)
    stop, seen = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            seen.append(filters.allowed(Rule(region="de", age=5.0)).test(numbers(7))[0])

    asker = threading.Thread(target=ask)
    asker.start()
    for _ in range(1500):
        catalogue.upsert("i7", {"regions": ["de"], "min_age": 18}, 1.0)
        catalogue.upsert("i7", {"regions": ["fr"], "min_age": 0}, 1.0)
    stop.set()
    asker.join()
    assert len(seen) > 10 and not any(seen)


def test_without_an_age_or_a_region_only_what_asks_for_none():
    catalogue = Catalogue()
    filters = Filters(catalogue)
    tell(catalogue, [("a", {}), ("b", {"min_age": 1}), ("c", {"regions": ["de"]}), ("d", {"min_age": "old enough"})])
    assert filters.allowed(Rule()).numbers().tolist() == [0]
    assert filters.allowed(Rule(age=math.inf, region=" de ")).numbers().tolist() == [0, 1, 2]
