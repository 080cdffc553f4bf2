"""The roles: what ends one on purpose, so that the next one starts from what the log knows."""

import asyncio
import errno
import zlib

import msgspec
import numpy as np
import pytest

from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.app.training import train
from millstream.clock import FakeClock
from millstream.errors import Corrupt, NotFound
from millstream.features import Column, Definition
from millstream.learn.history import Field, import_entities
from millstream.models.manifest import Manifest
from millstream.models.traffic import promote, shadow
from millstream.stream import JoinSettings, LogLimits, Task, decode, encode, segment
from millstream.types import Delta, Outcome, PolicyChange, Principal, Rank
from millstream.types import Served as Answer
from onnx_models import stamped

ANYBODY = Principal("test")
SEEN = Outcome(request="r", item="i", kind="impression", event_time=1.0)


async def tell(serve: Serve, outcome: Outcome) -> None:
    await serve.door.call([outcome], ANYBODY)


def test_a_failed_sync_ends_the_process_and_the_next_one_goes_on(tmp_path, monkeypatch):
    def broken(fd):
        raise OSError(errno.EIO, "Input/output error")

    with Installation(tmp_path, Settings(), FakeClock(1e6)) as installation:
        serve = Serve(installation)
        asyncio.run(tell(serve, SEEN))
        serve.poll()
        with monkeypatch.context() as patch:
            patch.setattr(segment, "sync", broken)
            with pytest.raises(Corrupt):
                asyncio.run(tell(serve, SEEN))
        with pytest.raises(Corrupt, match="Input/output error"):
            serve.poll()
    with Installation(tmp_path, Settings(), FakeClock(1e6)) as installation:
        again = Serve(installation)
        asyncio.run(tell(again, SEEN))
        again.poll()
        assert [record.key for record in installation.log.reader("outcomes").records(0)][-1] == b"r"


def test_an_installation_without_features_takes_outcomes_and_says_why_it_ranks_nothing(tmp_path):
    with Installation(tmp_path, Settings(), FakeClock(1e6)) as installation:
        serve = Serve(installation)
        asyncio.run(tell(serve, SEEN))
        with pytest.raises(NotFound, match=r"\[features\]"):
            serve.door.call(Rank(id="r", user="u", candidates=("i",)), ANYBODY)


def test_every_policy_change_is_logged_once_also_those_between_two_looks(tmp_path):
    model = stamped(tmp_path / "model.onnx", 1.0)

    async def twice() -> list[tuple[int, str]]:
        installation = Installation(tmp_path, Settings(), FakeClock(1e6))
        with installation:
            serve, repository = Serve(installation), installation.repository
            for _ in range(2):
                repository.put("m", Manifest(format="onnx", file="model.onnx"), {"model.onnx": model})
            repository.change_policy("m", promote("1"), who="ann", why="first")
            await serve.engine.start()
            serve.poll()
            repository.change_policy("m", promote("2"), who="ann", why="second")
            repository.change_policy("m", shadow(["1"]), who="bob", why="compare")
            await serve.engine.refresh()
            serve.poll()
            serve.poll()
            await serve.engine.stop()
            events = [decode(record.value) for record in installation.log.reader("policy").records(0)]
            return [(event.version, event.who) for event in events]

    assert asyncio.run(twice()) == [(1, "ann"), (2, "ann"), (3, "bob")]


RANKING = msgspec.convert({"http_port": 0, "learn": {"model": "ranker"}, "ftrl": {"bits": 10}}, Settings)
RANKING = msgspec.structs.replace(
    RANKING, features=Definition(user=(Column("id"), Column("age")), item=(Column("id"),))
)
QUESTION = Rank(id="q", user="u0", candidates=("i0", "i1"))


def flip(folder, topic: str, share: float) -> None:
    """One bit of the oldest segment of a topic."""
    path = min((folder / "log" / topic / "0").glob("*.seg"))
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)


