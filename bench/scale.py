"""What a million items cost, and ten million: seconds, memory, disk, and what is found how fast.

1. Vectors of known structure (300 directions, lengths as popularity has them), made some at a time and mapped. A base
   is built of them as the `learn` role does it, on one thread, with codes of either kind, and saved. `peak_mb` is what
   the build takes beside the vectors.
2. That base in a new process: seconds to open it; recall@100 of all inner products and milliseconds a search, where
   all, a tenth, or a hundredth of the items are allowed; memory of the process's own and mapped pages. `cold`: the
   first searches after the system has dropped every page of its files.
3. What else a process keeps: the catalogue with its filters and what is newest, with embeddings from the log and
   without from a saved state; histories; the files of an index that was built of what people liked.

Each part runs in a process of its own, on Linux. `cpu_s` and `cpu_ms` are the processor's time, which other programs
beside it lengthen less than the clock's.

    python bench/scale.py [--items 1000000 10000000] [--folder A_FOLDER_WITH_ROOM] [--only vectors|rest] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from millstream.clock import SystemClock
from millstream.meter import Meter
from millstream.recall.ann import Ann, Base, mapped
from millstream.recall.build import LAZY, build
from millstream.recall.catalogue import Catalogue, CatalogueSettings
from millstream.recall.filters import Filters
from millstream.recall.histories import Histories
from millstream.recall.index import About, Index, write
from millstream.recall.live import Live, LiveSettings
from millstream.recall.paths import Newest
from millstream.recall.scene import Bits
from millstream.recall.settings import BuildSettings, Coding, FactorSettings
from millstream.stream import Log, encode
from millstream.types import Entity
from recall import ASKED, inside, shown, spent, vectors, world

WIDTH = 64
QUERIES = 300
CATEGORIES, TAGS = 400, 20_000
T = TypeVar("T")
Row = dict[str, Any]


def memory() -> dict[str, int]:
    """Megabytes of this process: `own`, and `mapped` pages of files that are in memory."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[line].split()[0]) >> 10 for name, line in (("own", "RssAnon"), ("mapped", "RssFile"))}


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most megabytes of its own that this process had within, beyond those before: the last of the list."""
    before, found, done = memory()["own"], [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found.append(max(found[-1], memory()["own"] - before))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def apart(call: Callable[..., T], *given: Any) -> T:
    """What `call` answers, in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(call, *given).result()


def made(file: Path, items: int) -> float:
    """Vectors of so many items, in a file: seconds."""
    began = time.perf_counter()
    vectors(items, WIDTH, 2, True, np.lib.format.open_memmap(file, "w+", np.float32, (items, WIDTH)))
    return time.perf_counter() - began


def built(file: Path, folder: Path, codes: Coding) -> Row:
    """A base of these vectors, saved."""
    rows, asked = mapped(file), vectors(1000, WIDTH, 4, False)
    os.nice(LAZY)
    began, busy = time.perf_counter(), time.process_time()
    with peak() as most:
        base = Base.build(rows, queries=asked, codes=codes)
    took, busy = time.perf_counter() - began, time.process_time() - busy
    began = time.perf_counter()
    base.save(folder, "base")
    return {
        "items": len(rows), "codes": codes, "build_s": round(took), "cpu_s": round(busy), "peak_mb": most[-1],
        "save_s": round(time.perf_counter() - began, 1),
        "codes_bytes_an_item": round((folder / "base.faiss").stat().st_size / len(rows), 1),
        "vectors_bytes_an_item": round((folder / "base.npy").stat().st_size / len(rows), 1),
        "lists": base.measured.lists, "probes": base.measured.probes,
    }  # fmt: skip


