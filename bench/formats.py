"""What a process of its own costs a model: a scikit-learn pipeline here, through shared memory, and over HTTP.

    python bench/formats.py [--calls N] [--json]

The pipeline (StandardScaler, LogisticRegression, 20 features) is loaded by the same code here and there, and called in
rounds that take turns, so that all see the same machine: here, back to back; here, each call after a switch to another
Python that does nothing and back (what is colder then, no kind of message can save); and in its own process. A call
gives label and probability. CPU counts both sides of the shared memory; over HTTP it is the server's and its process's,
without the client's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from millstream.client import Client
from millstream.meter import Meter
from millstream.models import Manifest, Repository, load
from millstream.models.apart import Apart, Programs
from millstream.models.apart.inspect import look_into
from millstream.models.runtimes import sklearn

OVER_US_MAX = 60.0
FEATURES, ROWS, ROUNDS = 20, (1, 32), 40
TICK = os.sysconf("SC_CLK_TCK")

Inputs = dict[str, np.ndarray[Any, Any]]


def put(root: Path) -> Repository:
    """A repository with the pipeline in it."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1000, FEATURES))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, x[:, 0] > x[:, 1])
    joblib.dump(pipeline, root / "m.joblib")
    manifest = Manifest(format="sklearn", file="m.joblib")
    found = look_into(root, manifest, {"x": x[:2]}, Path(sys.executable))
    manifest = msgspec.structs.replace(
        manifest, inputs=found.inputs, outputs=found.outputs, example={"x": found.example["x"].tolist()}
    )
    repository = Repository(root / "models")
    repository.put("m", manifest, {"m.joblib": root / "m.joblib"})
    return repository


def cpu_s(*pids: int) -> float:
    """CPU seconds that processes have taken."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / TICK


def wall_us(call: Callable[[], object], count: int, between: Callable[[], object] = int) -> float:
    """Median microseconds of a call, without what comes `between`."""
    times = []
    for _ in range(count):
        between()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


@contextlib.contextmanager
def switch() -> Iterator[Callable[[], object]]:
    """A call that goes to another Python process, which does nothing, and comes back."""
    command = [sys.executable, "-c", "import os\nwhile os.read(0, 1): os.write(1, b'x')"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as echo:
        assert echo.stdin is not None and echo.stdout is not None
        there, back = echo.stdin.fileno(), echo.stdout.fileno()
        yield lambda: os.write(there, b"x") and os.read(back, 1)
        echo.kill()


def cpu_us(call: Callable[[], object], count: int, *pids: int) -> float:
    """CPU microseconds of a call, in the processes `pids`."""
    before = cpu_s(*pids)
    for _ in range(count):
        call()
    return (cpu_s(*pids) - before) / count * 1e6


def through_memory(apart: Apart, own: sklearn.Estimator, rows: int, count: int) -> dict[str, Any]:
    inputs: Inputs = {"x": np.random.default_rng(1).normal(size=(rows, FEATURES))}
    here, there = lambda: own.predict(inputs), lambda: apart.predict(inputs)
    few = count // ROUNDS
    with switch() as away:
        rounds = [(wall_us(here, few), wall_us(here, few, away), wall_us(there, few)) for _ in range(ROUNDS)]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    return {
        "rows": rows, "own_us": medians[0], "switched_us": medians[1], "apart_us": medians[2],
        "over_own_us": statistics.median(apart - own for own, _, apart in rounds),
        "over_switched_us": statistics.median(apart - switched for _, switched, apart in rounds),
        "cpu_own_us": cpu_us(here, 4 * count, os.getpid()),
        "cpu_apart_us": cpu_us(there, 4 * count, os.getpid(), *apart.pids()),
    }  # fmt: skip


@contextlib.contextmanager
def served(root: Path) -> Iterator[tuple[str, int]]:
    """A server over the repository: (its address, its pid)."""
    command = [sys.executable, "-m", "millstream", "serve", str(root), "--allow-code", "--http-port", "0"]
    server = subprocess.Popen([*command, "--grpc-port", "0"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        address = next(line.split("serving at ")[1].strip() for line in server.stderr if "serving at http" in line)
        yield address, server.pid
    finally:
        server.terminate()
        server.communicate()


def over_http(address: str, pid: int, rows: int, count: int) -> dict[str, Any]:
    inputs: Inputs = {"x": np.random.default_rng(1).normal(size=(rows, FEATURES))}
    children = Path(f"/proc/{pid}/task").glob("*/children")
    below = [int(child) for path in children for child in path.read_text().split()]
    with Client(address) as client:
        call = lambda: client.predict("m", inputs)  # noqa: E731
        cpu_us(call, 50, pid)
        return {"http_us": wall_us(call, count), "cpu_http_us": cpu_us(call, 4 * count, pid, *below)}


COLUMNS = {
    "own_us": "own predict",
    "switched_us": "after a switch",
    "apart_us": "its own process",
    "over_own_us": "over own predict",
    "over_switched_us": "over that after a switch",
    "cpu_own_us": "CPU own",
    "cpu_apart_us": "CPU both sides",
    "http_us": "over HTTP",
    "cpu_http_us": "CPU of the server",
}


def report(result: dict[str, Any]) -> str:
    lines = [f"| rows | {' | '.join(COLUMNS.values())} |", f"|---{'|---' * len(COLUMNS)}|"]
    lines += [f"| {row['rows']} | {' | '.join(f'{row[key]:.0f} us' for key in COLUMNS)} |" for row in result["rows"]]
    for key in ("over_own_us", "over_switched_us"):
        over = max(row[key] for row in result["rows"])
        verdict = "ok" if over <= OVER_US_MAX else "**missed**"
        lines += ["", f"{COLUMNS[key].capitalize()}: {over:.0f} us, bound {OVER_US_MAX:.0f} us: {verdict}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="of each kind (default: 2000)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        repository = put(Path(name))
        own = sklearn.load(repository.folder("m", "1"), repository.manifest("m", "1"), "cpu")
        programs = Programs(Meter())
        try:
            apart = load(repository, "m", "1", programs=programs)
            assert isinstance(apart, Apart)
            rows = [through_memory(apart, own, count, arguments.calls) for count in ROWS]
        finally:
            programs.close()
        with served(repository.root) as (address, pid):
            for row in rows:
                row |= over_http(address, pid, row["rows"], arguments.calls)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result = {"machine": machine, "bound_us": OVER_US_MAX, "rows": rows}
    print(json.dumps(result) if arguments.json else report(result))


if __name__ == "__main__":
    main()
