"""Tenants, from the log to a page: real roles in one process under a fake clock. What one tenant gets is what it would
get if it were alone, whatever the others say."""

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from millstream.app.forget import forget
from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve, import_history
from millstream.app.tenants import Tenants
from millstream.clock import FakeClock
from millstream.errors import BadInput, Conflict, Forbidden, Misconfigured, NotFound
from millstream.guard import auth
from millstream.guard.pii import pseudonym, visitor
from millstream.guard.tenants import inside, outside, person, proper, tenant_of
from millstream.meter import Meter
from millstream.stream import decode
from millstream.types import Ask, Merge, Outcome, Output, Principal, Rank, Request, TenantOutcome

ANYBODY = Principal("test")
PATHS = ("popular", "newest", "similar", "tags", "given", "item_cf", "user_cf", "factors")
HOME = {
    "n": 4,
    "list_max": 30,
    "paths": {name: {"deadline_ms": 5000.0} for name in PATHS},
    "filters": {"done": ["purchase"]},
    "rank_ms": 5000.0,
    "rerank": [
        {"step": "blocks", "items": ["blocked", "a/b"]},
        {"step": "window", "by": "category", "most": 2, "window": 4},
        {"step": "pins", "items": {"pinned": 1}},
        {"step": "boost", "value": "c1", "factor": 2.0},
    ],
}
TOLD = {
    "http_port": 0,
    "recommend": {
        "asks": {"cursor_wait_s": 0.0},
        "placements": {"home": HOME},
        "tenants": {"acme": {}, "zeta": {}, "mail-only": {"placements": {"mail": {"n": 2}}}},
    },
    "recall": {"every_s": 0.1, "least_events": 1, "factors": {"width": 4}},
    "join": {"tasks": {"like": {"window_s": 1.0}}},
    "features": {"user": [{"name": "id"}], "item": [{"name": "id"}]},
}


class Shop:
    """An installation with tenants."""

    def __init__(self, folder, clock, told=TOLD):
        self.clock = clock
        self.at = Installation(folder, msgspec.convert(told, Settings), clock)
        self.serve = Serve(self.at)
        self.learn = Learn(self.at)

    async def do(self, act, principal=ANYBODY):
        """One call of the Door, and what it answered; a mistake is an answer, too."""
        door = self.serve.door
        if isinstance(act, tuple):
            topic, rows, tenant = act
            told = (
                door.merge(rows, principal, tenant) if topic == "merge" else door.upsert(topic, rows, principal, tenant)
            )
        else:
            told = door.call(act, principal)
        answer = await told
        self.serve.poll()
        return answer

    async def index(self):
        """What the role `learn` builds, taken in."""
        while self.learn.step():
            pass
        for builder in self.learn._builders:
            builder.wait()
        for _ in range(2):  # a look that began before the index was there says nothing of it
            self.clock.advance(5.0)
            for lister in self.serve.listers.values():
                lister.following.poll()
                await lister.following.looked()


@contextlib.asynccontextmanager
async def shop(folder, clock=None, told=TOLD):
    made = Shop(folder, clock or FakeClock(2e6), told)
    with made.at:
        await made.serve.engine.start()
        for lister in made.serve.listers.values():
            lister.start()
        yield made
        for lister in made.serve.listers.values():
            lister.stop()
        made.learn.close()
        await made.serve.engine.stop()


def names(listing) -> list[str]:
    return [slot.item for slot in listing.items]


def ask(ident, tenant, **more) -> Ask:
    return Ask(id=ident, tenant=tenant, **more)


def items(count, **more):
    return [
        {"id": f"i{n}", "category": f"c{n % 3}", "tags": [f"t{n % 2}"], "created": 1e6 + n, **more}
        for n in range(count)
    ]


def run(scene):
    asyncio.run(scene())


# -- names ------------------------------------------------------------------------------------------------------------

