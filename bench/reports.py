"""What a report of a large log costs: seconds, and memory that must not grow with the log.

    python bench/reports.py [--lists 250000 1000000] [--json]

A log of so many lists is written: 100 candidates, 20 places, 10 of them shown, one of these liked, 100,000 people, of a
catalogue of 100,000 items; lists are copies of a few that the rules made, under other names. Then `millstream report`
reads it in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from millstream.clock import SystemClock
from millstream.flows.rerank import Rules, Slate
from millstream.flows.rerank.diversity import Window
from millstream.stream import Log
from millstream.stream.event import encode
from millstream.types import Entity, Outcome, Served

ITEMS, USERS, CANDIDATES, PLACES, SHOWN, KINDS = 100_000, 100_000, 100, 20, 10, 200
FRAME = 500
TOML = """
[recommend.placements.home]
list_max = 20
[learn]
model = "ranker"
"""


def made(random: np.random.Generator) -> Served:
    """A list as a server logs it."""
    items = [f"item-{number}" for number in random.choice(ITEMS, CANDIDATES, replace=False).tolist()]
    scores = random.random(CANDIDATES).astype(np.float32)
    slate = Slate(items=items, scores=scores, columns={"category": random.integers(0, 30, CANDIDATES).astype(np.int32)})
    rules = Rules((Window(),))
    order = rules.order(slate, PLACES)
    return Served(
        request="", model="ranker", version="1@0", policy=1, arm="live", user="", candidates=items, event_time=0.0,
        scores=scores.tobytes(), placement="home", order=order.places.astype(np.uint32).tobytes(),
        reasons=order.reasons, sources=random.integers(1, 8, CANDIDATES).astype(np.uint32).tobytes(),
        paths=["popular", "newest", "item_cf"], slate=slate.pack(names=False), rules_hash=rules.hash(PLACES),
        recalled=scores.tobytes(),
    )  # fmt: skip


def write(folder: Path, lists: int) -> None:
    """The log."""
    random = np.random.default_rng(1)
    (folder / "millstream.toml").write_text(TOML)
    kinds = [made(random) for _ in range(KINDS)]
    with Log(folder / "log", SystemClock()) as log:
        items, served, outcomes = (log.writer(topic) for topic in ("items", "served", "outcomes"))
        for first in range(0, ITEMS, FRAME):
            known = [{"id": f"item-{n}", "category": f"c{n % 30}"} for n in range(first, first + FRAME)]
            items.append_frame([(b"", encode(Entity(id=one.pop("id"), attributes=one))) for one in known])
        for first in range(0, lists, FRAME):
            events, told = [], []
            for number in range(first, min(first + FRAME, lists)):
                kind, time_ = kinds[number % KINDS], 1e9 + number
                name, user, arm = f"r{number}", int(random.integers(USERS)), "a" if number % 2 else "b"
                changed = msgspec.structs.replace(kind, request=name, user=f"u{user}", event_time=time_, rules=arm)
                events.append((name.encode(), encode(changed)))
                for place in np.frombuffer(kind.order, np.uint32)[:SHOWN].tolist():
                    seen = Outcome(request=name, item=kind.candidates[place], kind="impression", event_time=time_)
                    told.append((name.encode(), encode(seen)))
                liked = kind.candidates[int(np.frombuffer(kind.order, np.uint32)[number % SHOWN])]
                told.append((name.encode(), encode(Outcome(request=name, item=liked, kind="like", event_time=time_))))
            served.append_frame(events)
            outcomes.append_frame(told)


def measure(folder: Path) -> tuple[float, dict[str, object]]:
    """Seconds, and what the report said."""
    began = time.monotonic()
    command = [sys.executable, "-m", "millstream", "report", "-c", str(folder / "millstream.toml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.monotonic() - began, json.loads(done.stdout)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--lists", type=int, nargs="+", default=[250_000, 1_000_000], help="of a log, small ones first"
    )
    options.add_argument("--json", action="store_true", help="one line of JSON, last")
    chosen = options.parse_args()
    rows = []
    print(f"{'lists':>10}{'outcomes':>12}{'log, GB':>9}{'seconds':>9}{'lists/s':>9}{'peak memory, MB':>17}")
    for lists in sorted(chosen.lists):
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), lists)
            size = sum(file.stat().st_size for file in Path(name).rglob("*.seg")) / 1e9
            seconds, said = measure(Path(name))
        # of all children so far, so the smaller logs come first
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        assert said["lists"] == lists
        rows.append({"lists": lists, "seconds": seconds, "peak_mb": peak})
        print(f"{lists:10,}{lists * (SHOWN + 1):12,}{size:9.1f}{seconds:9.0f}{lists / seconds:9,.0f}{peak:17,.0f}")
    if chosen.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
