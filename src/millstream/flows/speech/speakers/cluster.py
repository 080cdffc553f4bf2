"""Which voices are the same: average linkage over the cosine of voices, in which two groups are joined unless they are
less alike than a share of what each is to itself.

Rules of the room:
- No bound on likeness holds on every line and in every room: over a telephone two people are more alike than one person
  is in another recording. So the bound is made of what was heard: of the two groups, and where they are small, of what
  windows within one segment are to each other in this session.
- What is told by little speech varies more: the less the smaller group says, the lower is the share.
- A mean of voices is not made of length one again: the product of two means is then the mean likeness of their windows,
  however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
USUAL: Final = 0.55
"""How alike two windows of one voice are, where nothing is known yet; it counts as much as `USUAL_WEIGHT` segments."""
USUAL_WEIGHT: Final = 2.0
SHARE: Final = 0.72
"""Two voices are less alike than this share of what each is to itself, where both say much ..."""
LITTLE: Final = 0.8
"""... and than half of that share where one says so little, in seconds."""


class Scale(NamedTuple):
    """How alike windows of one voice are in this session."""

    same: float

    def bound(self, seconds: float) -> float:
        """What so much speech is at least like its voice."""
        return self.same * share(seconds)

    def score(self, best: float, second: float, seconds: float) -> float:
        """0 .. 1: how sure it is that a voice is the one that it is most like; .5 where it might as well not be."""
        bound = max(second, self.bound(seconds))
        return float(np.clip(0.5 + (best - bound) / (2 * (1 - SHARE) * self.same), 0, 1))


def share(seconds: float) -> float:
    """Of how alike a voice is to itself: what separates it from another one that says so much."""
    return SHARE * seconds / (seconds + LITTLE)


def scale(inner: Sequence[float]) -> Scale:
    """From how alike the windows are within each segment: the median, with the usual for segments not heard yet."""
    values = np.sort([*inner, *[USUAL] * int(USUAL_WEIGHT)])
    return Scale(float((values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2))


def group(alike: Matrix, pairs: Matrix, seconds: Matrix, of: Scale, fixed: Sequence[str]) -> list[int]:
    """Which of n voices are the same: a label of each, from 0 on in the order of appearance. `alike` [n, n]: likeness,
    and on the diagonal what a voice is to itself; `pairs` [n, n]: how much each of these counts, 0 where it is unknown;
    `seconds` [n]: of speech. What has the same name in `fixed` is together, what has another one is not; "" is free.
    O(n^2) for voices that fall into groups."""
    if not len(seconds):
        return []
    held: dict[str, int] = {}
    first = np.array([held.setdefault(name, k) if name else k for k, name in enumerate(fixed)])
    starts, member = np.unique(first, return_inverse=True)
    belongs = np.eye(len(starts))[member]
    groups = _Groups(
        belongs.T @ (alike * pairs) @ belongs,
        belongs.T @ pairs @ belongs,
        belongs.T @ seconds,
        np.array([bool(fixed[k]) for k in starts]),
        of,
    )
    groups.join()
    seen: dict[int, int] = {}
    return [seen.setdefault(groups.root(int(k)), len(seen)) for k in member]


class _Groups:
    """Sums of likeness between groups, and within them on the diagonal: to join two is to add their rows. `named` ones
    are not joined with each other."""

    def __init__(self, sums: Matrix, pairs: Matrix, seconds: Matrix, named: NDArray[np.bool_], of: Scale) -> None:
        self._sums, self._pairs, self._seconds, self._of = sums, pairs, seconds, of
        self._parent = np.arange(len(seconds))
        self._never = np.outer(named, named) | np.eye(len(seconds), dtype=bool)
        with np.errstate(invalid="ignore", divide="ignore"):
            self._like = np.where(self._never | (pairs <= 0), -np.inf, sums / pairs)

    def root(self, k: int) -> int:
        """The group that `k` is in."""
        while self._parent[k] != k:
            k = int(self._parent[k])
        return k

    def join(self) -> None:
        """The most alike first, until no two may be joined."""
        best, value = self._like.argmax(1), self._like.max(1)
        while value.max() > -np.inf:
            first = int(value.argmax())
            one, other = sorted((first, int(best[first])))
            if self._apart(one, other, float(value[first])):
                self._never[one, other] = self._never[other, one] = True
                self._like[one, other] = self._like[other, one] = -np.inf
                stale = np.array([one, other])
            else:
                self._add(one, other)
                better = self._like[one] > value
                stale = ((best == one) | (best == other)) & ~better
                stale[one] = stale[other] = True
                best[better], value[better] = one, self._like[one][better]
                stale = np.flatnonzero(stale)
            best[stale], value[stale] = self._like[stale].argmax(1), self._like[stale].max(1)

    def _apart(self, one: int, other: int, likeness: float) -> bool:
        few = min(self._seconds[one], self._seconds[other])
        usual = self._pairs[one, other] / 2
        within = self._sums[one, one] + self._sums[other, other] + usual * self._of.same
        return bool(likeness < share(few) * within / (self._pairs[one, one] + self._pairs[other, other] + usual))

    def _add(self, one: int, gone: int) -> None:
        for sums in (self._sums, self._pairs):
            sums[one] += sums[gone]
            sums[:, one] += sums[:, gone]
        self._seconds[one] += self._seconds[gone]
        self._never[one] |= self._never[gone]
        self._never[:, one] |= self._never[:, gone]
        with np.errstate(invalid="ignore", divide="ignore"):
            row = np.where(self._never[one] | (self._pairs[one] <= 0), -np.inf, self._sums[one] / self._pairs[one])
        self._like[one] = self._like[:, one] = row
        self._like[gone] = self._like[:, gone] = -np.inf
        self._never[gone] = self._never[:, gone] = True
        self._parent[gone] = one
