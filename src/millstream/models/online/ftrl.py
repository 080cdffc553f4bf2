"""FTRL-proximal: a logistic model over hashed tokens that learns row by row and is served while it learns.

Rules of the room, besides those of learner.py:
- A token's slot is its low `bits` bits; another token may have the same (table.py has no such collisions).
- Two tokens of a row that meet in one slot act as two coordinates in turn, as in Vowpal Wabbit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.online.correction import UNCORRECTED, Correction
from millstream.models.online.learner import (
    LOGIT_MAX,
    NO_FLOATS,
    Change,
    Floats,
    Metadata,
    Served,
    Tokens,
    asked,
    batch,
    bounded,
    wide,
)
from millstream.models.online.offline import Arrays, fitting, linear_state
from millstream.models.online.settings import BITS, LINEAR
from millstream.models.online.snapshot import opened, sealed
from millstream.native import f32, f64, given, i64, inner, kernel, record, u32
from millstream.store.blob import write_atomic
from millstream.types import Array

KIND: Final = "ftrl"

# One slot is 16 bytes and so never straddles a cache line. `mark` is the number of the delta it was last touched for.
SLOT: Final = np.dtype([("z", "<f4"), ("n", "<f4"), ("weight", "<f4"), ("mark", "<u4")])


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How FTRL-proximal learns. Out of bounds: Misconfigured."""

    alpha: Annotated[float, msgspec.Meta(description="rate of a coordinate: alpha / (beta + sqrt(n))")] = 0.2
    beta: Annotated[float, msgspec.Meta(description="see alpha; a larger one is slower at first")] = 1.0
    l1: Annotated[float, msgspec.Meta(description="L1 penalty: what it outweighs stays exactly 0")] = 0.1
    l2: Annotated[float, msgspec.Meta(description="L2 penalty")] = 1.0
    bits: Annotated[int, msgspec.Meta(description="log2 of the number of weights, 10 to 24")] = 20

    def __post_init__(self) -> None:
        bounded(KIND, self, {**LINEAR, "bits": BITS})


class ServedFtrl(Served):
    """A weight a slot: `weights` float32 [2**bits]."""

    def __init__(self, weights: Floats, width: int, correction: Correction = UNCORRECTED) -> None:
        if len(weights) & (len(weights) - 1) or not len(weights):
            raise errors.Misconfigured(f"ftrl: the number of weights must be a power of two, got {len(weights)}")
        super().__init__(width, correction)
        self.weights = weights

    @classmethod
    def load(cls, path: Path) -> ServedFtrl:
        """The weights of a snapshot that `Ftrl.save` wrote. Damaged file: Corrupt."""
        snapshot, slots, columns = _read(path)
        weights = np.zeros(1 << snapshot.settings.bits, np.float32)
        weights[slots] = columns["weight"]
        return cls(weights, snapshot.width, Correction.of(snapshot.metadata))

    def _answer(self, tokens: Tokens) -> Floats:
        return _answers(self.weights, tokens)

    def _set(self, slots: Tokens, weights: Floats, dense: Floats) -> None:
        if slots.ndim != 1 or slots.shape != weights.shape or len(dense):
            raise errors.BadInput(
                f"delta: {slots.shape} slots for {weights.shape} weights and {len(dense)} dense ones; send one weight "
                "a slot"
            )
        if len(slots) and (int(slots.min()) < 0 or int(slots.max()) >= len(self.weights)):
            raise errors.BadInput(f"delta: slot {int(slots.max())} is outside this model's {len(self.weights)} slots")
        self.weights[slots] = weights


