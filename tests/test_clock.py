"""The fake clock keeps time as a real one would, but moves only when told to."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.clock import FakeClock, SystemClock


def test_sleepers_wake_in_the_order_of_their_time_and_no_sooner():
    async def run():
        clock, woken = FakeClock(), []

        async def sleeper(name, seconds):
            await clock.sleep(seconds)
            woken.append(name)

        tasks = [asyncio.create_task(sleeper(name, s)) for name, s in (("b", 2), ("a", 1), ("c", 3), ("a2", 1))]
        await asyncio.sleep(0)
        clock.advance(0.5)
        await asyncio.sleep(0)
        assert woken == []
        clock.advance(1.5)
        for _ in range(3):
            await asyncio.sleep(0)
        assert woken == ["a", "a2", "b"]
        clock.jump(100)
        await asyncio.sleep(0)
        assert woken == ["a", "a2", "b"], "a jump of the wall clock is no time passing"
        clock.advance(1)
        await asyncio.gather(*tasks)
        assert woken[-1] == "c"

    asyncio.run(run())


def test_a_cancelled_sleeper_is_nobodys_business():
    async def run():
        clock = FakeClock()
        task = asyncio.create_task(clock.sleep(1))
        await asyncio.sleep(0)
        task.cancel()
        clock.advance(2)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


@pytest.mark.parametrize("clock", [FakeClock(), SystemClock()], ids=["fake", "system"])
def test_sleeping_for_nothing_needs_no_time(clock):
    async def run():
        for seconds in (0, -1):
            await asyncio.wait_for(clock.sleep(seconds), 5)

    asyncio.run(run())


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6)), max_size=20))
def test_a_jump_moves_the_wall_clock_alone(moves):
    clock, wall, mono = FakeClock(50.0), 50.0, 0.0
    for jumps, seconds in moves:
        if jumps:
            clock.jump(-seconds)
            wall -= seconds
        else:
            clock.advance(seconds)
            wall, mono = wall + seconds, mono + seconds
        assert (clock.now(), clock.monotonic()) == (wall, mono)


def test_the_system_clock_does_not_go_back():
    clock = SystemClock()
    times = [clock.monotonic() for _ in range(1000)]
    assert times == sorted(times)
    assert clock.now() > 1_700_000_000
