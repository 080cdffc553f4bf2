"""A backup is one cut of a running installation: what it restores is sound, wherever the moment fell."""

import asyncio
import errno
import fcntl
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile

import msgspec
import numpy as np
import pytest

from millstream import errors
from millstream.app.installation import Installation
from millstream.app.roles import Learn
from millstream.cli import main
from millstream.clock import FakeClock, SystemClock
from millstream.guard.pii import Redacted
from millstream.models import Manifest, Repository
from millstream.ops import backup as backups
from millstream.ops import restore as restores
from millstream.ops.backup import backup
from millstream.ops.restore import restore
from millstream.stream import Log, LogLimits
from millstream.stream.audit import audit, read_ledger
from millstream.testing import Fuse
from test_loop import SETTINGS, Loop

CLOCK = FakeClock(1_000_000.0)


def taken(folder, to, clock=CLOCK, keys=""):
    return backup(folder, "millstream.toml", (keys, "features.py"), to, clock)


def positions(folder):
    """(group, topic, partition, offset) of every statement in the log."""
    log = Log(folder / "log", CLOCK)
    log.committed("nobody", "nothing")
    found = log._positions().execute('SELECT "group", topic, partition, offset FROM positions').fetchall()
    log.close()
    return found


def nothing_points_ahead(folder):
    log = Log(folder / "log", CLOCK)
    for group, topic, partition, offset in positions(folder):
        if topic in log.topics():
            assert offset <= log.reader(topic).end(partition), f"{group} has read {topic} past its end"
    repository = Repository(folder / "models")
    for record in log.reader("policy").records(0):
        change = msgspec.msgpack.decode(record.value)
        assert change["version"] <= repository.policy(change["model"]).version, "a change is logged that is not there"
    for model in repository.models():
        assert set(repository.policy(model).named()) <= set(repository.versions(model))
        for version in repository.versions(model):
            lineage = repository.verify(model, version).lineage
            for field, topic in (("upto", "examples"), ("deltas_from", "deltas")):
                assert int(str(lineage.get(field, 0))) <= log.reader(topic).end(0), f"{version} is ahead of {topic}"