class Ftrl:
    """The learner: H. B. McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1.

    State in float32, arithmetic in float64, no intercept (a constant column is one). 16 bytes a slot, plus 4 for the
    list of touched slots.
    """

    kind: ClassVar[str] = KIND

    def __init__(self, settings: Settings, width: int) -> None:
        self.settings, self.width = settings, wide(KIND, width)
        self._state: NDArray[np.void] = np.zeros(1 << settings.bits, SLOT)
        self._touched = np.empty(1 << settings.bits, np.uint32)
        self._pending = 0
        self._mark = 1

    def start(self, arrays: Arrays, squares: float, where: object = "start") -> None:
        """Begin from an offline model: `linear` [2**bits], whose weights count as having seen `squares` of gradients.
        Another size: Misconfigured."""
        weights = fitting(arrays, where, {"linear": self._state.shape})["linear"]
        s = self.settings
        self._state["z"], self._state["n"] = linear_state(weights, squares, s.alpha, s.beta, s.l1, s.l2)
        self._state["weight"] = weights

    def learn(self, tokens: Tokens, labels: Floats, weights: Floats | None = None) -> Floats:
        """As every learner."""
        tokens, labels, weights = batch(tokens, labels, weights, self.width)
        before = np.empty(len(tokens), np.float32)
        s = self.settings
        self._pending = _learn(
            self._state, tokens, labels, weights, s.alpha, s.beta, s.l1, s.l2, self._touched, self._pending,
            self._mark, before,
        )  # fmt: skip
        return before

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As every learner."""
        return {"probability": _answers(self._state["weight"], asked(inputs, self.width))}

    def delta(self) -> Change:
        """As every learner: one weight a slot, nothing dense."""
        slots = np.sort(self._touched[: self._pending])
        self._pending = 0
        self._mark += 1
        return Change(slots, self._state["weight"][slots], NO_FLOATS)

    def weights(self) -> Floats:
        """A copy of all weights: float32 [2**bits]."""
        return self._state["weight"].copy()

    def served(self, correction: Correction = UNCORRECTED) -> ServedFtrl:
        """A serving model with a copy of the weights of this moment."""
        return ServedFtrl(self.weights(), self.width, correction)

    def dump(self, metadata: Metadata | None = None) -> bytes:
        """As every learner. Slots never touched take no room."""
        state = self._state
        slots = np.flatnonzero((state["z"] != 0) | (state["n"] != 0)).astype("<u4")
        pending = np.sort(self._touched[: self._pending]).astype("<u4")
        header = _Snapshot(self.settings, self.width, len(slots), len(pending), dict(metadata or {}))
        return sealed(KIND, header, [slots, *(state[name][slots] for name in ("z", "n", "weight")), pending])

    def save(self, path: Path, metadata: Metadata | None = None) -> None:
        """As every learner."""
        write_atomic(path, self.dump(metadata))

    @classmethod
    def load(cls, path: Path, settings: Settings | None = None) -> tuple[Ftrl, dict[str, str | int | float]]:
        """(learner, metadata) of a snapshot, bit for bit as saved, or with other rates in `settings`. Damaged file:
        Corrupt."""
        snapshot, slots, columns = _read(path)
        learner = cls(settings or snapshot.settings, snapshot.width)
        for name in ("z", "n", "weight"):
            learner._state[name][slots] = columns[name]
        pending = columns["pending"]
        learner._touched[: len(pending)] = pending
        learner._state["mark"][pending] = learner._mark
        learner._pending = len(pending)
        return learner, snapshot.metadata


class _Snapshot(msgspec.Struct, frozen=True):
    """The header of a snapshot; behind it slots u32, z, n, weight f32 (one a slot), pending u32."""

    settings: Settings
    width: int
    slots: int
    pending: int
    metadata: dict[str, str | int | float]


def _read(path: Path) -> tuple[_Snapshot, Tokens, dict[str, Array]]:
    """(header, slots, z, n, weight and pending) of a snapshot file whose checksum holds."""
    snapshot, body = opened(path, KIND, _Snapshot)
    slots = body.take("<u4", snapshot.slots)
    columns = {name: body.take("<f4", snapshot.slots) for name in ("z", "n", "weight")}
    columns["pending"] = body.take("<u4", snapshot.pending)
    return snapshot, slots, columns  # type: ignore[return-value]


def _answers(weights: Floats, tokens: Tokens) -> Floats:
    probability = np.empty(len(tokens), np.float32)
    _predict(weights, tokens, probability)
    return probability


@inner
def _probability(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(logit, -LOGIT_MAX), LOGIT_MAX)))


@kernel((given(f32, layout="A"), given(u32, 2), f32[::1]))
def _predict(weights: Floats, tokens: Tokens, out: Floats) -> None:
    mask = np.uint32(len(weights) - 1)
    for row in range(tokens.shape[0]):
        logit = 0.0
        for token in tokens[row]:
            if token != 0:
                logit += weights[token & mask]
        out[row] = _probability(logit)


@kernel(
    i64(
        record(SLOT)[::1], given(u32, 2), given(f32), given(f32), f64, f64, f64, f64, u32[::1], i64, u32, f32[::1]
    )
)  # fmt: skip
def _learn(
    state: NDArray[np.void],
    tokens: Tokens,
    labels: Floats,
    weights: Floats,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
    touched: Tokens,
    pending: int,
    mark: int,
    out: Floats,
) -> int:
    """Fold the rows into `state`; returns how many slots `touched` now lists."""
    mask = np.uint32(len(state) - 1)
    for row in range(tokens.shape[0]):
        logit = 0.0
        for token in tokens[row]:
            if token != 0:
                logit += state[token & mask].weight
        probability = _probability(logit)
        out[row] = probability
        gradient = (probability - labels[row]) * weights[row]
        square = gradient * gradient
        for token in tokens[row]:
            if token == 0:
                continue
            slot = state[token & mask]
            before = math.sqrt(slot.n)
            slot.n = np.float32(slot.n + square)
            root = math.sqrt(slot.n)
            slot.z = np.float32(slot.z + gradient - (root - before) / alpha * slot.weight)
            beyond = abs(slot.z) - l1
            if beyond > 0:
                slot.weight = np.float32(math.copysign(beyond, -slot.z) / ((beta + root) / alpha + l2))
            else:
                slot.weight = np.float32(0.0)
            if slot.mark != mark:
                slot.mark = mark
                touched[pending] = token & mask
                pending += 1
    return pending
