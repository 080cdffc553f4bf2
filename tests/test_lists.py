"""Lists, from the log to a page: real roles in one process under a fake clock."""

import asyncio
import contextlib
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.app.forget import forget
from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.app.training import train
from millstream.clock import FakeClock
from millstream.errors import BadInput, Conflict, NotFound, TooLarge
from millstream.flows.rerank import Slate
from millstream.stream import decode
from millstream.types import Ask, Merge, Outcome, Principal, Served

ANYBODY = Principal("test")
SETTINGS = {
    "http_port": 0,
    "recommend": {
        "explore": 0.3,
        "asks": {"cursor_wait_s": 0.0},
        "placements": {
            "home": {
                "n": 5,
                "list_max": 40,
                "paths": {
                    name: {"deadline_ms": 5000.0}
                    for name in ("popular", "newest", "similar", "tags", "given", "item_cf", "user_cf", "factors")
                },
                "filters": {"done": ["purchase"]},
                "rank_ms": 5000.0,
                "rerank": [{"step": "window", "by": "category", "most": 2, "window": 4}],
            },
            "plain": {"filters": {"stock": False}, "paths": {"newest": {"deadline_ms": 5000.0}}},
        },
    },
    "learn": {"model": "ranker"},
    "recall": {"every_s": 0.1, "least_events": 1, "factors": {"width": 4}},
    "join": {"tasks": {"like": {"window_s": 1.0}}},
    "ftrl": {"bits": 10, "l1": 0.0},
    "features": {"user": [{"name": "id"}], "item": [{"name": "id"}], "crosses": ["user.id*item.id"]},
}


def items(count: int, **more) -> list[dict]:
    return [
        {"id": f"i{n}", "category": f"c{n % 5}", "tags": [f"t{n % 3}"], "created": 1e6 + n, **more}
        for n in range(count)
    ]


class House:
    """An installation that makes lists."""

    def __init__(self, folder, clock):
        self.clock = clock
        self.at = Installation(folder, msgspec.convert(SETTINGS, Settings), clock)
        self.serve = Serve(self.at)
        self.number = 0

    async def tell(self, rows, topic="items"):
        await self.serve.door.upsert(topic, rows, ANYBODY)
        self.serve.poll()

    async def list(self, **wish):
        self.number += 1
        listing = await self.serve.door.call(Ask(**{"id": f"r{self.number}", **wish}), ANYBODY)
        self.serve.poll()
        return listing

    async def did(self, listing, item, *kinds):
        told = [Outcome(request=listing.id, item=item, kind=kind) for kind in ("impression", *kinds)]
        await self.serve.door.call(told, ANYBODY)
        self.clock.advance(1.0)
        self.serve.poll()

    def logged(self, ident: str) -> Served:
        events = (decode(record.value) for record in self.at.log.reader("served").records(0))
        return next(event for event in events if event.request == ident)

    async def index(self):
        """What the role `learn` builds, taken in."""
        learn = Learn(self.at)
        while learn.step():
            self.clock.advance(1.0)
        learn.close()
        number = self.serve.lister.following._number.value
        while self.serve.lister.following._number.value == number:
            self.clock.advance(10.0)
            self.serve.poll()
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def house(folder, clock=None):
    made = House(folder, clock or FakeClock(2e6))
    with made.at:
        await made.serve.engine.start()
        made.serve.lister.start()
        yield made
        made.serve.lister.stop()
        await made.serve.engine.stop()


def names(listing) -> list[str]:
    return [slot.item for slot in listing.items]


def run(scene):
    asyncio.run(scene())


def test_somebody_new_gets_what_is_new_and_pages_repeat_nothing(tmp_path):
    async def scene():
        async with house(tmp_path) as at:
            assert names(await at.list(user="u")) == [], "an empty catalogue makes an empty list"
            await at.tell(items(30))
            page = await at.list(user="nobody-knows", explain=True)
            assert len(page.items) == 5 and page.items[0].why["recall"] == ["newest"]
            seen, pages = [], 1
            while True:
                seen += names(page)
                if not page.cursor:
                    break
                page, pages = await at.list(cursor=page.cursor), pages + 1
            assert len(seen) == len(set(seen)) == 30 and pages == 6
            assert names(await at.list(id="r2", user="nobody-knows")) == seen[:5], "a retry gets the same list"
            with pytest.raises(Conflict):
                await at.list(id="r2", user="somebody else")

    run(scene)


