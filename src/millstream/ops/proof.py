"""Whether a converted model answers as the one it was made from: both run on many rows, and every answer is compared.

Rules of the room:
- What the file is given is what the program is given too: rounding is the file's, never the sample's.
- A number may differ by the tolerance, relative, and a tenth of it, absolute, together; a label not at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.runtimes.onnx import Onnx
from millstream.types import DTYPES, Array, TensorSpec

SAMPLES = 256
"""Rows that are compared, at least: the person's own, which may lie right where a tree divides, and made-up ones."""


class Predicts(Protocol):
    """What is compared with: a Model."""

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs."""
        ...


def compared(
    source: Predicts, model: bytes, manifest: Manifest, example: Mapping[str, Array], tolerance: float
) -> tuple[float, float, float | None]:
    """(largest absolute difference, largest relative one, labels that agree); over the tolerance: Misconfigured."""
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "model.onnx"
        file.write_bytes(model)
        converted = Onnx(file)
    absolute = relative = 0.0
    same = labels = 0
    for rows in _samples(manifest.inputs, example):
        given = {spec.name: rows[spec.name].astype(DTYPES[spec.datatype]) for spec in converted.inputs}
        expected = source.predict({s.name: given[s.name].astype(DTYPES[s.datatype]) for s in manifest.inputs})
        got = converted.predict(given)
        for spec in manifest.outputs:
            one, other = expected[spec.name], got[spec.name]
            if one.shape != other.shape:
                raise errors.Misconfigured(
                    f"converted, {spec.name!r} is {list(other.shape)} where it was {list(one.shape)}; add it without "
                    "--to"
                )
            if one.dtype.kind != "f":
                same += int((_text(one) == _text(other)).sum())
                labels += one.size
                continue
            difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
            size = np.abs(one.astype(np.float64))
            absolute = max(absolute, float(difference.max(initial=0.0)))
            counts = size > tolerance / 10
            relative = max(relative, float((difference[counts] / size[counts]).max(initial=0.0)))
            over = difference > tolerance / 10 + tolerance * size
            if over.any() or np.isnan(difference).any():
                raise errors.Misconfigured(
                    f"converted, {spec.name!r} differs by up to {float(difference.max()):.3g}, over the tolerance of "
                    f"{tolerance:g} relative and {tolerance / 10:g} absolute, in {int(over.sum())} of {over.size} "
                    "numbers; nothing was written. Add it without --to, or allow more: --tolerance"
                )
    if same < labels:
        raise errors.Misconfigured(
            f"converted, {labels - same} of {labels} labels are others; nothing was written. Add it without --to"
        )
    return absolute, relative, same / labels if labels else None


def _text(array: Array) -> Array:
    return array.astype(str) if array.dtype.kind in "OUS" else array


def _samples(specs: tuple[TensorSpec, ...], example: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """At least SAMPLES rows: the example's, and copies of them whose numbers are moved and whose texts are mixed."""
    random = np.random.default_rng(0)
    joins = all(spec.shape[:1] == (-1,) for spec in specs)
    rows = min((len(array) for array in example.values() if array.ndim), default=1)
    for call in range(1 if joins else -(-SAMPLES // max(rows, 1))):
        moved = {}
        for name, array in example.items():
            wide = np.resize(array, (max(SAMPLES, rows), *array.shape[1:])) if joins else array.copy()
            fresh = wide[rows:] if joins else wide if call else wide[:0]
            if array.dtype.kind == "f":
                floats = cast(NDArray[np.float64], fresh)
                spread = 0.1 + 0.5 * float(np.std(array.astype(np.float64)))
                fresh[...] = (floats + random.normal(scale=spread, size=fresh.shape)).astype(array.dtype)
            elif fresh.size:
                fresh[...] = random.permuted(fresh, axis=0)
            moved[name] = wide
        yield moved
