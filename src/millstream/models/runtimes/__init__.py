"""Programs that run model files, one module a format; each is imported only when a model of its format is loaded.

What FORMATS names runs in the serving process: such a file is data. What PROGRAMS names is a program: loading it runs
what its author wrote. Those run in a process of their own (`models/apart/`), where their module is imported. It has

    load(folder: Path, manifest: Manifest, device: str) -> Model       ready to predict; the manifest names its tensors
    inspect(folder: Path, manifest: Manifest, example: dict[str, Array]) -> Found      what such a file says of itself

and may use only numpy, msgspec, the standard library, the framework, and `millstream.{types,errors}` and
`millstream.models.{manifest,speech.tensors}`: a version's own environment has little more.
"""

from __future__ import annotations

import msgspec

from millstream.types import Array, TensorSpec

FORMATS = ("onnx", "ftrl", "ftrl_table", "fm", "deepfm", "whisper", "pocketsphinx", "sherpa", "scripted")
"""What runs in the serving process: such files are data."""
PROGRAMS = {
    "sklearn": "millstream.models.runtimes.sklearn",
    "torch": "millstream.models.runtimes.torch",
    "keras": "millstream.models.runtimes.keras",
    "tensorflow": "millstream.models.runtimes.tensorflow",
    "python": "millstream.models.runtimes.python",
    "funasr": "millstream.models.runtimes.funasr",
}
"""Format -> module. `sklearn` is any pickled estimator, those of XGBoost and LightGBM too, and the files of those."""
SUFFIXES = {
    ".onnx": "onnx",
    ".pkl": "sklearn",
    ".pickle": "sklearn",
    ".joblib": "sklearn",
    ".json": "sklearn",
    ".ubj": "sklearn",
    ".xgb": "sklearn",
    ".txt": "sklearn",
    ".lgb": "sklearn",
    ".pt": "torch",
    ".pth": "torch",
    ".pt2": "torch",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".pb": "tensorflow",
    ".py": "python",
}
"""Suffix -> format; of XGBoost are `.json`, `.ubj` and `.xgb`, of LightGBM `.txt` and `.lgb`. A folder with
`saved_model.pb` is "tensorflow" too; a `.py` with `def call(models)`, "chain"."""


class Found(msgspec.Struct):
    """What a model file says of itself when it is looked into: its tensors, an example to warm it with (rows first;
    given by the caller, or made up), and `notes`: sentences for the person who adds it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: dict[str, Array]
    notes: tuple[str, ...] = ()
