"""Nearest vectors: what is found of what is exact, inside every filter, with what was born since."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.recall import ann
from millstream.recall.ann import Ann, Base, Places, nearest
from millstream.recall.scene import Bits

WIDTH = 16


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """Clustered, of different lengths: what factors of items look like."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, WIDTH))
    rows = centres[random.integers(0, 40, n)] + 0.6 * random.normal(size=(n, WIDTH))
    return (rows * random.lognormal(0, 0.4, (n, 1))).astype(np.float32)


@pytest.fixture(scope="module", params=["sq8", "pq"])
def large(request) -> tuple[np.ndarray, Base]:
    rows = vectors(30_000)
    return rows, Base.build(rows, queries=vectors(300, 1), codes=request.param)


def exact(rows: np.ndarray, query: np.ndarray, k: int, mask: np.ndarray) -> set[int]:
    inside = np.flatnonzero(mask)
    return set(inside[np.argsort(-(rows[inside] @ query))[:k]].tolist())


def test_a_base_finds_what_it_says_it_finds(large):
    rows, base = large
    assert base.measured.lists and base.measured.recall >= 0.96
    asked = vectors(200, 2)
    found = [Ann(base).search(one, 100, Bits.all(len(rows))).numbers for one in asked]
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, nearest(rows, asked, 100), strict=True)]
    assert np.mean(hits) / 100 > 0.95


@pytest.mark.parametrize("cheaper", [400, 1])  # asked of each code, or left out afterwards
@pytest.mark.parametrize("share", [0.8, 0.7, 0.3, 0.05, 0.002])
def test_a_filter_holds_and_costs_no_recall(large, share, cheaper, monkeypatch):
    monkeypatch.setattr(ann, "_CHEAPER", cheaper)
    monkeypatch.setattr(ann, "FLAT_ROWS", 1000)  # so that most of these go by lists
    monkeypatch.setattr(ann, "_DEARER", 1000)
    rows, base = large
    search, hits, wanted = Ann(base), 0, 0
    for seed, query in enumerate(vectors(30, 3)):
        mask = np.random.default_rng(seed).random(len(rows)) < share
        found = search.search(query, 50, Bits.of(mask))
        assert mask[found.numbers].all() and len(set(found.numbers.tolist())) == min(50, mask.sum())
        assert (np.diff(found.scores) <= 0).all()
        np.testing.assert_allclose(found.scores, rows[found.numbers] @ query, rtol=1e-4, atol=1e-4)
        hits += len(exact(rows, query, 50, mask) & set(found.numbers.tolist()))
        wanted += len(found.numbers)
    assert hits / wanted > 0.93


def test_what_is_allowed_far_from_the_query_is_found_all_the_same(large, monkeypatch):
    monkeypatch.setattr(ann, "FLAT_ROWS", 100)
    monkeypatch.setattr(ann, "_DEARER", 1000)
    rows, base = large
    query = vectors(1, 4)[0]
    away = rows @ query
    mask = away < np.quantile(away, 0.02)
    found = Ann(base).search(query, 100, Bits.of(mask))
    assert len(found.numbers) == 100 and mask[found.numbers].all()


def test_where_lists_would_be_dearer_what_is_allowed_is_scored_one_by_one(large, monkeypatch):
    monkeypatch.setattr(ann, "FLAT_ROWS", 100)
    monkeypatch.setattr(ann, "_DEARER", 1)
    rows, base = large
    mask = np.random.default_rng(0).random(len(rows)) < 0.01
    for query in vectors(20, 9):
        assert set(Ann(base).search(query, 50, Bits.of(mask)).numbers.tolist()) == exact(rows, query, 50, mask)


def test_fewer_come_only_where_fewer_are_allowed(large):
    rows, base = large
    mask = np.zeros(len(rows), np.bool_)
    mask[[5, 29_999]] = True
    assert set(Ann(base).search(rows[0], 10, Bits.of(mask)).numbers.tolist()) == {5, 29_999}
    assert not len(Ann(base).search(rows[0], 10, Bits.none(len(rows))).numbers)


def test_a_base_comes_back_from_its_files(large, tmp_path):
    rows, base = large
    base.save(tmp_path, "factors")
    again = Base.open(tmp_path, "factors")
    assert again.measured == base.measured
    query, everything = vectors(1, 5)[0], Bits.all(len(rows))
    np.testing.assert_array_equal(
        Ann(again).search(query, 50, everything).numbers, Ann(base).search(query, 50, everything).numbers
    )
    (tmp_path / "factors.faiss").write_bytes(b"torn")
    with pytest.raises(errors.Corrupt, match="factors"):
        Base.open(tmp_path, "factors")


