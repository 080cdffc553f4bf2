"""What is thought of a learner: the gate's word, the books of its scores, and the calibration that goes with a push.

Rules of the room:
- Everything is told before it is learnt, in order, once: what a restart folds again is told again to the gate and to
  the calibration, not to the books, which are kept beside the log. Calibration and usual labels are carried by the base
  up to its own place.
- The version that stands still and the version before score the same rows. They are copies in this process, and no
  request waits for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import Error
from millstream.learn.calibration import Calibration
from millstream.learn.gate import Gate, GateSettings
from millstream.learn.settled import Settled
from millstream.learn.train import Folded
from millstream.learn.validation import Figures, Labels, Validation
from millstream.meter import Meter
from millstream.models.online import Correction, Served
from millstream.models.online.learner import Metadata
from millstream.store.blob import write_atomic

FEW: Final = 10  # so many examples of the gate's window may be of traffic that is not settled: one in


class Task(msgspec.Struct, frozen=True):
    """What became of the labels on their way here: the share of negatives `kept`, and how served scores make up for it
    and for negatives that were given at once. `name`: of the join's task; "": examples of any are learnt. `wait_s`:
    what a label waits at most, as configured."""

    kept: float = 1.0
    correction: Correction = Correction()
    name: str = ""
    wait_s: float = 0.0

    def judged(self, labels: NDArray[np.float32], takes_back: NDArray[np.bool_]) -> Labels:
        """Labels [n] as they are judged: a negative counts for all that it was kept of."""
        exact = labels.astype(np.float64)
        return Labels(exact, np.where(exact > 0, 1.0, 1.0 / self.kept), takes_back)


AS_THEY_ARE = Task()


class Report(msgspec.Struct, frozen=True):
    """The file that says how a model learns: figures by slice ("" for all) and source, position and time; `books` are
    for a restart."""

    upto: int
    when: float
    slope: float
    intercept: float
    figures: dict[str, dict[str, Figures]]
    books: bytes = b""


class Judge:
    """Of one model. `calibrate`: whether served probabilities are mended; `file`: where its books are kept, None:
    nowhere."""

    def __init__(
        self, gate: GateSettings, books: Validation, calibrate: bool, task: Task, meter: Meter, file: Path | None
    ) -> None:
        self._settings, self._calibrate, self._task, self._meter, self._file = gate, calibrate, task, meter, file
        self._books = books
        self.judged_upto = 0
        if file is not None and (saved := read_report(file)) is not None:
            self.judged_upto = saved.upto
            self._books.restore(saved.books)
        self._beside: dict[str, Served] = {}
        self.gate, self._calibration = Gate(gate), Calibration()
        self._settled = Settled(task.wait_s, gate.window // FEW)

    def stand(self, metadata: Metadata, frozen: Served | None, previous: Served | None) -> None:
        """The learner begins from a base: with the `metadata` of its snapshot."""
        self.gate = Gate(self._settings)
        if usual := metadata.get("usual"):
            self.gate.restore(str(usual))
        if settled := metadata.get("settled"):
            self._settled.restore(str(settled))
        kept = metadata.get("calibration")
        self._calibration = Calibration.load(str(kept)) if kept else Calibration()
        self._beside = {name: one for name, one in (("frozen", frozen), ("previous", previous)) if one is not None}

    def observe(self, folded: Folded) -> None:
        """What was learnt just now, with the probabilities from before. Its books are written from `judged_upto` on."""
        batch = folded.batch
        if not len(batch.labels):
            return
        judged = self._task.judged(batch.labels, batch.takes_back)
        raw = {name: one.raw(batch.tokens) for name, one in self._beside.items()}
        beside = {name: self._beside[name].correction.apply(said) for name, said in raw.items()}
        self._tell_gate(folded, raw.get("frozen"), passed_over=False)
        honest = self._task.correction.apply(folded.predicted)
        told = ~batch.again
        self._calibration.observe(honest[told], judged.some(told))
        if folded.first >= self.judged_upto:
            scores = {"served": batch.scores, "learner": honest} | beside
            self._books.observe(
                {name: one[told] for name, one in scores.items()},
                judged.some(told),
                batch.tokens[told],
                {"served": batch.scores[told] > 0},
            )

    def look(self, folded: Folded) -> None:
        """What was answered and passed over, while learning stands still: the gate alone is told."""
        if len(folded.batch.labels):
            frozen = self._beside.get("frozen")
            said = None if frozen is None else frozen.raw(folded.batch.tokens)
            self._tell_gate(folded, said, passed_over=True)

    def _tell_gate(self, folded: Folded, frozen: NDArray[np.float32] | None, *, passed_over: bool) -> None:
        """`frozen`: what the version that stands still says. Neither is mended by what labels said before."""
        batch, correction = folded.batch, self._task.correction
        settled = self._settled.of(batch.since, batch.waited, batch.times)
        told = ~batch.again
        if frozen is not None:
            own = self._beside["frozen"].correction
            frozen = msgspec.structs.replace(own, slope=1.0, intercept=0.0).apply(frozen)[told]
        self.gate.observe(
            correction.apply(folded.predicted)[told],
            self._task.judged(batch.labels, batch.takes_back).some(told),
            frozen,
            batch.times[told],
            float(batch.waited.max()),
            settled=settled[told],
            passed_over=passed_over,
        )

    def correction(self) -> Correction:
        """What served probabilities are mended by, as of now."""
        slope, intercept = self._calibration.fit() if self._calibrate else (1.0, 0.0)
        return msgspec.structs.replace(self._task.correction, slope=slope, intercept=intercept)

    def metadata(self) -> Metadata:
        """What a base carries."""
        return {
            **self.correction().metadata(),
            "calibration": self._calibration.dump(),
            "usual": self.gate.dump(),
            "settled": self._settled.dump(),
        }

    def publish(self, upto: int, now: float) -> None:
        """Say how it is, as metrics and as a file; unix seconds."""
        figures, mended = self._books.figures(), self.correction()
        for name, sources in figures.items():
            for source, one in sources.items():
                labels = {"scores": source, "slice": name or "all"}
                for metric, (figure, help) in _METRICS.items():
                    if (value := getattr(one, figure)) is not None:
                        self._meter.gauge(metric, help, labels).set(value)
        self.judged_upto = upto
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            report = Report(upto, now, mended.slope, mended.intercept, figures, self._books.state())
            write_atomic(self._file, msgspec.msgpack.encode(report))


_METRICS = {
    "millstream_learning_auc": ("auc", "AUC of scores whose labels came since, by who scored and slice."),
    "millstream_learning_examples": ("examples", "Examples that these are of, by who scored and slice."),
    "millstream_learning_positives": ("positives", "Of these, positives."),
    "millstream_learning_logloss": ("logloss", "Log loss of scores whose labels came since, by who scored and slice."),
    "millstream_learning_ece": ("ece", "Expected calibration error of scores, by who scored and slice."),
    "millstream_learning_ratio": ("ratio", "Mean score over rate of positives, by who scored and slice; 1 is honest."),
}


def read_report(file: Path) -> Report | None:
    """What a learner said last; None where there is nothing that can be read."""
    try:
        return msgspec.msgpack.decode(file.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError, Error):
        return None
