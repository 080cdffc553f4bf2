"""Experiments beside their laws: simulated people, whose truth is known, looked at every day."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import Misconfigured
from millstream.watch.experiments import sample, verdict
from millstream.watch.experiments.effect import DOERS_LEAST, PEOPLE_LEAST, Effect, Moments, compare
from millstream.watch.experiments.metrics import MEASURES, kinds, metric
from millstream.watch.experiments.people import PAST, People
from millstream.watch.experiments.sequence import needed, reach
from millstream.watch.experiments.settings import ExperimentSettings
from millstream.watch.experiments.verdict import Ruled, finding, sentence, together, unfit

DAYS, ALPHA = 30, 0.05
LIKE = metric("like", "list", ["like"])


def people(random, n, lift=0.0, past=0.0, rate=0.15, uneven=0.6):
    """(arm [n], columns [4, n]): likes over lists of people who like more or less, and the same of their past."""
    arm = random.random(n) < 0.5
    wish = np.clip(rate * random.gamma(1 / uneven**2, uneven**2, n), 0.0, 0.8)
    lists = 1.0 + random.poisson(2.0, n)
    likes = random.binomial(lists.astype(int), np.clip(wish * np.where(arm, 1.0 + lift, 1.0), 0.0, 1.0))
    before = random.poisson(past, n).astype(float)
    return arm, np.array([likes, lists, random.binomial(before.astype(int), wish), before], float)


def compared(arm, columns, least=0.1, alpha=ALPHA, past=True):
    return compare(Moments.of(columns[:, ~arm]), Moments.of(columns[:, arm]), least, alpha, past)


def looks(seed, n, lift=0.0, days=DAYS):
    """What is said each day of people who came so far, a thirtieth of them a day."""
    arm, columns = people(np.random.default_rng(seed), n, lift)
    found, sums = [], [Moments.of(columns[:, :0])] * 2
    for day in np.array_split(np.arange(n), days):
        came = [Moments.of(columns[:, day[arm[day] == of]]) for of in (False, True)]
        sums = [Moments(*map(sum, zip(*one, strict=True))) for one in zip(sums, came, strict=True)]
        found.append(compare(*sums, 0.1, ALPHA))
    return found


def shown(effect):
    return effect is not None and not effect.low <= 0.0 <= effect.high


def test_the_boundary_is_where_a_mixture_of_effects_is_so_much_likelier():
    """By quadrature: likelihoods of effects drawn from N(0, spread**2), averaged, over that of none, are 1 / alpha."""
    for information, spread, alpha in ((400.0, 0.05, 0.05), (2500.0, 0.1, 0.01), (9.0, 0.5, 0.2)):
        estimate = reach(information, spread, alpha) / math.sqrt(information)
        effects = np.linspace(-9 * spread, 9 * spread, 200_001)
        drawn = np.exp(-((effects / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
        ratio = np.exp(information * (estimate * effects - effects**2 / 2))
        assert np.trapezoid(drawn * ratio, effects) == pytest.approx(1.0 / alpha, rel=1e-6)
    assert reach(0.0, 0.1, 0.05) == math.inf


def test_thirty_daily_looks_at_arms_that_are_the_same():
    """The law. A z-test on the same data is the problem that it solves: 29 % say something."""
    found = [looks(seed, 3000) for seed in range(500)]
    ours = sum(any(shown(one) for one in days) for days in found)
    usual = sum(any(one and abs(one.log) > 1.96 * one.error for one in days) for days in found)
    assert ours <= ALPHA * 500, f"{ours} of 500 say something of nothing"
    assert 0.2 * 500 < usual < 0.4 * 500, "there is nothing to solve: the test does not test"


def test_people_who_come_back_every_day_change_nothing_about_it():
    """Each look counts later deeds of the same people: what is said holds as it does for new ones."""
    random, wrong, usual = np.random.default_rng(1), 0, 0
    for _ in range(150):
        n = 800
        arm, total = random.random(n) < 0.5, np.zeros((4, n))
        wish = np.clip(0.15 * random.gamma(2.0, 0.5, n), 0.0, 0.8)
        days = []
        for _ in range(DAYS):
            lists = random.poisson(0.6, n)
            total[:2] += random.binomial(lists, wish), lists
            here = total[1] > 0
            days.append(compared(arm[here], total[:, here]))
        wrong += any(shown(one) for one in days)
        usual += any(one and abs(one.log) > 1.96 * one.error for one in days)
    assert wrong <= ALPHA * 150 and usual > 0.06 * 150


def test_intervals_hold_the_truth_wherever_one_stops():
    """Who stops at the first day that shows something, at the one that shows most, or never."""
    truth, missed, at_the_end = 0.12, 0, 0
    for seed in range(300):
        days = [one for one in looks(1000 + seed, 4000, lift=truth) if one is not None]
        missed += any(not one.low <= truth <= one.high for one in days)
        at_the_end += abs(days[-1].log - math.log1p(truth)) > 1.96 * days[-1].error
    assert missed <= ALPHA * 300
    assert 0.01 * 300 <= at_the_end <= 0.1 * 300, "standard errors are what they are said to be"


def test_a_planted_effect_is_seen_with_the_people_that_were_said_to_be_wanted():
    pilot = compared(*people(np.random.default_rng(7), 4000), least=0.12)
    wanted, random = int(pilot.wanted), np.random.default_rng(8)
    assert 4000 < wanted < 40_000
    seen = [compared(*people(random, wanted, lift=0.12), least=0.12) for _ in range(150)]
    assert 0.7 < np.mean([one.low > 0 for one in seen]) < 0.92, "0.8 at this look alone"
    assert np.mean([one.high < 0 for one in seen]) == 0.0


@given(st.floats(0.01, 1.0), st.floats(0.001, 0.2))
def test_what_is_needed_is_where_the_power_is(effect, alpha):
    from statistics import NormalDist

    information = needed(effect, alpha)
    power = NormalDist().cdf(effect * math.sqrt(information) - reach(information, effect, alpha))
    assert power == pytest.approx(0.8, abs=1e-3)


def test_the_past_takes_noise_out_and_moves_nothing():
    """CUPED: right on average with and without it, and narrower, the more so the more the past says."""
    random, truth = np.random.default_rng(3), 0.1
    rows = [people(random, 1500, lift=truth, past=12.0, uneven=0.8) for _ in range(200)]
    plain, with_past = ([compared(*row, past=past) for row in rows] for past in (False, True))
    for found in (plain, with_past):
        logs = np.array([one.log for one in found])
        assert abs(logs.mean() - math.log1p(truth)) < 4 * logs.std() / math.sqrt(len(logs))
        assert logs.std() == pytest.approx(np.mean([one.error for one in found]), rel=0.15)
    less = np.mean([one.less for one in with_past])
    assert less > 0.1 and all(one.less == 0.0 for one in plain)
    gain = 1 - np.var([one.log for one in with_past]) / np.var([one.log for one in plain])
    assert gain == pytest.approx(less, abs=0.1), "what it says of itself is what it does"
    nothing = compared(*people(random, 1500, past=0.0))
    assert nothing.less == 0.0
    noise = people(random, 20_000, past=10.0, uneven=0.05)  # everybody is alike: the past says nothing of who it is
    assert 0.0 <= compared(*noise).less < 0.01


def test_the_error_is_that_of_leaving_each_person_out():
    """Beside the jackknife, with and without the past; the slope beside the best of many."""
    arm, columns = people(np.random.default_rng(5), 700, past=6.0, uneven=0.9)
    above, below, past_above, past_below = columns
    pooled = past_above.sum() / past_below.sum()
    moved = past_above - pooled * past_below

    def estimate(keep, slope):
        rates = [above[keep & of].sum() / below[keep & of].sum() for of in (~arm, arm)]
        means = [moved[keep & of].mean() for of in (~arm, arm)]
        return math.log(rates[1] / rates[0]) - slope * (means[1] - means[0])

    def error(slope):
        everybody, pulls = np.ones(len(arm), bool), []
        for out in range(len(arm)):
            everybody[out] = False
            pulls.append(estimate(everybody, slope))
            everybody[out] = True
        pulls = np.array(pulls)
        return math.sqrt(
            sum(((pulls[of] - pulls[of].mean()) ** 2).sum() * (of.sum() - 1) / of.sum() for of in (arm, ~arm))
        )

    everybody = np.ones(len(arm), bool)
    plain, with_past = compared(arm, columns, past=False), compared(arm, columns)
    assert plain.log == pytest.approx(estimate(everybody, 0.0))
    assert plain.error == pytest.approx(error(0.0), rel=0.02)
    slopes = np.linspace(0.0, 3.0, 13)
    assert with_past.error == pytest.approx(min(error(slope) for slope in slopes), rel=0.03)
    assert with_past.error < plain.error


def test_too_few_people_or_deeds_say_nothing():
    arm, columns = people(np.random.default_rng(2), 4 * PEOPLE_LEAST)
    assert compared(arm, columns) is not None
    few = np.flatnonzero(arm)[: PEOPLE_LEAST - 1]
    here = ~arm
    here[few] = True
    assert compared(arm[here], columns[:, here]) is None
    rare = columns.copy()
    rare[0, np.flatnonzero(rare[0] * arm)[DOERS_LEAST - 1 :]] = 0.0
    assert (rare[0, arm] > 0).sum() == DOERS_LEAST - 1 and compared(arm, rare) is None
    assert compared(arm, columns * np.array([[0.0], [1.0], [1.0], [1.0]])) is None


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5]])
def test_the_chance_of_a_split_is_one_over_what_betting_on_it_won(shares):
    """One person after the other: each purse bets by the arms so far, and as many people as it counts before."""
    random, wrong = np.random.default_rng(4), np.roll(shares, 1) * 0.3 + np.array(shares) * 0.7
    for drawn in (shares, wrong):
        counts, purses = np.zeros(len(shares)), np.full(len(sample.PRIORS), 1.0 / len(sample.PRIORS))
        for arm in random.choice(len(shares), 400, p=drawn):
            bets = [(prior * shares[arm] + counts[arm]) / (prior + counts.sum()) for prior in sample.PRIORS]
            purses *= np.array(bets) / shares[arm]
            counts[arm] += 1
        found = sample.chance(counts.astype(int).tolist(), shares)
        assert found == pytest.approx(min(1.0, 1.0 / purses.sum()), rel=1e-6)


def test_a_split_that_is_off_is_found_and_one_that_is_not_is_left_alone():
    assert sample.chance([10_400, 9_600], [0.5, 0.5]) < sample.ALPHA
    assert sample.chance([51_000, 49_000], [0.5, 0.5]) < sample.ALPHA
    assert sample.chance([10_100, 9_900], [0.5, 0.5]) == 1.0
    assert sample.chance([130, 65], [0.5, 0.5]) < sample.ALPHA
    random, found, off = np.random.default_rng(10), 0, 0
    for _ in range(500):
        drawn = random.random(20_000)
        until = np.arange(1, DAYS + 1) * (len(drawn) // DAYS)
        for share, told in ((0.5, "as said"), (0.52, "off")):
            mine = np.cumsum(drawn < share)[until - 1]
            wrong = any(
                sample.chance([int(one), int(all - one)], [0.5, 0.5]) < sample.ALPHA
                for one, all in zip(mine, until, strict=True)
            )
            found += wrong and told == "as said"
            off += wrong and told == "off"
    assert found <= 1, "30 looks at 500 splits that are right: 0.5 are expected at most"
    assert off >= 0.9 * 500


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0, 1, PAST]), st.integers(0, 3)), max_size=60))
def test_people_are_summed_as_one_would_by_hand(rows):
    made, by_hand = People(2), {}
    for part in (rows[::2], rows[1::2]):
        person = np.array([(who + 1) << 40 for who, _, _ in part], np.uint64)
        group = np.array([group for _, group, _ in part], np.int64)
        value = np.array([[value, 1] for _, _, value in part], float).T.reshape(2, len(part))
        made.add(person, group, value)
    for who, group, value in rows:
        sums = by_hand.setdefault(who, {}).setdefault(group, np.zeros(2))
        sums += value, 1
    apart, crossed = made.apart(2)
    assert crossed == sum({0, 1} <= groups.keys() for groups in by_hand.values())
    for arm in (0, 1):
        mine = [groups for groups in by_hand.values() if arm in groups and 1 - arm not in groups]
        expected = [[*groups[arm], *groups.get(PAST, (0.0, 0.0))] for groups in mine]
        assert sorted(map(tuple, apart[arm].T.tolist())) == sorted(map(tuple, expected))


def effect(lift, low, high, wanted=5000.0):
    return Effect(lift, low, high, math.log1p(lift), 0.01, 0.0, wanted)


@pytest.mark.parametrize(
    ("one", "better", "found", "said"),
    [
        (effect(0.031, 0.012, 0.05), 1, "better", "calm is better than plain: like a list +3.1 %, +1.2 to +5 % valid"),
        (effect(0.031, 0.012, 0.05), -1, "worse", "calm is worse than plain"),
        (effect(-0.04, -0.07, -0.01), 1, "worse", "like a list -4 %, -7 to -1 %"),
        (effect(0.004, -0.01, 0.015), 1, "alike", "calm and plain differ by less than 2 %"),
        (effect(0.01, -0.02, 0.04), 1, "open", "about 4,200 more people needed to see 2 %"),
        (effect(0.01, -0.02, 0.04, 700.0), 1, "open", "a few more people needed to see 2 %"),
        (effect(0.5, -0.6, 40.0), 1, "open", "-60 to over +1000 %"),
        (None, 1, "early", "too early to compare calm with plain"),
    ],
)
def test_what_is_found_is_said(one, better, found, said):
    asked = LIKE._replace(better=better)
    assert finding(asked, one, 0.02) == found
    assert said in sentence(asked, "plain", "calm", one, 0.02, 800)


def test_guardrails_are_kept_broken_or_open():
    revenue, missed = metric("revenue", None, []), metric("missed", None, [])
    state = {
        (revenue, effect(0.0, -0.01, 0.01)): "kept",
        (revenue, effect(-0.015, -0.02 + 1e-9, -0.01)): "kept",  # worse, and not by more than it may
        (revenue, effect(-0.03, -0.06, 0.01)): "open",
        (revenue, effect(-0.09, -0.12, -0.03)): "broken",
        (missed, effect(-0.09, -0.12, -0.03)): "kept",  # less of it is better
        (missed, effect(0.09, 0.03, 0.12)): "broken",
        (missed, None): "early",
    }
    ruled = {expected: Ruled(of, "calm", 0.02, one) for (of, one), expected in state.items()}
    for (of, one), expected in state.items():
        assert Ruled(of, "calm", 0.02, one).state == expected
    said = together(["calm is better than plain"], [ruled["kept"], ruled["broken"], ruled["open"]])
    assert said.startswith("calm is better than plain; but a guardrail is broken: missed a list: calm is worse by more")
    assert "and undecided: revenue a person: not shown yet that calm is not worse by more than 2 %" in said
    assert together(["so"], [ruled["kept"]]) == "so"
    assert "calm is worse by more than 2 %" in ruled["broken"].said and "%" in ruled["kept"].said


def test_a_split_that_is_off_is_all_that_is_said():
    said = unfit([10_400, 9_600], ["calm", "plain"], [0.5, 0.5], 1e-5)
    assert said.startswith("nothing can be concluded") and "calm has 10,400 where 50 % of 20,000 were to be" in said
    assert "1 in 100,000 " in said
    assert "million millions" in unfit([9, 0], ["a", "b"], [0.5, 0.5], 0.0)
    assert "12 of 600 people were in several arms" in verdict.strayed(12, 600)


def test_what_an_experiment_may_be():
    assert kinds(("like", "revenue", "buy", "like")) == ["like", "buy"]
    assert metric("lists", "list", []).below == "" and metric("diversity", "person", []).below == "varied"
    assert metric("like", "impression", ["like"]).below == "impressions" and metric("buy", None, ["like", "buy"]) == (
        "buy", "second", "lists", 1, "buy a list",
    )  # fmt: skip
    for said, wrong in (
        ({}, "needs a placement"),
        ({"placement": "home", "metric": "a", "guardrails": {"b": 0.1, "c": 0.1}}, "2 kinds"),
        ({"model": "m", "metric": "revenue", "guardrails": {"revenue": 0.1}}, "decides already"),
    ):  # fmt: skip
        with pytest.raises(Misconfigured, match=wrong):
            ExperimentSettings(**said)
    assert all(measure.better in (1, -1) for measure in MEASURES.values())
