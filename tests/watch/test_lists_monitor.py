"""What lists are worth, again and again: figures by arm, which is worse, what fell; and the contract of monitors."""

import numpy as np
import pytest

from millstream.app.installation import Installation
from millstream.app.report import lately as lately_room
from millstream.app.report.lately import Lately
from millstream.app.report.matching import Sample, Span
from millstream.app.report.summary import report
from millstream.clock import FakeClock
from millstream.stream import encode
from millstream.testing import check_monitor
from millstream.types import Entity, FeaturesRead, Outcome, Served
from millstream.watch.history import History
from millstream.watch.monitor import Logged
from millstream.watch.monitors.drift import Drift
from millstream.watch.monitors.labels import Labels
from millstream.watch.monitors.lists import EVERY_S, Arm, Lists, Worse
from millstream.watch.monitors.stream import Streams
from millstream.watch.reading import Key

BEGIN, DAY = 1_700_006_400.0, 86400.0
TOML = """
[recommend.placements.home]
n = 5
paths.newest = {}
[recommend.placements.home.arms.calm]
share = 0.5
rerank = [{ step = "window", by = "category", most = 1, window = 3 }]
[recommend.placements.home.arms.plain]
share = 0.5
[histories]
kinds = { click = 1.0 }
"""


def reads(at):
    rows = np.random.default_rng(int(at)).normal(size=(3, 4))
    for number in range(20):
        event = FeaturesRead(
            features="users", hash="h", at=0, as_of=0, keys={"user": ["a", "b", "c"]}, values=rows.tobytes()
        )
        yield Logged("features_read", at - 60.0 + number * 3.0, event)


@pytest.mark.parametrize("make", [Labels, Streams], ids=["labels", "stream"])
def test_monitors_of_the_history_keep_the_contract(make):
    check_monitor(lambda: make(History()))


def test_the_monitors_of_drift_and_lists_keep_the_contract():
    check_monitor(lambda: Drift({}), reads)
    check_monitor(lambda: Lists(lambda now: ([], [])))


def key(quantity, measure, arm="calm"):
    return Key.of(quantity, {"placement": "home", "arm": arm, "measure": measure})


def arm(ctr, hides=0.01, half=0.002, name="calm"):
    return Arm("", "home", name, {"ctr": (ctr, half, 1), "hide_rate": (hides, half, -1)})


def test_what_fell_since_a_day_before_is_told_beyond_both_intervals():
    given, looks = {"arms": [arm(0.1)], "worse": []}, []
    monitor = Lists(lambda now: (looks.append(now), (given["arms"], given["worse"]))[1])
    for step in range(6 * 24):
        found = monitor.readings(BEGIN + step * EVERY_S)
    assert found[key("list_figure", "ctr")] == 0.1 and key("list_fell", "ctr") not in found
    given["arms"], given["worse"] = [arm(0.05, 0.02)], [Worse("", "home", "calm", "ctr", "user experience", 0.4)]
    assert monitor.readings(BEGIN + DAY - 1.0) == found  # it was looked at a moment before
    assert len(looks) == 6 * 24
    found = monitor.readings(BEGIN + DAY)
    assert found[key("list_fell", "ctr")] == pytest.approx((0.05 - 2 * 0.002 * 2**0.5) / 0.1)
    assert found[key("list_fell", "hide_rate")] == pytest.approx((0.01 - 2 * 0.002 * 2**0.5) / 0.01)  # less is better
    assert found[key("list_worse", "ctr")] == 0.4 and found[key("list_worse", "hide_rate")] == 0.0
    given["arms"] = [arm(0.12)]
    assert monitor.readings(BEGIN + DAY + EVERY_S)[key("list_fell", "ctr")] == 0.0


@pytest.fixture
def shop(tmp_path):
    """An installation, and a function that logs lists of two arms with what people did, at a click rate each."""
    file = tmp_path / "millstream.toml"
    file.write_text(TOML)
    clock, random = FakeClock(BEGIN), np.random.default_rng(3)
    at = Installation.open(file)
    at.clock, number = clock, iter(range(10**9))
    catalogue = at.log.writer("items", 1)
    for n in range(30):
        catalogue.append(b"", encode(Entity(id=f"i{n}", attributes={"category": f"c{n % 4}"})))
    served, outcomes = at.log.writer("served"), at.log.writer("outcomes")

    def tell(lists, **rates):
        for _ in range(lists):
            one, name = next(number), list(rates)[int(random.integers(len(rates)))]
            items = [f"i{n}" for n in random.choice(30, 5, replace=False)]
            event = Served(
                request=f"r{one}", model="", version="", policy=0, arm="live", user=f"u{random.integers(2000)}",
                candidates=items, event_time=clock.now(), placement="home", rules=name, rules_hash=name,
                order=np.arange(5, dtype="<u4").tobytes(), sources=np.ones(5, "<u4").tobytes(), paths=["newest"],
            )  # fmt: skip
            served.append(f"r{one}".encode(), encode(event))
            for item in items:
                kinds = ["impression"] + ["click"] * bool(random.random() < rates[name])
                for kind in kinds:
                    told = Outcome(request=f"r{one}", item=item, kind=kind, event_time=clock.now())
                    outcomes.append(f"r{one}".encode(), encode(told))

    yield at, clock, tell
    at.close()


def test_the_arms_of_the_last_hour_are_told_and_which_is_worse(shop):
    at, clock, tell = shop
    tell(400, calm=0.9, plain=0.9)  # before anybody looked: not read
    lately = Lately(at)
    assert lately(clock.now()) == ([], [])
    for _ in range(3):
        clock.advance(EVERY_S)
        tell(300, calm=0.1, plain=0.3)
    arms, worse = lately(clock.now())
    by = {one.arm: one for one in arms}
    assert by["calm"].figures["ctr"][0] == pytest.approx(0.1, abs=0.03)
    assert by["plain"].figures["ctr"][0] == pytest.approx(0.3, abs=0.03)
    (lost,) = [one for one in worse if one.measure == "ctr"]
    assert lost.arm == "calm" and lost.axis == "user experience" and 0.4 < lost.share < 2 / 3
    clock.advance(7200.0)
    lately(clock.now())
    clock.advance(3600.0)
    assert lately(clock.now()) == ([], [])  # nobody asked for a list in the last hour


def test_a_sample_of_requests_has_all_their_outcomes(shop):
    at, _, tell = shop
    tell(1500, calm=0.2, plain=0.2)
    whole = report(at, Span())
    part = report(at, Span(), sample=Sample({}, 5))
    assert whole.lists == 1500 and 200 < part.lists < 400
    assert sum(one.impressions for one in part.placements[0].policies) == 5 * part.lists
    assert part.unmatched == whole.unmatched == 0


def test_of_many_lists_some_are_taken_and_of_a_flood_the_last(shop, monkeypatch):
    at, clock, tell = shop
    monkeypatch.setattr(lately_room, "LISTS_MAX", 200)
    lately = Lately(at)
    lately(clock.now())
    tell(900, calm=0.2, plain=0.2)
    clock.advance(EVERY_S)
    arms, _ = lately(clock.now())
    wide = min(one.figures["ctr"][1] for one in arms)
    monkeypatch.setattr(lately_room, "LISTS_MAX", 20_000)
    arms, _ = lately(clock.now())
    assert wide > 1.5 * min(one.figures["ctr"][1] for one in arms)
    monkeypatch.setattr(lately_room, "RECORDS_MAX", 400)
    tell(150, calm=0.9, plain=0.9)
    arms, _ = lately(clock.now())
    assert min(one.figures["ctr"][0] for one in arms) > 0.8