def searched(folder: Path, items: int, codes: Coding) -> list[Row]:
    """A row a share that is allowed, the first one cold."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    queries, before = vectors(QUERIES, WIDTH, 3, False), memory()["own"]
    began = time.perf_counter()
    ann = Ann(Base.open(folder, "base"))
    opened_s = round(time.perf_counter() - began, 2)
    everything = Bits.all(items)
    _, times = spent([partial(ann.search, query, ASKED, everything) for query in vectors(100, WIDTH, 6, False)])

    def row(allowed: object, found: object, times: Row) -> Row:
        now = memory()
        return {"items": items, "codes": codes, "allowed": allowed, "recall@100": found, **times,
                "own_mb": now["own"] - before, "mapped_mb": now["mapped"], "open_s": opened_s}  # fmt: skip

    rows = [row("1.0, cold", "", times)]
    for one in inside(ann, queries, (1.0, 0.1, 0.01)):
        share, found = one.pop("allowed"), one.pop("recall@100")
        rows.append(row(share, found, one))
    return rows


def from_the_log(folder: Path, items: int) -> Iterator[Row]:
    """A catalogue with embeddings, as a start without a saved state reads it, and as one with it does."""
    random = np.random.default_rng(0)
    with Log(folder / "log", SystemClock()) as log, log.writer("items") as writer:
        for first in range(0, items, 1000):
            some = random.standard_normal((min(1000, items - first), WIDTH), np.float32).tolist()
            writer.append_frame([(b"", encode(entity(first + at, one))) for at, one in enumerate(some)])
    for restored in (False, True):
        yield apart(known, folder, items, restored)


def entity(number: int, embedding: list[float]) -> Entity:
    attributes: dict[str, Any] = {
        "category": f"c{number % CATEGORIES}", "tags": [f"t{number * k % TAGS}" for k in (7, 11, 13)],
        "title": f"The title of item {number}", "created": 1e9 + number, "embedding": embedding,
    }  # fmt: skip
    return Entity(id=f"item{number}", attributes=attributes)


def known(folder: Path, items: int, restored: bool) -> Row:
    settings, catalogue, before = LiveSettings(), Catalogue(CatalogueSettings(items_max=items)), memory()["own"]
    with Log(folder / "log", SystemClock()) as log:
        live = Live(log, catalogue, settings.histories(), Meter(), settings)
        kept = [Filters(catalogue), Newest(catalogue)]
        began, state = time.process_time(), folder / "state.npz"
        if restored:
            live.restore(state)
        live.catch_up()
        took = time.process_time() - began
        del kept
        if not restored:
            live.save(state)
    assert catalogue.count == items
    what = f"catalogue, {WIDTH} numbers each, from {'a saved state' if restored else 'the log'}"
    return told(what, items, took, memory()["own"] - before, state.stat().st_size)


def told(what: str, count: int, took: float | str, own_mb: int | None, disk: int | None) -> Row:
    return {
        "what": what, "count": count, "cpu_s": took if isinstance(took, str) else round(took, 1),
        "own_bytes_each": "" if own_mb is None else round((own_mb << 20) / count),
        "disk_bytes_each": "" if disk is None else round(disk / count),
    }  # fmt: skip


def catalogue_alone(items: int) -> Row:
    """A catalogue without embeddings, its filters, and what is newest: from a state, as it would be saved."""
    settings = CatalogueSettings(items_max=items)
    state = Catalogue(settings).state()
    for name in list(state):
        if name not in ("tag_starts", "region_starts", "tag_codes", "region_codes") and state[name].dtype != np.uint8:
            state[name] = np.repeat(np.zeros((1, *state[name].shape[1:]), state[name].dtype), items, axis=0)
    numbers = np.arange(items)
    state |= {
        "alive": np.ones(items, np.bool_), "stock": np.ones(items, np.bool_), "created": 1e9 + numbers,
        "category": (numbers % CATEGORIES).astype(np.int32), "author": np.full(items, -1, np.int32),
        "tag_starts": np.arange(0, 3 * items + 1, 3), "region_starts": np.zeros(items + 1, np.int64),
        "tag_codes": (numbers[:, None] * (7, 11, 13) % TAGS).astype(np.int32).ravel(),
    }  # fmt: skip
    texts = {
        "names": [f"item{n}" for n in range(items)], "titles": [f"The title of item {n}" for n in range(items)],
        "categories": [f"c{n}" for n in range(CATEGORIES)], "tags": [f"t{n}" for n in range(TAGS)],
    }  # fmt: skip
    state |= {name: np.frombuffer(msgspec.msgpack.encode(value), np.uint8) for name, value in texts.items()}
    del texts, numbers
    disk, catalogue, before = sum(one.nbytes for one in state.values()), Catalogue(settings), memory()["own"]
    began = time.process_time()
    catalogue.restore(state)
    kept = [Filters(catalogue), Newest(catalogue)]
    took, own = time.process_time() - began, memory()["own"] - before
    del kept
    return told("catalogue without, from a state in memory", items, took, own, disk)


def histories(users: int, did: int) -> Row:
    """People who did so much each, one after the other, and were shown twice as much."""
    before, began = memory()["own"], time.process_time()
    kept, random = Histories(("click",), users_max=users), np.random.default_rng(0)
    for user in range(users):
        name = f"user{user}"
        for at, number in enumerate(random.integers(0, 1 << 20, did).tolist()):
            kept.add(name, number, "click", float(at))
            kept.show(name, number, float(at))
            kept.show(name, number + 1, float(at))
    what = f"histories of users, {did} things done and {2 * did} shown each"
    return told(what, users, time.process_time() - began, memory()["own"] - before, None)


def index_of_likes(folder: Path, items: int) -> list[Row]:
    """What people liked as an index: bytes an item of each path's files."""
    gathered, _ = world(items)
    began = time.process_time()
    with peak() as most:
        contents = build(gathered, BuildSettings(factors=FactorSettings(turns=3)))
    took, count = time.process_time() - began, len(gathered.items)
    index = Index.open(write(folder, contents, About()))
    sizes = {file.stem: file.stat().st_size for file in index.folder.iterdir() if file.suffix == ".npy"}
    sizes["factors"] += (index.folder / "factors.faiss").stat().st_size
    parts = {"item_cf": "near", "user_cf": ("window", "taker"), "factors": "factors", "names": "name"}
    rows = [told(f"an index of {len(gathered.positives.users)} likes, built", count, took, most[-1], index.about.bytes)]
    for what, start in parts.items():
        bytes_ = sum(size for name, size in sizes.items() if name.startswith(start))
        rows.append(told(f"  of it {what}", count, "", None, bytes_))
    return rows


def of_vectors(folder: Path, counts: Iterable[int]) -> Iterator[list[Row]]:
    for items in counts:
        bases: list[Row] = []
        searches: list[Row] = []
        file = folder / "vectors.npy"
        made_s = round(apart(made, file, items), 1)
        for codes in ("sq8", "pq"):
            base = folder / codes
            base.mkdir()
            bases.append(apart(built, file, base, codes) | {"made_s": made_s})
            searches += apart(searched, base, items, codes)
            shutil.rmtree(base)
        file.unlink()
        yield bases
        yield searches


def of_the_rest(folder: Path, counts: Iterable[int]) -> Iterator[list[Row]]:
    rows = [*from_the_log(folder, least := min(counts)), *(apart(catalogue_alone, items) for items in counts)]
    rows += [apart(histories, 100_000, 20), *apart(index_of_likes, folder / "recall", least)]
    yield rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="where files of some GB may lie (default: a temporary one)")
    parser.add_argument("--only", choices=["vectors", "rest"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    for name, part in (("vectors", of_vectors), ("rest", of_the_rest)):
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                for table in part(Path(folder), options.items):
                    rows += table
                    if not options.json:
                        shown(table)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
