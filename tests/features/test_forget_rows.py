"""Entities that are forgotten leave rows, state and snapshots; all others stay bit for bit."""

import numpy as np
import pytest

from millstream.clock import FakeClock
from millstream.features import Aggregate, Column, Definition, Entities, FeatureSet, Source
from millstream.features.events import keys_of
from millstream.features.forget import forget
from millstream.features.pipeline import Pipeline, folder_of
from millstream.features.snapshot import SNAPSHOT, read
from millstream.features.state import State
from millstream.meter import Meter
from millstream.store import rowfile
from millstream.store.rows import RowFile
from millstream.stream import Log, encode
from millstream.types import Fact, Outcome, Served

PAGES = Source(name="pages", columns={"user": "text", "page": "text", "seconds": "number"})
OUTCOMES = Source(name="outcomes", columns={"user": "text", "item": "text", "kind": "text"})
PEOPLE = FeatureSet(
    name="people",
    features=(
        Aggregate(name="spent", source=PAGES, key="user", op="sum", column="seconds", window="1d"),
        Aggregate(name="pages", source=PAGES, key="user", op="last_n", column="page", n=3, datatype="UINT32"),
        Aggregate(name="clicks", source=OUTCOMES, key="user", op="count"),
        Aggregate(name="clicked", source=OUTCOMES, key="item", op="count"),
    ),
)
NAMES = [f"u{n}" for n in range(40)]
GONE = ["u3", "u0", "u39", "nobody"]
LEFT = [name for name in NAMES if name not in GONE]


def mine(name):
    return name in GONE


class World:
    def __init__(self, folder):
        self.folder, self.clock = folder, FakeClock(1_700_000_000.0)
        self.log = Log(folder / "log", self.clock)
        self.pages, self.served, self.outcomes = (self.log.writer(t) for t in ("pages", "served", "outcomes"))

    def live(self):
        for number, name in enumerate(NAMES * 3):
            self.clock.advance(0.01)
            self.pages.append(b"", encode(self.fact(name, number)))
            served = Served(
                request=f"r{name}", model="m", version="1", policy=1, arm="live", user=name, candidates=["i"],
                event_time=self.clock.now(),
            )  # fmt: skip
            self.served.append(b"", encode(served))
            self.outcome(name)

    def fact(self, name, number):
        values = {"user": name, "page": f"p{number}", "seconds": float(number)}
        return Fact(event_time=self.clock.now(), values=values)

    def outcome(self, name):
        event = Outcome(request=f"r{name}", item="i", kind="click", event_time=self.clock.now())
        self.outcomes.append(b"", encode(event))

    def pipeline(self):
        return Pipeline(PEOPLE, self.log, self.folder / "rows", self.clock, Meter())

    def step(self, pipeline):
        self.clock.advance(1.0)
        while pipeline.step():
            pass


def rows(folder, names):
    (path,) = folder.rglob("user.rows")
    store = RowFile.open(path, rowfile.Sheet(path).width, PEOPLE.hash)
    found = store.get(keys_of(names))
    return found.written != 0, found.rows


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.live()
    yield world
    world.log.close()


def test_a_pipeline_forgets_and_goes_on_with_the_others(world, tmp_path):
    pipeline, other = world.pipeline(), State(PEOPLE)
    world.step(pipeline)
    _, before = rows(tmp_path, LEFT)
    assert pipeline.forget("user", keys_of(GONE), mine) == 3
    world.step(pipeline)
    there, after = rows(tmp_path, LEFT)
    assert there.all() and np.array_equal(after, before)
    assert not rows(tmp_path, GONE)[0].any()
    # places have moved: what comes now must reach those whose it is
    world.clock.advance(1.0)
    world.pages.append(b"", encode(world.fact("u38", 1000)))
    world.outcome("u3")  # of a request that nobody made any more
    world.step(pipeline)
    changed = (rows(tmp_path, LEFT)[1] != after).any(axis=1)
    assert [name for name, one in zip(LEFT, changed, strict=True) if one] == ["u38"]
    assert not rows(tmp_path, GONE)[0].any()
    pipeline.abandon()  # killed: what was forgotten stays so
    stand = read(folder_of(PEOPLE, tmp_path / "rows") / SNAPSHOT, other)
    assert not (other.entities["user"].places.find(keys_of(GONE)) >= 0).any()
    assert not set(stand.users.values()) & set(GONE) and set(stand.users.values()) == set(LEFT)
    again = world.pipeline()
    world.step(again)
    assert not rows(tmp_path, GONE)[0].any() and rows(tmp_path, LEFT)[0].all()
    again.close()


