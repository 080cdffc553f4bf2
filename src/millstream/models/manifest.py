"""What a version says of itself: the content of `model.toml`.

A manifest is written once, with its version, and never changes. Everything but `format` and `file` may be left out:
what can be read off the model file is read off the model file.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from millstream import errors
from millstream.types import DTYPES, Array, TensorSpec

Cell = bool | int | float | str


class Length(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How inputs whose size differs from request to request share a call: those of one bucket are padded to the longest
    of a batch. The model must ignore the padding, which is tried before it answers.

    `of`: the inputs that have the length, on `axis`; `buckets`: the longest of each, ascending, the last is the bound;
    `lengths`: an input that the engine fills with each row's true length, INT64 or INT32, "" for none; `trim`: outputs
    whose `axis` is as long as the input's.
    """

    of: tuple[str, ...]
    buckets: tuple[Annotated[int, msgspec.Meta(ge=1)], ...]
    axis: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    pad: float = 0.0
    lengths: str = ""
    trim: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.of or not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"length wants input names in `of` and ascending `buckets`, got {list(self.buckets)}")


class BatchLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How requests of one version share calls of it; what is 0 is the engine's own setting.

    `max_batch_size` and `max_wait_time` are taken for `rows_max` and `wait_ms`; a time may be text, "200ms" or "0.2s".
    """

    rows_max: Annotated[int, msgspec.Meta(ge=0, le=65536, description="most rows in one call of a model")] = 0
    wait_ms: Annotated[
        float,
        msgspec.Meta(ge=0, le=60_000, description="a batch that is not full waits so long for more; 0: not at all"),
    ] = 0.0
    preferred: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=1, le=65536)], ...],
        msgspec.Meta(description="sizes in rows that a batch is rounded down to, where more wait"),
    ] = ()
    instances: Annotated[
        int, msgspec.Meta(ge=0, le=256, description="batches of a version computed at once; 0: one less than the cores")
    ] = 0
    queue_rows_max: Annotated[
        int, msgspec.Meta(ge=0, le=1_000_000, description="most rows that wait for one version; more are refused (429)")
    ] = 0
    timeout_ms: Annotated[
        float, msgspec.Meta(ge=0, description="a request that is not answered by then is dropped (504); 0: never")
    ] = 0.0
    p99_ms: Annotated[
        float,
        msgspec.Meta(
            ge=0, description="the batcher keeps 99 of 100 answers under this, refusing what cannot; 0: no goal"
        ),
    ] = 0.0


class Batching(BatchLimits, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A version's own, in its model.toml. `once`: inputs that it also takes as one row for all rows of a call, so that
    one which belongs to all of a request's rows need not be repeated."""

    length: Length | None = None
    once: tuple[str, ...] = ()


