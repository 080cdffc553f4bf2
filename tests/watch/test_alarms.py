"""Rules: when they hold, fire and are resolved; beside peers and the past; what they refuse to be."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import Misconfigured
from millstream.types import Alert
from millstream.watch.alarms.defaults import DEFAULTS
from millstream.watch.alarms.rule import Rule, merged
from millstream.watch.alarms.state import DAY_S, Alarms, spoken, values
from millstream.watch.history import History
from millstream.watch.reading import Key

START, STEP = 1_700_000_000.0, 10.0


def of(quantity, **labels):
    return Key.of(quantity, labels)


class World:
    """Rules over readings that a test gives, one look after the other."""

    def __init__(self, **rules):
        self.history, self.at = History(), START
        self.alarms = Alarms(rules, self.history)

    def look(self, times=1, **read):
        """What was said, in so many looks that all read this; a name with __ is quantity and model."""
        said = []
        for _ in range(times):
            self.at += STEP
            self.history.add(self.at, read.pop("keys", None) or {self.key(k): v for k, v in read.items()})
            said += self.alarms.look(self.at)
        return said

    @staticmethod
    def key(text):
        quantity, _, model = text.partition("__")
        return Key.of(quantity, {"model": model})


FAILING = Rule(quantity="failures", of="requests", above=0.1, over_s=60, for_s=20, least=50, by=("model",))


def test_a_ratio_fires_once_it_held_so_long_and_is_resolved_once_it_has_not_for_as_long():
    world = World(failing=FAILING)
    assert world.look(6, requests__m=100, failures__m=5) == []
    assert world.look(2, requests__m=100, failures__m=50) == []  # 14 % of the window from the first on
    (alert,) = world.look(1, requests__m=100, failures__m=50)
    assert alert.state == "firing" and alert.labels == {"model": "m"} and alert.value == pytest.approx(165 / 600)
    assert (alert.since, alert.at, alert.limit) == (START + 70, START + 90, 0.1)
    assert alert.said == "model m: failures / requests over 1 min is 0.275, above 0.1, of 600 requests"
    assert world.look(5, requests__m=100, failures__m=50) == [] and world.alarms.firing == [alert]
    assert world.look(6, requests__m=100, failures__m=0) == []  # at the fifth it is within the limit
    (gone,) = world.look(1, requests__m=100, failures__m=0)
    assert (gone.id, gone.state, world.alarms.firing) == (alert.id, "resolved", [])


def test_groups_are_apart_and_too_few_say_nothing():
    world = World(failing=FAILING)
    said = world.look(6, requests__m=100, failures__m=0, requests__n=20, failures__n=20, requests__o=1, failures__o=1)
    assert [alert.labels for alert in said] == [{"model": "n"}]


def test_without_data_nothing_holds_and_an_alert_whose_data_are_gone_is_resolved():
    world = World(failing=FAILING)
    assert world.look(5) == []
    world.look(6, requests__m=100, failures__m=50)
    assert [alert.state for alert in world.look(12)] == ["resolved"]


@pytest.mark.parametrize(("side", "values_", "holds"), [("above", (1.0, 9.0), True), ("below", (0.2, 5.0), True)])
def test_of_levels_the_one_furthest_beyond_counts(side, values_, holds):
    rule = Rule(quantity="answer_p99", over_s=60, by=("model",), **{side: 2.0 if side == "above" else 1.0})
    history = History()
    keys = {of("answer_p99", model="m", server=str(n)): value for n, value in enumerate(values_)}
    history.add(START, keys)
    (one,) = values(rule, history)
    assert rule.passes(one.value) is holds and one.value == (max if side == "above" else min)(values_)


def test_a_rule_on_a_model_looks_at_that_one_alone():
    rule = msgspec.structs.replace(FAILING, where={"model": "m"}, by=())
    world = World(failing=rule)
    assert world.look(6, requests__m=100, failures__m=0, requests__n=100, failures__n=90) == []


SICK = Rule(quantity="failures", of="requests", above=3.0, against="peers", over_s=60, least=50, by=("server",))


def fleet(counts, keys=("failures", "requests")):
    """{(server, model): (failed, requests)} as readings."""
    return {
        Key.of(quantity, {"server": server, "model": model}): float(pair[which])
        for (server, model), pair in counts.items()
        for which, quantity in enumerate(keys)
    }


def test_a_sick_server_is_told_from_its_peers():
    history = History()
    history.add(START, fleet({(name, "m"): (30 if name == "s3" else 4, 400) for name in ("s0", "s1", "s2", "s3")}))
    found = {dict(one.group)["server"]: one.value for one in values(SICK, history)}
    assert found["s3"] == pytest.approx(7.5) and all(found[name] == pytest.approx(1.0) for name in ("s0", "s1", "s2"))


def test_a_server_with_other_traffic_is_not_sick_by_that():
    """One that has mostly the model that fails more is as its peers are, with its own mix."""
    mix = {"s0": (900, 100), "s1": (900, 100), "s2": (900, 100), "s3": (100, 900)}
    history = History()
    history.add(START, fleet({
        (server, model): (number * rate, number)
        for server, numbers in mix.items()
        for (model, rate), number in zip((("good", 0.01), ("bad", 0.2)), numbers, strict=True)
    }))  # fmt: skip
    assert [one.value for one in values(SICK, history)] == [pytest.approx(1.0)] * 4


def test_many_times_nothing_is_nothing():
    """What is many times its peers', and still too little to matter, does not count."""
    for matters, holds in ((0.0, True), (0.05, True), (0.08, False)):
        history = History()
        history.add(
            START, fleet({(name, "m"): (300 if name == "s3" else 4, 4000) for name in ("s0", "s1", "s2", "s3")})
        )
        found = values(msgspec.structs.replace(SICK, matters=matters), history)
        assert (max(one.value for one in found) > 3.0) is holds
    past = Rule(quantity="failures", of="requests", above=3.0, against="past", over_s=600, matters=0.08)
    for matters, holds in ((0.05, True), (0.08, False)):
        history = History()
        for second, failed in ((0.0, 1.0), (DAY_S, 75.0)):
            history.add(START + second, {of("requests"): 1000.0, of("failures"): failed})
        (one,) = values(msgspec.structs.replace(past, matters=matters), history)
        assert (one.value > 3.0) is holds


