"""Rankers of several kinds behind one list: versions that attend to a history beside some that do not, and a model that
learns beside the ranker. Real roles in one process under a fake clock."""

import asyncio
import contextlib

import msgspec
import numpy as np
import pytest

import onnx_models
from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.app.training import status, train
from millstream.clock import FakeClock
from millstream.errors import Misconfigured
from millstream.flows.rerank import Slate
from millstream.models import Manifest, online, traffic
from millstream.models.runtimes.onnx import Onnx
from millstream.stream import decode
from millstream.types import Ask, Beside, Delta, Outcome, Principal, Rank, Served

ANYBODY = Principal("test")
SLOW = {name: {"deadline_ms": 5000.0} for name in ("popular", "newest", "tags")}
FORMULA = "0.7 * probability + 0.3 * online.probability"
SETTINGS = {
    "http_port": 0,
    "recommend": {"asks": {"cursor_wait_s": 0.0}, "placements": {"home": {"n": 5, "paths": SLOW, "rank_ms": 5000.0}}},
    "learn": {"model": "ranker", "push": {"push_s": 0.01}},
    "join": {"tasks": {"like": {"window_s": 1.0}}},
    "ftrl": {"bits": 10, "l1": 0.0},
    "features": {"user": [{"name": "id"}], "item": [{"name": "id"}], "crosses": ["user.id*item.id"]},
}
WIDTH = 3
BESIDE = {
    **SETTINGS,
    "recommend": {
        **SETTINGS["recommend"],
        "beside": ["online"],
        "placements": {"home": {**SETTINGS["recommend"]["placements"]["home"], "score": FORMULA}},
    },
    "learn": {**SETTINGS["learn"], "model": "online"},
}


class House:
    """An installation with a catalogue, users who like things, and an engine that answers."""

    def __init__(self, folder, settings, clock):
        self.clock, self.number = clock, 0
        self.at = Installation(folder, msgspec.convert(settings, Settings), clock)
        self.serve = Serve(self.at)

    async def list(self, **wish):
        self.number += 1
        listing = await self.serve.door.call(Ask(**{"id": f"r{self.number}", "n": 30, **wish}), ANYBODY)
        self.serve.poll()
        return listing

    async def likes(self, user, *liked):
        listing = await self.list(user=user)
        told = [Outcome(request=listing.id, item=item, kind="impression") for item in map(str, names(listing))]
        told += [Outcome(request=listing.id, item=item, kind="like") for item in liked]
        await self.serve.door.call(told, ANYBODY)
        self.clock.advance(1.0)
        self.serve.poll()

    def put(self, model, **more):
        """A ranker as somebody's training left it; its version."""
        file = self.at.folder / "made.onnx"
        onnx_models.attending(file, WIDTH, **more)
        manifest = Manifest(format="onnx", file="model.onnx", features=self.at.definition.hash)
        return self.at.repository.put(model, manifest, {"model.onnx": file.read_bytes()})

    async def follow(self, change, model="ranker"):
        self.at.repository.change_policy(model, change, who="a test", why="")
        await self.serve.engine.refresh()

    def logged(self) -> dict[str, Served]:
        events = (decode(record.value) for record in self.at.log.reader("served").records(0))
        return {event.request: event for event in events}

    def alone(self, event: Served, version="", model="ranker"):
        """What a version says by itself of the rows and the history of an event."""
        version = (version or event.version).partition("@")[0]
        manifest = self.at.repository.manifest(model, version)
        file = self.at.repository.folder(model, version) / manifest.file
        rows = np.frombuffer(event.tokens, np.uint32).reshape(len(event.candidates), -1)
        if manifest.format == "onnx":
            found = Onnx(file)
            given = {"tokens": rows}
            for spec in found.inputs[1:]:
                past = self.serve.known.entities.history(event.history, spec.shape[1])
                given["history"] = np.repeat(past, len(rows), axis=0)
        else:
            found, given = self.at.learner().load(file)[0], {"tokens": rows}
        return found.predict(given)["probability"].reshape(-1)

    def fallbacks(self):
        values = [self.serve.meter.values("millstream_rank_instead_total", {"by": by}) for by in ("previous", "recall")]
        return [sum(one) for one in values]


