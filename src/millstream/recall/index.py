"""Indexes on disk: what a build made, as an immutable folder that every serving process maps.

Rules of the room:
- `ROOT/NUMBER/` is whole or absent: it is written aside, synced, and renamed. Nobody writes into it after that.
- The newest that can be read counts. A damaged one is passed over, said once, and not looked at again; `KEPT` stay, so
  the one before is there to fall back on.
- Every file's digest stands in `index.toml` and is checked when an index is opened.
- An index names items, as rows; people are numbers in it that mean nothing elsewhere.
- Rows are not catalogue numbers: a process maps them to its own when it attaches the index, and goes on doing so as it
  hears of more items.
"""

from __future__ import annotations

import logging
import os
import shutil
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import tomli_w
from numpy.typing import NDArray

from millstream import errors
from millstream.recall import scene
from millstream.recall.ann import Ann, Base, mapped
from millstream.recall.catalogue import Catalogue
from millstream.recall.cooccur import Cooccurrence, Csr, ItemCf, Near, Neighbours, UserCf
from millstream.recall.factors import Factors, Model
from millstream.recall.shelf import Mine, Names, Placed, Shelf, Shelved, rows_of
from millstream.store.blob import digest, fsync_path, full

FORMAT: Final = 1
KEPT: Final = 2
logger = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What a build makes of positives: `items`, the item of each row, and what its paths search; `shelves` by name."""

    items: list[str]
    neighbours: Neighbours
    near: Near
    model: Model
    base: Base
    shelves: Mapping[str, Shelf] = MappingProxyType({})


class About(msgspec.Struct, frozen=True):
    """`index.toml`. `made_at`: unix seconds; `offsets`: topic -> partition -> the first record that is not in it;
    `newest`: time of its last positive; `took_s`: seconds the build took; `shelves`: by name, the version of the model
    that made its vectors, "" for none; `digests` by file. `unseen`, `penalty` and `power` as the factors were fitted
    with."""

    format: int = FORMAT
    made_at: float = 0.0
    made_by: str = ""
    offsets: dict[str, dict[str, int]] = {}
    items: int = 0
    users: int = 0
    positives: int = 0
    newest: float = 0.0
    took_s: float = 0.0
    unseen: float = 0.0
    penalty: float = 0.0
    power: float = 1.0
    bytes: int = 0
    shelves: dict[str, str] = {}
    digests: dict[str, str] = {}


class Index:
    """An index as it lies in its folder: `number`, `about`, `contents` (arrays mapped; `items` empty, see `names`)."""

    def __init__(self, folder: Path, about: About, contents: Contents) -> None:
        self.folder, self.number, self.about, self.contents = folder, int(folder.name), about, contents
        self._names = Names(folder)

    @classmethod
    def open(cls, folder: Path) -> Index:
        """Check and map it. Damaged: Corrupt. Of a later Millstream: Later."""
        try:
            told = tomllib.loads((folder / "index.toml").read_text(encoding="utf-8"))
            if told["format"] > FORMAT:
                raise errors.Later(folder, told["format"], FORMAT)
            about = msgspec.convert(told, About)
            for name, wanted in about.digests.items():
                if digest(folder / name) != wanted:
                    raise errors.Corrupt(
                        f"{folder}/{name}: not the bytes that were written; the next build replaces it"
                    )
            return cls(folder, about, _read(folder, about))
        except (OSError, ValueError, EOFError, KeyError, msgspec.MsgspecError) as error:
            raise errors.Corrupt(f"{folder}: {error}; the next build replaces it") from None

    def names(self) -> Iterator[tuple[int, list[str]]]:
        """(first row, items of the rows from there on), some thousands at a time."""
        yield from self._names

    def attach(self, catalogue: Catalogue, mine: Mine | None = None) -> Attached:
        """This index over the numbers of `catalogue`. `mine`: the items whose vectors are searched; None: all. Takes
        about a second for a million items: not for a loop that answers; other threads get their turn meanwhile."""
        return Attached(self, catalogue, mine)


class Attached(Placed):
    """An index in a process: `places` says which item a row is; `shelves` by name, each with places of its own, to be
    refreshed by who adds to it. One thread refreshes, many read."""

    def __init__(self, index: Index, catalogue: Catalogue, mine: Mine | None = None) -> None:
        super().__init__(index._names, catalogue)
        self.index = index
        self.shelves = {name: Shelved(shelf, catalogue, mine) for name, shelf in index.contents.shelves.items()}
        base = index.contents.base
        self.ann = Ann(base if mine is None else base.part(rows_of(index._names, mine)), self.places)

    def paths(
        self, live: Cooccurrence | None = None, kinds: Collection[int] | None = None
    ) -> tuple[scene.Path, scene.Path, scene.Path]:
        """`item_cf`, `user_cf` and `factors` over this index. `live`: what is counted since; `kinds`: what of a history
        counts as liked."""
        held = self.index.contents
        return (
            ItemCf(held.neighbours, self.places, live, kinds),
            UserCf(held.near, self.places, kinds=kinds),
            Factors(held.model, self.ann, kinds),
        )


class Indexes:
    """The indexes under a folder, for one who follows them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._damaged: set[int] = set()

    def newest(self, after: int = -1) -> Index | None:
        """The newest one that can be read, of those numbered above `after`; None while there is none."""
        for number in reversed(numbers(self.root)):
            if number > after and number not in self._damaged:
                try:
                    return Index.open(self.root / str(number))
                except errors.Error as error:
                    if not (self.root / str(number)).exists():  # it went while we looked, and newer ones are there
                        return self.newest(after)
                    self._damaged.add(number)
                    logger.error("%s; the one before it is used", error)
        return None


