"""Whether a canary is taken back, promoted or watched on: from counts of it and of live, with no input or output.

Rules of the room:
- A canary is taken back when it is *shown* to be worse than live by more than its guard allows: a lower confidence
  bound of how much worse it is lies above what is allowed. A large sample alone takes nothing back.
- It is promoted when no *estimate* lies above what is allowed; while one does and the bound does not, it goes on.
- Looks are few: after `requests_min` of its requests, twice that, and so on, `requests` among them; before, at EARLY,
  only for whether most of its requests fail. The k-th may err with probability ALPHA / (k (k + 1)), shared by four
  measures, so all looks at all measures together err with less than ALPHA (Bonferroni): a canary within what is allowed
  is taken back in fewer than 1 of 100 trials.
- Bounds hold for any sample size and any distribution: Clopper and Pearson (1934) for shares, Dvoretzky, Kiefer and
  Wolfowitz with Massart's constant (1990) for distances of distributions.
- Requests are not taken as independent: those of one caller are alike, as are those of one batch. A bound counts as
  many requests as independent ones would tell as much, as Korn and Graubard (1998) have it for surveys: less by the
  design effect, measured between groups of callers and between blocks of time, and by what measuring it in few groups
  leaves open. Where a few callers send nearly all of it nothing is shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from math import exp, inf, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Literal

import msgspec

from millstream.engine.tally import TIMES, WAITS, WIDTH
from millstream.meter import quantile
from millstream.models.policy import Guard

ALPHA = 0.01
MEASURES = 4
EARLY = (20.0, 50.0, 100.0)
BROKEN = 0.5  # of a canary's requests: more failures than that end it, whatever live does
SLOW_SHARE = 0.01  # what p99 leaves above it
FLOOR_S = 0.001  # a p99 that is so little longer is not longer: schedulers and networks do as much


class Counts(msgspec.Struct):
    """What an arm did since the canary began: requests that `failed`, and those answered by `seconds` (buckets of
    `TIMES`) and by score (buckets of `SCORES`; of answers without a number there is none). `by_key`: WIDTH sums of each
    group of callers (see tally.py); `by_time`: of each block of time."""

    failed: float
    seconds: list[float]
    scores: list[float]
    by_key: list[float]
    by_time: list[float]

    @property
    def requests(self) -> float:
        """All of them."""
        return self.failed + sum(self.seconds)


class Verdict(msgspec.Struct, frozen=True):
    """What to do and why, in words; `looks` taken so far, the last one when the canary had answered `at` requests."""

    action: Literal["wait", "promote", "roll back"]
    why: str
    looks: int
    at: float


class Measure(msgspec.Struct, frozen=True):
    """How much worse the canary is: as it looks, and at least, with confidence. `text` says it."""

    seems: float
    surely: float
    allowed: float
    text: str


def due(guard: Guard, at: float) -> float:
    """How many requests the canary must have answered for the next look, after one at `at` of them."""
    for early in EARLY:
        if at < early < guard.requests_min:
            return early
    rung = float(guard.requests_min)
    while rung <= at:
        rung = float(guard.requests) if rung < guard.requests < 2 * rung else 2 * rung
    return rung


def decide(live: Counts, canary: Counts, guard: Guard, looks: int = 0, at: float = 0.0) -> Verdict:
    """Judge a canary; `looks` and `at` are of the verdict before. Until a look is due, that is to wait."""
    n, wanted = canary.requests, due(guard, at)
    if n < wanted:
        return Verdict("wait", f"{n:,.0f} requests so far; the next look is at {wanted:,.0f}", looks, at)
    looks += 1
    alpha = ALPHA / (looks * (looks + 1)) / MEASURES
    if _breaks(canary, alpha):
        why = f"{canary.failed / n:.2%} failed, whatever live does {BROKEN:.0%} is too much"
        return Verdict("roll back", f"after {n:,.0f} requests: {why}", looks, n)
    if n < guard.requests_min:
        return Verdict("wait", f"{n:,.0f} requests so far; {guard.requests_min:,} are needed to compare", looks, n)
    if live.requests < guard.requests_min:
        why = f"live answered {live.requests:,.0f} requests beside it, {guard.requests_min:,} are needed to compare"
        return Verdict("wait", why, looks, n)
    measures = [_errors(live, canary, guard, alpha)]
    if guard.p99:
        measures.append(_slowness(live, canary, guard, alpha))
    if guard.drift and min(sum(live.scores), sum(canary.scores)) >= guard.requests_min:
        measures.append(_drift(live, canary, guard, alpha))
    shown = [measure.text for measure in measures if measure.surely > measure.allowed]
    if shown:
        return Verdict("roll back", f"after {n:,.0f} requests: {'; '.join(shown)}", looks, n)
    seems = [measure.text for measure in measures if measure.seems > measure.allowed]
    if seems:
        return Verdict("wait", f"after {n:,.0f} requests it may be worse: {'; '.join(seems)}", looks, n)
    text = f"not worse after {n:,.0f} requests: {'; '.join(measure.text for measure in measures)}"
    if n < guard.requests:
        return Verdict("wait", text, looks, n)
    if not guard.promote:
        return Verdict("wait", f"{text}; its guard leaves it to you to promote it", looks, n)
    return Verdict("promote", text, looks, n)


def _breaks(canary: Counts, alpha: float) -> bool:
    """Whether most of its requests fail. Few requests do not tell how alike those of a group are: taken as one each."""
    sizes = [sum(row[: WIDTH - 2]) for row in rows(canary.by_key)]
    groups = sum(sizes) ** 2 / (sum(size**2 for size in sizes) or 1.0)
    return at_least(canary.failed / canary.requests * groups, groups, alpha) > BROKEN


def _errors(live: Counts, canary: Counts, guard: Guard, alpha: float) -> Measure:
    """The share of failed requests, beside live's."""
    seems = canary.failed / canary.requests - live.failed / live.requests
    surely = -inf
    if seems > guard.errors:
        alike = _alike((live, canary), lambda row: (row[0], sum(row[: WIDTH - 2])), alpha / 2)
        mine, theirs = ((arm.failed / alike, arm.requests / alike) for arm in (canary, live))
        surely = at_least(*mine, alpha / 2) - at_most(*theirs, alpha / 2)
    text = (
        f"{canary.failed / canary.requests:.2%} failed, live {live.failed / live.requests:.2%} "
        f"(+{guard.errors:.2%} is allowed)"
    )
    return Measure(seems, surely, guard.errors, text)


