"""Versions change under load: what a reload, a roll back and a shadow cost those who ask meanwhile.

    python bench/serving/reload.py [--reloads N] [--rollbacks N] [--rounds N] [--json]

1. Versions of the 179 MB model take turns as the live one, as a person would promote them, while requests for it and
   for another, tiny model come by the clock over 64 connections. There are four, as what was live before stays loaded
   for a roll back: of two in turn only the first promotion of each would load anything. Between two reloads is as much
   rest as a reload takes, so both are measured in the same minutes. The next begins when an answer names the version.
2. Two processes serve the 179 MB model; somebody on a connection to each asks all the time. A roll back lasts from the
   change of the policy to the last answer, of any process, by the version that was taken back.
3. One process with and without a shadow that gets every request, at a rate far below what it could do for both: a
   few seconds each in turn, medians over the rounds.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable
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

from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.models.traffic import promote, roll_back, shadow

LARGE, TINY, BODIES, CONNECTIONS = "deepfm", "tiny", 64, 64
VERSIONS = 4
RELOAD_S = 30.0
SETTLED = 10  # reloads whose memory is compared, at each end; as many before them, which fill the allocator's pools
SHADOW_SHARE = 0.1  # of the peak of a closed loop: far from where requests, or the clients of this bench, have to wait
REST_S = 0.3  # after a reload, before what is measured counts as rest
VERSION = re.compile(rb'"model_version":"(\d+)')
PROCESS = re.compile(rb'"id":"([0-9a-f]{12})')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--rollbacks", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=12, help="with and without a shadow (default: 12 of each)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round (default: 3)")
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second of each model (default: 150)")
    parser.add_argument("--models", type=Path, help="folder with deepfm.onnx and tiny.onnx; made when left out")
    parser.add_argument("--floor", type=Path, default=servers.FLOOR, help="folder of the fixed floor")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the tables")
    arguments = parser.parse_args()
    repository = laid_out(arguments.models or servers.made_models(arguments.floor))
    result: dict[str, Any] = {"machine": report.machine()}
    if arguments.reloads:
        result["reloads"] = reloads(repository, arguments.reloads, arguments.rate)
    if arguments.rollbacks:
        result["rollbacks"] = rollbacks(repository, arguments.rollbacks)
    if arguments.rounds:
        result["shadow"] = shadowed(repository, arguments.rounds, arguments.seconds)
    print(json.dumps(result) if arguments.json else markdown(result))


def laid_out(models: Path) -> Repository:
    """A repository with some versions of the large model, digests and all, and one of the tiny one."""
    root = SCRATCH / "reload"
    shutil.rmtree(root, ignore_errors=True)
    repository = Repository(root)
    for model in (*[LARGE] * VERSIONS, TINY):
        repository.put(model, Manifest(format="onnx", file="model.onnx"), {"model.onnx": models / f"{model}.onnx"})
    change(repository, promote("2"))
    return repository


def change(repository: Repository, how: Callable[[Any], Any]) -> float:
    """Change the large model's policy; the moment when that was asked for."""
    at = time.perf_counter()
    repository.change_policy(LARGE, how, who="bench", why="reload")
    return at


