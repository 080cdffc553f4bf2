"""An id names one request: asked again it gets the same answer, and is logged once.

Rules of the room:
- Ids are the client's. One that comes back with another request is refused: it must never give one person's answer to
  another.
- An answer is remembered until so many others came after it; one under way is shared by all who ask for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from millstream.errors import Conflict

Answer = TypeVar("Answer")


class _Known(NamedTuple, Generic[Answer]):
    """An answer, the digest of what was asked, and who asked."""

    asked: bytes
    answer: Answer
    user: str


class Once(Generic[Answer]):
    """The latest `kept` answers by their ids."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._answers: OrderedDict[str, _Known[Answer]] = OrderedDict()
        self._under_way: dict[str, tuple[bytes, asyncio.Future[Answer]]] = {}

    def call(
        self, ident: str, asked: bytes, answer: Callable[[], Coroutine[Any, Any, Answer]]
    ) -> asyncio.Future[Answer]:
        """The answer to a request of this id, made by `answer` if it is the first. Conflict: its id is another's."""
        known = self._answers.get(ident)
        if known is not None:
            _check_same(ident, asked, known.asked)
            again: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            again.set_result(known.answer)
            return again
        if ident not in self._under_way:
            answering = asyncio.ensure_future(answer())
            self._under_way[ident] = asked, answering
            answering.add_done_callback(lambda _: self._under_way.pop(ident, None))
        asked_first, under_way = self._under_way[ident]
        _check_same(ident, asked, asked_first)
        return asyncio.shield(under_way)  # one caller going away must not cancel its twin

    def get(self, ident: str) -> Answer | None:
        """A remembered answer."""
        known = self._answers.get(ident)
        return None if known is None else known.answer

    def remember(self, ident: str, asked: bytes, answer: Answer, user: str) -> None:
        """Keep an answer, and let the oldest go for it."""
        self._answers[ident] = _Known(asked, answer, user)
        while len(self._answers) > self._kept:
            self._answers.popitem(last=False)

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Forget the answers to people by their names; how many. A retry of such a request is a new one."""
        gone = [ident for ident, known in self._answers.items() if mine(known.user)]
        for ident in gone:
            del self._answers[ident]
        return len(gone)


def digest(*asked: object) -> bytes:
    """What makes two requests of one id the same request; people as the log knows them. 16 bytes of BLAKE2b."""
    return hashlib.blake2b(msgspec.msgpack.encode(asked), digest_size=16).digest()


def _check_same(ident: str, asked: bytes, known: bytes) -> None:
    if asked != known:
        raise Conflict(
            f"id {ident[:80]!r} is already used for another request (user, model or candidates differ): "
            "send each new request with an id of its own"
        )
