"""Tasks of the join against a naive reading of its rules: lists of all, looked through from the start each time.

And what weights are for: told early, late or in part, the weighted labels must still say how often people like a thing.
"""

import json
import math
import subprocess
import sys
import tracemalloc
from collections import Counter
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.clock import FakeClock
from millstream.errors import Misconfigured
from millstream.stream import Join, JoinSettings, Log, LogLimits, Operation, Record, Task, decode, encode
from millstream.stream.audit import Acknowledged, audit
from millstream.stream.tasks import P_MAX, rules
from millstream.types import Example, Outcome, Served, SetAside

KEEP = 1e6
SCORES = (0.125, 0.5, 0.9375)


def served(number: int, event_time: float = 0.0, scores: bool = True) -> Served:
    return Served(
        request=f"r{number}", model="ranker", version="1@0", policy=0, arm="live", user="u",
        candidates=["i0", "i1", "i2"], event_time=event_time, tokens=np.arange(6, dtype=np.uint32).tobytes(),
        scores=np.array(SCORES, np.float32).tobytes() if scores else b"",
    )  # fmt: skip


def joined(folder, how: JoinSettings, requests, outcomes, steps=(), snapshot_steps=1, crash=True, partitions=1):
    """Everything the join makes of these, in order; with a crash after each of `steps` (numbers of outcomes)."""
    clock = FakeClock(1e10)
    with Log(folder, clock) as log:
        to_served = log.writer("served")
        to_outcomes = [log.writer("outcomes", number) for number in range(partitions)]
        for one in requests:
            to_served.append(b"", encode(one))

        def operation():
            return Operation(
                Join(how), log, Join.inputs, "examples", folder / "snapshot", clock, snapshot_steps=snapshot_steps
            )

        joining, at = operation(), 0
        for upto in [*sorted(steps), len(outcomes)]:
            for one in outcomes[at:upto]:
                for writer in to_outcomes:
                    writer.append(b"", encode(one))
            at = max(at, upto)
            joining.step()
            if crash and upto < len(outcomes):
                joining.abandon()
                joining = operation()
        joining.step()
        ledger = {}
        for one in outcomes:
            if one.kind != "watermark":
                ledger.setdefault(one.key(), Acknowledged(one.key(), one.event_time))
        books = audit(log, ledger.values(), how.window_s)
        joining.abandon()
        return [decode(record.value) for record in log.reader("examples").records(0)], books


def told(events):
    """Examples and set aside outcomes that have keys, as a sorted list; how many were set aside as numbers."""
    found, numbers = [], Counter()
    for e in events:
        if isinstance(e, Example):
            found.append((e.request, e.item, e.task, e.form, e.label, round(e.weight, 5), sorted(e.outcomes)))
        elif e.outcome:
            found.append((e.request, e.item, "", e.cause, 0.0, 0.0, [e.outcome]))
        else:
            numbers[e.cause] += e.count
    return sorted(found), numbers


