"""The access log: one line of JSON a request, written beside the event loop.

Rules of the room:
- Answers never wait for the log. Lines that find no room in memory or on the disk are dropped, counted and said once;
  it goes on by itself when there is room.
- The file is bounded: at `bytes_max` it becomes FILE.1, FILE.1 becomes FILE.2, and the oldest goes. Several processes
  may write one file: lines stay whole, and one of them turns it over.
- A file that somebody else moved away (logrotate) is made anew within a second of the next line.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import orjson
from msgspec import Meta

from millstream.errors import Misconfigured
from millstream.front.aside import Aside
from millstream.front.record import Record
from millstream.meter import Meter

logger = logging.getLogger(__name__)

STDOUT = "-"
PIPE_BYTES = 4096  # written in one piece, or not at all (PIPE_BUF of Linux)


class AccessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where each request leaves a line."""

    file: Annotated[
        str, Meta(description="one line of JSON a request goes there; -: to stdout; empty: no access log")
    ] = ""
    bytes_max: Annotated[int, Meta(ge=1024, description="of the file, before it is turned over")] = 100 << 20
    files: Annotated[int, Meta(ge=1, le=1000, description="older files that are kept")] = 5
    waiting_max: Annotated[
        int, Meta(ge=1, description="lines that wait for the disk; more are dropped and counted")
    ] = 10_000


class AccessLog:
    """A sink of records. Misconfigured: the file cannot be written at the start."""

    def __init__(self, settings: AccessSettings, folder: Path, meter: Meter) -> None:
        self._settings = settings
        self._path = folder / settings.file
        self._fd = 1 if settings.file == STDOUT else -1
        self._torn = False
        self._failing = 0  # lines lost since the disk takes none
        lost = ("millstream_access_lost_total", "Lines that the access log has not got, by cause")
        self._lost = meter.counter(*lost, {"cause": "disk"})
        self._aside = Aside(
            "millstream-access", self._take, settings.waiting_max, meter.counter(*lost, {"cause": "queue"})
        )
        self.start, self.put, self.stop = self._aside.start, self._aside.put, self._aside.stop
        try:
            self._open()
        except OSError as error:
            raise Misconfigured(f"{self._path}: {error.strerror}; the access log wants a file it can write") from None

    def _take(self, records: list[Record]) -> None:
        data = b"".join([line(record) for record in records])
        try:
            self._open()
            self._turn_over(len(data))
            if self._torn:
                data = b"\n" + data  # what came before it broke off within a line
            for piece in self._pieces(data):
                while piece:
                    self._torn = True
                    piece = piece[os.write(self._fd, piece) :]
                self._torn = False
        except OSError as error:
            self._lost.add(len(records))
            if not self._failing:
                logger.error("access log %s: %s; answers go on without it", self._path, error.strerror)
            self._failing += len(records)
            return
        if self._failing:
            logger.warning("access log %s goes on; about %d lines are missing", self._path, self._failing)
            self._failing = 0

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """What is written at once: to stdout, which may be a pipe that several processes write, whole lines of no more
        than a pipe takes in one piece. A line that is longer goes alone."""
        begin = 0
        while self._settings.file == STDOUT and len(data) - begin > PIPE_BYTES:
            end = data.rfind(b"\n", begin, begin + PIPE_BYTES) + 1 or data.index(b"\n", begin) + 1
            yield data[begin:end]
            begin = end
        if begin < len(data):
            yield data[begin:]

    def _open(self) -> None:
        """The file of that name, also when another process turned it over meanwhile."""
        if self._settings.file == STDOUT:
            return
        if self._fd >= 0:
            if self._is_there():
                return
            os.close(self._fd)
            self._fd, self._torn = -1, False
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _turn_over(self, size: int) -> None:
        """Begin a new file where this one would grow over the bound."""
        if self._settings.file == STDOUT or not 0 < os.fstat(self._fd).st_size > self._settings.bytes_max - size:
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if self._is_there():  # else another process was faster
                for older in range(self._settings.files, 1, -1):
                    if (newer := self._older(older - 1)).exists():
                        newer.replace(self._older(older))
                self._path.replace(self._older(1))
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._open()

    def _is_there(self) -> bool:
        """Whether the open file still has the name."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def line(record: Record) -> bytes:
    """The record as JSON, with its line end; what is not known is left out."""
    when = datetime.fromtimestamp(record.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    known = {
        "time": when,
        "peer": record.peer,
        "key": record.key,
        "border": record.border,
        "method": record.method,
        "route": record.route,
        "model": record.model,
        "version": record.version,
        "arm": record.arm,
        "rows": record.rows,
        "status": record.status,
        "ms": round(record.seconds * 1e3, 3),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "request": record.request,
        "tenant": record.tenant,
        "placement": record.placement,
        "rules": record.rules,
        "trace": record.trace,
    }
    return orjson.dumps({name: value for name, value in known.items() if value not in ("", 0)}) + b"\n"
