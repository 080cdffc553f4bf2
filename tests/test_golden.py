"""What a release wrote, today's code opens, verifies, serves and learns on from; what a later one wrote it refuses."""

import asyncio
import hashlib
import json
import sqlite3
import struct
import tarfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from millstream import errors
from millstream.app.installation import Installation
from millstream.clock import FakeClock, SystemClock
from millstream.engine import Engine
from millstream.guard.pii import Redacted
from millstream.meter import Meter
from millstream.models import Repository, load
from millstream.models.online import ServedFtrl
from millstream.ops.backup import backup
from millstream.ops.restore import restore
from millstream.stream import Log
from millstream.stream.audit import Acknowledged, audit
from millstream.testing import Fuse
from millstream.types import Request, Turn
from test_loop import SETTINGS, Loop

GOLDEN = Path(__file__).parent / "golden"
RELEASES = sorted(path.name for path in GOLDEN.iterdir() if (path / "expected.json").exists())
CLOCK = FakeClock(2_000_000.0)


@pytest.fixture(params=RELEASES)
def release(request):
    return GOLDEN / request.param


@pytest.fixture
def expected(release):
    return json.loads((release / "expected.json").read_text())


@pytest.fixture
def folder(release, tmp_path):
    made = tmp_path / "installation"
    with tarfile.open(release / "installation.tar.xz") as tar:
        tar.extractall(made, filter="data")
    mend(made / "millstream.toml")
    return made


def mend(settings):
    """What whoever upgrades has to change by hand: what is refused says what."""
    text = settings.read_text()
    if "[join]\nwindow_s" in text:
        with pytest.raises(errors.Misconfigured, match=r"`join.window_s` is `join.tasks.NAME.window_s` now"):
            Installation.open(settings)
        settings.write_text(text.replace("[join]\nwindow_s", "[join]\ntasks.like.window_s"))


def test_there_is_one_of_every_release_since_the_first():
    assert "0.2" in RELEASES


def test_every_file_is_read_as_it_was_written(folder, expected):
    with Installation.open(folder / "millstream.toml") as at:
        found = {topic: at.log.verify(topic) for topic in at.log.topics()}
        assert {topic: one.records for topic, one in found.items()} == expected["records"]
        assert not any(one.corrupt or one.tail_bytes for one in found.values())
        for model, versions in expected["versions"].items():
            assert at.repository.versions(model) == versions
            for version in versions:
                at.repository.verify(model, version)
                assert load(at.repository, model, version).inputs
        assert (
            at.repository.policy("ranker").version == expected["policy"] == at.repository.history("ranker")[-1].version
        )
        acknowledged = [Acknowledged(**one) for one in expected["acknowledged"]]
        books = audit(at.log, acknowledged, at.settings.join.window_s)
        assert books.balanced and books.not_logged == 0
        assert at.log.committed("learn.ranker", "examples")


def test_it_goes_on_learning_where_it_was_killed(folder, expected):
    loop = Loop.__new__(Loop)
    loop.folder, loop.fuse, loop.clock = folder, Fuse(), FakeClock(expected["clock"])
    loop.acknowledged = {one["outcome"]: Acknowledged(**one) for one in expected["acknowledged"]}
    loop.answers, loop.serve, loop.learn = dict(expected["answers"]), None, None
    weights, live = loop.weights_on_disk()
    assert live == expected["live"] and hashlib.sha256(weights.tobytes()).hexdigest() == expected["weights"]
    before = len(loop.acknowledged)

    async def go_on():
        await loop.up()
        for number in range(20, 60):  # the first ten were asked before: the same answers, nothing twice
            await loop.moment(number)
        await loop.close_books()
        await loop.crash()

    asyncio.run(go_on())
    books = loop.audit()
    assert books.balanced and books.waiting == 0 and books.learnt == len(loop.acknowledged) > before
    weights, live = loop.weights_on_disk()
    assert np.array_equal(weights, loop.fold()), "served weights are not the fold of examples"
    assert int(live.partition("@")[0]) > int(expected["live"].partition("@")[0])


def test_its_open_sessions_go_on(folder, expected):
    async def one(take_over):
        engine = Engine(Repository(folder / "models"), SystemClock(), Meter())
        await engine.start()
        turns = [Turn(id="b", start=True), Turn(id="b"), Turn(id="b")]
        if take_over:
            assert engine.take_over(folder / "state" / "sessions") == 1
            turns = [Turn(id="a", step=3, token=expected["token"])]
        first = 3 - len(turns) + 1
        for number, turn in enumerate(turns, first):
            answer = await engine.submit(Request("rnn", {"x": np.full((1, 3), number, np.float32)}, 1, turn=turn))
        await engine.stop()
        return answer.outputs["y"].tolist()

    assert asyncio.run(one(take_over=True)) == asyncio.run(one(take_over=False))


def test_it_is_backed_up_and_restored(folder, tmp_path, expected):
    backup(folder, "millstream.toml", (), tmp_path / "b.tar", CLOCK)
    told = restore(tmp_path / "b.tar", tmp_path / "again", CLOCK)
    assert told.sound and told.topics == expected["records"] and told.models == expected["versions"]


