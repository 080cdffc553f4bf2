"""Honest probabilities out of good scores: Platt scaling that goes on while the model learns.

A learner that follows the newest labels closely ranks well and says too much: its mean score wanders from the rate of
positives. Two numbers mend that without touching the ranking: p' = sigmoid(slope * log odds(p) + intercept), fitted by
maximum likelihood to the labels of the scores that were given *before* they were learnt (J. Platt, "Probabilistic
outputs for support vector machines", 1999). Bids times p' are then worth what they say.

Rules of the room:
- The scores are kept as a fading histogram of log odds, which travels with the base: a restart that folds the same
  examples again fits the same two numbers, bit for bit.
- Few labels mend little: the fit is drawn towards slope 1 and intercept 0 as by `PRIOR` examples that agree with them,
  and nothing is mended before ENOUGH of either label.
"""

from __future__ import annotations

import base64
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream.errors import Corrupt
from millstream.learn.validation import BINS, EDGE, STEP, Labels, Scores, pieces

ENOUGH: Final = 50.0
PRIOR: Final = 20.0
WINDOW: Final = 20_000  # rows after which one counts 1/e
STEPS: Final = 20
SLOPES: Final = (0.2, 5.0)
_CENTRES: Final = np.linspace(-EDGE, EDGE, BINS, endpoint=False) + STEP / 2


class Calibration:
    """Feed it every score that was given before its label was learnt; `fit` says slope and intercept."""

    def __init__(self) -> None:
        self._scores, self._seen = Scores(), 0

    def observe(self, scores: NDArray[np.floating], judged: Labels) -> None:
        """Probabilities [n], not calibrated, and their labels."""
        for part, ends in pieces(self._seen, len(scores), WINDOW // STEPS):
            self._scores.add(scores[part].astype(np.float64), judged.some(part))
            if ends:
                self._scores.fade(float(np.exp(-1 / STEPS)))
        self._seen += len(scores)

    def fit(self) -> tuple[float, float]:
        """(slope, intercept); (1, 0) while there is too little to tell."""
        positive, every, _ = self._scores.table
        yes, no = positive.sum(), every.sum() - positive.sum()
        if min(yes, no) < ENOUGH:
            return 1.0, 0.0
        return _newton(positive, np.maximum(every, positive))

    def dump(self) -> str:
        """The histogram as text, for the metadata of a base."""
        table, loss = self._scores.state()
        head = np.array([self._seen, loss]).tobytes()
        return base64.b85encode(head + table).decode()

    @classmethod
    def load(cls, text: str) -> Calibration:
        """What `dump` gave. Corrupt."""
        made = cls()
        try:
            data = base64.b85decode(text)
            seen, loss = np.frombuffer(data[:16])
            made._scores.restore((data[16:], float(loss)))
        except ValueError as error:
            raise Corrupt(f"the calibration in a base cannot be read: {error}; make another base live") from None
        made._seen = int(seen)
        return made


def _newton(positive: NDArray[np.float64], every: NDArray[np.float64]) -> tuple[float, float]:
    """The maximum of the likelihood and the prior, by Newton's method: two parameters, a concave function."""
    slope, intercept = 1.0, 0.0
    held = every > 0
    z, yes, n = _CENTRES[held], positive[held], every[held]
    spread = float((n * z * z).sum() / n.sum())
    pull = PRIOR / 4 * np.array([max(spread, 1.0), 1.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(slope * z + intercept, -35, 35)))
        slack, curve = yes - n * p, n * p * (1 - p)
        gradient = np.array([(slack * z).sum(), slack.sum()]) - pull * [slope - 1, intercept]
        a, b, d = (curve * z * z).sum() + pull[0], (curve * z).sum(), curve.sum() + pull[1]
        det = a * d - b * b
        move = np.array([d * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]]) / det
        move = np.clip(move, -1.0, 1.0)
        slope, intercept = slope + float(move[0]), intercept + float(move[1])
        if abs(move).max() < 1e-9:
            break
    return float(np.clip(slope, *SLOPES)), float(np.clip(intercept, -EDGE, EDGE))
