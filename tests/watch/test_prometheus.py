"""Rules and dashboard as Prometheus has them: each expression runs on Debian's, and holds of what our rule holds of."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_server import Prometheus, labels, promtool

import onnx_models
from millstream.app import watching  # noqa: F401  (monitors name their quantities)
from millstream.app.installation import Installation
from millstream.app.watching import last_alerts
from millstream.cli import main
from millstream.meter import SECONDS, Series
from millstream.types import Alert
from millstream.watch.alarms.defaults import DEFAULTS
from millstream.watch.alarms.grafana import ROWS, dashboard
from millstream.watch.alarms.levels import Levels
from millstream.watch.alarms.prometheus import COUNT, SILENT, expression, rule_file, value
from millstream.watch.alarms.rule import Rule
from millstream.watch.alarms.state import values
from millstream.watch.history import History
from millstream.watch.monitor import Sample
from millstream.watch.monitors.meters import Meters
from millstream.watch.quantities import QUANTITIES, Quantity
from millstream.watch.reading import Key
from service import Served, document

FAILING = Rule(
    quantity="failures", of="requests", above=0.1, over_s=60, for_s=30, least=50, by=("model",), severity="page",
    says="it's {{bad}}", runbook="docs/runbooks.md#failing",
)  # fmt: skip


def panels(text: str) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(text)["panels"] if panel["type"] != "row"]


def expressions(rules: Mapping[str, Rule]) -> list[str]:
    """All of the rule file and of the dashboard."""
    (group,) = yaml.safe_load(rule_file(rules))["groups"]
    drawn = [target["expr"] for panel in panels(dashboard(rules)) for target in panel["targets"]]
    return [rule["expr"] for rule in group["rules"]] + drawn


def test_a_rule_file_has_every_rule_and_one_that_watches_the_watcher() -> None:
    (group,) = yaml.safe_load(rule_file({"failing": FAILING, "busy-now": Rule(quantity="busy", below=1.0)}))["groups"]
    failing, busy, silent = group["rules"]
    counted = "sum by (model) (increase(millstream_{}_total[1m]))".format
    assert failing["expr"] == (
        f"(({counted('failures')} / ({counted('requests')} > 0)) > 0.1) and ({counted('requests')} >= 50)"
    )
    assert (failing["for"], failing["keep_firing_for"], failing["labels"]) == ("30s", "30s", {"severity": "page"})
    assert failing["annotations"]["runbook"] == "docs/runbooks.md#failing"
    assert busy["expr"] == "(sum (increase(millstream_busy_total[1m]))) < 1" and "for" not in busy
    assert silent["alert"] == SILENT and silent["labels"] == {"severity": "page"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            Rule(quantity="http_errors", above=1, where={"route": 'a"b\\'}, over_s=7200),
            'sum (increase(millstream_http_answers_total{route="a\\"b\\\\",status=~"5.."}[2h]))',
        ),
        (
            Rule(quantity="feature_age", above=1, by=("set",), over_s=90),
            "max by (set) (avg_over_time(millstream_feature_age_seconds[90s]))",
        ),
        (Rule(quantity="feature_age", below=1, over_s=60), "min (avg_over_time(millstream_feature_age_seconds[1m]))"),
        (
            Rule(quantity="answer_p99", above=1, over_s=300),
            "max (avg_over_time((histogram_quantile(0.99, rate(millstream_answer_seconds_bucket[1m])) >= 0)[5m:15s]))",
        ),
        (
            Rule(quantity="failures", above=1, by=("server",)),
            "sum by (instance) (increase(millstream_failures_total[1m]))",
        ),
        (
            Rule(quantity="missed", above=1, by=("server",), over_s=10),
            'sum by (server) (increase(millstream_watch_count_total{quantity="missed"}[1m]))',
        ),
    ],
)
def test_what_is_looked_at_becomes_an_expression(rule: Rule, expected: str) -> None:
    assert value(rule) == expected


def test_a_count_above_an_edge_is_what_its_bucket_leaves() -> None:
    QUANTITIES["slow_ones"] = Quantity(
        name="slow_ones", kind="count", metric="millstream_answer_seconds", take="over", edge=1.0, help=""
    )
    try:
        assert value(Rule(quantity="slow_ones", above=1)) == (
            "sum ((increase(millstream_answer_seconds_count[1m]) - ignoring (le) "
            'increase(millstream_answer_seconds_bucket{le=~"1(\\\\.0)?"}[1m])))'
        )
    finally:
        del QUANTITIES["slow_ones"]


def test_a_dashboard_shows_every_quantity_and_every_rule_beside_its_limit() -> None:
    rules = {"failing": FAILING, "old": DEFAULTS["stale-features"]}
    text = dashboard(rules)
    assert "${datasource}" in text and "127.0.0.1" not in text
    found = json.loads(text)
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    drawn = " ".join(target["expr"] for panel in panels(text) for target in panel["targets"])
    for quantity in QUANTITIES.values():
        assert (quantity.metric or f'quantity="{quantity.name}"') in drawn, quantity.name
    limits = {
        panel["title"].partition(":")[0]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"]
        for panel in panels(text)
        if panel["description" if "description" in panel else "title"].startswith("docs/")
    }
    assert limits == {"Failing": 0.1, "Old": 120.0}
    places = [tuple(panel["gridPos"].values()) for panel in found["panels"]]
    assert len(set(places)) == len(places) and all(x + w <= 24 for x, _, w, _ in places)
    assert all(line.quantity in QUANTITIES for row in ROWS.values() for panel in row for line in panel.lines)


def test_the_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "millstream.toml").write_text('[watch.rules.mine]\nquantity = "busy"\nabove = 3\n')
    rules, board = tmp_path / "rules.yml", tmp_path / "board.json"
    command = ["watch", "export", "-c", str(tmp_path / "millstream.toml")]
    main([*command, "--prometheus", str(rules), "--grafana", str(board), "--json"])
    assert json.loads(capsys.readouterr().out) == {"files": [str(rules), str(board)]}
    names = [rule["alert"] for rule in yaml.safe_load(rules.read_text())["groups"][0]["rules"]]
    assert names == [*DEFAULTS, "mine", SILENT] and json.loads(board.read_text())["title"] == "Millstream"
    with pytest.raises(SystemExit, match="--prometheus"):
        main(command)


# -- on a real one ----------------------------------------------------------------------------------------------------

Counted = Callable[[float], float]  # seconds since the beginning -> what a series shows
FAULT_S, END_S = 5400.0, 6000.0
HEALTHY, SICK = 5000.0, 5700.0


def rate(usual: float, then: float | None = None, fault_s: float = FAULT_S) -> Counted:
    """A counter that goes up so fast a second, and so fast since the fault."""
    then = usual if then is None else then
    return lambda t: math.floor(usual * min(t, fault_s) + then * max(0.0, t - fault_s) + 1e-6)


def level(usual: float, then: float) -> Counted:
    return lambda t: usual if t < FAULT_S else then


class World:
    """Machines `a`, `b` and `c`, each with a process that serves: what Prometheus would have scraped of them, a sample
    every `step_s`, and what our own monitors read. It ends lately: Prometheus has no future."""

    def __init__(self, end_s: float = END_S, step_s: float = 10.0) -> None:
        self.begin, self.end_s, self.step_s = math.floor(time.time() / 600) * 600 - end_s, end_s, step_s
        self.numbers: list[tuple[str, str, str, dict[str, str], Counted]] = []  # machine, kind, name, labels
        self.spreads: list[tuple[str, str, dict[str, str], dict[float, Counted]]] = []

    def plant(self) -> None:
        """Traffic, and faults of every kind from FAULT_S on."""
        for machine in "abc":
            sick = machine == "c"
            for version, requests, failed in (("1", 10.0, 3.0 if sick else 0.001), ("2", 5.0, 0.5)):
                of = {"model": "m", "version": version}
                self.counter(machine, "millstream_requests_total", of, rate(requests))
                self.counter(machine, "millstream_failures_total", of, rate(0.001, failed))
                self.counter(machine, "millstream_busy_total", of, rate(0.0, 0.9))
                self.counter(machine, "millstream_late_total", of, rate(0.0))
                slow = 0.2 if sick and version == "1" else 0.006
                self.spread(machine, "millstream_answer_seconds", of, requests, 0.006, slow)
            for status, usual, then in (("200", 12.0, 12.0), ("500", 0.01, 1.0)):
                of = {"route": "/v1/recommend", "status": status}
                self.counter(machine, "millstream_http_answers_total", of, rate(usual, then))
            arms = {"placement": "home", "arm": "live"}
            self.counter(machine, "millstream_lists_total", arms, rate(5.0))
            self.counter(machine, "millstream_empty_lists_total", arms, rate(0.02, 2.0))
        self.counter("a", "millstream_served_missing_total", {}, rate(0.0, 0.1))
        self.counter("a", "millstream_log_unreadable_total", {"topic": "users"}, rate(0.0, 0.1))
        self.counter("b", "millstream_refused_total", {}, rate(0.0, 0.1))
        self.counter("a", "millstream_pushes_refused_total", {}, rate(0.0, 0.1))
        self.gauge("a", "millstream_feature_age_seconds", {"set": "lists"}, level(3.0, 400.0))
        self.spread("a", "millstream_staleness_seconds", {}, 2.0, 5.0, 200.0, (*SECONDS, 100.0, 300.0))

    def counter(self, machine: str, name: str, of: dict[str, str], counted: Counted) -> None:
        self.numbers.append((machine, "counter", name, of, counted))

    def gauge(self, machine: str, name: str, of: dict[str, str], shown: Counted) -> None:
        self.numbers.append((machine, "gauge", name, of, shown))

    def spread(
        self, machine: str, name: str, of: dict[str, str], times: float, usual: float, then: float,
        bounds: tuple[float, ...] = SECONDS,
    ) -> None:  # fmt: skip
        """A histogram of `times` observations a second, of these seconds each."""

        def bucket(seconds: float) -> float:
            return next(edge for edge in (*bounds, math.inf) if seconds <= edge)

        counts = {edge: rate(0.0) for edge in (*bounds, math.inf)}
        counts[bucket(usual)] = rate(times, times if bucket(then) == bucket(usual) else 0.0)
        if bucket(then) != bucket(usual):
            counts[bucket(then)] = rate(0.0, times)
        self.spreads.append((machine, name, of, counts))

    def samples(self, t: float) -> dict[str, list[Series]]:
        """The series of each machine's process, as a meter shows them."""
        found: dict[str, list[Series]] = {machine: [] for machine in "abc"}
        for machine, kind, name, of, counted in self.numbers:
            found[machine].append(Series(name, kind, of, (), [counted(t)]))
        for machine, name, of, counts in self.spreads:
            bounds = tuple(edge for edge in counts if edge < math.inf)
            shown = [counted(t) for counted in counts.values()]
            found[machine].append(Series(name, "histogram", of, bounds, [*shown, 0.0]))
        return found

    def history(self, until: float) -> tuple[History, list[tuple[float, dict[str, str], float]]]:
        """What was read until then, and what role watch showed of its own counts: (seconds, labels, number)."""
        monitors, history = [Meters(), Levels({})], History()
        shown: list[tuple[float, dict[str, str], float]] = []
        sums: dict[Key, float] = {}
        for number in range(int(until / self.step_s) + 1):
            t = number * self.step_s
            read: dict[Key, float] = {}
            for monitor in monitors:
                for machine, series in self.samples(t).items():
                    mine = [one for one in series if one.name in monitor.metrics]
                    monitor.observe(Sample(self.begin + t, machine, mine))
                read |= monitor.readings(self.begin + t)
            history.add(self.begin + t, read)
            for key, count in read.items():
                if not QUANTITIES[key.quantity].metric:
                    sums[key] = sums.get(key, 0.0) + count
                    shown.append((t, {"quantity": key.quantity, **dict(key.labels)}, sums[key]))
        return history, shown

    def remembered(self, folder: Path) -> Prometheus:
        """A Prometheus that has scraped it all."""
        folder.mkdir(exist_ok=True)
        (folder / "said.txt").write_text(self.open_metrics(self.history(self.end_s)[1]))
        promtool("tsdb", "create-blocks-from", "openmetrics", folder / "said.txt", folder / "data")
        return Prometheus(folder)

    def open_metrics(self, shown: list[tuple[float, dict[str, str], float]]) -> str:
        """All that would have been scraped, for `promtool tsdb create-blocks-from`."""
        lines: list[str] = []
        times = [number * self.step_s for number in range(int(self.end_s / self.step_s) + 1)]

        def line(name: str, of: Mapping[str, str], t: float, number: float) -> None:
            told = ",".join(f'{k}="{v}"' for k, v in of.items())
            lines.append(f"{name}{{{told}}} {number:.10g} {self.begin + t:.3f}")

        for machine, _, name, of, counted in self.numbers:
            for t in times:
                line(name, {**of, "instance": machine}, t, counted(t))
        for machine, name, of, counts in self.spreads:
            for t in times:
                below = 0.0
                for edge, counted in counts.items():
                    below += counted(t)
                    line(
                        f"{name}_bucket",
                        {**of, "instance": machine, "le": f"{edge:g}".replace("inf", "+Inf")},
                        t,
                        below,
                    )
                line(f"{name}_count", {**of, "instance": machine}, t, below)
        for t, of, number in shown:
            line(COUNT, {**of, "instance": "a"}, t, number)
        return "\n".join([*lines, "# EOF", ""])


