"""TorchServe: its Java front, one worker, batches of its own, a service of ours that calls ONNX Runtime."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

BATCH_MS = 1
HERE = Path(__file__).parent


class Scores:
    """What TorchServe calls: a list of requests in, a list of answers out."""

    def initialize(self, context: Any) -> None:
        import runtime

        self.runtime, self.name = runtime, context.manifest["model"]["modelName"]
        self.session = runtime.session(Path(os.environ["PEER_MODELS"]) / f"{self.name}.onnx")

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        feeds, heads = [], []
        for at, one in enumerate(data):
            body = one.get("body")
            head = context.get_request_header(at, "Inference-Header-Content-Length")
            heads.append(head)
            feeds.append(
                self.runtime.from_binary(bytes(body), int(head)) if head else self.runtime.from_json(as_document(body))
            )
        answers: list[Any] = []
        for at, scores in enumerate(self.runtime.run(self.session, feeds)):
            if not heads[at]:
                answers.append(self.runtime.answer(self.name, scores))
                continue
            content, size = self.runtime.binary_answer(self.name, scores)
            context.set_response_header(at, "Inference-Header-Content-Length", str(size))
            answers.append(content)
        return answers


def as_document(body: Any) -> dict[str, Any]:
    return body if isinstance(body, dict) else json.loads(bytes(body))


SCORES = Scores()


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
    """The entry point that TorchServe looks for."""
    if data is None:
        SCORES.initialize(context)
        return None
    return SCORES.handle(data, context)


def main() -> None:
    import runtime

    arguments = runtime.arguments()
    store = arguments.work / "store"
    store.mkdir(exist_ok=True)
    for name in arguments.names:
        manifest = {
            "createdOn": "", "runtime": "python", "archiverVersion": "0.12.0",
            "model": {"modelName": name, "handler": "torchserve_peer.py:handle", "modelVersion": "1.0"},
        }  # fmt: skip
        with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            for script in ("torchserve_peer.py", "runtime.py"):
                archive.write(HERE / script, script)
    one = {"defaultVersion": True, "minWorkers": 1, "maxWorkers": 1, "batchSize": runtime.BATCH,
           "maxBatchDelay": BATCH_MS, "responseTimeout": 60}  # fmt: skip
    models = {name: {"1.0": {**one, "marName": f"{name}.mar"}} for name in arguments.names}
    settings = {
        "inference_address": f"http://127.0.0.1:{arguments.http}",
        "management_address": f"http://127.0.0.1:{arguments.spare}",
        "metrics_address": f"http://127.0.0.1:{arguments.spare}", "enable_metrics_api": "false",
        "grpc_inference_port": str(arguments.grpc), "load_models": "all", "models": json.dumps(models),
        "disable_token_authorization": "true", "enable_envvars_config": "false", "job_queue_size": "1000",
        "disable_system_metrics": "true",
    }  # fmt: skip
    (arguments.work / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    (arguments.work / "log4j2.xml").write_text(
        '<Configuration><Appenders><Console name="c"/></Appenders><Loggers><Root level="warn">'
        '<AppenderRef ref="c"/></Root></Loggers></Configuration>'
    )
    command = [
        sys.executable, "-c", "from ts.model_server import start; start()", "--start", "--foreground", "--ncs",
        "--model-store", str(store), "--ts-config", str(arguments.work / "config.properties"),
        "--log-config", str(arguments.work / "log4j2.xml"),
    ]  # fmt: skip
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ, "PEER_MODELS": str(arguments.models), "TMPDIR": str(arguments.work), "TEMP": str(arguments.work),
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "LOG_LOCATION": str(arguments.work),
        "METRICS_LOCATION": str(arguments.work),
    }  # fmt: skip
    os.chdir(arguments.work)
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
