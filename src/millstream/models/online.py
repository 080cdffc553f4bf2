"""FTRL-proximal: a logistic model over hashed tokens that learns row by row and is served while it learns.

Rules of the room:
- Two objects: `Ftrl` learns and belongs to the learning process; `ServedFtrl` holds float32 weights that are private to
  one serving process and change only through `apply`. They meet through `delta` and through snapshot files.
- The state is a pure function of settings and the rows in order: folding in pieces, or saving and loading between two
  pieces, gives the same bits as folding in one go (on one machine; `exp` comes from its C library).
- A row is `width` uint32 tokens; 0 is an empty place; a token's slot is its low `bits` bits. Two tokens of a row that
  meet in one slot act as two coordinates in turn, as in Vowpal Wabbit.
- Nothing that is not finite enters: labels, weights and deltas are checked whole before the first number changes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.native import f32, f64, given, i64, inner, kernel, record, u32
from millstream.store.blob import write_atomic
from millstream.types import Array, TensorSpec

Tokens = NDArray[np.uint32]
Floats = NDArray[np.float32]

BITS: Final = (10, 24)
WEIGHT_MAX: Final = 1e6  # keeps the float32 sum of squared gradients finite for any log that fits a disk
LOGIT_MAX: Final = 35.0
VERSION: Final = 1
MAGIC: Final = b"millstream ftrl %d\n" % VERSION

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
        bounds = {"alpha": (1e-6, 100.0), "beta": (1e-6, 1e6), "l1": (0.0, 1e6), "l2": (0.0, 1e6), "bits": BITS}
        for name, (low, high) in bounds.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise errors.Misconfigured(f"ftrl: {name} is {value}; it must lie between {low:g} and {high:g}")


class ServedFtrl:
    """What a serving process holds: a weight a slot. A Model (tokens UINT32 [-1, width] to probability FP32 [-1]) that
    also takes deltas. Not thread-safe: apply between predicts."""

    def __init__(self, weights: Floats, width: int) -> None:
        if len(weights) & (len(weights) - 1) or not len(weights):
            raise errors.Misconfigured(f"ftrl: the number of weights must be a power of two, got {len(weights)}")
        self.weights = weights
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("tokens", "UINT32", (-1, width)),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("probability", "FP32", (-1,)),)

    @classmethod
    def load(cls, path: Path) -> ServedFtrl:
        """The weights of a snapshot that `Ftrl.save` wrote. Damaged file: Corrupt."""
        snapshot, slots, columns = _read(path)
        weights = np.zeros(1 << snapshot.settings.bits, np.float32)
        weights[slots] = columns["weight"]
        return cls(weights, snapshot.width)

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`tokens` to `probability`, rows alone: a row's answer does not depend on its neighbours. Else BadInput."""
        if set(inputs) != {"tokens"}:
            raise errors.BadInput(f"ftrl: expected the one input 'tokens', got {sorted(inputs)}")
        tokens = _checked(inputs["tokens"], self.inputs[0].shape[1])
        probability = np.empty(len(tokens), np.float32)
        _predict(self.weights, tokens, probability)
        return {"probability": probability}

    def apply(self, slots: Tokens, weights: Floats) -> None:
        """Set weights (absolute values, so twice is harmless). All or nothing: BadInput before anything changes."""
        if slots.shape != weights.shape or slots.ndim != 1:
            raise errors.BadInput(f"delta: {slots.shape} slots for {weights.shape} weights; send one weight a slot")
        if len(slots) and (int(slots.min()) < 0 or int(slots.max()) >= len(self.weights)):
            raise errors.BadInput(f"delta: slot {int(slots.max())} is outside this model's {len(self.weights)} slots")
        if not np.isfinite(weights).all():
            raise errors.BadInput("delta: a weight is not finite; nothing was applied, the model still serves")
        self.weights[slots] = weights


