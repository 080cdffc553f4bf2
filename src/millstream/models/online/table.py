"""FTRL-proximal over a table of tokens in place of hashed slots: no two tokens share a weight, rare ones get none, and
those that are not seen any more leave. After Monolith (Liu et al., ORSUM at RecSys 2022).

Rules of the room, besides those of learner.py:
- A token gets in by chance, once in `seen` rows that hold it: so after `seen` of them on average (Poisson inclusion,
  McMahan et al. 2013). Chance is a hash of the token and of the row's number: nothing is remembered of tokens that did
  not get in, and the fold stays a pure function of the rows.
- Age is counted in rows, not in time. A hand goes round the table once in `keep` rows; what it finds untouched for more
  than `keep` rows leaves. So a token leaves `keep` to 2 x `keep` rows after its last one.
- A table is full at 3/4 of its places. Then nobody gets in until somebody leaves; `turned_away` counts.
- A change carries tokens, not slots. Weight 0 means: not there, which answers the same. Servers hold what is not 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

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
    wide,
)
from millstream.models.online.settings import FtrlTableSettings
from millstream.models.online.snapshot import opened, sealed
from millstream.native import f32, f64, given, i64, inner, kernel, record, u32, void
from millstream.store.blob import write_atomic
from millstream.types import Array

KIND: Final = "ftrl_table"

# 32 bytes, two to a cache line. Token 0: an empty place. `last`: the row it was last in; `mark`: as in ftrl.py.
PLACE: Final = np.dtype(
    [("last", "<i8"), ("token", "<u4"), ("mark", "<u4"), ("z", "<f4"), ("n", "<f4"), ("weight", "<f4"), ("none", "<u4")]
)
HELD: Final = np.dtype([("token", "<u4"), ("weight", "<f4")])
_COLUMNS: Final = ("last", "token", "z", "n", "weight")
_NOW: Final = ("rows", "hand", "held", "turned_away", "removed")  # what a fold moves besides the places, in this order


class ServedFtrlTable(Served):
    """Tokens whose weight is not 0, in a table of 2**bits places."""

    def __init__(self, bits: int, width: int, correction: Correction = UNCORRECTED) -> None:
        super().__init__(width, correction)
        self._table: NDArray[np.void] = np.zeros(1 << bits, HELD)
        self._held = 0

    @classmethod
    def load(cls, path: Path) -> ServedFtrlTable:
        """The weights of a snapshot that `FtrlTable.save` wrote. Damaged file: Corrupt."""
        snapshot, columns = _read(path)
        served = cls(snapshot.settings.bits, snapshot.width, Correction.of(snapshot.metadata))
        order = np.argsort(columns["token"])
        tokens, weights = columns["token"].astype(np.uint32), columns["weight"].astype(np.float32)
        served._set(tokens[order], weights[order], NO_FLOATS)
        return served

    def weights(self) -> dict[int, float]:
        """Token to weight of all that are held. For people: it takes long."""
        there = self._table[self._table["token"] != 0]
        return dict(zip(there["token"].tolist(), there["weight"].tolist(), strict=True))

    def _answer(self, tokens: Tokens) -> Floats:
        probability = np.empty(len(tokens), np.float32)
        _predict(self._table, tokens, probability)
        return probability

    def _set(self, slots: Tokens, weights: Floats, dense: Floats) -> None:
        if slots.ndim != 1 or slots.shape != weights.shape or len(dense):
            raise errors.BadInput(
                f"delta: {slots.shape} tokens for {weights.shape} weights and {len(dense)} dense ones; send one weight "
                "a token"
            )
        if len(slots) and (slots[0] == 0 or not (slots[1:] > slots[:-1]).all()):
            raise errors.BadInput("delta: tokens must ascend, none twice and none 0; nothing was applied")
        held = _count(self._table, slots, weights, self._held)
        if held > _limit(len(self._table)):
            raise errors.BadInput(
                f"delta: {held} tokens in a table of {len(self._table)} places, 3/4 of which may be taken; nothing was "
                "applied"
            )
        _set(self._table, slots, weights)
        self._held = held


class FtrlTable:
    """The learner. 32 bytes a place; a delta looks at every place. `learn` makes room for the tokens that may leave
    meanwhile; those that have left since the last delta are kept, 4 bytes each."""

    kind: ClassVar[str] = KIND

    def __init__(self, settings: FtrlTableSettings, width: int) -> None:
        self.settings, self.width = settings, wide(KIND, width)
        self._table: NDArray[np.void] = np.zeros(1 << settings.bits, PLACE)
        self._now = np.zeros(len(_NOW), np.int64)
        self._mark = 1
        self._gone: list[Tokens] = []
        self._told = False  # somebody may hold tokens that leave from now on

    @property
    def held(self) -> int:
        """Tokens in the table."""
        return int(self._now[2])

    @property
    def turned_away(self) -> int:
        """How often a token was to get in, and the table was full."""
        return int(self._now[3])

    def learn(self, tokens: Tokens, labels: Floats, weights: Floats | None = None) -> Floats:
        """As every learner. A token that gets in learns from that row."""
        tokens, labels, weights = batch(tokens, labels, weights, self.width)
        before = np.empty(len(tokens), np.float32)
        s = self.settings
        how = np.array([s.alpha, s.beta, s.l1, s.l2])
        gone = np.empty((self.held + tokens.size) if s.keep else 0, np.uint32)
        self._now[4] = 0
        _learn(
            self._table, tokens, labels, weights, how, s.seen, s.keep, self._now, gone,
            np.empty(self.width, np.int64), self._mark, before,
        )  # fmt: skip
        if self._told and self._now[4]:
            self._gone.append(gone[: self._now[4]].copy())
        return before

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As every learner."""
        tokens = asked(inputs, self.width)
        probability = np.empty(len(tokens), np.float32)
        _predict_learner(self._table, tokens, probability)
        return {"probability": probability}

    def delta(self) -> Change:
        """As every learner: tokens in place of slots, those that have left with weight 0."""
        table = self._table[np.flatnonzero(self._table["mark"] == self._mark)]
        gone = np.setdiff1d(self._left(), table["token"])
        tokens = np.concatenate((table["token"], gone))
        weights = np.concatenate((table["weight"], np.zeros(len(gone), np.float32)))
        order = np.argsort(tokens)
        self._gone, self._told = [], True
        self._mark += 1
        return Change(tokens[order], weights[order], NO_FLOATS)

    def served(self, correction: Correction = UNCORRECTED) -> ServedFtrlTable:
        """As every learner."""
        served = ServedFtrlTable(self.settings.bits, self.width, correction)
        there = np.sort(self._table[self._table["weight"] != 0][["token", "weight"]], order="token")
        served._set(there["token"].copy(), there["weight"].copy(), NO_FLOATS)
        self._told = True
        return served

    def dump(self, metadata: Metadata | None = None) -> bytes:
        """As every learner. Empty places take no room. From now on a delta says who has left: it may be served."""
        self._told = True
        places = np.flatnonzero(self._table["token"]).astype("<u4")
        table = self._table[places]
        gone = self._left()
        header = _Snapshot(
            self.settings, self.width, len(places), len(gone), dict(metadata or {}), self._now[:4].tolist()
        )
        touched = (table["mark"] == self._mark).astype("u1")
        return sealed(KIND, header, [places, *(table[name].copy() for name in _COLUMNS), touched, gone])

    def save(self, path: Path, metadata: Metadata | None = None) -> None:
        """As every learner."""
        write_atomic(path, self.dump(metadata))

    @classmethod
    def load(
        cls, path: Path, settings: FtrlTableSettings | None = None
    ) -> tuple[FtrlTable, dict[str, str | int | float]]:
        """(learner, metadata) of a snapshot, bit for bit as saved, or with other rates in `settings`. Damaged file:
        Corrupt."""
        snapshot, columns = _read(path)
        learner = cls(settings or snapshot.settings, snapshot.width)
        places = columns["place"]
        for name in _COLUMNS:
            learner._table[name][places] = columns[name]
        learner._table["mark"][places] = columns["touched"] * learner._mark
        learner._now[:4] = snapshot.now
        learner._gone, learner._told = [columns["gone"].astype(np.uint32)], True
        return learner, snapshot.metadata

    def _left(self) -> Tokens:
        """Tokens that have left since the last delta, each once, ascending."""
        return np.unique(np.concatenate(self._gone)) if self._gone else np.empty(0, np.uint32)