def test_two_servers_cannot_be_told_apart_and_one_that_fails_where_none_does_can():
    history = History()
    history.add(START, fleet({("s0", "m"): (0, 400), ("s1", "m"): (300, 400)}))
    assert values(SICK, history) == []
    history = History()
    history.add(START, fleet({(name, "m"): (12 if name == "s2" else 0, 400) for name in ("s0", "s1", "s2")}))
    assert max(one.value for one in values(SICK, history)) == 1000.0


def test_a_slow_server_is_told_by_the_median_of_the_others():
    rule = Rule(quantity="answer_p99", above=3.0, against="peers", over_s=60, by=("server", "model"))
    history = History()
    levels = {"s0": 0.01, "s1": 0.012, "s2": 0.011, "s3": 0.1}
    history.add(START, {of("answer_p99", server=name, model="m"): level for name, level in levels.items()})
    found = {dict(one.group)["server"]: one.value for one in values(rule, history)}
    assert found["s3"] == pytest.approx(0.1 / 0.011) and found["s0"] == pytest.approx(0.01 / 0.012)


def test_against_the_past_is_the_same_window_a_day_before():
    rule = Rule(quantity="positives", of="examples", below=0.7, against="past", over_s=600, least=100, by=("task",))
    history = History()
    for second in np.arange(0.0, DAY_S + 3600, 60.0):
        today = second > DAY_S
        night = 0.5 if (second % DAY_S) < 1800 else 1.0  # as it was a day before
        history.add(START + second, {
            of("examples", task="t"): 100.0, of("positives", task="t"): 10.0 * night * (0.5 if today else 1.0)
        })  # fmt: skip
        if second == DAY_S - 60:
            assert values(rule, history) == []  # nothing is known of a day before
    (one,) = values(rule, history)
    assert one.value == pytest.approx(0.5) and rule.passes(one.value)


