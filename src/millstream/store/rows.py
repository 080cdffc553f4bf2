"""Rows of entities for serving: fixed in width, packed, in one mapped file that many processes read while one writes.

Rules of the room:
- A row is `width` bytes that mean nothing here. Its key is a 64-bit hash, never 0. Two entities with one hash have one
  row: nothing here can tell them apart, so who makes the keys has to notice.
- One process writes (a lock beside the file says which), any number read; nobody waits for anybody. A reader gets a row
  that was put whole, the last one or, while a put runs, the one before it; never a mixture, never another key's.
- A put is in the pages of the file when it returns: it survives kill -9. After a power loss a row is the one that was
  on the disk, or missing, and what was vouched for counts as never said, unless the writer had closed the file.
- Memory is bounded: `limit` entities. A new one beyond that is refused and counted; `drop` forgets old ones.
- The file grows in place by a 32nd of its rows, at least 1024; when its index is 0.7 full it is written anew beside
  itself with a larger one, and renamed. Every byte has its disk block before it is used: a full disk is `Full`, and
  what there was goes on.
- Whoever reads looks once a second whether another file lies at its path, made after this one was deleted, and goes on
  with that. Without any it keeps what it has.
- A row that is removed is overwritten with zeros and used for the next new entity. When fewer than half of the rows in
  use are left after a `drop`, the file is written anew, smaller.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.store import blob, rowcode, rowfile
from millstream.store.rowfile import Sheet

Keys = NDArray[np.uint64]
Rows = NDArray[np.uint8]

SECOND: Final = 1_000_000
LIMIT: Final = 1_000_000
STEP: Final = 1024
WIDTH_MAX: Final = 65536
LOOK_S: Final = 1.0
_OPENINGS: Final = 16


class Found(NamedTuple):
    """Rows in the order of the keys: `rows` uint8 [n, width], zeros where there is none; `written` int64 [n], unix
    microseconds when each was put, 0 where there is none."""

    rows: Rows
    written: NDArray[np.int64]


class RowStore(Protocol):
    """Rows by key. `at` and `before` are unix microseconds. Errors of a store that is away: Busy."""

    width: int

    def put(self, keys: Keys, rows: Rows, at: int) -> None:
        """Keep `rows` uint8 [n, width] as those of `keys` uint64 [n], none of them 0. Of one key's rows, the last."""

    def get(self, keys: Keys) -> Found:
        """The rows of `keys` [n], uint64; a key of 0 has none."""

    def vouch(self, at: int) -> None:
        """Say that every row is as it should be as of `at`."""

    def vouched(self) -> int:
        """What was vouched for last; 0: nothing."""


