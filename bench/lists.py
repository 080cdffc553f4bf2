"""Whole lists under load: from a request on the wire to a page, with learning and index builds beside it.

    python bench/lists.py [--items 200000] [--rate 50] [--seconds 40] [--json]

`millstream up` runs as it does for a user: a catalogue of so many items in categories and tags, 5,000 users with tastes
for tags, all paths of recall, a ranker that learns from what the client tells, four rules of order. A client asks at
random moments (a Poisson process), shows the page, likes by taste, and measures from when a call was due.

It is measured twice: as the kernel places the processes, and with `serve` on a core of its own and all others on the
rest, as `taskset -ap` does it. Threads of one Python process that run on several cores wait for each other's lock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from millstream import config
from millstream.app.installation import Installation, Settings
from millstream.app.training import train
from millstream.clock import SystemClock
from millstream.learn.history import Field, import_entities
from millstream.meter import Meter
from pressure import Client, quantiles, up

USERS, TAGS, CATEGORIES = 5000, 200, 40
TOML = """
http_port = {port}
[recommend]
model = "ranker"
[recommend.placements.home]
n = 20
filters = {{ seen_s = 600 }}
[[recommend.placements.home.rerank]]
step = "seen"
[[recommend.placements.home.rerank]]
step = "window"
by = "category"
most = 2
window = 5
[[recommend.placements.home.rerank]]
step = "mmr"
by = "category"
weight = 0.3
[[recommend.placements.home.rerank]]
step = "fresh"
[catalogue]
items_max = 2_000_000
[recall]
every_s = 30
[learn]
model = "ranker"
gate.burst = 1000.0
gate.past_over = 10.0  # a ranker that begins from nothing soon shows other items: this is about speed
[join]
tasks.like.window_s = 5.0
[features]
user = [{{ name = "id" }}]
item = [{{ name = "id" }}, {{ name = "category" }}, {{ name = "tags", places = 3 }}]
crosses = ["user.id*item.category", "user.id*item.tags"]
"""


def tags_of(number: int) -> list[str]:
    return [f"t{(number * k + k) % TAGS}" for k in (7, 11, 13)]


def prepare(folder: Path, port: int, items: int) -> Path:
    """An installation that knows all items, and has a first version."""
    file = folder / "millstream.toml"
    file.write_text(TOML.format(port=port))
    settings = config.read(file, Settings)
    began = time.time()
    for first in range(0, items, 100_000):
        rows = [
            {"id": f"i{n}", "category": f"c{n % CATEGORIES}", "tags": tags_of(n), "created": began - items + n}
            for n in range(first, min(items, first + 100_000))
        ]
        import_entities(folder / "log", settings.log, "items", rows, {name: Field(name) for name in rows[0]}, began)
    users = [{"id": f"u{n}"} for n in range(USERS)]
    import_entities(folder / "log", settings.log, "users", users, {"id": Field("id")}, began)
    with Installation(folder, settings, SystemClock()) as at:
        train(at)
    return file


class Readers(Client):
    """Asks for pages and likes what suits. `asked`: (when due, seconds) of each call."""

    empty = missed = 0

    async def _moment(self, number: int, due: float) -> None:
        user, pipe = int(self._random.integers(USERS)), self._pipes[number % len(self._pipes)]
        ask = {"id": f"{self._name}{number}", "user": f"u{user}"}
        page = await self._call(pipe, "/v1/recommend", ask, due, self.asked)
        if page is None:
            return
        self.empty += not page["items"]
        self.missed += bool(page.get("missed"))
        told = []
        for slot in page["items"]:
            told.append({"request": page["id"], "item": slot["item"], "kind": "impression"})
            taste = any(int(tag[1:]) % 10 == user % 10 for tag in tags_of(int(slot["item"][1:])))
            if self._random.random() < (0.3 if taste else 0.03):
                told.append({"request": page["id"], "item": slot["item"], "kind": "like"})
        if told:
            await self._call(pipe, "/v1/outcomes", told, time.monotonic(), self.told)


async def measure(file: Path, port: int, rate: float, seconds: float) -> dict[str, float]:
    """The first half warms it up: histories, a first index. What is told is of the second."""
    client, meter = Readers(port, "q"), Meter.reading(file.parent / "state" / "meters")
    begun = time.monotonic()
    await client.run(rate, 2 * seconds)
    p50, p99 = quantiles(client.asked, begun + seconds, begun + 2 * seconds)
    late = meter.sum("millstream_recall_late_total")
    return {
        "lists_per_s": sum(due >= begun + seconds for due, _ in client.asked) / seconds,
        "p50_ms": p50,
        "p99_ms": p99,
        "failed": client.failed,
        "empty": client.empty,
        "lists_that_missed_something": client.missed,
        "late_paths": late,
        "recall_p99_ms_slowest_path": 1e3 * meter.quantile("millstream_recall_seconds", 0.99),
        "indexes": meter.sum("millstream_recall_builds_total"),
        "examples_learnt": meter.sum("millstream_examples_learnt_total"),
    }


def part(file: Path) -> None:
    """Give `serve` the first core, and everybody else who takes part the others."""
    first, *others = sorted(os.sched_getaffinity(0))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if str(file) in words or int(process.name) == os.getpid():
                for thread in (process / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), {first} if "serve" in words else others)
        except (FileNotFoundError, ProcessLookupError):
            continue


def once(items: int, port: int, rate: float, seconds: float, apart: bool) -> dict[str, float]:
    """One installation, from nothing."""
    with tempfile.TemporaryDirectory() as name:
        file = prepare(Path(name), port, items)
        began = time.monotonic()
        with up(file, port):
            started = time.monotonic() - began
            if apart:
                part(file)
            return {"ready_s": started} | uvloop.run(measure(file, port, rate, seconds))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=200_000)
    options.add_argument("--rate", type=float, default=50.0, help="lists a second (default: 50)")
    options.add_argument("--seconds", type=float, default=40.0, help="measured, after as much that warms up")
    options.add_argument("--port", type=int, default=18778)
    options.add_argument("--json", action="store_true", help="one line of JSON, last")
    chosen = options.parse_args()
    ways = {"as placed": False}
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        ways["apart"] = True
    cores = os.sched_getaffinity(0) if ways.get("apart") else set()
    found: dict[str, dict[str, float]] = {}
    for way, apart in ways.items():
        found[way] = once(chosen.items, chosen.port, chosen.rate, chosen.seconds, apart)
        if cores:
            os.sched_setaffinity(0, cores)
    print(f"{platform.machine()}, {os.cpu_count()} cores with the client on them, Python {platform.python_version()}")
    print(f"{chosen.items:,} items, {chosen.rate:g} lists a second were due")
    print(f"{'':>28}" + "".join(f"{way:>14}" for way in found))
    for key in found["as placed"]:
        print(f"{key:>28}" + "".join(f"{one[key]:14,.2f}" for one in found.values()))
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
