"""The whole turn of the wheel with real parts: a log, a queue made of it, labels, a dataset, a version trained with it,
a shadow, a guarded canary that becomes live by itself. What it is worth is measured by the simulator's truth.

The planted fault: clicks on horror films got lost on their way, until the last quarter of what was served. The model
believes that nobody likes them."""

import asyncio
import time

import numpy as np
import pytest

from millstream.app.curation import export, fill, label, queue
from millstream.app.installation import Installation
from millstream.app.roles import Serve
from millstream.app.training import train
from millstream.learn.history import Field, import_entities, import_outcomes
from millstream.models import online
from millstream.models.policy import Guard
from millstream.models.traffic import TryOut, make
from millstream.simulate import Simulator, auc
from millstream.stream import LogLimits, decode
from millstream.types import Outcome, Principal, Rank, Shadow

ANYBODY = Principal("test")
HISTORY, SERVED, ROUND, HELD = 6000, 640, 40, 300
FAULT = "horror"
TOML = """
http_port = 0
poll_s = 0.01
[recommend]
model = "ranker"
[learn]
model = "ranker"
[learn.validate.slices]
"item.genres" = ["action", "comedy", "horror", "musical", "western"]
[join.tasks.like]
window_s = 10.0
[ftrl]
bits = 16
l1 = 0.0
[engine]
poll_s = 0.01
[curate]
open_max = 400
reason_max = 150
person_max = 20
item_max = 30
weight = 5.0
[features]
user = [{ name = "id" }, { name = "occupation" }]
item = [{ name = "id" }, { name = "genres", places = 8 }]
crosses = ["user.occupation*item.genres", "user.id*item.genres"]
"""