def test_what_the_filters_forbid_never_comes(tmp_path):
    async def scene():
        async with house(tmp_path) as at:
            await at.tell([*items(20), {"id": "sold", "stock": 0}, {"id": "nl", "regions": ["NL"]}])
            await at.tell([{"id": "adult", "min_age": 18}, {"id": "off", "blocked": True}])
            everything = await at.list(user="u", n=40)
            assert len(everything.items) == 20
            assert {"nl"} == set(names(await at.list(user="u", n=40, context={"region": "NL"}))) - set(
                names(everything)
            )
            assert "adult" in names(await at.list(user="u", n=40, context={"age": 20}))
            assert "sold" in names(await at.list(user="u", n=40, placement="plain"))
            gone = names(everything)[:3]
            first = await at.list(user="reader", n=1)
            await at.did(everything, gone[2], "impression")
            await at.did(await at.list(user="reader", n=40), gone[1], "block")
            assert gone[1] not in names(await at.list(cursor=first.cursor, n=40)), "blocked between two pages"
            assert not {*gone} & {*names(await at.list(user="u", n=40, exclude=tuple(gone)))}
            await at.did(everything, gone[0], "block")
            await at.did(everything, gone[1], "purchase")
            left = names(await at.list(user="u", n=40))
            assert gone[0] not in left and gone[1] not in left and gone[2] in left
            assert gone[0] in names(await at.list(user="other", n=40))
            first = await at.list(user="u", n=1)
            await at.tell([{"id": one, "deleted": True} for one in left])
            assert names(await at.list(cursor=first.cursor, n=40)) == [], "deleted between two pages"

    run(scene)


def test_a_list_follows_what_the_user_does_and_says_why(tmp_path):
    async def scene():
        async with house(tmp_path) as at:
            await at.tell(items(30))
            for user in ("a", "b", "c", "d"):  # who likes one of these likes the other two
                listing = await at.list(user=user, n=40)
                for item in ("i1", "i2", "i6"):
                    await at.did(listing, item, "like")
            listing = await at.list(user="u", n=40)
            await at.did(listing, "i1", "like")
            listing = await at.list(user="u", n=40, explain=True)
            why = {slot.item: slot.why["recall"] for slot in listing.items}
            assert "tags" in why["i4"] and "similar" in why["i4"] and "popular" in why["i2"]
            assert "item_cf" not in why["i2"], "there is no index yet"
            await at.index()
            listing = await at.list(user="u", n=40, explain=True)
            why = {slot.item: slot.why["recall"] for slot in listing.items}
            assert {"item_cf", "user_cf", "factors"} <= {*why["i2"]} & {*why["i6"]}
            similar = await at.serve.door.call(Ask(id="s", similar="i1", n=3, explain=True), ANYBODY)
            assert "i1" not in names(similar) and {"i2", "i6"} <= {*names(similar)}
            with pytest.raises(NotFound, match="is not known"):
                await at.list(similar="nothing")
            await at.did(await at.list(user="u", n=40), "i4", "purchase")
            await at.did(await at.list(user="u", n=40), "i7", "block")
            alike = await at.list(user="u", similar="i1", n=40)
            assert {"i10", "i13"} <= {*names(alike)} and not {"i4", "i7", "i1"} & {*names(alike)}
            assert at.logged(alike.id).history[-1] == "i4", "what is logged is the user's history"
            assert not {"i0", "i3"} & {*names(alike)}, "what is only new or popular is not like it"

    run(scene)


def test_what_a_visitor_did_is_the_users_after_a_merge(tmp_path):
    async def scene():
        async with house(tmp_path) as at:
            await at.tell(items(20))
            listing = await at.list(visitor="v1", n=40)
            await at.did(listing, "i3", "purchase")
            assert "i3" in names(await at.list(user="u1", n=40))
            await at.serve.door.merge([Merge(visitor="v1", user="u1")], ANYBODY)
            at.serve.poll()
            assert "i3" not in names(await at.list(user="u1", n=40))
            await at.did(await at.list(visitor="v1", n=40), "i4", "purchase")
            assert "i4" not in names(await at.list(user="u1", n=40)), "what the visitor does later, too"

    run(scene)


async def ranked(at):
    """A version that ranks, which was learnt from one user's likes."""
    await at.tell(items(30))
    listing = await at.list(user="u", n=40)
    for item in ("i7", "i11", "i3"):
        await at.did(listing, item, "like")
    at.clock.advance(100.0)
    version = train(at.at).version
    await at.serve.engine.refresh()
    return version


def test_from_what_is_logged_the_list_is_made_again(tmp_path):
    async def scene():
        async with house(tmp_path) as at:
            version = await ranked(at)
            rules = at.at.settings.recommend.placements["home"].rules("")
            explored = 0
            for number in range(40):
                listing = await at.list(user="u", n=40, context={"hour": float(number)})
                event = at.logged(listing.id)
                assert (listing.model, listing.version) == ("ranker", f"{version}@0") and not listing.missed
                model = at.at.learner().load(at.at.repository.folder("ranker", version) / "model.ftrl")[0]
                rows = np.frombuffer(event.tokens, np.uint32).reshape(len(event.candidates), -1)
                scores = model.predict({"tokens": rows})["probability"].reshape(-1)
                assert np.array_equal(scores, np.frombuffer(event.scores, np.float32)), "ranked again"
                slate = Slate.unpack(event.slate, event.candidates)
                order = rules.order(slate, 40)
                assert order.places.astype(np.uint32).tobytes() == event.order and order.reasons == event.reasons
                assert [event.candidates[place] for place in order.places] == names(listing)
                chances = np.frombuffer(event.propensities, np.float32)
                assert chances.sum() == pytest.approx(1.0, abs=1e-5) and chances[order.places[0]] > 0
                explored += event.explored >= 0
                categories = [int(name[1:]) % 5 for name in names(listing)]
                if not listing.relaxed:
                    windows = [categories[n : n + 4] for n in range(len(categories) - 3)]
                    assert all(max(map(window.count, window)) <= 2 for window in windows)
            assert 2 < explored < 25, "chance has its say in three of ten"

    run(scene)


def test_a_ranker_that_cannot_answer_makes_a_worse_list_and_no_error(tmp_path, monkeypatch):
    async def scene():
        async with house(tmp_path) as at:
            before = await at.list(user="u")
            assert before.items == [] and before.missed == [], "there was nothing to rank"
            await at.tell(items(30))
            assert (await at.list(user="u")).missed == ["rank"], "there is no model yet"
            await ranked(at)
            whole = await at.list(user="u", n=40)
            real = at.serve.lister.lists._scoring._submit
            monkeypatch.setattr(
                at.serve.lister.lists._scoring, "_submit", lambda request: asyncio.get_running_loop().create_future()
            )
            fast = msgspec.structs.replace(at.at.settings.recommend.placements["home"], rank_ms=5.0)
            monkeypatch.setitem(at.serve.lister.lists._placements, "home", fast)
            late = await at.list(user="u", n=40)
            assert late.missed == ["rank"] and set(names(late)) == set(names(whole))
            event = at.logged(late.id)
            assert event.ranker == "recall" and event.version == "" and event.scores == b""
            monkeypatch.setattr(at.serve.lister.lists._scoring, "_submit", real)
            assert (await at.list(user="u")).missed == []

    run(scene)


def test_lists_outlive_the_process_that_made_them(tmp_path):
    async def scene():
        clock = FakeClock(2e6)
        async with house(tmp_path, clock) as at:
            await at.tell(items(30))
            page = await at.list(user="u")
            await at.did(page, names(page)[0], "purchase")
            rest = names(await at.list(cursor=page.cursor, n=40))
        for attempt in range(2):
            async with house(tmp_path, clock) as at:
                assert names(await at.list(cursor=page.cursor, n=40)) == rest
                assert names(await at.list(id=page.id, user="u")) == names(page), "a retry after a restart"
                fresh = names(await at.list(id=f"fresh-{attempt}", user="u", n=40))
                assert len(fresh) == 29 and names(page)[0] not in fresh
            for kept in (tmp_path / "state" / "live").iterdir():
                kept.unlink()  # and without what was kept

    run(scene)


