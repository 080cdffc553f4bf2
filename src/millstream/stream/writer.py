"""The one writer of a partition: appends, group commit, segment rolls, retention.

Rules of the room:
- `_file` guards the segment (position, next offset); `_queue` guards what waits for group commit; `_syncing` lets one
  sync speak for all before it. They are taken in the order _syncing, _file, _queue, and never held while waiting.
- Nothing is published or acknowledged before it is written whole. A failed write is truncated away and raised.
- A failed sync is never tried again: the writer refuses from then on. Closing it and opening it anew recovers the
  partition as after a power loss: what was published and can be read back stays, written and synced afresh.
- A durable record becomes visible when it is durable, or earlier when a plain append behind it is published.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import fcntl
import logging
import os
import queue
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Self

import msgspec

from millstream import errors
from millstream.clock import Clock
from millstream.machine import boot
from millstream.store.blob import fsync_path, locked
from millstream.stream import segment
from millstream.stream.segment import RECORD, SEGMENT, Mark

if TYPE_CHECKING:
    from millstream.guard.pii import Redacted

logger = logging.getLogger(__name__)


def _limit(text: str, ge: float) -> msgspec.Meta:
    return msgspec.Meta(description=text, ge=ge)


def _told(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class LogLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of every partition of a log, and the Kafka cluster that keeps it, if one does; see docs/operations.md."""

    segment_bytes: Annotated[int, _limit("size at which a segment ends and the next begins, bytes", 256)] = 64 << 20
    retain_bytes: Annotated[int, _limit("segments that were read go when a partition is larger, bytes", 0)] = 4 << 30
    retain_s: Annotated[float, _limit("segments that were read go when they are older, seconds", 0)] = 30 * 86400.0
    disk_bytes_max: Annotated[int, _limit("beyond it a partition loses its oldest segments, read or not, bytes", 0)] = (
        16 << 30
    )
    value_bytes_max: Annotated[int, _limit("largest key and value of one record, bytes", 1)] = 16 << 20
    frame_bytes_max: Annotated[int, _limit("largest atomic frame, and the most that waits for a sync, bytes", 1)] = (
        32 << 20
    )
    kafka: Annotated[str, _told("brokers of a Kafka cluster that keeps the log, host:port,...; empty: the folder")] = ""
    kafka_prefix: Annotated[str, _told("what the names of topics, groups and transactions begin with there")] = ""
    kafka_options: Annotated[dict[str, str], _told("properties of librdkafka, for TLS and SASL")] = {}
    partition: Annotated[int, _limit("the first partition that this machine's serving processes write", 0)] = 0


class Retained(msgspec.Struct, frozen=True):
    """What one pass of retention deleted; `unread`: records that some group had not read (the disk limit forced it)."""

    segments: int = 0
    bytes: int = 0
    unread: int = 0


_Waiters = list[tuple[int, "asyncio.Future[int] | concurrent.futures.Future[int]"]]


class _Batch:
    """Records that wait for one frame and one sync, and who waits for them (by event loop; None: a thread)."""

    __slots__ = ("bytes", "count", "parts", "waiters")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.count = self.bytes = 0
        self.waiters: dict[asyncio.AbstractEventLoop | None, _Waiters] = {}

    def settle(self, first: int, error: errors.Error | None) -> None:
        """Answer everyone: one wake-up a loop."""
        for loop, waiters in self.waiters.items():
            if loop is None:
                _answer(waiters, first, error)
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                    loop.call_soon_threadsafe(_answer, waiters, first, error)


def _answer(waiters: _Waiters, first: int, error: errors.Error | None) -> None:
    for index, future in waiters:
        if future.done():
            continue
        if error is None:
            future.set_result(first + index)
        else:
            future.set_exception(error)


