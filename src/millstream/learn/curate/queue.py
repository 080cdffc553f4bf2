"""The review queue: what waits for a person's look, and what was said of it. Topic `reviews` is all its state.

Rules of the room:
- What was chosen once does not come back, whatever was said of it; nor does a row that is nearly the same as one that
  waits or was labelled, "skip" too.
- No bound of [curate] is exceeded by what waits, however often rows are chosen.
- Of two labels of a row the one that the log took later counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.learn.curate.near import BANDS, DEEP, Kept, bands
from millstream.learn.curate.reasons import GOLD, REASONS, SPEECH, Pick, drawn, identity
from millstream.learn.curate.scan import Scan
from millstream.learn.curate.settings import CurateSettings
from millstream.learn.validation import Slice
from millstream.meter import Meter
from millstream.stream import LenientReader, Log, decode
from millstream.types import Review, ReviewLabel

TOPIC: Final = "reviews"
Label = Literal["positive", "negative", "skip"]
LABELS: Final[tuple[Label, ...]] = get_args(Label)
REMEMBERED_MAX: Final = 200_000
"""Reviews that are known; of more, those that were chosen longest ago are let go."""


class ReviewItem(msgspec.Struct, frozen=True, kw_only=True):
    """A row that waits for a person, as it is shown. `why`: in a sentence; `reasons`: the first is the one that it is
    counted for; `score`: as served, and `calibrated`; `others`: what other models said; `shown`: of the item and the
    user, without what is personal. Times are unix seconds. All texts are data: escape them."""

    id: str
    reasons: list[str]
    why: str
    worth: float
    request: str
    item: str
    user: str
    model: str
    version: str
    score: float
    calibrated: float
    others: dict[str, float]
    shown: dict[str, Any]
    event_time: float
    at: float


class Queue:
    """What topic `reviews` says; `poll` reads what is new.

    `reviews` by id, in the order in which they were chosen; `labels` by id: what counts of what people said."""

    def __init__(self, log: Log, settings: CurateSettings) -> None:
        self._reader, self._settings = LenientReader(log.reader(TOPIC), Meter()), settings
        self._at: dict[int, int] = {}
        self._arrivals: dict[str, float] = {}
        self.reviews: dict[str, Review] = {}
        self.labels: dict[str, ReviewLabel] = {}

    @property
    def offsets(self) -> dict[int, int]:
        """The offset after what was read, by partition."""
        return dict(self._at)

    def poll(self) -> Queue:
        """Read what is new; itself."""
        for partition in self._reader.partitions():
            for record, event in self._reader.decoded(partition, self._at.get(partition, 0), decode):
                if isinstance(event, Review):
                    self.reviews.setdefault(event.id, event)
                elif isinstance(event, ReviewLabel) and record.arrival >= self._arrivals.get(event.id, 0.0):
                    self.labels[event.id], self._arrivals[event.id] = event, record.arrival
                self._at[partition] = record.offset + 1
        while len(self.reviews) > REMEMBERED_MAX:
            oldest = next(iter(self.reviews))
            del self.reviews[oldest]
            self.labels.pop(oldest, None)
        return self

    def waiting(self, now: float) -> list[Review]:
        """What nobody has labelled, and was chosen not too long ago, in the order in which it was chosen."""
        since = now - self._settings.keep_s
        return [one for one in self.reviews.values() if one.id not in self.labels and one.at >= since]

    def labelled(self) -> list[tuple[Review, ReviewLabel]]:
        """What was called positive or negative, by id."""
        said = ((self.reviews.get(id), label) for id, label in sorted(self.labels.items()))
        return [(review, label) for review, label in said if review is not None and label.label != "skip"]


def shown(waiting: Iterable[Review], limit: int, reason: str = "") -> list[ReviewItem]:
    """The first `limit` of what waits: the most worthy of each reason in turn; of one `reason` alone, where given."""
    by_reason: dict[str, list[Review]] = {}
    for one in waiting:
        for name in [one.reasons[0]] if not reason else [reason] if reason in one.reasons else []:
            by_reason.setdefault(name, []).append(one)
    names = [name for name in (*REASONS, *SPEECH) if name in by_reason]
    ordered = [sorted(by_reason[name], key=lambda one: -one.worth) for name in names]
    turns = (one for turn in zip_longest(*ordered) for one in turn if one is not None)
    return [_item(one) for one, _ in zip(turns, range(limit), strict=False)]


def _item(one: Review) -> ReviewItem:
    return ReviewItem(
        id=one.id, reasons=one.reasons, why=one.said, worth=one.worth, request=one.request, item=one.item,
        user=one.user, model=one.model, version=one.version, score=one.score, calibrated=one.calibrated,
        others=one.others, shown=one.shown, event_time=one.event_time, at=one.at,
    )  # fmt: skip


def choose(
    rows: Scan, queue: Queue, settings: CurateSettings, slices: Sequence[Slice], definition: str, now: float
) -> list[Review]:
    """Rows of the scan that join the queue, without what they are shown with."""
    waiting = [one for one in queue.waiting(now) if one.tokens]  # texts of speech are bounded where they are found
    known = {*queue.reviews}
    room = _Room(waiting, settings)
    kept = Kept(settings.near)
    for one in [*waiting, *(queue.reviews[id] for id in queue.labels if id in queue.reviews)]:
        if one.definition == definition:
            kept.add(np.frombuffer(one.tokens, "<u4"))
    keys = bands(rows.tokens, BANDS, DEEP)
    found = {name: reason(rows, settings, slices) for name, reason in REASONS.items()}
    every: dict[int, list[str]] = {}
    for name, picks in found.items():
        for pick in picks if name != GOLD else ():
            every.setdefault(pick.row, []).append(name)
    chosen: list[Review] = []
    for name, picks in found.items():
        for pick in _best_first(rows, picks):
            if room.full(name):
                break
            id = identity(rows.requests[pick.row], rows.items[pick.row])
            if id in known or not room.fits(rows.users[pick.row], rows.items[pick.row]):
                continue
            known.add(id)
            if kept.add(rows.tokens[pick.row], keys[pick.row]):
                room.take(name, rows.users[pick.row], rows.items[pick.row])
                more = [one for one in every.get(pick.row, []) if one != name]
                chosen.append(_review(rows, pick, id, [name, *more], definition, now))
    return chosen


class _Room:
    """What may join yet."""

    def __init__(self, waiting: Sequence[Review], settings: CurateSettings) -> None:
        self._settings = settings
        self._count = len(waiting)
        self._reasons = Counter(one.reasons[0] for one in waiting)
        self._users = Counter(one.user for one in waiting)
        self._items = Counter(one.item for one in waiting)

    def full(self, reason: str) -> bool:
        return self._count >= self._settings.open_max or self._reasons[reason] >= self._settings.reason_max

    def fits(self, user: str, item: str) -> bool:
        """Whether these have room; nobody is no person."""
        person = not user or self._users[user] < self._settings.person_max
        return person and self._items[item] < self._settings.item_max

    def take(self, reason: str, user: str, item: str) -> None:
        self._count += 1
        self._reasons[reason] += 1
        self._users[user] += 1
        self._items[item] += 1


def _best_first(rows: Scan, picks: Sequence[Pick]) -> list[Pick]:
    """The most worthy first; of equals, and of the sample all are, by chance."""
    return sorted(picks, key=lambda pick: (-round(pick.worth, 3), drawn(rows.requests[pick.row], rows.items[pick.row])))


def _review(rows: Scan, pick: Pick, id: str, reasons: list[str], definition: str, now: float) -> Review:
    row = pick.row
    others: dict[str, NDArray[np.float32]] = rows.others
    partition, offset = rows.place[row]
    return Review(
        id=id, request=rows.requests[row], item=rows.items[row], user=rows.users[row], model=rows.models[row],
        version=rows.versions[row], definition=definition, tokens=rows.tokens[row].tobytes(),
        score=float(rows.scores[row]), calibrated=float(rows.calibrated[row]), reasons=reasons, worth=pick.worth,
        event_time=float(rows.times[row]), at=now, said=pick.said,
        others={name: float(said[row]) for name, said in others.items() if np.isfinite(said[row])},
        partition=partition, offset=offset,
    )  # fmt: skip