class Naive:
    """The rules, one after the other, over plain lists."""

    def __init__(self, how: JoinSettings, requests):
        self.how, self.known = how, {one.request for one in requests}
        self.found, self.numbers, self.mark = [], Counter(), -math.inf
        self.items, self.seen = {}, set()
        self.finals = {name: [] for name in how.tasks}

    def feed(self, outcome):
        pair = (outcome.request, outcome.item)
        if (outcome.request, outcome.key()) in self.seen:
            return self.aside(pair, "duplicate", outcome.key())
        if outcome.request not in self.known:
            return self.aside(pair, "unknown_request", outcome.key())
        if outcome.item not in ("i0", "i1", "i2"):
            return self.aside(pair, "not_a_candidate", outcome.key())
        mine = [name for name in self.how.tasks if outcome.kind in self.how.kinds(name)]
        mine = mine or (list(self.how.tasks) if outcome.kind in ("impression", *self.how.feedback) else [])
        if not mine:
            return self.aside(pair, "unknown_kind", outcome.key())
        yes = [n for n in mine if outcome.value >= self.how.kinds(n).get(outcome.kind, math.inf)]
        item = self.items.get(pair)
        if item is None:
            item = self.items[pair] = {"at": outcome.event_time, "shown": False, "keys": [], "yes": set(), "state": {}}
        elif item["shown"] and outcome.kind == "impression":
            done = all(state in ("no", "yes") for state in item["state"].values())
            return self.late(pair, mine, outcome) if done else self.aside(pair, "duplicate", outcome.key())
        if item["shown"]:
            state = item["state"]
            takes = [n for n in mine if state[n] == "open" or (state[n] == "given" and n in yes)]
            wrong = [n for n in yes if state[n] == "no" and self.how.tasks[n].late == "correct"]
            if not takes and not wrong:
                return self.late(pair, mine, outcome)
            self.seen.add((outcome.request, outcome.key()))
            for name in wrong:
                kept = self.kept(pair, name)
                p = min(SCORES[int(pair[1][1])], P_MAX)
                weight = 1 + p / (1 - p) / self.how.tasks[name].negatives if kept else 1.0
                self.example(pair, name, "late", 1.0, weight, [outcome.key()])
                state[name] = "yes"
            if takes:
                item["keys"].append([outcome.key(), set(takes), bool(wrong)])
            for name in yes:
                if name in takes:
                    self.positive(pair, item, name)
            return None
        self.seen.add((outcome.request, outcome.key()))
        item["yes"] |= set(yes)
        if outcome.kind == "impression":
            item["shown"], item["at"] = True, outcome.event_time
            item["state"] = dict.fromkeys(self.how.tasks, "open")
            early = [n for n in self.how.tasks if self.how.tasks[n].delayed in ("fnw", "fnc")]
            waiting = item["keys"]
            item["keys"] = [*waiting, [outcome.key(), set(mine), False]]
            for name in early:
                mask = waiting if name in item["yes"] else []
                self.negative(pair, item, name, "fake", but=mask)
                item["state"][name] = "given"
            for name in self.how.tasks:
                if name in item["yes"]:
                    self.positive(pair, item, name)
        else:
            item["keys"].append([outcome.key(), set(mine), False])
        return None

    def positive(self, pair, item, name):
        state, p = item["state"], SCORES[int(pair[1][1])]
        delayed = self.how.tasks[name].delayed
        form = "" if state[name] == "open" else "late"
        weight = 1 + p if delayed == "fnw" else 1 / (1 - self.share(name) / 2) if delayed == "defer" else 1.0
        self.example(pair, name, form, 1.0, weight, self.take(item, name))
        state[name] = ("again" if form == "" else "late") if delayed == "defer" else "yes"

    def negative(self, pair, item, name, form, but=()):
        task, p = self.how.tasks[name], SCORES[int(pair[1][1])]
        if not self.kept(pair, name):
            for one in item["keys"]:
                if name in one[1] and one not in but:
                    one[1].discard(name)
                    self.numbers["sampled"] += not one[1] and not one[2]
            return
        weight = 1 / task.negatives if task.negatives_by == "weight" else 1.0
        if task.delayed == "fnw":
            weight *= (1 - p) * (1 + p)
        if task.delayed == "defer":
            weight *= (1 - p) / (1 - p + p * self.share(name) / 2)
        self.example(pair, name, form, 0.0, weight, self.take(item, name, but))

    def close(self, mark):
        while True:
            ends = []
            for place, (pair, item) in enumerate(self.items.items()):
                if not item["shown"]:
                    ends.append((item["at"] + self.how.window_s, pair[0], place, -1, pair))
                    continue
                for number, (name, state) in enumerate(item["state"].items()):
                    task = self.how.tasks[name]
                    if state == "open" or (state == "given" and task.delayed != "defer"):
                        ends.append((item["at"] + task.window_s, pair[0], place, number, pair))
                    elif state in ("given", "again", "late"):
                        ends.append((item["at"] + task.attribution_s, pair[0], place, number, pair))
            if not ends or min(ends)[0] > mark:
                return
            *_, number, pair = min(ends)
            self.end(pair, number)

    def end(self, pair, number):
        item = self.items[pair]
        if number < 0:
            for key, _, _ in item["keys"]:
                self.aside(pair, "no_impression", key)
            del self.items[pair]
            return
        name = list(self.how.tasks)[number]
        state, task = item["state"][name], self.how.tasks[name]
        if state == "open":
            self.negative(pair, item, name, "")
            item["state"][name] = "given" if task.delayed == "defer" else "no"
        elif state == "given":
            if task.delayed == "defer":
                self.negative(pair, item, name, "real")
            item["state"][name] = "no"
        else:
            self.finals[name].append(state == "late")
            if state == "again":
                self.example(pair, name, "real", 1.0, 1 / (1 - self.share(name) / 2), self.take(item, name))
            item["state"][name] = "yes"

    def late(self, pair, mine, outcome):
        if all(self.how.tasks[name].late == "drop" for name in mine):
            self.numbers["late"] += 1
        else:
            self.aside(pair, "late", outcome.key())

    def share(self, name):
        share = 0.0
        for count, late in enumerate(self.finals[name], 1):
            share += (late - share) / count
        return share

    def kept(self, pair, name):
        digits = sha256(f"{pair[0]}/{pair[1]}/{name}".encode()).hexdigest()[:8]
        return int(digits, 16) < self.how.tasks[name].negatives * 16**8

    def take(self, item, name, but=()):
        taken = [one for one in item["keys"] if name in one[1] and one not in but]
        for one in taken:
            one[1].discard(name)
            one[2] = True
        return [one[0] for one in taken]

    def example(self, pair, name, form, label, weight, keys):
        self.found.append((*pair, name, form, label, round(weight, 5), sorted(keys)))

    def aside(self, pair, cause, key):
        self.found.append((*pair, "", cause, 0.0, 0.0, [key]))


