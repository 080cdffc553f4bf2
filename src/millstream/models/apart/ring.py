"""Slots of memory that two processes share, each for the arrays of one call, there and back.

Rules of the room:
- A slot belongs to whoever's turn it is: the caller writes, says the slot's number through a pipe, and touches it again
  only when the number came back. So nothing here locks.
- What lies in a slot: the number of its call, a head (msgpack: a message, and where each array lies), then raw bytes.
  Nothing is pickled. An answer carries the number of its call, so that none is taken for another's.
- The memory has no name and is held by descriptors alone: however its processes end, it goes with them.
- A slot grows to the largest call it has seen, up to `BYTES_MAX`. Room is taken before it is written to: a write that
  finds none would be a SIGBUS, here of all places.
- What is read was written by another process, which may be broken: every size is checked, and a bad one is Corrupt.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import struct
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from millstream import errors
from millstream.types import Array

BYTES_MAX = 512 << 20
_FIRST = 1 << 16
_ALIGN = 64
_CALL = struct.Struct("<Q")  # before the head, which is the same for calls that are alike
_START = struct.Struct("<QQ")  # bytes of the head, bytes in use
_PLAIN = "?bBhHiIqQefd"
_TEXTS = "T"
_DTYPES = {code: np.dtype(code).newbyteorder("<") for code in _PLAIN}
_CODES = {(dtype.kind, dtype.itemsize): code for code, dtype in _DTYPES.items()}
_BYTES, _TEXT, _MIXED = 0, 1, 2
_KNOWN_MAX = 64
_Key = tuple[Any, ...]


class _Placed(msgspec.Struct, array_like=True):
    """Where an array lies: which one it is, its type, its shape, and where its bytes begin and how many they are. Of
    texts, those are `size + 1` offsets (u64), then the cells; `cells` says what they are."""

    number: int
    code: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    cells: int = _BYTES


class _Head(msgspec.Struct, array_like=True):
    message: bytes
    arrays: list[_Placed]


_decode = msgspec.msgpack.Decoder(_Head).decode
_encode = msgspec.msgpack.Encoder().encode


class Slot:
    """One piece of shared memory. `fd` is passed to the other process, which makes its own Slot of it. `call`: the
    number of the call that lies in it, which `write` puts there and `read` finds."""

    def __init__(self, fd: int) -> None:
        self.fd, self.call = fd, 0
        # How calls were laid out before: most are alike, and then a call is copies into and out of views that are there
        self._written: dict[_Key, tuple[bytes, list[Array]]] = {}
        self._read: dict[bytes, tuple[bytes, list[tuple[int, Array]]]] = {}
        self._remap(os.fstat(fd).st_size)

    @classmethod
    def make(cls) -> Slot:
        """New memory, as small as a slot gets. Nowhere to take it from: Full."""
        if sys.platform == "linux":
            fd = os.memfd_create("millstream", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        try:
            _take_room(fd, 0, _FIRST)
        except BaseException:
            os.close(fd)
            raise
        if sys.platform == "linux":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # a broken other side cannot pull it from under us
        return cls(fd)

    def write(self, message: bytes, arrays: Sequence[tuple[int, Array]]) -> None:
        """Put a message and numbered arrays in, over what is there. Over `BYTES_MAX`: TooLarge; no memory: Full."""
        known = self._written.get(key := (message, *[(number, a.dtype.char, a.shape) for number, a in arrays]))
        if known is None:
            self._lay_out(key, message, arrays)
            return
        head, views = known
        self._put(head)
        for view, (_, array) in zip(views, arrays, strict=True):
            view[...] = array

    def read(self) -> tuple[bytes, list[tuple[int, Array]]]:
        """The message and the arrays, copied out. Nonsense: Corrupt."""
        try:
            length, end = _START.unpack_from(self._map, _CALL.size)
            if end > len(self._map):
                self._remap(end)  # the other side has made it larger
            (self.call,) = _CALL.unpack_from(self._map)
            head = self._map[_CALL.size : _CALL.size + _START.size + length]
            known = self._read.get(head)
            if known is not None:
                message, views = known
                return message, [(number, view.copy()) for number, view in views]
            return self._take_apart(head)
        except (msgspec.MsgspecError, ValueError, TypeError, KeyError, OverflowError, MemoryError, OSError) as error:
            raise errors.Corrupt(f"what came back through shared memory makes no sense: {error}") from error

    def _lay_out(self, key: _Key, message: bytes, arrays: Sequence[tuple[int, Array]]) -> None:
        """`write` of a call that is not laid out like one before."""
        placed, texts, at = [], {}, 0
        for number, array in arrays:
            code = _CODES.get((array.dtype.kind, array.dtype.itemsize))
            if code is not None:
                place = _Placed(number, code, array.shape, at, array.nbytes)
            else:
                kind, offsets, blob = _cells(array)
                texts[number] = offsets.tobytes() + blob
                place = _Placed(number, _TEXTS, array.shape, at, len(texts[number]), kind)
            placed.append(place)
            at += -(-place.nbytes // _ALIGN) * _ALIGN
        packed = _encode(_Head(message, placed))
        start = _after(len(packed))
        end = start + at
        if end > len(self._map):
            self._grow(end)
        head = _START.pack(len(packed), end) + packed
        self._put(head)
        views = []
        for place, (number, array) in zip(placed, arrays, strict=True):
            begin = start + place.offset
            if place.code == _TEXTS:
                self._map[begin : begin + place.nbytes] = texts[number]
            else:
                views.append(self._view(place, begin))
                views[-1][...] = array
        if not texts:
            _keep(self._written, key, (head, views))

    def _put(self, head: bytes) -> None:
        _CALL.pack_into(self._map, 0, self.call)
        self._map[_CALL.size : _CALL.size + len(head)] = head

    def _take_apart(self, head: bytes) -> tuple[bytes, list[tuple[int, Array]]]:
        """`read` of a call that is not laid out like one before."""
        said = _decode(head[_START.size :])
        start = _after(len(head) - _START.size)
        arrays: list[tuple[int, Array]] = []
        views: list[tuple[int, Array]] = []
        for place in said.arrays:
            begin = start + place.offset
            if place.code == _TEXTS:
                arrays.append((place.number, _texts(self._map[begin : begin + place.nbytes], place)))
            else:
                views.append((place.number, self._view(place, begin)))
                arrays.append((place.number, views[-1][1].copy()))
        if len(views) == len(arrays):
            _keep(self._read, head, (said.message, views))
        return said.message, arrays

    def _view(self, place: _Placed, begin: int) -> Array:
        """An array over the shared memory; one without elements lies nowhere."""
        if math.prod(place.shape) * _DTYPES[place.code].itemsize != place.nbytes:
            raise ValueError(f"{place.nbytes} bytes for shape {place.shape}")
        if not place.nbytes:
            return np.empty(place.shape, _DTYPES[place.code])
        return np.ndarray(place.shape, _DTYPES[place.code], self._map, begin)

    def close(self) -> None:
        """Let go of it; its memory goes with the last who holds it."""
        self._written.clear()
        self._read.clear()
        os.close(self.fd)

    def _grow(self, end: int) -> None:
        if end > BYTES_MAX:
            raise errors.TooLarge(
                f"a call of {end >> 20} MiB is more than goes through to a model's own process "
                f"({BYTES_MAX >> 20} MiB); send fewer rows at once, or set batching.rows_max lower"
            )
        size = min(BYTES_MAX, max(end, 2 * len(self._map)))
        there = os.fstat(self.fd).st_size
        if size > there:
            _take_room(self.fd, there, size)
        self._remap(size)

    def _remap(self, size: int) -> None:
        self._map = mmap.mmap(self.fd, size)
        self._written.clear()
        self._read.clear()


def _keep(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _KNOWN_MAX:
        known.clear()
    known[key] = value


def _after(head: int) -> int:
    """Where the arrays begin behind a head of so many bytes."""
    return -(-(_CALL.size + _START.size + head) // _ALIGN) * _ALIGN


def _take_room(fd: int, there: int, size: int) -> None:
    """Make the file so large, with memory behind every byte of it."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, there, size - there)
        else:
            for at in range(there, size, 1 << 20):
                os.pwrite(fd, bytes(min(1 << 20, size - at)), at)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
            raise
        raise errors.Full(
            f"no memory for {size >> 20} MiB to share with a model's own process; give this machine (or container) "
            "more, or send fewer rows at once"
        ) from error


