"""The role `watch` over real meter pages and a real log, under a fake clock."""

import json

import msgspec
import numpy as np
import pytest

import onnx_models
from millstream.app.installation import Installation, Settings
from millstream.app.watching import Watch, alert_of, firing, last_alerts, recorded, replay, rules_of, wellbeing
from millstream.cli import main
from millstream.clock import FakeClock
from millstream.errors import Conflict, Misconfigured, NotFound
from millstream.meter import Meter
from millstream.models import traffic
from millstream.models.repository import Repository
from millstream.watch.alarms.action import undo
from millstream.watch.monitor import Monitors
from millstream.watch.reading import KEYED, Key

RULES = {
    "failing": {
        "quantity": "failures", "of": "requests", "above": 0.1, "least": 50, "over_s": 30, "for_s": 10,
        "by": ["model", "version"], "action": "roll_back", "dry_run": False, "severity": "page",
    }
}  # fmt: skip


def read_back(log):
    """(when, what was read) of every record."""
    return [(at, dict(zip(keys, values.tolist(), strict=True))) for at, keys, values in recorded(log, Meter())]


class House:
    """An installation with a model of two versions, one server's counters, and the role."""

    def __init__(self, folder, rules=None, clock=None):
        self.folder, self.clock = folder, clock or FakeClock(1_700_000_000.0)
        settings = msgspec.convert({"watch": {"rules": RULES if rules is None else rules}}, Settings)
        self.at = Installation(folder, settings, self.clock)
        self.server = Meter(folder / "state" / "meters", "serve")
        self.watch = Watch(self.at)

    def put_versions(self, written=True):
        for factor in (1.0, 2.0):
            file = onnx_models.linear(self.folder / f"{factor}.onnx", np.array([[factor]]))
            repository = self.at.repository
            version = repository.put("m", traffic_manifest(repository, file), {"model.onnx": file})
            if written:
                repository.change_policy("m", lambda _, version=version: policy(version), who="test", why="put")

    def count(self, version="2", requests=100, failures=0):
        labels = {"model": "m", "version": version}
        self.server.counter("millstream_requests_total", "", labels).add(requests)
        self.server.counter("millstream_failures_total", "", labels).add(failures)

    def go(self, looks=1, **counted):
        for _ in range(looks):
            self.clock.advance(self.at.settings.watch.every_s)
            if counted:
                self.count(**counted)
            self.watch.step()

    def said(self):
        return [(alert.rule, alert.state) for alert in last_alerts(self.at, 100)]


def traffic_manifest(repository, file):
    from millstream.models.manifest import Manifest

    return Manifest(format="onnx", file="model.onnx")


def policy(version):
    from millstream.models.policy import Policy

    return Policy(live=version)


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    made.put_versions()
    made.go(looks=2, failures=0)
    yield made
    made.at.close()


def test_a_broken_version_is_rolled_back_by_itself_and_that_can_be_undone(house):
    repository = house.at.repository
    assert repository.policy("m").live == "2"
    house.go(looks=6, failures=90)
    (alert,) = firing(house.at.log, Meter())
    now = repository.policy("m")
    assert (now.live, now.pin, now.who) == ("1", "1", "watch: failing")
    assert "rolled m back from 2 to 1" in alert.did and alert.id in now.why
    restored = undo(repository, alert, who="ops", why="it was the network")
    assert (restored.live, restored.pin, restored.who) == ("2", "", "ops")
    with pytest.raises(Conflict):
        undo(repository, alert, who="ops", why="again")


def test_what_a_rule_does_that_alone_knows_the_model_can_be_undone(tmp_path):
    """The alert of a rule with the model in `where` has no label that names it."""
    rule = {**RULES["failing"], "where": {"model": "m"}, "by": ["server"]}
    house = House(tmp_path, {"failing": rule})
    house.put_versions()
    house.go(looks=2, failures=0)
    house.go(looks=6, failures=90)
    (alert,) = firing(house.at.log, Meter())
    repository = house.at.repository
    assert "model" not in alert.labels and repository.policy("m").live == "1"
    assert undo(repository, alert, who="ops", why="").live == "2"
    house.at.close()


