"""What the log has of its latest scored rows: what was said of each, by whom else, and what came of it.

Rules of the room:
- Topics are read backwards, a piece at a time, until there is enough: the cost is that of the rows, not of the log.
- What cannot be read, or does not fit its request, is left out. A request that was logged twice counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.learn.calibration import Calibration
from millstream.learn.validation import Labels
from millstream.meter import Meter
from millstream.models.online import Correction
from millstream.stream import LenientReader, Log
from millstream.stream.event import Event, decode
from millstream.stream.reader import Record
from millstream.types import Example, Outcome, Served, Shadow

PIECE: Final = 1000
FOLLOW: Final = 20  # records of another topic a row, at most
OTHERS_MAX: Final = 16  # models and versions beside the one that answered

Floats = NDArray[np.float32]


class Corrected(NamedTuple):
    """What a user said against an answer: the kind of outcome, and words, if there were any."""

    kind: str
    text: str


class Scan(msgspec.Struct, kw_only=True):
    """Rows in order of time, columns of n: `tokens` uint32 [n, width]; `scores` as served, and calibrated by the labels
    that came since, float64; `labels` float32, NaN where none came; `times` unix seconds, float64.

    `place`: (partition, offset) of each row's served event; `others`: by "MODEL VERSION", what else was said, float32
    with NaN; `corrected`: by row; `first`, `last`: offsets of the served events, by partition.
    """

    requests: list[str]
    items: list[str]
    users: list[str]
    models: list[str]
    versions: list[str]
    tokens: NDArray[np.uint32]
    scores: NDArray[np.float64]
    calibrated: NDArray[np.float64]
    labels: Floats
    times: NDArray[np.float64]
    place: list[tuple[int, int]]
    others: dict[str, Floats]
    corrected: dict[int, Corrected]
    slope: float
    intercept: float
    offsets: dict[int, tuple[int, int]]

    def __len__(self) -> int:
        return len(self.requests)


class _Answer(NamedTuple):
    event: Served
    partition: int
    offset: int
    rows: int


def scan(
    log: Log, models: tuple[str, ...], definition: str, width: int, corrections: tuple[str, ...], rows_max: int
) -> Scan:
    """The latest `rows_max` rows, or few more, of answers of `models` whose rows `definition` made."""
    answers, since = _answers(log, models, definition, width, rows_max)
    first: dict[str, tuple[int, Served]] = {}
    count = 0
    for answer in answers:
        first[answer.event.request] = count, answer.event
        count += answer.rows
    events = [answer.event for answer in answers]
    scores = _joined([np.frombuffer(event.scores, "<f4") for event in events], np.float32).astype(np.float64)
    tokens = _joined([np.frombuffer(event.tokens, "<u4") for event in events], np.uint32).reshape(-1, width)
    labels = np.full(count, np.nan, np.float32)
    for row, example in _examples(log, first, since, rows_max):
        labels[row] = example
    slope, intercept = _calibration(scores, labels)
    made = Scan(
        requests=[event.request for event in events for _ in event.candidates],
        items=[item for event in events for item in event.candidates],
        users=[event.user for event in events for _ in event.candidates],
        models=[event.model for event in events for _ in event.candidates],
        versions=[event.version for event in events for _ in event.candidates],
        tokens=tokens,
        scores=scores,
        calibrated=Correction(slope=slope, intercept=intercept).apply(scores.astype(np.float32)).astype(np.float64),
        labels=labels,
        times=np.repeat([event.event_time for event in events], [answer.rows for answer in answers]).astype(np.float64),
        place=[(answer.partition, answer.offset) for answer in answers for _ in range(answer.rows)],
        others=_others(log, first, since, count, rows_max),
        corrected=dict(_corrections(log, first, since, corrections, rows_max)),
        slope=slope,
        intercept=intercept,
        offsets={},
    )
    for answer in answers:
        low, high = made.offsets.get(answer.partition, (answer.offset, answer.offset))
        made.offsets[answer.partition] = min(low, answer.offset), max(high, answer.offset)
    return made


def _joined(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _answers(
    log: Log, models: tuple[str, ...], definition: str, width: int, rows_max: int
) -> tuple[list[_Answer], float]:
    """Answers whose rows can be used, in order of time, and when the first of them arrived."""
    reader = LenientReader(log.reader("served"), Meter())
    partitions = reader.partitions()
    found: dict[str, _Answer] = {}
    since = math.inf
    for partition in partitions:
        rows, most = 0, rows_max // len(partitions)
        for record, event in _backwards(reader, partition):
            if rows >= most:
                break
            if not isinstance(event, Served) or event.model not in models or event.definition != definition:
                continue
            count = len(event.candidates)
            if not count or len(event.scores) != 4 * count or len(event.tokens) != 4 * count * width:
                continue
            if np.isfinite(np.frombuffer(event.scores, "<f4")).all():
                found.setdefault(event.request, _Answer(event, partition, record.offset, count))
                rows += count
                since = min(since, record.arrival)
    return sorted(found.values(), key=lambda one: (one.event.event_time, one.event.request)), since


def _backwards(reader: LenientReader, partition: int) -> Iterator[tuple[Record, Event | None]]:
    """Records with their events, from the latest on, a piece at a time: within a piece they are in order."""
    at = reader.end(partition)
    while at > 0:
        first = max(0, at - PIECE)
        piece = []
        for record, event in reader.decoded(partition, first, decode):
            if record.offset >= at:
                break
            piece.append((record, event))
        if not piece and first == 0:
            return
        yield from reversed(piece)
        at = min(first, piece[0][0].offset) if piece else first


def _following(log: Log, topic: str, since: float, rows_max: int) -> Iterator[Event]:
    """What a topic has since a time of arrival, the latest first, as far as that is looked at."""
    reader = LenientReader(log.reader(topic), Meter())
    for partition in reader.partitions():
        for number, (record, event) in enumerate(_backwards(reader, partition)):
            if record.arrival < since or number >= FOLLOW * rows_max:
                break
            if event is not None:
                yield event


def _row(first: dict[str, tuple[int, Served]], request: str, item: str) -> int | None:
    """The row of an item of a request."""
    if (found := first.get(request)) is None:
        return None
    row, event = found
    try:
        return row + event.candidates.index(item)
    except ValueError:
        return None


def _examples(
    log: Log, first: dict[str, tuple[int, Served]], since: float, rows_max: int
) -> Iterator[tuple[int, float]]:
    """The label that an example gave a row, each row's latest last."""
    told = [event for event in _following(log, "examples", since, rows_max) if isinstance(event, Example)]
    for event in reversed(told):
        if (row := _row(first, event.request, event.item)) is not None:
            yield row, event.label


