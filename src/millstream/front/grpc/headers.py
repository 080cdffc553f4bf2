"""What the headers of gRPC over HTTP/2 say, coming in and going out.

Rules of the room:
- What comes in is read once into a `Head`, which calls with equal header blocks share: nobody writes to it.
- What goes out is a constant where it can be.
- A sentence about an error of ours that is none of our tree says nothing of the inside; the log has it.
"""

from __future__ import annotations

import logging
import math
import re
from typing import NamedTuple

from millstream import errors
from millstream.front.bugs import told
from millstream.front.grpc.hpack import Decoder, Field, literal

logger = logging.getLogger(__name__)

INTERNAL = "internal error, see the log"
SENTENCE_CHARS_MAX = 1000
HEADS_MAX = 32  # remembered header blocks of a connection
REMEMBERED_BYTES_MAX = 512  # of one of them
ENCODINGS = b"identity,deflate,gzip"
CODES = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_GRPC = re.compile(rb"application/grpc(?:[+;].*)?", re.DOTALL)
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_OF_A_CONNECTION = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_UNSAFE = re.compile(rb"[^ -$&-~]")  # what a grpc-message percent-encodes
_CONTENT_TYPE = literal(b"content-type", b"application/grpc")

BEGIN = b"\x88" + _CONTENT_TYPE + literal(b"grpc-accept-encoding", ENCODINGS)
FINE = literal(b"grpc-status", b"0")


class Malformed(ValueError):
    """Headers that are no request of HTTP/2."""


class Head(NamedTuple):
    """The headers of a call. `encoding`: of its packed messages. `error`: what it is refused with at once, with a
    `status` that is not 200 where the caller speaks no gRPC."""

    path: bytes
    metadata: dict[bytes, bytes]
    timeout_s: float
    encoding: bytes
    error: errors.Error | None = None
    status: int = 200


class Heads:
    """The heads of one connection's calls, from its header blocks; those that come again are remembered."""

    __slots__ = ("_changes", "_decoder", "_known", "_most")

    def __init__(self, most: int) -> None:
        self._decoder = Decoder()
        self._changes = 0  # of the decoder's table: what is known holds while it stands still
        self._known: dict[bytes, Head] = {}
        self._most = most

    def read(self, block: bytes) -> Head | None:
        """What a whole block says; None: it is no request. Broken."""
        if (known := self._known.get(block)) is not None:
            return known
        fields, size = self._decoder.decode(block, self._most)
        found: Head | None = None
        if size > self._most:
            large = errors.TooLarge(f"headers of {size} bytes, at most {self._most}: send fewer")
            found = Head(b"", {}, 0.0, b"identity", large)
        else:
            try:
                found = head(fields)
            except Malformed as malformed:
                logger.debug("no request: %s", malformed)
        if self._decoder.changes != self._changes:
            self._changes = self._decoder.changes
            self._known.clear()
        elif found is not None and len(block) <= REMEMBERED_BYTES_MAX:
            if len(self._known) >= HEADS_MAX:
                self._known.clear()
            self._known[block] = found
        return found


class NotGrpc(errors.BadInput):
    """HTTP/2, and not gRPC: answered with an HTTP status."""


def head(fields: list[Field]) -> Head:
    """Read a request's fields. Malformed."""
    pseudo: dict[bytes, bytes] = {}
    metadata: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] == b":":
            if metadata or name in pseudo or name not in (b":method", b":path", b":scheme", b":authority"):
                raise Malformed(f"the field {ascii(name[:40])[1:]} is unknown, twice or too late")
            pseudo[name] = value
        elif name in _OF_A_CONNECTION or not _NAME.fullmatch(name):
            raise Malformed(f"the field {ascii(name[:40])[1:]} has no place in HTTP/2")
        else:
            metadata[name] = value
    path = pseudo.get(b":path", b"")
    if b":method" not in pseudo or b":scheme" not in pseudo or not path:
        raise Malformed("a request needs :method, :scheme and :path")
    encoding = metadata.get(b"grpc-encoding", b"identity")
    found = Head(path, metadata, 0.0, encoding)
    if pseudo[b":method"] != b"POST":
        return found._replace(status=405, error=NotGrpc(f"the method is {_shown(pseudo[b':method'])}: gRPC is a POST"))
    kind = metadata.get(b"content-type", b"")
    if not _GRPC.fullmatch(kind):
        sentence = f"content-type: {_shown(kind)}: this port speaks gRPC, send application/grpc"
        return found._replace(status=415, error=NotGrpc(sentence))
    if encoding not in (b"identity", b"gzip", b"deflate"):
        sentence = f"grpc-encoding: {_shown(encoding)} is not read here: send one of {ENCODINGS.decode()}"
        return found._replace(error=errors.Missing(sentence))
    timeout = metadata.get(b"grpc-timeout")
    if timeout is None:
        return found
    match = _TIMEOUT.fullmatch(timeout)
    if match is None:
        sentence = f"grpc-timeout: {_shown(timeout)}: send up to 8 digits and a unit, one of HMSmun"
        return found._replace(error=errors.BadInput(sentence))
    return found._replace(timeout_s=max(1e-9, int(match[1]) * _UNITS[match[2]]))


def verdict(error: Exception) -> tuple[str, str]:
    """(code, sentence) of what went wrong. What is none of our tree is logged and says nothing."""
    if told(logger, error, "a call failed") and isinstance(error, errors.Error) and error.code in CODES:
        return error.code, str(error)[:SENTENCE_CHARS_MAX]
    return "INTERNAL", INTERNAL


def trailers(error: Exception, code: str, sentence: str) -> bytes:
    """The block that ends a call that went wrong."""
    said = _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], sentence.encode(errors="replace"))
    block = literal(b"grpc-status", b"%d" % CODES[code]) + literal(b"grpc-message", said)
    if isinstance(error, errors.Busy):
        block += literal(b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s)))
    return block


def alone(block: bytes, status: int = 200) -> bytes:
    """The block of an answer that is nothing but its trailers."""
    begin = b"\x88" if status == 200 else literal(b":status", b"%d" % status)
    return begin + _CONTENT_TYPE + block


def begin(metadata: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The block that begins an answer."""
    return BEGIN + b"".join(literal(name, value) for name, value in metadata)


def _shown(text: bytes) -> str:
    return ascii(text[:60])[1:]
