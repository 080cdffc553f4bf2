"""What the console knows of alerts: their topic followed from its beginning, and the rules and targets of the settings.

Rules of the room:
- An alert is its last word; of those that are over the newest KEPT are remembered, of those that fire all.
- Whether it is well is said by who watches: without a look lately nobody knows, and the console says so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from millstream import errors
from millstream.app.console.counts import Counts
from millstream.app.console.tail import Tail
from millstream.app.installation import Installation
from millstream.console.text import seconds
from millstream.console.views import AlertRow, AlertsNow, RuleRow, Target, Well
from millstream.errors import NotFound
from millstream.stream.event import decode
from millstream.types import Alert
from millstream.watch.alarms.action import models_of
from millstream.watch.alarms.rule import Rule

KEPT: Final = 500
SHOWN: Final = 100
BACK: Final = 100_000
"""Records of topic `alerts` that are looked back at."""


class AlertsSeen:
    """The views of alerts. `poll` is called by one thread; the rest by any."""

    def __init__(self, at: Installation, counts: Counts) -> None:
        self._at, self._counts = at, counts
        self._alerts, self._readings = Tail(at.log, "alerts", BACK), Tail(at.log, "readings", 1)
        self._firing: OrderedDict[str, Alert] = OrderedDict()
        self._past: OrderedDict[str, tuple[Alert, Alert]] = OrderedDict()  # how it fired, how it ended
        self._looked = 0.0
        self._ready = False
        self._lock = threading.Lock()

    def poll(self) -> None:
        """Follow what came."""
        for _, event in self._alerts.new(decode):
            if isinstance(event, Alert):
                with self._lock:
                    self._take(event)
        for record, _ in self._readings.new(bytes):
            self._looked = max(self._looked, record.arrival)
        self._ready = True

    def _take(self, alert: Alert) -> None:
        if alert.state == "firing":
            self._firing[alert.id] = alert
            return
        self._past[alert.id] = self._firing.pop(alert.id, alert), alert
        while len(self._past) > KEPT:
            self._past.popitem(last=False)

    def firing(self) -> list[Alert]:
        """What fires, newest first."""
        with self._lock:
            return list(self._firing.values())[::-1]

    def alert(self, id: str) -> Alert:
        """How an alert fired. NotFound."""
        with self._lock:
            if (found := self._firing.get(id)) is not None:
                return found
            if id in self._past:
                return self._past[id][0]
        raise NotFound(f"no alert {id!r} among the last ones")

    def well(self) -> Well:
        """Whether it is well."""
        settings, firing = self._at.settings.watch, self.firing()
        pages = sum(alert.severity == "page" for alert in firing)
        ago = max(0.0, self._at.clock.now() - self._looked) if self._looked else 0.0
        rules = len(settings.in_force)
        if self._ready and not any(name.startswith("serve") for name in self._counts.processes):
            return Well("silent", len(firing), pages, rules)
        if not self._looked or ago > 3 * settings.every_s + 5.0:
            return Well("unwatched", len(firing), pages, rules, ago // 10 * 10)
        return Well("firing" if firing else "well", len(firing), pages, rules)

    def alerts(self) -> AlertsNow:
        """What fires, what did, the rules, and who is told."""
        firing = self.firing()
        with self._lock:
            past = list(self._past.values())[::-1][:SHOWN]
        holds = {alert.rule for alert in firing}
        return AlertsNow(
            well=self.well(),
            firing=[AlertRow(alert, 0.0, self._undoable(alert)) for alert in firing],
            past=[AlertRow(fired, ended.at, self._undoable(fired)) for fired, ended in past],
            rules=[_rule(name, rule, name in holds) for name, rule in sorted(self._at.settings.watch.in_force.items())],
            targets=[self._target(name) for name in ["log", *self._at.settings.watch.deliver]],
        )

    def _undoable(self, alert: Alert) -> bool:
        """Whether the policy is still as the alert's action left it."""
        if not alert.did or alert.did.startswith("nothing"):
            return False
        repository = self._at.repository
        for model in models_of(repository, alert):
            with suppress(errors.Error):
                if repository.policy(model).why.endswith(f"[{alert.id}]"):
                    return True
        return False

    def _target(self, name: str) -> Target:
        if name == "log":
            return Target(name, "log", 0, 0)
        labels, kind = {"target": name}, self._at.settings.watch.deliver[name].__struct_config__.tag
        taken = int(self._counts.total("millstream_alerts_delivered_total", labels))
        return Target(name, str(kind), taken, int(self._counts.total("millstream_alerts_undelivered_total", labels)))


def _rule(name: str, rule: Rule, holds: bool) -> RuleRow:
    return RuleRow(name, rule.severity, condition(rule), rule.says, rule.action, rule.dry_run, rule.runbook, holds)


def condition(rule: Rule) -> str:
    """A rule as a formula: `failures / requests > 0.05 over 60 s, for 20 s, by model, version`."""
    said = rule.quantity + (f" / {rule.of}" if rule.of else "")
    beside = {"peers": " x its peers", "past": " x a day ago"}.get(rule.against, "")
    said += f" {'>' if rule.above is not None else '<'} {rule.limit:g}{beside} over {seconds(rule.over_s)}"
    if rule.for_s:
        said += f", for {seconds(rule.for_s)}"
    if rule.least:
        said += f", of {rule.least:.3g} or more"
    if rule.where:
        said += ", where " + ", ".join(f"{label} = {value}" for label, value in rule.where.items())
    return said + (f", by {', '.join(rule.by)}" if rule.by else "")
