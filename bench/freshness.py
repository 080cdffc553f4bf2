"""What freshness is worth: push interval and label wait against AUC, and what poison costs with and without the gate.

    python bench/freshness.py [--page docs/freshness.md] [--plots bench/results] [--asks N]

1. MovieLens-100K at log time and the simulator. The first 20 % train version 1; then every item is scored when it is
   shown, by the weights of the last push; a label is learnt when it is known, `wait` after it was shown; weights are
   pushed every `push` seconds. AUC over the last 80 %: of MovieLens by its labels, of the simulator by the
   probabilities behind its coins.
2. Regret: the simulator as a service sees it. People get candidates in the order of the served scores, look at a place
   with probability place^-0.7, click by the truth, and are heard after a delay. In a part of the time 30 % of the
   labels are told the wrong way round, or robots click all they see. Regret is in clicks that the best order would have
   had.

Rows, learner and gate are those of serving and learning; there is no log between them, so this is the price of the
waits alone.
"""

from __future__ import annotations

import argparse
import heapq
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream import simulate
from millstream.demo.data import movielens
from millstream.features import Definition, Entities
from millstream.learn.gate import Gate, GateSettings
from millstream.learn.quality import auc
from millstream.models.online import Ftrl, Settings

FTRL = Settings(alpha=0.2, beta=1.0, l1=0.1, l2=1.0, bits=18)
PEOPLE = Definition.read(
    {
        "user": [{"name": "id"}, {"name": "age", "bucket": 10}, {"name": "gender"}, {"name": "occupation"}],
        "item": [{"name": "id"}, {"name": "year", "bucket": 10}, {"name": "genres", "places": 6}],
        "crosses": ["user.id*item.genres", "user.id*item.year", "user.age*item.id", "user.occupation*item.genres"],
    }
)
FIRST = 0.2
DAY = 86400.0
PUSHES = (("at once", 1.0), ("10 s", 10.0), ("1 min", 60.0), ("10 min", 600.0), ("1 h", 3600.0), ("6 h", 6 * 3600.0),
          ("1 day", DAY), ("never", float("inf")))  # fmt: skip
WAITS = (("0", 0.0), ("1 min", 60.0), ("10 min", 600.0), ("1 h", 3600.0), ("1 day", DAY))


class Shown(NamedTuple):
    """Items in the order of their times: rows, labels, and what is known of the truth (labels, where nothing is)."""

    times: NDArray[np.float64]
    tokens: NDArray[np.uint32]
    labels: NDArray[np.float32]
    truth: NDArray[np.float64]


def rows(users: Sequence[dict[str, object]], items: Sequence[dict[str, object]]) -> Entities:
    """Entities that know everybody."""
    known = Entities(PEOPLE)
    for side, table in (("user", users), ("item", items)):
        for row in table:
            attributes = {name: value for name, value in row.items() if name != "id"}
            known.upsert(side, str(row["id"]), attributes)  # type: ignore[arg-type]
    return known


def films() -> Shown:
    data = movielens()
    known = rows(data.users, data.items)
    tokens = np.concatenate([known.rows(one.user, [one.item]) for one in data.shown])
    labels = np.array([one.like for one in data.shown], np.float32)
    return Shown(np.array([one.event_time for one in data.shown]), tokens, labels, labels.astype(np.float64))


def world(count: int = 100_000) -> Shown:
    """The simulator: ten moments a second, tastes that turn once in about eleven hours."""
    made = simulate.Simulator(np.random.default_rng(7))
    known = rows(made.users, made.items)
    moments = list(made.moments(count))
    tokens = np.concatenate([known.rows(one.user, [one.item]) for one in moments])
    return Shown(
        np.array([one.event_time for one in moments]), tokens, np.array([one.label for one in moments], np.float32),
        np.array([one.probability for one in moments]),
    )  # fmt: skip


