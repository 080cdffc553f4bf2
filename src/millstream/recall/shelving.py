"""What fills the shelves of the next index: items as they are told of, and the tower that is live.

Rules of the room:
- It follows topic `items` by itself, with the catalogue's rules of which telling counts. What was deleted is on no
  shelf; what may not be shown just now is, as filters hold in the search.
- Items are copied when a build begins; their vectors are made where it runs, most of the time without the GIL.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import numpy as np

from millstream import errors
from millstream.guard.tenants import start
from millstream.meter import Meter
from millstream.recall.ann import Base
from millstream.recall.catalogue import Catalogue, CatalogueSettings
from millstream.recall.cooccur import windows
from millstream.recall.liked import Gathered
from millstream.recall.settings import Coding
from millstream.recall.shelf import CONTENT, TOWERS, Shelf
from millstream.recall.towers import Telling, Tokens, Towers, Vectors
from millstream.stream.lenient import LenientReader
from millstream.stream.log import Log
from millstream.types import Entity, Forgotten

STEP: Final = 2_000  # items at a time
ASKED: Final = 512  # people whose vectors measure how well items' are searched
Filling = Callable[[Gathered], dict[str, Shelf]]
"""Makes shelves, by name, beside what was liked."""
logger = logging.getLogger(__name__)
_decode = msgspec.msgpack.Decoder(Entity | Forgotten).decode


class Source(NamedTuple):
    """A model of two towers: `live` says which version is, "" for none; `open` loads one; `telling`: of its tokens."""

    live: Callable[[], str]
    open: Callable[[str], Towers]
    telling: Telling


class Shelving:
    """Follows items. One thread uses it. `told`: tellings of items read so far."""

    def __init__(
        self, log: Log, meter: Meter, settings: CatalogueSettings, codes: Coding, source: Source | None = None,
        tenant: str = "",
    ) -> None:  # fmt: skip
        self._reader, self._catalogue, self._codes = (
            LenientReader(log.reader("items"), meter),
            Catalogue(settings),
            codes,
        )
        self._source, self._mine = source, start(tenant).encode()
        self._at: dict[int, int] = {}
        self.told = 0

    def step(self) -> int:
        """Read on by a bounded number of records; how many, 0 at the end."""
        read = 0
        for partition in self._reader.partitions():
            begin = self._at.get(partition, 0)
            for record, event in self._reader.decoded(partition, begin, _decode, self._mine):
                if record.offset - begin >= STEP:
                    break
                self._at[partition] = record.offset + 1
                read += 1
                if isinstance(event, Entity):
                    self._tell(event, record.arrival)
        return read

    def live(self) -> str:
        """The version of the towers that the next index should have vectors of; "" for none."""
        return self._source.live() if self._source is not None else ""

    def copied(self) -> Filling:
        """The shelves of items as they are now: copied here, built by who calls it."""
        catalogue = self._catalogue
        there = np.flatnonzero(catalogue.alive).astype(np.int32)
        embedding = catalogue.embedding[there]
        has = ~np.isnan(embedding).any(axis=1) if embedding.shape[1] else np.zeros(len(there), np.bool_)
        content = (catalogue.names(there[has]), embedding[has]) if embedding.shape[1] else None
        names, tokens, version = list[str](), np.empty((0, 0), np.uint32), self.live()
        if version and self._source is not None:
            names = catalogue.names(there)
            tokens = self._source.telling.items(names)

        def made(gathered: Gathered) -> dict[str, Shelf]:
            shelves = {}
            if content is not None:
                shelves[CONTENT] = Shelf(content[0], Base.build(content[1], "cosine", codes=self._codes))
            if version and (shelf := self._towers(version, names, tokens, gathered)) is not None:
                shelves[TOWERS] = shelf
            return shelves

        return made

    def _towers(self, version: str, names: list[str], tokens: Tokens, gathered: Gathered) -> Shelf | None:
        assert self._source is not None
        try:
            towers = self._source.open(version)
        except errors.Error as error:
            logger.error("the next index has no vectors by towers: %s", error)
            return None
        asked = _asked(towers, self._source.telling, gathered)
        return Shelf(names, Base.build(towers.items(tokens), queries=asked, codes=self._codes), version)

    def _tell(self, item: Entity, arrival: float) -> None:
        self.told += 1
        settings, said = self._catalogue.settings, item.attributes
        kept = {name: said[name] for name in (settings.embedding, settings.deleted) if name in said}
        with contextlib.suppress(errors.TooLarge):  # those who answer say it
            self._catalogue.upsert(item.id, kept, arrival)


def _asked(towers: Towers, telling: Telling, gathered: Gathered) -> Vectors:
    """Vectors such as requests have: of some who liked something, by that alone."""
    held = windows(gathered.positives, gathered.users, towers.history)
    users = np.random.default_rng(0).permutation(gathered.users)[:ASKED]
    pasts = [held.columns[held.starts[user] : held.starts[user + 1]].tolist() for user in users.tolist()]
    history = [telling.history([gathered.items[row] for row in past], towers.history) for past in pasts]
    if not history:
        return np.empty((0, towers.width), np.float32)
    return towers.users(np.zeros((len(history), towers.user_width), np.uint32), np.concatenate(history))
