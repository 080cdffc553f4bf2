"""PyTorch files: TorchScript, exported programs (`.pt2`), pickled modules, and weights for a class of the version's.

Rules of the room:
- One thread a call: parallelism is several processes, as for every other format.
- What a file is, its contents say; the suffix decides nothing but `.pt2`.
- Weights alone are read with `weights_only`: nothing in them runs. Their class comes from the version's own code.
- A GPU that cannot be had is said once, loudly, and the CPU takes its place.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before torch looks: large blocks are not split, so that a card that serves for weeks does not fill with gaps.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")

import numpy as np
import torch

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.runtimes import Found, trial
from millstream.types import Array, TensorSpec

IDLE_S = 30.0  # without a call for so long, what the allocator holds unused on the GPU is given back
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.bfloat16: "BF16",
}
_MAIN = "; a class that was defined in the script that saved it is nowhere else: put it into a file, --code net.py"
_WEIGHTS = ("state_dict", "model_state_dict", "model")  # where a training's checkpoint keeps them
log = logging.getLogger(__name__)


class Torch:
    """A Model over what a file holds, `program`. `bits`: outputs that were BF16, whose raw bits are given."""

    def __init__(self, program: Program, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs, self.outputs, self.device = inputs, outputs, program.device
        self.bits: set[str] = set()
        self.program = program
        if texts := [spec.name for spec in inputs if spec.datatype == "BYTES"]:
            raise errors.Misconfigured(f"PyTorch has no text tensors, the manifest says BYTES for {', '.join(texts)}")
        self._halves = {spec.name for spec in inputs if spec.datatype == "BF16"}
        self._names = [spec.name for spec in self.outputs]
        self._called = time.monotonic()
        if self.device != "cpu":
            threading.Thread(target=self._rest, daemon=True, name="gpu-rest").start()

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs. An index outside a table, or a size that the model's own checks refuse: BadInput."""
        self._called = time.monotonic()
        tensors = [self._tensor(spec.name, inputs[spec.name]) for spec in self.inputs]
        try:
            with torch.inference_mode():
                values = self.program(tensors)
                return {name: self._array(name, value) for name, value in trial.named(values, self._names).items()}
        except (IndexError, ValueError) as error:
            raise errors.BadInput(f"the model refuses these values: {error}") from error

    def _tensor(self, name: str, array: Array) -> Any:
        array = np.require(array, requirements=["C", "W"])  # a module may write into what it is given
        tensor = torch.from_numpy(array.view(np.int16) if name in self._halves else array)
        return (tensor.view(torch.bfloat16) if name in self._halves else tensor).to(self.device)

    def _array(self, name: str, value: Any) -> Array:
        if not isinstance(value, torch.Tensor):
            raise errors.Misconfigured(f"output {name!r} is a {type(value).__name__}; a model gives tensors")
        value = value.detach().to("cpu").contiguous()
        if value.dtype == torch.bfloat16:
            self.bits.add(name)
            value = value.view(torch.uint16)
        array: Array = value.numpy()
        return array

    def _rest(self) -> None:
        """Give back what the allocator holds unused, once in every time without calls."""
        rested = 0.0
        while True:
            time.sleep(IDLE_S)
            if rested == self._called or time.monotonic() - self._called < IDLE_S:
                continue
            rested = self._called
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            torch.cuda.empty_cache()
            log.info("%s: %d MB were held and unused, given back", self.device, unused >> 20)


class Program:
    """What a file holds, called with tensors in the order of its inputs. `kind`: see kind_of; `module`: what computes;
    `exported`: the exported program, if it is one; `names`, `specs`: what it says of its inputs, empty when nothing."""

    def __init__(self, folder: Path, manifest: Manifest, device: str) -> None:
        torch.set_num_threads(1)
        with suppress(RuntimeError):  # only before the first parallel work of the process
            torch.set_num_interop_threads(1)
        path = folder / manifest.file
        self.device = device = _device(device, str(folder))
        self.names: list[str] = []
        self.specs: tuple[TensorSpec, ...] = ()
        self.dtype: Any = None
        self.exported: Any = None
        self._spec: Any = None
        kind = kind_of(path)
        try:
            match kind:
                case "exported":
                    self._export(path, device)
                case "script":
                    self.module = torch.jit.load(str(path), map_location=device).eval()
                    arguments = self.module.forward.schema.arguments[1:]
                    self.names = [one.name for one in arguments if not one.has_default_value()]
                case _:
                    self.module = _module(path, folder, manifest, device)
        except (errors.Error, ImportError):
            raise
        except Exception as error:  # pickles raise whatever they like
            raise errors.Misconfigured(
                f"{path}: PyTorch {torch.__version__} cannot load it: {type(error).__name__}: {str(error)[:500]}"
                f"{_MAIN if '__main__' in str(error) else ''}"
            ) from error
        if kind != "exported":
            floats = (p.dtype for p in (*self.module.parameters(), *self.module.buffers()) if p.is_floating_point())
            self.dtype = next(floats, None)
        self.kind = kind

    def __call__(self, tensors: Sequence[Any]) -> Any:
        if self._spec is None:
            return self.module(*tensors)
        arguments, named = torch.utils._pytree.tree_unflatten(list(tensors), self._spec)
        return self.module(*arguments, **named)

    def _export(self, path: Path, device: str) -> None:
        program = torch.export.load(str(path))
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        self.names = [str(name) for name in program.graph_signature.user_inputs]
        values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        if odd := [name for name in self.names if not isinstance(values.get(name), torch.Tensor)]:
            raise errors.Misconfigured(f"{path}: its inputs {odd} are no tensors; export it with tensors alone")
        self.specs = tuple(_spec(name, values[name]) for name in self.names)
        self._spec = program.call_spec.in_spec
        self.exported, self.module = program, program.module()


