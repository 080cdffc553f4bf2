"""A leap of the share of positives is noticed; growing traffic, a slow rise and a good day are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import Corrupt
from millstream.learn import Gate, GateSettings
from millstream.learn.gate import HISTORY
from millstream.learn.usual import LEAPT, Usual

WAIT = 60.0
LEAP = GateSettings().leap


def told(seed, seconds, rate=lambda t: 40.0, share=lambda t: 0.3, robots=None):
    """Labels and times of showing, in the order in which they are told: a click after some seconds, none after WAIT.
    `rate`: shown a second, 400 at most; `robots`: (from, until, share of the shown that is clicked at once)."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / 400, int(seconds * 400)))
    times = times[random.random(len(times)) * 400 < np.vectorize(rate, [float])(times)]
    labels = random.random(len(times)) < np.vectorize(share, [float])(times)
    delays = np.where(labels, np.minimum(random.exponential(10.0, len(times)), WAIT), WAIT)
    if robots:
        hit = (times >= robots[0]) & (times < robots[1]) & (random.random(len(times)) < robots[2])
        labels, delays = labels | hit, np.where(hit, 0.0, delays)
    order = np.argsort(times + delays, kind="stable")
    return labels[order].astype(np.float32), times[order], (times + delays)[order]


def leaps(labels, times, made=None, step=100, **how):
    """Where a leap was said, as places among the examples."""
    made, found = made or Usual(2000, HISTORY), []
    for at in range(0, len(labels), step):
        made.observe(labels[at : at + step], times[at : at + step], **({"passed_over": False} | how))
        if made.leap(LEAP):
            found.append(at + step)
    return found


def odds(more, share=0.3):
    return share * more / (1 - share + share * more)


@pytest.mark.parametrize("seed", range(3))
def test_robots_are_noticed_soon_after_the_label_wait(seed):
    labels, times, when = told(seed, 1200, robots=(800.0, 1200.0, 0.5))
    (first, *_) = leaps(labels, times)
    assert 800 + WAIT < when[first - 1] < 800 + WAIT + 20


TRAFFIC = {
    "ten times the traffic at once": {"rate": lambda t: 400.0 if 700 < t < 800 else 40.0},
    "an outage": {"rate": lambda t: 0.0 if 700 < t < 900 else 40.0},
    "a day": {"rate": lambda t: 40 * (1 + 0.9 * np.sin(t / 100)), "share": lambda t: odds(1 + 0.15 * np.sin(t / 100))},
    "a better model": {"share": lambda t: odds(1.3) if t > 800 else 0.3},
    "a slow rise to more than twice the odds": {"share": lambda t: odds(1 + 1.2 * np.clip((t - 300) / 900, 0, 1))},
}


@pytest.mark.parametrize("what", TRAFFIC)
def test_what_is_no_leap_is_not_taken_for_one(what):
    labels, times, _ = told(1, 1200, **TRAFFIC[what])
    assert leaps(labels, times) == []


def test_an_effect_alone_is_no_evidence_where_blocks_vary_as_people_do():
    random = np.random.default_rng(3)
    people = random.beta(1.5, 3.5, 1000)  # each looks at 100 things in one sitting
    labels = (random.random(100_000) < np.repeat(people, 100)).astype(np.float32)
    times = np.arange(100_000.0)
    assert leaps(labels, times) == []
    blocks = labels.reshape(-1, 200).mean(axis=1)
    bound = odds(LEAP, labels.mean())
    assert (blocks > bound + 4 * (bound * (1 - bound) / 200) ** 0.5).any(), "coins would have called some a leap"


def test_few_positives_say_nothing():
    labels = (np.arange(40_000) % 500 == 0).astype(np.float32)
    labels[-2000::50] = 1  # 40, where 4 are usual
    assert leaps(labels, np.zeros(len(labels))) == []
    labels[-2000::30] = 1
    assert leaps(labels, np.zeros(len(labels)))


def test_nothing_is_said_before_it_is_known_what_is_usual():
    labels, times, _ = told(1, 220, robots=(100.0, 220.0, 0.5))
    assert leaps(labels, times) == []


def test_what_is_passed_over_never_becomes_usual():
    labels, times, _ = told(2, 3000, robots=(800.0, 3000.0, 0.5))
    before = times < 780
    for passed_over, still in ((True, True), (False, False)):
        made = Usual(2000, HISTORY)
        assert leaps(labels[before], times[before], made) == []
        made.look_anew()
        found = leaps(labels[~before], times[~before], made, passed_over=passed_over)
        assert found and (found[-1] > (~before).sum() - 200) == still


def test_after_a_gap_no_second_is_counted_without_its_negatives():
    labels, times, when = told(4, 1500)
    made, gap = Usual(2000, HISTORY), (when >= 800.0) & (when < 1100.0)
    assert leaps(labels[when < 800], times[when < 800], made) == []
    made.look_anew()
    assert leaps(labels[when >= 1100], times[when >= 1100], made) == [] and gap.any()
    assert made.full()


def test_what_a_person_lets_run_is_usual_from_then_on():
    labels, times, when = told(5, 1000, share=lambda t: 0.3 if t < 700 else 0.6)
    before = when < 720
    for by_person in (False, True):
        made = Gate(GateSettings(window=2000, burst=100.0, past_over=100.0, logloss_over=100.0))
        made.observe(np.full(before.sum(), 0.3, np.float32), labels[before], times=times[before])
        made.go_on(by_person)
        refused = False
        for at in range(int(before.sum()), len(labels), 200):
            part = slice(at, at + 200)
            made.observe(np.full(len(labels[part]), 0.6, np.float32), labels[part], times=times[part])
            refused |= made.refuses(np.empty(0, np.float32)).endswith(LEAPT)
        assert refused != by_person


def test_after_a_leap_labels_alone_say_when_it_is_over():
    labels, times, _ = told(6, 900)
    made = Gate(GateSettings(window=2000))
    made.observe(np.full(len(labels), 0.3, np.float32), labels, times=times)
    made.look_anew()
    labels, times, _ = told(7, 300)
    stale = np.where(labels > 0, 0.05, 0.9).astype(np.float32)
    made.observe(stale[:2500], labels[:2500], times=times[:2500] + 900, passed_over=True)
    assert made.enough() and not made.as_usual(f"gate: {LEAPT}"), "no window of what is decided"
    made.observe(stale[2500:], labels[2500:], times=times[2500:] + 900, passed_over=True)
    assert made.as_usual(f"gate: {LEAPT}") and not made.as_usual("gate: logloss 0.7")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_pieces_the_whole_and_a_restart_count_alike(sizes, seed):
    random = np.random.default_rng(seed)
    total = sum(sizes)
    labels = (random.random(total) < random.random()).astype(np.float32)
    times = np.round(1e9 + np.sort(random.random(total)) * total / 40 - 60 * (labels == 0) - 200 * random.random(), 3)
    whole, pieces, at = Usual(100, 2), Usual(100, 2), 0
    whole.observe(labels, times, passed_over=False)
    for size in sizes:
        pieces.observe(labels[at : at + size], times[at : at + size], passed_over=False)
        again = Usual(100, 2)
        again.restore(pieces.dump())
        pieces, at = again, at + size
    assert pieces.dump() == whole.dump()


def test_what_cannot_be_read_is_said():
    for text in ("not base85 \x00", Usual(100, 2).dump()[:-5]):
        with pytest.raises(Corrupt, match="make another base live"):
            Usual(100, 2).restore(text)
