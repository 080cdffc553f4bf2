"""A new client of live speech goes to the process that has the fewest: its connection is handed there, before it is
answered.

The kernel deals connections out to processes by chance, which is good enough for requests of a millisecond; a session
lasts an hour. So the handshake that comes to a process with more sessions than another is sent there with its socket
(SCM_RIGHTS), and that process answers as if it had accepted the connection itself.

Rules of the room:
- How many sessions each process has stands in a file that all map, a number each; each writes its own.
- A connection is handed on once at most. Whatever goes wrong, it stays where it is: a client never notices.
- Over TLS it stays too: what was agreed upon in the handshake is in this process's memory.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millstream.front.exchange import Exchange
    from millstream.front.http import Http

logger = logging.getLogger("millstream")

REQUEST_BYTES_MAX = 1 << 16
"""A handshake with more behind it stays: a datagram has bounds."""
AWAY = 0xFFFFFFFF
"""The number of a process that takes nobody."""
_SLOT = struct.Struct("<I")


def choose(loads: Sequence[int], here: int) -> int:
    """Who takes a new session: the process with the fewest, `here` where none has fewer."""
    least = min(range(len(loads)), key=loads.__getitem__)
    return least if loads[least] < loads[here] else here


class Placing:
    """Process `number` of the `of` that share `folder`. OSError: the folder takes no socket."""

    def __init__(self, folder: Path, number: int, of: int) -> None:
        self._folder, self._number, self._of = folder, number, of
        self._count = 0
        self._map = _mapped(folder / "speech.loads", _SLOT.size * of)
        self._path = _socket_of(folder, number)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._path))
        self._path.chmod(0o600)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, server: Http) -> None:
        """Take what others hand over, and count from now on."""
        self._server = server
        asyncio.get_running_loop().add_reader(self._socket, self._taken)
        self._say(self._number, self._count)

    def stop(self) -> None:
        """Take nothing more. Harmless when repeated."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._say(self._number, AWAY)

    def count(self, more: int) -> None:
        """A session has begun here (1), or ended (-1)."""
        self._count += more
        if self._socket.fileno() >= 0:
            self._say(self._number, self._count)

    def loads(self) -> list[int]:
        """Sessions by process."""
        return [_SLOT.unpack_from(self._map, _SLOT.size * n)[0] for n in range(self._of)]

    def give(self, exchange: Exchange, connection: socket.socket, early: bytes) -> bool:
        """Hand a connection to the process that has the fewest sessions; False: it stays, as nobody has fewer, or it
        cannot be handed on."""
        loads, request = self.loads(), _request(exchange) + early
        while (to := choose(loads, self._number)) != self._number and len(request) <= REQUEST_BYTES_MAX:
            try:
                self._send(to, request, connection.fileno())
            except OSError as error:
                logger.debug("process %d takes no session: %s", to, error)
                loads[to] = AWAY
                if not isinstance(error, BlockingIOError):  # it is gone; the next one says its own number
                    self._say(to, AWAY)
            else:
                self._say(to, loads[to] + 1)  # until it says so itself
                return True
        return False

    def _send(self, to: int, request: bytes, fd: int) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            out.sendmsg([request], rights, 0, str(_socket_of(self._folder, to)))

    def _say(self, number: int, count: int) -> None:
        _SLOT.pack_into(self._map, _SLOT.size * number, count)

    def _taken(self) -> None:
        """Connections of others: each is one of this process's from now on."""
        with contextlib.suppress(BlockingIOError):
            while True:
                request, rights, *_ = self._socket.recvmsg(REQUEST_BYTES_MAX, socket.CMSG_SPACE(4 * 8))
                for fd in _received(rights):
                    made = socket.socket(fileno=fd)
                    made.setblocking(False)
                    task = asyncio.ensure_future(self._connect(made, request))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _connect(self, made: socket.socket, request: bytes) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: self._server.connect(request), made)
        except OSError:
            made.close()


def _socket_of(folder: Path, number: int) -> Path:
    return folder / f"serve-{number}" / "speech.sock"


def _mapped(path: Path, size: int) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _received(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _request(exchange: Exchange) -> bytes:
    """The handshake, as it came: what of it means something here."""
    said = {b"Connection": b"Upgrade", **(exchange.upgrade or {})}
    said[b"Authorization"], said[b"Origin"] = exchange.authorization or b"", exchange.origin or b""
    said[b"X-Request-Id"], said[b"Traceparent"] = exchange.request_id or b"", exchange.traceparent or b""
    lines = [b"GET %b HTTP/1.1" % exchange.url, *(b"%b: %b" % one for one in said.items() if one[1])]
    return b"\r\n".join([*lines, b"", b""])