def test_a_code_is_a_byte_a_number_or_one_for_four(large, tmp_path):
    rows, base = large
    base.save(tmp_path, "factors")
    each = {"sq8": WIDTH, "pq": WIDTH // 4}[base.measured.codes] + 8  # and which row it is
    centres = 4 * WIDTH * (base.measured.lists + 256)
    assert 0 < (tmp_path / "factors.faiss").stat().st_size - len(rows) * each < 2 * centres


def test_lists_are_not_looked_into_for_what_codes_lose(monkeypatch):
    monkeypatch.setattr(ann, "_BROUGHT", {"pq": 1.0})
    base = Base.build(vectors(30_000), queries=vectors(300, 1), codes="pq")
    assert 0.7 < base.measured.recall < 0.96
    assert base.measured.probes < base.measured.lists / 4


@pytest.mark.parametrize("cheaper", [400, 1])
def test_a_filter_that_goes_with_the_query_costs_no_recall(large, cheaper, monkeypatch):
    monkeypatch.setattr(ann, "_CHEAPER", cheaper)
    monkeypatch.setattr(ann, "FLAT_ROWS", 100)
    monkeypatch.setattr(ann, "_DEARER", 1000)
    rows, base = large
    hits = 0
    for query in vectors(20, 10):
        near = rows @ query
        for mask in (near > np.quantile(near, 0.8), near < np.quantile(near, 0.5)):
            found = Ann(base).search(query, 50, Bits.of(mask)).numbers
            assert mask[found].all() and len(found) == 50
            hits += len(exact(rows, query, 50, mask) & set(found.tolist())) if mask[np.argmax(near)] else 0
    assert hits / (20 * 50) > 0.93


@pytest.mark.parametrize(("width", "bytes_each"), [(6, 3), (7, 7)])
def test_any_width_can_be_coded_in_short(width, bytes_each):
    rows = np.random.default_rng(0).normal(size=(12_000, width)).astype(np.float32)
    base = Base.build(rows, flat_rows=1000, codes="pq")
    assert base.lists.code_size == bytes_each and base.measured.recall >= 0.96
    query = rows[5]
    found = Ann(base).search(query, 10, Bits.all(len(rows)))
    np.testing.assert_allclose(found.scores, rows[found.numbers] @ query, rtol=1e-4, atol=1e-4)


def test_what_was_born_since_is_found_at_once_and_the_new_vector_of_a_known_item_counts(large):
    rows, base = large
    search, everything = Ann(base), Bits.all(len(rows) + 10)
    query = vectors(1, 6)[0]
    assert search.add(np.array([30_005], np.int32), 100 * query[None]) == 1
    assert search.search(query, 5, everything).numbers[0] == 30_005
    best = int(search.search(query, 5, everything).numbers[1])
    search.add(np.array([best, 7], np.int32), np.stack([-query, 50 * query]))
    found = search.search(query, 100, everything).numbers.tolist()
    assert found[:2] == [30_005, 7] and best not in found and len(set(found)) == 100
    everything.clear(np.array([30_005], np.int32))
    assert 30_005 not in search.search(query, 5, everything).numbers
    assert search.born == 3


def test_the_tier_has_a_bound(monkeypatch):
    monkeypatch.setattr(ann, "TIER_ROWS", 3)
    search = Ann(Base.build(vectors(10)))
    assert search.add(np.arange(10, 15, dtype=np.int32), vectors(5)) == 3
    assert search.born == 3
    assert search.add(np.array([11], np.int32), vectors(1)) == 1  # a new vector of one that is in it


def test_rows_stand_where_the_process_has_them():
    rows = vectors(50)
    places = Places(50)
    places.set(np.arange(49, dtype=np.int32), np.arange(149, 100, -1, dtype=np.int32))  # row 49: nobody knows it
    search = Ann(Base.build(rows), places)
    found = search.search(rows[3], 50, Bits.all(1000))
    assert set(found.numbers.tolist()) == set(range(101, 150))
    assert found.numbers[0] == 149 - int(np.argmax(rows[:49] @ rows[3]))
    np.testing.assert_array_equal(places.rows(np.array([149, 101, 100, 5000, -1])), [0, 48, -1, -1, -1])


def test_cosines_do_not_see_lengths():
    rows = vectors(200)
    search = Ann(Base.build(rows, "cosine"))
    found = search.search(rows[3] * 9, 5, Bits.all(200))
    assert found.numbers[0] == 3 and found.scores[0] == pytest.approx(1, abs=1e-5)


def test_strange_queries_find_nothing_and_wrong_widths_are_refused():
    search = Ann(Base.build(vectors(50)))
    for query in (np.zeros(WIDTH), np.full(WIDTH, np.nan), np.full(WIDTH, np.inf)):
        assert not len(search.search(query.astype(np.float32), 5, Bits.all(50)).numbers)
    with pytest.raises(errors.BadInput, match="16"):
        search.search(np.ones(3, np.float32), 5, Bits.all(50))
    with pytest.raises(errors.BadInput, match="16"):
        search.add(np.array([1], np.int32), np.ones((1, 3), np.float32))
    with pytest.raises(errors.BadInput, match="finite"):
        Base.build(np.full((5, WIDTH), np.nan, np.float32))
    assert search.add(np.array([1], np.int32), np.full((1, WIDTH), np.nan, np.float32)) == 0
    empty = Ann(Base.build(np.empty((0, WIDTH), np.float32)))
    assert not len(empty.search(np.ones(WIDTH, np.float32), 5, Bits.none(0)).numbers)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 80), born=st.integers(0, 30), k=st.integers(1, 40), seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
)  # fmt: skip
def test_below_the_bound_every_answer_is_exact(n, born, k, seed, share):
    rows = vectors(n + born, seed)
    search = Ann(Base.build(rows[:n]))
    search.add(np.arange(n, n + born, dtype=np.int32), rows[n:])
    mask = np.random.default_rng(seed).random(n + born) < share
    query = vectors(1, seed + 1)[0]
    found = search.search(query, k, Bits.of(mask))
    assert set(found.numbers.tolist()) == exact(rows, query, k, mask)


def test_many_search_while_one_adds(large):
    rows, base = large
    search, everything = Ann(base), Bits.all(len(rows) + 2000)
    queries, wrong = vectors(20, 8), []

    def ask() -> None:
        for query in queries:
            found = search.search(query, 20, everything)
            if len(set(found.numbers.tolist())) != 20 or found.numbers.max() >= len(rows) + 2000:
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for at in range(0, 2000, 50):
        search.add(np.arange(len(rows) + at, len(rows) + at + 50, dtype=np.int32), vectors(50, at))
    for thread in threads:
        thread.join()
    assert not wrong and search.born == 2000