def naive(how, requests, outcomes):
    reading = Naive(how, requests)
    for outcome in outcomes:
        if outcome.kind != "watermark":
            reading.feed(outcome)
        if outcome.event_time > reading.mark:
            reading.mark = outcome.event_time
            reading.close(reading.mark)
    return sorted(reading.found), +reading.numbers


@st.composite
def hows(draw):
    """Settings of one to three tasks, of every sort."""
    tasks = {}
    for name in draw(st.sampled_from([("like",), ("like", "buy"), ("buy", "long", "like")])):
        delayed = draw(st.sampled_from(["wait", "wait", "fnw", "fnc", "defer"]))
        window = draw(st.sampled_from([0.0, 10.0, 30.0]))
        tasks[name] = Task(
            kinds=draw(st.sampled_from([{}, {"like": 1.0, "buy": 2.0}, {"dwell": 0.5}])),
            window_s=window,
            late=draw(st.sampled_from(["count", "correct", "drop"] if delayed == "wait" else ["count", "drop"])),
            delayed=delayed,
            attribution_s=window + draw(st.sampled_from([1.0, 25.0, 60.0])),
            negatives=draw(st.sampled_from([1.0, 1.0, 0.5])),
            negatives_by=draw(st.sampled_from(["weight", "shift"])),
        )
    return JoinSettings(tasks=tasks, keep_s=KEEP, idle_s=1000.0)


@st.composite
def histories(draw):
    outcome = st.builds(
        lambda request, item, kind, value, time, id: Outcome(
            request=request,
            item=item,
            kind=kind,
            value=value,
            event_time=float(time),
            id=id and f"{request} {item} {kind} {id}",
        ),
        st.sampled_from(["r0", "r0", "r1", "stranger"]),
        st.sampled_from(["i0", "i0", "i1", "i2", "i9"]),
        st.sampled_from(["impression", "impression", "like", "like", "buy", "dwell", "skip", "nonsense"]),
        st.sampled_from([0.0, 1.0, 2.0]),
        st.integers(0, 120),
        st.sampled_from(["", "", "a", "b", "c"]),
    )
    return [served(0), served(1)], draw(st.lists(outcome, max_size=25))


@settings(max_examples=200, deadline=None)
@given(hows(), histories())
def test_every_task_is_told_what_the_rules_say(tmp_path_factory, how, history):
    events, books = joined(tmp_path_factory.mktemp("join"), how, *history)
    assert told(events) == naive(how, *history)
    assert books.balanced, books


