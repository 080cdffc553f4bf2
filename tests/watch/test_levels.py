"""What was promised, by what processes count: budgets, burn rates and the alerts of them; what a version costs."""

from __future__ import annotations

import pytest

from millstream.config import parse
from millstream.errors import Misconfigured
from millstream.meter import SECONDS, Meter
from millstream.watch.alarms.defaults import DEFAULTS
from millstream.watch.alarms.levels import Level, Levels
from millstream.watch.alarms.state import Alarms, values
from millstream.watch.history import History
from millstream.watch.monitor import Sample
from millstream.watch.settings import WatchSettings
from millstream.watch.triangle import triangle

START, LOOK_S = 1_700_000_000.0, 30.0


class World:
    """Servers that count, and who reads them."""

    def __init__(self, **levels: Level) -> None:
        self.monitor, self.history, self.at = Levels(levels), History(), START
        rules = {name: rule for name, rule in DEFAULTS.items() if name.startswith("budget")}
        self.alarms, self.said = Alarms(rules, self.history), list[tuple[str, str, str]]()
        self.servers: dict[str, Meter] = {}
        self.look()

    def count(
        self, server: str = "serve", model: str = "m", slow: int = 0, slow_s: float = 3.0, **counted: int
    ) -> None:
        meter, labels = self.servers.setdefault(server, Meter()), {"model": model, "version": "1"}
        for name, times in counted.items():
            meter.counter(f"millstream_{name}_total", "", labels).add(times)
        whole = meter.histogram("millstream_answer_seconds", "", labels)
        for number in range(counted.get("requests", 0)):
            whole.observe(3.0 if number < slow else 0.02)

    def look(self, seconds: float = LOOK_S) -> None:
        self.at += seconds
        for server, meter in self.servers.items():
            for _, series in meter.by_process(self.monitor.metrics):
                self.monitor.observe(Sample(self.at, server, series))
        self.history.add(self.at, self.monitor.readings(self.at))
        self.said += [(one.rule, one.labels["objective"], one.state) for one in self.alarms.look(self.at)]

    def go(self, minutes: float, **counted: int) -> None:
        for _ in range(int(minutes * 60 / LOOK_S)):
            self.count(**counted)
            self.look()


def test_a_request_misses_when_it_is_not_answered_and_an_answer_when_it_is_slow() -> None:
    world = World(m=Level(available=0.99, latency_ms=100, quick=0.9))
    world.count(requests=0, failures=0, busy=0, late=0)
    world.look()
    world.count("serve-0", requests=90, failures=4, busy=6, late=4, slow=30)
    world.count("serve-1", requests=10, slow=0)
    world.look()
    found = {one.objective: one for one in world.monitor.budgets(world.history)}
    available, quick = found["available"], found["quick"]
    assert (available.goal, quick.goal) == (0.99, 0.9)
    assert available.kept == pytest.approx(1 - 14 / 110)  # of 100 that got something, and 10 that got nothing
    assert available.left == pytest.approx(1 - 14 / (110 * 0.01)) and available.burn == pytest.approx(14 / 1.1)
    assert quick.kept == pytest.approx(0.7) and quick.left == pytest.approx(-2.0)


@pytest.mark.parametrize(("latency_ms", "edge"), [(500, 0.5), (400, 0.5), (0.2, 0.0005), (60_000, 60.0), (51, 0.075)])
def test_a_latency_counts_as_the_next_edge_of_the_histogram(latency_ms: float, edge: float) -> None:
    assert edge in SECONDS
    world = World(default=Level(latency_ms=latency_ms, quick=0.5))
    world.count(requests=0)
    world.look()
    whole = world.servers["serve"].histogram("millstream_answer_seconds", "", {"model": "m", "version": "1"})
    for seconds in (edge, edge, edge, edge * 1.01):  # an edge belongs to what is below it
        whole.observe(seconds)
    world.look()
    (quick,) = [one for one in world.monitor.budgets(world.history) if one.objective == "quick"]
    assert quick.kept == pytest.approx(0.75)


def test_each_model_has_its_own_and_default_is_for_the_others() -> None:
    world = World(default=Level(available=0.9), strict=Level(available=0.9999))
    for model in ("strict", "other"):
        world.count(model=model, requests=0, failures=0)
    world.look()
    for model in ("strict", "other"):
        world.count(model=model, requests=100, failures=10)
    world.look()
    left = {one.model: one.left for one in world.monitor.budgets(world.history) if one.objective == "available"}
    assert left == {"strict": pytest.approx(1 - 10 / 0.01), "other": pytest.approx(0.0)}
    assert World().monitor.budgets(History()) == []


