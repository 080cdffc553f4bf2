"""What the console's page Learning shows, kept up to date from tails, counters and files.

Rules of the room:
- What is read is new or bounded: tails of `examples`, `deltas` and `readings`, the last lines of a policy's history.
- The AUC of a moment is that of the counters, kept each `EVERY_S` while the console runs; of the time before it is what
  the role `watch` has written down.
- Calibration is of the last examples as they were served, each negative counting for all that it was kept of.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from millstream.app.console.counted import Counted
from millstream.app.console.tail import Tail
from millstream.app.installation import Installation
from millstream.app.training import change, folder_of
from millstream.console.studies import Bin, Decision, Judged, LearningNow, Point, Pushed
from millstream.errors import Corrupt
from millstream.learn.curate.teacher import interval
from millstream.learn.judge import read_report
from millstream.learn.learning import group
from millstream.meter import Meter
from millstream.models.policy import LEARNER, Policy
from millstream.stream import decode
from millstream.types import Delta, Example, Readings
from millstream.watch import reading

EVERY_S = 1.0
KEPT = 20_000
"""Examples that calibration is of."""
POINTS = 720
READ_BACK = 2_000
"""Records of readings: some hours, at one each ten seconds."""
PUSHES = 40
DECISIONS = 40
HISTORY = 400
"""Changes of a policy that are looked back at."""
IMPORTED = "history"
"""The version of an example that was never served."""
GROUPS = 10
RATE_S = 10.0
Floats = NDArray[np.float64]


class LearningWatch:
    """How the installation's model learns; may be asked from any thread. `poll` each second keeps it up to date while
    nobody looks."""

    def __init__(self, at: Installation) -> None:
        self._at = at
        self._lock = threading.Lock()
        self._examples = Tail(at.log, "examples", KEPT)
        self._deltas = Tail(at.log, "deltas", PUSHES)
        self._judged: deque[tuple[float, float, float]] = deque(maxlen=KEPT)  # score, label, count
        self._pushed: deque[Pushed] = deque(maxlen=PUSHES)
        self._points: deque[Point] = deque(_written_down(at), maxlen=POINTS)
        self._rates: deque[tuple[float, float]] = deque()  # seconds, examples learnt by then
        self._now: LearningNow | None = None
        self._looked = -math.inf
        self._bins: tuple[int, list[Bin]] = (0, [])
        self._came = 0

    def learning(self) -> LearningNow:
        """As of at most `EVERY_S` ago."""
        self.poll()
        assert self._now is not None
        return self._now

    def poll(self) -> None:
        """Take in what is new, unless that was done just now."""
        with self._lock:
            now = self._at.clock.monotonic()
            if self._now is None or now - self._looked >= EVERY_S:
                self._follow()
                self._now = self._made(now)
                self._looked = now

    def let_learn(self, go_on: bool, policy: int, who: str, why: str) -> str:
        """As `millstream train pause` and `resume`, if the policy is still this one."""
        after = change(self._at, "run" if go_on else "paused", who, why, policy)
        with self._lock:
            self._looked = -math.inf
        return f"{self._at.model}: learning {after.learning}, policy {after.version}"

    def _follow(self) -> None:
        at, kept = self._at, self._at.task.kept
        for _, event in self._examples.new(decode):
            if not (isinstance(event, Example) and event.model in (at.model, at.also) and not event.form):
                continue
            if event.task in ("", at.task.name) and event.version != IMPORTED:
                self._judged.append((event.score, event.label, 1.0 if event.label else 1.0 / kept))
                self._came += 1
        for record, event in self._deltas.new(decode):
            if isinstance(event, Delta) and event.model == at.model:
                examples, slots = len(event.arrivals) // 8, len(event.slots) // 4
                self._pushed.append(
                    Pushed(
                        at=record.arrival, base=event.base, sequence=event.sequence, examples=examples, slots=slots,
                        size=len(record.value),
                    )
                )  # fmt: skip

    def _made(self, now: float) -> LearningNow:
        at, model = self._at, self._at.model
        if model not in at.repository.models():
            return LearningNow(model=model, state="")
        counted = Counted(Meter.reading(at.folder / "state" / "meters"))
        policy = at.repository.policy(model)
        learnt, aside = (
            counted.sum("millstream_examples_learnt_total"),
            counted.by("millstream_set_aside_total", "cause"),
        )
        self._point(counted)
        if self._bins[0] != self._came:
            self._bins = self._came, _calibration(np.array(self._judged, np.float64).reshape(-1, 3))
        report = read_report(folder_of(at) / model)
        positives = sum(label > 0 for _, label, _ in self._judged) / len(self._judged) if self._judged else 0.0
        who, why = _stopped(policy)
        return LearningNow(
            model=model,
            policy=policy.version,
            state="off" if at.settings.learn.model != model else "pinned" if policy.pin else policy.learning,
            who=who,
            why=why,
            live=policy.live,
            offset=at.log.committed(group(model), "examples").get(0, 0),
            end=at.log.reader("examples").end(0),
            learnt=int(learnt),
            a_second=round(self._a_second(now, learnt), 1),
            pushes=int(counted.sum("millstream_pushes_total")),
            refused=int(counted.sum("millstream_pushes_refused_total")),
            staleness_p50=counted.quantile("millstream_staleness_seconds", 0.5),
            staleness_p99=counted.quantile("millstream_staleness_seconds", 0.99),
            label_wait_p50=counted.quantile("millstream_label_wait_seconds", 0.5),
            slope=report.slope if report else 1.0,
            intercept=report.intercept if report else 0.0,
            judged=[
                Judged(
                    who=who, part=part, examples=one.examples, auc=one.auc, logloss=one.logloss, ece=one.ece,
                    ratio=one.ratio,
                )
                for part, sources in (report.figures if report else {}).items()
                for who, one in sources.items()
            ],
            points=list(self._points),
            bins=self._bins[1],
            binned=len(self._judged),
            positives=positives,
            pushed=list(self._pushed)[::-1],
            decisions=_decisions(islice(at.repository.newest_first(model), HISTORY)),
            set_aside={cause: int(count) for cause, count in sorted(aside.items(), key=lambda one: -one[1])},
        )  # fmt: skip

    def _point(self, counted: Counted) -> None:
        levels = counted.by("millstream_learning_auc", "scores", {"slice": "all"})
        auc = {who: round(value, 5) for who, value in levels.items()}
        if auc and (not self._points or self._points[-1].auc != auc):
            self._points.append(Point(self._at.clock.now(), auc))

    def _a_second(self, now: float, learnt: float) -> float:
        rates = self._rates
        if rates and learnt < rates[-1][1]:  # a page that began anew
            rates.clear()
        rates.append((now, learnt))
        while len(rates) > 2 and now - rates[1][0] >= RATE_S:
            rates.popleft()
        (since, before), (until, after) = rates[0], rates[-1]
        return (after - before) / (until - since) if until > since else 0.0


def _stopped(policy: Policy) -> tuple[str, str]:
    """Who stopped learning, and why; nobody where it runs."""
    if policy.pin and not policy.gate_pinned:
        return policy.pinned_by or policy.who, policy.pinned_why or policy.why
    if policy.learning == "paused":
        return policy.paused_by or policy.who, policy.paused_why or policy.why
    return "", ""


def _decisions(newest_first: Iterable[Policy]) -> list[Decision]:
    """What changed learning, newest first; of bases that learning made one after the other only the last."""
    history, found = list(newest_first), list[Decision]()
    for after, before in zip(history, [*history[1:], None], strict=False):  # the first has none before it
        what = _changed(before, after)
        made = what == "base" and found and found[-1].what == "base"
        if what and not made:
            gate = after.who == LEARNER and what in ("paused", "resumed")
            found.append(
                Decision(when=after.when, who=after.who, why=after.why, what=what, version=after.live, gate=gate)
            )
        if len(found) == DECISIONS:
            break
    return found


def _changed(before: Policy | None, after: Policy) -> str:
    if before is None:
        first = "paused" if after.learning == "paused" else "pinned" if after.pin else "live"
        return first if after.version == 1 else ""
    if before.learning != after.learning:
        return "paused" if after.learning == "paused" else "resumed"
    if before.pin != after.pin:
        return "pinned" if after.pin else "unpinned"
    if before.live != after.live:
        return "base" if after.who == LEARNER else "live"
    return ""


def _calibration(judged: Floats) -> list[Bin]:
    """Groups of equal size by score. `judged` [n, 3]: score, label, and how many examples it stands for. The interval
    is Wilson's, of so many examples as were seen (E. B. Wilson, 1927)."""
    if len(judged) < GROUPS:
        return []
    ordered = judged[np.argsort(judged[:, 0], kind="stable")]
    bins = []
    for part in np.array_split(ordered, GROUPS):
        counts = part[:, 2].sum()
        score, rate = (float((part[:, column] * part[:, 2]).sum() / counts) for column in (0, 1))
        low, high = interval(rate * len(part), len(part))
        score, rate, low, high = (round(one, 5) for one in (score, rate, low, high))
        bins.append(Bin(score, rate, low, high, round(float(counts), 1)))
    return bins


def _written_down(at: Installation) -> Sequence[Point]:
    """The AUC as the role `watch` read it while no console ran; nothing where it reads none."""
    found, read = list[Point](), reading.Reader()
    for _, event in Tail(at.log, "readings", READ_BACK).new(decode):
        if not isinstance(event, Readings):
            continue
        try:
            values = read.read(event) or {}
        except Corrupt:
            continue
        auc = {
            key.get("scores"): round(value, 5)
            for key, value in values.items()
            if key.quantity == "learning_auc" and key.get("slice") in ("", "all")
        }
        if auc and (not found or found[-1].auc != auc):
            found.append(Point(event.at, auc))
    return found[:: max(1, len(found) // (POINTS // 2))]
