"""One connection of the load generator, HTTP/1.1 or gRPC: a request out, its whole answer in.

Both speak the protocol by hand: a client library would cost more than most servers under test, and on a small machine
the load must leave a core to them. A client that cannot send everything at once says so by `wants_write`.
"""

from __future__ import annotations

import socket

import hpack
import wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
FRAME = 16384
WIDE = (1 << 31) - 1
READ = 1 << 18


class Broken(Exception):
    """The server closed, or answered what is no answer."""


class Client:
    """What both share: the socket and what is still to be sent. `status`: of the last answer, 200 for gRPC's OK."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 30.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.unsent = memoryview(b"")
        self.status = 0
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        """Begin one request; the one before must be answered."""
        self._write(request)

    def answered(self) -> bool:
        """Read what is there; whether the answer is whole. Raises Broken."""
        raise NotImplementedError

    @property
    def wants_write(self) -> bool:
        return len(self.unsent) > 0

    def flush(self) -> None:
        """Send what the socket takes now."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass

    def _write(self, data: bytes) -> None:
        self.unsent = memoryview(bytes(self.unsent) + data if self.unsent else data)
        self.flush()

    def _read(self) -> bytes:
        try:
            got = self.socket.recv(READ)
        except BlockingIOError:
            return b""
        if not got:
            raise Broken("the server closed the connection")
        return got

    def close(self) -> None:
        self.socket.close()


class Http(Client):
    """HTTP/1.1 with Content-Length or chunked answers."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.got = b""

    def answered(self) -> bool:
        self.got += self._read()
        end = self.got.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self.got[:end].lower() + b"\r\n"
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            whole = len(self.got) >= end + 4 + int(head[at + 17 : head.index(b"\r\n", at + 17)])
        elif b"transfer-encoding: chunked" in head:
            whole = self.got.endswith(b"0\r\n\r\n")
        else:
            raise Broken(f"an answer without a length: {self.got[:300]!r}")
        if whole:
            self.status = int(self.got[9:12])
            self.answer, self.got = self.got, b""
        return whole


class Grpc(Client):
    """A unary call a stream, one at a time. Headers are sent once in full and then by their index, as clients do."""

    def __init__(self, port: int, path: str = wire.METHOD) -> None:
        super().__init__(port)
        encoder = hpack.Encoder()
        headers = (
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "grpc-bench"),
        )  # fmt: skip
        self.first, self.later = encoder.encode(headers), encoder.encode(headers)
        self.decoder, self.known = hpack.Decoder(), {}
        self.got, self.stream, self.read_bytes = b"", -1, 0
        self.connection_window, self.stream_start, self.stream_window = 65535, 65535, 65535
        self.body = memoryview(b"")
        self.block, self.ends = b"", False
        setting = b"\0\4" + WIDE.to_bytes(4, "big")  # the window of each stream
        self._write(PREFACE + frame(SETTINGS, 0, 0, setting) + frame(WINDOW, 0, 0, (WIDE - 65535).to_bytes(4, "big")))

    def send(self, request: bytes) -> None:
        self.status = 0
        self.stream += 2
        self.stream_window = self.stream_start
        self.body = memoryview(request)
        block = self.first if self.stream == 1 else self.later
        self._write(frame(HEADERS, END_HEADERS, self.stream, block) + self._data())

    def _data(self) -> bytes:
        """As many frames of the message as the server's windows allow."""
        out = []
        while self.body:
            size = min(len(self.body), FRAME, self.connection_window, self.stream_window)
            if size <= 0:
                break
            self.connection_window -= size
            self.stream_window -= size
            last = size == len(self.body)
            out.append(frame(DATA, END_STREAM if last else 0, self.stream, self.body[:size]))
            self.body = self.body[size:]
        return b"".join(out)

    def answered(self) -> bool:
        self.got += self._read()
        done, at = False, 0
        while len(self.got) - at >= 9:
            size = int.from_bytes(self.got[at : at + 3], "big")
            if len(self.got) - at < 9 + size:
                break
            stream = int.from_bytes(self.got[at + 5 : at + 9], "big")
            done |= self._frame(self.got[at + 3], self.got[at + 4], stream, self.got[at + 9 : at + 9 + size])
            at += 9 + size
        self.got = self.got[at:]
        return done

    def _frame(self, kind: int, flags: int, stream: int, content: bytes) -> bool:
        if kind == DATA:
            self.read_bytes += len(content)
            if self.read_bytes > 1 << 30:
                self._write(frame(WINDOW, 0, 0, self.read_bytes.to_bytes(4, "big")))
                self.read_bytes = 0
        elif kind in (HEADERS, CONTINUATION):
            self.block += content
            self.ends |= kind == HEADERS and bool(flags & END_STREAM)
            if flags & END_HEADERS:
                self._headers(self.block)
                block_ends, self.block, self.ends = self.ends, b"", False
                return block_ends
        elif kind == SETTINGS and not flags & ACK:
            self._settings(content)
        elif kind == PING and not flags & ACK:
            self._write(frame(PING, ACK, 0, content))
        elif kind == WINDOW:
            more = int.from_bytes(content, "big")
            if stream == 0:
                self.connection_window += more
            elif stream == self.stream:
                self.stream_window += more
            self._write(self._data())
        elif kind in (RESET, GOAWAY):
            raise Broken(f"the server reset the stream: {content!r}")
        return False

    def _settings(self, content: bytes) -> None:
        for at in range(0, len(content), 6):
            if content[at : at + 2] == b"\0\4":
                start = int.from_bytes(content[at + 2 : at + 6], "big")
                self.stream_window += start - self.stream_start
                self.stream_start = start
        self._write(frame(SETTINGS, ACK, 0, b"") + self._data())

    def _headers(self, block: bytes) -> None:
        """The status out of a header block. A block of indexes alone means the same as long as the table does."""
        indexed = min(block) > 127
        fields = self.known.get(block) if indexed else None
        if fields is None:
            fields = dict(self.decoder.decode(block, raw=True))
            if not indexed:
                self.known.clear()
            self.known[block] = fields
        status = fields.get(b"grpc-status")
        if status is not None:
            self.status = 200 if status == b"0" else 1000 + int(status)
            self.answer = fields.get(b"grpc-message", b"")


def frame(kind: int, flags: int, stream: int, content: bytes | memoryview) -> bytes:
    head = len(content).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + bytes(content)


def connect(protocol: str, port: int) -> Client:
    return Grpc(port) if protocol == "grpc" else Http(port)
