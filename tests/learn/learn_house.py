"""A learner over a hand-made topic `examples`, a real repository and a fake clock."""

from __future__ import annotations

import numpy as np

from millstream.clock import FakeClock
from millstream.learn import GateSettings, Learning, LearnSettings, PushSettings
from millstream.meter import Meter
from millstream.models import traffic
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl, ServedFtrl, Settings
from millstream.models.repository import Repository
from millstream.stream import Log, decode, encode
from millstream.types import Delta, Example

WIDTH = 2
FTRL = Settings(bits=10, l1=0.0)


def example(number: int, label: float, model: str = "ranker", width: int = WIDTH) -> Example:
    tokens = np.array([1 + number % 50, 100 + number % 7, 200 + number % 3][:width], np.uint32)
    return Example(
        request=f"r{number}", item="i", model=model, version="1@0", tokens=tokens.tobytes(), score=0.5, label=label,
        weight=1.0, event_time=float(number), arrival=1000.0 + number, wait_s=0.0, outcomes=[f"r{number}/i/impression"],
    )  # fmt: skip


def truth(number: int) -> float:
    """What can be learnt: even users like."""
    return float(number % 2)


class House:
    """`tell` appends examples, `turn` lets time pass and the learner work until nothing is left."""

    def __init__(self, folder, gate=None, **settings):
        self.folder, self.clock = folder, FakeClock(5000.0)
        self.settings = LearnSettings(
            model="ranker",
            push=PushSettings(push_s=1.0, **settings),
            gate=gate or GateSettings(window=100, weight_max=50.0, logloss_over=0.25),
        )
        self.repository = Repository(folder / "models")
        if not self.repository.models():
            self.put()
        self.open()

    def open(self) -> None:
        self.log = Log(self.folder / "log", self.clock)
        self.examples, self.meter = self.log.writer("examples"), Meter()
        deltas = self.log.writer("deltas")
        self.learning = Learning(
            self.settings,
            self.repository,
            self.log,
            deltas,
            self.clock,
            self.meter,
            folder=self.folder / "state" / "learning",
        )

    def restart(self) -> None:
        """The role died and came back: it knows what is on the disk."""
        self.log.close()
        self.open()

    def put(self, learner: Ftrl | None = None) -> str:
        manifest = Manifest(format="ftrl", file="model.ftrl", lineage={"made_by": "a person"})
        return self.repository.put("ranker", manifest, {"model.ftrl": (learner or Ftrl(FTRL, WIDTH)).dump()})

    def tell(self, count: int, label=truth, start: int | None = None, **fields) -> None:
        at = self.examples.end if start is None else start
        for number in range(at, at + count):
            self.examples.append(b"", encode(example(number, label(number), **fields)))

    def turn(self) -> int:
        learnt = 0
        while True:
            self.clock.advance(1.5)
            now = self.learning.step()
            learnt += now
            if not now:
                return learnt

    def change(self, change):
        return self.repository.change_policy("ranker", change, who="a person", why="a test")

    @property
    def policy(self):
        return self.repository.policy("ranker")

    def promote(self, version: str) -> None:
        self.change(traffic.promote(version))

    def deltas(self) -> list[Delta]:
        reader = self.log.reader("deltas")
        return [decode(record.value) for record in reader.read(0, reader.start(0), 100_000)]

    def served(self, version: str = "") -> np.ndarray:
        """The weights that a server holds of `version` (or of the live one): its file and every delta of it."""
        version = version or self.policy.live
        weights = ServedFtrl.load(self.repository.folder("ranker", version) / "model.ftrl").weights.copy()
        for delta in self.deltas():
            if delta.base == version:
                weights[np.frombuffer(delta.slots, np.uint32)] = np.frombuffer(delta.weights, np.float32)
        return weights

    def folded(self, numbers, label=truth, learner: Ftrl | None = None) -> np.ndarray:
        """The weights after learning exactly these examples in order."""
        learner = learner or Ftrl(FTRL, WIDTH)
        rows = [example(number, label(number)) for number in numbers]
        if rows:
            tokens = np.array([np.frombuffer(row.tokens, np.uint32) for row in rows])
            learner.learn(tokens, np.array([row.label for row in rows], np.float32))
        return learner.weights()
