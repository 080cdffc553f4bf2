"""Find records by their keys without reading what they say: the newest first, between two times.

Rules of the room:
- A segment's records are passed header by header: a record costs a look at its header, whatever its length, and a page
  of the file where it is long. Only what is found is copied, and its frame's checksum is looked at first.
- Segments are in order of time within a partition, so those outside the two times are not opened.
- Damage ends the segment that it is in, is told (`damaged`), and the search goes on in the others.
- A log on a Kafka cluster has no segments here: it is read in pieces, from the newest back.
"""

from __future__ import annotations

import heapq
import math
import mmap
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from millstream import errors
from millstream.stream import segment
from millstream.stream.reader import Reader, Record
from millstream.stream.segment import BODY, FRAME, PREFIX, RECORD, SEGMENT, BadFrame

PIECE: Final = 2000
"""Records of a log on other machines that are asked for at once."""
Progress = Callable[[int], None]
"""Told now and then of how many records were passed since it was told last."""
_MARK: Final = 100_000
_STEP: Final = 10_000
_SINGLE: Final = struct.Struct("<IIQdIIII")  # a frame, and its first record
_SINGLE_BODY: Final = _SINGLE.size - PREFIX.size


class _Piece(NamedTuple):
    """Records [first, end) of a partition, or those of them that its segment `first` has; `begins`: when the first one
    arrived; `here`: a segment."""

    begins: float
    partition: int
    first: int
    end: int
    here: bool


class Keyed:
    """Looks for records of one topic by key; made anew for each look. `progress`: is told how far it is; `passed`: all
    records that were looked at; `damaged`: what could not be read."""

    def __init__(self, reader: Reader, progress: Progress = lambda passed: None) -> None:
        self._reader, self._progress = reader, progress
        self.passed, self._said = 0, 0
        self.damaged: list[str] = []

    def newest(self, keys: Collection[bytes], since: float = -math.inf, until: float = math.inf) -> Iterator[Record]:
        """Records with one of these keys that arrived within [since, until], newest first within a partition; of
        several partitions the piece that begins last is looked at first."""
        wanted = frozenset(keys)
        pieces = [self._pieces(partition, since, until) for partition in self._reader.partitions()]
        for piece in heapq.merge(*pieces, key=lambda one: -one.begins):
            yield from reversed([*self._walk(piece, wanted, since, until)])

    def oldest(
        self, keys: Collection[bytes] | None, since: float = -math.inf, until: float = math.inf
    ) -> Iterator[Record]:
        """As `newest`, oldest first, in the order of arrival over all partitions; `keys` None: every record."""
        wanted = None if keys is None else frozenset(keys)
        several = [self._forward(partition, wanted, since, until) for partition in self._reader.partitions()]
        yield from heapq.merge(*several, key=lambda one: one.arrival)

    def _forward(self, partition: int, wanted: frozenset[bytes] | None, since: float, until: float) -> Iterator[Record]:
        for piece in reversed([*self._pieces(partition, since, until)]):
            yield from self._walk(piece, wanted, since, until)

    def _pieces(self, partition: int, since: float, until: float) -> Iterator[_Piece]:
        """What may hold records of the time, newest first."""
        if not self._reader.here:
            yield from self._far_pieces(partition, since, until)
            return
        bases = segment.segments(self._reader.folder / str(partition))
        end = self._reader.end(partition)
        for base in reversed([base for base in bases if base < end]):
            begins = self._begins(partition, base)
            if begins is None:
                continue
            if begins <= until:
                yield _Piece(begins, partition, base, end, True)
            if begins < since:
                return

    def _far_pieces(self, partition: int, since: float, until: float) -> Iterator[_Piece]:
        start, end = self._reader.start(partition), self._reader.end(partition)
        while end > start:
            at = max(start, end - PIECE)
            first = self._reader.read(partition, at, 1)
            begins = first[0].arrival if first else math.inf  # markers alone
            if begins <= until:
                yield _Piece(begins, partition, at, end, False)
            if begins < since:
                return
            end = at

    def _begins(self, partition: int, base: int) -> float | None:
        """When the first record of a segment arrived; None where that cannot be read, or it has none yet."""
        path = segment.segment_path(self._reader.folder / str(partition), base)
        try:
            with path.open("rb") as file:
                head = file.read(SEGMENT.size + FRAME.size)
            segment.check_header(path, head, base)
        except FileNotFoundError:  # retention was faster
            return None
        except BadFrame as bad:
            self.damaged.append(str(bad))
            return None
        return float(FRAME.unpack_from(head, SEGMENT.size)[3]) if len(head) == SEGMENT.size + FRAME.size else None

    def _walk(self, piece: _Piece, wanted: frozenset[bytes] | None, since: float, until: float) -> Iterator[Record]:
        """Records of a piece with these keys that arrived within [since, until], in order."""
        walk = self._segment if piece.here else self._far
        try:
            yield from walk(piece, wanted, since, until)
        except FileNotFoundError:  # retention was faster
            return
        except errors.Corrupt as bad:
            self.damaged.append(str(bad))

    def _far(self, piece: _Piece, wanted: frozenset[bytes] | None, since: float, until: float) -> Iterator[Record]:
        at = piece.first
        while at < piece.end and (records := self._reader.read(piece.partition, at, piece.end - at)):
            for record in records:
                if record.offset >= piece.end or record.arrival > until:
                    return
                self._pass(1)
                if record.arrival >= since and (wanted is None or record.key in wanted):
                    yield record
            at = records[-1].offset + 1

    def _segment(self, piece: _Piece, wanted: frozenset[bytes] | None, since: float, until: float) -> Iterator[Record]:
        path = segment.segment_path(self._reader.folder / str(piece.partition), piece.first)
        data = segment.mapped(path)
        segment.check_header(path, data, piece.first)
        size, at, due, end, told = len(data), SEGMENT.size, piece.first, piece.end, piece.first
        keys = wanted or frozenset()
        lengths = frozenset(map(len, keys))
        single, last = _SINGLE.unpack_from, len(data) - _SINGLE.size
        while due < end and at + FRAME.size <= size:  # the rest is in the next segment
            if at <= last:
                length, _, first, arrival, count, meta, key, value = single(data, at)
            else:
                (length, _, first, arrival, count, meta), key, value = FRAME.unpack_from(data, at), 0, 0
            stop = at + PREFIX.size + length
            if first != due or stop > size or length < BODY.size + meta:
                raise BadFrame(path, at, f"no frame of offset {due} stands here")
            if arrival > until:
                return
            several = wanted is None or count != 1 or meta or length != _SINGLE_BODY + key + value
            if arrival >= since and (
                several or (key in lengths and data[at + _SINGLE.size : at + _SINGLE.size + key] in keys)
            ):
                yield from self._frame(path, data, at, piece.partition, wanted)
            at, due = stop, first + count
            if due - told >= _STEP:
                self._pass(due - told)
                told = due
        self._pass(due - told)

    def _frame(
        self, path: Path, data: mmap.mmap | bytes, at: int, partition: int, wanted: frozenset[bytes] | None
    ) -> Iterator[Record]:
        """Records with these keys of the frame at byte `at`, which lies within the file."""
        length, crc, first, arrival, count, meta = FRAME.unpack_from(data, at)
        stop, place, sure = at + PREFIX.size + length, at + FRAME.size + meta, False
        for offset in range(first, first + count):
            if place + RECORD.size > stop:
                raise BadFrame(path, at, "a record goes beyond its frame")
            key_length, value_length = RECORD.unpack_from(data, place)
            key = place + RECORD.size
            value = key + key_length
            place = value + value_length
            if wanted is not None and data[key:value] not in wanted:
                continue
            if place > stop:
                raise BadFrame(path, at, "a record goes beyond its frame")
            if not sure and zlib.crc32(data[at + PREFIX.size : stop]) != crc:
                raise BadFrame(path, at, "the frame's checksum does not match its bytes")
            sure = True
            yield Record(partition, offset, arrival, data[key:value], data[value:place])

    def _pass(self, count: int) -> None:
        self.passed += count
        if self.passed - self._said >= _MARK:
            self._progress(self.passed - self._said)
            self._said = self.passed
