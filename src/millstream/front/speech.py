"""The routes of speech: a connection that becomes a WebSocket, and a file to transcribe.

Rules of the room:
- Who may not listen learns it from the handshake, with a status; what is wrong later is told over the WebSocket.
- A browser sends its cookies to any address that a page names, and its Origin with them: pages are named one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from millstream import errors
from millstream.front import answer, multipart
from millstream.front.door import Door, Transcribed
from millstream.front.exchange import SPEECH, WRITE, Exchange, Route, no_page
from millstream.front.limits import HttpLimits
from millstream.types import Principal

if TYPE_CHECKING:
    from millstream.front.http import Http


class Speech:
    """Both routes. `principal` says who an exchange is from, or raises."""

    def __init__(self, door: Door, principal: Callable[[Exchange], Principal], limits: HttpLimits) -> None:
        self._door, self._principal, self._limits = door, principal, limits
        self.live = Route(SPEECH, (b"GET",), self._live)
        self.file = Route(SPEECH, WRITE, self._file)

    def _live(self, exchange: Exchange) -> None:
        try:
            from millstream.front import ws
        except ModuleNotFoundError as missing:
            raise errors.Missing.extra("speech", "live speech over a WebSocket") from missing
        accepted = ws.accept(exchange, self._limits.socket.origins)
        exchange.authorization = ws.key_of(exchange)
        principal = self._principal(exchange)
        self._door.listens(principal)
        given = exchange.authorization
        key = given.partition(b" ")[2].strip().decode("latin-1") if given else None

        def take_over(server: Http) -> asyncio.Protocol:
            return ws.Socket(server, self._door, principal, key, exchange.peer)

        exchange.status, exchange.answer, exchange.takes_over = 101, accepted, take_over

    def _file(self, exchange: Exchange) -> None:
        no_page(exchange)
        principal = self._principal(exchange)
        self._door.listens(principal)
        recording = multipart.read(exchange.body, self._limits.recording_bytes_max)
        exchange.wait(self._door.transcribe(recording, principal), _transcribed)


def _transcribed(exchange: Exchange, made: Transcribed) -> bytes:
    return answer.answer(made.content, made.kind.encode())
