"""Labels as they come back, and levels that change at once, over a simulated history of counts."""

import math
import sys

import numpy as np
import pytest
from river.drift import ADWIN

from millstream.app.labels import VERSIONS_MAX, LabelCounts
from millstream.learn.quality import auc
from millstream.meter import Meter
from millstream.types import Example
from millstream.watch.history import History
from millstream.watch.monitors.labels import Labels, auc_error, gone
from millstream.watch.monitors.stream import Series, Streams
from millstream.watch.reading import Key

BEGIN = 1_700_006_400.0
DAY, HOUR, MINUTE = 86400.0, 3600.0, 60.0
OF = {"model": "ranker", "version": "3", "task": "click"}


class World:
    """Four servers that answer 25 requests a second together, and what people do then, a look a minute."""

    def __init__(self, *monitors, seed=0, history=None, base=0.1, known=1.0):
        self.history = history or History()
        self.monitors = [make(self.history) for make in monitors]
        self.random, self.at = np.random.default_rng(seed), BEGIN
        self.base, self.known = base, known
        self.most = {}

    def look(self, lost=0.0, flipped=0.0, moved=0.0, buys=0.0015, kind="click"):
        random, self.at = self.random, self.at + 60.0
        n = random.poisson(1500 * (1 + 0.5 * math.sin(2 * math.pi * self.at / DAY)) * math.exp(random.normal(0, 0.05)))
        odds = math.log(self.base / (1 - self.base)) + random.normal(
            0.1 * math.sin(2 * math.pi * self.at / DAY), 1.0, n
        )
        p = 1 / (1 + np.exp(-odds))
        clicks = random.random(n) < p
        labels = clicks ^ (random.random(n) < flipped)
        scores = np.clip(p + moved * p.std(), 1e-6, 1 - 1e-6)
        losses = np.where(labels, -np.log(scores), -np.log1p(-scores))
        told = {"impression": n, "click": clicks.sum(), "buy": random.binomial(n, buys)}
        told[kind] *= 1 - lost
        read = {Key.of("requests", {"server": f"serve-{k}", "model": "ranker"}): n / 4 for k in range(4)}
        read |= {
            Key.of("outcomes_told", {"server": "serve-0", "kind": one}): float(count) for one, count in told.items()
        }
        sums = {"labels": n, "labels_positive": labels.sum(), "labels_scored": n, "labels_loss": losses.sum(),
                "labels_loss_squares": (losses**2).sum(), "scores": n, "score_above": scores.sum(), "score_below": 0.0,
                "score_squares": (scores**2).sum()}  # fmt: skip
        read |= {Key.of(name, OF): float(value) for name, value in sums.items()}
        found = {}
        for one in self.monitors:
            found |= one.readings(self.at)
        self.history.add(self.at, read | found)
        for key, value in found.items():
            self.most[key] = max(value, self.most.get(key, 0.0))
        return found

    def go(self, seconds, until=lambda read: False, **fault):
        begun = self.at
        while self.at < begun + seconds:
            if until(self.look(**fault)):
                return self.at - begun
        return None


def missing(kind):
    return Key.of("outcomes_missing", {"kind": kind})


def odd(quantity, against="hour"):
    return Key.of(quantity, {"model": "ranker", "task": "click", "against": against})


def test_a_quiet_day_reads_nothing_and_yesterday_is_the_measure_of_today():
    world = World(Labels)
    world.go(DAY + HOUR)
    assert {missing("impression"), missing("click"), odd("labels_shift"), odd("loss_shift")} <= world.most.keys()
    assert odd("labels_shift", "day") in world.most
    assert max(world.most.values()) < 0.1


@pytest.mark.parametrize(("kind", "lost", "minutes"), [("click", 1.0, 3), ("impression", 0.8, 3), ("buy", 1.0, 25)])
def test_outcomes_that_stay_away_are_missed_each_kind_apart(kind, lost, minutes):
    world = World(Labels)
    assert world.go(4 * HOUR) is None
    world.most.clear()
    took = world.go(minutes * MINUTE, lambda read: read.get(missing(kind), 0.0) > 0.5, lost=lost, kind=kind)
    assert took is not None
    assert all(value < 0.1 for key, value in world.most.items() if key != missing(kind))
    assert world.go(minutes * MINUTE, lambda read: read.get(missing(kind), 0.0) < 0.1) is not None


