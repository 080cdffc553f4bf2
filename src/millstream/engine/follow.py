"""Follow topic `deltas`: every version loaded here gets the deltas of its base, in order, between its own batches.

Each loaded version has a cursor of its own, which begins where its manifest says its deltas begin. So it does not
matter which comes first, a base or its first deltas, and a version that cannot be loaded holds up no other.

A delta that is damaged in the log ends the deltas of its version (those behind it show a gap): it answers with what it
has, and the next base is whole again.
"""

from __future__ import annotations

import contextlib
import logging
from typing import NamedTuple

import numpy as np

from millstream.clock import Clock
from millstream.engine.engine import Engine
from millstream.errors import Busy, Error, Full, NotFound
from millstream.meter import Meter
from millstream.models.repository import Repository
from millstream.stream import LenientReader, Log
from millstream.types import Delta

GROUP = "serve"
NOTE_S = 10.0
log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """A delta that no answer has been computed with yet. `next`: the offset after it."""

    sequence: int
    since: bytes
    next: int


class Follow:
    """Applies deltas, and measures staleness: from an outcome's arrival (its label's wait left out) to the first answer
    of this process that was computed with weights containing it."""

    def __init__(self, repository: Repository, source: Log, clock: Clock, meter: Meter) -> None:
        self._repository, self._source, self._clock = repository, source, clock
        self._deltas = LenientReader(source.reader("deltas"), meter)
        self._engine: Engine | None = None
        self._cursors: dict[tuple[str, str], int] = {}
        self._waiting: dict[tuple[str, str], list[_Waiting]] = {}
        self._answered = self._noted = source.committed(GROUP, "deltas").get(0, 0)
        self._note_at = clock.monotonic()
        self._staleness = meter.histogram(
            "millstream_staleness_seconds",
            "From an outcome's arrival to the first answer of a process that contains it.",
            {"process": meter.name},
        )
        self._applied = meter.counter("millstream_deltas_applied_total", "Deltas applied to served versions.")
        self._failed = meter.counter("millstream_deltas_refused_total", "Deltas that could not be applied.")

    def attach(self, engine: Engine) -> None:
        """The engine whose versions follow; before its first version is loaded."""
        self._engine = engine

    def on_load(self, model: str, version: str) -> None:
        """A version begins to answer: bring it up to its last delta before its first request."""
        self._forget(model, version)  # what an earlier load of it left
        lineage = self._repository.manifest(model, version).lineage
        if "deltas_from" in lineage:
            self._cursors[model, version] = int(str(lineage["deltas_from"]))
            self._poll(model, version)

    def poll(self) -> None:
        """Apply what is new. Versions that are no longer loaded are forgotten."""
        assert self._engine is not None
        loaded = {(view.model, name.partition("@")[0]) for view in self._engine.views() for name in view.versions}
        for model, version in list(self._cursors):
            if (model, version) in loaded:
                self._poll(model, version)
            else:
                self._forget(model, version)
        if self._clock.monotonic() >= self._note_at:
            self.note()

    def on_first_answer(self, model: str, version: str, sequence: int) -> None:
        """An answer was computed with delta `sequence`: everything up to it has reached people."""
        waiting = self._waiting.get((model, version), [])
        done = [one for one in waiting if one.sequence <= sequence]
        if not done:
            return
        del waiting[: len(done)]
        now = self._clock.now()
        for one in done:
            self._staleness.observe_all(np.maximum(now - np.frombuffer(one.since, np.float64), 0.0))
        self._answered = max(self._answered, done[-1].next)

    def note(self) -> None:
        """Keep how far answers are, for the next process. It waits for the disk, so not at each push: what came after
        it is, at worst, measured twice."""
        if self._answered > self._noted:
            self._noted, self._note_at = self._answered, self._clock.monotonic() + NOTE_S
            with contextlib.suppress(Full):
                self._source.commit(GROUP, "deltas", {0: self._answered})

    def _poll(self, model: str, version: str) -> None:
        for offset, delta in self._deltas.events(0, self._cursors[model, version]):
            if isinstance(delta, Delta) and (delta.model, delta.base) == (model, version):
                try:
                    fits = self._apply(delta, offset)
                except Busy:  # a long batch, and as many deltas as may wait for it: the next poll tries again
                    return
                if not fits:
                    self._forget(model, version)
                    return
            self._cursors[model, version] = offset + 1

    def _apply(self, delta: Delta, offset: int) -> bool:
        """Whether the version can go on: it cannot when it is no longer loaded, or when a delta does not fit.

        Busy: not now.
        """
        assert self._engine is not None
        try:
            applied = self._engine.apply(delta)
        except NotFound:
            return False
        except Busy:
            raise
        except Error as error:
            self._failed.add()
            log.error("%s %s stays as it is: %s", delta.model, delta.base, error)
            return False
        if applied:
            self._applied.add()
            if offset >= self._answered:  # else an earlier life of this process answered with it
                waiting = _Waiting(delta.sequence, delta.arrivals, offset + 1)
                self._waiting.setdefault((delta.model, delta.base), []).append(waiting)
        return True

    def _forget(self, model: str, version: str) -> None:
        self._cursors.pop((model, version), None)
        self._waiting.pop((model, version), None)