def test_who_is_forgotten_is_forgotten_as_a_visitor_too(tmp_path):
    async def scene():
        async with house(tmp_path) as at:
            await at.tell(items(10))
            await at.tell([{"id": "kept"}, {"id": "user-gone"}], "users")
            for who in ({"visitor": "visitor-gone"}, {"user": "user-gone"}, {"user": "kept"}):
                await at.did(await at.list(**who, n=40), "i1", "like")
            await at.serve.door.merge([Merge(visitor="visitor-gone", user="user-gone")], ANYBODY)
            at.serve.poll()
        with Installation(tmp_path, msgspec.convert(SETTINGS, Settings), FakeClock(3e6)) as stopped:
            report = await forget(stopped, ["user-gone"])
        assert report.records["identities"] == 1 and report.records["served"] == 2 and report.records["users"] == 1
        left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        assert b"user-gone" not in left and b"visitor-gone" not in left and b"kept" in left
        async with house(tmp_path) as at:
            assert len(at.serve.lister.live.histories.of("kept").numbers) == 1
            assert not len(at.serve.lister.live.histories.of("user-gone").numbers)

    run(scene)


ODD = [
    ({"n": 101}, BadInput, "1 to 100"),
    ({"user": "u", "visitor": "v"}, BadInput, "not both"),
    ({"placement": "nowhere"}, NotFound, "home, plain"),
    ({"context": {"x": math.nan}}, BadInput, "no finite number"),
    ({"context": {"x": "y" * 1_000_000}}, TooLarge, "context has"),
    ({"exclude": ("x",) * 20_001}, TooLarge, "to exclude"),
    ({"candidates": ("x",) * 1001}, TooLarge, "candidates"),
    ({"candidates": ("",)}, BadInput, "1 to 512 bytes"),
    ({"cursor": "nonsense"}, BadInput, "cursor"),
    ({"cursor": "MDp6"}, NotFound, "not remembered"),
    ({"event_time": 9e9}, BadInput, "ahead of this server's clock"),
    ({"event_time": -1e300}, BadInput, "before 1970"),
    ({"event_time": math.inf}, BadInput, "ahead of this server's clock"),
]


@pytest.mark.parametrize(("wish", "error", "said"), ODD)
def test_a_mistake_is_told(tmp_path, wish, error, said):
    async def scene():
        async with house(tmp_path) as at:
            with pytest.raises(error, match=said):
                await at.list(**wish)

    run(scene)


def test_strange_wishes_are_no_mistakes(tmp_path):
    async def scene():
        async with house(tmp_path) as at:
            await at.tell(items(10, bid=float(-1)))
            await at.tell([{"id": "a", "bid": 0.0}, {"id": "b", "bid": "much"}, {"id": "c", "embedding": [1.0, 2.0]}])
            await at.tell([{"id": "d", "embedding": [1.0, 2.0, 3.0]}, {"id": "e", "embedding": "none"}])
            assert len(names(await at.list(n=40))) == 15, "nobody's list"
            many = tuple(f"x{n}" for n in range(10_000))
            assert len(names(await at.list(user="-1", n=40, exclude=many, candidates=("i1", "i1", "unknown")))) == 15
            assert names(await at.list(user="u", exclude=tuple(f"i{n}" for n in range(10)) + tuple("abcde"))) == []
            with pytest.raises(BadInput, match="no id"):
                await at.tell([{"id": ""}])
            with pytest.raises(BadInput, match="finite"):
                await at.tell([{"id": "x", "embedding": [math.nan]}])

    run(scene)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_no_list_ever_has_what_is_forbidden(tmp_path_factory, data):
    kinds = st.fixed_dictionaries(
        {},
        optional={
            "stock": st.integers(0, 1),
            "regions": st.lists(st.sampled_from(["NL", "DE"]), max_size=2),
            "min_age": st.sampled_from([0, 12, 18]),
            "blocked": st.booleans(),
            "deleted": st.booleans(),
        },
    )

    async def scene():
        async with house(tmp_path_factory.mktemp("lists")) as at:
            rows = [{**row, **data.draw(kinds)} for row in items(25)]
            await at.tell(rows)
            exclude = tuple(data.draw(st.lists(st.sampled_from([row["id"] for row in rows]), max_size=5)))
            region, age = data.draw(st.sampled_from(["", "NL", "FR"])), data.draw(st.sampled_from([None, 10, 15, 40]))
            await at.tell([{"id": "u", "age": age, "region": region}], "users")
            got = names(await at.list(user="u", n=40, exclude=exclude, candidates=tuple(row["id"] for row in rows)))
            wanted = {
                row["id"]
                for row in rows
                if not row.get("deleted") and not row.get("blocked") and row.get("stock", 1)
                and (not row.get("regions") or region in row["regions"])
                and (not row.get("min_age") or (age or 0) >= row["min_age"]) and row["id"] not in exclude
            }  # fmt: skip
            assert set(got) == wanted and len(got) == len(wanted)

    run(scene)
