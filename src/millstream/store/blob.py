"""Files that are whole or absent, and the digests that prove it.

Rules of the room:
- A file appears under its name only after its bytes are on disk; a crash leaves the old file or the new one, and at
  worst a `.part` beside it, which nobody reads.
- After `write_atomic` returns, the file survives power loss: the file and the folder that names it are both synced.
- No room on the disk is `errors.Full`, and what was there before is untouched.
- A lock (flock) is held until its descriptor is closed, and so gone with its process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from millstream import errors


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` at `path`, replacing what is there in one step. Durable on return. Disk full: Full."""
    part = ""
    try:
        fd, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        part = ""
        fsync_path(path.parent)
    except OSError as error:
        raise full(error, path) from error
    finally:
        if part:
            Path(part).unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A large file to be written: it appears at `path`, replacing what is there in one step, when the block ends well,
    and is durable then. For one writer at a time: what a killed one left is overwritten by the next. Disk full: Full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        raise full(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def link(path: Path, to: Path) -> None:
    """Keep what `path` is now under the name `to`, whatever becomes of `path`: a hard link, or a copy where the file
    system has none. For files that nobody writes into any more. `path` is gone: FileNotFoundError."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, to)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, to)


def fsync_path(path: Path) -> None:
    """Make a file, or the names in a folder, durable: a rename is only that after its folder is synced."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock(path: Path, wait: bool = True) -> int:
    """Take the lock that the file or folder `path` stands for, making the file; the descriptor that holds it. While
    another holds it: waits, or without `wait` BlockingIOError."""
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def locked(path: Path, refused: Exception | None = None) -> Iterator[int]:
    """Hold `lock(path)`; gives its descriptor. While another holds it: waits, or raises `refused` where given."""
    try:
        fd = lock(path, wait=refused is None)
    except BlockingIOError as error:
        raise refused or error from None
    try:
        yield fd
    finally:
        os.close(fd)


def full(error: OSError, path: Path) -> Exception:
    """`error` itself, or `Full` when it says that the disk or a quota has no room for `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.Full(f"no room on the disk for {path}: nothing was written; free some space and try again")
    return error


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes as "sha256:<hex>". Streamed: memory stays flat whatever the size."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