def push(installation: Installation, sequence: int) -> None:
    slots, weights = np.arange(1024, dtype=np.uint32).tobytes(), np.full(1024, sequence, np.float32).tobytes()
    change = Delta(
        model="ranker", base="2", sequence=sequence, upto=0, slots=slots, weights=weights, arrivals=b"",
        checksum=zlib.crc32(weights, zlib.crc32(slots)),
    )  # fmt: skip
    installation.log.writer("deltas").append(b"", encode(change))


def test_a_flipped_bit_in_any_topic_that_serving_reads_stops_no_answer(tmp_path, caplog):
    limits = LogLimits(segment_bytes=512)
    users = [{"id": f"u{n}", "age": str(n)} for n in range(40)]
    for topic in ("users", "items"):
        import_entities(tmp_path / "log", limits, topic, users, {"id": Field("id"), "age": Field("age")}, 1.0)
    settings = msgspec.structs.replace(RANKING, log=limits)

    async def answered(*ids: str) -> tuple[str, float]:
        """The version that answers, and how many places the role went on without."""
        with Installation(tmp_path, settings, FakeClock(1e6)) as at:
            serve = Serve(at)
            await serve.start()
            for id in ids:
                ranked = await serve.door.call(msgspec.structs.replace(QUESTION, id=id), ANYBODY)
                serve.poll()
            await serve.stop()
            return ranked.version, serve.meter.sum("millstream_log_unreadable_total")

    with Installation(tmp_path, settings, FakeClock(1e6)) as at:
        train(at)
        manifest = msgspec.structs.replace(at.repository.manifest("ranker", "1"), lineage={"deltas_from": 0})
        at.repository.put("ranker", manifest, {manifest.file: at.repository.folder("ranker", "1") / manifest.file})
        for number in range(10):
            at.repository.change_policy("ranker", promote("2"), who="ann", why=f"change {number}")
        push(at, 1)
    with Installation(tmp_path, settings, FakeClock(1e6)) as at:
        push(at, 2)
    assert asyncio.run(answered(*(f"q{number}" for number in range(20)))) == ("2@2", 0)
    topics = "users", "items", "deltas", "policy", "served"
    for topic in topics:
        assert len(list((tmp_path / "log" / topic / "0").glob("*.seg"))) > 1
        flip(tmp_path, topic, 0.6)
    assert asyncio.run(answered("new", "newer")) == ("2@0", len(topics))
    assert all(f"topic {topic}: " in caplog.text for topic in topics)
    assert caplog.text.count("going on without it") == len(topics)


def test_the_newest_segments_of_what_answers_can_do_without_may_be_damaged(tmp_path):
    model = stamped(tmp_path / "model.onnx", 1.0)

    async def change(why: str) -> float:
        with Installation(tmp_path, Settings(), FakeClock(1e6)) as at:
            serve = Serve(at)
            if not at.repository.models():
                at.repository.put("m", Manifest(format="onnx", file="model.onnx"), {"model.onnx": model})
            at.repository.change_policy("m", promote("1"), who="ann", why=why)
            await serve.engine.start()
            serve.poll()
            serve.poll()
            await serve.engine.stop()
            return serve.meter.sum("millstream_unlogged_total")

    assert asyncio.run(change("first")) == 0
    flip(tmp_path, "policy", 0.6)
    assert asyncio.run(change("second")) == 2, "one more that cannot be logged, and the damaged one again"


def test_nothing_personal_of_a_policy_change_reaches_the_log(tmp_path):
    model = stamped(tmp_path / "model.onnx", 1.0)
    secrets = "13912345678", "ann@example.org"
    whole = PolicyChange(
        model="m", version=1, who=secrets[1], why=secrets[0], text=f'why = "{secrets[0]} {secrets[1]}"'
    )
    assert not any(secret.encode() in encode(whole) for secret in secrets)

    async def told() -> None:
        with Installation(tmp_path, Settings(), FakeClock(1e6)) as at:
            serve = Serve(at)
            at.repository.put("m", Manifest(format="onnx", file="model.onnx"), {"model.onnx": model})
            for why in (f"call {secrets[0]}", f"call\n{secrets[0]}"):  # TOML writes a new line as a letter n
                at.repository.change_policy("m", promote("1"), who=f"Ann <{secrets[1]}>", why=why)
            await serve.engine.start()
            serve.poll()
            await serve.engine.stop()
            assert at.log.reader("policy").end(0) == 2

    asyncio.run(told())
    for path in (tmp_path / "log").rglob("*.seg"):
        assert not any(secret.encode() in path.read_bytes() for secret in secrets), path


