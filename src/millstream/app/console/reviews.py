"""What the console's page Review shows and does: the review queue, labels, datasets.

Rules of the room:
- The queue is followed, not read anew; each `ANEW_S` it is, so that who was forgotten does not stay here.
- Choosing rows and exporting scan the log: they run in the thread of who asked for them, one at a time.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from millstream.app import curation
from millstream.app.installation import Installation
from millstream.console.studies import Case, Made, ReviewsNow
from millstream.errors import Busy
from millstream.learn.curate.dataset import Dataset
from millstream.learn.curate.queue import Queue, ReviewItem, shown
from millstream.learn.curate.reasons import REASONS, SPEECH

CASES = 30
DATASETS = 20
ANEW_S = 300.0
VALUE_MAX = 200


class Reviewing:
    """The review queue of an installation; may be asked from any thread."""

    def __init__(self, at: Installation) -> None:
        self._at = at
        self._lock, self._long = threading.Lock(), threading.Lock()
        self._queue = Queue(at.log, at.settings.curate)
        self._anew = math.inf
        self._labelled: Counter[str] = Counter()

    def reviews(self, reason: str) -> ReviewsNow:
        """What waits, as it stands."""
        at, clock = self._at, self._at.clock
        with self._lock:
            if clock.monotonic() >= self._anew or self._anew == math.inf:
                self._queue = Queue(at.log, at.settings.curate)
                self._anew = clock.monotonic() + ANEW_S
            waiting = self._queue.poll().waiting(clock.now())
            items = shown(waiting, CASES, reason)
            counts = Counter(one.reasons[0] for one in waiting)
            labelled = dict(self._labelled)
        return ReviewsNow(
            model=at.model,
            waiting={name: counts[name] for name in (*REASONS, *SPEECH) if counts[name]},
            cases=[_case(one, at.settings.catalogue.title) for one in items],
            labelled=labelled,
            datasets=[_made(one) for one in curation.datasets(at)[:DATASETS]],
        )

    def label(self, id: str, label: str, who: str) -> None:
        """As `millstream curate label`."""
        said = curation.label(self._at, id, label, who)
        with self._lock:
            self._labelled[said.label] += 1

    def fill(self) -> int:
        """As `millstream curate fill`; how many joined."""
        with self._alone():
            return sum(curation.fill(self._at).added.values())

    def export(self, name: str) -> str:
        """As `millstream curate export`."""
        with self._alone():
            done = curation.export(self._at, name)
        one = done.dataset
        return f"{one.name} {one.version}: {one.rows} rows" + ("" if done.new else ", nothing new since")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._long.acquire(blocking=False):
            raise Busy("rows are chosen, or exported, at this moment; wait for its end")
        try:
            yield
        finally:
            self._long.release()


def _case(one: ReviewItem, title: str) -> Case:
    told = {name: _text(value) for name, value in one.shown.items()}
    return Case(
        id=one.id, item=one.item, title=told.get(f"item.{title}") or one.item, user=one.user, reasons=one.reasons,
        why=one.why, model=one.model, version=one.version, score=one.score, calibrated=one.calibrated,
        others=one.others, about=[pair for pair in told.items() if pair[0] != f"item.{title}"],
        event_time=one.event_time,
    )  # fmt: skip


def _text(value: object) -> str:
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value))[:VALUE_MAX]


def _made(one: Dataset) -> Made:
    return Made(
        name=one.name, version=one.version, created=one.created, rows=one.rows, parent=one.parent, digest=one.digest,
        kinds=one.counts.get("kind", {}), reasons=one.counts.get("reason", {}), labellers=one.labellers,
    )  # fmt: skip
