"""A WebSocket (RFC 6455) on a connection that spoke HTTP/1.1 before: text is JSON of what is said, binary is audio.

Rules of the room:
- The handshake is an exchange of HTTP like any other, refused like any other; after it this protocol has the transport.
- A state machine without timers, as `front/connection.py`: the server sweeps its deadlines once a second.
- Frames are parsed by wsproto. Of one read at most EVENTS_A_TURN are taken at a time: a client that sends tiny frames
  as fast as it can waits, and not the others.
- Nothing is compressed: audio does not shrink, and text of a few hundred bytes is not worth the memory.
- A client is told why before it is hung up on, as `error` and by the code of the close.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, cast

import msgspec
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from millstream import errors
from millstream.front import answer
from millstream.front.exchange import Exchange
from millstream.front.talk import Talk
from millstream.spoken import End, Move, Said, Told, Trouble

if TYPE_CHECKING:
    from millstream.front.door import Door
    from millstream.front.http import Http
    from millstream.types import Principal

PROTOCOL = b"millstream.speech.v1"
BEARER = b"bearer."
EVENTS_A_TURN = 256
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
)
_CHOSEN = b"Sec-WebSocket-Protocol: %b\r\n" % PROTOCOL
_NORMAL, _AWAY, _REFUSED, _TOO_BIG, _BUG, _RESTART, _LATER = 1000, 1001, 1008, 1009, 1011, 1012, 1013
_CODES = {"resource_exhausted": _TOO_BIG, "unavailable": _LATER, "internal": _BUG, "data_loss": _BUG}
_said = msgspec.json.Decoder(Said)


def offered(headers: dict[bytes, bytes]) -> list[bytes]:
    """The subprotocols that a client offers, best first."""
    return [one.strip() for one in headers.get(b"sec-websocket-protocol", b"").split(b",") if one.strip()]


def key_of(exchange: Exchange) -> bytes | None:
    """The value of `Authorization`, which a browser says as the subprotocol `bearer.KEY`: a URL ends up in logs."""
    if exchange.authorization is not None or exchange.upgrade is None:
        return exchange.authorization
    keys = [one[len(BEARER) :] for one in offered(exchange.upgrade) if one.startswith(BEARER)]
    return b"Bearer " + keys[0] if keys else None


def accept(exchange: Exchange, origins: tuple[str, ...]) -> bytes:
    """The answer that makes a WebSocket of the connection. UpgradeRequired, BadInput: it is no handshake; Forbidden: it
    comes from a web page that is not among `origins`."""
    headers = exchange.upgrade
    if headers is None or headers[b"upgrade"].lower() != b"websocket":
        raise answer.UpgradeRequired("live speech is spoken over a WebSocket: send Upgrade: websocket")
    if headers.get(b"sec-websocket-version") != b"13":
        raise answer.UpgradeRequired("Sec-WebSocket-Version: 13 is spoken here")
    key = headers.get(b"sec-websocket-key", b"")
    try:
        proper = len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        proper = False
    if not proper:
        raise errors.BadInput("Sec-WebSocket-Key: 16 bytes in base64 are wanted; a WebSocket client makes them")
    if exchange.origin is not None and exchange.origin.decode("latin-1") not in origins:
        raise errors.Forbidden(
            f"Origin: pages of {ascii(exchange.origin[:100])[2:-1]} may not listen; name them in http.socket.origins"
        )
    chosen = _CHOSEN if PROTOCOL in offered(headers) else b""
    return _ACCEPTED % (base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()), chosen)


class Socket(asyncio.Protocol):
    """One client, after the handshake. A `talk.Wire`, and a connection of its port. `key`: what it showed, asked about
    again every second."""

    def __init__(self, server: Http, door: Door, principal: Principal, key: str | None, peer: str) -> None:
        self._server, self._door, self._key, self._peer = server, door, key, peer
        self._limits = server.limits.socket
        self._talk = Talk(door, self, principal, self._limits.waiting_bytes_max)
        self._frames = Frames(ConnectionType.SERVER)
        self._message = bytearray()
        self._text: list[str] = []
        self._size = 0
        self._room = asyncio.Event()
        self._room.set()
        self._held = self._busy = self._closing = self._broken = False
        self._reading = True
        self._heard = self._began = server.monotonic()
        self._pinged = False
        self._due = 0.0

    # The socket's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is this protocol's from now on."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.unread_bytes_max)
        if self._server.placing is not None:
            self._server.placing.count(1)
        if not self._server.opened(self):
            self._frames_out(CloseConnection(code=_LATER, reason="too many connections: try again"))
            self._close()
        elif self._server.draining:
            self.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._closing = True
        self._room.set()
        self._talk.gone()
        if self._server.placing is not None:
            self._server.placing.count(-1)
        self._server.reads(self)
        self._server.closed(self)

    def data_received(self, data: bytes) -> None:
        """Take what came, so much of it as is taken at once."""
        self._heard, self._pinged = self._server.monotonic(), False
        if self._broken or self._frames.state is ConnectionState.CLOSED:
            return
        self._frames.receive_data(data)
        if not self._busy:
            self._pump()

    def eof_received(self) -> bool:
        """False: a client that has sent its last byte is not waited for."""
        return False

    def pause_writing(self) -> None:
        """The client does not read what it is told: it has `unread_s`."""
        self._room.clear()
        self._due = self._server.monotonic() + self._server.limits.unread_s
        self._server.left_unread(self, self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It reads again."""
        self._room.set()
        self._server.reads(self)

    def _pump(self) -> None:
        """Take the frames there are, a number of them at a time; the rest in a later turn of the loop."""
        self._busy = False
        left = EVENTS_A_TURN
        for event in self._frames.events():
            if self._closing and not isinstance(event, CloseConnection):
                continue
            self._take(event)
            left -= 1
            if not left:
                self._busy = True
                asyncio.get_running_loop().call_soon(self._pump)
                break
        self._read()

    def _take(self, event: Event) -> None:
        try:
            if isinstance(event, TextMessage):
                self._text.append(event.data)
                self._grow(len(event.data))
                if event.message_finished:
                    text, self._text, self._size = "".join(self._text), [], 0
                    self._talk.say(_read(text))
            elif isinstance(event, BytesMessage):
                self._grow(len(event.data))
                if event.message_finished and not self._message:
                    self._size = 0
                    self._talk.hear(bytes(event.data))
                else:
                    self._message += event.data
                    if event.message_finished:
                        audio, self._message, self._size = self._message, bytearray(), 0
                        self._talk.hear(audio)
            elif isinstance(event, Ping):
                self._frames_out(event.response())
            elif isinstance(event, CloseConnection):
                self._closed_by(event)
        except Exception as error:
            self._talk.fail(error)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > (most := self._limits.message_bytes_max):
            raise errors.TooLarge(f"a message of more than {most} bytes: send less at a time")

    def _closed_by(self, event: CloseConnection) -> None:
        """The client closes, or breaks the protocol: wsproto says both so."""
        self._talk.gone()
        if self._frames.state is ConnectionState.OPEN:
            self._frames_out(CloseConnection(code=event.code, reason=event.reason))
            self._broken = True
            self._linger()
        else:
            self._frames_out(event.response())
            self._close()

    # The conversation's side.

    def tell(self, told: Told) -> None:
        """Send a message."""
        self._frames_out(TextMessage(data=msgspec.json.encode(told).decode()))

    async def room(self) -> None:
        """Return when the socket's buffer has room."""
        await self._room.wait()

    def hold(self) -> None:
        """Read no more: TCP holds the client."""
        self._held = True
        self._read()

    def go_on(self) -> None:
        """Read again."""
        self._held = False
        self._read()

    def hang_up(self, last: End | Move | Trouble | None, error: Exception | None) -> None:
        """Close with the code that says why. The client's own close is waited for, `linger_s`."""
        if self._closing:
            return
        self._frames_out(CloseConnection(*_why(last, error)))
        self._linger()

    def _frames_out(self, event: Event) -> None:
        if self._closing or self._transport.is_closing():
            return
        try:
            data = self._frames.send(event)
        except LocalProtocolError:
            return  # the client has closed meanwhile
        self._transport.write(data)
        if not self._room.is_set():
            self._server.left_unread(self, self._transport.get_write_buffer_size())

    def _read(self) -> None:
        wanted = not (self._held or self._busy)
        if wanted != self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _linger(self) -> None:
        """Read on for a while and take nothing: what a client still sends would take the last words away by a reset."""
        self._closing = True
        self._due = self._server.monotonic() + self._server.limits.linger_s
        self._held = False
        self._read()

    def _close(self) -> None:
        self._closing = True
        self._due = self._server.monotonic() + self._server.limits.linger_s
        self._transport.close()

    # The server's side.

    def sweep(self, now: float) -> None:
        """Enforce the deadlines of this client, and ask whether its key still opens this. Called every second."""
        if self._closing:
            if now >= self._due:
                self._transport.abort()
            return
        if not self._room.is_set():
            if now >= self._due:
                self._server.timed_out.add()
                self._transport.abort()
            return
        limits = self._limits
        try:
            self._door.listens(self._door.principal(self._key, self._peer))
        except errors.Error as error:
            self._talk.fail(error)
            return
        if not self._talk.started:
            if now - self._began > limits.start_s:
                self._server.timed_out.add()
                self._talk.fail(answer.TimedOut(f"start did not come within {limits.start_s:g} s: say it first"))
        elif self._reading and now - self._heard > limits.ping_s:
            if not self._pinged:
                self._pinged = True
                self._frames_out(Ping())
            elif now - self._heard > limits.ping_s + limits.pong_s:
                self._server.timed_out.add()
                self._transport.abort()

    def idle_s(self, now: float) -> float:
        """0: whoever is in a conversation makes way for nobody; who has not begun it does."""
        return 0.0 if self._talk.started else now - self._began

    @property
    def fresh(self) -> bool:
        """No answer of ours is waited for that could tell it of a stop."""
        return False

    def drain(self) -> None:
        """Have the client go on elsewhere."""
        self._talk.move("this server stops: connect again, with the token")

    def abort(self) -> None:
        """Cut it off."""
        self._transport.abort()


def _read(text: str) -> Said:
    try:
        said: Said = _said.decode(text)
    except msgspec.MsgspecError as error:
        raise errors.BadInput(f"not a message: {error}; there are start, ack, edit and finish, as JSON") from None
    return said


def _why(last: End | Move | Trouble | None, error: Exception | None) -> tuple[int, str]:
    """The code of a close and its reason."""
    if isinstance(last, Trouble):
        if error is None:
            code = _CODES.get(last.code, _REFUSED)
        elif isinstance(error, errors.Busy):
            code = _LATER
        elif isinstance(error, errors.TooLarge):
            code = _TOO_BIG
        else:
            code = _BUG if not isinstance(error, errors.Error) or error.status >= 500 else _REFUSED
        return code, last.error
    if isinstance(last, Move):
        return _RESTART, last.why
    return (_NORMAL, "") if isinstance(last, End) else (_AWAY, "the session ended")
