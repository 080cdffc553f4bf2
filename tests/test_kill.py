"""kill -9 of the real processes at random moments of the real demo: nothing acknowledged is lost or learnt twice, and
the weights that are served equal the fold of `examples`, recomputed here from the log."""

import asyncio
import os
import random
import signal

import msgspec
import numpy as np
import pytest

from millstream import config
from millstream.app.installation import Installation, Settings
from millstream.clock import SystemClock
from millstream.demo.data import simulated
from millstream.demo.run import Demo, free_port
from millstream.learn.train import gather
from millstream.models.online import Ftrl, ServedFtrl
from millstream.stream import Log, decode
from millstream.types import Delta
from service import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MOMENTS = 8000


def fold(at: Installation) -> np.ndarray:
    """An empty learner over the whole topic, in one go."""
    learner = Ftrl(at.settings.ftrl, at.definition.width)
    records = list(at.log.reader("examples").records(0))
    batch, skipped = gather(records, at.model, at.definition.hash, learner.width)
    learner.learn(batch.tokens, batch.labels, batch.weights)
    assert skipped == 0
    return learner.weights()


def served(at: Installation) -> np.ndarray:
    """The live base with every delta of it: what each server holds."""
    live = at.repository.policy(at.model).live
    weights = ServedFtrl.load(at.repository.folder(at.model, live) / "model.ftrl").weights.copy()
    for delta in (decode(record.value) for record in at.log.reader("deltas").records(0)):
        if isinstance(delta, Delta) and delta.base == live:
            weights[np.frombuffer(delta.slots, np.uint32)] = np.frombuffer(delta.weights, np.float32)
    return weights


async def play(demo: Demo, victims: list[tuple[str, ...]], seed: int) -> None:
    """Replay, and kill the victims, a group after the other, at random moments."""
    moments = random.Random(seed)
    await demo.start()
    replaying = asyncio.create_task(demo.replay.run())
    for group in victims:
        await asyncio.sleep(moments.uniform(0.8, 2.0))
        for role in group:
            os.kill(demo.supervisor.pid(role), signal.SIGKILL)
    await replaying
    await demo.settle()
    log = Log(demo.folder / "log", SystemClock())
    await until(lambda: log.committed("learn.ranker", "examples").get(0, 0) >= log.reader("examples").end(0))
    await demo.stop()


@pytest.mark.parametrize(
    "victims",
    [[("serve",), ("serve",)], [("learn",), ("learn",)], [("serve", "learn"), ("learn",), ("serve",)]],
    ids=["serve", "learn", "both"],
)
def test_killing_processes_loses_and_doubles_nothing(tmp_path, victims):
    data = simulated(MOMENTS)
    demo = Demo(tmp_path / "demo", data, free_port(0), rate=900.0)
    demo.prepare()
    asyncio.run(play(demo, victims, seed=len(victims[0]) + len(victims)))

    figures = demo.figures()
    assert figures.errors == 0, demo.books.first_error
    assert sum(demo.supervisor.restarts.values()) == sum(map(len, victims))
    assert (figures.lost, figures.duplicated) == (0, 0)
    assert figures.outcomes == 2 * figures.requests == 2 * len(demo.replay.shown)
    assert figures.examples == figures.requests
    settings = config.read(demo.file, Settings)
    with Installation(demo.folder, settings, SystemClock()) as at:
        assert np.array_equal(served(at), fold(at))
    assert msgspec.json.encode(figures)
