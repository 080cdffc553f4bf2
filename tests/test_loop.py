"""The whole loop in one process under a fake clock: serve, log, join, learn, push, serve again. And crashes at every
single write of it: the books, the examples and the weights must end as if nothing had happened."""

import asyncio
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.app.training import train
from millstream.clock import FakeClock
from millstream.errors import Full
from millstream.features import Column, Definition
from millstream.learn.history import Field, import_entities
from millstream.learn.train import gather
from millstream.models.online import Ftrl, ServedFtrl
from millstream.stream import Log, LogLimits, decode
from millstream.stream.audit import Acknowledged, audit
from millstream.testing import Crash, CrashingLog, CrashingRepository, Fuse
from millstream.types import Delta, Example, Outcome, Principal, Rank

ANYBODY = Principal("test")
MOMENTS = 60
SETTINGS = msgspec.convert(
    {
        "http_port": 0,
        "learn": {"model": "ranker", "push": {"push_s": 1.0, "base_examples": 25}},
        "ftrl": {"bits": 12},
        "join": {"tasks": {"like": {"window_s": 10.0}}, "idle_s": 1000.0},
        "engine": {"poll_s": 0.01},
    },
    Settings,
)
SETTINGS = msgspec.structs.replace(
    SETTINGS,
    features=Definition(
        user=(Column("id"), Column("age", bucket=10)), item=(Column("id"),), crosses=("user.id*item.id",)
    ),
)


