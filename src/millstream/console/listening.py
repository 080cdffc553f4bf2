"""What the page Speech is given, and the two routes of its own: a conversation, and a transcript as a file.

Rules of the room:
- The browser speaks to this process, which speaks to the service with the visitor's own key: a script never sees a key,
  and no other origin needs to be allowed. The service asks for the key's right anew every second.
- The conversation is that of `spoken.py`; what ends it is told as `error`, and no conversation holds more than one
  message of the browser and what its client of the service holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from millstream import errors
from millstream.spoken import Edit, Finish, Line, Ready, Start, Told, Trouble

LIVE, WRITTEN = "/speech/live", "/speech/written"
CONVERSATIONS_MAX = 32
WRITTEN_BYTES_MAX = 32 << 20
START_S = 10.0
logger = logging.getLogger(__name__)
_told = msgspec.json.Encoder()
_start = msgspec.json.Decoder(Start)
_said = msgspec.json.Decoder(Edit | Finish)


class SpeechNow(msgspec.Struct, frozen=True, kw_only=True):
    """What can be asked for. `recogniser`: "" where nothing hears; `fetch`, `toml`: what to type then; `profile`: the
    default one; `voices`: whether speakers are told apart."""

    recogniser: str
    profiles: list[str] = []
    profile: str = ""
    policies: list[str] = []
    voices: bool = False
    fetch: str = ""
    toml: str = ""


class Sheet(msgspec.Struct, kw_only=True):
    """A transcript as the browser holds it. `who`: what the speaker of a line is called, by the line's id."""

    lines: list[Line]
    who: dict[str, str] = {}
    name: str = "speech"
    language: str = ""
    seconds: float = 0.0


class Listening(Protocol):
    """An open session at the service."""

    async def send(self, audio: bytes) -> None:
        """PCM of 16 bits. Waits while the service is behind."""
        ...

    async def finish(self) -> None:
        """No more audio comes."""
        ...

    async def edit(self, segment: str, text: str | None = None, speaker: str | None = None) -> None:
        """What a person knows better."""
        ...

    def __aiter__(self) -> AsyncIterator[Told]: ...


class SpeechViews(Protocol):
    """Live speech of an installation."""

    def speech(self) -> SpeechNow:
        """What can be asked for."""
        ...

    def listen(self, start: Start, key: str) -> AbstractAsyncContextManager[Listening]:
        """A session at the service, in the name of this key. What the service refuses, from entering it."""
        ...

    def written(self, form: str, sheet: Sheet) -> str:
        """The transcript as a file of this form. BadInput: there is no such form."""
        ...


def routes(views: SpeechViews, key: Callable[[Scope], str]) -> list[BaseRoute]:
    """The conversation and the file. `key`: of who asks."""
    talking: set[WebSocket] = set()

    async def live(socket: WebSocket) -> None:
        await socket.accept()
        talking.add(socket)
        try:
            if len(talking) > CONVERSATIONS_MAX:
                raise errors.Overloaded(f"{CONVERSATIONS_MAX} people listen through this console; try again later", 5.0)
            await _talk(socket, views, key(socket.scope))
        except WebSocketDisconnect:
            return
        except errors.Error as error:
            await _refuse(socket, error.code.lower(), str(error))
        except Exception:
            logger.exception("a conversation of the console failed")
            await _refuse(socket, "internal", "this part failed; the console's log says why")
        finally:
            talking.discard(socket)

    async def written(request: Request) -> Response:
        try:
            sheet = await _sheet(request)
            made = await asyncio.to_thread(views.written, request.query_params.get("form", ""), sheet)
        except errors.Error as error:
            return PlainTextResponse(str(error), error.status)
        return PlainTextResponse(made, headers={"cache-control": "no-store"})

    return [WebSocketRoute(LIVE, live), Route(WRITTEN, written, methods=["POST"])]


async def _talk(socket: WebSocket, views: SpeechViews, key: str) -> None:
    """A whole conversation, up to `end` or what refuses it."""
    try:
        start = _start.decode(await asyncio.wait_for(socket.receive_text(), START_S))
    except (msgspec.MsgspecError, KeyError):
        raise errors.BadInput("the first message is start, as JSON") from None
    except TimeoutError:
        raise errors.Late(f"start did not come within {START_S:g} s") from None
    if start.form != "pcm16":
        raise errors.BadInput(f"form: pages speak pcm16, got {start.form}")
    async with views.listen(start, key) as listening:
        # The session is this process's to go on with: a page needs no token.
        await socket.send_text(_told.encode(Ready(session="", resume_token="")).decode())
        taking = asyncio.ensure_future(_take(socket, listening))
        telling = asyncio.ensure_future(_tell(socket, listening))
        try:
            await asyncio.wait({taking, telling}, return_when=asyncio.FIRST_COMPLETED)
            for one in (telling, taking):
                if one.done():
                    one.result()
        finally:
            for one in (taking, telling):
                one.cancel()
            await asyncio.wait({taking, telling})
    await socket.close()


async def _take(socket: WebSocket, listening: Listening) -> None:
    """What the browser says: audio, edits, at last finish. WebSocketDisconnect: it is gone."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if audio := message.get("bytes"):
            await listening.send(audio)
            continue
        try:
            said = _said.decode(message.get("text") or "")
        except msgspec.MsgspecError as error:
            raise errors.BadInput(f"not a message: {error}; there are edit and finish, as JSON") from None
        if isinstance(said, Finish):
            await listening.finish()
        else:
            await listening.edit(said.segment, text=said.text, speaker=said.speaker)


async def _tell(socket: WebSocket, listening: Listening) -> None:
    async for told in listening:
        await socket.send_text(_told.encode(told).decode())


async def _refuse(socket: WebSocket, code: str, why: str) -> None:
    try:
        await socket.send_text(_told.encode(Trouble(code=code, error=why)).decode())
        await socket.close(1011 if code == "internal" else 1008)
    except (RuntimeError, WebSocketDisconnect):
        return  # nobody is there any more


async def _sheet(request: Request) -> Sheet:
    """The transcript in a request. TooLarge, BadInput."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > WRITTEN_BYTES_MAX:
            raise errors.TooLarge(f"the transcript has over {WRITTEN_BYTES_MAX} bytes: export it in parts")
    try:
        return msgspec.json.decode(bytes(body), type=Sheet)
    except msgspec.MsgspecError as error:
        raise errors.BadInput(f"no transcript: {error}") from None
