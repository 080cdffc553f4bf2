"""What learning lives through, with the real processes as a user starts them and a client of their own over HTTP: a day
without the role that learns and the flood after it, labels of which a part is wrong, clocks that are hours off, and
everything a second time. Afterwards the books balance, and the weights are a fold that anybody can work out."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pytest

from millstream.app.installation import Installation
from millstream.app.training import status, train
from millstream.clock import FakeClock
from millstream.learn.history import Field, import_entities
from millstream.learn.train import gather
from millstream.models import online
from millstream.simulate import Disturbances, Poison, Simulator, Span, disturbed
from millstream.stream import Log, decode, encode
from millstream.stream.audit import audit, read_ledger
from millstream.stream.operator import Step
from millstream.types import Example, Outcome, SetAside
from millstream.types import Served as ServedEvent
from service import Connection, Served, until
from test_demo import millstream
from test_kill import fold, served

CONNECTIONS = 4
TOML = """
http_port = 0
grpc_port = 0
poll_s = 0.01
[recommend]
model = "ranker"
[learn]
model = "ranker"
push.push_s = 0.1
push.base_examples = {base_examples}
push.bases_kept = 1000
gate.window = {window}
gate.then = "{then}"
gate.resume_s = 0.5
[ftrl]
bits = 14
alpha = 0.2
[join]
tasks.like.window_s = {window_s}
tasks.like.late = "correct"
requests_max = {requests_max}
[features]
user = [{{ name = "id" }}, {{ name = "age", bucket = 10 }}, {{ name = "occupation" }}]
item = [{{ name = "id" }}, {{ name = "genres", places = 3 }}]
crosses = ["user.occupation*item.genres", "user.id*item.genres"]
"""
SHOWN = 3  # of an answer of the past
ALWAYS = Span(0.0, float("inf"))


def make(folder, world, **settings):
    """An installation that knows the world's people and items, and has a version 1 that knows nothing; its file."""
    file = folder / "millstream.toml"
    given = {"base_examples": 50_000, "window": 5000, "then": "freeze", "window_s": 5.0, "requests_max": 200_000}
    file.write_text(TOML.format(**given | settings))
    with Installation.open(file) as at:
        for topic, rows in (("users", world.users), ("items", world.items)):
            fields = {name: Field(name, "list" if name == "genres" else "str") for name in rows[0]}
            import_entities(folder / "log", at.settings.log, topic, rows, fields, 1.0)
        train(at)
    return file


class Ledger:
    """Of all clients: what was acknowledged, as a file, and what was told of each item, by request."""

    def __init__(self, folder):
        self.path, self.told, self.sent = folder / "ledger.jsonl", {}, []
        self._file = self.path.open("wb")

    def write(self, outcomes):
        for one in outcomes:
            self.sent.append(one)
            self.told[one.request] = max(self.told.get(one.request, 0.0), float(one.kind == "like"))
            self._file.write(orjson.dumps({"outcome": one.key(), "event_time": one.event_time}) + b"\n")
        self._file.flush()


def did(request, moment, event_time, liked_s=0.0, shown=1):
    """What a person did: saw so many items, and liked the first of them perhaps."""
    items = [moment.item, *(one for one in moment.candidates if one != moment.item)][:shown]
    seen = [Outcome(request=request, item=item, kind="impression", event_time=event_time) for item in items]
    liked = Outcome(request=request, item=moment.item, kind="like", event_time=event_time + liked_s)
    return [*seen, liked] if moment.told else seen


def pile_up(file, moments, ledger):
    """A day that nobody joined: what `serve` wrote of it, with the arrivals of that day. How many events."""
    with Installation.open(file) as at:
        rows, definition, limits = at.entities(), at.definition.hash, at.settings.log
    events = []
    for number, one in enumerate(moments):
        request = f"past-{number}"
        answer = ServedEvent(
            request=request, model="ranker", version="1@0", policy=1, arm="live", user=one.user,
            candidates=list(one.candidates), event_time=one.event_time, definition=definition,
            tokens=rows.rows(one.user, one.candidates).tobytes(),
            scores=np.full(len(one.candidates), 0.5, np.float32).tobytes(),
        )  # fmt: skip
        events.append((one.event_time, "served", answer))
        for outcome in did(request, one, one.event_time, min(one.delay_s, 0.4), SHOWN):
            late_s = one.delay_s if outcome.kind == "like" else 0.1
            events.append((one.event_time + late_s, "outcomes", outcome))
    events.sort(key=lambda event: event[0])
    clock = FakeClock(0.0)
    with Log(file.parent / "log", clock, limits) as log:
        writers = {topic: log.writer(topic) for topic in ("served", "outcomes")}
        for arrival, topic, event in events:
            clock.jump(arrival - clock.now())
            writers[topic].append(event.request.encode(), encode(event))
    ledger.write(event for _, topic, event in events if topic == "outcomes")
    return len(events)