def held(rule: Rule, history: History) -> set[tuple[tuple[str, str], ...]]:
    """The groups of which our rule holds, as Prometheus names them."""
    found = [dict(one.group) for one in values(rule, history) if rule.passes(one.value)]
    server = "instance" if QUANTITIES[rule.quantity].metric else "server"
    return {labels({server if name == "server" else name: of for name, of in group.items()}) for group in found}


@pytest.mark.slow
def test_every_rule_that_ships_holds_on_a_real_prometheus_of_what_it_holds_of_here(tmp_path: Path) -> None:
    """The same counters read by our monitors and, as Prometheus would have scraped them, by Debian's."""
    world = World()
    world.plant()
    with world.remembered(tmp_path) as prometheus:
        for at in (HEALTHY, SICK):
            history, _ = world.history(at)
            for name, rule in DEFAULTS.items():
                theirs = set(prometheus.query(expression(name, rule), world.begin + at))
                assert theirs == held(rule, history), (name, at)
                if at == HEALTHY:
                    assert not theirs, name
        planted = {name for name, rule in DEFAULTS.items() if held(rule, history)}
        assert planted >= {
            "failing", "http-errors", "overloaded", "empty-lists", "sick-server", "slow-server", "not-logged",
            "log-unreadable", "version-refused", "push-refused", "stale-features", "stale-weights", "budget-fast",
        }  # fmt: skip
        failing = DEFAULTS["failing"]
        ours = {labels(dict(one.group)): one.value for one in values(failing, history)}
        assert prometheus.query(value(failing), world.begin + SICK) == pytest.approx(ours, rel=0.02)
        assert prometheus.query(value(DEFAULTS["sick-server"]), world.begin + SICK)[(("instance", "c"),)] > 5


