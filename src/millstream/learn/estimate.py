"""What another rule would have earned, from what was logged under this one: off-policy estimates with intervals.

A rule decides what stands first, and chance, in a known share of the requests, puts another candidate there. So of each
request one knows what stood first, how likely that was (`Served.propensities`), and how likely another rule makes it:
weighted by the ratio of the two, logged rewards are those of the other rule. Estimators: inverse propensity (Horvitz
and Thompson, 1952), the same with the weights brought to a mean of one (Swaminathan and Joachims, 2015), doubly robust
(Dudik, Langford and Li, 2011).

Rules of the room:
- Functions of arrays, a row a request; nothing is read or written.
- Only the first place is judged: what stood below it is as it was.
- A weight is never cut off. Where the log knows too little of another rule, the interval is wide, `effective` is small
  and `mean_weight` is far from one: those say so, `Estimate.trusted` asks them.
- Requests of one user belong together (`groups`): intervals take them as one, and so are honest where one user's
  requests are alike.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from millstream.errors import BadInput

Floats = NDArray[np.float64]

EFFECTIVE_LEAST: Final = 100.0
RESAMPLES_MAX: Final = 10_000


class Estimate(msgspec.Struct, frozen=True):
    """Mean reward of a request, and the interval that holds the truth in `confidence` of all logs like this one.

    `requests`: rows; `groups`: of rows that belong together; `effective`: as many requests under the other rule itself
    would tell as much (Kish: squared sum of weights over sum of squares); `mean_weight`: 1 but for chance where the
    log's propensities are right and cover the other rule; `largest`: share of all weight that one request has.
    """

    value: float
    low: float
    high: float
    confidence: float
    requests: int
    groups: int
    effective: float
    mean_weight: float
    largest: float

    @property
    def trusted(self) -> bool:
        """Whether the log says enough of the other rule: at least EFFECTIVE_LEAST effective requests, and a mean weight
        within its own chance (five standard errors, or a hundredth) of one."""
        if not self.effective >= EFFECTIVE_LEAST:
            return False
        # from the definition of `effective`: variance of the weights over their squared mean is n / effective - 1
        relative = max(self.requests / self.effective - 1.0, 0.0) / self.requests
        return abs(self.mean_weight - 1.0) <= 5.0 * self.mean_weight * math.sqrt(relative) + 0.01


class Interval(msgspec.Struct, frozen=True):
    """How an interval is made. `resamples` 0: the normal one, of the delta method. Else that of Efron's percentiles,
    from so many logs of groups drawn from this one, the same for the same `seed`: for few requests or large weights."""

    confidence: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.95
    resamples: Annotated[int, msgspec.Meta(ge=0, le=RESAMPLES_MAX)] = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0.0 < self.confidence < 1.0 and 0 <= self.resamples <= RESAMPLES_MAX and self.seed >= 0):
            raise BadInput(
                f"{self}: confidence is between 0 and 1, resamples 0 to {RESAMPLES_MAX}, the seed not negative"
            )


NORMAL: Final = Interval()


class Logged(msgspec.Struct, frozen=True):
    """n requests, float64 [n] each. `rewards`: what came of what stood first; `propensity`: how likely it was to stand
    there; `wanted`: how likely the other rule puts it there. `groups` int64 [n]: whose request it was; None: all apart.

    BadInput: lengths that differ, no rows, what is not finite, a propensity that is not in (0, 1].
    """

    rewards: Floats
    propensity: Floats
    wanted: Floats
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        columns = {"rewards": self.rewards, "propensity": self.propensity, "wanted": self.wanted}
        for name, column in columns.items():
            _check(name, column, len(self.rewards))
        if self.groups is not None and self.groups.shape != self.rewards.shape:
            raise BadInput(f"groups have the shape {self.groups.shape}, rewards {self.rewards.shape}: one a request")
        likely, wanted = self.propensity, self.wanted
        _check_range("propensity", likely, (likely > 0) & (likely <= 1), "above 0, at most 1")
        _check_range("wanted", wanted, (wanted >= 0) & (wanted <= 1), "0 to 1")

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def weights(self) -> Floats:
        """How much oftener the other rule does what was done, [n]."""
        return self.wanted / self.propensity


def first_place(shown: ArrayLike, first: ArrayLike, counts: ArrayLike, share: float, among: ArrayLike = True) -> Floats:
    """How likely a rule that explores evenly puts what was shown first there, float64 [n].

    `shown` int [n]: the place of what stood first; `first` int [n]: of what the rule thinks best, -1 where it shows
    nothing; `counts` int [n]: of how many chance draws one, in `share` of the requests; `among` bool [n]: whether what
    was shown is one of those. With what was logged, these are the logged propensities.
    """
    if not 0.0 <= share <= 1.0:
        raise BadInput(f"share is {share}; it is 0 to 1, as in the settings of what answered")
    places, best, n = (np.asarray(one, np.int64) for one in (shown, first, counts))
    if not places.shape == best.shape == n.shape:
        raise BadInput(
            f"shown, first and counts have the shapes {places.shape}, {best.shape}, {n.shape}: one a request"
        )
    if ((n < 1) | (places < 0)).any():
        raise BadInput("places go from 0, and chance draws one of at least 1")
    drawn = share / n * np.asarray(among, np.bool_)
    return np.asarray(np.where(best >= 0, drawn + (1.0 - share) * (places == best), 0.0), np.float64)


def ips(logged: Logged, interval: Interval = NORMAL) -> Estimate:
    """Inverse propensity: the mean of weight * reward. Right on average whatever the rewards; of wide interval."""
    return _estimate(logged, logged.weights * logged.rewards, np.ones(len(logged)), interval)


def snips(logged: Logged, interval: Interval = NORMAL) -> Estimate:
    """The same with weights brought to a mean of one: within the rewards' range, mostly narrower, wrong by something of
    the order 1/n. No weight at all: BadInput."""
    weights = logged.weights
    if not weights.any():
        raise BadInput(
            "the other rule does nothing that was done in this log: log more requests, or explore more of them"
        )
    return _estimate(logged, weights * logged.rewards, weights, interval)


def doubly_robust(logged: Logged, shown: Floats, rule: Floats, interval: Interval = NORMAL) -> Estimate:
    """A model's word, mended by what came of it: right on average where the model or the propensities are.

    `shown` float64 [n]: the reward that a model expects of what stood first; `rule` float64 [n]: of what the other rule
    shows, its mean over the rule's own chances (`expected`). The model must not have learnt from these rewards.
    """
    _check("shown", shown, len(logged))
    _check("rule", rule, len(logged))
    return _estimate(logged, rule + logged.weights * (logged.rewards - shown), np.ones(len(logged)), interval)


def gain(logged: Logged, interval: Interval = NORMAL) -> Estimate:
    """How much more the other rule earns than the one that was logged, by inverse propensity: one interval for the
    difference, narrower than two apart where the rules mostly agree. A rule that changes nothing gains exactly 0."""
    return _estimate(logged, (logged.weights - 1.0) * logged.rewards, np.ones(len(logged)), interval)


def expected(first: ArrayLike, means: ArrayLike, share: float) -> Floats:
    """What a model expects of a rule that explores evenly, float64 [n]: `first` [n] of what the rule thinks best,
    `means` [n] over the candidates among which chance draws."""
    best, mean = np.asarray(first, np.float64), np.asarray(means, np.float64)
    return np.asarray((1.0 - share) * best + share * mean, np.float64)


class Measured(msgspec.Struct, frozen=True):
    """A figure of a log and its standard error, known from `freedom` + 1 parts of the log that do not hang together;
    both infinite or no number where there are fewer than two."""

    value: float
    error: float
    freedom: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """From where to where it holds the truth in `confidence` of all logs like this one, by Student's t."""
        half = student(confidence, self.freedom) * self.error if self.error else 0.0
        return self.value - half, self.value + half

    def minus(self, other: Measured) -> Measured:
        """The difference of two that say nothing of each other; its freedom is Welch's (1947)."""
        mine, others = self.error**2, other.error**2
        both = mine + others
        if not (both > 0 and math.isfinite(both)):
            return Measured(self.value - other.value, math.sqrt(both), min(self.freedom, other.freedom))
        freedom = both**2 / (mine**2 / max(self.freedom, 1.0) + others**2 / max(other.freedom, 1.0))
        return Measured(self.value - other.value, math.sqrt(both), freedom)