class Interleaved(Loop):
    """A loop that lives on, some moments of it between any two parts that a backup cuts."""

    number = 0

    async def live(self, moments):
        for _ in range(moments):
            await self.up()
            await self.moment(self.number)
            self.learn.join.save()
            self.number += 1

    async def backed_up(self, to, monkeypatch, seed):
        """A backup with the loop living meanwhile; the outcomes that were acknowledged when it began."""
        here, moments = asyncio.get_running_loop(), random.Random(seed)

        def lived(step):
            def later(*args):
                asyncio.run_coroutine_threadsafe(self.live(moments.randrange(4)), here).result(60)
                return step(*args)

            return later

        with monkeypatch.context() as patched:
            for step in ("_groups", "_state", "_topic", "_model", "_partition", "_bytes"):
                patched.setattr(backups._Cut, step, lived(getattr(backups._Cut, step)))
            before = dict(self.acknowledged)
            await asyncio.to_thread(taken, self.folder, to)
        return before

    async def go_on(self, folder, moments):
        """The same client against what was restored elsewhere, to the end of the books."""
        self.folder = folder
        await self.live(moments)
        await self.close_books()
        await self.crash()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_while_it_is_taken_what_is_restored_is_sound(tmp_path, monkeypatch, seed):
    lives_on(tmp_path, monkeypatch, seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whatever_happens_while_it_is_taken_what_is_restored_is_sound_many_times(tmp_path, monkeypatch):
    for seed in range(100, 116):
        lives_on(tmp_path / str(seed), monkeypatch, seed)


def lives_on(tmp_path, monkeypatch, seed):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(parents=True)
    (source / "millstream.toml").write_text("http_port = 0\n")
    loop = Interleaved(source, Fuse())

    async def play():
        await loop.live(random.Random(seed).randrange(5, 60))
        before = await loop.backed_up(tmp_path / "b.tar", monkeypatch, seed)
        await loop.live(5)
        await loop.crash()
        return before

    before = asyncio.run(play())
    assert loop.number > 25, "the loop did not live while the backup was taken"
    restored = restore(tmp_path / "b.tar", target, CLOCK)
    assert restored.sound and set(restored.topics) >= {"served", "outcomes", "examples", "deltas", "users"}
    nothing_points_ahead(target)
    books = audit(Log(target / "log", CLOCK), before.values(), SETTINGS.join.window_s)
    assert books.balanced and books.not_logged == 0, books

    loop.acknowledged, served_before = before, versions_served(target)
    numbers = set(Repository(target / "models").versions("ranker"))
    loop.number += 1000
    asyncio.run(loop.go_on(target, 40))
    books = loop.audit()
    assert books.balanced and books.waiting == 0, books
    weights, _ = loop.weights_on_disk()
    assert np.array_equal(weights, loop.fold()), "served weights are not the fold of examples"
    made = set(Repository(target / "models").versions("ranker")) - numbers
    assert made and not made & served_before, "a version number that answers were made by was given again"


def versions_served(folder):
    log = Log(folder / "log", CLOCK)
    found = (msgspec.msgpack.decode(record.value) for record in log.reader("served").records(0))
    return {event["version"].partition("@")[0] for event in found}


@pytest.fixture
def installation(tmp_path):
    """A log with two topics and groups, a repository with two models, state, keys: all at rest."""
    folder = tmp_path / "source"
    (folder / "state" / "meters").mkdir(parents=True)
    (folder / "millstream.toml").write_text('http_port = 0\nkeys = "keys.toml"\n')
    (folder / "keys.toml").write_text("[[key]]\n")
    (folder / "keys.toml").chmod(0o600)
    (folder / "features.py").write_text("# no feature set so far\n")
    (folder / "state" / "join.snapshot").write_bytes(b"state")
    (folder / "state" / "up.lock").write_bytes(b"")
    (folder / "state" / "meters" / "serve.page").write_bytes(b"0" * 1000)
    with Log(folder / "log", CLOCK, LogLimits(segment_bytes=300)) as log:
        for topic in ("served", "outcomes"):
            writer = log.writer(topic)
            for number in range(20):
                writer.append(b"k%d" % number, Redacted(b"v" * 40))
        log.writer("served", 2).append_frame([], meta=b"step", sync=True)
        log.commit("readers", "served", {0: 7})
    repository = Repository(folder / "models")
    for model in ("ranker", "other"):
        for content in (b"one", b"two"):
            manifest = Manifest(format="onnx", file="m/model.onnx")
            repository.put(model, manifest, {"m/model.onnx": content, "m/vocabulary": b"a\nb"})
    repository.change_policy("ranker", lambda policy: msgspec.structs.replace(policy, live="1"), "me", "try")
    return folder


def content(folder):
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name): (folder / name).read_bytes() for name in names if name.suffix not in (".lock", ".sqlite")}


def test_at_rest_everything_comes_back_but_meters_and_locks(installation, tmp_path):
    made = taken(installation, tmp_path / "b.tar", keys="keys.toml")
    assert made.topics == {"served": [20, 0], "outcomes": [20]}
    assert made.models == {"ranker": ["1", "2"], "other": ["1", "2"]}
    told = restore(tmp_path / "b.tar", tmp_path / "target", CLOCK)
    assert told.sound and told.topics == {"served": 20, "outcomes": 20} and told.models == made.models
    before, after = content(installation), content(tmp_path / "target")
    for name in [name for name in before if "meters" in name or name.endswith(("/lock", "up.lock"))]:
        del before[name]
    before = {name: data for name, data in before.items() if not name.endswith("committed")}
    assert {name: data for name, data in after.items() if not name.endswith("committed")} == before
    assert positions(tmp_path / "target") == [("readers", "served", 0, 7)]
    assert (tmp_path / "target" / "keys.toml").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "target" / "features.py").read_text() == "# no feature set so far\n"
    assert Repository(tmp_path / "target" / "models").number("ranker") == 2