_BY_NAME = {"max_batch_size": "rows_max", "max_wait_time": "wait_ms"}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s)?\s*")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def milliseconds(text: str | float) -> float:
    """ "200ms", "0.2s", "150us" or a number of milliseconds. ValueError: nothing of that."""
    found = _DURATION.fullmatch(str(text))
    if not found:
        raise ValueError(f"expected a time such as '200ms' or '0.2s', got {text!r}")
    return float(found[1]) * _MS[found[2] or "ms"]


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that a model takes as `input` and gives as `output`, to be carried to the next step of the same session.
    `axis` is its row. A session begins with zeros."""

    input: str
    output: str
    axis: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0


class Sessions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model carries from step to step. `slots`: sessions at once; `idle_s`: a session without a step for so long
    is ended."""

    states: tuple[State, ...] = ()
    slots: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 256
    idle_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The process that a model which is a program runs in. `call_s_max`: a call that takes longer has hung, and the
    process is replaced; `start_s_max`: to import, load and be ready."""

    call_s_max: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    start_s_max: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 120.0


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Answers that are kept, by version and input, for a model whose answer depends on nothing else. `entries` and
    `bytes_max` bound it, the least recently used go first; `ttl_s`: an older answer is computed again, 0: never."""

    entries: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    bytes_max: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20
    ttl_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One version of one model.

    `digests`: file name -> "sha256:<hex>", checked at every load. `device`: "cpu", "cuda:0"; "" is what the server was
    told. `example`: input name -> nested rows, which every process runs before the version answers. `features`: hash of
    the feature definition it was trained on, "" when none. `non_finite`: whether NaN and infinity in a request are the
    client's mistake or mean "missing" to this model. `file` may be a folder of the version; file names are relative
    paths below it. Of a version that is a program: `code` are its own Python files, `entry` the class or function in
    them ("ranker:Ranker" of ranker.py), `requirements` the file with its locked dependencies, `python` the version of
    Python that they want ("3.11"; "" is this one), `process` the bounds of the process it runs in.
    """

    format: str
    file: str
    digests: dict[str, str] = {}
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batching: Batching = Batching()
    sessions: Sessions = Sessions()
    device: str = ""
    example: dict[str, list[Cell | list[object]]] = {}
    features: str = ""
    non_finite: Literal["refuse", "pass"] = "refuse"
    code: tuple[str, ...] = ()
    entry: str = ""
    requirements: str = ""
    python: str = ""
    process: Process = Process()
    cache: Cache | None = None
    settings: dict[str, object] = {}
    lineage: dict[str, object] = {}


SCHEMA = 1
"""What a field `schema` may say in the file; it is left out while it is 1."""


def read(path: Path) -> Manifest:
    """The manifest in `path`. Anything unknown, missing or of the wrong type: Misconfigured naming the field."""
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse(text: str, where: str) -> Manifest:
    """The manifest that `text` holds; `where` is what the message of a Misconfigured calls it."""
    try:
        table = tomllib.loads(text)
        if isinstance(said := table.get("schema"), int) and said > SCHEMA:
            raise errors.Later(where, said, SCHEMA)
        table.pop("schema", None)
        manifest = msgspec.convert(_by_other_names(table), Manifest)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise errors.Misconfigured(f"{where}: {error}; put the version again with a manifest that holds") from error
    for name in (manifest.file, *manifest.digests, *manifest.code, *filter(None, [manifest.requirements])):
        check_file_name(name, where)
    return manifest


def _by_other_names(table: dict[str, Any]) -> dict[str, Any]:
    """The manifest's table with the field's own names for what other servers call otherwise."""
    batching = table.get("batching")
    if not isinstance(batching, dict):
        return table
    named: dict[str, Any] = {}
    for name, value in batching.items():
        own = str(_BY_NAME.get(name, name))
        if own in named:
            raise ValueError(f"batching has both {own} and {name}, which are the same")
        named[own] = milliseconds(value) if own == "wait_ms" and isinstance(value, str) else value
    if isinstance(length := named.get("length"), dict) and isinstance(length.get("of"), str):
        named["length"] = length | {"of": [length["of"]]}
    return table | {"batching": named}


def check_file_name(name: str, where: str) -> None:
    """A version's files lie in its own folder, or in folders below it; anything else: Misconfigured."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name or name == "model.toml":
        raise errors.Misconfigured(
            f"{where}: {name!r} is no file name for a version: a relative path with / below its folder, not model.toml"
        )


def render(manifest: Manifest) -> bytes:
    """The text of `model.toml`; `read` gives the same manifest back."""
    return msgspec.toml.encode(manifest)


def fitting(spec: TensorSpec, value: Any) -> Array:
    """`value` as an array of the spec's datatype: a list or a wider float will do; what would change its meaning will
    not (Error)."""
    dtype = DTYPES[spec.datatype]
    array: Array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if array.dtype == dtype:
        return array
    if dtype.kind == "O":
        return array if array.dtype.kind in "US" else array.astype(str).astype(object)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise errors.Error(f"output {spec.name!r} is {array.dtype}, where {spec.datatype} was promised")
    return array.astype(dtype)


_SPEC = re.compile(r"\s*([A-Z0-9]+)\s*(?:\[([^\]]*)\])?\s*")


def parse_spec(name: str, text: str) -> TensorSpec:
    """The tensor that `text` says: "FP32[-1,4]", -1 for a free dimension, rows first. Misconfigured."""
    found = _SPEC.fullmatch(text)
    sizes = (found[2] or "").split(",") if found else []
    sizes = [size for size in map(str.strip, sizes) if size]
    if not name or not found or found[1] not in DTYPES or not all(re.fullmatch(r"-1|\d{1,9}", size) for size in sizes):
        raise errors.Misconfigured(
            f"{name or 'a tensor without a name'}: {text[:80]!r} says no tensor; write a datatype and a shape with -1 "
            f"for what is free, such as FP32[-1,4]. Datatypes: {', '.join(DTYPES)}"
        )
    return TensorSpec(name, found[1], tuple(map(int, sizes)))


def check_tensors(
    where: str, manifest: Manifest, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Refuse a model with other tensors than its manifest says: Misconfigured. One that says none is right."""
    for side, said, found in (("inputs", manifest.inputs, inputs), ("outputs", manifest.outputs, outputs)):
        if said and set(said) != set(found):
            raise errors.Misconfigured(f"{where}: model.toml says {side} {_text(said)}, the file has {_text(found)}")


def _text(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs)


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
