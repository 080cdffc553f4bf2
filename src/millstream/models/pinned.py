"""What was checked is what runs: a version's Python files, imported as their digests say.

Rules of the room:
- A file is compared as it is read, in the same breath; one without a digest is refused, unless there are none at all
  (a version that is only being looked into).
- No compiled leftovers are read, and none are written.
- Only the standard library: this runs in the processes of programs too.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from millstream import errors

Digests = Mapping[str, str]


class Pinned(SourceFileLoader):
    """Loads a file of `folder`, whose digests are named by the path below it. Corrupt."""

    def __init__(self, folder: Path, digests: Digests, name: str, path: str) -> None:
        super().__init__(name, path)
        self._folder, self._digests = folder, digests

    def get_data(self, path: str) -> bytes:
        """The file's source."""
        data = super().get_data(path)
        said = self._digests.get(Path(path).relative_to(self._folder).as_posix())
        if self._digests and said != f"sha256:{hashlib.sha256(data).hexdigest()}":
            raise errors.Corrupt(f"{path}: it differs from what its digest in model.toml says; put the version again")
        return data

    def path_stats(self, path: str) -> Any:
        """Nothing: importlib then reads the source, and keeps no compiled copy."""
        raise OSError("no compiled leftovers")


class Package:
    """A file as a package of its own name, with the files beside it as its modules: an entry of sys.meta_path."""

    def __init__(self, name: str, path: Path, digests: Digests) -> None:
        self.name, self._path, self._digests = name, path.absolute(), digests

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        folder = self._path.parent
        if name == self.name:
            loader = Pinned(folder, self._digests, name, str(self._path))
            return spec_from_file_location(name, self._path, loader=loader, submodule_search_locations=[str(folder)])
        if not name.startswith(f"{self.name}."):
            return None
        found = (_finder(entry, folder, self._digests).find_spec(name) for entry in path or ())
        return next((spec for spec in found if spec is not None), None)

    def forget(self) -> None:
        """Take it and its modules out of the process."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for one in [one for one in sys.modules if one == self.name or one.startswith(f"{self.name}.")]:
            del sys.modules[one]


def pin(folder: Path, digests: Digests) -> None:
    """Let the version's own Python files be imported by this process, before any other of their names."""

    def hook(path: str) -> FileFinder:
        if Path(path) != folder and folder not in Path(path).parents:
            raise ImportError
        return _finder(path, folder, digests)

    sys.path_hooks.insert(0, hook)
    sys.path.insert(0, str(folder))


def _finder(path: str, folder: Path, digests: Digests) -> FileFinder:
    pinned: Any = partial(Pinned, folder, digests)
    return FileFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (pinned, [".py"]))