def load(folder: Path, manifest: Manifest, device: str) -> Torch:
    """The model, ready to predict."""
    return Torch(Program(folder, manifest, device), manifest.inputs, manifest.outputs)


def inspect(folder: Path, manifest: Manifest, example: dict[str, Array]) -> Found:
    """What the file says of its tensors; TorchScript and modules do not, so an example or the manifest has to."""
    program = Program(folder, manifest, "cpu")
    what = f"weights for {manifest.entry}" if manifest.entry else _KINDS[program.kind]
    notes = [f"{what}, read with PyTorch {torch.__version__}"]
    inputs = manifest.inputs or program.specs
    if not inputs:
        inputs, example = _from_example(program, example, folder / manifest.file)
    elif program.names and len(program.names) != len(inputs):
        raise errors.Misconfigured(
            f"{folder / manifest.file} takes {', '.join(program.names)}; name just these: --input ..."
        )
    model = Torch(program, inputs, manifest.outputs)
    found = trial.look(model.predict, inputs, example, notes)
    found.outputs = trial.halves(found.outputs, model.bits)
    return found


def kind_of(path: Path) -> str:
    """What a file holds: "exported", "script", or "pickle" (a module or weights). Nothing of it is run."""
    if path.suffix == ".pt2":
        return "exported"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
        if any(name.endswith("/archive_format") for name in names):
            return "exported"
        if any(name.endswith("/constants.pkl") for name in names):
            return "script"
    return "pickle"


_KINDS = {"exported": "an exported program", "script": "TorchScript", "pickle": "a module"}


def _from_example(
    program: Program, example: dict[str, Array], path: Path
) -> tuple[tuple[TensorSpec, ...], dict[str, Array]]:
    """Inputs and example by what the example is."""
    names = program.names or ["x"]
    if not example:
        typed = " ".join(f"--input '{name}:FP32[-1,3]'" for name in names)
        raise errors.Misconfigured(
            f"{path} is {_KINDS[program.kind]}, which does not say what shapes it takes. Give an example, or type what "
            f"it takes, such as: {typed} (datatype, then the shape with -1 for the rows; an image is [-1,3,224,224])"
        )
    if len(names) == 1 and len(example) > 1 and program.names:
        example = {names[0]: np.stack([np.asarray(column) for column in example.values()], axis=1)}
    elif len(example) == 1 and len(names) == 1:
        example = {names[0]: next(iter(example.values()))}
    elif program.names and set(names) != set(example):
        raise errors.Misconfigured(f"{path} takes {', '.join(names)}; the example has {', '.join(example)}")
    ordered = {name: example[name] for name in (program.names or example)}
    wanted = _DTYPES.get(program.dtype, "FP32")
    specs = tuple(
        TensorSpec(spec.name, wanted if spec.datatype in ("FP32", "FP64") else spec.datatype, spec.shape)
        for spec in trial.specs_of(ordered)
    )
    return specs, ordered


def _module(path: Path, folder: Path, manifest: Manifest, device: str) -> Any:
    """A module out of a pickle, or its class with the weights that the file holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = torch.load(str(path), map_location=device, weights_only=bool(manifest.entry))
    if isinstance(held, torch.nn.Module):
        return held.eval()
    weights = _weights(held)
    if weights is None:
        raise errors.Misconfigured(f"{path} holds a {type(held).__name__}, neither a module nor its weights")
    if not manifest.entry:
        raise errors.Misconfigured(
            f"{path} holds weights alone ({len(weights)} tensors, such as {next(iter(weights), '')!r}): the class that "
            "takes them is needed too: --entry net:Net --code net.py"
        )
    module, _, name = manifest.entry.partition(":")
    made = getattr(importlib.import_module(module), name)(**_arguments(manifest, folder))
    made.load_state_dict(weights)
    return made.to(device).eval()


def _arguments(manifest: Manifest, folder: Path) -> dict[str, Any]:
    arguments = manifest.settings.get("arguments", {})
    if not isinstance(arguments, dict):
        raise errors.Misconfigured(f"{folder}: settings.arguments is {arguments!r}; a table of the class's arguments")
    return arguments


def _weights(held: Any) -> Mapping[str, Any] | None:
    """The state dict in a checkpoint: itself, or under one of the names that trainings use."""
    if not isinstance(held, Mapping):
        return None
    for name in _WEIGHTS:
        if isinstance(held.get(name), Mapping):
            held = held[name]
    return held if held and all(isinstance(value, torch.Tensor) for value in held.values()) else None


def _spec(name: str, value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    if value.dtype not in _DTYPES:
        raise errors.Misconfigured(f"input {name!r} is {value.dtype}, which no request can carry")
    return TensorSpec(name, _DTYPES[value.dtype], shape)


def _device(device: str, where: str) -> str:
    """The device, or "cpu" where there is none like it."""
    if device == "cpu":
        return "cpu"
    number = int(device.partition(":")[2] or 0) if device.startswith("cuda") else -1
    if number < 0:
        raise errors.Misconfigured(f"{where}: device {device!r}; PyTorch models take 'cpu' or 'cuda:0'")
    if number < torch.cuda.device_count():
        return f"cuda:{number}"
    log.error(
        "%s: device %s is not there for PyTorch %s (%d GPUs): it is computed on the CPU instead",
        where,
        device,
        torch.__version__,
        torch.cuda.device_count(),
    )
    return "cpu"
