"""The bodies of lists: ask for one, for items like one, say what items and users there are.

Rules of the room:
- A field that is not known is refused: a misspelt `exclude` would otherwise show what must not be shown.
- One route, /v1/recommend, ranks candidates (recommend.py) or makes a list; which of the two is told by the body: it
  ranks where candidates are all that is said beside the user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from millstream import errors
from millstream.front import answer
from millstream.front.door import Door
from millstream.front.exchange import OTHER, RECOMMEND, WRITE, Exchange, Route, no_page
from millstream.front.recommend import UNREADABLE, bounded, said
from millstream.types import Ask, Listing, Merge, Principal

ASK_EXAMPLE: Final = '{"user": "u1", "n": 20}, or {"user": "u1", "candidates": ["a", "b"]} to put these in order'
SIMILAR_EXAMPLE = '{"item": "i1", "n": 20}'
ROWS_EXAMPLES = {
    "items": '{"items": [{"id": "i1", "title": "A", "category": "news", "tags": ["x", "y"], "stock": 3}]}',
    "users": '{"users": [{"id": "u1", "country": "NL", "age": 30}]}',
}
MERGE_EXAMPLE = '{"merges": [{"visitor": "v81", "user": "u1"}]}'
Context = dict[str, str | float | bool]


class _Similar(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    item: str
    id: str = ""
    user: str = ""
    visitor: str = ""
    placement: str = ""
    n: int = 0
    exclude: tuple[str, ...] = ()
    context: Context = {}
    explain: bool = False
    event_time: float = 0.0
    tenant: str = ""


class _Items(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    items: list[dict[str, Any]]
    tenant: str = ""


class _Users(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    users: list[dict[str, Any]]
    tenant: str = ""


class _Merge(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    visitor: str
    user: str
    event_time: float = 0.0


class _Merges(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    merges: list[_Merge]
    tenant: str = ""


_similar, _items, _users, _merges = (msgspec.json.Decoder(of) for of in (_Similar, _Items, _Users, _Merges))
_encode = msgspec.json.Encoder().encode


class Lists:
    """The routes. `principal` says who an exchange is from, or raises; `new_id` names a request that has no id;
    `monotonic`: the time of records."""

    def __init__(
        self, door: Door, principal: Callable[[Exchange], Principal], new_id: Callable[[Exchange], str],
        monotonic: Callable[[], float],
    ) -> None:  # fmt: skip
        self._door, self._principal, self._new_id, self._monotonic = door, principal, new_id, monotonic
        self.similar = Route(RECOMMEND, WRITE, self._similar)
        self.items, self.users = Route(OTHER, WRITE, self._put_items), Route(OTHER, WRITE, self._put_users)
        self.merge = Route(OTHER, WRITE, self._merge)

    def _similar(self, exchange: Exchange) -> None:
        principal = self._principal(exchange)
        asked: _Similar = _read("similar", _similar, exchange.body, SIMILAR_EXAMPLE)
        if not asked.item:
            raise errors.BadInput(f"similar: item is empty; send the id of the item, like {SIMILAR_EXAMPLE}")
        ask = Ask(
            id=asked.id or self._new_id(exchange), user=asked.user, visitor=asked.visitor, placement=asked.placement,
            n=asked.n, exclude=asked.exclude, context=asked.context, similar=asked.item, explain=asked.explain,
            event_time=asked.event_time, tenant=asked.tenant,
        )  # fmt: skip
        if exchange.record is not None:
            exchange.record.wants(ask, self._monotonic())
        exchange.wait(self._door.call(ask, principal), _alike)

    def _put_items(self, exchange: Exchange) -> None:
        no_page(exchange)
        told: _Items = _read("items", _items, exchange.body, ROWS_EXAMPLES["items"])
        self._accept(exchange, self._door.upsert("items", told.items, self._principal(exchange), told.tenant))

    def _put_users(self, exchange: Exchange) -> None:
        no_page(exchange)
        told: _Users = _read("users", _users, exchange.body, ROWS_EXAMPLES["users"])
        self._accept(exchange, self._door.upsert("users", told.users, self._principal(exchange), told.tenant))

    def _merge(self, exchange: Exchange) -> None:
        no_page(exchange)
        told: _Merges = _read("merges", _merges, exchange.body, MERGE_EXAMPLE)
        merges = [Merge(visitor=one.visitor, user=one.user, event_time=one.event_time) for one in told.merges]
        self._accept(exchange, self._door.merge(merges, self._principal(exchange), told.tenant))

    def _accept(self, exchange: Exchange, accepted: Any) -> None:
        exchange.wait(accepted, lambda _, count: answer.answer(b'{"accepted":%d}' % count))


def _alike(exchange: Exchange, listing: Listing) -> bytes:
    if exchange.record is not None:
        exchange.record.ranked(listing)
    return answer.answer(write_listing(listing))


def write_listing(listing: Listing) -> bytes:
    """{"id", "model", "version", "items": [{"item", "score", ...}]}, and what else there is to say."""
    return _encode(listing)


def _read(what: str, decoder: msgspec.json.Decoder[Any], body: bytes | bytearray, example: str) -> Any:
    try:
        found = decoder.decode(body)
    except UNREADABLE as error:
        raise errors.BadInput(f"{what}: {said(body, error)}; send a body like {example}") from None
    if isinstance(found, _Similar):
        for name in ("item", "id", "user", "visitor"):
            bounded(f"{what}: {name}", getattr(found, name))
    return found
