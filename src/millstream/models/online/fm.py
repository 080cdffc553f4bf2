"""A factorisation machine that learns row by row; DeepFM (deepfm.py) is the same with layers on top.

Rules of the room, besides those of learner.py and of the arithmetic (factors.py):
- A token's slot is its low `bits` bits. A slot that nothing was learnt of has small factors computed from its number,
  the same in the learner and in every server, so only slots that were touched travel and are kept.
- Every change carries all of the dense part, as every row moves all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.online import factors
from millstream.models.online.correction import UNCORRECTED, Correction
from millstream.models.online.learner import (
    NO_FLOATS,
    VALUE_MAX,
    Change,
    Floats,
    Metadata,
    Served,
    Tokens,
    asked,
    batch,
    wide,
)
from millstream.models.online.offline import Arrays, fitting, fm_shapes, linear_state
from millstream.models.online.settings import DeepFmSettings, FmSettings
from millstream.models.online.snapshot import Body, opened, sealed
from millstream.store.blob import write_atomic
from millstream.types import Array

KIND: Final = "fm"


class Shape(msgspec.Struct, frozen=True):
    """Sizes that its arrays agree on: `hidden` units of each layer, none of a plain factorisation machine."""

    width: int
    bits: int
    factors: int
    hidden: tuple[int, ...] = ()

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Inputs of the layers and units of each, [1] where there are none."""
        last = (1,) if self.hidden else ()
        return np.array([self.width * self.factors, *self.hidden, *last], np.int64)

    @property
    def dense(self) -> int:
        """How many weights belong to no slot."""
        sizes = self.sizes
        return 1 + int((sizes[:-1] * sizes[1:] + sizes[1:]).sum())

    def room(self) -> tuple[Floats, NDArray[np.float64], Floats]:
        """Where a kernel works: factors by place, their sums, what every unit puts out."""
        sizes = self.sizes
        return np.zeros(int(sizes[0]), np.float32), np.zeros(self.factors), np.zeros(int(sizes[1:].sum()), np.float32)


class ServedFm(Served):
    """`values` float32 [2**bits, 1 + factors], a weight and factors a slot; `dense` float32 [m]."""

    kind: ClassVar[str] = KIND
    settings: ClassVar[type[FmSettings]] = FmSettings

    def __init__(self, shape: Shape, values: Floats, dense: Floats, correction: Correction = UNCORRECTED) -> None:
        super().__init__(shape.width, correction)
        self.shape, self.values, self.dense = shape, values, dense
        self._sizes = shape.sizes

    @classmethod
    def load(cls, path: Path) -> Self:
        """What a snapshot of this kind serves. Damaged file: Corrupt."""
        snapshot, body = opened(path, cls.kind, _snapshot(cls.settings))
        shape = shape_of(snapshot.settings, snapshot.width)
        values = _begun(shape, snapshot.settings.scale, 1 + shape.factors)
        slots, state, _, dense, _ = _arrays(body, snapshot, shape)
        values[slots] = state[:, : 1 + shape.factors]
        return cls(shape, values, dense.copy(), Correction.of(snapshot.metadata))

    def _answer(self, tokens: Tokens) -> Floats:
        return _answers(self.shape, self.values, self.dense, self._sizes, tokens)

    def _set(self, slots: Tokens, weights: Floats, dense: Floats) -> None:
        count = self.values.shape[1]
        if slots.ndim != 1 or weights.size != len(slots) * count or len(dense) not in (0, len(self.dense)):
            raise errors.BadInput(
                f"delta: {weights.size} weights of {slots.size} slots and {len(dense)} dense ones; this model has "
                f"{count} to a slot and {len(self.dense)} dense"
            )
        if len(slots) and int(slots.max()) >= len(self.values):
            raise errors.BadInput(f"delta: slot {int(slots.max())} is outside this model's {len(self.values)} slots")
        largest = max(float(np.abs(weights).max(initial=0.0)), float(np.abs(dense).max(initial=0.0)))
        if largest > VALUE_MAX:
            raise errors.BadInput(f"delta: a weight of {largest:g} is beyond {VALUE_MAX:g}; nothing was applied")
        self.values[slots] = weights.reshape(len(slots), count)
        if len(dense):
            self.dense[:] = dense


