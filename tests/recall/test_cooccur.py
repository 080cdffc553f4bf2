"""Who liked this also liked: the kernels against counting by hand, step by step against all at once."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.recall import cooccur
from millstream.recall.ann import Places
from millstream.recall.cooccur import Cooccurrence, Csr, ItemCf, Neighbours, Positives, UserCf, neighbours, windows
from millstream.recall.scene import Bits, History, Scene

ITEMS = 12
events = st.lists(st.tuples(st.integers(0, 5), st.integers(0, ITEMS - 1)), max_size=80)


def positives(liked: list[tuple[int, int]]) -> Positives:
    users, items = (np.array([one[side] for one in liked], np.int32) for side in (0, 1))
    return Positives(users, items, np.arange(len(liked), dtype=np.float64) // 3)  # of one time: as they arrived


def by_hand(liked: list[tuple[int, int]], window: int) -> dict[int, list[int]]:
    """The windows, as their definition has them."""
    held: dict[int, list[int]] = {}
    for user, item in liked:
        mine = held.setdefault(user, [])
        if item in mine:
            mine.remove(item)
        mine.append(item)
        del mine[:-window]
    return held


def counted(held: dict[int, list[int]]) -> tuple[Counter, Counter]:
    single = Counter(item for items in held.values() for item in items)
    pairs = Counter(pair for items in held.values() for one in combinations(items, 2) for pair in (one, one[::-1]))
    return single, pairs


def scene(liked: list[int], allowed: Bits | None = None, kinds: list[int] | None = None) -> Scene:
    history = History(
        np.array(liked, np.int32), np.array(kinds or [0] * len(liked), np.uint8), np.arange(float(len(liked)))
    )
    everything = Bits.all(ITEMS) if allowed is None else allowed
    return Scene("u", 100.0, history, {}, {}, everything, np.empty(0, np.int32), 0)


@settings(max_examples=60, deadline=None)
@given(liked=events, window=st.integers(1, 6))
def test_windows_are_the_last_different_items(liked, window):
    starts, columns = windows(positives(liked), 6, window)
    held = by_hand(liked, window)
    assert [columns[starts[u] : starts[u + 1]].tolist() for u in range(6)] == [held.get(u, []) for u in range(6)]


@settings(max_examples=60, deadline=None)
@given(liked=events, window=st.integers(1, 6), most=st.integers(1, ITEMS))
def test_neighbours_are_those_counted_by_hand(liked, window, most):
    found = neighbours(windows(positives(liked), 6, window), ITEMS, most, shrink=2.0)
    single, pairs = counted(by_hand(liked, window))
    for item in range(ITEMS):
        alike = {
            other: np.float32(count / np.sqrt(single[item] * single[other]) * count / (count + 2.0))
            for (one, other), count in pairs.items()
            if one == item
        }
        wanted = sorted(alike, key=lambda other: (-alike[other], other))[:most]
        begin, end = found.lists.starts[item : item + 2]
        assert found.lists.columns[begin:end].tolist() == wanted
        np.testing.assert_allclose(found.scores[begin:end], [alike[other] for other in wanted], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(liked=events, window=st.integers(1, 6), gone=st.sets(st.integers(0, 5)))
def test_counted_as_it_happens_is_counted_anew_and_whoever_is_forgotten_never_was(liked, window, gone):
    live = Cooccurrence(window=window, slots=ITEMS)
    for user, item in liked:
        live.add(str(user), item)
    there = {user for user, _ in liked}
    assert live.forget(lambda user: int(user) in gone) == len(there & gone)
    state = live.state()
    live = Cooccurrence(window=window, slots=ITEMS)
    live.on_positive("somebody", 3, 0.0, "")
    live.restore(state)
    single, pairs = counted(by_hand([one for one in liked if one[0] not in gone], window))
    for item in range(ITEMS):
        ids, counts, total = live.counts(item)
        assert total == single[item]
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
            other: count for (one, other), count in pairs.items() if one == item
        }


def test_both_ways_of_counting_say_the_same():
    random = np.random.default_rng(0)
    liked = list(zip(random.integers(0, 30, 2000).tolist(), random.integers(0, 100, 2000).tolist(), strict=True))
    live = Cooccurrence(window=20, slots=100)
    for user, item in liked:
        live.add(str(user), item)
    index = neighbours(windows(positives(liked), 30, 20), 100, most=99)
    for item in range(100):
        ids, scores = live.near(item)
        begin, end = index.lists.starts[item : item + 2]
        order = np.lexsort((ids, -scores))
        np.testing.assert_allclose(scores[order], index.scores[begin:end], rtol=1e-6)
        assert set(ids.tolist()) == set(index.lists.columns[begin:end].tolist())


def test_memory_stays_within_its_bounds():
    random = np.random.default_rng(1)
    live = Cooccurrence(users_max=20, items_max=30, slots=4, window=5)
    for _ in range(5000):
        live.add(str(random.integers(0, 200)), int(random.integers(0, 500)))
    assert len(live._windows) == 20 and len(live._row) == 30 and live._ids.shape == (64, 4)
    for number in range(500):
        ids, counts, total = live.counts(number)
        assert len(ids) <= 4 and total >= 0 and (counts > 0).all() and number not in ids


def test_a_frequent_neighbour_outlives_rare_ones():
    live = Cooccurrence(slots=2, window=3)
    for user in range(10):
        live.add(f"often{user}", 1)
        live.add(f"often{user}", 2)
    for other in range(3, 10):
        live.add(f"once{other}", 1)
        live.add(f"once{other}", other)
    ids, counts, total = live.counts(1)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True))[2] == 10 and total == 17


def index_of(liked: list[tuple[int, int]], items: int = ITEMS) -> tuple[Neighbours, cooccur.Near]:
    given_users = 1 + max(user for user, _ in liked)
    of = windows(positives(liked), given_users)
    newest = np.zeros(given_users)
    np.maximum.at(newest, positives(liked).users, positives(liked).times)
    return neighbours(of, items), cooccur.near(of, newest, items, takers=3)


TASTES = [(user, item) for user in range(6) for item in ((0, 1, 2, 3) if user % 2 else (6, 7, 8, 9)) if item != user]


@pytest.mark.parametrize("kind", [0, 1])
def test_paths_find_what_alike_people_liked(kind):
    path = (ItemCf, UserCf)[kind](index_of(TASTES)[kind], Places.same(ITEMS))
    unseen = Bits.all(ITEMS)
    unseen.clear(np.array([0, 1], np.int32))
    found = path.recall(scene([0, 1], unseen), 10)
    assert set(found.numbers[:2].tolist()) == {2, 3} and not set(found.numbers.tolist()) & {6, 7, 8, 9}
    assert (np.diff(found.scores) <= 0).all() and found.numbers.dtype == np.int32
    allowed = Bits.all(ITEMS)
    allowed.clear(np.array([0, 1, 2], np.int32))
    assert path.recall(scene([0, 1], allowed), 10).numbers.tolist() == [3]
    for strange in ([], [11], [5000, -1]):
        assert not len(path.recall(scene(strange), 10).numbers)


@pytest.mark.parametrize("kind", [0, 1])
def test_paths_go_by_the_kinds_that_mean_liked_and_the_newest_count_most(kind):
    index = index_of(TASTES)[kind]
    path = (ItemCf, UserCf)[kind](index, Places.same(ITEMS), kinds={1})
    unseen = Bits.all(ITEMS)
    unseen.clear(np.array([0, 1, 6, 7], np.int32))
    found = path.recall(scene([0, 1, 6, 7], unseen, [1, 1, 0, 0]), 10)
    assert set(found.numbers.tolist()) == {2, 3}
    both = (ItemCf, UserCf)[kind](index, Places.same(ITEMS))
    assert set(both.recall(scene([0, 1, 6, 7], unseen), 10).numbers.tolist()) == {2, 3, 8, 9}
    assert both.recall(scene([0, 6, 7], unseen), 1).numbers[0] in (8, 9)
    assert both.recall(scene([6, 0, 1], unseen), 1).numbers[0] in (2, 3)


def test_an_item_born_since_the_index_is_found_by_the_first_people_who_like_it():
    live = Cooccurrence()
    path = ItemCf(index_of(TASTES, 10)[0], Places.same(10), live)
    for user in "abc":
        live.add(user, 2)
        live.add(user, 11)
    found = path.recall(scene([2]), 10).numbers.tolist()
    assert 11 in found and {0, 1, 3} < set(found)
    assert path.recall(scene([11]), 10).numbers.tolist() == [2]
    before = path.recall(scene([2]), 10).scores.max()
    live.add("d", 2)
    live.add("d", 0)  # known pairs are the index's to count
    assert path.recall(scene([2]), 10).scores.max() <= before


def test_rows_of_different_lengths():
    rows = Csr.of(np.array([0, 0, 2], np.int32), np.array([5, 3, 1], np.int32), 4)
    columns, whose, at = rows.gather(np.array([2, -1, 1, 0, 9, 2], np.int32))
    assert (columns.tolist(), whose.tolist(), at.tolist()) == ([1, 5, 3, 1], [0, 3, 3, 5], [2, 0, 1, 2])
    turned = rows.turned(6)
    assert [turned.columns[turned.starts[i] : turned.starts[i + 1]].tolist() for i in range(6)] == [
        [], [2], [], [0], [], [0]
    ]  # fmt: skip
    assert not len(Csr.of(np.empty(0, np.int32), np.empty(0, np.int32), 3).gather(np.array([0], np.int32))[0])
