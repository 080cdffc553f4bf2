"""Inputs of several requests -> one call of the model, and its outputs back to each of them.

Rules of the room:
- A batch of one is handed to the model as it came and back as it is: no copy, unless one of its inputs has one row for
  all the others' (and the model does not say that it takes it so) or wants its lengths beside it.
- Padding never comes back: what a request's rows are longer by than it sent is cut off.
- Pure functions of arrays: nothing here knows of queues or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from millstream import errors
from millstream.models.manifest import Length
from millstream.types import DTYPES, Array, Request, TensorSpec


def check_length(label: str, length: Length, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Refuse a [batching.length] that does not fit its model: Misconfigured."""
    there = {spec.name: spec for spec in inputs}
    for name in length.of:
        spec = there.get(name)
        if spec is None:
            raise errors.Misconfigured(f"{label}: [batching.length] names no input {name!r}; there are {list(there)}")
        if len(spec.shape) <= length.axis or spec.shape[length.axis] != -1:
            raise errors.Misconfigured(
                f"{label}: input {name!r} is {spec.datatype} {list(spec.shape)}, its dimension {length.axis} must be "
                "free (-1) to have a length; correct `axis`"
            )
    filled = there.get(length.lengths)
    if length.lengths and (filled is None or filled.datatype not in ("INT32", "INT64") or len(filled.shape) != 1):
        raise errors.Misconfigured(
            f"{label}: {length.lengths!r} is to be filled with the lengths: it must be an INT64 or INT32 input [-1]"
        )
    for name in length.trim:
        if name not in {spec.name for spec in outputs if len(spec.shape) > length.axis}:
            raise errors.Misconfigured(f"{label}: `trim` names no output {name!r} with a dimension {length.axis}")


class Item(Protocol):
    """Whatever holds a request."""

    request: Request


class Join:
    """How requests of one version become a call. `specs`: the inputs that the model takes, the filled one included;
    `once`: those that it takes as one row for all."""

    def __init__(
        self, specs: Sequence[TensorSpec], length: Length | None, broadcasts: bool, once: Sequence[str] = ()
    ) -> None:
        self._length, self._broadcasts, self._once = length, broadcasts, frozenset(once)
        self._dtypes = {spec.name: DTYPES[spec.datatype] for spec in specs}

    def alone(self, request: Request) -> dict[str, Array]:
        """The inputs of one request."""
        inputs = request.inputs
        rows = request.rows
        if self._broadcasts and rows > 1:
            few = [name for name, array in inputs.items() if len(array) != rows and name not in self._once]
            if few:
                inputs = inputs | {name: np.ascontiguousarray(_spread(inputs[name], rows)) for name in few}
        if self._length is not None and self._length.lengths:
            sizes = np.full(rows, self.size(request), self._dtypes[self._length.lengths])
            inputs = {**inputs, self._length.lengths: sizes}
        return inputs

    def together(self, items: Sequence[Item]) -> tuple[dict[str, Array], float]:
        """The inputs of several requests as one, and the share of their elements that is padding."""
        first = items[0].request.inputs
        if self._length is not None:
            return self._padded(items, self._length)
        rows = sum([item.request.rows for item in items])
        joined = {name: np.concatenate([item.request.inputs[name] for item in items]) for name in first}
        for name, array in joined.items():
            if len(array) != rows:
                joined[name] = np.concatenate([_spread(i.request.inputs[name], i.request.rows) for i in items])
        return joined, 0.0

    def apart(self, outputs: dict[str, Array], items: Sequence[Item]) -> list[dict[str, Array]]:
        """Each item's rows as views of the joined outputs."""
        results: list[dict[str, Array]] = []
        at = 0
        if len(outputs) == 1 and self._length is None:
            ((name, array),) = outputs.items()
            for item in items:
                end = at + item.request.rows
                results.append({name: array[at:end]})
                at = end
            return results
        for item in items:
            end = at + item.request.rows
            rows = {name: array[at:end] for name, array in outputs.items()}
            results.append(rows if self._length is None else self._trimmed(rows, item.request, self._length))
            at = end
        return results

    def size(self, request: Request) -> int:
        """The length of a request's rows."""
        assert self._length is not None
        return int(request.inputs[self._length.of[0]].shape[self._length.axis])

    def _padded(self, items: Sequence[Item], length: Length) -> tuple[dict[str, Array], float]:
        sizes = [self.size(item.request) for item in items]
        counts = [item.request.rows for item in items]
        longest, rows = max(sizes), sum(counts)
        joined: dict[str, Array] = {}
        for name, array in items[0].request.inputs.items():
            if name not in length.of or min(sizes) == longest:
                joined[name] = np.concatenate([_spread(i.request.inputs[name], i.request.rows) for i in items])
                continue
            shape = list(array.shape)
            shape[0], shape[length.axis] = rows, longest
            whole = joined[name] = np.full(shape, length.pad, array.dtype)
            at = 0
            for item, size in zip(items, sizes, strict=True):
                place = [slice(None)] * len(shape)
                place[0], place[length.axis] = slice(at, at + item.request.rows), slice(size)
                whole[tuple(place)] = item.request.inputs[name]  # one row spreads over all of the request's
                at += item.request.rows
        if length.lengths:
            joined[length.lengths] = np.repeat(np.array(sizes, self._dtypes[length.lengths]), counts)
        used = sum(size * count for size, count in zip(sizes, counts, strict=True))
        return joined, 1.0 - used / (rows * longest)

    def _trimmed(self, rows: dict[str, Array], request: Request, length: Length) -> dict[str, Array]:
        size = self.size(request)
        for name in length.trim:
            if name in rows and rows[name].shape[length.axis] != size:
                place = [slice(None)] * rows[name].ndim
                place[length.axis] = slice(size)
                rows[name] = rows[name][tuple(place)]
        return rows


def _spread(array: Array, rows: int) -> Array:
    """An input of one row as one of `rows`."""
    return array if len(array) == rows else np.broadcast_to(array, (rows, *array.shape[1:]))
