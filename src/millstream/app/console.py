"""The role `console`: pages over an installation. It reads the log's tails, the repository and the meter pages;
it writes nothing but policies, as the control API does."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from millstream.app.console_reads import Reads
from millstream.app.installation import Installation
from millstream.app.plain import until_asked
from millstream.config import orphaned
from millstream.console.page import Page
from millstream.console.pages import overview
from millstream.console.settings import ConsoleSettings
from millstream.console.shell import CONNECTIONS_MAX, Shell
from millstream.console.sign import Sign
from millstream.errors import Misconfigured
from millstream.guard.auth import Keys
from millstream.guard.tls import Tls
from millstream.machine import stand_back

logger = logging.getLogger("millstream")
STOP_S = 3


async def run(installation: Installation) -> None:
    """Show the console until SIGTERM or SIGINT. Misconfigured."""
    stand_back()
    asked, at = until_asked(), installation
    settings, meter = at.settings.console, at.meter("console")
    keys = Keys.load(at.folder / at.settings.keys, at.clock, meter) if at.settings.keys else None
    reads = Reads(at)
    tls = Tls(at.settings.tls, at.folder, at.clock, meter) if at.settings.tls.certificate else None
    shell = Shell(pages(reads), Sign(keys, at.clock, settings.idle_s), at.folder.name)
    with _listening(settings) as listening:
        server = _server(shell, tls)
        host, port = listening.getsockname()[:2]
        logger.info("the console is at %s://%s:%d", "https" if tls else "http", host, port)
        beside = [asyncio.ensure_future(reads.keep())]
        if tls is not None:
            beside.append(asyncio.ensure_future(tls.keep()))
        serving = asyncio.ensure_future(server.serve([listening]))
        while not (asked.is_set() or orphaned() or serving.done()):
            await asyncio.wait({serving}, timeout=0.2)
        server.should_exit = True
        await serving
        for task in beside:
            task.cancel()


def pages(reads: Reads) -> list[Page]:
    """Every page, in the order of the navigation."""
    return [
        overview.page(reads),
    ]


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
