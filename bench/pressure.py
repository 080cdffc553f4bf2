"""The whole loop under load: 1,000 rankings and 1,000 outcomes a second on one machine, and how fresh answers are.

    python bench/pressure.py [--rate 1000] [--seconds 40] [--json]

`millstream up` runs as it does for a user, with default settings of learning. A client of its own asks for rankings of
20 candidates, rows of 20 features, at random moments (a Poisson process), tells each outcome in a call of its own, and
measures from when a call was due. Learning runs and is paused in turns of `--turn` seconds: what it costs who asks,
on cores that both share, is seen beside the same load without it. Staleness is the service's own metric: from an
outcome's arrival to the first answer that was computed with it.

What a push alone costs is measured after that: `serve` runs without `learn`, under the same load, and deltas like those
that learning made are appended `PUSHES_PER_S` times a second, in every other turn of `PUSH_TURN_S`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import uvloop

from millstream import config
from millstream.app.installation import Installation, Settings
from millstream.app.training import change, train
from millstream.clock import SystemClock
from millstream.demo.pipe import Pipe
from millstream.learn.history import Field, import_entities
from millstream.learn.push import Push
from millstream.meter import Meter
from millstream.models.online import Change
from millstream.stream import decode
from millstream.types import Delta

USERS = ITEMS = 5000
CANDIDATES = 20
RATE = 1000.0
PIPES = 4
PUSHES_PER_S, PUSH_TURN_S = 2, 2.0
NONE = np.empty(0, np.float32)
TOML = """
http_port = {port}
[recommend]
model = "ranker"
[learn]
model = "ranker"
gate.burst = 1000.0
[join]
tasks.like.window_s = 2.0
[features]
user = [{{name = "id"}}, {{name = "a"}}, {{name = "b"}}, {{name = "c"}}, {{name = "d"}}]
item = [{{name = "id"}}, {{name = "e"}}, {{name = "f"}}, {{name = "g"}}, {{name = "h"}}]
crosses = [
    "user.id*item.e", "user.id*item.f", "user.a*item.id", "user.b*item.id", "user.a*item.e", "user.b*item.f",
    "user.c*item.g", "user.d*item.h", "user.a*item.g", "user.b*item.h",
]
"""


def prepare(folder: Path, port: int) -> Path:
    """An installation that knows everybody and has a first version."""
    file, random = folder / "millstream.toml", np.random.default_rng(1)
    file.write_text(TOML.format(port=port))
    settings = config.read(file, Settings)
    for topic, count, names in (("users", USERS, "abcd"), ("items", ITEMS, "efgh")):
        rows = [{"id": f"{topic[0]}{n}"} | {name: int(random.integers(0, 50)) for name in names} for n in range(count)]
        fields = {name: Field(name) for name in rows[0]}
        import_entities(folder / "log", settings.log, topic, rows, fields, time.time())
    with Installation(folder, settings, SystemClock()) as at:
        train(at)
    return file


class Client:
    """Asks and tells. `asked`, `told`: (when due, seconds it took) of each call."""

    def __init__(self, port: int, name: str) -> None:
        """`name`: its requests' ids begin with it."""
        self._name = name
        self._pipes = [Pipe("127.0.0.1", port, SystemClock()) for _ in range(PIPES)]
        self._random = np.random.default_rng(2)
        self.asked: list[tuple[float, float]] = []
        self.told: list[tuple[float, float]] = []
        self.failed = 0

    async def run(self, rate: float, seconds: float) -> None:
        """For so long, then wait for what is on its way."""
        begun, due, number = time.monotonic(), 0.0, 0
        tasks: set[asyncio.Task[None]] = set()
        while due < seconds:
            due += self._random.exponential(1 / rate)
            if (wait := begun + due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            number += 1
            task = asyncio.ensure_future(self._moment(number, begun + due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for pipe in self._pipes:
            pipe.close()

    async def _moment(self, number: int, due: float) -> None:
        random, pipe = self._random, self._pipes[number % PIPES]
        picked = random.integers(0, ITEMS, CANDIDATES + 10).tolist()
        candidates = list(dict.fromkeys(f"i{n}" for n in picked))[:CANDIDATES]
        ask = {"id": f"{self._name}{number}", "user": f"u{int(random.integers(USERS))}", "candidates": candidates}
        answer = await self._call(pipe, "/v1/recommend", ask, due, self.asked)
        if answer is None:
            return
        item = answer["items"][0]["item"]
        kinds = ["impression", "like"] if random.random() < 0.25 else ["impression"] if random.random() < 2 / 3 else []
        for kind in kinds:
            told = [{"request": f"{self._name}{number}", "item": item, "kind": kind}]
            await self._call(pipe, "/v1/outcomes", told, time.monotonic(), self.told)

    async def _call(
        self, pipe: Pipe, path: str, body: object, due: float, books: list[tuple[float, float]]
    ) -> dict | None:
        answer = await (await pipe.post(path, orjson.dumps(body)))
        books.append((due, time.monotonic() - due))
        if answer.status != 200:
            self.failed += 1
            return None
        found: dict = orjson.loads(answer.body)
        return found


def quantiles(books: list[tuple[float, float]], since: float, until: float) -> tuple[float, float]:
    """(p50, p99) in ms of calls that were due in a time."""
    took = [seconds * 1e3 for due, seconds in books if since <= due < until]
    return (float(np.quantile(took, 0.5)), float(np.quantile(took, 0.99))) if took else (float("nan"),) * 2


def cpu_s(meter: Meter) -> dict[str, float]:
    """CPU seconds so far, by role."""
    found = {}
    for spec in meter.total().values():
        if spec["name"] == "process_cpu_seconds_total":
            found[spec["labels"]["role"]] = spec["values"][0]  # type: ignore[index]
    return found


async def turns(installation: Installation, until: float, turn: float) -> list[tuple[float, float, bool]]:
    """Pause learning and let it run, in turns; when each began and ended, and whether learning ran."""
    found, runs = [], False
    while time.monotonic() + turn + 1 < until:
        await asyncio.to_thread(change, installation, "run" if runs else "paused", "bench", "")
        await asyncio.sleep(1.0)  # what was under way
        start = time.monotonic()
        await asyncio.sleep(turn)
        found.append((start, time.monotonic(), runs))
        runs = not runs
    await asyncio.to_thread(change, installation, "run", "bench", "")
    return found


async def measure(file: Path, port: int, rate: float, seconds: float, turn: float) -> dict[str, float]:
    """Half of the time learning runs; in the other half it runs and is paused in turns."""
    folder, client = file.parent, Client(port, "q")
    meter = Meter.reading(folder / "state" / "meters")
    with Installation.open(file) as installation:
        begun, before = time.monotonic(), cpu_s(meter)
        load = asyncio.ensure_future(client.run(rate, seconds))
        await asyncio.sleep(seconds / 2)
        half, after = time.monotonic(), cpu_s(meter)
        stale = [meter.quantile("millstream_staleness_seconds", q) for q in (0.5, 0.99)]
        pushes, learnt = (meter.sum(f"millstream_{name}_total") for name in ("pushes", "examples_learnt"))
        spans = await turns(installation, begun + seconds, turn)
        await load
    p99 = {
        runs: float(np.median([quantiles(client.asked, a, b)[1] for a, b, ran in spans if ran == runs]))
        for runs in (True, False)
    }
    wall = half - begun
    asked, told = quantiles(client.asked, begun, half), quantiles(client.told, begun, half)
    return {
        "rankings_per_s": sum(due < half for due, _ in client.asked) / wall,
        "outcomes_per_s": sum(due < half for due, _ in client.told) / wall,
        "failed": client.failed,
        "ranking_p50_ms": asked[0],
        "ranking_p99_ms": asked[1],
        "outcome_durable_p50_ms": told[0],
        "outcome_durable_p99_ms": told[1],
        "staleness_p50_s": stale[0],
        "staleness_p99_s": stale[1],
        "pushes": pushes,
        "examples_learnt": learnt,
        **{f"cores_{role}": (after[role] - before.get(role, 0.0)) / wall for role in after},
        "turns_p99_ms_with_pushes": p99[True],
        "turns_p99_ms_without": p99[False],
    }


def made(installation: Installation) -> tuple[str, int, list[Delta]]:
    """The base that is live, the sequence of its last delta, and the newest deltas, which were made under this load."""
    found, live = [], installation.repository.policy("ranker").live
    for record in installation.log.reader("deltas").records(0, 0):
        event = decode(record.value)
        if isinstance(event, Delta):
            found.append(event)
    return live, max((one.sequence for one in found if one.base == live), default=0), found[-10:]


async def alone(file: Path, port: int, rate: float, seconds: float) -> dict[str, float]:
    """What pushes cost while nothing else changes."""
    client, spans, since = Client(port, "alone"), [], 0.0
    with Installation.open(file) as installation:
        live, sequence, deltas = made(installation)
        writer = installation.log.writer("deltas")
        push = Push(writer, "ranker", live, sequence)
        begun = time.monotonic()
        load = asyncio.ensure_future(client.run(rate, seconds))
        await asyncio.sleep(2.0)
        while time.monotonic() + 2 * PUSH_TURN_S < begun + seconds:
            pushes = bool(len(spans) % 2)
            start = time.monotonic()
            for _ in range(int(PUSH_TURN_S * PUSHES_PER_S)):
                if pushes:
                    one = deltas[push.sequence % len(deltas)]
                    slots, weights = np.frombuffer(one.slots, np.uint32), np.frombuffer(one.weights, np.float32)
                    learnt = [time.time()] * (len(one.arrivals) // 8)
                    await asyncio.to_thread(push.push, Change(slots, weights, NONE), learnt, one.upto)
                    since += len(slots)
                await asyncio.sleep(1 / PUSHES_PER_S)
            spans.append((start, time.monotonic(), pushes))
        await load
    p99 = [quantiles(client.asked, a, b)[1] for a, b, _ in spans]
    pairs = [p99[n + 1] - p99[n] for n in range(0, len(p99) - 1, 2)]
    return {
        "push_alone_slots": since / max(1, push.sequence - sequence),
        "push_alone_pushes": push.sequence - sequence,
        "push_alone_p99_ms_with": float(np.median(p99[1::2])),
        "push_alone_p99_ms_without": float(np.median(p99[::2])),
        "push_alone_p99_ms_of_pairs": float(np.median(pairs)),
        "push_alone_failed": client.failed,
    }


def ready(port: int, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service did not become ready")


@contextmanager
def up(file: Path, port: int, *more: str) -> Iterator[None]:
    """The service, as a user runs it."""
    process = subprocess.Popen([sys.executable, "-m", "millstream", "up", "-c", str(file), *more])
    try:
        ready(port)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rate", type=float, default=RATE, help="rankings, and outcomes, a second (default: 1000)")
    options.add_argument("--seconds", type=float, default=50.0)
    options.add_argument("--turn", type=float, default=5.0, help="learning runs and is paused so long (default: 5)")
    options.add_argument("--port", type=int, default=18777)
    options.add_argument("--json", action="store_true", help="one line of JSON, last")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        file = prepare(Path(name), chosen.port)
        with up(file, chosen.port):
            found = uvloop.run(measure(file, chosen.port, chosen.rate, chosen.seconds, chosen.turn))
        with up(file, chosen.port, "--role", "serve"):
            found |= uvloop.run(alone(file, chosen.port, chosen.rate, chosen.seconds))
    print(f"{platform.machine()}, {os.cpu_count()} cores with the client on them, Python {platform.python_version()}")
    for name, value in found.items():
        print(f"{name:>28}  {value:.2f}")
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
