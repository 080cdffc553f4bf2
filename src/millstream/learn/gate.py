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
from millstream.learn.validation import Labels

HISTORY: Final = 20  # windows after which an example counts 1/e in the plain rate
_BOTH = 50  # of each kind: with fewer, the chance of their number alone moves the plain logloss by the margin
_KNOWN = 3  # windows of a past that is long enough to be usual
_KNOWS = 0.98  # times the log loss of the plain rate: who has no less knows nothing
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
    """Feed it every progressive prediction with its label; ask it before every push.

    Labels are counted as the books count them (validation.py): a kept negative for all that it stands for, and a
    positive that takes its negative back makes no example more. So a rate is that of the world, which predictions mean.
    """

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._seen = self._ever = 0
        self._predicted, self._frozen, self._times = np.zeros((3, settings.window))
        self._judged = _plain(np.zeros(settings.window))
        self._waited = 0.0
        self._past = self._past_positive = self._past_first = 0.0  # fading counts; first: of what takes nothing back
        self._past_loss, self._past_frozen = np.zeros((2, 2))  # fading sums, of negatives and of positives
        self._usual = Usual(settings.window, HISTORY)

    def observe(
        self,
        predicted: NDArray[np.floating],
        labels: Labels | NDArray[np.floating],
        frozen: NDArray[np.floating] | None = None,
        times: NDArray[np.float64] | None = None,
        waited_s: float = 0.0,
        *,
        settled: NDArray[np.bool_] | None = None,
        passed_over: bool = False,
    ) -> None:
        """`predicted` [rows]: probabilities given before the `labels` were learnt; `frozen`: by the version that stands
        still, the same where there is none; `times`: of the events; `waited_s`: the longest that
        one waited for its label; `settled`: those that answers may be judged by; `passed_over`: they are not learnt."""
        judged = labels if isinstance(labels, Labels) else _plain(labels)
        times = np.zeros(len(predicted)) if times is None else times
        frozen = predicted if frozen is None else frozen
        first = ~judged.takes_back  # what comes back is shown at another time than its negative was
        self._usual.observe(judged.labels[first], times[first], passed_over=passed_over)
        self._waited = max(self._waited, waited_s)
        if settled is not None and not settled.all():  # the present begins after the last that is not
            after = int(settled[np.flatnonzero(~settled)[-1] :].sum())
            predicted, frozen, times = predicted[settled], frozen[settled], times[settled]
            judged, self._seen = judged.some(settled), -(len(predicted) - after)
        self._remember(predicted.astype(np.float64), frozen.astype(np.float64), judged)
        count, window = len(predicted), self._settings.window
        at = (self._seen + np.arange(count)[-window:]) % window
        self._predicted[at], self._frozen[at], self._times[at] = predicted[-window:], frozen[-window:], times[-window:]
        for kept, new in zip(self._judged, judged, strict=True):
            kept[at] = new[-window:]
        self._seen += count
        self._ever += count

    def _remember(self, predicted: NDArray[np.float64], frozen: NDArray[np.float64], judged: Labels) -> None:
        """The past, fading."""
        labels, counts, back = judged
        ages = np.arange(len(labels))[::-1]
        kept = np.exp(-np.append(ages, len(labels)) / (HISTORY * self._settings.window))
        faded, weights = kept[-1], kept[:-1] * counts
        negative, positive = weights * ((labels == 0.0) - 1.0 * back), weights * labels
        self._past = self._past * faded + weights @ ~back
        self._past_positive = self._past_positive * faded + weights @ labels
        self._past_first = self._past_first * faded + weights @ (labels * ~back)
        for past, who in ((self._past_loss, predicted), (self._past_frozen, frozen)):
            said, unsaid = _unlikely(who)
            past *= faded
            past += [negative @ unsaid, positive @ said]

    def look_anew(self) -> None:
        """Judge by what comes from now on, after examples that were not told; what is usual stays known."""
        self._seen, self._judged.counts[:] = 0, 0.0
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
        leap, labels alone are judged: the answers are those of weights that the world has left behind meanwhile. Else
        the answers of these weights must be good, or those of the version that stands still as good as they ever were:
        then it is the weights that are bad, and they will learn from such labels."""
        if not (self.enough() and self._usual.full()) or self._odd_labels() or self._usual.leap(self._settings.leap):
            return False
        return why.endswith(LEAPT) or not self._odd_answers() or self._frozen_as_ever()

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
        """Whether the window is full and holds 50 of each label (of a window below 5,000: 1 %), also less those that
        were taken back."""
        labels, counts, _ = self._judged
        positives = int(labels[counts > 0].sum())
        every, positive = self._counted()
        least = min(_BOTH, len(labels) / 100)
        return self.full() and min(positives, len(labels) - positives, every - positive) >= least

    def full(self) -> bool:
        """Whether there were as many examples as the window takes."""
        return self._seen >= len(self._times)

    def _counted(self) -> tuple[float, float]:
        """How many examples, and positives, the window stands for."""
        labels, counts, back = self._judged
        return float(counts @ ~back), float(counts @ labels)

    def _loss(self, predicted: NDArray[np.float64] | float) -> float:
        """Log loss of predictions for the labels of the window."""
        return float(_losses(predicted, self._judged).sum()) / self._counted()[0]

    def _odd_answers(self) -> str:
        """What is wrong with the answers of the window, where it can be judged."""
        given, window, rate = self._settings, self._settings.window, self._past_positive / self._past
        ours, plain = self._loss(self._predicted), self._loss(rate)
        if ours > plain * (1 + given.logloss_over):
            return (
                f"logloss {ours:.3f} over the last {window} examples, where answering the plain rate "
                f"{rate:.3f} to everybody would have had {plain:.3f}"
            )
        usual, chance = self._usual_loss(self._past_loss), self._chance(self._predicted)
        if self._ever >= (_KNOWN + 1) * window and ours > usual * (1 + given.past_over) + chance:
            return (
                f"logloss {ours:.3f} over the last {window} examples, where as many positives and negatives had "
                f"{usual:.3f} in the past: are these labels right?"
            )
        frozen = self._loss(self._frozen)
        if ours > frozen * (1 + given.frozen_over):
            return (
                f"logloss {ours:.3f} over the last {window} examples, where the version that learning began with "
                f"would have had {frozen:.3f}"
            )
        mean = float((self._judged.counts * ~self._judged.takes_back) @ self._predicted) / self._counted()[0]
        if not rate / given.calibration_over <= mean <= rate * given.calibration_over:
            return f"a mean prediction of {mean:.3f} over the last {window} examples, where {rate:.3f} are positive"
        return ""

    def _frozen_as_ever(self) -> bool:
        """Whether the version that stands still answers the window as it did the past. It must know something: whoever
        answers the same to everybody does so whatever the labels are."""
        rate, past = self._past_positive / self._past, float(self._past_frozen.sum()) / self._past
        said, unsaid = _unlikely(rate)
        if self._ever < (_KNOWN + 1) * self._settings.window or past > _KNOWS * (rate * said + (1 - rate) * unsaid):
            return False
        bound = self._usual_loss(self._past_frozen) * (1 + self._settings.past_over) + self._chance(self._frozen)
        return self._loss(self._frozen) <= bound

    def _chance(self, predicted: NDArray[np.float64]) -> float:
        """Two standard errors of the window's log loss."""
        return float(2 * _losses(predicted, self._judged).std() * len(predicted) ** 0.5) / self._counted()[0]

    def _usual_loss(self, losses: NDArray[np.float64]) -> float:
        """What the window's labels would have cost by the losses of the past, of either kind."""
        every, positives = self._counted()
        past = np.maximum(1e-9, [self._past - self._past_positive, self._past_positive])
        return float((losses / past) @ [every - positives, positives]) / every

    def _odd_labels(self) -> str:
        """What is wrong with the labels of the window, where what is usual is known. A positive that takes a negative
        back comes at another time than that: when traffic falls there would be nothing but such."""
        window = self._settings.window
        if not self.full() or self._ever < (_KNOWN + 1) * window:
            return ""
        labels, counts, back = self._judged
        every, positives = self._counted()[0], float((counts * labels) @ ~back)
        usual = max(0.0, self._past_first - positives) / max(1.0, self._past - every)
        if positives >= _BOTH and _odds(positives / every) > _odds(usual) * self._settings.burst:
            return f"{positives:.0f} of the last {every:.0f} examples are positive, where {usual * every:.0f} are usual"
        span = float(self._times.max() - self._times.min())
        if not labels.any() and usual * every >= _BOTH and 0 < _SILENT * self._waited < span:
            return (
                f"none of the last {every:.0f} examples is positive, over {span:.0f} s, where {usual * every:.0f} are "
                "usual: does anybody report them?"
            )
        return ""


def _plain(labels: NDArray[np.floating]) -> Labels:
    """Labels of which each stands for itself."""
    return Labels(labels.astype(np.float64), np.ones(len(labels)), np.zeros(len(labels), np.bool_))


def _odds(rate: float) -> float:
    return rate / max(1e-9, 1 - rate)


def _unlikely(predicted: NDArray[np.float64] | float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The log losses of probabilities, if the label is positive and if it is not."""
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    return -np.log(p), -np.log1p(-p)


def _losses(predicted: NDArray[np.float64] | float, judged: Labels) -> NDArray[np.float64]:
    """The loss of each row, for all that it stands for."""
    said, unsaid = _unlikely(predicted)
    losses: NDArray[np.float64] = judged.counts * np.where(judged.labels > 0, said - judged.takes_back * unsaid, unsaid)
    return losses
