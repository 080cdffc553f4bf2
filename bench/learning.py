"""The whole loop at log time: MovieLens-100K replayed under a fake clock, so that lag is what the log says it is.

The first 20 % of the ratings train version 1; then every rating is a request, an impression, and 1 s of log time later
its outcome. Every 10 s of log time the learner joins, folds and pushes. Scores are those of the answers given; *frozen*
is version 1 on the same logged rows; Vowpal Wabbit, with the same settings, learns the same first 20 % and is frozen
there too.

    python bench/learning.py [--limit N] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from vowpalwabbit.pyvw import Workspace

from millstream import config
from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.clock import FakeClock
from millstream.demo.data import Shown, movielens
from millstream.demo.run import Demo
from millstream.learn.quality import auc
from millstream.models.online import ServedFtrl
from millstream.stream import Log, Task, decode
from millstream.stream.audit import Acknowledged, audit
from millstream.types import Example, Outcome, Principal, Rank, Served

BOUND_LIVE = 0.74
PUSH_S, WINDOW_S = 10.0, 30.0
QUIET_TICKS = 5  # after these, nothing more can happen until somebody does something
CALLER = Principal("bench")


class AtLogTime:
    """Both roles in this process, stepped by a discrete-event clock."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        settings = config.read(folder / "millstream.toml", Settings)
        push = msgspec.structs.replace(settings.learn.push, push_s=PUSH_S)
        learn = msgspec.structs.replace(settings.learn, push=push)
        join = msgspec.structs.replace(settings.join, tasks={"like": Task(window_s=WINDOW_S)})  # log time's, not live
        self.clock = clock
        self.installation = Installation(folder, msgspec.structs.replace(settings, learn=learn, join=join), clock)
        self.serve, self.learn = Serve(self.installation), Learn(self.installation)
        self.scores: list[float] = []
        self.ledger: list[Acknowledged] = []
        self.quiet = 0
        self.next_tick = clock.now() + PUSH_S

    async def moment(self, number: int, shown: Shown) -> None:
        await self.until(shown.event_time)
        rank = Rank(id=f"q{number}", user=shown.user, candidates=shown.candidates, event_time=shown.event_time)
        ranked = await self.serve.door.call(rank, CALLER)
        self.scores.append(next(one.score for one in ranked.items if one.item == shown.item))
        await self.tell(Outcome(request=rank.id, item=shown.item, kind="impression", event_time=shown.event_time))

    async def tell(self, outcome: Outcome) -> None:
        await self.serve.door.call([outcome], CALLER)
        self.quiet = 0
        if outcome.kind != "watermark":
            self.ledger.append(Acknowledged(outcome.key(), outcome.event_time))

    async def until(self, when: float) -> None:
        """Let log time pass up to `when`, ticking the learner every PUSH_S of it while there may be work."""
        while self.next_tick <= when:
            self.clock.advance(max(0.0, self.next_tick - self.clock.now()))
            if self.quiet >= QUIET_TICKS:
                self.clock.advance(max(0.0, when - self.clock.now()))
                self.learn.step()  # what moves with time alone: windows of features
                self.next_tick = when + PUSH_S
                break
            while self.learn.step():
                pass
            await self.serve.engine.refresh()
            self.serve.poll()
            self.quiet += 1
            self.next_tick += PUSH_S
        self.clock.advance(max(0.0, when - self.clock.now()))


async def replay(folder: Path, future: list[Shown]) -> AtLogTime:
    loop = AtLogTime(folder, FakeClock(future[0].event_time))
    await loop.serve.engine.start()
    loop.serve.poll()
    likes: list[tuple[float, int, Shown]] = []
    for number, shown in enumerate(future):
        while likes and likes[0][0] <= shown.event_time:
            await like(loop, *likes.pop(0))
        await loop.moment(number, shown)
        likes.append((shown.event_time + 1.0, number, shown))
    for one in likes:
        await like(loop, *one)
    await loop.until(loop.clock.now() + 60.0)
    await loop.tell(Outcome(kind="watermark", event_time=loop.clock.now() + 60.0))
    await loop.until(loop.clock.now() + 60.0)
    await loop.serve.engine.stop()
    return loop


