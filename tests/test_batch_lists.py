"""Lists for many users into a file: those of a server, logged where no server writes, and whole or not at all."""

import asyncio
import contextlib
import errno
import os

import pytest
from pyarrow import parquet

from millstream.app import batch
from millstream.app.forget import forget
from millstream.app.installation import Installation
from millstream.app.roles import Learn, Serve
from millstream.app.training import train
from millstream.cli import main
from millstream.errors import BadInput, Full, Misconfigured
from millstream.learn.history import Field, import_entities
from millstream.stream import decode
from millstream.types import Ask, Outcome, Principal, Served

ANYBODY = Principal("test")
TOML = """
http_port = 0
[recommend.placements.home]
n = 5
[recommend.placements.mail]
n = 3
filters = { done = ["like"] }
arms.calm = { share = 0.5, rerank = [{ step = "window", by = "category", most = 1, window = 3 }] }
arms.plain = { share = 0.5 }
[recommend.placements.home.paths.newest]
deadline_ms = 0.001
[learn]
model = "ranker"
[join]
tasks.like.window_s = 1.0
[ftrl]
bits = 10
[features]
user = [{ name = "id" }]
item = [{ name = "id" }]
"""
USERS = [f"u{n}" for n in range(40)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "millstream.toml").write_text(TOML)
    items = [{"id": f"i{n}", "category": f"c{n % 4}", "created": 1e9 + n} for n in range(60)]
    with Installation.open(tmp_path / "millstream.toml") as at:
        for topic, rows in (("items", items), ("users", [{"id": user} for user in USERS])):
            import_entities(
                tmp_path / "log", at.settings.log, topic, rows, {name: Field(name) for name in rows[0]}, 1.5e9
            )
        train(at)
    return tmp_path


def made(folder, users=None, **more):
    return asyncio.run(batch.run(folder / "millstream.toml", users, folder / "out.parquet", **more))


def rows(folder):
    return parquet.read_table(folder / "out.parquet").to_pylist()


def logged(folder) -> dict[int, list[Served]]:
    with Installation.open(folder / "millstream.toml") as at:
        reader = at.log.reader("served")
        return {one: [decode(record.value) for record in reader.records(one)] for one in reader.partitions()}


def test_everybody_known_gets_a_list_which_is_in_the_log(folder):
    told = made(folder, placement="mail")
    found = rows(folder)
    assert (told.lists, told.rows, told.empty, told.unlogged, told.missed) == (40, 120, 0, 0, {})
    assert {*found[0]} == {
        "user", "request", "position", "item", "score", "reasons", "arm", "model", "version", "placement",
    }  # fmt: skip
    assert [row["user"] for row in found[::3]] == sorted(USERS)
    assert {row["arm"] for row in found} == {"calm", "plain"} and {row["model"] for row in found} == {"ranker"}
    events = {event.request: event for event in logged(folder)[2]}
    assert len(events) == 40
    for at in range(0, 120, 3):
        event = events[found[at]["request"]]
        listed = [event.candidates[place] for place in memoryview(event.order).cast("I")]
        assert [row["item"] for row in found[at : at + 3]] == listed and event.placement == "mail"
        assert [row["position"] for row in found[at : at + 3]] == [1, 2, 3] and event.user == found[at]["user"]
        assert " ".join(found[at]["reasons"]) == event.reasons[0] and found[at]["version"] == event.version


def test_a_path_gets_the_time_that_it_needs(folder):
    assert made(folder, placement="home").missed == {}, "a server would skip the path after a microsecond"


def test_beside_a_server_it_writes_partitions_of_its_own_and_is_what_the_server_says(folder):
    async def scene():
        with Installation.open(folder / "millstream.toml") as at:
            serve = Serve(at)
            await serve.start()
            listing = await serve.door.call(Ask(id="r1", user="u7", placement="mail"), ANYBODY)
            told = [Outcome(request="r1", item=listing.items[0].item, kind=kind) for kind in ("impression", "like")]
            await serve.door.call(told, ANYBODY)
            (folder / "users.txt").write_text("u7\n\nsomebody-new\n[1]\nu7\n")
            told = await batch.run(folder / "millstream.toml", folder / "users.txt", folder / "out.parquet", "mail", 4)
            serve.poll()
            other = await serve.door.call(Ask(id="r2", user="u7", placement="mail", n=4), ANYBODY)
            assert serve.lister.lists._once.get(rows(folder)[0]["request"]) is None, "it is nobody's next page"
            await serve.stop()
        return listing, told, other

    listing, told, other = asyncio.run(scene())
    found = rows(folder)
    assert (told.lists, told.rows) == (4, 16)
    assert [row["user"] for row in found[::4]] == ["u7", "somebody-new", "[1]", "u7"]
    assert listing.items[0].item not in [row["item"] for row in found[:4]], "it knows what was liked a moment ago"
    assert [row["item"] for row in found[:4]] == [slot.item for slot in other.items]
    events = logged(folder)
    assert [event.request for event in events[0]] == ["r1", "r2"] and len(events[2]) == 4
    assert len({row["request"] for row in found}) == 4


