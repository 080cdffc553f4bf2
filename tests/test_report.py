"""Reports, from lists that real roles made and logged, to what the command prints; beside the same counted by loops."""

import asyncio
import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pytest

from millstream.app.installation import Installation, Settings
from millstream.app.report.matching import Span
from millstream.app.report.summary import report
from millstream.app.report.whatif import what_if
from millstream.app.roles import Serve
from millstream.cli import main
from millstream.clock import FakeClock
from millstream.errors import BadInput, Conflict, NotFound
from millstream.flows.rerank import Rules
from millstream.flows.rerank.diversity import Mmr, Window
from millstream.flows.rerank.sift import Pins
from millstream.stream import decode, encode
from millstream.types import Ask, Outcome, Principal, Served

sys.path.append(str(Path(__file__).parents[1] / "bench"))
import arms as planted

ANYBODY = Principal("test")
TOML = """
http_port = 0
[recommend]
explore = 0.3
[recommend.placements.home]
n = 5
list_max = 12
rank_ms = 5000.0
paths.newest = { deadline_ms = 5000.0 }
paths.tags = { deadline_ms = 5000.0 }
[recommend.placements.home.arms.calm]
share = 0.5
rerank = [{ step = "window", by = "category", most = 1, window = 3 }]
[recommend.placements.home.arms.plain]
share = 0.5
[recommend.placements.mail]
n = 5
paths.newest = { deadline_ms = 5000.0 }
[learn]
model = "ranker"
[histories]
kinds = { click = 1.0, like = 1.0, purchase = 1.0, rating = 4.0 }
"""
CALM = """
[[rerank]]
step = "window"
most = 1
window = 3
"""


