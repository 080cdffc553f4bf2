"""The gate between what was learnt and what is served. It refuses; it never repairs.

Its rules are about harm that would be visible only after the fact:
- weights are finite and within a bound: a slot of 1e6 answers 0 or 1 whatever the other features say;
- over the last examples, the answers that were given *before* learning from them (progressive validation) predict no
  worse than the plain rate of positives would have, nor than the version that stands still, by more than a margin. A
  burst of wrong labels shows here first;
- their mean stays near the plain rate: a model that promises three times what happens sells what it does not have;
- nor worse than they did in the past, for as many positives and as many negatives: labels that are wrong now and then
  show in that first;
- labels are such as they were: many times the usual positives are a broken client or robots, and none at all, in a
  time in which windows have closed several times over, are clicks that nobody reports any more;
- the share of positives has not leapt (usual.py): robots that click half of what they see. Fewer odds are needed for
  this than for the rule before, as it waits until negatives are known too, and its past never learns from examples
  that were passed over. So a leap that lasts stays refused, until a person lets it run.

Positives come at once and negatives a window later, so the last examples alone may be of one kind whenever traffic
begins or stops, and their own rate would be a prophet. The plain rate is therefore that of a long past (`HISTORY`
windows, fading), and nothing is judged until the window holds enough of both kinds (`enough`).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.learn.usual import LEAPT, Usual

HISTORY: Final = 20  # windows after which an example counts 1/e in the plain rate
_BOTH = 50  # of each kind: with fewer, the chance of their number alone moves the plain logloss by the margin
_KNOWN = 3  # windows of a past that is long enough to be usual
_SILENT = 3  # so many label waits without a positive


class GateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When learning must stop by itself."""

    weight_max: Annotated[float, msgspec.Meta(gt=0, description="largest magnitude of a weight that may be served")] = (
        50.0
    )
    window: Annotated[
        int, msgspec.Meta(ge=100, le=1_000_000, description="examples that progressive validation looks back on")
    ] = 5000
    logloss_over: Annotated[
        float, msgspec.Meta(ge=0, description="how much worse than the plain rate the logloss may be, as a share of it")
    ] = 0.25
    frozen_over: Annotated[
        float,
        msgspec.Meta(ge=0, description="how much worse than the version that stands still it may be, as a share"),
    ] = 0.1
    past_over: Annotated[
        float,
        msgspec.Meta(
            ge=0, description="how much worse than its own past the logloss may be, as a share of it, chance apart"
        ),
    ] = 0.06
    calibration_over: Annotated[
        float,
        msgspec.Meta(ge=1, description="how many times the plain rate, or a part of it, the mean prediction may be"),
    ] = 3.0
    burst: Annotated[
        float, msgspec.Meta(ge=1, description="how many times the usual odds of a positive are taken for true")
    ] = 3.0
    leap: Annotated[
        float,
        msgspec.Meta(ge=1, description="how many times the usual odds are taken for true once negatives are known too"),
    ] = 1.5
    then: Annotated[
        Literal["freeze", "rollback"],
        msgspec.Meta(description="a refusal stops learning where it is, or takes the base before back too"),
    ] = "freeze"
    resume_s: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            description="learning resumes by itself after so long, once a window of labels is as usual; 0: a person's",
        ),
    ] = 300.0


