"""`millstream forget`: nobody finds anything of the person in the folder, and everybody else is served as before."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from millstream.app.forget import forget
from millstream.app.installation import Installation, Known
from millstream.app.roles import Learn, Serve
from millstream.app.training import train
from millstream.cli import main
from millstream.clock import FakeClock
from millstream.errors import BadInput, Busy, Conflict
from millstream.features import Definition, Entities
from millstream.features.events import keys_of
from millstream.features.pipeline import folder_of, stores_of
from millstream.guard.pii import pseudonym
from millstream.learn.history import Field, import_entities
from millstream.meter import Meter
from millstream.models.online import ServedFtrl
from millstream.recall import liked
from millstream.store.rows import RowFile
from millstream.stream import Log, LogLimits, Writer, decode, encode
from millstream.types import Entity, Example, Forget, Forgotten, Outcome, Principal, Rank
from service import Served

ANYBODY = Principal("test")
MAIL = "ann.secret@example.org"
TOML = """
http_port = 0
poll_s = 0.01
[learn]
model = "ranker"
[learn.push]
push_s = 0.1
base_examples = 1000
[ftrl]
bits = 10
[join.tasks.like]
window_s = 3500.0
[log]
segment_bytes = 4000
[features]
user = [{ name = "id" }, { name = "age", bucket = 10 }]
item = [{ name = "id" }]
[feature_store]
definitions = "features.py"
log_share = 1.0
"""
DEFINITIONS = """
from millstream.features import Aggregate, FeatureSet, Source

outcomes = Source(
    name="outcomes", columns={"user": "text", "item": "text", "kind": "text", "value": "number", "id": "text"}, id="id"
)
pages = Source(name="pages", columns={"user": "text", "page": "text", "seconds": "number"})
likes = Aggregate(name="likes", source=outcomes, key="user", op="count", where="kind == 'like'")
liked = Aggregate(name="liked", source=outcomes, key="item", op="count", where="kind == 'like'")
spent = Aggregate(name="spent", source=pages, key="user", op="sum", column="seconds")
people = FeatureSet(name="people", features=(likes, liked, spent))
"""
PEOPLE = (MAIL, "bob", "cem")
ROUNDS = 12


def make(folder):
    """An installation with users and a first version."""
    folder.mkdir(exist_ok=True)
    (folder / "millstream.toml").write_text(TOML)
    (folder / "features.py").write_text(DEFINITIONS)
    ages = [{"id": one, "age": "33"} for one in PEOPLE]
    import_entities(folder / "log", LogLimits(), "users", ages, {"id": Field("id"), "age": Field("age", "int")}, 1.0)
    with Installation.open(folder / "millstream.toml") as at:
        train(at)
    return folder / "millstream.toml"


async def live(serve, learn, first=0, rounds=ROUNDS):
    """Everybody is served, likes something, and has their pages counted."""
    now = time.time()
    for number in range(first, first + rounds):
        for person in PEOPLE:
            request = f"secret-{number}" if person == MAIL else f"{person}-{number}"
            await serve.door.call(Rank(id=request, user=person, candidates=("i1", "i2", f"i{number}x")), ANYBODY)
            for kind in ("impression", "like"):
                text = "secret words" if person == MAIL else ""
                await serve.door.call(
                    [Outcome(request=request, item="i1", kind=kind, event_time=now, text=text)], ANYBODY
                )
            # seen, and not liked: the join waits an hour for more
            await serve.door.call([Outcome(request=request, item="i2", kind="impression", event_time=now)], ANYBODY)
            await serve.door.facts("pages", [{"user": person, "page": "p", "seconds": 2.0}], ANYBODY)
        serve.poll()
        if learn is not None:
            learn.step()
    if learn is None:
        return
    await settled(learn)
    for person in PEOPLE:
        await serve.door.features("people", {"user": [person], "item": ["i1"]}, {}, ANYBODY)


async def settled(learn):
    """Until `learn` has written what it knows."""
    quiet = 0
    while quiet < 20:
        quiet = 0 if learn.step() else quiet + 1
        await asyncio.sleep(0.005)


async def end(serve, learn):
    await serve.stop()
    learn.close()


@pytest.fixture
def lived(tmp_path):
    """The settings file of a stopped installation in which all of them were active."""
    file = make(tmp_path / "installation")

    async def run():
        with Installation.open(file) as at:
            serve, learn = Serve(at), Learn(at)
            await serve.start()
            await live(serve, learn)
            await end(serve, learn)

    asyncio.run(run())
    return file


def traces(folder):
    """Files below a folder that hold the name, its pseudonym, or what only this person's events say."""
    needles = (b"secret", pseudonym(MAIL).encode(), *(keys_of([one]).tobytes() for one in (MAIL, pseudonym(MAIL))))
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in files if any(one in path.read_bytes() for one in needles))


