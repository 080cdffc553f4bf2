"""The roles: what ends one on purpose, so that the next one starts from what the log knows."""

import asyncio
import errno

import pytest

from millstream.app.installation import Installation, Settings
from millstream.app.roles import Serve
from millstream.clock import FakeClock
from millstream.errors import Corrupt, NotFound
from millstream.models.manifest import Manifest
from millstream.models.traffic import promote, shadow
from millstream.stream import decode, segment
from millstream.types import Outcome, Principal, Rank
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
