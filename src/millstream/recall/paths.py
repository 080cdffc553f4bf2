"""Paths that need no training: they know something of an item or a user from the first event on.

Rules of the room:
- Each searches inside `scene.allowed` and gives up to k; a user of whom nothing is known gets an empty Found, or what
  is liked or new.
- Work is bounded whatever the catalogue: of a long list of items the newest are looked at.
- A history holds what speaks for an item (histories.py), so it is all taken as liking.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.recall.catalogue import Catalogue
from millstream.recall.ranking import Ranking
from millstream.recall.scene import Bits, Found, Numbers, Scene, best
from millstream.recall.sums import Sums

_EXPONENT_MAX: Final = 64.0
_PASSED_MAX: Final = 900.0  # half lives, and
_LEAST: Final = 1e-30  # what a liking may come to by them: so scores stay numbers
_REVIEWED: Final = 2000  # candidates by tags whose embeddings are compared
logger = logging.getLogger(__name__)


class Near(Protocol):
    """Finds vectors that are near one: an index over the embeddings of the catalogue."""

    def search(self, vector: NDArray[np.float32], k: int, allowed: Bits) -> Found: ...


class Popular:
    """What was liked most of late, in the user's segment, then by all. A liking counts half after `half_life_s`.

    Kept as each comes, and equal to counting anew: all weights are as of one reference time, so they need no renewing,
    and passing time changes no order. At most `segments_max` segments are told apart, each with `entries_max` items,
    of which the lower half goes when they are more.
    """

    name = "popular"

    def __init__(self, half_life_s: float = 86_400.0, segments_max: int = 64, entries_max: int = 200_000) -> None:
        if half_life_s <= 0 or segments_max < 0 or entries_max < 2:
            raise ValueError(f"half life {half_life_s} s, {segments_max} segments of {entries_max} items")
        self._half_life_s, self._segments_max, self._entries_max = half_life_s, segments_max, entries_max
        self.clear()

    def clear(self) -> None:
        """Know nothing again."""
        self._reference: float | None = None
        self._all = Ranking()
        self._segments: dict[str, Ranking] = {}

    def on_positive(self, user: str, number: int, time: float, segment: str) -> None:
        """Somebody of a segment ("": of none) liked an item. `time`: unix seconds, not ahead of now. For the thread
        that writes."""
        if self._reference is None:
            self._reference = time
        exponent = (time - self._reference) / self._half_life_s
        if exponent > _EXPONENT_MAX:
            exponent = self._move(exponent)
        if not (weight := 2.0**exponent if exponent > -1000 else 0.0):
            return
        self._add(self._all, number, weight)
        if segment:
            board = self._segments.get(segment)
            if board is None and len(self._segments) < self._segments_max:
                board = self._segments[segment] = Ranking()
            if board is not None:
                self._add(board, number, weight)

    def score(self, number: int, now: float, segment: str = "") -> float:
        """How much an item is liked as of `now`: 1 for one liking now. For the thread that writes, and tests."""
        board = self._segments.get(segment) if segment else self._all
        found = board.key(number) if board is not None else None
        if found is None or self._reference is None:
            return 0.0
        return float(found * 2.0 ** ((self._reference - now) / self._half_life_s))

    def recall(self, scene: Scene, k: int) -> Found:
        """Scores: in the user's segment, how much an item is liked there now: 1 for one liking. Of the others, minus
        the inverse of how much all like them: so they come after, in their order."""
        board = self._segments.get(scene.segment) if scene.segment else None
        numbers, liked = self._liked(board, k, scene) if board is not None else Found.nothing()
        if len(numbers) >= k:
            return Found(numbers, liked)
        others, theirs = self._liked(self._all, k + len(numbers), scene)
        new = np.isin(others, numbers, invert=True)
        return Found(
            np.concatenate((numbers, others[new]))[:k],
            np.concatenate((liked, -1 / theirs[new]))[:k].astype(np.float32),
        )

    def _liked(self, board: Ranking, k: int, scene: Scene) -> Found:
        """The most liked of a board, and how much; those that passing time brought to 0 are left out."""
        numbers, keys = board.top(k, scene.allowed)
        known = keys > 0
        if not known.any() or self._reference is None:
            return Found.nothing()
        passed = min(max((self._reference - scene.now) / self._half_life_s, -_PASSED_MAX), _PASSED_MAX)
        return Found(numbers[known], np.clip(keys[known] * 2.0**passed, _LEAST, 1 / _LEAST).astype(np.float32))

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for `restore`."""
        boards = {"": self._all, **self._segments}
        state: dict[str, NDArray[Any]] = {
            "names": np.frombuffer(msgspec.msgpack.encode(list(boards)), np.uint8),
            "reference": np.array([math.nan if self._reference is None else self._reference, self._half_life_s]),
        }
        for place, board in enumerate(boards.values()):
            state[f"numbers_{place}"], state[f"keys_{place}"] = board.all()
        return state

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """What `state` gave takes the place of all that is here, unless the half life is another one now: then nothing
        does, as it cannot be worked out. Anything else than `state` gave: KeyError, ValueError or
        msgspec.MsgspecError."""
        names = msgspec.msgpack.decode(state["names"].tobytes(), type=list[str])
        reference, half_life_s = state["reference"].tolist()
        if half_life_s != self._half_life_s:
            return
        boards: dict[str, Ranking] = {}
        for place, name in enumerate(names[: self._segments_max + 1]):
            boards[name] = Ranking()
            boards[name].fill(state[f"numbers_{place}"].astype(np.int32), state[f"keys_{place}"].astype(np.float64))
        self._reference = None if math.isnan(reference) else reference
        self._all, self._segments = boards.pop(""), boards

    def _add(self, board: Ranking, number: int, weight: float) -> None:
        board.put(number, (board.key(number) or 0.0) + weight)
        if len(board) > self._entries_max:
            board.trim(self._entries_max // 2)

    def _move(self, exponent: float) -> float:
        """A later reference time, by whole half lives: multiplying by a power of two changes no digit."""
        assert self._reference is not None
        steps = math.floor(exponent)
        for board in (self._all, *self._segments.values()):
            board.scale(2.0 ** -min(steps, 1000))
        self._reference += steps * self._half_life_s
        return exponent - steps


class Newest:
    """The latest items by `created`."""

    name = "newest"

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue, self._ranking = catalogue, Ranking()
        catalogue.watch(self)

    def changed(self, number: int) -> None:
        """For the catalogue."""
        created = float(self._catalogue.created[number])
        if self._ranking.key(number) != created:
            self._ranking.put(number, created)

    def rebuilt(self) -> None:
        """For the catalogue."""
        created = self._catalogue.created.copy()
        self._ranking.fill(np.arange(len(created), dtype=np.int32), created)

    def recall(self, scene: Scene, k: int) -> Found:
        """Scores: minus the age in seconds."""
        numbers, created = self._ranking.top(k, scene.allowed)
        return Found(numbers, (created - scene.now).astype(np.float32))


class Given:
    """The caller's own list, in its order."""

    name = "given"

    def recall(self, scene: Scene, k: int) -> Found:
        """Scores: from 1 down, in equal steps."""
        given = scene.given[scene.allowed.test(scene.given)]
        first = np.sort(np.unique(given, return_index=True)[1])[: max(k, 0)]
        return Found(given[first], np.linspace(1, 0, len(first), endpoint=False, dtype=np.float32))


class Tags:
    """Items with the tags of what the user did: the latest weigh most, and rare tags more than common ones (IDF).

    Of the user's `tags_max` weightiest tags each brings the `items_max` items that were told of last.
    """

    name = "tags"

    def __init__(
        self, catalogue: Catalogue, history_max: int = 50, half_after: float = 10.0, tags_max: int = 16,
        items_max: int = 5000,
    ) -> None:  # fmt: skip
        self._catalogue, self._sums = catalogue, Sums()
        self._history_max, self._half_after = history_max, half_after
        self._tags_max, self._items_max = tags_max, items_max

    def recall(self, scene: Scene, k: int) -> Found:
        """Scores: the weights of shared tags, by the root of how many an item has, so that many tags are no merit."""
        catalogue, history = self._catalogue, scene.history.numbers[-self._history_max :]
        weights = 2.0 ** (np.arange(1 - len(history), 1) / self._half_after)
        profile: dict[int, float] = {}
        for number, weight in zip(history.tolist(), weights.tolist(), strict=True):
            for tag in catalogue.tags_of(number).tolist():
                profile[tag] = profile.get(tag, 0.0) + weight
        rare = {tag: weight * _idf(catalogue.count, catalogue.tagged_count(tag)) for tag, weight in profile.items()}
        chosen = sorted(rare, key=lambda tag: (-rare[tag], tag))[: self._tags_max]
        with self._sums.over(catalogue.count) as sums:
            for tag in chosen:
                if rare[tag] > 0:
                    sums.add(catalogue.tagged(tag)[-self._items_max :], rare[tag], scene.allowed)
            numbers, scores = sums.found()
        return best(numbers, scores / _root(np.maximum(catalogue.tag_counts(numbers), 1)), k)


class SimilarToLast:
    """Items like the last ones that the user did something with: by tags and category, and by embedding where items
    have one. Those themselves are not among them.

    Up to `exact_max` items, all embeddings are compared; beyond, those of `near` (an index, which may be another one
    from call to call), and those of what tags and categories bring. Without `near` they bring nothing of themselves
    then, which is said once.
    """

    name = "similar"

    def __init__(
        self, catalogue: Catalogue, last: int = 5, items_max: int = 4000, exact_max: int = 30_000,
        near: Near | None = None,
    ) -> None:  # fmt: skip
        self._catalogue, self._sums, self.near = catalogue, Sums(), near
        self._last, self._items_max, self._exact_max = last, items_max, exact_max
        self._said = False

    def recall(self, scene: Scene, k: int) -> Found:
        """Scores: the shared tags and categories, 1 for as many as the best matching of the liked has itself, and the
        cosine of embeddings, added."""
        liked = list(dict.fromkeys(scene.history.numbers[::-1].tolist()))[: self._last]
        liked = [number for number in liked if 0 <= number < self._catalogue.count]
        if not liked:
            return Found.nothing()
        numbers, shared = self._by_texts(liked, scene.allowed)
        if len(numbers) > max(_REVIEWED, k):
            numbers, shared = best(numbers, shared, max(_REVIEWED, k))
        vectors = self._vectors(liked)
        if len(vectors):
            nearby = self._by_vectors(vectors, k + len(liked), scene.allowed)
            new = nearby[np.isin(nearby, numbers, invert=True)]
            numbers = np.concatenate((numbers, new))
            shared = np.concatenate((shared, np.zeros(len(new), np.float32)))
        kept = np.isin(numbers, liked, invert=True)
        numbers, shared = numbers[kept], shared[kept]
        if not len(numbers):
            return Found.nothing()
        scores = shared + self._cosine(numbers, vectors) if len(vectors) else shared
        return best(numbers, scores.astype(np.float32), k)

    def _by_texts(self, liked: list[int], allowed: Bits) -> tuple[Numbers, NDArray[np.float32]]:
        catalogue, weights = self._catalogue, dict[tuple[str, int], float]()
        for place, number in enumerate(liked):
            for text in self._texts(number):
                weights[text] = weights.get(text, 0.0) + 1 / (1 + place)
        worth: dict[tuple[str, int], float] = {}
        with self._sums.over(catalogue.count) as sums:
            for (kind, code), weight in weights.items():
                if kind == "tag":
                    items, count = catalogue.tagged(code), catalogue.tagged_count(code)
                else:
                    items, count = catalogue.in_category(code), catalogue.in_category_count(code)
                if (rare := _idf(catalogue.count, count)) > 0:
                    worth[kind, code] = weight * rare
                    sums.add(items[-self._items_max :], weight * rare, allowed)
            numbers, shared = sums.found()
        shared = shared / _root(1 + catalogue.tag_counts(numbers))
        return numbers, shared / np.float32(max(self._own(liked, worth), 1e-9))

    def _own(self, liked: list[int], worth: Mapping[tuple[str, int], float]) -> float:
        """What the best matching of the liked shares with all of them. Of the liked alone, whatever is allowed: so
        scores compare wherever items are looked for."""
        return max(
            sum(worth.get(text, 0.0) for text in self._texts(number))
            / math.sqrt(1 + len(self._catalogue.tags_of(number)))
            for number in liked
        )

    def _texts(self, number: int) -> list[tuple[str, int]]:
        found = [("tag", tag) for tag in self._catalogue.tags_of(number).tolist()]
        if (category := int(self._catalogue.category[number])) >= 0:
            found.append(("category", category))
        return found

    def _vectors(self, liked: list[int]) -> NDArray[np.float32]:
        """float32 [q, d]: of unit length, those that have an embedding, the last first."""
        rows = self._catalogue.embedding[liked]
        return _unit(rows[~np.isnan(rows).any(axis=1)]) if rows.shape[1] else rows[:0]

    def _by_vectors(self, vectors: NDArray[np.float32], k: int, allowed: Bits) -> Numbers:
        near = self.near
        if self._catalogue.count > self._exact_max and near is not None:
            return np.unique(np.concatenate([near.search(vector, k, allowed).numbers for vector in vectors]))
        if self._catalogue.count > self._exact_max:
            if not self._said:
                self._said = True
                logger.warning(
                    "recall path %s: %d items, and embeddings find items among %d at most. From here on they only "
                    "order what tags and categories find; an item with neither is not found by this path. Said once",
                    self.name, self._catalogue.count, self._exact_max,
                )  # fmt: skip
            return np.empty(0, np.int32)
        may = allowed.numbers()
        return best(may, self._cosine(may, vectors), k).numbers

    def _cosine(self, numbers: Numbers, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n]: with the nearest of the vectors; 0 for an item without embedding."""
        rows = self._catalogue.embedding[numbers]
        found: NDArray[np.float32] = np.nan_to_num(_unit(rows) @ vectors.T, nan=0.0).max(axis=1, initial=-1.0)
        return found


def _idf(items: int, having: int) -> float:
    return math.log((1 + items) / (1 + having))


def _root(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.sqrt(counts.astype(np.float32))
    return found


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    found: NDArray[np.float32] = rows / np.maximum(lengths, np.float32(1e-12))
    return found
