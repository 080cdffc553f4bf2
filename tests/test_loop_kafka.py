"""The whole loop on a Kafka cluster, by one line of settings: what test_loop.py asks of the embedded log, asked here,
and the same examples and weights as there."""

import asyncio
import os
import time
from contextlib import suppress

import msgspec
import numpy as np
import pytest

import test_loop
from kafka_broker import Broker, limits
from millstream.app.installation import Installation
from millstream.app.roles import Serve
from millstream.app.training import train
from millstream.clock import SystemClock
from millstream.errors import Busy
from millstream.learn.history import Field, import_entities
from millstream.learn.train import Training
from millstream.models.online import Ftrl
from millstream.stream import Log, decode
from millstream.stream.kafka import KafkaLog
from millstream.stream.kafka_writer import KafkaWriter
from millstream.testing import Fuse
from millstream.types import Outcome, Rank
from test_loop import content, play, sound, uncrashed  # noqa: F401

SETTINGS = test_loop.SETTINGS


class FusedWriter(KafkaWriter):
    """A writer that dies when its fuse burns."""

    fuse: Fuse

    def append(self, key, value):
        return self.fuse.around(lambda: super(FusedWriter, self).append(key, value))

    def append_soon(self, key, value):
        return self.fuse.around(lambda: super(FusedWriter, self).append_soon(key, value))

    def append_frame(self, items, meta=b"", sync=False):
        return self.fuse.around(lambda: super(FusedWriter, self).append_frame(items, meta, sync))

    def append_durable(self, key, value):
        return self.fuse.around(lambda: super(FusedWriter, self).append_durable(key, value))


class FusedLog(KafkaLog):
    """A log whose appends and commits die when the fuse burns."""

    def __init__(self, root, clock, limits, fuse):
        super().__init__(root, clock, limits)
        self._fuse = fuse

    def writer(self, topic, partition=0):
        writer = super().writer(topic, partition)
        writer.__class__, writer.fuse = FusedWriter, self._fuse
        return writer

    def commit(self, group, topic, offsets):
        self._fuse.around(lambda: super(FusedLog, self).commit(group, topic, offsets))


@pytest.fixture(scope="module")
def cluster():
    broker = None if os.environ.get("KAFKA_BOOTSTRAP") else Broker()
    yield broker
    if broker is not None:
        broker.close()


@pytest.fixture
def on_kafka(cluster, monkeypatch):
    """Everything that test_loop.py opens is in one fresh place of the cluster; a call makes the next place."""

    opened, opening = [], KafkaLog.__init__

    def init(self, *args):
        opened.append(self)
        opening(self, *args)

    monkeypatch.setattr(KafkaLog, "__init__", init)

    def place():
        while opened:  # a process has so many clients at once, and no more
            with suppress(Exception):
                opened.pop().close()
        where = limits(cluster)
        monkeypatch.setattr(test_loop, "SETTINGS", msgspec.structs.replace(SETTINGS, log=where))
        monkeypatch.setattr(test_loop, "LogLimits", lambda: where)
        monkeypatch.setattr(test_loop, "Log", lambda root, clock: KafkaLog(root, clock, where))
        monkeypatch.setattr(test_loop, "CrashingLog", lambda root, clock, fuse: FusedLog(root, clock, where, fuse))
        return where

    place()
    return place


def test_the_loop_on_kafka_ends_as_the_one_on_the_embedded_log(tmp_path, on_kafka, uncrashed):  # noqa: F811
    loop = play(tmp_path, Fuse())
    sound(loop, uncrashed)
    assert not any(path.suffix == ".seg" for path in (tmp_path / "log").rglob("*")), "nothing of the log is here"
    with Installation(tmp_path, test_loop.SETTINGS, loop.clock) as installation:
        assert isinstance(installation.log, KafkaLog)
    assert np.array_equal(loop.fold(), embedded_fold(uncrashed)), "the fold of examples, bit for bit"
    records, features = loop.examples(), SETTINGS.features
    cut, learner = records[20].offset, Ftrl(SETTINGS.ftrl, SETTINGS.features.width)
    assert cut > 20, "offsets leap here"
    with KafkaLog(tmp_path / "log", loop.clock, test_loop.SETTINGS.log) as log:
        training = Training(learner, "ranker", features.hash, log.reader("examples"), 0)
        assert len(training.step(until=cut).batch.labels) == 20 and training.upto <= cut


def embedded_fold(loop):
    learner = Ftrl(SETTINGS.ftrl, SETTINGS.features.width)
    with Log(loop.folder / "log", loop.clock) as log:
        records = log.reader("examples").read(0, 0, 100_000)
    batch, _ = test_loop.gather(records, "ranker", SETTINGS.features.hash, learner.width)
    learner.learn(batch.tokens, batch.labels, batch.weights)
    return learner.weights()


def crash_at(writes, before, tmp_path_factory, on_kafka, uncrashed):  # noqa: F811
    for write in writes:
        on_kafka()
        loop = play(tmp_path_factory.mktemp("crashed"), Fuse(write, before))
        with test_loop.named(write, before):
            sound(loop, uncrashed)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_crash_at_a_write_changes_nothing(tmp_path_factory, on_kafka, uncrashed, before):  # noqa: F811
    crash_at([90 if before else 131], before, tmp_path_factory, on_kafka, uncrashed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_crash_at_many_writes_changes_nothing(tmp_path_factory, on_kafka, uncrashed):  # noqa: F811
    crash_at(range(3, uncrashed.fuse.writes + 1, 31), True, tmp_path_factory, on_kafka, uncrashed)


def test_a_cluster_that_is_away_stops_no_answer_and_outcomes_are_refused_until_it_is_back(tmp_path, monkeypatch):
    monkeypatch.setattr("millstream.stream.kafka.CALL_S", 1.5)
    broker = Broker()
    settings = msgspec.structs.replace(SETTINGS, log=limits(broker))
    clock, users = SystemClock(), [{"id": "u0", "age": "20"}]
    fields = {"id": Field("id"), "age": Field("age", "int")}
    import_entities(tmp_path / "log", settings.log, "users", users, fields, 1.0)
    with Installation(tmp_path, settings, clock) as empty:
        train(empty)

    async def story(serve):
        async def ask(name):
            rank = Rank(id=name, user="u0", candidates=("i0", "i1"))
            return await serve.door.call(rank, test_loop.ANYBODY)

        async def tell(name):
            seen = Outcome(request=name, item="i0", kind="impression", event_time=1.0)
            return await serve.door.call([seen], test_loop.ANYBODY)

        await serve.engine.start()
        serve.poll()
        before = await ask("before")
        assert await tell("before") == 1
        broker.pause()
        began = time.monotonic()
        for number in range(20):
            answer = await ask(f"away-{number}")
            assert answer.version == before.version
            serve.poll()
        assert time.monotonic() - began < 10.0, "one waits a second for its served event, the others not at all"
        assert serve.meter.sum("millstream_served_missing_total") == 20
        with pytest.raises(Busy, match="try again"):
            await tell("before")
        broker.resume()
        while serve._recommend._served._writer.away:
            serve.poll()
            await asyncio.sleep(0.01)
        await ask("after")
        assert await tell("after") == 1
        assert serve.meter.sum("millstream_served_missing_total") == 20
        await serve.engine.stop()

    try:
        with Installation(tmp_path, settings, clock) as installation:
            asyncio.run(story(Serve(installation)))
            requests = [decode(r.value).request for r in installation.log.reader("served").records(0)]
            assert [name for name in requests if not name.startswith("away")] == ["before", "after"]
    finally:
        broker.close()
