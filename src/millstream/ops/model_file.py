"""What a model file is, as far as that can be told without running any of it.

Rules of the room:
- A suffix says the format; what it does not say (is this `.zip` ours, is this `.py` a chain) the content does, read as
  text, never run.
- What is told is for the person who decides whether to trust the file.
"""

from __future__ import annotations

import ast
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from millstream import errors
from millstream.models.apart.pickles import UNREAD, imports_in, imports_of, is_pickle
from millstream.models.runtimes import SUFFIXES, whisper
from millstream.store.blob import digest

_IMPORTS_MAX = 12
_MEMBER_MAX = 8 << 20
"""Bytes of a file in a zip that are read: what is looked for is small, and a small zip may hold more than a disk."""


class Facts(msgspec.Struct):
    """What is known of a file or folder: `files` are names in a version -> where they lie."""

    format: str
    file: str
    files: dict[str, Path]
    bytes: int
    digest: str
    saved_with: str = ""
    imports: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """For a person, a line each."""
        count = f"{len(self.files)} files, " if len(self.files) > 1 else ""
        told = [f"{self.file}: {_WHAT[self.format]}, {count}{_size(self.bytes)}, {self.digest}"]
        if self.saved_with:
            told.append(f"saved with {self.saved_with}")
        if self.imports:
            more = f" and {len(self.imports) - _IMPORTS_MAX} more" if len(self.imports) > _IMPORTS_MAX else ""
            told.append(f"it would import {', '.join(self.imports[:_IMPORTS_MAX])}{more}")
        return told


_WHAT = {
    "onnx": "an ONNX model",
    "sklearn": "an estimator",
    "torch": "a PyTorch file",
    "keras": "a Keras model",
    "tensorflow": "a TensorFlow model",
    "python": "a Python class",
    "chain": "a chain: Python over other models",
    "whisper": "a Whisper model of CTranslate2",
    "funasr": "a recogniser of FunASR",
}


def examine(path: Path) -> Facts:
    """What lies at `path`. Nothing there: NotFound; nothing that can be a model: Misconfigured."""
    if path.is_dir():
        if (path / whisper.FILES[0]).is_file():
            return _whisper(path)
        if (path / "config.yaml").is_file() and (path / "model.pt").is_file():
            files = {f"{path.name}/{one.relative_to(path).as_posix()}": one for one in _below(path)}
            return Facts("funasr", path.name, files, _bytes(files), digest(path / "model.pt"))
        if not (path / "saved_model.pb").is_file():
            raise errors.Misconfigured(
                f"{path}: a folder is added when it is a SavedModel (it has saved_model.pb) or a Whisper model of "
                f"CTranslate2 (it has {whisper.FILES[0]}), or FunASR's (config.yaml, model.pt); {_expected()}"
            )
        files = {f"{path.name}/{one.relative_to(path).as_posix()}": one for one in _below(path)}
        return Facts("tensorflow", path.name, files, _bytes(files), digest(path / "saved_model.pb"))
    if not path.is_file():
        raise errors.NotFound(f"{path}: no such file; {_expected()}")
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise errors.Misconfigured(f"{path}: {path.suffix or 'a file without a suffix'} is no model; {_expected()}")
    if kind == "sklearn" and not is_pickle(path):
        with path.open("rb") as file:
            if not file.read(4).startswith((b"{", b"tree")):
                raise errors.Misconfigured(f"{path}: not what XGBoost or LightGBM saves a model as; {_expected()}")
    files = {path.name: path}
    if kind == "onnx":  # large ones keep their weights in files beside them, named after them
        beside = (path.with_name(path.name + suffix) for suffix in (".data", "_data"))
        files |= {one.name: one for one in beside if one.is_file()}
    facts = Facts(kind, path.name, files, _bytes(files), digest(path))
    match kind:
        case "sklearn" if is_pickle(path):
            facts.imports = tuple(imports_of(path))
        case "torch":
            facts.imports, facts.saved_with = _in_torch_zip(path)
        case "keras":
            facts.saved_with = _in_keras_zip(path)
        case "python":
            facts.format, facts.imports = _in_python(path)
    return facts


def _whisper(path: Path) -> Facts:
    """A folder that CTranslate2's converter has written, with the files of it that are needed."""
    there = {one.name for one in path.iterdir()}
    vocabulary = [name for name in whisper.VOCABULARIES if name in there]
    if absent := [name for name in whisper.FILES if name not in there] or ([] if vocabulary else ["vocabulary.json"]):
        raise errors.Misconfigured(
            f"{path}: a Whisper model of CTranslate2 has {', '.join(whisper.FILES)} and a vocabulary; {absent[0]} is "
            "not there. ct2-transformers-converter --copy_files tokenizer.json writes all of them"
        )
    files = {name: path / name for name in (*whisper.FILES, *vocabulary)}
    return Facts("whisper", whisper.FILES[0], files, _bytes(files), digest(path / whisper.FILES[0]))


def below(path: Path) -> dict[str, Path]:
    """A version's own code: a file, or a folder's files under its name."""
    if path.is_dir():
        return {f"{path.name}/{one.relative_to(path).as_posix()}": one for one in _below(path)}
    if not path.is_file():
        raise errors.NotFound(f"{path}: no such file")
    return {path.name: path}


def _below(path: Path) -> list[Path]:
    return sorted(one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts)


def _bytes(files: Mapping[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _expected() -> str:
    return f"expected a SavedModel or Whisper folder, or a file {', '.join(SUFFIXES)}"


def _in_torch_zip(path: Path) -> tuple[tuple[str, ...], str]:
    """(what its pickle would import, what it was saved with) of a PyTorch file."""
    if not zipfile.is_zipfile(path):
        return tuple(imports_of(path)), ""
    try:
        with zipfile.ZipFile(path) as held:
            for name in held.namelist():
                if name.endswith("/models/model.json"):
                    said = _json(_member(held, name))
                    return (), f"PyTorch {said.get('torch_version', '')}".strip()
            pickles = [name for name in held.namelist() if name.endswith("/data.pkl")]
            script = any(name.endswith("/constants.pkl") for name in held.namelist())
            if script or not pickles:
                return (), ""
            return tuple(imports_in(_member(held, pickles[0]))), ""
    except _BROKEN:
        return (UNREAD,), ""


def _in_keras_zip(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as held:
            if "metadata.json" not in held.namelist():
                return ""
            version = _json(_member(held, "metadata.json")).get("keras_version", "")
    except _BROKEN:
        return ""
    return f"Keras {version}" if version else ""


def _member(held: zipfile.ZipFile, name: str) -> bytes:
    """The beginning of a file in a zip; mostly all of it."""
    with held.open(name) as file:
        return file.read(_MEMBER_MAX)


_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)  # the last: encrypted, or packed otherwise


def _json(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _in_python(path: Path) -> tuple[str, tuple[str, ...]]:
    """(format, what it imports) of a person's own code."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise errors.Misconfigured(f"{path}: not Python: {error}") from error
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module or '.'}.{alias.name}" for alias in node.names}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    imports = tuple(sorted(found - {"__future__.annotations"}))
    if any(one.name == "call" and [a.arg for a in one.args.args[:1]] == ["models"] for one in functions):
        return "chain", imports
    return "python", imports
