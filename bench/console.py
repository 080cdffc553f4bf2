"""How long the console's pages take with a million events behind them: python bench/console.py

It makes an installation whose log has EVENTS served events, in one partition, with outcomes, runs the console as an
operator does, and asks for every page. `ready` is from the start of its process until the tail of every topic is
followed. A page is asked for over HTTP as a browser does, and timed to its last byte: what it shows is in it.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from millstream.app.installation import Installation
from millstream.models.manifest import Manifest
from millstream.stream.event import encode_all
from millstream.types import Outcome, Served

TOML = """
[learn]
model = "ranker"
[ftrl]
bits = 12
[features]
user = [{ name = "id" }]
item = [{ name = "id" }]
[console]
port = 0
"""
BATCH = 1000
PAGES = [
    "/", "/models", "/traffic", "/learning", "/features", "/recommend", "/experiments", "/alerts", "/review", "/log",
]  # fmt: skip


def fill(folder: Path, events: int) -> None:
    """An installation with so many events, half of them answers, each in a frame of its own as answers are logged."""
    (folder / "millstream.toml").write_text(TOML)
    scores = np.linspace(0, 1, 10, dtype="<f4").tobytes()
    with Installation.open(folder / "millstream.toml") as at:
        manifest = Manifest(format="ftrl", file="m.ftrl", features=at.definition.hash)
        at.repository.put("ranker", manifest, {"m.ftrl": at.learner().dump()})
        served, outcomes = at.log.writer("served"), at.log.writer("outcomes")
        items = [f"i{number}" for number in range(10)]
        for begin in range(0, events // 2, BATCH):
            numbers = range(begin, min(begin + BATCH, events // 2))
            answers = [
                (f"r{number}", Served(
                    request=f"r{number}", model="ranker", version="1@0", policy=1, arm="live",
                    user=f"u{number % 1000}", candidates=items, event_time=1.7e9 + number, scores=scores,
                ))
                for number in numbers
            ]  # fmt: skip
            likes = [(f"r{number}", Outcome(request=f"r{number}", item="i1", kind="like")) for number in numbers]
            for key, value in encode_all(answers):
                served.append(key, value)
            for key, value in encode_all(likes):
                outcomes.append(key, value)


def ask(url: str) -> tuple[float, int]:
    """(seconds, bytes) of a page."""
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:
        size = len(answer.read())
    return time.perf_counter() - began, size


def run(folder: Path, times: int) -> None:
    """Run the console, ask for every page, print the table."""
    command = [sys.executable, "-m", "millstream", "console", "-c", str(folder / "millstream.toml")]
    began, said = time.perf_counter(), folder / "console.txt"
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while not (found := re.search(r"is at http://[^:]+:(\d+)", said.read_text())):
            assert process.poll() is None, said.read_text()
            time.sleep(0.05)
        listens = time.perf_counter() - began
        url = f"http://localhost:{found[1]}"
        while b"answered" not in urllib.request.urlopen(f"{url}/log", timeout=60).read():
            time.sleep(0.1)
        ready = time.perf_counter() - began
        print(f"the console listens after {listens:.1f} s and follows every tail after {ready:.1f} s\n")
        print(f"{'page':<14}{'median':>10}{'slowest':>10}{'kB':>8}")
        for page in PAGES:
            took, sizes = zip(*(ask(url + page) for _ in range(times)), strict=True)
            print(f"{page:<14}{statistics.median(took):>8.3f} s{max(took):>8.3f} s{sizes[-1] / 1e3:>8.0f}")
    finally:
        process.terminate()
        process.wait(20)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="of the log (default: 1000000)")
    parser.add_argument("--times", type=int, default=20, help="that each page is asked for (default: 20)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, args.events)
        print(f"{args.events:,} events")
        run(folder, args.times)


if __name__ == "__main__":
    main()
