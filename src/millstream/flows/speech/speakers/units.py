"""What a session remembers of the voices it heard: a unit for each segment, later one for several.

Rules of the room:
- There are at most `UNITS_MAX`. When there are so many, the older half is put together two by two, those of one speaker
  that follow each other; their segments keep the speaker they were last shown with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

UNITS_MAX: Final = 256
STRONG: Final = 1.2
"""Seconds of speech from which a segment takes part in the search for voices; a shorter one goes to the nearest."""


@dataclass(slots=True, eq=False)
class Unit:
    """The `voice` of a segment: the mean of its windows, kept as float16, so that a session's state stays small.
    `weight`: seconds of speech; `alike`: what its windows are to each other, over `pairs`; `id`: whose it is by all
    that is known, `told`: as whose it is shown; `fixed`: it is shown so for ever; `waits`: until when its decision
    waits. `segment` is "" of units that were put together."""

    segment: str
    start: int
    end: int
    voice: NDArray[np.float16]
    weight: float
    alike: float
    pairs: float
    overlap: bool = False
    id: str = ""
    told: str = ""
    fixed: bool = False
    waits: int = -1

    @property
    def strong(self) -> bool:
        """Whether it says enough of a voice to be compared with others."""
        return self.weight >= STRONG

    def save(self) -> list[Any]:
        """What `restored` takes."""
        rest = (self.weight, self.alike, self.pairs, self.overlap, self.id, self.told, self.fixed, self.waits)
        return [self.segment, self.start, self.end, self.voice.tobytes(), *rest]

    @classmethod
    def restored(cls, saved: list[Any]) -> Unit:
        """As it was."""
        segment, start, end, voice, *rest = saved
        return cls(segment, start, end, np.frombuffer(voice, np.float16), *rest)


def condensed(units: list[Unit]) -> list[Unit]:
    """Fewer that say the same, the oldest first: see the rules."""
    if len(units) < UNITS_MAX:
        return units
    old, late = units[: UNITS_MAX // 2], units[UNITS_MAX // 2 :]
    kept: list[Unit] = []
    waiting: dict[tuple[str, bool], Unit] = {}
    for unit in old:
        if unit.waits >= 0:
            kept.append(unit)
        elif unit.strong and unit.id:
            first = waiting.pop((unit.id, unit.fixed), None)
            if first is None:
                waiting[unit.id, unit.fixed] = unit
            else:
                kept.append(_joined(first, unit))
    return sorted([*kept, *waiting.values()], key=lambda unit: unit.start) + late


def _joined(one: Unit, two: Unit) -> Unit:
    weight = one.weight + two.weight
    first, second = one.voice.astype(np.float64), two.voice.astype(np.float64)
    share = one.weight / weight
    alike = share**2 * one.alike + (1 - share) ** 2 * two.alike + 2 * share * (1 - share) * float(first @ second)
    voice = (share * first + (1 - share) * second).astype(np.float16)
    pairs = one.pairs + two.pairs + 1
    return Unit("", one.start, two.end, voice, weight, alike, pairs, False, one.id, one.id, one.fixed)


def means(units: Iterable[Unit]) -> dict[str, tuple[NDArray[np.float64], float]]:
    """By id: the mean voice of its strong units, of all where it has no strong one, and the seconds that they say."""
    found: dict[tuple[str, bool], tuple[NDArray[np.float64], float]] = {}
    for unit in units:
        if unit.id:
            total, weight = found.get((unit.id, unit.strong), (0.0, 0.0))
            found[unit.id, unit.strong] = total + unit.voice.astype(np.float64) * unit.weight, weight + unit.weight
    best: dict[str, tuple[NDArray[np.float64], float]] = {}
    for (ident, strong), (total, weight) in found.items():
        if strong or (ident, True) not in found:
            best[ident] = total / weight, weight
    return best
