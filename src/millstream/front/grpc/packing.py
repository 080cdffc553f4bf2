"""Packed messages: gzip and deflate (which is the zlib format here, as in HTTP), unpacked in steps.

Rules of the room:
- A step is bounded, and the event loop turns between two of them: a small message that unpacks to a large one delays
  nobody.
- What a message may unpack to is bounded while it is unpacked, not after.
"""

from __future__ import annotations

import zlib

from millstream import errors

STEP_BYTES = 1 << 18  # a millisecond or two
_WBITS = {b"gzip": 31, b"deflate": 15}


class Unpacking:
    """One message on its way from packed to plain. `size`: the bytes of it so far."""

    __slots__ = ("_encoding", "_most", "_parts", "_rest", "_unpacker", "size")

    def __init__(self, packed: bytes, flag: int, encoding: bytes, most: int) -> None:
        bits = _WBITS.get(encoding)
        if flag != 1 or bits is None:
            named = encoding.decode()
            raise errors.BadInput(f"a message with flag {flag} and grpc-encoding {named}: name gzip or deflate")
        self._encoding, self._most = encoding, most
        self._unpacker = zlib.decompressobj(bits)
        self._rest = packed
        self._parts: list[bytes] = []
        self.size = 0

    def step(self) -> bytes | None:
        """Unpack a step more: the plain message once it is whole. TooLarge, BadInput."""
        unpacker = self._unpacker
        try:
            part = unpacker.decompress(self._rest, min(STEP_BYTES, self._most + 1 - self.size))
        except zlib.error as error:
            raise errors.BadInput(f"a message is no {self._encoding.decode()}: {error}") from None
        self._rest = unpacker.unconsumed_tail
        self.size += len(part)
        self._parts.append(part)
        if self.size > self._most:
            raise errors.TooLarge(f"a message unpacks to more than {self._most} bytes: split it")
        if unpacker.eof and not unpacker.unused_data:
            return b"".join(self._parts)
        if unpacker.eof or not (self._rest or part):
            raise errors.BadInput(
                f"a message is not one whole {self._encoding.decode()} stream: send one, and all of it"
            )
        return None
