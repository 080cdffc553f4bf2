"""Segment files: how a partition lies on disk, and what is left of it after a crash.

    ROOT/TOPIC/PARTITION/lock                        held (flock) by the partition's one writer; its pid
    ROOT/TOPIC/PARTITION/committed                   six u64: next, synced, format version, open, boot id (two)
    ROOT/TOPIC/PARTITION/00000000000000000000.seg    named by its first offset

    segment = "MSLG" | version u16 | 0 u16 | base u64 | frame*
    frame   = length u32 | crc32 u32 of the rest | first offset u64 | arrival f64 | count u32 | meta length u32
              | meta | record*
    record  = key length u32 | value length u32 | key | value

Rules of the room (numbers are little endian):
- A frame is all or nothing. A log is always a prefix of its history: a cut drops everything after it, never before.
- `committed.next` is what readers may see: frames below it are whole. `committed.synced` is stored after the sync it
  speaks of, so it may be stale after a power loss but never ahead of the disk.
- A bad frame below `next` (the machine has not restarted since) or below `synced` (it has) is corruption and is
  raised. Past that line it is the torn tail of a crash, and is cut.
- `committed` has the version of all segments beside it: a later format is told by it, before any of them is read, and
  a segment that alone says another version is damaged.
- An offset never names two different records. Where published records may be gone (power loss, failed sync, a
  restored copy without its `committed` file) the writer goes on GAP offsets ahead, and readers step over the hole.
- A new segment begins with the last meta in force, in a frame of no records, so the last segment alone knows it.
- A segment that is written no more may be replaced by one in which records lost what they said (forget.py): every frame
  and every record stays at its byte. Who deletes or replaces one holds the folder's lock, so none comes back.
- To copy a live partition by hand, leave `committed` out: the next writer rebuilds it from the frames. A backup, which
  knows where it cut, writes one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import struct
import sys
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from millstream import errors
from millstream.store.blob import fsync_path

SEGMENT = struct.Struct("<4sHHQ")
FRAME = struct.Struct("<IIQdII")
PREFIX = struct.Struct("<II")
BODY = struct.Struct("<QdII")
RECORD = struct.Struct("<II")
MAGIC, VERSION = b"MSLG", 1
GAP = 1 << 32
_COPY_BYTES = 1 << 20

logger = logging.getLogger(__name__)


class BadFrame(errors.Corrupt):
    """A frame that cannot be what was written, at byte `position` of the file."""

    def __init__(self, path: Path, position: int, why: str) -> None:
        super().__init__(f"{path} byte {position}: {why}; restore this segment from a copy, or move it away")
        self.position, self.why = position, why


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One whole frame: records [first, first + count) lie in bytes [records, end) of its segment."""

    position: int
    end: int
    first: int
    count: int
    arrival: float
    meta: bytes
    records: int

    @property
    def next(self) -> int:
        return self.first + self.count


def header(base: int) -> bytes:
    return SEGMENT.pack(MAGIC, VERSION, 0, base)


def encode(first: int, count: int, arrival: float, meta: bytes, parts: list[bytes] | tuple[bytes, ...]) -> bytes:
    """The bytes of one frame; `parts` are its records' pieces in order."""
    body = b"".join((BODY.pack(first, arrival, count, len(meta)), meta, *parts))
    return PREFIX.pack(len(body), zlib.crc32(body)) + body


def seal(frame: bytearray) -> None:
    """Give a frame whose bytes were changed its checksum."""
    PREFIX.pack_into(frame, 0, len(frame) - PREFIX.size, zlib.crc32(memoryview(frame)[PREFIX.size :]))


def segment_path(folder: Path, base: int) -> Path:
    return folder / f"{base:020d}.seg"


def segments(folder: Path) -> list[int]:
    """First offsets of the segments in a partition's folder, in order; none when there is no such folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-4]) for name in names if name.endswith(".seg"))


def mapped(path: Path) -> mmap.mmap | bytes:
    """The file's bytes as they are now, read-only."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def check_header(path: Path, data: mmap.mmap | bytes, base: int) -> None:
    if len(data) < SEGMENT.size:
        raise BadFrame(path, 0, f"a segment header has {SEGMENT.size} bytes, the file {len(data)}")
    magic, version, zero, named = SEGMENT.unpack_from(data, 0)
    if magic != MAGIC or zero or named != base:
        raise BadFrame(path, 0, f"not the header of a segment that starts at offset {base}")
    if version != VERSION:  # `committed` says so first of a log that a later Millstream wrote
        raise BadFrame(
            path, 4, f"format version {version}, and this Millstream reads {VERSION}: damaged, or of a later one"
        )


