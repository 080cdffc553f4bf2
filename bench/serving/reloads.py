"""A hundred reloads under load: no request fails, and memory is after the last what it was after the first ones.

    python bench/serving/reloads.py [--reloads N] [--rate R] [--json]

Two versions of the 179 MB model take turns as the live one, by the policy file, as a person would promote them;
requests come by the clock meanwhile. The next reload begins when an answer names the version.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shutil
import statistics
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import bounds
import load
import numpy as np
import report
import servers
import wire
from environments import SCRATCH
from process import Died, Server, free_ports

from millstream.models.repository import Repository
from millstream.models.traffic import promote

MODEL, BODIES, CONNECTIONS = "deepfm", 64, 512
RELOAD_S = 30.0
SETTLED = 10  # reloads whose memory is compared, at each end; as many before them, which fill the allocator's pools
FLAT_MB = 10.0
VERSION = re.compile(rb'"model_version":"(\d+)')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second meanwhile (default: 300)")
    parser.add_argument("--models", type=Path, help="folder with deepfm.onnx; made when left out")
    parser.add_argument("--floor", type=Path, default=servers.FLOOR, help="folder of the fixed floor")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    arguments = parser.parse_args()
    repository = laid_out(arguments.models or servers.made_models(arguments.floor))
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "millstream", "serve", repository.root, "--http-port", str(port)]
    server = Server("reloads", command)
    requests = wire.requests("binary", servers.V2, MODEL, 1, BODIES)
    memory: list[float] = []
    took: list[float] = []

    def reload() -> None:
        for turn in range(arguments.reloads):
            took.append(reloaded(repository, port, str(turn % 2 + 1)))
            memory.append(server.memory_mb())

    try:
        server.wait("binary", port, requests[0], 30.0)
        arrivals = load.poisson(arguments.rate, arguments.reloads * RELOAD_S, range(BODIES), seed=4)
        counted = load.opened(load.Open(port, requests, arrivals, CONNECTIONS, until_told=True), reload)
    finally:
        server.stop()
    print(json.dumps(told(counted, memory, took)) if arguments.json else markdown(told(counted, memory, took)))


def laid_out(models: Path) -> Repository:
    """A repository with the model as version 1 and as version 2, which is live."""
    root = SCRATCH / "reloads"
    shutil.rmtree(root, ignore_errors=True)
    for version in ("1", "2"):
        folder = root / MODEL / version
        folder.mkdir(parents=True)
        os.link(models / f"{MODEL}.onnx", folder / "model.onnx")
    repository = Repository.open(root)
    repository.change_policy(MODEL, promote("2"), who="bench", why="first")
    return repository


def reloaded(repository: Repository, port: int, version: str) -> float:
    """Promote `version`; seconds until an answer names it. Raises Died."""
    started = time.perf_counter()
    repository.change_policy(MODEL, promote(version), who="bench", why="reload")
    while time.perf_counter() - started < RELOAD_S:
        if live(port) == version:
            return time.perf_counter() - started
        time.sleep(0.02)
    raise Died(f"version {version} did not answer within {RELOAD_S:.0f} s")


def live(port: int) -> str:
    """The version that an answer names."""
    body, head = wire.binary_body(wire.feed(MODEL, 1, np.random.default_rng(1)))
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        headers = {"Inference-Header-Content-Length": str(head)}
        connection.request("POST", servers.V2.format(model=MODEL), body, headers)
        found = VERSION.search(connection.getresponse().read())
        return found[1].decode() if found else ""
    finally:
        connection.close()


def told(counted: load.Counted, memory: list[float], took: list[float]) -> dict[str, Any]:
    latencies = sorted(latency * 1e3 for _, _, latency, _ in counted.answers)
    few = max(1, min(SETTLED, len(memory) // 3))
    return {
        "machine": report.machine(), "reloads": len(took), "reload_s": statistics.median(took),
        "statuses": dict(collections.Counter(str(status) for _, status, _, _ in counted.answers)),
        "unanswered": counted.unanswered, "p50_ms": load.percentile(latencies, 0.5),
        "p99_ms": load.percentile(latencies, 0.99), "memory_first": statistics.median(memory[few : 2 * few]),
        "memory_last": statistics.median(memory[-few:]), "memory_peak": max(memory),
        "memory_after": memory[:: max(1, len(memory) // 10)],
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    failed = result["unanswered"] + sum(count for status, count in result["statuses"].items() if status != "200")
    grown = result["memory_last"] - result["memory_first"]
    on_the_way = ", ".join(f"{one:.0f}" for one in result["memory_after"])
    lines = [
        f"{result['reloads']} reloads of {MODEL}, {result['reload_s']:.2f} s each (median); "
        f"{result['statuses'].get('200', 0)} requests answered meanwhile, p50 {result['p50_ms']:.1f} ms, "
        f"p99 {result['p99_ms']:.1f} ms.",
        f"Memory: {result['memory_first']:.0f} MB after the first of them, {result['memory_last']:.0f} MB after the "
        "last, "
        f"{result['memory_peak']:.0f} MB at most; on the way {on_the_way}. {result['machine']}.",
        "",
        bounds.table([
            bounds.Bound("requests that failed", 0.0, failed, unit=""),
            bounds.Bound("memory gained between the first and the last reloads", FLAT_MB, grown, unit="MB"),
        ]),
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
