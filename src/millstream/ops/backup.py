"""An installation as one file, taken while it runs. `restore.py` makes an installation of it again.

    backup.json       what this is: the backup's own format, who made it and when
    millstream.toml, keys.toml, features.py, log/..., models/..., state/..., datasets/...     as they lie there
    digests.json      size and digest of every file before it

The cut. Nothing stops meanwhile, so the parts are of different moments; they fit because **what is derived is cut
before what it derives from**. A restored installation is then one whose processes were killed before they wrote the
last of what they derive: they derive it again, as after any crash. In this order:

1. Every segment of the log that is there gets a second name, so that retention deletes nothing that step 2 refers to.
2. What groups have read, then the state (the join's snapshot): positions that only point back.
3. Topics that say what became of policies and requests (`policy`, `shadow`, any other), then every model's policy and
   versions in one moment: a policy names no version that is not there, and no change of it is logged that it lacks.
4. `deltas`, which end at or behind where those versions say that theirs begin; `examples`, from which deltas and bases
   were learnt; `outcomes` and `served`, which examples were made of; `users` and `items`, which rows were made of.
5. The highest version number given: a number that the log knows is not given again.

A partition is cut at what was published when its turn came. So whatever was acknowledged before the backup began is in
it, every offset that anything in it names lies within its log, and a restored log goes on where the cut is.

Rules of the room:
- The file is written aside, synced and renamed. What fails leaves neither half an archive nor second names.
- A backup is refused while another runs; a second name that a killed one left is removed by the next.
- Meter pages, lock files and certificates are no part of it. The keys file, which holds digests only, and the file of
  definitions are, where they lie in the installation.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO

import msgspec

import millstream
from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.models.repository import NUMBER, Repository
from millstream.store.blob import locked, writing
from millstream.stream import Log, segment
from millstream.stream.segment import GAP, SEGMENT, BadFrame, Mark

FORMAT = 1
HEADER, DIGESTS = "backup.json", "digests.json"
_FIRST_TOPICS = ("deltas", "examples", "outcomes", "served", "users", "items")
"""Those that others derive from, after the repository; topics not named here come before it."""
_PIN = ".backup"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What `backup.json` says. `backup`: the format of all this; `at`: unix seconds when the cut began; `settings`: the
    name of the settings file."""

    backup: int
    made_by: str
    at: float
    settings: str


class File(msgspec.Struct, frozen=True):
    """What a file in it is: a line of `digests.json`."""

    digest: str
    bytes: int


class Backup(msgspec.Struct, frozen=True):
    """What was taken. `topics`: name -> offset after the last record of each partition; `models`: name -> versions."""

    file: str
    at: float
    bytes: int
    topics: dict[str, list[int]]
    models: dict[str, list[str]]


def backup(folder: Path, settings: str, named: Sequence[str], to: Path, clock: Clock) -> Backup:
    """Take the installation in `folder` as the file `to`, replacing what is there. `settings`: the name of its settings
    file; `named`: those of the files that it names and that belong to the installation.

    No room: Full; damage in the log: Corrupt; another backup runs, or retention was faster: Conflict.
    """
    for part in ("log", "models", "state", "datasets"):
        if to.resolve().is_relative_to((folder / part).resolve()):
            raise errors.Misconfigured(f"{to} lies in {part}/ of the installation; write the backup somewhere else")
    with _alone(folder), _pins(folder), writing(to) as out:
        made_by = f"millstream {millstream.__version__}"
        header = Header(backup=FORMAT, made_by=made_by, at=clock.now(), settings=settings)
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            cut = _Cut(folder, tar, header)
            cut.take(settings, named)
        size = out.tell()
    return Backup(str(to), header.at, size, cut.topics, cut.models)