def test_undoing_is_refused_once_somebody_else_changed_the_policy(house):
    house.go(looks=6, failures=90)
    (alert,) = firing(house.at.log, Meter())
    house.at.repository.change_policy("m", traffic.promote("2"), who="ops", why="I know better")
    with pytest.raises(Conflict, match="ops was faster"):
        undo(house.at.repository, alert, who="ops", why="")
    nobody = msgspec.structs.replace(alert, id="failing-0-1")
    with pytest.raises(NotFound, match="nothing was done"):
        undo(house.at.repository, nobody, who="ops", why="")


def test_of_a_model_whose_policy_nobody_wrote_an_action_can_be_undone_too(tmp_path):
    house = House(tmp_path)
    house.put_versions(written=False)
    house.go(looks=2, failures=0)
    house.go(looks=6, failures=90)
    (alert,) = firing(house.at.log, Meter())
    repository = house.at.repository
    assert repository.policy("m").version == 1 and repository.policy("m").live == "1"
    restored = undo(repository, alert, who="ops", why="")
    assert (restored.live, restored.pin, restored.version) == ("2", "", 2)
    house.at.close()


def test_a_dry_run_only_says_what_it_would_do(tmp_path):
    house = House(tmp_path, {"failing": RULES["failing"] | {"dry_run": True}})
    house.put_versions()
    house.go(looks=2, failures=0)
    house.go(looks=6, failures=90)
    (alert,) = firing(house.at.log, Meter())
    assert alert.did.startswith("nothing, as the rule only says it") and "from 2 to 1" in alert.did
    assert house.at.repository.policy("m").live == "2"


def test_of_a_version_that_is_not_live_nothing_is_rolled_back(house):
    house.go(looks=6, version="1", failures=90)
    (alert,) = firing(house.at.log, Meter())
    assert "version 1 of m is not live" in alert.did and house.at.repository.policy("m").live == "2"


def test_only_the_canary_that_fails_is_taken_back(tmp_path):
    house = House(tmp_path, {"failing": RULES["failing"] | {"action": "stop_canary"}})
    house.put_versions()
    repository = house.at.repository
    repository.change_policy("m", traffic.canary("1", 0.1), who="ops", why="try")
    house.go(looks=2, failures=0)
    house.go(looks=6, failures=90)
    (alert,) = firing(house.at.log, Meter())
    assert alert.did == "nothing: version 2 of m is not its canary, 1 is" and repository.policy("m").canary is not None
    house.go(looks=6, version="1", failures=90)
    (alert,) = firing(house.at.log, Meter())
    assert "took back canary 1 of m" in alert.did and repository.policy("m").canary is None
    assert undo(repository, alert, who="ops", why="").canary.version == "1"
    house.at.close()


def test_a_replay_of_the_log_says_what_was_said(house):
    rng = np.random.default_rng(7)
    for _ in range(120):
        house.go(failures=int(rng.choice([0, 0, 5, 60])))
    lived = [msgspec.structs.replace(alert, did="") for alert in last_alerts(house.at, 1000)]
    assert len(lived) > 4
    again = replay(house.at, house.at.settings.watch.in_force)
    assert [msgspec.structs.replace(alert, did="") for alert in again] == lived
    middle = lived[3].at
    assert [a for a in replay(house.at, house.at.settings.watch.in_force, until=middle) if a.at > middle] == []


def test_a_role_that_is_started_again_goes_on_with_history_and_alerts(house):
    house.go(looks=6, failures=90)
    before = firing(house.at.log, Meter())
    house.at.close()
    again = House(house.folder, clock=house.clock)
    assert again.watch.alarms.firing == before and again.watch.history.last == house.watch.history.last
    again.go(looks=1, failures=90)
    assert again.said() == [("failing", "firing")], "it did not fire a second time"
    again.go(looks=8, failures=0)
    assert again.said() == [("failing", "firing"), ("failing", "resolved")]
    again.at.close()


