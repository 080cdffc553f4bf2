"""Experiments from logs that real roles wrote, to what the command prints; beside the same counted by loops."""

import asyncio
import json
import math
from collections import defaultdict

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_models
from millstream import config
from millstream.app.experiments.assessing import assess
from millstream.app.installation import Installation, Settings
from millstream.app.report.matching import Span
from millstream.app.roles import Serve
from millstream.cli import main
from millstream.clock import FakeClock
from millstream.errors import BadInput, NotFound
from millstream.flows.rerank import Rules
from millstream.flows.rerank.sift import Boost, Pins
from millstream.models import Manifest, traffic
from millstream.stream import decode, encode
from millstream.types import Ask, Outcome, Principal, Rank, Served, Shadow
from millstream.watch.experiments import sample
from millstream.watch.experiments.effect import Moments, compare
from millstream.watch.experiments.settings import ExperimentSettings

ANYBODY = Principal("test")
TOML = """
http_port = 0
[recommend.placements.home]
n = 4
list_max = 4
paths.newest = { deadline_ms = 5000.0 }
[learn]
model = "ranker"
"""
ARMS = """
[recommend.placements.home.arms.plain]
share = 0.5
[recommend.placements.home.arms.calm]
share = 0.5
rerank = [{ step = "window", by = "category", most = 1, window = 3 }]
[experiments.quiet]
placement = "home"
metric = "like"
guardrails = { revenue = 0.5, missed = 0.1, diversity = 0.2 }
least = 0.2
since = 1970-01-24T00:00:00Z
"""
BEGAN, PEOPLE = 2e6, 260


