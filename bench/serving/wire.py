"""Requests as bytes: V2 over HTTP with JSON or binary tensors, V2 over gRPC, and what BentoML takes.

The two models are those of the floor's make_models.py: `deepfm` (26 categorical ids, 13 dense numbers a row) and `tiny`
(8 numbers a row). A body is made before a measurement starts: making it costs nobody who is measured.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import orjson

FIELDS, VOCABULARY, DENSE, TINY = 26, 100_000, 13, 8
INPUTS = {"deepfm": (("cat", "INT64", FIELDS), ("dense", "FP32", DENSE)), "tiny": (("x", "FP32", TINY),)}
NAMES = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}
METHOD = "/inference.GRPCInferenceService/ModelInfer"

Feed = dict[str, np.ndarray[Any, Any]]


def feed(model: str, rows: int, random: np.random.Generator) -> Feed:
    """Arrays for one request."""
    if model == "tiny":
        return {"x": random.random((rows, TINY), np.float32)}
    ids = random.integers(0, VOCABULARY, (rows, FIELDS))
    return {"cat": ids, "dense": random.random((rows, DENSE), np.float32)}


def _inputs(arrays: Feed) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": NAMES[array.dtype], "shape": list(array.shape)} for name, array in arrays.items()
    ]


def json_body(arrays: Feed) -> bytes:
    inputs = _inputs(arrays)
    for one, array in zip(inputs, arrays.values(), strict=True):
        one["data"] = array.ravel()
    return orjson.dumps({"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)


def binary_body(arrays: Feed) -> tuple[bytes, int]:
    """The body and the length of its JSON part; the answer is asked for in binary too."""
    inputs = _inputs(arrays)
    for one, array in zip(inputs, arrays.values(), strict=True):
        one["parameters"] = {"binary_data_size": array.nbytes}
    head = orjson.dumps({"parameters": {"binary_data_output": True}, "inputs": inputs})
    return head + b"".join(array.tobytes() for array in arrays.values()), len(head)


def matrix_body(arrays: Feed) -> bytes:
    """One matrix of numbers, ids first: the single array that BentoML's batching can join."""
    matrix = np.concatenate([array.astype(np.float32) for array in arrays.values()], axis=1)
    return orjson.dumps({"x": matrix}, option=orjson.OPT_SERIALIZE_NUMPY)


def post(path: str, body: bytes, kind: str, more: bytes = b"") -> bytes:
    """A whole HTTP request."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n"
    return head % (path.encode(), kind.encode(), len(body), more) + body


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def grpc_message(model: str, arrays: Feed) -> bytes:
    """A ModelInferRequest with raw contents, in gRPC's five-byte frame."""
    out = _field(1, model.encode())
    for name, array in arrays.items():
        shape = b"".join(_varint(size) for size in array.shape)
        out += _field(5, _field(1, name.encode()) + _field(2, NAMES[array.dtype].encode()) + _field(3, shape))
    out += b"".join(_field(7, array.tobytes()) for array in arrays.values())
    return b"\0" + len(out).to_bytes(4, "big") + out


def requests(protocol: str, path: str, model: str, rows: int, count: int) -> list[bytes]:
    """`count` distinct requests in `protocol`, so that embedding rows are not always the same ones."""
    random = np.random.default_rng(7)
    return [_request(protocol, path.format(model=model), model, feed(model, rows, random)) for _ in range(count)]


def _request(protocol: str, path: str, model: str, arrays: Feed) -> bytes:
    if protocol == "grpc":
        return grpc_message(model, arrays)
    if protocol == "json":
        return post(path, json_body(arrays), "application/json")
    if protocol == "matrix":
        return post(path, matrix_body(arrays), "application/json")
    body, head = binary_body(arrays)
    return post(path, body, "application/octet-stream", b"Inference-Header-Content-Length: %d\r\n" % head)


@functools.cache
def width(model: str) -> int:
    """Numbers a row."""
    return sum(size for _, _, size in INPUTS[model])
