"""Towers, from a version to a page: real roles in one process under a fake clock, and towers that a person could work
out (torch's own are in tests/learn/test_towers.py)."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import msgspec
import numpy as np

from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.clock import FakeClock
from millstream.recall.index import Indexes
from millstream.types import Ask, Outcome, Principal

sys.path.insert(0, str(Path(__file__).parent / "recall"))
from towers_house import HISTORY, put, vectors

ANYBODY = Principal("test")
SETTINGS = {
    "http_port": 0,
    "recommend": {
        "placements": {
            "home": {"n": 40, "list_max": 40, "paths": {"towers": {"deadline_ms": 5000.0, "quota": 3}}},
            "all": {"n": 40, "list_max": 40},
        }
    },
    "recall": {"every_s": 0.1, "least_events": 1, "factors": {"width": 2}},
    "features": {"user": [{"name": "id"}], "item": [{"name": "id"}, {"name": "category"}]},
}


class House:
    """An installation that makes lists, with both roles."""

    def __init__(self, folder, settings=SETTINGS) -> None:
        self.clock, self.folder, self.asked = FakeClock(2e6), folder, 0
        self.at = Installation(folder / "installation", msgspec.convert(settings, Settings), self.clock)
        self.serve, self.learn = Serve(self.at), Learn(self.at)

    def version(self, number: int, features: str = "") -> str:
        return put(self.at.repository, self.folder / "files", number, features or self.at.definition.hash, 1, 2)

    async def tell(self, *names: str, **more) -> None:
        await self.serve.door.upsert("items", [{"id": name, **more} for name in names], ANYBODY)
        self.serve.poll()

    async def found(self, user: str = "u", **wish) -> list[str]:
        """What the path `towers` finds for somebody, best first."""
        self.asked += 1
        wish = {"placement": "home", **wish}
        listing = await self.serve.door.call(Ask(id=f"r{self.asked}", user=user, explain=True, **wish), ANYBODY)
        self.serve.poll()
        rows = [one for one in listing.items if "towers" in one.why["recall"]]
        return [one.item for one in sorted(rows, key=lambda one: -one.why["recall_score"])]

    async def like(self, item: str, user: str = "u") -> None:
        self.asked += 1
        listing = await self.serve.door.call(Ask(id=f"r{self.asked}", user=user, placement="all"), ANYBODY)
        await self.serve.door.call([Outcome(request=listing.id, item=item, kind="like")], ANYBODY)
        self.clock.advance(1.0)
        self.serve.poll()

    def build(self) -> None:
        """What the role `learn` does until there is nothing to do."""
        for _ in range(6):
            self.clock.advance(3.0)
            while self.learn.step():
                self.clock.advance(1.0)
            for builder in self.learn._builders:
                builder.wait()

    async def follow(self) -> None:
        """Servers look for an index, and for what came since."""
        for _ in range(12):
            self.clock.advance(3.0)
            self.serve.poll()
            await self.serve.lister.following.looked()
            if (adding := self.serve.lister.following.shelves._adding) is not None:
                await adding

    def best(self, version: int, items: list[str], user: str, liked: list[str]) -> list[str]:
        """The three with the greatest products, in numpy: tokens are the installation's, all else is by hand."""
        entities = self.serve.known.entities
        asked = vectors(version, entities.tokens("user", [user]), entities.history(liked, HISTORY))[0]
        scores = vectors(version, entities.tokens("item", items)) @ asked
        return [items[at] for at in np.argsort(-scores)[:3]]


def run(folder, scene, settings=SETTINGS) -> None:
    async def whole() -> None:
        made = House(folder, settings)
        with made.at:
            await made.serve.engine.start()
            made.serve.lister.start()
            try:
                await scene(made)
            finally:
                made.learn.close()
                made.serve.lister.stop()
                await made.serve.engine.stop()

    asyncio.run(whole())


ITEMS = [f"i{n}" for n in range(30)]