def names(listing) -> list[str]:
    return [slot.item for slot in listing.items]


@contextlib.asynccontextmanager
async def house(folder, settings=SETTINGS, clock=None):
    made = House(folder, settings, clock or FakeClock(2e6))
    with made.at:
        await made.serve.engine.start()
        made.serve.lister.start()
        if not made.serve.lister.world.catalogue.number("i0") >= 0:
            rows = [{"id": f"i{n}", "tags": [f"t{n % 3}"], "created": 1e6 + n} for n in range(30)]
            await made.serve.door.upsert("items", rows, ANYBODY)
            made.serve.poll()
        yield made
        made.serve.lister.stop()
        await made.serve.engine.stop()


async def rankers(at):
    """Version 1 was learnt, 2 attends to six liked items, 3 to two; 1 is live."""
    for user in ("u", "v"):
        await at.likes(user, "i7", "i11", "i3", "i4")
    at.clock.advance(100.0)
    assert [train(at.at).version, at.put("ranker", history=6, click=True), at.put("ranker", history=2)] == list("123")
    await at.serve.engine.refresh()


def run(scene):
    asyncio.run(scene())


@pytest.mark.parametrize(("live", "other"), [("1", "2"), ("2", "1"), ("2", "3")])
def test_versions_of_other_inputs_share_the_lists_and_each_scores_as_it_does_alone(tmp_path, live, other):
    async def scene():
        async with house(tmp_path) as at:
            await rankers(at)
            await at.follow(lambda now: traffic.canary(other, 0.5)(msgspec.structs.replace(now, live=live)))
            before = at.fallbacks()
            for number in range(16):
                listing = await at.list(user=("u", "v", "w", "x")[number % 4] + str(number // 4)[: number // 4])
                assert not listing.missed
            for number in range(16):
                rank = Rank(id=f"k{number}", user=f"u{number}", candidates=("i1", "i7", "i9"))
                await at.serve.door.call(rank, ANYBODY)
            events = [event for event in at.logged().values() if event.version]
            assert {event.version for event in events} == {f"{live}@0", f"{other}@0"}
            assert any(event.history for event in events) and len(events) == 32
            for event in events:
                np.testing.assert_array_equal(np.frombuffer(event.scores, np.float32), at.alone(event))
            assert at.fallbacks() == before

    run(scene)


def test_promoted_and_rolled_back_under_load_no_list_fails_or_falls_back(tmp_path):
    async def scene():
        async with house(tmp_path) as at:
            await rankers(at)
            before, asking = at.fallbacks(), True

            async def load(name):
                made = 0
                while asking or made < 10:
                    made += 1
                    listing = await at.serve.door.call(Ask(id=f"{name}-{made}", user=name), ANYBODY)
                    assert not listing.missed and len(listing.items) == 5
                    rank = Rank(id=f"{name}-k{made}", user=name, candidates=("i1", "i7", "i9"))
                    assert len((await at.serve.door.call(rank, ANYBODY)).items) == 3
                    await asyncio.sleep(0)

            callers = [asyncio.ensure_future(load(name)) for name in ("u", "v", "w", "x")]
            for version in ("2", "1", "3", "2", "1"):
                await at.follow(traffic.promote(version))
                for _ in range(20):
                    await asyncio.sleep(0.002)
            asking = False
            await asyncio.gather(*callers)
            events = [event for event in at.logged().values() if event.request[0] in "uvwx"]
            assert {event.version for event in events} == {"1@0", "2@0", "3@0"}
            for event in events:
                np.testing.assert_array_equal(np.frombuffer(event.scores, np.float32), at.alone(event))
            assert at.fallbacks() == before

    run(scene)


@pytest.mark.parametrize(("broken", "steps_in"), [(0, "2"), (0, "1"), (6, "1"), (6, "3")])
def test_a_version_of_other_inputs_steps_in_for_one_that_fails(tmp_path, broken, steps_in):
    async def scene():
        async with house(tmp_path) as at:
            await rankers(at)
            failing = at.put("ranker", history=broken, broken=True)
            await at.follow(lambda now: msgspec.structs.replace(now, live=failing, shadow=(steps_in,)))
            before = at.fallbacks()
            listing = await at.list(user="u")
            event = at.logged()[listing.id]
            assert listing.missed == ["rank"] and (event.version, event.ranker) == (f"{steps_in}@0", "previous")
            assert len(event.history) == 4
            np.testing.assert_array_equal(np.frombuffer(event.scores, np.float32), at.alone(event))
            assert at.fallbacks() == [before[0] + 1, before[1]]

    run(scene)


# A model that learns beside the ranker.


def learn(at, learn_role, steps=1):
    """All that came is joined, learnt, pushed and taken."""
    for _ in range(steps):
        at.clock.advance(2.0)
        while learn_role.step():
            at.clock.advance(0.1)
        at.serve.poll()


def corrected(at, event):
    """The scores as the log says how they came: of both models' exact versions, by the formula."""
    base, _, sequence = event.beside["online"].version.partition("@")
    manifest = at.at.repository.manifest("online", base)
    served = online.load_served(at.at.repository.folder("online", base) / manifest.file)
    for record in at.at.log.reader("deltas").records(0):
        delta = decode(record.value)
        if (
            isinstance(delta, Delta)
            and (delta.model, delta.base) == ("online", base)
            and delta.sequence <= int(sequence)
        ):
            parts = [np.frombuffer(part, kind) for part, kind in (
                (delta.slots, "<u4"), (delta.weights, "<f4"), (delta.dense, "<f4"), (delta.calibration, "<f8")
            )]  # fmt: skip
            served.apply(*parts)
    rows = np.frombuffer(event.tokens, np.uint32).reshape(len(event.candidates), -1)
    own, theirs = at.alone(event), served.predict({"tokens": rows})["probability"].reshape(-1)
    assert own.tobytes() == event.scores
    assert event.beside["online"].outputs == {"probability": theirs.tobytes()}
    return np.float32(0.7) * own + np.float32(0.3) * theirs


def test_a_model_that_learns_beside_the_ranker_corrects_it_and_the_list_can_be_made_again(tmp_path):
    async def scene():
        clock = FakeClock(2e6)
        async with house(tmp_path, BESIDE, clock) as at:
            assert (at.at.model, at.at.also, at.at.ranker) == ("online", "ranker", "ranker")
            assert (await at.list(user="u")).missed == ["rank"], "nothing ranks yet"
            at.put("ranker", history=4)
            await at.serve.engine.refresh()
            alone = await at.list(user="u", explain=True)
            event = at.logged()[alone.id]
            assert alone.missed == ["online"] and event.beside == {"online": Beside()}, "there is no version of it yet"
            both = np.float32(0.7) * at.alone(event) + np.float32(0.3) * at.alone(event)
            np.testing.assert_array_equal(Slate.unpack(event.slate, event.candidates).scores, both)
            for user in ("u", "v", "w"):
                await at.likes(user, "i7", "i11")
            clock.advance(100.0)
            made = train(at.at)
            assert (made.model, made.version) == ("online", "1") and made.examples >= 60, "of what the ranker served"
            await at.serve.engine.refresh()
            role = Learn(at.at)
            learn(at, role, 3)
            versions = []
            rules = at.at.settings.recommend.placements["home"].rules("")
            for user in ("u", "v", "u", "w", "u"):
                await at.likes(user, "i7", "i3")
                listing = await at.list(user=user, explain=True)
                assert listing.missed == [] and listing.model == "ranker"
                event = at.logged()[listing.id]
                versions.append(event.beside["online"].version)
                scores = corrected(at, event)
                slate = Slate.unpack(event.slate, event.candidates)
                assert slate.scores.tobytes() == scores.tobytes(), "scored again, bit for bit"
                order = rules.order(slate, 100)
                assert order.places.astype(np.uint32).tobytes() == event.order
                assert [event.candidates[place] for place in order.places] == names(listing)
                said = listing.items[0].why["outputs"]
                place = event.candidates.index(listing.items[0].item)
                theirs = np.frombuffer(event.beside["online"].outputs["probability"], np.float32)
                assert said["online.probability"] == theirs[place] and said["probability"] == at.alone(event)[place]
                learn(at, role)
            assert len(set(versions)) == 5 and int(versions[-1].partition("@")[2]) > int(versions[0].partition("@")[2])
            assert status(at.at).watermark > 2e6 + 100, "the ranker's examples are the learner's too"
            liked, other = (theirs[event.candidates.index(item)] for item in ("i7", "i20"))
            assert liked > 1.5 * other, "and it has learnt from them"
            role.close()
            page = await at.list(id="pages", user="u", n=5)
        async with house(tmp_path, BESIDE, clock) as at:
            rest = await at.list(cursor=page.cursor, explain=True)
            assert {"probability", "online.probability"} == set(rest.items[0].why["outputs"]), "after a restart, too"

    run(scene)


def test_a_model_beside_the_ranker_that_fails_or_is_late_is_left_out_and_said(tmp_path, monkeypatch):
    async def scene():
        async with house(tmp_path, BESIDE) as at:
            at.put("ranker", history=4, weight=0.8)
            at.put("online", history=6, weight=0.3)
            await at.serve.engine.refresh()
            missed = lambda: sum(at.serve.meter.values("millstream_beside_missed_total", {"model": "online"}))  # noqa: E731
            scores = lambda event: Slate.unpack(event.slate, event.candidates).scores  # noqa: E731
            await at.likes("u", "i7", "i11", "i3")
            whole = await at.list(user="u")
            event = at.logged()[whole.id]
            own, theirs = at.alone(event), at.alone(event, "1", "online")
            assert (own != theirs).all() and whole.missed == [] and missed() == 0
            mixed = np.float32(0.7) * own + np.float32(0.3) * theirs
            np.testing.assert_array_equal(scores(event), mixed)
            instead = np.float32(0.7) * own + np.float32(0.3) * own

            await at.follow(traffic.promote(at.put("online", broken=True)), "online")
            failed = await at.list(user="u")
            assert failed.missed == ["online"] and missed() == 1
            np.testing.assert_array_equal(scores(at.logged()[failed.id]), instead)

            real = at.serve.lister.lists._scoring._submit
            never = lambda request: (  # noqa: E731
                asyncio.get_running_loop().create_future() if request.model == "online" else real(request)
            )
            monkeypatch.setattr(at.serve.lister.lists._scoring, "_submit", never)
            home = at.at.settings.recommend.placements["home"]
            monkeypatch.setitem(at.serve.lister.lists._placements, "home", msgspec.structs.replace(home, rank_ms=50.0))
            asked = asyncio.ensure_future(at.list(user="u"))
            late = await asked
            event = at.logged()[late.id]
            assert late.missed == ["online"] and missed() == 2 and event.version == "1@0"
            np.testing.assert_array_equal(scores(event), instead)
            assert event.beside == {"online": Beside()} and at.fallbacks()[1] == 0

    run(scene)


def test_a_model_beside_the_ranker_that_cannot_be_is_told():
    def settings(score=FORMULA, beside=("online",)):
        placements = {"home": {"score": score}}
        return msgspec.convert({"recommend": {"beside": list(beside), "placements": placements}}, Settings)

    assert settings().recommend.beside == ("online",)
    with pytest.raises(Misconfigured, match=r"home.score = .*no model 'other' in recommend.beside; there are: online"):
        settings("probability + other.probability")
    with pytest.raises(Misconfigured, match="there are: none"):
        settings(beside=())
    for wrong in (("two-words",), ("ranker",), ("online", "online")):
        with pytest.raises(Misconfigured, match="must be the name of another model than 'ranker'"):
            settings("probability", wrong)
    with pytest.raises(msgspec.ValidationError):
        settings("probability", "abcde")