class Writer:
    """Appends to one partition; made by Log.writer. Safe to use from any thread; close it, or use it in a `with`.
    `far`: an append waits for other machines, so who answers people awaits append_durable in its place; `away`: they
    do not answer now.

    Any append raises errors.TooLarge (over a limit), errors.Full (no room: nothing was kept, try again when there is)
    or errors.Corrupt (a sync failed before: close this writer and open it again).
    """

    far = False
    away = False

    def __init__(self, folder: Path, clock: Clock, limits: LogLimits, groups_at: Callable[[], int | None]) -> None:
        """`groups_at`: the lowest offset some consumer group still has to read, None without groups."""
        self.folder, self._clock, self._limits, self._groups_at = folder, clock, limits, groups_at
        self.unread_deleted = 0
        self._file, self._queue, self._syncing = threading.Lock(), threading.Lock(), threading.Lock()
        self._retaining = threading.Lock()
        self._waiting = _Batch()
        self._written: list[tuple[_Batch, int]] = []
        self._stale: list[int] = []
        self._dirty = self._closed = False
        self._failure = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold(folder)
            try:
                self._open()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            kind = errors.Full if error.errno in (errno.ENOSPC, errno.EDQUOT) else errors.Misconfigured
            raise kind(f"cannot write to the log folder {folder}: {error.strerror}") from error
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"sync {folder}", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        booted = boot()
        path = self.folder / "committed"
        try:
            mark: Mark | None = Mark(path, write=True)
        except FileNotFoundError:
            mark = None
        tail = segment.recover(self.folder, mark, booted)
        self._next, self._arrival, self._meta = tail.next, tail.arrival, tail.meta
        if tail.lost:
            self._next = max(tail.next, mark.next if mark else 0) + segment.GAP
            logger.warning("%s may have lost unsynced records: it goes on at offset %d", self.folder, self._next)
        if tail.lost or tail.base < 0:
            self._base = self._next
            self._fd, self._position = self._create(self._base)
            segment.sync(self._fd)
            fsync_path(self.folder)
        else:
            self._fd = os.open(segment.segment_path(self.folder, tail.base), os.O_RDWR)
            self._base, self._position = tail.base, tail.position
        self._mark = mark or Mark.create(path)
        self._mark.enter(self._next, booted)
        self._numbers = self._mark.numbers

    @property
    def end(self) -> int:
        """The published end: the next offset a reader has not seen yet."""
        return self._mark.next

    @property
    def failed(self) -> str:
        """Why this writer takes nothing any more (a sync failed), or "". A new one recovers the partition."""
        return self._failure

    def last_meta(self) -> bytes:
        """The meta of the last whole frame that carried one; b"" when none did."""
        return self._meta

    def append(self, key: bytes, value: Redacted) -> int:
        """Write one record and publish it: its offset. Survives kill -9 of this process, not a power loss."""
        self._admit(len(key) + len(value))
        with self._file:
            self._ready()
            first = self._write(1, (RECORD.pack(len(key), len(value)), key, value))
            self._numbers[0] = self._next
            return first

    def append_soon(self, key: bytes, value: Redacted) -> None:
        """As append, where nobody asks for the offset: on a log that is far it does not wait."""
        self.append(key, value)

    def append_frame(self, items: Iterable[tuple[bytes, Redacted]], meta: bytes = b"", sync: bool = False) -> int:
        """Write records and `meta` as one step, all or nothing after a crash: the first offset.

        `sync=True` returns (and publishes) once it is on the disk, blocking the caller for that long.
        """
        parts: list[bytes] = []
        size = len(meta)
        for key, value in items:
            self._admit(len(key) + len(value))
            size += len(key) + len(value)
            parts += (RECORD.pack(len(key), len(value)), key, value)
        if size > self._limits.frame_bytes_max:
            raise errors.TooLarge(
                f"a frame of {size} bytes for {self.folder}; the limit is frame_bytes_max = "
                f"{self._limits.frame_bytes_max}: split it"
            )
        with self._file:
            self._ready()
            first = self._write(len(parts) // 3, parts, meta)
            if not sync:
                self._numbers[0] = self._next
        if sync:
            self._sync()
            if self._failure:
                raise self._refusal()
        return first

    def append_durable(self, key: bytes, value: Redacted) -> asyncio.Future[int]:
        """Its offset, once it is on the disk; one sync speaks for all that wait. Call it from a running event loop.

        Order within the partition is the order of calls, plain appends included. Raises errors.Busy when
        frame_bytes_max bytes wait already. A future that fails means: not acknowledged, and it may or may not be there.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._enqueue(key, value, loop, future)
        return future

    def append_durable_wait(self, key: bytes, value: Redacted) -> int:
        """As append_durable, for a thread without an event loop: blocks until the record is on the disk."""
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._enqueue(key, value, None, future)
        return future.result()

    def _admit(self, size: int) -> None:
        if size > self._limits.value_bytes_max:
            raise errors.TooLarge(
                f"a record of {size} bytes for {self.folder}; the limit is value_bytes_max = "
                f"{self._limits.value_bytes_max}"
            )

    def _ready(self) -> None:
        """Under _file, before a write: refuse if need be, and let what waits go first."""
        if self._failure or self._closed:
            raise self._refusal()
        if self._waiting.count:
            self._write_waiting()

    def _refusal(self) -> errors.Error:
        return (
            errors.Corrupt(self._failure) if self._failure else errors.Error(f"the writer of {self.folder} is closed")
        )

    def _enqueue(
        self,
        key: bytes,
        value: bytes,
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[int] | concurrent.futures.Future[int],
    ) -> None:
        size = len(key) + len(value)
        self._admit(size)
        with self._queue:
            if self._failure or self._closed:
                raise self._refusal()
            batch = self._waiting
            index = batch.count
            if index and batch.bytes + size > self._limits.frame_bytes_max:
                raise errors.Busy(
                    f"{batch.bytes} bytes wait for a sync of {self.folder}; the limit is "
                    f"frame_bytes_max = {self._limits.frame_bytes_max}: try again"
                )
            batch.parts += (RECORD.pack(len(key), len(value)), key, value)
            batch.bytes += size
            batch.count = index + 1
            waiters = batch.waiters.get(loop)
            if waiters is None:
                waiters = batch.waiters[loop] = []
            waiters.append((index, future))
        if not index:
            self._wake.put(True)

    def _write_waiting(self) -> None:
        """Under _file: what waits becomes a frame, to be synced and answered by the next _sync."""
        with self._queue:
            batch, self._waiting = self._waiting, _Batch()
        try:
            self._written.append((batch, self._write(batch.count, batch.parts)))
        except errors.Error as error:
            batch.settle(0, error)

    def _write(self, count: int, parts: list[bytes] | tuple[bytes, ...], meta: bytes = b"") -> int:
        """Under _file: one frame into the segment, unpublished: its first offset."""
        now = self._clock.now()
        arrival = self._arrival if now < self._arrival else now
        first = self._next
        frame = segment.encode(first, count, arrival, meta, parts)
        if self._position + len(frame) > self._limits.segment_bytes and first > self._base:
            self._roll()
        try:
            segment.write_all(self._fd, frame, self._position)
        except OSError as error:
            self._take_back(error)
        self._position += len(frame)
        self._arrival, self._next, self._dirty = arrival, first + count, True
        if meta:
            self._meta = meta
        return first

    def _take_back(self, error: OSError) -> NoReturn:
        """A write failed: leave no part of it, then say so."""
        try:
            os.ftruncate(self._fd, self._position)
        except OSError as worse:
            self._fail(f"a partial write could not be taken back ({worse.strerror})")
        raise errors.Full(f"cannot write {self.folder}: {error.strerror}; nothing was kept, free some room") from error

    def _roll(self) -> None:
        """Under _file: go on in a new segment; the sync thread sees to the old one and to retention."""
        try:
            fd, position = self._create(self._next)
        except OSError as error:
            raise errors.Full(f"cannot begin a segment in {self.folder}: {error.strerror}; nothing was kept") from error
        self._stale.append(self._fd)
        self._base, self._fd, self._position = self._next, fd, position
        self._wake.put(True)

    def _create(self, base: int) -> tuple[int, int]:
        """A new segment, with the meta in force: its descriptor and end."""
        path = segment.segment_path(self.folder, base)
        data = segment.header(base)
        if self._meta:
            data += segment.encode(base, 0, self._arrival, self._meta, ())
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            segment.write_all(fd, data, 0)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return fd, len(data)

    def _run(self) -> None:
        """The sync thread: while one sync runs, the next batch gathers."""
        while self._wake.get():
            rolled = self._sync()
            if rolled:
                try:
                    self.retain()
                except Exception:
                    logger.exception("retention of %s failed; it is tried again at the next segment", self.folder)

    def _sync(self) -> bool:
        """Write what waits, sync everything written, publish it, answer: whether a segment had ended."""
        with self._syncing:
            with self._file:
                if self._waiting.count:
                    self._write_waiting()
                written, self._written = self._written, []
                stale, self._stale = self._stale, []
                dirty, self._dirty = self._dirty, False
                upto, fd = self._next, self._fd
            if dirty and not self._failure:
                try:
                    self._to_disk(stale, fd)
                    with self._file:
                        self._numbers[1] = upto
                        if upto > self._numbers[0]:
                            self._numbers[0] = upto
                except OSError as error:
                    self._mark.distrust()
                    self._fail(f"a sync failed ({error.strerror})")
            for old in stale:
                os.close(old)
        for batch, first in written:
            batch.settle(first, self._refusal() if self._failure else None)
        return bool(stale)

    def _to_disk(self, stale: list[int], fd: int) -> None:
        for old in stale:
            segment.sync(old)
        if stale:
            fsync_path(self.folder)
        segment.sync(fd)

    def _fail(self, why: str) -> None:
        self._failure = f"{self.folder}: {why}; nothing unsynced was acknowledged. Close this writer and open it again"
        logger.error("%s", self._failure)

    def roll(self) -> int:
        """Go on in a new segment, if there is a record in this one; the offset at which it begins. What lies before it
        is on the disk when this returns, and nobody writes there any more."""
        with self._file:
            self._ready()
            if self._next > self._base:
                self._roll()
                self._dirty = True
            base = self._base
        self._sync()
        if self._failure:
            raise self._refusal()
        return base

    @property
    def closed(self) -> bool:
        """Whether this writer was closed."""
        return self._closed

    def retain(self) -> Retained:
        """Delete the oldest segments that are beyond retain_bytes or retain_s and that every group has read.

        Beyond disk_bytes_max unread ones go too, counted and logged. The segment being written always stays.
        """
        with self._retaining, locked(self.folder):
            bases = segment.segments(self.folder)
            paths = [segment.segment_path(self.folder, base) for base in bases]
            sizes = [path.stat().st_size for path in paths]
            total, now, groups_at = sum(sizes), self._clock.now(), self._groups_at()
            deleted = freed = unread = 0
            for index, path in enumerate(paths[:-1]):
                forced = total > self._limits.disk_bytes_max
                is_read = groups_at is None or bases[index + 1] <= groups_at
                old = now - _first_arrival(paths[index + 1], now) > self._limits.retain_s
                if not (forced or (is_read and (old or total > self._limits.retain_bytes))):
                    break
                if not is_read:
                    unread += _records_from(path, bases[index], groups_at or 0)
                path.unlink()
                deleted, freed, total = deleted + 1, freed + sizes[index], total - sizes[index]
            if unread:
                self.unread_deleted += unread
                logger.warning("%s: disk_bytes_max forced out %d records unread by a group", self.folder, unread)
            return Retained(deleted, freed, unread)

    def close(self) -> None:
        """Write and sync everything that waits, answer it, give the partition free. Again is harmless."""
        with self._queue:
            if self._closed:
                return
            self._closed = True
        self._wake.put(False)
        self._thread.join()
        self._sync()
        if not self._failure:
            self._mark.leave()
        with self._file:
            os.close(self._fd)
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def holder(folder: Path) -> str:
    """The process that writes a partition now, by its id; "" where none does."""
    try:
        fd = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except OSError:
        return os.read(fd, 32).decode() or "unknown"
    finally:
        os.close(fd)


def hold(folder: Path) -> int:
    """Be a partition's one writer on this machine, until the descriptor is closed; Conflict while another is."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 32).decode() or "unknown"
        os.close(fd)
        raise errors.Conflict(
            f"{folder} has a writer already (process {holder}), and a partition has one: "
            "stop that process (`millstream up`?) first"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _records_from(path: Path, base: int, offset: int) -> int:
    """How many records of a segment have this offset or a later one."""
    return sum(max(0, frame.next - max(frame.first, offset)) for frame in segment.frames(path, base))


def _first_arrival(path: Path, otherwise: float) -> float:
    """When the first record of a segment arrived; `otherwise` while it has no whole frame header."""
    with open(path, "rb") as file:
        file.seek(SEGMENT.size)
        start = file.read(segment.FRAME.size)
    try:
        return float(segment.FRAME.unpack(start)[3])
    except struct.error:
        return otherwise
