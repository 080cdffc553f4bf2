"""An installation again from what `backup.py` took.

Rules of the room:
- Nothing is believed before it is checked: no name leaves the folder, every digest holds.
- The settings are written last: a folder that was not restored whole does not start. What fails leaves nothing.
- Then every frame and every version is read. Damage that the installation had when it was taken is restored as it was,
  and said.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import msgspec

from millstream import errors
from millstream.clock import Clock
from millstream.models.repository import Repository
from millstream.ops.backup import DIGESTS, FORMAT, HEADER, File, Hashed, Header
from millstream.store.blob import fsync_path, full
from millstream.stream import Log

_JSON_BYTES_MAX = 256 << 20
_COPY_BYTES = 1 << 20


class _AnyHeader(msgspec.Struct, frozen=True):
    backup: int


class Restored(msgspec.Struct, frozen=True):
    """What is there again. `sound` unless there are `problems`: damage that the installation had when it was taken."""

    folder: str
    at: float
    made_by: str
    topics: dict[str, int]
    models: dict[str, list[str]]
    sound: bool
    problems: list[str]


def restore(source: Path, folder: Path, clock: Clock) -> Restored:
    """Make the installation in `source` again in `folder`, which must be empty or not there.

    Not what `backup` wrote, or torn: Corrupt; of a later Millstream: Later; no room: Full.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise errors.Misconfigured(f"{folder} is no empty folder; restore into one of its own, then move that")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(source, "r:") as tar:
            header = _extract(source, tar, folder)
        return _verified(folder, header, clock)
    except BaseException as error:
        for left in [folder] if made else [*folder.iterdir()]:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        if isinstance(error, tarfile.TarError | EOFError):
            raise errors.Corrupt(f"{source}: no whole file of `millstream backup` ({error}); copy it again") from error
        if isinstance(error, OSError):
            raise full(error, folder) from error
        raise


def _extract(source: Path, tar: tarfile.TarFile, folder: Path) -> Header:
    """Write every file where it belongs and check it, the settings after all others."""
    first = tar.next()
    if first is None or first.name != HEADER:
        raise errors.Corrupt(f"{source}: no file of `millstream backup`: {HEADER} is not its first entry")
    header = _header(source, _read(source, tar, first))
    got: dict[str, File] = {}
    settings = b""
    while (info := tar.next()) is not None:
        if info.name == DIGESTS:
            break
        if info.name == header.settings:
            settings = _read(source, tar, info)
            got[info.name] = File(f"sha256:{hashlib.sha256(settings).hexdigest()}", len(settings))
        else:
            got[info.name] = _write(source, tar, info, folder)
    if info is None:
        raise errors.Corrupt(f"{source}: it ends early; copy it again")
    try:
        told = msgspec.json.decode(_read(source, tar, info), type=dict[str, File])
    except msgspec.MsgspecError as error:
        raise errors.Corrupt(f"{source}: {DIGESTS}: {error}") from error
    told.pop(HEADER, None)
    for name in sorted(told.keys() | got.keys()):
        if told.get(name) != got.get(name):
            raise errors.Corrupt(f"{source}: {name} is not what was taken; copy the file again, or take an older one")
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        fsync_path(path)
    _sync_new(folder / header.settings, BytesIO(settings), 0o644)
    fsync_path(folder)
    return header


def _header(source: Path, text: bytes) -> Header:
    try:
        if (said := msgspec.json.decode(text, type=_AnyHeader).backup) > FORMAT:
            raise errors.Later(source, said, FORMAT)
        header = msgspec.json.decode(text, type=Header)
    except msgspec.MsgspecError as error:
        raise errors.Corrupt(f"{source}: {HEADER}: {error}") from error
    if "/" in header.settings or header.settings.startswith("."):
        raise errors.Corrupt(f"{source}: {HEADER}: {header.settings!r} is no name for a settings file")
    return header


def _read(source: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    if file is None or info.size > _JSON_BYTES_MAX:
        raise errors.Corrupt(f"{source}: {info.name} is no file of at most {_JSON_BYTES_MAX} bytes")
    return file.read()


def _write(source: Path, tar: tarfile.TarFile, info: tarfile.TarInfo, folder: Path) -> File:
    file = tar.extractfile(info) if info.isreg() else None
    if file is None or any(part in ("", ".", "..") for part in info.name.split("/")) or "\\" in info.name:
        raise errors.Corrupt(f"{source}: {info.name!r} is nothing that a backup holds")
    path = folder / info.name
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed = Hashed(file)
    _sync_new(path, hashed, info.mode)
    return File(hashed.digest, path.stat().st_size)


def _sync_new(path: Path, content: Hashed | BytesIO, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o777), "wb") as out:
        while chunk := content.read(_COPY_BYTES):
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())


def _verified(folder: Path, header: Header, clock: Clock) -> Restored:
    """Read all that was restored: what is there, and what is wrong with it."""
    problems: list[str] = []
    topics: dict[str, int] = {}
    with Log(folder / "log", clock) as log:
        for topic in log.topics():
            found = log.verify(topic)
            topics[topic] = found.records
            problems += found.corrupt
    repository = Repository(folder / "models")
    models = {model: repository.versions(model) for model in repository.models()}
    for model, versions in models.items():
        checks: list[Callable[[], object]] = [
            partial(repository.policy, model),
            *(partial(repository.verify, model, one) for one in versions),
        ]
        for check in checks:
            try:
                check()
            except errors.Error as error:
                problems.append(str(error))
    return Restored(str(folder), header.at, header.made_by, topics, models, not problems, problems)
