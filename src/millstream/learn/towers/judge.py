"""How good vectors are at finding what people liked later: Recall@20 and NDCG@20, beside what is popular.

Every item that anybody liked, before or after, competes; what a person had liked before does not. A mean over people
who liked something after, those without a past among them: of more than `PEOPLE`, so many by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.learn.towers.rows import Likes, Rows

TOP: Final = 20
PEOPLE: Final = 2000
_CHUNK: Final = 64
Floats = NDArray[np.float32]


class Retrieved(msgspec.Struct, frozen=True):
    """Over `people`: the part of what they liked later (at most 20 of it) that is among the first 20 (`recall`), and
    how far up it stands (`ndcg`)."""

    people: int
    recall: float
    ndcg: float


def judged(likes: Likes, first: int, scores: Callable[[Rows], Floats], seed: int = 0) -> Retrieved | None:
    """Of what was liked in rows from `first` on; `scores` gives float32 [people, items] of some people. None: nobody
    liked anything then."""
    people = np.unique(likes.whose[first:])
    if len(people) > PEOPLE:
        people = np.sort(np.random.default_rng(seed).choice(people, PEOPLE, replace=False))
    worth = 1 / np.log2(np.arange(2, TOP + 2))
    recalls, gains = [], []
    for at in range(0, len(people), _CHUNK):
        some = people[at : at + _CHUNK]
        for user, row in zip(some.tolist(), scores(some), strict=True):
            before = likes.liked(user, first)
            wanted = likes.liked(user, len(likes))[len(before) :]
            row = row.copy()
            row[before] = -np.inf
            best = np.argsort(-row, kind="stable")[: min(TOP, len(row) - len(before))]
            hits, most = np.isin(best, wanted), min(len(wanted), TOP)
            recalls.append(hits.sum() / most)
            gains.append(worth[: len(hits)][hits].sum() / worth[:most].sum())
    if not recalls:
        return None
    return Retrieved(len(people), round(float(np.mean(recalls)), 4), round(float(np.mean(gains)), 4))


def popularity(likes: Likes, first: int) -> Callable[[Rows], Floats]:
    """Scores by how often each item was liked in rows before `first`."""
    counts = np.bincount(likes.what[:first], minlength=len(likes.known.items)).astype(np.float32)
    return lambda people: np.broadcast_to(counts, (len(people), len(counts)))