def served(shown: Shown, push_s: float, wait_s: float) -> NDArray[np.float32]:
    """The score that each item of the last 80 % was shown with."""
    first = int(len(shown.times) * FIRST)
    learner = Ftrl(FTRL, PEOPLE.width)
    learner.learn(shown.tokens[:first], shown.labels[:first])
    scores = np.empty(len(shown.times) - first, np.float32)
    known, begun, at = shown.times + wait_s, shown.times[first], first
    learnt = first
    model = learner.served()
    while at < len(shown.times):
        push = np.floor((shown.times[at] - begun) / push_s) if np.isfinite(push_s) else 0.0
        until = begun + (push + 1) * push_s if np.isfinite(push_s) else np.inf
        ready = int(np.searchsorted(known, begun + push * push_s, "left")) if np.isfinite(push_s) else first
        if ready > learnt:
            learner.learn(shown.tokens[learnt:ready], shown.labels[learnt:ready])
            learnt = ready
            change = learner.delta()
            model.apply(change.slots, change.weights)
        end = int(np.searchsorted(shown.times, until, "left"))
        scores[at - first : end - first] = model.predict({"tokens": shown.tokens[at:end]})["probability"]
        at = end
    return scores


def table(name: str, shown: Shown) -> tuple[list[str], dict[str, list[float]]]:
    """Lines of markdown, and by wait the AUC of each push interval."""
    first, found = int(len(shown.times) * FIRST), dict[str, list[float]]()
    truth = shown.truth[first:]
    for wait, seconds in WAITS:
        found[wait] = [
            simulate.auc(scores, truth) if name == "simulator" else auc(truth, scores)
            for scores in (served(shown, push_s, seconds) for _, push_s in PUSHES)
        ]
    lines = [
        "| push | " + " | ".join(f"label after {wait}" for wait in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for place, (push, _) in enumerate(PUSHES):
        lines.append(f"| {push} | " + " | ".join(f"{found[wait][place]:.4f}" for wait in found) + " |")
    return lines, found


class Policy(NamedTuple):
    """How somebody serves: learns at all, pushes each `push_s`, and whether the gate stands before a push."""

    name: str
    push_s: float
    gate: bool


POLICIES = (
    Policy("frozen", float("inf"), False),
    Policy("a push each hour", 3600.0, False),
    Policy("a push each minute", 60.0, False),
    Policy("a push each second", 1.0, False),
    Policy("a push each second, the gate before it", 1.0, True),
)
WINDOW_S = 60.0
GATE = GateSettings(window=5000, resume_s=120.0)
TROUBLE = {"nothing": (0.0, ""), "poison": (0.3, "labels"), "robots": (0.5, "clicks")}


class Told(NamedTuple):
    """Labels as they are told: rows [n, width], labels [n], and when each item was shown [n]."""

    tokens: NDArray[np.uint32]
    labels: NDArray[np.float32]
    shown: NDArray[np.float64]


class Learns:
    """The learning side of a policy: what `millstream learn` does between examples and weights."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._learner, self._gate = Ftrl(FTRL, PEOPLE.width), Gate(GATE)
        self.served, self.refused, self._why = self._learner.served(), 0, ""
        self._pushed: list[Told] = []
        self._last, self._stopped = -np.inf, -np.inf

    def turn(self, now: float, ready: list[tuple[NDArray[np.uint32], float, float]]) -> bool:
        """Learn and push if it is time; whether the examples (row, label, time of showing) were taken."""
        if not ready or now - self._last < self._policy.push_s:
            return False
        self._last = now
        rows, labels, shown = zip(*ready, strict=True)
        told = Told(np.stack(rows), np.array(labels, np.float32), np.array(shown))
        if self._stopped > -np.inf:
            self._look(now, told)
            return True
        self._learn(told)
        change = self._learner.delta()
        if self._policy.gate and (why := self._gate.refuses(change.weights)):
            self.refused, self._why, self._stopped = self.refused + 1, why, now
            self._stand()
            self._gate.look_anew()
        else:
            self.served.apply(change.slots, change.weights)
            self._pushed.append(told)
        return True

    def _learn(self, told: Told) -> None:
        self._gate.observe(self._learner.learn(told.tokens, told.labels), told.labels, times=told.shown)

    def _stand(self) -> None:
        """On the weights of the last push, as a restart would: what was refused is not learnt."""
        self._learner, self._gate = Ftrl(FTRL, PEOPLE.width), Gate(GATE)
        for told in self._pushed:
            self._learn(told)
        self._learner.delta()

    def _look(self, now: float, told: Told) -> None:
        """Answer without learning, until a window is as usual again."""
        answered = self._learner.predict({"tokens": told.tokens})["probability"]
        self._gate.observe(answered, told.labels, times=told.shown, passed_over=True)
        if now - self._stopped >= GATE.resume_s and self._gate.as_usual(self._why):
            self._stopped = -np.inf
            self._stand()
            self._gate.go_on(by_person=False)


class Lived(NamedTuple):
    """Regret request by request, mean score over mean probability of what was looked at while there was trouble, and
    how often the gate refused."""

    regret: NDArray[np.float64]
    ratio: float
    refused: int


def closed_loop(policy: Policy, trouble: str, asks: int) -> Lived:
    """Trouble lasts from 40 % to 60 % of the time."""
    made = simulate.Simulator(np.random.default_rng(11), users=300, items=300, delay_s=10.0, drift_period_s=20_000.0)
    random, known = np.random.default_rng(5), rows(made.users, made.items)
    learns, regret = Learns(policy), simulate.Regret()
    share, kind = TROUBLE[trouble]
    waiting: list[tuple[float, int, NDArray[np.uint32], float, float]] = []
    ready: list[tuple[NDArray[np.uint32], float, float]] = []
    number, sums = 0, np.zeros(2)
    for place, ask in enumerate(made.asks(asks)):
        now, during = ask.event_time, 0.4 <= place / asks < 0.6
        while waiting and waiting[0][0] <= now:
            _, _, row, label, shown = heapq.heappop(waiting)
            ready.append((row, label, shown))
        if learns.turn(now, ready):
            ready.clear()
        tokens = known.rows(ask.user, ask.candidates)
        scores = learns.served.predict({"tokens": tokens})["probability"]
        order = np.argsort(-scores, kind="stable")
        regret.add(ask, order)
        if during:
            sums += simulate.looked_at(len(order)) @ np.stack([scores[order], ask.truth[order]], axis=1)
        for reaction in made.react(ask, order.tolist()):
            label, delay = float(reaction.clicked), reaction.delay_s if reaction.clicked else WINDOW_S
            if kind and during and random.random() < share:
                label, delay = (1.0 - label, WINDOW_S) if kind == "labels" else (1.0, 0.0)
            number += 1
            heapq.heappush(waiting, (now + delay, number, tokens[ask.candidates.index(reaction.item)], label, now))
    return Lived(np.array(regret.each), float(sums[0] / sums[1]), learns.refused)


def regrets(asks: int) -> tuple[list[str], dict[str, dict[str, NDArray[np.float64]]]]:
    """Lines of markdown, and the curves by trouble and policy."""
    curves: dict[str, dict[str, NDArray[np.float64]]] = {}
    lines = ["| policy | " + " | ".join(TROUBLE) + " | refused |", "|---|" + "---|" * (len(TROUBLE) + 1)]
    for policy in POLICIES:
        lived = {trouble: closed_loop(policy, trouble, asks) for trouble in TROUBLE}
        cells = [policy.name]
        for trouble, (regret, ratio, _) in lived.items():
            curves.setdefault(trouble, {})[policy.name] = regret
            during = regret[int(asks * 0.4) : int(asks * 0.7)]
            cells.append(f"{regret.mean():.4f} ({during.mean():.4f}) {ratio:.2f}")
        cells.append(", ".join(str(one.refused) for one in lived.values()))
        lines.append("| " + " | ".join(cells) + " |")
    return lines, curves


def plots(
    folder: Path, found: dict[str, dict[str, list[float]]], curves: dict[str, dict[str, NDArray[np.float64]]]
) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "millstream"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(11, 4))
    for place, (name, waits) in enumerate(found.items()):
        for wait, aucs in waits.items():
            axes[place].plot(range(len(aucs)), aucs, marker="o", label=f"label after {wait}")
        axes[place].set_xticks(range(len(PUSHES)), [push for push, _ in PUSHES], rotation=30)
        axes[place].set(title=name, xlabel="push interval", ylabel="AUC")
        axes[place].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "freshness.svg", metadata={"Date": None})
    figure, axes = pyplot.subplots(1, len(curves), figsize=(13, 4), sharey=True)
    for place, (trouble, by_policy) in enumerate(curves.items()):
        for name, each in by_policy.items():
            step = max(1, len(each) // 400)
            axes[place].plot(np.arange(0, len(each), step), np.cumsum(each)[::step], label=name)
        axes[place].set(title=f"trouble: {trouble}", xlabel="requests", ylabel="regret, clicks")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "regret.svg", metadata={"Date": None})


PAGE = """# What freshness is worth

Made by `make bench ARGS=freshness`; do not edit. {machine}.

A model learns from people's answers. Three waits stand between an answer and the next score: until the label is known
(the *label wait*: a negative is known when nobody has clicked for so long), until learnt weights are pushed (the *push
interval*), and the machine's own staleness, which is well below both (see [learning.md](learning.md)).

## Push interval and label wait against AUC

The first fifth trains version 1. Then each item is scored as it is shown, by the weights of the last push. AUC over the
other four fifths.

MovieLens-100K at log time (80,000 ratings in 7 months; label: a rating of 4 or more):

{films}

The simulator (80,000 moments in 2.2 hours, tastes that turn once in 11 hours; AUC against the true probabilities):

{world}

![AUC against push interval](../bench/results/freshness.svg)

How to read it: go down a column to see what slower pushes cost, along a line to see what later labels cost. Where both
hurt, the label wait is the first to shorten (`join.tasks`), as no push can bring what nobody knows yet.

## Regret, and what the gate is for

The same simulator as a service lives it: people get an order, look at the first places more than at the last, click,
and are heard late. From 40 % to 60 % of the time there is trouble: `poison` (30 % of the labels told the wrong way
round) or `robots` (half of what is looked at is clicked at once). In a cell: regret in clicks a request over all the
time; in brackets, from the trouble's beginning until as much time again as half of it has passed; and the mean score
over the true probability of what was looked at during the trouble, 1 is honest. Last column: how often the gate refused
a push, by trouble.

{regret}

A refusal keeps what was pushed before it. Labels of robots are noticed when their windows close, so a part of them is
served while learning stands still, and what people want meanwhile is not learnt: here, where robots click without any
preference, that costs more regret than learning their clicks would have. What was learnt since the robots came goes
with `millstream train rollback --to` ([learning.md](learning.md#the-gate)).

![regret](../bench/results/regret.svg)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--page", type=Path, help="write the page of the docs here")
    options.add_argument("--plots", type=Path, help="a folder for the plots")
    options.add_argument("--asks", type=int, default=40_000, help="requests of each closed loop (default: 40000)")
    chosen = options.parse_args()
    parts, found = dict[str, str](), dict[str, dict[str, list[float]]]()
    for name, shown in (("MovieLens-100K", films()), ("simulator", world())):
        lines, found[name] = table(name, shown)
        parts[name] = "\n".join(lines)
        print(f"\n{name}\n\n{parts[name]}", flush=True)
    lines, curves = regrets(chosen.asks)
    print("\nRegret\n\n" + "\n".join(lines), flush=True)
    if chosen.plots:
        plots(chosen.plots, found, curves)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    if chosen.page:
        page = PAGE.format(
            machine=machine, films=parts["MovieLens-100K"], world=parts["simulator"], regret="\n".join(lines)
        )
        chosen.page.write_text(page)


if __name__ == "__main__":
    main()
