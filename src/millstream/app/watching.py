"""The role `watch`: reads what processes count and what the log has, makes readings of it, alerts of those, and acts.

    readings/P   Readings, a record every `watch.every_s`, by the role of the machine whose log.partition is P
    alerts/P     Alert, when one fires and when it is resolved

Rules of the room:
- What it says rests on the readings that it has written: `replay` says the same from the log alone.
- Its time goes on with the monotonic clock from when it began, never before its last record: a wall clock that jumps
  moves no window. How far that is from the wall clock is said.
- It is on nobody's way: it ends and begins without anybody waiting. What processes counted while it was away is missing
  from its counts; alerts that were firing go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from millstream import config
from millstream.app import watched
from millstream.app.installation import Installation
from millstream.errors import Corrupt, Full, NotFound
from millstream.machine import Gauges
from millstream.meter import Meter
from millstream.stream import LenientReader, Log, Writer, encode
from millstream.stream.event import decode
from millstream.types import Alert, Readings
from millstream.watch.alarms.action import act
from millstream.watch.alarms.deliver import Deliveries
from millstream.watch.alarms.levels import Budget, Levels
from millstream.watch.alarms.rule import Rule
from millstream.watch.alarms.state import Alarms
from millstream.watch.history import History
from millstream.watch.monitor import Logged, Monitor, Monitors, Sample
from millstream.watch.monitors.drift import Drift
from millstream.watch.monitors.labels import Labels
from millstream.watch.monitors.meters import Meters
from millstream.watch.monitors.quality import Quality
from millstream.watch.monitors.stream import Streams
from millstream.watch.quantities import QUANTITIES
from millstream.watch.reading import Key, Reader, Scribe
from millstream.watch.settings import WatchSettings

logger = logging.getLogger("millstream")


def monitors(at: Installation, history: History) -> list[Monitor]:
    """Those that an installation is watched by; `history`: of what they read."""
    drift = Drift(watched.sets(at), at.folder / "state" / "watch", lambda: watched.trained(at))
    found: list[Monitor] = [Meters(), Quality(history), drift, Labels(history), Streams(history)]
    if at.settings.recommend.places:
        from millstream.app.report.lately import Lately
        from millstream.watch.monitors.lists import Lists

        found.append(Lists(Lately(at)))
    return found


class Watch:
    """The role. `step` does what is due and says whether anything was."""

    def __init__(self, installation: Installation) -> None:
        self._at = at = installation
        settings, partition = at.settings.watch, at.settings.log.partition
        self.meter = at.meter("watch")
        self.levels = Levels(settings.levels)
        self.history = History(settings.keys_max)
        self._monitors = Monitors([*monitors(at, self.history), self.levels], self.meter)
        self._readings, self._alerts = at.log.writer("readings", partition), at.log.writer("alerts", partition)
        self._scribe = Scribe()
        self._wall, self._mono = at.clock.now(), at.clock.monotonic()
        for record in recorded(at.log, self.meter, partition):
            self.history.take(*record)
        self._wall = max(self._wall, self.history.last)
        self.alarms = Alarms(settings.in_force, self.history)
        self.alarms.resume(firing(at.log, self.meter, partition))
        self._deliveries = Deliveries(settings.deliver, self.meter, at.clock)
        self._deliveries.resume(self.alarms.firing)
        self._offsets: dict[tuple[str, int], int] = {}
        self._topics = {topic: LenientReader(at.log.reader(topic), self.meter) for topic in self._monitors.topics}
        for topic, reader in self._topics.items():  # from now on
            self._offsets |= {(topic, partition): reader.end(partition) for partition in reader.partitions()}
        self._due = at.clock.monotonic()
        self._seconds = self.meter.histogram("millstream_watch_seconds", "Of a look at everything.")
        self._gauges = Gauges(self.meter, "watch", whole=False)
        self._shown: set[tuple[str, str]] = set()
        self._levels: set[Key] = set()
        self._unwritten = self._full = False
        self._missing(settings.in_force)

    def _missing(self, rules: Mapping[str, Rule]) -> None:
        """Say which rules look at a model that is not there."""
        models = self._at.repository.models()
        for name, rule in rules.items():
            if (model := rule.where.get("model", "")) and model not in models:
                logger.warning("rule %s looks at model %r, which is not there: it has no data", name, model)

    def now(self) -> float:
        """The role's own time, unix seconds: it never goes back."""
        return self._wall + self._at.clock.monotonic() - self._mono

    def step(self) -> int:
        """Look at everything, if that is due; how many alerts came of it. Corrupt when a sync has failed."""
        if self._at.log.failed:
            raise Corrupt(self._at.log.failed)
        began = self._at.clock.monotonic()
        if began < self._due:
            return 0
        self._due = max(self._due + self._at.settings.watch.every_s, began)
        now = self.now()
        self._gauges.sample()
        for process, series in self.meter.by_process(self._monitors.metrics):
            self._monitors.observe(Sample(now, process, series))
        self._follow()
        read = self._monitors.readings(now)
        read[Key("clock_jump")] = abs(self._at.clock.now() - now)
        alerts = self._take(now, read)
        self._seconds.observe(self._at.clock.monotonic() - began)
        return len(alerts)

    def _take(self, now: float, read: Mapping[Key, float]) -> list[Alert]:
        self._append(self._readings, "", self._scribe.record(now, read))
        self.history.add(now, read)
        alerts = [self._do(alert) for alert in self.alarms.look(now)]
        for alert in alerts:
            self._append(self._alerts, alert.id, alert)
        self._deliveries.put(alerts)
        self._show(read)
        if self.history.forgotten and not self._full:
            self._full = True
            logger.warning(
                "there is more to watch than watch.keys_max = %d has room for; the history of what was read "
                "longest ago goes",
                self._at.settings.watch.keys_max,
            )
        return alerts

    def _do(self, alert: Alert) -> Alert:
        rule = self.alarms.rules.get(alert.rule)
        if alert.state == "resolved" or rule is None or not rule.action:
            return alert
        alert = replace(alert, did=act(self._at.repository, rule, alert))
        self.alarms.resume([alert])
        return alert

    def _follow(self) -> None:
        """Show monitors what the log has that is new."""
        for topic, reader in self._topics.items():
            for partition in reader.partitions():
                at = self._offsets.get((topic, partition), 0)
                for record, event in reader.decoded(partition, at, decode):
                    if event is not None:
                        self._monitors.observe(Logged(topic, record.arrival, event))
                    self._offsets[topic, partition] = record.offset + 1

    def _append(self, writer: Writer, key: str, event: Readings | Alert) -> None:
        try:
            writer.append(key.encode(), encode(event))
        except Full as error:  # what watches must not end where there is most to say
            if isinstance(event, Readings):
                self._scribe.lost()
            if not self._unwritten:
                logger.error("what is read is not logged: %s", error)
            self._unwritten = True
        else:
            self._unwritten = False

    def _show(self, read: Mapping[Key, float]) -> None:
        """In /metrics: readings that no other process counts, and which rules hold."""
        own = {key: value for key, value in read.items() if not QUANTITIES[key.quantity].metric}
        levels = {key for key in own if QUANTITIES[key.quantity].kind == "level"}
        with self.meter.together():
            for key in self._levels - levels:  # what is read no more is no level any more
                self.meter.release(_labels(key))
            for key in levels - self._levels:
                self.meter.claim(_labels(key))
            for key, value in own.items():
                if key in levels:
                    self.meter.gauge("millstream_watch_level", "What the role watch read.", _labels(key)).set(value)
                else:
                    help = "What the role watch counted."
                    self.meter.counter("millstream_watch_count_total", help, _labels(key)).add(value)
        self._levels = levels
        firing: dict[tuple[str, str], int] = dict.fromkeys(self._shown, 0)
        for alert in self.alarms.firing:
            firing[alert.rule, alert.severity] = firing.get((alert.rule, alert.severity), 0) + 1
        for (rule, severity), count in firing.items():
            labels = {"rule": rule, "severity": severity}
            self.meter.gauge("millstream_alerts_firing", "Alerts that fire now.", labels).set(count)
        self._shown |= firing.keys()

    def close(self) -> None:
        """Tell what waits to be told, and let go."""
        self._deliveries.close()


