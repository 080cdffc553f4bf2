"""What watching costs, how soon planted faults are found, and how often the rules that ship say something for nothing.

    python bench/watch.py [--weeks 4] [--seconds 30] [--only cost,faults,weeks] [--json]

Cost: a real `millstream up` of four processes that answer 200 requests a second of three models, 20 numbers each; CPU
time by role. Faults and false alarms: a simulated fleet of the same size (`millstream.simulate.fleet`) under a fake
clock, whose pages of counters and events the real role watch reads, every 10 s for faults, and in the weeks every 60 s
and 5 features of 20. The weeks have days, weekends, bursts of failures, a deploy of a version a day and a process that
begins anew every third day; four of them take most of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from millstream.app.installation import Installation, Settings
from millstream.app.watching import Watch
from millstream.client import Client
from millstream.clock import FakeClock
from millstream.engine.quality import Quality
from millstream.meter import Meter
from millstream.simulate.fleet import Fault, Fleet
from millstream.stream import encode
from millstream.types import TensorSpec

START = 1_699_833_600.0  # a Monday, midnight
NOON = START + 12 * 3600.0
MINUTE, HOUR, DAY, WEEK = 60.0, 3600.0, 86400.0, 7 * 86400.0
MODELS = ("ranker", "price", "risk")
PORT = 18779

# (name, the fault, the rules that are to find it, minutes that it may take)
FAULTS: list[tuple[str, Fault, tuple[str, ...], float]] = [
    ("a dead feature (one value)", Fault(kind="dead"), ("feature-dead",), 5),
    ("a feature that is missing", Fault(kind="missing"), ("feature-dead", "feature-nulls"), 5),
    ("label outage", Fault(kind="outage"), ("labels-gone",), 5),
    ("scores shift by .2 sd", Fault(kind="shift", model="ranker", share=0.2), ("scores-moved",), 30),
    ("poisoned labels (30 %)", Fault(kind="poison", share=0.3), ("labels-odd", "losses-odd"), 30),
    ("empty answers (half of a model's)", Fault(kind="empty", model="ranker", share=0.5), ("empty-answers",), 2),
    ("a sick server (3 % of its requests fail)", Fault(kind="sick", server="serve-2", share=0.03), ("sick-server",), 2),
    ("a broken version (NaN)", Fault(kind="broken", model="risk"), ("failing",), 2),
    ("a broken version (one answer for all)", Fault(kind="constant", model="risk"), ("constant-answers",), 2),
    ("a server scores .5 sd otherwise", Fault(kind="shift", server="serve-1", share=0.5), ("server-unlike",), 30),
]


class House:
    """An installation whose servers are simulated, and the role that watches it, looking every `every_s` seconds."""

    def __init__(self, folder: Path, seed: int, every_s: float, features: int, start: float) -> None:
        self.clock, self.every_s = FakeClock(start), every_s
        settings = msgspec.convert({"watch": {"every_s": every_s}}, Settings)
        self.at = Installation(folder, settings, self.clock)
        self.fleet = Fleet(folder / "state" / "meters", seed, features=features)
        self.role = Watch(self.at)
        self._reads = self.at.log.writer("features_read")
        self._fired: set[str] = set()
        self.cpu_s = 0.0
        """Of the role."""

    def go(self, seconds: float) -> Iterator[tuple[float, str, str]]:
        """(unix seconds, rule, what it said) of what begins to fire, look by look."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            self.clock.advance(self.every_s)
            for event in self.fleet.step(self.clock.now(), self.every_s):
                self._reads.append(b"", encode(event))
            began = time.thread_time()
            self.role.step()
            self.cpu_s += time.thread_time() - began
            for alert in self.role.alarms.firing:
                if alert.id not in self._fired:
                    self._fired.add(alert.id)
                    yield self.clock.now(), alert.rule, alert.said

    def close(self) -> None:
        self.at.log.close()


