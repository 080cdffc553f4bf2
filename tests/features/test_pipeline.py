"""From the log to rows: what was acknowledged is in them once, through crashes, late events and clocks that jump."""

import random

import numpy as np
import pytest
from oracle import row

from millstream import errors
from millstream.clock import FakeClock
from millstream.features import Aggregate, FeatureSet, Ratio, Source
from millstream.features.events import tokens_of
from millstream.features.online import Reader
from millstream.features.pipeline import SAVE_S, SNAPSHOT, Pipeline, stores_of
from millstream.meter import Meter
from millstream.stream import Log, LogLimits, encode
from millstream.types import Entity, Fact, Outcome, Served

OUTCOMES = Source(
    name="outcomes",
    columns={"user": "text", "item": "text", "kind": "text", "value": "number", "id": "text"},
    id="id",
)
PAGES = Source(name="pages", columns={"user": "text", "page": "text", "seconds": "number"})
ITEMS = Source(name="items", columns={"item": "text", "genres": "text", "price": "number"})


def aggregate(name, source, key, op, **more):
    return Aggregate(name=name, source=source, key=key, op=op, **{"datatype": "FP64"} | more)


FEATURES = FeatureSet(
    name="test",
    features=(
        aggregate("likes_1h", OUTCOMES, "user", "count", window="1h", where="kind == 'like'"),
        aggregate("likes", OUTCOMES, "user", "count", where="kind == 'like'"),
        aggregate("spent_1d", PAGES, "user", "sum", column="seconds", window="1d"),
        aggregate("history", OUTCOMES, "user", "last_n", column="item", n=3, where="kind == 'like'", datatype="UINT32"),
        aggregate("shown", OUTCOMES, "item", "count", window="7d", where="kind == 'impression'"),
        aggregate("liked", OUTCOMES, "item", "count", window="7d", where="kind == 'like'"),
        Ratio(name="rate", over="liked", under="shown", prior=(1, 10), datatype="FP64"),
        aggregate("price", ITEMS, "item", "last", column="price"),
        aggregate("genres", ITEMS, "item", "last", column="genres", datatype="UINT32"),
        aggregate("ago", OUTCOMES, "item", "since", window="1d", where="kind == 'like'"),
    ),
)
USERS, THINGS = [f"u{n}" for n in range(6)], [f"i{n}" for n in range(5)]


class World:
    """People who are served and do things, some late, some twice; all of it in a log, and as rows for the oracle."""

    def __init__(self, folder, seed=0, partitions=1, limits=None):
        self.folder, self.random, self.clock = folder, random.Random(seed), FakeClock(1_700_000_000.25)
        self.log = Log(folder / "log", self.clock, limits)
        self.events = {"outcomes": [], "pages": [], "items": []}
        topics = ("served", "outcomes", "pages", "items")
        self.writers = {topic: [self.log.writer(topic, p) for p in range(partitions)] for topic in topics}
        self.asked = {}

    def do(self, times=1):
        for _ in range(times):
            self.clock.advance(self.random.choice([0.001, 1.5, 40.0, 900.0]))
            self.random.choice([self._serve, self._serve, self._outcome, self._outcome, self._outcome, self._page,
                                self._item])()  # fmt: skip

    def append(self, topic, event):
        writer = self.random.choice(self.writers[topic])
        writer.append(b"k", encode(event))

    def arrival(self):
        return float(np.rint(self.clock.now() * 1e6) / 1e6)

    def when(self):
        late = self.random.choice([0.0, 0.0, 3.0, 5000.0, 100_000.0, -30.0])
        return self.clock.now() - late

    def _serve(self):
        request, user = f"r{len(self.asked)}", self.random.choice(USERS)
        self.asked[request] = user
        self.append("served", Served(
            request=request, model="m", version="1", policy=0, arm="live", user=user, candidates=THINGS,
            event_time=self.clock.now(),
        ))  # fmt: skip

    def _outcome(self):
        if not self.asked:
            return
        request, item = self.random.choice([*self.asked, "nobody's"]), self.random.choice(THINGS)
        kind, time = self.random.choice(["impression", "like"]), self.when()
        event = Outcome(request=request, item=item, kind=kind, event_time=time)
        self.append("outcomes", event)
        self.events["outcomes"].append({
            "user": self.asked.get(request), "item": item, "kind": kind, "value": 1.0, "id": event.key(),
            "event_time": time, "arrival": self.clock.now(),
        })  # fmt: skip

    def _page(self):
        time, values = self.when(), {"user": self.random.choice(USERS), "seconds": self.random.choice([None, 1.5, 7.0])}
        self.append("pages", Fact(event_time=time, values=values))
        self.events["pages"].append({**values, "event_time": time, "arrival": self.clock.now()})

    def _item(self):
        item, price = self.random.choice(THINGS), self.random.choice([1.0, 2.5, "dear"])
        genres = self.random.choice([["Drama", "War"], ["Comedy"], None])
        self.append("items", Entity(id=item, attributes={"price": price, "genres": genres}))
        known = {"item": item, "price": price if price != "dear" else None, "genres": "|".join(genres or [])}
        self.events["items"].append({**known, "event_time": self.clock.now(), "arrival": self.clock.now()})

    def pipeline(self, features=FEATURES, **more):
        return Pipeline(features, self.log, self.folder / "rows", self.clock, Meter(), **more)


