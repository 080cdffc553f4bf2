"""The story of a request: each stage of a real loop is told as it was, every outcome has one place in it, and nothing
that is missing, damaged, forgotten or somebody else's breaks it."""

import asyncio
import contextlib
import json
import random
import threading

import msgspec
import numpy as np
import pytest
import tomli_w

from millstream.app.forget import forget
from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.app.story import Story, tell
from millstream.app.training import train
from millstream.cli import main
from millstream.cli.trace import lines, plain
from millstream.clock import FakeClock
from millstream.errors import BadInput, NotFound
from millstream.models.manifest import Manifest
from millstream.models.traffic import Copy, make
from millstream.stream import decode, encode
from millstream.types import (
    Ask,
    Delta,
    Example,
    FeaturesRead,
    Outcome,
    Principal,
    Rank,
    Request,
    Served,
    SetAside,
    TenantOutcome,
)
from otlp_collector import Collector
from otlp_collector import told as attributes

ANYBODY = Principal("test")
PATHS = ("popular", "newest", "similar", "tags", "given", "item_cf", "user_cf", "factors")
TOLD = {
    "http_port": 0,
    "recommend": {
        "explore": 0.4,
        "placements": {
            "home": {
                "n": 5,
                "list_max": 8,
                "paths": {name: {"deadline_ms": 5000.0} for name in PATHS},
                "rank_ms": 5000.0,
                "arms": {
                    "calm": {
                        "share": 0.5,
                        "rerank": [{"step": "window", "by": "category", "most": 1, "window": 3}],
                    },
                    "plain": {"share": 0.5},
                },
            },
        },
    },
    "learn": {"model": "ranker", "push": {"push_s": 1.0, "base_examples": 8}},
    "join": {"tasks": {"like": {"window_s": 5.0}}, "idle_s": 1000.0},
    "ftrl": {"bits": 10},
    "features": {
        "user": [{"name": "id"}, {"name": "age", "bucket": 10.0}],
        "item": [{"name": "id"}, {"name": "tags", "places": 3}],
        "crosses": ["user.id*item.id"],
    },
}
ITEMS = [
    {"id": f"i{n}", "title": f"Film {n}", "category": f"c{n % 4}", "tags": [f"t{n % 3}", "all"], "created": 1e6 + n}
    for n in range(24)
]


class Loop:
    """Both roles in one process, under a fake clock."""

    def __init__(self, folder, told=TOLD):
        self.folder, self.clock = folder, FakeClock(2e6)
        self.at = Installation(folder, msgspec.convert(told, Settings), self.clock)
        self.serve = Serve(self.at)
        self.listing = {}

    async def start(self):
        await self.serve.engine.start()
        for lister in self.serve.listers.values():
            lister.start()
        train(self.at)
        await self.serve.engine.refresh()
        self.learn = Learn(self.at)

    async def stop(self):
        self.learn.close()
        for lister in self.serve.listers.values():
            lister.stop()
        await self.serve.engine.stop()

    async def turn(self, seconds=0.5):
        self.clock.advance(seconds)
        while self.learn.step():
            pass
        await self.serve.engine.refresh()
        self.serve.poll()

    async def call(self, act):
        found = await self.serve.door.call(act, ANYBODY)
        self.serve.poll()
        return found

    async def list(self, ident, user="u1", **more):
        found = self.listing[ident] = await self.call(
            Ask(id=ident, user=user, placement="home", explain=True, n=8, **more)
        )
        return found

    async def told(self, *outcomes):
        await self.call([msgspec.structs.replace(one, event_time=self.clock.now()) for one in outcomes])

    def events(self, topic):
        reader = self.at.log.reader(topic)
        return [(r, decode(r.value)) for p in reader.partitions() for r in reader.records(p)]


@pytest.fixture
def collector():
    with Collector() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@contextlib.asynccontextmanager
async def loop(folder, told=TOLD):
    made = Loop(folder, told)
    with made.at:
        await made.start()
        yield made
        await made.stop()