class Client:
    """Asks, and tells what people did, without a pause. `wrong`: whatever was not answered as it must be. `latest`: the
    version that answered last, of each connection, which is one process's for as long as it lasts."""

    def __init__(self, port, ledger, shown=1, pace_s=0.0):
        self.port, self.ledger, self.shown, self.pace_s = port, ledger, shown, pace_s
        self.wrong, self.versions, self.answered, self.latest = [], [], 0, {}

    def begin(self, moments, ahead_s=0.0):
        """From now on, over several connections. `ahead_s`: of the clocks of users with the cause `skew`."""
        self._stop, stream, self.latest = False, enumerate(moments, self.answered), {}
        self._tasks = [asyncio.ensure_future(self._ask(stream, ahead_s, one)) for one in range(CONNECTIONS)]

    async def end(self):
        """Until the last answer is there."""
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, stream, ahead_s, which):
        async with await Connection.open(self.port) as connection:
            while not self._stop:
                await asyncio.sleep(self.pace_s)
                number, one = next(stream)
                now = time.time() + (ahead_s if "skew" in one.cause else 0.0)
                ask = {"id": f"live-{number}", "user": one.user, "candidates": one.candidates, "event_time": now}
                code, answer = await connection.ask("/v1/recommend", ask)
                if code != 200 or {each["item"] for each in answer["items"]} != set(one.candidates):
                    self.wrong.append((code, answer))
                    continue
                self.answered += 1
                self.versions.append(answer["version"])
                self.latest[which] = answer["version"]
                await self.tell(connection, did(ask["id"], one, now, shown=self.shown))

    async def tell(self, connection, outcomes):
        code, said = await connection.ask("/v1/outcomes", [msgspec.structs.asdict(one) for one in outcomes])
        if code != 200:
            self.wrong.append((code, said))
        else:
            self.ledger.write(one for one in outcomes if one.kind != "watermark")

    async def close(self, ahead_s):
        """Say that time has moved on, so that the last windows close."""
        async with await Connection.open(self.port) as connection:
            await self.tell(connection, [Outcome(kind="watermark", event_time=time.time() + ahead_s)])


class Learner:
    """`millstream up --role learn`, which dies with the `with`. `memory`: the most it was seen to hold, in bytes,
    without what it maps of files."""

    def __init__(self, file, out):
        command = [sys.executable, "-m", "millstream", "up", "-c", str(file), "--role", "learn"]
        self.out = Path(out)
        with self.out.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        self.memory = 0

    def look(self):
        assert self.process.poll() is None, self.out.read_text()
        page = Path(f"/proc/{self.process.pid}/status").read_text()
        self.memory = max(self.memory, int(re.search(r"RssAnon:\s+(\d+) kB", page)[1]) * 1024)
        return self.memory

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


def newest(at):
    """The last thing the join said of a request; None for nothing yet."""
    reader = at.log.reader("examples")
    end = reader.end(0)
    for record in reader.read(0, max(0, end - 50), 50)[::-1] if end else ():
        if isinstance(event := decode(record.value), Example):
            return event
    return None


def joined(at):
    """Whether the join has read every outcome, by what its last frame says."""
    reader, outcomes, meta = at.log.reader("examples"), at.log.reader("outcomes"), b""
    for frame in reader.frames(0, max(0, reader.end(0) - 1)):
        meta = frame.meta
    read = msgspec.msgpack.decode(meta, type=Step).offsets["outcomes"] if meta else {}
    return all(read.get(one, 0) >= outcomes.end(one) for one in outcomes.partitions())


def settled(at, ledger):
    """The books, once every outcome is read and has its place and the weights of all examples are served."""
    if not joined(at) or at.log.committed("learn.ranker", "examples").get(0, 0) < at.log.reader("examples").end(0):
        return None
    policy, join = at.repository.policy("ranker"), at.settings.join
    assert policy.learning == "run", policy.why
    books = audit(at.log, read_ledger(ledger.path), join.window_s, join.ahead_s)
    return books if books.waiting == 0 else None


def audited(at, ledger):
    """What an operator is told, of everything acknowledged."""
    window = str(at.settings.join.window_s)
    said = millstream("log", "audit", at.folder / "log", "--ledger", ledger.path, "--window", window, "--json")
    assert said.returncode == 0, said.stdout + said.stderr
    books = orjson.loads(said.stdout)
    assert books["sound"] and (books["lost"], books["duplicated"], books["waiting"]) == (0, 0, 0), books
    assert books["acknowledged"] == len({one.key() for one in ledger.sent}) == books["learnt"] + books["set_aside"]
    return books


def world_of(seed, **options):
    return Simulator(np.random.default_rng(seed), users=200, items=100, candidates=6, drift_period_s=0.0, **options)


DAY_S = 86400.0
LATE_S, TOO_LATE_S = 1200.0, 7200.0  # after the window, and after the request is forgotten


def tardy(moments, random):
    """Of a part of the likes the service hears long afterwards."""
    for one in moments:
        dice = random.random()
        late_s = TOO_LATE_S if dice < 0.03 else LATE_S if dice < 0.08 else one.delay_s
        yield msgspec.structs.replace(one, delay_s=late_s)