class _Snapshot(msgspec.Struct, frozen=True):
    """The header of a snapshot; behind it place u32, then last i64, token u32, z, n, weight f32, touched u8 of each
    place that is taken, and tokens that left u32. `now`: rows, hand, held, turned away."""

    settings: FtrlTableSettings
    width: int
    places: int
    gone: int
    metadata: dict[str, str | int | float]
    now: list[int]


def _read(path: Path) -> tuple[_Snapshot, dict[str, Array]]:
    """(header, columns by name) of a snapshot file whose checksum holds."""
    snapshot, body = opened(path, KIND, _Snapshot)
    n = snapshot.places
    columns = {"place": body.take("<u4", n)}
    columns |= {name: body.take(PLACE[name].str, n) for name in _COLUMNS}
    return snapshot, columns | {"touched": body.take("u1", n), "gone": body.take("<u4", snapshot.gone)}


@inner
def _limit(places: int) -> int:
    return places // 4 * 3


@inner
def _home(token: int, places: int) -> int:
    """Where a token would lie if it were alone: Fibonacci hashing, Knuth 6.4."""
    mixed: int = np.int64((np.uint64(token) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32))  # type: ignore[assignment]
    return mixed & (places - 1)


@inner
def _find(table: NDArray[np.void], token: int) -> int:
    """Its place, or -1 - the place where it belongs. A table is never full, so there is an end."""
    mask = len(table) - 1
    at = _home(token, len(table))
    while table[at].token != 0:
        if table[at].token == token:
            return at
        at = (at + 1) & mask
    return -1 - at