@settings(max_examples=60, deadline=None)
@given(hows(), histories(), st.lists(st.integers(0, 25), max_size=5))
def test_neither_steps_nor_crashes_change_what_is_told(tmp_path_factory, how, history, steps):
    requests, outcomes = history
    steps = [min(step, len(outcomes)) for step in steps]
    one, _ = joined(tmp_path_factory.mktemp("whole"), how, requests, outcomes)
    many, _ = joined(tmp_path_factory.mktemp("pieces"), how, requests, outcomes, steps, snapshot_steps=2)
    assert [e for e in many if e.request] == [e for e in one if e.request]
    assert told(many)[1] == told(one)[1]


@settings(max_examples=100, deadline=None)
@given(hows(), histories())
def test_at_the_end_each_outcome_has_its_place_and_no_task_has_one_twice(tmp_path_factory, how, history):
    requests, outcomes = history
    end = Outcome(kind="watermark", event_time=KEEP / 2)
    events, books = joined(tmp_path_factory.mktemp("end"), how, requests, [*outcomes, end])
    assert books.balanced and books.waiting == 0, books
    keys = Counter((key, e.request, e.task) for e in events if isinstance(e, Example) for key in e.outcomes)
    assert all(count == 1 for count in keys.values())
    pairs = Counter((e.request, e.item, e.task, e.form) for e in events if isinstance(e, Example))
    assert all(count == 1 for count in pairs.values())
    shown = {(o.request, o.item) for o in outcomes if o.kind == "impression"}
    assert {pair[:2] for pair in pairs} <= shown


def people(how: JoinSettings, count: int, seed: int, late: float) -> dict[float, list[Example]]:
    """What the join makes of `count` items, one a second, whose true rate is their score: a positive comes within the
    window, or, `late` of them, after it. By true rate."""
    random = np.random.default_rng(seed)
    rates = np.array([0.125, 0.5, 0.75])
    end = max(task.window_s for task in how.tasks.values())
    events = []
    for number in range(count):
        rate = rates[number % 3]
        events.append((float(number), 0, number, rate))
        if random.random() < rate:
            delay = end * (random.random() if random.random() > late else 1.0 + random.random())
            events.append((number + delay + 0.5, 1, number, rate))
    join, out = Join(how), []
    for when, kind, number, rate in [*sorted(events), (count + 10 * end, 2, 0, 0.0)]:
        if kind == 0:
            one = msgspec.structs.replace(
                served(number, when), candidates=["i"], tokens=b"", scores=np.array([rate], np.float32).tobytes()
            )
            join.on_items("served", [Record(0, number, when, b"", b"")], [one], out)
        names = ("impression", "like", "watermark")
        outcome = Outcome(request=f"r{number}", item="i", kind=names[kind], event_time=when)
        join.on_items("outcomes", [Record(0, 0, when, b"", b"")], [outcome], out)
        join.on_time(when, when, out)
    found = {float(rate): [] for rate in rates}
    for _, event in out:
        if isinstance(event, Example):
            found[event.score].append(event)
    return found


def rate_of(examples: list[Example]) -> float:
    """The weighted mean of their labels: what a model that learns them comes to say."""
    return sum(e.weight * e.label for e in examples) / sum(e.weight for e in examples)


EARLY = {"fnw": {"delayed": "fnw", "window_s": 200.0}, "fnc": {"delayed": "fnc", "window_s": 200.0}}
UNBIASED = {
    "wait, for all": {"window_s": 200.0},
    "fnw": EARLY["fnw"],
    "defer": {"delayed": "defer", "window_s": 100.0, "attribution_s": 250.0},
    "correct": {"late": "correct", "window_s": 100.0},
    "half of the negatives": {"window_s": 200.0, "negatives": 0.5},
    "half, and fnw": {**EARLY["fnw"], "negatives": 0.5},
    "half, and correct": {"late": "correct", "window_s": 100.0, "negatives": 0.5},
}