def _slowness(live: Counts, canary: Counts, guard: Guard, alpha: float) -> Measure:
    """The p99 beside live's. Shown by counting: more than 1 % of its answers took longer than `guard.p99` times what
    live's p99 is at most, and FLOOR_S longer."""

    def line(p99: float) -> float:
        return max(guard.p99 * p99, p99 + FLOOR_S)

    mine, theirs = quantile(TIMES, canary.seconds, 0.99), quantile(TIMES, live.seconds, 0.99)
    seems, surely = guard.p99 * mine / line(theirs) if theirs else 0.0, 0.0
    if seems > guard.p99:
        cut = max(1, bisect_right(WAITS, line(theirs)))
        alike = _alike((live, canary), lambda row: (sum(row[1 + cut : WIDTH - 2]), sum(row[1 : WIDTH - 2])), alpha / 2)
        edge = line(_p99_at_most([count / alike for count in live.seconds], alpha / 2))
        slow = sum(count for low, count in zip((0.0, *TIMES), canary.seconds, strict=True) if low >= edge)
        if at_least(slow / alike, sum(canary.seconds) / alike, alpha / 2) > SLOW_SHARE:
            surely = seems
    text = f"p99 {mine * 1e3:.3g} ms, live {theirs * 1e3:.3g} ms ({guard.p99:g} times is allowed)"
    return Measure(seems, surely, guard.p99, text)


def _p99_at_most(seconds: Sequence[float], alpha: float) -> float:
    """An edge of the buckets that the p99 lies below, with probability 1 - alpha; infinity with too few requests."""
    total, over = sum(seconds), 0.0
    best = inf
    for edge, above in zip(reversed(TIMES), reversed(seconds), strict=False):
        over += above
        if _tail(over + 1, total, SLOW_SHARE) < 1 - alpha:  # as many above it may be an accident
            break
        best = edge
    return best