def ratio(above: ArrayLike, below: ArrayLike, share: bool = False) -> Measured:
    """Sum of `above` over sum of `below`, float64 [groups] each, by the delta method; groups that have neither do not
    count. `share`: each one below is above, or not; then the error is as if one of either kind had come beside them, so
    that it is never 0 (a few who all did the same say little of all others). Nothing below: no number."""
    over, under = np.asarray(above, np.float64), np.asarray(below, np.float64)
    there = (over != 0) | (under != 0)
    over, under = over[there], under[there]
    if not (total := float(under.sum())):
        return Measured(math.nan, math.nan, 0.0)
    value, error = float(over.sum()) / total, _error(over, under) if len(over) > 1 else math.inf
    if share:
        error = math.hypot(error, math.hypot(value, 1.0 - value) / total)
    return Measured(value, error, len(over) - 1.0)


def mean(values: ArrayLike) -> Measured:
    """The mean of a figure over parts of a log that are alike, float64 [parts]; none: no number."""
    parts = np.asarray(values, np.float64)
    if not len(parts):
        return Measured(math.nan, math.nan, 0.0)
    error = float(parts.std(ddof=1)) / math.sqrt(len(parts)) if len(parts) > 1 else math.inf
    return Measured(float(parts.mean()), error, len(parts) - 1.0)


