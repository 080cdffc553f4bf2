"""Paths: nothing that is not allowed and nothing twice, best first, and each finds what it is for."""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shelves import QUICK, RULES, SOME, STEPS, many, scene, tell

from millstream.recall import ranking as ranks
from millstream.recall.catalogue import Catalogue
from millstream.recall.filters import Filters, Rule
from millstream.recall.paths import Given, Newest, Popular, SimilarToLast, Tags
from millstream.recall.ranking import Ranking
from millstream.recall.scene import Bits, Found, best

LIKED = many(lambda chance: (chance.randrange(31), chance.randrange(10_001), chance.choice(["", "de", "fr"])), 80)


def all_of(catalogue: Catalogue, popular: Popular) -> list:
    return [popular, Newest(catalogue), Given(), Tags(catalogue), SimilarToLast(catalogue), Similar(catalogue)]


class Similar(SimilarToLast):
    """With an index that was built when the catalogue was smaller, and knows nothing of filters' order."""

    name = "similar by an index"

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__(catalogue, exact_max=0, near=self)
        self.embedding = catalogue

    def search(self, vector, k, allowed):
        rows = np.nan_to_num(self.embedding.embedding)
        numbers = allowed.numbers()
        return best(numbers, rows[numbers] @ vector, k)


@QUICK
@given(STEPS, RULES, LIKED, SOME, SOME, st.integers(0, 30), st.sampled_from(["", "de", "at"]))
def test_nothing_forbidden_and_nothing_twice_comes_out_of_any_path(steps, rule, liked, history, given_, k, segment):
    catalogue, popular = Catalogue(), Popular(100.0)
    filters, paths = Filters(catalogue), all_of(catalogue, popular)
    tell(catalogue, steps)
    for number, time, of in liked:
        popular.on_positive("u", number, float(time), of)
    allowed = filters.allowed(rule, exclude=np.array(given_[:2], np.int32))
    asked = scene(allowed, history, given_, segment=segment)
    for path in paths:
        numbers, scores = path.recall(asked, k)
        assert numbers.dtype == np.int32 and scores.dtype == np.float32 and len(numbers) == len(scores) <= k, path.name
        assert allowed.test(numbers).all() and len(set(numbers.tolist())) == len(numbers), path.name
        assert (np.diff(scores) <= 0).all() and not np.isnan(scores).any(), path.name
    wanted = min(k, allowed.count())
    assert len(paths[1].recall(asked, k).numbers) == wanted, "whatever is allowed is among the newest"
    assert allowed == filters.allowed(rule, exclude=np.array(given_[:2], np.int32)), "the scene is only read"


def halved(liked, now: float, half_life_s: float, segment: str | None = None) -> dict[int, float]:
    """Popularity from all likings at once."""
    found: dict[int, float] = {}
    for number, time, of in liked:
        if segment is None or of == segment:
            found[number] = found.get(number, 0.0) + 2.0 ** ((time - now) / half_life_s)
    return found


@QUICK
@given(LIKED, st.sampled_from([7.0, 100.0, 1e6]))
def test_popularity_kept_is_popularity_counted_anew(liked, half_life_s):
    popular, now = Popular(half_life_s), 10_000.0
    for number, time, of in liked:
        popular.on_positive("u", number, float(time), of)
    for segment in (None, "de", "fr"):
        expected = halved(liked, now, half_life_s, segment)
        for number in range(31):
            want, got = expected.get(number, 0.0), popular.score(number, now, segment or "")
            assert math.isclose(want, got, rel_tol=1e-9, abs_tol=1e-200)
    numbers = popular.recall(scene(Bits.all(31)), 31).numbers.tolist()
    expected = halved(liked, now, half_life_s)
    heights = [expected[number] for number in numbers]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(heights))
    assert {number for number, height in expected.items() if height > 1e-200} <= set(numbers) <= set(expected)
    restored = Popular(half_life_s)
    restored.restore(popular.state())
    for one in liked[:20]:
        restored.on_positive("u", one[0], 10_001.0, one[2])
        popular.on_positive("u", one[0], 10_001.0, one[2])
    for segment in ("", "de"):
        asked = scene(Bits.all(31), segment=segment)
        for one, other in zip(popular.recall(asked, 9), restored.recall(asked, 9), strict=True):
            assert one.tolist() == other.tolist()