async def days(at, seed, lists, likes):
    """People ask, see what they get, and like some of it: who is of an even number, twice as often."""
    random, serve = np.random.default_rng(seed), Serve(at)
    await serve.engine.start()
    serve.lister.start()
    rows = [{"id": f"i{n}", "category": f"c{n // 3}", "created": 1e6 + n} for n in range(12)]
    await serve.door.upsert("items", rows, ANYBODY)
    serve.poll()
    for number in range(lists):
        at.clock.advance(7.0)
        user = int(random.integers(PEOPLE))
        ask = Ask(id=f"{seed}-{number}", user=f"u{user}", placement="home", exclude=(f"i{random.integers(6, 12)}",))
        page = await serve.door.call(ask, ANYBODY)
        told = [Outcome(request=page.id, item=slot.item, kind="impression") for slot in page.items]
        for slot in page.items:
            if random.random() < likes * (1 + (user % 2 == 0)):
                told += [Outcome(request=page.id, item=slot.item, kind="like")] * 2  # told twice, counts once
            if random.random() < 0.1:
                told.append(Outcome(request=page.id, item=slot.item, kind="purchase", value=float(random.integers(9))))
        await serve.door.call(told, ANYBODY)
        serve.poll()
    serve.lister.stop()
    await serve.engine.stop()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Its millstream.toml, with a log that real roles wrote: some days without arms, then with two."""
    file = tmp_path_factory.mktemp("shop") / "millstream.toml"
    clock = FakeClock(BEGAN)
    for seed, (text, lists) in enumerate(((TOML, 350), (TOML + ARMS, 650))):
        file.write_text(text)
        with Installation(file.parent, config.read(file, Settings), clock) as at:
            asyncio.run(days(at, seed, lists, 0.1))
    return file


def events(file, topic):
    with Installation.open(file) as at:
        return [decode(record.value) for record in at.log.reader(topic).records(0)]


def command(capsys, *words):
    """What a command that must succeed prints as JSON."""
    capsys.readouterr()
    main(["experiment", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def by_hand(file, value):
    """arm -> user -> [value, lists, value of the past, lists of the past], by loops; `value(event, told)` of a list."""
    told = defaultdict(dict)
    for one in events(file, "outcomes"):
        told[one.request][one.key()] = one
    lists = events(file, "served")
    arm_of = {event.user: event.rules for event in lists if event.rules}
    found = {arm: {user: np.zeros(4) for user in arm_of if arm_of[user] == arm} for arm in ("plain", "calm")}
    for event in lists:
        if event.user in arm_of:
            row = found[arm_of[event.user]][event.user]
            row[0 if event.rules else 2] += value(event, told[event.request].values())
            row[1 if event.rules else 3] += 1
    return found


def test_an_experiment_of_rules_is_what_one_would_count(shop, capsys):
    found = command(capsys, "quiet", "-c", shop)
    people = by_hand(shop, lambda event, told: sum(one.kind == "like" for one in told))
    rows = {arm: np.array([*of.values()]).T for arm, of in people.items()}
    assert found["sample"]["fine"] and found["sample"]["crossed"] == 0 and found["control"] == "plain"
    assert found["sample"]["chance"] == pytest.approx(
        sample.chance([rows["plain"].shape[1], rows["calm"].shape[1]], [0.5, 0.5])
    )
    for one in found["arms"]:
        mine = rows[one["arm"]]
        assert (one["people"], one["lists"]) == (mine.shape[1], mine[1].sum())
        assert one["value"] == pytest.approx(mine[0].sum() / mine[1].sum()) and one["followed"] == 1.0
    assert found["past"] == pytest.approx(np.mean(np.concatenate([row[3] for row in rows.values()]) > 0))
    assert 0.5 < found["past"] < 1.0
    expected = compare(Moments.of(rows["plain"]), Moments.of(rows["calm"]), 0.2, 0.05)
    (lift,) = found["lifts"]
    assert (lift["arm"], lift["control"]) == ("calm", "plain")
    assert [lift["lift"], lift["low"], lift["high"]] == pytest.approx([expected.lift, expected.low, expected.high])
    assert lift["less"] == pytest.approx(expected.less) and lift["less"] > 0.01
    times = [event.event_time for event in events(shop, "served") if event.rules]
    assert (found["since"], found["until"]) == (min(times), max(times))
    assert found["verdict"].startswith("no difference shown between calm and plain: like a list")
    assert "undecided: missed a list: too early to say that calm" in found["verdict"]


def test_guardrails_are_of_what_they_are_called(shop, capsys):
    found = {one["metric"]: one for one in command(capsys, "quiet", "-c", shop)["rails"]}
    assert found.keys() == {"revenue a person", "missed a list", "diversity a list"}
    people = by_hand(shop, lambda event, told: sum(one.value for one in told if one.kind == "purchase"))
    rows = {arm: np.array([*of.values()]).T for arm, of in people.items()}
    for row in rows.values():
        row[[1, 3]] = 1.0  # a person
    expected = compare(Moments.of(rows["plain"]), Moments.of(rows["calm"]), 0.5, 0.05 / 3)
    revenue = found["revenue a person"]
    assert [revenue["lift"], revenue["low"], revenue["high"]] == pytest.approx(
        [expected.lift, expected.low, expected.high], rel=1e-4
    )
    assert revenue["state"] in ("kept", "open") and found["missed a list"]["state"] == "early"
    assert found["diversity a list"]["state"] == "kept" and found["diversity a list"]["low"] > 0.0, "that is its rule"


def test_it_is_told_in_words_too_and_by_options(shop, capsys):
    main(["experiment", "-c", str(shop), "--placement", "home", "--metric", "like", "--least", "0.2"])
    said = capsys.readouterr().out
    assert said.startswith("no difference shown between calm and plain: like a list")
    assert "more people needed to see 20 %" in said and "placement home: like a list, beside plain" in said
    asked = command(capsys, "-c", shop, "--placement", "home", "--metric", "like", "--least", "0.2")
    named = command(capsys, "quiet", "-c", shop)
    assert asked["lifts"] == named["lifts"] and asked["name"] == "" and named["name"] == "quiet"
    per = command(capsys, "-c", shop, "--placement", "home", "--per", "impression", "--control", "calm")
    assert per["metric"] == "positives an impression" and per["lifts"][0]["arm"] == "plain"
    for words, wrong in (
        (["quiet", "--metric", "like"], "leave out --metric"),
        (["loud"], r"is not in \[experiments\]; there are: quiet"),
        ([], "needs a placement"), (["--placement", "away"], "placement 'away' is not configured; there are: home"),
        (["--placement", "home", "--guard", "revenue"], "--guard revenue=0.02"),
        (["--placement", "home", "--control", "loud"], "there are: plain, calm"),
        (["--placement", "home", "--until", "5"], "the log has no list"),
        (["--placement", "home", "--since", "3e6"], "no list of placement home under its split as it is now"),
        (["--model", "nothing"], "there is no model 'nothing'"), (["--placement", "home", "--least", "0"], "least"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=wrong):
            main(["experiment", "-c", str(shop), *words])


def test_where_people_are_lost_nothing_is_concluded(shop, tmp_path, capsys):
    file = tmp_path / "millstream.toml"
    file.write_text(TOML + ARMS)
    with Installation.open(file) as at:
        for topic in ("served", "outcomes", "items"):
            writer = at.log.writer(topic)
            for event in events(shop, topic):
                if not (isinstance(event, Served) and event.rules == "calm" and int(event.user[1:]) % 5 < 3):
                    writer.append(b"", encode(event))
    found = command(capsys, "quiet", "-c", file)
    assert not found["sample"]["fine"] and found["lifts"] == found["rails"] == []
    assert found["verdict"].startswith("nothing can be concluded: people are not split as configured")


PLAIN, BOOSTED = Rules(()), Rules((Boost("c0", factor=3.0),))
SPLIT = {
    "plain": {"share": 0.5},
    "boosted": {"share": 0.5, "rerank": [{"step": "boost", "value": "c0", "factor": 3.0}]},
}
ASKED = ExperimentSettings(placement="home", least=0.2)
LIKED = {"plain": 0.2, "boosted": 0.3}


def experiment(folder):
    """An installation with two arms and an empty log."""
    recommend = {"placements": {"home": {"list_max": 3, "arms": SPLIT}}}
    settings = {"http_port": 0, "recommend": recommend, "learn": {"model": "ranker"}}
    return Installation(folder, msgspec.convert(settings, Settings), FakeClock(BEGAN))


def write(at, rules, people, name, since=BEGAN, swapped=False, tenant=""):
    """A list of each of so many people, who are in the arms by turns, and what they like of its three items."""
    random, arms = np.random.default_rng(len(name)), [*rules]
    served, told = at.log.writer("served"), at.log.writer("outcomes")
    for number in range(people):
        arm = arms[(number + swapped) % 2]
        event = Served(
            request=f"{tenant}{name}-{number}", model="ranker", version="", policy=0, arm="live",
            user=f"{tenant}u{number}",
            candidates=["i0", "i1", "i2"], event_time=since + number, placement="home", rules=arm,
            rules_hash=rules[arm].hash(3), order=np.arange(3, dtype=np.uint32).tobytes(),
        )  # fmt: skip
        served.append(event.request.encode(), encode(event))
        liked = random.random(3) < LIKED[arm]
        for kind, item in [("impression", item) for item in range(3)] + [
            ("like", item) for item in np.flatnonzero(liked)
        ]:
            one = Outcome(request=event.request, item=f"i{item}", kind=kind, event_time=event.event_time)
            told.append(b"", encode(one))
    at.log.close()


def test_a_planted_difference_is_found_and_rules_that_changed_count_as_they_are_now(tmp_path):
    with experiment(tmp_path) as at:
        write(at, {"plain": PLAIN, "boosted": PLAIN}, 299, "before")
        write(at, {"plain": PLAIN, "boosted": BOOSTED}, 1500, "after", BEGAN + 1e6)
        found = assess(at, ASKED)
        earlier = assess(at, ASKED, Span(until=BEGAN + 1e6 + 400))
    assert found.since == BEGAN + 1e6 + 1, "the first list of the rules that are new"
    assert [one.lists for one in found.arms] == [749, 750]
    assert found.past == 0.0, "what was done under other rules of these arms is no past"
    (lift,) = found.lifts
    assert lift.finding == "better" and lift.low <= LIKED["boosted"] / LIKED["plain"] - 1 <= lift.high
    assert found.verdict.startswith("boosted is better than plain: positives a list +")
    assert [one.people for one in earlier.arms] == [200, 200] and earlier.lifts[0].wanted > 400


def test_people_who_were_in_both_arms_are_left_out_and_too_many_end_it(tmp_path):
    rules = {"plain": PLAIN, "boosted": BOOSTED}
    with experiment(tmp_path) as at:
        write(at, rules, 400, "all")
        write(at, rules, 4, "again", swapped=True)
        found = assess(at, ASKED)
        assert found.sample.crossed == 4 and found.sample.fine and found.lifts
        assert [one.people for one in found.arms] == [198, 198] and [one.lists for one in found.arms] == [202, 202]
        write(at, rules, 5, "a third time", swapped=True)
        found = assess(at, ASKED)
    assert found.sample.crossed == 5 and not found.sample.fine and found.lifts == []
    assert "5 of 400 people were in several arms" in found.verdict


def test_an_experiment_of_a_tenant_is_of_its_lists_alone(tmp_path):
    pinned = {"step": "pins", "items": {"i0": 1}}
    placements = {
        "home": {"list_max": 3, "arms": {"plain": {"share": 0.5}, "boosted": {"share": 0.5, "rerank": [pinned]}}}
    }
    recommend = {"placements": placements, "tenants": {"acme": {}, "zeta": {}}}
    settings = msgspec.convert({"http_port": 0, "recommend": recommend, "learn": {"model": "ranker"}}, Settings)
    with Installation(tmp_path, settings, FakeClock(BEGAN)) as at:
        for tenant, people in (("acme/", 300), ("zeta/", 500)):
            write(at, {"plain": PLAIN, "boosted": Rules((Pins({f"{tenant}i0": 1}),))}, people, "all", tenant=tenant)
        found = assess(at, ExperimentSettings(placement="home", tenant="acme"))
        assert [one.people for one in found.arms] == [150, 150]
        with pytest.raises(BadInput, match="--tenant"):
            assess(at, ExperimentSettings(placement="home"))


MODEL = {
    "http_port": 0,
    "recommend": {"placements": {"home": {}}},
    "learn": {"model": "ranker"},
    "features": {"user": [{"name": "id"}], "item": [{"name": "id"}], "crosses": ["user.id*item.id"]},
}


async def ranked(serve, clock, random, name, count):
    """People of PEOPLE ask for an order of three items, and like some."""
    for number in range(count):
        clock.advance(5.0)
        rank = Rank(id=f"{name}-{number}", user=f"u{random.integers(PEOPLE)}", candidates=("i1", "i2", "i3"))
        page = await serve.door.call(rank, ANYBODY)
        told = [Outcome(request=page.id, item=one.item, kind="impression") for one in page.items]
        told += [Outcome(request=page.id, item=one.item, kind="like") for one in page.items if random.random() < 0.3]
        await serve.door.call(told, ANYBODY)
        serve.poll()


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """An installation whose model was live alone, then split in two with a shadow, then live alone again: by real
    roles."""
    folder = tmp_path_factory.mktemp("versions")
    clock, random = FakeClock(BEGAN), np.random.default_rng(3)

    async def scene(at):
        for seed in (1, 2, 3):
            file = onnx_models.attending(folder / "made.onnx", 3)
            graph = onnx.load(file)
            (counts,) = (one for one in graph.graph.initializer if one.name == "tokens_counts")
            counts.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(counts), seed), "tokens_counts"))
            onnx.save(graph, file)
            manifest = Manifest(format="onnx", file="model.onnx", features=at.definition.hash)
            at.repository.put("ranker", manifest, {"model.onnx": file.read_bytes()})
        at.repository.change_policy("ranker", traffic.promote("1"), who="a test", why="")
        serve = Serve(at)
        await serve.engine.start()
        await serve.door.upsert("items", [{"id": f"i{n}"} for n in range(4)], ANYBODY)
        serve.poll()
        for name, change, count in (
            ("before", None, 250),
            ("split", lambda now: traffic.split({"1": 3, "2": 1}, "user")(traffic.shadow(["3"])(now)), 500),
            ("after", traffic.promote("2"), 20),
        ):
            if change is not None:
                at.repository.change_policy("ranker", change, who="a test", why="")
                await serve.engine.refresh()
            await ranked(serve, clock, random, name, count)
            clock.advance(60.0)
            for _ in range(20):
                await asyncio.sleep(0.01)  # for shadows
        await serve.engine.stop()

    with Installation(folder, msgspec.convert(MODEL, Settings), clock) as at:
        asyncio.run(scene(at))
        yield at


def test_an_experiment_of_versions_is_of_the_time_in_which_they_were_split(versions):
    lists = [decode(record.value) for record in versions.log.reader("served").records(0)]
    split = [event for event in lists if event.request.startswith("split")]
    until = max(event.event_time for event in split)
    asked = ExperimentSettings(model="ranker", metric="like", least=0.3)
    found = assess(versions, asked, Span(until=until))
    assert found.split == "model ranker" and found.control == "1" and found.sample.fine
    assert (found.since, found.until) == (split[0].event_time, until)
    arms = {one.arm: one for one in found.arms}
    assert {arm: one.share for arm, one in arms.items()} == {"1": 0.75, "2": 0.25}
    told = {(one.request, one.item) for one in outcomes(versions) if one.kind == "like"}
    for version, one in arms.items():
        mine = [event for event in split if event.version.partition("@")[0] == version]
        assert one.lists == len(mine) and one.people == len({event.user for event in mine}) and one.followed == 1.0
        likes = sum((event.request, item) in told for event in mine for item in event.candidates)
        assert one.value == pytest.approx(likes / len(mine))
    before = {event.user for event in lists if event.request.startswith("before")}
    assert found.past == pytest.approx(len(before & {event.user for event in split}) / len({e.user for e in split}))
    for span, wrong in ((Span(), "version 2 had everybody"), (Span(until=BEGAN + 10), "version 1 had everybody")):
        with pytest.raises(BadInput, match=wrong):
            assess(versions, asked, span)


def outcomes(at):
    return [decode(record.value) for record in at.log.reader("outcomes").records(0)]


def test_shadows_join_with_what_was_answered_to_the_same_requests(versions):
    lists = {one.request: one for one in (decode(record.value) for record in versions.log.reader("served").records(0))}
    copies = [decode(record.value) for record in versions.log.reader("shadow").records(0)]
    copies = [one for one in copies if isinstance(one, Shadow) and one.request.startswith("split")]
    until = max(one.event_time for one in lists.values() if one.request.startswith("split"))
    found = assess(versions, ExperimentSettings(model="ranker", metric="like"), Span(until=until))
    (shadow,) = found.shadows
    assert shadow.version == "3" and shadow.requests == len(copies) > 100
    pairs = [
        (np.frombuffer(lists[one.request].scores, np.float32), np.frombuffer(one.scores, np.float32)) for one in copies
    ]
    live, other = (np.concatenate(one) for one in zip(*pairs, strict=True))
    assert shadow.apart == pytest.approx(np.mean(np.abs(live - other)), rel=1e-4) and shadow.apart > 0
    assert shadow.correlation == pytest.approx(np.corrcoef(live, other)[0, 1], abs=1e-6)
    assert shadow.other_first == pytest.approx(np.mean([np.argmax(a) != np.argmax(b) for a, b in pairs]))
    assert -1.0 <= shadow.rank_correlation < 1.0


def test_versions_that_are_split_by_request_or_do_not_answer_are_said_to_be(versions, tmp_path):
    change = traffic.split({"1": 1, "2": 1}, "request")
    with Installation(tmp_path, versions.settings, FakeClock(BEGAN)) as at:
        for version in ("1", "2"):
            manifest = versions.repository.manifest("ranker", version)
            data = (versions.repository.folder("ranker", version) / manifest.file).read_bytes()
            at.repository.put("ranker", Manifest(format="onnx", file="model.onnx"), {"model.onnx": data})
        at.repository.change_policy("ranker", change, who="a test", why="")
        with pytest.raises(BadInput, match="split by request"):
            assess(at, ExperimentSettings(model="ranker"))
        at.repository.change_policy("ranker", traffic.split({"1": 1, "2": 1}, "user"), who="a test", why="")
        with pytest.raises(NotFound, match="has no arm '7'; there are: 1, 2"):
            assess(at, ExperimentSettings(model="ranker", control="7"))
        writer = at.log.writer("served")
        for number in range(400):  # version 2 is not loaded: 1 answers its people
            event = Served(
                request=f"r{number}", model="ranker", version="1@0", policy=2, arm="live", user=f"u{number}",
                candidates=["i1"], event_time=BEGAN + number, scores=np.ones(1, np.float32).tobytes(),
            )  # fmt: skip
            writer.append(b"", encode(event))
        found = assess(at, ExperimentSettings(model="ranker"))
    assert not found.sample.fine and "people of 2 got was made by another version" in found.verdict
    assert [one.followed for one in found.arms] == [1.0, 0.0] and math.isfinite(found.until)
