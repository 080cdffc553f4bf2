"""Whatever `serve` is told, opened as a repository: a folder, a model file, an archive, or any of these elsewhere.

Rules of the room:
- What lies elsewhere is fetched once, before anything is served; a change there is seen at the next start.
- An archive is unpacked once: the cache keeps it by the digest of its bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from millstream import config
from millstream.models import archive
from millstream.models.repository import Repository
from millstream.store import remote
from millstream.store.blob import digest, full


def open_source(where: str) -> Repository:
    """The repository that `where` names. Nothing servable there: Misconfigured, saying what was expected."""
    path = remote.fetch(where, config.cache_folder() / "remote") if remote.is_remote(where) else Path(where)
    if (name := remote.mlflow_name(where)) and path.suffix == ".onnx":
        return Repository(path.parent, {name: path})
    return Repository.open(_unpacked(path) if path.suffix == ".zip" and path.is_file() else path)


def _unpacked(path: Path) -> Path:
    """The repository in the cache that holds the archived version."""
    root = config.cache_folder() / "archives"
    home = root / digest(path).removeprefix("sha256:")
    if home.exists():
        return home
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".unpack-", dir=root))
    except OSError as error:
        raise full(error, root) from error
    try:
        archive.unpack(path, Repository(aside))
        aside.rename(home)
    except OSError as error:
        if not home.exists():  # else another process was quicker, with the same bytes
            raise full(error, root) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return home
