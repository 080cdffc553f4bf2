"""Where everything that is remembered of an entity lies: definitions turned into numbers for the kernels.

Rules of the room:
- A *base* is what one op needs to remember: a ring of tiles (one a hop, `lifetime` is one tile for ever), or a short
  list of entries. Aggregates that need the same share it: a mean takes what a sum has.
- An entity's state is one row in each of three arrays: `floats` (float64), `counts` (uint32) and `registers` (uint8).
- A *stored* value is what is kept of an aggregate for readers. It is its value, but for `since` and `decay`, whose
  values move with time: what is stored of them is turned into the value as of the time of reading (`finish`).
- A row packs the stored values: first what takes 8 bytes, then FP32, then UINT32, padded to 8 bytes. What is beyond its
  datatype is missing.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream.features.define import Aggregate, Source, span
from millstream.features.events import Events, Times, keys_of, token_of
from millstream.features.sets import FeatureSet
from millstream.features.where import select

Values = NDArray[np.float64]

COUNT, SUM, VAR, MIN, MAX, LATEST, DISTINCT, TOP, HLL, QUANTILE, DECAY = range(11)
BASES: Final = {
    "count": COUNT, "sum": SUM, "mean": SUM, "var": VAR, "std": VAR, "min": MIN, "max": MAX, "last": LATEST,
    "last_n": LATEST, "since": LATEST, "distinct_n": DISTINCT, "top_k": TOP, "approx_distinct": HLL,
    "quantile": QUANTILE, "decay": DECAY,
}  # fmt: skip
OPS: Final = {op: number for number, op in enumerate(BASES)}
TILE: Final = {COUNT: 1, SUM: 2, VAR: 3, MIN: 1, MAX: 1}  # floats a tile
RINGS: Final = frozenset((*TILE, TOP, HLL, QUANTILE))
TOP_ROOM: Final = 8  # entries kept for each value that is asked for
REGISTERS: Final = 256
ALPHA: Final = 0.025  # a quantile's relative error
GAMMA: Final = (1 + ALPHA) / (1 - ALPHA)
SMALLEST: Final = 1e-4
BINS: Final = 462  # of one sign: from SMALLEST to 1e6
NEVER: Final = -(2.0**52)
# Columns of the table of bases, and of the table of outputs.
KIND, COLUMN, MASK, HOP, TILES, FLOATS, COUNTS, BYTES, ENTRIES, HALF, LATEST_TILE = range(11)
OP, BASE, WINDOW, AT, N, QUANTILE_AT, TOKEN = range(7)


def singles(values: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as FP32; what that does not hold is missing."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    beyond = np.isinf(found)
    if beyond.any():
        found[beyond] = np.nan
    return found


class Plan:
    """What the states of one kind of entity hold. `bases` int64 [b, 11], `outputs` int64 [aggregates, 7]; `width`:
    stored values; `bytes`: of a packed row."""

    def __init__(self, features: FeatureSet, entity: str) -> None:
        self.aggregates = tuple(one for one in features.aggregates if one.of == entity)
        self.floats = self.counts = self.registers = 0
        self._feeds: dict[tuple[str, str], _Feed] = {}
        found: dict[tuple[object, ...], int] = {}
        bases: list[list[int]] = []
        outputs: list[list[int]] = []
        quantiles: list[float] = []
        at = 0
        for one in self.aggregates:
            kind, feed = BASES[one.op], self._feed(one)
            column, mask = feed.column(one.column), feed.mask(one)
            half = span(one.half_life) if one.half_life else 0
            entries = one.n * TOP_ROOM if kind == TOP else one.n
            shared = (one.source.name, one.key, kind, column, mask, one.hop, one.span, half, entries)
            if shared not in found:
                found[shared] = len(bases)
                bases.append(self._base(one, kind, column, mask, half, entries))
            outputs.append([OPS[one.op], found[shared], one.span, at, one.n, len(quantiles), int(one.tokens)])
            quantiles.append(one.q)
            feed.uses.add(found[shared])
            at += 2 if one.op == "decay" else one.n
        self._place_latest(bases)
        self.bases = np.array(bases, np.int64).reshape(-1, 11)
        self.outputs = np.array(outputs, np.int64).reshape(-1, 7)
        self.quantiles = np.array(quantiles, np.float64)
        self.width = at
        self.blank = self._blank()
        self._lay_out()

    def _feed(self, one: Aggregate) -> _Feed:
        return self._feeds.setdefault((one.source.name, one.key), _Feed(one.source, one.key))

    def _base(self, one: Aggregate, kind: int, column: int, mask: int, half: int, entries: int) -> list[int]:
        tiles = one.span // one.hop + 1 if one.hop else 1
        row = [kind, column, mask, one.hop, tiles, self.floats, self.counts, self.registers, entries, half, -1]
        if kind in TILE:
            self.floats += tiles * TILE[kind]
        elif kind in (LATEST, DISTINCT):
            self.floats += 2 * entries
        elif kind == TOP:
            self.floats += entries
            self.counts += entries * tiles
        elif kind == HLL:
            self.registers += REGISTERS * tiles
        elif kind == QUANTILE:
            self.counts += (2 * BINS + 1) * tiles
        else:
            self.floats += 3  # the sum, when it is of, and how many events
        return row

    def _place_latest(self, bases: list[list[int]]) -> None:
        """The number of each ring's latest tile comes first in a row, beside those of the others: every event looks at
        all of them, and memory is read by the line."""
        rings = [base for base in bases if base[KIND] in RINGS]
        for base in bases:
            base[FLOATS] += len(rings)
        for at, base in enumerate(rings):
            base[LATEST_TILE] = at
        self.floats += len(rings)

    def _blank(self) -> Values:
        """The floats of an entity that had no event."""
        floats = np.zeros(self.floats, np.float64)
        for kind, _, _, _, tiles, at, _, _, entries, _, latest in self.bases.tolist():
            if latest >= 0:
                floats[latest] = NEVER
            if kind in (LATEST, DISTINCT):
                floats[at : at + 2 * entries : 2] = NEVER
            elif kind == TOP:
                floats[at : at + entries] = np.nan
            elif kind in (MIN, MAX):
                floats[at : at + tiles] = np.inf if kind == MIN else -np.inf
        return floats

    def _lay_out(self) -> None:
        sizes: list[str] = []
        for one in self.aggregates:
            eight = one.datatype == "FP64" or one.op in ("since", "decay")
            width = 2 if one.op == "decay" else one.n
            sizes += ["FP64" if eight else one.datatype] * width
        order = [at for size in ("FP64", "FP32", "UINT32") for at, said in enumerate(sizes) if said == size]
        self._order = np.array(order, np.int64)
        self._eights, self._fours = sizes.count("FP64"), sizes.count("FP32")
        used = 8 * self._eights + 4 * (len(sizes) - self._eights)
        self.bytes = used + used % 8
        tokens = [one.tokens for one in self.aggregates for _ in range(2 if one.op == "decay" else one.n)]
        self._is_token = np.array(tokens, np.bool_)
        # What of the stored values the value is made of, and what is missing where there is no row.
        self._plain = all(one.op not in ("since", "decay") for one in self.aggregates)
        # A count of nothing is 0, everything else of nothing is missing.
        nothing = [0.0 if one.op in ("count", "approx_distinct") or one.tokens else np.nan for one in self.aggregates]
        self.nothing = np.repeat(np.array(nothing), [one.n for one in self.aggregates])
        self.nothing_stored = np.repeat(
            np.array(nothing), [2 if one.op == "decay" else one.n for one in self.aggregates]
        )

    def totals(self) -> NDArray[np.int64]:
        """Scratch for a reading; see tiles.py."""
        return np.zeros(max(1, int(self.bases[:, ENTRIES].max(initial=0))), np.int64)

    @property
    def state_bytes(self) -> int:
        """What an entity takes in the memory of whoever keeps the state, without its name."""
        return 8 * self.floats + 4 * self.counts + self.registers

    def feeds(self, source: str) -> list[_Feed]:
        """How the events of a source are taken: once for each of its columns that names such an entity."""
        return [feed for (name, _), feed in self._feeds.items() if name == source]

    def pack(self, stored: Values) -> NDArray[np.uint8]:
        """Rows uint8 [n, bytes] of stored values [n, width]."""
        rows = np.zeros((len(stored), self.bytes), np.uint8)
        eights, fours = self._eights, self._fours
        ordered = stored[:, self._order]
        rows.view(np.float64)[:, :eights] = ordered[:, :eights]
        at = 2 * eights
        rows.view(np.float32)[:, at : at + fours] = singles(ordered[:, eights : eights + fours])
        tokens = len(self._order) - eights - fours
        rows.view(np.uint32)[:, at + fours : at + fours + tokens] = ordered[:, eights + fours :]
        return rows

    def unpack(self, rows: NDArray[np.uint8]) -> Values:
        """Stored values float64 [n, width] of rows uint8 [n, bytes]."""
        eights, fours = self._eights, self._fours
        if fours == self.width:  # of one size they lie in their order
            return rows.view(np.float32)[:, :fours].astype(np.float64)
        stored = np.empty((len(rows), self.width), np.float64)
        stored[:, self._order[:eights]] = rows.view(np.float64)[:, :eights]
        at, tokens = 2 * eights, self.width - eights - fours
        stored[:, self._order[eights : eights + fours]] = rows.view(np.float32)[:, at : at + fours]
        if tokens:
            stored[:, self._order[eights + fours :]] = rows.view(np.uint32)[:, at + fours : at + fours + tokens]
        return stored

    def rounded(self, stored: Values) -> Values:
        """Stored values as rows give them back. What is computed of them must not depend on whether a row was there."""
        return self.unpack(self.pack(stored))

    def finish(self, stored: Values, at: int | Times) -> Values:
        """Values [n, values] as of `at` (microseconds, or int64 [n]): one a plain aggregate, n a list, in the
        aggregates' order."""
        if self._plain:
            return stored
        columns: list[Values] = []
        moment = np.reshape(at, (-1, 1))
        for one, (_, _, _, place, n, _, _) in zip(self.aggregates, self.outputs.tolist(), strict=True):
            if one.op == "since":
                columns.append((moment - stored[:, place : place + 1]) / 1e6)
            elif one.op == "decay":
                age = (moment - stored[:, place + 1 : place + 2]) / span(one.half_life)
                columns.append(stored[:, place : place + 1] * np.exp2(-age))
            else:
                columns.append(stored[:, place : place + n])
        return np.concatenate(columns, axis=1)