def settle(pipeline):
    while pipeline.step():
        pass


def read(pipeline, clock=None, users=USERS, items=THINGS):
    """The matrix as another process reads it, as of the pipeline's last step."""
    stores = stores_of(pipeline.features, pipeline.folder, 10**6, write=False)
    pairs = [(user, item) for user in users for item in items]
    reader = Reader(pipeline.features, stores)
    return reader.read({"user": [u for u, _ in pairs], "item": [i for _, i in pairs]}, pipeline._at)


def assert_as_recomputed(world, pipeline):
    at = pipeline._at / 1e6
    found = read(pipeline)
    wanted = [
        row(FEATURES, world.events, {"user": user, "item": item}, at, token=lambda text: int(tokens_of([text])[0]))
        for user in USERS
        for item in THINGS
    ]
    for column, name in enumerate(found.columns):
        np.testing.assert_allclose(
            found.values[:, column], [one[name] for one in wanted], rtol=1e-9, err_msg=name, equal_nan=True
        )


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_what_a_recomputation_says_whatever_comes_late_or_twice(tmp_path, seed):
    world = World(tmp_path, seed)
    pipeline = world.pipeline()
    for _ in range(6):
        world.do(40)
        settle(pipeline)
        assert_as_recomputed(world, pipeline)
    pipeline.close()


def test_a_window_moves_on_although_nothing_comes(tmp_path):
    world = World(tmp_path, 1)
    pipeline = world.pipeline()
    world.do(120)
    settle(pipeline)
    for seconds in (600, 3600, 30_000, 86_400, 8 * 86_400):
        world.clock.advance(seconds)
        pipeline.step()
        assert_as_recomputed(world, pipeline)
    pipeline.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("saves", [False, True])
def test_a_crash_loses_and_doubles_nothing(tmp_path, seed, saves):
    world = World(tmp_path, seed)
    pipeline = world.pipeline()
    for turn in range(8):
        world.do(25)
        if world.random.random() < 0.7:
            pipeline.step()
        if saves and turn % 3 == 1:
            world.clock.advance(SAVE_S)
            pipeline.step()
        pipeline.abandon()
        pipeline = world.pipeline()
    settle(pipeline)
    assert_as_recomputed(world, pipeline)
    pipeline.close()


def test_no_row_goes_back_in_time_while_a_new_process_catches_up(tmp_path, monkeypatch):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(300)
    settle(pipeline)
    before = read(pipeline)
    pipeline.abandon()
    (pipeline.folder / SNAPSHOT).unlink()  # everything is read again
    monkeypatch.setattr("millstream.features.pipeline.RECORDS_MAX", 10)
    again = world.pipeline()
    assert again.step() and again.step()
    np.testing.assert_array_equal(read(pipeline).values, before.values)
    settle(again)
    np.testing.assert_array_equal(read(again).values[:, :5], before.values[:, :5])
    again.close()


def test_several_writers_partitions_are_merged_by_arrival(tmp_path):
    world = World(tmp_path, 5, partitions=3)
    pipeline = world.pipeline()
    for _ in range(4):
        world.do(60)
        settle(pipeline)
        assert_as_recomputed(world, pipeline)
    pipeline.close()


def test_a_clock_that_is_put_back_stops_nothing(tmp_path):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(100)
    settle(pipeline)
    at = pipeline._at
    world.clock.jump(-7200.0)
    world.do(50)
    settle(pipeline)
    assert pipeline._at > at
    assert read(pipeline).values.shape == (30, 12)
    pipeline.close()


def test_time_that_ran_ahead_and_came_back_is_no_time(tmp_path, caplog):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(60)
    settle(pipeline)
    world.clock.jump(365 * 86400.0)
    pipeline.step()
    assert read(pipeline).values[:, 0].max() == 0.0, "an hour's likes are over in a year"
    world.clock.jump(-365 * 86400.0)
    world.clock.advance(0.02)
    pipeline.step()
    assert "the clock was put back" in caplog.text
    assert_as_recomputed(world, pipeline)
    pipeline.close()


