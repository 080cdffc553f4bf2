"""The catalogue: numbers that stay, columns that say what was told last, lists that agree with them, and bounds."""

from __future__ import annotations

import math
import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shelves import QUICK, STEPS, known, many, tell

from millstream.errors import BadInput, TooLarge
from millstream.recall import attributes as read
from millstream.recall.catalogue import Catalogue, CatalogueSettings
from millstream.recall.lists import Lists
from millstream.recall.scene import Bits, best


@QUICK
@given(STEPS)
def test_numbers_are_dense_and_stay_and_columns_say_what_was_told_last(steps):
    catalogue, seen = Catalogue(), {}
    for step in range(len(steps)):
        tell(catalogue, steps[step : step + 1], 100.0 + step)
        for item, number in seen.items():
            assert catalogue.number(item) == number and catalogue.name(number) == item
        seen |= {item: catalogue.number(item) for item in known(steps[: step + 1])}
    items = known(steps)
    assert list(seen.values()) == list(range(catalogue.count)) and list(seen) == list(items)
    assert catalogue.numbers([*items, "stranger"]).tolist() == [*range(len(items)), -1]
    for number, attributes in enumerate(items.values()):
        assert catalogue.alive[number] == (attributes is not None)
        if attributes is None:
            continue
        tags = attributes.get("tags") or []
        tags = tags.split("|") if isinstance(tags, str) else list(dict.fromkeys(tags))
        assert [catalogue.tags[tag] for tag in catalogue.tags_of(number)] == tags
        assert catalogue.tag_counts(np.array([number], np.int32))[0] == len(tags)
        category, code = attributes.get("category"), catalogue.category[number]
        assert (catalogue.categories[code] if code >= 0 else "") == str(category or "")
        bid = attributes.get("bid")
        assert np.array_equal(catalogue.bid[number], {0.5: 0.5, "2.5": 2.5}.get(bid, math.nan), equal_nan=True)
        assert catalogue.created[number] <= 100.0 + len(steps)


@QUICK
@given(STEPS)
def test_lists_by_tag_and_category_are_those_of_the_items(steps):
    catalogue = Catalogue()
    tell(catalogue, steps)
    for tag in range(len(catalogue.tags)):
        having = [number for number in range(catalogue.count) if tag in catalogue.tags_of(number)]
        assert sorted(catalogue.tagged(tag)[catalogue.tagged(tag) >= 0]) == having
        assert catalogue.tagged_count(tag) == len(having) >= len(catalogue.tagged(tag)) / 2 - 1
    for category in range(len(catalogue.categories)):
        items, having = catalogue.in_category(category), np.flatnonzero(catalogue.category == category).tolist()
        assert sorted(items[items >= 0]) == having and catalogue.in_category_count(category) == len(having)


@QUICK
@given(STEPS, STEPS)
def test_a_state_restored_is_the_catalogue_again_and_goes_on_alike(steps, more):
    one, other = Catalogue(), Catalogue()
    tell(one, steps)
    other.upsert("something else", {"tags": ["q"]}, 1.0)
    other.restore(one.state())
    for catalogue in (one, other):
        tell(catalogue, more, 500.0)
    expected, got = one.state(), other.state()
    assert expected.keys() == got.keys()
    for name, column in expected.items():
        assert np.array_equal(column, got[name], equal_nan=column.dtype.kind == "f"), name
    for tag in range(len(one.tags)):
        assert set(one.tagged(tag)) - {-1} == set(other.tagged(tag)) - {-1}
        assert one.tagged_count(tag) == other.tagged_count(tag)
    for category in range(len(one.categories)):
        assert set(one.in_category(category)) - {-1} == set(other.in_category(category)) - {-1}


def test_what_is_no_state_changes_nothing():
    catalogue = Catalogue()
    catalogue.upsert("a", {"title": "A"}, 1.0)
    state = catalogue.state()
    with pytest.raises(ValueError, match="columns"):
        catalogue.restore(state | {"bid": np.zeros(3, np.float32)})
    with pytest.raises(KeyError):
        catalogue.restore({name: column for name, column in state.items() if name != "tag_codes"})
    with pytest.raises(TooLarge):
        small = Catalogue(CatalogueSettings(items_max=1))
        small.upsert("b", {}, 1.0)
        two = Catalogue()
        two.upsert("a", {}, 1.0)
        two.upsert("b", {}, 1.0)
        small.restore(two.state())
    assert small.number("b") == 0 and catalogue.title(0) == "A" and catalogue.count == 1


