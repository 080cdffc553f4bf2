"""The join: how many events a second one core joins, and what it keeps in memory.

    python bench/join.py [--requests 20000] [--day-rate 3] [--json]

Speed: a backlog of requests of 20 candidates (20 tokens each), 5 impressions each, a like for every second one, all in
the log before it starts; the best of three. What a remembered request takes: as decoded events, as joins commonly hold
them, and here, once its windows are closed. A day: requests at an even rate for 86,400 s of a fake clock, windows of
30 s, an hour remembered; resident memory each hour, once the first hour is over.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from millstream.clock import FakeClock
from millstream.stream import Join, JoinSettings, Log, LogLimits, Operation, Task, decode, encode
from millstream.types import Outcome, Served

CANDIDATES, SHOWN, TOKENS = 20, 5, 20
START = 1e9


def events(number: int, when: float, random: np.random.Generator) -> tuple[Served, list[Outcome]]:
    items = [f"item{item}" for item in random.integers(0, 100_000, CANDIDATES).tolist()]
    served = Served(
        request=f"request-{number}", model="ranker", version="1@0", policy=1, arm="live", user=f"u{number % 1000}",
        candidates=items, event_time=when, tokens=bytes(4 * TOKENS * CANDIDATES), scores=bytes(4 * CANDIDATES),
    )  # fmt: skip
    kinds = [("impression", item) for item in items[:SHOWN]] + [("like", items[0])] * (number % 2 == 0)
    return served, [Outcome(request=served.request, item=item, kind=kind, event_time=when) for kind, item in kinds]


def speed(folder: Path, requests: int) -> float:
    """Events a second, of a backlog of so many requests."""
    clock, random, count = FakeClock(START), np.random.default_rng(0), 0
    with Log(folder / "log", clock) as log:
        to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
        for number in range(requests):
            clock.jump(0.001)
            served, outcomes = events(number, clock.now(), random)
            to_served.append(served.request.encode(), encode(served))
            for outcome in outcomes:
                to_outcomes.append(b"", encode(outcome))
            count += 1 + len(outcomes)
    took = []
    for _ in range(3):
        shutil.rmtree(folder / "log" / "examples", ignore_errors=True)
        (folder / "snapshot").unlink(missing_ok=True)
        with Log(folder / "log", clock) as log:
            join = Join(JoinSettings(tasks={"like": Task(window_s=5.0)}))
            joining = Operation(join, log, Join.inputs, "examples", folder / "snapshot", clock)
            began = time.perf_counter()
            while joining.step():
                pass
            took.append(time.perf_counter() - began)
            joining.abandon()
    return count / min(took)


def resident() -> int:
    """Bytes of memory that this process takes (Linux)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def remembered(folder: Path, requests: int = 40_000) -> tuple[float, float]:
    """Bytes of memory for each remembered request: as a decoded event, and as the join keeps it."""
    random = np.random.default_rng(0)
    encoded = [encode(events(number, START, random)[0]) for number in range(requests)]
    before = resident()
    held = [decode(one) for one in encoded]
    decoded = (resident() - before) / len(held)
    del held, encoded
    clock, join = FakeClock(START), Join(JoinSettings(keep_s=1e6))
    with Log(folder / "log", clock) as log:
        to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
        joining = Operation(join, log, Join.inputs, "examples", folder / "snapshot", clock, snapshot_steps=10**9)
        for number in range(2 * requests):
            if number == requests:
                before = resident()
            clock.jump(0.1)
            served, outcomes = events(number, clock.now(), random)
            to_served.append(b"", encode(served))
            to_outcomes.append_frame([(b"", encode(one)) for one in outcomes])
            if number % 100 == 0:
                joining.step()
        joining.step()
        kept = (resident() - before) / requests
        joining.abandon()
    return decoded, kept


def day(folder: Path, rate: int) -> list[int]:
    """Resident bytes at the end of each hour of a day of `rate` requests a second."""
    clock, random, found = FakeClock(START), np.random.default_rng(0), []
    limits = LogLimits(segment_bytes=4 << 20, retain_bytes=16 << 20)
    with Log(folder / "log", clock, limits) as log:
        to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
        joining = Operation(Join(JoinSettings()), log, Join.inputs, "examples", folder / "snapshot", clock)
        log.commit("bench", "examples", {0: 0})
        for minute in range(24 * 60):
            made = [events(minute * 60 * rate + n, clock.now() + n / rate, random) for n in range(60 * rate)]
            clock.advance(60.0)
            to_served.append_frame([(b"", encode(served)) for served, _ in made])
            to_outcomes.append_frame([(b"", encode(one)) for _, outcomes in made for one in outcomes])
            while joining.step():
                pass
            log.commit("bench", "examples", {0: log.reader("examples").end(0)})
            if minute % 10 == 9:
                joining.save()
            if minute % 60 == 59:
                found.append(resident())
        joining.abandon()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="of the backlog; 0: leave it out")
    parser.add_argument("--day-rate", type=int, default=3, help="requests a second of the day; 0: leave it out")
    parser.add_argument("--json", action="store_true", help="one line of JSON, last")
    args = parser.parse_args()
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None  # syncs are not what is measured here
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=fast) as name:
        if args.requests:
            figures["events_per_s"] = round(speed(Path(name) / "speed", args.requests))
            decoded, kept = remembered(Path(name) / "remembered")
            figures |= {"bytes_a_request_decoded": round(decoded), "bytes_a_request_remembered": round(kept)}
        if args.day_rate:
            hours = day(Path(name) / "day", args.day_rate)
            figures |= {
                "day_events": round(args.day_rate * 86_400 * (1 + SHOWN + 0.5)),
                "day_mib_after_2_hours": round(hours[1] / 2**20, 1),
                "day_mib_at_most_after": round(max(hours[2:]) / 2**20, 1),
                "day_mib_at_its_end": round(hours[-1] / 2**20, 1),
            }
    for key, value in figures.items():
        print(f"{key:>28}  {value:,}")
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
