"""A real engine over a real ranker, a real log under a fake clock, and disks that can be full."""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from millstream.clock import FakeClock
from millstream.engine import Engine
from millstream.features import Column, Definition, Entities
from millstream.flows.predict import Predict
from millstream.flows.recommend import Recommend, RecommendLimits
from millstream.flows.served import ServedLog
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl, Settings
from millstream.models.repository import Repository
from millstream.stream import Log, decode, segment
from millstream.types import Rank

NOW = 2_000_000.0
DEFINITION = Definition(user=(Column("id"),), item=(Column("id"),), crosses=("user.id*item.id",))


def records(log: Log, topic: str) -> list:
    return [decode(record.value) for record in log.reader(topic).read(0, 0, 100_000)]


def bytes_of(folder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@contextmanager
def full_disk(monkeypatch, topic: Path):
    """Segments in the folder of a topic take no byte more."""
    real = segment.write_all

    def write_all(fd, data, position):
        if os.fstat(fd).st_ino in {path.stat().st_ino for path in topic.rglob("*.seg")}:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "write_all", write_all)
        yield


class House:
    """Everything that answers, without a border."""

    def __init__(self, folder, limits=None):
        self.folder = folder
        self.clock, self.meter = FakeClock(NOW), Meter()
        self.log = Log(folder / "log", self.clock)
        self.repository = Repository(folder / "models")
        if not self.repository.models():
            learner = Ftrl(Settings(bits=10, l1=0.0), DEFINITION.width)
            rows = Entities(DEFINITION).rows("u", [f"i{n}" for n in range(9)])
            for number in range(9):
                learner.learn(rows[number : number + 1], (rows[number : number + 1, 0] * 0 + number % 2).astype("f4"))
            manifest = Manifest(format="ftrl", file="model.ftrl")
            self.repository.put("ranker", manifest, {"model.ftrl": learner.dump()})
        self.engine = Engine(self.repository, self.clock, self.meter)
        served = ServedLog(self.log.writer("served"), self.meter)
        self.entities = Entities(DEFINITION)
        self.submitted = 0
        self.recommend = Recommend(self.submit, self.entities, self.clock, served, limits or RecommendLimits())
        self.predict = Predict(self.submit, self.clock, served)

    def submit(self, request):
        self.submitted += 1
        return self.engine.submit(request)

    def served(self) -> list:
        return records(self.log, "served")


@asynccontextmanager
async def house(folder, limits=None):
    made = House(folder, limits)
    await made.engine.start()
    try:
        yield made
    finally:
        await made.engine.stop()
        made.log.close()


def rank(id="r1", user="u", candidates=("i1", "i2", "i3"), **more) -> Rank:
    return Rank(id=id, user=user, candidates=tuple(candidates), **more)
