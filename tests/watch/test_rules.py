"""A canary simulator: a worse version is taken back within a stated number of requests, an equal one is promoted, and
fewer than 1 of 100 that are no worse than allowed are taken back, however often one looks, also where requests of one
caller or of one batch are alike."""

import math

import numpy as np
import pytest

from millstream.engine.tally import GROUPS, SCORES, TIMES, WAITS, WIDTH
from millstream.models import Guard
from millstream.watch.canary import rules
from millstream.watch.canary.rules import Counts, decide, due

SHARE = 0.05


def normal(x):
    return np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in np.asarray(x, float)])


class Version:
    """A version with a share of failures, lognormal times (median 5 ms) and normal scores, as chances of buckets."""

    def __init__(self, errors=0.01, slower=1.0, shift=0.0, tail=0.5):
        self.errors = errors
        times = normal(np.log(np.array(TIMES) / (0.005 * slower)) / tail)
        self.times = np.diff(np.concatenate([[0], times, [1]]))
        self.scores = np.diff(np.concatenate([[0], normal(np.array(SCORES) - shift), [1]]))

    def answer(self, random, requests, times):
        """Counts of so many trials of `requests` each, every one of another caller, at any time."""
        failed = random.binomial(requests, self.errors, times)
        seconds = random.multinomial(requests - failed, self.times)
        scores = random.multinomial(requests - failed, self.scores)
        return failed, seconds, scores, *(dealt(random, failed, seconds, scores) for _ in range(2))


CELL = np.searchsorted(WAITS, (*TIMES, np.inf))


def dealt(random, failed, seconds, scores):
    """The sums of GROUPS groups that requests fall into by chance."""
    even, places = np.full(GROUPS, 1 / GROUPS), np.arange(len(SCORES) + 1)
    table = np.zeros((len(failed), GROUPS, WIDTH))
    table[:, :, 0] = random.multinomial(failed, even)
    for cell in range(len(WAITS) + 1):
        table[:, :, 1 + cell] = random.multinomial(seconds[:, cell == CELL].sum(axis=1), even)
    table[:, :, -2] = random.multinomial(scores.sum(axis=1), even)
    all_of_it = np.maximum(1, scores.sum(axis=1))
    mean = scores @ places / all_of_it
    deviation = np.sqrt(scores @ places**2 / all_of_it - mean**2)
    noise = random.normal(size=(len(failed), GROUPS)) * np.sqrt(table[:, :, -2])
    table[:, :, -1] = table[:, :, -2] * mean[:, None] + noise * deviation[:, None]
    return table.reshape(len(failed), -1)


def trials(live, canary, guard, count, requests_max=60_000, share=SHARE, seed=1):
    """(action, requests of the canary when it came) of so many canaries; "wait" when none came by `requests_max`."""
    random = np.random.default_rng(seed)
    ended = [("wait", requests_max)] * count
    going, state = list(range(count)), [(0, 0.0)] * count
    sums = [[0] * 5, [0] * 5]
    n = 0
    while going and (rung := int(due(guard, n))) <= requests_max:
        more = rung - n
        for at, version, requests in ((0, live, int(more * (1 - share) / share)), (1, canary, more)):
            drawn = version.answer(random, requests, count)
            sums[at] = [old + new for old, new in zip(sums[at], drawn, strict=True)]
        n = rung
        for one in going:
            arms = [Counts(*(drawn[one].tolist() for drawn in arm)) for arm in sums]
            verdict = decide(*arms, guard, *state[one])
            state[one] = verdict.looks, verdict.at
            if verdict.action != "wait":
                ended[one] = verdict.action, n
        going = [one for one in going if ended[one][0] == "wait"]
    return ended


WORSE = {
    "2 points more errors": (Version(errors=0.03), Guard(), 12_800),
    "all fail": (Version(errors=1.0), Guard(), 20),
    "half of all fail": (Version(errors=0.5), Guard(), 200),
    "p99 twice as long": (Version(slower=2.0), Guard(), 6400),
    "p99 twice as long, in a long tail": (Version(slower=2.0, tail=1.0), Guard(), 40_000),
    "scores 0.3 sd off, 0.05 allowed": (Version(shift=0.3), Guard(drift=0.05), 6400),
    "scores 0.3 sd off, 0.1 allowed": (Version(shift=0.3), Guard(), 80_000),
    "scores 0.5 sd off, 0.1 allowed": (Version(shift=0.5), Guard(), 3200),
}


@pytest.mark.parametrize("name", WORSE)
def test_a_version_that_is_worse_is_taken_back_within_a_stated_number_of_requests(name):
    canary, guard, within = WORSE[name]
    live = Version(tail=1.0) if "tail" in name else Version()
    ended = trials(live, canary, guard, 60, within)
    assert sum(action == "roll back" for action, _ in ended) >= 57
    assert not any(action == "promote" for action, _ in ended)


