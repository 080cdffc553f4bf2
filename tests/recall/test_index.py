"""Indexes on disk: whole or absent, the newest good one counts, rows follow what a process knows."""

import numpy as np
import pytest

from millstream import errors
from millstream.recall import index as indexes
from millstream.recall.build import build
from millstream.recall.catalogue import Catalogue
from millstream.recall.cooccur import Positives
from millstream.recall.index import About, Index, Indexes, write
from millstream.recall.liked import Gathered
from millstream.recall.scene import Bits, History, Scene
from millstream.recall.settings import BuildSettings, FactorSettings

SETTINGS = BuildSettings(factors=FactorSettings(width=4, turns=5))
ITEMS = [f"item {row} é" for row in range(30)]


def contents(items: list[str] = ITEMS, seed: int = 0):
    """Two tastes: even and odd items."""
    random = np.random.default_rng(seed)
    users = np.repeat(np.arange(40, dtype=np.int32), 8)
    liked = (random.integers(0, len(items) // 2, len(users)) * 2 + users % 2).astype(np.int32)
    return build(Gathered(Positives(users, liked, np.arange(float(len(users)))), items, 40), SETTINGS)


def scene(numbers: list[int], allowed: Bits) -> Scene:
    history = History(np.array(numbers, np.int32), np.zeros(len(numbers), np.uint8), np.arange(float(len(numbers))))
    return Scene("u", 0.0, history, {}, {}, allowed, np.empty(0, np.int32), 0)


def test_what_was_built_comes_back(tmp_path):
    made = contents()
    folder = write(tmp_path, made, About(made_at=5.0, offsets={"served": {"0": 7}}, positives=320))
    found = Index.open(folder)
    assert (found.number, found.about.items, found.about.offsets) == (1, 30, {"served": {"0": 7}})
    assert [name for _, names in found.names() for name in names] == ITEMS
    held = found.contents
    for mine, other in (
        (made.neighbours.scores, held.neighbours.scores),
        (made.neighbours.lists.columns, held.neighbours.lists.columns),
        (made.near.windows.columns, held.near.windows.columns), (made.near.takers.starts, held.near.takers.starts),
        (made.model.items, held.model.items), (made.model.gram, held.model.gram),
    ):  # fmt: skip
        np.testing.assert_array_equal(mine, other)
    assert (held.model.unseen, held.model.penalty) == (made.model.unseen, made.model.penalty)
    assert found.about.bytes == sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".toml")


def test_two_are_kept_and_a_damaged_one_is_passed_over_once(tmp_path, caplog):
    made = contents()
    (tmp_path / ".9.part").mkdir()  # of a killed one
    for _ in range(3):
        write(tmp_path, made, About())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    following = Indexes(tmp_path)
    file = tmp_path / "3" / "near_scores.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert following.newest().number == 2
    assert "near_scores.npy" in caplog.text
    caplog.clear()
    assert following.newest().number == 2 and following.newest(after=2) is None
    assert not caplog.text
    write(tmp_path, made, About())
    assert following.newest(after=2).number == 4


@pytest.mark.parametrize("damage", ["gone", "text", "later", "empty"])
def test_what_cannot_be_read_says_so(tmp_path, damage):
    folder = write(tmp_path, contents(), About())
    toml = folder / "index.toml"
    if damage == "gone":
        (folder / "gram.npy").unlink()
    elif damage == "text":
        toml.write_text("format = [")
    elif damage == "later":
        toml.write_text(toml.read_text().replace("format = 1", "format = 2"))
    else:
        toml.write_text("")
    with pytest.raises(errors.Later if damage == "later" else errors.Corrupt, match=r"/1\b"):
        Index.open(folder)
    assert Indexes(tmp_path).newest() is None
    assert Indexes(tmp_path / "nowhere").newest() is None


def test_a_disk_that_is_full_changes_nothing(tmp_path, monkeypatch):
    write(tmp_path, contents(), About())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(indexes, "fsync_path", full)
    with pytest.raises(errors.Full, match="free some space"):
        write(tmp_path, contents(), About())
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_paths_answer_in_the_numbers_of_the_process(tmp_path):
    found = Index.open(write(tmp_path, contents(), About()))
    catalogue = Catalogue()
    for other in range(5):
        catalogue.upsert(f"other {other}", {}, 0.0)
    for name in reversed(ITEMS):
        catalogue.upsert(name, {}, 0.0)
    attached = found.attach(catalogue)
    everything = Bits.all(catalogue.count)
    for path in attached.paths():
        for taste in (0, 1):
            liked = catalogue.numbers([ITEMS[taste], ITEMS[taste + 2]])
            numbers = path.recall(scene(liked.tolist(), everything), 8).numbers
            assert len(numbers) == 8, path.name
            assert np.mean([int(name.split()[1]) % 2 == taste for name in catalogue.names(numbers)]) >= 0.75, path.name
            allowed = Bits.none(catalogue.count)
            allowed.set(numbers[3:5])
            assert set(path.recall(scene(liked.tolist(), allowed), 8).numbers.tolist()) <= set(numbers[3:5].tolist())


def test_items_that_a_process_hears_of_later_are_found_then(tmp_path):
    found = Index.open(write(tmp_path, contents(), About()))
    catalogue = Catalogue()
    for name in ITEMS[:10]:
        catalogue.upsert(name, {}, 0.0)
    attached = found.attach(catalogue)
    item_cf, _, factors = attached.paths()
    for path in (item_cf, factors):
        assert set(path.recall(scene([0, 2], Bits.all(10)), 30).numbers.tolist()) <= set(range(10))
    catalogue.upsert("not in it", {}, 0.0)
    for name in ITEMS[10:]:
        catalogue.upsert(name, {}, 0.0)
    assert attached.refresh() == 20 and attached.refresh() == 0
    for path in (item_cf, factors):
        numbers = path.recall(scene([0, 2], Bits.all(31)), 30).numbers
        assert numbers.max() > 10 and 10 not in numbers
