"""Recall over shards: they find what one process finds, nothing forbidden comes out whatever they say, and one that is
away costs its items alone. Real shards on real sockets, on the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import uvloop
from hypothesis import Phase, given, settings
from shelves import QUICK, RULES, SOME, STEPS, known, may

import millstream.recall.shards as shards_module
from millstream.clock import SystemClock
from millstream.meter import Meter
from millstream.recall.ann import Ann, Base, Places
from millstream.recall.build import build
from millstream.recall.catalogue import Catalogue
from millstream.recall.cooccur import Positives
from millstream.recall.filters import Filters, Rule, gone
from millstream.recall.index import About, Index, write
from millstream.recall.liked import Gathered
from millstream.recall.paths import Given, Newest, Popular, SimilarToLast, Tags
from millstream.recall.scene import Bits, Found, History, Scene
from millstream.recall.settings import BuildSettings, FactorSettings
from millstream.recall.shard import Part, Searched, Shard
from millstream.recall.shards import (
    FRAME_MAX,
    Asked,
    Elsewhere,
    Past,
    Scattered,
    Shards,
    Told,
    frame,
    framed,
    share,
    share_of,
    socket_of,
)
from millstream.recall.union import Recall

LONG_S, SOON_S = 5.0, 0.05
ITEMS = [f"item {row} é" for row in range(60)]
ANY = Rule()
FREE = ("popular", "newest", "similar", "tags", "given")


class World:
    """What a process knows: told the same as others, in an order of its own, so its numbers are its own."""

    def __init__(self, steps, likes=(), index: Index | None = None, mine=None) -> None:
        self.catalogue, self.popular = Catalogue(), Popular(100.0)
        self.filters = Filters(self.catalogue)
        for at, (item, attributes) in steps:
            if attributes is None:
                self.catalogue.remove(item)
            else:
                self.catalogue.upsert(item, attributes, float(at))
        for at, item in enumerate(likes):
            if (number := self.catalogue.number(item)) >= 0:
                self.popular.on_positive("u", number, float(at), "nl" if at % 3 == 0 else "")
        catalogue = self.catalogue
        paths = [self.popular, Newest(catalogue), SimilarToLast(catalogue), Tags(catalogue), Given()]
        if index is not None:
            paths += index.attach(catalogue, mine).paths()
        self.paths = {path.name: path for path in paths}

    def scene(self, rule=ANY, past=(), exclude=(), given_=(), segment="") -> Scene:
        """A request, by names; of those that it does not know as well."""
        catalogue = self.catalogue
        numbers = catalogue.numbers(past)
        numbers = numbers[numbers >= 0]
        history = History(numbers, np.zeros(len(numbers), np.uint8), np.arange(len(numbers), dtype=np.float64))
        away, mine = gone(rule, exclude=catalogue.numbers(exclude)), catalogue.numbers(given_)
        return Scene(
            user="u", now=1000.0, history=history, attributes={"age": 3}, context={"a": True}, given=mine[mine >= 0],
            allowed=self.filters.allowed(rule, exclude=away), seed=1, segment=segment, done=history, rule=rule,
            gone=away,
        )  # fmt: skip


def shard_of(number: int, of: int, steps, likes=(), index=None, meter=None, also=()) -> Shard:
    mine = share_of(number, of)
    steps = sorted(steps, key=lambda step: share(f"{number} {step[1][0]}", 1 << 30))
    world = World(steps, likes, index, mine)
    paths = world.paths | {path.name: path for path in also}
    part = Part(world.catalogue, mine)
    return Shard(number, of, {"": Searched(world.catalogue, world.filters, part, paths)}, meter or Meter())


@contextlib.asynccontextmanager
async def reached(run: Path, count: int, *made: Shard, meter=None) -> AsyncIterator[Shards]:
    """Shards that listen and are connected to."""
    for number, one in enumerate(made):
        await one.listen(socket_of(run, number))
    shards = Shards(run, count, SystemClock(), meter or Meter())
    shards.start()
    try:
        await come(lambda: sum(shards.there) == len(made))
        yield shards
    finally:
        shards.close()
        for one in made:
            one.close()


async def come(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.002)


def asking(shards: Shards, world: World, names, quota=1000, deadline_s=LONG_S, also=()) -> Scattered:
    paths = [(Given() if name == "given" else Elsewhere(name), quota, deadline_s) for name in names]
    return Scattered(shards, world.catalogue, [*paths, *also], Meter())


def by_path(asked, union, catalogue) -> dict[str, list[str]]:
    """What each path found, best first."""
    found = {}
    for place, name in enumerate(asked.names):
        ranks = union.ranks[place]
        there = np.flatnonzero(ranks >= 0)
        found[name] = catalogue.names(union.numbers[there[np.argsort(ranks[there])]])
    return found


def timed(steps):
    """Each told at its moment, whatever the order of telling. What goes by that order is left out: removing, and which
    width embeddings have."""
    told = [(at, item, attributes) for at, (item, attributes) in enumerate(steps) if attributes is not None]
    return [
        (100 + at, (item, {name: value for name, value in of.items() if name != "embedding" or _wide(value)}))
        for at, item, of in told
    ]


def _wide(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], float)


@settings(QUICK, max_examples=8, phases=[Phase.generate])
@given(STEPS, RULES, SOME, SOME, SOME)
def test_shards_find_what_one_process_finds(steps, rule, likes, past, without):
    steps = timed(steps)
    names = [f"i{number}" for number in range(16)]
    liked, history, exclude = ([names[number % 16] for number in some] for some in (likes, past, without))

    async def scene():
        alone = World(steps, liked)
        wanted = alone.scene(rule, history, exclude, names, "nl")
        recall = Recall([(alone.paths[name], 1000, LONG_S) for name in FREE], Meter(), 1)
        want = by_path(recall, await recall.gather(wanted), alone.catalogue)
        scores = {name: alone.paths[name].recall(wanted, 1000) for name in FREE}
        recall.close()
        told = known([step for _, step in steps])
        for count in (1, 2, 4):
            with tempfile.TemporaryDirectory() as folder:
                made = [shard_of(number, count, steps, liked) for number in range(count)]
                async with reached(Path(folder), count, *made) as shards:
                    for quota in (1000, 3):
                        asked = asking(shards, alone, FREE, quota)
                        union = await asked.gather(wanted)
                        assert union.late == union.failed == ()
                        got = by_path(asked, union, alone.catalogue)
                        for name in FREE:
                            held = dict(zip(want[name], scores[name].scores.tolist(), strict=True))
                            assert set(got[name]) <= set(want[name]), (name, got, want)
                            assert np.allclose(
                                [held[item] for item in got[name]],
                                [held[item] for item in want[name][:quota]], rtol=1e-4,
                            ), (name, count, got[name], want[name])  # fmt: skip
                        for item in alone.catalogue.names(union.numbers):
                            assert may(told[item], rule) and item not in exclude
                        asked.close()

    asyncio.run(scene())


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Two tastes: even and odd items."""
    random = np.random.default_rng(3)
    users = np.repeat(np.arange(80, dtype=np.int32), 8)
    liked = (random.integers(0, len(ITEMS) // 2, len(users)) * 2 + users % 2).astype(np.int32)
    gathered = Gathered(Positives(users, liked, np.arange(float(len(users)))), ITEMS, 80)
    contents = build(gathered, BuildSettings(factors=FactorSettings(width=8, turns=5)))
    return Index.open(write(tmp_path_factory.mktemp("index"), contents, About()))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_paths_of_an_index_find_the_same_over_shards(index, tmp_path, count):
    steps = [(at, (name, {"tags": ["a"]})) for at, name in enumerate([*ITEMS, "later"])]
    names = ("item_cf", "user_cf", "factors")

    async def scene():
        alone = World(steps, (), index)
        made = [shard_of(number, count, steps, (), index) for number in range(count)]
        async with reached(tmp_path, count, *made) as shards:
            for quota in (100, 7):
                recall = Recall([(alone.paths[name], quota, LONG_S) for name in names], Meter(), 1)
                asked = asking(shards, alone, names, quota)
                for person in range(10):
                    wanted = alone.scene(past=[ITEMS[person], ITEMS[person + 2], "unknown"], exclude=[ITEMS[4]])
                    want, got = [by_path(one, await one.gather(wanted), alone.catalogue) for one in (recall, asked)]
                    for name in names:
                        assert len(want[name]) >= 7 and ITEMS[4] not in got[name]
                        found = alone.paths[name].recall(wanted, 100)
                        scores = dict(zip(alone.catalogue.names(found.numbers), found.scores.tolist(), strict=True))
                        np.testing.assert_allclose(
                            [scores[item] for item in got[name]], [scores[item] for item in want[name]], rtol=1e-4
                        )
                        if quota == 100:
                            assert set(got[name]) == set(want[name])
                recall.close()
                asked.close()

    asyncio.run(scene())


def test_parts_of_an_index_of_vectors_find_together_what_the_whole_finds(tmp_path):
    random = np.random.default_rng(5)
    rows = random.normal(size=(4000, 16)).astype(np.float32)
    base = Base.build(rows, flat_rows=100)
    base.save(tmp_path, "one")
    opened = Base.open(tmp_path, "one")
    everything = Bits.all(len(rows))
    for whole in (base, opened):
        parts = [whole.part(np.arange(len(rows)) % 3 == part) for part in range(3)]
        assert [part.lists.ntotal for part in parts] == [1334, 1333, 1333]
        for query in random.normal(size=(20, 16)).astype(np.float32):
            place = Places.same(len(rows))
            codes = [Ann(one, place)._probed(query, 10, 1.0, everything) for one in (whole, *parts)]
            for number, mine in enumerate(codes[1:]):
                assert (mine % 3 == number).all() and len(mine) >= 10
                assert set(codes[0][codes[0] % 3 == number].tolist()) <= set(mine.tolist())


class Held:
    """A path that waits until it is let go."""

    name = "held"

    def __init__(self) -> None:
        self.go = threading.Event()

    def recall(self, scene, k):
        assert self.go.wait(60)
        return Found(scene.allowed.numbers()[:k], np.ones(scene.allowed.count(), np.float32)[:k])


STEPS_10 = [(at, (f"i{at}", {"tags": ["a"]})) for at in range(10)]


def test_a_shard_that_is_away_costs_its_items_and_comes_back(tmp_path):
    async def scene():
        meter, world = Meter(), World(STEPS_10)
        mine = {number: {item for _, (item, _) in STEPS_10 if share(item, 2) == number} for number in (0, 1)}
        assert all(mine.values())
        first, second = (shard_of(number, 2, STEPS_10) for number in (0, 1))
        async with reached(tmp_path, 2, first, meter=meter) as shards:
            asked, wanted = asking(shards, world, ("newest", "popular", "given")), world.scene(given_=["i1", "i2"])

            async def names():
                union = await asked.gather(wanted)
                return set(world.catalogue.names(union.numbers)), union.late, union.failed

            assert await names() == (mine[0] | {"i1", "i2"}, ("shard 1",), ())
            await second.listen(socket_of(tmp_path, 1))
            await come(lambda: all(shards.there))
            assert await names() == (mine[0] | mine[1], (), ())
            first.close()
            second.close()
            await come(lambda: not any(shards.there))
            found = await names()
            assert found == ({"i1", "i2"}, ("newest", "popular", "shard 0", "shard 1"), ())
            assert meter.sum("millstream_recall_shard_late_total") == 3
            again = shard_of(0, 2, STEPS_10)
            await again.listen(socket_of(tmp_path, 0))
            await come(lambda: shards.there == [True, False])
            assert await names() == (mine[0] | {"i1", "i2"}, ("shard 1",), ())
            again.close()
            asked.close()

    asyncio.run(scene())


def test_a_path_that_is_late_in_one_shard_is_named_with_it_and_one_late_in_all_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "SLACK_S", LONG_S)  # for a busy machine

    async def scene():
        world, held = World(STEPS_10), [Held(), Held()]
        held[0].go.set()
        made = [shard_of(number, 2, STEPS_10, also=[held[number]]) for number in (0, 1)]
        async with reached(tmp_path, 2, *made) as shards:
            asked = asking(shards, world, ("newest", "held"), deadline_s=0.5)
            union = await asked.gather(world.scene())
            assert (union.late, union.failed) == (("held of shard 1",), ()) and len(union.numbers) == 10
            assert set(by_path(asked, union, world.catalogue)["held"]) == {
                item for _, (item, _) in STEPS_10 if share(item, 2) == 0
            }
            held[0].go.clear()
            union = await asked.gather(world.scene())
            assert (union.late, union.failed) == (("held",), ()) and len(union.numbers) == 10
            for one in held:
                one.go.set()
            asked.close()
            asked = asking(shards, world, ("newest", "nowhere"))
            union = await asked.gather(world.scene())
            assert (union.late, union.failed) == ((), ("nowhere",)) and len(union.numbers) == 10
            asked.close()

    asyncio.run(scene())


class Mad:
    """Listens as a shard and says what it likes: `says(asked)`, None: nothing. `heard`: what it was asked."""

    def __init__(self, says) -> None:
        self.says, self.heard, self.writers = says, [], []

    async def listen(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self.server = await asyncio.start_unix_server(self._serve, path)

    async def _serve(self, reader, writer) -> None:
        self.writers.append(writer)
        with contextlib.suppress(EOFError, OSError):
            while True:
                asked = msgspec.msgpack.decode(await frame(reader), type=Asked)
                self.heard.append(asked)
                if (said := self.says(asked)) is not None:
                    writer.write(said)

    def close(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()


@settings(QUICK, max_examples=12, phases=[Phase.generate])
@given(STEPS, RULES, SOME, SOME)
def test_nothing_forbidden_comes_out_whatever_a_shard_says(steps, rule, without, past):
    names = [f"i{number}" for number in range(16)]
    everything = [*names, *names[:3], "nobody knows this", ""]
    scores = np.linspace(1, 0, len(everything), dtype=np.float32)
    scores[2] = math.nan

    def says(asked):
        return framed(Told(asked.id, [(everything, scores.tobytes())] * len(asked.paths)))

    async def scene():
        world = World(timed(steps))
        exclude = [names[number % 16] for number in without]
        wanted = world.scene(rule, [names[number % 16] for number in past], exclude)
        with tempfile.TemporaryDirectory() as folder:
            async with reached(Path(folder), 2, Mad(says), Mad(says)) as shards:
                asked = asking(shards, world, ("newest", "tags"))
                union = await asked.gather(wanted)
                asked.close()
        found = world.catalogue.names(union.numbers)
        told = known([step for _, step in timed(steps)])
        assert len(set(found)) == len(found) and union.late == union.failed == ()
        assert set(found) == {
            item for item, of in told.items() if may(of, rule) and item not in exclude and item != "i2"
        } | ({"i2"} if "i2" in found else set())
        assert all(may(told[item], rule) and item not in exclude for item in found)

    asyncio.run(scene())


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\x00\x00\xff",  # a frame beyond the bound
        (9).to_bytes(4, "little") + b"no struct",
        b"",
    ],
)
def test_a_shard_that_speaks_nonsense_is_left_and_the_other_answers(tmp_path, said):
    async def scene():
        world, good = World(STEPS_10), shard_of(0, 2, STEPS_10)
        mad = Mad(lambda asked: said or framed(Told(asked.id, [])))
        async with reached(tmp_path, 2, good, mad) as shards:
            asked = asking(shards, world, ("newest",), deadline_s=SOON_S)
            union = await asked.gather(world.scene())
            expected = {item for _, (item, _) in STEPS_10 if share(item, 2) == 0}
            assert set(world.catalogue.names(union.numbers)) == expected
            assert union.late == (("shard 1",) if said else ("newest of shard 1",))
            await come(lambda: all(shards.there) and len(mad.writers) == (2 if said else 1))  # connected to anew
            asked.close()

    asyncio.run(scene())


def test_one_that_is_late_is_not_asked_again_until_it_answers(tmp_path):
    async def scene():
        world, meter = World(STEPS_10), Meter()
        mad = Mad(lambda asked: None)
        async with reached(tmp_path, 1, mad, meter=meter) as shards:
            asked = asking(shards, world, ("newest",), deadline_s=SOON_S)
            for _ in range(20):
                begun = time.monotonic()
                union = await asked.gather(world.scene())
                assert union.late == ("newest", "shard 0") and time.monotonic() - begun < 5
            assert len(mad.heard) == 1 and meter.sum("millstream_recall_shard_late_total") == 20
            mad.says = lambda asked: framed(Told(asked.id, [(["i1"], np.ones(1, np.float32).tobytes())]))
            mad.writers[0].write(mad.says(mad.heard[0]))  # the one that was late
            await come(lambda: not shards._links[0]._overdue)
            union = await asked.gather(world.scene())
            assert union.late == () and world.catalogue.names(union.numbers) == ["i1"]
            asked.close()

    asyncio.run(scene())


def test_a_shard_that_dies_among_requests_raises_at_none_of_them(tmp_path):
    """On the event loop of the program, which raises where one writes to what has just been lost."""

    async def scene():
        mad = Mad(lambda asked: None)
        async with reached(tmp_path, 1, mad) as shards:
            [link] = shards._links
            await come(lambda: mad.writers)
            mad.close()
            mad.writers[0].transport.abort()
            called = 0
            while link.there:
                called += link.call(called, b"\x01\x00\x00\x00\xc0") is not None
                await asyncio.sleep(0)
            assert called, "nobody asked before it was known to be lost"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene())


