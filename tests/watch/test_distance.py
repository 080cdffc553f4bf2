"""Distances of distributions, and what of them is no chance; beside scipy's and a textbook's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import wasserstein_distance

from millstream.watch.monitors.distance import Values, edges, population, psi, share_more, shift, wasserstein

NUMBERS = st.floats(-1e6, 1e6, width=32)
SOME = arrays(np.float64, st.integers(1, 40), elements=NUMBERS)


def blocked(values, blocks=40):
    return Values(np.asarray(values, np.float64), np.arange(len(values)) * blocks // len(values))


@given(SOME, SOME)
@settings(max_examples=100, deadline=None)
def test_the_area_between_two_distributions_is_scipys(one, other):
    assert wasserstein(one, other) == pytest.approx(wasserstein_distance(one, other), rel=1e-9, abs=1e-9)


@given(SOME, SOME, st.floats(-100, 100), st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_it_is_the_same_from_either_side_and_goes_with_the_scale(one, other, moved, scale):
    area = wasserstein(one, other)
    assert area == pytest.approx(wasserstein(other, one), abs=1e-6)
    assert wasserstein(one * scale + moved, other * scale + moved) == pytest.approx(area * scale, rel=1e-6, abs=1e-3)
    assert wasserstein(one, one + abs(moved)) == pytest.approx(abs(moved), rel=1e-6, abs=1e-3)


def textbook(expected, actual, bins=10):
    """PSI as it is told everywhere, bin by bin."""
    cuts = np.percentile(expected, [100 * k / bins for k in range(1, bins)])
    total = 0.0
    for low, high in zip([-np.inf, *cuts], [*cuts, np.inf], strict=True):
        e = np.mean([low < x <= high for x in expected])
        a = np.mean([low < x <= high for x in actual])
        total += (a - e) * np.log(a / e)
    return total


def test_psi_is_the_textbooks():
    random = np.random.default_rng(0)
    before, now = random.gamma(2.0, size=800), random.gamma(2.5, size=600)
    assert population(blocked(before), blocked(now), random).value == pytest.approx(textbook(before, now), rel=1e-9)
    assert psi(np.array([50.0, 50.0]), np.array([30.0, 70.0])) == pytest.approx(-0.2 * np.log(0.6) + 0.2 * np.log(1.4))


@given(arrays(np.float64, st.integers(1, 300), elements=st.integers(-5, 5).map(float)))
@settings(max_examples=50, deadline=None)
def test_every_value_has_a_cell_and_a_constant_is_told_from_what_lies_beside_it(values):
    cells = edges(values)
    assert (np.diff(cells) > 0).all()
    if len(np.unique(values)) == 1:
        places = np.searchsorted(cells, values[0] + np.array([-1.0, 0.0, 1.0]), "left")
        assert len(set(places.tolist())) == 3


@pytest.mark.parametrize("rows_together", [1, 10])
@pytest.mark.parametrize("draw", ["normal", "lognormal", "poisson"])
def test_where_nothing_moved_at_least_99_of_100_readings_are_nothing(draw, rows_together):
    random = np.random.default_rng(5)
    make = {
        "normal": lambda n: random.normal(size=n),
        "lognormal": lambda n: random.lognormal(0.0, 1.0, n),
        "poisson": lambda n: random.poisson(0.4, n).astype(float),
    }[draw]
    odd, looks = 0, 200
    for _ in range(looks):
        before, now = (blocked(np.repeat(make(n // rows_together), rows_together)) for n in (4000, 2000))
        odd += shift(before, now, random).surely > 0
        odd += population(before, now, random).surely > 0
    assert odd <= 2 * looks * 0.01 + 3 * np.sqrt(2 * looks * 0.01)


def test_a_fifth_of_a_standard_deviation_is_found_with_the_rows_of_twenty_minutes():
    random = np.random.default_rng(7)
    found = [
        shift(blocked(random.normal(size=4096), 60), blocked(random.normal(0.2, 1.0, 2400)), random).surely
        for _ in range(40)
    ]
    assert np.mean(np.array(found) > 0.05) >= 0.95 and max(found) < 0.25


def test_a_fiftieth_of_a_standard_deviation_of_100000_rows_is_nothing_though_a_significance_test_alarms():
    from scipy.stats import ks_2samp

    random = np.random.default_rng(9)
    alarms = 0
    for _ in range(10):
        before, now = random.normal(size=100_000), random.normal(0.02, 1.0, 100_000)
        alarms += ks_2samp(before, now).pvalue < 0.05
        assert shift(blocked(before, 60), blocked(now), random).surely == 0.0
        assert population(blocked(before, 60), blocked(now), random).surely == 0.0
    assert alarms >= 8


def test_what_came_in_one_burst_is_no_drift():
    """A minute of one person's reads is much of a quiet window: rows alone would be sure of a shift."""
    random = np.random.default_rng(11)
    before = blocked(random.normal(size=4000), 60)
    now = random.normal(size=2000)
    now[1000:1100] = 3.0  # two of forty blocks
    assert shift(before, blocked(now), random).surely < 0.05 < shift(before, blocked(now), random).value
    assert shift(before, blocked(random.permutation(now)), random).surely > 0.05


def test_a_constant_has_no_scale_and_few_rows_say_nothing():
    random = np.random.default_rng(1)
    flat = blocked(np.full(500, 3.0))
    assert shift(flat, blocked(random.normal(size=500)), random) == (0.0, 0.0)
    assert population(flat, blocked(np.full(500, 2.0)), random).surely > 1.0
    assert not blocked(np.zeros(99)).enough and not blocked(np.zeros(500), 7).enough and flat.enough


def test_a_share_that_grew_is_surely_more_and_one_that_did_not_is_not():
    random = np.random.default_rng(3)
    rows = np.full(40, 50.0)

    def counts(p):
        return random.binomial(50, p, (40, 200)).astype(float)

    assert (share_more(counts(0.1), rows, counts(0.1), rows) > 0).mean() <= 0.02
    more = share_more(counts(0.1), rows, counts(0.2), rows)
    assert (more > 0).mean() > 0.98 and more.max() < 0.15
    assert share_more(np.zeros((4, 1)), np.full(4, 5.0), np.zeros((4, 1)), np.full(4, 5.0)) == 0.0
