"""Intervals that hold at every look: how many standard errors they reach, and how much it takes to see an effect.

An estimate with a standard error of e has an information of 1 / e**2. While people come, estimate times information is
a walk whose variance is the information, so the mixture of Robbins (1970) bounds it at all times at once: a ratio of
likelihoods, averaged over effects drawn from N(0, spread**2), exceeds 1 / alpha with a probability of alpha at most
(Ville, 1939). In use for A/B tests as mSPRT (Johari, Koomen, Pekelis and Walsh, "Always valid inference", 2022); with
the variance estimated it holds for many people (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central
limit theory and asymptotic confidence sequences", 2024).

It needs no new people at each look: later deeds of the same people may count too, as long as what somebody does later
is not the opposite of what was done before. Then looks hang together more than those of a walk do, and the bound is
exceeded less often (Slepian, 1962).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

POWER: Final = 0.8
"""Chance with which an effect is to be seen once as much is known as `needed` says."""


def reach(information: float, spread: float, alpha: float) -> float:
    """How many standard errors an interval reaches to either side, so that all looks together miss the truth with a
    probability of `alpha` at most. `spread` > 0: effects of about this size are seen soonest; it is chosen before
    anything is known. Infinite where nothing is known."""
    v = information * spread * spread
    if not v > 0.0:
        return math.inf
    return math.sqrt((1.0 + 1.0 / v) * (math.log1p(v) - 2.0 * math.log(alpha)))


def needed(effect: float, alpha: float, power: float = POWER) -> float:
    """The information with which an interval whose spread is `effect` > 0 shows an effect of that size with a
    probability of `power`, at a look there and then."""
    missed = NormalDist().inv_cdf(power)
    low, high = 0.0, 1.0

    def shown(v: float) -> bool:
        return math.sqrt(v) >= reach(v, 1.0, alpha) + missed

    while not shown(high):
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high / (effect * effect)