def test_an_alert_goes_on_over_a_restart_and_one_of_a_rule_that_is_no_more_is_resolved():
    world = World(failing=FAILING)
    alerts = world.look(12, requests__m=100, failures__m=50)
    after = World(failing=FAILING)
    after.history = world.history
    after.alarms = Alarms({"failing": FAILING}, world.history)
    after.at = world.at
    after.alarms.resume(alerts)
    assert after.look(3, requests__m=100, failures__m=50) == [] and after.alarms.firing == alerts
    without = World()
    without.alarms.resume(alerts)
    (gone,) = without.look(1, requests__m=100)
    assert gone.state == "resolved" and gone.said.endswith("there is no such rule any more")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quantity": "failurs", "above": 1}, "no quantity 'failurs'"),
        ({"quantity": "failures"}, "needs one of"),
        ({"quantity": "failures", "above": 1, "below": 0}, "needs one of"),
        ({"quantity": "failures", "of": "answer_p99", "above": 1}, "is a level"),
        ({"quantity": "answer_p99", "of": "requests", "above": 1}, "is of nothing"),
        ({"quantity": "failures", "above": 1, "against": "peers"}, "put server in `by`"),
        ({"quantity": "failures", "above": 1, "action": "freeze"}, "of which model"),
        ({"quantity": "failures", "above": 1, "matters": 1}, "`matters` is for"),
        ({"quantity": "failures", "above": 1, "over_s": 1}, "over_s"),
        ({"quantity": "failures", "above": 1, "sevrity": "page"}, "sevrity"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_words(given, said):
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(given, Rule)


def test_rules_of_ones_own_replace_those_that_ship_and_off_ends_one():
    own = {"failing": msgspec.structs.replace(FAILING, off=True), "mine": FAILING}
    rules = merged(DEFAULTS, own)
    assert set(rules) == set(DEFAULTS) - {"failing"} | {"mine"}
    with pytest.raises(Misconfigured, match="letters, digits"):
        merged({}, {"a b": FAILING})


def test_every_rule_that_ships_can_be_spoken_has_a_runbook_and_acts_on_nothing_unasked():
    text = (Path(__file__).parent.parent.parent / "docs" / "runbooks.md").read_text()
    anchors = {line.lstrip("# ").strip().lower().replace(" ", "-") for line in text.splitlines() if line[:2] == "##"}
    for name, rule in DEFAULTS.items():
        assert rule.quantity in spoken(rule) and rule.says, name
        assert rule.runbook.removeprefix("docs/runbooks.md#") in anchors, name
        assert not rule.action or rule.dry_run, name


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.2]), min_size=5, max_size=80), st.sampled_from([0.0, 20.0, 60.0]))
def test_alerts_come_in_pairs_and_hold_as_long_as_they_say(shares, for_s):
    """Against a plain reading of the rule, look by look."""
    rule = Rule(quantity="failures", of="requests", above=0.1, over_s=10, for_s=for_s, by=("model",))
    world, said, held, state, rests = World(r=rule), [], 0.0, False, 0.0
    expected = []
    for number, share in enumerate(shares):
        now = START + STEP * (number + 1)
        said += [(alert.state, alert.at) for alert in world.look(1, requests__m=100, failures__m=100 * share)]
        if share > 0.1:
            held, rests = held or now, 0.0
            if not state and now - held >= for_s:
                state = True
                expected.append(("firing", now))
        else:
            held = 0.0
            if state:
                rests = rests or now
                if now - rests >= for_s:
                    state, rests = False, 0.0
                    expected.append(("resolved", now))
    assert said == expected
    assert all(isinstance(alert, Alert) for alert in world.alarms.firing)