@pytest.mark.parametrize("name", UNBIASED)
def test_the_weighted_labels_say_how_often_people_like_a_thing(name):
    task = Task(kinds={"like": 1.0}, **UNBIASED[name])
    late = 0.0 if task.window_s == 200.0 else 0.4
    found = people(JoinSettings(tasks={"like": task}, keep_s=1e4), 9_000, 7, late)
    for rate, examples in found.items():
        assert rate_of(examples) == pytest.approx(rate, abs=0.04), rate


def test_labels_that_come_too_early_or_too_rarely_would_not():
    late = JoinSettings(tasks={"like": Task(window_s=100.0)}, keep_s=1e4)
    found = people(late, 9_000, 7, 0.4)
    for rate, examples in found.items():
        assert rate_of(examples) < 0.7 * rate
    early = people(JoinSettings(tasks={"like": Task(**EARLY["fnc"])}, keep_s=1e4), 9_000, 7, 0.0)
    for rate, examples in early.items():
        said = rate_of(examples)
        assert said == pytest.approx(rate / (1 + rate), abs=0.04), "serving takes it back: p / (1 - p)"
        assert said / (1 - said) == pytest.approx(rate, abs=0.12)
    shift = Task(window_s=200.0, negatives=0.25, negatives_by="shift")
    for rate, examples in people(JoinSettings(tasks={"like": shift}, keep_s=1e4), 9_000, 7, 0.0).items():
        odds = rate_of(examples) / (1 - rate_of(examples))
        assert 0.25 * odds == pytest.approx(rate / (1 - rate), rel=0.15), "serving adds the log of the share"


def like(request="r0", item="i1", time=1.0, kind="like", **fields):
    return Outcome(request=request, item=item, kind=kind, event_time=time, **fields)


def shown(request="r0", item="i1", time=0.0):
    return Outcome(request=request, item=item, kind="impression", event_time=time)


def until(time):
    return Outcome(kind="watermark", event_time=time)


def test_two_tasks_of_one_item_have_an_example_each_at_its_own_time(tmp_path):
    how = JoinSettings(tasks={"like": Task(window_s=10.0), "buy": Task({"buy": 1.0, "order": 2.0}, window_s=30.0)})
    outcomes = [shown(), like(kind="skip", time=2.0), until(19.0), like(kind="buy"), like(kind="order", value=2.0)]
    events, books = joined(tmp_path, how, [served(0)], outcomes)
    assert [(e.task, e.label, e.outcomes) for e in events[:2]] == [
        ("like", 0.0, ["r0/i1/impression", "r0/i1/skip"]),
        ("buy", 1.0, ["r0/i1/impression", "r0/i1/skip", "r0/i1/buy"]),
    ]
    assert [e.cause for e in events[2:]] == ["late"] and books.balanced


def test_a_late_positive_takes_back_what_its_negative_taught(tmp_path):
    how = JoinSettings(tasks={"like": Task(window_s=10.0, late="correct")})
    outcomes = [
        shown(),
        shown(item="i2"),
        until(49.0),
        like(time=50.0),
        like(time=51.0, id="again"),
        like(item="i2", time=60.0),
    ]
    events, books = joined(tmp_path, how, [served(0)], outcomes)
    made = [(e.item, e.form, e.label, round(e.weight, 3), e.event_time) for e in events if isinstance(e, Example)]
    assert made[2:] == [("i1", "late", 1.0, 2.0, 50.0), ("i2", "late", 1.0, 10.0, 60.0)], "1/(1-p), p at most 0.9"
    assert [e.cause for e in events if isinstance(e, SetAside)] == ["late"] and books.balanced


def test_what_is_late_or_sampled_away_is_told_as_a_number_and_the_books_know(tmp_path):
    how = JoinSettings(tasks={"like": Task(window_s=10.0, late="drop", negatives=0.5)})
    requests = [served(number) for number in range(40)]
    outcomes = [shown(one.request) for one in requests]
    outcomes += [until(40.0), *(like(one.request, time=50.0) for one in requests), until(90.0)]
    events, books = joined(tmp_path, how, requests, outcomes)
    asides = [(e.cause, e.outcome, e.count) for e in events if isinstance(e, SetAside)]
    made = [e for e in events if isinstance(e, Example)]
    assert 8 < len(made) < 32 and {e.weight for e in made} == {2.0}
    assert asides == [("late", "", 40), ("sampled", "", 40 - len(made))]
    assert books.balanced and books.unnamed == 80 - len(made) and books.learnt == len(made)


