"""Serve models alone: no log, no learning, nothing but a repository."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial
from pathlib import Path

from millstream.app.borders import NEXT_PORT, Borders
from millstream.app.house import House
from millstream.clock import SystemClock
from millstream.engine import Engine, EngineLimits
from millstream.errors import Misconfigured
from millstream.flows.predict import Predict
from millstream.machine import Gauges, few_arenas
from millstream.meter import Meter
from millstream.models.model import load
from millstream.models.repository import Repository

logger = logging.getLogger("millstream")


async def serve_path(
    path: Path,
    host: str,
    http_port: int,
    grpc_port: int = NEXT_PORT,
    limits: EngineLimits | None = None,
    device: str = "cpu",
    sessions: Path | None = None,
) -> None:
    """Serve the repository at `path` until SIGTERM or SIGINT. No model there that can answer: Misconfigured.

    `sessions`: a file for those that are open at the end, and from which the next process takes them over.
    """
    few_arenas()
    clock, meter, asked = SystemClock(), Meter(), until_asked()
    engine = Engine(Repository.open(path), clock, meter, limits, load=partial(load, device=device))
    await engine.start()
    gauges = asyncio.ensure_future(Gauges(meter).keep(clock))
    try:
        for view in engine.views():
            logger.info("%s: %s", view.model, view.live or "; ".join(view.problems.values()))
        if not engine.models():
            raise Misconfigured("; ".join(why for view in engine.views() for why in view.problems.values()))
        if sessions is not None:
            engine.take_over(sessions)
        borders = Borders(House(engine, Predict(engine.submit, clock), meter, None), meter, clock)
        await borders.start(host, http_port, grpc_port)
        await asked.wait()
        if sessions is None:
            await engine.drain()
        await borders.stop()
    finally:
        gauges.cancel()
        await engine.stop(sessions)


def until_asked() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked
