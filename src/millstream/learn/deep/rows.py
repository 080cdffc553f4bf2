"""What deep rankers learn from: every item that was shown, once, with all that is known of it.

Rules of the room:
- A row is a shown item: the tokens that were scored, a label for each task that has one of it, and amounts. Tasks told
  at different times, and tellings that correct others, meet in it: a positive counts, whatever negatives came first.
- Weights are those of thinning alone: a kept negative stands for all that it was kept of. What a learner that sees each
  example once needs besides (weights of labels told too early) is not needed where labels are final.
- A history is the one that was served with: names of items become tokens by `features.Rows.history`, as in serving.
- What was not known at the end of a span is in no row of it. Tokens lie in a file that goes with this process.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.features import Definition
from millstream.features import Rows as Tokeniser
from millstream.learn.deep.settings import Head
from millstream.stream.event import decode
from millstream.stream.log import Log, Record
from millstream.types import Example, Outcome, Served

Tokens = NDArray[np.uint32]
CHUNK: Final = 50_000
CLIP: Final = 0.999  # of the amounts of a kind: what is above this share of them counts as no more


class Source(NamedTuple):
    """Whose rows: the model, the definition that made them, what is foretold, and how much history (0: none)."""

    model: str
    definition: Definition
    heads: tuple[Head, ...]
    history: int = 0


class Span(NamedTuple):
    """Examples from offset `first` on; those before offset `upto` are to be learnt, and of these nothing counts that
    came after `until`, unix seconds."""

    first: int
    upto: int
    until: float = math.inf


class Shown:
    """n shown items in the order in which the first label of each was known; those before `inside` are to be learnt.
    `labels` [n, heads] (NaN: not known) and `weights` [n, heads], float32; `scores` [n] as served, 0: none; `offsets`
    int64 [n], in `examples`, of the first label of each."""

    def __init__(
        self, tokens: Tokens, at: NDArray[np.int64], histories: Tokens, of: NDArray[np.int64],
        labels: NDArray[np.float32], weights: NDArray[np.float32], scores: NDArray[np.float32],
        offsets: NDArray[np.int64], inside: int,
    ) -> None:  # fmt: skip
        self._tokens, self._at, self._histories, self._of = tokens, at, histories, of
        self.labels, self.weights, self.scores, self.offsets = labels, weights, scores, offsets
        self.inside = inside

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def width(self) -> int:
        """Tokens in a row."""
        return int(self._tokens.shape[1])

    @property
    def history(self) -> int:
        """Items in a history; 0: there are none."""
        return int(self._histories.shape[1])

    def cut(self, history: int) -> Shown:
        """The same rows with the newest `history` items of each history."""
        found = copy.copy(self)
        found._histories = self._histories[:, self.history - min(history, self.history) :]
        return found

    def past(self, end: int) -> Tokens:
        """uint32 [m, history]: the histories of the rows before `end`, that of each request once."""
        return self._histories[np.unique(self._of[:end])]

    def tokens(self, rows: NDArray[np.int64]) -> Tokens:
        """uint32 [m, width] of rows by number."""
        return np.ascontiguousarray(self._tokens[self._at[rows]])

    def histories(self, rows: NDArray[np.int64]) -> Tokens:
        """uint32 [m, history] of rows by number."""
        return self._histories[self._of[rows]]


def read(log: Log, source: Source, span: Span, folder: Path) -> Shown:
    """All that the log has of a span; tokens in a file below `folder`."""
    width = source.definition.width
    with tempfile.TemporaryFile(dir=folder) as file:
        parts = list(_examples(log, source, span, file))
        count = sum(len(part) for part in parts)
        shape = (count, width)
        tokens = np.memmap(file, np.uint32, "r", shape=shape) if count else np.empty(shape, np.uint32)
    told = np.concatenate([*parts, np.empty(0, _TOLD)])
    keys, first, row = np.unique(told["item"], return_index=True, return_inverse=True)
    order = np.argsort(first)  # rows stand in the order of their first example
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    keys, first, row = keys[order], first[order], place[row]
    inside = int((told["offset"][first] < span.upto).sum())
    late = (told["offset"] >= span.upto) & (row < inside)
    labels, weights = _labels(told[~late], row[~late], len(keys), source.heads)
    _amounts(log, source.heads, span, keys, inside, labels)
    histories, of = _histories(log, source, told["request"][first])
    scores, offsets = told["score"][first], told["offset"][first]
    return Shown(tokens, first, histories, of, labels, weights, scores, offsets, inside)


_TOLD: Final = np.dtype(
    [("item", "i8"), ("request", "i8"), ("offset", "i8"), ("head", "i2"), ("label", "f4"), ("score", "f4")]
)
"""One example. `item` and `request` are hashes by which what belongs together is found in this process."""


def _examples(log: Log, source: Source, span: Span, file: Any) -> Iterator[NDArray[Any]]:
    """Examples of the span and after it, a part at a time; their tokens go into the file."""
    reader = log.reader("examples")
    at, end = max(span.first, reader.start(0)), reader.end(0)
    places = {head.name: place for place, head in enumerate(source.heads) if not head.amount}
    while at < end and (records := reader.read(0, at, CHUNK)):
        yield _told(records, source, places, file)
        at = records[-1].offset + 1


def _told(records: Sequence[Record], source: Source, places: dict[str, int], file: Any) -> NDArray[Any]:
    found, tokens = [], []
    for record in records:
        event = decode(record.value)
        if not isinstance(event, Example) or event.model != source.model:
            continue
        head = places.get(event.task, 0 if not event.task else -1)  # from before there were tasks: the first one's
        if head < 0 or event.definition != source.definition.hash or len(event.tokens) != source.definition.width * 4:
            continue
        key = hash((event.request, event.item))
        found.append((key, hash(event.request), record.offset, head, event.label, event.score))
        tokens.append(event.tokens)
    file.write(b"".join(tokens))
    file.flush()
    return np.array(found, _TOLD)


def _labels(
    told: NDArray[Any], row: NDArray[np.int64], count: int, heads: Sequence[Head]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Labels and weights [count, heads]; those of amounts are 0 as yet."""
    labels = np.full((count, len(heads)), -np.inf, np.float32)
    np.maximum.at(labels, (row, told["head"]), told["label"])
    labels[np.isneginf(labels)] = np.nan
    weights = np.ones(labels.shape, np.float32)
    missed = 1.0  # the chance that nothing was kept of an item that nobody liked
    for at, head in enumerate(heads):
        if not head.amount:
            weights[labels[:, at] <= 0, at] = 1.0 / head.kept
            missed *= 1.0 - head.kept
    tasks = [at for at, head in enumerate(heads) if not head.amount]
    unliked = ~(labels[:, tasks] > 0).any(axis=1)
    for at, head in enumerate(heads):
        if head.amount:
            labels[:, at] = 0.0
            weights[unliked, at] = 1.0 / (1.0 - missed)
    return labels, weights