@contextmanager
def house(seed: int, every_s: float, features: int, start: float) -> Iterator[House]:
    with tempfile.TemporaryDirectory() as name:
        made = House(Path(name), seed, every_s, features, start)
        try:
            yield made
        finally:
            made.close()


def faults(warm_s: float) -> list[dict[str, Any]]:
    """Each fault alone, planted after a quiet time: which rule found it first and when."""
    found = []
    for number, (name, fault, rules, within) in enumerate(FAULTS):
        with house(100 + number, 10.0, 20, NOON) as at:
            early = [rule for _, rule, _ in at.go(warm_s)]
            began = at.clock.now()
            at.fleet.faults = [fault]
            said = []
            for when, rule, _ in at.go(within * MINUTE):
                said.append((when - began, rule))
                if rule in rules:
                    break
        after = next((when for when, rule in said if rule in rules), None)
        others = sorted({rule for _, rule in said} - set(rules))
        found.append({"fault": name, "within_min": within, "found_s": after, "rule": "/".join(rules),
                      "others": others, "before": early})  # fmt: skip
        print(f"{name}: {after} s, {others}, before: {early}", file=sys.stderr, flush=True)
    return found


def weeks(count: float, seed: int) -> dict[str, Any]:
    """Nothing wrong: what the rules say all the same."""
    rules: Counter[str] = Counter()
    with house(seed, 60.0, 5, START) as at:
        for day in range(int(count * 7)):
            for part, deed in enumerate(("deploy", "restart", "")):
                for when, rule, said in at.go(DAY / 3):
                    rules[rule] += 1
                    print(f"day {(when - START) / DAY:.2f}: {rule}: {said}", file=sys.stderr, flush=True)
                if deed == "deploy":
                    at.fleet.deploy(MODELS[day % len(MODELS)])
                elif deed == "restart" and day % 3 == part:
                    at.fleet.restart(at.fleet.servers[day % len(at.fleet.servers)])
            print(f"{day + 1} days, {at.cpu_s:.0f} s of CPU", file=sys.stderr, flush=True)
        looks = count * WEEK / at.every_s
        return {"weeks": count, "alerts": dict(rules), "look_ms": at.cpu_s / looks * 1e3}


def counters_us() -> float:
    """Microseconds that looking at one answer takes."""
    rng = np.random.default_rng(1)
    quality = Quality(
        Meter(), {"model": "m", "version": "1"}, [TensorSpec("x", "FP32", (-1, 20))], [TensorSpec("y", "FP32", (-1, 1))]
    )
    asks = [{"x": rng.random((1, 20), np.float32)} for _ in range(100)]
    answers = [{"y": rng.random((1, 1), np.float32)} for _ in range(100)]
    best = np.inf
    for _ in range(20):
        began = time.thread_time()
        for _ in range(20):
            for ask, answer in zip(asks, answers, strict=True):
                quality.answered(ask, answer)
        best = min(best, (time.thread_time() - began) / 2000)
    return float(best * 1e6)


def logistic(path: Path) -> None:
    """y = sigmoid(x . w): float32 [rows, 20] to [rows, 1]."""
    weights = np.random.default_rng(2).normal(0, 1, (20, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["y"])],
        "logistic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


def cpu_by_role(parent: int) -> dict[str, float]:
    """CPU seconds of the processes of `up`, by their role, as the kernel counts them."""
    found: Counter[str] = Counter()
    tick = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_text().split("\0")
            if int(stat[1]) == parent and "--role" in words:
                found[words[words.index("--role") + 1]] += (int(stat[11]) + int(stat[12])) / tick
    return dict(found)


