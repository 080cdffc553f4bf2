"""The control API of traffic: who gets which version, what its shadows say, and the moves that change it.

Rules of the room:
- A body is a move as models/traffic.py has it, the same that the command line makes.
- `policy` in a body is the number of the policy that it was decided on: of two people who decide at once, the second is
  told (409) who was faster.
- Web pages read and change nothing here, and who may is for the Door to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from millstream import errors
from millstream.front import answer
from millstream.front.door import Door
from millstream.front.exchange import READ, TRAFFIC, WRITE, Exchange, Route, no_page
from millstream.front.schemas import NUMBER, Schema, array, count, ref, thing, words
from millstream.models.policy import Policy
from millstream.models.traffic import MOVES
from millstream.types import Principal


class Traffic:
    """Finds the route of a path below /v1/traffic. `principal` says who an exchange is from, or raises."""

    def __init__(self, door: Door, principal: Callable[[Exchange], Principal]) -> None:
        self._door, self._principal = door, principal

    def find(self, parts: list[str]) -> Route | None:
        """The route of a path, by its unquoted parts; None where there is none."""
        match parts:
            case [model] if model:
                return Route(TRAFFIC, READ, lambda exchange: self._show(exchange, model))
            case [model, "comparison"] if model:
                return Route(TRAFFIC, READ, lambda exchange: self._compare(exchange, model))
            case [model, verb] if model and verb in MOVES:
                return Route(TRAFFIC, WRITE, lambda exchange: self._move(exchange, model, verb))
        return None

    def _show(self, exchange: Exchange, model: str) -> None:
        no_page(exchange)
        exchange.wait(self._door.traffic(model, self._principal(exchange)), _document)

    def _compare(self, exchange: Exchange, model: str) -> None:
        no_page(exchange)
        exchange.wait(self._door.comparison(model, self._principal(exchange)), _document)

    def _move(self, exchange: Exchange, model: str, verb: str) -> None:
        no_page(exchange)
        principal = self._principal(exchange)
        try:
            move = msgspec.json.decode(exchange.body or b"{}", type=MOVES[verb])
        except msgspec.ValidationError as error:
            raise errors.BadInput(f"the body of {verb}: {str(error).replace('`$.', '`')}; see docs/http.md") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.BadInput(f"the body is not JSON: {error}; send an object") from None
        moved = asyncio.shield(self._door.move(model, verb, move, principal))  # also if nobody waits to hear of it
        exchange.wait(moved, _document)


_PLACE = "#/components/schemas/{name}"
_MADE = msgspec.json.schema_components([*MOVES.values(), Policy], ref_template=_PLACE)[1]
_WORDS = thing({}, additionalProperties=words())
_WORD = thing({"canary": words(), "said": words(), "when": NUMBER, "requests": count(), "beside": count()})
_COUNTED = ("copies", "lost", "compared", "differing")
SCHEMAS: dict[str, Schema] = {
    **msgspec.json.decode(msgspec.json.encode(_MADE)),  # as a reader gets it: lists, no tuples
    "Traffic": thing(
        {
            "model": words(),
            "policy": ref("Policy"),
            "process": count(),
            "following": count(description="the policy that this process acts on"),
            "versions": _WORDS,
            "problems": _WORDS,
            "guard": {"oneOf": [_WORD, {"type": "null"}]},
            "history": array(ref("Policy")),
        }
    ),
    "Comparison": thing(
        {
            "model": words(),
            "live": words(),
            "process": count(),
            "shadows": array(
                thing(
                    {
                        "version": words(),
                        **{name: count() for name in _COUNTED},
                        "seen": {"type": ["object", "null"], "description": "in detail, by the process that answers"},
                        "problem": words(),
                    }
                )
            ),
        }
    ),
}
"""The documents of these routes: of moves and policies as their structs are, so that the two cannot differ."""


def _document(exchange: Exchange, found: Any) -> bytes:
    return answer.answer(msgspec.json.encode(found))
