"""TLS in front of a port: accepted here, shaken hands with, and only then a connection like any other.

Rules of the room:
- Each handshake takes the context that is in force when it begins: a new certificate needs no new listener, so nothing
  that waits in the backlog is lost, and nothing that is open is dropped.
- A handshake counts as a connection from its first byte: it has a deadline, and makes way when there is no room.
- What a client does not read stays on our side of TLS, where it is counted: the loop's TLS would take any amount of it
  and say nothing.
- Who is over the bound is hung up on without a word: to say one would cost the handshake that there is no room for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from millstream.front.port import Port

logger = logging.getLogger(__name__)

ACCEPTED_MAX = 64  # in one turn of the loop: others have work to do
BACKLOG = 1024
PIECE_BYTES = 1 << 16  # given to TLS at once
TRY_AGAIN_S = 1.0  # without a file descriptor to accept with
SAID_S = 10.0  # between two lines of the log about handshakes that failed

Context = Callable[[], ssl.SSLContext]
"""The context that is in force now."""


async def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for every address of `host`, all of one port; 0 takes a free one. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            made.append(socket.create_server((address[0], port, *address[2:]), family=family, backlog=BACKLOG))
            port = made[0].getsockname()[1]
    except OSError:
        for one in made:
            one.close()
        raise
    return made


class Listener:
    """One listening socket of a port that speaks TLS. `sockets`: that one, as a Server of asyncio has them."""

    def __init__(self, port: Port, bound: socket.socket, context: Context, head_s: float, linger_s: float) -> None:
        self.port, self.context, self.head_s, self.linger_s = port, context, head_s, linger_s
        self.sockets = (bound,)
        self._closed = False
        self._said = float("-inf")
        bound.setblocking(False)
        bound.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(bound, self._accept)

    def close(self) -> None:
        """Accept nothing more. Harmless when repeated."""
        if self._closed:
            return
        self._accept()  # a socket that closes resets whatever waits in it
        self._closed = True
        asyncio.get_running_loop().remove_reader(self.sockets[0])
        self.sockets[0].close()

    def failed(self, peer: str, error: OSError) -> None:
        """Count a handshake that came to nothing, and say why, now and then: anybody can make them fail."""
        self.port.unshaken.add()
        now = self.port.monotonic()
        if now - self._said >= SAID_S:
            self._said = now
            why = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
            logger.warning("no TLS with %s: %s", peer, str(why or type(error).__name__).replace("_", " ").lower())

    def _accept(self) -> None:
        (listening,) = self.sockets
        for _ in range(ACCEPTED_MAX):
            try:
                made, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                loop = asyncio.get_running_loop()
                logger.error("cannot accept: %s; again in %g s", error.strerror, TRY_AGAIN_S)
                loop.remove_reader(listening)
                loop.call_later(TRY_AGAIN_S, self._go_on)
                return
            made.setblocking(False)
            with contextlib.suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Handshake(self, made, str(address[0]))

    def _go_on(self) -> None:
        if not self._closed:
            asyncio.get_running_loop().add_reader(self.sockets[0], self._accept)


class Handshake(asyncio.Protocol):
    """A connection until it is one: then the port's own takes its place."""

    def __init__(self, listener: Listener, made: socket.socket, peer: str) -> None:
        self._listener, self._peer = listener, peer
        self._started = listener.port.monotonic()
        self._shaken = False
        if not listener.port.opened(self):
            made.close()
            return
        self._task = asyncio.get_running_loop().create_task(self._shake(made))

    async def _shake(self, made: socket.socket) -> None:
        listener = self._listener
        try:
            # The sweep cuts off who is slow; the loop's own bound stands behind it.
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self,
                made,
                ssl=listener.context(),
                ssl_handshake_timeout=2 * listener.head_s,
                ssl_shutdown_timeout=listener.linger_s,
            )
        except OSError as error:
            listener.failed(self._peer, error)
        finally:
            if not self._shaken:
                listener.port.closed(self)
                made.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The hands are shaken."""
        self._shaken = True
        port = self._listener.port
        port.closed(self)
        connection = port.connect()
        paced = Paced(cast(asyncio.Transport, transport), connection)
        cast(asyncio.Transport, transport).set_protocol(paced)
        connection.connection_made(paced)

    def sweep(self, now: float) -> None:
        """Cut off who has begun a handshake and does not go on with it."""
        if now - self._started > self._listener.head_s:
            self._listener.port.timed_out.add()
            self.abort()

    def idle_s(self, now: float) -> float:
        """Nobody has asked anything yet: it makes way for those who did."""
        return now - self._started

    @property
    def fresh(self) -> bool:
        """It was made just now."""
        return True

    def drain(self) -> None:
        """Nothing was asked, so nothing is owed."""
        self.abort()

    def abort(self) -> None:
        """Hang up."""
        self._task.cancel()


class Paced(asyncio.Transport, asyncio.Protocol):
    """Between a connection and its TLS: the connection's transport, which gives TLS no more than the socket takes."""

    def __init__(self, transport: asyncio.Transport, connection: asyncio.Protocol) -> None:
        super().__init__()
        self._transport, self._connection = transport, connection
        self._unsent: deque[memoryview] = deque()
        self._size = 0
        self._full = self._told = self._closing = False  # TLS takes nothing; the connection knows; it has said close
        self.set_write_buffer_limits(PIECE_BYTES)
        transport.set_write_buffer_limits(high=PIECE_BYTES)
        # What comes in, and what is only handed on.
        self.data_received = connection.data_received  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another connection in place of the one that was made."""
        self._connection = connection = cast(asyncio.Protocol, protocol)
        self.data_received = connection.data_received  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self._transport.set_protocol(self)  # which may keep the methods that it saw first

    def connection_lost(self, exc: Exception | None) -> None:
        """What is unsent nobody gets."""
        self._unsent.clear()
        self._size = 0
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """The socket takes nothing."""
        self._full = True

    def resume_writing(self) -> None:
        """It takes more."""
        self._full = False
        self._flush()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As a transport's."""
        self._high = PIECE_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has not taken."""
        return self._size + self._transport.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it, in its order."""
        if not (self._full or self._unsent) and len(data) <= PIECE_BYTES:
            self._transport.write(data)
            return
        self._unsent.append(memoryview(data))
        self._size += len(data)
        self._flush()

    def can_write_eof(self) -> bool:
        """TLS cannot."""
        return False

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Close once all is sent."""
        self._closing = True
        if not self._unsent:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        self._transport.abort()

    def _flush(self) -> None:
        unsent = self._unsent
        while unsent and not self._full:
            piece = unsent[0]
            if len(piece) > PIECE_BYTES:
                unsent[0] = piece[PIECE_BYTES:]
                piece = piece[:PIECE_BYTES]
            else:
                unsent.popleft()
            self._size -= len(piece)
            self._transport.write(piece)
        if self._closing and not unsent:
            self._transport.close()
        if not self._told and self._size > self._high:
            self._told = True
            self._connection.pause_writing()
        elif self._told and self._size <= self._low:
            self._told = False
            self._connection.resume_writing()