def test_many_requests_at_once_get_their_own_answers(tmp_path):
    async def scene():
        world = World(STEPS_10)
        made = [shard_of(number, 2, STEPS_10) for number in (0, 1)]
        async with reached(tmp_path, 2, *made) as shards:
            asked = asking(shards, world, ("newest",))
            scenes = [world.scene(exclude=[f"i{n % 10}", f"i{n % 7}"]) for n in range(300)]
            unions = await asyncio.gather(*(asked.gather(one) for one in scenes))
            for one, union in zip(scenes, unions, strict=True):
                assert union.late == () and np.array_equal(np.sort(union.numbers), one.allowed.numbers())
            asked.close()

    asyncio.run(scene())


def test_exclusions_cross_up_to_the_bound_and_hold_beyond_it(tmp_path):
    long = [f"{number:06d}".ljust(512, "x") for number in range(40_000)]
    steps = [(at, (item, {})) for at, item in enumerate(long)]
    world, mad = World(steps), Mad(lambda asked: framed(Told(asked.id, [(long[:5] + long[-5:], bytes(40))])))

    async def scene():
        async with reached(tmp_path, 1, mad) as shards:
            asked = asking(shards, world, ("newest",), quota=5000)
            for many in (20_000, 40_000):
                excluded = world.scene(exclude=long[:many])
                union = await asked.gather(excluded)
                assert world.catalogue.names(union.numbers) == (long[-5:] if many == 20_000 else [])
            asked.close()

    asyncio.run(scene())
    assert [len(asked.gone) for asked in mad.heard] == [20_000, 0]