EVIL = [
    "a/b",
    "..",
    "/",
    "acme/i1",
    "zeta/i1",
    "acme",
    "i1",
    "visitor:v",
    "\u0000",
    "[ID#0123456789ab]",
    "555-123-4567",
    "é\u202e",
]
TEXTS = st.sampled_from(EVIL) | st.text(min_size=1, max_size=20)


@given(TEXTS, TEXTS, st.sampled_from(["acme", "acme-2", "a", "tel"]), st.sampled_from(["zeta", "acme", "ac"]))
def test_two_names_are_one_only_of_one_tenant_and_if_they_were(one, other, mine, theirs):
    assert proper(mine) and proper(theirs)
    assert (inside(mine, one) == inside(theirs, other)) == ((mine, one) == (theirs, other))
    assert outside(mine, inside(mine, one)) == one and tenant_of(inside(mine, one)) == mine
    whole = person(mine, pseudonym(one))
    assert pseudonym(whole) == whole and tenant_of(whole) == mine, "the log's gate leaves it, and it says whose it is"
    assert (whole == person(theirs, pseudonym(other))) == (mine == theirs and pseudonym(one) == pseudonym(other))
    assert person(mine, visitor(one)) != whole or one.startswith("visitor:")


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "..", "1a", "a" * 64, "tel-020-555-1234", "a b"])
def test_what_no_tenant_is_called(name):
    assert not proper(name)
    if name:
        with pytest.raises(Misconfigured, match="small letters"):
            msgspec.convert({"recommend": {"tenants": {name: {}}}}, Settings)


# -- the law ----------------------------------------------------------------------------------------------------------

IDS = st.sampled_from(["i1", "i2", "i3", "acme/i1", "zeta/i1", "a/b", "..", "pinned", "blocked", "é"])
PEOPLE = st.sampled_from(["u1", "u2", "zeta/u1", "acme/u1", "../u1", "bob@example.com", "+44 20 7946 0958"])
REQUESTS = st.sampled_from(["r1", "r2", "r5", "r6", "acme/r1", "zeta/r1", "zeta/r2"])
KINDS = st.sampled_from(["impression", "like", "purchase", "block", "click"])
ROW = st.fixed_dictionaries(
    {
        "id": IDS,
        "category": st.sampled_from(["c1", "c2"]),
        "tags": st.lists(st.sampled_from(["t1", "t2", "t3"]), max_size=2),
    },
    optional={"stock": st.integers(0, 1), "deleted": st.booleans(), "created": st.integers(0, 2_000_000),
              "embedding": st.lists(st.sampled_from([0.5, -1.0, 2.0]), min_size=2, max_size=3)},
)  # fmt: skip
WISH = st.fixed_dictionaries(
    {},
    optional={"exclude": st.tuples(IDS), "candidates": st.tuples(IDS, IDS), "similar": IDS, "n": st.integers(1, 30),
              "explain": st.booleans()},
)  # fmt: skip


@st.composite
def acts(draw, tenant):
    """Something that a tenant does. The same id may name another request: Conflict, for all alike."""
    kind = draw(st.sampled_from(["items", "users", "merge", "outcomes", "outcomes", "ask", "ask", "rank", "index"]))
    if kind == "items":
        return ("items", draw(st.lists(ROW, min_size=1, max_size=6)), tenant)
    if kind == "users":
        return ("users", [{"id": draw(PEOPLE), "age": 30}], tenant)
    if kind == "merge":
        return ("merge", [Merge(visitor=draw(PEOPLE), user=draw(PEOPLE))], tenant)
    if kind == "outcomes":
        said = {
            "request": draw(REQUESTS),
            "item": draw(IDS),
            "kind": draw(KINDS),
            "id": draw(st.sampled_from(["", "o1"])),
        }
        return [TenantOutcome(**said, tenant=tenant)]
    if kind == "ask":
        who = draw(st.sampled_from(["user", "visitor"]))
        return ask(draw(REQUESTS), tenant, **{who: draw(PEOPLE)}, **draw(WISH))
    if kind == "rank":
        return Rank(id=draw(REQUESTS), user=draw(PEOPLE), candidates=(draw(IDS),), tenant=tenant)
    return None


