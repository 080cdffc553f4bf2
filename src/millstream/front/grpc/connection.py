"""One HTTP/2 connection: bytes <-> frames <-> calls. RFC 9113, and what gRPC makes of it.

Rules of the room:
- A state machine without tasks or timers: the server sweeps all deadlines once a second.
- What is to be sent gathers in `out`: what one read, or one turn of the loop, gave rise to is one write.
- Everything a client can make us hold or do for nothing is bounded in `GrpcLimits`.
- A client that breaks the protocol gets a GOAWAY with a sentence; nothing escapes to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, cast

from millstream import errors
from millstream.front.grpc import frames, headers
from millstream.front.grpc.frames import Code, Fault
from millstream.front.grpc.hpack import Broken
from millstream.front.grpc.stream import PROGRESS_BYTES, STREAM_WINDOW, Stream

if TYPE_CHECKING:
    from millstream.front.grpc.server import Grpc

logger = logging.getLogger(__name__)

CONNECTION_WINDOW = 16 << 20
HALF_WINDOW = CONNECTION_WINDOW // 2
WRITE_BYTES = 1 << 18  # gathered output beyond this is written at once
DRAIN_ACK_S = 1.0  # for a client to answer that it has seen our GOAWAY
NEVER = math.inf
_HEAD_MAX = frames.FRAME_BYTES << 8 | 0xFF
_KEEPALIVE, _DRAIN = b"are you?", b"draining"
_SENTENCE = b"This port speaks gRPC: send HTTP/2 with prior knowledge, or use the port of HTTP.\n"
_NOT_HTTP2 = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
) % (len(_SENTENCE), _SENTENCE)
_FULL = frames.settings({}) + frames.goaway(0, Code.NO_ERROR, "too many connections: try again")
_head, _prefix, _word = frames.HEAD.unpack_from, frames.PREFIX.unpack_from, frames.WORD.unpack_from


class Connection(asyncio.Protocol):
    """One client and its open calls, `streams`. `blocked`: those whose answers no window lets out; `partial`: those
    with input that the service has not got. `window`: the peer's; `first_window`: that of its streams at first."""

    transport: asyncio.Transport

    def __init__(self, server: Grpc) -> None:
        self.server = server
        self.peer = ""
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}
        self.partial: dict[int, Stream] = {}
        self.out: list[bytes | memoryview] = []
        self.flushing = False  # a flush will come: nobody else has to ask for it
        self.paused = False  # the socket's buffer is full
        self.full = False  # too much is unsent: the services get no more messages
        self.window = self.first_window = frames.WINDOW_FIRST
        self.frame_max = frames.FRAME_BYTES
        self.now = server.monotonic()  # of the last read
        self.credit = server.limits.idle_frames_max  # frames that ask for nothing
        self._resets = server.limits.resets_max
        self._unsent = self._gathered = self._progress = 0
        self._left = CONNECTION_WINDOW
        self._rest = b""
        self._greeted = self._closing = False
        self._only: int | None = frames.SETTINGS  # the kind that the next frame must have
        self._block = bytearray()  # a header block that goes on in CONTINUATION
        self._block_of = (0, 0)  # its stream and flags
        self._heads = headers.Heads(server.limits.header_bytes_max)
        self._last = 0  # the highest stream seen
        self._last_told = frames.STREAM_MAX  # streams beyond it were told to go elsewhere
        self._waits_since = self.now  # for the rest of a frame, of a header block, of the greeting; or NEVER
        self._quiet_since = self._moved = self.now  # without a call; sending without progress
        self._paused_since = self._pinged = self._due = self._drained_since = NEVER
        self._draining = False

    # The socket's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        self.transport = cast(asyncio.Transport, transport)
        if not self.server.opened(self):
            self._closing = True
            self.transport.write(_FULL)
            self.transport.close()
            return
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.transport.set_write_buffer_limits(high=self.server.limits.buffer_bytes_max)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the services that nobody hears them."""
        self._shut()
        self.out.clear()
        self.server.closed(self)

    def eof_received(self) -> bool:
        """False: a client that has sent its last byte is not waited for."""
        return False

    def pause_writing(self) -> None:
        """The client does not read: take nothing from it, and give it `unread_s`."""
        self.paused = True
        self._paused_since = self.server.monotonic()
        if not self._closing:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again: go on."""
        self.paused = False
        if not self._closing:
            self.transport.resume_reading()
            if self._waits_since != NEVER:
                self._waits_since = self.server.monotonic()
            self._pump()

    def data_received(self, data: bytes) -> None:
        """Take the whole frames there are; what they gave rise to leaves as one write."""
        if self._closing:
            return
        self.now = self.server.monotonic()
        self._pinged = NEVER
        if self._rest:
            data = self._rest + data
        self.flushing = True
        try:
            at = self._frames(data, 0) if self._greeted else self._greet(data)
            self._rest = data[at:]
            if not self._rest and self._only is None:
                self._waits_since = NEVER
            elif self._waits_since == NEVER or (at and self._only is None):
                self._waits_since = self.now
        except Fault as fault:
            self._fail(fault.code, str(fault))
        except Exception:
            logger.exception("a frame that should have been understood")
            self._fail(Code.INTERNAL_ERROR, headers.INTERNAL)
        self.flush()

    def flush(self) -> None:
        """Write what has gathered; a connection that has answered its last call ends with it."""
        self.flushing = False
        if self._closing:
            return
        self._write()
        if self._draining and not self.streams and self._last_told != frames.STREAM_MAX:
            self._closing = True
            self._due = self.server.monotonic() + self.server.limits.unread_s
            self.transport.close()

    def flush_soon(self) -> None:
        """Let what has gathered leave within this turn of the loop."""
        if not self.flushing:
            self.flushing = True
            self.server.call_soon(self.flush)

    def gather(self, size: int) -> None:
        """Count output of a large answer, and write it before it is too much."""
        self.credit += 2
        self._gathered += size
        if self._gathered >= WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        self._gathered = 0
        if out := self.out:
            data = b"".join(out)
            out.clear()
            self.transport.write(data)

    # Frames, coming in.

    def _greet(self, data: bytes) -> int:
        """The client's preface, then what follows it. Who speaks something else is told so in HTTP/1.1."""
        size = len(frames.PREFACE)
        if not frames.PREFACE.startswith(data[:size]):
            self._last_words(_NOT_HTTP2)
            return len(data)
        if len(data) < size:
            return 0
        self._greeted = True
        limits = self.server.limits
        ours = {
            frames.STREAMS_MAX: limits.streams_max,
            frames.INITIAL_WINDOW: STREAM_WINDOW,
            frames.HEADERS_SIZE: limits.header_bytes_max,
        }
        self.out += (frames.settings(ours), frames.window(0, CONNECTION_WINDOW - frames.WINDOW_FIRST))
        return self._frames(data, size)

    def _frames(self, data: bytes, at: int) -> int:
        """Take every whole frame from `at` on; returns where the first one begins that is not whole. Fault."""
        streams = self.streams
        end = len(data)
        while end - at >= 9:
            head, flags, sid = _head(data, at)
            if head > _HEAD_MAX:
                raise Fault(Code.FRAME_SIZE_ERROR, f"a frame of {head >> 8} bytes, at most {frames.FRAME_BYTES}")
            start = at + 9
            at = start + (head >> 8)
            if at > end:
                return start - 9
            kind = head & 0xFF
            if self._only is not None and kind != self._only:
                raise Fault(Code.PROTOCOL_ERROR, f"a frame of type {kind} where one of type {self._only} must come")
            if kind == 0:
                # The usual one: a whole plain message, for a service that takes it.
                length = at - start
                stream = streams.get(sid)
                if stream is not None and length >= 5 and flags <= 1 and stream.buffer is None and not self.full:
                    packed, size = _prefix(data, start)
                    if packed == 0 and size == length - 5 and not stream.held and not stream.client_ended:
                        self._left -= length
                        if self._left < HALF_WINDOW:
                            self._open_window()
                        stream.whole(data[start + 5 : at], flags, length)
                        continue
                self._data(data, start, at, flags, sid)
            elif head == 0x408:  # WINDOW_UPDATE, as long as it must be
                self._more_window(sid, _word(data, start)[0] & frames.WINDOW_MAX)
            elif kind == 1 and flags & 0xFE == 4:
                self._open(sid, data[start:at], flags)
            else:
                self._other(kind, flags, sid, data[start:at])
        return at

    def _data(self, data: bytes, start: int, stop: int, flags: int, sid: int) -> None:
        """DATA of all kinds."""
        length = stop - start
        self._left -= length
        if self._left < HALF_WINDOW:
            self._open_window()
        stream = self.streams.get(sid)
        if stream is None:
            self._must_be_closed(sid, "DATA")
        if flags & frames.PADDED:
            if not length:
                raise Fault(Code.FRAME_SIZE_ERROR, "a padded DATA frame without a length of its padding")
            if data[start] >= length:
                raise Fault(Code.PROTOCOL_ERROR, "the padding of a DATA frame is longer than the frame")
            stop -= data[start]
            start += 1
        if start == stop and not flags & 1:
            self._charge()
        if stream is None:
            return
        if stream.client_ended:
            stream.abort(Code.STREAM_CLOSED)
            return
        stream.client_ended = bool(flags & 1)
        stream.left -= length - (stop - start)
        stream.take(memoryview(data)[start:stop])

    def _open_window(self) -> None:
        if self._left < 0:
            raise Fault(Code.FLOW_CONTROL_ERROR, f"more than the {CONNECTION_WINDOW} bytes of this connection's window")
        self.out.append(frames.window(0, CONNECTION_WINDOW - self._left))
        self._left = CONNECTION_WINDOW

    def _more_window(self, sid: int, more: int) -> None:
        if sid == 0:
            self.window += more
            if not more:
                raise Fault(Code.PROTOCOL_ERROR, "a WINDOW_UPDATE of 0")
            if self.window > frames.WINDOW_MAX:
                raise Fault(Code.FLOW_CONTROL_ERROR, f"a window of {self.window}, at most {frames.WINDOW_MAX}")
            if self.blocked:
                self._pump()
            return
        stream = self.streams.get(sid)
        if stream is None:
            self._must_be_closed(sid, "WINDOW_UPDATE")
            return
        stream.extra += more
        if not more or stream.extra + self.first_window > frames.WINDOW_MAX:
            stream.abort(Code.FLOW_CONTROL_ERROR if more else Code.PROTOCOL_ERROR)
        elif stream.unsent is not None:
            stream.pump()

    def _other(self, kind: int, flags: int, sid: int, payload: bytes) -> None:
        """Frames of every other kind."""
        if kind == frames.HEADERS:
            self._headers(sid, payload, flags)
        elif kind == frames.CONTINUATION:
            self._continue(sid, payload, flags)
        elif kind == frames.RESET:
            self._must_be(kind, payload, 4, sid, on_stream=True)
            self._resets -= 1
            if self._resets < 0:
                raise Fault(Code.ENHANCE_YOUR_CALM, "too many calls are begun and given up: wait for their answers")
            if (stream := self.streams.get(sid)) is not None:
                stream.abort(None)
            else:
                self._must_be_closed(sid, "RST_STREAM")
        elif kind == frames.SETTINGS:
            self._settings(sid, payload, flags)
        elif kind == frames.PING:
            self._must_be(kind, payload, 8, sid, on_stream=False)
            if not flags & frames.ACK:
                self._charge()
                self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
            elif payload == _DRAIN and self._draining:
                self._tell_last()
        elif kind == frames.WINDOW:
            raise Fault(Code.FRAME_SIZE_ERROR, f"a WINDOW_UPDATE of {len(payload)} bytes: it has 4")
        elif kind == frames.PUSH:
            raise Fault(Code.PROTOCOL_ERROR, "a client pushes nothing")
        else:
            self._charge()  # PRIORITY, GOAWAY and what nobody knows mean nothing here
            if kind == frames.PRIORITY:
                self._must_be(kind, payload, 5, sid, on_stream=True)
            elif kind == frames.GOAWAY and sid:
                raise Fault(Code.PROTOCOL_ERROR, "GOAWAY belongs on stream 0")

    def _settings(self, sid: int, payload: bytes, flags: int) -> None:
        if sid or len(payload) % 6 or (flags & frames.ACK and payload):
            code = Code.PROTOCOL_ERROR if sid else Code.FRAME_SIZE_ERROR
            raise Fault(
                code, f"SETTINGS of {len(payload)} bytes on stream {sid}: pairs of 6 bytes on stream 0, or an empty ACK"
            )
        self._charge()
        if flags & frames.ACK:
            return
        self._only = None
        told = frames.settings_of(payload)
        self.frame_max = told.get(frames.FRAME_SIZE, self.frame_max)
        self.first_window = told.get(frames.INITIAL_WINDOW, self.first_window)
        most = max((stream.extra for stream in self.streams.values()), default=0)
        if self.first_window + most > frames.WINDOW_MAX:
            raise Fault(Code.FLOW_CONTROL_ERROR, f"a stream's window of {self.first_window + most}")
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._pump()

    def _must_be(self, kind: int, payload: bytes, size: int, sid: int, on_stream: bool) -> None:
        if len(payload) != size:
            raise Fault(Code.FRAME_SIZE_ERROR, f"a frame of type {kind} with {len(payload)} bytes: it has {size}")
        if (sid != 0) != on_stream:
            raise Fault(Code.PROTOCOL_ERROR, f"a frame of type {kind} on stream {sid}")

    def _must_be_closed(self, sid: int, what: str) -> None:
        """A stream that is not open may be over, but not still to come."""
        if sid > self._last or not sid & 1:
            raise Fault(Code.PROTOCOL_ERROR, f"{what} on stream {sid}, which was never opened")

    def _charge(self) -> None:
        self.credit -= 1
        if self.credit < 0:
            raise Fault(Code.ENHANCE_YOUR_CALM, "too many frames that ask for nothing: send fewer a second")

    # Header blocks, and the calls they open.

    def _headers(self, sid: int, payload: bytes, flags: int) -> None:
        """HEADERS with padding or priority, or to be continued."""
        start, stop = 0, len(payload)
        if flags & frames.PADDED and stop:
            start, stop = 1, stop - payload[0]
        if flags & frames.PRIORITISED:
            start += 5
        if start > stop:
            raise Fault(Code.PROTOCOL_ERROR, "the padding of a HEADERS frame is longer than the frame")
        if flags & frames.END_HEADERS:
            self._open(sid, payload[start:stop], flags)
            return
        self._only = frames.CONTINUATION
        self._block = bytearray(payload[start:stop])
        self._block_of = (sid, flags)

    def _continue(self, sid: int, payload: bytes, flags: int) -> None:
        if self._only is None or sid != self._block_of[0]:
            raise Fault(Code.PROTOCOL_ERROR, f"CONTINUATION on stream {sid} where there is nothing to continue")
        self._charge()
        self._block += payload
        if len(self._block) > self.server.limits.header_bytes_max:
            raise Fault(Code.ENHANCE_YOUR_CALM, f"headers of more than {self.server.limits.header_bytes_max} bytes")
        if flags & frames.END_HEADERS:
            self._only = None
            block, self._block = bytes(self._block), bytearray()
            self._open(sid, block, self._block_of[1])

    def _open(self, sid: int, block: bytes, flags: int) -> None:
        """A whole header block: a call begins; or, on an open stream, the client's end."""
        try:
            head = self._heads.read(block)
        except Broken as error:
            raise Fault(Code.COMPRESSION_ERROR, f"a header block is no HPACK: {error}") from None
        if sid <= self._last or not sid & 1:
            self._trailers(sid, flags)
            return
        self._last = sid
        if sid > self._last_told:
            return  # the client knows, and asks again elsewhere
        server = self.server
        if head is None or len(self.streams) >= server.limits.streams_max:
            self._charge()
            self.out.append(frames.reset(sid, Code.PROTOCOL_ERROR if head is None else Code.REFUSED_STREAM))
            return
        stream = self.streams[sid] = Stream(self, sid, head, self.now)
        if flags & 1:
            stream.client_ended = True
        if head.error is not None:
            stream.refuse(head.error, head.status)
            return
        if head.timeout_s:
            server.deadlines.add(stream, self.now + head.timeout_s)
        stream.open(server.service)

    def _trailers(self, sid: int, flags: int) -> None:
        stream = self.streams.get(sid)
        if stream is None:
            self._must_be_closed(sid, "HEADERS")
            self._charge()
        elif stream.client_ended or not flags & 1:
            stream.abort(Code.STREAM_CLOSED if stream.client_ended else Code.PROTOCOL_ERROR)
        else:
            stream.client_ended = True
            stream.deliver()

    # What goes out.

    def _pump(self) -> None:
        """Send what the windows let out, in turns."""
        for sid, stream in tuple(self.blocked.items()):
            if self.paused or self.window <= 0:
                break
            if self.blocked.pop(sid, None) is not None:
                self.blocked[sid] = stream  # behind the others
                stream.pump()

    def unsent_by(self, size: int) -> None:
        """Count what waits for windows: `size` bytes more, or (negative) fewer. Too much stops the services' input."""
        self._unsent += size
        self.server.held_bytes += size
        if size < 0:
            self._progress -= size
            if self._progress >= PROGRESS_BYTES:
                self._progress, self._moved = 0, self.server.monotonic()
        most = self.server.limits.unsent_bytes_max
        if self._unsent > most:
            self.full = True
        elif self.full and self._unsent <= most // 2:
            self.full = False
            self.server.call_soon(self._go_on)

    def _go_on(self) -> None:
        for stream in tuple(self.partial.values()):
            stream.deliver()

    def over(self, stream: Stream, code: str) -> None:
        """A call is over: count it and forget it."""
        del self.streams[stream.sid]
        now = self.server.monotonic()
        self.server.count(code, now - stream.started)
        if self.server.observer is not None:
            self.server.observer.call(stream, code)
        if stream.timed:
            self.server.deadlines.over()
        if code != "CANCELLED":
            self._resets += 1
        if not self.streams:
            self._quiet_since = now
        if not self.flushing:
            self.flush_soon()

    # Its end.

    def sweep(self, now: float) -> None:
        """Enforce the deadlines of this connection. Called every second."""
        limits = self.server.limits
        self.credit, self._resets = limits.idle_frames_max, limits.resets_max
        if self._closing:
            if now >= self._due:
                self.transport.abort()
        elif self.paused:
            if now - self._paused_since > limits.unread_s:
                self._cut()
        elif now - self._waits_since > limits.head_s:
            self.server.timed_out.add()
            self._fail(Code.ENHANCE_YOUR_CALM, f"a frame or its headers did not come within {limits.head_s:g} s")
        elif self._last_told == frames.STREAM_MAX and now - self._drained_since > DRAIN_ACK_S:
            self._tell_last()
        elif self.streams:
            self._sweep_streams(now)
            if now - self._pinged > limits.ping_s:
                self._cut()
            elif self._pinged == NEVER and now - self.now > limits.keepalive_s:
                self._pinged = now
                self.out.append(frames.frame(frames.PING, 0, 0, _KEEPALIVE))
                self.flush_soon()
        elif now - self._quiet_since > limits.idle_s and not self._draining:
            self.drain()

    def _sweep_streams(self, now: float) -> None:
        limits = self.server.limits
        for stream in tuple(self.streams.values()):
            allowed_s = limits.idle_s if stream.streams else limits.message_s
            if stream.silent and now - stream.started > allowed_s:
                self.server.timed_out.add()
                stream.give_up(errors.Late(f"no message came within {allowed_s:g} s of the call's begin: send it"))
        for stream in tuple(self.partial.values()):
            if not stream.held and not self.full and now - stream.since > limits.message_s:
                self.server.timed_out.add()
                stream.give_up(errors.Late(f"a message did not come within {limits.message_s:g} s: send it faster"))
        for stream in tuple(self.blocked.values()):
            # A stream whose own window is open waits for the others, as long as those move.
            since = stream.stuck if self.first_window + stream.extra <= 0 else max(stream.stuck, self._moved)
            if now - since > limits.unread_s:
                self.server.timed_out.add()
                stream.abort(Code.CANCEL)

    def idle_s(self, now: float) -> float:
        """How long it has had no call; 0 while it has one."""
        return 0.0 if self.streams else now - self._quiet_since

    @property
    def fresh(self) -> bool:
        """Whether it has not even said what it speaks."""
        return not self._greeted

    def drain(self) -> None:
        """Take no new calls after those that are under way to us, and close after the last answer."""
        if self._closing or self._draining:
            return
        self._draining = True
        self._drained_since = self.server.monotonic()
        if not self._greeted:
            self._last_words(b"")
            return
        self.out.append(frames.goaway(frames.STREAM_MAX, Code.NO_ERROR, "this server stops"))
        self.out.append(frames.frame(frames.PING, 0, 0, _DRAIN))
        self.flush_soon()

    def _tell_last(self) -> None:
        if self._last_told == frames.STREAM_MAX:
            self._last_told = self._last
            self.out.append(frames.goaway(self._last, Code.NO_ERROR, "this server stops"))
            self.flush_soon()

    def _fail(self, code: Code, sentence: str) -> None:
        """End a connection that cannot go on: its calls are given up, and it is said why."""
        self._shut()
        self._last_words(frames.goaway(self._last, code, sentence))

    def _last_words(self, words: bytes) -> None:
        """Say them and close. What the client still sends is read for a while, or a reset would take the words away."""
        if self._closing:
            return
        self.out.append(words)
        self._write()
        self._closing = True
        self._rest = b""
        self._due = self.server.monotonic() + self.server.limits.linger_s
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            if self.paused:
                self.transport.resume_reading()
        else:
            self.transport.close()

    def _shut(self) -> None:
        for stream in tuple(self.streams.values()):
            stream.abort(None)

    def _cut(self) -> None:
        self.server.timed_out.add()
        self.abort()

    def abort(self) -> None:
        """Cut it off; what waits to be sent is lost."""
        self._closing = True
        self.transport.abort()
