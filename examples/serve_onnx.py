"""Serve an ONNX file and ask it from Python.

    pip install millstream onnx
    python examples/serve_onnx.py

Makes a tiny model in a temporary folder, starts `millstream serve` on a free port, and calls it with the client.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from millstream.client import Client
from millstream.errors import BadInput


def tiny_model(path: Path) -> None:
    """probability = sigmoid(x @ weights): float32 [rows, 3] to float32 [rows, 1]."""
    weights = numpy_helper.from_array(np.array([[0.5], [-1.0], [2.0]], np.float32), "weights")
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])
    gives = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 1])
    graph = helper.make_graph(nodes, "tiny", [takes], [gives], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))


def address(server: subprocess.Popen[str]) -> str:
    """The address from the line that says so; what the server said instead, when it ends without one."""
    assert server.stderr is not None
    said = []
    for line in server.stderr:
        said.append(line)
        if "serving at " in line:
            return line.split("serving at ")[1].strip()
    raise SystemExit("".join(said))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        tiny_model(path)
        command = [sys.executable, "-m", "millstream", "serve", str(path), "--http-port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            with Client(address(server)) as client:
                outputs = client.predict("tiny", {"x": [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]})
                print("probability:", outputs["probability"].ravel().round(4).tolist())
                try:
                    client.predict("tiny", {"x": [[1.0, 2.0]]})
                except BadInput as error:
                    print("refused:", error)
        finally:
            server.terminate()
            server.communicate()


if __name__ == "__main__":
    main()