@inner
def _vacated(table: NDArray[np.void], at: int) -> int:
    """The next place whose token may be moved to the empty `at`, or -1 (Knuth 6.4, algorithm R)."""
    mask = len(table) - 1
    other = at
    while True:
        other = (other + 1) & mask
        token = table[other].token
        if token == 0:
            return -1
        if ((other - _home(token, len(table))) & mask) >= ((other - at) & mask):
            return other


@inner
def _chance(token: int, row: int) -> int:
    """A hash of both: the last steps of SplitMix64."""
    z = np.uint64(token) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(row)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(1))  # type: ignore[return-value]


@inner
def _probability(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(logit, -LOGIT_MAX), LOGIT_MAX)))


@inner
def _answers(table: NDArray[np.void], tokens: Tokens, out: Floats) -> None:
    for row in range(tokens.shape[0]):
        logit = 0.0
        for token in tokens[row]:
            if token != 0:
                at = _find(table, token)
                if at >= 0:
                    logit += table[at].weight
        out[row] = _probability(logit)


@kernel(void(record(HELD)[::1], given(u32, 2), f32[::1]))
def _predict(table: NDArray[np.void], tokens: Tokens, out: Floats) -> None:
    _answers(table, tokens, out)


@kernel(void(record(PLACE)[::1], given(u32, 2), f32[::1]))
def _predict_learner(table: NDArray[np.void], tokens: Tokens, out: Floats) -> None:
    _answers(table, tokens, out)


@kernel(i64(record(HELD)[::1], given(u32), given(f32), i64))
def _count(table: NDArray[np.void], tokens: Tokens, weights: Floats, held: int) -> int:
    """How many would be held with these weights set."""
    for i in range(len(tokens)):
        there = _find(table, tokens[i]) >= 0
        if there and weights[i] == 0:
            held -= 1
        elif not there and weights[i] != 0:
            held += 1
    return held


