"""What a version says of itself: the content of `model.toml`.

A manifest is written once, with its version, and never changes. Everything but `format` and `file` may be left out:
what can be read off the model file is read off the model file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from millstream import errors
from millstream.types import Array, TensorSpec

DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""The V2 protocol's datatypes and the numpy dtype that each has in memory (BYTES: an object array of str or bytes)."""

Cell = bool | int | float | str


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rows_max`: the most rows in one call of the model; 0 means the engine's own bound."""

    rows_max: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One version of one model.

    `digests`: file name -> "sha256:<hex>", checked at every load. `example`: input name -> nested rows, which every
    process runs before the version answers. `features`: hash of the feature definition it was trained on, "" when
    none. `non_finite`: whether NaN and infinity in a request are the client's mistake or mean "missing" to this model.
    """

    format: str
    file: str
    digests: dict[str, str] = {}
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batching: Batching = Batching()
    example: dict[str, list[Cell | list[object]]] = {}
    features: str = ""
    non_finite: Literal["refuse", "pass"] = "refuse"
    settings: dict[str, object] = {}
    lineage: dict[str, object] = {}


def read(path: Path) -> Manifest:
    """The manifest in `path`. Anything unknown, missing or of the wrong type: Misconfigured naming the field."""
    try:
        manifest = msgspec.toml.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.Misconfigured(f"{path}: {error}; put the version again with a manifest that holds") from error
    for name in (manifest.file, *manifest.digests):
        check_file_name(name, str(path))
    return manifest


def check_file_name(name: str, where: str) -> None:
    """A version's files lie in its own folder under plain names; anything else: Misconfigured."""
    if Path(name).name != name or name in ("", "..", "model.toml"):
        raise errors.Misconfigured(f"{where}: {name!r} is no file name for a version: no folders in it, not model.toml")


def render(manifest: Manifest) -> bytes:
    """The text of `model.toml`; `read` gives the same manifest back."""
    return msgspec.toml.encode(manifest)


def example_arrays(manifest: Manifest, inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """The manifest's example as the model's inputs; without one, one row of zeros (empty strings for BYTES)."""
    if not manifest.example:
        return {spec.name: _zeros(spec) for spec in inputs}
    arrays = {}
    for spec in inputs:
        if spec.name not in manifest.example:
            raise errors.Misconfigured(
                f"the example has no rows for input {spec.name!r}, only {list(manifest.example)}"
            )
        try:
            arrays[spec.name] = np.array(manifest.example[spec.name], DTYPES[spec.datatype])
        except (ValueError, TypeError, OverflowError) as error:
            raise errors.Misconfigured(f"the example's {spec.name!r} is no {spec.datatype} array: {error}") from error
    return arrays


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    return np.full(shape, "" if spec.datatype == "BYTES" else 0, DTYPES[spec.datatype])
