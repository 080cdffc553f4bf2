"""Alerts on their way: to the log of the process at once, and to every target (targets.py) by a thread of its own.

Rules of the room:
- `put` waits for nobody. A target that hangs or fails delays its own messages and nothing else.
- What is put together, and what gathers while a target is busy or away, is one message, in order.
- Everything has a bound: what waits, a try, how long an alert is tried. What went lost is counted by target; that a
  target fails is said once, and once that it works again.
- Nothing personal leaves: texts pass guard/pii.py before they wait.
- At least once, while the process lives: what waits is in memory. Each alert is in topic `alerts` of the log whatever
  becomes of it here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from millstream.clock import Clock
from millstream.guard.pii import pseudonym, redact
from millstream.meter import Meter
from millstream.types import Alert
from millstream.watch.alarms.targets import Again, Alertmanager, Delivery, Refused, one_line

logger = logging.getLogger(__name__)

MESSAGE_MAX: Final = 200
"""Alerts in one message; the next ones go in the next."""
TEXT_MAX: Final = 2000
LABEL_MAX: Final = 200
AGAIN_MAX_S: Final = 60.0
LOOK_S: Final = 1.0
"""A thread that waits for a time looks so often whether it has come: the clock may be a test's."""
_LEVELS = {"page": logging.ERROR, "ticket": logging.WARNING, "note": logging.INFO}


class Deliveries:
    """Tells of alerts. Threads run from the beginning until `close`."""

    def __init__(self, targets: Mapping[str, Delivery], meter: Meter, clock: Clock) -> None:
        self._ways = [_Way(name, target, meter, clock) for name, target in targets.items()]

    def put(self, alerts: Sequence[Alert]) -> None:
        """Say these, which belong to one moment. Never waits, never raises for what a target does."""
        safe = [_safe(alert) for alert in alerts]
        for alert in safe:
            runbook = f" ({alert.runbook})" if alert.runbook else ""
            logger.log(_LEVELS.get(alert.severity, logging.WARNING), "%s", _logged(alert) + runbook)
        for way in self._ways:
            way.put(safe)

    def resume(self, alerts: Sequence[Alert]) -> None:
        """These were firing when an earlier process ended: who is to hear of it again and again, does."""
        safe = [_safe(alert) for alert in alerts]
        for way in self._ways:
            way.resume(safe)

    def close(self, within_s: float = 5.0) -> None:
        """Try once more what waits, for so long at most; what stays is counted as not delivered."""
        end = time.monotonic() + within_s
        for way in self._ways:
            way.finish()
        for way in self._ways:
            way.join(max(0.0, end - time.monotonic()))


class _Waits(NamedTuple):
    alert: Alert
    until: float  # monotonic seconds; then it is given up