def _amounts(
    log: Log, heads: Sequence[Head], span: Span, keys: NDArray[np.int64], inside: int, labels: NDArray[np.float32]
) -> None:
    """Fill in the largest value that was said of each row."""
    places = {head.name: at for at, head in enumerate(heads) if head.amount}
    if not places or not len(keys):
        return
    rows = dict(zip(keys.tolist(), range(len(keys)), strict=True))
    for record in _records(log, "outcomes"):
        event = decode(record.value)
        if not isinstance(event, Outcome) or (at := places.get(event.kind)) is None:
            continue
        row = rows.get(hash((event.request, event.item)), -1)
        if row < 0 or (row < inside and record.arrival > span.until):
            continue
        if math.isfinite(event.value):
            labels[row, at] = max(labels[row, at], event.value)
    for at in places.values():
        if (some := labels[:inside, at][labels[:inside, at] > 0]).size:
            np.minimum(labels[:, at], np.quantile(some, CLIP), out=labels[:, at])


def _histories(log: Log, source: Source, requests: NDArray[np.int64]) -> tuple[Tokens, NDArray[np.int64]]:
    """Histories uint32 [m + 1, history], the first empty, and for each row the number of its own."""
    if not source.history:
        return np.zeros((1, 0), np.uint32), np.zeros(len(requests), np.int64)
    asked, of = np.unique(requests, return_inverse=True)
    numbers = dict(zip(asked.tolist(), range(1, len(asked) + 1), strict=True))
    histories = np.zeros((len(asked) + 1, source.history), np.uint32)
    tokeniser = Tokeniser(source.definition)
    for record in _records(log, "served"):
        event = decode(record.value)
        if isinstance(event, Served) and event.history and (number := numbers.get(hash(event.request))):
            histories[number] = tokeniser.history(event.history, source.history)[0]
    return histories, of.astype(np.int64) + 1


def _records(log: Log, topic: str) -> Iterator[Record]:
    reader = log.reader(topic)
    for partition in reader.partitions():
        yield from reader.records(partition)