def numbers(root: Path) -> list[int]:
    """The numbers of the indexes under `root`, ascending."""
    try:
        return sorted(int(name) for name in os.listdir(root) if name.isdigit())
    except FileNotFoundError:
        return []


def write(root: Path, contents: Contents, about: About) -> Path:
    """Put an index under the next number and let those before the last KEPT go; its folder. Durable on return. One
    writer at a time: what a killed one left is removed. Disk full: Full, and nothing changed."""
    root.mkdir(parents=True, exist_ok=True)
    for part in root.glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)
    number = (numbers(root) or [0])[-1] + 1
    part, folder = root / f".{number}.part", root / str(number)
    try:
        part.mkdir()
        _fill(part, contents)
        files = sorted(path for path in part.iterdir())
        model = contents.model
        about = msgspec.structs.replace(
            about,
            items=len(contents.items),
            shelves={name: shelf.version for name, shelf in contents.shelves.items()},
            unseen=model.unseen,
            penalty=model.penalty,
            power=model.power,
            bytes=sum(path.stat().st_size for path in files),
            digests={path.name: digest(path) for path in files},
        )
        (part / "index.toml").write_bytes(tomli_w.dumps(msgspec.to_builtins(about)).encode())
        for path in (*files, part / "index.toml"):
            fsync_path(path)
        fsync_path(part)
        part.rename(folder)
        fsync_path(root)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise full(error, folder) from error
    for old in numbers(root)[:-KEPT]:
        shutil.rmtree(root / str(old), ignore_errors=True)
    return folder


def _fill(part: Path, contents: Contents) -> None:
    windows, takers = contents.near
    arrays: dict[str, NDArray[Any]] = {
        "near_starts": contents.neighbours.lists.starts, "near": contents.neighbours.lists.columns,
        "near_scores": contents.neighbours.scores, "gram": contents.model.gram,
        "window_starts": windows.starts, "windows": windows.columns,
        "taker_starts": takers.starts, "takers": takers.columns,
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(part / f"{name}.npy", array)
    Names.save(part, "", contents.items)
    contents.base.save(part, "factors")
    for name, shelf in contents.shelves.items():
        shelf.save(part, name)


def _read(folder: Path, about: About) -> Contents:
    def csr(starts: str, columns: str) -> Csr:
        return Csr(mapped(folder / f"{starts}.npy"), mapped(folder / f"{columns}.npy"))

    base = Base.open(folder, "factors")
    return Contents(
        [],
        Neighbours(csr("near_starts", "near"), mapped(folder / "near_scores.npy")),
        Near(csr("window_starts", "windows"), csr("taker_starts", "takers")),
        Model(base.vectors, mapped(folder / "gram.npy"), about.unseen, about.penalty, about.power),
        base,
        {name: Shelf.open(folder, name, version) for name, version in about.shelves.items()},
    )
