"""Keep the roles of an installation running: plain subprocesses, started again within two seconds.

A role that dies is started again at once, then with a growing pause while it keeps dying, never more than 1.5 s, and
each death is said with its cause. SIGTERM goes to every role; one that has not gone after `grace_s` is killed.

A supervisor that is killed itself cannot end its roles: they hold its process id (`config.SUPERVISOR` in their
environment) and end in order when that is no longer their parent, so the next `millstream up` finds the log free.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping, Sequence

from millstream.clock import Clock
from millstream.config import SUPERVISOR

PAUSE_S_MAX = 1.5
STEADY_S = 10.0
logger = logging.getLogger("millstream.supervise")


class Supervisor:
    """Runs one subprocess a role. `commands`: role -> argument list."""

    def __init__(self, commands: Mapping[str, Sequence[str]], clock: Clock, grace_s: float = 10.0) -> None:
        self._commands, self._clock, self._grace_s = dict(commands), clock, grace_s
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self.restarts = dict.fromkeys(self._commands, 0)

    async def start(self) -> None:
        """Start every role; from now on each is kept running. OSError when one cannot be started at all."""
        for role in self._commands:
            await self._spawn(role)
            self._keepers.append(asyncio.create_task(self._keep(role)))

    def pid(self, role: str) -> int:
        """Process id of the role's latest process, which may have ended."""
        return self._running[role].pid

    async def stop(self) -> None:
        """SIGTERM to every role, SIGKILL to what stays; returns when all have gone."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._end(role, process) for role, process in self._running.items()))

    async def run(self) -> None:
        """Start, wait for SIGINT or SIGTERM, stop."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked.set)
        await self.start()
        await asked.wait()
        await self.stop()

    async def _spawn(self, role: str) -> None:
        # A session of its own: Ctrl-C reaches the supervisor alone, which then ends the roles in order.
        self._running[role] = await asyncio.create_subprocess_exec(
            *self._commands[role], start_new_session=True, env={**os.environ, SUPERVISOR: str(os.getpid())}
        )

    async def _keep(self, role: str) -> None:
        pause = 0.0
        while not self._stopping:
            began = self._clock.monotonic()
            code = await self._running[role].wait()
            if self._stopping:
                return
            lived = self._clock.monotonic() - began
            pause = 0.0 if lived > STEADY_S else min(PAUSE_S_MAX, pause * 2 + 0.1)
            logger.warning("%s ended (%s) after %.1f s; starting it again in %.1f s", role, _cause(code), lived, pause)
            await self._clock.sleep(pause)
            while not await self._spawned(role):
                await self._clock.sleep(PAUSE_S_MAX)
            self.restarts[role] += 1

    async def _spawned(self, role: str) -> bool:
        """Whether it runs again; a machine without room for a process may have some in a moment."""
        try:
            await self._spawn(role)
        except OSError as error:
            logger.error("%s cannot be started (%s); trying again in %.1f s", role, error, PAUSE_S_MAX)
            return False
        return True

    async def _end(self, role: str, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._grace_s)
        except TimeoutError:
            logger.warning("%s did not end within %.0f s of SIGTERM and is killed", role, self._grace_s)
            process.kill()
            await process.wait()


def _cause(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
