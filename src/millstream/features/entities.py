"""Known users and items: for each the token row of its attributes, ready to stand beside others in a request.

Attributes become tokens once, when they are told; a request then costs look-ups and one compiled pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.features.feature import SEPARATOR, Definition, Rows, Side, Texts, Tokens

Scalar = str | int | float
Attributes = Mapping[str, Scalar | Sequence[Scalar] | None]

TEXT_MAX: Final = 4096  # bytes of one attribute


class Entities:
    """Token rows of at most `limit` users and `limit` items; past it the one described longest ago is forgotten
    (`forgotten` counts them) and is treated as any unknown entity: its row has its id alone."""

    def __init__(self, definition: Definition, limit: int = 1_000_000) -> None:
        self.definition = definition
        self.forgotten = 0
        self._rows = Rows(definition)
        self._sides = {"user": _Side(definition.user_width, limit), "item": _Side(definition.item_width, limit)}

    def upsert(self, kind: Side, id: str, attributes: Attributes) -> None:
        """Replace what is known of a user or an item. None or an attribute left out means unknown; an attribute that
        the definition does not name is ignored. A value of the wrong kind: BadInput, and nothing changes."""
        if kind not in self._sides:
            raise errors.BadInput(f"entity kind must be 'user' or 'item', got {kind!r}")
        self.forgotten += self._sides[kind].put(id, self.described(kind, id, attributes)[0])

    def upsert_many(self, kind: Side, several: Iterable[tuple[str, Attributes]]) -> list[errors.BadInput | None]:
        """As `upsert` of one after the other, in a third of the time: of each what `upsert` would have raised."""
        refused: list[errors.BadInput | None] = []
        rows: list[tuple[str, list[bytes]]] = []
        for id, attributes in several:
            try:
                rows.append((id, self._texts(kind, id, attributes)))
                refused.append(None)
            except errors.BadInput as error:
                refused.append(error)
        side = self._sides[kind]
        for (id, _), row in zip(rows, self._tokens(kind, [texts for _, texts in rows]), strict=True):
            self.forgotten += side.put(id, row)
        return refused

    def described(self, kind: Side, id: str, attributes: Attributes) -> Tokens:
        """The tokens uint32 [1, side's width] of a user or an item with these attributes, whoever is known; from any
        thread. Refuses as `upsert` does."""
        return self._tokens(kind, [self._texts(kind, id, attributes)])

    def _texts(self, kind: Side, id: str, attributes: Attributes) -> list[bytes]:
        """The id and the attributes that the definition names besides, as texts; empty where there is nothing."""
        texts = [_bytes(id)]
        for column in self.definition.side(kind):
            if column.name != "id":
                value = attributes.get(column.name)
                where = f"{kind} {id!r}: attribute {column.name!r}"
                texts.append(b"" if value is None else _text(value, column.places > 1, where))
        return texts

    def _tokens(self, kind: Side, rows: list[list[bytes]]) -> Tokens:
        names = ["id", *(column.name for column in self.definition.side(kind) if column.name != "id")]
        columns = zip(*rows, strict=True) if rows else [[] for _ in names]
        return self._rows.tokens(kind, {name: Texts.of(texts) for name, texts in zip(names, columns, strict=True)})

    def forget(self, kind: Side, mine: Callable[[str], bool]) -> int:
        """Forget entities by their ids: each is one that nobody knows from now on. How many there were."""
        return self._sides[kind].forget(mine)

    def count(self, kind: Side) -> int:
        return len(self._sides[kind].places)

    def rows(self, user: str, items: Sequence[str], kept: NDArray[Any] | None = None) -> Tokens:
        """Feature rows uint32 [len(items), width] of one request, in the order of `items`. Unknown ids are welcome.
        `kept`: the matrix of the definition's feature set, float [len(items), columns]; without it its places are
        empty."""
        return self._rows.one(self.tokens("user", (user,))[0], self.tokens("item", items), kept)

    def history(self, items: Sequence[str], h: int) -> Tokens:
        """What a user had to do with, newest last, as tokens uint32 [1, h]; see Rows.history."""
        return self._rows.history(items, h)

    def tokens(self, kind: Side, ids: Sequence[str]) -> Tokens:
        """Tokens uint32 [len(ids), side's width], in this order. Unknown ids are welcome."""
        side = self._sides[kind]
        found = [side.places.get(id, -1) for id in ids]
        block = side.block.take(found, axis=0)
        if -1 in found:
            unknown = [i for i, place in enumerate(found) if place < 0]
            block[unknown] = self._rows.tokens(kind, {"id": Texts.of([_bytes(ids[i]) for i in unknown])})
        return block


class _Side:
    """Packed rows of one kind: `places` maps an id to its row in `block`, the one described longest ago first."""

    def __init__(self, width: int, limit: int) -> None:
        if limit < 1:
            raise errors.Misconfigured(f"entities: the limit must be at least 1, got {limit}")
        self.places: dict[str, int] = {}
        self.block: Tokens = np.zeros((1, width), np.uint32)
        self._limit = limit

    def put(self, id: str, row: Tokens) -> int:
        """Store a row; returns how many entities had to be forgotten for it (0 or 1)."""
        place = self.places.pop(id, None)
        forgotten = 0
        if place is None:
            place = len(self.places)
            if place == self._limit:
                place = self.places.pop(next(iter(self.places)))
                forgotten = 1
            elif place == len(self.block):
                room = min(2 * place, self._limit) - place
                self.block = np.concatenate((self.block, np.zeros((room, self.block.shape[1]), np.uint32)))
        self.places[id] = place
        self.block[place] = row
        return forgotten

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Let entities go; how many. The last rows move into their places."""
        gone = [id for id in self.places if mine(id)]
        if gone:
            for id in gone:
                del self.places[id]
            kept = np.fromiter(self.places.values(), np.int64, len(self.places))
            self.places = dict(zip(self.places, range(len(kept)), strict=True))
            self.block = np.concatenate((self.block[kept], np.zeros((1, self.block.shape[1]), np.uint32)))
        return len(gone)


def _text(value: object, several: bool, where: str) -> bytes:
    """An attribute as the text that is hashed: 25, 25.0 and "25" are one; a list is its values joined by "|"."""
    if isinstance(value, (list, tuple)):
        if not several:
            raise errors.BadInput(f"{where} is a list, but its column has one place; set `places` or send one value")
        text = SEPARATOR.join(_scalar(one, where) for one in value)
    else:
        text = _scalar(value, where)
    encoded = _bytes(text)
    if len(encoded) > TEXT_MAX:
        raise errors.BadInput(f"{where} is {len(encoded)} bytes long; at most {TEXT_MAX}")
    return encoded


def _scalar(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    raise errors.BadInput(f"{where} is {value!r}; send text, a finite number or a list of them")


def _bytes(text: str) -> bytes:
    """UTF-8, also of a lone surrogate: any str that a client can send has one token."""
    return text.encode("utf-8", "surrogatepass")