class _Cut:
    """One backup under way: the parts in their order, written as they are cut."""

    def __init__(self, folder: Path, tar: tarfile.TarFile, header: Header) -> None:
        self._folder, self._tar, self._header = folder, tar, header
        self._files: dict[str, File] = {}
        self._log_pins, self._model_pins = folder / "log" / _PIN, folder / "models" / _PIN
        self.topics: dict[str, list[int]] = {}
        self.models: dict[str, list[str]] = {}

    def take(self, settings: str, named: Sequence[str]) -> None:
        """Everything, in the order that the module's docstring explains."""
        self._bytes(HEADER, msgspec.json.encode(self._header))
        self._bytes(settings, (self._folder / settings).read_bytes(), self._folder / settings)
        for name in map(os.path.normpath, named):
            if not name.startswith((".", "/")) and (self._folder / name).is_file():
                self._bytes(name, (self._folder / name).read_bytes(), self._folder / name)
        topics = self._topic_names()
        for topic in topics:
            _pin_topic(self._folder / "log" / topic, self._log_pins / topic)
        self._groups()
        self._state()
        self._datasets()
        for topic in topics:
            if topic not in _FIRST_TOPICS:
                self._topic(topic)
        repository = Repository(self._folder / "models")
        for model in repository.models():
            self._model(repository, model)
        for topic in _FIRST_TOPICS:
            self._topic(topic)
        for model in repository.models():
            self._bytes(f"models/{model}/{NUMBER}", str(repository.number(model)).encode())
        self._bytes(DIGESTS, msgspec.json.encode(self._files))

    def _topic_names(self) -> list[str]:
        with Log(self._folder / "log", SystemClock()) as log:
            return log.topics()

    def _groups(self) -> None:
        path = self._folder / "log" / "groups.sqlite"
        if not path.exists():
            return
        copy = self._log_pins / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=10.0)) as source, closing(sqlite3.connect(copy)) as target:
            try:
                source.backup(target)
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise errors.Full(f"no room on the disk for {copy}: nothing was written") from error
                raise errors.Corrupt(f"{path}: {error}; move it away, and every group begins anew") from error
        self._part("log/groups.sqlite", copy)

    def _state(self) -> None:
        root = self._folder / "state"
        for path in sorted(root.rglob("*")):
            below = path.relative_to(root)
            if below.parts[0] == "meters" or path.suffix in (".lock", ".part", ".aside") or path.name[0] == ".":
                continue
            with suppress(FileNotFoundError):  # handed over, or replaced, meanwhile
                if path.is_file():
                    self._bytes(f"state/{below.as_posix()}", path.read_bytes(), path)

    def _datasets(self) -> None:
        """Versions do not change, and none is put meanwhile: `millstream curate export` holds the lock of a backup."""
        root = self._folder / "datasets"
        for path in sorted(root.rglob("*")):
            below = path.relative_to(root)
            if path.is_file() and not any(part.startswith(".") for part in below.parts):
                self._part(f"datasets/{below.as_posix()}", path)

    def _model(self, repository: Repository, model: str) -> None:
        pin = self._model_pins / model
        repository.pin(model, pin)
        self.models[model] = Repository(self._model_pins).versions(model)
        for path in sorted(pin.rglob("*")):
            if path.is_file():
                self._part(f"models/{model}/{path.relative_to(pin).as_posix()}", path)

    def _topic(self, topic: str) -> None:
        """The topic as it is published now."""
        folder, pins = self._folder / "log" / topic, self._log_pins / topic
        if not folder.is_dir():
            return
        partitions = sorted(int(name) for name in os.listdir(folder) if name.isdigit())
        self.topics[topic] = [self._partition(folder / str(p), pins / str(p), f"log/{topic}/{p}") for p in partitions]

    def _partition(self, folder: Path, pins: Path, name: str) -> int:
        """Its segments up to what is published, then a `committed` that says so: the offset after the last record."""
        try:
            end = Mark(folder / "committed").next
        except FileNotFoundError:  # its first writer is about to make it
            return 0
        _pin_partition(folder, pins)
        bases = [base for base in segment.segments(pins) if base <= end]
        due = bases[0] if bases else 0
        for base in bases:
            path = segment.segment_path(pins, base)
            if base == bases[-1]:  # it is being written: a copy holds still while it is checked
                copy = path.with_suffix(".last")
                shutil.copyfile(path, copy)
                path = copy
            if due < base < due + GAP:
                raise errors.Conflict(
                    f"{folder}: retention deleted offsets {due} to {base} while they were backed up; try again"
                )
            length, due = _whole(path, segment.segment_path(folder, base), base, end)
            if length:
                self._part(f"{name}/{segment.segment_path(pins, base).name}", path, length)
        if due < end:
            raise errors.Corrupt(f"{folder}: the data ends at offset {due}, but {end} is published")
        self._bytes(f"{name}/committed", Mark.closed(end))
        return end

    def _bytes(self, name: str, data: bytes, like: Path | None = None) -> None:
        self._add(name, BytesIO(data), len(data), like.stat().st_mode if like else 0o644)

    def _part(self, name: str, path: Path, length: int | None = None) -> None:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            self._add(name, file, stat.st_size if length is None else length, stat.st_mode)

    def _add(self, name: str, file: IO[bytes], length: int, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = length, mode & 0o777, int(self._header.at)
        hashed = Hashed(file)
        self._tar.addfile(info, hashed)
        self._files[name] = File(hashed.digest, length)


class Hashed:
    """A file that is read once, and what it was."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as of any file."""
        data = self._file.read(size)
        self._hash.update(data)
        return data

    @property
    def digest(self) -> str:
        """Of all that was read."""
        return f"sha256:{self._hash.hexdigest()}"


def _whole(path: Path, named: Path, base: int, end: int) -> tuple[int, int]:
    """(bytes, offset after them) of a segment's frames before `end`, all checked; none of a segment just begun.

    `named`: what the segment is called where it is written."""
    length, reached = 0, base
    try:
        for frame in segment.frames(path, base):
            if frame.next > end:
                break
            length, reached = frame.end, frame.next
    except BadFrame as bad:  # past what is published: being written now, or when the writer was killed
        if reached < end:
            raise BadFrame(named, bad.position, bad.why) from bad
        if bad.position < SEGMENT.size:
            return 0, base
    return max(length, SEGMENT.size), reached


def _pin_topic(folder: Path, pins: Path) -> None:
    for name in os.listdir(folder):
        if name.isdigit():
            _pin_partition(folder / name, pins / name)


def _pin_partition(folder: Path, pins: Path) -> None:
    """A second name for every segment that has none yet."""
    pins.mkdir(parents=True, exist_ok=True)
    for base in segment.segments(folder):
        path = segment.segment_path(pins, base)
        if not path.exists():
            with suppress(FileNotFoundError):  # retention was quicker; if anything needed it, the order shows a gap
                os.link(segment.segment_path(folder, base), path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    (folder / "state").mkdir(parents=True, exist_ok=True)
    other = errors.Conflict(f"another backup of {folder}, or `millstream forget`, is under way; wait for its end")
    with locked(folder / "state" / "backup.lock", other):
        yield


@contextmanager
def _pins(folder: Path) -> Iterator[None]:
    """Room for second names, empty before and gone after."""
    try:
        remove_pins(folder)
        yield
    finally:
        remove_pins(folder)


def remove_pins(folder: Path) -> None:
    """Remove the second names that a backup gave and, when it was killed, left. For who holds the lock of backups."""
    for part in ("log", "models"):
        shutil.rmtree(folder / part / _PIN, ignore_errors=True)