TRAFFIC = st.lists(
    st.sampled_from(["acme", "zeta"]).flatmap(lambda of: st.tuples(st.just(of), acts(of))), min_size=12, max_size=30
)


async def lived(folder, traffic, whose):
    """What the tenants `whose` got in a life where the others said nothing; time passes all the same."""
    answers = {name: [] for name in whose}
    async with shop(folder) as at:
        at.learn.step()
        for number, (tenant, act) in enumerate([*BEFORE, *traffic, ("", None), *LAST]):
            at.clock.advance(7.0)
            if act is None:
                await at.index()
            elif tenant in whose:
                act = msgspec.structs.replace(act) if isinstance(act, msgspec.Struct) else act  # a flow may write in it
                try:
                    answer = await at.do(act)
                    answers[tenant].append((number, msgspec.to_builtins(answer)))
                except Exception as error:
                    answers[tenant].append((number, type(error).__name__, str(error)))
            else:
                at.serve.poll()
        for tenant, of in at.serve.listers.items():
            if tenant in whose and (index := of.following._attached) is not None:
                rows = [name for _, several in index.index.names() for name in several]
                assert {tenant_of(name) for name in rows} == {tenant}
                answers[tenant].append((rows, index.index.contents.model.items.tolist()))
            known = [of.world.catalogue.name(number) for number in range(of.world.catalogue.count)]
            assert all(tenant_of(name) == tenant for name in [*known, *of.live.users()])
    return answers


LIKED = {"acme": ("i1", "i2"), "zeta": ("i2", "i3")}
BEFORE = [
    *((tenant, ("items", items(4), tenant)) for tenant in LIKED),
    *((tenant, ask(f"r{n}", tenant, user=f"u{n}", n=30)) for n in (1, 2, 3) for tenant in LIKED),
    *(
        (tenant, [TenantOutcome(request=f"r{n}", item=item, kind="like", tenant=tenant) for item in LIKED[tenant]])
        for n in (1, 2, 3)
        for tenant in LIKED
    ),
    ("", None),
    *((tenant, ask("shown", tenant, user="u1", n=30, explain=True)) for tenant in LIKED),
]
LAST = [
    (tenant, ask(f"last-{number}", tenant, user=user, n=30, explain=True))
    for tenant in ("acme", "zeta")
    for number, user in enumerate(("u1", "u2", "zeta/u1"))
]


def apart(folder, traffic):
    together = asyncio.run(lived(folder / "both", traffic, ("acme", "zeta")))
    for tenant in LIKED:
        shown = next(answer for _, answer in together[tenant] if isinstance(answer, dict) and answer["id"] == "shown")
        found = {path for one in shown["items"] for path in one["why"]["recall"]}
        assert {"popular", "newest", "item_cf", "factors"} <= found, "there is something to keep apart"
        alone = asyncio.run(lived(folder / tenant, traffic, (tenant,)))
        assert together[tenant] == alone[tenant]


NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # a life takes a second


@settings(max_examples=2, deadline=None, phases=NO_SHRINKING)
@given(TRAFFIC)
def test_a_tenant_gets_what_it_would_get_alone(tmp_path_factory, traffic):
    apart(tmp_path_factory.mktemp("tenants"), traffic)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
@given(TRAFFIC)
def test_a_tenant_gets_what_it_would_get_alone_whatever_is_said(tmp_path_factory, traffic):
    apart(tmp_path_factory.mktemp("tenants"), traffic)


# -- what is apart, one by one -----------------------------------------------------------------------------------------