async def lived(at, requests=12):
    """Lists of two people, of which the first two items are seen and one is liked; until all is learnt and served."""
    await at.serve.door.upsert("items", ITEMS, ANYBODY)
    await at.serve.door.upsert("users", [{"id": "u1", "age": 31}, {"id": "u2"}], ANYBODY)
    at.serve.poll()
    for number in range(requests):
        page = await at.list(f"r{number}", user=f"u{1 + number % 2}", context={"device": "tv"})
        first, second = (slot.item for slot in page.items[:2])
        await at.turn(0.2)
        await at.told(
            Outcome(request=page.id, item=first, kind="impression"),
            Outcome(request=page.id, item=second, kind="impression"),
            Outcome(request=page.id, item=second, kind="like", text="good"),
        )
        await at.turn()
    for _ in range(14):
        await at.told(Outcome(kind="watermark"))
        await at.turn(1.0)
    await at.list("last")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(stories by request, what the log holds, the lists as they were answered, the folder)."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "millstream.toml").write_text(tomli_w.dumps(TOLD))

    async def scene():
        async with loop(folder) as at:
            await lived(at)
            stories = {ident: tell(at.at, ident) for ident in at.listing}
            events = {topic: at.events(topic) for topic in ("served", "outcomes", "examples", "deltas")}
            return stories, events, at.listing, folder

    return asyncio.run(scene())


def test_the_answer_is_told_as_its_caller_was_told_it(told):
    """`explain` of the answer comes from memory, the story from the log: they agree in every number."""
    stories, events, listings, _ = told
    for ident, listing in listings.items():
        story = stories[ident]
        assert story.kind == "list" and story.notes == []
        assert (story.answered.model, story.answered.version) == (listing.model, listing.version)
        assert story.asked.rules == listing.arm in ("calm", "plain") and story.asked.rules_same is True
        shown = [one for one in story.candidates if one.position]
        assert [one.item for one in shown] == [slot.item for slot in listing.items]
        for slot, one in zip(listing.items, shown, strict=True):
            why = slot.why
            assert one.position == why["position"] and one.sources == why["recall"] and one.reasons == slot.reasons
            assert one.recall == why["recall_score"] and one.score == why["score"] == slot.score
            assert one.outputs == why["outputs"]
        (record, event) = next((r, e) for r, e in events["served"] if e.request == ident)
        assert (story.place.partition, story.place.offset, story.place.arrival) == (0, record.offset, record.arrival)
        assert {one.item for one in story.candidates} == set(event.candidates)
        chances = [one.propensity for one in shown]
        assert sum(chances) == pytest.approx(1.0) and [one.explored for one in shown].count(True) <= 1
        assert story.asked.user == event.user
        assert story.asked.context == ({"device": "tv"} if ident != "last" else {})
    assert any(one.explored for story in stories.values() for one in story.candidates), "chance had its say in some"


def test_what_the_tokens_stood_for_is_what_was_told_of_them(told):
    stories, *_ = told
    story = stories["r2"]
    by = {one.name: one for one in story.user}
    assert by["user.id"].values == ["u1"] and by["user.id"].known == "exact"
    assert by["user.age"].values == ["31"] and by["user.age"].known == "exact"
    assert {one.name: one.known for one in stories["r1"].user} == {"user.id": "exact", "user.age": "empty"}
    of = {item["id"]: item for item in ITEMS}
    named = [one for one in story.candidates if one.position]
    assert named and all(one.title == of[one.item]["title"] for one in named)
    for one in named:
        features = {each.name: each for each in one.features}
        assert features["item.id"].values == [one.item]
        assert sorted(features["item.tags"].values) == sorted(of[one.item]["tags"])


def test_what_came_of_it_is_what_the_log_says(told):
    stories, events, listings, _ = told
    examples = [(r.offset, e) for r, e in events["examples"] if isinstance(e, Example)]
    for ident, listing in listings.items():
        if ident == "last":
            assert stories[ident].outcomes == [] == stories[ident].pushes
            continue
        story = stories[ident]
        first, second = (slot.item for slot in listing.items[:2])
        assert [(one.kind, one.item, one.end) for one in story.outcomes] == [
            ("impression", first, "example"),
            ("impression", second, "example"),
            ("like", second, "example"),
        ]
        assert all(one.after_s == pytest.approx(0.2) for one in story.outcomes)
        assert [one.text for one in story.outcomes] == ["", "", "good"]
        mine = [(offset, one) for offset, one in examples if one.request == ident]
        assert [(one.offset, one.item, one.label, one.task) for one in story.examples] == [
            (offset, one.item, one.label, "like") for offset, one in mine
        ]
        assert {one.label for one in story.examples} == {0.0, 1.0}
        for one in story.outcomes:
            assert one.examples == [offset for offset, example in mine if one.key in example.outcomes]


def test_the_push_that_learnt_an_example_is_the_one_that_reaches_beyond_it(told):
    """Of this loop, in which nothing is refused: by the ends of the deltas alone, which the story does not go by."""
    stories, events, *_ = told
    deltas = [(r, e) for r, e in events["deltas"] if isinstance(e, Delta)]
    assert len({e.base for _, e in deltas}) >= 2, "bases changed meanwhile"
    seen = 0
    for ident, story in stories.items():
        for one in story.examples:
            record, delta = next((r, e) for r, e in deltas if e.upto > one.offset)
            (push,) = (story.pushes[at] for at in one.pushes)
            assert push.version == f"{delta.base}@{delta.sequence}" and push.upto == delta.upto
            assert (push.offset, push.at) == (record.offset, record.arrival)
            assert push.examples == len(delta.arrivals) // 8 and push.slots == len(delta.slots) // 4
            assert one.why_not == "" and one.known <= push.at
        for push in story.pushes:
            made = tuple(map(int, push.version.split("@")))
            after = [
                (r.arrival, e.request, e.version)
                for r, e in events["served"]
                if r.arrival >= push.at and tuple(map(int, e.version.split("@"))) >= made
            ]
            if push.seen is None:
                assert after == [], (ident, push)
                continue
            seen += 1
            assert (push.seen.at, push.seen.request, push.seen.version) == min(after)
            known = max(one.known for one in story.examples if story.pushes.index(push) in one.pushes)
            assert push.staleness_s == pytest.approx(push.seen.at - known)
    assert seen > 10


def test_who_changed_the_policy_is_told(told):
    stories, _, _, folder = told
    with Installation(folder, msgspec.convert(TOLD, Settings), FakeClock(2e6)) as at:
        by = {one.version: one for one in at.repository.history("ranker")}
    for story in stories.values():
        said = story.answered.changed
        one = by[story.answered.policy]
        assert (said.number, said.who, said.why, said.when) == (one.version, one.who, one.why, one.when)
        assert story.answered.made_by == f"millstream {'train' if story.answered.version == '1@0' else 'learn'}"


async def careless(at, dice, requests=30):
    """A client that does all that the join sets aside, in some order."""
    kinds = ["impression", "like", "odd", "impression", "like"]
    told = []
    for number in range(requests):
        ident = f"q{number}"
        items = tuple(f"i{n}" for n in dice.sample(range(9), 4))
        await at.call(Rank(id=ident, user=f"u{number % 3}", candidates=items))
        for _ in range(dice.randrange(6)):
            of = f"q{dice.randrange(number + 1)}" if dice.random() < 0.9 else f"nobody-{number}"
            item = dice.choice(["i1", "i2", "i3", "zz"]) if of != ident else dice.choice(items)
            one = Outcome(request=of, item=item, kind=dice.choice(kinds), id=dice.choice(["", "", f"o{number % 7}"]))
            await at.told(one)
            told.append(one)
        await at.turn(dice.choice([0.1, 1.0, 6.0]))
    return told


