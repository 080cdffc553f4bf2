"""CPU per request of `millstream serve` beside the fixed floor, and of ONNX Runtime alone.

    python bench/serving.py [--models DIR] [--floor DIR] [--seconds S] [--repeats N] [--json]

64 connections in a closed loop from a process of their own; binary V2 tensors. The figure is user + system time of the
server's whole process tree per answered request: unlike throughput it does not move with the load generator. Servers
take turns within a repeat; the table has medians. Without --models the two models are made once, by the floor's
make_models.py, in an environment under .bench/ (torch is in none of ours).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import venv
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import orjson

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".bench"
CONNECTIONS = 64
BODIES = 256  # distinct requests, so that embedding rows are not always the same
FIELDS, VOCABULARY, DENSE, TINY = 26, 100_000, 13, 8
CASES = (("deepfm", 1), ("deepfm", 100), ("tiny", 1))
START_S = 60.0
NAMES = {"INT64": np.int64, "FP32": np.float32}

Feed = dict[str, np.ndarray[Any, Any]]


def feed(model: str, rows: int, random: np.random.Generator) -> Feed:
    if model == "tiny":
        return {"x": random.random((rows, TINY), np.float32)}
    ids = random.integers(0, VOCABULARY, (rows, FIELDS))
    return {"cat": ids, "dense": random.random((rows, DENSE), np.float32)}


def wire(model: str, arrays: Feed) -> bytes:
    """One V2 request with binary tensors in and out."""
    datatypes = {np.dtype(dtype): name for name, dtype in NAMES.items()}
    head = orjson.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": name,
                    "datatype": datatypes[array.dtype],
                    "shape": array.shape,
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in arrays.items()
            ],
        }
    )
    body = head + b"".join(array.tobytes() for array in arrays.values())
    return (
        b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: %d\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % (model.encode(), len(head), len(body))
    ) + body


class Client:
    """One connection: a request out, its whole answer in, the next request."""

    def __init__(self, port: int, requests: list[bytes], at: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests, self.at = requests, at
        self.got = b""
        self.sent_at = 0.0

    def send(self) -> None:
        self.at = (self.at + 1) % len(self.requests)
        self.sent_at = time.perf_counter()
        self.socket.sendall(self.requests[self.at])

    def answered(self) -> bool:
        self.got += self.socket.recv(1 << 16)
        end = self.got.find(b"\r\n\r\n")
        if end < 0:
            return False
        if not self.got.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered {self.got[:300]!r}")
        start = self.got.index(b"Content-Length: ") + 16
        if self.got[start - 18 : start - 16] != b"\r\n":  # that was Inference-Header-Content-Length
            start = self.got.index(b"\r\nContent-Length: ") + 18
        if len(self.got) < end + 4 + int(self.got[start : self.got.index(b"\r", start)]):
            return False
        self.got = b""
        return True


def load(port: int, model: str, rows: int, seconds: float, warm_s: float, pipe: Connection) -> None:
    """The load generator's process: warm up, say so, count for `seconds`, send back the latencies."""
    random = np.random.default_rng(7)
    requests = [wire(model, feed(model, rows, random)) for _ in range(BODIES)]
    clients = [Client(port, requests, at * BODIES // CONNECTIONS) for at in range(CONNECTIONS)]
    poll = select.epoll()
    by_fd = {client.socket.fileno(): client for client in clients}
    for client in clients:
        poll.register(client.socket, select.EPOLLIN)
        client.send()
    latencies: list[float] = []
    for span in (warm_s, seconds):
        latencies = []
        pipe.send("go")
        until = time.perf_counter() + span
        while time.perf_counter() < until:
            for fd, _ in poll.poll(1.0):
                client = by_fd[fd]
                if client.answered():
                    latencies.append(time.perf_counter() - client.sent_at)
                    client.send()
    pipe.send(latencies)


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def cpu_s(pid: int) -> float:
    """User + system seconds of the living process tree."""
    ticks = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Server:
    """A server under test in a process of its own; `boot_s`: from start to the first open port."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name, self.port = name, port
        SCRATCH.mkdir(exist_ok=True)
        self.log = SCRATCH / f"{name}.log"
        started = time.perf_counter()
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        while not self._answers():
            if self.process.poll() is not None or time.perf_counter() - started > START_S:
                self.stop()
                raise SystemExit(f"{name} did not start: {' '.join(command)}\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)
        self.boot_s = time.perf_counter() - started

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2.0) as probe:
                probe.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
                probe.settimeout(5.0)
                return probe.recv(64).startswith((b"HTTP/1.1 200", b"HTTP/1.1 4"))
        except OSError:
            return False

    def measure(self, model: str, rows: int, seconds: float) -> dict[str, float]:
        ours, theirs = multiprocessing.Pipe()
        generator = multiprocessing.Process(
            target=load, args=(self.port, model, rows, seconds, seconds / 4, theirs), daemon=True
        )
        generator.start()
        theirs.close()
        try:
            ours.recv(), ours.recv()
            before, started = cpu_s(self.process.pid), time.perf_counter()
            latencies = sorted(ours.recv())
            spent, took = cpu_s(self.process.pid) - before, time.perf_counter() - started
        except EOFError:
            raise SystemExit(f"the load on {self.name} failed; its log: {self.log.read_text()[-2000:]}") from None
        finally:
            generator.join()
        return {
            "cpu_us": spent / len(latencies) * 1e6,
            "requests_s": len(latencies) / took,
            "p50_ms": latencies[len(latencies) // 2] * 1e3,
            "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
            "memory_mb": memory_mb(self.process.pid),
        }

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def made_models(floor: Path) -> Path:
    """The shared models, made once in an environment of their own."""
    models = SCRATCH / "models"
    if all((models / f"{name}.onnx").exists() for name, _ in CASES):
        return models
    maker = floor / "make_models.py"
    if not maker.exists():
        raise SystemExit(f"no models: {maker} is absent; give --models DIR with deepfm.onnx and tiny.onnx")
    folder = SCRATCH / "make-models"
    python = folder / "bin" / "python"
    print("making the models (once): torch 2.13.0 goes to .bench/make-models", file=sys.stderr)
    venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0", "onnx", "numpy"], check=True)
    subprocess.run([python, maker, "--out", models], check=True, stdout=sys.stderr)
    return models


def repository(models: Path) -> Path:
    """The same files laid out as a repository: NAME/1/model.onnx."""
    root = SCRATCH / "repository"
    for name in {name for name, _ in CASES}:
        target = root / name / "1" / "model.onnx"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(models / f"{name}.onnx", target)
        except OSError:
            shutil.copy(models / f"{name}.onnx", target)
    return root


def our_command(models: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "millstream", "serve", str(models), "--http-port", str(port)]


def floor_command(floor: Path, models: Path, port: int) -> list[str]:
    script = floor / "peers" / "floor_peer.py"
    scratch = str(SCRATCH / "floor")
    return [sys.executable, str(script), "--models", str(models), "--work", scratch, "--http", str(port), "--grpc", "0"]


def runtime_us(models: Path, model: str, rows: int) -> float:
    """ONNX Runtime alone, one thread, no server, one call a request: CPU microseconds of a call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(models / f"{model}.onnx", options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(7)
    feeds = [feed(model, rows, random) for _ in range(BODIES)]
    for one in feeds:
        session.run(None, one)
    count = 0
    before, until = time.process_time(), time.perf_counter() + 1.0
    while time.perf_counter() < until:
        session.run(None, feeds[count % BODIES])
        count += 1
    return (time.process_time() - before) / count * 1e6


def machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with deepfm.onnx and tiny.onnx; made when left out")
    parser.add_argument("--floor", type=Path, default=ROOT.parent / "shared" / "bench" / "serving")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    arguments = parser.parse_args()
    models = arguments.models or made_models(arguments.floor)

    result: dict[str, Any] = {"machine": machine(), "connections": CONNECTIONS, "rows": []}
    servers: list[Server] = []
    try:
        ours, theirs = free_port(), free_port()
        servers.append(Server("millstream", our_command(repository(models), ours), ours))
        if (arguments.floor / "peers" / "floor_peer.py").exists():
            servers.append(Server("floor", floor_command(arguments.floor, models, theirs), theirs))
        result["boot_s"] = {server.name: round(server.boot_s, 2) for server in servers}
        for model, rows in CASES:
            samples: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
            for _ in range(arguments.repeats):
                for server in servers:
                    samples[server.name].append(server.measure(model, rows, arguments.seconds))
            medians = {
                name: {key: statistics.median(one[key] for one in many) for key in many[0]}
                for name, many in samples.items()
            }
            alone = runtime_us(models, model, rows)
            result["rows"].append({"model": model, "rows": rows, "runtime_us": alone, "servers": medians})
    finally:
        for server in servers:
            server.stop()
    print(json.dumps(result) if arguments.json else table(result, arguments.floor))


def table(result: dict[str, Any], floor: Path) -> str:
    lines = [
        f"{result['connections']} connections, binary tensors; CPU of the server's process tree, medians",
        f"{'':22}{'CPU us':>9}{'x floor':>9}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'MB':>7}",
    ]
    for row in result["rows"]:
        lines.append(f"{row['model']}, {row['rows']} row{'s' * (row['rows'] > 1)}")
        base = row["servers"].get("floor")
        for name, got in row["servers"].items():
            ratio = f"{got['cpu_us'] / base['cpu_us']:9.2f}" if base else f"{'-':>9}"
            lines.append(
                f"  {name:20}{got['cpu_us']:9.1f}{ratio}{got['requests_s']:9.0f}{got['p50_ms']:9.2f}"
                f"{got['p99_ms']:9.2f}{got['memory_mb']:7.0f}"
            )
        if base is None:
            lines.append(f"  {'floor':20}not measured: {floor} is absent (--floor DIR)")
        lines.append(f"  {'ONNX Runtime alone':20}{row['runtime_us']:9.1f}   one call a request, no server")
    boots = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["boot_s"].items())
    return "\n".join([*lines, f"boot: {boots}", result["machine"]])


if __name__ == "__main__":
    main()