def _drift(live: Counts, canary: Counts, guard: Guard, alpha: float) -> Measure:
    """The Kolmogorov-Smirnov distance of the scores: of their buckets, which is never more than that of the scores."""
    seems, surely = distance(live.scores, canary.scores), -inf
    if seems > guard.drift:
        alike = _alike((live, canary), lambda row: (row[-1], row[-2]), alpha / 4, _spread)
        surely = seems - sum(sqrt(log(4 / alpha) * alike / (2 * sum(arm.scores))) for arm in (live, canary))
    return Measure(seems, surely, guard.drift, f"scores {seems:.3f} from live's ({guard.drift:g} is allowed)")


def _spread(arm: Counts) -> float:
    """The variance of the places of an arm's scores."""
    n = sum(arm.scores) or 1.0
    mean = sum(place * count for place, count in enumerate(arm.scores)) / n
    return sum((place - mean) ** 2 * count for place, count in enumerate(arm.scores)) / n


def rows(table: list[float]) -> list[list[float]]:
    """The sums of each group."""
    return [table[at : at + WIDTH] for at in range(0, len(table), WIDTH)]


def _alike(
    arms: Iterable[Counts],
    pick: Callable[[list[float]], tuple[float, float]],
    alpha: float,
    spread: Callable[[Counts], float] | None = None,
) -> float:
    """How many requests tell as much as one that is independent of all others: by callers or by time, in either arm,
    whichever is most. `pick` gives a group's sum of what is measured, and its requests; `spread` an arm's variance of
    it, when it is no share."""
    tables = [(arm, table) for arm in arms for table in (arm.by_key, arm.by_time)]
    return max(_weight([pick(row) for row in rows(table)], alpha, spread and spread(arm)) for arm, table in tables)


def _weight(groups: Sequence[tuple[float, float]], alpha: float, spread: float | None) -> float:
    """The design effect of the groups, times (t / z)^2 of the degrees of freedom that groups of unequal sizes leave
    (Satterthwaite, for groups whose members are all the same); infinity for too few."""
    groups = [(hits, size) for hits, size in groups if size > 0]
    total, squares = sum(size for _, size in groups), sum(size**2 for _, size in groups)
    freedom = squares**2 / (sum(size**4 for _, size in groups) or 1.0) - 1
    if freedom < 1:
        return inf
    mean = sum(hits for hits, _ in groups) / total
    between = sum((hits - mean * size) ** 2 for hits, size in groups) * len(groups) / (len(groups) - 1) / total
    within = mean * (1 - mean) if spread is None else spread
    return max(1.0, (between / within if within > 0 else 1.0) * _t_squared(freedom, alpha) / _z(alpha) ** 2)


def _z(alpha: float) -> float:
    return NormalDist().inv_cdf(1 - alpha)


def _t_squared(freedom: float, alpha: float) -> float:
    """The square of what Student's t exceeds with probability alpha."""
    x = _solve(lambda x: _beta(freedom / 2, 0.5, x) - 2 * alpha)
    return freedom * (1 - x) / x


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two cumulative distributions, given as counts of the same buckets."""
    here, there = sum(one), sum(other)
    pairs = zip(accumulate(one), accumulate(other), strict=True)
    return max(abs(a / here - b / there) for a, b in pairs)


def at_least(hits: float, trials: float, alpha: float) -> float:
    """The lower Clopper-Pearson bound of a share: it lies below with probability alpha at most."""
    return _solve(lambda p: _tail(hits, trials, p) - alpha) if hits else 0.0


def at_most(hits: float, trials: float, alpha: float) -> float:
    """The upper Clopper-Pearson bound of a share: it lies above with probability alpha at most."""
    return _solve(lambda p: _tail(hits + 1, trials, p) - (1 - alpha)) if hits < trials else 1.0


def _solve(rising: Callable[[float], float]) -> float:
    """Where a rising function of [0, 1] crosses 0."""
    low, high = 0.0, 1.0
    for _ in range(48):
        middle = (low + high) / 2
        if rising(middle) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def _tail(hits: float, trials: float, p: float) -> float:
    """P(at least `hits` of `trials`), each with probability p."""
    if hits <= 0:
        return 1.0
    return _beta(hits, trials - hits + 1, p) if trials - hits + 1 > 0 else 0.0


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method (DLMF 8.17.22)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1) or tiny)
    value = d
    for m in range(1, 20_000):
        step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1.0 / (1.0 + step * d or tiny), 1.0 + step / c or tiny
        value *= d * c
        step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1.0 / (1.0 + step * d or tiny), 1.0 + step / c or tiny
        value *= d * c
        if abs(d * c - 1.0) < 1e-12:
            break
    return value