def test_what_comes_of_a_mail_joins(folder):
    made(folder, placement="mail")
    first = rows(folder)[0]
    with Installation.open(folder / "millstream.toml") as at:
        said = [Outcome(request=first["request"], item=first["item"], kind=kind) for kind in ("impression", "like")]
        serve = Serve(at)

        async def tell():
            await serve.door.call(said, ANYBODY)

        asyncio.run(tell())
        learn = Learn(at)
        while learn.step():
            pass
        learn.close()
        examples = [decode(record.value) for record in at.log.reader("examples").records(0)]
    assert [(event.request, event.label) for event in examples] == [(first["request"], 1.0)]


def test_several_row_groups_make_one_file(folder, monkeypatch):
    monkeypatch.setattr(batch, "GROUP_ROWS", 24)
    said = []
    monkeypatch.setattr(batch, "TOLD_S", 0.0)
    made(folder, placement="mail", say=said.append)
    file = parquet.ParquetFile(folder / "out.parquet")
    assert file.metadata.num_row_groups == 5 and file.metadata.num_rows == 120
    assert said[-1].startswith("40 of 40 lists, ") and len(said) >= 10


class Bounded:
    """A file on a disk with so much room."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 500])
def test_a_full_disk_is_said_and_the_old_file_stays(folder, monkeypatch, room):
    writing = batch.writing

    @contextlib.contextmanager
    def full(path):
        with writing(path) as file:
            yield Bounded(file, room)

    monkeypatch.setattr(batch, "writing", full)
    (folder / "out.parquet").write_text("before")
    with pytest.raises(Full, match=r"out\.parquet.*free some"):
        made(folder)
    assert (folder / "out.parquet").read_text() == "before" and not [*folder.glob(".out*")]


def test_what_cannot_be_meant_is_refused_before_anything_is_made(folder, tmp_path, capsys):
    (folder / "none.txt").write_text("\n\n")
    (folder / "long.txt").write_text("u1\n" + "x" * 600 + "\n")
    (folder / "odd.txt").write_bytes(b"u1\n\xff\n")
    for users, said in (
        ("none.txt", "it names nobody"), ("long.txt", "long.txt, user 2: ids have 1 to 512 bytes"),
        ("odd.txt", "not UTF-8"), ("away.txt", "no such file"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            made(folder, folder / users)
    for more, said in (({"placement": "door"}, "there are: home, mail"), ({"n": 101}, "1 to 100")):
        with pytest.raises(BadInput, match=said):
            made(folder, **more)
    (folder / "lists").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        asyncio.run(batch.run(folder / "millstream.toml", None, folder / "lists"))
    (folder / "plain.toml").write_text("http_port = 0\n")
    with pytest.raises(Misconfigured, match="no placement"):
        asyncio.run(batch.run(folder / "plain.toml", None, folder / "out.parquet"))
    assert not (folder / "out.parquet").exists() and logged(folder) == {}
    for options in (["--users", "all"], ["--users", "all", "--out", "x", "-c", "y", "--user", "u"]):
        with pytest.raises(SystemExit) as end:
            main(["recommend", *options])
        assert isinstance(end.value.code, str)


def test_who_is_forgotten_while_it_runs_is_forgotten(folder):
    async def scene():
        users = folder / "users.txt"
        users.write_text("".join(f"{user}\n" for user in USERS * 20))
        running = asyncio.ensure_future(batch.run(folder / "millstream.toml", users, folder / "out.parquet", "mail"))
        while not (folder / "log" / "served" / "2").exists():
            await asyncio.sleep(0.01)
        with Installation.open(folder / "millstream.toml") as at:
            report = await forget(at, ["u3"], wait_s=20.0)
        return report, await running

    report, told = asyncio.run(scene())
    assert report.sound and report.roles and told.lists == 800


def test_of_tenants_it_makes_the_lists_of_one(folder):
    text = (folder / "millstream.toml").read_text()
    (folder / "millstream.toml").write_text(text + "[recommend.tenants.acme]\n[recommend.tenants.zeta]\n")

    async def tell():
        with Installation.open(folder / "millstream.toml") as at:
            serve = Serve(at)
            for tenant in ("acme", "zeta"):
                rows = [{"id": f"{tenant[0]}{n}"} for n in range(5)]
                await serve.door.upsert("items", rows, ANYBODY, tenant)
                await serve.door.upsert("users", [{"id": f"of-{tenant}"}], ANYBODY, tenant)

    asyncio.run(tell())
    made(folder, tenant="acme")
    found = rows(folder)
    assert {row["user"] for row in found} == {"of-acme"}
    assert sorted(row["item"] for row in found) == [f"a{n}" for n in range(5)]
    assert [event.request for event in logged(folder)[2]] == [f"acme/{found[0]['request']}"]
    for tenant in ("", "nobody"):
        with pytest.raises(BadInput, match="--tenant is one of acme, zeta"):
            made(folder, tenant=tenant)
