"""Servers that answer, and a learner behind them, as their counters tell it: with days, weekends, bursts and deploys,
and with faults that are planted. For whoever watches: what they count is on pages of real meters, what they read is in
events.

Rules of the room:
- Numbers come by chance from the seed, and time from the caller: so weeks pass in minutes, and a run can be repeated.
- What is drawn is single answers (their score, time, and label), not the sums that a monitor reads.
- A fault changes what is answered and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.engine.quality import CONFIDENCES, SCORES
from millstream.meter import Meter
from millstream.types import FeaturesRead

DAY_S: Final = 86400.0
Floats = NDArray[np.float64]
Kind = Literal[
    "", "empty", "sick", "broken", "constant", "shift", "dead", "missing", "outage", "poison", "slow", "quiet"
]
SET: Final = "user"
FEATURES: Final = 20
JUDGED: Final = 5000


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong. `share` of answers of `model` (all: "") on `server` (all: "") are `empty`, or fail (`sick`), or
    are all `constant`; a `broken` version answers NaN, counted as failures; a `shift` is of `share` standard
    deviations; feature `column` is `dead` (one value) or `missing`; of labels `share` does not come (`outage`) or is
    told the wrong way round (`poison`); answers are `share` times as `slow`; `share` of requests stays away (`quiet`).
    """

    kind: Kind = ""
    share: float = 1.0
    model: str = ""
    server: str = ""
    column: int = 3


class Model(msgspec.Struct, kw_only=True):
    """A model that answers: `bounded` scores are probabilities. `offset`: of this version, in standard deviations."""

    name: str
    bounded: bool = True
    version: int = 1
    offset: float = 0.0