def test_files_of_a_set_that_nobody_keeps(world, tmp_path):
    pipeline = world.pipeline()
    world.step(pipeline)
    found = forget(tmp_path / "rows", "user", keys_of(GONE), mine)
    assert found.kept == [f"people-{PEOPLE.hash}"] and not found.rows  # its pipeline does it
    pipeline.close()
    before, states = rows(tmp_path, LEFT)[1], (State(PEOPLE), State(PEOPLE))
    path = folder_of(PEOPLE, tmp_path / "rows") / SNAPSHOT
    stood = read(path, states[0])
    found = forget(tmp_path / "rows", "user", keys_of(GONE), mine)
    assert (found.rows, found.snapshots, found.kept) == (3, 3, [])
    assert np.array_equal(rows(tmp_path, LEFT)[1], before) and not rows(tmp_path, GONE)[0].any()
    stands = read(path, states[1])
    at = int(world.clock.now() * 1e6) + 1
    assert np.array_equal(*(one.read("user", keys_of(LEFT), at) for one in states), equal_nan=True)
    assert np.array_equal(*(one.read("item", keys_of(["i"]), at) for one in states), equal_nan=True)
    assert stands.offsets == stood.offsets and set(stands.users.values()) == set(LEFT)
    again = forget(tmp_path / "rows", "user", keys_of(GONE), mine)
    assert (again.rows, again.snapshots) == (0, 0)
    assert forget(tmp_path / "nowhere", "user", keys_of(GONE), mine).rows == 0


def test_another_kind_keeps_its_rows(world, tmp_path):
    pipeline = world.pipeline()
    world.step(pipeline)
    assert pipeline.forget("driver", keys_of(NAMES), mine) == 0
    assert pipeline.forget("item", keys_of(["i"]), mine) == 1
    world.step(pipeline)
    assert rows(tmp_path, NAMES)[0].all()
    pipeline.close()


def test_attributes_are_forgotten_and_those_of_others_stay():
    entities = Entities(Definition(user=(Column("id"), Column("city")), item=(Column("id"),)), limit=40)
    for name in NAMES:
        entities.upsert("user", name, {"city": f"city of {name}"})
    before = {name: entities.rows(name, ["i"]) for name in NAMES}
    assert entities.forget("user", mine) == 3 and entities.forget("user", mine) == 0
    assert all(np.array_equal(entities.rows(name, ["i"]), before[name]) for name in LEFT)
    assert not np.array_equal(entities.rows("u3", ["i"]), before["u3"])
    for name in ("n1", "n2", "n3", "n4"):  # to the limit and beyond it: the one described longest ago goes
        entities.upsert("user", name, {"city": "new"})
    assert entities.count("user") == 40 and entities.forgotten == 1
    assert np.array_equal(entities.rows("u2", ["i"]), before["u2"])


def test_rows_of_the_others_change_when_their_windows_move_on(tmp_path):
    """When that is was known by place, and places have moved."""
    world = World(tmp_path)
    for number, name in enumerate(NAMES):
        world.clock.advance(3600.0)
        world.pages.append(b"", encode(world.fact(name, number + 1)))
    pipeline = world.pipeline()
    world.step(pipeline)
    pipeline.forget("user", keys_of(GONE), mine)
    for _ in range(30):
        world.clock.advance(3600.0)
        world.step(pipeline)
        table, at = pipeline.state.entities["user"], int(world.clock.now() * 1e6)
        stored, _ = table.stored(table.places.find(keys_of(LEFT)), at)
        assert np.array_equal(rows(tmp_path, LEFT)[1], table.plan.pack(stored).view(np.uint8))
    pipeline.abandon()
    world.log.close()
