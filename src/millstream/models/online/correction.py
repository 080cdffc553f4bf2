"""From what a learner says to what is served: the probability that ads and thresholds may take for true.

Rules of the room:
- What was done to the examples is undone from the outside in: negatives that were left out (`shift`), then negatives
  that were given too early (`fake`), then what the model itself gets wrong (`slope`, `intercept`).
- A correction keeps the order of scores, and gives a finite number for every probability, 0 and 1 included.
- It acts on served answers only. Learning goes on with raw probabilities, or the model would learn its own correction.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors

_LOW, _HIGH = 1e-15, 1.0 - 2.0**-25  # the nearest to 0 and to 1 that a float32 probability is taken for
NAMES = ("slope", "intercept", "shift", "fake")


class Correction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """p -> sigmoid(slope * logit(undelayed(sigmoid(logit(p) + shift))) + intercept). Else than finite, or a slope that
    is not positive: BadInput.

    `shift`: log of the share of negatives that was kept (Chawla, King and Zeng's prior correction). `fake`: negatives
    were given at once and their positives later, so that a positive counts twice: p / (1 - p) is the true one, at most
    1 (fake negative calibration: Ktena et al., RecSys 2019). `slope`, `intercept`: Platt's, on the log odds.
    """

    slope: float = 1.0
    intercept: float = 0.0
    shift: float = 0.0
    fake: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slope, self.intercept, self.shift]).all() and self.slope > 0):
            raise errors.BadInput(
                f"correction: slope {self.slope}, intercept {self.intercept}, shift {self.shift}; all must be finite "
                "and the slope above 0, or the order of scores would turn"
            )

    @classmethod
    def of(cls, metadata: Mapping[str, str | int | float]) -> Correction:
        """What a snapshot's metadata says; what is not there changes nothing."""
        slope, intercept, shift, fake = (metadata.get(name) for name in NAMES)
        return cls(
            float(1.0 if slope is None else slope), float(intercept or 0.0), float(shift or 0.0), bool(int(fake or 0))
        )

    def metadata(self) -> dict[str, str | int | float]:
        """The keys that `of` reads."""
        return {"slope": self.slope, "intercept": self.intercept, "shift": self.shift, "fake": int(self.fake)}

    def calibrated(self, calibration: NDArray[np.float64]) -> Correction:
        """With slope and intercept of a delta: float64 [2], or [0] where they stay. Else BadInput."""
        if not calibration.size:
            return self
        if calibration.shape != (2,):
            raise errors.BadInput(f"delta: calibration is slope and intercept, got {list(calibration.shape)} numbers")
        slope, intercept = calibration.tolist()
        return msgspec.structs.replace(self, slope=slope, intercept=intercept)

    def apply(self, probability: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw probabilities float32 [n] in [0, 1] to corrected ones; the same array where nothing is."""
        if self == UNCORRECTED:
            return probability
        p = np.clip(probability.astype(np.float64), _LOW, _HIGH)
        logit = np.log(p) - np.log1p(-p) + self.shift
        if self.fake:  # p / (1 - p) is exp(logit), a probability as long as it is below 1
            logit = np.minimum(logit, np.log(_HIGH))
            logit -= np.log(-np.expm1(logit))
        logit = np.clip(self.slope * logit + self.intercept, -700.0, 700.0)
        corrected: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logit))
        return corrected.astype(np.float32)


UNCORRECTED = Correction()
