"""Serve models alone: no log, no learning, nothing but a repository."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

from millstream.app.house import House
from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.errors import Misconfigured
from millstream.flows.predict import Predict
from millstream.front import Http
from millstream.meter import Meter
from millstream.models.repository import Repository

logger = logging.getLogger("millstream")


async def serve_path(path: Path, host: str, port: int) -> None:
    """Serve the repository at `path` until SIGTERM or SIGINT. No model there that can answer: Misconfigured."""
    clock, meter, asked = SystemClock(), Meter(), until_asked()
    engine = Engine(Repository.open(path), clock, meter)
    await engine.start()
    try:
        for view in engine.views():
            logger.info("%s: %s", view.model, view.live or "; ".join(view.problems.values()))
        if not engine.models():
            raise Misconfigured("; ".join(why for view in engine.views() for why in view.problems.values()))
        http = Http(House(engine, Predict(engine.submit, clock), meter, None), meter, clock)
        bound = await listen(http, host, port)
        logger.info("serving at http://%s:%d", host, bound)
        await asked.wait()
        await http.stop()
    finally:
        await engine.stop()


async def listen(http: Http, host: str, port: int) -> int:
    """Bind and serve; the port. An address that cannot be had: Misconfigured."""
    try:
        return await http.start(host, port)
    except OSError as error:
        why = (
            os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        )  # a host that has no address
        raise Misconfigured(
            f"cannot listen on {host}:{port}: {why}; free it, or choose another (0: any free port)"
        ) from None


def until_asked() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked
