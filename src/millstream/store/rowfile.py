"""One mapped file of rows: made, opened, checked, and who may trust it after a crash.

Rules of the room:
- What the bytes mean stands in rowcode.py, with the code that runs over them.
- A file is checked when it is opened: its head here, every row of it by `mend` before somebody writes.
- A page of a file that was not closed before the machine went down may be of any moment: `trusted` says so.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.machine import boot
from millstream.store.rowcode import BOOT, CLEAN, HEAD, MOVED, REFUSED, USED, VOUCHED

Words = NDArray[np.uint64]

MAGIC: Final = b"mstmrows"
VERSION: Final = 1
LABEL_MAX: Final = 16
ROWS_MAX: Final = 1_000_000_000
BITS_MIN: Final = 10
_STATIC = struct.Struct("<8sII16sQ")  # magic, version, width, label, bits of the index; then their CRC-32
_CRC = struct.Struct("<I")
_VOUCH = struct.Struct("<QII")  # unix microseconds, sequence number, CRC-32 of both

_LOOKS: Final = 100


def index_bits(rows: int) -> int:
    """The smallest index whose load with so many rows is at most 0.7."""
    bits = BITS_MIN
    while rows > most(bits):
        bits += 1
    return bits


def most(bits: int) -> int:
    """How many entries an index takes."""
    return (7 << bits) // 10


class Sheet:
    """One mapped file. `words`: all of it as uint64; `rows`: how many there is room for; `w`: words of a payload."""

    def __init__(self, path: Path, write: bool = False) -> None:
        """The file at `path`, checked. Not there: FileNotFoundError; damaged: Corrupt; of a later format: Later."""
        fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
        try:
            status = os.fstat(fd)
            self.node, size = node_of(status), status.st_size
            if size < HEAD * 8:
                raise _corrupt(path, f"it has {size} bytes, fewer than a head")
            self.map = mmap.mmap(fd, size, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
            magic, version, self.width, label, self.bits = _STATIC.unpack_from(self.map)
            if magic != MAGIC:
                raise _corrupt(path, f"it begins with {magic!r}, not {MAGIC!r}")
            if version > VERSION:
                raise errors.Later(path, version, VERSION)
            if zlib.crc32(self.map[: _STATIC.size]) != _CRC.unpack_from(self.map, _STATIC.size)[0]:
                raise _corrupt(path, "its head's checksum does not match")
            self.label = label.rstrip(b"\0").decode()
            self.w = -(-self.width // 8)
            self.words: Words = np.frombuffer(self.map, np.uint64, count=size // 8)
            self.rows = _rows_in(size, self.w, self.bits)
            used = int(self.words[USED])
            # it may have grown since it was mapped; after a power loss neither number needs to be of this moment
            if self.rows < 0 or (self.trusted and used > _rows_in(os.fstat(fd).st_size, self.w, self.bits)):
                raise _corrupt(path, f"it ends at byte {size}, before the last of its {used} rows")
        finally:
            os.close(fd)

    @property
    def keys(self) -> Words:
        """Keys of the rows as they are now: a copy, in no order."""
        first, stride = HEAD + (1 << self.bits) // 2, _stride(self.w)
        used = min(self.rows, int(self.words[USED]))
        found = self.words[first : first + used * stride : stride]
        return np.asarray(found[found != 0], np.uint64)

    @property
    def trusted(self) -> bool:
        """Whether what its pages say is what a writer wrote: no power loss since, or it was closed."""
        mine = boot()
        return bool(self.words[CLEAN]) or (any(mine) and self.words[BOOT : BOOT + 2].tobytes() == mine)

    @property
    def vouched(self) -> int:
        """What was vouched for last; 0: nothing."""
        if not self.trusted:
            return 0
        for _ in range(_LOOKS):  # it may be written at this moment, twice
            if found := self._vouches():
                return max(found)[1]
            if not self.words[VOUCHED : VOUCHED + 4].any():
                break
        return 0

    def _vouches(self) -> list[tuple[int, int]]:
        """Sequence number and time of each whole slot."""
        found = []
        for at in (VOUCHED * 8, VOUCHED * 8 + _VOUCH.size):
            slot = self.map[at : at + _VOUCH.size]
            when, sequence, check = _VOUCH.unpack(slot)
            if sequence and zlib.crc32(slot[: -_CRC.size]) == check:
                found.append((sequence, when))
        return found

    def vouch(self, at: int) -> None:
        """Into the slot that does not hold the latest."""
        sequence = max(self._vouches(), default=(0, 0))[0] + 1
        slot = _VOUCH.pack(at, sequence, 0)[: -_CRC.size]
        _VOUCH.pack_into(self.map, VOUCHED * 8 + (sequence & 1) * _VOUCH.size, at, sequence, zlib.crc32(slot))

    def enter(self) -> None:
        """A writer begins. What a power loss left of the vouched time is taken back."""
        if not self.trusted:
            self.words[VOUCHED : VOUCHED + 4] = 0
        self.words[BOOT : BOOT + 2] = np.frombuffer(boot(), np.uint64)
        self.words[CLEAN] = self.words[MOVED] = self.words[REFUSED] = 0
        self.map.flush(0, HEAD * 8)

    def flush(self) -> None:
        """Every byte is on the disk when this returns."""
        self.map.flush()

    def closed(self) -> None:
        """Durable, and marked as whole."""
        self.flush()
        self.words[CLEAN] = 1
        self.flush()


def node_of(status: os.stat_result) -> tuple[int, int]:
    """Which file it is, whatever its name: no other has this while somebody maps it."""
    return status.st_dev, status.st_ino


def lay_out(fd: int, width: int, label: str, bits: int, rows: int) -> None:
    """Make the empty file behind `fd` one of no entities, with room for `rows`. No room on the disk: OSError."""
    static = _STATIC.pack(MAGIC, VERSION, width, label.encode(), bits)
    take_room(fd, 0, size_of(width, bits, rows))
    os.pwrite(fd, static + _CRC.pack(zlib.crc32(static)), 0)


def size_of(width: int, bits: int, rows: int) -> int:
    """Bytes of a file."""
    return 8 * (HEAD + (1 << bits) // 2 + rows * _stride(-(-width // 8)))


def take_room(fd: int, there: int, size: int) -> None:
    """Make the file so large, with a disk block behind every byte of it: a store to a mapped hole would be a SIGBUS on
    a disk that is full by then. If there is none it is as large as before."""
    try:
        try:
            os.posix_fallocate(fd, there, size - there)
        except (AttributeError, OSError) as error:  # macOS has no such call, some file systems refuse it
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            for at in range(there, size, 1 << 20):
                os.pwrite(fd, bytes(min(1 << 20, size - at)), at)
    except OSError:
        os.ftruncate(fd, there)
        raise


def _corrupt(path: Path, why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"{path} is no whole file of rows: {why}; restore a snapshot, or delete it and have its rows made again"
    )


def _stride(w: int) -> int:
    return 3 + 2 * w


def _rows_in(size: int, w: int, bits: int) -> int:
    """Whole rows in a file of so many bytes; below 0 where it ends inside the index."""
    return (size // 8 - HEAD - (1 << bits) // 2) // _stride(w)
