"""Pickled estimators: scikit-learn and all that has its manners (XGBoost, LightGBM), and the boosters of those two.

Rules of the room:
- The file is read once, and these bytes are what was compared with the digest and what is loaded.
- What an estimator takes is one matrix `x`, one `text`, or a column each where it tells columns apart by name.
- What comes out is named for what it is: label, probability, prediction, transformed, and has the estimator's own
  datatype. Only what the manifest names is computed.
- One thread a call: an estimator's own `n_jobs` is set to 1.
- A value that the estimator refuses (ValueError) is the caller's mistake.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.runtimes import Found, trial
from millstream.types import Array, TensorSpec

_TEXT, _MATRIX = "text", "x"
_TORN = (EOFError, IndexError, pickle.UnpicklingError, struct.error, zlib.error)


class Estimator:
    """A Model over `estimator`. `outputs`: those to compute; empty: all that it has."""

    device = "cpu"

    def __init__(self, estimator: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...] = ()) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.estimator = estimator
        self._join = _joiner(estimator, inputs)
        ways = _ways(estimator)
        names = [spec.name for spec in outputs] or list(ways)
        if unknown := [name for name in names if name not in ways]:
            raise errors.Misconfigured(f"it has no output {unknown[0]!r}; it has: {', '.join(ways)}")
        self._ways = {name: ways[name] for name in names}

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs. A value that the estimator refuses: BadInput."""
        try:
            x = self._join(inputs)
            return {name: way(x) for name, way in self._ways.items()}
        except ValueError as error:
            raise errors.BadInput(f"the model refuses these values: {error}") from error


def load(folder: Path, manifest: Manifest, device: str) -> Estimator:
    """The estimator of the manifest's file. One of no known kind: Misconfigured."""
    estimator, notes = _opened(folder, manifest)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    if manifest.non_finite == "refuse":
        with contextlib.suppress(ImportError):
            import sklearn

            sklearn.set_config(assume_finite=True)  # the engine has looked
    return Estimator(estimator, manifest.inputs, manifest.outputs)


def inspect(folder: Path, manifest: Manifest, example: dict[str, Array]) -> Found:
    """What the estimator takes and gives, by a run on the example, or on rows that are made up."""
    estimator, notes = _opened(folder, manifest)
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    notes = [f"{_kind(estimator)}, read with {_library(estimator)}", *notes]
    inputs = manifest.inputs or _inputs(estimator, example, str(folder / manifest.file))
    made_up = example or _made_up(estimator, inputs)
    model = Estimator(estimator, inputs, manifest.outputs)
    found = trial.look(model.predict, inputs, made_up, notes)
    if made_up and not example:
        told = tuple(note for note in found.notes if note != "the example is yours")
        found.notes = (*told, "the example is made up of the categories it knows: --example FILE gives a real one")
    return found


def _opened(folder: Path, manifest: Manifest) -> tuple[Any, list[str]]:
    """The estimator, ready for one thread, and what its library says of the file."""
    path = folder / manifest.file
    data = path.read_bytes()
    if manifest.digests.get(manifest.file, "") not in ("", f"sha256:{hashlib.sha256(data).hexdigest()}"):
        raise errors.Corrupt(f"{path}: it differs from its digest in model.toml; put the version again")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        estimator = _read(data, path)
    if not _methods(estimator) and _booster(estimator) is None:
        raise errors.Misconfigured(
            f"{path} holds a {type(estimator).__module__}.{type(estimator).__qualname__}, which has "
            "neither predict nor transform; pickle the estimator (or Pipeline) itself, or write a class around it "
            "(format 'python')"
        )
    with contextlib.suppress(Exception):  # strangers with sklearn's manners, up to a point
        threads = [name for name in estimator.get_params() if name.rpartition("__")[2] in ("n_jobs", "nthread")]
        estimator.set_params(**dict.fromkeys(threads, 1))
    return estimator, sorted({str(warning.message).partition("\n")[0] for warning in said})


