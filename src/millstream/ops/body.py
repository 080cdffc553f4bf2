"""Requests that a model takes, made from what is known of it: its example, or its inputs' datatypes and shapes.

Rules of the room:
- An example of the model.toml is what it says: its rows, as often as are asked for.
- Without one, values are guessed and the guess is said: noise for numbers, 0 and 1 for whole numbers (ids that every
  table has), a short word for text, `LENGTHS` for free dimensions behind the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np

from millstream.models.manifest import Manifest, example_arrays
from millstream.types import DTYPES, Array, TensorSpec

DISTINCT = 64
DISTINCT_BYTES_MAX = 32 << 20
LENGTHS = (16, 1)
WORD = "millstream"


class Bodies(NamedTuple):
    """Whole HTTP requests that take turns, how many rows each has, and a sentence on where the values come from."""

    requests: list[bytes]
    rows: int
    source: str


def candidates(model: str, inputs: tuple[TensorSpec, ...], manifest: Manifest, rows: int) -> Iterator[Bodies]:
    """Requests for the model, the likeliest first; a caller tries one of each and goes on with the first that works."""
    if manifest.example:
        arrays = example_arrays(manifest, inputs)
        repeated = {spec.name: _rows(arrays[spec.name], spec, rows) for spec in inputs}
        yield Bodies([wire(model, repeated, inputs)], _count(repeated, inputs), "the example of its model.toml")
        return
    free = any(size < 0 for spec in inputs for size in spec.shape[1:])
    for length in LENGTHS if free else LENGTHS[:1]:
        random = np.random.default_rng(7)
        first = _guess(inputs, rows, length, random)
        requests = [wire(model, first, inputs)]
        distinct = max(1, min(DISTINCT, DISTINCT_BYTES_MAX // len(requests[0])))
        requests += [wire(model, _guess(inputs, rows, length, random), inputs) for _ in range(distinct - 1)]
        said = "guessed values (an `example` in its model.toml is better)"
        yield Bodies(requests, _count(first, inputs), said + (f", free lengths taken as {length}" if free else ""))


def wire(model: str, arrays: dict[str, Array], inputs: tuple[TensorSpec, ...]) -> bytes:
    """One V2 infer request over HTTP/1.1, with binary tensors in and out."""
    tensors, parts = [], []
    for spec in inputs:
        array = arrays[spec.name]
        parts.append(_packed(array) if spec.datatype == "BYTES" else array.astype(DTYPES[spec.datatype]).tobytes())
        sizes = {"binary_data_size": len(parts[-1])}
        tensors.append({"name": spec.name, "datatype": spec.datatype, "shape": array.shape, "parameters": sizes})
    head = msgspec.json.encode({"parameters": {"binary_data_output": True}, "inputs": tensors})
    size = len(head) + sum(map(len, parts))
    line = f"POST /v2/models/{quote(model)}/infer HTTP/1.1\r\nHost: localhost\r\n"
    fields = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {size}\r\n"
    return b"".join(((line + fields + "Content-Type: application/octet-stream\r\n\r\n").encode(), head, *parts))


def _guess(inputs: tuple[TensorSpec, ...], rows: int, length: int, random: np.random.Generator) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for spec in inputs:
        sizes = [length if size < 0 else size for size in spec.shape]
        if spec.shape and spec.shape[0] < 0:
            sizes[0] = rows
        if spec.datatype == "BYTES":
            arrays[spec.name] = np.full(sizes, WORD, np.object_)
        elif spec.datatype == "BF16":  # the upper half of a float32
            arrays[spec.name] = (random.random(sizes, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        elif DTYPES[spec.datatype].kind == "f":
            arrays[spec.name] = random.random(sizes, np.float32).astype(DTYPES[spec.datatype])
        else:
            arrays[spec.name] = random.integers(0, 2, sizes).astype(DTYPES[spec.datatype])
    return arrays


def _rows(array: Array, spec: TensorSpec, rows: int) -> Array:
    """The example's rows, repeated or cut to `rows` where the first dimension is free."""
    if not spec.shape or spec.shape[0] >= 0 or not len(array):
        return array
    return array[np.arange(rows) % len(array)]


def _count(arrays: dict[str, Array], inputs: tuple[TensorSpec, ...]) -> int:
    return max((len(arrays[spec.name]) for spec in inputs if spec.shape), default=1)


def _packed(array: Array) -> bytes:
    """BYTES as the protocol has them: each with its length before it, 4 bytes, little-endian."""
    cells = [cell.encode() if isinstance(cell, str) else bytes(cell) for cell in array.ravel().tolist()]
    return b"".join(len(cell).to_bytes(4, "little") + cell for cell in cells)
