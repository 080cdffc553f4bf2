"""KServe's Python server: one process, no latency log, no access log. It has no batching of its own in the process."""

from __future__ import annotations

import logging
import sys

import runtime

ARGUMENTS = runtime.arguments()
sys.argv[1:] = ["--configure_logging", "false"]  # kserve reads the command line when it is imported

import kserve  # noqa: E402
from kserve.utils.utils import get_predict_response  # noqa: E402


class Onnx(kserve.Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.session = runtime.session(ARGUMENTS.models / f"{name}.onnx")
        self.ready = True

    async def predict(self, payload: kserve.InferRequest, headers: object = None) -> kserve.InferResponse:
        scores = self.session.run(None, {one.name: one.as_numpy() for one in payload.inputs})[0]
        return get_predict_response(payload, scores, self.name)


logging.disable(logging.INFO)
server = kserve.ModelServer(
    http_port=ARGUMENTS.http, grpc_port=ARGUMENTS.grpc, workers=1, enable_latency_logging=False, access_log_format=None
)
server.start([Onnx(name) for name in ARGUMENTS.names])