def test_what_nobody_liked_is_found_by_its_vector_and_what_is_born_later_too(tmp_path):
    async def scene(at: House) -> None:
        at.version(1)
        assert await at.found() == [], "an empty catalogue, and no index"
        await at.tell(*ITEMS, category="c")
        at.build()
        await at.follow()
        assert await at.found() == at.best(1, ITEMS, "u", [])
        await at.like("i4")
        assert await at.found() == at.best(1, ITEMS, "u", ["i4"]), "what was liked counts at once"
        assert await at.found("nobody knows") == at.best(1, ITEMS, "nobody knows", [])
        gone = at.best(1, ITEMS, "u", ["i4"])[0]
        assert gone not in await at.found(exclude=(gone,))
        later = [f"new{n}" for n in range(40)]
        for name in later:
            await at.tell(name, category="c")
        await at.follow()
        index = at.serve.lister.following._attached.index.number
        expected = at.best(1, [*ITEMS, *later], "u", ["i4"])
        assert await at.found() == expected and any(one.startswith("new") for one in expected)
        await at.tell(expected[0], category="another")
        await at.follow()
        assert await at.found() == at.best(1, [*ITEMS, *later], "u", ["i4"]), "told again, it has another vector"
        at.build()
        await at.follow()
        following = at.serve.lister.following
        assert following._attached.index.number > index, "the next index has them"
        assert following._attached.shelves["towers"].ann.born == 0
        assert await at.found() == at.best(1, [*ITEMS, *later], "u", ["i4"])
        similar = await at.found(similar="i4")
        assert similar == [one for one in at.best(1, [*ITEMS, *later], "u", ["i4"]) if one != "i4"] or len(similar) == 3

    run(tmp_path, scene)


def test_vectors_of_a_version_are_asked_by_that_version_alone(tmp_path):
    async def scene(at: House) -> None:
        at.version(1)
        await at.tell(*ITEMS, category="c")
        at.build()
        at.version(2)
        await at.follow()
        first, second = (at.best(number, ITEMS, "u", []) for number in (1, 2))
        assert len({*first} & {*second}) < 3, "whoever mixes them would see it"
        assert await at.found() == first, "live is another by now"
        await at.tell("born", category="c")
        await at.follow()
        assert await at.found() == at.best(1, [*ITEMS, "born"], "u", []), "of the version that the index is of"
        at.build()
        assert await at.found() == at.best(1, [*ITEMS, "born"], "u", []), "until it is attached"
        await at.follow()
        assert at.serve.lister.following._attached.shelves["towers"].version == "2"
        assert await at.found() == at.best(2, [*ITEMS, "born"], "u", [])
        at.at.repository.change_policy("towers", lambda now: type(now)(live="1"), who="a person", why="a roll back")
        at.build()
        await at.follow()
        assert await at.found() == at.best(1, [*ITEMS, "born"], "u", [])

    run(tmp_path, scene)


def test_towers_that_cannot_be_had_cost_their_path_alone(tmp_path, caplog):
    async def scene(at: House) -> None:
        await at.tell(*ITEMS, category="c")
        at.build()
        await at.follow()
        assert await at.found() == [] and Indexes(at.at.indexes).newest().about.shelves == {}
        version = at.version(1)
        at.build()
        assert Indexes(at.at.indexes).newest().about.shelves == {"towers": version}
        (at.at.folder / "models" / "towers" / version / "items.onnx").unlink()
        await at.follow()
        assert await at.found() == [] and len(await everything(at)) == 30
        assert "goes on without towers" in caplog.text
        at.version(1)
        at.build()
        await at.follow()
        assert await at.found() == at.best(1, ITEMS, "u", [])
        at.version(1, features="0123456789abcdef")
        at.build()
        assert "the next index has no vectors by towers" in caplog.text
        await at.follow()
        assert await at.found() == [] and len(await everything(at)) == 30

    async def everything(at: House):
        at.asked += 1
        return (await at.serve.door.call(Ask(id=f"r{at.asked}", user="u", placement="all"), ANYBODY)).items

    run(tmp_path, scene)


def test_a_user_whose_attributes_no_row_can_hold_is_as_one_without(tmp_path):
    async def scene(at: House) -> None:
        at.version(1)
        await at.tell(*ITEMS, category="c")
        at.build()
        await at.follow()
        live = at.serve.lister.live
        with contextlib.suppress(KeyError):
            live._attributes.pop("u")
        live._attributes["u"] = (0.0, msgspec.msgpack.encode({"id": ["a", "b"], "other": {"deep": [1]}}))
        assert await at.found() == at.best(1, ITEMS, "u", [])

    run(tmp_path, scene)


def test_without_rows_or_without_a_name_there_is_no_such_path(tmp_path):
    bare = {"recommend": {"placements": {"all": {}}}, "http_port": 0}
    unnamed = {**SETTINGS, **bare, "recall": {"towers": ""}}
    for number, settings in enumerate((bare, unnamed)):

        async def scene(at: House) -> None:
            assert "towers" not in at.serve.lister.world.paths

        run(tmp_path / str(number), scene, settings)