@pytest.mark.slow
def test_rules_beside_the_past_hold_there_too_and_not_of_what_chance_explains(tmp_path: Path) -> None:
    """A day, and then: fewer requests, more failures; and two models of which as much changed as chance does."""
    fault_s, end_s = 86400.0 + 3600, 86400.0 + 4800
    world = World(end_s, step_s=30.0)
    for model, requests, then, failing, fails in (
        ("gone", 10.0, 1.0, 0.05, 0.005), ("worse", 10.0, 10.0, 0.05, 1.0), ("first", 10.0, 10.0, 0.0, 0.2),
        ("chance", 2.0, 2.0, 0.002, 0.011), ("quiet", 0.01, 0.001, 0.0, 0.0),
            ("rush", 2.0, 10.0, 0.0, 0.0),
    ):  # fmt: skip
        of = {"model": model, "version": "1"}
        world.counter("a", "millstream_requests_total", of, rate(requests, then, fault_s))
        world.counter("a", "millstream_failures_total", of, rate(failing, fails, fault_s))
    world.spread("a", "millstream_answer_seconds", {"model": "gone", "version": "1"}, 5.0, 0.006, 0.006)
    rules = {
        "gone": Rule(quantity="requests", below=0.3, against="past", least=300, over_s=600, by=("model",)),
        "more": Rule(quantity="requests", above=3, against="past", over_s=600, by=("model",)),
        "worse": Rule(
            quantity="failures", of="requests", above=3, against="past", least=500, over_s=600, by=("model",)
        ),
        "slower": Rule(quantity="answer_p50", above=0.9, against="past", over_s=600, by=("model",)),
    }
    with world.remembered(tmp_path) as prometheus:
        faults = {"gone": {"gone"}, "worse": {"worse", "first"}, "more": {"rush"}}
        for at, planted in ((fault_s - 600, {}), (fault_s + 900, faults)):
            history, _ = world.history(at)
            for name, rule in rules.items():
                theirs = set(prometheus.query(expression(name, rule), world.begin + at))
                assert theirs == held(rule, history), (name, at)
                if name != "slower":
                    assert {dict(group)["model"] for group in theirs} == planted.get(name, set()), (name, at)


