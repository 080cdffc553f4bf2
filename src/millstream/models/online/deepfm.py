"""DeepFM that keeps learning: a factorisation machine and layers over the same factors, row by row.

The layers see the factors of each place of a row, one place after the other, so a place is a field; an empty one is
zeros. There are no minibatches: the state stays a fold of the rows, wherever a caller cuts them.
"""

from __future__ import annotations

from typing import ClassVar, Final

from millstream.models.online.fm import Fm, ServedFm
from millstream.models.online.settings import DeepFmSettings, FmSettings

KIND: Final = "deepfm"


class ServedDeepFm(ServedFm):
    """As ServedFm; `dense` holds the layers, too."""

    kind: ClassVar[str] = KIND
    settings: ClassVar[type[FmSettings]] = DeepFmSettings


class DeepFm(Fm):
    """The learner. Layers cost most of a row's time: width x factors x hidden[0] weights are looked at, and moved."""

    kind: ClassVar[str] = KIND
    serves: ClassVar[type[ServedFm]] = ServedDeepFm

    def __init__(self, settings: DeepFmSettings, width: int) -> None:
        super().__init__(settings, width)