def test_a_version_that_cannot_rank_is_refused_and_the_ranker_goes_on(tmp_path):
    async def promoted() -> None:
        with Installation(tmp_path, RANKING, FakeClock(1e6)) as at:
            train(at)
            serve = Serve(at)
            await serve.engine.start()
            model = stamped(tmp_path / "model.onnx", 1.0)
            at.repository.put("ranker", Manifest(format="onnx", file="model.onnx"), {"model.onnx": model})
            at.repository.change_policy("ranker", promote("2"), who="ann", why="a slip")
            await serve.engine.refresh()
            assert "names no feature set" in serve.engine.views()[0].problems["2"]
            ranked = await serve.door.call(QUESTION, ANYBODY)
            assert ranked.version == "1@0"
            at.repository.put("other", Manifest(format="onnx", file="model.onnx"), {"model.onnx": model})
            await serve.engine.refresh()
            assert "other" in serve.engine.models(), "what does not rank needs no features"
            await serve.engine.stop()

    asyncio.run(promoted())


def test_examples_are_counted_by_task_and_label(tmp_path):
    join = JoinSettings(tasks={"like": Task(window_s=5.0), "buy": Task(window_s=5.0)})
    with Installation(tmp_path, msgspec.structs.replace(RANKING, join=join), FakeClock(1e6)) as at:
        asked = Answer(
            request="r", model="ranker", version="1", policy=0, arm="live", user="u", candidates=["i"], event_time=1.0,
            tokens=bytes(8),
        )  # fmt: skip
        at.log.writer("served").append(b"", encode(asked))
        told = [SEEN, msgspec.structs.replace(SEEN, kind="buy"), Outcome(kind="watermark", event_time=60.0)]
        at.log.writer("outcomes").append_frame([(b"", encode(one)) for one in told])
        learn = Learn(at)
        learn.step()
        counted = {
            tuple(one["labels"].values()): one["values"][0]
            for one in learn.meter.total().values() if one["name"] == "millstream_examples_total"
        }  # fmt: skip
        learn.close()
    assert counted == {("like", "0"): 1.0, ("buy", "1"): 1.0}


@pytest.mark.parametrize(("learns", "odd"), [("rankr", True), ("ranker", False), ("", False)])
def test_a_model_that_learns_is_not_the_one_that_ranks_and_has_no_version_is_said(tmp_path, caplog, learns, odd):
    toml = tmp_path / "millstream.toml"
    toml.write_text(f'[learn]\nmodel = "{learns}"\n')
    Installation.open(toml).close()
    assert ("learn.model is 'rankr', of which there is no version" in caplog.text) == odd
    model = stamped(tmp_path / "model.onnx", 1.0)
    caplog.clear()
    with Installation.open(toml) as at:
        at.repository.put("rankr", Manifest(format="onnx", file="model.onnx"), {"model.onnx": model})
    caplog.clear()
    Installation.open(toml).close()
    assert not caplog.text, "it is there: meant so"


def test_records_that_the_disk_limit_deleted_unread_are_shown(tmp_path):
    limits = LogLimits(segment_bytes=256, disk_bytes_max=1024)
    with Installation(tmp_path, msgspec.structs.replace(RANKING, log=limits), FakeClock(1e6)) as at:
        at.log.commit("slow", "outcomes", {0: 0})
        serve = Serve(at)
        for number in range(30):
            asyncio.run(tell(serve, msgspec.structs.replace(SEEN, request=f"r{number}")))
        for writer in at.log._writers:
            writer.retain()
        serve.poll()
        assert serve.meter.sum("millstream_log_unread_deleted") == at.log.unread_deleted > 0
        learn = Learn(at)
        learn.step()
        assert learn.meter.sum("millstream_log_unread_deleted") > 0
        learn.close()
