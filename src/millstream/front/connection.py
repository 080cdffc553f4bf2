"""One HTTP/1.1 connection on asyncio and httptools: bytes <-> exchanges in order.

Rules of the room:
- A connection is a state machine without tasks or timers: the server sweeps all deadlines once a second.
- Everything a client can make us hold is bounded in `HttpLimits`: what is over the pipeline bound stays unread.
- Answers leave in the order of the requests. The last one of a connection says `Connection: close`.
- The end of a client's stream is its disconnect: what it asked for and nobody will read is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from millstream import errors
from millstream.front import answer, encoding
from millstream.front.exchange import Exchange
from millstream.front.port import FRESH_S
from millstream.front.record import GONE

if TYPE_CHECKING:
    from millstream.front.http import Http

# Large reads go to the parser in slices, so that a burst of tiny requests stops at the pipeline bound and not after it.
SLICE_BYTES = 16 << 10
# Headers that mean something here, by their usual spellings. Only those of the same lengths are looked at twice.
_CONTENT_LENGTH, _INFERENCE_LENGTH, _ACCEPTS, _OTHER, _NOTHING = range(5)
_NOTICED = {
    b"content-length": _CONTENT_LENGTH,
    b"inference-header-content-length": _INFERENCE_LENGTH,
    b"authorization": _OTHER,
    b"x-request-id": _OTHER,
    b"connection": _OTHER,
    b"upgrade": _OTHER,
    b"origin": _OTHER,
    b"content-encoding": _OTHER,
    b"expect": _OTHER,
    b"millstream-explain": _OTHER,
    b"traceparent": _OTHER,
    b"sec-websocket-key": _OTHER,
    b"sec-websocket-version": _OTHER,
    b"sec-websocket-protocol": _OTHER,
    b"accept-encoding": _ACCEPTS,
    b"accept-language": _NOTHING,
    b"host": _NOTHING,
    b"content-type": _NOTHING,
    b"user-agent": _NOTHING,
    b"accept": _NOTHING,
}
_LENGTHS = frozenset(map(len, _NOTICED))
_NOTICED |= {name.title(): meaning for name, meaning in _NOTICED.items()}
_FULL = answer.closing(answer.refusal(errors.Busy("too many connections: try again"))[1])


class Connection(asyncio.Protocol):
    """One client. `_pending`: begun exchanges in order; `_waiting`: read, but over the pipeline bound. `first`: read by
    another process, which handed the connection over."""

    __slots__ = (
        "_chunks",
        "_due",
        "_early",
        "_exchange",
        "_expects",
        "_feeding",
        "_first",
        "_flush",
        "_headers_left",
        "_held",
        "_in_body",
        "_leaving",
        "_length",
        "_over",
        "_parser",
        "_paused",
        "_peer",
        "_pending",
        "_pipelined_max",
        "_quiet",
        "_reading",
        "_rest",
        "_routes",
        "_server",
        "_size",
        "_started",
        "_transport",
        "_upgrades",
        "_waiting",
    )

    def __init__(self, server: Http, first: bytes = b"") -> None:
        self._server = server
        self._routes, self._pipelined_max = server.routes, server.limits.pipelined_max
        self._flush = self.flush
        self._pending: deque[Exchange] = deque()
        self._waiting: deque[Exchange] = deque()
        self._exchange: Exchange | None = None  # being read
        self._leaving: Exchange | None = None  # the connection is another protocol's once this is answered
        self._first = first
        self._early = b""  # read behind the request for another protocol
        self._rest = memoryview(b"")  # read from the socket, not yet given to the parser
        self._in_body = self._expects = self._upgrades = self._feeding = self._paused = self._over = False
        self._reading = True
        self._headers_left = self._quiet = self._size = self._length = self._held = 0
        self._due = self._started = 0.0

    # The socket's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many connections: that one is told so and closed."""
        self._transport = cast(asyncio.Transport, transport)
        self._started = self._server.monotonic()
        if not self._server.opened(self):
            self._over = True
            self._transport.write(_FULL)
            self._transport.close()
            return
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self._parser = httptools.HttpRequestParser(self)
        self._transport.set_write_buffer_limits(high=self._server.limits.unsent_bytes_max)
        if self._first:
            self.data_received(self._first)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what nobody can hear the answer of any more, and give its memory back."""
        self._over = True
        if (observer := self._routes.observer) is not None:
            for exchange in self._pending:
                if exchange.status != 100:
                    observer.http(exchange, 0, GONE)
        for exchange in (*self._pending, *self._waiting):
            self._server.held_bytes -= exchange.held
            if exchange.future is not None:
                exchange.future.remove_done_callback(exchange.settle)
                exchange.future.cancel()
        self._server.held_bytes -= self._held
        self._held = 0
        self._server.reads(self)
        self._server.under_way -= len(self._pending)
        self._pending.clear()
        self._waiting.clear()
        self._rest = memoryview(b"")
        self._exchange = None
        self._parser = self._flush = None  # type: ignore[assignment]  # breaks the reference cycles
        self._server.closed(self)

    def data_received(self, data: bytes) -> None:
        """Parse what there is room for, keep the rest, and read on only when that is gone."""
        if self._over:
            return  # a refused client that is still sending
        if (
            self._rest
            or len(data) > SLICE_BYTES
            or self._waiting
            or self._paused
            or (self._pending and not self._has_room())
        ):
            self._rest = memoryview(bytes(self._rest) + data if self._rest else data)
            self._pump()
        else:
            self._feeding = True
            self._feed(data)
            self._feeding = False
        if self._leaving is not None:
            self._leave(self._leaving)
        elif self._reading and (self._rest or self._waiting or self._paused or (self._upgrades and self._over)):
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """False: a client that has sent its last byte is not waited for."""
        return False

    def pause_writing(self) -> None:
        """The client does not read its answers: take no more from it, and give it `unread_s`."""
        self._paused = True
        self._due = self._server.monotonic() + self._server.limits.unread_s
        self._server.left_unread(self, self._transport.get_write_buffer_size())
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again: go on."""
        self._paused = False
        self._server.reads(self)
        self.flush()

    # The parser's side. An error raised here leaves `feed_data` as the context of a HttpParserCallbackError.

    def on_message_begin(self) -> None:
        """A request begins: its clock and its bounds."""
        server = self._server
        self._started = server.monotonic()
        self._exchange = Exchange(self._flush, self._peer, self._started)
        self._headers_left = server.limits.headers_max
        self._size = self._length = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        exchange = self._exchange
        assert exchange is not None
        exchange.url = exchange.url + url if exchange.url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header: kept where it means something here. HeadTooLarge, TooLarge."""
        left = self._headers_left = self._headers_left - 1
        if left < 0:
            raise answer.HeadTooLarge(f"more than {self._server.limits.headers_max} headers: send fewer")
        if self._in_body:
            return  # a trailer comes too late to mean anything
        meaning = _NOTICED.get(name)
        if meaning is None:
            if len(name) not in _LENGTHS:
                return
            name = name.lower()
            meaning = _NOTICED.get(name, _NOTHING)
        if meaning == _NOTHING:
            return
        if meaning == _CONTENT_LENGTH:
            length, most = int(value), self._server.limits.body_bytes_max  # the parser has checked that it is a number
            if length > most:
                raise errors.TooLarge(f"Content-Length: {length}, at most {most} bytes a request: split it")
            self._length = length
        elif meaning == _INFERENCE_LENGTH:
            self._exchange.inference_header = value  # type: ignore[union-attr]
        elif meaning == _ACCEPTS:
            self._exchange.accepts = value  # type: ignore[union-attr]
        else:
            self._notice(name.lower(), value)

    def on_headers_complete(self) -> None:
        """The body's time begins; a client that expects it is asked for it."""
        self._in_body = True
        self._quiet = 0
        if self._upgrades and self._length:
            raise errors.BadInput(
                "Upgrade: a WebSocket begins without a body, and nothing else is spoken here; leave it out"
            )
        if self._expects:
            self._expects = False
            self._continue()

    def on_body(self, piece: bytes) -> None:
        """A piece of the body, within the bounds of one request and of all. TooLarge, Busy."""
        exchange, limits = self._exchange, self._server.limits
        assert exchange is not None
        self._quiet = 0
        self._size += len(piece)
        if self._size > limits.body_bytes_max:
            raise errors.TooLarge(f"the body is over {limits.body_bytes_max} bytes: split it")
        if not exchange.body:
            exchange.body = piece
            return
        # One growing buffer: a list of one-byte chunks would hold fifty times what was sent.
        if not isinstance(exchange.body, bytearray):
            exchange.body = bytearray(exchange.body)
        exchange.body += piece
        self._server.held_bytes += self._size - self._held
        self._held = self._size
        if self._server.held_bytes > limits.held_bytes_max:
            raise errors.Busy(f"bodies of {limits.held_bytes_max} bytes are being read already: try again")

    def on_message_complete(self) -> None:
        """A whole request: begin it, or keep it until those before it are answered."""
        exchange = self._exchange
        assert exchange is not None
        exchange.method = self._parser.get_method()
        if self._held:
            exchange.held, self._held = self._held, 0
        self._exchange, self._in_body, self._quiet = None, False, 0
        if not self._parser.should_keep_alive():
            if (version := self._parser.get_http_version()) not in ("1.0", "1.1"):
                self._exchange = exchange
                raise errors.BadInput(f"HTTP/{version} is not spoken here: use HTTP/1.1")
            exchange.close = True
        if exchange.close:
            self._over = True  # nothing after it is read
        if exchange.upgrade is not None and not self._parser.should_upgrade():
            exchange.upgrade = None  # Connection does not say so
        pending, server = self._pending, self._server
        if self._waiting or self._paused or (pending and not self._has_room()):
            self._waiting.append(exchange)
            return
        pending.append(exchange)
        server.under_way += 1
        if exchange.coding is None:
            self._routes.begin(exchange)
        else:
            self._unpack(exchange, exchange.coding)
        if exchange.answer is not None:
            self.flush()

    def _unpack(self, exchange: Exchange, coding: bytes) -> None:
        """Begin a request whose body is packed; a large one is unpacked beside the event loop first."""
        unpacker = encoding.Unpacker(coding, exchange.body, self._server.limits.body_bytes_max)
        try:
            plain = unpacker.here()
        except errors.Error as error:
            exchange.refuse(error)
            return
        if plain is not None:
            self._unpacked(exchange, plain)
            return

        def settle(future: asyncio.Future[bytearray]) -> None:
            exchange.future = None
            if future.cancelled():
                return  # nobody is there to be answered
            error = future.exception()
            if error is None:
                self._unpacked(exchange, future.result())
            else:
                exchange.refuse(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            if exchange.answer is not None:
                exchange.flush()

        exchange.future = asyncio.get_running_loop().run_in_executor(None, unpacker.beside)
        exchange.future.add_done_callback(settle)

    def _unpacked(self, exchange: Exchange, plain: bytearray) -> None:
        server = self._server
        more = len(plain) - exchange.held
        if server.held_bytes + more > server.limits.held_bytes_max:
            exchange.refuse(errors.Busy(f"bodies of {server.limits.held_bytes_max} bytes are held already: try again"))
            return
        server.held_bytes += more
        exchange.held += more
        exchange.body = plain
        self._routes.begin(exchange)

    def _notice(self, name: bytes, value: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        if name == b"authorization":
            exchange.authorization = value
        elif name == b"x-request-id":
            exchange.request_id = value
        elif name == b"connection":
            exchange.keep = value.lower() == b"keep-alive" and self._parser.get_http_version() == "1.0"
        elif name == b"origin":
            exchange.origin = value
        elif name == b"upgrade":
            self._upgrades = True
            exchange.close = True  # the last that is read as HTTP/1.1, whatever the answer is
            exchange.upgrade = (exchange.upgrade or {}) | {name: value}
        elif name.startswith(b"sec-websocket-"):
            said = exchange.upgrade = exchange.upgrade or {}
            said[name] = said[name] + b"," + value if name in said else value
        elif name == b"content-encoding" and value.lower() != b"identity":
            if value.lower() not in encoding.CODINGS or exchange.coding is not None:
                raise answer.Unsupported(
                    f"Content-Encoding {ascii(value[:40])[1:]} is not read here: send gzip or deflate, once, or "
                    "send it plain"
                )
            exchange.coding = value.lower()
        elif name == b"millstream-explain":
            exchange.explain = value.lower() in (b"1", b"?1", b"true")
        elif name == b"traceparent":
            exchange.traceparent = value
        elif name == b"expect" and value.lower() == b"100-continue":
            self._expects = True

    def _continue(self) -> None:
        """Ask for the body: behind the answers that are still due, as the interim answer belongs to this request."""
        if not self._pending and not self._waiting:
            self._transport.write(answer.CONTINUE)
            return
        interim = Exchange(self._flush, self._peer, 0.0)
        interim.status, interim.answer = 100, answer.CONTINUE
        self._line_up(interim)

    # Between the two.

    def _has_room(self) -> bool:
        """Whether another request may begin. One a connection always may; more only while the service has few, or a
        crowd that pipelines would have everything read, refused and answered before any batch could start."""
        if self._waiting or self._paused:
            return False
        begun, server = len(self._pending), self._server
        return not begun or (begun < self._pipelined_max and server.under_way < server.limits.under_way_max)

    def _feed(self, data: bytes | memoryview) -> None:
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._early = bytes(data[upgrade.args[0] :])  # the exchange is marked to close
            return
        except httptools.HttpParserCallbackError as error:
            self._refuse(error.__context__ or error)
            return
        except httptools.HttpParserError as error:
            if not self._over:  # else: bytes after a request that closes
                self._refuse(errors.BadInput(f"not an HTTP/1.1 request: {error}; check its line, headers and framing"))
            return
        # A header, a trailer or a chunk extension without end would grow inside the parser.
        most = self._server.limits.head_bytes_max
        if self._quiet > most and not self._over:
            self._refuse(
                answer.HeadTooLarge(f"{self._quiet} bytes of request line and headers and no end, at most {most}")
            )

    def _pump(self) -> None:
        """Give the parser what was read, as long as there is room for its requests; then read on."""
        if self._feeding:
            return
        self._feeding = True
        while self._rest and not self._over and self._has_room():
            # A body of known length goes in whole: slices are against many requests, not against large ones.
            size = max(SLICE_BYTES, self._length - self._size if self._in_body else 0)
            part, self._rest = self._rest[:size], self._rest[size:]
            self._feed(part)
        self._feeding = False
        if self._over:
            self._early += self._rest if self._upgrades else b""
            self._rest = memoryview(b"")
        if self._leaving is not None:
            return
        if not self._reading and not self._rest and self._has_room() and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def flush(self) -> None:
        """Send the answers that are next in order, then begin what waited for room."""
        pending, waiting, server = self._pending, self._waiting, self._server
        while True:
            while pending and pending[0].answer is not None:
                server.under_way -= 1
                self._send(pending.popleft())
            if not waiting or self._paused or len(pending) >= self._pipelined_max:
                break
            if pending and server.under_way >= server.limits.under_way_max:
                break
            exchange = waiting.popleft()
            pending.append(exchange)
            server.under_way += 1
            if exchange.answer is None and exchange.coding is None:
                self._routes.begin(exchange)
            elif exchange.answer is None and exchange.coding is not None:
                self._unpack(exchange, exchange.coding)
        if not self._reading and not self._feeding:
            self._pump()

    def _send(self, exchange: Exchange) -> None:
        whole = exchange.answer
        assert whole is not None
        if exchange.takes_over is not None:
            self._leaving = exchange
            if not self._feeding:  # else: once it is known what was read behind the request
                self._leave(exchange)
            return
        if exchange.status != 100:
            self._routes.count(exchange)
            if exchange.method == b"HEAD":
                whole = answer.head_of(whole)
            if exchange.close or (self._server.draining and self._is_idle()):
                exchange.close = True
                whole = answer.closing(whole)
            elif exchange.keep:
                whole = answer.with_header(whole, b"Connection: keep-alive")
            if self._routes.observer is not None:
                self._routes.observer.http(exchange, len(whole))
        self._transport.write(whole)
        if self._paused:
            self._server.left_unread(self, self._transport.get_write_buffer_size())
        if exchange.held:
            self._server.held_bytes -= exchange.held
            exchange.held = 0
        if exchange.close:
            self._close(exchange.linger)

    def _leave(self, exchange: Exchange) -> None:
        """Let another protocol have the connection, here or in a process that has more room for it, with what was read
        behind the request."""
        transport, server, early = self._transport, self._server, self._early
        assert exchange.takes_over is not None and exchange.answer is not None
        server.reads(self)
        server.closed(self)
        self._early = b""
        self._parser = self._flush = None  # type: ignore[assignment]  # breaks the reference cycles
        if (
            server.placing is not None
            and not (self._first or transport.get_write_buffer_size())
            and server.placing.give(exchange, transport.get_extra_info("socket"), early)
        ):
            transport.abort()  # of this process's hold on it
            return
        self._routes.count(exchange)
        if self._routes.observer is not None:
            self._routes.observer.http(exchange, len(exchange.answer))
        transport.write(exchange.answer)
        successor = exchange.takes_over(server)
        transport.set_protocol(successor)
        successor.connection_made(transport)
        if not self._reading:
            self._reading = True
            transport.resume_reading()
        if early and not transport.is_closing():
            successor.data_received(early)

    def _refuse(self, error: BaseException) -> None:
        """Answer a request that cannot be read to its end, after those before it, and read no more."""
        exchange = self._exchange or Exchange(self._flush, self._peer, self._started)
        exchange.refuse(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        exchange.close = exchange.linger = True
        exchange.held, self._held, exchange.body = exchange.held + self._held, 0, b""
        self._exchange, self._over = None, True
        self._line_up(exchange)
        self.flush()

    def _line_up(self, exchange: Exchange) -> None:
        """Behind all that is before it, with its answer."""
        if self._waiting:
            self._waiting.append(exchange)
        else:
            self._pending.append(exchange)
            self._server.under_way += 1

    def _close(self, linger: bool) -> None:
        """Close once the answer is out. Lingering: a client that still sends would lose the answer to a reset."""
        limits = self._server.limits
        self._over = True
        self._due = self._server.monotonic() + (limits.linger_s if linger else limits.unread_s)
        if linger and self._transport.can_write_eof():
            self._transport.write_eof()
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()
        else:
            self._transport.close()

    # The server's side.

    def _is_idle(self) -> bool:
        return not (self._pending or self._waiting or self._exchange or self._rest)

    def sweep(self, now: float) -> None:
        """Enforce the deadlines of this connection. Called every second."""
        limits = self._server.limits
        if self._pending or self._waiting or self._paused:
            self._started = now  # the client's time starts again when we have answered
        if self._paused:
            if now >= self._due:
                self._server.timed_out.add()
                self._transport.abort()
        elif self._pending or self._waiting:
            return
        elif self._over:
            if now >= self._due:
                self._transport.abort()
        elif self._exchange is not None:
            allowed, part = (limits.body_s, "body") if self._in_body else (limits.head_s, "headers")
            if now - self._started > allowed:
                self._server.timed_out.add()
                self._refuse(answer.TimedOut(f"the {part} did not come within {allowed:g} s: send it faster, or split"))
        elif now - self._started > limits.idle_s:
            self._close(linger=False)

    def idle_s(self, now: float) -> float:
        """How long nobody has asked anything; 0 while somebody does."""
        return now - self._started if self._is_idle() else 0.0

    @property
    def fresh(self) -> bool:
        """Whether it was made, or asked something, a moment ago."""
        return self._server.monotonic() - self._started < FRESH_S

    def drain(self) -> None:
        """Close now if nothing is under way; otherwise the last answer closes."""
        if not self._over and self._is_idle():
            self._close(linger=False)

    def abort(self) -> None:
        """Cut it off; what waits to be sent is lost."""
        self._transport.abort()
