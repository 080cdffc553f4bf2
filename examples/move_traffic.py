"""Two versions of a model, a canary, a promotion and a roll back, while the service runs.

    pip install millstream onnx
    python examples/move_traffic.py

Every change is one atomic replacement of `models/tiny/policy.toml`; the running service follows within 0.2 s.
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def add(path: Path, number: float) -> None:
    """y = x + number: a model whose answer betrays its version."""
    constant = numpy_helper.from_array(np.array(number, np.float32), "number")
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    graph = helper.make_graph([helper.make_node("Add", ["x", "number"], ["y"])], "add", [takes], [gives], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True)
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


def who_answers(url: str, requests: int = 300) -> dict[str, int]:
    """How often each version answers, for so many users."""
    seen: Counter[str] = Counter()
    for number in range(requests):
        body = {
            "parameters": {"key": f"user-{number}"},
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0.0]}],
        }
        with urllib.request.urlopen(f"{url}/v2/models/tiny/infer", json.dumps(body).encode()) as answer:
            seen[json.load(answer)["model_version"]] += 1
    return dict(sorted(seen.items()))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        for version in (1, 2):
            add(models / "tiny" / str(version) / "model.onnx", version)

        def traffic(*words: str) -> None:
            verb, *rest = words
            print("$ millstream traffic", verb, "models tiny", *rest, flush=True)
            command = [sys.executable, "-m", "millstream", "traffic", verb, str(models), "tiny", *rest]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            time.sleep(0.5)

        traffic("promote", "1")
        command = [sys.executable, "-m", "millstream", "serve", str(models), "--http-port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            url = address(server)
            print(who_answers(url))
            traffic("canary", "2", "--share", "0.2")
            print(who_answers(url))
            traffic("promote", "2")
            print(who_answers(url))
            traffic("rollback", "--why", "an example")
            print(who_answers(url))
        finally:
            server.terminate()
            server.communicate()


if __name__ == "__main__":
    main()