class Gate:
    """Feed it every progressive prediction with its label; ask it before every push."""

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._seen = self._ever = 0
        self._predicted, self._frozen, self._labels, self._times = np.zeros((4, settings.window))
        self._waited = 0.0
        self._past = self._past_positive = 0.0  # fading counts
        self._past_loss = np.zeros(2)  # fading sums, of negatives and of positives
        self._usual = Usual(settings.window, HISTORY)

    def observe(
        self,
        predicted: NDArray[np.float32],
        labels: NDArray[np.float32],
        frozen: NDArray[np.float32] | None = None,
        times: NDArray[np.float64] | None = None,
        waited_s: float = 0.0,
        *,
        passed_over: bool = False,
    ) -> None:
        """`predicted` [rows]: probabilities given before the labels were learnt; `frozen`: by the version that stands
        still, the same where there is none; `times`: of the events; `waited_s`: the longest that one waited for its
        label; `passed_over`: they are answered and not learnt."""
        window = self._settings.window
        ages = np.arange(len(labels))[::-1]
        kept = np.exp(-np.append(ages, len(labels)) / (HISTORY * window))
        self._past = self._past * kept[-1] + kept[:-1].sum()
        self._past_positive = self._past_positive * kept[-1] + kept[:-1] @ labels
        losses = _losses(predicted.astype(np.float64), labels)
        self._past_loss = self._past_loss * kept[-1] + [kept[:-1] @ (losses * (labels == one)) for one in (0, 1)]
        last = min(len(labels), window)
        at = (self._seen + np.arange(last)) % window
        self._predicted[at], self._labels[at] = predicted[-window:], labels[-window:]
        self._frozen[at] = (predicted if frozen is None else frozen)[-window:]
        self._times[at] = 0.0 if times is None else times[-window:]
        self._waited = max(self._waited, waited_s)
        self._usual.observe(labels, np.zeros(len(labels)) if times is None else times, passed_over=passed_over)
        self._seen += len(labels)
        self._ever += len(labels)

    def look_anew(self) -> None:
        """Judge by what comes from now on, after examples that were not told; what is usual stays known."""
        self._seen, self._labels[:] = 0, 0.0
        self._usual.look_anew()

    def go_on(self, by_person: bool) -> None:
        """After a refusal. A person who lets it run says that labels are right: what share is usual is found anew."""
        self.look_anew()
        if by_person:
            self._usual.forget()

    def dump(self) -> str:
        """Which share of positives is usual, for the metadata of a base: to know it takes more than a restart folds."""
        return self._usual.dump()

    def restore(self, text: str) -> None:
        """What `dump` gave. Corrupt."""
        self._usual.restore(text)

    def as_usual(self, why: str) -> bool:
        """Whether a whole window of what was passed over can be judged, and is as usual; `why`: of the refusal. After a
        leap, labels alone are judged: the answers are those of weights that the world has left behind meanwhile."""
        if not (self.enough() and self._usual.full()) or self._odd_labels() or self._usual.leap(self._settings.leap):
            return False
        return why.endswith(LEAPT) or not self._odd_answers()

    def refuses(self, weights: NDArray[np.float32]) -> str:
        """Why these weights must not be served, or "" when they may."""
        if not np.isfinite(weights).all():
            return f"{int((~np.isfinite(weights)).sum())} of {weights.size} weights are not finite"
        largest = float(np.abs(weights).max(initial=0.0))
        if largest > self._settings.weight_max:
            return f"a weight of {largest:.3g} is beyond the bound of {self._settings.weight_max:g}"
        odd = self._odd_labels() or self._usual.leap(self._settings.leap)
        return odd or (self._odd_answers() if self.enough() else "")

    def enough(self) -> bool:
        """Whether the window is full and holds 50 of each label (of a window below 5,000: 1 %)."""
        positives = int(self._labels.sum())
        both = min(positives, len(self._labels) - positives)
        return self.full() and both >= min(_BOTH, len(self._labels) / 100)

    def full(self) -> bool:
        """Whether there were as many examples as the window takes."""
        return self._seen >= len(self._labels)

    def _odd_answers(self) -> str:
        """What is wrong with the answers of the window, where it can be judged."""
        given, window, rate = self._settings, self._settings.window, self._past_positive / self._past
        ours, plain = _logloss(self._predicted, self._labels), _logloss(rate, self._labels)
        if ours > plain * (1 + given.logloss_over):
            return (
                f"logloss {ours:.3f} over the last {window} examples, where answering the plain rate "
                f"{rate:.3f} to everybody would have had {plain:.3f}"
            )
        usual, chance = self._usual_loss(), 2 * _losses(self._predicted, self._labels).std() / window**0.5
        if self._ever >= (_KNOWN + 1) * window and ours > usual * (1 + given.past_over) + chance:
            return (
                f"logloss {ours:.3f} over the last {window} examples, where as many positives and negatives had "
                f"{usual:.3f} in the past: are these labels right?"
            )
        frozen = _logloss(self._frozen, self._labels)
        if ours > frozen * (1 + given.frozen_over):
            return (
                f"logloss {ours:.3f} over the last {window} examples, where the version that learning began with "
                f"would have had {frozen:.3f}"
            )
        mean = float(self._predicted.mean())
        if not rate / given.calibration_over <= mean <= rate * given.calibration_over:
            return f"a mean prediction of {mean:.3f} over the last {window} examples, where {rate:.3f} are positive"
        return ""

    def _usual_loss(self) -> float:
        """What the window's labels would have cost by the losses of the past, of either kind."""
        positive = float(self._labels.mean())
        past = np.maximum(1e-9, [self._past - self._past_positive, self._past_positive])
        return float((self._past_loss / past) @ [1 - positive, positive])

    def _odd_labels(self) -> str:
        """What is wrong with the labels of the window, where what is usual is known."""
        window = self._settings.window
        if not self.full() or self._ever < (_KNOWN + 1) * window:
            return ""
        positives = float(self._labels.sum())
        usual = max(0.0, self._past_positive - positives) / max(1.0, self._past - window)
        if positives >= _BOTH and _odds(positives / window) > _odds(usual) * self._settings.burst:
            return f"{positives:.0f} of the last {window} examples are positive, where {usual * window:.0f} are usual"
        span = float(self._times.max() - self._times.min())
        if positives == 0 and usual * window >= _BOTH and 0 < _SILENT * self._waited < span:
            return (
                f"none of the last {window} examples is positive, over {span:.0f} s, where {usual * window:.0f} are "
                "usual: does anybody report them?"
            )
        return ""


def _odds(rate: float) -> float:
    return rate / max(1e-9, 1 - rate)


def _losses(predicted: NDArray[np.float64] | float, labels: NDArray[np.floating]) -> NDArray[np.float64]:
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    losses: NDArray[np.float64] = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return losses


def _logloss(predicted: NDArray[np.float64] | float, labels: NDArray[np.float64]) -> float:
    return float(_losses(predicted, labels).mean())
