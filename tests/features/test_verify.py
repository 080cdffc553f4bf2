"""What serving read is recomputed from the log, and every value that differs is put down to a cause."""

import msgspec
import numpy as np
import pytest
from test_pipeline import FEATURES, THINGS, USERS, World, settle

from millstream.features import FeatureSet
from millstream.features.online import Reader
from millstream.features.pipeline import stores_of
from millstream.features.verify import TOPIC, verify
from millstream.stream import Log, encode
from millstream.types import FeaturesRead


class Served(World):
    """A world in which features are read and the reads are logged."""

    def __init__(self, folder, seed=0):
        super().__init__(folder, seed)
        self.reads = self.log.writer(TOPIC)

    def read(self, pipeline, **changed):
        at = int(self.clock.now() * 1e6)
        stores = stores_of(pipeline.features, pipeline.folder, 10, write=False)
        keys = {"user": [USERS[0]], "item": THINGS}
        found = Reader(pipeline.features, stores).read(keys, at)
        event = FeaturesRead(
            features="test", hash=pipeline.features.hash, at=at, as_of=min(at, pipeline._at), keys=keys,
            values=found.values.astype("<f8").tobytes(),
        )  # fmt: skip
        self.reads.append(b"k", encode(msgspec.structs.replace(event, **changed)))

    def verify(self):
        return verify({"test": FEATURES}, Log(self.folder / "log", self.clock))


@pytest.fixture
def world(tmp_path):
    return Served(tmp_path)


def test_what_was_served_is_what_the_log_says(world):
    pipeline = world.pipeline()
    for _ in range(5):
        world.do(40)
        settle(pipeline)
        world.clock.advance(0.01)
        pipeline.step()
        world.read(pipeline)
    found = world.verify()
    assert found.reads == 5 and found.sound and not found.odd
    assert found.values["test"] == {
        "equal": 5 * 5 * 12, "late": 0, "ttl": 0, "version": 0, "retention": 0, "code": 0,
    }  # fmt: skip
    pipeline.close()


def test_a_read_before_the_rows_were_written_is_late_and_no_fault(world):
    pipeline = world.pipeline()
    world.do(100)
    settle(pipeline)
    world.do(60)  # nobody has taken these yet
    world.read(pipeline)
    found = world.verify()
    assert found.sound and found.values["test"]["late"] > 0 and found.values["test"]["equal"] > 0
    pipeline.close()


def test_a_value_that_nothing_explains_is_shown(world):
    pipeline = world.pipeline()
    world.do(100)
    settle(pipeline)
    world.clock.advance(0.01)
    pipeline.step()
    store, table = pipeline._stores["user"], pipeline.state.entities["user"]
    wrong = table.stored(np.arange(table.places.count), pipeline._at)[0] + 1.0
    store.put(table.places.keys[: table.places.count], table.plan.pack(wrong), pipeline._at)
    world.read(pipeline)
    found = world.verify()
    assert not found.sound and found.values["test"]["code"] >= 5
    odd = found.odd[0]
    assert odd.features == "test" and odd.keys["user"] == USERS[0] and odd.read == odd.recomputed + 1.0
    pipeline.close()


def test_another_definition_and_a_row_whose_time_was_over_are_causes(world):
    pipeline = world.pipeline()
    world.do(100)
    settle(pipeline)
    world.clock.advance(0.01)
    pipeline.step()
    other = FeatureSet(name="test", features=FEATURES.features[:1])
    world.read(pipeline, hash=other.hash)
    pipeline._stores["user"].drop(2**61)
    world.read(pipeline)
    counts = world.verify().values["test"]
    assert counts["version"] == 5 * 12 and counts["ttl"] > 0 and counts["code"] == 0
    pipeline.close()


def test_who_made_an_old_request_is_still_known_when_its_outcome_is_recomputed(world, monkeypatch):
    monkeypatch.setattr("millstream.features.rows.REQUESTS_MAX", 5)
    monkeypatch.setattr("millstream.features.replay.CHUNK", 1)
    pipeline = world.pipeline()
    for _ in range(150):
        world.do()
        settle(pipeline)
    world.clock.advance(0.02)
    pipeline.step()
    world.read(pipeline)
    assert world.verify().sound
    pipeline.close()


def test_what_retention_took_is_no_fault_of_the_program(world, monkeypatch):
    pipeline = world.pipeline()
    world.do(100)
    settle(pipeline)
    world.clock.advance(0.02)
    pipeline.step()
    world.read(pipeline)
    monkeypatch.setattr(
        "millstream.stream.reader.Reader.start", lambda self, partition: 9 if self.topic != TOPIC else 0
    )
    found = world.verify()
    assert found.sound and found.values["test"]["retention"] > 0 and not found.odd
    pipeline.close()
