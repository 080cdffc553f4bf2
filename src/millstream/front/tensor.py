"""One tensor of the V2 protocol: its JSON `data` or its bytes <-> an array.

Rules of the room:
- BYTES is text here: an object array of `str`. BF16 is its raw bits in uint16, as numpy has no such type.
- Nothing is converted on a guess: a string, a fraction or a boolean in an integer tensor is refused.
- JSON has no NaN and no infinity: such an output leaves as null; ask for it in binary to have it whole.
"""

from __future__ import annotations

import math
import reprlib
from itertools import chain
from typing import Any

import numpy as np

from millstream import errors
from millstream.types import DTYPES, Array, TensorSpec

_NAMES: dict[type, str] = {
    str: "strings",
    bool: "booleans",
    int: "integers",
    float: "numbers with a fraction",
    type(None): "null",
    list: "lists deeper than the shape",
    dict: "objects",
}
_RANGES = {name: (int(np.iinfo(t).min), int(np.iinfo(t).max)) for name, t in DTYPES.items() if t.kind in "iu"}
# What rounds to infinity: the largest number and half of what the next would be away.
_LIMITS = {"FP16": 65520.0, "BF16": 2.0**128 - 2.0**119, "FP32": 2.0**128 - 2.0**103, "FP64": math.inf}
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def from_json(spec: TensorSpec, shape: tuple[int, ...], data: object) -> Array:
    """An array out of JSON `data`, flat in row order or nested like `shape`. Raises BadInput."""
    where = f"input {spec.name!r}"
    flat, kinds = _flat(where, shape, data)
    allowed: set[type] = {str} if spec.datatype == "BYTES" else {bool} if spec.datatype == "BOOL" else {int}
    if spec.datatype in ("FP16", "FP32", "FP64", "BF16"):
        allowed = {int, float}
    if wrong := kinds - allowed:
        got = ", ".join(sorted(_NAMES[kind] for kind in wrong))
        want = " or ".join(sorted(_NAMES[kind] for kind in allowed))
        raise errors.BadInput(f"{where}: {spec.datatype} data holds {got}; send {want} only")
    if len(flat) != math.prod(shape):
        raise errors.BadInput(
            f"{where}: {len(flat)} values in data, shape {list(shape)} has {math.prod(shape)}; make them agree"
        )
    return _array(where, spec.datatype, flat).reshape(shape)


def from_binary(spec: TensorSpec, shape: tuple[int, ...], raw: memoryview) -> Array:
    """An array out of a binary BOOL (a byte each, 0 or 1) or BYTES (4 bytes of length, then UTF-8). Raises BadInput.

    The other datatypes need no look: they are views of the body.
    """
    where = f"input {spec.name!r}"
    if spec.datatype == "BOOL":
        values = np.frombuffer(raw, np.uint8)
        if values.size and int(values.max()) > 1:
            raise errors.BadInput(f"{where}: a BOOL byte is {int(values.max())}; send 0 or 1")
        return values.view(np.bool_).reshape(shape)
    texts: list[str] = []
    at, count = 0, math.prod(shape)
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 4], "little")
        if at + 4 + length > len(raw):
            raise errors.BadInput(f"{where}: BYTES element {len(texts)} is truncated: its length says {length} bytes")
        try:
            texts.append(str(raw[at + 4 : at + 4 + length], "utf-8"))
        except UnicodeDecodeError:
            raise errors.BadInput(
                f"{where}: BYTES element {len(texts)} is not UTF-8 text; send blobs as UINT8"
            ) from None
        at += 4 + length
    if len(texts) != count:
        raise errors.BadInput(f"{where}: {len(texts)} BYTES elements, shape {list(shape)} has {count}")
    return _array(where, "BYTES", texts).reshape(shape)


def to_json(name: str, datatype: str, array: Array) -> object:
    """What orjson writes as the flat `data` of an output. BYTES that are not UTF-8 raise BadInput."""
    if datatype == "BF16":
        return (array.astype(np.uint32).ravel() << 16).view(np.float32)
    if datatype != "BYTES":
        return np.ascontiguousarray(array).ravel()
    try:
        return [v.decode() if isinstance(v, bytes) else str(v) for v in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise errors.BadInput(f"output {name!r}: not UTF-8 text; ask for it with binary_data: true") from None


def to_binary(datatype: str, array: Array) -> bytes:
    """Row-major little-endian bytes; each BYTES element after its length in 4 bytes."""
    if datatype != "BYTES":
        return array.tobytes()
    texts = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
    return b"".join(chain.from_iterable((len(text).to_bytes(4, "little"), text) for text in texts))


def _flat(where: str, shape: tuple[int, ...], data: object) -> tuple[list[Any], set[type]]:
    """The values and their types, flat or nested exactly as `shape`; map and set keep it at C speed."""
    if not isinstance(data, list):
        raise errors.BadInput(f"{where}: data is {said(data)}; send a list, flat or nested")
    items: list[Any] = data
    kinds = set(map(type, items))
    if kinds != {list} or not shape:
        return items, kinds
    for depth, dimension in enumerate(shape):
        if len(items) != math.prod(shape[: depth + 1]):
            raise errors.BadInput(
                f"{where}: data is nested otherwise than shape {list(shape)}: {len(items)} values at depth {depth + 1}"
                "; nest it like the shape or send it flat"
            )
        if depth == len(shape) - 1:
            break
        if kinds - {list} or set(map(len, items)) - {shape[depth + 1]}:
            raise errors.BadInput(
                f"{where}: data is ragged in dimension {depth + 1}, shape {list(shape)} wants {dimension} lists of "
                f"{shape[depth + 1]}; nest it like the shape or send it flat"
            )
        items = list(chain.from_iterable(items))
        kinds = set(map(type, items))
    return items, kinds


def _array(where: str, datatype: str, flat: list[Any]) -> Array:
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        texts = np.empty(len(flat), dtype)
        texts[:] = flat
        return texts
    if datatype == "BOOL":
        return np.array(flat, dtype)
    if datatype[:2] in ("FP", "BF"):
        wide, limit = np.array(flat, np.float64), _LIMITS[datatype]
        if flat and not (wide.max() < limit and wide.min() > -limit):
            raise errors.BadInput(f"{where}: {wide[~(abs(wide) < limit)][0]:g} is more than {datatype} can hold")
        return _rounded(wide.astype(np.float32)) if datatype == "BF16" else wide.astype(dtype)
    low, high = _RANGES[datatype]
    if flat and (min(flat) < low or max(flat) > high):
        beyond = min(flat) if min(flat) < low else max(flat)
        raise errors.BadInput(f"{where}: {beyond} is outside {datatype}, which holds {low} to {high}")
    return np.array(flat, dtype)


def _rounded(floats: np.ndarray[Any, np.dtype[np.float32]]) -> Array:
    """float32 -> the upper 16 bits, to nearest even: bfloat16."""
    bits = floats.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def said(value: object) -> str:
    """What kind of JSON `value` is, for an error."""
    return _NAMES[type(value)]


def shown(value: object) -> str:
    """A client's value in an error: quoted as Python shows it, and short however large it is."""
    return _short.repr(value)