def test_each_tenant_has_its_own_items_people_requests_and_rules(tmp_path):
    async def scene():
        async with shop(tmp_path) as at:
            await at.do(("items", [*items(6), {"id": "pinned"}, {"id": "blocked"}], "acme"))
            await at.do(("items", items(3), "zeta"))
            mine = await at.do(ask("r1", "acme", user="u", n=30))
            assert mine.id == "r1" and names(mine)[0] == "pinned" and set(names(mine)) == {*names_of(6), "pinned"}
            assert set(names(await at.do(ask("r1", "zeta", user="u", n=30)))) == set(names_of(3)), (
                "one id, two requests"
            )
            await at.do(
                [TenantOutcome(request="r1", item="i1", kind=kind, tenant="zeta") for kind in ("click", "purchase")]
            )
            assert "i1" in names(await at.do(ask("r2", "acme", user="u", n=30))), "it was zeta's u, and zeta's i1"
            assert "i1" not in names(await at.do(ask("r2", "zeta", user="u", n=30)))
            for stolen in ("acme/r1", "r3"):
                await at.do([TenantOutcome(request=stolen, item="i2", kind="purchase", tenant="zeta")])
            await at.do(ask("r3", "acme", user="u", n=30))
            assert "i2" in names(await at.do(ask("r4", "acme", user="u", n=30))), (
                "another's request: it counts for nobody"
            )
            page = await at.do(ask("r5", "acme", user="u", n=2))
            assert await at.do(ask("r5", "acme", user="u", n=2)) == page, "asked again"
            rest = await at.do(ask("r6", "acme", cursor=page.cursor, n=30))
            assert not {*names(page)} & {*names(rest)} and rest.id == "r5"
            with pytest.raises(NotFound, match="not remembered"):
                await at.do(ask("r6", "zeta", cursor=page.cursor))
            with pytest.raises(Conflict):
                await at.do(ask("r5", "acme", user="somebody else", n=2))
            with pytest.raises(NotFound, match="item 'i5' is not known"):
                await at.do(ask("r7", "zeta", similar="i5"))
            assert len(names(await at.do(ask("r8", "mail-only", user="u")))) == 0
            with pytest.raises(NotFound, match="there are: mail"):
                await at.do(ask("r9", "mail-only", placement="home"))

    run(scene)


def names_of(count):
    return [f"i{n}" for n in range(count)]


def test_what_a_tenant_likes_is_found_for_it_and_said_in_the_log_under_its_name(tmp_path):
    async def scene():
        async with shop(tmp_path) as at:
            for _, act in BEFORE:
                await (at.index() if act is None else at.do(act))
            for tenant, other in (("acme", "i2"), ("zeta", "i3")):
                made = await at.do(ask("new", tenant, visitor="v", n=30, explain=True))
                popular = {one.item for one in made.items if "popular" in one.why["recall"]}
                assert popular == {*LIKED[tenant]}
                liked = await at.do(ask("like", tenant, user="u1", n=30, explain=True))
                assert {"item_cf", "factors"} & {path for one in liked.items for path in one.why["recall"]}
                alike = await at.do(ask("alike", tenant, similar=LIKED[tenant][0], n=30, explain=True))
                assert "item_cf" in next(one.why["recall"] for one in alike.items if one.item == other)
            events = [decode(record.value) for record in at.at.log.reader("served").records(0)]
            assert {tenant_of(event.request) for event in events} == {"acme", "zeta"}
            for event in events:
                assert {tenant_of(one) for one in (*event.candidates, event.user or event.request)} == {
                    tenant_of(event.request)
                }
            assert {event.user for event in events} >= {"acme/visitor:v", "zeta/u1"}

    run(scene)


