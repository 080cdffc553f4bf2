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
        plain = all(isinstance(one, Aggregate) and one.name not in self._round for one in features.features)
        self._plain = self._taken() if plain else None

    def _taken(self) -> list[tuple[str, slice | NDArray[np.int64], slice | NDArray[np.int64]]]:
        """Where the matrix is columns of values and nothing else: (kind of entity, its columns there, and here)."""
        found: dict[str, tuple[list[int], list[int]]] = {entity: ([], []) for entity in self.features.entities}
        here = 0
        for one in self.features.features:
            entity, at, width = self._at[one.name]
            found[entity][0].extend(range(at, at + width))
            found[entity][1].extend(range(here, here + width))
            here += width
        return [(entity, _span(there), _span(here)) for entity, (there, here) in found.items() if there]

    def make(self, values: Mapping[str, Values], request: Mapping[str, Any], n: int) -> NDArray[Any]:
        """[n, columns] of `values` [n, values] by kind of entity."""
        out = np.empty((n, len(self.features.columns)), self._datatype)
        if self._plain is not None:
            for entity, there, here in self._plain:
                out[:, here] = values[entity][:, there]
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
            over, under = done[one.over] + one.prior[0], done[one.under] + one.prior[1]
            ratio: NDArray[np.float64] = np.divide(over, under, out=np.full((n, 1), np.nan), where=under != 0)
            return ratio
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
