"""Memory that grows is said while there is time, and a process is replaced before the system kills one.

Rules of the room:
- What a process holds is its own resident memory and that of all it started; pages that two of them share count twice,
  so the sum errs on the safe side.
- Growth is what a process holds beyond what it held once warm; it is said when it is a tenth, then at each doubling.
- Over the line, the largest process is replaced: beside it where there is room for another, else after it, while the
  others work. Once a minute at most; one that freed nothing is said and not tried again until the line was crossed
  from above.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import deque
from collections.abc import Callable, Collection, Mapping

from millstream.clock import Clock
from millstream.machine import memory_limit, offspring, resident
from millstream.meter import Meter
from millstream.ops.supervise import READY_S_MAX, Supervisor

EVERY_S = 5.0
WARM_S = 600.0
WINDOW_S = 3600.0
POINTS = 60
AGAIN_S = 60.0
ASK_S = 0.2
FREED = 0.02  # of the whole service: less was not worth a replacement
SMALLEST_BYTES = 64e6  # less growth than this is not told
MB = 1e6
logger = logging.getLogger("millstream.memory")


class Growth:
    """What one process holds, over time. `since`: when it started."""

    def __init__(self, role: str, since: float) -> None:
        self._role, self._since = role, since
        self._points: deque[tuple[float, float]] = deque(maxlen=POINTS)
        self._warm = 0.0
        self._next = 0.0

    def saw(self, now: float, size: float) -> float:
        """Note a size; how fast it grows now, in bytes an hour: 0.0 until it is warm and a while was seen."""
        if now - self._since < WARM_S or (self._points and now - self._points[-1][0] < WINDOW_S / POINTS):
            return self.per_hour
        if not self._points:
            self._warm, self._next = size, max(SMALLEST_BYTES, size / 10)
        self._points.append((now, size))
        grown = size - self._warm
        if grown >= self._next and self.per_hour > 0:
            self._next = 2 * grown
            logger.warning(
                "%s grows by %.0f MB an hour: it holds %.0f MB, %.0f MB more than when it was warm; at twice that it "
                "is said again",
                self._role,
                self.per_hour / MB,
                size / MB,
                grown / MB,
            )
        return self.per_hour

    @property
    def per_hour(self) -> float:
        """The slope of the last hour, bytes an hour."""
        if len(self._points) < 3:
            return 0.0
        times, sizes = zip(*self._points, strict=True)
        return statistics.linear_regression(times, sizes).slope * 3600


class Watchdog:
    """Looks at what the processes of a service hold. `pids`: role -> process. `replaceable`: the roles of which the
    supervisor may replace one; without any, what is wrong is only said."""

    def __init__(
        self,
        pids: Callable[[], Mapping[str, int]],
        clock: Clock,
        meter: Meter,
        bytes_max: int,
        share_max: float,
        supervisor: Supervisor | None = None,
        replaceable: Collection[str] = (),
        sizes: Callable[[Mapping[str, int]], dict[str, int]] | None = None,
    ) -> None:
        self._pids, self._clock, self._meter, self._sizes = pids, clock, meter, sizes or held
        self._limit = bytes_max or memory_limit() or 0
        self._line = share_max * self._limit
        self._supervisor, self._replaceable = supervisor, frozenset(replaceable)
        self._growths: dict[tuple[str, int], Growth] = {}
        self._last = float("-inf")
        self._quiet = False  # what can be said about being over the line has been said
        self._crowded = False  # there was no room for two

    async def keep(self) -> None:
        """Look every few seconds until cancelled; what fails is said, and tried again."""
        while True:
            try:
                await self.look()
            except OSError as error:
                logger.error("memory cannot be looked after, and is looked at again: %s", error)
            await self._clock.sleep(EVERY_S)

    async def look(self) -> None:
        """Read sizes once, and do what they ask for."""
        pids = self._pids()
        sizes = await asyncio.to_thread(self._sizes, pids)
        self._grown({(role, pids[role]): size for role, size in sizes.items()})
        total = sum(sizes.values())
        if not self._limit or total <= self._line:
            self._quiet = self._crowded = False
        elif not self._quiet and self._clock.monotonic() - self._last >= AGAIN_S:
            await self._relieve(sizes, total)

    def _grown(self, sizes: Mapping[tuple[str, int], int]) -> None:
        now = self._clock.monotonic()
        before, self._growths = self._growths, {}
        for one, size in sizes.items():
            growth = self._growths[one] = before.get(one) or Growth(one[0], now)
            help = "Slope of the memory that a process and its children hold, over the last hour"
            self._meter.gauge("process_memory_growth_bytes_per_hour", help, {"role": one[0]}).set(growth.saw(now, size))

    async def _relieve(self, sizes: Mapping[str, int], total: int) -> None:
        """Replace the process that holds most."""
        self._last = self._clock.monotonic()
        candidates = {role: size for role, size in sizes.items() if role in self._replaceable}
        state = (
            f"the service holds {total / MB:.0f} MB of the {self._limit / MB:.0f} MB that it may have "
            f"({self._line / self._limit:.0%} is the line)"
        )
        if self._supervisor is None or len(candidates) < 2:
            self._quiet = True
            logger.error(
                "%s: the system will kill it when it grows on; give it more memory, fewer models, or --workers 2, of "
                "which one is replaced in time",
                state,
            )
            return
        largest = max(candidates, key=lambda role: candidates[role])
        beside = not self._crowded and self._limit - total > min(candidates.values())
        order = "a new one starts before it ends" if beside else "it ends first, there is no room for two"
        logger.warning("%s; %s holds most, %.0f MB, and is replaced: %s", state, largest, sizes[largest] / MB, order)
        if beside:
            if not await self._supervisor.replace(largest, "memory"):
                self._crowded = True
                logger.error(
                    "the one to replace %s did not start: %s goes on, and ends first the next time", *[largest] * 2
                )
                return
        else:
            await self._supervisor.renew(largest, "memory")
            await self._ready(self._supervisor, largest)
        after = sum((await asyncio.to_thread(self._sizes, self._pids())).values())
        self._last = self._clock.monotonic()
        self._quiet = total - after < FREED * total
        if self._quiet:
            logger.error(
                "replacing %s freed nothing (%.0f MB before, %.0f MB now): its models need that much; give the service "
                "more memory or fewer models; nothing more is replaced until it holds less than the line",
                largest,
                total / MB,
                after / MB,
            )
        else:
            logger.info("replacing %s freed %.0f MB", largest, (total - after) / MB)

    async def _ready(self, supervisor: Supervisor, role: str) -> None:
        """Wait until the role's process does its work: if one dies before that, for the next."""
        until = self._clock.monotonic() + READY_S_MAX
        while not supervisor.ready(role).is_set():
            if self._clock.monotonic() >= until:
                logger.error("%s is not back after %.0f s", role, READY_S_MAX)
                return
            await self._clock.sleep(ASK_S)


def held(pids: Mapping[str, int]) -> dict[str, int]:
    """Bytes that each process and all that it started have in RAM; one that is gone is left out. A process that is
    named itself counts for itself alone."""
    children, named = offspring(), set(pids.values())

    def tree(pid: int) -> int:
        below = (child for child in children.get(pid, []) if child not in named)
        return (resident(pid) or 0) + sum(tree(child) for child in below)

    return {role: size for role, pid in pids.items() if (size := tree(pid))}
