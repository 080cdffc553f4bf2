"""Steps that look at what is placed already: windows, maximal marginal relevance, determinantal point processes.

Rules of the room:
- A window counts what stands before a position and what is pinned after it: a list is right wherever it is looked at.
- A candidate of which nothing is known (no category, no embedding) is like no other, and is never held back.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.flows.rerank.slate import Floats, Mask
from millstream.flows.rerank.step import Claim, Page, Step, Work, compact, units

LEAST = 1e-6
"""Of what a candidate adds to a determinant: one that adds less is as good as the same, and its logarithm is finite."""


class Window(Step, frozen=True, tag="window"):
    """At most so many of one category in any window of the list."""

    by: Annotated[Literal["category", "author", "near"], msgspec.Meta(description="the column that is counted")] = (
        "category"
    )
    most: Annotated[int, msgspec.Meta(ge=1, le=1000, description="of one value within a window")] = 2
    window: Annotated[
        int, msgspec.Meta(ge=0, le=1000, description="positions in a row that are looked at; 0: the whole list")
    ] = 5

    @property
    def name(self) -> str:
        return f"window:{self.by}"

    def reads(self) -> tuple[str, ...]:
        return (self.by,)

    def work(self, page: Page) -> Work | None:
        size = min(self.window or page.length, page.length)
        codes, k = compact(page.slate.column(self.by))
        return _Windowed(codes, k, size, self.most, page.fixed) if k and size > self.most else None


class _Windowed(Work):
    def __init__(self, codes: NDArray[np.intp], k: int, size: int, most: int, fixed: dict[int, int]) -> None:
        self._codes, self._k, self._size, self._most = codes, k, size, most
        self._ahead = {position: int(codes[place]) for position, place in fixed.items()}
        self._list: list[int] = []  # code of each position so far
        self._counts = [0] * (k + 1)  # within the last size - 1 positions
        self._free = np.ones(k + 1, np.bool_)

    def may(self, position: int) -> Mask | None:
        free = self._free
        if self._ahead:
            free = free.copy()
            for code in {c for p, c in self._ahead.items() if position < p < position + self._size and c < self._k}:
                free[code] &= self._fullest(position, code) < self._most
        return None if free.all() else free[self._codes]

    def _fullest(self, position: int, code: int) -> int:
        """Of the windows that hold `position`, how many of `code` are in the one that has the most."""
        start = max(0, position - self._size + 1)
        held = [one == code for one in self._list[start:position]] + [False]
        held += [self._ahead.get(p) == code for p in range(position + 1, position + self._size)]
        return max(sum(held[at : at + self._size]) for at in range(position - start + 1))

    def placed(self, position: int, place: int, claim: Claim | None) -> None:
        code = int(self._codes[place])
        self._list.append(code)
        self._count(code, 1)
        if (gone := position - self._size + 1) >= 0:
            self._count(self._list[gone], -1)

    def _count(self, code: int, by: int) -> None:
        if code < self._k:
            self._counts[code] += by
            self._free[code] = self._counts[code] < self._most


class Mmr(Step, frozen=True, tag="mmr"):
    """Maximal marginal relevance (Carbonell and Goldstein, 1998): a candidate loses by its likeness to the one standing
    already that is most like it; `weight` spreads when it is the same. Likeness: cosine of embeddings, negative counts
    as none, or 1 for the same category or author."""

    by: Annotated[
        Literal["embedding", "category", "author"], msgspec.Meta(description="the column that is compared")
    ] = "embedding"
    weight: Annotated[float, msgspec.Meta(ge=0.0, le=100.0, description="of full likeness, in spreads")] = 1.0

    @property
    def name(self) -> str:
        return f"mmr:{self.by}"

    def reads(self) -> tuple[str, ...]:
        return (self.by,)

    def work(self, page: Page) -> Work | None:
        if not self.weight:
            return None
        if self.by != "embedding":
            return _Marginal(*compact(page.slate.column(self.by)), self.weight * page.spread)
        vectors = units(page.slate)
        return _MarginalByVector(vectors, self.weight * page.spread) if vectors.shape[1] else None


class _Marginal(Work):
    label = "diverse"

    def __init__(self, codes: NDArray[np.intp], k: int, weight: float) -> None:
        self._codes, self._k, self._weight = codes, k, weight
        self.worth: Floats = np.zeros(len(codes))

    def placed(self, position: int, place: int, claim: Claim | None) -> None:
        code = self._codes[place]
        if code < self._k:
            self.worth[self._codes == code] = -self._weight


class _MarginalByVector(Work):
    label = "diverse"

    def __init__(self, vectors: NDArray[np.float32], weight: float) -> None:
        self._vectors, self._weight = vectors, weight
        self.worth: Floats = np.zeros(len(vectors))

    def placed(self, position: int, place: int, claim: Claim | None) -> None:
        likeness = (self._vectors @ self._vectors[place]).astype(np.float64)
        np.minimum(self.worth, -self._weight * likeness, out=self.worth)


class Dpp(Step, frozen=True, tag="dpp"):
    """The most probable list of a determinantal point process, found greedily (Chen, Zhang and Zhou, "Fast greedy MAP
    inference for determinantal point process", 2018), with kernel exp(r_i a / 2) cos(i, j) exp(r_j a / 2), where r is
    the score in spreads and a = theta / (1 - theta). As worth: what a candidate adds to the logarithm of the
    determinant, divided by a, beyond its score. Only embeddings count."""

    theta: Annotated[
        float, msgspec.Meta(ge=0.05, le=1.0, description="weight of scores against diversity; 1: scores alone")
    ] = 0.7

    def reads(self) -> tuple[str, ...]:
        return ("embedding",)

    def work(self, page: Page) -> Work | None:
        vectors = units(page.slate)
        weight = (1.0 - self.theta) / self.theta * page.spread
        return _Determinant(vectors, weight, page.length) if weight and vectors.shape[1] else None


class _Determinant(Work):
    """Rows of the kernel's Cholesky factor, one more with each position; `_left` is what is left of the diagonal."""

    label = "diverse"

    def __init__(self, vectors: NDArray[np.float32], weight: float, length: int) -> None:
        self._vectors, self._weight = vectors, weight
        self._rows: Floats = np.zeros((length, len(vectors)))
        sizes = np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)
        self._known = sizes > 0
        self._sizes: Floats = np.where(self._known, sizes, 1.0)  # 1, but for the steps that units are made in
        self._left = self._sizes.copy()
        self.worth: Floats = np.zeros(len(vectors))

    def placed(self, position: int, place: int, claim: Claim | None) -> None:
        left = float(self._left[place])
        if left < LEAST or not self._known[place]:
            return  # adds nothing to what the list spans
        rows = self._rows[:position]
        likeness = (self._vectors @ self._vectors[place]).astype(np.float64)
        row = (likeness - rows[:, place] @ rows) / math.sqrt(left)
        self._rows[position] = row
        self._left -= row * row
        # rounded: candidates that are the same stay so, whatever a library does with the last bits
        self.worth = self._weight * np.log(np.maximum(self._left / self._sizes, LEAST)).round(9)