def student(confidence: float, freedom: float) -> float:
    """How many standard errors an interval reaches to either side: Student's t as a series in 1 / freedom (Abramowitz
    and Stegun, 1964, 26.7.5), to a hundredth of itself from 5 degrees on up to 99.9 %, and too small below."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    v = max(freedom, 1.0)
    terms = (
        (z**3 + z) / 4.0,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96.0,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384.0,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160.0,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, 1))


def _error(above: Floats, below: Floats) -> float:
    """The standard error of sum over sum, float64 [groups > 1] each, by the delta method: each group's pull on it."""
    total, groups = float(below.sum()), len(above)
    pull = (above - float(above.sum()) / total * below) / total
    return math.sqrt(float((pull * pull).sum()) * groups / (groups - 1))


def _estimate(logged: Logged, above: Floats, below: Floats, interval: Interval) -> Estimate:
    """Sum of `above` over sum of `below`, [n] each."""
    value = float(above.mean()) / float(below.mean())
    codes = _codes(logged.groups)
    groups = len(logged) if codes is None else int(codes.max()) + 1
    sums = [one if codes is None else np.bincount(codes, one).astype(np.float64) for one in (above, below)]
    if groups < 2:
        low, high = -math.inf, math.inf  # one group says nothing of how they differ
    elif interval.resamples:
        low, high = _percentiles(sums[0], sums[1], interval)
    else:
        half = NormalDist().inv_cdf(0.5 + interval.confidence / 2.0) * _error(sums[0], sums[1])
        low, high = value - half, value + half
    weights = logged.weights
    total, squares = float(weights.sum()), float((weights * weights).sum())
    return Estimate(
        value=value,
        low=low,
        high=high,
        confidence=interval.confidence,
        requests=len(logged),
        groups=groups,
        effective=total * total / squares if squares else 0.0,
        mean_weight=float(weights.mean()),
        largest=float(weights.max()) / total if total else 0.0,
    )


def _percentiles(above: Floats, below: Floats, interval: Interval) -> tuple[float, float]:
    """Of the ratio, when groups are drawn again; draws in which nothing was done that the rule does say nothing."""
    random = np.random.default_rng(interval.seed)
    found = np.full(interval.resamples, np.nan)
    for at in range(interval.resamples):
        drawn = random.integers(0, len(above), len(above))
        if total := float(below[drawn].sum()):
            found[at] = float(above[drawn].sum()) / total
    tail = 50.0 * (1.0 - interval.confidence)
    low, high = np.nanpercentile(found, [tail, 100.0 - tail])
    return float(low), float(high)


def _codes(groups: NDArray[np.int64] | None) -> NDArray[np.intp] | None:
    return None if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)


def _check(name: str, column: Floats, n: int) -> None:
    if column.shape != (n,) or not n:
        raise BadInput(f"{name} have the shape {column.shape}, and there are {n} requests: one a request, at least one")
    _check_range(name, column, np.isfinite(column), "a finite number")


def _check_range(name: str, column: Floats, right: NDArray[np.bool_], what: str) -> None:
    if not right.all():
        at = int(np.flatnonzero(~right)[0])
        raise BadInput(f"{name}[{at}] is {column[at]}; it is {what}")