def _read(data: bytes, path: Path) -> Any:
    """The estimator, or the booster, that these bytes hold. Not all of it: Misconfigured."""
    try:
        if data.startswith(b"{"):  # JSON or UBJSON, which no pickle begins with
            import xgboost

            return xgboost.Booster(model_file=bytearray(data))
        if data.startswith(b"tree"):
            import lightgbm

            return lightgbm.Booster(model_str=data.decode())
        return _unpickled(data)
    except Exception as error:
        if not isinstance(error, _TORN) and not str(error).startswith("EOF"):  # joblib's, of an array that ends early
            raise
        raise errors.Misconfigured(
            f"{path} is not a whole pickle ({type(error).__name__}: {str(error)[:200]}): copy or export it again"
        ) from error


def _unpickled(data: bytes) -> Any:
    try:
        import joblib
    except ImportError:
        return pickle.loads(data)
    return joblib.load(io.BytesIO(data))


# What it is.


def _methods(estimator: Any) -> list[str]:
    return [name for name in ("predict", "predict_proba", "transform") if callable(getattr(estimator, name, None))]


def _booster(estimator: Any) -> str | None:
    """ "xgboost" or "lightgbm" for a booster of these."""
    library = type(estimator).__module__.partition(".")[0]
    return library if type(estimator).__name__ == "Booster" and library in ("xgboost", "lightgbm") else None


def _kind(estimator: Any) -> str:
    steps = getattr(estimator, "steps", None)
    if isinstance(steps, list):
        return f"a {type(estimator).__name__} of {', '.join(type(step).__name__ for _, step in steps)}"
    return f"{type(estimator).__module__.partition('.')[0]} {type(estimator).__name__}"


def _library(estimator: Any) -> str:
    import importlib

    name = type(estimator).__module__.partition(".")[0]
    version = getattr(importlib.import_module(name), "__version__", "")
    return f"{ {'sklearn': 'scikit-learn'}.get(name, name) } {version}".strip()


def parts(estimator: Any) -> Iterator[Any]:
    """It and the estimators within it, in the order that rows go through them."""
    yield estimator
    inside: list[Any] = [step for _, step in getattr(estimator, "steps", None) or ()]
    inside += [made for _, made, _ in getattr(estimator, "transformers_", None) or ()]
    inside += [getattr(estimator, name, None) for name in ("best_estimator_", "estimator_", "estimator")]
    inside += [made for _, made in getattr(estimator, "transformer_list", None) or ()]
    for part in inside:
        if part is not None and not isinstance(part, str | type):
            yield from parts(part)


# What it takes.


def _inputs(estimator: Any, example: dict[str, Array], where: str) -> tuple[TensorSpec, ...]:
    """What the estimator takes, as far as it, or the example, says so. Misconfigured: neither does."""
    columns = _columns(estimator)
    if columns and (_by_name(estimator) or (set(columns) <= set(example) and _mixed(example))):
        known = _categories(estimator)
        return tuple(
            TensorSpec(name, _datatype(example[name]) if name in example else _cell(known.get(name)), (-1,))
            for name in columns
        )
    if any(hasattr(part, "build_analyzer") for part in parts(estimator)):
        return (TensorSpec(_TEXT, "BYTES", (-1,)),)
    width = _width(estimator)
    if width is None and example:
        array = next(iter(example.values()))
        width = array.shape[1] if len(example) == 1 and array.ndim == 2 else len(example)
    if width is None:
        raise errors.Misconfigured(
            f"{where}: it does not say how many features it takes; give it rows that it takes: --example FILE"
        )
    narrow = type(estimator).__module__.startswith("xgboost") or any(
        array.dtype == np.float32 for array in example.values()
    )
    return (TensorSpec(_MATRIX, "FP32" if narrow else "FP64", (-1, width)),)


def _columns(estimator: Any) -> list[str]:
    """Names of its columns, in order; empty when it has none."""
    with contextlib.suppress(AttributeError):
        return [str(name) for name in estimator.feature_names_in_]
    return []


def _width(estimator: Any) -> int | None:
    for name in ("n_features_in_", "num_features", "num_feature"):
        with contextlib.suppress(Exception):  # not fitted, in a library's own way
            width = getattr(estimator, name)
            return int(width() if callable(width) else width)
    return None


def _by_name(estimator: Any) -> bool:
    """Whether it tells columns apart by name, so that a matrix will not do."""
    for part in parts(estimator):
        for _, _, columns in getattr(part, "transformers_", None) or ():
            if isinstance(columns, str) or (isinstance(columns, list) and columns and isinstance(columns[0], str)):
                return True
    return False