def test_a_wall_clock_that_jumps_moves_no_window(house):
    house.clock.jump(86_400.0)
    house.go(looks=6, failures=0)
    house.clock.jump(-3 * 86_400.0)
    house.go(looks=6, failures=0)
    times = [at for at, _ in read_back(house.at.log)]
    assert np.allclose(np.diff(times), 10.0) and house.said() == []
    jumps = [read[Key("clock_jump")] for _, read in read_back(house.at.log)]
    assert jumps[1] == 0 and jumps[-1] == 2 * 86_400.0


def test_counters_that_were_there_before_are_not_news_and_one_that_begins_anew_is(tmp_path):
    house = House(tmp_path)
    house.count(requests=1000)
    house.go()
    house.go(looks=1, requests=5)
    read = [
        found.get(Key.of("requests", {"model": "m", "version": "2", "server": "serve"}))
        for _, found in read_back(house.at.log)
    ]
    assert read == [0.0, 5.0]
    house.at.close()


class Broken:
    name, topics, metrics = "broken", frozenset(), frozenset({"millstream_requests_total"})

    def observe(self, seen):
        raise ValueError("observe")

    def readings(self, now):
        raise ValueError("readings")


class Odd(Broken):
    name = "odd"

    def observe(self, seen):
        pass

    def readings(self, now):
        return {Key("requests"): float("nan"), Key("lists"): 3.0}


def test_a_monitor_that_raises_or_reads_nonsense_costs_its_own_readings_alone(house, caplog):
    house.watch._monitors = Monitors([Broken(), Odd()], house.watch.meter)
    house.go(looks=3, failures=0)
    assert read_back(house.at.log)[-1][1][Key("lists")] == 3.0
    metrics = house.watch.meter.render()
    assert (
        'millstream_watch_failures_total{monitor="broken"} 9' in metrics and "millstream_watch_odd_total 3" in metrics
    )
    said = [record.message for record in caplog.records if "monitor broken fails" in record.message]
    assert len(said) == 2, "each of its two errors is said once"


def test_a_rule_on_a_model_that_is_not_there_is_said_and_stops_nothing(tmp_path, caplog):
    house = House(tmp_path, {"x": {"quantity": "failures", "of": "requests", "above": 0, "where": {"model": "gone"}}})
    assert "rule x looks at model 'gone', which is not there" in caplog.text
    house.go(looks=4, failures=50)
    assert house.said() == [("failing", "firing")], "the one that ships; x has no data"
    house.at.close()


def test_a_full_disk_is_said_and_the_rules_go_on(house, monkeypatch, caplog):
    from millstream.errors import Full

    def full(key, value):
        raise Full("no space left")

    monkeypatch.setattr(house.watch._readings, "append", full)
    house.go(looks=6, failures=90)
    assert house.said() == [("failing", "firing")] and caplog.text.count("what is read is not logged") >= 1
    assert house.at.repository.policy("m").live == "1"


def test_what_was_read_while_the_disk_was_full_is_missing_and_what_follows_keeps_its_names(house, monkeypatch):
    from millstream.errors import Full

    def full(key, value):
        raise Full("no space left")

    level = Level()
    house.watch._monitors = Monitors([level], house.watch.meter)
    level.read = {Key("score_mean"): 1.0}
    house.go(looks=2)
    level.read = {Key("score_sd"): 2.0}  # as many keys, and others
    with monkeypatch.context() as patched:
        patched.setattr(house.watch._readings, "append", full)
        house.go()
    house.go(looks=2)
    level.read |= {Key("score_psi"): 3.0}
    house.go()
    found = [read for _, read in read_back(house.at.log) if read.pop(Key("clock_jump")) == 0.0]
    assert found[-5:] == [{Key("score_mean"): 1.0}] * 2 + [{Key("score_sd"): 2.0}] * 2 + [level.read]


