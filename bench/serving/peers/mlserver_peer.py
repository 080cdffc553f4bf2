"""MLServer: a custom runtime, no worker processes, adaptive batching: of its settings what costs least over JSON."""

from __future__ import annotations

import json
import os
import sys

import runtime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

BATCH_S = 0.001


class Onnx(MLModel):
    async def load(self) -> bool:
        self.session = runtime.session(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        scores = self.session.run(None, feed)[0]
        output = NumpyCodec.encode_output(runtime.OUTPUT[self.name], scores)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])


def main() -> None:
    arguments = runtime.arguments()
    settings = {
        "host": "127.0.0.1", "http_port": arguments.http, "grpc_port": arguments.grpc,
        "metrics_port": arguments.spare, "parallel_workers": 0, "debug": False, "gzip_enabled": False,
    }  # fmt: skip
    (arguments.work / "settings.json").write_text(json.dumps(settings))
    for name in arguments.names:
        model = {
            "name": name, "implementation": "mlserver_peer.Onnx", "max_batch_size": runtime.BATCH,
            "max_batch_time": BATCH_S, "parameters": {"uri": str(arguments.models / f"{name}.onnx")},
        }  # fmt: skip
        folder = arguments.work / name
        folder.mkdir(exist_ok=True)
        (folder / "model-settings.json").write_text(json.dumps(model))
    code = "import sys; from mlserver.cli import main; sys.argv = ['mlserver', 'start', sys.argv[1]]; main()"
    path = os.path.dirname(os.path.abspath(__file__))
    os.execve(sys.executable, [sys.executable, "-c", code, str(arguments.work)], {**os.environ, "PYTHONPATH": path})


if __name__ == "__main__":
    main()
