"""How much more of something one arm has than another, and how sure that is.

A metric is a sum over a sum, both by person: likes over lists, say. Arms are compared by the logarithm of the ratio of
their metrics (a *lift*), whose variance is by the delta method: each person's pull on it. What the same people did
before the experiment takes out of it what they would have done anyway (CUPED: Deng, Xu, Kohavi and Walker, "Improving
the sensitivity of online controlled experiments by utilizing pre-experiment data", 2013). Chance alone says who is in
which arm, so that changes the estimate by nothing on average; who has no past counts as one of the mean.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.watch.experiments.sequence import needed, reach

Floats = NDArray[np.float64]

PEOPLE_LEAST: Final = 100
"""People of an arm below which nothing is said of it: variances are estimated from them."""
DOERS_LEAST: Final = 20
"""The same of people who have any of what is measured."""


class Moments(NamedTuple):
    """What a comparison needs of the n people of an arm: `n`; `doers`, who have any of the metric; `first` [4] and
    `second` [4, 4], sums of their columns above, below, above and below of the past, and of all products of these. The
    moments of people taken together are the sums of theirs."""

    n: float
    doers: float
    first: Floats
    second: Floats

    @classmethod
    def of(cls, columns: NDArray[Any]) -> Moments:
        """From float64 [4, n]."""
        return cls(columns.shape[1], float((columns[0] != 0).sum()), columns.sum(axis=1), columns @ columns.T)

    @property
    def value(self) -> float:
        """The metric; NaN where there is nothing below."""
        return float(self.first[0] / self.first[1]) if self.first[1] else math.nan


class Effect(NamedTuple):
    """`lift`: how much more the other arm has, as a share (0.03: 3 % more), from `low` to `high`, at any look; and the
    logarithm of 1 + lift with its standard `error`. `less`: the share of the variance that the past took out of it.
    `wanted`: about how many people of both arms together it takes to see the least that matters."""

    lift: float
    low: float
    high: float
    log: float
    error: float
    less: float
    wanted: float


def compare(control: Moments, other: Moments, least: float, alpha: float, past: bool = True) -> Effect | None:
    """The other arm beside the control. `least` > 0: the smallest lift that matters; `alpha`: how often the intervals
    of all looks together may miss the truth; `past`: whether to make use of it. None: too few people, or too few of
    them have any of the metric."""
    arms = (control, other)
    if any(arm.n < PEOPLE_LEAST or arm.doers < DOERS_LEAST or not (arm.first[:2] > 0).all() for arm in arms):
        return None
    pulls = [_pull(arm) for arm in arms]
    covariances = [_covariance(arm) for arm in arms]
    raw = sum(float(pull @ spread @ pull) for pull, spread in zip(pulls, covariances, strict=True))
    log, variance = math.log(other.value / control.value), raw
    weight = _past(arms) if past else None
    if weight is not None:
        varies = sum(float(weight @ spread @ weight) for spread in covariances)
        along = sum(float(pull @ spread @ weight) for pull, spread in zip(pulls, covariances, strict=True))
        if varies > 0.0:
            slope = along / varies
            apart = float(weight @ (other.first / other.n - control.first / control.n))
            log, variance = log - slope * apart, max(raw - slope * along, 0.0)
    if not variance > 0.0:
        return None
    spread = math.log1p(least)
    error, information = math.sqrt(variance), 1.0 / variance
    half = reach(information, spread, alpha) * error
    people = control.n + other.n
    return Effect(
        math.expm1(log), _lift(log - half), _lift(log + half), log, error, 1.0 - variance / raw,
        people * needed(spread, alpha) / information,
    )  # fmt: skip


def _lift(log: float) -> float:
    return math.expm1(min(log, 700.0))


def _pull(arm: Moments) -> Floats:
    """What a person's columns weigh in the logarithm of the arm's metric, [4]."""
    return np.array([arm.n / arm.first[0], -arm.n / arm.first[1], 0.0, 0.0])


def _past(arms: tuple[Moments, ...]) -> Floats | None:
    """What a person's columns weigh in the metric of the past, [4]: more or less of it than all have on average, 0 for
    who has none. None: nobody has any."""
    above, below = (sum(float(arm.first[at]) for arm in arms) for at in (2, 3))
    return np.array([0.0, 0.0, 1.0 / above, -1.0 / below]) if above > 0.0 and below > 0.0 else None


def _covariance(arm: Moments) -> Floats:
    """Of the means of the columns, [4, 4]."""
    mean = arm.first / arm.n
    found: Floats = (arm.second / arm.n - np.outer(mean, mean)) / (arm.n - 1.0)
    return found
