"""How long `millstream trace` looks for a request, by how old it is and by what the log holds.

    python bench/traces.py [--requests 1000000] [--lists 50000] [--json]

Two logs are made here, of real events through the real writer: rankings of 20 candidates, and lists of 500 with their
slates. Each request has an impression and a like, each 1000 examples a push; a request comes every millisecond. Times
are the best of three of `tell`, so of files that the page cache has, and of its CPU; `command` is the whole process of
`millstream trace`, its imports included.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import msgspec
import numpy as np

from millstream.app.installation import Installation, Settings
from millstream.app.story import tell
from millstream.clock import FakeClock
from millstream.errors import NotFound
from millstream.flows.rerank import Slate
from millstream.stream.event import encode
from millstream.types import Delta, Example, Outcome, Served

TOML = """
http_port = 0
[learn]
model = "ranker"
[log]
retain_bytes = 100_000_000_000
disk_bytes_max = 200_000_000_000
[features]
user = [{ name = "id" }, { name = "age", bucket = 10 }]
item = [{ name = "id" }, { name = "tags", places = 4 }]
crosses = ["user.id*item.id"]
[recommend.placements.home]
n = 20
"""
START = 1.7e9
PUSH = 1000


def made(folder: Path, requests: int, candidates: int, listed: bool) -> None:
    """A log with so many requests and all that comes of them."""
    folder.mkdir()
    (folder / "millstream.toml").write_text(TOML)
    chance, clock = np.random.default_rng(1), FakeClock(START)
    with Installation(folder, msgspec.convert(tomllib.loads(TOML), Settings), clock) as at:
        width, definition = at.definition.width, at.definition.hash
        tokens = chance.integers(1, 2**32, (candidates, width), dtype=np.uint32).tobytes()
        scores = chance.random(candidates, np.float32)
        items = [f"item-{n}" for n in range(candidates)]
        order = np.argsort(-scores)[:100].astype(np.uint32)
        slate = Slate(items=items, scores=scores, columns={"created": chance.random(candidates)}).pack(names=False)
        more = {
            "placement": "home", "order": order.tobytes(), "reasons": ["score"] * 100, "slate": slate,
            "sources": chance.integers(1, 8, candidates, dtype=np.uint32).tobytes(), "paths": ["a", "b", "c"],
            "recalled": scores.tobytes(),
        }  # fmt: skip
        event = Served(
            request="", model="ranker", version="1@0", policy=1, arm="live", user="u7", candidates=items,
            event_time=START, definition=definition, tokens=tokens, scores=scores.tobytes(), **(more if listed else {}),
        )  # fmt: skip
        served, outcomes, examples, deltas = (
            at.log.writer(topic, 0) for topic in ("served", "outcomes", "examples", "deltas")
        )
        step, known, pushed, end = [], [], 0, 0
        for number in range(requests):
            clock.advance(0.001)
            ident, now = f"r{number:07d}", clock.now()
            version = f"1@{pushed}"
            one = msgspec.structs.replace(event, request=ident, version=version, event_time=now)
            served.append(ident.encode(), encode(one))
            for kind in ("impression", "like"):
                outcome = Outcome(request=ident, item=items[0], kind=kind, event_time=now)
                outcomes.append_soon(ident.encode(), encode(outcome))
            example = Example(
                request=ident, item=items[0], model="ranker", version=version, tokens=tokens[: 4 * width], score=0.5,
                label=1.0, weight=1.0, event_time=now, arrival=now, wait_s=0.0, definition=definition,
                task=at.task.name, outcomes=[f"{ident}/{items[0]}/impression", f"{ident}/{items[0]}/like"],
            )  # fmt: skip
            step.append((ident.encode(), encode(example)))
            known.append(now)
            if len(step) == PUSH:
                examples.append_frame(step, meta=b"")
                end, pushed, step = end + len(step), pushed + 1, []
                slots = np.arange(2000, dtype=np.uint32).tobytes()
                delta = Delta(
                    model="ranker", base="1", sequence=pushed, upto=end, slots=slots, weights=slots, checksum=0,
                    arrivals=np.array(known, np.float64).tobytes(),
                )  # fmt: skip
                deltas.append(b"ranker", encode(delta))
                known = []


def timed(folder: Path, requests: int) -> list[dict[str, object]]:
    """Seconds to tell stories of requests of several ages."""
    found = []
    settings = msgspec.convert(tomllib.loads(TOML), Settings)
    places = {"newest": 0.999, "a tenth back": 0.9, "half back": 0.5, "oldest": 0.0}
    for name, share in places.items():
        number = min(int(requests * share), requests - PUSH)
        when = START + 0.001 * number
        for span, bounds in {"": {}, "a second to either side": {"since": when - 1.0, "until": when + 1.0}}.items():
            took, worked = [], []
            for _ in range(3):
                with Installation(folder, settings, FakeClock(START + requests)) as at:
                    begun, idle = time.perf_counter(), time.process_time()
                    story = tell(at, f"r{number:07d}", **bounds)
                    took.append(time.perf_counter() - begun)
                    worked.append(time.process_time() - idle)
            assert len(story.outcomes) == 2 and len(story.examples) == 1 and len(story.pushes) == 1, story.said
            found.append(
                {"request": name, "since, until": span, "s": round(min(took), 3), "cpu_s": round(min(worked), 3)}
            )
    with Installation(folder, settings, FakeClock(START + requests)) as at:
        begun = time.perf_counter()
        try:
            tell(at, "nobody-7")  # as long as no other id: only lengths are looked at
        except NotFound:
            found.append({"request": "none", "since, until": "", "s": round(time.perf_counter() - begun, 3)})
    number = requests - PUSH
    begun = time.perf_counter()
    command = [sys.executable, "-m", "millstream", "trace", f"r{number:07d}", "-c", str(folder / "millstream.toml")]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    found.append({"request": "newest", "since, until": "command", "s": round(time.perf_counter() - begun, 3)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--lists", type=int, default=50_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for what, count, candidates in (("rankings", args.requests, 20), ("lists", args.lists, 500)):
            folder = Path(scratch) / what
            begun = time.perf_counter()
            made(folder, count, candidates, what == "lists")
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            print(f"{count:,} {what}, {size / 2**20:,.0f} MB, in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            rows += [{"log": f"{count:,} {what}", "MB": size >> 20, **row} for row in timed(folder, count)]
    if args.json:
        print(json.dumps({"rows": rows, "machine": platform.platform()}))
        return
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
