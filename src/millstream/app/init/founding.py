"""From a team's own tables to an installation that recommends: `millstream init`.

    tables ─► sample ─► map of columns ─► all interactions ─► what is liked ─► settings, features ─► import ─► train
           ─► first recall index ─► the folder

Rules of the room:
- The folder appears whole, by one rename, or not at all: everything is made in `.NAME.init` beside it, which is locked
  while it is made; what a killed one left there the next one removes.
- What cannot be meant is an error before anything is written; what is odd in few rows is counted and said.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from millstream import config
from millstream.app.init import sketch
from millstream.app.installation import Installation, Settings
from millstream.app.training import Made, make_rows, train
from millstream.clock import Clock, SystemClock
from millstream.errors import BadInput, Conflict, Error
from millstream.learn import columns
from millstream.learn.columns import Table
from millstream.learn.history import Field, import_entities, import_outcomes
from millstream.learn.interactions import LIKE, ODD_SHARE, Interactions, Liked, told, window_s
from millstream.learn.tables import Looked
from millstream.meter import Meter
from millstream.store.blob import fsync_path, full, locked, write_atomic

DELAY_S: Final = 1.0
UNKNOWN_SHARE: Final = 0.5
POSITIVES_LEAST: Final = 10
"""Likes, and as many others, that a first model is trained from."""
AUC_LEAST: Final = 0.55
Say = Callable[[str], None]


class Founded(msgspec.Struct, kw_only=True):
    """What came to be. `examples`, `positives`: showings in the history, and those that were liked; `version`: of the
    first model, "" where there is nothing to learn yet; `auc`: on the fifth of them that came last; `indexed`: likes in
    the first index of recall; `warnings`: what was odd; `next`: commands to go on with."""

    folder: str
    items: int
    users: int
    interactions: int
    liked: str
    examples: int
    positives: int
    version: str
    auc: float | None
    indexed: int
    warnings: list[str]
    next: list[str]


def check_free(folder: Path) -> None:
    """BadInput where something is in the way."""
    if folder.absolute().resolve() == Path.cwd():  # the whole folder would take its place, and leave who stands in it
        raise BadInput(f"{folder} is where you are: name a new folder in it, or beside it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty: an installation begins in a folder of its own; name another one")
    if not folder.absolute().parent.is_dir():
        raise BadInput(f"{folder}: there is no folder {folder.absolute().parent}; make it first")


def found(
    folder: Path, looked: Looked, interactions: Interactions, liked: Liked, port: int = 8000,
    say: Say = lambda line: None, clock: Clock | None = None,
) -> Founded:  # fmt: skip
    """Make the installation. BadInput, Conflict (somebody else makes it), Full: then the folder is as it was."""
    check_free(folder)
    folder, clock = folder.absolute(), clock or SystemClock()
    part = folder.parent / f".{folder.name}.init"
    other = Conflict(f"another `millstream init` makes {folder} already; wait for its end")
    try:
        with locked(folder.parent / f".{folder.name}.init.lock", other):
            shutil.rmtree(part, ignore_errors=True)  # of one that was killed
            try:
                part.mkdir()
                founded = _Founding(part, looked, interactions, liked, port, say, clock).make()
                check_free(folder)
                os.replace(part, folder)
                fsync_path(folder.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
                (folder.parent / f".{folder.name}.init.lock").unlink(missing_ok=True)
    except OSError as error:
        raise full(error, folder) from error
    founded.folder = str(folder)
    return founded


class _Founding:
    """One installation, under way in `folder`."""

    def __init__(
        self, folder: Path, looked: Looked, interactions: Interactions, liked: Liked, port: int, say: Say, clock: Clock
    ) -> None:
        self._folder, self._looked, self._found, self._liked = folder, looked, interactions, liked
        self._port, self._say, self._clock = port, say, clock
        self.warnings: list[str] = []
        found = interactions
        if found.odd:
            self._warn(f"{found.odd:,} of {found.read:,} interactions have no user, item or time that can be read")
        if found.older:
            self._warn(f"the {len(found.times):,} newest interactions are taken, {found.older:,} older ones left out")
        if "event_time" not in looked.maps["interactions"]:
            self._warn("interactions have no times: the order of the file counts; what was liked together does not")

    def make(self) -> Founded:
        found, likes = self._found, self._found.positives(self._liked)
        if not likes.any():
            raise BadInput(
                f"nothing counts as liked by {self._liked}: nobody could be recommended anything; say --liked"
            )
        self._say(f"reading {self._looked.tables.names}")
        items = self._entities("items", found.item_names)
        self._write(len(items))
        settings = config.read(self._folder / "millstream.toml", Settings)
        users = self._import("users", settings, self._rows_of("users", found.user_names))
        known = self._import("items", settings, self._rows_of("items", found.item_names))
        self._say(f"{known:,} items and {users:,} users are in the log")
        with Installation(self._folder, settings, self._clock) as at:
            showings, positives = self._history(at, settings)
            share = 100 * positives / max(showings, 1)
            self._say(f"{showings:,} showings are history, {positives:,} of them liked ({share:.1f} %)")
            make_rows(at)
            made = self._train(at, positives, showings)
            indexed = self._index(at, settings)
        figures = made.figures.get("candidate") if made else None
        return Founded(
            folder="", items=known, users=users, interactions=len(found.times), liked=str(self._liked),
            examples=showings, positives=positives, version=made.version if made else "",
            auc=figures.auc if figures else None, indexed=indexed, warnings=self.warnings, next=[],
        )  # fmt: skip

    def _write(self, items: int) -> None:
        looked, found = self._looked, self._found
        span = float(found.times[-1] - found.times[0])
        sketched = sketch.Found(
            items=looked.maps["items"], users=looked.maps["users"],
            item_facts={one.name: one for one in looked.facts["items"]},
            user_facts={one.name: one for one in looked.facts["users"]},
            item_count=items, kinds=found.counts(), liked=self._liked, rows=len(found.times),
            age_s=max(0.0, self._clock.now() - float(found.times[0])), span_s=span,
            window_s=window_s(found, self._liked), dated="event_time" in looked.maps["interactions"],
            sources=looked.tables.names, port=self._port,
        )  # fmt: skip
        write_atomic(self._folder / "millstream.toml", sketch.settings(sketched).encode())
        if sketched.dated:
            write_atomic(self._folder / "features.py", sketch.features(sketched).encode())

    def _entities(self, table: Table, used: Sequence[str]) -> set[str]:
        """The ids of a table, or those that interactions name where there is none. BadInput: most are others."""
        map = self._looked.maps[table]
        if not map:
            return set(used)
        column, counts = map["id"].column, Counter[str]()
        for row in self._looked.rows(table):
            counts["" if columns.is_blank(row.get(column)) else columns.text_of(row.get(column))] += 1
        odd, ids = counts.pop("", 0), set(counts)
        where = self._looked.tables.name(table)
        if odd > ODD_SHARE * (odd + counts.total()):
            raise BadInput(
                f"{where}: column {column!r} is the id and is empty in {odd:,} rows; say --map {table}.id=COLUMN"
            )
        if odd:
            self._warn(f"{where}: {odd:,} rows without an id are left out")
        if (twice := counts.total() - len(ids)) and not (table == "items" and self._looked.tall):
            self._warn(f"{where}: {twice:,} rows have an id that came before: the last of an id counts")
        unknown = [name for name in used if name not in ids]
        if len(unknown) > UNKNOWN_SHARE * len(used):
            raise BadInput(
                f"{len(unknown):,} of {len(used):,} {table} in the interactions, such as {unknown[0]!r}, are not in "
                f"{where} by column {column!r}: say --map {table}.id=COLUMN, or leave --{table} out"
            )
        if unknown and table == "items":
            self._warn(f"{len(unknown):,} items of interactions are not in {where}: nobody is recommended them")
        elif unknown:
            self._warn(f"{len(unknown):,} users of interactions are not in {where}: they have no attributes")
        return ids

    def _rows_of(self, table: Table, used: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Users or items as the log takes them: an id and attributes, all with the same keys."""
        map = self._looked.maps[table]
        born = self._born() if table == "items" and "created" not in map else None
        if not map:
            yield from ({"id": name} | ({"created": born.get(name)} if born is not None else {}) for name in used)
            return
        names = {field: sketch.attribute(map, field) for field in map if field != "id"}
        for row in self._looked.rows(table):
            if columns.is_blank(cell := row.get(map["id"].column)):
                continue
            made: dict[str, Any] = {"id": columns.text_of(cell)}
            made |= {name: columns.value_of(row.get(map[f].column), map[f].type) for f, name in names.items()}
            if born is not None:
                made["created"] = born.get(made["id"])
            yield made

    def _born(self) -> dict[str, float]:
        """When somebody first did something with each item, unix seconds: as long as nothing else is known it was new
        then."""
        found, born = self._found, dict[str, float]()
        for item, time in zip(found.items[::-1].tolist(), found.times[::-1].tolist(), strict=True):
            born[found.item_names[item]] = time
        return born

    def _import(self, table: Table, settings: Settings, rows: Iterator[dict[str, Any]]) -> int:
        first = next(rows, None)
        if first is None:
            raise BadInput(f"no {table} are known by these tables")
        kinds = self._looked.maps[table]
        types = {sketch.attribute(kinds, field): part.type for field, part in kinds.items() if field != "id"}
        fields = {name: Field(name, _stored(types.get(name, "str"), name)) for name in first}
        whole, now = chain([first], rows), self._clock.now()
        return import_entities(self._folder / "log", settings.log, table, whole, fields, now)

    def _history(self, at: Installation, settings: Settings) -> tuple[int, int]:
        """Import what happened; how many showings, and how many of them were liked."""
        likes, kinds, positives = self._liked.kinds or (LIKE,), dict[str, None](), 0
        for row in told(self._found, self._liked):
            kinds.update(dict.fromkeys(row))
            positives += any(row.get(kind, 0.0) > 0 for kind in likes)
        whole = ({**dict.fromkeys(kinds), **row} for row in told(self._found, self._liked))
        showings = import_outcomes(
            at.folder / "log", settings.log, at.entities(), at.model, whole, {name: Field(name) for name in kinds},
            delay_s=DELAY_S, window_s=settings.join.settled_s, features=at.ranker_set,
        )  # fmt: skip
        return showings, positives

    def _train(self, at: Installation, positives: int, showings: int) -> Made | None:
        """The first version; None where nearly all showings were liked, or nearly none."""
        if min(positives, showings - positives) < POSITIVES_LEAST:
            self._warn(
                f"{positives:,} of {showings:,} showings were liked: a ranker cannot learn from that, so lists go by "
                "recall until impressions without a like have come; then run `millstream train offline`"
            )
            return None
        made = train(at, say=self._say)
        self._say(f"version {made.version} of {made.model} has learnt {made.examples:,} examples")
        figures = made.figures.get("candidate")
        if figures is not None and figures.auc is not None and figures.auc < AUC_LEAST:
            self._warn(
                f"the ranker tells what is liked from what is not hardly better than chance (AUC {figures.auc:.3f}): "
                "more attributes of items and users, or more of what was shown and not liked, would help it"
            )
        return made

    def _index(self, at: Installation, settings: Settings) -> int:
        """The first index of recall; of how many likes."""
        from millstream.recall.build import Builder
        from millstream.recall.index import Indexes

        every = msgspec.structs.replace(settings.recall, least_events=1)
        builder = Builder(at.log, every, at.clock, Meter(), at.indexes, settings.histories.kinds)
        while builder.step():
            pass
        builder.step()
        builder.close()
        index = Indexes(at.indexes).newest()
        if index is None:
            raise Error("no index of recall could be built; the lines above say why")
        self._say(f"recall has an index of {index.about.positives:,} likes of {index.about.users:,} users")
        return int(index.about.positives)

    def _warn(self, line: str) -> None:
        self.warnings.append(line)
        self._say(line)


def _stored(type: str, name: str) -> str:
    """The type of a field of the log for a value that was read by a type of a column."""
    if type in ("list", "str") and name != "created":
        return type
    return "float"
