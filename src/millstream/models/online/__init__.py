"""Models that learn row by row and are served while they learn, a module a kind; learner.py has what they share.

A kind's kernels are loaded when that kind is first asked for: a service that serves FTRL never waits for DeepFM's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np

from millstream import errors
from millstream.models.online import offline
from millstream.models.online.correction import Correction
from millstream.models.online.ftrl import Ftrl, ServedFtrl, Settings
from millstream.models.online.learner import Change, OnlineLearner, Served
from millstream.models.online.settings import DeepFmSettings, FmSettings, FtrlTableSettings, Kind, LearnerSettings
from millstream.models.online.snapshot import kind_of

__all__ = [
    "KINDS", "Change", "Correction", "DeepFmSettings", "FmSettings", "Ftrl", "FtrlTableSettings", "LearnerSettings",
    "OnlineLearner", "Served", "ServedFtrl", "Settings", "begin", "load", "load_served", "warm",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)


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


def begin(
    kind: Kind, settings: msgspec.Struct, width: int, path: Path | None = None, squares: float = 1.0
) -> OnlineLearner:
    """A learner that has learnt nothing, of rows of `width` tokens; with `path`, from that offline model (offline.py,
    where `squares` counts) or from that learner's state, with the rates of `settings`. Does not fit: Misconfigured."""
    learns, _ = _classes(kind, path)
    learner: OnlineLearner
    if path is not None and path.suffix != ".npz":
        before, _ = load(path)
        offline.same_shape(path, before.settings, settings, (before.width, width))
        learner = learns.load(path, settings)[0]
        learner.delta()  # whatever was pending, of another model
        return learner
    learner = learns(settings, width)
    if path is not None and not hasattr(learns, "start"):
        raise errors.Misconfigured(f"{path}: {kind} begins from nothing or from a learner's file, not from an .npz")
    if path is not None:
        learns.start(learner, offline.read(path), squares, path)
    return learner


def warm(*kinds: Kind) -> None:
    """Run every kernel of `kinds` (none named: all) once on nothing much: after this, neither a request nor a first
    example waits for one."""
    small = {
        "ftrl": Settings(bits=10),
        "ftrl_table": FtrlTableSettings(bits=10),
        "fm": FmSettings(bits=10),
        "deepfm": DeepFmSettings(bits=10),
    }
    tokens, labels = np.ones((1, 1), np.uint32), np.ones(1, np.float32)
    for kind in kinds or KINDS:
        learner = begin(kind, small[kind], 1)
        learner.learn(tokens, labels)
        learner.served().predict({"tokens": tokens})


def _classes(kind: str, where: object) -> tuple[Any, Any]:
    """(what learns, what serves) of a kind."""
    match kind:
        case "ftrl":
            return Ftrl, ServedFtrl
        case "ftrl_table":
            from millstream.models.online.table import FtrlTable, ServedFtrlTable

            return FtrlTable, ServedFtrlTable
        case "fm":
            from millstream.models.online.fm import Fm, ServedFm

            return Fm, ServedFm
        case "deepfm":
            from millstream.models.online.deepfm import DeepFm, ServedDeepFm

            return DeepFm, ServedDeepFm
    known = ", ".join(KINDS)
    raise errors.Corrupt(f"{where}: a snapshot of kind {kind!r}, which is not known here; there are: {known}")
