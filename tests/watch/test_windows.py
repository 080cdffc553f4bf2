"""Windows over what was read are the sums and means of a plain list."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.watch.history import STEPS, History
from millstream.watch.reading import Key

START = 1_700_000_000.0  # a whole number of hours and steps

a, b = Key("a"), Key.of("a", {"model": "m"})


def filled(looks, step=10.0, start=START):
    history = History()
    for number, look in enumerate(looks):
        history.add(start + step * number, look)
    return history


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 9), min_size=1, max_size=300), st.integers(1, 200), st.integers(0, 100))
def test_a_window_is_the_sum_of_what_was_read_in_it(values, steps, ago):
    history = filled([{a: value} for value in values])
    end = len(values) - ago
    within = values[max(0, end - steps) : max(0, end)]
    assert history.counts([a], 10.0 * steps, 10.0 * ago)[0] == pytest.approx(sum(within))
    level = history.levels([a], 10.0 * steps, 10.0 * ago)[0]
    assert level == pytest.approx(np.mean(within)) if within else np.isnan(level)


def test_long_windows_are_answered_by_coarser_steps():
    day = 86400.0
    history = filled([{a: 1.0}] * int(4 * day / 60), step=60.0)
    for seconds in (3600.0, 6 * 3600.0, day, 3 * day):
        assert history.counts([a], seconds)[0] == pytest.approx(seconds / 60, rel=0.02)
    assert history.counts([a], 600.0, ago=day)[0] == pytest.approx(10, abs=1)
    assert history.counts([a], 30 * day)[0] == pytest.approx(4 * 1440, rel=0.01)


def test_what_is_older_than_the_coarsest_reaches_is_gone():
    history = History()
    history.add(START, {a: 5.0})
    history.add(START + STEPS[-1][0] * STEPS[-1][1], {a: 1.0})
    assert history.counts([a], 31 * 86400.0)[0] == 1.0


def test_keys_come_and_go():
    history = filled([{a: 1.0}, {b: 2.0, a: 1.0}, {b: 2.0}])
    assert history.counts([a, b, Key("nothing")], 30.0).tolist() == [2.0, 4.0, 0.0]
    assert history.keys("a") == [a, b] and history.keys("b") == []
    assert np.isnan(history.levels([a], 10.0)[0])


def test_what_is_taken_by_arrays_is_what_is_added_by_names():
    rng, one, other = np.random.default_rng(3), History(), History()
    for number in range(400):
        keys = (a, b) if number % 7 else (b,)
        values = rng.random(len(keys))
        one.add(START + 10.0 * number, dict(zip(keys, values.tolist(), strict=True)))
        other.take(START + 10.0 * number, keys, values)
    for seconds in (60.0, 3600.0, 86400.0):
        assert one.counts([a, b], seconds).tolist() == other.counts([a, b], seconds).tolist()
        assert one.levels([a, b], seconds).tolist() == other.levels([a, b], seconds).tolist()


def test_time_that_goes_back_counts_into_the_newest_step():
    history = filled([{a: 1.0}] * 3)
    history.add(START - 3600.0, {a: 7.0})
    assert history.last == START + 20 and history.counts([a], 10.0)[0] == 8.0


def test_a_bounded_number_of_keys_is_kept_and_the_one_read_longest_ago_goes():
    history = History(keys_max=100)
    for number in range(150):
        history.add(START + 10.0 * number, {Key.of("a", {"n": str(number)}): float(number)})
    kept = {key.get("n") for key in history.keys("a")}
    assert kept == {str(number) for number in range(50, 150)} and history.forgotten == 50
    assert history.counts([Key.of("a", {"n": "149"})], 10.0)[0] == 149.0
    assert history.counts([Key.of("a", {"n": "60"})], 3600.0)[0] == 60.0


def test_a_series_is_its_steps_oldest_first():
    history = filled([{a: float(number)} for number in range(12)])
    at, counts = history.series(a, 60.0, level=False)
    assert at.tolist() == [START + 10.0 * n for n in range(6, 12)] and counts.tolist() == [6, 7, 8, 9, 10, 11]
    at, counts = history.series(a, 7200.0, level=False)  # by the minute
    assert at[0] <= START < at[0] + 60 and counts.sum() == sum(range(12)) and len(at) == 3
    assert history.series(Key("nothing"), 60.0, level=True)[0].tolist() == []
