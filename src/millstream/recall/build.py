"""Build indexes from what people liked and of the items there are, beside everything else that the learn role does.

Rules of the room:
- `build` is a pure function of positives and settings: tests and the bench call it as the role does.
- The role reads on while a build runs in a thread of its own, at low priority and most of the time without the GIL.
- A build that fails is counted and said, and tried again when the next is due. Whoever is killed in the middle leaves
  the index before; its successor reads the log and builds anew.
- Factors begin from those of the index before, so a few turns do; an item keeps its direction from build to build.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.clock import Clock
from millstream.meter import Meter
from millstream.recall import cooccur
from millstream.recall.ann import Base
from millstream.recall.factors import fit
from millstream.recall.index import About, Contents, Index, Indexes, write
from millstream.recall.liked import STEP, Gathered, Liked
from millstream.recall.settings import BuildSettings
from millstream.recall.shelf import TOWERS
from millstream.recall.shelving import Filling, Shelving
from millstream.stream.log import Log

LAZY: Final = 10  # niceness of a build
LOOK_S: Final = 2.0  # between two looks at which towers are live
logger = logging.getLogger(__name__)


def build(
    gathered: Gathered, settings: BuildSettings, start: NDArray[np.float32] | None = None, seed: int = 0,
    threads: int = 1,
) -> Contents:  # fmt: skip
    """The contents of an index. `start` float32 [items, width]: factors to begin from, NaN rows for new items; then
    `turns_again` turns are made. The same arguments give the same index."""
    positives, items, users = gathered
    windows = cooccur.windows(positives, users, settings.window)
    neighbours = cooccur.neighbours(windows, len(items), settings.neighbours, settings.shrink)
    newest = np.zeros(users)
    np.maximum.at(newest, positives.users, positives.times)
    near = cooccur.near(windows, newest, len(items), settings.takers)
    factors = settings.factors
    if start is not None:
        factors = msgspec.structs.replace(factors, turns=settings.turns_again)
    model, theirs = fit(windows, len(items), factors, start, seed)
    asked = theirs[theirs.any(1)]
    base = Base.build(model.items, queries=asked, seed=seed, threads=threads, codes=settings.codes)
    return Contents(items, neighbours, near, model, base)


class Builder:
    """Follows the log and keeps `folder` (`state/recall`) supplied with indexes. `kinds`: feedback kind -> value from
    which it says that somebody liked an item. `tenant`: of whom alone, where there are any; the thread that builds is
    `thread`, where several builders share one; `shelving`: what fills shelves, of vectors of all items, None: nothing
    does. Step it from one thread; close it."""

    def __init__(
        self, log: Log, settings: BuildSettings, clock: Clock, meter: Meter, folder: Path, kinds: Mapping[str, float],
        tenant: str = "", thread: ThreadPoolExecutor | None = None, shelving: Shelving | None = None,
    ) -> None:  # fmt: skip
        self._settings, self._clock, self._folder = settings, clock, folder
        self._liked = Liked(log, meter, kinds, settings.positives_max, settings.requests_max, tenant)
        self._indexes, self._shelving = Indexes(folder), shelving
        self._thread = thread or ThreadPoolExecutor(1, "recall-build")
        self._running: Future[float] | None = None
        self._had = 0  # events read when the last build began
        self._version: str | None = None  # of the towers whose vectors the newest index has; None: nobody looked
        self._due = self._look_at = clock.monotonic()
        self._made, self._failed = (
            meter.counter("millstream_recall_builds_total", "Indexes built for recall.", {"result": result})
            for result in ("made", "failed")
        )
        self._newest = meter.gauge(
            "millstream_recall_index_newest", "Event time of the newest positive in the last index built here.",
            {"tenant": tenant} if tenant else None,
        )  # fmt: skip

    def step(self) -> int:
        """Read on, and build when it is due and nearly all is read; how many events were read."""
        read = self._liked.step()
        told = self._shelving.step() if self._shelving is not None else 0
        self._finish()
        now = self._clock.monotonic()
        if max(read, told) < STEP and self._running is None and now >= self._due and self._something_new(now):
            self._due = now + self._settings.every_s
            self._begin()
        return read + told

    def reached(self, cut: Mapping[str, Mapping[int, int]]) -> bool:
        """Whether everything that can be read before these offsets, by topic and partition, has been taken."""
        return self._liked.reached(cut)

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Build without whoever `mine` says from now on, the next time at once; how many they were. What lies in
        indexes of them has no name, and goes with those."""
        count = self._liked.forget(mine)
        if count:
            self._due, self._had = self._clock.monotonic(), -self._settings.least_events
        return count

    def wait(self) -> None:
        """Until the build that runs, if any, is done and told."""
        if self._running is not None:
            self._running.exception()
            self._finish()

    def close(self) -> None:
        """Wait for the build that runs, and begin none."""
        self.wait()
        self._thread.shutdown()

    @property
    def _events(self) -> int:
        return self._liked.total + (self._shelving.told if self._shelving is not None else 0)

    def _something_new(self, now: float) -> bool:
        """Enough was liked or told of since the last build began, or other towers are live than the newest index has
        vectors of, which is looked at now and then."""
        if self._events - self._had >= self._settings.least_events:
            return True
        if self._shelving is None or now < self._look_at:
            return False
        self._look_at = now + LOOK_S
        live = self._shelving.live()
        if live and self._version is None:
            newest = self._indexes.newest()
            self._version = newest.about.shelves.get(TOWERS, "") if newest is not None else ""
        return bool(live) and live != self._version

    def _begin(self) -> None:
        self._had = self._events
        about = About(made_at=self._clock.now(), made_by="millstream", offsets=self._liked.offsets)
        shelves = None
        if self._shelving is not None:
            self._version, shelves = self._shelving.live(), self._shelving.copied()
        self._running = self._thread.submit(self._build, self._liked.copied(), shelves, about)

    def _build(self, copied: Callable[[], Gathered], shelves: Filling | None, about: About) -> float:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own to give up
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LAZY)
        began, gathered = time.perf_counter(), copied()
        contents = build(gathered, self._settings, _start(self._indexes.newest(), gathered.items, self._settings))
        newest = float(gathered.positives.times.max(initial=0.0))
        write(
            self._folder,
            contents._replace(shelves=shelves(gathered) if shelves is not None else {}),
            msgspec.structs.replace(
                about, users=gathered.users, positives=len(gathered.positives.times), newest=newest,
                took_s=round(time.perf_counter() - began, 3),
            ),
        )  # fmt: skip
        return newest

    def _finish(self) -> None:
        if self._running is None or not self._running.done():
            return
        done, self._running = self._running, None
        try:
            self._newest.set(done.result())
            self._made.add()
        except Exception as error:  # whatever it is: learning goes on
            self._failed.add()
            self._had = -self._settings.least_events
            logger.error(
                "no index for recall was built: %s; tried again in %g s", error, self._settings.every_s,
                exc_info=None if isinstance(error, errors.Error) else error,
            )  # fmt: skip


def _start(index: Index | None, items: list[str], settings: BuildSettings) -> NDArray[np.float32] | None:
    """Factors of an index by the rows of `items`; None where there is nothing to begin from."""
    if index is None or index.contents.model.items.shape[1] != settings.factors.width:
        return None
    rows = {name: row for row, name in enumerate(items)}
    start = np.full((len(items), settings.factors.width), np.nan, np.float32)
    for first, names in index.names():
        at = np.array([rows.get(name, -1) for name in names], np.int64)
        start[at[at >= 0]] = index.contents.model.items[first + np.flatnonzero(at >= 0)]
    return start
