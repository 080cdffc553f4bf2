"""Implicit matrix factorisation: what people liked as inner products of a vector each and a vector an item.

Rules of the room:
- iALS: Y. Hu, Y. Koren, C. Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008, as written by
  S. Rendle et al., "Revisiting the Performance of iALS on Item Recommendation Benchmarks", RecSys 2022: a pair that was
  liked should be 1, and every pair weighs `unseen` and should be 0.
- A row's penalty grows with how often it was liked, by `power`; not, as there, with `unseen` x all others, too: among
  a million items that outweighs what a few clicks say, and all factors become 0.
- Rows are solved by conjugate gradients from where they stand, a few steps a turn (G. Takacs, I. Pilaszy, D. Tikk,
  "Applications of the conjugate gradient method for implicit feedback collaborative filtering", RecSys 2011): a build
  that begins from the last one's items needs few turns.
- No vector of a user is kept. A request's user is folded in from the live history by one exact solve, so a visitor's
  second click counts a moment after it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.native import f32, f64, given, i32, i64, inner, kernel, void
from millstream.recall.ann import Ann
from millstream.recall.cooccur import Csr, recent
from millstream.recall.scene import Found, Scene
from millstream.recall.settings import FactorSettings

Vectors = NDArray[np.float32]


class Model(NamedTuple):
    """`items` float32 [n, width]; `gram` float32 [width, width], items.T @ items, for folding in; `unseen`,
    `penalty`, `power`: as it was fitted with."""

    items: Vectors
    gram: Vectors
    unseen: float
    penalty: float
    power: float

    def fold_in(self, liked: Vectors) -> Vectors:
        """The vector float32 [width] of who liked items with vectors `liked` [h, width]: the exact solution."""
        ridge = self.penalty * len(liked) ** self.power
        left = self.unseen * self.gram + liked.T @ liked + ridge * np.eye(len(self.gram), dtype=np.float32)
        solved: Vectors = np.linalg.solve(left.astype(np.float64), liked.sum(0, dtype=np.float64)).astype(np.float32)
        return solved


def fit(
    windows: Csr, items: int, settings: FactorSettings, start: Vectors | None = None, seed: int = 0
) -> tuple[Model, Vectors]:
    """(the model of `items` rows, the vectors [users, width] of those who liked `windows`). `start` [items, width]: to
    begin from, rows of NaN where there is nothing. Without the GIL; about 1 s a turn for a million liked pairs.

    Otherwise shaped: BadInput."""
    users = len(windows.starts) - 1
    random = np.random.default_rng(seed)
    scale = 0.1 / np.sqrt(settings.width)
    mine = (random.standard_normal((items, settings.width), np.float32) * np.float32(scale)).astype(np.float32)
    theirs = np.zeros((users, settings.width), np.float32)
    if start is not None:
        if start.shape != mine.shape:
            raise errors.BadInput(f"start: [{items}, {settings.width}] is wanted, got {list(start.shape)}")
        known = np.isfinite(start).all(1)
        mine[known] = start[known]
    turned = windows.turned(items)
    for _ in range(settings.turns):
        _solve(windows, mine, theirs, settings)
        _solve(turned, theirs, mine, settings)
    _solve(windows, mine, theirs, settings)
    return Model(mine, mine.T @ mine, settings.unseen, settings.penalty, settings.power), theirs


def _solve(of: Csr, others: Vectors, mine: Vectors, settings: FactorSettings) -> None:
    """Better rows of `mine`, given the `others` that each of them is tied to."""
    work = np.empty((4, settings.width), np.float32)
    gram = (settings.unseen * (others.T @ others)).astype(np.float32)
    _descend(of.starts, of.columns, others, gram, settings.penalty, settings.power, settings.steps, mine, work)


class Factors:
    """Items whose vectors point where the user's does, folded in from what they liked last."""

    name = "factors"

    def __init__(self, model: Model, ann: Ann, kinds: Collection[int] | None = None, most: int = 50) -> None:
        """`ann` searches the model's items; its places say which item a row is."""
        self._model, self._ann, self._kinds, self._most = model, ann, kinds, most

    def recall(self, scene: Scene, k: int) -> Found:
        liked, _ = recent(scene.history, self._kinds, self._most)
        rows = self._ann.places.rows(liked)
        rows = rows[rows >= 0]
        if not len(rows):
            return Found.nothing()
        return self._ann.search(self._model.fold_in(self._model.items[rows]), k, scene.allowed)


@inner
def _times(
    gram: Vectors, ridge: float, others: Vectors, columns: NDArray[np.int32], vector: Vectors, out: Vectors
) -> None:
    """out = (gram + ridge + sum of others' outer products) @ vector."""
    width = len(vector)
    scale = np.float32(ridge)
    for place in range(width):
        out[place] = scale * vector[place]
    for row in range(width):
        value = vector[row]
        for place in range(width):
            out[place] += value * gram[row, place]
    for at in range(len(columns)):
        other = others[columns[at]]
        value = _dot(other, vector)
        for place in range(width):
            out[place] += value * other[place]


@inner
def _dot(one: Vectors, other: Vectors) -> float:
    """Four sums side by side: one after the other, each addition would wait for the last."""
    first = second = third = fourth = np.float32(0)
    whole = len(one) & ~3
    for place in range(0, whole, 4):
        first += one[place] * other[place]
        second += one[place + 1] * other[place + 1]
        third += one[place + 2] * other[place + 2]
        fourth += one[place + 3] * other[place + 3]
    for place in range(whole, len(one)):
        first += one[place] * other[place]
    return float((first + second) + (third + fourth))


@kernel(void(given(i64), given(i32), given(f32, 2), given(f32, 2), f64, f64, i64, f32[:, ::1], f32[:, ::1]))
def _descend(
    starts: NDArray[np.int64], columns: NDArray[np.int32], others: Vectors, gram: Vectors,
    penalty: float, power: float, steps: int, mine: Vectors, work: Vectors,
) -> None:  # fmt: skip
    rest, way, moved = work[0], work[1], work[2]
    width = len(rest)
    for row in range(len(mine)):
        here = mine[row]
        known = columns[starts[row] : starts[row + 1]]
        if len(known) == 0:
            for place in range(width):
                here[place] = 0
            continue
        ridge = penalty * len(known) ** power
        _times(gram, ridge, others, known, here, moved)
        for place in range(width):
            rest[place] = -moved[place]
        for at in range(len(known)):
            other = others[known[at]]
            for place in range(width):
                rest[place] += other[place]
        for place in range(width):
            way[place] = rest[place]
        length = _dot(rest, rest)
        enough = length * np.float32(1e-10)
        for _ in range(steps):
            if length <= enough or length < np.float32(1e-30):
                break
            _times(gram, ridge, others, known, way, moved)
            step = length / _dot(way, moved)
            for place in range(width):
                here[place] += step * way[place]
                rest[place] -= step * moved[place]
            longer = _dot(rest, rest)
            turn = longer / length
            for place in range(width):
                way[place] = rest[place] + turn * way[place]
            length = longer