def test_lists_outlive_the_process_that_made_them(tmp_path):
    async def scene():
        clock = FakeClock(2e6)
        async with shop(tmp_path, clock) as at:
            for _, act in BEFORE:
                await (at.index() if act is None else at.do(act))
            page = await at.do(ask("p", "zeta", user="u9", n=1))
            rest = names(await at.do(ask("q", "zeta", cursor=page.cursor, n=30)))
        for _ in range(2):
            async with shop(tmp_path, clock) as at:
                assert names(await at.do(ask("q", "zeta", cursor=page.cursor, n=30))) == rest
                assert at.serve.listers["zeta"].world.history("zeta/u1") == ["zeta/i2", "zeta/i3"]
                assert at.serve._history("acme/u1") == ["acme/i1", "acme/i2"]
            for kept in (tmp_path / "state" / "live").rglob("*.npz"):
                kept.unlink()  # and without what was kept

    run(scene)


def test_imported_history_is_that_of_the_tenant_whose_names_it_has(tmp_path):
    async def scene():
        async with shop(tmp_path) as at:
            await at.do(("items", items(3), "acme"))
            await at.do(("items", items(3), "zeta"))
        (users := tmp_path / "users.csv").write_text("who\nacme/bob@example.com\n")
        lines = [f"{who},{item},1000\n" for who in ("bob@example.com", "+44 20 7946 0958") for item in ("i1", "i2")]
        (told := tmp_path / "told.csv").write_text(
            "who,what,at\n" + "".join(f"acme/{one}" for one in lines).replace(",i", ",acme/i")
        )
        with Installation(tmp_path, msgspec.convert(TOLD, Settings), FakeClock(2.5e6)) as stopped:
            assert import_history(stopped, users, "users", ["id=who"], 1.0) == 1
            entries = ["user=who", "item=what", "event_time=at", "like=at>=1"]
            assert import_history(stopped, told, "outcomes", entries, 1.0) == 4
        async with shop(tmp_path, FakeClock(3e6)) as at:
            await at.index()
            listing = await at.do(ask("r1", "acme", visitor="v", n=30, explain=True))
            popular = {one.item for one in listing.items if "popular" in one.why["recall"]}
            assert popular == {"i1", "i2"}
            for name in ("bob@example.com", "+44 20 7946 0958"):
                who = person("acme", pseudonym(name))
                assert sorted(at.serve.listers["acme"].world.history(who)) == ["acme/i1", "acme/i2"]
            assert at.serve.listers["acme"].live.users()[0] == person("acme", pseudonym("bob@example.com"))
            index = at.serve.listers["acme"].following._attached.index
            assert {name for _, several in index.names() for name in several} == {"acme/i1", "acme/i2"}
            zeta = await at.do(ask("r1", "zeta", visitor="v", n=30, explain=True))
            assert not any("popular" in one.why["recall"] for one in zeta.items)

    run(scene)


def test_a_person_of_one_tenant_is_forgotten_and_their_namesake_is_not(tmp_path):
    async def scene():
        async with shop(tmp_path) as at:
            for tenant in ("acme", "zeta"):
                await at.do(("items", items(3), tenant))
                await at.do(("users", [{"id": "bob@example.com", "note": f"of-{tenant}"}], tenant))
                await at.do(ask("r1", tenant, user="bob@example.com", n=30))
                await at.do([TenantOutcome(request="r1", item="i1", kind="like", tenant=tenant)])
                await at.do(("merge", [Merge(visitor="seen", user="bob@example.com")], tenant))
                await at.do(ask("r2", tenant, visitor="seen", n=30))
        with Installation(tmp_path, msgspec.convert(TOLD, Settings), FakeClock(3e6)) as stopped:
            with pytest.raises(BadInput, match="a person is one tenant's"):
                await forget(stopped, ["bob@example.com"])
            report = await forget(stopped, ["bob@example.com"], tenant="zeta")
        assert report.records == {"users": 1, "served": 2, "outcomes": 1, "identities": 1}
        left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        assert b"of-acme" in left and b"of-zeta" not in left and b"zeta/[EMAIL" not in left
        async with shop(tmp_path) as at:
            who = pseudonym("bob@example.com")
            assert at.serve._history(f"acme/{who}") == ["acme/i1"] and at.serve._history(f"zeta/{who}") == []

    run(scene)