def test_the_same_records_in_two_partitions_are_learnt_once(tmp_path):
    how = JoinSettings(tasks={"like": Task(window_s=10.0), "buy": Task(window_s=20.0, delayed="fnw")})
    outcomes = [shown(), like(), shown(item="i2"), like(item="i2", kind="buy"), shown(time=100.0, item="i0")]
    once, _ = joined(tmp_path / "once", how, [served(0)], outcomes)
    twice, books = joined(tmp_path / "twice", how, [served(0)], [*outcomes, *outcomes], partitions=3)
    assert [e for e in twice if isinstance(e, Example)] == [e for e in once if isinstance(e, Example)]
    causes = Counter(e.cause for e in twice if isinstance(e, SetAside))
    assert causes == {"duplicate": 5 * len(outcomes)} and books.balanced


def test_without_scores_nothing_is_reweighted(tmp_path):
    tasks = {"a": Task(delayed="fnw"), "b": Task(delayed="defer", attribution_s=60.0), "c": Task(late="correct")}
    how = JoinSettings(tasks=tasks)
    outcomes = [shown(), like(kind="a"), like(kind="c", time=50.0), like(kind="b", time=51.0), shown(time=200.0)]
    events, _ = joined(tmp_path, how, [served(0, scores=False)], outcomes)
    made = [e for e in events if isinstance(e, Example)]
    assert {(e.task, e.weight, e.score) for e in made} == {("a", 1.0, 0.0), ("b", 1.0, 0.0), ("c", 1.0, 0.0)}


def test_what_the_served_event_says_is_read_again_from_the_log(tmp_path, monkeypatch):
    how = JoinSettings(tasks={"like": Task(window_s=10.0, late="correct"), "buy": Task(window_s=30.0)})
    requests = [served(number) for number in range(300)]
    outcomes = [shown(one.request, f"i{n % 3}", n / 10) for n, one in enumerate(requests)]
    outcomes += [like(one.request, f"i{n % 3}", 40 + n) for n, one in enumerate(reversed(requests))]
    kept, _ = joined(tmp_path / "kept", how, requests, outcomes)
    monkeypatch.setattr("millstream.stream.remembered.DECODED_BYTES", 0)
    monkeypatch.setattr("millstream.stream.remembered.PAGES_MAX", 2)
    monkeypatch.setattr("millstream.stream.remembered.PAGE_BYTES", 1000)
    again, books = joined(tmp_path / "again", how, requests, outcomes)
    assert again == kept and books.balanced and len(again) > 600


def test_a_task_that_is_no_more_loses_nothing_and_a_new_one_begins_with_what_comes(tmp_path):
    clock = FakeClock(1e10)
    log = Log(tmp_path, clock)
    log.writer("served").append(b"", encode(served(0)))
    writer = log.writer("outcomes")

    def run(tasks, *outcomes):
        for one in outcomes:
            writer.append(b"", encode(one))
        join = Join(JoinSettings(tasks=tasks, keep_s=500.0))
        joining = Operation(join, log, Join.inputs, "examples", tmp_path / "snapshot", clock)
        joining.step()
        joining.close()

    old, like_, new = Task({"buy": 1.0}), Task({"like": 1.0}), Task({"rate": 1.0})
    run({"old": old, "like": like_}, shown(), like(kind="buy", value=0.0), shown(item="i2", time=2.0))
    run(
        {"like": like_, "new": new},
        like(item="i2", time=4.0),
        like(item="i2", kind="rate", time=5.0),
        shown("r0", "i0"),
    )
    run({"new": new, "like": like_}, Outcome(kind="watermark", event_time=100.0))
    run({"like": like_}, Outcome(kind="watermark", event_time=1000.0))
    events = [decode(record.value) for record in log.reader("examples").records(0)]
    assert [(e.item, e.task, e.label) for e in events if isinstance(e, Example)] == [
        ("i2", "like", 1.0), ("i0", "new", 0.0), ("i1", "like", 0.0), ("i0", "like", 0.0),
    ] or sorted((e.item, e.task, e.label) for e in events if isinstance(e, Example)) == [
        ("i0", "like", 0.0), ("i0", "new", 0.0), ("i1", "like", 0.0), ("i2", "like", 1.0),
    ]  # fmt: skip
    assert [(e.outcome, e.cause) for e in events if isinstance(e, SetAside)] == [
        ("r0/i2/rate", "late"), ("r0/i1/buy", "expired"),
    ]  # fmt: skip
    outcomes = [decode(record.value) for record in log.reader("outcomes").records(0)]
    ledger = [Acknowledged(one.key(), one.event_time) for one in outcomes if one.kind != "watermark"]
    assert audit(log, ledger, 30.0).balanced
    log.close()


