"""Serve models alone: no log, no learning, nothing but a repository."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

from millstream.app.house import House
from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.flows.predict import Predict
from millstream.front import Http
from millstream.meter import Meter
from millstream.models.repository import Repository

logger = logging.getLogger("millstream")


async def serve_path(path: Path, host: str, port: int) -> None:
    """Serve the repository at `path` until SIGTERM or SIGINT."""
    clock, meter = SystemClock(), Meter()
    engine = Engine(Repository.open(path), clock, meter)
    await engine.start()
    http = Http(House(engine, Predict(engine.submit, clock), meter, None), meter, clock)
    asked = until_asked()
    bound = await http.start(host, port)
    for view in engine.views():
        logger.info("%s: %s", view.model, view.live or "; ".join(view.problems.values()))
    logger.info("serving at http://%s:%d", host, bound)
    await asked.wait()
    await http.stop()
    await engine.stop()


def until_asked() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked
