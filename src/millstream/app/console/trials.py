"""What the console's page Experiments shows: every experiment, looked at again while somebody looks at the page.

Rules of the room:
- A look reads the log, so it is a process of its own, `millstream experiment`, one at a time, ended after `LOOK_S_MAX`
  and when the console ends. While nobody has the page open there are none; the next one waits `REST` times as long as
  the last one took.
- Experiments are those of [experiments], and, of what no one of them asks about, each placement with several arms and
  each model whose traffic is split.
- The interval over time is of the looks of this console; before the first, the past is looked at in `BACK` steps.
"""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence

import msgspec

from millstream.app.experiments.told import ExperimentReport, Lift, Rail
from millstream.app.installation import Installation
from millstream.console.studies import Arm, Between, Seen, ShadowBeside, Trial, TrialsNow
from millstream.errors import Error
from millstream.watch.experiments.settings import ExperimentSettings

LOOK_S_MAX = 600.0
EVERY_S = 20.0
REST = 5.0
OPEN_S = 15.0
"""So long after the last reading of the page somebody counts as looking at it."""
SEEN = 400
BACK = 6
SAID_MAX = 600


class _Kept:
    """An experiment: how `millstream experiment` is told which, and what it said. `back`: moments of the past to look
    at, unix seconds."""

    def __init__(self, name: str, options: Sequence[str]) -> None:
        self.name, self.options = name, options
        self.trial = Trial(name=name, state="waiting")
        self.seen: deque[Seen] = deque(maxlen=SEEN)
        self.back: list[float] = []
        self.due = -math.inf


class Trials:
    """The experiments of an installation; may be asked from any thread."""

    def __init__(self, at: Installation) -> None:
        self._at = at
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._asked_at = -math.inf
        self._running = ""
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def trials(self) -> TrialsNow:
        """Every experiment as it was looked at last; somebody looks at the page."""
        with self._lock:
            self._asked_at = self._at.clock.monotonic()
            self._name()
            found = [msgspec.structs.replace(one.trial, seen=list(one.seen)) for one in self._kept.values()]
            self._begin()
            return TrialsNow(found, self._running)

    def look(self) -> None:
        """Look at all of them, one after the other."""
        with self._lock:
            for one in self._kept.values():
                one.due = -math.inf
            self._begin()

    def close(self) -> None:
        """End what goes on."""
        self._closed = True
        if (running := self._process) is not None:
            running.kill()

    def _name(self) -> None:
        """Which experiments there are now."""
        there = _experiments(self._at)
        for name, options in there.items():
            if name not in self._kept or self._kept[name].options != options:
                self._kept[name] = _Kept(name, options)
        for name in [name for name in self._kept if name not in there]:
            del self._kept[name]

    def _begin(self) -> None:
        """Look at what is due, in a thread, unless one looks already."""
        now = self._at.clock.monotonic()
        if self._running or self._closed or now - self._asked_at > OPEN_S:
            return
        due = [one for one in self._kept.values() if one.due <= now]
        if due:
            one = min(due, key=lambda one: one.due)
            self._running = one.name
            threading.Thread(target=self._look, args=(one,), name="millstream-experiment", daemon=True).start()

    def _look(self, one: _Kept) -> None:
        began, clock = self._at.clock.monotonic(), self._at.clock
        until = one.back.pop(0) if one.back else math.inf
        try:
            found = self._ask(one, until)
        finally:
            took = clock.monotonic() - began
            with self._lock:
                self._running = ""
                one.due = clock.monotonic() + (REST * took if one.back else max(EVERY_S, REST * took))
        with self._lock:
            self._take(one, found, until, took)
            self._begin()

    def _take(self, one: _Kept, found: ExperimentReport | str, until: float, took: float) -> None:
        if isinstance(found, ExperimentReport):
            seen = [
                Seen(found.until, lift.arm, lift.lift, lift.low, lift.high)
                for lift in found.lifts
                if lift.lift is not None and lift.low is not None and lift.high is not None
            ]
            known = {(had.at, had.arm) for had in one.seen}
            both = sorted([*one.seen, *(new for new in seen if (new.at, new.arm) not in known)], key=lambda x: x.at)
            one.seen = deque(both, maxlen=SEEN)
        if until != math.inf:
            return
        first = one.trial.state != "done"
        if isinstance(found, str):
            one.trial = Trial(name=one.name, state="failed", verdict=found, looked=self._at.clock.now(), took=took)
            return
        if first and found.lifts and found.until > found.since:
            step = (found.until - found.since) / (BACK + 1)
            one.back = [found.since + step * (at + 1) for at in range(BACK)]
            one.due = -math.inf
        one.trial = _trial(one.name, found, self._at.clock.now(), took)

    def _ask(self, one: _Kept, until: float) -> ExperimentReport | str:
        """What the command says; a sentence where it says none."""
        file, pipe = self._at.folder / "millstream.toml", subprocess.PIPE
        command = [sys.executable, "-m", "millstream", "experiment", *one.options, "-c", str(file), "--json"]
        command += ["--until", repr(until)] if until != math.inf else []
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as running:
            self._process = running
            try:
                out, said = running.communicate(timeout=LOOK_S_MAX)
            except subprocess.TimeoutExpired:
                running.kill()
                return f"not done within {LOOK_S_MAX:.0f} s: run `millstream experiment` by hand"
            finally:
                self._process = None
        lines = out.strip().splitlines()
        try:
            return msgspec.json.decode(lines[-1] if lines else "", type=ExperimentReport)
        except msgspec.MsgspecError:
            return (said.strip().splitlines() or ["it said nothing"])[-1][-SAID_MAX:]


def _experiments(at: Installation) -> dict[str, tuple[str, ...]]:
    """By name, what `millstream experiment` is told of each."""
    asked: dict[str, ExperimentSettings] = at.settings.experiments
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in asked}
    placements = {one.placement for one in asked.values() if not one.model}
    for name, placement in at.settings.recommend.placements.items():
        if len(placement.arms) > 1 and name not in placements:
            found[f"placement {name}"] = ("--placement", name)
    models = {one.model for one in asked.values()}
    for name in at.repository.models():
        try:
            policy = at.repository.policy(name)
        except Error:
            continue  # its file is broken: the page Models says so
        if (policy.split or policy.canary) and name not in models:
            found[f"model {name}"] = ("--model", name)
    return found


def _trial(name: str, one: ExperimentReport, looked: float, took: float) -> Trial:
    arms = [Arm(name=arm.arm, share=arm.share, people=arm.people, lists=arm.lists, value=arm.value) for arm in one.arms]
    shadows = [
        ShadowBeside(
            version=shadow.version, requests=shadow.requests, correlation=shadow.correlation,
            rank_correlation=shadow.rank_correlation, apart=shadow.apart, other_first=shadow.other_first,
        )
        for shadow in one.shadows
    ]  # fmt: skip
    return Trial(
        name=name, state="done", split=one.split, metric=one.metric, control=one.control, looked=looked,
        took=round(took, 2), since=one.since, until=one.until, confidence=one.confidence, least=one.least,
        past=one.past, fine=one.sample.fine, chance=one.sample.chance, crossed=one.sample.crossed, why=one.sample.why,
        verdict=one.verdict, arms=arms, lifts=[_lift(one.metric, lift) for lift in one.lifts],
        rails=[_rail(one.control, rail) for rail in one.rails], shadows=shadows,
    )  # fmt: skip


def _lift(metric: str, one: Lift) -> Between:
    return Between(
        what=metric, arm=one.arm, control=one.control, state=one.finding, lift=one.lift, low=one.low, high=one.high,
        less=one.less, wanted=one.wanted,
    )  # fmt: skip


def _rail(control: str, one: Rail) -> Between:
    return Between(
        what=f"{one.metric} · {one.arm}", arm=one.arm, control=control, state=one.state, lift=one.lift, low=one.low,
        high=one.high, allowed=one.allowed,
    )  # fmt: skip
