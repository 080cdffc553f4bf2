"""Models that are programs: loading one runs what its author wrote, so each runs in processes of its own.

Rules of the room:
- No such model without opt-in, and no file of one without a digest in its model.toml.
- What the serving process knows of a program it reads in the manifest; the program itself is only ever opened beyond
  the shared memory.
- A fault there (a crash, a hang, an exit) is one model's, for a moment: its requests fail, the process is replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from millstream import errors
from millstream.meter import Meter
from millstream.models.apart.pickles import imports_of, is_pickle
from millstream.models.apart.served import Apart
from millstream.models.environment import python_for
from millstream.models.manifest import Manifest

LOOKED_THROUGH_MAX = 64 << 20
NAMED_MAX = 8
_USUAL = {"joblib", "lightgbm", "numpy", "scipy", "sklearn", "xgboost"}

__all__ = ["Apart", "Programs"]


class Programs:
    """Loads versions that are programs. `instances`: processes of a version that does not say; `python_for(folder,
    manifest)` gives the interpreter a version runs on."""

    def __init__(
        self, meter: Meter, instances: int = 1, python_for: Callable[[Path, Manifest], Path] = python_for
    ) -> None:
        self._meter, self._instances, self._python_for = meter, instances, python_for
        self._lock = threading.Lock()
        self._loaded: list[Apart] = []
        self._closed = False

    def load(self, model: str, version: str, folder: Path, manifest: Manifest, device: str) -> Apart:
        """The version in processes of its own, ready. Its files' digests were compared by the caller. Blocks, the first
        time for as long as its environment takes to be built. Misconfigured, Corrupt."""
        check(folder, manifest)
        died, hung = (
            self._meter.counter(
                "millstream_process_restarts_total",
                "Processes of models that had to be replaced",
                {"model": model, "version": version, "cause": cause},
            )
            for cause in ("died", "hung")
        )
        loaded = Apart(
            f"{model} {version}",
            folder,
            manifest,
            device,
            manifest.batching.instances or self._instances,
            died,
            hung,
            self._python_for(folder, manifest),
        )
        with self._lock:
            self._loaded = [one for one in self._loaded if one.pids()] + [loaded]
            closed = self._closed
        if closed:
            loaded.close()
        return loaded

    def close(self) -> None:
        """End every process that is still there; blocks. What is loaded later ends at once."""
        with self._lock:
            self._closed = True
            loaded, self._loaded = self._loaded, []
        for one in loaded:
            one.close()


def check(folder: Path, manifest: Manifest) -> None:
    """Refuse a program that does not say its tensors, or has a file without a digest: Misconfigured."""
    if not manifest.inputs or not manifest.outputs:
        raise errors.Misconfigured(
            f"{folder}: a model of format {manifest.format!r} says its inputs and outputs in model.toml, so that they "
            "are known without running it; `millstream models add` writes them"
        )
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    unpinned = sorted(name for name in files if name != "model.toml" and name not in manifest.digests)
    if unpinned:
        raise errors.Misconfigured(
            f"{folder}: {', '.join(unpinned[:3])} has no digest in model.toml, and what lies beside a program may be "
            "run by it; put the version again (`millstream models add`), or remove the file"
        )


def refusal(folder: Path, manifest: Manifest) -> str:
    """Why a version that is a program is not served without opt-in, and what to do."""
    digest = manifest.digests.get(manifest.file, "no digest: it cannot be served at all")
    path = folder / manifest.file
    return (
        f"{path}: format {manifest.format!r} is a program: loading it runs what its author "
        f"wrote{_reach(path, manifest)}. If you trust this file ({digest}), allow it: `millstream serve --allow-code`, "
        "or allow_code = true in millstream.toml"
    )


def _reach(path: Path, manifest: Manifest) -> str:
    """What a pickle would import, the unusual first."""
    if not is_pickle(path) or path.stat().st_size > LOOKED_THROUGH_MAX:
        return ""
    names = sorted(imports_of(path), key=lambda name: name.partition(".")[0] in _USUAL)
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return f" (it would import {', '.join(names[:NAMED_MAX])}{more})" if names else ""
