"""What every kind of online learner shares: the rows it takes, the change it gives, and its serving side.

Rules of the room:
- Two objects a kind: one learns and belongs to the learning process; a `Served` holds weights that are private to one
  serving process and change only through `apply`. They meet through a `Change` and through snapshot files.
- The state is a pure function of settings and the rows in order: folding in pieces, or saving and loading between two
  pieces, gives the same bits as folding in one go (on one machine; `exp` comes from its C library).
- A row is `width` uint32 tokens; 0 is an empty place. No row's answer depends on its neighbours.
- Nothing that is not finite enters: labels, weights and changes are checked whole before the first number changes.
- A learner gives raw probabilities; what is served is corrected (correction.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.online.correction import UNCORRECTED, Correction
from millstream.types import Array, TensorSpec

Tokens = NDArray[np.uint32]
Floats = NDArray[np.float32]
Metadata = Mapping[str, str | int | float]

WEIGHT_MAX: Final = 1e6  # keeps the float32 sum of squared gradients finite for any log that fits a disk
VALUE_MAX: Final = 1e6  # of a factor or a dense weight: the largest model answers a finite number then
LOGIT_MAX: Final = 35.0
NO_FLOATS: Final = np.empty(0, np.float32)
NO_DOUBLES: Final = np.empty(0, np.float64)


class Change(NamedTuple):
    """What learning touched since the last one, as absolute values: applying it twice is harmless.

    `slots` uint32 [n], ascending; `weights` float32 [n] or [n, k], as many to a slot as the kind has; `dense` float32
    [m]: all weights that belong to no slot.
    """

    slots: Tokens
    weights: Floats
    dense: Floats

    def values(self) -> Floats:
        """Every number of it, float32 [n * k + m]: what a gate looks at."""
        return np.concatenate((self.weights.ravel(), self.dense))


class OnlineLearner(Protocol):
    """A model that learns row by row."""

    @property
    def kind(self) -> str:
        """The first word of its snapshots, and the format of a version that holds one."""
        ...

    @property
    def settings(self) -> msgspec.Struct:
        """How it learns."""
        ...

    @property
    def width(self) -> int:
        """Tokens of a row."""
        ...

    def learn(self, tokens: Tokens, labels: Floats, weights: Floats | None = None) -> Floats:
        """Learn `tokens` [n, width] with `labels` [n] in [0, 1] and `weights` [n] in [0, 1e6], in order.

        Returns each row's raw probability just before it was learnt (progressive validation). On lists shown together
        that flatters: judge those by the score that was served. BadInput before anything is learnt.
        """
        ...

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`tokens` to raw `probability`, with the weights of this moment. Else BadInput."""
        ...

    def delta(self) -> Change:
        """What learning touched since the last call. Applying every one in turn to a copy of the starting weights
        gives the learner's own exactly."""
        ...

    def served(self, correction: Correction = UNCORRECTED) -> Served:
        """A serving model with a copy of the weights of this moment."""
        ...

    def dump(self, metadata: Metadata | None = None) -> bytes:
        """The whole state with the caller's `metadata` (the position in the log that it contains, say), checksummed.
        What was touched and no delta has carried yet stays pending."""
        ...

    def save(self, path: Path, metadata: Metadata | None = None) -> None:
        """Write `dump` to `path` atomically. The same file is a servable model. No room: Full."""
        ...


class Served(ABC):
    """What a serving process holds. A Model (tokens UINT32 [-1, width] to corrected probability FP32 [-1]) that also
    takes changes. Not thread-safe: apply between predicts."""

    def __init__(self, width: int, correction: Correction) -> None:
        self.width, self.correction = width, correction
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("tokens", "UINT32", (-1, width)),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("probability", "FP32", (-1,)),)

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`tokens` to `probability`, rows alone: a row's answer does not depend on its neighbours. Else BadInput."""
        return {"probability": self.correction.apply(self._answer(asked(inputs, self.width)))}

    def raw(self, tokens: Tokens) -> Floats:
        """What `correction` is applied to: probabilities [n] of `tokens` [n, width]. Else BadInput."""
        return self._answer(checked(tokens, self.width))

    def apply(
        self,
        slots: Tokens,
        weights: Floats,
        dense: Floats = NO_FLOATS,
        calibration: NDArray[np.float64] = NO_DOUBLES,
    ) -> None:
        """Set what a Change holds (`weights`: flat or a row a slot) and, where `calibration` has its two numbers, slope
        and intercept. All or nothing: BadInput before anything changes."""
        correction = self.correction.calibrated(calibration)
        for name, values in (("weight", weights), ("dense weight", dense)):
            if not np.isfinite(values).all():
                raise errors.BadInput(f"delta: a {name} is not finite; nothing was applied, the model still serves")
        self._set(slots, weights, dense)
        self.correction = correction

    @abstractmethod
    def _answer(self, tokens: Tokens) -> Floats:
        """Raw probabilities of checked tokens."""

    @abstractmethod
    def _set(self, slots: Tokens, weights: Floats, dense: Floats) -> None:
        """Set them, all of which are finite, or BadInput before anything changes."""


def asked(inputs: Mapping[str, Array], width: int) -> Tokens:
    """The tokens of a request, checked."""
    if set(inputs) != {"tokens"}:
        raise errors.BadInput(f"an online learner takes the one input 'tokens', got {sorted(inputs)}")
    return checked(inputs["tokens"], width)


def checked(tokens: Array, width: int) -> Tokens:
    """`tokens` as an aligned C array, or BadInput."""
    if tokens.dtype != np.uint32 or tokens.ndim != 2 or tokens.shape[1] != width:
        raise errors.BadInput(f"tokens: expected uint32 [rows, {width}], got {tokens.dtype} {list(tokens.shape)}")
    return np.require(tokens, np.uint32, ["C", "A"])


def column(name: str, values: Array, rows: int, high: float) -> Floats:
    """One finite number a row in [0, high], as float32, or BadInput naming the first that is not."""
    if values.shape != (rows,):
        raise errors.BadInput(f"{name}s: expected one a row, [{rows}], got {list(values.shape)}")
    numbers = np.require(values, np.float32, ["C", "A"])
    good = (numbers >= 0) & (numbers <= high)  # false for NaN
    if not good.all():
        row = int(np.argmin(good))
        raise errors.BadInput(f"{name} of row {row} is {values[row]}; it must lie in [0, {high:g}]")
    return numbers


def batch(tokens: Array, labels: Array, weights: Array | None, width: int) -> tuple[Tokens, Floats, Floats]:
    """(tokens, labels, weights) of rows to learn, checked whole; weights left out are 1."""
    tokens = checked(tokens, width)
    labels = column("label", labels, len(tokens), 1.0)
    if weights is None:
        return tokens, labels, np.ones(len(tokens), np.float32)
    return tokens, labels, column("weight", weights, len(tokens), WEIGHT_MAX)


def bounded(kind: str, settings: Any, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Misconfigured where a setting lies outside its bounds; NaN lies outside of any."""
    for name, (low, high) in bounds.items():
        if not low <= (value := getattr(settings, name)) <= high:
            raise refused(kind, name, value, f"it must lie between {low:g} and {high:g}")


def refused(kind: str, name: str, value: object, why: str) -> errors.Misconfigured:
    """What to raise for a setting."""
    return errors.Misconfigured(f"{kind}: {name} is {value}; {why}")


def wide(kind: str, width: int) -> int:
    """`width`, or Misconfigured: a row has at least one token."""
    if width < 1:
        raise errors.Misconfigured(f"{kind}: a row needs at least one token, got width {width}")
    return width
