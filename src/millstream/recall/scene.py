"""What a recall path is asked, and what it answers.

Rules of the room:
- An item is a number here, given by the process's Catalogue. Numbers are dense and begin at 0; they mean nothing in
  another process, so nothing that leaves the process carries them.
- What may be recommended is a bitmap with a bit an item, little bit order within a byte: what
  `np.unpackbits(bitorder="little")` and faiss's IDSelectorBitmap read. A path searches inside it; nobody filters after.
- A number beyond a bitmap's end is not in it: an item that came after the scene was made is not recommended by it.
- Arrays, not lists of objects: a path touches a million items, and Python must not see each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from millstream.recall.filters import Rule

Numbers = NDArray[np.int32]
"""Item numbers of a process's Catalogue. -1 stands for no item."""


class Bits:
    """A set of item numbers below `n`, packed: bit `i & 7` of byte `i >> 3` for number i. Bits at `n` and beyond are
    0, so that bytes can be counted and compared whole. One thread writes it."""

    __slots__ = ("bytes", "n")

    def __init__(self, packed: NDArray[np.uint8], n: int) -> None:
        """`packed`: uint8 [ceil(n / 8)], taken as it is, not copied; its bits beyond `n` are 0."""
        if packed.shape != ((n + 7) // 8,) or packed.dtype != np.uint8:
            raise ValueError(f"{n} bits are uint8 [{(n + 7) // 8}], got {packed.dtype} {list(packed.shape)}")
        self.bytes, self.n = packed, n

    @classmethod
    def none(cls, n: int) -> Self:
        """The empty set."""
        return cls(np.zeros((n + 7) // 8, np.uint8), n)

    @classmethod
    def all(cls, n: int) -> Self:
        """Every number below `n`."""
        return cls(np.full((n + 7) // 8, 255, np.uint8), n)._trimmed()

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Self:
        """The numbers at which `mask`, bool [n], is true."""
        return cls(np.packbits(mask, bitorder="little"), len(mask))

    def copy(self) -> Self:
        """Another set with the same numbers."""
        return type(self)(self.bytes.copy(), self.n)

    def set(self, numbers: Numbers) -> None:
        """Put them in; those outside 0 .. n - 1 are passed over, twice the same is harmless."""
        places, bits = self._places(numbers)
        np.bitwise_or.at(self.bytes, places, bits)

    def clear(self, numbers: Numbers) -> None:
        """Take them out; those outside 0 .. n - 1 are passed over, twice the same is harmless."""
        places, bits = self._places(numbers)
        np.bitwise_and.at(self.bytes, places, ~bits)

    def test(self, numbers: Numbers) -> NDArray[np.bool_]:
        """bool, as many as `numbers`: which are in it. False for those outside 0 .. n - 1."""
        inside = (numbers >= 0) & (numbers < self.n)
        if not self.n:
            return inside
        safe = np.where(inside, numbers, 0)
        found: NDArray[np.bool_] = (self.bytes[safe >> 3] >> (safe & 7).astype(np.uint8)) & 1 != 0
        return found & inside

    def mask(self) -> NDArray[np.bool_]:
        """bool [n]: one byte a number. A pass over all of it: 0.1 ms for a million."""
        return np.unpackbits(self.bytes, count=self.n, bitorder="little").view(np.bool_)

    def numbers(self) -> Numbers:
        """Those in it, ascending. A pass over all of it, 1 ms for a million."""
        return np.flatnonzero(self.mask()).astype(np.int32)

    def count(self) -> int:
        """How many are in it."""
        return int(_COUNTS[self.bytes].sum(dtype=np.int64))

    def invert(self) -> None:
        """Take out what is in it and put in what is not."""
        np.invert(self.bytes, out=self.bytes)
        self._trimmed()

    def __iand__(self, other: Bits) -> Self:
        self._same(other)
        np.bitwise_and(self.bytes, other.bytes, out=self.bytes)
        return self

    def __ior__(self, other: Bits) -> Self:
        self._same(other)
        np.bitwise_or(self.bytes, other.bytes, out=self.bytes)
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bits) and self.n == other.n and np.array_equal(self.bytes, other.bytes)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Bits({self.count()} of {self.n})"

    def _places(self, numbers: Numbers) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        inside = numbers[(numbers >= 0) & (numbers < self.n)]
        return inside >> 3, np.left_shift(np.uint8(1), (inside & 7).astype(np.uint8))

    def _same(self, other: Bits) -> None:
        if self.n != other.n:
            raise ValueError(f"sets over {self.n} and {other.n} numbers do not combine")

    def _trimmed(self) -> Self:
        if self.n & 7:
            self.bytes[-1] &= (1 << (self.n & 7)) - 1
        return self


class Found(NamedTuple):
    """What a path found: `numbers` [m], best first, none twice, all allowed; `scores` float32 [m], never rising. Scores
    of two paths do not compare."""

    numbers: Numbers
    scores: NDArray[np.float32]

    @classmethod
    def nothing(cls) -> Found:
        """What a path that knows nothing answers."""
        return cls(np.empty(0, np.int32), np.empty(0, np.float32))


class History(NamedTuple):
    """What a user did, newest last: `numbers` [h] of items; `kinds` uint8 [h], the place in `Histories.kinds`; `times`
    float64 [h], unix seconds. Never written to: it may be read while the user does more."""

    numbers: Numbers
    kinds: NDArray[np.uint8]
    times: NDArray[np.float64]

    @classmethod
    def nothing(cls) -> History:
        """Of a user who did nothing yet."""
        return cls(np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.float64))


class Scene(msgspec.Struct):
    """One request, as every path sees it. `now`: unix seconds; `attributes` of the user and `context` of the request as
    they were given; `allowed`: what may be recommended; `given`: items of the caller's own; `seed`: this request's
    chance; `segment`: of the user, for what is popular in it. `done`: what the user did, also where paths
    go by another history. `allowed` is what `rule` leaves without `gone`: another process makes it anew of them
    (shards.py), None: it cannot."""

    user: str
    now: float
    history: History
    attributes: Mapping[str, Any]
    context: Mapping[str, Any]
    allowed: Bits
    given: Numbers
    seed: int
    segment: str = ""
    done: History = msgspec.field(default_factory=History.nothing)
    rule: Rule | None = None
    gone: Numbers = msgspec.field(default_factory=lambda: np.empty(0, np.int32))


class Path(Protocol):
    """One way to come by candidates. `recall` gives up to `k`; it is called from threads, reads only, and must be safe
    while upserts and builds run. It knows nothing for a scene: an empty Found, whoever the user is."""

    name: str

    def recall(self, scene: Scene, k: int) -> Found: ...


_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def best(numbers: Numbers, scores: NDArray[np.float32], k: int) -> Found:
    """The `k` highest-scored of `numbers` [n], best first, of equals the lower number; none of them twice, NaN scores
    left out. `scores`: float32 [n]. Choosing k of n sorts only those."""
    if scores.size and np.isnan(scores.min()):
        known = ~np.isnan(scores)
        numbers, scores = numbers[known], scores[known]
    if 0 < k < len(numbers):
        # Everything above the k-th score and, of those equal to it, the lowest numbers: the answer must not depend on
        # the order in which a path came by its candidates.
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        need = k - len(above)
        if need < len(equal):
            equal = equal[np.argpartition(numbers[equal], need - 1)[:need]] if need else equal[:0]
        chosen = np.concatenate([above, equal])
        numbers, scores = numbers[chosen], scores[chosen]
    order = np.lexsort((numbers, -scores))[: max(k, 0)]
    return Found(numbers[order], scores[order])
