"""How far scores have moved is what numpy says of all of them, less chance; and chance alone says nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.engine.quality import SCORES
from millstream.engine.tally import Numbers
from millstream.meter import Meter
from millstream.types import TensorSpec
from millstream.watch.history import History
from millstream.watch.monitor import Sample
from millstream.watch.monitors.meters import Meters
from millstream.watch.monitors.quality import HOUR_S, LEAST, NOW_S, Quality, moments, psi, shift
from millstream.watch.reading import Key

START = 1_700_000_000.0 // 3600 * 3600 + 2400  # so that a whole hour is over twenty minutes after
X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP32", (-1, 1))


def sums(values, steps=60):
    """[3, steps] of values that come one after the other."""
    parts = np.array_split(np.asarray(values, np.float64), steps)
    return np.array([[len(one), one.sum(), (one * one).sum()] for one in parts]).T


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(300, 3000), st.floats(-50, 50), st.floats(0.1, 9))
def test_moments_are_those_of_the_values(seed, count, mean, sd):
    values = np.random.default_rng(seed).normal(mean, sd, count)
    found = moments(sums(values))
    assert found.n == count and found.mean == pytest.approx(values.mean(), abs=1e-9)
    assert found.sd == pytest.approx(values.std(), rel=1e-6)
    assert found.error >= values.std() / np.sqrt(count) * (1 - 1e-6)


def test_chance_alone_says_nothing_and_a_fifth_of_a_deviation_is_told_nearly_whole():
    rng = np.random.default_rng(5)
    nulls, moved = [], []
    for _ in range(150):
        before = moments(sums(rng.normal(3.0, 2.0, 4000)))
        nulls.append(shift(moments(sums(rng.normal(3.0, 2.0, 800))), before))
        moved.append(shift(moments(sums(rng.normal(3.4, 2.0, 20_000))), moments(sums(rng.normal(3.0, 2.0, 20_000)))))
    assert sum(one > 0 for one in nulls) <= 1
    assert min(moved) > 0.1 and max(moved) < 0.2


def test_much_data_do_not_make_a_small_shift_a_large_one():
    rng = np.random.default_rng(6)
    found = [
        shift(moments(sums(rng.normal(0.02, 1.0, 100_000))), moments(sums(rng.normal(0.0, 1.0, 100_000))))
        for _ in range(20)
    ]
    assert max(found) < 0.02


def test_requests_that_come_in_bunches_are_not_taken_for_independent_ones():
    """Forty minutes-long moods of a thousand equal requests are forty draws."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(100):
        now, before = (np.repeat(rng.normal(0.0, 1.0, 40), 1000) + rng.normal(0, 0.1, 40_000) for _ in range(2))
        found.append(shift(moments(sums(now, 40)), moments(sums(before, 40))))
    assert sum(one > 0 for one in found) <= 2


def test_too_few_say_nothing_and_a_constant_that_moves_is_told():
    few, many = moments(sums(np.ones(LEAST - 1))), moments(sums(np.ones(1000)))
    assert shift(few, many) is None and shift(many, few) is None and shift(many, many) == 0.0
    assert shift(moments(sums(np.full(1000, 2.0))), many) == 1000.0
    assert moments(np.zeros((3, 0))) == moments(np.zeros((3, 5))) == (0.0, 0.0, 0.0, 0.0)


def textbook(now, before, bins=10):
    """PSI over quantile bins of the values themselves."""
    edges = np.quantile(before, np.arange(1, bins) / bins)
    p, q = (np.bincount(np.searchsorted(edges, of), minlength=bins) / len(of) for of in (now, before))
    return ((p - q) * np.log(p / q)).sum()


def buckets(values):
    return np.bincount(np.searchsorted(SCORES, values), minlength=len(SCORES) + 1).astype(float)


@pytest.mark.parametrize("by", [0.0, 0.3, 0.6, 1.0])
def test_psi_is_that_of_a_textbook_less_what_chance_explains(by):
    rng = np.random.default_rng(8)

    def drawn(mean, count):
        return 1 / (1 + np.exp(-rng.normal(mean, 1.0, count)))

    now, before = drawn(by, 20_000), drawn(0.0, 100_000)
    assert psi(buckets(now), buckets(before)) == pytest.approx(textbook(now, before), rel=0.12, abs=0.003)


