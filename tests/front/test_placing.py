"""New clients of live speech go to the process that has the fewest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from front_house import Served
from hypothesis import given
from hypothesis import strategies as st
from talk_house import BLOCK, Hearing, texts_of

from millstream import errors
from millstream.client.speech import Speech
from millstream.front.placing import AWAY, Placing, choose
from millstream.types import Principal

HERE = Path(__file__).parent
AUDIO = os.urandom(BLOCK * 6)


@given(st.lists(st.integers(0, 5) | st.just(AWAY), min_size=1, max_size=6), st.data())
def test_the_one_with_the_fewest_is_chosen_and_none_moves_for_nothing(loads: list[int], data: st.DataObject) -> None:
    here = data.draw(st.integers(0, len(loads) - 1))
    to = choose(loads, here)
    assert loads[to] == min(loads)
    assert (to == here) == (loads[here] == min(loads))


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Process 1 of 2."""
    command = [sys.executable, str(HERE / "placed_process.py"), str(tmp_path), "1", "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process
        process.kill()


def test_sessions_are_shared_out_by_two_processes(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    async def test() -> None:
        async with Served() as house, asyncio.timeout(100):
            house.door.hearing = hearing = Hearing()
            house.door.keys = {"k": Principal("shop", ("*:speech",))}
            placing = Placing(tmp_path, 0, 2)
            house.http.place(placing)

            async def client(stack: contextlib.AsyncExitStack) -> Speech:
                return await stack.enter_async_context(Speech(f"http://127.0.0.1:{house.port}", "k", retry_s=0.1))

            async with contextlib.AsyncExitStack() as stack:
                clients = [await client(stack) for _ in range(6)]
                assert placing.loads() == [3, 3]
                assert len(hearing.begun) == 3
                for live in clients:
                    await live.send(AUDIO)
                    await live.finish()
                for live in clients:
                    transcript = await live.ended()
                    assert [line.text for line in transcript.shown()] == texts_of(AUDIO)
                    assert live.connections == 1
            while placing.loads() != [0, 0]:
                await asyncio.sleep(0.01)
            assert not house.http.connections
            with pytest.raises(errors.Unauthenticated):
                await Speech(f"http://127.0.0.1:{house.port}", "x").__aenter__()

            async with contextlib.AsyncExitStack() as stack:
                await client(stack)
                os.kill(other.pid, signal.SIGKILL)
                other.wait()
                staying = [await client(stack) for _ in range(2)]
                assert placing.loads() == [3, AWAY]
                for live in staying:
                    await live.send(AUDIO)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


def test_a_process_that_stops_takes_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with Served() as first, Served() as second:
            for number, house in enumerate((first, second)):
                house.door.hearing = Hearing()
                house.http.place(Placing(tmp_path, number, 2))
            async with Speech(f"http://127.0.0.1:{first.port}") as live:
                await live.send(AUDIO)
                assert first.http.placing is not None and first.http.placing.loads() == [1, 0]
                await second.http.stop()
                assert first.http.placing.loads() == [1, AWAY]
                async with Speech(f"http://127.0.0.1:{first.port}"):
                    assert len(first.door.hearing.begun) == 2

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())
