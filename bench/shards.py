"""Recall over shard processes: milliseconds of the recall stage, and memory of each process, with 0, 2 and 4 shards.

Items with known structure (bench/recall.py): three tags and a category each, an index built of people's likes, seven
paths with a quota of 100. Each process is a real one: one asks, the others search their share. Requests come one after
the other, then eight at a time; deadlines are far, so that nothing is left out.

    python bench/shards.py [--items 200000] [--shards 0 2 4] [--requests 300] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from millstream.clock import SystemClock
from millstream.machine import cores, stand_ready
from millstream.meter import Meter
from millstream.recall.build import build
from millstream.recall.catalogue import Catalogue
from millstream.recall.filters import Filters, Rule
from millstream.recall.index import About, Index, write
from millstream.recall.paths import Newest, Popular, SimilarToLast, Tags
from millstream.recall.scene import History, Scene
from millstream.recall.scene import Path as Way
from millstream.recall.settings import BuildSettings, FactorSettings
from millstream.recall.shard import Part, Searched, Shard
from millstream.recall.shards import Elsewhere, Scattered, Shards, share_of, socket_of
from millstream.recall.union import Recall
from recall import shown, world

QUOTA, FAR_S, AT_ONCE, LIKES = 100, 30.0, 8, 50_000
NAMES = ("popular", "newest", "similar", "tags", "item_cf", "user_cf", "factors")


def prepare(folder: Path, items: int) -> None:
    """A catalogue and an index on disk, for all processes to begin with."""
    gathered, _ = world(items)
    write(folder / "index", build(gathered, BuildSettings(factors=FactorSettings(turns=1))), About())
    catalogue, random = Catalogue(), np.random.default_rng(1)
    tags = random.integers(0, 2000, (items, 3))
    with catalogue.together():
        for number in range(items):
            said = {"category": f"c{number % 50}", "tags": [f"t{tag}" for tag in tags[number].tolist()]}
            catalogue.upsert(str(number), said, float(number))
    np.savez(folder / "catalogue.npz", **catalogue.state())  # type: ignore[arg-type]


def known(folder: Path) -> Catalogue:
    """The catalogue, in this process."""
    catalogue = Catalogue()
    with np.load(folder / "catalogue.npz") as file:
        catalogue.restore({name: file[name] for name in file.files})
    return catalogue


def paths(folder: Path, catalogue: Catalogue, number: int = 0, of: int = 1) -> dict[str, Way]:
    """All paths over it."""
    popular, random = Popular(1e9), np.random.default_rng(2)
    for item in (random.random(LIKES) ** 3 * catalogue.count).astype(int).tolist():
        popular.on_positive("u", item, 1.0, "")
    attached = Index.open(folder / "index" / "1").attach(catalogue, share_of(number, of) if of > 1 else None)
    made: list[Way] = [popular, Newest(catalogue), SimilarToLast(catalogue), Tags(catalogue), *attached.paths()]
    return {way.name: way for way in made}


async def search(folder: Path, number: int, of: int) -> None:
    """Be a shard, until killed."""
    catalogue = known(folder)
    searched = Searched(
        catalogue, Filters(catalogue), Part(catalogue, share_of(number, of)), paths(folder, catalogue, number, of)
    )
    await Shard(number, of, {"": searched}, Meter()).listen(socket_of(folder, number))
    await asyncio.Event().wait()


async def ask(folder: Path, of: int, requests: int) -> dict[str, Any]:
    """Be who asks; what requests took."""
    catalogue = known(folder)
    filters = Filters(catalogue)
    shards = Shards(folder, of, SystemClock(), Meter())
    shards.start()
    if of:
        recall: Recall | Scattered = Scattered(
            shards, catalogue, [(Elsewhere(name), QUOTA, FAR_S) for name in NAMES], Meter()
        )
        while not all(shards.there):
            await asyncio.sleep(0.05)
    else:
        recall = Recall([(way, QUOTA, FAR_S) for way in paths(folder, catalogue).values()], Meter())
    scenes = [scene(catalogue, filters, seed) for seed in range(requests)]
    for one in scenes[:20]:
        await recall.gather(one)
    alone, found = [], []
    for one in scenes:
        began = time.perf_counter()
        union = await recall.gather(one)
        alone.append(1e3 * (time.perf_counter() - began))
        assert not union.late + union.failed, union
        found.append(len(union.numbers))
    many: list[float] = []

    async def timed(one: Scene) -> None:
        began = time.perf_counter()
        await recall.gather(one)
        many.append(1e3 * (time.perf_counter() - began))

    began = time.perf_counter()
    for at in range(0, requests, AT_ONCE):
        await asyncio.gather(*(timed(one) for one in scenes[at : at + AT_ONCE]))
    rate = requests / (time.perf_counter() - began)
    return {
        "found": round(float(np.mean(found)), 1), "p50_ms": median(alone, 50), "p99_ms": median(alone, 99),
        "p50_ms of 8": median(many, 50), "p99_ms of 8": median(many, 99), "requests/s of 8": round(rate),
        "asker MB": memory(os.getpid()),
    }  # fmt: skip


def scene(catalogue: Catalogue, filters: Filters, seed: int) -> Scene:
    """Somebody who liked a dozen things of one taste."""
    random = np.random.default_rng(seed)
    liked = ((random.random(12) ** 3 * (catalogue.count // 50)).astype(np.int32) * 50 + seed % 50).astype(np.int32)
    history = History(liked, np.zeros(12, np.uint8), np.arange(12.0))
    rule = Rule()
    return Scene(
        user=str(seed), now=1e6, history=history, attributes={}, context={}, given=np.empty(0, np.int32), seed=seed,
        allowed=filters.allowed(rule, exclude=liked), rule=rule, gone=liked, done=history,
    )  # fmt: skip


def median(times: list[float], part: int) -> float:
    return round(float(np.percentile(times, part)), 2)


def memory(pid: int) -> str:
    """What is this process's alone (heap), and all in RAM, files that processes share among it: MB."""
    told = dict(
        line.split(":")[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:] if ":" in line
    )
    own, whole = (int(told[name].split()[0]) // 1024 for name in ("Anonymous", "Rss"))
    return f"{own} of {whole}"


def measured(folder: Path, items: int, of: int, requests: int) -> dict[str, Any]:
    """A row: processes are started, asked, and ended."""
    command = [sys.executable, __file__, "--folder", str(folder), "--requests", str(requests)]
    searching = [subprocess.Popen([*command, "--search", str(number), str(of)]) for number in range(of)]
    try:
        while not all(socket_of(folder, number).exists() for number in range(of)):
            assert all(one.poll() is None for one in searching), "a shard ended"
            time.sleep(0.1)
        out = subprocess.run([*command, "--ask", str(of)], check=True, capture_output=True, text=True).stdout
        row = {"items": items, "shards": of, **json.loads(out)}
        return row | {"shard MB": " | ".join(memory(one.pid) for one in searching) or "-"}
    finally:
        for number, one in enumerate(searching):
            one.kill()
            one.wait()
            socket_of(folder, number).unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--shards", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--search", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search is not None:
        stand_ready()
        asyncio.run(search(options.folder, *options.search))
    elif options.ask is not None:
        stand_ready()
        print(json.dumps(asyncio.run(ask(options.folder, options.ask, options.requests))))
    else:
        with tempfile.TemporaryDirectory() as name:
            prepare(Path(name), options.items)
            rows = [measured(Path(name), options.items, of, options.requests) for of in options.shards]
        if options.json:
            print(json.dumps(rows))
        else:
            print(f"{cores()} cores; MB: of the process alone, of all it has in RAM\n")
            shown(rows)


if __name__ == "__main__":
    main()
