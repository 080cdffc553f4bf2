"""Keras files (`.keras`, `.h5`) on whichever of Keras's backends is installed.

Rules of the room:
- `settings.backend`: "tensorflow", "torch" or "jax"; without it the first of these that is installed.
- Keras refuses layers that carry code in the file (Lambda) until `settings.safe_mode = false`.
- The version's own code is imported before the file is read, so that what it registers is known; with `entry`, that
  class is a custom object by its name.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.runtimes import Found, trial
from millstream.types import Array, TensorSpec

_BACKENDS = ("tensorflow", "torch", "jax")


class Keras:
    """A Model over `model`, which is Keras's. `bits`: outputs that were BF16, whose raw bits are given."""

    def __init__(
        self, model: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: str
    ) -> None:
        self.inputs, self.outputs, self.device = inputs, outputs, device
        self.bits: set[str] = set()
        self.model = model
        self._names = list(getattr(model, "output_names", None) or [spec.name for spec in outputs])
        self._halves = {spec.name for spec in inputs if spec.datatype == "BF16"}
        self._places = _places(model, [spec.name for spec in inputs])

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs. A value that a layer refuses: BadInput."""
        import keras

        arrays = {spec.name: self._given(spec.name, inputs[spec.name]) for spec in self.inputs}
        try:
            values = self.model.predict_on_batch(keras.tree.map_structure(arrays.__getitem__, self._places))
        except (ValueError, IndexError) as error:
            raise errors.BadInput(f"the model refuses these values: {error}") from error
        except Exception as error:
            if type(error).__name__ == "InvalidArgumentError":  # TensorFlow's, which may not be there
                raise errors.BadInput(f"the model refuses these values: {error}") from error
            raise
        return {name: self._array(name, value) for name, value in trial.named(values, self._names).items()}

    def _given(self, name: str, array: Array) -> Array:
        if name in self._halves:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def _array(self, name: str, value: Any) -> Array:
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":
            self.bits.add(name)
            array = array.view(np.uint16)
        return array


def load(folder: Path, manifest: Manifest, device: str) -> Keras:
    """The model, ready to predict."""
    model, device = _open(folder, manifest, device)
    return Keras(model, manifest.inputs, manifest.outputs, device)


def inspect(folder: Path, manifest: Manifest, example: dict[str, Array]) -> Found:
    """What the file says of its tensors, and what comes out."""
    model, device = _open(folder, manifest, "cpu")
    inputs = manifest.inputs or tuple(_spec(tensor) for tensor in getattr(model, "inputs", None) or ())
    if not inputs:
        raise errors.Misconfigured(
            f"{folder / manifest.file} does not say what it takes; type it: --input 'x:FP32[-1,3]' (datatype, then the "
            "shape with -1 for the rows)"
        )
    served = Keras(model, inputs, manifest.outputs, device)
    import keras

    notes = [f"a Keras model of {model.count_params()} weights, read with Keras {keras.__version__} on {_backend()}"]
    found = trial.look(served.predict, inputs, example, notes)
    found.outputs = trial.halves(found.outputs, served.bits)
    return found


def _open(folder: Path, manifest: Manifest, device: str) -> tuple[Any, str]:
    path = folder / manifest.file
    device = _choose(str(manifest.settings.get("backend", "")), device, str(folder))
    import keras

    own = _own(manifest)
    safe = manifest.settings.get("safe_mode", True) is not False
    try:
        return keras.models.load_model(str(path), compile=False, safe_mode=safe, custom_objects=own), device
    except Exception as error:  # Keras raises whatever a layer raises
        if safe and ("safe_mode" in str(error) or "unsafe" in str(error)):
            raise errors.Misconfigured(
                f"{path} carries code in a layer (Lambda), which Keras does not run unasked; if you trust the file: "
                "--setting safe_mode=false"
            ) from error
        raise errors.Misconfigured(
            f"{path}: Keras {keras.__version__} on {_backend()} cannot load it: {type(error).__name__}: "
            f"{str(error)[:500]}"
        ) from error


def _choose(wanted: str, device: str, where: str) -> str:
    """Set Keras's backend, which it reads when it is first imported, and give the device that it computes on."""
    there = [name for name in _BACKENDS if find_spec(name)]
    if "keras" not in sys.modules:
        if not there or (wanted and wanted not in there):
            raise errors.Misconfigured(
                f"{where}: Keras needs {wanted or 'one of ' + ', '.join(_BACKENDS)}; here: {', '.join(there) or 'none'}"
            )
        os.environ["KERAS_BACKEND"] = wanted or there[0]
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        if device == "cpu":
            os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
    if _backend() == "tensorflow":
        from millstream.models.runtimes import tensorflow

        return tensorflow.prepare(device, where)
    if _backend() == "torch":
        import torch

        torch.set_num_threads(1)
    return device


def _backend() -> str:
    import keras

    return str(keras.backend.backend())


def _own(manifest: Manifest) -> dict[str, Any]:
    """Import the version's code; the class of its `entry`, by name."""
    for name in manifest.code:
        if name.endswith(".py"):
            importlib.import_module(name.removesuffix(".py").replace("/", "."))
    if not manifest.entry:
        return {}
    module, _, name = manifest.entry.partition(":")
    return {name: getattr(importlib.import_module(module), name)}


def _places(model: Any, names: list[str]) -> Any:
    """The names of the inputs in the structure that the model was built with: one, a list, a dict."""
    import keras

    built = getattr(model, "input", None) if getattr(model, "inputs", None) else None
    if built is None:
        return names if len(names) > 1 else names[0]
    flat = keras.tree.flatten(built)
    if len(flat) != len(names):
        raise errors.Misconfigured(f"the model takes {len(flat)} inputs, the manifest names {', '.join(names)}")
    by_tensor = dict(zip((one.name for one in model.inputs), names, strict=True))
    return keras.tree.map_structure(lambda tensor: by_tensor[tensor.name], built)


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple(-1 if size is None else size for size in tensor.shape)
    return TensorSpec(str(tensor.name), trial.datatype_called(str(tensor.dtype)), shape)
