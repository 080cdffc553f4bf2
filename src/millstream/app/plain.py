"""Serve models alone: no log, no learning, nothing but a repository."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from millstream.app.service import ServeSettings, Service
from millstream.clock import SystemClock
from millstream.errors import Misconfigured
from millstream.machine import few_arenas
from millstream.meter import Meter
from millstream.models.repository import Repository


async def serve_path(path: Path, settings: ServeSettings, sessions: Path | None = None) -> None:
    """Serve the repository at `path` until SIGTERM or SIGINT. No model there that can answer: Misconfigured.

    `sessions`: a file for those that are open at the end, and from which the next process takes them over.
    """
    few_arenas()
    asked = until_asked()
    service = Service(Repository.open(path), settings, Path.cwd(), SystemClock(), Meter())
    await service.load(sessions)
    if not service.engine.models():
        await service.close()
        raise Misconfigured("; ".join(why for view in service.engine.views() for why in view.problems.values()))
    service.furnish()
    try:
        await service.listen()
    except BaseException:
        await service.close(sessions)
        raise
    await asked.wait()
    await service.stop(sessions)


def until_asked() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked
