"""A server under test: a process tree of its own, its CPU time and memory, and its end.

A process belongs to the tree when it descends from the one that was started or carries its mark in the environment:
some servers leave daemons behind that are nobody's children.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from clients import Broken, connect
from environments import ROOT, SCRATCH

MARK = "MILLSTREAM_BENCH"
LOGS = SCRATCH / "logs"


class Died(Exception):
    """A server that did not start or did not answer; the text has the end of its log."""


class Server:
    """`command` started in a session of its own. `boot_s`: until `first` was answered with 200."""

    def __init__(self, name: str, command: Sequence[str | Path], folder: Path | None = None, **more: str) -> None:
        self.name, self.mark = name, uuid.uuid4().hex
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        self.started, self.boot_s = time.perf_counter(), 0.0
        environment = {**os.environ, **more, MARK: self.mark}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder or ROOT,
                env=environment, start_new_session=True,
            )  # fmt: skip

    def wait(self, protocol: str, port: int, request: bytes, limit_s: float) -> None:
        """Ask until the first answer of 200 comes. Raises Died, and ends the server, when none does."""
        said = "nothing listened"
        while True:
            try:
                said = ask(protocol, port, request, limit_s)
                if said == "200":
                    break
            except (OSError, Broken) as error:
                said = str(error)
            if self.process.poll() is not None or time.perf_counter() - self.started > limit_s:
                self.stop()
                raise Died(f"{self.name} gave no answer ({said}): {self.tail()}")
            time.sleep(0.02)
        self.boot_s = time.perf_counter() - self.started

    def tail(self, size: int = 1500) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size:].strip()

    def tree(self) -> list[int]:
        parents, marked = {}, []
        mark = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(folder.name))
                if mark in (folder / "environ").read_bytes():
                    marked.append(int(folder.name))
        found = list(dict.fromkeys([self.process.pid, *marked]))
        for one in found:
            found += [child for child in parents.get(one, []) if child not in found]
        return found

    def cpu_s(self) -> float:
        """User + system seconds of the tree, with those of its children that ended."""
        ticks = 0
        for one in self.tree():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Resident memory of the tree."""
        pages = 0
        for one in self.tree():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> None:
        """End every process of the tree, by force after ten seconds."""
        everyone = self.tree()
        for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            for one in everyone:
                with contextlib.suppress(OSError):
                    os.kill(one, number)
            until = time.perf_counter() + patience_s
            while time.perf_counter() < until:
                self.process.poll()
                everyone = [one for one in everyone if _lives(one)]
                if not everyone:
                    return
                time.sleep(0.05)


def ask(protocol: str, port: int, request: bytes, limit_s: float = 10.0) -> str:
    """One request on a connection of its own: "200", or what came instead. Raises OSError and Broken."""
    client = connect(protocol, port)
    try:
        client.send(request)
        until = time.perf_counter() + limit_s
        while time.perf_counter() < until:
            client.flush()
            select.select([client.socket], [client.socket] if client.wants_write else [], [], 1.0)
            if client.answered():
                return "200" if client.status == 200 else f"{client.status} {client.answer[:600]!r}"
        return f"nothing within {limit_s:.0f} s"
    finally:
        client.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
