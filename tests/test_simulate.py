"""The simulator keeps its word: clicks follow the stated probability, delays their distribution, drift its period."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from millstream.errors import Busy
from millstream.learn.quality import auc as counted_auc
from millstream.simulate import (
    BLOCK,
    Ask,
    Disturbances,
    Poison,
    Regret,
    Simulator,
    Span,
    auc,
    best,
    disturbed,
    expected,
    looked_at,
)
from millstream.simulate.drive import Driven, drive
from millstream.types import Candidate, Ranked

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


START = 1_600_000_000.0


def told(what: Disturbances, count: int = COUNT, **options: float):
    simulator, random = world(rate=10.0, **options), np.random.default_rng(3)
    return list(disturbed(simulator.moments(count), what, random, START))


def test_nothing_wrong_changes_nothing() -> None:
    moments = told(Disturbances())
    assert moments == list(world(rate=10.0).moments(COUNT))
    assert all(one.told == one.label and not one.cause for one in moments)


def test_what_goes_wrong_is_told_and_the_truth_stays() -> None:
    what = Disturbances(
        bots=0.05, accounts=3, lost=(Span(100, 50),), late=(Span(300, 100),), poison=(Poison(Span(600, 200), 0.3),)
    )
    wrong, right = told(what), list(world(rate=10.0).moments(COUNT))
    assert [(one.item, one.label, one.probability) for one in wrong] == [
        (one.item, one.label, one.probability) for one in right
    ]
    bots = [one for one in wrong if "bot" in one.cause]
    assert len(bots) == pytest.approx(0.05 * COUNT, rel=0.15) and {one.user for one in bots} == {"bot0", "bot1", "bot2"}
    for one in wrong:
        at = one.event_time - START
        assert (one.told is None) == (100 <= at < 150)
        if 300 <= at < 400:
            assert one.event_time + one.delay_s >= START + 400 - 1e-6
        elif one.told is not None and "bot" not in one.cause:
            assert (one.told != one.label) == ("poison" in one.cause)
    during = [one for one in wrong if 600 <= one.event_time - START < 800 and "bot" not in one.cause]
    assert np.mean(["poison" in one.cause for one in during]) == pytest.approx(0.3, abs=0.05)
    assert all(one.told for one in bots if one.told is not None)


def test_a_clock_that_is_ahead_stays_its_users_own() -> None:
    moments = told(Disturbances(skewed=0.2, skew_s=300.0))
    ahead = {one.user for one in moments if one.cause == "skew"}
    assert 0.1 < len(ahead) / 200 < 0.3
    assert all((one.user in ahead) == (one.cause == "skew") for one in moments)


def test_a_column_comes_under_another_name_from_a_time_on() -> None:
    what = Disturbances(renamed=((50.0, "age", "years"),))
    assert set(what.row({"id": "u1", "age": 3}, 49.0)) == {"id", "age"}
    assert what.row({"id": "u1", "age": 3}, 50.0) == {"id": "u1", "years": 3}


def test_true_auc_is_the_mean_over_many_coins() -> None:
    random = np.random.default_rng(1)
    truth = random.random(200)
    scores = np.round(truth + random.normal(0, 0.4, 200), 1)  # with ties
    coins = [counted_auc(random.random(200) < truth, scores) for _ in range(400)]
    assert auc(scores, truth) == pytest.approx(np.mean(coins), abs=0.005)
    assert np.isnan(auc([0.1, 0.2], [1.0, 1.0]))


def test_the_best_order_has_no_regret_and_any_other_some() -> None:
    random = np.random.default_rng(2)
    for ask in world().asks(200):
        regret = Regret()
        assert regret.add(ask, best(ask)) == 0.0
        assert regret.add(ask, random.permutation(10)) >= 0.0
        assert regret.curve()[-1] == pytest.approx(sum(regret.each))
        assert expected(ask, best(ask)) >= max(expected(ask, random.permutation(10)) for _ in range(20))


def test_people_look_less_at_what_comes_later_and_click_by_the_truth() -> None:
    simulator = world()
    ask = Ask(START, "u1", tuple(f"i{n}" for n in range(10)), np.linspace(0.1, 0.9, 10))
    order = list(range(9, -1, -1))
    seen, clicked = np.zeros(10), np.zeros(10)
    for _ in range(4000):
        for reaction in simulator.react(ask, order):
            place = order.index(int(reaction.item[1:]))
            seen[place] += 1
            clicked[place] += reaction.clicked
    assert seen / 4000 == pytest.approx(looked_at(10), abs=0.04)
    assert clicked / seen == pytest.approx(ask.truth[order], abs=0.06)


class Knows:
    """A service that knows the truth of a world, and fails at these of its requests."""

    def __init__(self, simulator: Simulator, fails: range = range(0)) -> None:
        self.simulator, self.fails, self.requests = simulator, fails, 0
        self.told: list[tuple[str, str, str]] = []

    def recommend(self, user: str, candidates: tuple[str, ...]) -> Ranked:
        self.requests += 1
        if self.requests in self.fails:
            raise Busy("killed")
        truth = self.simulator.probability(user, candidates, START)
        items = [Candidate(candidates[i], float(truth[i])) for i in np.argsort(-truth, kind="stable")]
        return Ranked(f"r{self.requests}", "m", "1", items)

    def outcome(self, request: str, item: str, kind: str) -> None:
        self.told.append((request, item, kind))

    def drive(self, seconds: float, progress: Callable[[str], None] = lambda line: None) -> Driven:
        random = np.random.default_rng(5)
        return drive(self, self.simulator, seconds, random, progress, wait=lambda seconds: None)


def test_a_service_that_knows_the_truth_has_no_regret() -> None:
    knows = Knows(world(rate=50.0, delay_s=0.1, drift_period_s=0.0))
    found = knows.drive(20.0)
    assert found.requests == pytest.approx(1000, rel=0.15) and found.failed == 0
    assert found.regret < 1e-3 < found.regret_random / 20
    assert found.ratio == pytest.approx(1.0, abs=1e-3) and found.auc > 0.6
    assert found.clicks == sum(kind == "like" for *_, kind in knows.told)
    assert len(set(knows.told)) == len(knows.told)


def test_requests_that_fail_are_counted_and_the_others_stand() -> None:
    knows, said = Knows(world(rate=50.0, drift_period_s=0.0), range(100, 200)), list[str]()
    found = knows.drive(10.0, said.append)
    assert (found.failed, found.requests) == (100, knows.requests - 100) and found.requests > 300
    assert found.regret < 1e-3 and [line.split("s  ")[1] for line in said].count("no answer: killed") == 1
    assert not {request for request, *_ in knows.told} & {f"r{n}" for n in knows.fails}


def test_a_service_that_never_answers_is_no_result() -> None:
    with pytest.raises(Busy, match="killed"):
        Knows(world(), range(1, 2)).drive(10.0)


def test_clicks_on_their_way_at_the_end_are_told_then() -> None:
    knows = Knows(world(rate=50.0, delay_s=5.0, drift_period_s=0.0))
    found = knows.drive(10.0)
    assert 0.2 * found.clicks < found.early < 0.8 * found.clicks
    assert found.clicks == sum(kind == "like" for *_, kind in knows.told)


@pytest.mark.timeout(60)
def test_half_of_the_items_are_drawn_too() -> None:
    crowded = Simulator(np.random.default_rng(1), users=3, items=400, candidates=200)
    drawn = [ask.candidates for ask in crowded.asks(50)]
    assert all(len(set(row)) == 200 for row in drawn) and len({item for row in drawn for item in row}) == 400
