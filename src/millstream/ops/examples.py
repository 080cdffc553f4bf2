"""Examples that a person has in a file, as arrays with their rows first.

Rules of the room:
- What is read is bounded: the first ROWS_MAX rows of a table, BYTES_MAX of a file that is read whole.
- A table's columns stay columns here; which of them make a matrix is for the model to say.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from millstream import errors
from millstream.types import DTYPES, Array

ROWS_MAX = 256
BYTES_MAX = 64 << 20
LONE = "x"
"""The name of an array that came without one; a model with a single input takes it by whatever name."""


def read(path: Path) -> dict[str, Array]:
    """Named arrays from `.json` (a V2 request, {"name": rows}, or rows alone), `.npy`, `.npz`, `.csv` or `.parquet`.

    What cannot be read as one of these: BadInput, naming file and place. Too large: TooLarge.
    """
    if not path.is_file():
        raise errors.NotFound(f"{path}: no such example file")
    if path.suffix != ".parquet" and path.stat().st_size > BYTES_MAX:
        raise errors.TooLarge(f"{path}: an example has at most {BYTES_MAX >> 20} MiB; a few rows are enough")
    try:
        match path.suffix:
            case ".json":
                return _from_json(json.loads(path.read_bytes()), path)
            case ".npy":
                return {LONE: _rows(np.load(path, allow_pickle=False))}
            case ".npz":
                with np.load(path, allow_pickle=False) as held:
                    return {name: _rows(held[name]) for name in held.files}
            case ".csv":
                return _from_csv(path)
            case ".parquet":
                return _from_parquet(path)
    except (ValueError, TypeError, OverflowError, EOFError, csv.Error) as error:
        raise errors.BadInput(f"{path}: no example can be read from it: {error}") from error
    raise errors.BadInput(f"{path}: an example is a .json, .npy, .npz, .csv or .parquet file")


def _from_json(held: Any, path: Path) -> dict[str, Array]:
    if isinstance(held, Mapping) and isinstance(held.get("inputs"), list):
        return {str(tensor["name"]): _tensor(tensor) for tensor in held["inputs"]}
    if isinstance(held, Mapping) and held and all(isinstance(rows, list) for rows in held.values()):
        return {str(name): _array(rows) for name, rows in held.items()}
    if isinstance(held, list) and held:
        return {LONE: _array(held)}
    raise errors.BadInput(f'{path}: expected {{"inputs": [...]}} as in a request, {{"x": [[1, 2]]}}, or [[1, 2]]')


def _tensor(tensor: Mapping[str, Any]) -> Array:
    datatype = tensor.get("datatype", "")
    if datatype not in DTYPES:
        raise ValueError(f"input {tensor['name']!r}: datatype {datatype!r} is none of {', '.join(DTYPES)}")
    data = np.array(tensor["data"], DTYPES[datatype])
    return data.reshape(tensor["shape"]) if "shape" in tensor else data


def _array(rows: Sequence[Any]) -> Array:
    """Numbers as they are; anything else as text."""
    found = np.array(rows)
    return found if found.dtype.kind in "biuf" else np.array(rows, object)


def _rows(array: Array) -> Array:
    return array[:ROWS_MAX] if array.ndim else array


def _from_csv(path: Path) -> dict[str, Array]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(itertools.islice(csv.reader(file), ROWS_MAX + 1))
    if len(lines) < 2:
        raise ValueError("it has no rows below its line of names")
    names, *rows = lines
    odd = next((number for number, row in enumerate(rows, 2) if len(row) != len(names)), 0)
    if odd:
        raise ValueError(f"line {odd} has {len(rows[odd - 2])} cells, the names are {len(names)}")
    return {name: _column([row[place] for row in rows]) for place, name in enumerate(names)}


def _column(cells: Sequence[str]) -> Array:
    for kind in (np.int64, np.float64):
        try:
            return np.array([kind(cell) for cell in cells])
        except ValueError:
            continue
    return np.array(cells, object)


def _from_parquet(path: Path) -> dict[str, Array]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise errors.Missing.extra("parquet", str(path)) from error
    try:
        with parquet.ParquetFile(path) as file:
            batch = next(file.iter_batches(ROWS_MAX), None)
    except pyarrow.ArrowException as error:
        raise errors.BadInput(f"{path}: no example can be read from it: {error}") from error
    if batch is None or not batch.num_rows:
        raise errors.BadInput(f"{path}: it has no rows")
    return {name: _array(batch.column(name).to_pylist()) for name in batch.schema.names}
