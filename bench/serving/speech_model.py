"""Make the straggler's model: `python speech_model.py FILE`, in an environment that has onnx.

One convolution over the samples, in frames of 25 ms every 10 ms, as a speech front end does, pooled over the frames
that lie within the true length: what is padded behind it changes no answer.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FRAME, HOP, CHANNELS, CLASSES = 400, 160, 224, 8


def model() -> onnx.ModelProto:
    random = np.random.default_rng(7)
    kernel = random.normal(0, 0.05, (CHANNELS, 1, FRAME)).astype(np.float32)
    weights = random.normal(0, 0.3, (CHANNELS, CLASSES)).astype(np.float32)
    constants = {
        "kernel": kernel, "weights": weights, "one": np.array([1], np.int64), "two": np.array([2], np.int64),
        "zero": np.array(0, np.int64), "step": np.array(1, np.int64), "hop": np.array(HOP, np.int64),
        "frame": np.array(FRAME, np.int64), "last": np.array(2, np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Unsqueeze", ["audio", "one"], ["samples"]),
        helper.make_node("Conv", ["samples", "kernel"], ["frames"], kernel_shape=[FRAME], strides=[HOP]),
        helper.make_node("Relu", ["frames"], ["active"]),
        helper.make_node("Shape", ["active"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["count"], axis=0),
        helper.make_node("Range", ["zero", "count", "step"], ["index"]),
        helper.make_node("Mul", ["index", "hop"], ["start"]),
        helper.make_node("Add", ["start", "frame"], ["end"]),
        helper.make_node("Unsqueeze", ["audio_lengths", "one"], ["length"]),
        helper.make_node("LessOrEqual", ["end", "length"], ["within"]),
        helper.make_node("Cast", ["within"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "one"], ["wide"]),
        helper.make_node("Mul", ["active", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "two"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["number"], keepdims=1),
        helper.make_node("Div", ["sum", "number"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "speech",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["N", "T"]),
         helper.make_tensor_value_info("audio_lengths", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made


if __name__ == "__main__":
    onnx.save(model(), sys.argv[1])
