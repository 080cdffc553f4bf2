"""What every small server script has in common: its arguments, the ONNX session, V2 in JSON and in binary.

Needs numpy, onnxruntime and orjson alone, so that it imports in every peer's environment.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson

INPUTS = {"deepfm": (("cat", "INT64", 26), ("dense", "FP32", 13)), "tiny": (("x", "FP32", 8),)}
OUTPUT = {"deepfm": "prob", "tiny": "y"}
DTYPES = {"INT64": np.int64, "FP32": np.float32}
BATCH = 32  # requests joined in one call of the model, where a server can

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True, help="folder with NAME.onnx")
    parser.add_argument("--names", required=True, help="which of them, with commas")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--http", type=int, required=True)
    parser.add_argument("--grpc", type=int, required=True)
    parser.add_argument("--spare", type=int, required=True, help="a third free port")
    parsed = parser.parse_args()
    parsed.names = parsed.names.split(",")
    parsed.work.mkdir(parents=True, exist_ok=True)
    return parsed


def session(path: Path | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(model: onnxruntime.InferenceSession, feeds: list[Feed]) -> list[Array]:
    """One call of the model for many requests, split again."""
    if len(feeds) == 1:
        return [model.run(None, feeds[0])[0]]
    joined = {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}
    ends = np.cumsum([len(next(iter(one.values()))) for one in feeds])[:-1]
    return np.split(model.run(None, joined)[0], ends)


def from_json(document: dict[str, Any]) -> Feed:
    return {
        one["name"]: np.array(one["data"], DTYPES[one["datatype"]]).reshape(one["shape"]) for one in document["inputs"]
    }


def from_binary(body: bytes, head: int) -> Feed:
    feed, at = {}, head
    for one in orjson.loads(body[:head])["inputs"]:
        dtype = DTYPES[one["datatype"]]
        size = one["parameters"]["binary_data_size"]
        feed[one["name"]] = np.frombuffer(body, dtype, size // dtype().itemsize, at).reshape(one["shape"])
        at += size
    return feed


def answer(model: str, scores: Array) -> dict[str, Any]:
    """A V2 answer as a document."""
    output = {"name": OUTPUT[model], "datatype": "FP32", "shape": list(scores.shape), "data": scores.ravel().tolist()}
    return {"model_name": model, "model_version": "1", "outputs": [output]}


def binary_answer(model: str, scores: Array) -> tuple[bytes, int]:
    """A V2 answer with binary tensors, and the length of its JSON part."""
    output = {
        "name": OUTPUT[model], "datatype": "FP32", "shape": list(scores.shape),
        "parameters": {"binary_data_size": scores.nbytes},
    }  # fmt: skip
    head = orjson.dumps({"model_name": model, "model_version": "1", "outputs": [output]})
    return head + scores.tobytes(), len(head)