def test_the_users_segment_comes_first_then_all():
    popular = Popular(1e9)
    for number, count, segment in ((1, 5, "de"), (2, 3, "de"), (3, 9, "fr"), (4, 7, "fr"), (1, 2, "fr")):
        for _ in range(count):
            popular.on_positive("u", number, 0.0, segment)
    allowed = Bits.all(9)
    assert popular.recall(scene(allowed, segment="de"), 3).numbers.tolist() == [1, 2, 3]
    assert popular.recall(scene(allowed, segment="de"), 9).numbers.tolist() == [1, 2, 3, 4]
    assert popular.recall(scene(allowed, segment="nowhere"), 9).numbers.tolist() == [3, 1, 4, 2]
    allowed.clear(np.array([1], np.int32))
    assert popular.recall(scene(allowed, segment="de"), 1).numbers.tolist() == [2]


def test_what_was_liked_lately_passes_what_was_liked_once():
    popular = Popular(half_life_s=10.0)
    for _ in range(8):
        popular.on_positive("u", 1, 0.0, "")
    popular.on_positive("u", 2, 0.0, "")
    assert popular.recall(scene(Bits.all(3)), 1).numbers.tolist() == [1]
    popular.on_positive("u", 2, 40.0, "")
    assert popular.recall(scene(Bits.all(3)), 1).numbers.tolist() == [2]
    popular.on_positive("u", 0, 1e6, "")
    assert popular.recall(scene(Bits.all(3)), 3).numbers.tolist()[0] == 0 and popular.score(0, 1e6) == 1.0


def test_segments_and_their_items_are_bounded():
    popular = Popular(1e9, segments_max=2, entries_max=10)
    for number in range(100):
        for turn in range(2 if number < 5 else 1):
            popular.on_positive("u", number, float(turn), f"s{number}")
    found = popular.recall(scene(Bits.all(100), segment="s99"), 100).numbers.tolist()
    assert set(range(5)) <= set(found) and len(found) <= 10 and len(popular._segments) == 2


@QUICK
@given(
    many(lambda chance: (chance.randrange(41), chance.choice([1.0, 2.0, 3.0, 4.5])), 120),
    many(lambda chance: chance.randrange(46), 30),
    st.integers(1, 20),
)
def test_a_ranking_is_its_numbers_sorted_however_they_came(puts, without, k):
    ranking, expected = Ranking(), {}
    ranking.fill(np.array([41, 42], np.int32), np.array([2.0, 9.0]))
    expected |= {41: 2.0, 42: 9.0}
    for at, (number, key) in enumerate(puts):
        ranking.put(number, key)
        expected[number] = key
        if at % 17 == 0:
            ranking._merge()
        if at == 60:
            ranking.scale(0.5)
            expected = {one: 0.5 * key for one, key in expected.items()}
    allowed = Bits.all(46)
    allowed.clear(np.array(without, np.int32))
    want = sorted((-key, number) for number, key in expected.items() if number not in without)[:k]
    numbers, keys = ranking.top(k, allowed)
    assert [(-key, number) for key, number in zip(keys.tolist(), numbers.tolist(), strict=True)] == want
    assert all(ranking.key(number) == key for number, key in expected.items()) and ranking.key(45) is None
    ranking.trim(3)
    kept, _ = ranking.top(99, Bits.all(46))
    assert kept.tolist() == [number for _, number in sorted((-key, number) for number, key in expected.items())][:3]


def test_a_long_ranking_finds_the_few_that_are_allowed():
    ranking, n = Ranking(), 300_000
    keys = np.random.default_rng(1).permutation(n).astype(np.float64)
    ranking.fill(np.arange(n, dtype=np.int32), keys)
    ranking.put(5, -1.0)
    low = np.flatnonzero(keys < 40).astype(np.int32)
    allowed = Bits.none(n)
    allowed.set(low)
    allowed.set(np.array([5], np.int32))
    numbers, found = ranking.top(30, allowed)
    assert found.tolist() == list(range(39, 9, -1)) or 5 in low
    assert set(numbers.tolist()) <= {*low.tolist(), 5}
    assert ranking.top(100, allowed)[0].tolist()[-1] == 5


def test_what_merges_copy_grows_with_what_is_put_and_not_with_its_square(monkeypatch):
    monkeypatch.setattr(ranks, "_LATELY_MAX", 16)
    monkeypatch.setattr(ranks, "_LATELY_PART", 16)
    ranking, copied, merge = Ranking(), [], Ranking._merge
    monkeypatch.setattr(Ranking, "_merge", lambda self: (copied.append(len(self)), merge(self)))
    for number in range(10_000):
        ranking.put(number, float(number))
    assert 10_000 < sum(copied) < 20 * 10_000
    assert ranking.top(3, Bits.all(10_000))[0].tolist() == [9999, 9998, 9997]