def test_an_equal_version_is_promoted_and_fewer_than_1_of_100_are_taken_back():
    ended = trials(Version(), Version(), Guard(), 500)
    taken = sum(action == "roll back" for action, _ in ended)
    assert taken < 5
    assert sum(ending == ("promote", 10_000) for ending in ended) >= 495 - taken


@pytest.mark.parametrize(
    ("canary", "guard"),
    [
        (Version(errors=0.015), Guard(promote=False)),
        (Version(slower=1.5), Guard(promote=False)),
        (Version(shift=0.25), Guard(promote=False)),  # a distance of 0.099
    ],
    ids=["errors", "p99", "drift"],
)
def test_a_version_as_bad_as_is_just_allowed_is_taken_back_in_fewer_than_1_of_100(canary, guard):
    ended = trials(Version(), canary, guard, 150, requests_max=40_000)
    assert sum(action == "roll back" for action, _ in ended) < 2


def test_small_samples_take_nothing_back_by_accident():
    ended = trials(Version(errors=0.05), Version(errors=0.05), Guard(requests_min=5, requests=400), 400, 400)
    assert sum(action == "roll back" for action, _ in ended) < 4


def test_a_tiny_shift_that_is_certain_takes_nothing_back():
    n = 5_000_000
    live, canary = (Version(shift=s) for s in (0, 0.02))
    arms = [counts(n, n // 100, version) for version in (live, canary)]
    verdict = decide(*arms, Guard())
    assert verdict.action == "promote"
    assert rules.distance(arms[0].scores, arms[1].scores) > 5 * math.sqrt(math.log(200) / n)  # no accident at all


def clustered(trials, users, per_look, seed, failing=0.0, slow=0.0, heavy=False, batch=1, stalls=0.0, guard=None):
    """How many of so many equal versions are taken back, where users have scores of their own (sd 1 between them, 0.5
    within), a share of them fails half of its requests or is slow with half, some users send nearly all, and batches
    stall as one."""
    random, taken, guard = np.random.default_rng(seed), 0, guard or Guard()
    for _ in range(trials):
        level, group = random.normal(size=users), random.integers(GROUPS, size=users)
        bad, late, tried = (random.random(users) < share for share in (failing, slow, SHARE))
        weight = random.pareto(1.2, users) + 1 if heavy else np.ones(users)
        arms = [Counts(0.0, *(np.zeros(size) for size in SIZES)) for _ in range(2)]
        looks, at = 0, 0.0
        for second in range(50):
            user = random.choice(users, per_look, p=weight / weight.sum())
            for arm, mine in zip(arms, (user[~tried[user]], user[tried[user]]), strict=True):
                n = len(mine)
                fails = bad[mine] & (random.random(n) < 0.5)
                stalled = (random.random(n // batch + 1) < stalls).repeat(batch)[:n]
                stalled |= late[mine] & (random.random(n) < 0.5)
                seconds = np.where(stalled, 0.03, 0.002 * (1 + random.random(n)))[~fails]
                place = np.searchsorted(SCORES, random.normal(level[mine], 0.5))[~fails]
                arm.failed += float(fails.sum())
                arm.seconds += np.bincount(np.searchsorted(TIMES, seconds), minlength=len(arm.seconds))
                arm.scores += np.bincount(place, minlength=len(arm.scores))
                for table, row in ((arm.by_key, group[mine]), (arm.by_time, np.full(n, second % GROUPS))):
                    good, waits = row[~fails] * WIDTH, np.searchsorted(WAITS, seconds)
                    cells = np.concatenate([row[fails] * WIDTH, good + 1 + waits, good + WIDTH - 2])
                    table += np.bincount(cells, minlength=len(table))
                    table += np.bincount(good + WIDTH - 1, place, len(table))
            if arms[1].requests < due(guard, at):
                continue
            lists = [Counts(a.failed, *(x.tolist() for x in (a.seconds, a.scores, a.by_key, a.by_time))) for a in arms]
            verdict = decide(*lists, guard, looks, at)
            looks, at = verdict.looks, verdict.at
            if verdict.action != "wait":
                taken += verdict.action == "roll back"
                break
    return taken


SIZES = (len(TIMES) + 1, len(SCORES) + 1, GROUPS * WIDTH, GROUPS * WIDTH)
ALIKE = {
    "few users": {"users": 200},
    "more users": {"users": 2000},
    "few users send nearly all": {"users": 2000, "heavy": True},
    "a few users' inputs fail": {"users": 2000, "failing": 0.02},
    "a few of few users' inputs fail": {"users": 300, "failing": 0.03},
    "a few users are slow": {"users": 1000, "slow": 0.02},
    "a few of few users are slow": {"users": 200, "slow": 0.02},
    "batches stall": {"users": 20_000, "batch": 16, "stalls": 0.008},
    "large batches stall": {"users": 20_000, "batch": 32, "stalls": 0.008},
}


@pytest.mark.parametrize("name", ALIKE)
def test_an_equal_version_is_not_taken_back_because_requests_are_alike(name):
    assert clustered(12, per_look=3000, seed=1, guard=Guard(promote=False), **ALIKE[name]) == 0


def test_a_few_callers_who_all_fail_are_not_most_requests():
    canary = counts(200, 200)
    one = [0.0] * len(canary.by_key)
    one[0] = 200.0  # all of one group
    canary.by_key = one
    assert decide(counts(50_000), canary, Guard()).action == "wait"


def test_a_canary_that_fails_is_found_also_when_live_answers_nothing():
    verdict = decide(counts(0), counts(20, 20), Guard())
    assert verdict.action == "roll back" and "whatever live does" in verdict.why


def test_a_p99_that_is_less_than_a_millisecond_longer_is_not_longer():
    live, canary = (counts(100_000, 0, Version(slower=slower / 100, tail=0.1)) for slower in (1, 2))  # 63 and 126 us
    assert decide(live, canary, Guard(drift=0)).action == "promote"
    live, canary = (counts(100_000, 0, Version(slower=slower, tail=0.1)) for slower in (1, 2))
    assert decide(live, canary, Guard(drift=0)).action == "roll back"


def counts(requests, failed=0, version=None):
    version = version or Version()
    n = requests - failed
    row = [failed, *(n * version.times[cell == CELL].sum() for cell in range(len(WAITS) + 1)), n]
    groups = [each / GROUPS for each in (*row, n * (version.scores @ np.arange(len(SCORES) + 1)))] * GROUPS
    return Counts(failed, (n * version.times).tolist(), (n * version.scores).tolist(), groups, groups)


def test_nothing_is_decided_without_enough_of_both():
    guard = Guard()
    assert decide(counts(50_000), counts(150, 50), guard).action == "wait"
    verdict = decide(counts(100), counts(50_000, 20_000), guard)
    assert verdict.action == "wait" and "live answered 100 requests" in verdict.why
    first = decide(counts(50_000), counts(300), guard)
    assert (first.action, first.looks, first.at) == ("wait", 1, pytest.approx(300, abs=20))
    assert decide(counts(50_000), counts(350, 350), guard, first.looks, first.at).looks == 1  # the next is at 400


def test_looks_double_and_the_one_that_promotes_is_among_them():
    guard, at, rungs = Guard(), 0.0, []
    for _ in range(12):
        at = due(guard, at)
        rungs.append(at)
    assert rungs == [20, 50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 20_000, 40_000]
    assert due(guard, 399) == 400 and due(guard, 401) == 800


def test_a_reason_has_the_figures():
    verdict = decide(counts(100_000, 1000), counts(5000, 250), Guard())
    assert verdict.action == "roll back"
    assert "5.00% failed, live 1.00% (+0.50% is allowed)" in verdict.why and "after 5,000 requests" in verdict.why


def test_a_guard_that_does_not_promote_says_so():
    verdict = decide(counts(400_000), counts(20_000), Guard(promote=False))
    assert verdict.action == "wait" and "leaves it to you to promote" in verdict.why


def test_answers_without_numbers_are_judged_by_the_rest():
    live, canary = counts(100_000), counts(20_000)
    live.scores, canary.scores = [0.0] * len(live.scores), [0.0] * len(canary.scores)
    assert decide(live, canary, Guard()).action == "promote"


@pytest.mark.parametrize(("hits", "trials"), [(0, 50), (1, 50), (49, 50), (50, 50), (37, 1000), (20_100, 1_000_000)])
def test_the_bounds_of_a_share_are_those_of_clopper_and_pearson(hits, trials):
    """By their definition: at the bound, what was seen is exactly as unlikely as said."""
    alpha = 1e-4
    low, high = rules.at_least(hits, trials, alpha), rules.at_most(hits, trials, alpha)
    assert low <= hits / trials <= high
    if trials <= 1000:
        chances = lambda p: [math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]  # noqa: E731
        if hits:
            assert sum(chances(low)[hits:]) == pytest.approx(alpha, rel=1e-6)
        if hits < trials:
            assert sum(chances(high)[: hits + 1]) == pytest.approx(alpha, rel=1e-6)