@pytest.mark.slow
def test_the_rules_are_what_promtool_takes_and_fire_after_for_with_a_sentence(tmp_path: Path) -> None:
    rules = {"failing": FAILING, **{name: rule for name, rule in DEFAULTS.items() if name != "failing"}}
    (tmp_path / "rules.yml").write_text(rule_file(rules))
    assert f"{len(rules) + 1} rules found" in promtool("check", "rules", tmp_path / "rules.yml")
    told = {
        "severity": "page",
        "model": "m",
    }
    said = "model m: it's {{bad}}: failures / requests over 1 min by model above 0.1; it is 0.2"
    alert = {"exp_labels": told, "exp_annotations": {"summary": said, "runbook": "docs/runbooks.md#failing"}}
    checks = [("2m", []), ("4m15s", []), ("5m", [alert]), ("7m", [])]  # it holds from 4 min on
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": 'millstream_requests_total{model="m",version="1"}', "values": "0+150x40"},
                    {"series": 'millstream_failures_total{model="m",version="1"}', "values": "0+0x12 0+30x8 240+0x20"},
                    {"series": "millstream_watch_seconds_count", "values": "0+1x40"},
                ],
                "alert_rule_test": [
                    {"eval_time": at, "alertname": "failing", "exp_alerts": alerts} for at, alerts in checks
                ],
            },
            {
                "interval": "15s",
                "input_series": [{"series": "millstream_watch_seconds_count", "values": "0+1x12 12+0x40"}],
                "alert_rule_test": [
                    {"eval_time": "3m", "alertname": SILENT, "exp_alerts": []},
                    {
                        "eval_time": "10m",
                        "alertname": SILENT,
                        "exp_alerts": [
                            {
                                "exp_labels": {"severity": "page"},
                                "exp_annotations": {
                                    "summary": "role watch has looked at nothing for minutes: the other rules of "
                                    "Millstream may be blind",
                                    "runbook": f"docs/runbooks.md#{SILENT}",
                                },
                            }
                        ],
                    },
                ],
            },
        ],
    }
    (tmp_path / "test.yml").write_text(json.dumps(test))
    promtool("test", "rules", tmp_path / "test.yml")