class Fm:
    """The learner. A slot takes 4 x (4 + 2 x factors) bytes, and 4 for the list of touched slots."""

    kind: ClassVar[str] = KIND
    serves: ClassVar[type[ServedFm]] = ServedFm

    def __init__(self, settings: FmSettings, width: int) -> None:
        self.settings, self.width = settings, wide(self.kind, width)
        self.shape = shape = shape_of(settings, width)
        self._sizes = shape.sizes
        self._state = _begun(shape, settings.scale, 3 + 2 * shape.factors)
        self._marks = np.zeros(len(self._state), np.uint32)
        self._touched = np.empty(len(self._state), np.uint32)
        self._pending, self._mark = 0, 1
        self._dense = np.zeros(shape.dense, np.float32)
        self._squares = np.zeros(shape.dense, np.float32)
        self._moved = False
        factors.begin_layers(self._dense, self._sizes)
        self._how = np.array(_how(settings))

    def start(self, arrays: Arrays, squares: float, where: object = "start") -> None:
        """Begin from an offline model (offline.py), whose weights count as having seen `squares` of gradients. Without
        layers, the last one begins at zero: the answer is that of the rest. Another size: Misconfigured."""
        s, k = self.settings, self.shape.factors
        fitting(arrays, where, fm_shapes(s, self._sizes), optional="layer")
        state = self._state
        state[:, 0], state[:, 1 : 1 + k] = arrays["linear"], arrays["factors"]
        state[:, 1 + k], state[:, 2 + k] = linear_state(arrays["linear"], squares, s.alpha, s.beta, s.l1, s.l2)
        state[:, 3 + k :] = squares
        parts = [arrays["bias"]]
        for layer in range(len(self._sizes) - 1):
            if (name := f"layer{layer}.weight") in arrays:
                parts += [arrays[name].T.ravel(), arrays[f"layer{layer}.bias"]]
        if len(parts) > 1:
            self._dense[:] = np.concatenate(parts)
        else:
            self._dense[0] = parts[0][0]
            if len(self._sizes) > 1:
                self._dense[-1 - int(self._sizes[-2]) :] = 0
        self._squares[:] = squares

    def learn(self, tokens: Tokens, labels: Floats, weights: Floats | None = None) -> Floats:
        """As every learner."""
        tokens, labels, weights = batch(tokens, labels, weights, self.width)
        before = np.empty(len(tokens), np.float32)
        places, sums, units = self.shape.room()
        self._pending = factors.learn(
            self._state, self._marks, tokens, labels, weights, self._how, self.shape.factors, self._dense,
            self._squares, self._sizes, places, sums, units, np.zeros_like(units), np.zeros_like(places),
            self._touched, self._pending, self._mark, before,
        )  # fmt: skip
        self._moved = self._moved or len(tokens) > 0
        return before

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As every learner."""
        tokens = asked(inputs, self.width)
        return {"probability": _answers(self.shape, self._state, self._dense, self._sizes, tokens)}

    def delta(self) -> Change:
        """As every learner: weight and factors of a slot, and all of the dense part once anything was learnt."""
        slots = np.sort(self._touched[: self._pending])
        dense = self._dense.copy() if self._moved else NO_FLOATS
        self._pending, self._moved = 0, False
        self._mark += 1
        return Change(slots, self._state[slots, : 1 + self.shape.factors], dense)

    def served(self, correction: Correction = UNCORRECTED) -> ServedFm:
        """A serving model with a copy of the weights of this moment."""
        values = self._state[:, : 1 + self.shape.factors].copy()
        return self.serves(self.shape, values, self._dense.copy(), correction)

    def dump(self, metadata: Metadata | None = None) -> bytes:
        """As every learner. Slots that are as they began take no room."""
        begun = _begun(self.shape, self.settings.scale, self._state.shape[1])
        slots = np.flatnonzero((self._state != begun).any(axis=1)).astype("<u4")
        pending = np.sort(self._touched[: self._pending])
        header = _snapshot(type(self.settings))(
            self.settings, self.width, len(slots), len(pending), dict(metadata or {}), self._moved
        )
        return sealed(self.kind, header, [slots, self._state[slots], pending, self._dense, self._squares])

    def save(self, path: Path, metadata: Metadata | None = None) -> None:
        """As every learner."""
        write_atomic(path, self.dump(metadata))

    @classmethod
    def load(cls, path: Path, settings: FmSettings | None = None) -> tuple[Self, dict[str, str | int | float]]:
        """(learner, metadata) of a snapshot, bit for bit as saved, or with other rates in `settings`. Damaged file:
        Corrupt."""
        snapshot, body = opened(path, cls.kind, _snapshot(cls.serves.settings))
        learner = cls(settings or snapshot.settings, snapshot.width)
        slots, state, pending, learner._dense[:], learner._squares[:] = _arrays(body, snapshot, learner.shape)
        learner._state[slots] = state
        learner._touched[: len(pending)] = pending
        learner._marks[pending] = learner._mark
        learner._pending, learner._moved = len(pending), snapshot.moved
        return learner, snapshot.metadata


class _Snapshot(msgspec.Struct, frozen=True):
    """The header of a snapshot but for its settings; behind it slots u32, their rows of state f32, pending u32, dense
    and its squared gradients f32. `moved`: dense weights that no delta has carried yet."""

    settings: Any
    width: int
    slots: int
    pending: int
    metadata: dict[str, str | int | float]
    moved: bool


class _FmSnapshot(_Snapshot, frozen=True):
    settings: FmSettings


class _DeepFmSnapshot(_Snapshot, frozen=True):
    settings: DeepFmSettings


def _snapshot(settings: type[FmSettings]) -> type[_Snapshot]:
    return _DeepFmSnapshot if settings is DeepFmSettings else _FmSnapshot


def _arrays(body: Body, snapshot: _Snapshot, shape: Shape) -> tuple[Any, ...]:
    """Slots, their rows of state, pending, dense, squares."""
    columns = 3 + 2 * shape.factors
    slots = body.take("<u4", snapshot.slots)
    state = body.take("<f4", snapshot.slots * columns).reshape(snapshot.slots, columns)
    return (
        slots,
        state,
        body.take("<u4", snapshot.pending),
        body.take("<f4", shape.dense),
        body.take("<f4", shape.dense),
    )


def shape_of(settings: FmSettings, width: int) -> Shape:
    """The sizes of a model's arrays."""
    return Shape(width, settings.bits, settings.factors, getattr(settings, "hidden", ()))


def _how(s: FmSettings) -> list[float]:
    return [s.alpha, s.beta, s.l1, s.l2, s.rate, s.ease, s.decay, getattr(s, "dense_rate", s.rate)]


def _begun(shape: Shape, scale: float, columns: int) -> Floats:
    """Rows of slots that nothing was learnt of."""
    state = np.zeros((1 << shape.bits, columns), np.float32)
    factors.begin_factors(state, scale, shape.factors)
    return state


def _answers(shape: Shape, values: Floats, dense: Floats, sizes: NDArray[np.int64], tokens: Tokens) -> Floats:
    probability = np.empty(len(tokens), np.float32)
    factors.predict(values, tokens, shape.factors, dense, sizes, *shape.room(), probability)
    return probability