@kernel(void(record(HELD)[::1], given(u32), given(f32)))
def _set(table: NDArray[np.void], tokens: Tokens, weights: Floats) -> None:
    """Set weights; those of 0 leave, and first, so that there is room."""
    for i in range(len(tokens)):
        at = _find(table, tokens[i])
        if at < 0 or weights[i] != 0:
            continue
        other = _vacated(table, at)
        while other >= 0:
            table[at].token, table[at].weight = table[other].token, table[other].weight
            at = other
            other = _vacated(table, at)
        table[at].token = np.uint32(0)
    for i in range(len(tokens)):
        if weights[i] != 0:
            at = _find(table, tokens[i])
            if at < 0:
                at = -1 - at
                table[at].token = tokens[i]
            table[at].weight = weights[i]


@inner
def _leave(table: NDArray[np.void], at: int) -> None:
    """Empty a place, and close the gap."""
    other = _vacated(table, at)
    while other >= 0:
        here, there = table[at], table[other]
        here.last, here.token, here.mark = there.last, there.token, there.mark
        here.z, here.n, here.weight = there.z, there.n, there.weight
        at = other
        other = _vacated(table, at)
    table[at].token = np.uint32(0)
    table[at].mark = np.uint32(0)
    table[at].weight = np.float32(0.0)


@kernel(
    void(
        record(PLACE)[::1], given(u32, 2), given(f32), given(f32), given(f64), i64, i64, i64[::1], u32[::1], i64[::1],
        u32, f32[::1],
    )
)  # fmt: skip
def _learn(
    table: NDArray[np.void],
    tokens: Tokens,
    labels: Floats,
    weights: Floats,
    how: NDArray[np.float64],
    seen: int,
    keep: int,
    now: NDArray[np.int64],
    gone: Tokens,
    found: NDArray[np.int64],
    mark: int,
    out: Floats,
) -> None:
    """Fold the rows into `table` and `now`; `gone` takes the tokens that leave."""
    alpha, beta, l1, l2 = how[0], how[1], how[2], how[3]
    places = len(table)
    steps = (places + keep - 1) // keep if keep > 0 else 0
    for row in range(tokens.shape[0]):
        number = now[0] + 1
        now[0] = number
        for _ in range(steps):
            at = now[1]
            while table[at].token != 0 and number - table[at].last > keep:
                gone[now[4]] = table[at].token
                now[4] += 1
                now[2] -= 1
                _leave(table, at)
            now[1] = (at + 1) & (places - 1)
        logit = 0.0
        for place in range(tokens.shape[1]):
            if tokens[row, place] != 0:
                found[place] = _find(table, tokens[row, place])
                if found[place] >= 0:
                    logit += table[found[place]].weight
        probability = _probability(logit)
        out[row] = probability
        gradient = (probability - labels[row]) * weights[row]
        square = gradient * gradient
        for place in range(tokens.shape[1]):
            token = tokens[row, place]
            if token == 0:
                continue
            at = found[place]
            if at < 0:
                at = _find(table, token)  # it may have got in by another place of this row, or its place was taken
            if at < 0:
                if _chance(token, number) % seen != 0:
                    continue
                if now[2] >= _limit(places):
                    now[3] += 1
                    continue
                at = -1 - at
                now[2] += 1
                table[at].token = token
                table[at].z, table[at].n = np.float32(0.0), np.float32(0.0)
                table[at].weight, table[at].mark = np.float32(0.0), np.uint32(0)
            slot = table[at]
            slot.last, slot.mark = number, mark
            before = math.sqrt(slot.n)
            slot.n = np.float32(slot.n + square)
            root = math.sqrt(slot.n)
            slot.z = np.float32(slot.z + gradient - (root - before) / alpha * slot.weight)
            beyond = abs(slot.z) - l1
            if beyond > 0:
                slot.weight = np.float32(math.copysign(beyond, -slot.z) / ((beta + root) / alpha + l2))
            else:
                slot.weight = np.float32(0.0)