def _mixed(example: dict[str, Array]) -> bool:
    return len({array.dtype.kind for array in example.values()}) > 1 or any(
        array.dtype.kind in "OUS" for array in example.values()
    )


def _categories(estimator: Any) -> dict[str, Array]:
    """Column -> the categories that an encoder knows of it."""
    known: dict[str, Array] = {}
    for part in parts(estimator):
        for _, made, columns in getattr(part, "transformers_", None) or ():
            encoder = next((one for one in parts(made) if hasattr(one, "categories_")), None)
            if encoder is not None and not isinstance(columns, str):
                known |= dict(zip(map(str, columns), encoder.categories_, strict=False))
    return known


def _cell(categories: Array | None) -> str:
    return "FP64" if categories is None else _datatype(np.asarray(categories))


def _datatype(array: Array) -> str:
    return {"f": "FP64", "i": "INT64", "u": "INT64", "b": "INT64"}.get(array.dtype.kind, "BYTES")


def _made_up(estimator: Any, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Rows for an encoder that takes only what it knows; nothing where any number, or any text, will do."""
    known = _categories(estimator)
    if not known:
        return {}
    rows = 3
    return {
        spec.name: np.resize(np.asarray(known[spec.name]), rows)
        if spec.name in known
        else np.full(rows, "text", np.object_)
        if spec.datatype == "BYTES"
        else np.linspace(0, 1, rows)
        for spec in inputs
    }


def _joiner(estimator: Any, inputs: tuple[TensorSpec, ...]) -> Callable[[dict[str, Array]], Any]:
    """How the inputs become what the estimator takes."""
    if len(inputs) == 1 and len(inputs[0].shape) > 1:
        name = inputs[0].name
        return lambda given: given[name]
    if len(inputs) == 1 and inputs[0].name not in _columns(estimator):
        name = inputs[0].name
        return lambda given: _texts(given[name]).tolist()
    import pandas

    # The boosters take text only as categories; they know the codes of theirs.
    coded = type(estimator).__module__.startswith(("xgboost", "lightgbm"))
    names = [spec.name for spec in inputs]
    texts = {spec.name for spec in inputs if spec.datatype == "BYTES"}

    def frame(given: dict[str, Array]) -> Any:
        columns: dict[str, Any] = {name: _texts(given[name]) if name in texts else given[name] for name in names}
        made = pandas.DataFrame(columns, copy=False)
        return made.astype(dict.fromkeys(texts, "category")) if coded and texts else made

    return frame


def _texts(array: Array) -> Array:
    """Cells as str."""
    try:
        cells = [cell.decode() if isinstance(cell, bytes) else str(cell) for cell in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise errors.BadInput(f"a BYTES value is not UTF-8 text ({error}); this model reads text") from error
    return np.array(cells, np.object_).reshape(array.shape)


# What it gives.


def _ways(estimator: Any) -> dict[str, Callable[[Any], Array]]:
    """Output -> how it is computed."""
    match _booster(estimator):
        case "xgboost":
            return {"prediction": lambda x: _numbers(estimator.inplace_predict(x, validate_features=False))}
        case "lightgbm":
            return {"prediction": lambda x: _numbers(estimator.predict(x, num_threads=1))}
    methods = _methods(estimator)
    if "predict" not in methods:
        return {"transformed": lambda x: _numbers(estimator.transform(x))}
    clusters = hasattr(estimator, "fit_predict")  # of outliers and inliers, too: labels without classes
    if not hasattr(estimator, "classes_") and not clusters:
        return {"prediction": lambda x: _numbers(estimator.predict(x))}
    ways: dict[str, Callable[[Any], Array]] = {"label": lambda x: _label(estimator.predict(x))}
    several = isinstance(getattr(estimator, "classes_", None), list)  # one array of probabilities for each
    if "predict_proba" in methods and not several:
        ways["probability"] = lambda x: _numbers(estimator.predict_proba(x))
    return ways


def _numbers(values: Any) -> Array:
    dense = values.toarray() if hasattr(values, "toarray") else values
    array = np.asarray(dense)
    return array if array.dtype.kind in "fiub" else array.astype(np.float64)


def _label(values: Any) -> Array:
    array = np.asarray(values)
    if array.dtype.kind in "iub":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    return array.astype(str).astype(np.object_)