CARELESS = {
    **TOLD,
    "recommend": {},
    "join": {
        "tasks": {
            "like": {"window_s": 5.0},
            "rare": {"window_s": 3.0, "kinds": {"like": 1.0}, "negatives": 0.3, "late": "drop"},
        },
        "feedback": ["like"],
        "idle_s": 1000.0,
        "keep_s": 60.0,
    },
    "learn": {"model": "ranker", "task": "like"},
}


@pytest.mark.parametrize("seed", range(4))
def test_every_acknowledged_outcome_has_one_place_in_one_story(tmp_path, seed):
    """Against the topic itself: keys in examples, keys set aside, and the rest, which waits or is a number."""
    folder = tmp_path

    async def scene():
        async with loop(folder, CARELESS) as at:
            await careless(at, random.Random(seed))
            requests = {event.request for _, event in at.events("outcomes")}
            stories = {ident: tell(at.at, ident) for ident in sorted(requests)}
            return stories, at.events("outcomes"), at.events("examples")

    stories, outcomes, examples = asyncio.run(scene())
    learnt = {key for _, e in examples if isinstance(e, Example) for key in e.outcomes}
    aside = [(e.outcome, e.cause) for _, e in examples if isinstance(e, SetAside) and e.outcome]
    number = sum(e.count for _, e in examples if isinstance(e, SetAside) and not e.outcome)
    told = [one for story in stories.values() for one in story.outcomes]
    assert sorted((one.arrival, one.key) for one in told) == sorted((r.arrival, e.key()) for r, e in outcomes)
    # a key is a client's, and may come under several requests: each story goes by its own
    assert {one.key for one in told if one.end == "example"} == learnt
    said = sorted((one.key, one.cause) for one in told if one.end == "set aside")
    assert said == sorted(aside)
    counted = sum(one.end == "counted" for one in told)
    assert counted <= number, "no more are among the numbers than there are"
    assert {cause for _, cause in aside} >= {"duplicate", "unknown_request", "not_a_candidate", "unknown_kind"}
    assert all((one.examples != []) == (one.end == "example") for one in told)
    for story in stories.values():
        if story.kind == "unknown":
            assert story.place is None and story.notes and {one.cause for one in story.outcomes} <= {"unknown_request"}


def test_what_has_no_place_yet_waits_and_why(tmp_path):
    async def scene():
        async with loop(tmp_path) as at:
            await at.call(Rank(id="r", user="u1", candidates=("i1", "i2")))
            await at.told(Outcome(request="r", item="i1", kind="impression"))
            (unread,) = tell(at.at, "r").outcomes
            assert unread.end == "waiting" and "not read" in unread.cause
            await at.turn(1.0)
            (waits,) = tell(at.at, "r").outcomes
            assert waits.end == "waiting" and "window is open" in waits.cause
            for _ in range(6):
                await at.told(Outcome(kind="watermark"))
                await at.turn(1.0)
            (done,) = tell(at.at, "r").outcomes
            assert done.end == "example" and done.examples

    asyncio.run(scene())


def test_of_an_outcome_that_came_twice_the_first_is_learnt(tmp_path):
    """The second is set aside at once, the first has its example when its window ends."""

    async def scene():
        async with loop(tmp_path) as at:
            await at.call(Rank(id="r", user="u1", candidates=("i1", "i2")))
            for _ in range(2):
                await at.told(Outcome(request="r", item="i1", kind="impression"))
                await at.turn()
            for _ in range(6):
                await at.told(Outcome(kind="watermark"))
                await at.turn(1.0)
            first, second = tell(at.at, "r").outcomes
            assert (first.end, second.end, second.cause) == ("example", "set aside", "duplicate")

    asyncio.run(scene())


