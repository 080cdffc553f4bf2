"""What a review queue costs: choosing rows of a log that answered so many requests, a page of the queue, a label.

python bench/curation.py
python bench/curation.py --answers 20000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from millstream.app.curation import fill, label, queue
from millstream.app.installation import Installation, Settings
from millstream.clock import SystemClock
from millstream.features import Entities
from millstream.learn.curate.near import BANDS, DEEP, bands
from millstream.stream import encode
from millstream.types import Served

CANDIDATES, USERS, ITEMS = 10, 5000, 5000
SETTINGS = {
    "learn": {"model": "ranker"},
    "curate": {"rows_max": 1_000_000, "open_max": 10_000, "reason_max": 4000},
    "features": {
        "user": [{"name": "id"}, {"name": "age", "bucket": 10}],
        "item": [{"name": "id"}, {"name": "genres", "places": 4}],
        "crosses": ["user.id*item.genres"],
    },
}


def filled(at: Installation, answers: int) -> None:
    """Answers of ten candidates each, with scores around a half."""
    random, definition = np.random.default_rng(7), at.definition
    known = Entities(definition)
    for n in range(ITEMS):
        known.upsert("item", f"i{n}", {"genres": "|".join(f"g{g}" for g in random.choice(12, 2, replace=False))})
    for n in range(USERS):
        known.upsert("user", f"u{n}", {"age": int(random.integers(18, 80))})
    now = time.time()
    with at.log.writer("served") as writer:
        for n in range(answers):
            user, items = f"u{random.integers(USERS)}", [f"i{i}" for i in random.integers(0, ITEMS, CANDIDATES)]
            event = Served(
                request=f"r{n}", model="ranker", version="1@0", policy=1, arm="live", user=user, candidates=items,
                event_time=now, definition=definition.hash, tokens=known.rows(user, items).tobytes(),
                scores=random.beta(2, 2, CANDIDATES).astype("<f4").tobytes(),
            )  # fmt: skip
            writer.append_soon(event.request.encode(), encode(event))


def timed(call: Callable[[], object], times: int = 1) -> float:
    """Seconds of a call, the median of so many."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


def measured(answers: int, folder: Path) -> str:
    """A row of the table."""
    with Installation(folder, msgspec.convert(SETTINGS, Settings), SystemClock()) as at:
        filled(at, answers)
        took = timed(partial(fill, at))
        waiting = queue(at, 10_000)
        page = timed(partial(queue, at, 100), 5)
        ids = iter([one.id for one in waiting])
        said = timed(lambda: label(at, next(ids), "positive", "bench"), 20)
        rows = np.random.default_rng(1).integers(1, 2**32, (answers * CANDIDATES, at.definition.width), np.uint32)
        hashed = timed(partial(bands, rows, BANDS, DEEP))
    numbers = f"{took:.1f} | {len(waiting):,} | {page * 1e3:.0f} | {said * 1e3:.0f} | {hashed:.2f}"
    return f"| {answers:,} | {numbers} |"


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--answers", type=int, nargs="*", default=[1000, 10_000])
    asked = args.parse_args()
    print("| answers of 10 | fill, s | chosen | a page of 100, ms | a label, ms | MinHash of all rows, s |")
    print("|---|---|---|---|---|---|")
    for answers in asked.answers:
        with tempfile.TemporaryDirectory() as folder:
            print(measured(answers, Path(folder)))


if __name__ == "__main__":
    main()