def test_no_requests_miss_no_outcomes_and_no_history_is_no_reading():
    assert Labels(History()).readings(BEGIN) == {}
    assert gone(0.0, 0.0, np.array([[100.0, 90.0], [1000.0, 1000.0]])) is None
    assert gone(0.0, 10.0, np.array([[100.0, 90.0], [1000.0, 1000.0]])) is None  # one was to be expected
    assert gone(0.0, 2000.0, np.array([[100.0] * 60, [1000.0] * 60])) > 0.9


def test_a_missing_share_is_never_told_as_larger_than_it_is():
    random = np.random.default_rng(4)
    wrong = 0
    for _ in range(500):
        before = np.array([random.poisson(40, 60), np.full(60, 400.0)], np.float64)
        found = gone(float(random.poisson(0.5 * 100)), 1000.0, before)
        wrong += found is not None and found > 0.5
    assert wrong <= 1


@pytest.mark.parametrize(("base", "quantity"), [(0.1, "labels_shift"), (0.1, "loss_shift"), (0.5, "loss_shift")])
def test_labels_told_the_wrong_way_round_are_found(base, quantity):
    world = World(Labels, base=base)
    world.go(3 * HOUR)
    assert world.go(25 * MINUTE, lambda read: read[odd(quantity)] > 0.2, flipped=0.2 if base < 0.5 else 0.3) is not None
    if base == 0.5:
        assert world.most[odd("labels_shift")] < 0.1  # as many are turned to either side


def test_a_restart_goes_on_from_the_history():
    world = World(Labels)
    world.go(3 * HOUR)
    again = World(Labels, seed=1, history=world.history)
    again.at = world.at
    assert again.go(3 * MINUTE, lambda read: read.get(missing("click"), 0.0) > 0.5, lost=1.0) is not None


def test_the_books_of_the_learner_are_told_beyond_chance():
    history = History()

    def told(n, served, frozen, ratio, at):
        values = {"auc": (served, frozen), "ratio": (ratio, 1.0), "examples": (n, n), "positives": (n / 10, n / 10)}
        read = {
            Key.of(f"learning_{of}", {"server": "learn", "scores": who, "slice": "all"}): value
            for of, pair in values.items()
            for who, value in zip(("served", "frozen"), pair, strict=True)
        }
        history.add(at, read)
        return Labels(history).readings(at)

    lost, off = Key.of("auc_lost", {"slice": "all"}), Key.of("calibration_off", {"slice": "all"})
    few = told(1000.0, 0.70, 0.74, 1.3, BEGIN)
    assert few[lost] == few[off] == 0.0
    many = told(100_000.0, 0.70, 0.74, 1.3, BEGIN + 600)
    assert 0.02 < many[lost] < 0.04 and 0.2 < many[off] < 0.3
    better = told(100_000.0, 0.78, 0.74, 1 / 1.3, BEGIN + 1200)
    assert better[lost] == 0.0 and 0.2 < better[off] < 0.3


def test_the_error_of_an_auc_is_what_samples_show():
    random = np.random.default_rng(8)
    found = []
    for _ in range(300):
        positive, negative = random.exponential(2.0, 80), random.exponential(1.0, 240)
        found.append(auc(np.repeat([1, 0], [80, 240]), np.concatenate([positive, negative])))
    assert auc_error(float(np.mean(found)), 80, 240) == pytest.approx(np.std(found), rel=0.2)


def change(of, **labels):
    return Key.of("change", {"of": of, **labels})


SCORE = change("score", model="ranker", version="3")