def _cells(array: Array) -> tuple[int, Array, bytes]:
    """What kind of cells an array of texts has, where each ends, and their bytes."""
    if array.dtype.kind not in "OUS":
        raise TypeError(f"an array of {array.dtype} cannot be sent: send numbers, booleans, or str and bytes objects")
    cells = array.ravel().tolist()
    kinds = set(map(type, cells))
    if kinds <= {bytes}:
        kind, parts = _BYTES, cells
    elif kinds == {str}:
        kind, parts = _TEXT, [cell.encode("utf-8", "surrogatepass") for cell in cells]
    else:
        kind, parts = _MIXED, [_marked(cell) for cell in cells]
    offsets = np.zeros(len(parts) + 1, "<u8")
    np.cumsum(np.fromiter(map(len, parts), "<u8", len(parts)), out=offsets[1:])
    return kind, offsets, b"".join(parts)


def _marked(cell: object) -> bytes:
    """A cell with its kind before it."""
    if isinstance(cell, bytes):
        return b"\x00" + cell
    if isinstance(cell, str):
        return b"\x01" + cell.encode("utf-8", "surrogatepass")
    raise TypeError(f"a cell is {type(cell).__name__}, expected str or bytes")


def _texts(data: bytes, place: _Placed) -> Array:
    """The array that `_cells` took apart."""
    count = math.prod(place.shape)
    if count < 0:
        raise ValueError(f"texts of shape {place.shape}")
    ends = np.frombuffer(data, "<u8", count + 1)
    blob = data[8 * (count + 1) :]
    if ends[-1] != len(blob) or (ends[1:] < ends[:-1]).any():
        raise ValueError("texts that lie over one another")
    offsets = ends.tolist()
    parts = [blob[a:b] for a, b in pairwise(offsets)]
    array = np.empty(count, np.object_)
    if place.cells == _BYTES:
        array[:] = parts
    elif place.cells == _TEXT:
        array[:] = [part.decode("utf-8", "surrogatepass") for part in parts]
    else:
        array[:] = [part[1:] if part[:1] == b"\x00" else part[1:].decode("utf-8", "surrogatepass") for part in parts]
    return array.reshape(place.shape)