def test_a_ranking_can_be_looked_at_while_it_changes(often):
    ranking, stop, wrong = Ranking(), threading.Event(), []
    ranking.fill(np.arange(5000, dtype=np.int32), np.zeros(5000))
    allowed = Bits.all(5000)

    def look() -> None:
        while not stop.is_set():
            numbers, keys = ranking.top(300, allowed)
            if len(set(numbers.tolist())) != 300 or (np.diff(keys) > 0).any():
                wrong.append(numbers)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(15_000):
        ranking.put(number * 7 % 5000, float(number % 100))
    stop.set()
    reader.join()
    assert not wrong


def test_the_newest_are_those_created_last_also_after_a_change():
    catalogue = Catalogue()
    path = Newest(catalogue)
    for number in range(5):
        catalogue.upsert(f"i{number}", {"created": 10 * number + 1}, 100.0)
    allowed = Filters(catalogue)
    assert path.recall(scene(allowed.allowed(Rule())), 2).numbers.tolist() == [4, 3]
    catalogue.upsert("i1", {"created": 99}, 100.0)
    catalogue.remove("i4")
    assert path.recall(scene(allowed.allowed(Rule()), now=100.0), 2).numbers.tolist() == [1, 3]
    assert path.recall(scene(allowed.allowed(Rule()), now=100.0), 2).scores.tolist() == [-1.0, -69.0]


def films() -> Catalogue:
    catalogue = Catalogue()
    for item, tags, category, vector in (
        ("alien", ["space", "horror"], "film", [1.0, 0.1]),
        ("aliens", ["space", "horror"], "film", [1.0, 0.0]),
        ("gravity", ["space"], "film", [0.9, 0.3]),
        ("notebook", ["love"], "film", [0.0, 1.0]),
        ("titanic", ["love", "sea"], "film", [0.1, 1.0]),
        ("song", [], "music", [1.0, 0.05]),
    ):
        catalogue.upsert(item, {"tags": tags, "category": category, "embedding": vector}, 1.0)
    return catalogue


def named(catalogue: Catalogue, found: Found) -> list[str]:
    return catalogue.names(found.numbers)


def test_tags_of_what_was_done_lately_weigh_most():
    catalogue = films()
    path, everything = Tags(catalogue, half_after=1.0), Bits.all(6)
    like = catalogue.numbers
    found = path.recall(scene(everything, tuple(like(["titanic", "alien"]))), 9)
    assert set(named(catalogue, found)[:2]) == {"alien", "aliens"} and "song" not in named(catalogue, found)
    found = path.recall(scene(everything, tuple(like(["alien", "alien", "titanic"]))), 9)
    assert named(catalogue, found)[0] == "titanic"
    assert not len(path.recall(scene(everything, (5, -1, 77)), 9).numbers), "no tags: nothing known"


def test_similar_is_by_tags_and_embedding_and_never_itself():
    catalogue = films()
    everything, path = Bits.all(6), SimilarToLast(catalogue)
    found = named(catalogue, path.recall(scene(everything, (catalogue.number("alien"),)), 9))
    assert found[0] == "aliens" and "alien" not in found and found.index("gravity") < found.index("notebook")
    assert "song" in found, "nothing in common but the embedding"
    assert "song" not in named(catalogue, SimilarToLast(catalogue, exact_max=3).recall(scene(everything, (0,)), 9)), (
        "too many to compare all, and no index"
    )
    assert "song" in named(catalogue, Similar(catalogue).recall(scene(everything, (0,)), 9))
    bare = Catalogue()
    for item in ("a", "b", "c"):
        bare.upsert(item, {"category": "x" if item != "c" else "y"}, 1.0)
    assert named(bare, SimilarToLast(bare).recall(scene(Bits.all(3), (0,)), 9)) == ["b"]


def test_that_embeddings_find_nothing_among_too_many_items_is_said_once(caplog):
    catalogue, everything = films(), Bits.all(6)
    for path in (SimilarToLast(catalogue, exact_max=6), Similar(catalogue), SimilarToLast(catalogue, exact_max=3)):
        assert not caplog.text
        for _ in range(3):
            path.recall(scene(everything, (0,)), 9)
    assert caplog.text.count("6 items, and embeddings find items among 3 at most") == 1


def test_a_given_list_keeps_its_order_without_strangers():
    allowed = Bits.all(10)
    allowed.clear(np.array([3], np.int32))
    found = Given().recall(scene(allowed, given=(7, 3, -1, 2, 7, 99, 5)), 2)
    assert found.numbers.tolist() == [7, 2] and found.scores.tolist() == [1.0, 0.5]


def test_an_empty_catalogue_and_an_unknown_user_give_nothing():
    catalogue = Catalogue()
    for path in all_of(catalogue, Popular()):
        assert len(path.recall(scene(Bits.none(0), (3, -1)), 10).numbers) == 0


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="half life"):
        Popular(half_life_s=0)