@pytest.mark.parametrize("requests", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_a_day_without_learning_and_the_flood_after_it(tmp_path, requests):
    """200,000 events and more wait when `learn` comes; it is killed in the middle of them, and comes again."""
    start = time.time() - DAY_S - 600.0
    world = world_of(1, start=start, rate=requests / DAY_S, delay_s=0.1)
    file = make(tmp_path, world, requests_max=20_000, window_s=0.5)
    ledger = Ledger(tmp_path)
    piled_up = pile_up(file, tardy(world.moments(requests), np.random.default_rng(2)), ledger)
    with Served("", tmp_path / "serve.log", verb=["up", "-c", str(file), "--role", "serve"]) as serve:
        with Installation.open(file) as at:
            client = Client(serve.http, ledger, SHOWN, pace_s=0.02)
            asyncio.run(outage(at, file, client, world))
            books = audited(at, ledger)
        assert serve.stop() == 0
    assert client.wrong == [] and client.versions[0] == "1@0"
    assert {version.partition("@")[0] for version in client.versions[-3:]} != {"1"}, "the flood never reached people"
    assert books["causes"].keys() == {"expired"}, books
    assert requests / 300 < books["set_aside"] < requests / 30, "likes that came when their request was forgotten"
    with Installation.open(file) as at:
        events = [decode(record.value) for record in at.log.reader("examples").records(0)]
        first = Counter((one.request, one.item) for one in events if isinstance(one, Example) and one.form == "")
        late = sum(one.form == "late" for one in events if isinstance(one, Example))
        assert set(first.values()) == {1} and len(first) == SHOWN * (requests + client.answered)
        assert late > requests / 200, "what was reported late took nothing back"
        assert np.array_equal(served(at), fold(at)) and np.count_nonzero(served(at)) > 500
    print(f"{piled_up} events, {client.answered} answers meanwhile, {late} taken back", books["causes"])


async def outage(at, file, client, world):
    """Ask all the time; meanwhile let the role that learns come, die in the flood, and come again."""
    examples, whole = at.log.reader("examples"), len(client.ledger.told)
    client.begin(world.moments(10**6))
    await until(lambda: client.answered > 100)
    assert examples.end(0) == 0
    with Learner(file, file.parent / "learn1.log") as first:
        await until(lambda: first.look() and examples.end(0))
        at_first = first.memory
        await until(lambda: first.look() and examples.end(0) > whole / 4)
        first.kill()
    with Learner(file, file.parent / "learn2.log") as second:
        await until(lambda: second.look() and (last := newest(at)) and last.request.startswith("live"))
        before = client.answered
        await until(lambda: second.look() and client.answered > before + 100)
        await client.end()
        await client.close(at.settings.join.ahead_s)
        await until(lambda: second.look() and settled(at, client.ledger))
    # What is remembered is bounded by the join's settings, a step by its records: neither knows how much has piled up.
    bound = at_first + at.settings.join.requests_max * 1024 + (32 << 20)
    assert max(first.memory, second.memory) < bound, (at_first, first.memory, second.memory)
    print(f"memory from {at_first >> 20} to {max(first.memory, second.memory) >> 20} MiB")


def worked_out(at, start, newer_than=0):
    """The weights that a version and all that was learnt in bases after another one make: spans of `examples` that each
    base and its deltas say they have."""
    learner, _ = online.load(at.repository.folder("ranker", start) / "model.ftrl")
    reader, ends = at.log.reader("examples"), {}
    for delta in (decode(record.value) for record in at.log.reader("deltas").records(0)):
        ends[delta.base] = delta.upto
    for version in sorted(filter(lambda one: int(one) > newer_than, at.repository.versions("ranker")), key=int):
        first = at.repository.manifest("ranker", version).lineage["upto"]
        records = [one for one in reader.records(0, first) if one.offset < ends.get(version, first)]
        batch, _ = gather(records, "ranker", at.definition.hash, learner.width)
        learner.learn(batch.tokens, batch.labels, batch.weights)
    return learner.weights()


@pytest.mark.slow
@pytest.mark.parametrize("then", ["freeze", "rollback"])
def test_a_time_in_which_a_third_of_the_labels_are_wrong(tmp_path, then):
    """Learning stops and says why, people are answered with the last good weights, and learning goes on afterwards
    without what was refused: by itself, or once somebody has promoted what the rule went back to."""
    world = world_of(3, rate=1.0, delay_s=0.0)
    file = make(tmp_path, world, base_examples=500, window=400, then=then, window_s=0.3)
    ledger = Ledger(tmp_path)
    with Served("", tmp_path / "up.log", verb=["up", "-c", str(file)]) as up:
        with Installation.open(file) as at:
            client = Client(up.http, ledger)
            asyncio.run(poison(at, file, client, world, then))
            books = audited(at, ledger)
        assert up.stop() == 0
    assert client.wrong == []
    assert books["learnt"] == books["acknowledged"], books


def sure(moments):
    """Of people who like what they are likely to like: without luck in it, wrong labels show after hundreds."""
    for one in moments:
        yield msgspec.structs.replace(one, label=one.probability > 0.4, told=one.probability > 0.4)


async def poison(at, file, client, world, then):
    """Right labels, wrong ones until learning has stopped and longer, right ones until it goes on."""
    examples, random = at.log.reader("examples"), np.random.default_rng(4)

    def policy():
        return at.repository.policy("ranker")

    def learnt():
        assert policy().learning == "run", policy().why
        return at.log.committed("learn.ranker", "examples").get(0, 0)

    def moved():
        [*now] = set(client.latest.values())
        return len(now) == 1 and now[0].startswith(f"{stopped.live}@")

    client.begin(sure(world.moments(10**6)))
    await until(lambda: learnt() > 2000)
    await client.end()
    wrong = Disturbances(poison=(Poison(ALWAYS, 0.3),))
    client.begin(disturbed(sure(world.moments(10**6)), wrong, random, 0.0))
    await until(lambda: policy().learning == "paused")
    stopped, newest_base = policy(), int(at.repository.versions("ranker")[-1])
    said = status(at)
    assert said.learning == ("pinned" if then == "rollback" else "paused")
    assert said.why.startswith("gate: ") and said.who == "millstream learn"
    if then == "rollback":
        assert stopped.pin == stopped.live and int(stopped.live) < newest_base
    # Of every connection: a process that waits for a core answers a last time with what it had, and others far more.
    await until(lambda: len(client.latest) == CONNECTIONS and moved())
    refused, good = examples.end(0), len(client.versions)
    await until(lambda: examples.end(0) > refused + 400)
    assert policy() == stopped, "learning went on while labels were wrong"
    assert len(set(client.versions[good - 1 :])) == 1, "weights that the gate had not let pass were served"
    await client.end()
    client.begin(sure(world.moments(10**6)))
    if then == "rollback":
        promoted = ("traffic", "promote", file.parent / "models", "ranker", stopped.live)
        for verb in (promoted, ("train", "resume", "-c", file)):
            done = await asyncio.to_thread(millstream, *verb)
            assert done.returncode == 0, done.stderr
    await until(lambda: policy().learning == "run")
    went_on = examples.end(0)
    await until(lambda: learnt() > went_on + 300)
    await client.end()
    await client.close(at.settings.join.ahead_s)
    await until(lambda: settled(at, client.ledger))
    weights = worked_out(at, stopped.live, newest_base) if then == "rollback" else worked_out(at, "1")
    assert np.array_equal(served(at), weights) and np.count_nonzero(weights) > 300
    assert not np.array_equal(weights, fold(at)), "nothing was passed over"
    print(stopped.why, "|", policy().why, "| refused", client.answered)


HOUR_S = 3600.0


@pytest.mark.slow
def test_clocks_that_are_hours_off_and_everything_twice(tmp_path):
    """A third of the people have a clock three hours ahead, then behind, then ten minutes; then a file of all outcomes
    is sent again, and both partitions come a second time. Everything is learnt, and nothing twice."""
    world = world_of(5, rate=1.0, delay_s=0.0)
    file = make(tmp_path, world, window_s=0.5)
    ledger = Ledger(tmp_path)
    with Served("", tmp_path / "up.log", verb=["up", "-c", str(file)]) as up:
        with Installation.open(file) as at:
            client = Client(up.http, ledger, pace_s=0.005)
            asyncio.run(skewed(at, client, world))
            once = examples_of(at)
            asyncio.run(again(at, client))
            assert examples_of(at) == once, "what came again was learnt again"
            hours_later(at, 4 * HOUR_S)
            asyncio.run(until(lambda: settled(at, ledger)))
            books = audited(at, ledger)
            found, aside = examples_of(at), Counter(one.cause for one in events_of(at) if isinstance(one, SetAside))
            assert np.array_equal(served(at), fold(at)) and np.count_nonzero(served(at)) > 300
        assert up.stop() == 0
    assert client.wrong == []
    assert len(once) < len(found) and set(Counter((one, form) for one, form, _ in found).values()) == {1}
    assert {one: label for one, _, label in found} == ledger.told, "a label is what its person did, whatever the clock"
    assert books["learnt"] == books["acknowledged"] == len(ledger.sent) and set(aside) == {"duplicate"}, (books, aside)
    assert aside["duplicate"] > len(ledger.sent), "all of it came three times"


def events_of(at):
    return [decode(record.value) for record in at.log.reader("examples").records(0)]


def examples_of(at):
    """(request, form, label) of each, in order."""
    return [(one.request, one.form, one.label) for one in events_of(at) if isinstance(one, Example)]


async def skewed(at, client, world):
    """Until all is joined that does not wait for hours."""
    random = np.random.default_rng(6)
    for ahead_s in (3 * HOUR_S, -3 * HOUR_S, -600.0):
        moments = disturbed(world.moments(10**6), Disturbances(skewed=0.3, skew_s=ahead_s), random, 0.0)
        client.begin(moments, ahead_s)
        before = client.answered
        await until(lambda before=before: client.answered > before + 300)
        await client.end()
    off = [one.event_time - time.time() for one in client.ledger.sent]
    assert min(off) < -2 * HOUR_S and max(off) > 2 * HOUR_S
    await client.close(at.settings.join.ahead_s)
    await until(lambda: joined(at))


async def again(at, client):
    """A file of all outcomes over HTTP, and what a mirror of the log makes: a second partition of either topic."""
    sent = client.ledger.sent
    async with await Connection.open(client.port) as connection:
        for first in range(0, len(sent), 200):
            body = [msgspec.structs.asdict(one) for one in sent[first : first + 200]]
            assert (await connection.ask("/v1/outcomes", body))[0] == 200
    for topic in ("served", "outcomes"):
        copy = at.log.writer(topic, 1)
        for record in list(at.log.reader(topic).records(0)):
            copy.append(record.key, encode(decode(record.value)))
    await until(lambda: joined(at))


def hours_later(at, seconds):
    """Somebody's last word, as of then."""
    now = time.time() + seconds
    with Log(at.folder / "log", FakeClock(now), at.settings.log) as log:
        log.writer("outcomes", 2).append(b"", encode(Outcome(kind="watermark", event_time=now)))