def segments_of(folder, topic="outcomes"):
    return folder / "log" / topic / "0" / f"{0:020d}.seg"


def patched(path, at, data):
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


def packed(path, **more):
    path.write_bytes(msgspec.msgpack.encode(msgspec.msgpack.decode(path.read_bytes()) | more))


def later_groups(folder):
    with sqlite3.connect(folder / "log" / "groups.sqlite") as groups:
        groups.execute("PRAGMA user_version = 2")


def said(folder, path, text):
    (folder / path).write_text(text + (folder / path).read_text())


def opened(folder):
    """Everything a process opens, one after the other; the first error."""
    with Installation(folder, SETTINGS, CLOCK) as at:
        for topic in at.log.topics():
            list(at.log.reader(topic).records(0))
        at.log.commit("test", "served", {0: 1})
        at.repository.history("ranker")
        at.repository.policy("ranker")
        ServedFtrl.load(at.repository.folder("ranker", "2") / "model.ftrl")
        at.repository.manifest("ranker", "2")
        at.join().abandon()


LATER = {
    "committed": lambda folder: patched(segments_of(folder).with_name("committed"), 16, struct.pack("<Q", 2)),
    "groups": later_groups,
    "snapshot": lambda folder: packed(folder / "state" / "join.snapshot", format=3, output="another type by then"),
    "manifest": lambda folder: said(folder, "models/ranker/2/model.toml", 'schema = 2\nnew = "field"\n'),
    "policy": lambda folder: said(folder, "models/ranker/policy.toml", 'schema = 2\nnew = "field"\n'),
    "history": lambda folder: said(folder, "models/ranker/history.jsonl", '{"schema": 2, "live": 7, "new": "field"}\n'),
    "weights": lambda folder: patched(folder / "models/ranker/2/model.ftrl", 0, b"millstream ftrl 2\n"),
}


@pytest.mark.parametrize("file", LATER)
def test_what_a_later_release_wrote_is_refused_and_left_as_it_is(folder, file):
    LATER[file](folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name}
    with pytest.raises(
        errors.Later, match=r"reads up to [12]: written by a later Millstream; upgrade this one, or restore"
    ):
        opened(folder)
    for path, content in before.items():
        if path.name not in ("lock", "committed") or file == "committed":
            assert path.read_bytes() == content, path


def test_without_them_all_is_opened(folder):
    opened(folder)


@pytest.mark.parametrize("committed", [True, False], ids=["with committed", "without"])
def test_a_segment_of_another_format_is_not_cut_as_torn(folder, committed):
    path = segments_of(folder)
    patched(path, 4, struct.pack("<H", 2))
    if not committed:
        path.with_name("committed").unlink()
    with pytest.raises(errors.Corrupt, match="damaged, or of a later one"), Log(folder / "log", CLOCK) as log:
        log.writer("outcomes")
    assert path.stat().st_size > 1000


def test_a_hand_over_of_a_later_release_is_said_and_left_aside(folder, caplog):
    path = folder / "state" / "sessions"
    path.write_bytes(msgspec.msgpack.encode({"format": 3, "sessions": {"another": "type"}}))

    async def take():
        engine = Engine(Repository(folder / "models"), SystemClock(), Meter())
        await engine.start()
        assert engine.take_over(path) == 0
        await engine.stop()

    asyncio.run(take())
    assert "written by a later Millstream" in caplog.text and path.with_suffix(".unreadable").exists()


def test_positions_written_before_groups_had_a_version_are_theirs(folder):
    with Log(folder / "log", CLOCK) as log:
        assert log.committed("learn.ranker", "bases")
        log.commit("learn.ranker", "bases", {0: 9})
    with sqlite3.connect(folder / "log" / "groups.sqlite") as groups:
        assert groups.execute("PRAGMA user_version").fetchone() == (1,)


@pytest.mark.parametrize("directory", ["[]", '{"a": 1}', '{"a": {"slot": "x"}}', "\0", '{"a": {"slot": 70000}}'])
def test_a_meter_page_of_another_release_begins_anew(folder, directory):
    (folder / "state" / "meters" / "serve.json").write_text(directory)
    meter = Meter(folder / "state" / "meters", "serve")
    meter.counter("test_total", "One.").add()
    assert "test_total 1" in Meter(folder / "state" / "meters", "other").render()


def test_an_event_with_a_field_of_a_later_release_is_read_without_it(folder):
    from millstream.stream import decode

    with Log(folder / "log", CLOCK) as log:
        event = msgspec.msgpack.decode(log.reader("served").read(0, 0, 1)[0].value)
        log.writer("served").append(b"", Redacted(msgspec.msgpack.encode(event | {"new": "field"})))
        last = list(log.reader("served").records(0))[-1]
        assert decode(last.value).request == event["request"]
        with pytest.raises(errors.Corrupt, match="or written by a newer version"):
            decode(msgspec.msgpack.encode(event | {"type": "Unheard"}))