async def like(loop: AtLogTime, when: float, number: int, shown: Shown) -> None:
    await loop.until(when)
    await loop.tell(
        Outcome(request=f"q{number}", item=shown.item, kind="like", value=float(shown.like), event_time=when)
    )


def logged_rows(log: Log) -> dict[str, np.ndarray]:
    """Request id -> its logged feature rows, from topic `served`."""
    rows = {}
    for record in log.reader("served").records(0):
        event = decode(record.value)
        assert isinstance(event, Served)
        rows[event.request] = np.frombuffer(event.tokens, np.uint32).reshape(len(event.candidates), -1)
    return rows


def vw_frozen(first: list[Example], rows: np.ndarray, settings: Any) -> np.ndarray:
    """Scores of `rows` by Vowpal Wabbit after one pass over `first`, from the same hashed features."""
    options = (
        f"--quiet --noconstant -b {settings.bits} --ftrl --ftrl_alpha {settings.alpha} --ftrl_beta {settings.beta} "
        f"--l1 {settings.l1} --l2 {settings.l2} --loss_function logistic --link logistic --holdout_off"
    )
    mask = (1 << settings.bits) - 1
    vw = Workspace(options)
    for example in first:
        tokens = np.frombuffer(example.tokens, np.uint32)
        vw.learn(f"{1 if example.label else -1} |f " + " ".join(str(t & mask) for t in tokens.tolist() if t))
    return np.array(
        [vw.predict("|f " + " ".join(str(t & mask) for t in row if t)) for row in rows.tolist()], np.float64
    )


def examples(log: Log) -> list[Example]:
    events = (decode(record.value) for record in log.reader("examples").records(0))
    return [event for event in events if isinstance(event, Example)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=None, help="replay only so many ratings")
    parser.add_argument("--json", action="store_true", help="one line of JSON, last")
    args = parser.parse_args()
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None  # syncs are not what is measured here
    with tempfile.TemporaryDirectory(dir=fast) as name:
        folder = Path(name) / "installation"
        data = movielens()
        demo = Demo(folder, data, 0, lists=False)
        demo.prepare()
        future = list(demo.replay.shown)[: args.limit]
        began = time.perf_counter()
        loop = asyncio.run(replay(folder, future))
        seconds = time.perf_counter() - began
        figures = judge(loop, future, len(data.shown) - len(demo.replay.shown))
    figures |= {"rows": len(future), "seconds": round(seconds, 1), "machine": machine()}
    for key, value in figures.items():
        print(f"{key:>28}  {value}")
    if args.json:
        print(json.dumps(figures))


def judge(loop: AtLogTime, future: list[Shown], history: int) -> dict[str, Any]:
    at, labels = loop.installation, [shown.like for shown in future]
    served = logged_rows(at.log)
    rows = np.stack([served[f"q{n}"][shown.position] for n, shown in enumerate(future)])
    base = ServedFtrl.load(at.repository.folder(at.model, "1") / "model.ftrl")
    frozen = base.predict({"tokens": rows})["probability"]
    learnt = examples(at.log)
    vw = vw_frozen(learnt[:history], rows, at.settings.ftrl)
    books = audit(at.log, loop.ledger, at.settings.join.window_s)
    return {
        "auc_live": round(auc(labels, loop.scores), 4),
        "bound_live": BOUND_LIVE,
        "auc_frozen": round(auc(labels, frozen), 4),
        "auc_frozen_vowpal_wabbit": round(auc(labels, vw), 4),
        "mean_score_over_rate": round(float(np.mean(loop.scores) / np.mean(labels)), 4),
        "pushes": int(loop.learn.meter.sum("millstream_pushes_total")),
        "examples": books.examples - history,
        "acknowledged": books.acknowledged,
        "set_aside": books.set_aside,
        "lost": books.lost,
        "duplicated": books.duplicated,
    }


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