def test_rows_are_vouched_for_as_of_what_is_in(tmp_path, monkeypatch):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(20)
    settle(pipeline)
    world.do(200)
    waits = world.clock.now()
    world.clock.advance(300.0)
    monkeypatch.setattr("millstream.features.pipeline.RECORDS_MAX", 10)
    assert pipeline.step()
    found = read(pipeline)
    assert found.as_of < int(waits * 1e6), "most of what came is not in yet"
    settle(pipeline)
    world.clock.advance(1.0)
    pipeline.step()
    assert read(pipeline).as_of >= int((world.clock.now() - 0.1) * 1e6)
    pipeline.close()


def test_what_retention_took_before_it_was_read_is_said(tmp_path, caplog, monkeypatch):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(50)
    settle(pipeline)
    monkeypatch.setattr("millstream.stream.reader.Reader.start", lambda self, partition: 10**6)
    pipeline.step()
    assert "retention took outcomes/0 from offset" in caplog.text
    pipeline.abandon()


def test_a_set_that_begins_where_the_log_was_cut_says_so_once(tmp_path, caplog):
    world = World(tmp_path, limits=LogLimits(segment_bytes=4096, retain_s=3600.0))
    world.do(300)
    world.clock.advance(7200.0)
    world.do(300)
    world.writers["outcomes"][0].retain()
    start = world.log.reader("outcomes").start(0)
    pipeline = world.pipeline()
    settle(pipeline)
    world.do(50)
    settle(pipeline)
    said = [line for line in caplog.messages if "of outcomes/0, before which the log has nothing" in line]
    assert start > 0 and len(said) == 1 and f"begins at offset {start} " in said[0]
    pipeline.close()


def test_what_retention_takes_while_it_is_read_is_said_and_read_behind(tmp_path, caplog):
    world = World(tmp_path, limits=LogLimits(segment_bytes=4096, retain_s=3600.0))
    world.do(300)
    world.clock.advance(7200.0)
    world.do(300)
    for topic in ("served", "outcomes"):
        world.writers[topic][0].retain()
    pipeline = world.pipeline()
    reader = pipeline._readers["outcomes"]
    begins, looked = reader.start, []

    def start(partition):  # the first time it is not yet taken
        looked.append(partition)
        return begins(partition) if len(looked) > 1 else 0

    reader.start = start
    settle(pipeline)
    assert begins(0) > 0 and f"begins at offset {begins(0)} of outcomes/0" in caplog.text
    assert pipeline.offsets["outcomes"][0] == world.log.reader("outcomes").end(0)
    pipeline.close()


def test_entities_beyond_the_limit_are_counted_and_said(tmp_path, caplog):
    world = World(tmp_path)
    pipeline = world.pipeline(limit=3)
    world.do(200)
    settle(pipeline)
    assert pipeline._refused.value > 0 and "feature_store.entities_max" in caplog.text
    pipeline.close()


def test_two_definitions_of_a_set_live_side_by_side(tmp_path):
    world = World(tmp_path)
    other = FeatureSet(name="test", features=FEATURES.features[:2])
    first, second = world.pipeline(), world.pipeline(other)
    world.do(100)
    settle(first)
    settle(second)
    assert first.folder != second.folder
    likes = read(first).values[:, 1]
    found = Reader(other, stores_of(other, second.folder, 10, write=False)).read({"user": USERS}, second._at)
    np.testing.assert_array_equal(found.values[:, 1], likes[:: len(THINGS)])
    first.close()
    second.close()


@pytest.mark.parametrize("when", [-1e12, 1e12])
def test_an_event_of_no_time_is_passed_over_and_stops_nothing(tmp_path, when):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(50)
    world.append("outcomes", Outcome(request="r0", item="i0", kind="like", event_time=when, id=f"at {when}"))
    world.do(50)
    settle(pipeline)
    assert_as_recomputed(world, pipeline)
    pipeline.close()


def test_a_second_writer_is_refused(tmp_path):
    world = World(tmp_path)
    pipeline = world.pipeline()
    with pytest.raises(errors.Conflict):
        world.pipeline()
    pipeline.close()


def test_a_torn_snapshot_is_told_and_the_log_rebuilds_the_features(tmp_path):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(100)
    settle(pipeline)
    pipeline.close()
    path = pipeline.folder / SNAPSHOT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(errors.Corrupt, match="move it away"):
        world.pipeline()
    path.unlink()
    again = world.pipeline()
    settle(again)
    assert_as_recomputed(world, again)
    again.close()


def test_an_unknown_entity_is_missing_and_says_so(tmp_path):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(200)
    settle(pipeline)
    found = read(pipeline, users=["u0", "nobody"], items=["i0"])
    assert found.missing["user"].tolist() == [False, True] and found.missing["item"].tolist() == [False, False]
    assert found.values[1, 0] == 0.0 and np.isnan(found.values[1, 2]) and found.values[1, 3] == 0
    assert found.age_s == 0.0 and found.as_of == found.at
    pipeline.close()