def rows(at, *people):
    """(there, values) of people's rows."""
    (features,) = at.registry.sets.values()
    stores = stores_of(features, folder_of(features, at.rows), 1, write=False)
    found = stores["user"].get(keys_of([pseudonym(one) for one in people]))
    return found.written != 0, found.rows


def command(capsys, *argv):
    capsys.readouterr()
    code = 0
    try:
        main(["forget", *map(str, argv)])
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr().out


def test_while_it_is_stopped(lived, capsys):
    folder = lived.parent
    with Installation.open(lived) as at:
        there, values = rows(at, *PEOPLE)
        assert there.all()
    assert traces(folder)
    code, out = command(capsys, MAIL, "-c", lived, "--json")
    report = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert report["sound"] and report["found"] and report["roles"] == []
    assert report["records"]["served"] == ROUNDS and report["records"]["outcomes"] == 3 * ROUNDS
    assert report["records"]["users"] == 1 and report["records"]["pages"] == ROUNDS
    assert report["records"]["features_read"] == 1 and report["records"]["examples"] == ROUNDS
    assert report["rows"] == 1 and report["snapshots"] == 1 and report["waiting"] == ROUNDS and report["bases"] == 1
    assert traces(folder) == []
    with Installation.open(lived) as at:
        there, after = rows(at, *PEOPLE)
        assert there.tolist() == [False, True, True] and np.array_equal(after[1:], values[1:])
    code, out = command(capsys, MAIL, "-c", lived, "--json")  # again
    assert code == 0 and not json.loads(out)["found"]
    code, out = command(capsys, "nobody", "-c", lived)
    assert code == 0 and "nothing was found" in out


def test_the_others_go_on_after_it(lived, capsys):
    command(capsys, MAIL, "-c", lived)

    async def run():
        with Installation.open(lived) as at:
            serve, learn = Serve(at), Learn(at)
            await serve.start()
            await settled(learn)
            assert rows(at, *PEOPLE)[0].tolist() == [False, True, True]
            await live(serve, learn, first=100, rounds=2)
            there, after = rows(at, *PEOPLE)
            assert there.all()
            # those who were known have two likes more, who was forgotten begins with two
            assert after[:, :].view(np.float32)[0].max() < after.view(np.float32)[1].max()
            await end(serve, learn)
            assert [not verified.corrupt for verified in map(at.log.verify, at.log.topics())]

    asyncio.run(run())


async def turning(serve, learn, done):
    """Both roles at work, as their processes are."""
    while not done.is_set():
        serve.poll()
        learn.step()
        await asyncio.sleep(0.005)


def test_while_both_roles_run(tmp_path):
    file = make(tmp_path / "installation")

    async def run():
        with Installation.open(file) as at, Installation.open(file) as commands:
            serve, learn, done = Serve(at), Learn(at), asyncio.Event()
            await serve.start()
            await live(serve, learn)
            await live(serve, None, first=50, rounds=3)  # `learn` has not seen these when it is asked to forget
            at_work = asyncio.ensure_future(turning(serve, learn, done))
            report = await forget(commands, [MAIL])
            done.set()
            await at_work
            assert report.roles == ["learn", "serve-0"] and report.sound
            assert (report.rows, report.attributes, report.answers) == (1, 1, ROUNDS + 3)
            assert report.waiting == report.records["served"] == ROUNDS + 3 and report.bases == 1
            assert traces(file.parent) == []
            await settled(learn)
            assert rows(at, *PEOPLE)[0].tolist() == [False, True, True]
            # a retry of a forgotten request is a new one, and what came later stays
            await live(serve, learn, first=100, rounds=2)
            assert rows(at, *PEOPLE)[0].all()
            await end(serve, learn)

    asyncio.run(run())


def test_weights_stay_the_fold_of_what_is_left(lived, capsys):
    """Without a base that is put before, a restart would fold fewer examples than were pushed."""
    command(capsys, MAIL, "-c", lived)
    with Installation.open(lived) as at:
        live_version = at.repository.policy("ranker").live
        weights = ServedFtrl.load(at.repository.folder("ranker", live_version) / "model.ftrl").weights.copy()
        learn = Learn(at)
        learn.learning.step()
        assert np.array_equal(learn.learning.training.learner.weights(), weights)
        learn.close()
    kinds = {type(decode(one.value)) for one in Log(lived.parent / "log", None).reader("examples").records(0)}
    assert kinds == {Example, Forgotten}


def test_one_at_a_time_and_not_beside_a_backup(lived, tmp_path):
    from millstream.ops.backup import backup
    from millstream.store.blob import locked

    with Installation.open(lived) as at:
        with locked(lived.parent / "state" / "backup.lock"), pytest.raises(Conflict, match="under way"):
            asyncio.run(forget(at, [MAIL]))
        with pytest.raises(BadInput):
            asyncio.run(forget(at, [""]))
        with pytest.raises(BadInput, match="items"):
            asyncio.run(forget(at, ["i1"], "item"))
        asyncio.run(forget(at, [MAIL]))
        backup(lived.parent, lived.name, (), tmp_path / "after.tar", at.clock)
    assert b"secret" not in (tmp_path / "after.tar").read_bytes()


def test_a_role_that_does_not_answer_is_named_and_nothing_is_lost(lived):
    before = traces(lived.parent)

    async def run():
        with Installation.open(lived) as at, Installation.open(lived) as commands:
            Serve(at)  # it holds its partitions, and never looks
            with pytest.raises(Busy, match=r"serve-0 \(process \d+\)"):
                await forget(commands, [MAIL], wait_s=0.1)

    asyncio.run(run())
    assert set(before) <= set(traces(lived.parent))


def test_somebody_who_writes_and_takes_no_orders_is_named(lived):
    with Installation.open(lived) as at, Log(lived.parent / "log", at.clock) as other:
        importing = other.writer("users")
        importing.append(b"", encode(Entity(id="u", attributes={})))
        with pytest.raises(Conflict, match=f"users/0 is written by process {os.getpid()}"):
            asyncio.run(forget(at, [MAIL]))


