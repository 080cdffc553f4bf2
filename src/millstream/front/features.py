"""The bodies of /v1/features: read the features of entities, write facts about them.

Rules of the room:
- A field that is not known is refused, as is a name that a set has no use for: it would otherwise be a missing value.
- A matrix leaves as JSON (a missing number is null, a whole one has no point) or as its bytes, row after row and
  little-endian; what is beside the values is then in headers.
- A large answer is written beside the event loop.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
import orjson

from millstream import errors
from millstream.front import answer
from millstream.front.door import Door
from millstream.front.exchange import OTHER, WRITE, Exchange, Route, no_page
from millstream.types import Principal

VALUES_HERE_MAX: Final = 65_536
GET_EXAMPLE = '{"set": "ranker", "entities": {"user": ["u1"], "item": ["i1", "i2"]}}'
WRITE_EXAMPLE = '{"source": "prices", "rows": [{"event_time": 1700000000.0, "item": "i1", "price": 9.5}]}'

SAID: Final = {
    "Columns": "names of the columns",
    "Datatype": "FP32 or FP64",
    "Rows": "how many",
    "Age": "seconds since when the rows are as they are",
    "Hash": "version of the set",
    "Missing": "names without a row, by kind of entity",
}
"""Headers of a binary answer, each behind `Millstream-`."""


class _Get(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    set: str
    entities: dict[str, list[str]] = {}
    request: dict[str, list[float | None]] = {}
    form: Literal["json", "binary"] = msgspec.field(default="json", name="as")


class _Write(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    source: str
    rows: list[dict[str, str | float | None]]


_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_asked = msgspec.json.Decoder(_Get)
_told = msgspec.json.Decoder(_Write)


class Features:
    """The routes of features. `principal` says who an exchange is from, or raises."""

    def __init__(self, door: Door, principal: Callable[[Exchange], Principal]) -> None:
        self._door, self._principal = door, principal
        self.get, self.write = Route(OTHER, WRITE, self._get), Route(OTHER, WRITE, self._write)

    def _get(self, exchange: Exchange) -> None:
        principal = self._principal(exchange)
        asked: _Get = _read("features", _asked, exchange.body, GET_EXAMPLE)
        found = self._door.features(asked.set, asked.entities, asked.request, principal)
        write = _binary if asked.form == "binary" else _json
        if found.done() and (found.exception() or found.result().values.size <= VALUES_HERE_MAX):
            exchange.wait(found, lambda _, read: write(read))
        else:
            exchange.wait(asyncio.ensure_future(_beside(found, write)), lambda _, whole: whole)

    def _write(self, exchange: Exchange) -> None:
        no_page(exchange)
        principal = self._principal(exchange)
        told: _Write = _read("facts", _told, exchange.body, WRITE_EXAMPLE)
        if not told.rows:
            raise errors.BadInput(f"facts: rows is empty; send at least one, like {WRITE_EXAMPLE}")
        accepted = self._door.facts(told.source, told.rows, principal)
        exchange.wait(accepted, lambda _, count: answer.answer(b'{"accepted":%d}' % count))


async def _beside(found: asyncio.Future[Any], write: Callable[[Any], bytes]) -> bytes:
    return await asyncio.to_thread(write, await found)


def _read(what: str, decoder: msgspec.json.Decoder[Any], body: bytes | bytearray, example: str) -> Any:
    try:
        return decoder.decode(body)
    except _UNREADABLE as error:
        said = str(error) if body else "the body is empty"
        raise errors.BadInput(f"{what}: {said}; send a body like {example}") from None


def document(read: Any) -> bytes:
    """What was read, as JSON."""
    values: bytes = orjson.dumps(read.values, option=orjson.OPT_SERIALIZE_NUMPY)
    # A whole number is an integer: tokens are hashes, and their readers want them so. Doing it to the text takes a
    # fraction of what rows of Python's integers would.
    values = values.replace(b".0,", b",").replace(b".0]", b"]")
    said = {
        "set": read.set,
        "hash": read.hash,
        "columns": read.columns,
        "missing": {kind: gone.tolist() for kind, gone in read.missing.items()},
        "age_s": round(read.age_s, 6),
        "stale": bool(read.stale),
        "values": orjson.Fragment(values),
    }
    return orjson.dumps(said)


def _json(read: Any) -> bytes:
    return answer.answer(document(read))


def _binary(read: Any) -> bytes:
    values = read.values if sys.byteorder == "little" else read.values.astype(read.values.dtype.newbyteorder("<"))
    missing = ",".join(f"{kind}={int(gone.sum())}" for kind, gone in read.missing.items())
    told = ",".join(read.columns), read.datatype, len(values), f"{read.age_s:.6f}", read.hash, missing
    lines = "".join(f"Millstream-{name}: {value}\r\n" for name, value in zip(SAID, told, strict=True))
    return answer.answer(values.tobytes(), answer.BINARY, extra=lines.encode())
