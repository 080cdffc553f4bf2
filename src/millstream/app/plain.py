"""Serve models alone: no log, no learning, nothing but a repository."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from millstream.app.place import Place
from millstream.app.service import ServeSettings, Service
from millstream.clock import SystemClock
from millstream.errors import Misconfigured
from millstream.machine import few_arenas, quick_turns
from millstream.meter import Meter
from millstream.models.source import open_source


async def serve_path(
    where: str, settings: ServeSettings, sessions: Path | None = None, place: Place | None = None
) -> None:
    """Serve the repository that `where` names (see models/source.py) until SIGTERM or SIGINT. No model there that can
    answer: Misconfigured.

    `sessions`: a file for those that are open at the end, and from which the next process takes them over. `place`: of
    one of several processes.
    """
    few_arenas()
    quick_turns()
    asked = until_asked()
    meter = Meter(place.meters, place.page_name) if place else Meter()
    service = Service(open_source(where), settings, Path.cwd(), SystemClock(), meter, place=place)
    await service.load(sessions)
    if not service.engine.models() and (place is None or place.first):  # a later one waits for what the others answer
        await service.close()
        raise Misconfigured("; ".join(why for view in service.engine.views() for why in view.problems.values()))
    service.furnish()
    alone = asyncio.ensure_future(place.alone(asked)) if place else None
    try:
        await service.listen()
    except BaseException:
        await service.close(sessions)
        raise
    await asked.wait()
    await service.stop(sessions)
    if alone is not None:
        alone.cancel()


def until_asked() -> asyncio.Event:
    """Set by SIGTERM and SIGINT. SIGHUP, of a terminal that was closed, ends nothing, here and in what this process
    starts: keys, certificates and policies are looked at every second without it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked
