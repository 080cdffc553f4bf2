"""Serve models alone: no log, no learning, nothing but a repository."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path

from millstream.app.place import Place
from millstream.app.service import ServeSettings, Service
from millstream.clock import SystemClock
from millstream.errors import Misconfigured
from millstream.machine import stand_ready
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
    stand_ready()
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
        listens = await before(asked, service.listen())
    except BaseException:
        await service.close(sessions)
        raise
    if listens:
        await asked.wait()
        await service.stop(sessions)
    else:  # it was still waiting for what its peers have, and they are leaving too
        await service.close(sessions)
    if alone is not None:
        alone.cancel()


async def before(asked: asyncio.Event, work: Coroutine[object, object, object]) -> bool:
    """Do this, unless we are asked to end before it is done; whether it was."""
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(asked.wait())
    await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait({working})
        return False
    working.result()
    return True


def until_asked() -> asyncio.Event:
    """Set by SIGTERM and SIGINT. SIGHUP, of a terminal that was closed, ends nothing, here and in what this process
    starts: keys, certificates and policies are looked at every second without it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked
