"""Lists over shards of recall: the same as without, from roles in one process; and real processes, one of which is
killed under load."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import msgspec
import pytest

from millstream.app.forget import forget
from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.app.shard import Searches
from millstream.client import Client
from millstream.clock import SystemClock
from millstream.errors import Conflict, Misconfigured
from millstream.recall.shards import share
from millstream.types import Ask, Outcome, Principal
from service import Served, children, command_line

ANYBODY = Principal("test")
PATHS = ("popular", "newest", "similar", "tags", "given", "item_cf", "user_cf", "factors")
ITEMS = [
    {"id": f"i{n}", "category": f"c{n % 5}", "tags": [f"t{n % 3}", f"u{n % 7}"], "created": 1e6 + n} for n in range(40)
]


def settings_of(shards: int) -> Settings:
    placement = {"n": 40, "list_max": 40, "paths": {name: {"deadline_ms": 5000.0} for name in PATHS}}
    return msgspec.convert(
        {
            "http_port": 0,
            "recommend": {"placements": {"home": placement}},
            "recall": {"every_s": 0.1, "least_events": 1, "factors": {"width": 4}, "shards": shards},
            "histories": {"segment": "plan"},
        },
        Settings,
    )


async def came(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(folder: Path, shards: int):
    """(serve, searches): the roles of an installation, in this process."""
    with contextlib.ExitStack() as open_, Installation(folder, settings_of(shards), SystemClock()) as at:
        searches = []
        for number in range(shards if shards > 1 else 0):
            of = open_.enter_context(Installation(folder, settings_of(shards), SystemClock()))
            searches.append(Searches(of, number))
            await searches[-1].start()
        serve = Serve(at)
        await serve.engine.start()
        serve.lister.start()
        if shards > 1:
            await came(lambda: all(serve.lister.shards.there))
        else:
            serve.poll()
            await serve.lister.following.looked()
        try:
            yield serve, searches
        finally:
            serve.lister.stop()
            await serve.engine.stop()
            for one in searches:
                one.stop()


async def asked(serve, ident, **wish):
    return await serve.door.call(Ask(id=ident, explain=True, **wish), ANYBODY)


def found(listing) -> dict[str, set[str]]:
    return {slot.item: set(slot.why["recall"]) for slot in listing.items}


async def lived(folder: Path) -> None:
    """People like things, and an index is built of it."""
    async with serving(folder, 0) as (serve, _):
        await serve.door.upsert("items", ITEMS, ANYBODY)
        await serve.door.upsert("users", [{"id": "a", "plan": "gold"}, {"id": "u", "plan": "gold"}], ANYBODY)
        serve.poll()
        for number, user in enumerate("abcdu"):
            listing = await asked(serve, f"first-{user}", user=user)
            likes = [f"i{n}" for n in (number, 6, 9, 12 + number)][: 2 if user == "u" else 4]
            await serve.door.call([Outcome(request=listing.id, item=one, kind="like") for one in likes], ANYBODY)
            serve.poll()
    with Installation(folder, settings_of(0), SystemClock()) as at:
        learn = Learn(at)
        while learn.step() or not list(at.indexes.glob("*/index.toml")):
            await asyncio.sleep(0.01)
        learn.close()


def test_lists_over_shards_are_those_without_and_follow_what_happens(tmp_path):
    async def scene():
        await lived(tmp_path)
        alone = {}
        async with serving(tmp_path, 0) as (serve, _):
            for user in ("u", "a", "nobody"):
                alone[user] = found(
                    await asked(serve, f"alone-{user}", user=user, candidates=("i3",), exclude=("i39",))
                )
        assert {"item_cf", "user_cf", "factors", "tags", "similar", "popular"} <= set().union(*alone["u"].values())
        for count in (2, 3):
            async with serving(tmp_path, count) as (serve, searches):
                for user, want in alone.items():
                    listing = await asked(serve, f"{count}-{user}", user=user, candidates=("i3",), exclude=("i39",))
                    assert listing.missed == [] and found(listing) == want
                similar = await asked(serve, f"{count}-like", similar="i6")
                assert "i6" not in found(similar) and len(similar.items) > 3 and similar.missed == []
                await serve.door.upsert("items", [{"id": f"new-{count}", "tags": ["t0"], "created": 2e6}], ANYBODY)
                await serve.door.upsert("items", [{"id": "i20", "deleted": True}], ANYBODY)
                serve.poll()
                listing = await asked(serve, f"{count}-before", user="u")
                assert "i20" not in found(listing) and listing.missed == [], (
                    "a shard that does not know it yet gives it"
                )
                for one in searches:
                    one.poll()
                listing = await asked(serve, f"{count}-after", user="u")
                assert {"newest", "tags"} <= found(listing)[f"new-{count}"]
                for one in searches:
                    known = one._followed[0][0].histories
                    assert known.count == 0, "a shard remembers nobody"
                await serve.door.upsert("items", [ITEMS[20] | {"deleted": False}], ANYBODY)
                await serve.door.upsert("items", [{"id": f"new-{count}", "deleted": True}], ANYBODY)

    asyncio.run(scene())


def test_a_shard_that_stops_is_missed_by_name_and_knows_again_what_it_knew(tmp_path):
    async def scene():
        await lived(tmp_path)
        async with serving(tmp_path, 2) as (serve, searches):
            with pytest.raises(Conflict, match="recall-1 is running"):
                Searches(serve.installation, 1)
            searches[1].stop()
            await came(lambda: serve.lister.shards.there == [True, False])
            listing = await asked(serve, "r1", user="u")
            assert listing.missed == ["shard 1"]
            assert {share(item, 2) for item in found(listing)} == {0} and len(listing.items) > 5
            assert serve.lister.shards._links[1]._late.value == 1
            read = []
            again = Searches(serve.installation, 1)
            live = again._followed[0][0]
            take, live._on_items = live._on_items, lambda record, item: (read.append(item), take(record, item))
            await again.start()
            assert live.catalogue.count == 40 and read == [], "what it kept need not be read again"
            await came(lambda: all(serve.lister.shards.there))
            listing = await asked(serve, "r2", user="u")
            assert listing.missed == [] and {share(item, 2) for item in found(listing)} == {0, 1}
            again.stop()
            searches.pop()

    asyncio.run(scene())


def test_forgetting_reaches_shards(tmp_path):
    async def scene():
        await lived(tmp_path)
        async with serving(tmp_path, 2) as (serve, searches):
            for one in searches:
                assert "u" in one._followed[0][0]._attributes
            done = asyncio.Event()

            async def poll():
                while not done.is_set():
                    for one in (serve, *searches):
                        one.poll()
                    await asyncio.sleep(0.01)

            polling = asyncio.ensure_future(poll())
            with Installation(tmp_path, settings_of(2), SystemClock()) as at:
                report = await forget(at, ["u"])
            done.set()
            await polling
            assert report.found and {"recall-0", "recall-1", "serve-0"} <= set(report.roles)
            for one in searches:
                live, following = one._followed[0]
                assert "u" not in live._attributes and "u" not in live._requests.values()
                assert all(user != "u" for _, user, _ in following._lately)

    asyncio.run(scene())


def test_there_are_as_many_shards_as_the_settings_say(tmp_path):
    for shards, number in ((0, 0), (1, 0), (2, 2)):
        refused = pytest.raises(Misconfigured, match=rf"recall-{number}: recall.shards is {shards}")
        with Installation(tmp_path / f"{shards}", settings_of(shards), SystemClock()) as at, refused:
            Searches(at, number)


TOML = """
http_port = 0
grpc_port = 0
workers = 2
[recall]
shards = 2
[recommend.placements.home]
n = 40
[recommend.placements.home.paths.newest]
quota = 100
deadline_ms = 1000.0
"""


def shards_of(served) -> dict[str, int]:
    """The processes of shards, by role."""
    lines = {pid: command_line(pid).split("\0") for pid in children(served.pid)}
    return {role: pid for pid, line in lines.items() for role in line if role.startswith("recall-")}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_kill_nine_of_a_shard_under_load_fails_no_request(tmp_path):
    file = tmp_path / "millstream.toml"
    file.write_text(TOML)
    up = Served(file, tmp_path / "log.txt", verb=("up", "-c", str(file)))
    with up as served, Client(f"http://127.0.0.1:{served.http}", connections=4) as client:
        assert client.items([{"id": f"i{n}", "tags": [f"t{n % 3}"]} for n in range(40)]) == 40
        whole = lambda listing: len(listing.items) == 40 and not listing.missed  # noqa: E731
        wait_until(lambda: all(whole(client.recommend(f"w{n}", n=40)) for n in range(4)), 60)
        lists, errors, stop = [], [], threading.Event()

        def ask(who: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    lists.append((time.monotonic(), client.recommend(f"u{who}-{number}", n=40)))
                except Exception as error:  # each is a failed request
                    errors.append(error)

        threads = [threading.Thread(target=ask, args=(who,)) for who in range(3)]
        for one in threads:
            one.start()
        killed = []
        for number in (0, 1):
            time.sleep(0.5)
            before = shards_of(served)
            os.kill(before[f"recall-{number}"], signal.SIGKILL)
            killed.append(time.monotonic())
            wait_until(lambda n=number: missed_since(lists, killed[-1]) >= {f"shard {n}"}, 20)
            wait_until(lambda was=before: len(shards_of(served)) == 2 and shards_of(served) != was, 30)
            wait_until(lambda: sum(whole(listing) for _, listing in lists[-20:]) == 20, 30)
        stop.set()
        for one in threads:
            one.join(30)
        assert errors == [] and len(lists) > 100
        for number, at in enumerate(killed):
            until = killed[number + 1] if number + 1 < len(killed) else lists[-1][0]
            hurt = [listing for when, listing in lists if at < when < until and f"shard {number}" in listing.missed]
            assert hurt and all({share(slot.item, 2) for slot in listing.items} <= {1 - number} for listing in hurt), (
                "its items are missing, the others are not"
            )
            assert any(len(listing.items) == sum(share(f"i{n}", 2) != number for n in range(40)) for listing in hurt)
        [late] = served.metrics("millstream_recall_shard_late_total")
        assert late >= sum(name.startswith("shard") for _, listing in lists for name in listing.missed) > 0


def missed_since(lists, at: float) -> set[str]:
    return {name for when, listing in lists[:] if when > at for name in listing.missed}


def wait_until(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