def test_an_embedding_of_another_width_is_refused_and_from_the_log_left_out_and_counted():
    catalogue = Catalogue()
    catalogue.check("a", {"embedding": [1.0, 2.0]})
    catalogue.upsert("a", {"embedding": [1.0, 2.0]}, 1.0)
    for wrong in ([1.0], [1.0, 2.0, 3.0], "1 2", [], [1.0, math.nan], ["x", "y"], [1e300, 1.0], {"a": 1}):
        with pytest.raises(BadInput, match="embedding"):
            catalogue.check("b", {"embedding": wrong})
        catalogue.upsert("b", {"embedding": wrong, "title": "B"}, 2.0)
        assert np.isnan(catalogue.embedding[1]).all() and catalogue.title(1) == "B"
    assert catalogue.odd["embedding"] == 8 and catalogue.embedding[0].tolist() == [1.0, 2.0]
    catalogue.upsert("a", {}, 3.0)
    assert np.isnan(catalogue.embedding[0]).all(), "an attribute that is left out is gone"


@pytest.mark.parametrize("bid", [0, -1.5, math.nan, math.inf, "free", None, "", 10**400, 1e300, [3.0], -0.0])
def test_a_bid_that_is_none_leaves_the_item(bid):
    catalogue = Catalogue()
    assert catalogue.upsert("a", {"bid": bid}, 1.0) == 0
    assert catalogue.alive[0] and np.isnan(catalogue.bid[0])


def test_the_bound_is_an_error_and_known_items_go_on():
    catalogue = Catalogue(CatalogueSettings(items_max=2, regions_max=1))
    catalogue.upsert("a", {"regions": ["de"]}, 1.0)
    catalogue.upsert("b", {"regions": ["fr"]}, 1.0)
    with pytest.raises(TooLarge, match="items_max"):
        catalogue.upsert("c", {}, 1.0)
    catalogue.upsert("a", {"title": "still"}, 2.0)
    assert catalogue.count == 2 and catalogue.number("c") == -1 and catalogue.title(0) == "still"
    assert catalogue.odd["regions"] == 1 and catalogue.regions_of(1).tolist() == [-1], "not shown everywhere"


def test_deleted_is_gone_and_can_come_back():
    catalogue = Catalogue()
    catalogue.upsert("a", {"title": "A", "created": 7}, 10.0)
    assert catalogue.upsert("a", {"deleted": True}, 11.0) == 0 and not catalogue.alive[0]
    assert catalogue.title(0) == "A" and catalogue.number("a") == 0
    assert catalogue.remove("never") == -1 and catalogue.count == 1
    assert catalogue.upsert("a", {}, 12.0) == 0 and catalogue.alive[0] and catalogue.created[0] == 7.0


def test_a_deletion_that_is_read_first_counts_all_the_same():
    catalogue = Catalogue(CatalogueSettings(items_max=1))
    assert catalogue.upsert("a", {"deleted": 1}, 11.0) == 0 and not catalogue.alive[0]
    assert catalogue.upsert("a", {"title": "A"}, 10.0) == 0 and not catalogue.alive[0] and catalogue.title(0) == "A"
    assert catalogue.created[0] == 10.0
    assert catalogue.upsert("b", {"deleted": 1}, 12.0) == -1, "there is no room for what it deletes either"
    assert catalogue.upsert("a", {}, 11.0) == 0 and catalogue.alive[0], "of one moment what comes last"


def told_of(catalogue: Catalogue) -> dict[str, dict]:
    """Everything that is known, by names: numbers and codes are by the order of telling."""
    columns = ("alive", "blocked", "stock", "created", "bid", "quality", "min_age", "told", "gone", "dated")
    vocabularies = {"category": catalogue.categories, "author": catalogue.authors}
    return {
        catalogue.name(number): {
            **{name: repr(catalogue._columns[name][number]) for name in columns},
            **{name: [*names, ""][int(getattr(catalogue, name)[number])] for name, names in vocabularies.items()},
            "tags": [catalogue.tags[tag] for tag in catalogue.tags_of(number)],
            "regions": [catalogue.regions.names[code] for code in catalogue.regions_of(number)],
            "embedding": [repr(one) for one in catalogue.embedding[number] if not np.isnan(one)],
            "title": catalogue.title(number),
        }
        for number in range(catalogue.count)
    }


