"""The frames of HTTP/2 (RFC 9113): their numbers, and the bytes of those that we send.

Rules of the room:
- `HEAD` reads a frame's head as (length << 8 | type, flags, stream): one unpacking a frame.
- A `Fault` ends the connection: it becomes a GOAWAY with its code and sentence.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_MAX = (1 << 31) - 1
STREAM_MAX = (1 << 31) - 1
WINDOW_FIRST = 65_535  # of a connection and of every stream, until the peer says otherwise
FRAME_BYTES = 16_384  # the largest frame that is taken: HTTP/2's default
HEAD_BYTES = 9

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITISED = 0x20

TABLE_SIZE, ENABLE_PUSH, STREAMS_MAX, INITIAL_WINDOW, FRAME_SIZE, HEADERS_SIZE = range(1, 7)

HEAD = Struct(">IBI")
WORD = Struct(">I")
PREFIX = Struct(">BI")  # of a gRPC message: packed or not, and how many bytes follow

MESSAGE_HEAD = Struct(">IBIBI")  # a DATA frame with a whole message: the frame's head and the message's prefix
_SETTING = Struct(">HI")
_TWO = Struct(">IBII")
_GOAWAY = Struct(">IBIII")


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Fault(Exception):
    """What a peer did that its connection does not survive."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def headers(stream: int, block: bytes, flags: int, frame_max: int) -> bytes:
    """A header block; in several frames where one is too small. `flags`: END_STREAM or 0."""
    if len(block) <= frame_max:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    parts = [block[at : at + frame_max] for at in range(0, len(block), frame_max)]
    middle = b"".join(frame(CONTINUATION, 0, stream, part) for part in parts[1:-1])
    return frame(HEADERS, flags, stream, parts[0]) + middle + frame(CONTINUATION, END_HEADERS, stream, parts[-1])


def settings(pairs: dict[int, int]) -> bytes:
    """What we tell the peer about us."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in pairs.items()))


def settings_of(payload: bytes) -> dict[int, int]:
    """What the peer tells about itself; the last value of each. The payload is a multiple of 6 bytes. Fault."""
    told: dict[int, int] = {}
    for key, value in _SETTING.iter_unpack(payload):
        if key == INITIAL_WINDOW and value > WINDOW_MAX:
            raise Fault(Code.FLOW_CONTROL_ERROR, f"an initial window of {value}, at most {WINDOW_MAX}")
        if key == FRAME_SIZE and not FRAME_BYTES <= value < 1 << 24:
            raise Fault(Code.PROTOCOL_ERROR, f"a frame size of {value}: it is from {FRAME_BYTES} to 2^24 - 1")
        if key == ENABLE_PUSH and value > 1:
            raise Fault(Code.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}: it is 0 or 1")
        told[key] = value
    return told


def reset(stream: int, code: Code) -> bytes:
    """RST_STREAM."""
    return _TWO.pack(4 << 8 | RESET, 0, stream, code)


def window(stream: int, more: int) -> bytes:
    """WINDOW_UPDATE; stream 0: the connection's."""
    return _TWO.pack(4 << 8 | WINDOW, 0, stream, more)


def goaway(last: int, code: Code, sentence: str = "") -> bytes:
    """GOAWAY: streams over `last` were not and will not be looked at."""
    said = sentence.encode(errors="replace")[:500]
    return _GOAWAY.pack((8 + len(said)) << 8 | GOAWAY, 0, 0, last, code) + said
