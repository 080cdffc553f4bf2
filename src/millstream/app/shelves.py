"""The shelves of the recall index that is current, in a process that searches it: opened with it, and added to.

Rules of the room:
- Vectors are made and added in a thread, one part at a time; the event loop only says which items, and gives tokens.
- An index whose towers cannot be had (their version is gone, or of other [features]) is searched without that path,
  which is said once an index. Nothing fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from millstream.errors import Error
from millstream.meter import Meter
from millstream.recall.born import Beside, Born
from millstream.recall.catalogue import Catalogue
from millstream.recall.index import Attached
from millstream.recall.paths import SimilarToLast
from millstream.recall.scene import Numbers
from millstream.recall.shelf import CONTENT, TOWERS
from millstream.recall.shelving import Source
from millstream.recall.towers import Retrieval

logger = logging.getLogger("millstream")


class Opened(NamedTuple):
    """The shelves of one index: `beside` what is added; `missing`: items to add first."""

    beside: tuple[Beside, ...]
    retrieval: Retrieval | None
    missing: Numbers


class Shelves:
    """`similar`: the path that goes by embeddings, to be told which index of them is current."""

    def __init__(self, catalogue: Catalogue, source: Source | None, meter: Meter, tenant: str = "") -> None:
        self.similar: SimilarToLast | None = None
        self._catalogue, self._source = catalogue, source
        self._born = Born(catalogue, source.telling if source is not None else None, meter, tenant)
        self._adding: asyncio.Future[None] | None = None

    def expect(self) -> None:
        """An index is about to be opened: what changes from now on may not be in it."""
        self._born.watch()

    def open(self, attached: Attached) -> Opened:
        """The shelves of an index, in any thread."""
        beside, retrieval = [], None
        if (content := attached.shelves.get(CONTENT)) is not None:
            beside.append(Beside(content))
        if (shelved := attached.shelves.get(TOWERS)) is not None and self._source is not None:
            try:
                towers = self._source.open(shelved.version)
                retrieval = Retrieval(shelved.ann, towers, self._source.telling, self._catalogue)
                beside.append(Beside(shelved, towers))
            except Error as error:
                logger.error("recall goes on without towers until the next index: %s", error)
        missing = self._born.missing(beside, attached.index.about.made_at)
        return Opened(tuple(beside), retrieval, missing)

    def take(self, opened: Opened) -> None:
        """Add to these from now on."""
        self._born.begin(opened.beside, opened.missing)
        if self.similar is not None:
            content = next((one.shelved.ann for one in opened.beside if one.towers is None), None)
            known = content is not None and content.width == self._catalogue.embedding.shape[1]
            self.similar.near = content if known else None

    def poll(self) -> None:
        """Add what came, a part at a time and beside the event loop."""
        if self._adding is not None and not self._adding.done():
            return
        if (part := self._born.part()) is not None:
            self._adding = asyncio.ensure_future(self._add(part))

    async def _add(self, part: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(part)
        except (Error, MemoryError) as error:
            logger.error("some items wait for the next recall index: %s", error)
