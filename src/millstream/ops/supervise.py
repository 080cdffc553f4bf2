"""Keep the roles of an installation running: plain subprocesses, started again within two seconds.

A role that dies is started again at once, then with a growing pause while it keeps dying, never more than 1.5 s, and
each death is said and counted with its cause. SIGTERM goes to every role; one that has not gone after `grace_s` is
killed. A process can be replaced while it works: the new one takes over when it is ready, then the old one ends.

A supervisor that is killed itself cannot end its roles: they hold its process id (`config.SUPERVISOR` in their
environment) and end in order when that is no longer their parent, so the next `millstream up` finds the log free.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from millstream.clock import Clock
from millstream.config import SUPERVISOR
from millstream.meter import Meter

PAUSE_S_MAX = 1.5
STEADY_S = 10.0
READY_S_MAX = 600.0
logger = logging.getLogger("millstream.supervise")


class Launch:
    """One process to be started: its command, and the files that it inherits. `ready`: it does its work now."""

    def __init__(self, command: Sequence[str], fds: Sequence[int] = ()) -> None:
        self.command, self.fds = command, tuple(fds)
        self.ready = asyncio.Event()

    def started(self) -> None:
        """It runs, and has its files."""
        self.ready.set()

    def leaving(self) -> None:
        """It is about to be told to end, and nobody takes its place."""

    def ended(self) -> None:
        """It has gone, or could not be started; told at least once."""


class _Child:
    """A launch, and the process that it became."""

    def __init__(self, role: str, launch: Launch, process: asyncio.subprocess.Process) -> None:
        self.role, self.launch, self.process = role, launch, process


class Supervisor:
    """Runs one subprocess a role. `roles`: role -> what to start, asked for each time anew."""

    def __init__(
        self, roles: Mapping[str, Callable[[], Launch]], clock: Clock, grace_s: float = 10.0, meter: Meter | None = None
    ) -> None:
        self._roles, self._clock, self._grace_s, self._meter = dict(roles), clock, grace_s, meter or Meter()
        self._running: dict[str, _Child] = {}
        self._aside: set[_Child] = set()  # successors that are not ready, and those that were succeeded
        self._changing = {role: asyncio.Lock() for role in self._roles}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self.restarts = dict.fromkeys(self._roles, 0)

    async def start(self) -> None:
        """Start every role; from now on each is kept running. OSError when one cannot be started at all."""
        for role in self._roles:
            self._running[role] = await self._spawn(role)
            self._keepers.append(asyncio.create_task(self._keep(role)))

    def pid(self, role: str) -> int:
        """Process id of the role's latest process, which may have ended."""
        return self._running[role].process.pid

    def ready(self, role: str) -> asyncio.Event:
        """Set when the role's latest process does its work."""
        return self._running[role].launch.ready

    async def stop(self) -> None:
        """SIGTERM to every role, SIGKILL to what stays; returns when all have gone."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for child in self._aside:
            if not child.launch.ready.is_set():
                child.process.kill()
        for child in self._running.values():
            child.launch.leaving()
        await asyncio.gather(*(self._end(child) for child in (*self._running.values(), *self._aside)))

    async def run(self) -> None:
        """Start, wait for SIGINT or SIGTERM, stop. SIGHUP ends nothing, here and in the roles."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked.set)
        await self.start()
        await asked.wait()
        await self.stop()

    async def replace(self, role: str, cause: str) -> bool:
        """Start another process for the role, and end the present one when the new one is ready: somebody does the
        work all the time. False, and the present one stays, when the new one does not get ready."""
        async with self._changing[role]:
            before, child = self._running[role], await self._spawn(role)
            self._aside.add(child)
            if not await self._gets_ready(child, before) or self._stopping:
                child.process.kill()
                await self._gone(child)
                return False
            self._running[role] = child
            self._aside.add(before)
            self._aside.discard(child)
            self._count(role, cause)
            await self._end(before)
            return True

    async def renew(self, role: str, cause: str) -> None:
        """End the role's process in order, and only then start another: the other roles do its work meanwhile."""
        async with self._changing[role]:
            before = self._running[role]
            before.launch.leaving()
            await self._end(before)
            if not self._stopping:
                self._running[role] = await self._spawn(role)
                self._count(role, cause)

    async def _gets_ready(self, child: _Child, before: _Child) -> bool:
        """Whether a successor is ready before it, or the one before it, dies, or its time is over."""
        ready = asyncio.ensure_future(child.launch.ready.wait())
        ends = [asyncio.ensure_future(one.process.wait()) for one in (child, before)]
        late = asyncio.ensure_future(self._clock.sleep(READY_S_MAX))
        await asyncio.wait({ready, late, *ends}, return_when=asyncio.FIRST_COMPLETED)
        for one in (ready, late, *ends):
            one.cancel()
        return child.launch.ready.is_set() and child.process.returncode is None and before.process.returncode is None

    async def _spawn(self, role: str) -> _Child:
        # A session of its own: Ctrl-C reaches the supervisor alone, which then ends the roles in order.
        launch = self._roles[role]()
        environment = {**os.environ, SUPERVISOR: str(os.getpid())}
        try:
            process = await asyncio.create_subprocess_exec(
                *launch.command, start_new_session=True, env=environment, pass_fds=launch.fds
            )
        except BaseException:
            launch.ended()
            raise
        launch.started()
        return _Child(role, launch, process)

    async def _keep(self, role: str) -> None:
        pause = 0.0
        while not self._stopping:
            began, child = self._clock.monotonic(), self._running[role]
            code = await child.process.wait()
            async with self._changing[role]:
                if self._running[role] is not child:  # it was replaced
                    continue
                child.launch.ended()
                lived, cause = self._clock.monotonic() - began, _cause(code)
                pause = 0.0 if lived > STEADY_S else min(PAUSE_S_MAX, pause * 2 + 0.1)
                logger.warning("%s ended (%s) after %.1f s; starting it again in %.1f s", role, cause, lived, pause)
                await self._clock.sleep(pause)
                while not await self._spawned(role):
                    await self._clock.sleep(PAUSE_S_MAX)
                self._count(role, cause)

    async def _spawned(self, role: str) -> bool:
        """Whether it runs again; a machine without room for a process may have some in a moment."""
        try:
            self._running[role] = await self._spawn(role)
        except OSError as error:
            logger.error("%s cannot be started (%s); trying again in %.1f s", role, error, PAUSE_S_MAX)
            return False
        return True

    async def _end(self, child: _Child) -> None:
        process = child.process
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self._grace_s)
            except TimeoutError:
                logger.warning("%s did not end within %.0f s of SIGTERM and is killed", child.role, self._grace_s)
                process.kill()
        await self._gone(child)

    async def _gone(self, child: _Child) -> None:
        await child.process.wait()
        self._aside.discard(child)
        child.launch.ended()

    def _count(self, role: str, cause: str) -> None:
        self.restarts[role] += 1
        help = "Processes that were started in place of another, by what ended that one"
        self._meter.counter("millstream_worker_restarts_total", help, {"cause": cause}).add()


def _cause(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
