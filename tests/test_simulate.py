"""The simulator keeps its word: clicks follow the stated probability, delays their distribution, drift its period."""

from __future__ import annotations

import numpy as np
import pytest

from millstream.simulate import BLOCK, Simulator

COUNT = 20_000


def world(seed: int = 7, **options: float) -> Simulator:
    return Simulator(np.random.default_rng(seed), users=200, items=100, **options)  # type: ignore[arg-type]


def test_the_same_seed_is_the_same_world_and_the_same_moments() -> None:
    one, two, other = world(), world(), world(8)
    assert one.users == two.users and one.items == two.items
    moments = list(one.moments(BLOCK + 10))
    assert moments == list(two.moments(BLOCK + 10))
    assert moments != list(other.moments(BLOCK + 10))
    first_call, second_call = world(), list(moments)
    assert [*first_call.moments(BLOCK), *first_call.moments(10)] == second_call


def test_a_moment_is_one_of_its_candidates_at_a_later_time() -> None:
    simulator = world(rate=20.0)
    users, items = ({row["id"] for row in rows} for rows in (simulator.users, simulator.items))
    moments = list(simulator.moments(COUNT))
    times = [moment.event_time for moment in moments]
    assert len(moments) == COUNT and times == sorted(times)
    for moment in moments:
        assert moment.user in users and moment.item in moment.candidates
        assert len(set(moment.candidates)) == 10 and items.issuperset(moment.candidates)
    # Poisson: the time of COUNT arrivals has standard deviation sqrt(COUNT) / rate.
    assert times[-1] - 1_600_000_000.0 == pytest.approx(COUNT / 20.0, abs=5 * COUNT**0.5 / 20.0)


@pytest.mark.parametrize("drift_period_s", [0.0, 500.0])
def test_clicks_follow_the_stated_probability(drift_period_s: float) -> None:
    moments = list(world(drift_period_s=drift_period_s).moments(COUNT))
    stated = np.array([moment.probability for moment in moments])
    clicked = np.array([moment.label for moment in moments])
    assert 0.1 < stated.mean() < 0.6 and stated.std() > 0.1
    for low in np.arange(0, 1, 0.1):  # in every band of probability, within five binomial standard deviations
        band = (stated >= low) & (stated < low + 0.1)
        spread = np.sqrt((stated[band] * (1 - stated[band])).sum())
        assert abs(clicked[band].sum() - stated[band].sum()) <= 5 * spread + 1e-9


def test_the_stated_probability_is_the_one_that_can_be_asked_for() -> None:
    simulator = world(drift_period_s=300.0)
    for moment in simulator.moments(50):
        truth = simulator.probability(moment.user, moment.candidates, moment.event_time)
        assert truth.shape == (10,) and truth.dtype == np.float64
        assert truth[moment.candidates.index(moment.item)] == pytest.approx(moment.probability)


def test_drift_turns_every_taste_once_in_its_period_and_no_drift_none() -> None:
    start, items = 1_600_000_000.0, [f"i{i}" for i in range(100)]
    still, turning = world(drift_period_s=0.0), world(drift_period_s=1000.0)
    np.testing.assert_array_equal(still.probability("u3", items, start), still.probability("u3", items, start + 777))
    np.testing.assert_array_equal(still.probability("u3", items, start), turning.probability("u3", items, start))
    moved = np.abs(turning.probability("u3", items, start + 250) - turning.probability("u3", items, start))
    assert moved.mean() > 0.1
    np.testing.assert_allclose(
        turning.probability("u3", items, start + 1000), turning.probability("u3", items, start), atol=1e-9
    )


def test_delays_are_exponential_with_the_stated_mean() -> None:
    delays = np.sort([moment.delay_s for moment in world(delay_s=45.0).moments(COUNT)])
    expected = 1 - np.exp(-delays / 45.0)
    furthest = np.abs(expected - (np.arange(COUNT) + 0.5) / COUNT).max()
    assert furthest < 1.95 / COUNT**0.5  # Kolmogorov-Smirnov, one in a thousand; the seed is fixed


def test_attributes_explain_a_part_of_the_truth() -> None:
    """The mean by (occupation, first genre) must vary more than chance would make it, or there is nothing to learn."""
    simulator = world()
    occupation = {user["id"]: user["occupation"] for user in simulator.users}
    genre = {item["id"]: item["genres"][0] for item in simulator.items}
    groups: dict[tuple[str, str], list[bool]] = {}
    for moment in simulator.moments(COUNT):
        groups.setdefault((occupation[moment.user], genre[moment.item]), []).append(moment.label)
    means = [np.mean(labels) for labels in groups.values() if len(labels) > 100]
    chance = np.sqrt(0.25 / 100)
    assert np.std(means) > 2 * chance


def test_too_many_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to half of the 100 items, got 60"):
        world(candidates=60)
