"""Models that lie elsewhere: object stores through fsspec, and the registry of MLflow. Fetched into a folder, once.

Rules of the room:
- What is fetched is kept by its address and by what the other side says of it now (etag or time, and size): the same
  bytes are fetched once. Of one address the last KEPT states stay.
- It is fetched aside and renamed: whole under its name, or not there. What changes meanwhile is fetched again.
- Every call elsewhere is tried TRIES times at most, with pauses between.
- Names come from elsewhere: none may leave the folder it is fetched into.
- Addresses and credentials are what fsspec and MLflow read from the environment: there are no settings here.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from millstream import errors
from millstream.store.blob import fsync_path, full

TRIES = 3
KEPT = 2
FILES_MAX = 100_000
_PAUSE_S = 0.5
_MLFLOW = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/]+))")
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
_EXTRAS = {"s3": "s3", "s3a": "s3"}
T = TypeVar("T")


def is_remote(where: str) -> bool:
    """Whether `where` is an address that `fetch` takes, and no path."""
    return bool(_URI.match(where)) or where.startswith("models:/")


def fetch(uri: str, into: Path) -> Path:
    """What lies at `uri`, a file or a folder, as a path on this machine; of a version in MLflow its model file.

    Below the folder `into`, unless it lies on this machine anyway (`file://`). Blocks while it is fetched. Nothing
    there: NotFound; not to be had: Misconfigured with the reason; a package is not installed: Missing; no room: Full.
    """
    if uri.startswith("models:/"):
        return _from_mlflow(uri, into)
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    files = _Files(uri)
    return _kept(uri, into, files.stamp, files.get)


def mlflow_name(uri: str) -> str:
    """The model's name in `models:/NAME/VERSION` or `models:/NAME@ALIAS`; "" for any other address."""
    found = _MLFLOW.fullmatch(uri)
    return found["name"] if found else ""