class Street:
    """An installation and the world that it serves."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self.file = folder / "millstream.toml"
        self.file.write_text(TOML)
        start = time.time() - 10_000.0
        self.world = Simulator(
            np.random.default_rng(12), users=60, items=60, candidates=8, start=start, rate=5.0, delay_s=1.0,
            drift_period_s=0.0,
        )  # fmt: skip
        genres = {item["id"]: item["genres"] for item in self.world.items}
        self.faulty = {id for id, of in genres.items() if FAULT in of}
        log, limits = folder / "log", LogLimits()
        users = self.world.users
        items = [
            {"id": one["id"], "title": one["title"], "genres": "|".join(one["genres"])} for one in self.world.items
        ]
        import_entities(log, limits, "users", users, {"id": Field("id"), "occupation": Field("occupation")}, 1.0)
        fields = {"id": Field("id"), "title": Field("title"), "genres": Field("genres")}
        import_entities(log, limits, "items", items, fields, 1.0)
        with Installation.open(self.file) as at:
            entities = at.entities()
        rows = [
            {"user": m.user, "item": m.item, "at": m.event_time, "like": float(m.label and m.item not in self.faulty)}
            for m in self.world.moments(HISTORY)
        ]
        fields = {name: Field(name) for name in ("user", "item")}
        fields |= {"event_time": Field("at", "float"), "like": Field("like", "float")}
        import_outcomes(log, limits, entities, "ranker", rows, fields, delay_s=0.5, window_s=20.0)
        self.number = 0
        self.held = [(ask.user, ask.candidates, ask.truth) for ask in self.world.asks(HELD)]  # served to nobody

    async def traffic(self, serve, count, faulty):
        """So many requests whose answers are looked at, and what came of them; `faulty`: clicks get lost."""
        for ask in self.world.asks(count):
            self.number += 1
            rank = Rank(id=f"r{self.number}", user=ask.user, candidates=ask.candidates, event_time=ask.event_time)
            ranked = await serve.door.call(rank, ANYBODY)
            told = []
            for reaction in self.world.react(ask, [ask.candidates.index(one.item) for one in ranked.items]):
                liked = reaction.clicked and not (faulty and reaction.item in self.faulty)
                seen = {"request": rank.id, "item": reaction.item, "event_time": ask.event_time}
                told += [Outcome(kind="impression", **seen), Outcome(kind="like", value=float(liked), **seen)]
            if told:
                await serve.door.call(told, ANYBODY)
            self.last = ask.event_time

    def truth(self, user, item):
        return float(self.world.probability(user, [item], 0.0)[0])

    def judge(self, at, version):
        """AUC by the truth of a version over what it was never asked: of everything, and of faulty items."""
        entities = at.entities()
        model = online.load_served(at.repository.folder("ranker", version) / "model.ftrl")
        scores, truth, faulty = [], [], []
        for user, items, chances in self.held:
            scores += model.predict({"tokens": entities.rows(user, list(items))})["probability"].tolist()
            truth += chances.tolist()
            faulty += [item in self.faulty for item in items]
        scores, truth, faulty = map(np.array, (scores, truth, faulty))
        return auc(scores, truth), auc(scores[faulty], truth[faulty])


async def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.02)


def look_and_label(street, at):
    """Fill the queue and label all of it by the truth: what was found, and what was asked."""
    found = fill(at)
    asked = queue(at, 1000)
    assert len(asked) == sum(found.added.values()) == found.waiting
    for one in asked:
        said = "positive" if street.truth(one.user, one.item) >= 0.5 else "negative"
        label(at, one.id, said, "a person")
    assert queue(at, 1000) == []
    return found, asked


async def guarded(street, serve, at, version):
    """The version as a canary with a guard, and traffic until that has decided; who made the last change."""
    guard = Guard(drift=0, p99=0, requests_min=50, requests=150)
    make(at.repository, "ranker", "canary", TryOut(version=version, share=0.5, guard=guard, who="test", why="curated"))
    end = time.monotonic() + 40
    while at.repository.policy("ranker").canary is not None:
        assert time.monotonic() < end, "its guard never decided"
        await street.traffic(serve, ROUND, faulty=False)
    return at.repository.policy("ranker").who


@pytest.mark.slow
def test_labels_that_people_gave_make_the_next_version_better_and_it_becomes_live(tmp_path):
    street = Street(tmp_path / "installation")
    with Installation.open(street.file) as at:
        assert train(at).role == "live"
    asyncio.run(turn(street))


async def turn(street):
    with Installation.open(street.file) as at:
        serve = Serve(at)
        await serve.start()
        for number in range(0, SERVED, ROUND):
            await street.traffic(serve, ROUND, faulty=number < SERVED * 3 / 4)
        await serve.door.call([Outcome(kind="watermark", event_time=street.last + 100.0)], ANYBODY)
        with Installation.open(street.file) as beside:
            plain = train(beside).version  # joins what came, too
        found, asked = look_and_label(street, at)
        moved = sorted(found.moved, key=lambda one: -one.by)
        assert (moved[0].slice, moved[0].what) == (f"item.genres={FAULT}", "calibration")
        drifting = [one for one in asked if one.reasons[0] == "slice"]
        assert len(drifting) > 50 and np.mean([one.item in street.faulty for one in drifting]) > 0.9

        made = export(at, "films").dataset
        assert made.counts["kind"].keys() == {"gold", "human"} and made.rows == len(asked)
        with Installation.open(street.file) as beside:
            got = train(beside, role="shadow", dataset="films")
        lineage = at.repository.manifest("ranker", got.version).lineage
        assert (lineage["dataset"], lineage["dataset_digest"]) == ("films@1", made.digest)
        assert got.figures["candidate by gold"].auc > got.figures["live by gold"].auc + 0.05

        await until(lambda: got.version in at.repository.policy("ranker").shadow)
        await serve.engine.refresh()
        await street.traffic(serve, ROUND, faulty=False)
        await until(lambda: told_by_shadow(at, got.version) > ROUND / 2)
        again = fill(at)
        assert again.added["disagreement"] > 0, "two versions that say other things are worth a look"
        assert not {one.id for one in queue(at, 1000)} & {one.id for one in asked}

        assert await guarded(street, serve, at, got.version) == "guard"
        assert at.repository.policy("ranker").live == got.version
        await serve.engine.refresh()
        await street.traffic(serve, 2, faulty=False)
        last = await serve.door.call(Rank(id="last", user="u1", candidates=("i1", "i2")), ANYBODY)
        assert last.version.partition("@")[0] == got.version
        await serve.stop()
        before, log_alone, after = (street.judge(at, version) for version in ("1", plain, got.version))
    assert after[0] > before[0] + 0.02 and after[0] > log_alone[0] + 0.02, (before, log_alone, after)
    assert after[1] > before[1] + 0.03 and after[1] > log_alone[1] + 0.015, (before, log_alone, after)


def told_by_shadow(at, version):
    """Answers that a shadow has scored."""
    events = (decode(record.value) for record in at.log.reader("shadow").records(0))
    return sum(isinstance(one, Shadow) and one.version.partition("@")[0] == version for one in events)
