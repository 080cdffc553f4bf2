"""An installation whose log holds lists that were served, with histories, and what became of them in several tasks."""

from __future__ import annotations

import numpy as np

from millstream.app.installation import Installation, Settings
from millstream.clock import FakeClock
from millstream.features import Column, Definition, Entities
from millstream.learn import LearnSettings
from millstream.learn.deep import DeepSettings
from millstream.stream import JoinSettings, encode
from millstream.stream.tasks import Task
from millstream.types import Outcome, Served

START = 1e6
DEFINITION = Definition(user=(Column("id"),), item=(Column("id"), Column("genre")))
TASKS = {"click": Task(window_s=2.0), "buy": Task({"order": 1.0}, window_s=20.0)}
DEEP = DeepSettings(bits=12, factors=4, hidden=(8,), history=4, attention=4, batch=64, seen=1, amounts=("dwell",))


def settings(deep=DEEP, **tasks) -> Settings:
    joining = JoinSettings(tasks=tasks or TASKS, keep_s=3600.0, feedback=("dwell",))
    return Settings(features=DEFINITION, learn=LearnSettings(model="ranker"), join=joining, deep=deep)


class House:
    """`serve` says what was served, `tell` what was done, `learnt` joins all of it."""

    def __init__(self, folder, wanted=None):
        self.clock = FakeClock(START)
        self.at = Installation(folder, wanted or settings(), self.clock)
        self.served, self.outcomes = self.at.log.writer("served"), self.at.log.writer("outcomes")
        self.entities = Entities(DEFINITION)

    def serve(self, request, items, history=(), user="u", scores=None, model="ranker"):
        """A second passes; all items are shown."""
        self.clock.jump(1.0)
        tokens = self.entities.rows(user, items)
        scores = np.full(len(items), 0.25, np.float32) if scores is None else np.array(scores, np.float32)
        event = Served(
            request=request, model=model, version="1@0", policy=0, arm="live", user=user, candidates=list(items),
            event_time=self.clock.now(), definition=DEFINITION.hash, tokens=tokens.tobytes(), scores=scores.tobytes(),
            history=list(history),
        )  # fmt: skip
        self.served.append(request.encode(), encode(event))
        for item in items:
            self.tell(request, item, "impression")

    def tell(self, request, item, kind, value=1.0):
        event = Outcome(request=request, item=item, kind=kind, value=value, event_time=self.clock.now())
        self.outcomes.append(request.encode(), encode(event))

    def end(self, after_s=30.0):
        """Every window ends, and the join has read all."""
        self.clock.jump(after_s)
        self.outcomes.append(b"", encode(Outcome(kind="watermark", event_time=self.clock.now())))
        operation = self.at.join()
        while operation.step():
            pass
        operation.close()

    def close(self):
        self.at.close()
