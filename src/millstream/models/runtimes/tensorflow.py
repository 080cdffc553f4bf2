"""TensorFlow files: a SavedModel folder by one of its signatures, or a frozen graph (`.pb`) by names of tensors.

Rules of the room:
- One thread a call: parallelism is several processes, as for every other format.
- `settings.signature` of a SavedModel (default: serving_default, or the only one); `settings.tensors` of a frozen
  graph: name in the manifest -> tensor in the graph ("y" -> "dense/Softmax:0"), where they differ by more than ":0".
- A GPU that cannot be had is said once, loudly, and the CPU takes its place.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow looks: its banner is not about this model

import numpy as np
import tensorflow as tf

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.runtimes import Found, trial
from millstream.types import Array, TensorSpec

log = logging.getLogger(__name__)
_NO_ANSWER = {"Const", "NoOp", "Placeholder", "PlaceholderWithDefault", "Assert"}


class TensorFlow:
    """A Model over `call`, a function of TensorFlow that takes its inputs by name and gives a dict."""

    def __init__(self, call: Callable[..., Mapping[str, Any]], inputs: tuple[TensorSpec, ...], device: str) -> None:
        self.inputs, self.device = inputs, device
        self.outputs: tuple[TensorSpec, ...] = ()
        self.bits: set[str] = set()
        self.call = call
        self._place = f"/{device.replace('cuda', 'GPU')}" if device != "cpu" else "/CPU:0"
        self._halves = {spec.name for spec in inputs if spec.datatype == "BF16"}

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs. A value that the graph refuses: BadInput."""
        try:
            with tf.device(self._place):
                found = self.call(**{spec.name: self._tensor(spec.name, inputs[spec.name]) for spec in self.inputs})
            return {name: self._array(name, value) for name, value in found.items()}
        except tf.errors.InvalidArgumentError as error:
            raise errors.BadInput(f"the model refuses these values: {error.message}") from error

    def _tensor(self, name: str, array: Array) -> Any:
        if name in self._halves:
            return tf.constant(np.ascontiguousarray(array).view(tf.bfloat16.as_numpy_dtype))
        return tf.constant(array)

    def _array(self, name: str, value: Any) -> Array:
        array: Array = value.numpy()
        if value.dtype == tf.bfloat16:
            self.bits.add(name)
            array = array.view(np.uint16)
        return array


def load(folder: Path, manifest: Manifest, device: str) -> TensorFlow:
    """The model, ready to predict."""
    model = _open(folder, manifest, device)
    model.outputs = manifest.outputs
    return model


def inspect(folder: Path, manifest: Manifest, example: dict[str, Array]) -> Found:
    """What a signature or a graph says of its tensors, and what comes out."""
    model = _open(folder, manifest, "cpu")
    path = folder / manifest.file
    notes = [f"a SavedModel, read with TensorFlow {tf.__version__}"]
    if not path.is_dir():
        notes = [f"a frozen graph, read with TensorFlow {tf.__version__}"]
    found = trial.look(model.predict, model.inputs, example, notes)
    found.outputs = trial.halves(found.outputs, model.bits)
    return found


def prepare(device: str, where: str) -> str:
    """One thread, and the device or "cpu" where there is none like it. Of a GPU no more than is used is taken."""
    with suppress(RuntimeError):  # only before TensorFlow's first work in the process
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    there = tf.config.list_physical_devices("GPU")
    if device != "cpu" and not device.startswith("cuda"):
        raise errors.Misconfigured(f"{where}: device {device!r}; TensorFlow and Keras models take 'cpu' or 'cuda:0'")
    number = int(device.partition(":")[2] or 0) if device != "cpu" else -1
    with suppress(RuntimeError):
        if number < 0:
            tf.config.set_visible_devices([], "GPU")
        for one in there:
            tf.config.experimental.set_memory_growth(one, True)
    if number >= len(there):
        log.error(
            "%s: device %s is not there for TensorFlow %s (%d GPUs): it is computed on the CPU instead",
            where,
            device,
            tf.__version__,
            len(there),
        )
        number = -1
    return f"cuda:{number}" if number >= 0 else "cpu"


