"""ONNX files on ONNX Runtime, one thread a call.

Rules of the room:
- Parallelism is several calls at once, never several threads inside one: no spinning, no pool that idles hot.
- ONNX Runtime releases the GIL while it loads and runs; its own messages stay off stderr and come back as errors.
- BYTES are text to ONNX: bytes are decoded as UTF-8 on the way in, answers are str.
- BF16 has no numpy type: its bits go in and out through ONNX Runtime's own values.
- A device that cannot be had is said once, loudly, and the CPU takes its place; what was asked for is never silent.
"""

from __future__ import annotations

import ctypes
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from millstream import errors
from millstream.types import Array, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_GPU = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
log = logging.getLogger(__name__)
# What ONNX Runtime raises shares no base class of its own.
_FAILURES = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


class Onnx:
    """A Model over one `.onnx` file. A file that is not a whole ONNX model: Corrupt; one that cannot be served:
    Misconfigured."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers, self.device = _providers(device, str(path))
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except (state.InvalidProtobuf, state.InvalidGraph, state.NoSuchFile) as error:
            raise errors.Corrupt(f"{path}: not a whole ONNX model ({error}); export or copy it again") from error
        except _FAILURES as error:
            raise errors.Misconfigured(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {error}") from error
        self.inputs = tuple(_spec(path, node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(path, node) for node in self._session.get_outputs())
        self._alike = _alike(self._session.get_inputs())
        self._names = [spec.name for spec in self.outputs]
        if self.device != "cpu" and self._session.get_providers()[0] == "CPUExecutionProvider":
            log.error("%s: %s did not start, it is computed on the CPU instead", path, device)
            self.device = "cpu"
        self._texts = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]
        self._halves = any(spec.datatype == "BF16" for spec in (*self.inputs, *self.outputs))

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs. A value that the graph refuses (an index outside a table, say): BadInput."""
        for name, places in self._alike:
            sizes = {inputs[tensor].shape[axis] for tensor, axis in places}
            if len(sizes) > 1:
                told = ", ".join(f"{tensor!r} {list(inputs[tensor].shape)}" for tensor, _ in places)
                raise errors.BadInput(
                    f"inputs differ where the model wants one size, {name!r}: {told}; make them agree"
                )
        if self._texts:
            inputs = inputs | {name: _decoded(name, inputs[name]) for name in self._texts}
        try:
            if self._halves:
                return self._run_values(inputs)
            return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
        except state.InvalidArgument as error:
            raise errors.BadInput(f"the model refuses these values: {error}") from error

    def _run_values(self, inputs: dict[str, Array]) -> dict[str, Array]:
        values = {}
        for spec in self.inputs:
            array = np.ascontiguousarray(inputs[spec.name])
            if spec.datatype == "BF16":
                values[spec.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
            else:
                values[spec.name] = ort.OrtValue.ortvalue_from_numpy(array)
        found = self._session.run_with_ort_values(self._names, values)
        return {
            spec.name: _bits(value) if spec.datatype == "BF16" else value.numpy()
            for spec, value in zip(self.outputs, found, strict=True)
        }


def _bits(value: Any) -> Array:
    """A copy of a bfloat16 value's bits: its memory is gone with it."""
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.empty(shape, np.uint16)
    found = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return found.reshape(shape).copy()


def _providers(device: str, where: str) -> tuple[list[Any], str]:
    """ONNX Runtime's providers for a device, and the device that they amount to here."""
    found = re.fullmatch(r"cpu|(cuda|tensorrt)(?::(\d+))?", device)
    if not found:
        raise errors.Misconfigured(f"{where}: device {device!r}; say 'cpu', 'cuda:0' or 'tensorrt:0'")
    if found[1] is None:
        return ["CPUExecutionProvider"], "cpu"
    wanted, number = _GPU[found[1]], int(found[2] or 0)
    there = ort.get_available_providers()
    if wanted not in there:
        log.error(
            "%s: device %s needs ONNX Runtime's %s, this installation has %s: it is computed on the CPU instead. "
            "On a machine with an NVIDIA GPU: pip uninstall onnxruntime && pip install onnxruntime-gpu",
            where,
            device,
            wanted,
            ", ".join(there),
        )
        return ["CPUExecutionProvider"], "cpu"
    # Memory grows by what is asked for, not by doubling: several models share one card.
    options = {"device_id": number, "arena_extend_strategy": "kSameAsRequested"}
    cuda = ("CUDAExecutionProvider", options)
    first = [("TensorrtExecutionProvider", {"device_id": number})] if found[1] == "tensorrt" else []
    return [*first, cuda, "CPUExecutionProvider"], f"{found[1]}:{number}"


def _alike(nodes: list[ort.NodeArg]) -> list[tuple[str, list[tuple[str, int]]]]:
    """(name of a free dimension, where it stands) of those after the rows that several inputs share."""
    places: dict[str, list[tuple[str, int]]] = {}
    for node in nodes:
        for axis, size in enumerate(node.shape):
            if axis and isinstance(size, str):
                places.setdefault(size, []).append((node.name, axis))
    return [(name, found) for name, found in places.items() if len(found) > 1]


def _spec(path: Path, node: ort.NodeArg) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise errors.Misconfigured(
            f"{path}: {node.name!r} is a {node.type}, which no request can carry; export it as a plain tensor "
            "(scikit-learn: zipmap=False)"
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)


def _decoded(name: str, array: Array) -> Array:
    """`array` with every bytes object as str; ONNX Runtime would take the text of its repr instead."""
    if array.dtype.kind == "U":
        return array
    cells = array.ravel()
    try:
        texts = [cell.decode() if isinstance(cell, bytes) else str(cell) for cell in cells.tolist()]
    except UnicodeDecodeError as error:
        raise errors.BadInput(
            f"input {name!r}: a BYTES value is not UTF-8 text ({error}); this model reads text"
        ) from error
    return np.array(texts, np.object_).reshape(array.shape)