def test_psi_of_chance_is_zero_whatever_the_size():
    rng = np.random.default_rng(9)
    for count in (250, 20_000):
        found = [psi(buckets(rng.beta(2, 5, count)), buckets(rng.beta(2, 5, count))) for _ in range(100)]
        assert sum(one > 0 for one in found) <= 2
    assert psi(buckets(rng.beta(2, 5, LEAST - 1)), buckets(rng.beta(2, 5, 1000))) is None
    assert psi(buckets(np.ones(500)), buckets(np.zeros(500))) > 5


class Served:
    """Servers whose answers are counted by the engine's own counters, watched by the monitors alone."""

    def __init__(self, *servers):
        self.meters = {name: Meter(name=name) for name in servers}
        self.history, self.at, self.scores = History(), START, {}
        self.begin()
        self.look()

    def begin(self):
        self.monitors = [Meters(), Quality(self.history)]

    def version(self, number, server):
        meter = self.meters[server]
        return Numbers(meter, "m", number, (X,), (Y,))

    def look(self, step=60.0):
        self.at += step
        read = {}
        for one in self.monitors:
            for name, meter in self.meters.items():
                ((_, series),) = meter.by_process(one.metrics)
                one.observe(Sample(self.at, name, series))
            read |= one.readings(self.at)
        self.history.add(self.at, read)
        return read


def answers(numbers, values):
    for number, value in enumerate(values):
        request = {"x": np.full((1, 2), number, np.float32)}
        numbers.quality.answered(request, {"y": np.full((1, 1), value, np.float32)})


def of(quantity, version="1", **more):
    return Key.of(quantity, {"model": "m", "version": version, **more})


def test_a_version_stands_beside_its_hour_its_start_and_other_versions_and_after_a_restart_too():
    rng, at = np.random.default_rng(1), Served("a", "b")
    lanes = [at.version("1", name) for name in ("a", "b")]
    told = []
    for minute in range(80):
        values = [rng.normal(-1.0 if minute < 70 else 2.0, 2.0, 40).astype(np.float32) for _ in lanes]
        told.append(np.concatenate(values))
        for lane, some in zip(lanes, values, strict=True):
            answers(lane, some)
        read = at.look()
    read = at.look()  # levels rest on what was read until the look before
    lately = np.concatenate(told[-10:])
    assert read[of("score_mean")] == pytest.approx(lately.mean(), abs=1e-5)
    assert read[of("score_sd")] == pytest.approx(lately.std(), abs=1e-5)
    hour = np.concatenate(told[10:70])
    plain = abs(lately.mean() - hour.mean()) / hour.std()
    assert plain - 0.5 < read[of("score_shift", against="hour")] < plain
    assert 0.6 < read[of("score_shift", against="start")] < 1.5 and read[of("score_psi")] > 1.0
    assert of("score_shift", against="day") not in read and of("score_shift", against="others") not in read
    assert of("confidence_shift", against="hour") not in read  # these are no probabilities

    at.begin()
    again = at.look()
    for against in ("hour", "start"):
        key = of("score_shift", against=against)
        assert again[key] == pytest.approx(read[key], rel=0.2)

    other = at.version("2", "a")
    answers(other, rng.normal(9.0, 2.0, 300))
    at.look()
    assert at.look()[of("score_shift", "2", against="others")] > 3.0


def test_one_server_that_scores_otherwise_is_told_and_its_peers_are_not():
    rng, at = np.random.default_rng(2), Served("a", "b", "c", "d")
    lanes = {name: at.version("1", name) for name in at.meters}
    for name, lane in lanes.items():
        answers(lane, rng.normal(0.5 + 1.0 * (name == "c"), 1.0, 1000))
    at.look()
    read = at.look()
    found = {name: read[of("score_shift", against="peers", server=name)] for name in lanes}
    assert 0.7 < found["c"] < 1.0
    assert all(found[name] < 0.05 for name in "abd")


def test_an_hour_without_answers_reads_nothing_and_counters_that_were_there_before_say_nothing():
    at = Served("a")
    lane = at.version("1", "a")
    at.begin()
    answers(lane, np.random.default_rng(3).random(500))
    read = at.look()  # the first one of these monitors: nobody knows when that was counted
    assert not [key for key in read if key.quantity in ("score_mean", "score_psi")]
    for _ in range(int((HOUR_S + NOW_S) / 60)):
        read = at.look()
    assert not [key for key in read if key.quantity.startswith(("score_shift", "score_psi", "score_mean"))]
