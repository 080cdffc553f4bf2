"""The stream: how many events a second reach the rows, and how long one takes until a reader sees it."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from typing import Any

import definitions
import numpy as np
from definitions import TWO_KINDS

from millstream import errors
from millstream.clock import SystemClock
from millstream.features.define import SECOND
from millstream.features.online import Reader
from millstream.features.pipeline import Pipeline, folder_of, stores_of
from millstream.meter import Meter
from millstream.stream.event import encode
from millstream.stream.log import Log, Writer
from millstream.types import Fact

STEP = 20_000  # events that come between two steps
FRAME = 500
USERS, ITEMS = 100_000, 20_000
POLL_S, RATE = 0.05, 1000
WATCHED = 1000  # users: each changes once a second
LOOK_S = 0.002
WAIT_S = 60.0


def facts(count: int, seed: int) -> list[Any]:
    """Events as the log takes them."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, USERS, count).tolist(), random.integers(0, ITEMS, count).tolist()
    click, value = random.integers(0, 2, count).tolist(), random.normal(size=count).tolist()
    now = time.time()
    return [
        encode(
            Fact(
                event_time=now,
                values={
                    "user": f"u{user[at]}", "item": f"i{item[at]}", "kind": "click" if click[at] else "view",
                    "value": value[at],
                },
            )
        )
        for at in range(count)
    ]  # fmt: skip


def append(writer: Writer, values: list[Any]) -> None:
    for first in range(0, len(values), FRAME):
        writer.append_frame([(b"", value) for value in values[first : first + FRAME]])


def followed(root: Path, events: int, steps: int) -> dict[str, Any]:
    """Events a second of a pipeline that catches up with a log, its rows written at the end; then of one that keeps up:
    STEP events come, all rows that they change are written, and so on. Medians of three runs, and of the steps."""
    clock, folder = SystemClock(), definitions.folder(root, "stream")
    with Log(folder / "log", clock) as log:
        writer = log.writer("events")
        append(writer, facts(events, 0))
        behind, behind_cpu = [], []
        for number in range(3):
            pipeline = Pipeline(TWO_KINDS, log, folder / f"features{number}", clock, Meter(), USERS)
            began, cpu, taken = time.perf_counter(), time.process_time(), 0
            while found := pipeline.step():
                taken += found
            behind.append(taken / (time.perf_counter() - began))
            behind_cpu.append(taken / (time.process_time() - cpu))
            if taken != events:
                raise AssertionError(f"{taken} events were taken of {events}")
            if number < 2:
                pipeline.abandon()
        steady, steady_cpu = [], []
        for number in range(steps):
            append(writer, facts(STEP, 1 + number))
            began, cpu = time.perf_counter(), time.process_time()
            taken = pipeline.step()
            steady.append(taken / (time.perf_counter() - began))
            steady_cpu.append(taken / (time.process_time() - cpu))
        began = time.perf_counter()
        pipeline.save()
        saved = time.perf_counter() - began
        size = sum(path.stat().st_size for path in pipeline.folder.glob("*.snapshot"))
        pipeline.abandon()
    return {
        "events": events, "behind": float(np.median(behind)), "behind_cpu": float(np.median(behind_cpu)),
        "steady": float(np.median(steady)), "steady_cpu": float(np.median(steady_cpu)),
        "save_s": saved, "snapshot_mb": size / 1e6,
    }  # fmt: skip


def fresh(root: Path, seconds: float) -> dict[str, Any]:
    """One process appends RATE events a second, one follows the log, one looks at the rows: milliseconds from just
    before an event is appended until a reader has its value."""
    folder, count = definitions.folder(root, "fresh"), int(seconds * RATE)
    context = multiprocessing.get_context("spawn")
    stop, (here, there) = context.Event(), context.Pipe()
    follower = context.Process(target=_follow, args=(folder, stop), daemon=True)
    watcher = context.Process(target=_watch, args=(folder, count, there), daemon=True)
    try:
        with Log(folder / "log", SystemClock()) as log:
            writer = log.writer("events")
            _append_one(writer, 0)
            follower.start()
            watcher.start()
            if not here.poll(WAIT_S) or here.recv() != "ready":
                raise AssertionError("no reader")
            sent = np.zeros(count)
            began = time.monotonic()
            for at in range(1, count):
                while (left := began + at / RATE - time.monotonic()) > 0:
                    time.sleep(left)
                sent[at] = time.monotonic()
                _append_one(writer, at)
            took_s = time.monotonic() - began
            if not here.poll(WAIT_S):
                raise AssertionError("not every event was seen")
            seen = here.recv()
    finally:
        stop.set()
        for process in (follower, watcher):
            if process.pid is not None:
                process.join(5.0)
                process.kill()
    took = (seen - sent)[1:] * 1e3
    if np.isnan(took).any():
        raise AssertionError(f"{int(np.isnan(took).sum())} events of {count} were never seen")
    p50, p99 = np.quantile(took, [0.5, 0.99])
    return {"events": count, "events_s": (count - 1) / took_s, "p50_ms": float(p50), "p99_ms": float(p99),
            "most_ms": float(took.max())}  # fmt: skip


def _append_one(writer: Writer, number: int) -> None:
    values: dict[str, str | float | None] = {
        "user": f"u{number % WATCHED}", "item": f"i{number % 200}", "kind": "view", "value": float(number)
    }  # fmt: skip
    writer.append(b"", encode(Fact(event_time=time.time(), values=values)))


def _follow(folder: Path, stop: Flag) -> None:
    clock = SystemClock()
    with Log(folder / "log", clock) as log:
        pipeline = Pipeline(TWO_KINDS, log, folder, clock, Meter(), USERS)
        while not stop.is_set():
            pipeline.step()
            stop.wait(POLL_S)
        pipeline.abandon()


def _watch(folder: Path, count: int, to: Connection) -> None:
    """Says "ready" when it reads event 0, and when it has read the last, when it first saw each (NaN: never)."""
    reader, until = None, time.monotonic() + WAIT_S
    while reader is None and time.monotonic() < until:
        try:
            reader = Reader(TWO_KINDS, stores_of(TWO_KINDS, folder_of(TWO_KINDS, folder), USERS, write=False))
        except errors.NotFound:
            time.sleep(LOOK_S)
    if reader is None:
        return
    users, column = list(definitions.names("u", WATCHED)), TWO_KINDS.columns.index("user_last")
    seen, latest = np.full(count, np.nan), np.full(WATCHED, -1, np.int64)
    said, until = False, time.monotonic() + WAIT_S + count / RATE
    while time.monotonic() < until:
        values = reader.read({"user": users, "item": ["i0"]}, int(time.time() * SECOND)).values[:, column]
        now = time.monotonic()
        numbers = np.where(np.isnan(values), -1, values).astype(np.int64)
        for user in np.flatnonzero(numbers > latest):
            seen[latest[user] + WATCHED if latest[user] >= 0 else user : numbers[user] + 1 : WATCHED] = now
        latest = np.maximum(latest, numbers)
        if not said and latest[0] >= 0:
            said = True
            to.send("ready")
        if latest.max() == count - 1:
            break
        time.sleep(LOOK_S)
    to.send(seen)
