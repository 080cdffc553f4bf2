"""What a version accepts, worked out once at load so that a request costs a few comparisons.

Rules of the room:
- A request is refused whole, before it waits, by a sentence that names the tensor, what was expected and what was got.
- `joins` says whether rows of different requests may share a call: every input and output must have free rows first.
- An input of one row beside others of many belongs to all of their rows.
- Non-finite numbers are looked for once a batch, in `finite`; on failure the worker finds out whose they are.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import cast

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from millstream.errors import BadInput
from millstream.models.manifest import Length
from millstream.types import DTYPES, Array, Request, TensorSpec

Kind = tuple[object, ...]
"""What must be equal for two requests to share a call: the number of their length's bucket (0 without buckets), then
their other sizes after the rows."""

_DATATYPES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
_DOT_MAX = 4096  # elements; above, BLAS may start threads of its own


class Check:
    """The inputs and outputs of one version, as callers see them. `free`: some dimension after the rows is free, so
    only requests that are alike there may join, or, with `length`, those of one bucket."""

    def __init__(
        self,
        label: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        refuse_non_finite: bool,
        length: Length | None = None,
    ) -> None:
        self._label, self._inputs, self._length = label, inputs, length
        self._outputs = frozenset(spec.name for spec in outputs)
        self.joins = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
        self.free = self.joins and any(-1 in spec.shape[1:] for spec in inputs)
        self._fast = [(s.name, DTYPES[s.datatype], len(s.shape), s.shape[1:]) for s in inputs]
        self._exact = self.joins and not self.free
        self._floats = [s.name for s in inputs if s.datatype.startswith("FP")] if refuse_non_finite else []
        self._given = [s.name for s in outputs if s.datatype.startswith("FP")] if refuse_non_finite else []

    def __call__(self, request: Request) -> Kind:
        """Refuse with BadInput, or give what must be equal for two requests to join (empty when nothing is free)."""
        inputs, rows = request.inputs, request.rows
        if len(inputs) != len(self._fast):
            raise self._names(request)
        if self._exact:
            for name, dtype, rank, tail in self._fast:
                array = inputs.get(name)
                if array is None:
                    raise self._names(request)
                shape = array.shape
                if array.dtype != dtype or len(shape) != rank or shape[0] not in (rows, 1) or shape[1:] != tail:
                    raise self._wrong(request)
        elif any(not self._fits(spec, request) for spec in self._inputs):
            raise self._wrong(request)
        if rows < 1:
            raise BadInput(f"{self._label}: the request has {rows} rows; send at least one")
        if request.outputs and not self._outputs.issuperset(request.outputs):
            unknown = [name for name in request.outputs if name not in self._outputs]
            raise BadInput(f"{self._label} has no output {unknown[0]!r}; it has: {', '.join(sorted(self._outputs))}")
        if not self.free:
            return ()
        length = self._length
        if length is None:
            return (0, *(inputs[spec.name].shape[1:] for spec in self._inputs))
        bucket, axis = self._bucket(length, request), length.axis
        sizes = ((spec.name, inputs[spec.name].shape) for spec in self._inputs)
        return (
            bucket,
            *(shape[1:axis] + shape[axis + 1 :] if name in length.of else shape[1:] for name, shape in sizes),
        )

    def _bucket(self, length: Length, request: Request) -> int:
        """The number of the shortest bucket that holds the request's length, which its inputs must agree on."""
        first, axis = length.of[0], length.axis
        size = request.inputs[first].shape[axis]
        for name in length.of[1:]:
            if request.inputs[name].shape[axis] != size:
                raise BadInput(
                    f"{self._label}: input {name!r} has length {request.inputs[name].shape[axis]}, {first!r} has "
                    f"{size}; they must agree in dimension {axis}"
                )
        if not 1 <= size <= length.buckets[-1]:
            raise BadInput(
                f"{self._label}: input {first!r} has length {size} in dimension {axis}, 1 to {length.buckets[-1]} are "
                "taken; split it"
            )
        return bisect_left(length.buckets, size)

    def finite(self, inputs: dict[str, Array]) -> str:
        """The name of an input that holds NaN or infinity, or "" when none does (or this version takes them)."""
        for name in self._floats:
            if not _finite(inputs[name]):
                return name
        return ""

    def nan(self, outputs: dict[str, Array]) -> str:
        """The name of an output that holds NaN, or "" when none does (or this version takes and gives them). Infinity
        may be meant: the logarithm of nothing."""
        for name in self._given:
            array = outputs[name]
            if not _finite(array) and np.isnan(cast(NDArray[np.float64], array)).any():
                return name
        return ""

    def _fits(self, spec: TensorSpec, request: Request) -> bool:
        array = request.inputs.get(spec.name)
        if array is None:
            raise self._names(request)
        shape = array.shape
        return (
            array.dtype == DTYPES[spec.datatype]
            and len(shape) == len(spec.shape)
            and all(size in (-1, got) for size, got in zip(spec.shape, shape, strict=True))
            and (not self.joins or shape[0] in (request.rows, 1))
        )

    def _names(self, request: Request) -> BadInput:
        expected = {spec.name for spec in self._inputs}
        got = set(request.inputs)
        parts = [f"input {name!r} is missing" for name in sorted(expected - got)]
        parts += [f"input {name[:80]!r} is not known" for name in sorted(got - expected)[:5]]
        return BadInput(f"{self._label}: {', '.join(parts)}; it takes: {', '.join(sorted(expected))}")

    def _wrong(self, request: Request) -> BadInput:
        spec = next(spec for spec in self._inputs if not self._fits(spec, request))
        array = request.inputs[spec.name]
        got = f"{_DATATYPES.get(array.dtype, array.dtype)} {list(array.shape)}"
        rows = [request.rows if self.joins and len(spec.shape) else size for size in spec.shape[:1]]
        shape = [*rows, *spec.shape[1:]]
        note = f" in a request of {request.rows} rows" if self.joins else ""
        return BadInput(
            f"{self._label}: input {spec.name!r} expected {spec.datatype} {shape}, got {got}{note}"
            f"{' (-1: any size)' if -1 in shape else ''}"
        )


def fitted(request: Request, specs: Sequence[TensorSpec]) -> Request:
    """A request as a version with these inputs takes it: spare ones that it does not have are left out, wider ones cut
    to their last columns. What cannot be made to fit stays, and is refused as anybody's."""
    if request.leeway is None:
        return request
    inputs, taken = dict(request.inputs), {spec.name: spec.shape for spec in specs}
    for name in request.leeway.spare:
        array, shape = inputs.get(name), taken.get(name)
        if array is None:
            continue
        if shape is None:
            del inputs[name]
        elif len(shape) == array.ndim == 2 and 0 < shape[1] < array.shape[1]:
            inputs[name] = np.ascontiguousarray(array[:, -shape[1] :])
    return replace(request, inputs=inputs)


def _finite(array: Array) -> bool:
    """Whether no element is NaN or infinite. A dot product with itself tells for less than half the price of a
    reduction; where that overflows, look at every element."""
    numbers = cast(NDArray[np.float64], array)  # of any width; vdot has no signature for that
    if array.size <= _DOT_MAX and array.dtype.itemsize > 2 and math.isfinite(np.vdot(numbers, numbers)):
        return True
    return bool(np.isfinite(array).all())