class _Way:
    """The way to one target: what waits for it, what fires there, and the thread that sends."""

    def __init__(self, name: str, target: Delivery, meter: Meter, clock: Clock) -> None:
        self._name, self._target, self._clock = name, target, clock
        labels = {"target": name}
        self._delivered = meter.counter(
            "millstream_alerts_delivered_total", "Alerts that a target has taken, by target", labels
        )
        self._undelivered = meter.counter(
            "millstream_alerts_undelivered_total", "Alerts that a target has not got, by target", labels
        )
        self._change = threading.Condition()  # holds for all below
        self._waiting: deque[_Waits] = deque()
        self._flying: list[_Waits] = []
        self._firing: dict[tuple[str, ...], Alert] = {}
        self._again_at = self._resend_at = float("-inf")
        self._pause_s = target.again_s
        self._failing = self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"millstream-alerts-{name}", daemon=True)
        self._thread.start()

    def put(self, alerts: Sequence[Alert]) -> None:
        """Have those sent that go here."""
        until = self._clock.monotonic() + self._target.keep_s
        with self._change:
            self._waiting += [_Waits(alert, until) for alert in alerts if alert.severity in self._target.severities]
            self._bound()
            self._change.notify()

    def resume(self, alerts: Sequence[Alert]) -> None:
        """Know what fires."""
        with self._change:
            self._fires([alert for alert in alerts if alert.severity in self._target.severities])
            self._change.notify()

    def finish(self) -> None:
        """Have the thread send what waits, and end."""
        with self._change:
            self._closing = True
            self._change.notify()

    def join(self, within_s: float) -> None:
        """Wait for its end; give up what is left."""
        self._thread.join(within_s)
        with self._change:
            self._lose(len(self._waiting) + len(self._flying), "the process ends")
            self._waiting.clear()
            self._flying = []

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._target.send(batch, self._clock.now())
            except Again as error:
                self._put_back(str(error), error.after_s)
            except Refused as error:
                self._give_up(str(error))
            except Exception as error:  # a fault of ours: the next message may be well
                logger.exception("alerts to %s", self._name)
                self._give_up(repr(error))
            else:
                self._went()

    def _next(self) -> list[Alert] | None:
        """What is to be sent now, as soon as there is something; None at the end."""
        with self._change:
            while True:
                now = self._clock.monotonic()
                if self._waiting and (self._closing or now >= self._again_at):
                    self._flying = [self._waiting.popleft() for _ in range(min(MESSAGE_MAX, len(self._waiting)))]
                    batch = [one.alert for one in self._flying]
                    self._fires(batch)
                    self._resend_at = now + self._resend_s
                    gone = {_place(alert) for alert in batch}
                    return [alert for place, alert in self._firing.items() if place not in gone] + batch
                if self._closing:
                    return None
                due = self._again_at if self._waiting else max(self._resend_at, self._again_at)
                if self._firing and not self._waiting and now >= due:
                    self._resend_at = now + self._resend_s
                    return list(self._firing.values())
                self._change.wait(min(LOOK_S, due - now) if self._waiting or self._firing else None)

    @property
    def _resend_s(self) -> float:
        return self._target.resend_s if isinstance(self._target, Alertmanager) else float("inf")

    def _fires(self, alerts: Sequence[Alert]) -> None:
        """Keep in mind what is to be sent again: as much as may wait."""
        if isinstance(self._target, Alertmanager):
            for alert in alerts:
                self._firing.pop(_place(alert), None)
                if alert.state == "firing" and len(self._firing) < self._target.waiting_max:
                    self._firing[_place(alert)] = alert

    def _went(self) -> None:
        with self._change:
            self._delivered.add(len(self._flying))
            self._flying = []
            self._pause_s = self._target.again_s
            if self._failing:
                self._failing = False
                logger.warning("alerts go to %s again", self._name)

    def _put_back(self, why: str, after_s: float) -> None:
        """Try again later, but for what has been tried for too long."""
        with self._change:
            now = self._clock.monotonic()
            kept = [] if self._closing else [one for one in self._flying if one.until > now]
            lost, self._flying = len(self._flying) - len(kept), []
            self._waiting.extendleft(reversed(kept))
            self._again_at = now + max(self._pause_s, after_s)
            self._pause_s = min(2 * self._pause_s, max(AGAIN_MAX_S, self._target.again_s))
            self._fail(f"they wait: {why}")
            self._lose(lost, why)
            self._bound()

    def _give_up(self, why: str) -> None:
        with self._change:
            lost, self._flying = len(self._flying), []
            self._again_at = self._clock.monotonic() + (0.0 if lost else AGAIN_MAX_S)
            self._fail(f"they are lost: {why}")
            self._lose(lost, why)

    def _bound(self) -> None:
        over = len(self._waiting) - self._target.waiting_max
        for _ in range(over):
            self._waiting.popleft()
        self._lose(max(0, over), f"more than {self._target.waiting_max} wait")

    def _fail(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            logger.error("alerts do not get to %s, %s", self._name, why)

    def _lose(self, alerts: int, why: str) -> None:
        if alerts:
            self._undelivered.add(alerts)
            self._fail(f"they are lost: {why}")


def _place(alert: Alert) -> tuple[str, ...]:
    """What an alert is of, whenever it fires."""
    return (alert.rule, alert.severity, *(f"{name}={value}" for name, value in sorted(alert.labels.items())))


def _safe(alert: Alert) -> Alert:
    """The alert without what is personal, in whole characters, no text of it longer than TEXT_MAX."""
    labels = {one_line(name, LABEL_MAX): one_line(pseudonym(value), LABEL_MAX) for name, value in alert.labels.items()}
    return msgspec.structs.replace(
        alert,
        id=one_line(alert.id, LABEL_MAX),
        labels=labels,
        said=one_line(redact(alert.said), TEXT_MAX),
        did=one_line(redact(alert.did), TEXT_MAX),
        runbook=one_line(alert.runbook, TEXT_MAX),
    )


def _logged(alert: Alert) -> str:
    did = f"; done: {alert.did}" if alert.did else ""
    return f"alert {alert.rule} {alert.state} [{alert.severity}]: {alert.said}{did}"