def served(repository: Repository, name: str, *options: str) -> tuple[Server, int, list[bytes]]:
    """A running `millstream serve`, its port, and requests for the large model."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "millstream", "serve", repository.root, "--http-port", str(port), *options]
    server = Server(name, command)
    requests = wire.requests("binary", servers.V2, LARGE, 1, BODIES)
    server.wait("binary", port, requests[0], 60.0)
    return server, port, requests


# 1. Reloads.


def reloads(repository: Repository, count: int, rate: float) -> dict[str, Any]:
    server, port, requests = served(repository, "reload")
    tiny = wire.requests("binary", servers.V2, TINY, 1, BODIES)
    spans: list[tuple[float, float]] = []
    memory: list[float] = []
    began = 0.0

    def during() -> None:
        nonlocal began
        began = time.perf_counter()
        for turn in range(count):
            version = str((turn + 2) % VERSIONS + 1)
            until_live(port, version, at := change(repository, promote(version)))
            spans.append((at - began, time.perf_counter() - began))
            memory.append(server.memory_mb())
            time.sleep(REST_S + spans[-1][1] - spans[-1][0])

    try:
        seconds = count * RELOAD_S
        both = (
            load.poisson(rate, seconds, range(BODIES), 4),
            load.poisson(rate, seconds, range(BODIES, 2 * BODIES), 5),
        )
        plan = load.Open(port, [*requests, *tiny], load.merged(*both), CONNECTIONS, until_told=True)
        counted = load.opened(plan, during)
    finally:
        server.stop()
    return {**told(counted, spans, memory), "rate": rate}


def until_live(port: int, version: str, at: float) -> None:
    """Wait until an answer names the version. Raises Died."""
    while time.perf_counter() - at < RELOAD_S:
        if Asker(port).ask()[0] == version:
            return
        time.sleep(0.02)
    raise Died(f"version {version} did not answer within {RELOAD_S:.0f} s")


def told(counted: load.Counted, spans: list[tuple[float, float]], memory: list[float]) -> dict[str, Any]:
    tiny = [(due, latency * 1e3) for which, _, latency, due in counted.answers if which >= BODIES]
    busy = sorted(latency for due, latency in tiny if any(start <= due <= end for start, end in spans))
    rest = sorted(latency for due, latency in tiny if not any(start <= due <= end + REST_S for start, end in spans))
    few = max(1, min(SETTLED, len(memory) // 3))
    return {
        "reloads": len(spans), "reload_s": statistics.median(end - start for start, end in spans),
        "statuses": dict(collections.Counter(str(status) for _, status, _, _ in counted.answers)),
        "unanswered": counted.unanswered,
        "busy": {"count": len(busy), "p50_ms": load.percentile(busy, 0.5), "p99_ms": load.percentile(busy, 0.99)},
        "rest": {"count": len(rest), "p50_ms": load.percentile(rest, 0.5), "p99_ms": load.percentile(rest, 0.99)},
        "memory_first": statistics.median(memory[few : 2 * few]), "memory_last": statistics.median(memory[-few:]),
        "memory_peak": max(memory), "memory_after": memory[:: max(1, len(memory) // 10)],
    }  # fmt: skip


# 2. Roll backs.


class Asker:
    """A connection on which somebody asks the large model. `process` answers it, `version` last did."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=30)
        self._body, head = wire.binary_body(wire.feed(LARGE, 1, np.random.default_rng(1)))
        self._headers = {"Inference-Header-Content-Length": str(head)}
        self.answers: list[tuple[float, str]] = []

    def ask(self) -> tuple[str, str]:
        """(version, process) that an answer names."""
        self._connection.request("POST", servers.V2.format(model=LARGE), self._body, self._headers)
        said = self._connection.getresponse().read()
        version, process = VERSION.search(said), PROCESS.search(said)
        return (version[1].decode() if version else "", process[1].decode() if process else "")

    def keep(self, over: threading.Event) -> None:
        """Ask all the time, and note when which version answered."""
        while not over.is_set():
            version, _ = self.ask()
            self.answers.append((time.perf_counter(), version))
            time.sleep(0.002)


def rollbacks(repository: Repository, count: int) -> dict[str, Any]:
    change(repository, promote("2"))
    server, port, _ = served(repository, "rollbacks", "--workers", "2")
    took, over = [], threading.Event()
    try:
        askers = one_to_each(port, 2)
        threads = [threading.Thread(target=asker.keep, args=(over,)) for asker in askers]
        for thread in threads:
            thread.start()
        for _ in range(count):
            at = change(repository, roll_back("1"))
            everywhere(askers, "1", at)
            time.sleep(0.3)  # whoever answers with the old one after that would be seen
            took.append(max(when for asker in askers for when, version in asker.answers if version == "2") - at)
            everywhere(askers, "2", change(repository, promote("2")))
            time.sleep(0.3)
        over.set()
        for thread in threads:
            thread.join()
    finally:
        over.set()
        server.stop()
    took.sort()
    return {"rollbacks": count, "p50_s": load.percentile(took, 0.5), "p99_s": load.percentile(took, 0.99),
            "worst_s": took[-1], "answers": sum(len(asker.answers) for asker in askers)}  # fmt: skip


def one_to_each(port: int, processes: int) -> list[Asker]:
    """A connection to each of the processes. Raises Died."""
    found: dict[str, Asker] = {}
    for _ in range(500):
        asker = Asker(port)
        found.setdefault(asker.ask()[1], asker)
        if len(found) == processes:
            return list(found.values())
    raise Died(f"500 connections reached {len(found)} processes")


def everywhere(askers: list[Asker], version: str, at: float) -> None:
    """Wait until every one was answered by the version. Raises Died."""
    while not all(asker.answers and asker.answers[-1][1] == version for asker in askers):
        if time.perf_counter() - at > RELOAD_S:
            raise Died(f"version {version} did not answer everywhere within {RELOAD_S:.0f} s")
        time.sleep(0.005)


# 3. A shadow.


