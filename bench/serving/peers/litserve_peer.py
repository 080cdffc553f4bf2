"""LitServe: one worker a model, dynamic batching, its faster queue.

Its front looks at the annotation of `decode_request`'s parameter: without one the parsed JSON comes.
"""

from pathlib import Path
from typing import Any

import litserve
import runtime

BATCH_S = 0.001


class Onnx(litserve.LitAPI):
    def __init__(self, name: str, path: Path) -> None:
        super().__init__(max_batch_size=runtime.BATCH, batch_timeout=BATCH_S, api_path=f"/v2/models/{name}/infer")
        self.name, self.path = name, path

    def setup(self, device: str) -> None:
        self.session = runtime.session(self.path)

    def decode_request(self, request) -> runtime.Feed:
        return runtime.from_json(request)

    def batch(self, inputs: list[runtime.Feed]) -> list[runtime.Feed]:
        return inputs

    def predict(self, x: list[runtime.Feed]) -> list[runtime.Array]:
        return runtime.run(self.session, x)

    def unbatch(self, output: list[runtime.Array]) -> list[runtime.Array]:
        return output

    def encode_response(self, output: runtime.Array) -> dict[str, Any]:
        return runtime.answer(self.name, output)


if __name__ == "__main__":
    arguments = runtime.arguments()
    apis = [Onnx(name, arguments.models / f"{name}.onnx") for name in arguments.names]
    server = litserve.LitServer(apis, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=arguments.http, num_api_servers=1, log_level="warning", access_log=False,
               generate_client_file=False)  # fmt: skip