TOML = """
http_port = 0
grpc_port = 0
[watch]
every_s = 1
[watch.rules.failing]
quantity = "failures"
of = "requests"
above = 0.1
over_s = 10
least = 20
by = ["model", "version"]
severity = "page"
"""


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """Two models, one of which answers NaN and so fails."""
    for name, number in (("well", 2.0), ("broken", np.nan)):
        onnx_models.linear(tmp_path / "models" / name / "1" / "model.onnx", np.array([[number]]))
    file = tmp_path / "millstream.toml"
    file.write_text(TOML)
    return file


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_expression_runs_on_a_real_prometheus_that_scrapes_a_real_service(
    installation: Path, tmp_path: Path
) -> None:
    with Installation.open(installation) as at:
        rules = at.settings.watch.in_force
    with Served("", tmp_path / "up.log", verb=["up", "-c", str(installation)]) as up:
        stop = threading.Event()
        crowd = threading.Thread(target=ask_all_the_time, args=(up.http, stop))
        crowd.start()
        try:
            with Prometheus(tmp_path / "prometheus", [up.http], rule_file(rules)) as prometheus:
                wait(lambda: "failing" in prometheus.firing())
                summary = prometheus.firing()["failing"]["summary"]
                wait(lambda: failing(installation))  # each looks by itself: Prometheus may be the first
                (ours,) = failing(installation)
                assert ours.labels == {"model": "broken", "version": "1"} and ours.state == "firing"
                assert summary.startswith("model broken, version 1: failures / requests")
                wait(lambda: prometheus.query('millstream_alerts_firing{rule="failing"} == 1'))
                # what had data is drawn: the expressions name what is really there
                names = set(prometheus.ask("label/__name__/values"))
                for _ in range(20):  # of a series that has only just come there is one sample, and no rate
                    seen = {expression: prometheus.query(expression) for expression in expressions(rules)}
                    if not (blank := [text for text in drawn_of(names) if not seen.get(text, True)]):
                        break
                    time.sleep(1.0)
                groups = prometheus.ask("rules")["groups"]
                unwell = [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]
                assert not unwell
        finally:
            stop.set()
            crowd.join()
    assert not blank
    empty = {text for text, found in seen.items() if not found}
    for quantity in ("requests", "answer_p99", "memory_bytes", "compute_seconds"):
        assert any(QUANTITIES[quantity].metric in text for text in seen.keys() - empty), quantity
    assert any('quantity="missed"' in text for text in seen.keys() - empty)


def failing(installation: Path) -> list[Alert]:
    """What the role itself says of the rule."""
    with Installation.open(installation) as at:
        return [one for one in last_alerts(at, 100) if one.rule == "failing"]


def drawn_of(names: set[str]) -> list[str]:
    """Expressions of counters and gauges that are there: without rules, what is drawn of them."""
    found = []
    for text in expressions({}):
        metrics = set(re.findall(r"millstream_\w+|process_\w+", text))
        if metrics <= names and not re.search("absent|histogram|millstream_watch|millstream_alerts", text):
            found.append(text)
    return found


def ask_all_the_time(port: int, stop: threading.Event) -> None:
    while not stop.is_set():
        for model in ("well", "broken"):
            body = json.dumps(document(np.array([[1.0]]))).encode()
            url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(url, body)).read()
        stop.wait(0.02)


def wait(condition: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)
