"""Faults planted in a simulated fleet, found in time by the rules that ship: the role itself, under a fake clock."""

import msgspec
import pytest

from millstream.app.installation import Installation, Settings
from millstream.app.watching import Watch, replay
from millstream.clock import FakeClock
from millstream.simulate.fleet import Fault, Fleet
from millstream.stream import encode
from millstream.watch.alarms.defaults import DEFAULTS

NOON = 1_700_049_600.0


class House:
    """Servers and the role. `go` gives {rule: seconds after which it fired first}."""

    def __init__(self, folder, every_s=10.0, events=False):
        self.clock, self.every_s = FakeClock(NOON), every_s
        settings = msgspec.convert({"watch": {"every_s": every_s}}, Settings)
        self.at = Installation(folder, settings, self.clock)
        self.fleet = Fleet(folder / "state" / "meters", seed=3, features=4)
        self.role = Watch(self.at)
        self.reads = self.at.log.writer("features_read") if events else None

    def go(self, minutes, until=()):
        began, fired = self.clock.now(), {}
        while self.clock.now() < began + 60 * minutes and not set(until) & fired.keys():
            self.clock.advance(self.every_s)
            for event in self.fleet.step(self.clock.now(), self.every_s):
                if self.reads is not None:
                    self.reads.append(b"", encode(event))
            self.role.step()
            for alert in self.role.alarms.firing:
                fired.setdefault(alert.rule, self.clock.now() - began)
        self.fired = fired
        return fired


@pytest.mark.parametrize(
    "fault, rule",
    [
        (Fault(kind="empty", model="ranker", share=0.5), "empty-answers"),
        (Fault(kind="broken", model="risk"), "failing"),
        (Fault(kind="constant", model="risk"), "constant-answers"),
        (Fault(kind="sick", server="serve-2", share=0.05), "sick-server"),
    ],
    ids=["empty answers", "a version that fails", "a constant version", "a sick server"],
)
def test_broken_answers_are_found_within_two_minutes(tmp_path, fault, rule):
    house = House(tmp_path)
    assert house.go(1.5) == {}
    house.fleet.faults = [fault]
    assert house.go(2, until=[rule]).keys() <= {rule, "budget-fast"} and rule in house.fired
    names = {value for alert in house.role.alarms.firing for value in alert.labels.values()}
    assert {fault.model or fault.server} <= names | {""}
    house.fleet.faults = []
    house.go(2.5)
    assert rule not in {alert.rule for alert in house.role.alarms.firing}


def test_scores_that_shift_by_a_fifth_of_a_deviation_are_found_within_half_an_hour_and_replayed(tmp_path):
    house = House(tmp_path, every_s=60.0)
    assert house.go(60) == {}
    house.fleet.faults = [Fault(kind="shift", model="ranker", share=0.2)]
    found = house.go(30, until=["scores-moved"])
    assert "scores-moved" in found and found.keys() <= {"scores-moved", "changed-at-once"}
    again = replay(house.at, {"scores-moved": DEFAULTS["scores-moved"]})
    assert [(alert.state, alert.labels["model"]) for alert in again] == [("firing", "ranker")]


def test_a_server_that_scores_otherwise_is_named(tmp_path):
    house = House(tmp_path)
    assert house.go(3) == {}
    house.fleet.faults = [Fault(kind="shift", model="price", server="serve-1", share=1.0)]
    assert "server-unlike" in house.go(5, until=["server-unlike"])
    (alert,) = [one for one in house.role.alarms.firing if one.rule == "server-unlike"]
    assert alert.labels == {"server": "serve-1", "model": "price", "version": "1"}


def test_traffic_that_stays_away_is_seen_beside_the_day_before(tmp_path):
    house = House(tmp_path, every_s=60.0)
    house.role.alarms.rules = {"traffic-gone": DEFAULTS["traffic-gone"]}
    for _ in range(24 * 60 + 10):  # only what the rule needs: the counters of a day
        house.clock.advance(60.0)
        for server in house.fleet.servers:
            labels = {"model": "ranker", "version": "1"}
            house.fleet.meters[server].counter("millstream_requests_total", "", labels).add(300)
        house.role.step()
    assert house.role.alarms.firing == []
    for _ in range(10):
        house.clock.advance(60.0)
        house.role.step()
    assert [alert.rule for alert in house.role.alarms.firing] == ["traffic-gone"]


def test_a_new_version_and_a_server_that_begins_anew_are_no_faults(tmp_path):
    house = House(tmp_path)
    house.go(2)
    house.fleet.deploy("ranker")
    assert house.go(3) == {}
    house.fleet.restart("serve-0")
    assert house.go(3) == {}
