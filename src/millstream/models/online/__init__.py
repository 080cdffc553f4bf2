"""Models that learn row by row and are served while they learn, a module a kind; learner.py has what they share.

A kind's kernels are loaded when that kind is first asked for: a service that serves FTRL never waits for DeepFM's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from millstream import errors
from millstream.models.online.correction import Correction
from millstream.models.online.ftrl import Ftrl, ServedFtrl, Settings, warm
from millstream.models.online.learner import Change, OnlineLearner, Served
from millstream.models.online.snapshot import kind_of

__all__ = [
    "KINDS", "Change", "Correction", "Ftrl", "OnlineLearner", "Served", "ServedFtrl", "Settings", "load", "load_served",
    "warm",
]  # fmt: skip
KINDS = ("ftrl",)


def load(path: Path) -> tuple[OnlineLearner, dict[str, str | int | float]]:
    """(learner, metadata) of the snapshot of any kind, bit for bit as saved. Damaged, or no snapshot: Corrupt."""
    learner, _ = _classes(kind_of(path), path)
    loaded: tuple[OnlineLearner, dict[str, str | int | float]] = learner.load(path)
    return loaded


def load_served(path: Path) -> Served:
    """The serving side of the snapshot of any kind, with its correction. Damaged, or no snapshot: Corrupt."""
    _, served = _classes(kind_of(path), path)
    loaded: Served = served.load(path)
    return loaded


def _classes(kind: str, where: object) -> tuple[Any, Any]:
    """(what learns, what serves) of a kind."""
    match kind:
        case "ftrl":
            return Ftrl, ServedFtrl
    known = ", ".join(KINDS)
    raise errors.Corrupt(f"{where}: a snapshot of kind {kind!r}, which is not known here; there are: {known}")
