"""Labels of a slower model that knows better, as far as that was measured.

Rules of the room:
- A teacher labels what it is sure of: a score from `confidence` on, or below the rest to 1. How often it is right then
  is measured on the gold slice, which is drawn evenly from the same rows and labelled by people.
- Positives and negatives are measured apart: a rare class hides behind a common one. Labels of a class are taken where
  the lower end of its interval is not below `precision_min`, and refused, with the reason, where it is.
- Intervals are Wilson's (E. B. Wilson, "Probable inference", 1927), 95 %.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.learn.curate.settings import CurateSettings

Z: Final = 1.959964
SIDES: Final = ("positive", "negative")


class Measured(msgspec.Struct, frozen=True):
    """How often a teacher was right where it was sure: of `count` gold labels `right`, with the interval of its
    precision. `refused`: why its labels of this class are not taken; ""."""

    count: int
    right: int
    precision: float
    low: float
    high: float
    refused: str = ""


def interval(right: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share, spread = right / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def sure(scores: NDArray[np.floating], confidence: float) -> NDArray[np.int8]:
    """What a teacher says of rows [n] with these scores: 1 positive, -1 negative, 0 where it is not sure, or silent."""
    says = np.zeros(len(scores), np.int8)
    says[scores >= confidence] = 1
    says[scores <= 1 - confidence] = -1
    return says


def measure(scores: NDArray[np.floating], positive: NDArray[np.bool_], settings: CurateSettings) -> dict[str, Measured]:
    """A teacher's precision by class: its scores of gold rows [n], and whether people called them positive."""
    says = sure(scores, settings.confidence)
    told = int((~np.isnan(scores)).sum())
    found = {}
    for side, sign in zip(SIDES, (1, -1), strict=True):
        mine = says == sign
        count, right = int(mine.sum()), int((positive[mine] == (sign > 0)).sum())
        low, high = interval(right, count)
        refused = ""
        if told < settings.gold_min:
            refused = f"{told} gold labels, and curate.gold_min is {settings.gold_min}: label more of the sample"
        elif low < settings.precision_min:
            refused = f"precision may be {low:.2f}, and curate.precision_min is {settings.precision_min:g}"
        found[side] = Measured(count, right, right / count if count else 0.0, low, high, refused)
    return found
