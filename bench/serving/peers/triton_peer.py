"""Triton by the nvidia-pytriton wheel: the server it ships, dynamic batching, and our model in its Python backend.

The wheel's own binding hands every request to one more process; a model.py in the server's repository is the shorter
way. The wheel has no ONNX backend.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROWS = 3200
CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {rows}
{inputs}
output {{ name: "{output}" data_type: TYPE_FP32 dims: [ 1 ] }}
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group {{ kind: KIND_CPU count: 1 }}
parameters {{ key: "file" value {{ string_value: "{file}" }} }}
"""


class TritonPythonModel:
    """What the backend looks for; `execute` gets the requests of one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        import json

        import runtime
        import triton_python_backend_utils as backend

        self.runtime, self.backend, self.name = runtime, backend, args["model_name"]
        file = json.loads(args["model_config"])["parameters"]["file"]["string_value"]
        self.session = runtime.session(file)

    def execute(self, requests: list[Any]) -> list[Any]:
        get, runtime = self.backend.get_input_tensor_by_name, self.runtime
        feeds = [{key: get(one, key).as_numpy() for key, _, _ in runtime.INPUTS[self.name]} for one in requests]
        tensor, response = self.backend.Tensor, self.backend.InferenceResponse
        return [response([tensor(runtime.OUTPUT[self.name], scores)]) for scores in runtime.run(self.session, feeds)]


def main() -> None:
    import runtime

    arguments = runtime.arguments()
    wheel = Path(importlib.util.find_spec("pytriton").origin).parent / "tritonserver"
    backends = arguments.work / "backends"
    shutil.copytree(wheel / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    for name in arguments.names:
        inputs = "\n".join(
            f'input {{ name: "{key}" data_type: TYPE_{dtype} dims: [ {width} ] }}'
            for key, dtype, width in runtime.INPUTS[name]
        )
        folder = arguments.work / "models" / name / "1"
        folder.mkdir(parents=True)
        shutil.copy(__file__, folder / "model.py")
        shutil.copy(Path(__file__).parent / "runtime.py", folder)
        file = arguments.models / f"{name}.onnx"
        config = CONFIG.format(name=name, rows=ROWS, inputs=inputs, output=runtime.OUTPUT[name], file=file)
        (folder.parent / "config.pbtxt").write_text(config)
    server = str(wheel / "bin" / "tritonserver")
    libraries = Path(sysconfig.get_path("purelib")) / "nvidia_pytriton.libs"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where the backend looks for its Python
    environment = {**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(libraries)}
    os.execve(server, [
        server, f"--model-repository={arguments.work / 'models'}", f"--backend-directory={backends}",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--http-port={arguments.http}",
        f"--grpc-port={arguments.grpc}", "--allow-metrics=false", "--log-info=false",
        f"--cache-directory={wheel / 'caches'}",
    ], environment)  # fmt: skip


if __name__ == "__main__":
    main()
