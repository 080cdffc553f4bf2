"""ONNX files on ONNX Runtime, one thread a call.

Rules of the room:
- Parallelism is several calls at once, never several threads inside one: no spinning, no pool that idles hot.
- ONNX Runtime releases the GIL while it loads and runs; its own messages stay off stderr and come back as errors.
- BYTES are text to ONNX: bytes are decoded as UTF-8 on the way in, answers are str.
"""

from __future__ import annotations

from pathlib import Path

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
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
# What ONNX Runtime raises shares no base class of its own.
_FAILURES = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


class Onnx:
    """A Model over one `.onnx` file. A file that is not a whole ONNX model: Corrupt; one that cannot be served:
    Misconfigured."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (state.InvalidProtobuf, state.InvalidGraph, state.NoSuchFile) as error:
            raise errors.Corrupt(f"{path}: not a whole ONNX model ({error}); export or copy it again") from error
        except _FAILURES as error:
            raise errors.Misconfigured(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {error}") from error
        self.inputs = tuple(_spec(path, node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(path, node) for node in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._texts = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs. A value that the graph refuses (an index outside a table, say): BadInput."""
        if self._texts:
            inputs = inputs | {name: _decoded(name, inputs[name]) for name in self._texts}
        try:
            return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
        except state.InvalidArgument as error:
            raise errors.BadInput(f"the model refuses these values: {error}") from error


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
