"""Readers of a topic: any number, in any process, each at its own place.

Rules of the room:
- A reader sees published frames only, each checked against its checksum; it never locks and never writes.
- Reading on from where the last read ended costs what is new. A jump walks frame headers, from a sparse index.
- A reader belongs to one thread. Two that read at two places of one partition are two readers.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

import msgspec

from millstream import errors
from millstream.stream import segment
from millstream.stream.segment import FRAME, GAP, PREFIX, RECORD, SEGMENT, BadFrame, Frame, Mark

CALL_S = 10.0
"""How long a log on other machines may take for a request, tries again included."""
_CHUNK_BYTES = 1 << 20
_STRIDE_BYTES = 64 << 10
_SINGLE = struct.Struct("<IIQdIIII")  # a frame, and its first record
_SINGLE_BODY = _SINGLE.size - PREFIX.size
_AHEAD = 256  # records: so near, going on is cheaper than a jump


class Record(msgspec.Struct, frozen=True, gc=False):
    """One appended record. `arrival`: unix seconds, stamped by the log, never decreasing within a partition."""

    partition: int
    offset: int
    arrival: float
    key: bytes
    value: bytes


class Reader:
    """Reads one topic; made by Log.reader. A topic or partition that nobody has written reads as empty. `patience_s`:
    how long it may wait for a log that is on other machines; `here`: whether the segments lie in `folder`."""

    patience_s = CALL_S
    here = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.topic = folder, folder.name
        self._places: dict[int, _Place] = {}

    def partitions(self) -> list[int]:
        """The partitions that exist now, in order."""
        try:
            return sorted(int(name) for name in os.listdir(self.folder) if name.isdigit())
        except FileNotFoundError:
            return []

    def start(self, partition: int) -> int:
        """The first offset that retention has left."""
        bases = segment.segments(self.folder / str(partition))
        return bases[0] if bases else 0

    def end(self, partition: int) -> int:
        """The offset after the last published record."""
        return self._place(partition).end()

    def read(self, partition: int, offset: int, max_records: int = 1000, max_bytes: int = 8 << 20) -> list[Record]:
        """Records from `offset` on, in order; none when it is the end. At least one, then stops at either bound.

        Raises errors.NotFound when retention deleted `offset` or it lies past the end, errors.Corrupt for damage.
        """
        return self._place(partition).read(offset, max_records, max_bytes)

    def after(self, partition: int, offset: int) -> int | None:
        """Where to read on after damage at `offset`: the next segment; None while there is none."""
        bases = segment.segments(self.folder / str(partition))
        return next((base for base in bases if base > offset), None)

    def records(self, partition: int, offset: int = 0) -> Iterator[Record]:
        """Every record from `offset`, or from the first that retention left, to the end as it is at each turn."""
        at = max(offset, self.start(partition))
        while found := self.read(partition, at) if at < self.end(partition) else []:
            yield from found
            at = found[-1].offset + 1

    def frames(self, partition: int, offset: int = 0) -> Iterator[Frame]:
        """The published frames that hold `offset` or come after it, with their metas: what was committed with what.

        Frames without records (a meta alone, at the end too) are among them; so is the meta that each segment begins
        with, a repetition of the last one before it.
        """
        folder, end = self.folder / str(partition), self.end(partition)
        bases = segment.segments(folder)
        # A meta alone before `offset`'s segment may sit at this very offset, hence one segment earlier on a tie.
        for base in bases[max(0, bisect_left(bases, offset) - 1) :]:
            reached = base
            try:
                for frame in segment.frames(segment.segment_path(folder, base), base):
                    if frame.next > end:
                        return
                    reached = frame.next
                    if frame.first >= offset or frame.next > offset:
                        yield frame
            except BadFrame:
                if reached < end:
                    raise
                return  # in flight, or the torn tail of a crash

    def _place(self, partition: int) -> _Place:
        place = self._places.get(partition)
        if place is None:
            place = self._places[partition] = _Place(self.folder / str(partition), partition)
        return place


class _Place:
    """Where a reader stands in one partition: a chunk of a segment, and the record in it that comes next."""

    def __init__(self, folder: Path, partition: int) -> None:
        self._folder, self._partition = folder, partition
        self._mark: Mark | None = None
        self._base, self._fd, self._path = -1, -1, folder
        self._offset = -1
        self._chunk, self._origin, self._at = b"", 0, 0
        self._sure = 0
        self._left, self._arrival = 0, 0.0
        self._noted = 0
        self._index: dict[int, tuple[list[int], list[int]]] = {}

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def end(self) -> int:
        if self._mark is None:
            try:
                self._mark = Mark(self._folder / "committed")
            except FileNotFoundError:
                return 0
        return self._mark.next

    def read(self, offset: int, max_records: int, max_bytes: int) -> list[Record]:
        end = self.end()
        if offset >= end:
            if offset > end:
                raise errors.NotFound(f"{self._folder} ends at offset {end}: {offset} was never published here")
            return []
        if offset != self._offset and not self._walk(offset, end):
            self._seek(offset, end)
        records: list[Record] = []
        while self._offset < end and len(records) < max_records and max_bytes > 0:
            if self._left == 0:
                max_bytes -= self._run(records, max_records - len(records), max_bytes)
                if self._offset < end and len(records) < max_records and max_bytes > 0:
                    self._enter(end)
            else:
                max_bytes -= self._take(records, min(self._left, max_records - len(records)), max_bytes)
        return records

    def _run(self, records: list[Record], count: int, max_bytes: int) -> int:
        """As many whole frames as the chunk has, of one record each as most appends make them: their bytes. What is
        otherwise in any way is left to _enter."""
        chunk, at, offset, noted = self._chunk, self._at, self._offset, self._noted
        partition, origin, left = self._partition, self._origin, max_bytes
        stop_at, last = min(self._sure, offset + count), len(chunk) - FRAME.size - RECORD.size
        view, unpack, crc32, append = memoryview(chunk), _SINGLE.unpack_from, zlib.crc32, records.append
        while offset < stop_at and at <= last and left > 0:
            length, crc, first, arrival, one, meta_length, key_length, value_length = unpack(chunk, at)
            stop = at + PREFIX.size + length
            if (
                one != 1
                or meta_length
                or first != offset
                or length != _SINGLE_BODY + key_length + value_length
                or stop > len(chunk)
                or crc32(view[at + 8 : stop]) != crc
            ):
                break
            if origin + at >= noted:
                self._note(first, origin + at)
                noted = self._noted
            value = stop - value_length
            append(Record(partition, offset, arrival, chunk[value - key_length : value], chunk[value:stop]))
            left -= key_length + value_length
            at, offset = stop, offset + 1
        self._at, self._offset = at, offset
        return max_bytes - left

    def _walk(self, offset: int, end: int) -> bool:
        """Go on to a record that lies little ahead in what was read already; whether it was there."""
        if self._offset < 0 or not self._offset < offset <= self._offset + _AHEAD:
            return False
        while self._offset < offset:
            if self._left == 0:
                if len(self._chunk) - self._at < FRAME.size:
                    return False
                try:
                    self._enter(end)
                except BadFrame:  # what lies beyond it may be whole: the jump looks
                    return False
            self._pass(min(self._left, offset - self._offset))
        return True

    def _pass(self, count: int) -> None:
        """Leave out records of the frame that is entered."""
        for _ in range(count):
            key_length, value_length = RECORD.unpack_from(self._chunk, self._at)
            self._at += RECORD.size + key_length + value_length
        self._offset += count
        self._left -= count

    def _take(self, records: list[Record], count: int, max_bytes: int) -> int:
        """Up to `count` records of the frame that is entered: their bytes."""
        partition, arrival, chunk, first = self._partition, self._arrival, self._chunk, self._offset
        at, offset, left = self._at, first, max_bytes
        unpack, append = RECORD.unpack_from, records.append
        for offset in range(first, first + count):
            key_length, value_length = unpack(chunk, at)
            key = at + 8
            value = key + key_length
            at = value + value_length
            append(Record(partition, offset, arrival, chunk[key:value], chunk[value:at]))
            left -= key_length + value_length
            if left <= 0:
                break
        self._at, self._offset = at, offset + 1
        self._left -= self._offset - first
        return max_bytes - left

    def _enter(self, end: int) -> None:
        """Stand before the first record of the next frame, or in the next segment when this one ends."""
        if self._offset >= self._sure or len(self._chunk) - self._at < FRAME.size:
            self._fill(_CHUNK_BYTES)
        if len(self._chunk) < FRAME.size:
            self._step(end)
            return
        length, crc, first, arrival, count, meta_length = FRAME.unpack_from(self._chunk, self._at)
        stop = self._at + PREFIX.size + length
        if stop > len(self._chunk):
            if self._origin + stop > os.fstat(self._fd).st_size:
                raise BadFrame(self._path, self._origin + self._at, "the file ends inside a published frame")
            self._fill(max(_CHUNK_BYTES, PREFIX.size + length))
            stop = PREFIX.size + length
        position = self._origin + self._at
        if zlib.crc32(memoryview(self._chunk)[self._at + PREFIX.size : stop]) != crc:
            raise BadFrame(self._path, position, "the frame's checksum does not match its bytes")
        if first != self._offset:
            raise BadFrame(self._path, position, f"the frame starts at offset {first} where {self._offset} was due")
        self._note(first, position)
        self._left, self._arrival = count, arrival
        self._at = self._at + FRAME.size + meta_length if count else stop

    def _fill(self, size: int) -> None:
        """The chunk begins where we stand and holds up to `size` bytes."""
        self._sure = self.end()  # before the bytes: what is published now is whole in what is read after
        self._origin, self._at = self._origin + self._at, 0
        self._chunk = os.pread(self._fd, size, self._origin)

    def _step(self, end: int) -> None:
        """Into the segment after this one."""
        bases = segment.segments(self._folder)
        self._index = {base: index for base, index in self._index.items() if base in bases}
        after = next((base for base in bases if base > self._base), -1)
        if after < 0:
            raise BadFrame(self._path, self._origin, f"the data ends at offset {self._offset}, but {end} is published")
        if self._offset < after < self._offset + GAP:
            if self._base in bases:
                raise BadFrame(self._path, self._origin, f"offsets {self._offset} to {after} are missing after it")
            raise self._deleted(self._offset, bases)
        self._open(after)
        self._offset = after

    def _seek(self, offset: int, end: int) -> None:
        """Stand before the record `offset`, or at the next segment when `offset` lies in a hole before it."""
        self._offset, self._left = -1, 0
        bases = segment.segments(self._folder)
        self._index = {base: index for base, index in self._index.items() if base in bases}
        if not bases or offset < bases[0]:
            raise self._deleted(offset, bases)
        self._open(bases[bisect_right(bases, offset) - 1])
        offsets, positions = self._index.get(self._base, ((), ()))
        near = bisect_right(offsets, offset) - 1
        start, expected = (positions[near], offsets[near]) if near >= 0 else (SEGMENT.size, self._base)
        for frame in segment.frames(self._path, self._base, start, expected):
            self._note(frame.first, frame.position)
            self._origin = frame.position
            self._offset = frame.first
            if frame.next > offset:
                break
            self._origin, self._offset = frame.end, frame.next
            if self._offset >= end:
                break
        if self._offset < 0:
            self._offset = expected
        while self._left == 0 and self._offset < end:
            self._enter(end)
        self._pass(max(0, offset - self._offset))

    def _open(self, base: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._base, self._path = base, segment.segment_path(self._folder, base)
        try:
            self._fd = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            raise self._deleted(base, segment.segments(self._folder)) from None
        segment.check_header(self._path, os.pread(self._fd, SEGMENT.size, 0), base)
        self._chunk, self._origin, self._at, self._left, self._sure = b"", SEGMENT.size, 0, 0, 0
        self._noted = 0

    def _note(self, first: int, position: int) -> None:
        """Remember a frame's place, one in every _STRIDE_BYTES, going forward."""
        offsets, positions = self._index.setdefault(self._base, ([], []))
        if not positions or position >= positions[-1] + _STRIDE_BYTES:
            offsets.append(first)
            positions.append(position)
        self._noted = positions[-1] + _STRIDE_BYTES

    def _deleted(self, offset: int, bases: list[int]) -> errors.NotFound:
        self._offset = -1
        return errors.NotFound(
            f"{self._folder}: offset {offset} is no longer kept (retention); the first one available is "
            f"{bases[0] if bases else self.end()}"
        )
