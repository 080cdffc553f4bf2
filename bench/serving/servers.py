"""Who is measured: us, the fixed floor, raw gRPC echoes, and the peers, each by the command that starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import environments
import wire
from environments import ROOT, SCRATCH
from process import Server, free_ports

HERE = Path(__file__).resolve().parent
FLOOR = ROOT.parent / "shared" / "bench" / "serving"
V2 = "/v2/models/{model}/infer"
MODELS = ("deepfm", "tiny")
BOOT_S = 90.0


class Unavailable(Exception):
    """A server that cannot be started here, with the reason."""


@dataclass(frozen=True)
class Entry:
    """One server: `protocols` names what it speaks and at which path; `environment`: "" is ours."""

    name: str
    title: str
    protocols: dict[str, str]
    environment: str = ""
    script: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    deep: bool = False  # measured in every case, not in the two that compare everybody
    settle_s: float = 0.0  # after its first answer, where a start goes on behind it
    warm_s: float = 0.0  # before the first window of a case, where a compiler has to see the load first


def ours() -> Entry:
    """Millstream; with gRPC where this version offers it."""
    protocols = {"binary": V2, "json": V2}
    said = subprocess.run([sys.executable, "-m", "millstream", "serve", "--help"], capture_output=True, text=True)
    if "--grpc-port" in said.stdout:
        protocols["grpc"] = ""
    return Entry("millstream", "Millstream", protocols, deep=True)


def entries() -> list[Entry]:
    http = {"binary": V2, "json": V2}
    return [
        ours(),
        Entry("floor", "the fixed floor", http, deep=True),
        Entry("echo-sync", "raw gRPC echo, sync", {"grpc": ""}, "echo", "echo", deep=True),
        Entry("echo-aio", "raw gRPC echo, aio", {"grpc": ""}, "echo", "echo", {"ECHO_AIO": "1"}, deep=True),
        Entry("echo-model", "sync echo + model", {"grpc": ""}, "echo", "echo", {"ECHO_MODEL": "1"}),
        Entry("triton", "Triton, Python backend (nvidia-pytriton 0.7.0)", {**http, "grpc": ""}, "triton", "triton"),
        Entry("torchserve", "TorchServe 0.12.0", {"binary": "/predictions/{model}", "json": "/predictions/{model}"},
              "torchserve", "torchserve", warm_s=4.0),
        Entry("kserve", "KServe SDK 0.21.0", {**http, "grpc": ""}, "kserve", "kserve"),
        Entry("mlserver", "MLServer 1.7.1", {"json": V2, "grpc": ""}, "mlserver", "mlserver"),
        Entry("bentoml", "BentoML 1.4.40", {"matrix": "/{model}"}, "bentoml", "bentoml"),
        Entry("litserve", "LitServe 0.2.19", {"json": V2}, "litserve", "litserve"),
        Entry("ray", "Ray Serve 2.60.0, tuned, HAProxy", http, "ray", "ray",
              {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}, settle_s=10.0),
        Entry("ray-default", "Ray Serve 2.60.0, as installed", http, "ray", "ray"),
    ]  # fmt: skip


QUICK = ("millstream", "floor", "echo-sync", "echo-aio", "echo-model")


@dataclass(eq=False)
class Running:
    """A started server and where it listens."""

    entry: Entry
    server: Server
    http: int
    grpc: int

    def port(self, protocol: str) -> int:
        return self.grpc if protocol == "grpc" else self.http


def start(entry: Entry, models: Path, names: list[str], floor: Path) -> Running:
    """Start `entry` and wait for its first answer on each protocol. Raises Unavailable with the reason."""
    try:
        command = _command(entry, models, names, floor, http_grpc := free_ports(3))
    except environments.Failed as error:
        raise Unavailable(f"not installed: {error}") from error
    server = Server(entry.name, command, **entry.variables)
    running = Running(entry, server, http_grpc[0], http_grpc[1])
    first = "deepfm" if "deepfm" in names else names[0]
    for protocol, path in entry.protocols.items():
        request = wire.requests(protocol, path, first, 1, 1)[0]
        boot_s = server.boot_s
        server.wait(protocol, running.port(protocol), request, BOOT_S)
        server.boot_s = boot_s or server.boot_s
    time.sleep(entry.settle_s)
    return running


def _command(entry: Entry, models: Path, names: list[str], floor: Path, ports: list[int]) -> list[str | Path]:
    http, grpc, spare = map(str, ports)
    work = SCRATCH / "work" / entry.name
    if entry.name == "millstream":
        command = [sys.executable, "-m", "millstream", "serve", repository(models), "--http-port", http]
        return [*command, "--grpc-port", grpc] if "grpc" in entry.protocols else command
    if entry.name == "floor":
        script = floor / "peers" / "floor_peer.py"
        if not script.exists():
            raise Unavailable(f"{script} is absent (--floor DIR)")
        return [sys.executable, script, "--models", models, "--work", work, "--http", http, "--grpc", "0"]
    shutil.rmtree(work, ignore_errors=True)
    return [
        environments.python_of(entry.environment), HERE / "peers" / f"{entry.script}_peer.py", "--models", models,
        "--names", ",".join(names), "--work", work, "--http", http, "--grpc", grpc, "--spare", spare,
    ]  # fmt: skip


def made_models(floor: Path) -> Path:
    """The shared models, made once by the floor's make_models.py in an environment of their own."""
    models = SCRATCH / "models"
    if all((models / f"{name}.onnx").exists() for name in MODELS):
        return models
    maker = floor / "make_models.py"
    if not maker.exists():
        raise SystemExit(f"no models: {maker} is absent; give --models DIR with deepfm.onnx and tiny.onnx")
    python = environments.python_of("models")
    subprocess.run([python, maker, "--out", models], check=True, stdout=sys.stderr)
    return models


def repository(models: Path) -> Path:
    """The same files laid out as a repository: NAME/1/model.onnx."""
    root = SCRATCH / "repository"
    for name in MODELS:
        target = root / name / "1" / "model.onnx"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(models / f"{name}.onnx", target)
        except OSError:
            shutil.copy(models / f"{name}.onnx", target)
    return root