class Fleet:
    """`servers` processes that answer `rate` requests a second each at noon of a working day, of all `models` alike.
    `folder`: where their pages of counters are; `meters`: these by the process's name, `learn` among them. They read
    one set of so many `features`."""

    def __init__(
        self, folder: Path, seed: int = 0, servers: int = 4, rate: float = 50.0, models: Sequence[Model] = (),
        features: int = FEATURES,
    ) -> None:  # fmt: skip
        self._rng = np.random.default_rng(seed)
        self.models = list(models) or [Model(name="ranker"), Model(name="price", bounded=False), Model(name="risk")]
        self._rate, self._folder = rate, folder
        self.servers = tuple(f"serve-{number}" for number in range(servers))
        self.meters = {name: Meter(folder, name) for name in (*self.servers, "learn")}
        self.faults: list[Fault] = []
        self._wave = self._rng.uniform(-0.5, 0.5, len(self.models))
        self._rows = self._rng.normal(0.0, 1.0, features) * 3.0
        self._judged: deque[tuple[float, float]] = deque(maxlen=JUDGED)
        self._judge_at = -np.inf

    def deploy(self, model: str) -> str:
        """A new version of this model answers from now on everywhere, a little otherwise than the one before."""
        for one in self.models:
            if one.name == model:
                one.version += 1
                one.offset = float(self._rng.normal(0.0, 0.15))
                return str(one.version)
        raise KeyError(model)

    def restart(self, server: str) -> None:
        """A server begins anew, with a page that counts from 0."""
        for file in self._folder.glob(f"{server}.*"):
            file.unlink()
        self.meters[server] = Meter(self._folder, server)

    def step(self, at: float, seconds: float) -> list[FeaturesRead]:
        """Answer what comes in the `seconds` until `at`, unix seconds; what was read, as a sample of it is logged."""
        day, hour = divmod(at / DAY_S, 1.0)
        weekend = int(day + 3) % 7 >= 5  # the first day of 1970 was a Thursday
        busy = (1.0 + 0.6 * np.sin(2 * np.pi * (hour - 0.25))) / 1.6 * (0.7 if weekend else 1.0)
        busy *= np.exp(self._rng.normal(0.0, 0.1))
        served = 0
        for place, model in enumerate(self.models):
            mean = 0.1 * np.sin(2 * np.pi * (hour + self._wave[place])) + 0.05 * weekend + model.offset
            mean += self._rng.normal(0.0, 0.02)  # what one moment's requests have in common
            burst = 0.01 * (self._rng.random() < seconds / DAY_S)
            for server in self.servers:
                part = seconds * self._rate / len(self.models) * busy
                part *= 1.0 - self._fault("quiet", model.name, server)
                served += self._answer(server, model, int(self._rng.poisson(part)), mean, burst)
        self._learn(served, at)
        return self._read(at, served, hour)

    def _fault(self, kind: Kind, model: str, server: str) -> float:
        return max(
            (
                one.share
                for one in self.faults
                if one.kind == kind and one.model in ("", model) and one.server in ("", server)
            ),
            default=0.0,
        )

    def _answer(self, server: str, model: Model, count: int, mean: float, burst: float) -> int:
        rng, name = self._rng, model.name
        failing = max(0.0003 + burst, self._fault("sick", name, server), self._fault("broken", name, server))
        failed = int(rng.binomial(count, failing))
        answered = count - failed
        void = int(rng.binomial(answered, max(0.003, self._fault("empty", name, server))))
        drawn = rng.normal(mean + self._fault("shift", name, server), 1.0, answered - void)
        if self._fault("constant", name, server):
            drawn[:] = 0.3
        scores = 1.0 / (1.0 + np.exp(1.5 - drawn)) if model.bounded else 20.0 * drawn - 3.0
        spent = np.exp(rng.normal(np.log(0.004), 0.7, count)) * (self._fault("slow", name, server) or 1.0)
        self._count(server, model, count, failed, answered, void, scores, spent)
        if model is self.models[0]:
            poison, lost = self._fault("poison", "", ""), self._fault("outage", "", "")
            told = scores[rng.random(len(scores)) >= lost]
            labels = rng.random(len(told)) < told
            labels ^= rng.random(len(told)) < poison
            self._told(server, told, labels)
        return count

    def _count(
        self, server: str, model: Model, count: int, failed: int, answered: int, void: int, scores: Floats,
        spent: Floats,
    ) -> None:  # fmt: skip
        meter, labels = self.meters[server], {"model": model.name, "version": str(model.version)}

        def add(name: str, amount: float) -> None:
            meter.counter(name, name, labels).add(amount)

        add("millstream_requests_total", count)
        add("millstream_failures_total", failed)
        meter.counter("millstream_arm_requests_total", "", {**labels, "arm": "live"}).add(count)
        meter.histogram("millstream_answer_seconds", "", labels).observe_all(spent)
        add("millstream_quality_answers_total", answered)
        add("millstream_quality_empty_total", void)
        repeats = int((np.diff(scores) == 0.0).sum()) if len(scores) else 0
        add("millstream_quality_repeats_total", repeats)
        meter.histogram("millstream_quality_score", "", labels, SCORES).observe_all(scores)
        add("millstream_quality_score_above_total", float(scores[scores > 0].sum()))
        add("millstream_quality_score_below_total", float(-scores[scores < 0].sum()))
        add("millstream_quality_score_squares_total", float((scores * scores).sum()))
        add("millstream_quality_output_size_total", answered)
        add("millstream_quality_input_size_total", FEATURES * answered)
        if model.bounded:
            sure = np.maximum(scores, 1.0 - scores)
            meter.histogram("millstream_quality_confidence", "", labels, CONFIDENCES).observe_all(sure)
            add("millstream_quality_confidence_squares_total", float((sure * sure).sum()))

    def _told(self, server: str, scores: Floats, labels: NDArray[np.bool_]) -> None:
        """What people did becomes outcomes of the server, and examples of the learner."""
        self.meters[server].counter("millstream_outcomes_total", "").add(len(labels) + int(labels.sum()))
        for kind, count in (("impression", len(labels)), ("click", int(labels.sum()))):
            self.meters[server].counter("millstream_outcome_kinds_total", "", {"kind": kind}).add(count)
        for label, count in (("0", int((~labels).sum())), ("1", int(labels.sum()))):
            given = {"task": "click", "label": label}
            self.meters["learn"].counter("millstream_examples_total", "", given).add(count)
        losses = np.where(labels, -np.log(scores), -np.log1p(-scores))
        of = {"model": self.models[0].name, "version": str(self.models[0].version), "task": "click"}
        for name, amount in (
            ("", len(labels)), ("positive_", labels.sum()), ("scored_", len(labels)), ("loss_", losses.sum()),
            ("loss_squares_", (losses * losses).sum()),
        ):  # fmt: skip
            self.meters["learn"].counter(f"millstream_labels_{name}total", "", of).add(float(amount))
        self._judged.extend(zip(scores.tolist(), labels.tolist(), strict=True))

    def _learn(self, served: int, at: float) -> None:
        meter = self.meters["learn"]
        meter.counter("millstream_examples_learnt_total", "").add(served / len(self.models))
        meter.counter("millstream_pushes_total", "").add()
        if at - self._judge_at < 60.0 or len(self._judged) < 1000:
            return
        self._judge_at = at
        scores, labels = np.array(self._judged).T
        ranks = np.argsort(np.argsort(scores)) + 1.0
        yes = labels.sum()
        auc = (ranks[labels > 0].sum() - yes * (yes + 1) / 2) / max(1.0, yes * (len(labels) - yes))
        loss = -np.mean(np.where(labels > 0, np.log(scores), np.log1p(-scores)))
        for name, value in (
            ("auc", auc), ("logloss", loss), ("ratio", scores.mean() / max(1e-9, labels.mean())),
            ("examples", len(labels)), ("positives", yes),
        ):  # fmt: skip
            meter.gauge(f"millstream_learning_{name}", "", {"scores": "served", "slice": "all"}).set(float(value))

    def _read(self, at: float, served: int, hour: float) -> list[FeaturesRead]:
        """One in a hundred reads is logged, with two rows."""
        reads = int(self._rng.binomial(served, 0.01))
        tide = 0.1 * np.sin(2 * np.pi * hour)
        found = []
        for number in range(reads):
            rows = self._rows + self._rng.normal(tide, 1.0, (2, len(self._rows)))
            rows[:, 1] = np.where(self._rng.random(2) < 0.1, np.nan, rows[:, 1])
            for fault in self.faults:
                if fault.kind in ("dead", "missing"):
                    rows[:, fault.column] = 0.0 if fault.kind == "dead" else np.nan
            moment = int(at * 1e6)
            found.append(
                FeaturesRead(
                    features=SET, hash="1", at=moment, as_of=moment, keys={"user": [f"u{number}", f"v{number}"]},
                    values=rows.tobytes(),
                )
            )  # fmt: skip
        return found