def frames(path: Path, base: int, position: int = 0, expected: int | None = None) -> Iterator[Frame]:
    """Every frame of a segment in order, checked; BadFrame at the first that is not whole.

    Starts at byte `position` (0: the first frame), where the frame of offset `expected` must be.
    """
    data = mapped(path)
    check_header(path, data, base)
    position = position or SEGMENT.size
    expected = base if expected is None else expected
    view = memoryview(data)
    while position < len(data):
        if position + FRAME.size > len(data):
            raise BadFrame(path, position, "the file ends inside a frame's header")
        length, crc, first, arrival, count, meta_length = FRAME.unpack_from(data, position)
        end = position + PREFIX.size + length
        if end > len(data) or length < BODY.size + meta_length:
            raise BadFrame(path, position, "the file ends inside a frame")
        if zlib.crc32(view[position + PREFIX.size : end]) != crc:
            raise BadFrame(path, position, "the frame's checksum does not match its bytes")
        if first != expected:
            raise BadFrame(path, position, f"the frame starts at offset {first} where {expected} was due")
        start = position + FRAME.size
        yield Frame(position, end, first, count, arrival, data[start : start + meta_length], start + meta_length)
        position, expected = end, first + count


class Mark:
    """The `committed` file, mapped: what is published and what is surely on disk. One 8-byte store a change."""

    SIZE = 48

    def __init__(self, path: Path, write: bool = False) -> None:
        flags, access = (os.O_RDWR, mmap.ACCESS_WRITE) if write else (os.O_RDONLY, mmap.ACCESS_READ)
        fd = os.open(path, flags)
        try:
            if os.fstat(fd).st_size != self.SIZE:
                raise FileNotFoundError(f"{path} does not have {self.SIZE} bytes")
            self._map = mmap.mmap(fd, self.SIZE, access=access)
        finally:
            os.close(fd)
        self.numbers = memoryview(self._map).cast("Q")
        if self.numbers[2] > VERSION:
            raise errors.Later(path, self.numbers[2], VERSION)

    @classmethod
    def create(cls, path: Path) -> Mark:
        """A new file with nothing published, marked open. Whole before it has its name, and its disk block is taken."""
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            file.write(struct.pack("<6Q", 0, 0, VERSION, 1, 0, 0))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        fsync_path(path.parent)
        return cls(path, write=True)

    @staticmethod
    def closed(next: int) -> bytes:
        """The file of a partition that ends at `next`, all of it on the disk, with no writer."""
        return struct.pack("<6Q", next, next, VERSION, 0, 0, 0)

    @property
    def next(self) -> int:
        return self.numbers[0]

    @property
    def synced(self) -> int:
        return self.numbers[1]

    @property
    def open(self) -> bool:
        return bool(self.numbers[3])

    @property
    def boot(self) -> bytes:
        return self.numbers[4:6].tobytes()

    def enter(self, next: int, boot: bytes) -> None:
        """A writer starts, everything below `next` synced. On disk before its first append."""
        self.numbers[0] = self.numbers[1] = next
        self.numbers[4:6] = memoryview(boot).cast("Q")
        self.numbers[3] = 1
        self._map.flush()

    def leave(self) -> None:
        """The writer ends with everything synced."""
        self.numbers[3] = 0
        self._map.flush()

    def distrust(self) -> None:
        """A sync failed: what is published may not be on disk. Recover as after a power loss."""
        self.numbers[4:6] = memoryview(bytes(16)).cast("Q")
        with contextlib.suppress(OSError):
            self._map.flush()


@dataclass
class Tail:
    """Where a recovered partition ends: `base` and `position` of its last segment (base -1: no segment)."""

    base: int = -1
    position: int = 0
    next: int = 0
    arrival: float = 0.0
    meta: bytes = b""
    lost: bool = False


