"""Time as an argument. Every timer and every stamp in the house goes through a Clock, so a test can own time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Never make it; again is harmless."""


class Clock(Protocol):
    """`now`: unix seconds, may jump. `monotonic`: seconds, never goes back; use it for durations and deadlines."""

    def now(self) -> float: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Make `call` on the running event loop, `seconds` of monotonic time from now."""
        ...


class SystemClock:
    """The machine's own time."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, seconds), call)


class FakeClock:
    """Time that moves only when told to. `jump` moves the wall clock alone, as NTP or a person would."""

    def __init__(self, start: float = 1_000_000_000.0) -> None:
        self._wall = start
        self._mono = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._mono

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:  # no time has to pass for that, as on the machine's own clock
            return await asyncio.sleep(0)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._mono + seconds, next(self._order), waiter))
        return await waiter

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._mono + seconds, next(self._order), waiter))
        timer = _FakeTimer(waiter)
        waiter.add_done_callback(lambda _: None if timer.cancelled else call())
        return timer

    def jump(self, seconds: float) -> None:
        self._wall += seconds

    def advance(self, seconds: float) -> None:
        """Move both times forward and wake the sleepers whose time has come, earliest first."""
        self._wall += seconds
        self._mono += seconds
        while self._sleepers and self._sleepers[0][0] <= self._mono:
            waiter = heapq.heappop(self._sleepers)[2]
            if not waiter.done():
                waiter.set_result(None)


class _FakeTimer:
    """The Timer of a FakeClock."""

    def __init__(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = waiter
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self._waiter.cancel()
