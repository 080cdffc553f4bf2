"""Ray Serve: one replica a model, request batching, raw bodies, no access log.

RAY_SERVE_THROUGHPUT_OPTIMIZED and RAY_SERVE_ENABLE_HA_PROXY, when set, are what its guide to tuning recommends; the
proxy then listens on every interface, whatever host is asked for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import orjson
import ray
import runtime
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

BATCH_S = 0.001


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Onnx:
    def __init__(self, name: str, path: str) -> None:
        self.name, self.session = name, runtime.session(path)

    @serve.batch(max_batch_size=runtime.BATCH, batch_wait_timeout_s=BATCH_S)
    async def score(self, feeds: list[runtime.Feed]) -> list[runtime.Array]:
        return runtime.run(self.session, feeds)

    async def __call__(self, request: Request) -> Response:
        body, head = await request.body(), request.headers.get("inference-header-content-length")
        if head is None:
            scores = await self.score(runtime.from_json(orjson.loads(body)))
            return Response(orjson.dumps(runtime.answer(self.name, scores)), media_type="application/json")
        content, size = runtime.binary_answer(self.name, await self.score(runtime.from_binary(body, int(head))))
        return Response(content, headers={"Inference-Header-Content-Length": str(size)})


if __name__ == "__main__":
    arguments = runtime.arguments()
    here = str(Path(__file__).parent)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
             runtime_env={"env_vars": {"PYTHONPATH": here}})  # fmt: skip
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=arguments.http),
                logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"))  # fmt: skip
    for name in arguments.names:
        serve.run(
            Onnx.bind(name, str(arguments.models / f"{name}.onnx")), name=name, route_prefix=f"/v2/models/{name}/infer"
        )
    while True:
        time.sleep(3600)
