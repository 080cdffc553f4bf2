"""BentoML: a service a process, adaptive batching over one array, no access log, no metrics.

Its batching joins one array input, so ids and dense numbers come as one matrix (ids below 2^24 are exact in float32).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
import runtime

NAMES, MODELS = os.environ.get("PEER_NAMES", ""), Path(os.environ.get("PEER_MODELS", "."))
LATENCY_MS = 1000


def split(name: str, matrix: np.ndarray) -> runtime.Feed:
    feed, at = {}, 0
    for key, dtype, width in runtime.INPUTS[name]:
        feed[key] = np.ascontiguousarray(matrix[:, at : at + width], runtime.DTYPES[dtype])
        at += width
    return feed


@bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Ranker:
    def __init__(self) -> None:
        self.sessions = {name: runtime.session(MODELS / f"{name}.onnx") for name in NAMES.split(",")}

    @bentoml.api(route="/deepfm", batchable=True, max_batch_size=runtime.BATCH * 100, max_latency_ms=LATENCY_MS)
    def deepfm(self, x: np.ndarray) -> np.ndarray:
        return self.sessions["deepfm"].run(None, split("deepfm", x))[0]

    @bentoml.api(route="/tiny", batchable=True, max_batch_size=runtime.BATCH * 100, max_latency_ms=LATENCY_MS)
    def tiny(self, x: np.ndarray) -> np.ndarray:
        return self.sessions["tiny"].run(None, split("tiny", x))[0]


def main() -> None:
    arguments = runtime.arguments()
    environment = {
        **os.environ, "PEER_NAMES": ",".join(arguments.names), "PEER_MODELS": str(arguments.models),
        "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(arguments.work),
    }  # fmt: skip
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_peer:Ranker", "--working-dir",
               str(Path(__file__).parent), "--host", "127.0.0.1", "--port", str(arguments.http)]  # fmt: skip
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