def _open(folder: Path, manifest: Manifest, device: str) -> TensorFlow:
    device = prepare(device, str(folder))
    path = folder / manifest.file
    try:
        call, inputs = _saved(path, manifest) if path.is_dir() else _frozen(path, manifest)
    except errors.Error:
        raise
    except Exception as error:  # protobuf, TensorFlow and the model's own functions raise whatever they like
        raise errors.Misconfigured(
            f"{path}: TensorFlow {tf.__version__} cannot load it: {type(error).__name__}: {str(error)[:500]}"
        ) from error
    return TensorFlow(call, manifest.inputs or inputs, device)


def _saved(path: Path, manifest: Manifest) -> tuple[Callable[..., Any], tuple[TensorSpec, ...]]:
    loaded = tf.saved_model.load(str(path))
    there = [name for name in loaded.signatures if not name.startswith("_")]
    wanted = manifest.settings.get("signature") or (there[0] if len(there) == 1 else "serving_default")
    if wanted not in there:
        raise errors.Misconfigured(
            f"{path} has no signature {wanted!r}, it has: {', '.join(there) or 'none'}; choose one with "
            "--setting signature=NAME, or export the model with one (model.export of Keras does)"
        )
    call = loaded.signatures[wanted]
    call.kept = loaded  # the function does not keep its variables
    return call, tuple(_spec(name, spec) for name, spec in call.structured_input_signature[1].items())


def _frozen(path: Path, manifest: Manifest) -> tuple[Callable[..., Any], tuple[TensorSpec, ...]]:
    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(path.read_bytes())
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    chosen = manifest.settings.get("tensors", {})
    if not isinstance(chosen, dict):
        raise errors.Misconfigured(f'{path}: settings.tensors is {chosen!r}; a table of name = "tensor:0"')
    operations = imported.graph.get_operations()
    placeholders = [one.name for one in operations if one.type == "Placeholder"]
    sinks = [
        tensor.name
        for one in operations
        if one.type not in _NO_ANSWER
        for tensor in one.outputs
        if not tensor.consumers()
    ]
    inside = {_short(tensor): tensor for tensor in (*(f"{name}:0" for name in placeholders), *sinks)}
    if chosen:
        takes = {n: str(t) for n, t in chosen.items() if _operation(str(t)) in placeholders}
        gives = {n: str(t) for n, t in chosen.items() if n not in takes}
    else:
        takes = {name: f"{name}:0" for name in placeholders}
        gives = {_short(name): name for name in sinks}
    if manifest.inputs:
        takes = {spec.name: takes.get(spec.name, f"{spec.name}:0") for spec in manifest.inputs}
    if manifest.outputs:
        gives = {spec.name: gives.get(spec.name, inside.get(spec.name, f"{spec.name}:0")) for spec in manifest.outputs}
    if not takes or not gives:
        raise errors.Misconfigured(
            f"{path} is a graph with placeholders {placeholders or 'none'} and ends in {sinks or 'nothing'}; name what "
            'it takes and gives: --setting \'tensors={"x": "x:0", "y": "dense/Softmax:0"}\''
        )
    by_name = imported.graph.as_graph_element
    tensors = {name: by_name(tensor) for name, tensor in (takes | gives).items()}
    pruned = imported.prune([tensors[name] for name in takes], {name: tensors[name] for name in gives})
    order = list(takes)

    def call(**named: Any) -> Any:
        return pruned(*[named[name] for name in order])

    return call, tuple(_spec(name, tensors[name]) for name in takes)


def _operation(tensor: str) -> str:
    return tensor.partition(":")[0]


def _short(tensor: str) -> str:
    """The operation's name stands for its first tensor."""
    return tensor.removesuffix(":0")


def _spec(name: str, value: Any) -> TensorSpec:
    if value.shape.rank is None:
        raise errors.Misconfigured(
            f"input {name!r} does not say its shape; type what the model takes: --input '{name}:FP32[-1,3]'"
        )
    shape = tuple(-1 if size is None else size for size in value.shape)
    return TensorSpec(name, trial.datatype_called(value.dtype.name), shape)