def test_a_served_event_that_is_gone_from_the_log_is_said_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("millstream.stream.remembered.DECODED_BYTES", 0)
    monkeypatch.setattr("millstream.stream.remembered.PAGES_MAX", 0)
    clock = FakeClock(1e10)
    log = Log(tmp_path, clock, LogLimits(segment_bytes=4000, disk_bytes_max=4000))
    to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
    joining = Operation(Join(JoinSettings()), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
    to_served.append(b"", encode(served(0)))
    to_outcomes.append(b"", encode(shown()))
    joining.step()
    joining.save()
    for number in range(1, 100):
        to_served.append(b"", encode(served(number)))
    to_served.roll()
    to_served.retain()
    assert log.reader("served").start(0) > 0
    for one in (like(item="i2"), until(100.0)):
        to_outcomes.append(b"", encode(one))
    joining.step()
    joining.abandon()
    events = [decode(record.value) for record in log.reader("examples").records(0)]
    assert [(e.outcome, e.cause) for e in events] == [("r0/i2/like", "expired"), ("r0/i1/impression", "expired")]
    Operation(Join(JoinSettings()), log, Join.inputs, "examples", tmp_path / "snapshot", clock).abandon()
    log.close()


def test_shares_are_kept_by_anybody_s_sha():
    (rule,) = rules(JoinSettings(tasks={"like": Task(negatives=0.25)}))
    kept = [n for n in range(4000) if rule.keeps(f"r{n}", "i")]
    assert 900 < len(kept) < 1100
    assert all((sha256(f"r{n}/i/like".encode()).hexdigest()[:8] < "40000000") == (n in kept) for n in range(100))


def test_settings_that_contradict_themselves_are_refused():
    for task in (Task(late="correct", delayed="fnw"), Task(delayed="defer"), Task(delayed="defer", attribution_s=4e3)):
        with pytest.raises(Misconfigured, match=r"join\.tasks\.x"):
            JoinSettings(tasks={"x": task})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_is_flat_over_a_day():
    bench = Path(__file__).parents[2] / "bench" / "join.py"
    command = [sys.executable, str(bench), "--requests", "0", "--day-rate", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["day_events"] > 500_000
    assert found["day_mib_at_most_after"] < found["day_mib_after_2_hours"] + 6, found


def test_a_remembered_request_does_not_hold_its_served_event(tmp_path):
    """What of 3,000 requests is not in the bounded cache is a few hundred bytes each, whatever their rows weigh."""
    clock = FakeClock(1e9)
    with Log(tmp_path, clock) as log:
        to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
        join = Join(JoinSettings(keep_s=1e6))
        joining = Operation(join, log, Join.inputs, "examples", tmp_path / "snapshot", clock)
        big = [msgspec.structs.replace(served(n, 1e9), tokens=bytes(30_000)) for n in range(3000)]
        for one in big:
            to_served.append(b"", encode(one))
        to_outcomes.append_frame([(b"", encode(shown(one.request, time=1e9))) for one in big])
        to_outcomes.append(b"", encode(until(2e9)))
        del big
        tracemalloc.start()
        while joining.step():
            clock.advance(100.0)
        clock.advance(100.0)
        joining.step()
        join._answers.clear()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(join.snapshot()) < 3000 * 150 and kept < 3000 * 3000, kept
        joining.abandon()
