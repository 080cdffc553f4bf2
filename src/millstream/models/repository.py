"""Models on disk: a folder a model, a folder a version, one policy file. Anyone can read it with `ls`.

    ranker/policy.toml        who gets which version
    ranker/history.jsonl      every policy there was, a line each
    ranker/13/model.toml      what the version is, with the digest of every file
    ranker/13/model.onnx

Rules of the room:
- A version is written aside, synced and renamed: it is whole or it is not there, and it never changes afterwards.
- Version numbers only grow; a number is never given twice, also when its version was removed.
- Several processes write: putting and changing policy each take a file lock, and a policy change is compare-and-swap.
- What has no toml is served too: a bare `ranker/1/model.onnx`, a folder of `.onnx` files, a single `.onnx` file.
- Nothing here is cached, so every process sees the same files.
- The history is read from its end, as far back as is asked for: it grows as long as the model lives.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import msgspec

from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.models import manifest as manifests
from millstream.models import policy as policies
from millstream.models.manifest import Manifest
from millstream.models.policy import Policy
from millstream.models.runtimes import SUFFIXES
from millstream.store.blob import digest, fsync_path, full, link, locked, write_atomic

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
NUMBER = ".put.lock"
"""File of a model: the lock that putting takes, and in it the highest number that was given."""
_FORMATS = {".onnx": "onnx"}
_EXPECTED = (
    "expected a .onnx file, a folder of .onnx files, or a folder with NAME/VERSION/model.onnx (VERSION: 1, 2 ...)"
)

_BLOCK = 1 << 16

Stamp = tuple[tuple[int, int, int], ...]


class Repository:
    """The models under `root`. `loose`: bare files served as version 1 of the model that each is named after. `clock`
    says when a policy was changed."""

    def __init__(self, root: Path, loose: Mapping[str, Path] | None = None, clock: Clock | None = None) -> None:
        self.root = root
        self._loose = dict(loose or {})
        self._clock = clock or SystemClock()

    @classmethod
    def open(cls, path: Path) -> Repository:
        """A repository over whatever `path` is. Nothing servable there: Misconfigured, saying what was expected."""
        if path.is_file() and path.suffix in _FORMATS:
            return cls(path.parent, {_model_name(path): path})
        if (path.is_file() and path.suffix in SUFFIXES) or (path / "saved_model.pb").is_file():
            raise errors.Misconfigured(
                f"{path}: only ONNX files are served as they are; another format becomes a version first: "
                f"millstream models add models {path}"
            )
        if not path.is_dir():
            raise errors.Misconfigured(
                f"{path}: {'not a model file' if path.exists() else 'no such path'}; {_EXPECTED}"
            )
        files = [file for file in sorted(path.iterdir()) if file.suffix in _FORMATS and file.is_file()]
        if files:
            return cls(path, {_model_name(file): file for file in files})
        repository = cls(path)
        if repository.models():
            return repository
        if _versions(path):
            raise errors.Misconfigured(
                f"{path} is one model with versions; serve the folder that holds it: {path.parent}"
            )
        raise errors.Misconfigured(f"{path}: no model in this folder; {_EXPECTED}")

    def models(self) -> list[str]:
        """Names of the models that have a version or a policy."""
        if self._loose:
            return sorted(self._loose)
        if not self.root.is_dir():
            return []
        folders = (folder for folder in self.root.iterdir() if _NAME.fullmatch(folder.name) and folder.is_dir())
        return sorted(f.name for f in folders if (f / "policy.toml").exists() or _versions(f))

    def versions(self, model: str) -> list[str]:
        """Versions of `model`, oldest first. Unknown model: NotFound."""
        if self._loose:
            self._file(model)
            return ["1"]
        folder = self._model(model)
        if not folder.is_dir():
            raise errors.NotFound(f"no model {model!r} in {self.root}; there are: {', '.join(self.models()) or 'none'}")
        return _versions(folder)

    def folder(self, model: str, version: str) -> Path:
        """Where the version's files lie. Unknown: NotFound."""
        if version not in (versions := self.versions(model)):
            raise errors.NotFound(f"{model} has no version {version!r}; there are: {', '.join(versions) or 'none'}")
        return self._file(model).parent if self._loose else self._model(model) / version

    def files(self, model: str, version: str) -> list[str]:
        """Names of all the files of a version, in order, but model.toml and what Python compiled beside its code; of a
        bare file, those it goes on in too."""
        folder = self.folder(model, version)
        if self._loose:
            name = self._file(model).name
            return sorted(file.name for file in folder.glob(f"{name}*") if file.is_file())
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return sorted(name for name in found if name != "model.toml" and "__pycache__" not in name.split("/"))

    def manifest(self, model: str, version: str) -> Manifest:
        """What the version says of itself; for a bare file, format and file name alone. Unreadable: Misconfigured."""
        folder = self.folder(model, version)
        if self._loose:
            file = self._file(model)
            return Manifest(format=_FORMATS[file.suffix], file=file.name)
        if (folder / "model.toml").exists():
            return manifests.read(folder / "model.toml")
        files = sorted(file.name for file in folder.iterdir() if file.suffix in _FORMATS)
        if len(files) != 1 and "model.onnx" not in files:
            raise errors.Misconfigured(f"{folder}: expected one .onnx file or a model.toml, got {files or 'neither'}")
        name = "model.onnx" if "model.onnx" in files else files[0]
        return Manifest(format=_FORMATS[Path(name).suffix], file=name)

    def verify(self, model: str, version: str) -> Manifest:
        """The manifest, after reading every file and comparing digests. A file that differs or is gone: Corrupt."""
        manifest, folder = self.manifest(model, version), self.folder(model, version)
        for name in sorted({*_files_of(manifest), *manifest.digests}):
            expected, path = manifest.digests.get(name), folder / name
            if not path.is_file():
                raise errors.Corrupt(f"{path}: the file is gone (model.toml names it); put the version again")
            if expected is not None and (got := digest(path)) != expected:
                raise errors.Corrupt(
                    f"{path}: expected {expected}, got {got}; restore the file or put the version again"
                )
        return manifest

    def put(
        self,
        model: str,
        manifest: Manifest,
        files: Mapping[str, bytes | Path],
        check: Callable[[Path, Manifest], None] | None = None,
    ) -> str:
        """Add a version holding `files` (name -> bytes, or a file to copy) and return its number. Durable on return.

        Digests are filled in. `check` sees the folder and its manifest, whole, before the version is there: what it
        raises leaves nothing behind. No room: Full, and nothing was added. Blocks while another process puts the same
        model.
        """
        if not any(name == manifest.file or name.startswith(f"{manifest.file}/") for name in files):
            raise errors.Misconfigured(f"{model}: the manifest's file {manifest.file!r} is not among {sorted(files)}")
        for name in files:
            manifests.check_file_name(name, model)
        folder = self._own(model)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / NUMBER) as lock:
            aside = folder / ".put"
            shutil.rmtree(aside, ignore_errors=True)  # whoever left it there died: the lock is ours
            try:
                aside.mkdir()
                for name, content in files.items():
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    _write(aside / name, content)
                digests = {name: digest(aside / name) for name in files}
                whole = msgspec.structs.replace(manifest, digests=digests)
                write_atomic(aside / "model.toml", manifests.render(whole))
                if check is not None:
                    check(aside, whole)
                version = str(max([int(os.pread(lock, 32, 0) or b"0"), *map(int, _versions(folder))]) + 1)
                os.pwrite(lock, version.encode(), 0)
                os.fsync(lock)
                aside.rename(folder / version)
                fsync_path(folder)
            except OSError as error:
                raise full(error, aside) from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return version

    def remove(self, model: str, version: str) -> None:
        """Delete a version for good. One that the policy names: Conflict."""
        folder = self._own(model)
        with locked(folder / ".policy.lock"):
            if role := self.policy(model).named().get(version):
                raise errors.Conflict(f"{model} {version} is the policy's {role}; change the policy before removing it")
            aside = folder / f".removed-{version}"
            self.folder(model, version).rename(aside)
        shutil.rmtree(aside)

    def policy(self, model: str) -> Policy:
        """Who gets which version of `model`; without a policy file, the highest version is live.

        A file that cannot be used: Misconfigured naming file, line, field and what was got.
        """
        versions = self.versions(model)
        path = self.root / model / "policy.toml"
        if not self._loose and path.exists():
            return policies.read(path, versions)
        if not versions:
            raise errors.NotFound(f"{model} has no version yet; put one in {self.root / model}")
        return Policy(live=versions[-1])

    def change_policy(self, model: str, change: Callable[[Policy], Policy], who: str, why: str) -> Policy:
        """Replace the policy by `change(policy)` in one durable step and return it, its version one higher.

        No change is lost: `change` always sees the last one written. A result that is not valid: Misconfigured, and
        the file stays as it was, as it does when `change` raises. The policy is in force and cannot be noted in the
        history: Full, saying that.
        """
        folder = self._own(model)
        self.versions(model)
        with locked(folder / ".policy.lock"):
            before = self.policy(model)
            when = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            number = before.version + 1
            after = policies.signed(before, change(before), who, why)
            after = msgspec.structs.replace(after, version=number, who=who, why=why, when=when)
            policies.valid(after, f"the new policy of {model}", self.versions(model))
            write_atomic(folder / "policy.toml", policies.render(after).encode())
            self._note(folder / "history.jsonl", before, after)
        return after

    def history(self, model: str, last: int | None = None) -> list[Policy]:
        """The `last` policies that `change_policy` wrote, or all of them, oldest first."""
        return list(islice(self.newest_first(model), last))[::-1]

    def newest_first(self, model: str) -> Iterator[Policy]:
        """The policies that `change_policy` wrote, newest first; of the file only what is asked for is read."""
        path = self.root / model / "history.jsonl"
        if self._loose or not path.exists():
            return
        for line in _lines_back(path):
            policy = policies.read_line(line, str(path))
            if policy is not None:  # None: torn; the next change notes it again
                yield policy

    def seen(self, model: str) -> Path | None:
        """The folder for what was seen of a model's traffic: recorded requests, its guard's state. None for a bare
        file, which has none of its own. It need not exist yet."""
        return None if self._loose else self._model(model) / "watch"

    def pin(self, model: str, into: Path) -> None:
        """Keep the model as it is at one moment in the folder `into` of the same file system: its policy with history,
        every version that the policy may name, and what was seen. Removing a version changes nothing there."""
        folder = self._own(model)
        into.mkdir(parents=True)
        with locked(folder / ".policy.lock"):  # no policy changes and no version goes; new ones may come
            for name in ("policy.toml", "history.jsonl"):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, into / name)
            for version in _versions(folder):
                for name in (*self.files(model, version), "model.toml"):
                    with suppress(FileNotFoundError):  # a bare version has no model.toml
                        link(folder / version / name, into / version / name)
        for path in (folder / "watch").glob("[!.]*.json*"):
            with suppress(FileNotFoundError, IsADirectoryError):  # replaced meanwhile
                (into / "watch").mkdir(exist_ok=True)
                shutil.copyfile(path, into / "watch" / path.name)

    def number(self, model: str) -> int:
        """The highest number that a version of `model` was ever given; 0 before the first."""
        folder = self._own(model)
        try:
            given = int((folder / NUMBER).read_bytes() or b"0")
        except FileNotFoundError:
            given = 0
        return max([given, *map(int, _versions(folder))])

    def last_usable(self, model: str) -> Policy | None:
        """The latest policy of the history whose versions are all there; None without one."""
        versions = self.versions(model)
        for policy in self.newest_first(model):
            with suppress(errors.Misconfigured):
                policies.check(policy, f"the history of {model}", versions)
                return policy
        return None

    def _note(self, path: Path, before: Policy, after: Policy) -> None:
        """Append to the history; first what a crash or a full disk kept from it the last time."""
        noted = next(self.newest_first(path.parent.name), None)
        missing = [before] if before.version and (noted is None or noted.version < before.version) else []
        try:
            with path.open("ab") as file:
                file.write(b"".join(b"\n" + msgspec.json.encode(policy) for policy in (*missing, after)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise errors.Full(
                f"policy {after.version} of {path.parent.name} is in force (live {after.live}), do not ask again: only "
                f"its line in {path} could not be written, and the next change adds it: {error.strerror or error}"
            ) from error

    def stamp(self, model: str, version: str = "") -> Stamp:
        """Changes when the model's policy or set of versions may have changed, or with `version`, that version's files.

        A few stat calls: cheap enough to poll several times a second. Something that is not there stamps as zeros.
        """
        if self._loose:
            return (_stamp(self._file(model)),)
        folder = self._model(model)
        if not version:
            return _stamp(folder / "policy.toml"), _stamp(folder)
        try:
            files = sorted((folder / version).rglob("*"))
        except OSError:
            files = []
        return _stamp(folder / version), *(_stamp(file) for file in files)

    def _model(self, model: str) -> Path:
        if not _NAME.fullmatch(model):
            raise errors.NotFound(
                f"{model[:128]!r} is not a model name: letters, digits, '.', '_' and '-', at most 128"
            )
        return self.root / model

    def _own(self, model: str) -> Path:
        """The model's folder, where versions and a policy can be written."""
        if self._loose:
            raise errors.Misconfigured(
                f"{self.root} serves bare files, which have one version and no policy; "
                f"move {model} into a folder of its own: models/{model}/1/model.onnx"
            )
        return self._model(model)

    def _file(self, model: str) -> Path:
        if model not in self._loose:
            raise errors.NotFound(f"no model {model!r} in {self.root}; there are: {', '.join(sorted(self._loose))}")
        return self._loose[model]


def _files_of(manifest: Manifest) -> list[str]:
    """The names of the model's own files: one, or all below the folder that `file` is."""
    below = [name for name in manifest.digests if name.startswith(f"{manifest.file}/")]
    return below or [manifest.file]


def _versions(folder: Path) -> list[str]:
    names = [name for name in os.listdir(folder) if _VERSION.fullmatch(name)] if folder.is_dir() else []
    return sorted((name for name in names if (folder / name).is_dir()), key=int)


def _model_name(path: Path) -> str:
    if not _NAME.fullmatch(path.stem):
        raise errors.Misconfigured(
            f"{path}: the file's name becomes the model's: use letters, digits, '.', '_' and '-'"
        )
    return path.stem


def _write(path: Path, content: bytes | Path) -> None:
    if isinstance(content, bytes):
        return write_atomic(path, content)
    shutil.copyfile(content, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return None


def _lines_back(path: Path) -> Iterator[bytes]:
    """The lines of a file, last one first, read a block at a time."""
    with path.open("rb") as file:
        at, rest = file.seek(0, os.SEEK_END), b""
        while at:
            start = max(0, at - _BLOCK)
            file.seek(start)
            first, *lines = (file.read(at - start) + rest).split(b"\n")
            yield from reversed(lines)
            at, rest = start, first
        yield rest


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
