"""Whether people are in the arms as they were to be: the first thing to look at, and often the last.

A sample-ratio mismatch says that something between the draw and the log loses people of one arm: a version that crashes
for some, a cache, robots. Then the arms are not alike, and no difference between them means anything.

The test holds at every look: a person's arm is bet on before it is known, by the share of the arms so far, and the
winnings exceed 1 / alpha with a probability of alpha at most (Lindon and Malek, "Anytime-valid inference for
multinomial count data", 2022). There are several purses, which trust the configured shares more or less: one finds half
of an arm missing among some hundred people, another a hundredth of it among a million.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

ALPHA: Final = 0.001
"""Experiments that are split as they should, and are said not to be: one in a thousand, over all looks."""
PRIORS: Final = (10.0, 100.0, 1000.0, 10_000.0)
"""How many people the configured shares count for before any came, of each purse; all begin with as much."""
CROSSED_MAX: Final = 0.01
"""Share of the people who may have been in several arms, and are left out."""


def chance(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The p-value, valid at every look, of people being in the arms by `shares`, which are above 0 and sum to 1;
    `counts`: how many are. 1 where they look as they should."""
    purses = [_winnings(counts, shares, prior) for prior in PRIORS]
    most = max(purses)
    won = most + math.log(sum(math.exp(one - most) for one in purses) / len(purses))
    return math.exp(min(0.0, -won))


def _winnings(counts: Sequence[int], shares: Sequence[float], prior: float) -> float:
    """The logarithm of the Bayes factor of a Dirichlet mixture around `shares` to the shares themselves."""
    total = sum(counts)
    found = math.lgamma(prior) - math.lgamma(prior + total)
    for count, share in zip(counts, shares, strict=True):
        found += math.lgamma(prior * share + count) - math.lgamma(prior * share) - count * math.log(share)
    return found