def _labels(key: Key) -> dict[str, str]:
    return {"quantity": key.quantity, **dict(key.labels)}


def recorded(
    log: Log, meter: Meter, partition: int = 0
) -> Iterator[tuple[float, tuple[Key, ...], NDArray[np.float64]]]:
    """(unix seconds, keys, what was read of each) of every record of a role `watch`, oldest first. Those that lost
    their keys to a damaged place are left out."""
    topic, reader = LenientReader(log.reader("readings"), meter), Reader()
    for _, event in topic.events(partition, 0):
        if isinstance(event, Readings):
            try:
                read = reader.row(event)
            except Corrupt as error:
                logger.warning("left out: %s", error)
                continue
            if read is not None:
                yield event.at, *read


def firing(log: Log, meter: Meter, partition: int = 0) -> list[Alert]:
    """The alerts that were firing when their role ended last."""
    topic, last = LenientReader(log.reader("alerts"), meter), dict[str, Alert]()
    for _, event in topic.events(partition, 0):
        if isinstance(event, Alert) and event.state == "firing":
            last[event.id] = event
        elif isinstance(event, Alert):
            last.pop(event.id, None)
    return list(last.values())


def replay(
    installation: Installation, rules: Mapping[str, Rule], since: float = -inf, until: float = inf
) -> list[Alert]:
    """The alerts that these rules would have made of what was recorded, between `since` and `until` (unix seconds);
    the readings before count, as they would have; what held already begins to hold at `since`."""
    history = History(installation.settings.watch.keys_max)
    alarms, said = Alarms(rules, history), list[Alert]()
    for at, keys, values in recorded(installation.log, Meter(), installation.settings.log.partition):
        if at > until:
            break
        history.take(at, keys, values)
        if at >= since:
            said += alarms.look(at)
    return said


