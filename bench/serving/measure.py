"""One figure of one server: CPU of its process tree per request, rate, latencies, memory."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import load
import numpy as np
import wire
from process import Died
from servers import Entry, Running

BODIES = 256
Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    model: str
    rows: int
    connections: int
    protocol: str

    def __str__(self) -> str:
        return f"{self.model}, {self.rows} row{'s' * (self.rows > 1)}, {self.connections} connections, {self.protocol}"


COMMON = (("deepfm", 1, 64), ("deepfm", 100, 64))
DEEP = tuple(
    (model, rows, many) for model, rows in (("deepfm", 1), ("deepfm", 100), ("tiny", 1)) for many in (64, 8, 1)
)
# What the bounds are about is measured more often than the rest.
DECISIVE = {
    Case("deepfm", 1, 64, "binary"), Case("deepfm", 100, 64, "binary"), Case("tiny", 1, 64, "binary"),
    Case("deepfm", 1, 64, "grpc"),
}  # fmt: skip
MORE_REPEATS = 3


def cases_of(entry: Entry, wanted: list[tuple[str, ...]] | None, quick: bool) -> list[Case]:
    """What `entry` is asked; `wanted`: MODEL, ROWS, CONNECTIONS and perhaps PROTOCOL of each case, instead of ours."""
    if wanted is not None:
        return [
            Case(model, int(rows), int(many), protocol)
            for model, rows, many, *only in wanted
            for protocol in entry.protocols
            if not only or protocol in only
        ]
    plan = DEEP if entry.deep and not quick else COMMON
    if entry.name in ("millstream", "floor"):
        plan = tuple(dict.fromkeys([*plan, ("tiny", 1, 64)]))
    elif entry.name == "echo-model":
        plan = COMMON[:1]  # the model's part of it is always one row
    elif entry.environment == "echo":
        plan = tuple(one for one in plan if one[0] == "deepfm")
    return [Case(*one, protocol) for one in plan for protocol in entry.protocols]


def once(running: Running, case: Case, seconds: float, warm_s: float) -> Figures:
    """One window. Raises load.LoadFailed, Died."""
    path = running.entry.protocols[case.protocol]
    bodies = max(case.connections, BODIES if case.rows == 1 else BODIES // 4)
    requests = wire.requests(case.protocol, path, case.model, case.rows, bodies)
    server = running.server
    plan = load.Closed(case.protocol, running.port(case.protocol), requests, case.connections, seconds, warm_s)
    latencies, before, after = load.closed(
        plan, lambda: (server.cpu_s(), time.perf_counter()), lambda: (server.cpu_s(), time.perf_counter())
    )
    if not latencies:
        raise Died(f"{server.name} answered nothing in {seconds:.0f} s: {server.tail(300)}")
    return {
        "cpu_us": (after[0] - before[0]) / len(latencies) * 1e6,
        "requests_s": len(latencies) / (after[1] - before[1]),
        "p50_ms": load.percentile(latencies, 0.5) * 1e3,
        "p99_ms": load.percentile(latencies, 0.99) * 1e3,
        "memory_mb": server.memory_mb(),
    }


def medians(many: list[Figures]) -> Figures:
    return {key: statistics.median(one[key] for one in many) for key in many[0]}


def runtime_us(models: Path, model: str, rows: int, seconds: float) -> float:
    """ONNX Runtime alone, one thread, no server, one call a request: CPU microseconds of a call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(models / f"{model}.onnx", options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(7)
    feeds = [wire.feed(model, rows, random) for _ in range(BODIES // (1 if rows == 1 else 4))]
    for one in feeds:
        session.run(None, one)
    count, before, until = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        session.run(None, feeds[count % len(feeds)])
        count += 1
    return (time.process_time() - before) / count * 1e6