def test_a_restored_log_is_read_before_it_has_a_writer_and_goes_on_at_the_next_offset(installation, tmp_path):
    taken(installation, tmp_path / "b.tar")
    restore(tmp_path / "b.tar", tmp_path / "target", CLOCK)
    with Log(tmp_path / "target" / "log", CLOCK) as log:
        assert [record.key for record in log.reader("served").records(0)] == [b"k%d" % n for n in range(20)]
        assert log.writer("served").append(b"next", Redacted(b"v")) == 20
        assert log.writer("served", 2).last_meta() == b"step"


def test_what_is_written_and_not_published_is_no_part_of_it(installation, tmp_path):
    last = sorted((installation / "log" / "served" / "0").glob("*.seg"))[-1]
    with last.open("ab") as file:
        file.write(last.read_bytes()[16:-9])
    taken(installation, tmp_path / "b.tar")
    assert restore(tmp_path / "b.tar", tmp_path / "target", CLOCK).topics["served"] == 20


def test_retention_meanwhile_takes_nothing_from_it(installation, tmp_path, monkeypatch):
    cut = backups._Cut._state
    log = Log(installation / "log", CLOCK, LogLimits(segment_bytes=300, retain_bytes=0, disk_bytes_max=0))

    def retained(self):
        with log.writer("served") as writer:
            assert writer.retain().segments > 3
        Repository(installation / "models").remove("ranker", "2")
        cut(self)

    monkeypatch.setattr(backups._Cut, "_state", retained)
    taken(installation, tmp_path / "b.tar")
    log.close()
    assert restore(tmp_path / "b.tar", tmp_path / "target", CLOCK).topics["served"] == 20
    assert not list(installation.rglob(".backup"))


def test_a_hole_that_retention_made_is_said(installation, tmp_path, monkeypatch):
    monkeypatch.setattr(backups, "_pin_topic", lambda folder, pins: None)
    segments = sorted((installation / "log" / "served" / "0").glob("*.seg"))
    segments[2].unlink()
    with pytest.raises(errors.Conflict, match=r"retention deleted offsets .* try again"):
        taken(installation, tmp_path / "b.tar")