# -- whose a request is -----------------------------------------------------------------------------------------------


def test_whose_a_request_is_and_what_is_said_of_a_mistake():
    some, none = Tenants(["acme", "zeta"], Meter()), Tenants([], Meter())
    bound, both = Principal("a", tenants=("acme",)), Principal("b", tenants=("acme", "zeta"))
    assert (
        some.of(bound, "") == some.of(bound, "acme") == some.of(ANYBODY, "acme") == "acme"
        and none.of(ANYBODY, "") == ""
    )
    for asked, said, error, match in (
        (bound, "zeta", Forbidden, "may for acme"), (bound, "nobody", Forbidden, "may for acme"),
        (both, "", BadInput, "one of acme, zeta"), (ANYBODY, "", BadInput, "one of acme, zeta"),
        (ANYBODY, "nobody", NotFound, "not configured"), (Principal("c", tenants=("gone",)), "", NotFound, "gone"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            some.of(asked, said)
    with pytest.raises(BadInput, match="has no tenants"):
        none.of(ANYBODY, "acme")
    with pytest.raises(Forbidden, match="has no tenants"):
        none.of(bound, "")


def test_a_key_of_a_tenant_opens_nothing_that_is_everybodys():
    bound = Principal("a", ("*:*",), ("acme",))
    for verb in ("features", "facts", "control"):
        with pytest.raises(Forbidden, match="of the whole installation"):
            auth.check(bound, "x", verb)
    for verb in ("infer", "describe", "recommend", "outcomes", "upsert"):
        auth.check(bound, "x", verb)


def test_watermarks_and_plain_inference_are_nobodys(tmp_path):
    async def scene():
        async with shop(tmp_path) as at:
            mark = {"kind": "watermark", "event_time": 1e6}
            with pytest.raises(BadInput, match="speaks for the whole"):
                await at.do([TenantOutcome(**mark, tenant="acme")])
            with pytest.raises(BadInput, match="speaks for the whole"):
                await at.do([Outcome(**mark)], Principal("a", tenants=("acme",)))
            assert await at.do([Outcome(**mark)]) == 1
            asked = []
            at.serve.door._predict.call = lambda request: asked.append(request.id) or done(None)
            await at.do(Request("ranker", {}, 0, id="acme/r1"), Principal("z", tenants=("zeta",)))
            assert asked == ["/acme/r1"], "or it would plant a request among those of acme"

    run(scene)


def test_for_whom_plain_inference_is_stands_nowhere_as_nobody_could_forget_them(tmp_path):
    async def scene():
        async with shop(tmp_path) as at:
            at.serve.door._predict._submit = lambda request: done(Output({}, request.model, "1@0"))
            await at.do(Request("any", {}, 0, id="r1", key="bob@example.com"))
            (event,) = (decode(record.value) for record in at.at.log.reader("served").records(0))
            assert (event.request, event.user) == ("/r1", "")

    run(scene)


def done(value):
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def test_without_tenants_nobody_may_say_one(tmp_path):
    told = {**TOLD, "recommend": {"placements": {"home": HOME}}}

    async def scene():
        async with shop(tmp_path, told=told) as at:
            for act in (
                ask("r", "acme"), Rank(id="r", user="u", candidates=("i",), tenant="acme"), ("items", items(1), "acme"),
                ("merge", [Merge(visitor="v", user="u")], "acme"),
                [TenantOutcome(request="r", item="i", kind="like", tenant="acme")],
            ):  # fmt: skip
                with pytest.raises(BadInput, match="has no tenants"):
                    await at.do(act)
            await at.do(("items", items(2), ""))
            assert set(names(await at.do(ask("r", "", user="u")))) == {"i0", "i1"}

    run(scene)