def killed_at(file, number):
    """Forget in a process of its own, which dies at its so many-th write, before it or behind it; whether it did."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] == signal.SIGKILL
    try:
        count = 0

        def dying(write):
            def writing(*args, **named):
                nonlocal count
                count += 1
                if count == number and number % 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = write(*args, **named)
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return writing

        for owner, name in WRITES:
            setattr(owner, name, dying(getattr(owner, name)))
        with Installation.open(file) as at:
            asyncio.run(forget(at, [MAIL]))
    finally:
        os._exit(0)


WRITES = (
    (Path, "replace"), (os, "replace"), (Writer, "append"), (Writer, "append_frame"), (Writer, "roll"),
    (RowFile, "forget"),
)  # fmt: skip


def others(file):
    """What is kept of the others: records of the log, but those of learning, and rows."""
    with Installation.open(file) as at:
        kept = {}
        for topic in at.log.topics():
            if topic in ("forget", "deltas", "policy"):
                continue
            reader = at.log.reader(topic)
            for partition in reader.partitions():
                for one in reader.records(partition):
                    if not isinstance(decode(one.value), Forgotten):
                        kept[topic, partition, one.offset] = one
        return kept, rows(at, "bob", "cem")[1].tobytes()


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_and_run_again_it_ends_the_same(lived, tmp_path, step):
    """At every so many-th write of it until it is done: kill -9 there, then it runs through."""
    number, was_killed = 3 - step, True
    whole = tmp_path / "whole"
    shutil.copytree(lived.parent, whole)
    with Installation.open(whole / lived.name) as at:
        asyncio.run(forget(at, [MAIL]))
    expected = others(whole / lived.name)
    while was_killed:
        number += step
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(lived.parent, folder)
        was_killed = killed_at(folder / lived.name, number)
        with Installation.open(folder / lived.name) as at:
            report = asyncio.run(forget(at, [MAIL]))
        assert report.sound and traces(folder) == [], number
        assert others(folder / lived.name) == expected, number
        assert not list(folder.rglob("*.part"))
        with Installation.open(folder / lived.name) as at:  # and it starts
            Learn(at).close()
        shutil.rmtree(folder)
    assert number > 15


def ask(port, path, body):
    data = json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
def test_with_real_processes(tmp_path):
    """`millstream up` with two workers under load; `millstream forget` beside it, killed once on its way."""
    file = make(tmp_path / "installation")
    file.write_text("workers = 2\n" + TOML)
    with Served("", tmp_path / "up.log", verb=["up", "-c", str(file)]) as up:
        number, stop, wrong = 0, threading.Event(), []

        def one(number, person):
            request = f"{'secret' if person == MAIL else person}-{number}"
            ask(up.http, "/v1/recommend", {"id": request, "user": person, "candidates": ["i1", "i2"]})
            kinds = [{"request": request, "item": "i1", "kind": kind} for kind in ("impression", "like")]
            ask(up.http, "/v1/outcomes", {"outcomes": kinds})
            row = {"user": person, "page": "p", "seconds": 1.0}
            ask(up.http, "/v1/features/write", {"source": "pages", "rows": [row]})

        for number in range(30):
            for person in PEOPLE:
                one(number, person)
        ask_until(lambda: not read(up.http, MAIL)["missing"]["user"][0])

        def traffic():
            number = 100
            while not stop.is_set():
                try:
                    one(number, "bob")
                except Exception as error:
                    wrong.append(error)
                number += 1

        load = threading.Thread(target=traffic)
        load.start()
        command = [sys.executable, "-m", "millstream", "forget", MAIL, "-c", str(file), "--json"]
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        ask_until(lambda: (file.parent / "log" / "forget" / "0").exists())
        killed.kill()
        killed.wait()
        done = subprocess.run(command, capture_output=True, timeout=60, text=True)
        stop.set()
        load.join()
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["roles"] == ["learn", "serve-0", "serve-1"] and report["sound"] and not wrong
        assert traces(file.parent) == []
        assert read(up.http, MAIL)["missing"]["user"] == [True] and read(up.http, "bob")["missing"]["user"] == [False]
    with Installation.open(file) as at:
        assert not any(at.log.verify(topic).corrupt for topic in at.log.topics())
    assert "Traceback" not in (tmp_path / "up.log").read_text()


def read(port, person):
    return ask(port, "/v1/features/get", {"set": "people", "entities": {"user": [person], "item": ["i1"]}})


def ask_until(true, seconds=30.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if true():
                return
        except urllib.error.HTTPError:  # not there yet
            pass
        time.sleep(0.02)
    raise AssertionError("it never came")


def test_learn_forgets_nobody_before_it_has_read_what_there_is_of_them(tmp_path):
    """Else what it reads afterwards, from a segment that it has open still, would bring them back."""
    file = make(tmp_path / "installation")

    async def run():
        with Installation.open(file) as at, Installation.open(file) as commands:
            serve, learn = Serve(at), Learn(at)
            await serve.start()
            await live(serve, learn)
            await live(serve, None, first=50, rounds=3)
            forgetting = asyncio.ensure_future(forget(commands, [MAIL]))
            asked = at.log.reader("forget")
            while not any(isinstance(decode(one.value), Forget) for one in asked.records(0)):
                serve.poll()
                learn._orders.poll()  # it looks, and does nothing else
                await asyncio.sleep(0.005)
            for _ in range(3):
                learn._orders.poll()
            assert rows(at, MAIL)[0].all(), "it has not read all, so nothing goes yet"
            while not forgetting.done():
                serve.poll()
                learn.step()
                await asyncio.sleep(0.005)
            await settled(learn)
            assert (await forgetting).waiting == ROUNDS + 3
            await end(serve, learn)
        assert traces(file.parent) == []

    asyncio.run(run())


def test_lists_forget_nobody_before_they_have_read_what_there_is_of_them(tmp_path, monkeypatch):
    """Who reads on slowly is asked meanwhile: what it reads afterwards would bring them back."""
    file, mine = make(tmp_path / "installation"), pseudonym(MAIL)
    with file.open("a") as settings:
        settings.write("[recommend.placements.home]\n[histories.kinds]\nlike = 1.0\n[recall]\nleast_events = 1\n")

    async def run():
        with Installation.open(file) as at, Installation.open(file) as commands:
            serve, learn, done = Serve(at), Learn(at), asyncio.Event()
            await serve.start()
            await serve.door.upsert("items", [{"id": "i1"}], ANYBODY)
            live_, real = serve.lister.live, serve.lister.live.poll
            with monkeypatch.context() as slow:
                slow.setattr(live_, "poll", lambda: real(1))
                slow.setattr(liked, "STEP", 1)
                await live(serve, None, rounds=20)
                at_work = asyncio.ensure_future(turning(serve, learn, done))
                report = await forget(commands, [MAIL])
                done.set()
                await at_work
            while live_.poll() or learn.step():
                pass
            assert report.sound and report.attributes == 2, "as one who has attributes, and as one of lists"
            assert not len(live_.histories.of(mine).numbers) and len(live_.histories.of("bob").numbers) == 1
            assert mine not in {*live_._requests.values(), *live_._attributes, *serve.known._told["user"]}
            people = learn._builders[0]._liked
            assert mine not in {*people._users, *people._requests.values()} and "bob" in people._users
            await end(serve, learn)
        for kept in ("serve-1.npz", ".serve-1.npz.part"):  # of a worker that was killed
            (file.parent / "state" / "live" / kept).write_text("secret")
        with Installation.open(file) as at:
            report = await forget(at, [MAIL])
            assert any("state/recall" in one.what for one in report.stays) and at.indexes.exists()
        assert traces(file.parent) == [] and not list((file.parent / "state" / "live").iterdir())

    asyncio.run(run())


def test_what_is_known_of_an_id_arrived_last_whatever_partition_it_is_in(tmp_path):
    definition = Definition.read({"user": [{"name": "id"}, {"name": "age"}], "item": [{"name": "id"}]})
    chance, clock = random.Random(7), FakeClock(1e6)
    with Log(tmp_path, clock) as log:
        writers, last = [log.writer("users", partition) for partition in range(3)], {}
        for at in range(200):
            clock.advance(1.0)
            name = f"u{chance.randrange(20)}"
            chance.choice(writers).append(b"", encode(Entity(id=name, attributes={"age": at})))
            last[name] = at
        known = Known(Entities(definition), log, Meter())
        assert not known.reached({"users": {0: 1}}) and known.reached({"served": {0: 1}})
        known.poll()
        assert known.reached({"users": {0: 1, 1: 999}})
        expected = Entities(definition)
        for name, at in last.items():
            expected.upsert("user", name, {"age": at})
            assert np.array_equal(known.entities.rows(name, ["i"]), expected.rows(name, ["i"])), name
        assert known.forget(lambda user: user == "u3") == 1 and known.forget(lambda user: user == "u3") == 0
        assert "u3" not in known._told["user"] and len(known._told["user"]) == len(last) - 1
        writers[0].append(b"", encode(Entity(id="u3", attributes={"age": 5})))
        known.poll()
        expected.upsert("user", "u3", {"age": 5})
        assert np.array_equal(known.entities.rows("u3", ["i"]), expected.rows("u3", ["i"]))


def test_what_the_join_had_not_read_is_nothing_to_it_and_an_older_state_of_it_still_starts(tmp_path):
    file = make(tmp_path / "installation")
    snapshot, older = file.parent / "state" / "join.snapshot", tmp_path / "older"

    async def run():
        with Installation.open(file) as at:
            serve, learn = Serve(at), Learn(at)
            await serve.start()
            await live(serve, learn, rounds=2)
            learn.join.save()
            shutil.copy(snapshot, older)
            await live(serve, learn, first=10)
            learn.close()
            await live(serve, None, first=50, rounds=3)
            await serve.stop()
        with Installation.open(file) as at:
            assert (await forget(at, [MAIL])).records["served"] == 2 + ROUNDS + 3
        for put_back in (False, True):
            if put_back:  # as somebody may, from a copy of his own
                shutil.copy(older, snapshot)
            with Installation.open(file) as at:
                learn = Learn(at)
                await settled(learn)
                assert rows(at, *PEOPLE)[0].tolist() == [False, True, True]
                learn.close()
            assert traces(file.parent) == []

    asyncio.run(run())