def test_damage_in_the_log_is_said_and_nothing_is_written(installation, tmp_path):
    path = sorted((installation / "log" / "served" / "0").glob("*.seg"))[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.Corrupt, match="checksum does not match"):
        taken(installation, tmp_path / "b.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_damage_in_a_version_is_restored_as_it_was_and_said(installation, tmp_path):
    (installation / "models" / "ranker" / "1" / "m" / "model.onnx").write_bytes(b"bad")
    (installation / "models" / "other" / "policy.toml").write_text("live = 9\n")
    taken(installation, tmp_path / "b.tar")
    told = restore(tmp_path / "b.tar", tmp_path / "target", CLOCK)
    assert not told.sound and len(told.problems) == 2
    assert "model.onnx: expected sha256" in str(told.problems) and "names version 9" in str(told.problems)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_said_and_no_half_archive_stays(installation, tmp_path, monkeypatch, fault):
    (tmp_path / "b.tar").write_bytes(b"the last good one")
    add, left = tarfile.TarFile.addfile, [12]

    def full(self, *args):
        left[0] -= 1
        if not left[0]:
            raise OSError(fault, os.strerror(fault))
        return add(self, *args)

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    kind = errors.Full if fault == errno.ENOSPC else OSError
    with pytest.raises(kind, match=r"no room on the disk for|Input/output"):
        taken(installation, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == b"the last good one"
    assert not list(tmp_path.glob(".*")) and not list(installation.rglob(".backup"))


def test_one_backup_at_a_time_and_what_a_killed_one_left_goes(installation, tmp_path):
    (installation / "log" / ".backup" / "served").mkdir(parents=True)
    (installation / "log" / ".backup" / "served" / "x").write_bytes(b"left by one that was killed")
    with (installation / "state" / "backup.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(errors.Conflict, match="another backup"):
            taken(installation, tmp_path / "b.tar")
    taken(installation, tmp_path / "b.tar")
    assert not (installation / "log" / ".backup").exists()


def test_a_backup_is_not_written_into_what_it_takes(installation):
    for part in ("log", "models/ranker", "state"):
        with pytest.raises(errors.Misconfigured, match="of the installation; write the backup somewhere else"):
            taken(installation, installation / part / "b.tar")


def rewritten(path, change):
    """The archive with each entry as `change(name, bytes)` gives it, None to leave it out."""
    with tarfile.open(path) as old:
        entries = [(info.name, old.extractfile(info).read()) for info in old]
    with tarfile.open(path, "w") as new:
        for name, data in entries:
            if (data := change(name, data)) is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))


def later(name, data):
    return json.dumps(json.loads(data) | {"backup": 2, "at": "soon"}).encode() if name == "backup.json" else data


FORGERIES = {
    "a changed file": (lambda n, d: b"x" + d[1:] if n.endswith("model.onnx") else d, "is not what was taken"),
    "changed settings": (lambda n, d: d + b"#" if n == "millstream.toml" else d, "millstream.toml is not what"),
    "a file less": (lambda n, d: None if n.endswith("model.onnx") else d, "is not what was taken"),
    "no digests": (lambda n, d: None if n == "digests.json" else d, "it ends early"),
    "digests that are none": (lambda n, d: b"{" if n == "digests.json" else d, "digests.json: "),
    "a later format": (later, "written by a later Millstream; upgrade this one"),
    "no header": (lambda n, d: None if n == "backup.json" else d, "is not its first entry"),
    "settings elsewhere": (
        lambda n, d: d.replace(b"millstream.toml", b"../../etc/a") if n == "backup.json" else d,
        "no name",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("exists", [True, False], ids=["empty folder", "no folder"])
def test_what_was_not_taken_is_not_restored_and_nothing_stays(installation, tmp_path, forgery, exists):
    change, why = FORGERIES[forgery]
    taken(installation, tmp_path / "b.tar")
    rewritten(tmp_path / "b.tar", change)
    target = tmp_path / "target"
    if exists:
        target.mkdir()
    with pytest.raises((errors.Corrupt, errors.Misconfigured), match=why):
        restore(tmp_path / "b.tar", target, CLOCK)
    assert target.exists() == exists and not list(tmp_path.glob("target/*"))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "log/../../evil", "log//evil"])
def test_no_name_leaves_the_folder(installation, tmp_path, name):
    taken(installation, tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as old:
        header = old.extractfile("backup.json").read()
    with tarfile.open(tmp_path / "b.tar", "w") as new:
        for entry, data in (("backup.json", header), (name, b"evil")):
            info = tarfile.TarInfo(entry)
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    with pytest.raises(errors.Corrupt, match="is nothing that a backup holds"):
        restore(tmp_path / "b.tar", tmp_path / "target", CLOCK)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_backup_cut_anywhere_restores_nothing(installation, tmp_path):
    taken(installation, tmp_path / "b.tar")
    whole = (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "b.tar") as tar:
        end = tar.getmembers()[-1].offset_data + tar.getmembers()[-1].size
    for length in random.Random(1).sample(range(end), 60):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(errors.Corrupt):
            restore(tmp_path / "cut.tar", tmp_path / "target", CLOCK)
        assert not (tmp_path / "target").exists()


def test_a_disk_that_is_full_while_it_is_restored_is_said_and_nothing_stays(installation, tmp_path, monkeypatch):
    taken(installation, tmp_path / "b.tar")
    write, left = restores._sync_new, [9]

    def full(*args):
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    monkeypatch.setattr(restores, "_sync_new", full)
    with pytest.raises(errors.Full, match="no room on the disk for"):
        restore(tmp_path / "b.tar", tmp_path / "target", CLOCK)
    assert not (tmp_path / "target").exists()


def test_a_folder_with_anything_in_it_is_left_alone(installation, tmp_path):
    taken(installation, tmp_path / "b.tar")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("mine")
    for target in (tmp_path / "target", tmp_path / "target" / "mine"):
        with pytest.raises(errors.Misconfigured, match="is no empty folder"):
            restore(tmp_path / "b.tar", target, CLOCK)
    assert (tmp_path / "target" / "mine").read_text() == "mine"


def test_the_commands_say_what_they_did_and_whether_it_is_sound(installation, tmp_path, capsys):
    main(["backup", "-c", str(installation / "millstream.toml"), str(tmp_path / "b.tar"), "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made["topics"]["served"] == [20, 0] and made["bytes"] == (tmp_path / "b.tar").stat().st_size
    main(["restore", str(tmp_path / "b.tar"), str(tmp_path / "target"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] and told["models"]["ranker"] == ["1", "2"]
    assert (tmp_path / "target" / "keys.toml").exists()
    (installation / "models" / "ranker" / "1" / "m" / "model.onnx").write_bytes(b"bad")
    main(["backup", "-c", str(installation / "millstream.toml"), str(tmp_path / "b.tar")])
    with pytest.raises(SystemExit, match="1"):
        main(["restore", str(tmp_path / "b.tar"), str(tmp_path / "again")])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_backups_of_the_real_processes_under_load_restore_to_sound_books(tmp_path):
    """The demo's processes at work; the command takes backups at random moments, one is killed on its way."""
    from millstream.demo.data import simulated
    from millstream.demo.run import Demo, free_port
    from test_kill import fold, served

    demo = Demo(tmp_path / "run", simulated(1200), free_port(0), 150.0)
    moments = random.Random(7)

    async def play():
        demo.prepare()
        await demo.start()
        replaying = asyncio.create_task(demo.replay.run())
        ledgers = []
        for number in range(4):
            await asyncio.sleep(moments.uniform(0.3, 1.5))
            ledger = tmp_path / f"ledger-{number}"
            await asyncio.to_thread(shutil.copyfile, demo.ledger, ledger)
            command = [sys.executable, "-m", "millstream", "backup", "-c", demo.file, tmp_path / f"{number}.tar"]
            process = await asyncio.create_subprocess_exec(*map(str, command), stdout=subprocess.DEVNULL)
            if number == 1:
                await asyncio.sleep(0.8)
                process.send_signal(signal.SIGKILL)
            assert await process.wait() == 0 or number == 1
            ledgers.append(ledger)
        replaying.cancel()
        await demo.stop()
        return [(n, ledger) for n, ledger in enumerate(ledgers) if n != 1]

    for number, ledger in asyncio.run(play()):
        target = tmp_path / f"restored-{number}"
        assert restore(tmp_path / f"{number}.tar", target, SystemClock()).sound
        nothing_points_ahead(target)
        acknowledged = list(read_ledger(ledger))
        assert acknowledged
        with Installation.open(target / "millstream.toml") as at:
            books = audit(at.log, acknowledged, at.settings.join.window_s)
            assert books.balanced and books.not_logged == 0, books
            learn = Learn(at)
            while learn.step():
                pass
            learn.learning._pushed_at = float("-inf")
            learn.step()
            learn.close()
            books = audit(at.log, acknowledged, at.settings.join.window_s)
            assert books.balanced and books.learnt + books.set_aside + books.waiting == books.acknowledged, books
            assert np.array_equal(served(at), fold(at)), "served weights are not the fold of examples"
