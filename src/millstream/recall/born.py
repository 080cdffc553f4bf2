"""Items born since the index was built, and those that were told anew: their vectors, beside its shelves.

Rules of the room:
- Who follows the log says what changed; vectors are made and added elsewhere, a part at a time.
- Tokens of an item are asked for one look after the catalogue heard of it: by then features have, too.
- A vector is added where it is another than the shelf has, so that a catalogue that is told again costs no room.
- There is room for `ann.TIER_ROWS` on a shelf until the next index takes them in; what comes beyond waits for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.meter import Meter
from millstream.recall.ann import Ann
from millstream.recall.catalogue import Catalogue
from millstream.recall.scene import Numbers
from millstream.recall.shelf import Shelved
from millstream.recall.towers import Telling, Tokens, Towers, Vectors

PART: Final = 2_000  # items at a time
SLACK_S: Final = 60.0  # by so much may the clocks of two processes differ
_ALIKE: Final = 1e-4  # of vectors' lengths: two calls of a tower differ by less
logger = logging.getLogger(__name__)


class Beside(NamedTuple):
    """A shelf that grows, and what makes its vectors; None: they are the catalogue's embeddings."""

    shelved: Shelved
    towers: Towers | None = None


class Born:
    """Watches a catalogue. Its thread calls `changed`, `part` and `begin`; `add` and `missing` may run in another, one
    at a time."""

    def __init__(self, catalogue: Catalogue, telling: Telling | None, meter: Meter, tenant: str = "") -> None:
        self._catalogue, self._telling = catalogue, telling
        self._shelves: tuple[Beside, ...] = ()
        self._watching = self._said = False
        self._fresh: dict[int, None] = {}
        self._ready: dict[int, None] = {}
        labels, help_ = {"tenant": tenant} if tenant else None, "Vectors added to shelves since their index was built."
        self._count = meter.gauge("millstream_recall_born", help_, labels, joined="max")
        catalogue.watch(self)

    def changed(self, number: int) -> None:
        """For the catalogue."""
        if self._watching:
            self._fresh[number] = None

    def rebuilt(self) -> None:
        """For the catalogue: all of it is new."""
        if self._watching:
            self._fresh = dict.fromkeys(range(self._catalogue.count))

    def watch(self) -> None:
        """Remember what changes from now on: an index is being attached."""
        self._watching = True

    def missing(self, shelves: Iterable[Beside], made_at: float) -> Numbers:
        """Items that these shelves may not have as they are now: told of since they were filled, at `made_at`."""
        count = self._catalogue.count
        numbers = np.arange(count, dtype=np.int32)
        away = self._catalogue.told[:count] >= made_at - SLACK_S
        for shelf in shelves:
            lacks = shelf.shelved.places.rows(numbers) < 0
            if shelf.towers is None:  # of an item without an embedding there is nothing to add
                embedding = self._catalogue.embedding[:count]
                lacks &= np.isfinite(embedding[:, 0]) if embedding.shape[1] else False
            away |= lacks
        return numbers[away & self._catalogue.alive[:count]]

    def begin(self, shelves: tuple[Beside, ...], missing: Numbers) -> None:
        """These shelves from now on; `missing` of them."""
        self._shelves, self._said, self._watching = shelves, False, bool(shelves)
        self._fresh = (dict.fromkeys(missing.tolist()) | self._fresh) if shelves else {}
        self._ready = {}
        self._count.set(0)

    def part(self) -> Callable[[], None] | None:
        """The next items' vectors to add, to be called in another thread; None: there is nothing to do."""
        numbers = np.fromiter(islice(self._ready, PART), np.int32)
        if not len(numbers):
            self._ready, self._fresh = self._fresh, {}
            return None
        for number in numbers.tolist():
            del self._ready[number]
        wanted = any(shelf.towers is not None for shelf in self._shelves)
        tokens = None
        if wanted and self._telling is not None:
            tokens = self._telling.items(self._catalogue.names(numbers))
        shelves, embedding = self._shelves, self._catalogue.embedding[numbers]
        return lambda: self._add(shelves, numbers, tokens, embedding)

    def _add(self, shelves: tuple[Beside, ...], numbers: Numbers, tokens: Tokens | None, embedding: Vectors) -> None:
        for shelf in shelves:
            ann = shelf.shelved.ann
            shelf.shelved.refresh()  # first: what has a row by now takes its place, instead of one beside it
            if shelf.towers is None:
                vectors = embedding
            elif tokens is not None:
                vectors = shelf.towers.items(tokens)
            else:
                continue
            if vectors.shape[1] == ann.width:
                new = _other(ann, numbers, vectors)
                if ann.add(numbers[new], vectors[new]) < new.sum() and not self._said:
                    self._said = True
                    logger.warning(
                        "a shelf of the recall index has no room for more items that were told of since it was built; "
                        "they wait for the next index. Said once an index"
                    )
        self._count.set(sum(shelf.shelved.ann.born for shelf in shelves))


def _other(ann: Ann, numbers: Numbers, vectors: Vectors) -> NDArray[np.bool_]:
    """bool [n]: which vectors are there, and others than those that are searched."""
    there = np.asarray(np.isfinite(vectors).all(axis=1), np.bool_)
    lengths = np.linalg.norm(np.where(there[:, None], vectors, 0), axis=1)
    scale = np.maximum(lengths, 1e-9) if ann.base.measured.metric == "cosine" else np.ones(len(lengths))
    rows = ann.places.rows(numbers)
    known = (rows >= 0) & ~ann.renewed(rows)
    apart = np.full(len(numbers), np.inf)
    searched = ann.base.vectors[rows[known]] * scale[known, None]
    apart[known] = np.abs(vectors[known] - searched).max(axis=1, initial=0.0)
    other: NDArray[np.bool_] = there & (apart > _ALIKE * np.maximum(lengths, _ALIKE))
    return other
