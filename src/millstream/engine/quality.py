"""What a version's answers are like, counted as they leave, without labels. Who watches makes readings of it
(watch/monitors/quality.py).

Rules of the room:
- It is on the way of every request: a few additions to slots of the meter, nothing that grows with the answer.
- One score a request: the first element of the output that scores, its first of floating point, else its first of
  numbers. Rows of one request are not independent. Scores count as 1e9 at most, so that one cannot spoil the sums.
- An answer is empty when no number of that output is finite, or it has none, or when all its texts are empty.
- An answer repeats when its score is that of the answer before, to another request. Numbers that are no floating
  point repeat by nature, and are not counted so.
- Confidence is the largest probability of the first row: of columns that sum to 1, or p or 1 - p of a single one. An
  output that was ever outside [0, 1] has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from millstream.meter import Meter
from millstream.types import Array, TensorSpec

MOST: Final = 1e9
_FINE = [2.0 ** (step / 4) for step in range(-16, 1)]  # 1/16 to 1
_COARSE = [2.0 ** (step / 2) for step in range(-16, -8)] + [2.0 ** (step / 2) for step in range(1, 11)]
_WIDE = [64.0, 128.0, 256.0, 512.0, 1024.0]
_NEGATIVE = [2.0 ** (step / 2) for step in range(-6, 11)]
SCORES: Final = tuple(
    sorted({*(-edge for edge in (*_NEGATIVE, *_WIDE)), 0.0, 0.9, 0.95, 0.98, *_FINE, *_COARSE, *_WIDE})
)
"""Edges of the histogram of scores: fine where probabilities lie."""
CONFIDENCES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
TEXTS_MAX = 64  # texts of a tensor that are looked at; the others count as these do
COLUMNS_MAX = 1024
MARKED = 64  # elements of an input that tell its request from the one before
SHORT = 64
_NEAR = 1e-3


_Mark = tuple[str, tuple[int, ...], object]


class Quality:
    """The slots of one loaded version, by `labels`; who makes it has claimed them."""

    def __init__(
        self, meter: Meter, labels: dict[str, str], inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
    ) -> None:
        outputs = tuple(outputs)
        self._asked = frozenset(spec.name for spec in inputs if spec.datatype == "BYTES")
        self._texts = frozenset(spec.name for spec in outputs if spec.datatype == "BYTES")
        numbers = [spec for spec in outputs if spec.datatype not in ("BYTES", "BF16")]
        real = [spec for spec in numbers if spec.datatype.startswith("FP")]
        self._score = next((spec.name for spec in (*real, *numbers)), "")
        self._real = self._probable = bool(real)
        self._last, self._mark = float("nan"), list[_Mark]()
        self.answers = meter.counter("millstream_quality_answers_total", "Answers whose quality was looked at", labels)
        self._empty = meter.counter("millstream_quality_empty_total", "Answers that hold nothing", labels)
        self._repeats = meter.counter(
            "millstream_quality_repeats_total", "Answers with the score of the one before, to another request", labels
        )
        self._scores = meter.histogram("millstream_quality_score", "One score an answer", labels, SCORES)
        self._above = meter.counter("millstream_quality_score_above_total", "Sum of scores above 0", labels)
        self._below = meter.counter(
            "millstream_quality_score_below_total", "Sum of scores below 0, as positive", labels
        )
        self._squares = meter.counter("millstream_quality_score_squares_total", "Sum of squares of scores", labels)
        self._confidences = meter.histogram(
            "millstream_quality_confidence", "The largest probability of an answer", labels, CONFIDENCES
        )
        self._confidence_squares = meter.counter(
            "millstream_quality_confidence_squares_total", "Sum of squares of the largest probability", labels
        )
        self._given = meter.counter(
            "millstream_quality_output_size_total", "Elements of answers, of texts their bytes", labels
        )
        self._taken = meter.counter(
            "millstream_quality_input_size_total", "Elements of the requests answered, of texts their bytes", labels
        )

    def answered(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Count an answer as its caller gets it. Raises nothing: one that is not as its version declares is counted as
        given, and what cannot be told of it is left out."""
        self.answers.add()
        try:
            self._look(inputs, outputs)
        except Exception:  # a whole batch waits for this; who writes the answer says what is wrong with it
            return

    def _look(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        asked = _size(inputs, self._asked)
        self._taken.add(asked)
        self._given.add(_size(outputs, self._texts))
        array = outputs.get(self._score)
        empty = bool(self._texts) and not any(_some(outputs[name]) for name in self._texts if name in outputs)
        if array is not None and not array.size:
            empty = True
        elif array is not None:
            score = float(array.item(0))
            if score - score == 0.0:
                self._scored(score if -MOST < score < MOST else math.copysign(MOST, score), array)
                if self._real:
                    mark = _mark(inputs)
                    if score == self._last and mark != self._mark:
                        self._repeats.add()
                    self._last, self._mark = score, mark
            else:
                empty = empty or not np.isfinite(array).any()
        if empty:
            self._empty.add()

    def _scored(self, score: float, array: Array) -> None:
        self._scores.observe(score)
        if score > 0.0:
            self._above.add(score)
        elif score < 0.0:
            self._below.add(-score)
        self._squares.add(score * score)
        if self._probable:
            self._confident(score, array)

    def _confident(self, score: float, array: Array) -> None:
        columns = array.shape[1] if array.ndim == 2 else 1
        if array.ndim > 2 or columns > COLUMNS_MAX or not 0.0 <= score <= 1.0:
            self._probable = False
            return
        if columns == 1:
            confidence = score if score >= 0.5 else 1.0 - score
        else:
            low, confidence, total = _of(array[0])
            if low < 0.0 or abs(total - 1.0) > _NEAR:
                self._probable = False
                return
        if confidence - confidence == 0.0:
            self._confidences.observe(confidence)
            self._confidence_squares.add(confidence * confidence)


def _of(row: Array) -> tuple[float, float, float]:
    """The least, the largest, and the sum of all."""
    if row.size <= SHORT:  # quicker so
        cells = row.tolist()
        return min(cells), max(cells), sum(cells)
    numbers = cast("NDArray[np.float64]", row)
    return float(numbers.min()), float(numbers.max()), float(numbers.sum())


def _size(arrays: Mapping[str, Array], texts: frozenset[str]) -> float:
    total = 0
    if not texts:
        for array in arrays.values():
            total += array.size
        return total
    return sum(_bytes(array) if name in texts else array.size for name, array in arrays.items())


def _bytes(texts: Array) -> float:
    cells = texts.ravel()[:TEXTS_MAX].tolist()
    return sum(map(len, cells)) * texts.size / len(cells) if cells else 0.0


def _some(texts: Array) -> bool:
    """Whether a text is not empty."""
    return any(texts.ravel()[:TEXTS_MAX].tolist())


def _mark(arrays: Mapping[str, Array]) -> list[_Mark]:
    """What tells a request from others: of each input its shape and MARKED elements at most, evenly, of texts the end.
    Never the arrays themselves, which may be views of a whole body."""
    marks: list[_Mark] = []
    for name, array in arrays.items():
        flat = array.reshape(-1)
        some = flat[:: flat.size // MARKED + 1]
        marks.append((name, array.shape, [text[-SHORT:] for text in some] if array.dtype.hasobject else some.tobytes()))
    return marks
