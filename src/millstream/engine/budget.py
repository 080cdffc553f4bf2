"""How much memory the loaded versions may take together, and which model gives way.

Rules of the room:
- A version weighs what its own processes take, or what this process grew by while it was loaded and warmed: an estimate
  that traffic blurs, so it is kept between its file and twice that. Nothing is refused because of an estimate.
- The model that was asked least recently gives way whole, with all its versions. One that works, waits or has open
  sessions does not, nor does the one that is coming.
- Who gave way is not gone: it is described as before, and the next request for it loads it again and waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from millstream import errors
from millstream.machine import resident

EXTRA = 8 << 20


class Tenant(NamedTuple):
    """A model as the budget sees it: bytes of all its versions, when it was asked last (unix seconds), whether it may
    give way now."""

    name: str
    size: float
    used: float
    idle: bool


class Budget:
    """`bytes_max` 0: without end."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max

    def leave(self, tenants: Iterable[Tenant], coming: str, size: float = 0.0) -> list[str]:
        """Who gives way so that `size` more bytes of the model `coming` fit; all who may, where that is too little."""
        if not self.bytes_max:
            return []
        there = list(tenants)
        over = sum(one.size for one in there) + size - self.bytes_max
        leaving = []
        for one in sorted(there, key=lambda one: one.used):
            if over > 0 and one.idle and one.name != coming and one.size:
                leaving.append(one.name)
                over -= one.size
        return leaving

    def check(self, label: str, size: float) -> None:
        """Misconfigured for a version that does not fit when it is alone."""
        if self.bytes_max and size > self.bytes_max:
            raise errors.Misconfigured(
                f"{label} takes {size / 2**20:.0f} MB, engine.memory_bytes_max is {self.bytes_max / 2**20:.0f} MB: "
                "give more, or serve a smaller version"
            )


def estimate(weight: float, growth: float) -> float:
    """Bytes of a version in this process, whose file is `weight` and with which the process grew by `growth`: at least
    its file, and at most twice that and a little, as the first model also brings its runtime and its threads."""
    return min(max(weight, growth), 2 * weight + EXTRA)


def taken(pids: Sequence[int | str] = ("self",)) -> int:
    """Bytes in RAM of these processes; 0 where that is not told."""
    return sum(resident(pid) or 0 for pid in pids)
