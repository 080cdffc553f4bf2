"""Every monitor keeps the contract, and the check finds those that do not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.testing import check_monitor
from millstream.types import FeaturesRead
from millstream.watch.alarms.levels import Levels
from millstream.watch.history import History
from millstream.watch.monitor import Logged
from millstream.watch.monitors.labels import Labels
from millstream.watch.monitors.meters import Meters
from millstream.watch.monitors.quality import Quality
from millstream.watch.monitors.stream import Streams
from millstream.watch.reading import Key

DOCS = Path(__file__).parents[2] / "docs"


MONITORS = {
    "meters": Meters,
    "quality": lambda: Quality(History()),
    "levels": lambda: Levels({}),
    "labels": lambda: Labels(History()),
    "streams": lambda: Streams(History()),
}


@pytest.mark.parametrize("make", MONITORS.values(), ids=MONITORS)
def test_monitors_keep_the_contract(make):
    check_monitor(make)


class Loses(Meters):
    """Forgets what came when it is not asked."""

    def observe(self, seen):
        self._counts = {}
        super().observe(seen)


class Repeats(Meters):
    """Says its counts again."""

    def readings(self, now):
        self._said = {**super().readings(now)}
        self._counts = {key: value for key, value in self._said.items() if key.quantity == "requests"}
        return self._said


class Keeps(Meters):
    """Forgets nothing."""

    def _forget(self, now):
        pass


class Counts:
    """Counts by itself, of one process alone."""

    name, metrics, topics = "counts", frozenset({"millstream_requests_total"}), frozenset()

    def __init__(self):
        self.last = 0.0

    def observe(self, seen):
        self.last = seen.series[0].values[0]

    def readings(self, now):
        return {Key("rows_waiting"): self.last}


class Spoilt(Meters):
    """One NaN is for ever."""

    def _count(self, key, value):
        self._counts[key] = self._counts.get(key, 0.0) + value - self._last.get(key, value)
        self._last[key] = self._last.get(key, 0.0) * 0.0 + value


@pytest.mark.parametrize(
    "make, said",
    [
        (Loses, "adds up"),
        (Repeats, "no news"),
        (Keeps, "comes and goes"),
        (Counts, "order"),
        (Spoilt, "negative|get over"),
    ],
)
def test_the_check_finds_a_monitor_that_breaks_it(make, said):
    with pytest.raises(AssertionError, match=said):
        check_monitor(make)


def test_events_that_a_monitor_does_not_want_are_refused():
    read = FeaturesRead(features="f", hash="1", at=0, as_of=0, keys={}, values=b"")
    with pytest.raises(AssertionError, match="topics"):
        check_monitor(Meters, lambda at: [Logged("features_read", at, read)])


def test_the_page_lists_every_quantity_with_what_the_table_says():
    """In a process of its own: tests elsewhere add quantities."""
    code = "import msgspec, millstream.app.watching; from millstream.watch.quantities import QUANTITIES as q;"
    code += "print(msgspec.json.encode({n: [o.kind, o.metric, o.help] for n, o in q.items()}).decode())"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    text = (DOCS / "monitoring.md").read_text().split("<!-- quantities -->")[1].split("<!-- /quantities -->")[0]
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    quantities = json.loads(said)
    assert rows.keys() == quantities.keys()
    for name, (kind, metric, help) in quantities.items():
        assert f"| {kind}" in rows[name] and help in rows[name] and (metric or "a monitor") in rows[name]