def cost(seconds: float) -> dict[str, Any]:
    """A real installation under the reference load: CPU by role."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:
            logistic(folder / "models" / model / "1" / "model.onnx")
        (folder / "millstream.toml").write_text(f"http_port = {PORT}\ngrpc_port = 0\nworkers = 4\n")
        command = [sys.executable, "-m", "millstream", "up", "-c", str(folder / "millstream.toml")]
        with (folder / "up.log").open("wb") as log:
            up = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _ready(up, folder)
            _load(15.0)
            before = cpu_by_role(up.pid)
            sent = _load(seconds)
            after = cpu_by_role(up.pid)
        finally:
            up.terminate()
            up.wait(30)
    used = {role: after[role] - before.get(role, 0.0) for role in after}
    serving = sum(value for role, value in used.items() if role.startswith("serve"))
    watching, us = used.get("watch", 0.0), counters_us()
    return {
        "requests": sent, "seconds": seconds, "serve_ms": serving / sent * 1e3, "serve_cpu_s": serving,
        "watch_cpu_s": watching, "watch_share": watching / serving, "counters_us": us,
        "counters_share": us * 1e-6 * sent / serving,
    }  # fmt: skip


def _ready(up: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v2/health/ready").read()
            return
        except OSError:
            if up.poll() is not None:
                break
            time.sleep(0.2)
    raise SystemExit(f"up did not start: {(folder / 'log').read_text()}")


def _load(seconds: float, rate: float = 200.0, callers: int = 8) -> int:
    """Ask `rate` times a second from so many callers; how many answers came."""
    counts = [0] * callers

    def ask(place: int) -> None:
        rng = np.random.default_rng(place)
        with Client(f"http://127.0.0.1:{PORT}") as client:
            due = time.monotonic()
            end = due + seconds
            while due < end:
                time.sleep(max(0.0, due - time.monotonic()))
                client.predict(MODELS[counts[place] % 3], {"x": rng.normal(size=(1, 20)).astype(np.float32)})
                counts[place] += 1
                due += callers / rate

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def table(found: dict[str, Any]) -> Iterator[str]:
    if of := found.get("cost"):
        yield "| what watching costs | |"
        yield "|---|---|"
        yield f"| requests answered in {of['seconds']:.0f} s, by 4 processes | {of['requests']:,} |"
        yield f"| CPU of serving | {of['serve_cpu_s']:.2f} s, {of['serve_ms']:.2f} ms a request |"
        yield f"| CPU of the role watch | {of['watch_cpu_s']:.2f} s, {of['watch_share']:.1%} of it |"
        yield f"| counters of quality | {of['counters_us']:.1f} us a request, {of['counters_share']:.1%} of it |"
        yield ""
    if of := found.get("faults"):
        yield "| fault planted | allowed | found after | by |"
        yield "|---|---|---|---|"
        for one in of:
            after = "not found" if one["found_s"] is None else f"{one['found_s'] / 60:.1f} min"
            yield f"| {one['fault']} | {one['within_min']} min | {after} | `{one['rule']}` |"
        yield ""
    if of := found.get("weeks"):
        said = ", ".join(f"`{rule}` {count}" for rule, count in sorted(of["alerts"].items())) or "none"
        total = sum(of["alerts"].values())
        yield f"False alarms in {of['weeks']:g} simulated weeks: {total}, {total / of['weeks']:.2g} a week ({said}); "
        yield f"a look of the role takes {of['look_ms']:.0f} ms of CPU."


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weeks", type=float, default=4.0, help="simulated weeks without a fault (default: 4)")
    options.add_argument("--seed", type=int, default=7, help="of the weeks (default: 7)")
    options.add_argument("--seconds", type=float, default=30.0, help="of the real load (default: 30)")
    options.add_argument("--warm", type=float, default=1.1, help="quiet hours before a fault (default: 1.1)")
    options.add_argument("--only", default="cost,faults,weeks", help="parts, by comma (default: all)")
    options.add_argument("--json", action="store_true", help="one line of JSON, last")
    chosen = options.parse_args()
    parts = chosen.only.split(",")
    found: dict[str, Any] = {}
    if "cost" in parts:
        found["cost"] = cost(chosen.seconds)
    if "faults" in parts:
        found["faults"] = faults(chosen.warm * HOUR)
    if "weeks" in parts:
        found["weeks"] = weeks(chosen.weeks, chosen.seed)
    print("\n".join(table(found)))
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