def test_what_a_shard_cannot_read_ends_that_connection_alone(tmp_path):
    async def scene():
        world, one = World(STEPS_10), shard_of(0, 1, STEPS_10)
        where = socket_of(tmp_path, 0)
        async with reached(tmp_path, 1, one) as shards:
            assert where.stat().st_mode & 0o777 == 0o600
            for said in (b"\xff\xff\xff\xff", (3).to_bytes(4, "little") + b"abc", b"\x01"):
                reader, writer = await asyncio.open_unix_connection(where)
                writer.write(said)
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
            union = await (asked := asking(shards, world, ("newest",))).gather(world.scene())
            assert len(union.numbers) == 10 and union.late == ()
            asked.close()
            reader, writer = await asyncio.open_unix_connection(where)
            rule, past = Rule(), Past([], b"", b"")
            for of, kinds, tenant in ((2, b"", ""), (1, b"\x00", ""), (1, b"", "acme")):
                crooked = Past([], kinds, b"")
                writer.write(
                    framed(Asked(7, of, tenant, [("newest", 5, 1.0)], "u", 0.0, 1, "", {}, {}, rule, [], crooked, past))
                )
                told = msgspec.msgpack.decode(await frame(reader), type=Told)
                assert told == Told(7, ["failed"]), (of, kinds, tenant)
            writer.close()

    asyncio.run(scene())


def test_items_are_shared_out_evenly_and_for_ever():
    assert [share(item, 4) for item in ("i1", "i2", "film-000001", "é", "acme/i1")] == PINNED
    for of in (2, 3, 4, 7):
        for form in ("i{}", "{}", "film-{:06d}", "acme/{}"):
            counts = Counter(share(form.format(number), of) for number in range(20_000))
            assert len(counts) == of and max(counts.values()) < 1.05 * 20_000 / of, (of, form, counts)


PINNED = [3, 1, 0, 2, 3]


def test_a_long_path_of_a_socket_is_no_obstacle(tmp_path):
    async def scene():
        world = World(STEPS_10)
        run = tmp_path / ("long" * 30)
        async with reached(run, 1, shard_of(0, 1, STEPS_10)) as shards:
            union = await (asked := asking(shards, world, ("newest",))).gather(world.scene())
            assert len(union.numbers) == 10
            asked.close()

    asyncio.run(scene())
    assert FRAME_MAX >= 20_000 * 514