class _Feed:
    """What of a source's events the states of an entity take: their key, columns, and the conditions on them."""

    def __init__(self, source: Source, key: str) -> None:
        self.source, self.key = source, key
        self.uses: set[int] = set()
        self._columns: list[str] = []
        self._masks: list[Aggregate] = []
        self._by_condition: dict[str, int] = {}

    def column(self, name: str) -> int:
        """The number of a column among those that are taken; -1 for none."""
        if not name:
            return -1
        if name not in self._columns:
            self._columns.append(name)
        return self._columns.index(name)

    def mask(self, one: Aggregate) -> int:
        """The number of an aggregate's condition; -1 where it has none."""
        if one.condition is None:
            return -1
        if one.where not in self._by_condition:
            self._by_condition[one.where] = len(self._masks)
            self._masks.append(one)
        return self._by_condition[one.where]

    def values(self, events: Events) -> Values:
        """float64 [n, columns]; tokens as numbers, NaN where missing."""
        out = np.empty((len(events), max(1, len(self._columns))), np.float64)
        for at, name in enumerate(self._columns):
            if name in events.numbers:
                out[:, at] = events.numbers[name]
            else:
                tokens = token_of(events.texts[name])
                out[:, at] = np.where(tokens == 0, np.nan, tokens)
        return out

    def masks(self, events: Events) -> NDArray[np.uint8]:
        """uint8 [n, conditions]: which events each selects."""
        out = np.ones((len(events), max(1, len(self._masks))), np.uint8)
        for at, one in enumerate(self._masks):
            assert one.condition is not None
            out[:, at] = select(one.condition, events.numbers, events.texts, _hashed)
        return out


def _hashed(text: str) -> int:
    return int(keys_of((text,))[0])