class Loop:
    """Both roles over one folder, and a client that keeps books. `crash` drops a role as kill -9 would."""

    def __init__(self, folder, fuse):
        self.folder, self.fuse, self.clock = folder, fuse, FakeClock(1_000_000.0)
        self.acknowledged: dict[str, Acknowledged] = {}
        self.answers: dict[str, object] = {}
        users = [{"id": f"u{n}", "age": str(20 + n)} for n in range(6)]
        import_entities(
            folder / "log", LogLimits(), "users", users, {"id": Field("id"), "age": Field("age", "int")}, 1.0
        )
        with Installation(folder, SETTINGS, self.clock) as empty:
            train(empty)
        self.serve = self.learn = None

    def installation(self):
        made = Installation(self.folder, SETTINGS, self.clock)
        made.log = CrashingLog(self.folder / "log", self.clock, self.fuse)
        made.repository = CrashingRepository(self.folder / "models", self.fuse)
        return made

    async def up(self):
        """Start what is not running, as the supervisor does."""
        if self.serve is None:
            self.serving = self.installation()
            self.serve = Serve(self.serving)
            await self.serve.engine.start()
            self.serve.poll()
            self.serve._recommend.recall(self.serving.log.reader("served"), 0)
        if self.learn is None:
            self.learning = self.installation()
            self.learn = Learn(self.learning)

    async def crash(self):
        """Both processes die; nothing is saved, the partitions come free."""
        if self.serve is not None:
            await self.serve.engine.stop()
        for installation in (getattr(self, "serving", None), getattr(self, "learning", None)):
            if installation is not None:
                installation.log.close()
        self.serve = self.learn = None

    async def moment(self, number):
        """One request, its impression and its outcome, and a little of everybody's time."""
        clock = self.clock
        rank = Rank(
            id=f"q{number}",
            user=f"u{number % 6}",
            candidates=tuple(f"i{(number + n) % 8}" for n in range(4)),
            event_time=1000.0 + number,
        )
        ranked = await self.serve.door.call(rank, ANYBODY)
        if rank.id in self.answers:
            assert self.answers[rank.id] == [c.item for c in ranked.items], "a retried id got another answer"
        item = rank.candidates[number % 4]
        for kind, value in (("impression", 1.0), ("like", float((number * 7) % 3 == 0))):
            outcome = Outcome(request=rank.id, item=item, kind=kind, value=value, event_time=rank.event_time)
            if outcome.key() not in self.acknowledged:
                await self.serve.door.call([outcome], ANYBODY)
                self.acknowledged[outcome.key()] = Acknowledged(outcome.key(), outcome.event_time)
        self.answers[rank.id] = [c.item for c in ranked.items]
        clock.advance(0.3)
        await self.turn()

    async def turn(self):
        self.learn.step()
        await self.serve.engine.refresh()
        self.serve.poll()
        if self.fuse.burnt:  # a callback of the event loop died, and the loop swallowed it
            raise Crash

    async def run(self):
        """All moments, coming back from crashes; then time moves on until the books are closed."""
        number = 0
        while number <= MOMENTS:
            try:
                await self.up()
                if number < MOMENTS:
                    await self.moment(number)
                else:
                    await self.close_books()
                number += 1
            except Crash:
                await self.crash()
                self.fuse = Fuse()
        await self.crash()

    async def close_books(self):
        end = Outcome(kind="watermark", event_time=5000.0)
        await self.serve.door.call([end], ANYBODY)
        for _ in range(4):
            self.clock.advance(1.5)
            await self.turn()
        await self.serve.door.call(Rank(id="last", user="u0", candidates=("i0",), event_time=6000.0), ANYBODY)
        self.served = self.serve.engine.views()[0]

    def examples(self):
        log = Log(self.folder / "log", self.clock)
        return log.reader("examples").read(0, 0, 100_000)

    def fold(self):
        """The weights that anybody can recompute: an empty learner over the whole topic."""
        learner = Ftrl(SETTINGS.ftrl, SETTINGS.features.width)
        batch, _ = gather(self.examples(), "ranker", SETTINGS.features.hash, learner.width)
        learner.learn(batch.tokens, batch.labels, batch.weights)
        return learner.weights()

    def weights_on_disk(self):
        """The weights a server holds: the live base, and every delta of it, applied here by hand."""
        installation = Installation(self.folder, SETTINGS, self.clock)
        live = installation.repository.policy("ranker").live
        path = installation.repository.folder("ranker", live) / "model.ftrl"
        weights = ServedFtrl.load(path).weights.copy()
        reader = installation.log.reader("deltas")
        sequence = Counter()
        for delta in map(decode, (record.value for record in reader.read(0, 0, 10_000))):
            assert isinstance(delta, Delta)
            sequence[delta.base] += 1
            assert delta.sequence == sequence[delta.base], "a base's deltas have a gap or came twice"
            if delta.base == live:
                weights[np.frombuffer(delta.slots, np.uint32)] = np.frombuffer(delta.weights, np.float32)
        return weights, f"{live}@{sequence[live]}"

    def audit(self):
        return audit(Log(self.folder / "log", self.clock), self.acknowledged.values(), SETTINGS.join.window_s)


def play(folder, fuse):
    loop = Loop(folder, fuse)
    asyncio.run(loop.run())
    return loop


def content(loop):
    events = [decode(record.value) for record in loop.examples()]
    return [(e.request, e.item, e.label, e.tokens) for e in events if isinstance(e, Example)]


@pytest.fixture(scope="module")
def uncrashed(tmp_path_factory):
    return play(tmp_path_factory.mktemp("uncrashed"), Fuse())


def sound(loop, uncrashed):
    books = loop.audit()
    assert books.balanced and books.waiting == 0, books
    assert books.acknowledged == 2 * MOMENTS == books.learnt
    assert books.examples == MOMENTS
    weights, served = loop.weights_on_disk()
    assert np.array_equal(weights, loop.fold()), "served weights are not the fold of examples"
    assert content(loop) == content(uncrashed)
    assert served.split("@")[0] == loop.served.live.split("@")[0]


def test_the_loop_learns_and_its_books_balance(uncrashed):
    sound(uncrashed, uncrashed)
    weights, served = uncrashed.weights_on_disk()
    assert served == uncrashed.served.live, "the server answers with exactly what was pushed"
    assert np.count_nonzero(weights) > 0
    repository = Installation(uncrashed.folder, SETTINGS, uncrashed.clock).repository
    assert len(repository.versions("ranker")) >= 3, "version 1, the learner's first base, and later ones"