def _corrections(
    log: Log, first: dict[str, tuple[int, Served]], since: float, kinds: tuple[str, ...], rows_max: int
) -> Iterator[tuple[int, Corrected]]:
    for event in _following(log, "outcomes", since, rows_max):
        if isinstance(event, Outcome) and event.kind in kinds and event.value > 0:
            row = _row(first, event.request, event.item)
            if row is not None:
                yield row, Corrected(event.kind, event.text)


def _others(
    log: Log, first: dict[str, tuple[int, Served]], since: float, count: int, rows_max: int
) -> dict[str, Floats]:
    """What models beside the one that answered, and shadows, said of the rows."""
    found: dict[str, Floats] = {}

    def tell(name: str, row: int, said: bytes, rows: int) -> None:
        if len(said) == 4 * rows and (name in found or len(found) < OTHERS_MAX):
            found.setdefault(name, np.full(count, np.nan, np.float32))[row : row + rows] = np.frombuffer(said, "<f4")

    for row, event in first.values():
        for model, beside in event.beside.items():
            if outputs := beside.outputs:
                said = outputs.get("probability", next(iter(outputs.values())))
                tell(f"{model} {beside.version.partition('@')[0]}", row, said, len(event.candidates))
    for one in _following(log, "shadow", since, rows_max):
        if isinstance(one, Shadow) and one.request in first:
            row, event = first[one.request]
            if one.model == event.model:
                tell(f"{one.model} {one.version.partition('@')[0]}", row, one.scores, len(event.candidates))
    return found


def _calibration(scores: NDArray[np.float64], labels: Floats) -> tuple[float, float]:
    """Slope and intercept by which scores are mended, fitted to the labels of those that were shown."""
    shown = ~np.isnan(labels) & (scores > 0)
    made, count = Calibration(), int(shown.sum())
    judged = Labels(labels[shown].astype(np.float64), np.ones(count), np.zeros(count, np.bool_))
    made.observe(scores[shown], judged)
    return made.fit()