def shadowed(repository: Repository, rounds: int, seconds: float) -> dict[str, Any]:
    change(repository, promote("2"))
    server, port, requests = served(repository, "shadow")
    found: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    copies = {"computed": 0.0, "dropped": 0.0}
    try:
        latencies, _, _ = load.closed(load.Closed("binary", port, requests, 64, 3.0, 1.0), lambda: None, lambda: None)
        rate = SHADOW_SHARE * len(latencies) / 3.0
        for turn in range(2 * rounds):
            # Each goes first as often as the other: what drifts, drifts for both.
            name = ("without", "with")[(turn + turn // 2) % 2]
            change(repository, shadow(["1"] if name == "with" else []))
            time.sleep(1.0)
            arrivals = load.poisson(rate, seconds, range(BODIES), seed=turn)
            before = copied(port)
            counted = load.opened(load.Open(port, requests, arrivals, CONNECTIONS))
            latencies = sorted(latency * 1e3 for _, status, latency, _ in counted.answers if status == 200)
            lost = len(arrivals) - len(latencies)
            found[name].append({"p50_ms": load.percentile(latencies, 0.5), "p99_ms": load.percentile(latencies, 0.99),
                                "lost": lost})  # fmt: skip
            after = copied(port)
            copies = {kind: copies[kind] + after[kind] - before[kind] for kind in copies}
    finally:
        server.stop()
    medians = {
        name: {key: statistics.median(one[key] for one in rows) for key in ("p50_ms", "p99_ms")}
        for name, rows in found.items()
    }
    return {"rate": rate, "rounds": rounds, "seconds": seconds, **medians, "copies": copies,
            "lost": sum(one["lost"] for rows in found.values() for one in rows)}  # fmt: skip


def copied(port: int) -> dict[str, float]:
    """How many copies were computed, and how many dropped."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return {
        name: sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{series}{{"))
        for name, series in (("computed", "millstream_shadow_total"), ("dropped", "millstream_shadow_lost_total"))
    }


# What is printed.


def markdown(result: dict[str, Any]) -> str:
    lines: list[str] = []
    checked: list[bounds.Bound] = []
    if one := result.get("reloads"):
        failed = one["unanswered"] + sum(count for status, count in one["statuses"].items() if status != "200")
        grown = 100 * (one["memory_last"] / one["memory_first"] - 1)
        on_the_way = ", ".join(f"{size:.0f}" for size in one["memory_after"])
        busy, rest = one["busy"], one["rest"]
        lines += [
            f"{one['reloads']} reloads of {LARGE}, {one['reload_s']:.2f} s each (median), {one['rate']:.0f} requests/s "
            f"of each model: {one['statuses'].get('200', 0)} answered. {TINY} at rest p50 {rest['p50_ms']:.1f} ms, p99 "
            f"{rest['p99_ms']:.1f} ms ({rest['count']}); while {LARGE} loads p50 {busy['p50_ms']:.1f} ms, p99 "
            f"{busy['p99_ms']:.1f} ms ({busy['count']}).",
            f"Memory {one['memory_first']:.0f} MB after the first of them, {one['memory_last']:.0f} MB after the last, "
            f"{one['memory_peak']:.0f} MB at most; on the way {on_the_way}.",
            "",
        ]
        checked += [
            bounds.Bound("requests that failed during the reloads", 0.0, failed, unit=""),
            bounds.Bound("memory gained between the first and the last reloads", 5.0, grown, unit="%"),
            bounds.Bound(
                "p99 of another model during a load, of its p99 at rest", 2.0, busy["p99_ms"] / rest["p99_ms"]
            ),
        ]
    if one := result.get("rollbacks"):
        lines += [
            f"{one['rollbacks']} roll backs of {LARGE} in two processes, under {one['answers']} requests: p50 "
            f"{one['p50_s']:.2f} s, p99 {one['p99_s']:.2f} s, {one['worst_s']:.2f} s at most.",
            "",
        ]
        checked.append(bounds.Bound("a roll back in every process, p99", 1.0, one["p99_s"], unit="s"))
    if one := result.get("shadow"):
        on, off, copies = one["with"], one["without"], one["copies"]
        lines += [
            f"{one['rate']:.0f} requests/s, a tenth of the peak, {one['rounds']} rounds of {one['seconds']:g} s each: "
            f"without a shadow p50 {off['p50_ms']:.2f} ms, p99 {off['p99_ms']:.2f} ms; with one p50 {on['p50_ms']:.2f} "
            f"ms, p99 {on['p99_ms']:.2f} ms (medians). {copies['computed']:.0f} copies were computed, "
            f"{copies['dropped']:.0f} dropped; {one['lost']} requests lost.",
            "",
        ]
        more = 100 * (on["p99_ms"] / off["p99_ms"] - 1)
        checked.append(bounds.Bound("p99 with a shadow over that without", 5.0, more, unit="%"))
    return "\n".join([*lines, f"{result['machine']}.", "", bounds.table(checked)])


if __name__ == "__main__":
    main()