def test_answers_name_the_version_that_made_them(uncrashed):
    log = Log(uncrashed.folder / "log", uncrashed.clock)
    served = [decode(record.value) for record in log.reader("served").read(0, 0, 1000)]
    steps = [tuple(map(int, event.version.split("@"))) for event in served]
    assert steps == sorted(steps), "versions and deltas only go forward"
    assert len(set(steps)) > 5


def crash_at(writes, before, folder, uncrashed):
    for write in writes:
        loop = play(folder / f"crashed-{write}", Fuse(write, before))
        with named(write, before):
            sound(loop, uncrashed)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_crash_at_some_writes_changes_nothing(tmp_path, uncrashed, before):
    total = uncrashed.fuse.writes  # closer together near the end, where no later base covers up a lost delta
    crash_at([*range(1, total - 60, 29), *range(total - 60, total + 1, 6)], before, tmp_path, uncrashed)


def every_other(first, total, folder):
    """Crashes at the writes from `first` on, in a process of their own, whose memory is nobody else's."""
    uncrashed = play(folder / f"uncrashed-{first}", Fuse())
    assert uncrashed.fuse.writes == total
    crash_at(range(first, total + 1, 2), True, folder, uncrashed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_crash_at_any_write_changes_nothing(tmp_path, uncrashed):
    """What one after a write leaves on the disk is what one before the next leaves."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        halves = [pool.submit(every_other, first, uncrashed.fuse.writes, tmp_path) for first in (1, 2)]
        for half in halves:
            half.result()


@contextmanager
def named(write, before):
    try:
        yield
    except AssertionError as error:
        error.add_note(f"crashed {'before' if before else 'after'} write {write}")
        raise


@pytest.mark.parametrize("seconds", [3600.0, -3600.0], ids=["ahead", "back"])
def test_a_wall_clock_that_jumps_changes_nothing(tmp_path, uncrashed, seconds):
    """Event time is the client's, order is the log's, pauses are monotonic: the wall clock decides nothing here."""

    class Jumpy(Loop):
        async def moment(self, number):
            if number == MOMENTS // 2:
                self.clock.jump(seconds)
            await super().moment(number)

    loop = Jumpy(tmp_path, Fuse())
    asyncio.run(loop.run())
    sound(loop, uncrashed)
    records = Log(tmp_path / "log", loop.clock).reader("outcomes").read(0, 0, 1000)
    arrivals = [record.arrival for record in records]
    assert arrivals == sorted(arrivals)


class Disk(Fuse):
    """A disk that can be full: then every write is refused, and nothing else happens."""

    full = False

    def around(self, write):
        if self.full:
            raise Full("no space left on the disk (as the test wants it)")
        return super().around(write)


def test_a_full_disk_stops_no_answer_and_loses_nothing_acknowledged(tmp_path):
    """Answers go on; outcomes are refused, so the client keeps them; a learner that died comes back."""

    class Filling(Loop):
        refused = deaths = 0

        async def moment(self, number):
            try:
                await super().moment(number)
            except Full:
                self.refused += 1
                self.clock.advance(1.5)
                await self.turn()
            if number == 24:  # there is room again, and the client sends what was refused
                self.fuse.full = False
                for late in range(20, 25):
                    await super().moment(late)

        async def turn(self):
            if len(self.answers) == 20:
                self.fuse.full = True
            try:
                await super().turn()
            except Full:
                self.deaths += 1
                self.learning.log.close()
                self.learn = None
                await self.up()

    loop = Filling(tmp_path, Disk())
    asyncio.run(loop.run())
    assert loop.refused == 5 and loop.deaths > 0
    books = loop.audit()
    assert books.balanced and books.waiting == 0
    assert books.acknowledged == 2 * MOMENTS
    assert books.causes == {"unknown_request": 10}, (
        "answers without a served event: their outcomes are set aside, visibly"
    )
    weights, _ = loop.weights_on_disk()
    assert np.array_equal(weights, loop.fold())