def test_readings_that_lost_their_keys_are_left_out_and_the_role_begins(house, caplog):
    level = Level()
    house.watch._monitors = Monitors([level], house.watch.meter)
    level.read = {Key("score_mean"): 1.0}
    house.go(looks=2)
    level.read = {Key("score_sd"): 2.0, Key("score_psi"): 3.0}
    house.watch._scribe.record(house.watch.now(), level.read | {Key("clock_jump"): 0.0})  # on its way to a bad sector
    house.go(looks=KEYED)
    times = [at for at, _ in read_back(house.at.log)]
    assert caplog.text.count("values of other keys than those before") == 1
    house.at.close()
    again = House(house.folder, clock=house.clock)
    assert again.watch.history.last == times[-1] == house.watch.history.last
    again.at.close()


def test_metrics_show_what_fires(house):
    house.go(looks=6, failures=90)
    assert 'millstream_alerts_firing{rule="failing",severity="page"} 1' in house.watch.meter.render()
    house.go(looks=8, version="1", failures=0)
    assert 'millstream_alerts_firing{rule="failing",severity="page"} 0' in house.watch.meter.render()
    assert 'millstream_watch_level{quantity="clock_jump"} 0' in house.watch.meter.render()


class Level:
    name, topics, metrics = "level", frozenset(), frozenset()

    def __init__(self):
        self.read = {}

    def observe(self, seen):
        pass

    def readings(self, now):
        return self.read


def test_a_level_that_is_read_no_more_is_shown_no_more(house):
    level = Level()
    house.watch._monitors = Monitors([level], house.watch.meter)
    shown = 'millstream_watch_level{quantity="score_shift",model="m"} 0.5'
    for read, there in (({Key.of("score_shift", {"model": "m"}): 0.5}, True), ({}, False)) * 2:
        level.read = read
        house.go()
        assert (shown in house.watch.meter.render()) is there


def test_is_it_well(house):
    assert wellbeing(house.at).said.startswith("Well: none of")
    house.go(looks=6, failures=90)
    found = wellbeing(house.at)
    assert not found.well and found.said == "Not well: an alert fires, 1 to wake somebody."
    house.clock.advance(300.0)
    assert wellbeing(house.at).said.startswith("Nobody watches: the last look was 300 s ago")


def test_before_anybody_has_watched(tmp_path):
    at = Installation(tmp_path, Settings(), FakeClock())
    assert wellbeing(at).said.startswith("Nobody has watched yet") and last_alerts(at, 5) == []
    with pytest.raises(NotFound, match="no alert 'x'"):
        alert_of(at.log, "x")


def test_the_command_line(house, capsys, tmp_path):
    toml = house.folder / "millstream.toml"
    toml.write_text("[watch.rules.failing]\n" + "\n".join(
        f"{name} = {json.dumps(value)}" for name, value in RULES["failing"].items()))  # fmt: skip
    house.go(looks=6, failures=90)
    house.at.close()

    def typed(*argv):
        main(["watch", *argv])
        return capsys.readouterr().out

    assert typed("-c", str(toml)).startswith("Nobody watches"), "it is years since the fake clock's day"
    (line, *_) = typed("alerts", "-c", str(toml)).splitlines()
    assert "firing" in line and "model m, version 2: failures / requests over 30 s" in line
    assert "failing" in typed("rules", "-c", str(toml)) and "requests  " in typed("quantities")
    assert typed("replay", "-c", str(toml)).splitlines()[-1].startswith("1 alerts of")
    strict = tmp_path / "strict.toml"
    strict.write_text('[watch.rules.any]\nquantity = "failures"\nabove = 0\nover_s = 10\n')
    found = json.loads(typed("replay", "-c", str(toml), "--rules", str(strict), "--json"))
    assert [(one["rule"], one["state"]) for one in found["alerts"]] == [("any", "firing")]
    (alert,) = json.loads(typed("alerts", "-c", str(toml), "--json"))["alerts"]
    assert "policy" in typed("undo", alert["id"], "-c", str(toml), "--who", "ops")
    assert Repository(house.folder / "models").policy("m").live == "2"


def test_rules_of_a_file_that_is_wrong_are_refused_in_words(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text('[watch.rules.x]\nquantity = "nothing"\nabove = 1\n')
    with pytest.raises(Misconfigured, match="no quantity 'nothing'"):
        rules_of(file)