@QUICK
@given(STEPS, st.integers(0, 1 << 32))
def test_whatever_partition_tells_of_an_item_the_latest_counts(steps, seed):
    """Read in the order of time, or one partition after the other: the same is known."""
    chance, one, other = random.Random(seed), Catalogue(), Catalogue()
    vectors = ([1.0, 0.5], [-1.0, 0.2], None)  # the first one that is read gives all of them their width
    told = [
        (item, attributes | {"embedding": chance.choice(vectors)}, 100.0 + at)
        for at, (item, attributes) in enumerate(steps)
        if attributes is not None
    ]
    for event in told:
        one.upsert(*event)
    partitions = [chance.randrange(3) for _ in told]
    for partition in range(3):
        for event, of in zip(told, partitions, strict=True):
            if of == partition:
                other.upsert(*event)
        other.restore(other.state())  # as a process that is started again in between
    assert told_of(other) == told_of(one)


def test_dates_are_numbers_or_iso_and_never_ahead():
    at = 2e9
    assert read.when("2001-09-09T01:46:40+00:00", at) == 1e9 == read.when("2001-09-09T01:46:40", at)
    assert read.when(1e9, at) == 1e9 and read.when("1e9", at) == 1e9
    for odd in (None, "soon", -5, math.nan, 1e13, "9999-12-31", [], {}):
        assert read.when(odd, at) == at


def test_readers_see_whole_columns_while_one_writes(often):
    catalogue, stop, wrong = Catalogue(), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            count = catalogue.count
            names = catalogue.names(np.arange(count, dtype=np.int32))
            created, lists = catalogue.created, [catalogue.tags_of(number).tolist() for number in range(count)[-50:]]
            if len(created) < count or len(catalogue.embedding) < count or len(names) != count:
                wrong.append("a column is shorter than the count that was read before it")
            if not np.array_equal(created[:count], np.arange(count) + 1.0) or any(len(one) != 2 for one in lists):
                wrong.append("a row is not what was told")

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(5000):
        catalogue.upsert(f"i{number}", {"tags": ["a", f"t{number % 7}"], "embedding": [1.0, 2.0]}, number + 1.0)
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong


@QUICK
@given(many(lambda chance: (chance.randrange(10), chance.choices(range(100), k=chance.randrange(5))), 1500))
def test_packed_lists_are_what_was_put_last(puts):
    lists, expected = Lists(), {}
    for number, codes in puts:
        lists.put(number, np.array(codes, np.int32))
        expected[number] = codes
    starts, codes = lists.flat(10)
    again = Lists.made(starts, codes)
    for number in range(10):
        want = expected.get(number, [])
        assert lists.of(number).tolist() == again.of(number).tolist() == want
        assert codes[starts[number] : starts[number + 1]].tolist() == want


def test_room_of_replaced_lists_is_taken_back():
    lists = Lists()
    for turn in range(20_000):
        lists.put(turn % 3, np.arange(turn % 40, dtype=np.int32))
    assert [len(lists.of(number)) for number in range(3)] == [19998 % 40, 19999 % 40, 19997 % 40]
    assert len(lists._kept[0]) <= 4096


@QUICK
@given(st.integers(0, 70), *(many(lambda chance: chance.randrange(-3, 81), 30) for _ in range(2)))
def test_bits_are_a_set_of_numbers(n, put, taken):
    bits, numbers = Bits.none(n), set()
    bits.set(np.array(put, np.int32))
    numbers |= {one for one in put if 0 <= one < n}
    bits.clear(np.array(taken, np.int32))
    numbers -= set(taken)
    assert bits.numbers().tolist() == sorted(numbers) and bits.count() == len(numbers)
    asked = np.arange(-3, 81, dtype=np.int32)
    assert bits.test(asked).tolist() == [one in numbers for one in asked.tolist()]
    assert bits.mask().tolist() == np.unpackbits(bits.bytes, bitorder="little")[:n].astype(bool).tolist()
    assert bits == Bits.of(bits.mask()) and bits.copy() == bits and bits.copy().bytes is not bits.bytes
    other = bits.copy()
    other.invert()
    assert other.count() == n - len(numbers)
    both = bits.copy()
    both &= other
    either = bits.copy()
    either |= other
    assert both == Bits.none(n) and either == Bits.all(n) and either.bytes.tobytes() == Bits.all(n).bytes.tobytes()
    if n:
        with pytest.raises(ValueError, match="do not combine"):
            bits &= Bits.all(n + 1)


@QUICK
@given(many(lambda chance: (chance.randrange(51), chance.choice([0.0, 1.0, 2.5, math.nan])), 40), st.integers(0, 9))
def test_the_best_are_the_highest_and_of_equals_the_lower_numbers(pairs, k):
    given_ = dict(pairs)
    numbers, scores = np.array(list(given_), np.int32), np.array(list(given_.values()), np.float32)
    want = sorted((-score, number) for number, score in given_.items() if score == score)[:k]
    found = best(numbers, scores, k)
    assert [(-score, number) for number, score in zip(*(part.tolist() for part in found), strict=True)] == want