class Ftrl:
    """The learner: H. B. McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1.

    State in float32, arithmetic in float64, no intercept (a constant column is one). 16 bytes a slot, plus 4 for the
    list of touched slots.
    """

    def __init__(self, settings: Settings, width: int) -> None:
        if width < 1:
            raise errors.Misconfigured(f"ftrl: a row needs at least one token, got width {width}")
        self.settings, self.width = settings, width
        self._state: NDArray[np.void] = np.zeros(1 << settings.bits, SLOT)
        self._touched = np.empty(1 << settings.bits, np.uint32)
        self._pending = 0
        self._mark = 1

    def learn(self, tokens: Tokens, labels: Floats, weights: Floats | None = None) -> Floats:
        """Learn `tokens` [n, width] with `labels` [n] in [0, 1] and `weights` [n] in [0, 1e6], in order.

        Returns each row's probability just before it was learnt (progressive validation). On lists shown together
        that flatters: judge those by the score that was served. BadInput before anything is learnt.
        """
        tokens = _checked(tokens, self.width)
        labels = _column("label", labels, len(tokens), 1.0)
        if weights is None:
            weights = np.ones(len(tokens), np.float32)
        else:
            weights = _column("weight", weights, len(tokens), WEIGHT_MAX)
        before = np.empty(len(tokens), np.float32)
        s = self.settings
        self._pending = _learn(
            self._state, tokens, labels, weights, s.alpha, s.beta, s.l1, s.l2, self._touched, self._pending,
            self._mark, before,
        )  # fmt: skip
        return before

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `ServedFtrl.predict`, with the weights of this moment."""
        return ServedFtrl(self._state["weight"], self.width).predict(inputs)

    def delta(self) -> tuple[Tokens, Floats]:
        """(slots, weights) that learning touched since the last call, slots ascending. Applying every delta in turn to
        a copy of the starting weights gives `weights()` exactly."""
        slots = np.sort(self._touched[: self._pending])
        self._pending = 0
        self._mark += 1
        return slots, self._state["weight"][slots]

    def weights(self) -> Floats:
        """A copy of all weights: float32 [2**bits]."""
        return self._state["weight"].copy()

    def served(self) -> ServedFtrl:
        """A serving model with a copy of the weights of this moment."""
        return ServedFtrl(self.weights(), self.width)

    def dump(self, metadata: Mapping[str, str | int | float] | None = None) -> bytes:
        """The whole state with the caller's `metadata` (the position in the log that it contains, say), checksummed.
        Slots never touched take no room; touched slots that no delta has carried yet stay pending."""
        state = self._state
        slots = np.flatnonzero((state["z"] != 0) | (state["n"] != 0)).astype("<u4")
        pending = np.sort(self._touched[: self._pending]).astype("<u4")
        header = msgspec.json.encode(
            _Snapshot(self.settings, self.width, len(slots), len(pending), dict(metadata or {}))
        )
        parts = [MAGIC, len(header).to_bytes(4, "little"), header, slots.tobytes()]
        parts += [state[name][slots].tobytes() for name in ("z", "n", "weight")]
        body = b"".join([*parts, pending.tobytes()])
        return body + hashlib.sha256(body).digest()

    def save(self, path: Path, metadata: Mapping[str, str | int | float] | None = None) -> None:
        """Write `dump` to `path` atomically. The same file is a servable model (`ServedFtrl.load`). No room: Full."""
        write_atomic(path, self.dump(metadata))

    @classmethod
    def load(cls, path: Path) -> tuple[Ftrl, dict[str, str | int | float]]:
        """(learner, metadata) of a snapshot, bit for bit as saved. Damaged file: Corrupt."""
        snapshot, slots, columns = _read(path)
        learner = cls(snapshot.settings, snapshot.width)
        for name in ("z", "n", "weight"):
            learner._state[name][slots] = columns[name]
        pending = columns["pending"]
        learner._touched[: len(pending)] = pending
        learner._state["mark"][pending] = learner._mark
        learner._pending = len(pending)
        return learner, snapshot.metadata


class _Snapshot(msgspec.Struct, frozen=True):
    """The header of a snapshot file: MAGIC, u32 length, this as JSON, slots u32, z, n, weight f32 (one a slot), pending
    u32, SHA-256 of all before; little-endian."""

    settings: Settings
    width: int
    slots: int
    pending: int
    metadata: dict[str, str | int | float]


def _read(path: Path) -> tuple[_Snapshot, Tokens, dict[str, Array]]:
    """(header, slots, z, n, weight and pending) of a snapshot file whose checksum holds."""
    data = path.read_bytes()
    body, seal = data[:-32], data[-32:]
    if not body.startswith(MAGIC):
        if later := re.match(rb"millstream ftrl (\d+)\n", body):
            raise errors.Later(path, int(later[1]), VERSION)
        raise errors.Corrupt(f"{path}: not an FTRL snapshot (it begins {data[:16]!r})")
    if hashlib.sha256(body).digest() != seal:
        raise errors.Corrupt(f"{path}: the checksum does not match; restore the file or take an older snapshot")
    at = len(MAGIC) + 4
    length = int.from_bytes(body[at - 4 : at], "little")
    snapshot = msgspec.json.decode(body[at : at + length], type=_Snapshot)
    at += length
    n = snapshot.slots
    slots = np.frombuffer(body, "<u4", n, at)
    columns: dict[str, Array] = {
        name: np.frombuffer(body, "<f4", n, at + 4 * n * i) for i, name in enumerate(("z", "n", "weight"), 1)
    }
    columns["pending"] = np.frombuffer(body, "<u4", snapshot.pending, at + 16 * n)
    return snapshot, slots, columns


def _checked(tokens: Array, width: int) -> Tokens:
    """`tokens` as an aligned C array, or BadInput."""
    if tokens.dtype != np.uint32 or tokens.ndim != 2 or tokens.shape[1] != width:
        raise errors.BadInput(f"tokens: expected uint32 [rows, {width}], got {tokens.dtype} {list(tokens.shape)}")
    return np.require(tokens, np.uint32, ["C", "A"])


def _column(name: str, values: Array, rows: int, high: float) -> Floats:
    """One finite number a row in [0, high], as float32, or BadInput naming the first that is not."""
    if values.shape != (rows,):
        raise errors.BadInput(f"{name}s: expected one a row, [{rows}], got {list(values.shape)}")
    numbers = np.require(values, np.float32, ["C", "A"])
    good = (numbers >= 0) & (numbers <= high)  # false for NaN
    if not good.all():
        row = int(np.argmin(good))
        raise errors.BadInput(f"{name} of row {row} is {values[row]}; it must lie in [0, {high:g}]")
    return numbers


def warm() -> None:
    """Run every kernel once on nothing much: after this, neither a request nor a first example waits for one."""
    learner = Ftrl(Settings(bits=BITS[0]), 1)
    learner.learn(np.ones((1, 1), np.uint32), np.ones(1, np.float32))
    learner.served().predict({"tokens": np.ones((1, 1), np.uint32)})


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
