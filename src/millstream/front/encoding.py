"""Compressed bodies, both ways: gzip and deflate (which over HTTP is the zlib format, RFC 9110).

Rules of the room:
- A request is held as it came, and unpacked when it is whole: who sends slowly holds what it sent, and no more. The
  bound on the unpacked size holds while it is unpacked; more than HERE_BYTES_MAX is unpacked beside the event loop.
- An answer is compressed only where the client asks for it and there is enough of it to gain anything.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from millstream import errors

CODINGS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""The content codings that are read, and zlib's name (`wbits`) for each."""
PACKED_BYTES_MIN = 1024
HERE_BYTES_MAX = 1 << 20
LEVEL = 1  # the others cost several times as much for a few per cent
_BY_CLIENT = (b"gzip", b"deflate")


class Unpacker:
    """One request body, whole as it came. `coding`: a key of CODINGS; `bytes_max`: what it may unpack to."""

    __slots__ = ("_bytes_max", "_coding", "_found", "_inflate", "_packed", "_rest")

    def __init__(self, coding: bytes, packed: bytes | bytearray, bytes_max: int) -> None:
        self._coding = coding.decode()
        self._inflate = zlib.decompressobj(CODINGS[coding])
        self._bytes_max = bytes_max
        self._packed = self._rest = bytes(packed)
        self._found = bytearray()

    def here(self) -> bytearray | None:
        """The plain body, where it is small enough to be unpacked on the event loop; else None. BadInput, TooLarge."""
        most = min(HERE_BYTES_MAX, self._bytes_max)
        self._fill(most)
        return None if most < len(self._found) <= self._bytes_max else self._whole()

    def beside(self) -> bytearray:
        """The plain body, in a thread. BadInput, TooLarge."""
        self._fill(self._bytes_max)
        return self._whole()

    def _fill(self, most: int) -> None:
        """Unpack until there are more than `most` bytes, or no more."""
        while not self._inflate.eof and len(self._found) <= most:
            try:
                part = self._inflate.decompress(self._rest, most + 1 - len(self._found))
            except zlib.error as error:
                raise errors.BadInput(
                    f"Content-Encoding: {self._coding}: the body cannot be unpacked: {error}; send {self._coding} "
                    "data, or send it plain"
                ) from None
            self._rest = self._inflate.unconsumed_tail
            self._found += part
            if not part and not self._rest:
                return

    def _whole(self) -> bytearray:
        if len(self._found) > self._bytes_max:
            raise errors.TooLarge(f"the body unpacks to more than {self._bytes_max} bytes: split it")
        if not self._inflate.eof and self._packed:  # no body at all is none
            raise errors.BadInput(
                f"Content-Encoding: {self._coding}: the body is truncated: its compressed data does not end; send "
                "all of it"
            )
        if self._inflate.unused_data:
            raise errors.BadInput(
                f"Content-Encoding: {self._coding}: bytes after the end of the compressed body; send one "
                f"{self._coding} stream"
            )
        return self._found


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