def test_a_level_that_changes_at_once_is_told_by_how_much_and_a_tide_is_not():
    world = World(Streams)
    world.go(5 * HOUR)
    assert world.most[SCORE] < 0.1 and world.most[change("positives", model="ranker", task="click")] < 0.1
    took = world.go(20 * MINUTE, lambda read: read[SCORE] > 0.25, moved=0.4)
    assert took is not None
    world.go(10 * MINUTE, moved=0.4)
    assert world.look(moved=0.4)[SCORE] == pytest.approx(0.4, abs=0.1)
    world.go(HOUR, moved=0.4)
    assert world.look(moved=0.4)[SCORE] == 0.0  # it is how it is now


def test_one_empty_answer_after_a_night_without_any_is_no_change():
    series, worst = Series(ADWIN(clock=1)), 0.0
    for minute in range(600):
        empty = minute == 500
        series.add((1500, empty, empty), minute * MINUTE)
        worst = max(worst, series.change(minute * MINUTE))
    assert worst < 0.1
    for minute in range(600, 605):
        series.add((1500, 600, 600), minute * MINUTE)
    assert series.change(605 * MINUTE) > 0.25


def test_a_new_detector_is_shown_the_hours_before():
    world = World(Streams)
    world.go(2 * HOUR)
    again = World(Streams, seed=1, history=world.history)
    again.at = world.at
    assert again.go(25 * MINUTE, lambda read: read[SCORE] > 0.25, moved=0.5) is not None


def test_a_feature_that_goes_missing_is_a_change_of_its_own_size():
    history, at = History(), BEGIN
    monitor, random = Streams(history), np.random.default_rng(0)
    nulls = Key.of("feature_nulls", {"set": "users", "feature": "age", "server": "learn"})
    most = 0.0
    for minute in range(150):
        at += MINUTE
        history.add(at, {nulls: random.binomial(256, 0.1 if minute < 120 else 0.4) / 256})
        most = max(most, *monitor.readings(at).values(), 0.0)
        assert minute > 120 or most == 0.0
    assert most == pytest.approx(1.0, abs=0.3)  # .3 of sqrt(.1 * .9)


def test_without_river_it_says_so_once_and_reads_nothing(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "river.drift", None)
    world = World(Streams)
    world.go(HOUR)
    assert world.most == {}
    assert caplog.text.count("pip install 'millstream[watch]'") == 1


def example(version="3@7", label=1.0, score=0.25, task="click"):
    return Example(
        request="r", item="i", model="ranker", version=version, tokens=b"", score=score, label=label, weight=1.0,
        event_time=0.0, arrival=0.0, wait_s=0.0, outcomes=[], task=task,
    )  # fmt: skip


def test_labels_are_counted_by_who_scored_with_their_loss():
    meter = Meter()
    count = LabelCounts(meter)
    for one in (example(), example("3@8", 0.0), example("3", 0.0, 0.0), example("4", 1.0, 1.0)):
        count(one)
    losses = [-math.log(0.25), -math.log(0.75)]
    for name, value in (
        ("total", 3), ("positive_total", 1), ("scored_total", 2), ("loss_total", sum(losses)),
        ("loss_squares_total", sum(loss**2 for loss in losses)),
    ):  # fmt: skip
        assert meter.values(f"millstream_labels_{name}", OF) == [pytest.approx(value)]
    assert meter.values("millstream_labels_loss_total", OF | {"version": "4"}) == [pytest.approx(0.0, abs=1e-5)]


def test_counters_of_versions_are_bounded():
    meter = Meter()
    count = LabelCounts(meter)
    for number in range(VERSIONS_MAX + 8):
        count(example(str(number)))
    there = [one for one in meter.total().values() if one["name"] == "millstream_labels_total"]
    assert len(there) == VERSIONS_MAX
    count(example("0"))
    assert meter.values("millstream_labels_total", OF | {"version": "0"}) == [1.0]
    for number in range(VERSIONS_MAX):
        count(example(str(100 + number)))
        count(example("0"))
    assert meter.values("millstream_labels_total", OF | {"version": "0"}) == [1.0 + VERSIONS_MAX], "it has labels still"
