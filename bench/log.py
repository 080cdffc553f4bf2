"""What the event log does on this machine's disk: `python bench/log.py [--folder F] [--seconds S] [--json]`; with
`--kafka HOST:PORT` on a cluster, in topics whose names begin with bench.

Durable: as many tasks as `in flight`, each awaiting its own append before the next; every event was synced when it
counts. Rates are events of 500 bytes a second, the best of the repeats (the others were disturbed); latency is that
of one append, in milliseconds. Paced: so many outcomes a second, each sent at its time whether or not those before it
are durable, and latency counts from that time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import uvloop

from millstream.clock import SystemClock
from millstream.guard.pii import Redacted
from millstream.stream import segment
from millstream.stream.log import Log, LogLimits, Writer, open_log

EVENT_BYTES = 500
IN_FLIGHT = (1, 256, 1024, 4096)
REPEATS = 3
PACED_PER_S = 1000


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def sync_ms(folder: Path, count: int = 200) -> float:
    """The median sync of 100 KB appended to a file."""
    fd = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    took = []
    for _ in range(count):
        os.write(fd, bytes(100_000))
        begun = time.perf_counter()
        segment.sync(fd)
        took.append(time.perf_counter() - begun)
    os.close(fd)
    return quantile(took, 0.5) * 1e3


async def durable(writer: Writer, value: Redacted, tasks: int, seconds: float) -> dict[str, float]:
    took: list[float] = []
    done = 0
    begun = time.perf_counter()
    until = begun + seconds

    async def one(timed: bool) -> None:
        nonlocal done
        while (sent := time.perf_counter()) < until:
            await writer.append_durable(b"request-0001", value)
            done += 1
            if timed:
                took.append(time.perf_counter() - sent)

    await asyncio.gather(*(one(at < 16) for at in range(tasks)))
    rate = done / (time.perf_counter() - begun)
    return {"events_per_s": rate, "p50_ms": quantile(took, 0.5) * 1e3, "p99_ms": quantile(took, 0.99) * 1e3}


async def paced(writer: Writer, value: Redacted, seconds: float) -> dict[str, float]:
    took: list[float] = []
    begun = time.perf_counter()

    async def one(due: float) -> None:
        await writer.append_durable(b"request-0001", value)
        took.append(time.perf_counter() - due)

    sent = []
    for number in range(int(PACED_PER_S * seconds)):
        due = begun + number / PACED_PER_S
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        sent.append(asyncio.ensure_future(one(due)))
    await asyncio.gather(*sent)
    rate = len(took) / (time.perf_counter() - begun)
    return {"events_per_s": rate, "p50_ms": quantile(took, 0.5) * 1e3, "p99_ms": quantile(took, 0.99) * 1e3}


def frames(writer: Writer, value: Redacted, seconds: float) -> dict[str, float]:
    """Frames of 100 events with a meta, synced, one after the other: a step of the join."""
    took: list[float] = []
    while sum(took) < seconds:
        sent = time.perf_counter()
        writer.append_frame([(b"request-0001", value)] * 100, meta=b"step", sync=True)
        took.append(time.perf_counter() - sent)
    rate = 100 * len(took) / sum(took)
    return {"events_per_s": rate, "p50_ms": quantile(took, 0.5) * 1e3, "p99_ms": quantile(took, 0.99) * 1e3}


def plain(writer: Writer, value: Redacted, count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        writer.append(b"request-0001", value)
    return count / (time.perf_counter() - begun)


def read(log: Log, topic: str) -> float:
    """Every record of a topic, 1000 at a time, checked."""
    reader = log.reader(topic)
    count = at = 0
    begun = time.perf_counter()
    while records := reader.read(0, at):
        count, at = count + len(records), records[-1].offset + 1
    return count / (time.perf_counter() - begun)


def measure(folder: Path, seconds: float, kafka: str) -> dict[str, object]:
    value = Redacted(os.urandom(EVENT_BYTES))
    result: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}, "
        f"Python {platform.python_version()}",
        "sync_p50_ms": sync_ms(folder),
    }
    limits = LogLimits(kafka=kafka, kafka_prefix=f"bench.{folder.name}." if kafka else "")
    with open_log(folder, SystemClock(), limits) as log:
        writer = log.writer("durable")
        rows = {}
        for tasks in IN_FLIGHT:
            runs = [uvloop.run(durable(writer, value, tasks, seconds)) for _ in range(REPEATS)]
            rows[str(tasks)] = max(runs, key=lambda run: run["events_per_s"])
        result["durable"] = rows
        at_a_pace = log.writer("paced")
        runs = [uvloop.run(paced(at_a_pace, value, 5 * seconds)) for _ in range(REPEATS)]
        result["paced"] = min(runs, key=lambda run: run["p99_ms"])
        result["frames"] = frames(log.writer("frames"), value, seconds)
        one_by_one = log.writer("plain")
        result["append_per_s"] = max(plain(one_by_one, value, 5_000 if kafka else 50_000) for _ in range(REPEATS))
        result["read_durable_per_s"] = max(read(log, "paced" if kafka else "durable") for _ in range(REPEATS))
        result["read_plain_per_s"] = max(read(log, "plain") for _ in range(REPEATS))
    return result


def table(result: dict[str, object]) -> str:
    rows = result["durable"]
    assert isinstance(rows, dict)
    lines = [str(result["machine"]), f"sync of 100 KB, p50: {result['sync_p50_ms']:.2f} ms", ""]
    lines.append(f"{'':<28}{'events/s':>10}{'p50 ms':>9}{'p99 ms':>9}")
    named_rows = {f"durable, {tasks} in flight": row for tasks, row in rows.items()}
    named_rows |= {f"durable, {PACED_PER_S:,}/s sent": result["paced"], "frames of 100": result["frames"]}
    for name, row in named_rows.items():
        rates = f"{row['events_per_s']:>10,.0f}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}"
        lines.append(f"{name:<28}{rates}")
    named = {"append": "append_per_s", "read, frames of many": "read_durable_per_s"}
    named["read, frames of one"] = "read_plain_per_s"
    lines += [f"{name:<28}{result[key]:>10,.0f}" for name, key in named.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write: the disk to measure (default: a temporary folder)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each durable run lasts")
    parser.add_argument("--kafka", default="", help="brokers of a cluster to measure instead, host:port,...")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-log-", dir=options.folder))
    try:
        result = measure(folder, options.seconds, options.kafka)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