async def live(at: Installation, clock: FakeClock) -> None:
    """A shop for a few days: people ask, look at pages, click, buy, rate, stay and hide."""
    random = np.random.default_rng(5)
    serve = Serve(at)
    await serve.engine.start()
    serve.lister.start()
    rows = [
        {"id": f"i{n}", "category": f"c{n % 4}", "tags": [f"t{n % 3}"], "created": 2e6 - n * 43_200.0}
        for n in range(30)
    ]
    await serve.door.upsert("items", rows, ANYBODY)
    serve.poll()
    for number in range(120):
        clock.advance(float(random.choice([60.0, 600.0, 20_000.0])))
        ask = Ask(id=f"r{number}", user=f"u{random.integers(15)}", placement="mail" if number % 5 == 0 else "home")
        page = await serve.door.call(ask, ANYBODY)
        told = []
        for place, slot in enumerate(page.items):
            if place > 3 and number % 3:
                break
            told.append(Outcome(request=page.id, item=slot.item, kind="impression"))
            chance = random.random()
            if chance < 0.2:
                told += [Outcome(request=page.id, item=slot.item, kind="click")] * 2  # told twice, counts once
            elif chance < 0.3:
                told.append(Outcome(request=page.id, item=slot.item, kind="purchase", value=12.5))
                told.append(
                    Outcome(request=page.id, item=slot.item, kind="purchase", value=1.25, id=f"more-{number}-{place}")
                )
            elif chance < 0.4:
                told.append(Outcome(request=page.id, item=slot.item, kind="rating", value=float(random.integers(1, 6))))
            elif chance < 0.5:
                told.append(Outcome(request=page.id, item=slot.item, kind="hide"))
            elif chance < 0.6:
                told.append(Outcome(request=page.id, item=slot.item, kind="dwell", value=30.0 * place))
        told.append(Outcome(request="nobody's", item="i1", kind="click"))
        await serve.door.call(told, ANYBODY)
        serve.poll()
    serve.lister.stop()
    await serve.engine.stop()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Its millstream.toml, with a log that real roles wrote."""
    file = tmp_path_factory.mktemp("shop") / "millstream.toml"
    file.write_text(TOML)
    clock = FakeClock(2e6)
    from millstream import config

    with Installation(file.parent, config.read(file, Settings), clock) as at:
        asyncio.run(live(at, clock))
    return file


def events(file, topic):
    with Installation.open(file) as at:
        return [decode(record.value) for record in at.log.reader(topic).records(0)]


def command(capsys, *words):
    """What a command that must succeed prints as JSON."""
    capsys.readouterr()
    main(["report", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def seen(file):
    """What was done with each place of each list, by loops: (event, position, item) -> kinds with their values."""
    done = defaultdict(lambda: defaultdict(dict))
    for one in events(file, "outcomes"):
        done[one.request][one.item][one.key()] = one
    for event in events(file, "served"):
        for position, place in enumerate(np.frombuffer(event.order, np.uint32).tolist()):
            item = event.candidates[place]
            if told := list(done[event.request][item].values()):
                yield event, position, place, item, told


def positive(told):
    return any(one.kind in ("click", "like", "purchase") or (one.kind == "rating" and one.value >= 4) for one in told)


def money(told):
    return sum(one.value for one in told if one.kind == "purchase")


def test_a_report_is_what_one_would_count(shop, capsys):
    found = command(capsys, "-c", shop)
    assert found["lists"] == 120 and found["items"] == 30 and found["odd"] == 0
    assert found["unmatched"] == 1, "the same outcome, told with each list, is one"
    rows = list(seen(shop))
    lists = events(shop, "served")
    assert {one["placement"] for one in found["placements"]} == {"home", "mail"}
    for placed in found["placements"]:
        for policy in placed["policies"]:
            mine = [row for row in rows if (row[0].placement, row[0].rules) == (placed["placement"], policy["arm"])]
            of = [one for one in lists if (one.placement, one.rules) == (placed["placement"], policy["arm"])]
            assert policy["lists"] == len(of) and policy["users"] == len({one.user for one in of})
            assert policy["impressions"] == len(mine)
            assert policy["positives"] == sum(positive(told) for *_, told in mine)
            revenue = sum(money(told) for *_, told in mine)
            assert policy["revenue"] == pytest.approx(revenue, rel=1e-6)
            figures = {name: one["value"] for name, one in policy["figures"].items()}
            kinds = [{one.kind for one in told} for *_, told in mine]
            assert figures["ctr"] == pytest.approx(policy["positives"] / len(mine))
            assert figures["hide_rate"] == pytest.approx(np.mean(["hide" in one for one in kinds]))
            assert figures["conversion"] == pytest.approx(np.mean(["purchase" in one for one in kinds]))
            stays = [one.value for *_, told in mine for one in told if one.kind == "dwell"]
            assert figures["dwell_s"] == pytest.approx(np.mean(stays))
            assert figures["revenue_per_1000"] == pytest.approx(1000 * revenue / len(mine), rel=1e-6)
            assert figures["revenue_per_user"] == pytest.approx(revenue / policy["users"], rel=1e-6)
            young = [event.event_time - (2e6 - int(item[1:]) * 43_200.0) <= 604_800 for event, _, _, item, _ in mine]
            assert figures["new_share"] == pytest.approx(np.mean(young)) and 0 < np.mean(young) < 1
            assert policy["covered"] == pytest.approx(len({item for _, _, _, item, _ in mine}) / 30)
            for name, one in policy["figures"].items():
                if one.get("low") is not None:
                    assert one["low"] <= one["value"] <= one["high"], name
        mine = [row for row in rows if row[0].placement == placed["placement"]]
        paths = {"home": {"newest", "tags"}, "mail": {"newest"}}[placed["placement"]]
        assert {source["source"] for source in placed["sources"]} == paths
        for source in placed["sources"]:
            bits = [
                {event.paths[bit] for bit in range(8) if np.frombuffer(event.sources, np.uint32)[place] >> bit & 1}
                for event, _, place, _, _ in mine
            ]
            assert source["impressions"] == sum(source["source"] in one for one in bits)
            alone = [one == {source["source"]} for one in bits]
            assert source["only_share"] == pytest.approx(np.mean(alone))
            liked = [positive(told) for *_, told in mine]
            assert source["only_share_of_positives"] == pytest.approx(
                sum(a and b for a, b in zip(alone, liked, strict=True)) / sum(liked)
            )
        for one in placed["positions"]:
            there = [row for row in mine if row[1] == one["position"] - 1]
            assert one["impressions"] == len(there)
            assert one["positives"] == sum(positive(told) for *_, told in there)


def test_a_span_and_a_placement_cut_the_lists(shop, capsys):
    times = sorted(one.event_time for one in events(shop, "served") if one.placement == "home")
    middle = times[40]
    found = command(capsys, "-c", shop, "--placement", "home", "--since", middle)
    assert found["lists"] == sum(time >= middle for time in times)
    assert [one["placement"] for one in found["placements"]] == ["home"]
    with pytest.raises(SystemExit, match="no list of placement 'home' in that span"):
        main(["report", "-c", str(shop), "--placement", "home", "--until", "5"])
    main(["report", "-c", str(shop)])
    said = capsys.readouterr().out
    assert "user experience: no difference shown between" in said and "looked at" in said


@pytest.mark.parametrize("arm", ["calm", "plain"])
def test_rules_that_were_logged_earn_what_was_logged(shop, capsys, tmp_path, arm):
    """The law of inverse propensity, through the command: the logging policy's own mean. Each arm's lists were made by
    its rules alone, so its share of the log is asked for by its own time."""
    file = tmp_path / "rules.toml"
    file.write_text(CALM if arm == "calm" else "")
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "millstream.toml").write_text(TOML)
    with Installation.open(folder / "millstream.toml") as at:
        for topic in ("served", "outcomes", "items"):
            writer = at.log.writer(topic)
            for event in events(shop, topic):
                if not isinstance(event, Served) or event.rules == arm:
                    writer.append(b"", encode(event))
    found = command(capsys, "-c", folder / "millstream.toml", "--placement", "home", "--rules", file)
    lists = [one for one in events(folder / "millstream.toml", "served") if one.placement == "home"]
    assert found["lists"] == len(lists) and found["changed"] == 0.0 and found["covered"] == pytest.approx(1.0)
    assert found["rules_hash"] == lists[0].rules_hash
    first = {event.request: told for event, position, _, _, told in seen(shop) if position == 0}
    own = {
        "positives": np.mean([positive(first.get(one.request, [])) for one in lists]),
        "revenue": np.mean([money(first.get(one.request, [])) for one in lists]),
    }
    earned = {one["reward"]: one for one in found["earned"]}
    for reward, mean in own.items():
        assert mean > 0
        for kind in ("logged", "ips", "snips"):
            assert earned[reward][kind]["value"] == pytest.approx(mean, rel=1e-5)
        assert earned[reward]["gain"]["value"] == pytest.approx(0.0, abs=1e-5 * mean)
        assert earned[reward]["dr"]["low"] < mean < earned[reward]["dr"]["high"]


def test_every_logged_list_has_chances_that_sum_to_one(shop):
    for event in events(shop, "served"):
        likely = np.frombuffer(event.propensities, np.float32)
        assert likely.sum() == pytest.approx(1.0, abs=1e-5)
        assert likely[np.frombuffer(event.order, np.uint32)[0]] > 0
        assert set(np.flatnonzero(likely)) == set(np.frombuffer(event.order, np.uint32).tolist())


def test_a_list_is_made_again_by_its_rules_and_by_no_others(shop):
    settings = msgspec.convert({"http_port": 0}, Settings)
    assert settings is not None
    with Installation.open(shop) as at:
        placements = at.settings.recommend.placements
    for event in events(shop, "served"):
        placement = placements[event.placement]
        rules = placement.rules(event.rules)
        order = rules.again(event, placement.list_max)
        assert order.places.astype(np.uint32).tobytes() == event.order and order.reasons == event.reasons
        with pytest.raises(Conflict, match="was put in order by rules"):
            Rules((*rules.steps, Mmr())).again(event, placement.list_max)
        with pytest.raises(Conflict):
            rules.again(event, placement.list_max + 1)
    assert Rules((Window(),)).hash(9) == Rules((Window(most=2, window=5),)).hash(9) != Rules((Window(most=3),)).hash(9)
    assert Rules((Window(), Mmr())).hash(9) != Rules((Mmr(), Window())).hash(9)
    assert Rules((Pins({"a": 1, "b": 2}),)).hash(9) == Rules((Pins({"b": 2, "a": 1}),)).hash(9)


def test_an_arm_whose_rules_changed_is_two(tmp_path):
    with planted.installed(tmp_path) as at:
        planted.write(at, {"calm": planted.PLAIN}, 40, 1)
        at.log.close()
        planted.write(at, {"calm": planted.BOOSTED}, 60, 2)
        found = report(at, Span()).placements[0]
    assert {(one.policy, one.lists) for one in found.policies} == {
        (f"calm#{planted.PLAIN.hash(planted.LENGTH)[:6]}", 40),
        (f"calm#{planted.BOOSTED.hash(planted.LENGTH)[:6]}", 60),
    }
    assert found.differences and {one.first for one in found.differences} == {found.policies[0].policy}


def test_a_log_that_cannot_tell_says_what_to_do(tmp_path, capsys):
    file = tmp_path / "rules.toml"
    with planted.installed(tmp_path / "dark") as at:
        planted.write(at, {"": planted.PLAIN}, 20, 1, explore=0.0)
        file.write_text(planted.BOOST)
        with pytest.raises(BadInput, match=r"set recommend\.explore above 0"):
            what_if(at, file, Span())
        with pytest.raises(BadInput, match="millstream log list"):
            report(at, Span(placement="away"))
    with planted.installed(tmp_path / "light") as at:
        planted.write(at, {"": planted.PLAIN}, 20, 1)
        file.write_text('[[rerank]]\nstep = "seen"\n')
        with pytest.raises(BadInput, match=r"look at .*seen.* an arm with a small share"):
            what_if(at, file, Span())
        file.write_text(planted.BOOST)
        found = what_if(at, file, Span())
        assert not found.trusted and "not to be trusted" in found.verdict
        (tmp_path / "light" / "millstream.toml").write_text("[recommend.placements.home]\n")
    for text, said in (
        ("rerank = 3", "rerank"), ('[[rerank]]\nstep = "nonsense"\n', "nonsense"), ("reran = 1", "reran"),
        ('[[rerank]]\nstep = "fresh"\n' * 2, "stands twice"), ("[[rerank", "not TOML"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(SystemExit, match=said):
            main(["report", "-c", str(tmp_path / "light" / "millstream.toml"), "--rules", str(file)])
    with pytest.raises(SystemExit, match="--rules wants a TOML file"):
        main(["report", "-c", str(tmp_path / "light" / "millstream.toml"), "--rules", str(tmp_path / "none.toml")])
    file.write_text(planted.BOOST)
    with pytest.raises(SystemExit, match="placement 'away' is not configured"):
        main(["report", "-c", str(tmp_path / "light" / "millstream.toml"), "--rules", str(file), "--placement", "away"])


def test_columns_that_the_log_lacks_are_those_of_items_now(tmp_path):
    """The plain rules look at nothing, so their lists are logged without categories in a server; here too."""
    file = tmp_path / "rules.toml"
    file.write_text(planted.BOOST)
    verdicts = []
    for strip in (False, True):
        with planted.installed(tmp_path / str(strip)) as at, planted.installed(tmp_path / f"{strip}-from") as source:
            planted.write(source, {"plain": planted.PLAIN}, 300, 3)
            for topic in ("items", "served", "outcomes"):
                writer = at.log.writer(topic)
                for record in source.log.reader(topic).records(0):
                    event = decode(record.value)
                    if strip and isinstance(event, Served):
                        slate = planted.Slate.unpack(event.slate, event.candidates)
                        bare = msgspec.structs.replace(slate, columns={}, codes={})
                        event = msgspec.structs.replace(event, slate=bare.pack(names=False))
                    writer.append(b"", encode(event))
            verdicts.append(what_if(at, file, Span()))
    known, filled = verdicts
    assert known.filled == [] and filled.filled == ["category"]
    assert filled.earned == known.earned and filled.changed == known.changed > 0.2


def test_lists_and_outcomes_that_come_twice_or_late_or_first_count_once(tmp_path):
    with planted.installed(tmp_path / "a") as at, planted.installed(tmp_path / "b") as mixed:
        planted.write(at, {"x": planted.PLAIN, "y": planted.BOOSTED}, 50, 4)
        for topic in ("items", "served", "outcomes"):
            records = [*at.log.reader(topic).records(0)]
            for partition, some in enumerate((records if topic == "items" else records[::-1], records[::2])):
                writer = mixed.log.writer(topic, partition)
                for record in some:
                    writer.append(record.key, encode(decode(record.value)))
        whole, again = (msgspec.to_builtins(report(one, Span())) for one in (at, mixed))
    again["lists"] = whole["lists"]  # those of the log, a copy too
    for placed in (*whole["placements"], *again["placements"]):
        placed["policies"].sort(key=lambda one: one["policy"])
    assert json.dumps(again["placements"][0]["policies"]) == json.dumps(whole["placements"][0]["policies"])


def test_rankings_are_reported_in_the_order_that_was_answered(tmp_path):
    with planted.installed(tmp_path) as at:
        scores = np.array([0.1, 0.9, 0.5], np.float32)
        event = Served(
            request="r", model="ranker", version="1@0", policy=1, arm="canary", user="u", candidates=["a", "b", "c"],
            event_time=2e6, scores=scores.tobytes(), explored=2,
        )  # fmt: skip
        at.log.writer("served").append(b"", encode(event))
        writer = at.log.writer("outcomes")
        for item, kind in (("c", "impression"), ("b", "like"), ("a", "impression"), ("z", "click")):
            writer.append(b"", encode(Outcome(request="r", item=item, kind=kind, event_time=2e6)))
        found = report(at, Span())
    placed = found.placements[0]
    assert (placed.placement, placed.policies[0].arm, found.unmatched, found.unknown) == ("(rankings)", "canary", 1, 3)
    assert [(one.position, one.positives) for one in placed.positions] == [(1, 0), (2, 1), (3, 0)]


def test_a_report_is_of_one_tenant(tmp_path):
    tenants = {"acme": {}, "zeta": {"placements": {"home": {"list_max": 3}}}}
    told = planted.SETTINGS | {"recommend": planted.SETTINGS["recommend"] | {"tenants": tenants}}
    with Installation(tmp_path, msgspec.convert(told, Settings), FakeClock(2e6)) as at:
        planted.write(at, {"": planted.PLAIN}, 30, 1)
        of = {topic: [*at.log.reader(topic).records(0)] for topic in ("items", "served", "outcomes")}
    names = {"items": ("id",), "served": ("request", "user"), "outcomes": ("request", "item")}
    with Installation(tmp_path / "two", msgspec.convert(told, Settings), FakeClock(2e6)) as at:
        for topic, records in of.items():
            writer = at.log.writer(topic)
            for record in records[:20] if topic == "items" else records:
                for tenant in tenants:
                    event = decode(record.value)
                    changed = {name: f"{tenant}/{getattr(event, name)}" for name in names[topic]}
                    if topic == "served":
                        changed["candidates"] = [f"{tenant}/{item}" for item in event.candidates]
                    writer.append(b"", encode(msgspec.structs.replace(event, **changed)))
        found = report(at, Span(tenant="acme"))
        assert (found.lists, found.items, found.unmatched) == (30, 20, 0)
        assert found.placements[0].policies[0].impressions == 30 * planted.PAGE
        file = tmp_path / "rules.toml"
        for pinned, changed in (("i3", True), ("acme/i3", False)):
            file.write_text(f'rerank = [{{ step = "pins", items = {{ "{pinned}" = 1 }} }}]')
            assert (what_if(at, file, Span(tenant="acme")).changed > 0) == changed
        with pytest.raises(BadInput, match="one of: acme, zeta"):
            report(at, Span())
        with pytest.raises(NotFound, match="tenant 'x'"):
            what_if(at, file, Span(tenant="x"))


def test_the_price_of_an_ad_is_due_once_on_a_click(tmp_path):
    with planted.installed(tmp_path) as at:
        event = Served(
            request="r", model="ranker", version="", policy=0, arm="live", user="u", candidates=["a", "b", "c"],
            event_time=2e6, placement="home", order=np.array([2, 0, 1], np.uint32).tobytes(),
            prices=np.array([0.5, np.nan, 0.25], np.float32).tobytes(),
        )  # fmt: skip
        at.log.writer("served").append(b"", encode(event))
        writer = at.log.writer("outcomes")
        told = (("c", "impression"), ("c", "click"), ("c", "click"), ("a", "click"), ("b", "like"), ("b", "purchase"))
        for number, (item, kind) in enumerate(told):
            writer.append(b"", encode(Outcome(request="r", item=item, kind=kind, value=3.0, id=str(number))))
        placed = report(at, Span()).placements[0]
    assert placed.policies[0].revenue == 0.5 + 3.0, "one click on an ad, one purchase; nobody pays for a like"


ARMS = {"plain": planted.PLAIN, "boosted": planted.BOOSTED}


def test_the_better_of_two_arms_is_found():
    """The planted truth is far above what a log of this size leaves open."""
    true = planted.truth(planted.BOOSTED, lists=1500)[0] - planted.truth(planted.PLAIN, lists=1500)[0]
    found = [planted.compared(seed, ARMS, 1500) for seed in range(4)]
    assert true > 0.02
    assert sum(one.low - 0.004 <= true <= one.high + 0.004 for one in found) >= 3
    assert all(one.better == "boosted" for one in found)


def test_of_arms_that_are_the_same_no_difference_is_shown():
    found = [planted.compared(seed, {"one": planted.PLAIN, "two": planted.PLAIN}, 300) for seed in range(8)]
    assert sum(one.differs for one in found) <= 4  # of 24 axes; more: one in two hundred test runs with other seeds
    assert not any(math.isnan(one.ctr) for one in found)


@pytest.mark.slow
def test_over_many_logs_intervals_hold_as_often_as_said(tmp_path):
    same = [planted.compared(seed, {"one": planted.PLAIN, "two": planted.PLAIN}, 400) for seed in range(100, 120)]
    assert sum(one.differs for one in same) <= 8  # of 60 axes, 5 % at most: P(Binomial(60, 0.05) > 8) = 0.3 %
    assert sum(one.low <= 0 <= one.high for one in same) >= 16
    file = tmp_path / "rules.toml"
    file.write_text(planted.BOOST)
    boosted = planted.truth(planted.BOOSTED, lists=6000)[1]
    other = [planted.asked(seed, 600, file) for seed in range(20)]
    for kind in ("IPS", "SNIPS", "DR"):
        assert sum(one[kind][1] <= boosted <= one[kind][2] for one in other) >= 16, (
            kind
        )  # P(Binomial(20, 0.95) < 16) = 0.3 %


def test_imported_history_is_matched_with_what_was_done(tmp_path):
    """It has no scores: one item was shown."""
    with planted.installed(tmp_path) as at:
        event = Served(
            request="h", model="ranker", version="history", policy=0, arm="history", user="u", candidates=["a"],
            event_time=2e6,
        )  # fmt: skip
        at.log.writer("served").append(b"", encode(event))
        writer = at.log.writer("outcomes")
        for kind in ("impression", "like"):
            writer.append(b"", encode(Outcome(request="h", item="a", kind=kind, event_time=2e6)))
        found = report(at, Span())
    policy = found.placements[0].policies[0]
    assert (policy.arm, policy.impressions, policy.positives, found.unmatched) == ("history", 1, 1, 0)
