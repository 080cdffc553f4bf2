"""One version as one file that runs elsewhere: a zip with everything the version has, and a header that proves it.

    millstream.json     what this is: the archive's own format, model, version, and every file with size and digest
    files/model.toml    the manifest
    files/model.pkl     and every other file of the version; wheels in files/wheels/

Rules of the room:
- The same version packs to the same bytes: names in order, fixed times, nothing compressed (weights hardly do, wheels
  are already).
- Nothing of an archive is believed before it is checked: names stay below the version's folder, sizes are those of the
  header and bounded, every digest holds. Only then does the repository get a version, with a number of its own.
- An archive that a later Millstream wrote is refused with a sentence.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

import millstream
from millstream import errors
from millstream.models import environment, manifest
from millstream.models.repository import Repository
from millstream.store.blob import digest, full, writing

FORMAT = 1
BYTES_MAX = 256 << 30
FILES_MAX = 100_000
_HEADER, _BELOW = "millstream.json", "files/"
_HEADER_BYTES_MAX = 32 << 20
_COPY_BYTES = 1 << 20
_TIME = (1980, 1, 1, 0, 0, 0)


class _File(msgspec.Struct, frozen=True):
    digest: str
    bytes: int


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """What `millstream.json` holds. `archive`: the format of all this; `version`: the number it had where it was made;
    `files`: name in the version's folder -> what it must be."""

    archive: int
    model: str
    version: str
    made_by: str
    files: dict[str, _File]


class _AnyHeader(msgspec.Struct, frozen=True):
    archive: int


class Packed(msgspec.Struct, frozen=True):
    """What `pack` made."""

    file: str
    model: str
    version: str
    files: int
    bytes: int
    digest: str


def pack(repository: Repository, model: str, version: str, to: Path, wheels: bool = False) -> Packed:
    """Write the version ("" is the live one) as an archive at `to`, replacing what is there. `wheels`: with those that
    its environment is built from, for this platform. Damaged: Corrupt; no room: Full; no wheel: Misconfigured."""
    version = version or repository.policy(model).live
    found = repository.verify(model, version)
    folder = repository.folder(model, version)
    files: dict[str, bytes | Path] = {name: folder / name for name in repository.files(model, version)}
    with tempfile.TemporaryDirectory(prefix="millstream-pack-") as aside:
        if wheels and not any(name.startswith(f"{environment.WHEELS}/") for name in files):
            wheel_files = environment.fetch_wheels(folder, found, Path(aside))
            files |= {f"{environment.WHEELS}/{wheel.name}": wheel for wheel in wheel_files}
        files["model.toml"] = manifest.render(found)
        listed = {name: _described(content) for name, content in sorted(files.items())}
        header = _Header(
            archive=FORMAT, model=model, version=version, made_by=f"millstream {millstream.__version__}", files=listed
        )
        with writing(to) as out:
            _write(out, header, files)
    return Packed(str(to), model, version, len(files), to.stat().st_size, digest(to))


def unpack(archive: Path, repository: Repository, name: str = "") -> tuple[str, str]:
    """Put the archived version under the name it had, or `name`: (model, version). Only when all of it is as the header
    says. No archive of ours: BadInput; not what was packed: Corrupt; too much of it: TooLarge; no room: Full;
    of a later Millstream: Later."""
    try:
        with zipfile.ZipFile(archive) as opened:
            header = _read_header(archive, opened)
            repository.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".unpack-", dir=repository.root) as aside:
                for file, expected in header.files.items():
                    _extract(archive, opened, file, expected, Path(aside) / file)
                found = manifest.read(Path(aside) / "model.toml")
                files = {file: Path(aside) / file for file in header.files if file != "model.toml"}
                _check_digests(archive, found, header)
                model = name or header.model
                return model, repository.put(model, found, files)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise errors.BadInput(f"{archive}: no whole archive of `millstream models pack` ({error})") from error
    except OSError as error:
        raise full(error, repository.root) from error


def _described(content: bytes | Path) -> _File:
    if isinstance(content, bytes):
        return _File(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
    return _File(digest(content), content.stat().st_size)


def _write(out: BinaryIO, header: _Header, files: Mapping[str, bytes | Path]) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
        made.writestr(zipfile.ZipInfo(_HEADER, _TIME), msgspec.json.format(msgspec.json.encode(header)))
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(f"{_BELOW}{name}", _TIME)
            info.external_attr = 0o644 << 16
            info.file_size = header.files[name].bytes
            if isinstance(content, bytes):
                made.writestr(info, content)
                continue
            with content.open("rb") as source, made.open(info, "w") as entry:
                shutil.copyfileobj(source, entry, _COPY_BYTES)


def _read_header(archive: Path, opened: zipfile.ZipFile) -> _Header:
    """The header, once the list of entries is known to be exactly what it says, within all bounds."""
    entries = opened.infolist()
    if not entries or entries[0].filename != _HEADER:
        raise errors.BadInput(f"{archive}: no archive of `millstream models pack`: {_HEADER} is not its first entry")
    with opened.open(entries[0]) as file:
        text = file.read(_HEADER_BYTES_MAX + 1)
    if len(text) > _HEADER_BYTES_MAX:
        raise errors.TooLarge(f"{archive}: {_HEADER} has over {_HEADER_BYTES_MAX} bytes")
    try:
        if (said := msgspec.json.decode(text, type=_AnyHeader).archive) > FORMAT:
            raise errors.Later(archive, said, FORMAT)
        header = msgspec.json.decode(text, type=_Header)
    except msgspec.MsgspecError as error:
        raise errors.Corrupt(f"{archive}: {_HEADER}: {error}; pack or copy it again") from error
    if len(header.files) > FILES_MAX or sum(file.bytes for file in header.files.values()) > BYTES_MAX:
        raise errors.TooLarge(f"{archive}: over {FILES_MAX} files or {BYTES_MAX} bytes")
    for name in header.files:
        if name != "model.toml":
            manifest.check_file_name(name, str(archive))
    wanted = [_HEADER, *(f"{_BELOW}{name}" for name in sorted(header.files))]
    if sorted(entry.filename for entry in entries) != sorted(wanted) or "model.toml" not in header.files:
        raise errors.Corrupt(f"{archive}: its files are not those that {_HEADER} names; pack or copy it again")
    return header


def _extract(archive: Path, opened: zipfile.ZipFile, name: str, expected: _File, to: Path) -> None:
    """One file, never more of it than the header says."""
    to.parent.mkdir(parents=True, exist_ok=True)
    entry = opened.getinfo(f"{_BELOW}{name}")
    hashed, left = hashlib.sha256(), expected.bytes
    with opened.open(entry) as source, to.open("wb") as out:
        while left >= 0 and (chunk := source.read(min(_COPY_BYTES, left + 1))):
            left -= len(chunk)
            hashed.update(chunk)
            out.write(chunk)
    if left or f"sha256:{hashed.hexdigest()}" != expected.digest:
        raise errors.Corrupt(
            f"{archive}: {name} is not what was packed (expected {expected.bytes} bytes, {expected.digest}); "
            "pack or copy it again"
        )


def _check_digests(archive: Path, found: manifest.Manifest, header: _Header) -> None:
    """The manifest inside names its files' digests too; a header that says otherwise was put together by hand."""
    for name, expected in found.digests.items():
        file = header.files.get(name)
        if file is None or file.digest != expected:
            got = file.digest if file else "no such file"
            raise errors.Corrupt(f"{archive}: {name}: model.toml says {expected}, the archive {got}; pack it again")
