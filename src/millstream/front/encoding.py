"""Compressed bodies, both ways: gzip and deflate (which over HTTP is the zlib format, RFC 9110).

Rules of the room:
- A request is unpacked as it comes in: the bound on the unpacked size holds at every piece, not at the end.
- An answer is compressed only where the client asks for it and there is enough of it to gain anything.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from millstream import errors

CODINGS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""The content codings that are read, and zlib's name (`wbits`) for each."""
PACKED_BYTES_MIN = 1024
LEVEL = 1  # the others cost several times as much for a few per cent
_BY_CLIENT = (b"gzip", b"deflate")


class Unpacker:
    """One request body: give it every piece, then say that this was all. `coding`: a key of CODINGS."""

    __slots__ = ("_bytes_max", "_coding", "_inflate", "_left", "_wire")

    def __init__(self, coding: bytes, bytes_max: int) -> None:
        self._coding = coding.decode()
        self._inflate = zlib.decompressobj(CODINGS[coding])
        self._bytes_max = self._left = self._wire = bytes_max

    def feed(self, piece: bytes) -> bytes:
        """What the next piece unpacks to. TooLarge as soon as that is over the bound; BadInput: damaged, or goes on."""
        self._wire -= len(piece)
        if self._wire < 0:
            raise errors.TooLarge(f"the body is over {self._bytes_max} bytes: split it")
        try:
            found = self._inflate.decompress(piece, self._left + 1)
        except zlib.error as error:
            raise errors.BadInput(
                f"Content-Encoding: {self._coding}: the body cannot be unpacked: {error}; send {self._coding} data, or "
                "send it plain"
            ) from None
        self._left -= len(found)
        if self._left < 0:
            raise errors.TooLarge(f"the body unpacks to more than {self._bytes_max} bytes: split it")
        if self._inflate.unused_data:
            raise errors.BadInput(
                f"Content-Encoding: {self._coding}: bytes after the end of the compressed body; send one "
                f"{self._coding} stream"
            )
        return found

    def end(self) -> None:
        """BadInput where the body stops before its compressed data does. No body at all is none."""
        if not self._inflate.eof and self._wire < self._bytes_max:
            raise errors.BadInput(
                f"Content-Encoding: {self._coding}: the body is truncated: its compressed data does not end; send "
                "all of it"
            )


@lru_cache(64)
def chosen(accepts: bytes) -> bytes | None:
    """The coding that an Accept-Encoding prefers, of those that are written; None: send it plain."""
    weights: dict[bytes, float] = {}
    for part in accepts.lower().split(b","):
        name, *parameters = part.split(b";")
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition(b"=")
            if key.strip() == b"q":
                weight = _weight(value)
        weights[name.strip()] = weight
    weight, coding = max((weights.get(c, weights.get(b"*", 0.0)), c == b"gzip", c) for c in _BY_CLIENT)[::2]
    return coding if weight > 0 and weight >= weights.get(b"identity", 0.0) else None


def pack(whole: bytes, coding: bytes) -> bytes:
    """The HTTP answer with its content compressed; as it is where that gains nothing."""
    head, _, content = whole.partition(b"\r\n\r\n")
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, CODINGS[coding])
    packed = deflate.compress(content) + deflate.flush()
    if len(packed) >= len(content):
        return whole
    told = b"\r\nContent-Length: %d" % len(content)
    tells = b"\r\nContent-Length: %d\r\nContent-Encoding: %b\r\nVary: Accept-Encoding" % (len(packed), coding)
    return b"%b\r\n\r\n%b" % (head.replace(told, tells, 1), packed)


def _weight(value: bytes) -> float:
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0