def flavor_file(folder: Path) -> Path:
    """The model file (or folder) in what MLflow saved in `folder`. None that is served here: Misconfigured."""
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise errors.Missing.extra("mlflow", f"reading {folder / 'MLmodel'}") from error
    try:
        flavors: dict[str, dict[str, Any]] = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))["flavors"]
        for flavor, find in _FLAVORS.items():
            if flavor in flavors and (found := find(flavors[flavor])):
                path = folder / _below(found, str(folder / "MLmodel"))
                if path.exists():
                    return path
    except (OSError, KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise errors.Misconfigured(f"{folder / 'MLmodel'}: not what MLflow writes ({error})") from error
    raise errors.Misconfigured(
        f"{folder}: MLflow flavors {', '.join(flavors)}: none has a file that is served here ({', '.join(_FLAVORS)}); "
        "wrap it in a Python class of your own, or log it as ONNX"
    )


_FLAVORS: dict[str, Callable[[dict[str, Any]], str]] = {
    "onnx": lambda flavor: str(flavor.get("data", "model.onnx")),
    "sklearn": lambda flavor: str(flavor.get("pickled_model", "model.pkl")),
    "xgboost": lambda flavor: str(flavor.get("data", "model.xgb")),
    "lightgbm": lambda flavor: str(flavor.get("data", "model.lgb")),
    "pytorch": lambda flavor: f"{flavor.get('model_data', 'data')}/model.pth",
    "keras": lambda flavor: f"{flavor.get('data', 'data')}/model.keras",
    "tensorflow": lambda flavor: _tensorflow(flavor),
}
"""Flavor -> where its file lies, the best to serve first."""


def _tensorflow(flavor: dict[str, Any]) -> str:
    if flavor.get("model_type") == "keras":
        return f"{flavor.get('data', 'data')}/model{flavor.get('keras_model_file_extension') or '.keras'}"
    return str(flavor.get("saved_model_dir", ""))


class _Files:
    """The files below one address, as fsspec sees them."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        scheme = uri.partition("://")[0]
        try:
            core: Any = importlib.import_module("fsspec.core")
            self._system, self._root = core.url_to_fs(uri)
        except ImportError as error:
            if scheme in _EXTRAS:
                raise errors.Missing.extra(_EXTRAS[scheme], uri) from error
            raise errors.Missing(f"{uri} needs another package: {error}") from error
        except ValueError as error:
            raise errors.Misconfigured(f"{uri}: {error}") from error
        self._files: dict[str, dict[str, Any]] = {}

    def stamp(self) -> str:
        """What is there now: changes when any file does."""
        self._system.invalidate_cache()
        info = self._system.info(self._root)
        if info["type"] == "directory":
            found = self._system.find(self._root, detail=True)
            start = len(self._root.rstrip("/")) + 1
            self._files = {_below(name[start:], self._uri): one for name, one in found.items() if name[start:]}
        else:
            self._files = {"": info}
        if not self._files:
            raise FileNotFoundError(self._uri)
        if len(self._files) > FILES_MAX:
            raise errors.TooLarge(f"{self._uri}: {len(self._files)} files, and {FILES_MAX} are the most")
        said = [f"{name}\0{one.get('size')}\0{_said(one)}" for name, one in sorted(self._files.items())]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:32]

    def get(self, into: Path) -> Path:
        """Fetch all that `stamp` saw."""
        target = into / _below(self._root.rstrip("/").rpartition("/")[2] or "root", self._uri)
        for name, info in self._files.items():
            to = target / name if name else target
            to.parent.mkdir(parents=True, exist_ok=True)
            self._system.get_file(info["name"], str(to))
            if info.get("size") is not None and to.stat().st_size != info["size"]:
                raise OSError(f"{info['name']} came with {to.stat().st_size} of {info['size']} bytes")
        return target


def _said(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _STAMPS if info.get(key)), "")


def _from_mlflow(uri: str, into: Path) -> Path:
    found = _MLFLOW.fullmatch(uri)
    if not found:
        raise errors.BadInput(f"{uri}: expected models:/NAME/VERSION or models:/NAME@ALIAS")
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError as error:
        raise errors.Missing.extra("mlflow", uri) from error
    name, version = found["name"], found["version"]

    def stamp() -> str:
        nonlocal version
        client = mlflow.MlflowClient()
        try:
            if found["alias"]:
                version = client.get_model_version_by_alias(name, found["alias"]).version
            source = client.get_model_version_download_uri(name, version)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter of an alias
                raise FileNotFoundError(str(error)) from error
            raise
        return hashlib.sha256(f"{mlflow.get_registry_uri()}\0{version}\0{source}".encode()).hexdigest()[:32]

    def get(aside: Path) -> Path:
        target = aside / "model"
        target.mkdir()
        mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=str(target))
        return target

    return flavor_file(_kept(uri, into, stamp, get))


def _kept(uri: str, into: Path, stamp: Callable[[], str], get: Callable[[Path], Path]) -> Path:
    """What `get` puts into a folder, kept below `into` by the address and its stamp."""
    home = into / hashlib.sha256(uri.encode()).hexdigest()[:32]

    def attempt() -> Path:
        wanted = stamp()
        if found := _there(home / wanted):
            return found
        home.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".fetch-", dir=home))
        try:
            name = get(aside).name
            if stamp() != wanted:
                raise OSError("it changed while it was fetched")
            _sync(aside)
            if not (home / wanted).exists():  # else another process was quicker, with the same bytes
                aside.rename(home / wanted)
                fsync_path(home)
            _drop_old(home, wanted)
            return home / wanted / name
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    return _tried(uri, into, attempt)


def _there(folder: Path) -> Path | None:
    return next(iter(sorted(folder.iterdir())), None) if folder.is_dir() else None


def _tried(uri: str, into: Path, attempt: Callable[[], T]) -> T:
    """`attempt`, again after what may pass. Of the many errors of many clients only these are told apart."""
    for left in reversed(range(TRIES)):
        try:
            return attempt()
        except errors.Error:
            raise
        except FileNotFoundError as error:
            raise errors.NotFound(f"{uri}: nothing there ({error})") from error
        except PermissionError as error:
            raise errors.Misconfigured(f"{uri}: not allowed: {error}; check the credentials") from error
        except ImportError as error:
            raise errors.Missing(f"{uri} needs another package: {error}") from error
        except Exception as error:
            if isinstance(error, OSError) and isinstance(fault := full(error, into), errors.Full):
                raise fault from error
            if not left:
                why = str(error) or repr(error)
                raise errors.Misconfigured(f"{uri}: not to be had after {TRIES} tries: {why}") from error
        time.sleep(_PAUSE_S * 2 ** (TRIES - 1 - left))
    raise AssertionError("unreachable")


def _below(name: str, where: str) -> str:
    """`name`, which stays below the folder it is put into; else Misconfigured."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name or "\\" in name:
        raise errors.Misconfigured(f"{where}: {name!r} is no name for a file of a model")
    return name


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _drop_old(home: Path, newest: str) -> None:
    """Forget all but the last states of an address."""
    states = [path for path in home.iterdir() if not path.name.startswith(".") and path.name != newest]
    for path in sorted(states, key=lambda path: path.stat().st_mtime_ns)[: -(KEPT - 1) or None]:
        shutil.rmtree(path, ignore_errors=True)
