"""The protocol of a monitor, and all monitors of a role together.

Rules of the room:
- A monitor observes: counters as processes have them, and events of the topics that it wants. What it has read of them
  it says when asked: counts since it was asked before, and levels as they stand. Rules make alarms of that
  (watch/alarms/).
- Time is an argument. A monitor keeps a bounded state, and forgets it with the process: the history of what it read is
  in the log.
- One that raises costs its own readings of that moment and nothing else: it is counted, said once, and asked again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from millstream.meter import Meter, Series
from millstream.stream.event import Event
from millstream.watch.reading import Key, finite

SAID_MAX = 64  # failures of another kind that are said; all are counted
logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """The counters of one process as they are at a moment (unix seconds)."""

    at: float
    process: str
    series: list[Series]


class Logged(NamedTuple):
    """An event of the log: its topic, when it arrived (unix seconds)."""

    topic: str
    arrival: float
    event: Event


class Monitor(Protocol):
    """Watches something. Its check is `testing.check_monitor`."""

    @property
    def name(self) -> str:
        """What it is called where it fails."""

    @property
    def metrics(self) -> frozenset[str]:
        """The names of the series that it wants samples of."""

    @property
    def topics(self) -> frozenset[str]:
        """The topics whose events it wants."""

    def observe(self, seen: Sample | Logged) -> None:
        """Take in one thing that was seen. May raise; what it knows must stay whole then."""

    def readings(self, now: float) -> Mapping[Key, float]:
        """Counts since the last call, and levels as they stand at `now`. What it has no data for it leaves out."""


class Monitors:
    """All monitors of a role, each kept apart from the failures of the others."""

    def __init__(self, monitors: Sequence[Monitor], meter: Meter) -> None:
        self._monitors = monitors
        self.metrics = frozenset[str]().union(*(one.metrics for one in monitors))
        self.topics = frozenset[str]().union(*(one.topics for one in monitors))
        help = "Times that a monitor failed, by monitor."
        self._failed = {
            one.name: meter.counter("millstream_watch_failures_total", help, {"monitor": one.name}) for one in monitors
        }
        self._odd = meter.counter("millstream_watch_odd_total", "Readings that were no finite number.")
        self._said = set[tuple[str, str]]()

    def observe(self, seen: Sample | Logged) -> None:
        """Tell each monitor that wants it."""
        for one in self._monitors:
            if isinstance(seen, Sample):
                if one.metrics:
                    mine = [series for series in seen.series if series.name in one.metrics]
                    self._try(one, Sample(seen.at, seen.process, mine))
            elif seen.topic in one.topics:
                self._try(one, seen)

    def readings(self, now: float) -> dict[Key, float]:
        """What all of them read."""
        found: dict[Key, float] = {}
        for one in self._monitors:
            try:
                kept, odd = finite(one.readings(now).items())
            except Exception as error:
                self._fail(one, error)
                continue
            found |= kept
            self._odd.add(odd)
        return found

    def _try(self, one: Monitor, seen: Sample | Logged) -> None:
        try:
            one.observe(seen)
        except Exception as error:
            self._fail(one, error)

    def _fail(self, one: Monitor, error: Exception) -> None:
        self._failed[one.name].add()
        said = one.name, repr(error)
        if said not in self._said and len(self._said) < SAID_MAX:
            self._said.add(said)
            logger.error("monitor %s fails, and the others go on: %r", one.name, error)
