"""The straggler case: many utterances of 50 ms among a few of 15 s, at most 32 in a batch, which waits up to 200 ms.

    python bench/serving/straggler.py [--seconds S] [--json]

A batch is as slow as its longest row. Without buckets a short one that shares a batch with a long one is padded to
15 s; with buckets by length it never does. What counts is the 99th percentile of the short ones, against what it is
when there are no long ones, with a short queue (a quiet hour) and a long one (batches fill before the wait is over).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bounds
import environments
import load
import numpy as np
import report
import wire
from environments import SCRATCH
from process import Server, free_ports

RATE = 16_000  # samples a second
SHORT, LONG = RATE // 20, RATE * 15
BODIES = 16
QUEUES = {"short": (50.0, 2.0), "long": (400.0, 8.0)}  # short and long utterances a second
CONNECTIONS = 1024
LIMIT = 1.5
MANIFEST = """format = "onnx"
file = "model.onnx"

[batching]
max_batch_size = 32
max_wait_time = "200ms"
instances = 2

[batching.length]
of = ["audio"]
axis = 1
buckets = {buckets}
pad = 0.0
lengths = "audio_lengths"
"""
BUCKETS = {"without": [LONG], "with": [RATE // 10, RATE, LONG]}
RUNS = (("alone", "with", False), ("without", "without", True), ("with", "with", True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run (default: 12)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    arguments = parser.parse_args()
    requests = bodies()
    result: dict[str, Any] = {"machine": report.machine(), "seconds": arguments.seconds, "runs": []}
    servers: dict[str, tuple[Server, int]] = {}
    try:
        for name, buckets in BUCKETS.items():
            servers[name] = started(name, buckets, requests[0])
        for queue, rates in QUEUES.items():
            for name, which, mixed in RUNS:
                row = run(servers[which][1], requests, rates if mixed else (rates[0], 0.0), arguments.seconds)
                result["runs"].append({"queue": queue, "run": name, **row})
    finally:
        for server, _ in servers.values():
            server.stop()
    print(json.dumps(result) if arguments.json else markdown(result))


def bodies() -> list[bytes]:
    """Requests of one utterance each: first the short ones, then the long ones."""
    random = np.random.default_rng(7)
    made = []
    for samples in (SHORT, LONG):
        for _ in range(BODIES):
            body, head = wire.binary_body({"audio": random.normal(0, 0.1, (1, samples)).astype(np.float32)})
            more = b"Inference-Header-Content-Length: %d\r\n" % head
            made.append(wire.post("/v2/models/speech/infer", body, "application/octet-stream", more))
    return made


def started(name: str, buckets: list[int], request: bytes) -> tuple[Server, int]:
    """A server of the model with these buckets, and its port."""
    folder = SCRATCH / "straggler" / name / "speech" / "1"
    shutil.rmtree(folder.parent.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(made_model(), folder / "model.onnx")
    (folder / "model.toml").write_text(MANIFEST.format(buckets=buckets))
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "millstream", "serve", folder.parent.parent, "--http-port", str(port)]
    server = Server(f"straggler-{name}", command)
    server.wait("binary", port, request, 30.0)
    return server, port


def made_model() -> Path:
    path = SCRATCH / "straggler" / "speech.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        maker = Path(__file__).resolve().parent / "speech_model.py"
        subprocess.run([environments.python_of("onnx"), maker, path], check=True)
    return path


def run(port: int, requests: list[bytes], rates: tuple[float, float], seconds: float) -> dict[str, float]:
    """Latencies in milliseconds of the short and of the long ones, in an open loop."""
    arrivals = load.poisson(rates[0], seconds, range(BODIES), seed=1)
    if rates[1]:
        arrivals = load.merged(arrivals, load.poisson(rates[1], seconds, range(BODIES, 2 * BODIES), seed=2))
    counted = load.opened(load.Open(port, requests, arrivals, CONNECTIONS, patience_s=30.0))
    good = [one for one in counted.answers if one[1] == 200]
    short = sorted(latency * 1e3 for which, _, latency, _ in good if which < BODIES)
    long = sorted(latency * 1e3 for which, _, latency, _ in good if which >= BODIES)
    return {
        "short_p50_ms": load.percentile(short, 0.5), "short_p99_ms": load.percentile(short, 0.99),
        "long_p99_ms": load.percentile(long, 0.99), "answered": len(good),
        "failed": len(counted.answers) - len(good) + counted.unanswered,
    }  # fmt: skip


def check(result: dict[str, Any]) -> list[bounds.Bound]:
    p99 = {(row["queue"], row["run"]): row["short_p99_ms"] for row in result["runs"]}
    return [
        bounds.Bound(
            f"p99 of the short ones with buckets, of theirs alone, {queue} queue",
            LIMIT,
            p99[queue, "with"] / p99[queue, "alone"],
        )
        for queue in QUEUES
    ]


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{SHORT / RATE * 1e3:.0f} ms utterances among some of {LONG / RATE:.0f} s; batches of 32 that wait up to "
        f"200 ms; Poisson arrivals, {result['seconds']:g} s a run.",
        f"{result['machine']}.",
        "",
        "| queue | short/s | long/s | run | short p50 ms | short p99 ms | long p99 ms | answered | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"alone": "short ones alone", "without": "mixed, no buckets", "with": "mixed, buckets"}
    for row in result["runs"]:
        short, long = QUEUES[row["queue"]]
        far = "" if row["run"] == "alone" else f"{row['long_p99_ms']:.0f}"
        lines.append(
            f"| {row['queue']} | {short:.0f} | {0 if row['run'] == 'alone' else long:.0f} | {names[row['run']]} | "
            f"{row['short_p50_ms']:.0f} | {row['short_p99_ms']:.0f} | {far} | {row['answered']} | {row['failed']} |"
        )
    return "\n".join([*lines, "", bounds.table(check(result))])


if __name__ == "__main__":
    main()