def recover(folder: Path, mark: Mark | None, booted: bytes) -> Tail:
    """Check the segments that may have a torn tail, cut it, sync what remains. Only for the partition's writer.

    Without a mark every segment is checked. Raises errors.Corrupt for damage that no crash explains.
    """
    crashed = mark is None or mark.open
    restarted = mark is None or not any(booted) or mark.boot != booted
    synced = mark.synced if mark else 0
    whole = mark.next if mark and not (crashed and restarted) else synced
    bases = segments(folder)
    tail = Tail(lost=crashed and restarted and bool(bases))
    for index in range(max(0, bisect_left(bases, synced) - 1), len(bases)):
        path = segment_path(folder, bases[index])
        resync, bad = _follow(path, bases[index], synced, tail)
        if bad is not None:
            last = index == len(bases) - 1
            if tail.next < whole or (mark is None and not (last and _runs_out(path, bad.position))):
                raise bad
            _cut(folder, bases[index:], bad)
            if tail.base < 0:
                tail.base, tail.position = bases[index], SEGMENT.size
        if crashed and path.exists():
            _rewrite(path, resync if mark else tail.position, tail.position)
        if bad is not None:
            break
    if tail.next < whole:
        path = segment_path(folder, max(tail.base, 0))
        raise BadFrame(path, tail.position, f"the data ends at offset {tail.next}, but ran to {whole}")
    if crashed and bases:
        fsync_path(folder)
    return tail


def _follow(path: Path, base: int, synced: int, tail: Tail) -> tuple[int, BadFrame | None]:
    """Move `tail` over the segment's whole frames: (where its unsynced bytes begin, the bad frame it stopped at)."""
    if tail.base >= 0 and tail.next != base and base - tail.next < GAP:
        return 0, BadFrame(path, 0, f"the segment starts at offset {base} where {tail.next} was due")
    tail.next = base
    resync = 0 if base >= synced else SEGMENT.size
    try:
        check_header(path, mapped(path), base)
        tail.base, tail.position = base, SEGMENT.size
        for frame in frames(path, base):
            tail.position, tail.next, tail.arrival = frame.end, frame.next, frame.arrival
            tail.meta = frame.meta or tail.meta
            if tail.next <= synced:
                resync = frame.end
    except BadFrame as bad:
        return resync, bad
    return resync, None


def _runs_out(path: Path, position: int) -> bool:
    """Whether the file ends inside the frame at `position`, or holds only zeros from there: a write that was cut."""
    rest = path.read_bytes()[position:]
    if len(rest) < FRAME.size or position == 0:
        return len(rest) < FRAME.size
    return PREFIX.size + int(FRAME.unpack_from(rest)[0]) > len(rest) or not rest.strip(b"\0")


def _cut(folder: Path, bases: list[int], bad: BadFrame) -> None:
    """Drop everything from the bad frame on: later segments first, so that a crash here leaves a prefix too."""
    torn = segment_path(folder, bases[0])
    dropped = torn.stat().st_size - bad.position
    for base in reversed(bases[1:]):
        dropped += segment_path(folder, base).stat().st_size
        segment_path(folder, base).unlink()
    if bad.position < SEGMENT.size and bases[0] != segments(folder)[0]:
        torn.unlink()
    else:
        with open(torn, "r+b") as file:
            file.truncate(bad.position)
            if bad.position < SEGMENT.size:  # the first segment stays, empty: the log still begins where it began
                file.truncate(0)
                file.write(header(bases[0]))
                file.flush()
            sync(file.fileno())
    fsync_path(folder)
    logger.warning(
        "%s: cut %d bytes that no sync had covered from byte %d on: %s", torn, dropped, bad.position, bad.why
    )


def _rewrite(path: Path, start: int, end: int) -> None:
    """Write bytes [start, end) again and sync: after a failed sync only pages dirtied anew surely reach the disk."""
    fd = os.open(path, os.O_RDWR)
    try:
        for position in range(start, end, _COPY_BYTES):
            os.pwrite(fd, os.pread(fd, min(_COPY_BYTES, end - position), position), position)
        sync(fd)
    finally:
        os.close(fd)


def sync(fd: int) -> None:
    """The file's data and length are on the disk, not in its cache, when this returns."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def write_all(fd: int, data: bytes, position: int) -> None:
    """All of `data` at `position`, or OSError."""
    done = os.pwrite(fd, data, position)
    while done < len(data):
        more = os.pwrite(fd, memoryview(data)[done:], position + done)
        if more == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += more