def test_who_tells_too_much_of_a_request_has_the_first_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("millstream.app.trace.afterwards.MOST", 3)

    async def scene():
        async with loop(tmp_path) as at:
            await at.call(Rank(id="r", user="u1", candidates=("i1", "i2")))
            await at.told(*(Outcome(request="r", item="i1", kind="like", id=f"o{n}") for n in range(5)))
            story = tell(at.at, "r")
            assert [one.key for one in story.outcomes] == ["o0", "o1", "o2"]
            assert any("more than 3" in note for note in story.notes)

    asyncio.run(scene())


def test_what_no_push_has_says_why(tmp_path):
    """Examples that the gate refused lie before the end of a later push, and are not in it."""

    async def scene():
        async with loop(tmp_path) as at:
            for number in range(3):
                await at.call(Rank(id=f"r{number}", user="u1", candidates=("i1", "i2")))
                await at.told(*(Outcome(request=f"r{number}", item="i1", kind=k) for k in ("impression", "like")))
                at.clock.advance(0.01)
                at.learn.join.step()
            (first, second, third) = (tell(at.at, f"r{n}").examples[0] for n in range(3))
            assert first.why_not == "no push has reached it yet" and first.pushes == []
            delta = Delta(
                model="ranker", base="1", sequence=1, upto=second.offset + 1, slots=b"", weights=b"", checksum=0,
                arrivals=np.array([second.known], np.float64).tobytes(),
            )  # fmt: skip
            at.learn.learning._deltas.append(b"ranker", encode(delta))
            (first, second, third) = (tell(at.at, f"r{n}").examples[0] for n in range(3))
            assert first.pushes == [] and "1@1 reaches beyond it without it" in first.why_not
            assert second.pushes == [0] and second.why_not == ""
            assert third.why_not == "no push has reached it yet"

    asyncio.run(scene())


def test_plain_inference_and_shadows_are_told(tmp_path):
    async def scene():
        async with loop(tmp_path) as at:
            first = at.at.repository.folder("ranker", "1") / "model.ftrl"
            at.at.repository.put("ranker", at.at.repository.manifest("ranker", "1"), {"model.ftrl": first})
            make(at.at.repository, "ranker", "shadow", Copy(versions=("2",), who="ann", why="to compare"))
            await at.serve.engine.refresh()
            tokens = np.zeros((2, at.at.definition.width), np.uint32)
            await at.call(Request(model="ranker", inputs={"tokens": tokens}, rows=2, id="plain", key="u7"))
            await at.call(Rank(id="ranked", user="u1", candidates=("i1", "i2", "i3")))
            for _ in range(1000):
                at.clock.advance(0.1)
                await asyncio.sleep(0.01)
                at.serve.poll()
                if len(at.events("shadow")) == 2:
                    break
            story = tell(at.at, "plain")
            assert story.kind == "inference" and story.asked.user == "u7" and story.candidates == []
            assert story.answered.version.startswith("1@") or story.answered.version.startswith("2@")
            assert story.answered.changed.who == "ann" and story.answered.changed.why == "to compare"
            assert {name: len(said) for name, said in story.answered.shadows.items()} == {"ranker 2@0": 2}
            said = {e.request: np.frombuffer(e.scores, np.float32) for _, e in at.events("shadow")}
            ranked = tell(at.at, "ranked")
            assert ranked.kind == "ranking" and ranked.answered.shadows == {}
            by = {one.item: one.shadow["ranker 2@0"] for one in ranked.candidates}
            assert by == dict(zip(("i1", "i2", "i3"), said["ranked"].tolist(), strict=True))
            assert "shadow" in "\n".join(lines(story)) and "ranker 2@0" in "\n".join(lines(ranked))

    asyncio.run(scene())


def test_a_request_of_somebody_who_was_forgotten_is_nobodys(tmp_path):
    """What is left of it in the log has no key and says nothing."""

    async def scene():
        async with loop(tmp_path) as at:
            await lived(at, 6)
            before = {f"r{n}": tell(at.at, f"r{n}").asked.user for n in range(6)}
            assert set(before.values()) == {"u1", "u2"}
            gone = asyncio.ensure_future(forget(at.at, ["u1"]))
            while not gone.done():
                await at.turn(0.5)
                await asyncio.sleep(0.01)
            gone.result()
            for ident, user in before.items():
                if user == "u1":
                    with pytest.raises(NotFound, match="forgotten"):
                        tell(at.at, ident)
                else:
                    story = tell(at.at, ident)
                    assert story.asked.user == "u2" and len(story.outcomes) == 3 and story.notes == []

    asyncio.run(scene())


