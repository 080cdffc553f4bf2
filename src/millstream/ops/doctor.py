"""What is here, what is missing, and the line that gets it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from pathlib import Path

from millstream import __version__

EXTRAS = {"learn": "numba", "demo": "rich", "parquet": "pyarrow", "speech": "ctranslate2"}
LOW_DISK_BYTES = 1 << 30


def examine(path: Path | None) -> list[dict[str, str]]:
    """One line a finding: what, state, and what to do when something is not as it should be."""
    found = [
        _line("python", platform.python_version(), ""),
        _line("millstream", __version__, ""),
    ]
    for extra, package in EXTRAS.items():
        try:
            found.append(_line(f"extra {extra}", f"{package} {importlib.metadata.version(package)}", ""))
        except importlib.metadata.PackageNotFoundError:
            found.append(_line(f"extra {extra}", "not installed", f"pip install 'millstream[{extra}]'"))
    if path is not None:
        found += _folder(path)
    return found


def _folder(path: Path) -> list[dict[str, str]]:
    if not path.is_dir():
        return [_line(str(path), "no such folder", "name the folder of an installation")]
    free = shutil.disk_usage(path).free
    remedy = "" if free >= LOW_DISK_BYTES else "free some space: on a full disk the log refuses outcomes"
    lines = [_line("free disk space", f"{free / 2**30:.1f} GiB", remedy)]
    for name, remedy in (("log", "it appears with the first event"), ("models", "put a version or run `train`")):
        there = (path / name).is_dir()
        lines.append(_line(name, "present" if there else "missing", "" if there else remedy))
    return lines


def warm() -> dict[str, float | str]:
    """Compile the learner's kernels into their on-disk cache, so that no start of a service waits for it."""
    began = time.perf_counter()
    try:
        from millstream.features import warm as warm_features
        from millstream.models.online import warm as warm_online
    except ImportError:
        return {"compiled": "nothing: the extra 'learn' is not installed", "seconds": 0.0}
    warm_features()
    warm_online()
    return {"compiled": "the learner's kernels", "seconds": round(time.perf_counter() - began, 2)}


def _line(what: str, state: str, remedy: str) -> dict[str, str]:
    return {"what": what, "state": state, **({"do": remedy} if remedy else {})}