class RowFile:
    """A RowStore in the file `path`. `written` is in whole seconds, 1970 to 2106: the second in which a row was put.

    Many threads may `get`; what writes is for one thread at a time.
    """

    def __init__(self, path: Path, sheet: Sheet, limit: int = 0, lock: int = -1) -> None:
        self.path, self.limit, self.width = path, limit, sheet.width
        self._label, self._sheet, self._lock = sheet.label, sheet, lock
        self._look_at = time.monotonic() + LOOK_S

    @classmethod
    def create(cls, path: Path, width: int, label: str, *, limit: int = LIMIT, capacity: int = STEP) -> Self:
        """Open for writing; the file is made where there is none, with room for `capacity` entities. `label`: up to 16
        ASCII characters that say what rows mean (a feature set's hash).

        Another writer has it: Conflict. Rows of another width or label: Misconfigured. Damaged: Corrupt. Of a later
        format: Later. Full disk: Full."""
        path = path.absolute()
        if not (1 <= width <= WIDTH_MAX and 1 <= limit <= rowfile.ROWS_MAX and capacity >= 1):
            raise errors.Misconfigured(
                f"{path}: width = {width}, limit = {limit}, capacity = {capacity}: take 1 to {WIDTH_MAX} bytes a row, "
                f"a limit of 1 to {rowfile.ROWS_MAX} entities and a capacity of at least 1"
            )
        if not label.isascii() or not label.isprintable() or len(label) > rowfile.LABEL_MAX:
            raise errors.Misconfigured(
                f"{path}: label {label[:80]!r}: up to {rowfile.LABEL_MAX} printable ASCII letters"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
        try:
            path.with_name(f".{path.name}.part").unlink(missing_ok=True)  # of a writer that was killed: it holds rows
            if not path.exists():
                rows = min(capacity, limit)
                with blob.writing(path) as file:
                    rowfile.lay_out(file.fileno(), width, label, rowfile.index_bits(rows), rows)
            store = cls(path, _sheet(path, width, label, write=True), limit, lock)
            sheet = store._sheet
            sheet.enter()
            if rowcode.mend(sheet.words, sheet.bits, sheet.rows, sheet.w) > rowfile.most(sheet.bits):
                store._rewrite()
        except BaseException:
            os.close(lock)
            raise
        return store

    @classmethod
    def open(cls, path: Path, width: int, label: str) -> Self:
        """Open for reading. No such file: NotFound. Else as `create`."""
        path = path.absolute()
        try:
            return cls(path, _sheet(path, width, label))
        except FileNotFoundError:
            raise errors.NotFound(f"{path}: no such file of rows yet; start the process that writes it") from None

    @staticmethod
    def restore(snapshot: Path, to: Path, width: int, label: str) -> None:
        """Put a snapshot in the place of `to`, which nobody may have open for writing (Conflict); who reads it goes on
        with the rows of the snapshot. Errors of the snapshot are those of `open`."""
        to = to.absolute()
        RowFile.open(snapshot, width, label)
        to.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(to)
        try:
            with blob.writing(to) as file, snapshot.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
                with suppress(errors.Error, OSError):  # whatever is there goes
                    Sheet(to, write=True).words[rowcode.MOVED] = 1
        finally:
            os.close(lock)

    def close(self) -> None:
        """A writer's file is whole and on the disk then. Readers have nothing to close but the mapping."""
        if self._lock >= 0:
            self._sheet.closed()
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many entities have a row."""
        return int(self._newest().words[rowcode.LIVE])

    @property
    def refused(self) -> int:
        """How many puts of new entities there was no room for since the writer opened the file."""
        return int(self._newest().words[rowcode.REFUSED])

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._newest().map)

    def keys(self) -> Keys:
        """Keys of all rows, in no order. For tests and tools."""
        return self._newest().keys

    def get(self, keys: Keys) -> Found:
        """See RowStore."""
        keys = _keys(keys)
        written = np.empty(len(keys), np.int64)
        self._look()
        for _ in range(_OPENINGS):
            sheet = self._sheet
            out = np.empty((len(keys), sheet.w), np.uint64)
            if not rowcode.gather(sheet.words, sheet.bits, sheet.rows, keys, out, written) or not self._renew(sheet):
                break
        rows = out.view(np.uint8)
        return Found(rows if self.width % 8 == 0 else np.ascontiguousarray(rows[:, : self.width]), written)

    def put(self, keys: Keys, rows: Rows, at: int) -> None:
        """See RowStore. No room on the disk for the rows of new entities: Full; the others were put."""
        self._writes()
        keys, data = _keys(keys), self._words(rows, len(keys))
        if not keys.all():
            raise errors.BadInput(f"{self.path}: key {int(np.argmin(keys))} is 0, which stands for no entity")
        if not 1 <= at // SECOND < 1 << 32:
            raise errors.BadInput(f"{self.path}: at = {at}: unix microseconds, of 1970 to 2106")
        done, limit, full = 0, self.limit, None
        while True:
            sheet = self._sheet
            done = rowcode.put(sheet.words, sheet.bits, sheet.rows, keys, data, done, at // SECOND, limit)
            if done == len(keys):
                break
            try:
                self._grow()
            except errors.Full as error:  # those that have a row need no room
                full, limit = error, 0
        if full:
            raise full

    def vouch(self, at: int) -> None:
        """See RowStore."""
        self._writes()
        if not 0 <= at < 1 << 63:
            raise errors.BadInput(f"{self.path}: at = {at}: unix microseconds")
        self._sheet.vouch(at)

    def vouched(self) -> int:
        """See RowStore."""
        return self._newest().vouched

    def forget(self, keys: Keys) -> int:
        """Remove the rows of `keys` (people who are to be forgotten): no byte of them is in the file, on the disk, when
        this returns. How many there were. Snapshots keep theirs."""
        self._writes()
        sheet = self._sheet
        gone = int(rowcode.forget(sheet.words, sheet.bits, sheet.rows, sheet.w, _keys(keys)))
        sheet.flush()
        return gone

    def drop(self, before: int) -> int:
        """Remove the rows that were last put before the second of `before`; how many."""
        self._writes()
        sheet = self._sheet
        gone = int(rowcode.drop(sheet.words, sheet.bits, sheet.rows, sheet.w, max(0, before // SECOND)))
        used, live = int(sheet.words[rowcode.USED]), int(sheet.words[rowcode.LIVE])
        if used > 2 * STEP and live < used // 2:
            with suppress(errors.Full):  # it stays as large as it is
                self._rewrite()
        return gone

    def sync(self) -> None:
        """What was put so far survives a power loss."""
        self._writes()
        self._sheet.flush()

    def snapshot(self, to: Path) -> None:
        """A copy of all rows, as they are now, in the file `to`: whole or not there, durable. Opening it, or `restore`,
        is the way back. No room on the disk: Full."""
        self._writes()
        live = int(self._sheet.words[rowcode.LIVE])
        with blob.writing(to.absolute()) as file:
            self._copy(Path(file.name), file.fileno(), rowfile.index_bits(live), live).words[rowcode.CLEAN] = 1

    def _grow(self) -> None:
        """Make room for one more entity at least. No room on the disk: Full."""
        sheet = self._sheet
        if sheet.words[rowcode.ENTRIES] >= rowfile.most(sheet.bits):
            return self._rewrite()
        rows = min(_more(sheet.rows), self.limit, rowfile.most(sheet.bits))
        fd = os.open(self.path, os.O_RDWR)
        try:
            rowfile.take_room(fd, os.fstat(fd).st_size, rowfile.size_of(self.width, sheet.bits, rows))
        except OSError as error:
            raise blob.full(error, self.path) from error
        finally:
            os.close(fd)
        self._sheet = Sheet(self.path, write=True)
        return None

    def _rewrite(self) -> None:
        """Write the file anew, as large as its rows need, in the place of this one. Readers follow."""
        old = self._sheet
        rows = min(_more(int(old.words[rowcode.LIVE])), max(self.limit, int(old.words[rowcode.LIVE])))
        try:
            with blob.writing(self.path) as file:
                self._copy(Path(file.name), file.fileno(), rowfile.index_bits(rows), rows)
                # before the rename: if we die right behind it, nobody must go on with the old file for ever
                old.words[rowcode.MOVED] = 1
        except BaseException:
            old.words[rowcode.MOVED] = 0
            raise
        self._sheet = Sheet(self.path, write=True)

    def _copy(self, part: Path, fd: int, bits: int, rows: int) -> Sheet:
        old, head = self._sheet, slice(rowcode.REFUSED, rowcode.VOUCHED + 4)
        rowfile.lay_out(fd, self.width, self._label, bits, rows)
        new = Sheet(part, write=True)
        new.words[head] = old.words[head]
        rowcode.copy(old.words, old.bits, old.rows, new.words, bits, old.w)
        new.flush()
        return new

    def _renew(self, sheet: Sheet) -> bool:
        """Whether there is a newer file, or more of it, than `sheet`, with which it was tried."""
        if self._lock >= 0 or self._sheet is not sheet:
            return self._sheet is not sheet
        try:
            fresh = _sheet(self.path, self.width, self._label)
        except FileNotFoundError:  # taken away; what we have is all there is
            return False
        if fresh.node == sheet.node and fresh.rows == sheet.rows:
            return False
        self._sheet = fresh
        return True

    def _look(self) -> None:
        """Follow to another file at our path: who deleted ours could not mark it as moved."""
        if self._lock >= 0 or (now := time.monotonic()) < self._look_at:
            return
        self._look_at = now + LOOK_S
        with suppress(OSError, errors.Error):  # gone, or nothing of ours: we go on, and what is vouched for ages
            if rowfile.node_of(os.stat(self.path)) != self._sheet.node:
                self._renew(self._sheet)

    def _newest(self) -> Sheet:
        self._look()
        for _ in range(_OPENINGS):
            sheet = self._sheet
            beyond = sheet.words[rowcode.USED] > sheet.rows
            if not (beyond or sheet.words[rowcode.MOVED]) or not self._renew(sheet):
                break
        return self._sheet

    def _words(self, rows: Rows, n: int) -> NDArray[np.uint64]:
        if rows.shape != (n, self.width) or rows.dtype != np.uint8:
            raise errors.BadInput(
                f"{self.path}: rows {rows.dtype} {list(rows.shape)} for {n} keys; give uint8 [{n}, {self.width}]"
            )
        if self.width % 8:
            padded = np.zeros((n, self._sheet.w * 8), np.uint8)
            padded[:, : self.width] = rows
            return padded.view(np.uint64)
        words = np.ascontiguousarray(rows).view(np.uint64)
        return words if words.flags.aligned else words.copy()

    def _writes(self) -> None:
        if self._lock < 0:
            raise errors.Conflict(f"{self.path} is not open for writing here: use RowFile.create")


def _more(rows: int) -> int:
    return rows + max(STEP, rows // 32)


def _keys(keys: Any) -> Keys:
    found = np.ascontiguousarray(keys, np.uint64)
    if found.ndim != 1:
        raise errors.BadInput(f"keys {list(found.shape)}: give uint64 [n]")
    return found if found.flags.aligned else found.copy()


def _locked(path: Path) -> int:
    try:
        return blob.lock(path.with_name(f"{path.name}.lock"), wait=False)
    except BlockingIOError:
        raise errors.Conflict(f"{path} has a writer already, and has one at a time: stop that process first") from None


def _sheet(path: Path, width: int, label: str, write: bool = False) -> Sheet:
    sheet = Sheet(path, write)
    if (sheet.width, sheet.label) != (width, label):
        raise errors.Misconfigured(
            f"{path} has rows of {sheet.width} bytes labelled {sheet.label!r}, not of {width} labelled {label!r}: give "
            "every feature set a file of its own"
        )
    return sheet