TENANTS = {**TOLD, "recommend": {**TOLD["recommend"], "tenants": {"acme": {}, "zeta": {}}}}


def test_a_story_of_one_tenant_has_nothing_of_anothers(tmp_path):
    async def scene():
        async with loop(tmp_path, TENANTS) as at:
            for tenant in ("acme", "zeta"):
                told = [{**one, "title": f"{tenant} {one['id']}"} for one in ITEMS]
                await at.serve.door.upsert("items", told, ANYBODY, tenant)
                at.serve.poll()
                page = await at.list("r1", user="u1", tenant=tenant)
                item = page.items[0].item
                for kind in ("impression", "like"):
                    one = TenantOutcome(request="r1", item=item, kind=kind, tenant=tenant, event_time=at.clock.now())
                    await at.call([one])
                await at.turn(1.5)
            tokens = np.zeros((1, at.at.definition.width), np.uint32)
            await at.call(Request(model="ranker", inputs={"tokens": tokens}, rows=1, id="r2"))
            for tenant, other in (("acme", "zeta"), ("zeta", "acme")):
                story = tell(at.at, "r1", tenant=tenant)
                assert story.tenant == tenant and story.asked.user == "u1" and len(story.outcomes) == 2
                assert story.candidates[0].item in {one["id"] for one in ITEMS}
                assert all(one.title.startswith(tenant) for one in story.candidates if one.position)
                text = msgspec.json.encode(story).decode() + "\n".join(lines(story))
                assert other not in text and f"{tenant}/" not in text.replace(f'"{tenant}"', "")
            assert tell(at.at, "r1").tenant == "zeta", "of both, the newest"
            assert tell(at.at, "r2").kind == "inference" and tell(at.at, "r2").request == "r2"
            for tenant in ("acme", "zeta"):
                with pytest.raises(NotFound):
                    tell(at.at, "r2", tenant=tenant)
            with pytest.raises(NotFound, match="not configured"):
                tell(at.at, "r1", tenant="nobody")

    asyncio.run(scene())


def test_since_and_until_say_when_it_was_answered(told):
    stories, _, _, folder = told
    when = stories["r5"].place.arrival
    with Installation(folder, msgspec.convert(TOLD, Settings), FakeClock(2e6)) as at:
        assert tell(at, "r5", since=when, until=when).said == stories["r5"].said
        for since, until in ((when + 0.01, when + 0.1), (when - 0.1, when - 0.01)):
            with pytest.raises(NotFound, match="r5"):
                tell(at, "r5", since=since, until=until)
        assert tell(at, "r5", since=when - 0.01, until=when + 0.1).place == stories["r5"].place
        for odd in ("", "x" * 100_000):
            with pytest.raises(BadInput):
                tell(at, odd)
        for odd in ("nobody", "\ud800", "r5 ", "\x00", "r" * 60_000):
            with pytest.raises(NotFound, match="no request"):
                tell(at, odd)


HOSTILE = 'q<script>alert("1")</script>\x1b[2J\x07\n\u202e\u200b'