def test_a_budget_that_goes_fast_wakes_somebody_and_only_while_it_goes() -> None:
    """The rates of the table in the workbook: 14.4 times over an hour, which is 2 % of the budget of 30 days."""
    world = World()
    world.go(61, requests=100, failures=0)
    assert world.said == []
    world.go(30, requests=1000, failures=13)  # 13 times as fast: not yet to wake somebody for
    assert [one for one in world.said if one[0] == "budget-fast"] == []
    world.go(45, requests=1000, failures=20)
    assert ("budget-fast", "available", "firing") in world.said
    hour = [one for one in values(DEFAULTS["budget-fast"], world.history) if ("objective", "available") in one.group]
    assert hour[0].value > 14.4
    world.go(9, requests=1000, failures=0)  # the hour is still beyond it, five minutes are not
    assert world.said[-1] == ("budget-fast", "available", "resolved")


def test_a_budget_that_goes_slowly_is_told_too_and_one_failure_in_a_quiet_hour_is_not() -> None:
    world = World()
    world.go(60, requests=1, failures=0)
    world.count(requests=5, failures=4)  # 1 % of the hour, but four requests
    world.go(30, requests=1, failures=0)
    assert world.said == []
    world.go(100, requests=1000, failures=8)
    assert ("budget-slow", "available", "firing") in world.said
    assert not any(rule == "budget-fast" for rule, _, _ in world.said)


def test_slow_answers_spend_the_other_budget() -> None:
    world = World()
    world.go(61, requests=20)
    world.go(15, requests=20, slow=16)
    assert {one[:2] for one in world.said} >= {("budget-fast", "quick")}
    assert not any(objective == "available" for _, objective, _ in world.said)


def test_wrong_levels_are_refused() -> None:
    for wrong in ("available = 1.0", "latency_ms = 61000", "quick = 0", "p99 = 3"):
        with pytest.raises(Misconfigured):
            parse(f"[levels.ranker]\n{wrong}", WatchSettings, "x.toml")


def test_a_triangle_says_what_a_version_gives_takes_and_costs() -> None:
    servers = [Meter(), Meter()]
    for meter in servers:
        for version, seconds, device in (("2", 0.004, 0.0), ("10", 0.008, 1e9), ("3", 0.0, 0.0)):
            labels = {"model": "m", "version": version}
            meter.counter("millstream_requests_total", "", labels).add(600 if seconds else 0)
            meter.counter("millstream_failures_total", "", labels).add(100 if seconds else 0)
            meter.gauge("millstream_memory_bytes", "", labels).set(5e6)
            meter.gauge("millstream_device_bytes", "", labels).set(device)
            compute = meter.histogram("millstream_compute_seconds", "", labels)
            whole = meter.histogram("millstream_answer_seconds", "", labels)
            for _ in range(100 if seconds else 0):  # batches of six
                compute.observe(seconds)
            for number in range(600 if seconds else 0):
                whole.observe(0.15 if number < 12 else 0.006)
        meter.counter("millstream_arm_requests_total", "", {"model": "m", "version": "2", "arm": "live"}).add(5)
    # Two processes, added up as Meter.total does it
    totals = servers[0].total()
    for key, series in servers[1].total().items():
        totals[key] = {
            **series,
            "values": [a + b for a, b in zip(totals[key]["values"], series["values"], strict=True)],
        }  # type: ignore[call-overload]
    two, three, ten = triangle(totals, core_hour_price=0.05, gpu_hour_price=2.0)
    assert [one.version for one in (two, three, ten)] == ["2", "3", "10"]
    assert (two.answers, two.memory_bytes, two.gpu_s) == (1000, 10e6, 0)
    assert two.core_s == pytest.approx(0.8) and two.answers_a_core_s == pytest.approx(1250)
    assert 5 < two.p50_ms < 7.5 and 100 < two.p99_ms <= 200
    assert two.cost_per_million == pytest.approx(0.8 * 0.05 / 3600 * 1000)
    assert ten.gpu_s == pytest.approx(1.6) and ten.device_bytes == 2e9
    assert ten.cost_per_million == pytest.approx(1.6 * 2.05 / 3600 * 1000)
    assert (three.answers, three.answers_a_core_s, three.cost_per_million, three.p99_ms) == (0, 0, 0, 0)
