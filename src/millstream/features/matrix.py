"""A set's matrix, of what is kept of its entities: ratios, transforms and crosses are computed when they are read.

Rules of the room:
- Whatever the matrix's datatype, a column has the bits that its feature's datatype gives it: the next feature that is
  computed of it, serving and training frames all see those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.features.define import Aggregate, Cross, Ratio, Transform
from millstream.features.plan import Values, singles
from millstream.features.sets import FeatureSet


class Columns:
    """Makes a set's matrix of its aggregates' values: what is computed when it is read."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self._at: dict[str, tuple[str, int, int]] = {}
        for entity in features.entities:
            at = 0
            for one in features.aggregates:
                if one.of == entity:
                    self._at[one.name] = entity, at, one.width
                    at += one.width
        made = [one for one in features.ordered if isinstance(one, Transform)]
        self.request = tuple(dict.fromkeys(name for one in made for name in one.request))
        self._datatype = np.float32 if features.datatype == "FP32" else np.float64
        # What rows hold is rounded already, but for what moves with time: that is computed when it is read, too.
        self._round = {one.name for one in features.ordered if one.datatype == "FP32" and _computed(one)}
        plain = all(self._is_kept(one.name) or self._is_rate(one) for one in features.features)
        self._plain = self._taken() if plain else None
        self._rates = self._divided() if plain and any(isinstance(one, Ratio) for one in features.features) else None

    def _is_kept(self, name: str) -> bool:
        """Whether a feature is a column of the values as they are."""
        return name in self._at and name not in self._round

    def _is_rate(self, one: Any) -> bool:
        """Whether it is a ratio as most are: rounded, and of what is kept."""
        return isinstance(one, Ratio) and one.name in self._round and all(map(self._is_kept, one.inputs))

    def _taken(self) -> list[tuple[str, slice | NDArray[np.int64], slice | NDArray[np.int64]]]:
        """Where the matrix is columns of values and rates: (kind of entity, its columns there, and here)."""
        found: dict[str, tuple[list[int], list[int]]] = {entity: ([], []) for entity in self.features.entities}
        here = 0
        for one in self.features.features:
            if isinstance(one, Aggregate):
                entity, at, width = self._at[one.name]
                found[entity][0].extend(range(at, at + width))
                found[entity][1].extend(range(here, here + width))
            here += one.width
        return [(entity, _span(there), _span(here)) for entity, (there, here) in found.items() if there]

    def _divided(self) -> tuple[NDArray[np.int64], NDArray[np.float64], slice | NDArray[np.int64]]:
        """The rates, all at once: over and under as columns of the values of all entities side by side [2, rates],
        their priors [2, rates], and the rates' columns in the matrix."""
        firsts, first = {}, 0
        for entity in self.features.entities:
            firsts[entity] = first
            first += sum(one.width for one in self.features.aggregates if one.of == entity)
        made = [(at, one) for at, one in zip(self._starts(), self.features.features, strict=True) if type(one) is Ratio]
        parts = [[self._at[name] for name in (one.over, one.under)] for _, one in made]
        columns = np.array([[firsts[entity] + at for entity, at, _ in pair] for pair in parts], np.int64).T
        return columns, np.array([one.prior for _, one in made], np.float64).T, _span([at for at, _ in made])

    def _starts(self) -> list[int]:
        """The first column of each feature."""
        widths = [one.width for one in self.features.features]
        return [sum(widths[:at]) for at in range(len(widths))]

    def make(self, values: Mapping[str, Values], request: Mapping[str, Any], n: int) -> NDArray[Any]:
        """[n, columns] of `values` [n, values] by kind of entity."""
        out = np.empty((n, len(self.features.columns)), self._datatype)
        if self._plain is not None:
            for entity, there, here in self._plain:
                out[:, here] = values[entity][:, there]
            if self._rates is not None:
                (over, under), (more, below), here = self._rates
                every = np.concatenate([values[entity] for entity in self.features.entities], axis=1)
                out[:, here] = singles(_ratio(every[:, over] + more, every[:, under] + below))
            return out
        done: dict[str, NDArray[Any]] = {}
        for one in self.features.ordered:
            if isinstance(one, Aggregate):
                entity, at, width = self._at[one.name]
                done[one.name] = values[entity][:, at : at + width]
            else:
                done[one.name] = self._made(one, done, request, n)
            if one.name in self._round:
                done[one.name] = singles(done[one.name]).astype(np.float64)
        at = 0
        for one in self.features.features:
            out[:, at : at + one.width] = done[one.name]
            at += one.width
        return out

    def _made(self, one: Any, done: Mapping[str, NDArray[Any]], request: Mapping[str, Any], n: int) -> NDArray[Any]:
        if isinstance(one, Ratio):
            return _ratio(done[one.over] + one.prior[0], done[one.under] + one.prior[1])
        tokens = {name: self.features.by_name[name].datatype == "UINT32" for name in one.inputs}
        if isinstance(one, Cross):
            missing = [done[name] == 0 if tokens[name] else np.isnan(done[name]) for name in one.inputs]
            return crossed(done[one.left], done[one.right], missing[0] | missing[1])
        given = {name: done[name][:, 0].astype(np.uint32) if tokens[name] else done[name][:, 0] for name in one.inputs}
        given |= {name: np.broadcast_to(np.asarray(request[name]), n) for name in one.request}
        try:
            made = np.asarray(one.function(given), np.float64)
        except Exception as error:
            raise errors.Error(f"feature {one.name} failed: {type(error).__name__}: {error}") from error
        if made.shape != (n,):
            raise errors.Error(f"feature {one.name}: its function gave {list(made.shape)} values for {n} rows")
        return made[:, None]


def _computed(one: Any) -> bool:
    return not isinstance(one, Aggregate) or one.op in ("since", "decay")


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    """Missing where it would be divided by 0."""
    found: NDArray[np.float64] = np.divide(over, under, out=np.full(over.shape, np.nan), where=under != 0)
    return found


def _span(columns: list[int]) -> slice | NDArray[np.int64]:
    """Column numbers as what picks them quickest."""
    if columns == list(range(columns[0], columns[0] + len(columns))):
        return slice(columns[0], columns[0] + len(columns))
    return np.array(columns, np.int64)


def crossed(left: NDArray[Any], right: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The tokens of pairs [n, 1]: a mix of both as float64 (SplitMix64, Steele et al. 2014), 0 where `missing`."""
    bits = [(np.nan_to_num(side).astype(np.float64) + 0.0).view(np.uint64) for side in (left, right)]
    mixed = bits[0] * np.uint64(0x9E3779B97F4A7C15) + bits[1]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where(missing, 0.0, np.maximum((mixed >> np.uint64(32)).astype(np.float64), 1.0))
