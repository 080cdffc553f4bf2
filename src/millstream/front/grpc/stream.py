"""One call on its HTTP/2 stream: the transport's `Call`.

Rules of the room:
- The usual call is one message each way in one frame each: it is begun, answered and forgotten without a queue. All
  else (parts of messages, packed ones, a service that holds, a peer whose windows are shut) goes through two buffers.
- What most calls never change is an attribute of the class: a call costs what differs.
- A stream that is over has no connection: everything that is still said to it goes nowhere.
- Whatever a service raises ends its call, never its connection.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING

from millstream import errors
from millstream.front.grpc import frames, headers
from millstream.front.grpc.frames import Code
from millstream.front.grpc.packing import Unpacking

if TYPE_CHECKING:
    from millstream.front.grpc.call import Receiver, Service
    from millstream.front.grpc.connection import Connection
    from millstream.front.grpc.headers import Head
    from millstream.front.record import Record

STREAM_WINDOW = 1 << 20  # what a client may send on one stream before we have taken it
HALF_WINDOW = STREAM_WINDOW // 2
SEND_FRAME_BYTES = 1 << 18  # frames of a large answer: others come between them
PROGRESS_BYTES = 1 << 16  # what a reader must take within `unread_s` to be one

# A whole first message: HEADERS, then DATA with the message's prefix. And the trailers of a call that went well.
_BEGIN = Struct(f">5sI{len(headers.BEGIN)}sIBIBI")
_BEGIN_HEAD = frames.frame(frames.HEADERS, frames.END_HEADERS, 0, headers.BEGIN)[:5]
_FINE = Struct(f">5sI{len(headers.FINE)}s")
_FINE_HEAD = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0, headers.FINE)[:5]
_begin, _fine, _message, _prefix = _BEGIN.pack, _FINE.pack, frames.MESSAGE_HEAD.pack, frames.PREFIX.unpack_from
_BLOCK, _FINE_BLOCK = headers.BEGIN, headers.FINE


class Stream:
    """A `Call`. `receiver` is None until the service has opened it, and when the call is over."""

    connection: Connection | None
    receiver: Receiver | None = None
    extra = 0  # the peer's window beyond the first window of all its streams
    left = STREAM_WINDOW  # what the client may still send
    client_ended = False
    timed = False  # there is a deadline
    record: Record | None = None  # where somebody observes
    streams = False  # the service takes many messages
    heard = False  # so much came that a window was opened again
    held = False
    buffer: bytearray | None = None  # received and not yet given to the service
    since = 0.0  # the first byte of the message in `buffer`
    unsent: deque[memoryview] | None = None  # messages, with their prefixes, that no window lets out
    stuck = 0.0  # since when `unsent` waits without progress
    _begun = _told_end = _delivering = _will_deliver = False
    _unpacking: Unpacking | None = None
    _progress = 0
    _ending: tuple[bytes, str] | None = None  # (trailers, code), to follow `unsent`

    def __init__(self, connection: Connection, sid: int, head: Head, started: float) -> None:
        self.connection = connection
        self.sid = sid
        self.path, self.metadata, self.timeout_s, self.encoding = head[:4]
        self.peer = connection.peer
        self.started = started

    # The service's side.

    def send(self, message: bytes, metadata: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """As `Call` says."""
        connection = self.connection
        if connection is None or self._ending is not None:
            return
        length = len(message)
        size = length + 5
        if (
            self.unsent is None
            and size <= connection.frame_max
            and size <= connection.window
            and size <= connection.first_window + self.extra
        ):
            connection.window -= size
            self.extra -= size
            connection.credit += 2
            if self._begun:
                connection.out += (_message(size << 8, 0, self.sid, 0, length), message)
            elif not metadata:
                self._begun = True
                begin = _begin(_BEGIN_HEAD, self.sid, _BLOCK, size << 8, 0, self.sid, 0, length)
                connection.out += (begin, message)
            else:
                self._begin(connection, metadata)
                connection.out += (_message(size << 8, 0, self.sid, 0, length), message)
            if not connection.flushing:
                connection.flush_soon()
            return
        if not self._begun:
            self._begin(connection, metadata)
        self._queue(connection, message)

    def finish(self, error: Exception | None = None) -> None:
        """As `Call` says."""
        connection = self.connection
        if connection is None or self._ending is not None:
            return
        if error is None and self.unsent is None and self._begun:
            connection.out.append(_fine(_FINE_HEAD, self.sid, _FINE_BLOCK))
            self._over(connection, "OK")
            return
        code, block = "OK", headers.FINE
        if error is not None:
            code, sentence = headers.verdict(error)
            block = headers.trailers(error, code, sentence)
        if not self._begun:
            block = headers.alone(block)
        if self.unsent is None:
            self._end(connection, block, code)
        else:
            self._ending = (block, code)
            self.receiver = None

    @property
    def waiting(self) -> bool:
        """As `Call` says."""
        return self.unsent is not None

    def hold(self) -> None:
        """As `Call` says."""
        self.held = True

    def go_on(self) -> None:
        """As `Call` says."""
        self.held = False
        self.deliver()

    # The connection's side: what comes in.

    def open(self, service: Service) -> None:
        """Let the service begin the call."""
        try:
            receiver = service.open(self)
        except Exception as error:
            self.finish(error)
            return
        if self.connection is not None and self._ending is None:
            self.receiver = receiver
            if self.client_ended:
                self.end()

    def take(self, piece: memoryview | bytes) -> None:
        """Bytes of messages that are not one whole plain message; and their end, when `client_ended` is set."""
        connection = self.connection
        assert connection is not None
        size = len(piece)
        self.left -= size
        if self.left < 0:
            self.abort(Code.FLOW_CONTROL_ERROR)
            return
        if self.receiver is None:
            return  # answered, and nobody listens any more
        if size:
            if self.buffer is None:
                self.buffer = bytearray()
                self.since = connection.now
                connection.partial[self.sid] = self
            self.buffer += piece
            server = connection.server
            server.held_bytes += size
            if server.held_bytes > server.limits.held_bytes_max:
                self.give_up(_too_much(server.limits.held_bytes_max))
                return
        self.deliver()

    def deliver(self) -> None:
        """Give the service the whole messages there are, while it takes them; then the end, when that came."""
        if self._delivering:
            return  # the service goes on from within a message
        self._delivering = True
        while (connection := self.connection) is not None and not self.held and not connection.full:
            try:
                message = self._next(connection)
            except errors.Error as error:
                self.give_up(error)
                break
            if message is None:
                break
            if (receiver := self.receiver) is not None:
                try:
                    receiver.message(message)
                except Exception as error:
                    self.finish(error)
        self._delivering = False
        if (connection := self.connection) is None:
            return
        if self._unpacking is not None:
            if not self._will_deliver:
                self._will_deliver = True
                connection.server.call_soon(self._deliver_more)
        elif not self.client_ended:
            if self.left < HALF_WINDOW and not self.held and not connection.full:
                self.open_window(connection)
        elif not self._told_end and (self.buffer is None or not (self.held or connection.full)):
            self.end()

    def whole(self, message: bytes, last: int, size: int) -> None:
        """A whole plain message that came in one frame of `size` bytes, with (`last`) or without the client's end."""
        receiver = self.receiver
        if last:
            self.client_ended = True
        else:
            self.left -= size
        if receiver is None:
            return
        try:
            receiver.message(message)
            if last:
                if self.receiver is not None:
                    self._told_end = True
                    receiver.ended()
            elif self.left < HALF_WINDOW:
                self.deliver()
        except Exception as error:
            self.finish(error)

    def end(self) -> None:
        """The client has ended, and all it sent is with the service: say so."""
        self._told_end = True
        if self.buffer is not None:
            self.give_up(errors.BadInput("the stream ended within a message: send its whole length"))
        elif (receiver := self.receiver) is not None:
            try:
                receiver.ended()
            except Exception as error:
                self.finish(error)

    def open_window(self, connection: Connection) -> None:
        """Let the client send on."""
        self.heard = True
        connection.out.append(frames.window(self.sid, STREAM_WINDOW - self.left))
        connection.flush_soon()
        self.left = STREAM_WINDOW

    @property
    def silent(self) -> bool:
        """Whether the client has sent nothing of a message, and may still do so."""
        return self.left == STREAM_WINDOW and not (self.heard or self.client_ended)

    def _next(self, connection: Connection) -> bytes | None:
        """The next whole message of the buffer, unpacked; None while there is none. TooLarge, BadInput, Busy."""
        if self._unpacking is not None:
            return self._unpack(connection, self._unpacking)
        buffer = self.buffer
        if buffer is None or len(buffer) < 5:
            return None
        packed, size = _prefix(buffer)
        most = connection.server.limits.message_bytes_max
        if size > most:
            raise errors.TooLarge(f"a message of {size} bytes, at most {most}: split it")
        if len(buffer) < 5 + size:
            return None
        with memoryview(buffer) as view:
            message = bytes(view[5 : 5 + size])
        connection.server.held_bytes -= 5 + size
        del buffer[: 5 + size]
        self.since = connection.now
        if packed == 0:
            self._forget_empty(connection)
            return message
        self._unpacking = Unpacking(message, packed, self.encoding, most)
        return self._unpack(connection, self._unpacking)

    def _unpack(self, connection: Connection, unpacking: Unpacking) -> bytes | None:
        server, before = connection.server, unpacking.size
        try:
            message = unpacking.step()
        finally:
            server.held_bytes += unpacking.size - before
        if message is not None:
            server.held_bytes -= unpacking.size
            self._unpacking = None
            self._forget_empty(connection)
        elif server.held_bytes > server.limits.held_bytes_max:
            raise _too_much(server.limits.held_bytes_max)
        return message

    def _forget_empty(self, connection: Connection) -> None:
        """Without a buffer the next message takes the short way: only when none is still being unpacked."""
        if not self.buffer:
            self.buffer = None
            connection.partial.pop(self.sid, None)

    def _deliver_more(self) -> None:
        self._will_deliver = False
        self.deliver()

    # The connection's side: what goes out.

    def pump(self) -> None:
        """Send of `unsent` what the windows let out; the trailers when that was all."""
        connection, unsent = self.connection, self.unsent
        if connection is None or unsent is None:
            return
        room = min(connection.window, connection.first_window + self.extra)
        most = min(connection.frame_max, SEND_FRAME_BYTES)
        sent = 0
        while unsent and sent < room and not connection.paused:
            piece = unsent[0]
            size = min(len(piece), room - sent, most)
            connection.out += (frames.HEAD.pack(size << 8, 0, self.sid), piece[:size])
            sent += size
            if size == len(piece):
                unsent.popleft()
            else:
                unsent[0] = piece[size:]
            connection.gather(size)
        if not sent:
            return
        self.extra -= sent
        connection.window -= sent
        connection.unsent_by(-sent)
        self._progress += sent
        if self._progress >= PROGRESS_BYTES:
            self._progress, self.stuck = 0, connection.server.monotonic()
        if not unsent:
            self.unsent = None
            del connection.blocked[self.sid]
            if self._ending is not None:
                self._end(connection, *self._ending)
        connection.flush_soon()

    def _begin(self, connection: Connection, metadata: tuple[tuple[bytes, bytes], ...]) -> None:
        self._begun = True
        connection.out.append(frames.headers(self.sid, headers.begin(metadata), 0, connection.frame_max))

    def _queue(self, connection: Connection, message: bytes) -> None:
        """Keep a message until the windows open."""
        size = len(message) + 5
        if connection.server.held_bytes + size > connection.server.limits.held_bytes_max:
            self.give_up(errors.Busy("too many answers wait for their readers: read faster, or try again"))
            return
        if self.unsent is None:
            self.unsent = deque()
            self._progress, self.stuck = 0, connection.server.monotonic()
            connection.blocked[self.sid] = self
        prefix = frames.PREFIX.pack(0, len(message))
        if size <= connection.frame_max:
            self.unsent.append(memoryview(prefix + message))
        else:
            self.unsent += (memoryview(prefix), memoryview(message))
        connection.unsent_by(size)
        self.pump()

    # Its end.

    def expire(self) -> None:
        """The client's time is over: what waits to be sent would come too late."""
        self.give_up(errors.Late(f"no answer within the {self.timeout_s:.3g} s of grpc-timeout: send it a longer one"))

    def give_up(self, error: errors.Error) -> None:
        """End the call from the transport's side: the client gets the error, the service hears `cancelled`."""
        connection, receiver = self.connection, self.receiver
        if connection is None:
            return
        self._forget_unsent(connection)
        code, sentence = headers.verdict(error)
        block = headers.trailers(error, code, sentence)
        self._end(connection, block if self._begun else headers.alone(block), code)
        if receiver is not None:
            connection.server.tell_cancelled(receiver)

    def abort(self, code: Code | None) -> None:
        """End the call without an answer: with a reset, or (None) where the client has done that itself."""
        connection, receiver = self.connection, self.receiver
        if connection is None:
            return
        self._forget_unsent(connection)
        self.client_ended = True  # no second reset
        if code is not None:
            connection.out.append(frames.reset(self.sid, code))
        self._over(connection, "CANCELLED")
        if receiver is not None:
            connection.server.tell_cancelled(receiver)

    def refuse(self, error: errors.Error, status: int) -> None:
        """Answer a call that speaks no gRPC, or that no service is asked about."""
        connection = self.connection
        assert connection is not None
        code, sentence = headers.verdict(error)
        self._end(connection, headers.alone(headers.trailers(error, code, sentence), status), code)

    def _end(self, connection: Connection, block: bytes, code: str) -> None:
        connection.out.append(frames.headers(self.sid, block, frames.END_STREAM, connection.frame_max))
        self._over(connection, code)

    def _over(self, connection: Connection, code: str) -> None:
        """Count the call and leave the connection. A client that is still sending is told to stop."""
        if not self.client_ended:
            connection.out.append(frames.reset(self.sid, Code.NO_ERROR))
        if self.buffer is not None:
            connection.server.held_bytes -= len(self.buffer)
            connection.partial.pop(self.sid, None)
            self.buffer = None
        if self._unpacking is not None:
            connection.server.held_bytes -= self._unpacking.size
            self._unpacking = None
        self.connection = self.receiver = None
        connection.over(self, code)

    def _forget_unsent(self, connection: Connection) -> None:
        if self.unsent is not None:
            connection.unsent_by(-sum(map(len, self.unsent)))
            self.unsent = None
            del connection.blocked[self.sid]


def _too_much(most: int) -> errors.Busy:
    return errors.Busy(f"messages of {most} bytes are being read already: try again")