def test_what_strangers_wrote_reaches_no_terminal(tmp_path, capsys):
    (tmp_path / "millstream.toml").write_text(tomli_w.dumps(TOLD))

    async def scene():
        async with loop(tmp_path) as at:
            await at.serve.door.upsert("items", [{"id": HOSTILE, "title": "\x1b]0;you\x07"}], ANYBODY)
            at.serve.poll()
            await at.list(HOSTILE, user=HOSTILE + "u", context={"c\x1b": HOSTILE})
            await at.told(Outcome(request=HOSTILE, item=HOSTILE, kind="impression\x9b", text=HOSTILE, id="k" * 500))
            await at.turn()

    asyncio.run(scene())
    main(["trace", HOSTILE, "-c", str(tmp_path / "millstream.toml")])
    out = capsys.readouterr().out
    assert "<script>" in out and all(c.isprintable() or c == "\n" for c in out)
    assert max(map(len, out.splitlines())) < 250
    main(["trace", HOSTILE, "-c", str(tmp_path / "millstream.toml"), "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    story = msgspec.convert(json.loads(line), Story)
    assert story.request == HOSTILE and story.outcomes[0].text.startswith("q<script>")
    assert plain("x" * 1000) == "x" * 80 + "..." and plain("\ud800") == "\\ud800"


def test_a_screen_has_it_all(told, capsys):
    stories, _, _, folder = told
    main(["trace", "r3", "-c", str(folder / "millstream.toml")])
    out = capsys.readouterr().out
    story = stories["r3"]
    for word in ("request r3", "asked", "answered", "features", "outcomes", "examples", "pushes", "Film "):
        assert word in out
    assert story.said in " ".join(out.split())
    assert len(out.splitlines()) < 45 and max(map(len, out.splitlines())) <= 120
    for push in story.pushes:
        assert f"ranker {push.version}" in out
    for item in (one.item for one in story.outcomes):
        assert item in out
    with pytest.raises(SystemExit, match="no request 'nobody'"):
        main(["trace", "nobody", "-c", str(folder / "millstream.toml")])


def test_a_log_that_is_damaged_tells_what_is_left(tmp_path):
    async def scene():
        async with loop(tmp_path) as at:
            await lived(at, 3)

    asyncio.run(scene())
    (path,) = (tmp_path / "log" / "outcomes" / "0").glob("*.seg")
    raw = bytearray(path.read_bytes())
    raw[16:20] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    with Installation(tmp_path, msgspec.convert(TOLD, Settings), FakeClock(3e6)) as at:
        story = tell(at, "r1")
        assert story.outcomes == [] and len(story.examples) == 2 and story.pushes
        assert any(path.name in note for note in story.notes)


def test_other_settings_than_those_of_then_are_told(told):
    stories, _, _, folder = told
    other = {**TOLD, "features": {"user": [{"name": "id"}], "item": [{"name": "id"}]}}
    other["recommend"] = {"placements": {"home": {"n": 3}}}
    with Installation(folder, msgspec.convert(other, Settings), FakeClock(2e6)) as at:
        story = tell(at, "r2")
        assert story.asked.rules_same is False and story.answered.definition_same is False
        assert story.user == [] and any("definition" in note for note in story.notes)
        assert [one.item for one in story.candidates] == [one.item for one in stories["r2"].candidates]
    with Installation(folder, msgspec.convert({"http_port": 0}, Settings), FakeClock(2e6)) as at:
        assert tell(at, "r2").answered.definition_same is None


def test_an_event_whose_arrays_do_not_fit_is_told_as_far_as_it_goes(tmp_path):
    with Installation(tmp_path, msgspec.convert(TOLD, Settings), FakeClock(2e6)) as at:
        event = Served(
            request="r", model="ranker", version="9@1", policy=3, arm="live", user="u", candidates=["a", "b"],
            event_time=1e300, scores=b"\0\0\0\0", order=np.array([7], np.uint32).tobytes(), placement="gone",
            tokens=b"123", slate=b"nonsense", sources=b"1", recalled=np.array([np.nan, 1], np.float32).tobytes(),
        )  # fmt: skip
        at.log.writer("served", 0).append(b"r", encode(event))
        read = FeaturesRead(
            features="f", hash="h", at=int(2e12), as_of=int(2e12), keys={"user": ["u"]},
            values=np.array([1.5, np.nan]).tobytes(),
        )  # fmt: skip
        at.log.writer("features_read", 0).append(b"f", encode(read))
        story = tell(at, "r")
        assert [(one.item, one.position, one.recall) for one in story.candidates] == [("a", 0, None), ("b", 0, 1.0)]
        assert len(story.notes) >= 4 and story.answered.changed is None
        assert story.reads[0].values == [{"column 0": 1.5, "column 1": None}]
        assert "\n".join(lines(story)) and msgspec.json.encode(story)


def test_what_cannot_be_read_beside_it_does_not_end_a_story(tmp_path):
    """A record of another request that is no event, and a version whose lineage says no number."""
    with Installation(tmp_path, msgspec.convert(TOLD, Settings), FakeClock(2e6)) as at:
        event = Served(
            request="r", model="ranker", version="1@0", policy=0, arm="live", user="u", candidates=["a"],
            event_time=2e6, scores=np.zeros(1, "<f4").tobytes(),
        )  # fmt: skip
        at.log.writer("served", 0).append(b"r", encode(event))
        outcomes = at.log.writer("outcomes", 0)
        outcomes.append(b"r", encode(Outcome(request="r", item="a", kind="like", id="o", event_time=2e6)))
        outcomes.append(b"other", b"\xc1 nonsense")
        lineage = {"made_by": "somebody", "upto": "the end"}
        at.repository.put("ranker", Manifest(format="onnx", file="m.onnx", lineage=lineage), {"m.onnx": b"x"})
        example = Example(
            request="r", item="a", model="ranker", version="1@0", tokens=b"", score=0.5, label=1.0, weight=1.0,
            event_time=2e6, arrival=2e6, wait_s=0.0, outcomes=["p"],
        )  # fmt: skip
        at.log.writer("examples", 0).append(b"r", encode(example))
        story = tell(at, "r")
        assert [one.end for one in story.outcomes] == ["waiting"]
        assert [one.why_not for one in story.examples] == ["no push has reached it yet"]


def test_a_story_is_sent_as_one_trace(told, collector):
    """To a real receiver of OTLP over HTTP, by the command; twice is the same trace."""
    stories, _, _, folder = told
    story = stories["r3"]
    for _ in range(2):
        main(["trace", "r3", "-c", str(folder / "millstream.toml"), "--otlp", collector.url])
    assert len({span.trace_id for span in collector.spans}) == 1
    spans = collector.spans[: len(collector.spans) // 2]
    assert [span.span_id for span in spans] == [span.span_id for span in collector.spans[len(spans) :]]
    by = {span.span_id: span for span in spans}
    (root,) = (span for span in spans if not span.parent_span_id)
    said = attributes(root)
    assert said["millstream.request"] == "r3" and said["millstream.version"] == story.answered.version
    assert said["millstream.placement"] == "home" and said["millstream.rules"] == story.asked.rules
    assert root.start_time_unix_nano == pytest.approx(story.place.arrival * 1e9, abs=1000)
    counts = {name: sum(span.name == name for span in spans) for name in {span.name for span in spans}}
    seen = sum(one.seen is not None for one in story.pushes)
    assert counts == {
        "request": 1, "outcome": 3, "example": 2, "push": len(story.pushes), "first answer with it": seen,
    }  # fmt: skip
    assert all(not span.parent_span_id or span.parent_span_id in by for span in spans)
    for span in spans:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    ends = sorted(span.end_time_unix_nano for span in spans if span.name == "push")
    assert ends == pytest.approx(sorted(one.at * 1e9 for one in story.pushes), abs=1000)
    assert "good" not in str(collector.spans), "what people wrote is not sent"
    assert not any("text" in key for span in spans for key in attributes(span))


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "http://127.0.0.1:1"])
def test_a_collector_that_is_not_there_is_said(told, url, monkeypatch):
    monkeypatch.setattr("millstream.app.trace.spans.TIMEOUT_S", 0.5)
    with pytest.raises(SystemExit, match=r"send a URL|is a collector"):
        main(["trace", "r3", "-c", str(told[3] / "millstream.toml"), "--otlp", url])
