"""The role `console`: pages over an installation. It reads the log's tails, the repository and the meter pages;
it writes nothing but policies, as the control API does, and what `millstream curate` writes."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import uvicorn

from millstream.app.console.alerts import AlertsSeen
from millstream.app.console.counts import Counts
from millstream.app.console.hearing import Hearing
from millstream.app.console.studies import Studies
from millstream.app.console.tails import Tails
from millstream.app.console.traffic import Models, Moves
from millstream.app.installation import Installation
from millstream.app.plain import until_asked
from millstream.config import orphaned
from millstream.console.pages import alerts, log, models, overview, speech, traffic
from millstream.console.settings import ConsoleSettings
from millstream.console.shell import CONNECTIONS_MAX, Shell
from millstream.console.sign import Sign
from millstream.errors import Misconfigured
from millstream.guard.auth import Keys
from millstream.guard.tls import Tls
from millstream.machine import stand_back
from millstream.meter import Meter

logger = logging.getLogger("millstream")
STOP_S = 3
EVERY_S = 1.0


class Polled(Protocol):
    """What follows something that grows."""

    def poll(self) -> None:
        """Take what is new. Called by one thread."""
        ...


async def run(installation: Installation) -> None:
    """Show the console until SIGTERM or SIGINT. Misconfigured."""
    stand_back()
    asked, at = until_asked(), installation
    settings, meter = at.settings.console, Meter()  # of its own: two consoles of one installation may run
    keys = Keys.load(at.folder / at.settings.keys, at.clock, meter) if at.settings.keys else None
    following = Following(at)
    tls = Tls(at.settings.tls, at.folder, at.clock, meter) if at.settings.tls.certificate else None
    shell = Shell(following.pages, Sign(keys, at.clock, settings.idle_s), at.folder.name)
    with _listening(settings) as listening:
        server = _server(shell, tls)
        host, port = listening.getsockname()[:2]
        logger.info("the console is at %s://%s:%d", "https" if tls else "http", host, port)
        beside = [asyncio.ensure_future(following.keep())]
        if tls is not None:
            beside.append(asyncio.ensure_future(tls.keep()))
        serving = asyncio.ensure_future(server.serve([listening]))
        while not (asked.is_set() or orphaned() or serving.done()):
            await asyncio.wait({serving}, timeout=0.2)
        server.should_exit = True
        await serving
        for task in beside:
            task.cancel()
        following.close()


class Following:
    """Every page, in the order of the navigation, over what follows the installation: each of `_polled` is told, once
    a second and in one thread, to take what is new."""

    def __init__(self, at: Installation) -> None:
        self._clock = at.clock
        counts = Counts(at.folder / "state" / "meters", at.clock.monotonic)
        tails, alerts_seen = Tails(at), AlertsSeen(at, counts)
        models_seen, moves = Models(at, counts, tails, alerts_seen), Moves(at, alerts_seen)
        self._studies = studies = Studies(at)
        self._polled: list[Polled] = [counts, alerts_seen, tails, studies]
        self.pages = [
            overview.page(models_seen),
            models.page(models_seen, moves),
            traffic.page(models_seen, moves),
            studies.learning,
            studies.features,
            studies.recommend,
            studies.experiments,
            speech.page(Hearing(at)),
            alerts.page(alerts_seen, moves),
            studies.review,
            log.page(tails),
        ]

    def close(self) -> None:
        """End what pages have begun."""
        self._studies.close()

    async def keep(self) -> None:
        """Follow what is new, until cancelled. What cannot be read is said once, and tried again."""
        said: dict[Polled, str] = {}
        while True:
            for one in self._polled:
                try:
                    await asyncio.to_thread(one.poll)
                    said.pop(one, None)
                except Exception as error:  # a page that stands still must not take the others with it
                    if said.get(one) != str(error):
                        said[one] = str(error)
                        logger.exception("the console cannot read what is new")
            await self._clock.sleep(EVERY_S)


class _Server(uvicorn.Server):
    """One that leaves signals to the role."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(shell: Shell, tls: Tls | None) -> _Server:
    config = uvicorn.Config(
        shell.application(),
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_graceful_shutdown=STOP_S,
        ws_max_size=1 << 20,
    )
    config.load()
    if tls is not None:
        config.ssl = tls.http()
        config.ssl.sni_callback = lambda connection, *_: _renewed(connection, tls)
    return _Server(config)


def _renewed(connection: ssl.SSLSocket | ssl.SSLObject, tls: Tls) -> None:
    """A new connection gets the certificate that is in force now."""
    connection.context = tls.http()


@contextmanager
def _listening(settings: ConsoleSettings) -> Iterator[socket.socket]:
    """The socket of the console. Misconfigured: the port is taken, or the address is not this machine's."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((settings.host, settings.port))
            made.listen(128)
            yield made
    except OSError as error:
        raise Misconfigured(
            f"console: {settings.host}:{settings.port}: {error.strerror or error}; name a free port in [console] port"
        ) from None
