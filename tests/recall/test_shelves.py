"""Shelves: vectors of all items in an index and beside it, and the paths that search them."""

from __future__ import annotations

import numpy as np
import pytest
import towers_house
from hypothesis import given
from hypothesis import strategies as st
from shelves import QUICK, RULES, SOME, STEPS, scene, tell
from towers_house import HISTORY, WIDTH, telling, vectors

from millstream import errors
from millstream.meter import Meter
from millstream.models import Repository
from millstream.recall import ann, born
from millstream.recall.ann import Base
from millstream.recall.born import Beside, Born
from millstream.recall.build import build
from millstream.recall.catalogue import Catalogue
from millstream.recall.cooccur import Positives
from millstream.recall.filters import Filters
from millstream.recall.index import About, Index, Indexes, write
from millstream.recall.liked import Gathered
from millstream.recall.paths import SimilarToLast
from millstream.recall.scene import Bits
from millstream.recall.settings import BuildSettings, FactorSettings
from millstream.recall.shelf import CONTENT, TOWERS, Names, Shelf, Shelved
from millstream.recall.towers import Retrieval, Towers

NOTHING = Gathered(Positives(*(np.empty(0, kind) for kind in ("i4", "i4", "f8"))), [], 0)
TELLING = telling()


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    repository, folder = Repository(tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("files")
    version = towers_house.put(repository, folder, 1, "h", user=1, item=2)
    return Towers.open(repository, "towers", version, "h")


def shelf_of(folder, name: str, items: list[str], base: Base, version: str = "") -> Shelf:
    """As an index has it."""
    Shelf(items, base, version).save(folder, name)
    return Shelf.open(folder, name, version)


def settle(watching: Born) -> None:
    """Everything that is waiting is added."""
    for _ in range(10):
        if (part := watching.part()) is not None:
            part()


def test_the_towers_of_a_version_say_what_their_tables_say(towers):
    items, history = TELLING.items(["a1", "b2"]), TELLING.history(["a1", "b2", "c3"], HISTORY)
    assert (towers.width, towers.history, towers.user_width) == (WIDTH, HISTORY, 1)
    np.testing.assert_allclose(towers.items(items), vectors(1, items), rtol=1e-5)
    user = TELLING.user("u", {})
    np.testing.assert_allclose(towers.users(user, history), vectors(1, user, history), rtol=1e-5)
    assert towers.items(items[:0]).shape == (0, WIDTH)


def test_a_version_that_is_no_pair_of_towers_or_of_other_features_is_refused(tmp_path):
    repository = Repository(tmp_path / "models")
    version = towers_house.put(repository, tmp_path / "files", 1, "h", user=1, item=2)
    with pytest.raises(errors.Misconfigured, match="train offline --model towers"):
        Towers.open(repository, "towers", version, "other features")
    with pytest.raises(errors.NotFound):
        Towers.open(repository, "towers", "9", "h")
    items = tmp_path / "models" / "towers" / version / "items.onnx"
    items.write_bytes(items.read_bytes()[:-1] + b"x")
    with pytest.raises(errors.Corrupt, match=r"items\.onnx"):
        Towers.open(repository, "towers", version, "h")


def test_shelves_come_back_with_their_index_and_a_damaged_one_spoils_it(tmp_path, caplog):
    rows = np.random.default_rng(0).normal(size=(12_345, 4)).astype(np.float32)
    items = [f"item {row} é \ud800" for row in range(len(rows))]
    shelves = {CONTENT: Shelf(items, Base.build(rows, "cosine")), TOWERS: Shelf([], Base.build(rows[:0]), "7")}
    made = build(NOTHING, BuildSettings(factors=FactorSettings(width=2)))._replace(shelves=shelves)
    for _ in range(2):
        write(tmp_path, made, About())
    found = Indexes(tmp_path).newest()
    assert found.about.shelves == {CONTENT: "", TOWERS: "7"}
    held = found.contents.shelves[CONTENT]
    assert [one for _, some in held.names for one in some] == items and len(held.names) == len(items)
    np.testing.assert_array_equal(held.base.vectors, shelves[CONTENT].base.vectors)
    assert len(found.contents.shelves[TOWERS].names) == 0 and found.contents.shelves[TOWERS].version == "7"
    (tmp_path / "2" / "content_names.npy").write_bytes(b"other")
    assert Indexes(tmp_path).newest().number == 1 and "content_names.npy" in caplog.text


def test_an_index_from_before_there_were_shelves_is_read(tmp_path):
    folder = write(tmp_path, build(NOTHING, BuildSettings(factors=FactorSettings(width=2))), About())
    toml = folder / "index.toml"
    toml.write_text(toml.read_text().replace("[shelves]\n", ""))
    assert Index.open(folder).contents.shelves == {}


@QUICK
@given(STEPS, RULES, SOME, SOME, st.integers(0, 30), st.integers(0, 60), st.booleans())
def test_nothing_forbidden_and_nothing_twice_comes_out_of_a_shelf(
    towers, tmp_path_factory, steps, rule, history, exclude, k, built, seen_once
):
    """Items before step `built` are on the shelves, the others are born later, some told again."""
    folder = tmp_path_factory.mktemp("shelves")
    before, catalogue = Catalogue(), Catalogue()
    tell(before, steps[:built])
    names = before.names(np.flatnonzero(before.alive).astype(np.int32))
    has = np.flatnonzero(~np.isnan(before.embedding).any(axis=1)) if before.embedding.shape[1] else []
    content = before.embedding[has].reshape(len(has), -1) if len(has) else np.empty((0, 2), np.float32)
    on = {
        TOWERS: shelf_of(folder, TOWERS, names, Base.build(towers.items(TELLING.items(names))), "1"),
        CONTENT: shelf_of(folder, CONTENT, [before.name(one) for one in has], Base.build(content, "cosine")),
    }
    if seen_once:
        tell(catalogue, steps[: built // 2])
    shelved = {name: Shelved(one, catalogue) for name, one in on.items()}
    watching = Born(catalogue, TELLING, Meter())
    watching.watch()
    beside = (Beside(shelved[TOWERS], towers), Beside(shelved[CONTENT]))
    watching.begin(beside, watching.missing(beside, 100.0 + built))
    tell(catalogue, steps)
    settle(watching)
    retrieval = Retrieval(shelved[TOWERS].ann, towers, TELLING, catalogue)
    similar = SimilarToLast(catalogue, exact_max=0, near=shelved[CONTENT].ann)
    allowed = Filters(catalogue).allowed(rule, exclude=np.array(exclude[:2], np.int32))
    for path in (retrieval, similar):
        if path is similar and catalogue.embedding.shape[1] != shelved[CONTENT].ann.width:
            continue
        numbers, scores = path.recall(scene(allowed, history), k)
        assert numbers.dtype == np.int32 and scores.dtype == np.float32 and len(numbers) == len(scores) <= k
        assert allowed.test(numbers).all() and len(set(numbers.tolist())) == len(numbers), path.name
        assert (np.diff(scores) <= 0).all() and not np.isnan(scores).any(), path.name
    assert len(retrieval.recall(scene(allowed, history), k).numbers) == min(k, allowed.count()), (
        "whatever is allowed is on the shelf or beside it"
    )


def film(catalogue: Catalogue, *items: str, told: float = 1.0, **more) -> None:
    for item in items:
        catalogue.upsert(item, more, told)


def opened(folder, towers, names, catalogue):
    shelf = shelf_of(folder, TOWERS, names, Base.build(towers.items(TELLING.items(names))), "1")
    shelved, watching = Shelved(shelf, catalogue), Born(catalogue, TELLING, Meter())
    beside = (Beside(shelved, towers),)
    watching.watch()
    watching.begin(beside, watching.missing(beside, 100.0))
    return shelved, watching, Retrieval(shelved.ann, towers, TELLING, catalogue)


def best_by_hand(names: list[str], user: str, liked: list[str]) -> list[str]:
    """In plain numpy: all vectors, all products."""
    asked = vectors(1, TELLING.user(user, {}), TELLING.history(liked, HISTORY))[0]
    scores = vectors(1, TELLING.items(names)) @ asked
    return [names[at] for at in np.argsort(-scores)]


def test_an_item_born_after_the_build_is_found_in_its_place(tmp_path, towers):
    catalogue, old = Catalogue(), [f"a{n}" for n in range(20)]
    film(catalogue, *old)
    shelved, watching, path = opened(tmp_path, towers, old, catalogue)
    settle(watching)
    assert shelved.ann.born == 0
    asked = lambda: scene(Bits.all(catalogue.count), (0, 5, 3), user="u")  # noqa: E731
    found = catalogue.names(path.recall(asked(), 40).numbers)
    assert found == best_by_hand(old, "u", ["a0", "a5", "a3"])
    film(catalogue, "b1", "b2", told=200.0)
    assert len(path.recall(asked(), 40).numbers) == 20, "nobody has looked yet"
    settle(watching)
    found = catalogue.names(path.recall(asked(), 40).numbers)
    assert found == best_by_hand([*old, "b1", "b2"], "u", ["a0", "a5", "a3"]) and shelved.ann.born == 2


def test_who_likes_nothing_and_is_nobody_is_no_error(tmp_path, towers):
    catalogue = Catalogue()
    _, watching, path = opened(tmp_path, towers, [], catalogue)
    assert len(path.recall(scene(Bits.none(0), (3, -1), user=""), 10).numbers) == 0
    film(catalogue, "a1")
    settle(watching)
    assert len(path.recall(scene(Bits.all(1), (), user=""), 10).numbers) == 0, "a vector of 0 asks for nothing"
    assert catalogue.names(path.recall(scene(Bits.all(1), (), user="somebody new"), 10).numbers) == ["a1"]


def test_what_is_told_again_as_it_was_costs_no_room_and_a_shelf_that_is_full_says_so(
    tmp_path, towers, monkeypatch, caplog
):
    catalogue, old = Catalogue(), [f"a{n}" for n in range(20)]
    film(catalogue, *old)
    shelved, watching, _ = opened(tmp_path, towers, old, catalogue)
    film(catalogue, *old, told=300.0)
    settle(watching)
    assert shelved.ann.born == 0
    monkeypatch.setattr(ann, "TIER_ROWS", 3)
    monkeypatch.setattr(born, "PART", 2)
    film(catalogue, *(f"b{n}" for n in range(9)), told=300.0)
    settle(watching)
    assert shelved.ann.born == 3 and caplog.text.count("wait for the next index") == 1


def test_an_item_of_the_shelf_that_this_process_hears_of_late_comes_once(tmp_path, towers):
    catalogue, old = Catalogue(), [f"a{n}" for n in range(6)]
    film(catalogue, "a0", "a1")
    shelved, watching, path = opened(tmp_path, towers, old, catalogue)
    film(catalogue, *old[2:], told=200.0)
    settle(watching)
    assert shelved.ann.born == 0, "they have rows"
    found = catalogue.names(path.recall(scene(Bits.all(6), (0,), user="u"), 10).numbers)
    assert found == best_by_hand(old, "u", ["a0"])


def test_embeddings_find_what_is_alike_at_any_size_also_when_born_later(tmp_path):
    random, catalogue = np.random.default_rng(3), Catalogue()
    rows = random.normal(size=(25_000, 6)).astype(np.float32)
    with catalogue.together():
        for number, row in enumerate(rows):
            catalogue.upsert(f"i{number}", {"embedding": row.tolist()}, 1.0)
    known = 24_990
    base = Base.build(rows[:known], "cosine")
    shelved = Shelved(shelf_of(tmp_path, CONTENT, [f"i{n}" for n in range(known)], base), catalogue)
    watching = Born(catalogue, None, Meter())
    watching.watch()
    watching.begin((Beside(shelved),), watching.missing((Beside(shelved),), 100.0))
    settle(watching)
    catalogue.upsert("i7", {"embedding": (-rows[7]).tolist()}, 200.0)
    settle(watching)
    assert shelved.ann.born == 11 and base.lists is not None
    rows[7] *= -1
    unit, hits = rows / np.linalg.norm(rows, axis=1, keepdims=True), 0
    path, blind = (SimilarToLast(catalogue, exact_max=9, near=near) for near in (shelved.ann, None))
    for liked in (0, 7, known + 3):
        asked = scene(Bits.all(25_000), (liked,))
        cosines = unit @ unit[liked]
        cosines[liked] = -2
        hits += len(set(np.argsort(-cosines)[:50].tolist()) & set(path.recall(asked, 50).numbers.tolist()))
        assert len(blind.recall(asked, 50).numbers) == 0, "no index, and too many to compare"
    assert hits >= 0.9 * 150
    mirrored = path.recall(scene(Bits.all(25_000), (known + 3,)), 25_000).numbers.tolist()
    assert mirrored.count(7) <= 1


def test_an_embedding_of_another_width_is_left_out(tmp_path):
    catalogue = Catalogue()
    film(catalogue, "a", "b", embedding=[1.0, 0.0])
    shelf = shelf_of(tmp_path, CONTENT, ["a", "b"], Base.build(np.eye(3, dtype=np.float32)[:2], "cosine"))
    shelved, watching = Shelved(shelf, catalogue), Born(catalogue, None, Meter())
    watching.watch()
    watching.begin((Beside(shelved),), np.array([0, 1], np.int32))
    film(catalogue, "c", embedding=[1.0, 2.0, 3.0], told=200.0)
    settle(watching)
    assert shelved.ann.born == 0


def test_items_without_an_embedding_are_not_looked_at_with_each_index(tmp_path, towers):
    catalogue = Catalogue()
    film(catalogue, "bare", "plain", told=1.0)
    film(catalogue, "a", "b", "late", embedding=[1.0, 0.0])
    shelf = shelf_of(tmp_path, CONTENT, ["a", "b"], Base.build(np.eye(2, dtype=np.float32), "cosine"))
    content, watching = Beside(Shelved(shelf, catalogue)), Born(catalogue, TELLING, Meter())
    assert catalogue.names(watching.missing((content,), 100.0)) == ["late"]
    film(catalogue, "plain", told=200.0)
    assert catalogue.names(watching.missing((content,), 100.0)) == ["plain", "late"], "told of since"
    names = ["a", "b", "bare"]
    vectors_of = shelf_of(tmp_path, TOWERS, names, Base.build(towers.items(TELLING.items(names))), "1")
    both = (content, Beside(Shelved(vectors_of, catalogue), towers))
    assert catalogue.names(watching.missing(both, 300.0)) == ["plain", "late"], "towers make one of every item"
    nobody = Catalogue()
    film(nobody, "bare")
    assert len(Born(nobody, None, Meter()).missing((Beside(Shelved(shelf, nobody)),), 100.0)) == 0


def test_names_by_rows(tmp_path):
    Names.save(tmp_path, "", [])
    assert list(Names(tmp_path)) == [] and len(Names(tmp_path)) == 0
