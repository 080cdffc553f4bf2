"""Saturation: what still gets answered when twice as much comes as can be computed.

    python bench/serving/overload.py [--seconds S] [--json]

The peak is found first, in a closed loop; then requests come by the clock at a share of it, whoever waits. Goodput
counts answers of 200 alone; a refusal (429, 503) is allowed. Requests have 100 rows, so that a machine of two cores has
one to spare for the load.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path
from typing import Any

import bounds
import load
import report
import servers
import wire
from process import Server, free_ports

MODEL, ROWS, BODIES = "deepfm", 100, 64
SHARES = (0.5, 0.8, 1.0, 1.3, 2.0)
CONNECTIONS = 3000
RAMP = 0.25  # of a run, before counting: queues have to fill
LIMIT = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="at each rate (default: 6)")
    parser.add_argument("--models", type=Path, help="folder with deepfm.onnx; made when left out")
    parser.add_argument("--floor", type=Path, default=servers.FLOOR, help="folder of the fixed floor")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    arguments = parser.parse_args()
    repository = servers.repository(arguments.models or servers.made_models(arguments.floor))
    requests = wire.requests("binary", servers.V2, MODEL, ROWS, BODIES)
    port = free_ports(1)[0]
    server = Server("overload", [sys.executable, "-m", "millstream", "serve", repository, "--http-port", str(port)])
    try:
        server.wait("binary", port, requests[0], 30.0)
        plan = load.Closed("binary", port, requests, 64, arguments.seconds / 2, 1.0)
        latencies, _, _ = load.closed(plan, lambda: None, lambda: None)
        closed_rate = len(latencies) / plan.seconds
        rows = [run(port, requests, share, closed_rate * share, arguments.seconds) for share in SHARES]
        result = {"machine": report.machine(), "closed_rate": closed_rate, "rows": rows, "memory": server.memory_mb()}
    finally:
        server.stop()
    print(json.dumps(result) if arguments.json else markdown(result))


def run(port: int, requests: list[bytes], share: float, rate: float, seconds: float) -> dict[str, Any]:
    arrivals = load.poisson(rate, seconds, range(BODIES), seed=3)
    counted = load.opened(load.Open(port, requests, arrivals, CONNECTIONS))
    start, good = seconds * RAMP, []
    for _, status, latency, due in counted.answers:
        if status == 200 and start <= due + latency < seconds:
            good.append(latency * 1e3)
    good.sort()
    statuses = collections.Counter(str(status) for _, status, _, _ in counted.answers)
    return {
        "share": share, "rate": rate, "goodput": len(good) / (seconds - start), "p99_ms": load.percentile(good, 0.99),
        "statuses": dict(sorted(statuses.items())), "unanswered": counted.unanswered,
    }  # fmt: skip


def check(result: dict[str, Any]) -> list[bounds.Bound]:
    peak = max(row["goodput"] for row in result["rows"])
    last = result["rows"][-1]
    unexpected = sum(count for status, count in last["statuses"].items() if status not in ("200", "429", "503"))
    return [
        bounds.Bound("goodput at twice the peak rate, of its peak", LIMIT, last["goodput"] / peak, at_least=True),
        bounds.Bound("requests lost or failed otherwise at twice the peak rate", 0.0, last["unanswered"] + unexpected,
                     unit=""),
    ]  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{MODEL}, {ROWS} rows a request; {result['closed_rate']:.0f} requests/s in a closed loop of 64 connections, "
        f"then Poisson arrivals. {result['memory']:.0f} MB after it all.",
        f"{result['machine']}.",
        "",
        "| of the peak | requests/s sent | answered 200/s | p99 ms of those | answers | lost |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        answers = ", ".join(f"{count} x {status}" for status, count in row["statuses"].items())
        lines.append(
            f"| {row['share']:g} | {row['rate']:.0f} | {row['goodput']:.0f} | {row['p99_ms']:.0f} | {answers} | "
            f"{row['unanswered']} |"
        )
    return "\n".join([*lines, "", bounds.table(check(result))])


if __name__ == "__main__":
    main()