class Wellbeing(msgspec.Struct, frozen=True, kw_only=True):
    """Is it well? `said`: in a sentence; `at`: when it was looked at last, unix seconds, 0: never; `firing`: alerts."""

    well: bool
    said: str
    at: float
    firing: list[Alert]


def wellbeing(installation: Installation) -> Wellbeing:
    """As the role said last, by the log: what fires, and whether anybody looks."""
    at, partition = installation, installation.settings.log.partition
    fires = firing(at.log, Meter(), partition)
    reader = at.log.reader("readings")
    end = reader.end(partition) if partition in reader.partitions() else 0
    last = [record.arrival for record in reader.read(partition, end - 1)] if end else []
    looked = last[-1] if last else 0.0
    ago = at.clock.now() - looked
    pages = sum(alert.severity == "page" for alert in fires)
    if not looked:
        said = "Nobody has watched yet: `millstream up` runs the role watch."
    elif ago > 3 * at.settings.watch.every_s + 5.0:
        said = f"Nobody watches: the last look was {ago:,.0f} s ago. Is the role watch running?"
    elif fires:
        many = f"{len(fires)} alerts fire" if len(fires) > 1 else "an alert fires"
        said = f"Not well: {many}, {pages} to wake somebody."
    else:
        said = f"Well: none of {len(at.settings.watch.in_force)} rules holds."
    return Wellbeing(well=said.startswith("Well"), said=said, at=looked, firing=fires)


def budgets(installation: Installation) -> list[Budget]:
    """What is left of what was promised of each model, by what was recorded."""
    watch, history = installation.settings.watch, History(installation.settings.watch.keys_max)
    for record in recorded(installation.log, Meter(), installation.settings.log.partition):
        history.take(*record)
    return Levels(watch.levels).budgets(history)


def last_alerts(installation: Installation, count: int) -> list[Alert]:
    """The last words of alerts, oldest first."""
    topic = LenientReader(installation.log.reader("alerts"), Meter())
    events = (event for _, event in topic.events(installation.settings.log.partition, 0))
    return list(deque((event for event in events if isinstance(event, Alert)), maxlen=count))


class _Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    watch: WatchSettings


def rules_of(file: Path) -> dict[str, Rule]:
    """The rules of a TOML file alone, without those that ship. Misconfigured."""
    return {name: rule for name, rule in config.read(file, _Rules).watch.rules.items() if not rule.off}


def alert_of(log: Log, id: str, partition: int = 0) -> Alert:
    """The last word of an alert. NotFound."""
    found = [
        event
        for _, event in LenientReader(log.reader("alerts"), Meter()).events(partition, 0, id.encode())
        if isinstance(event, Alert) and event.id == id
    ]
    if not found:
        raise NotFound(f"no alert {id!r}; `millstream watch alerts -c FILE` lists them")
    return found[-1]
