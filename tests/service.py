"""A real `millstream serve` in a process tree of its own, as an operator starts it, and what one sees from outside."""

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import orjson


def free_port():
    """A port that nobody listens at, and that the kernel hands to no connection before it is bound."""
    with Path("/proc/sys/net/ipv4/ip_local_port_range").open() as limits:
        ephemeral = int(limits.read().split()[0])
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", random.randrange(ephemeral // 2, ephemeral)))
            return probe.getsockname()[1]


class Served:
    """`millstream serve root OPTIONS`, or what `verb` says in its place, answering at ports `http` and `grpc`. Ended
    at the end of a `with`."""

    def __init__(self, root, log, *options, http_port=0, verb=()):
        ports = ["--http-port", str(http_port), "--grpc-port", "0"]
        command = [sys.executable, "-m", "millstream", *(verb or ["serve", str(root), *ports]), *options]
        self.log = Path(log)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stderr=out, stdout=out)
        self.pid = self.process.pid
        try:
            self.http = int(self.said(r"serving at http://[\d.]+:(\d+)"))
            self.grpc = int(self.said(r"serving gRPC at [\d.]+:(\d+)"))
        except BaseException:
            self.__exit__()
            raise

    def said(self, pattern, seconds=60.0, times=1):
        """Wait until a line of its log matches for the n-th time; the first group of that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended, text = self.process.poll() is not None, self.log.read_text()
            found = re.findall(pattern, text)
            if len(found) >= times:
                return found[times - 1]
            assert not ended, f"it ended with {self.process.returncode}: {text}"
            time.sleep(0.02)
        raise AssertionError(f"it never said {pattern!r}: {self.log.read_text()}")

    def workers(self):
        """Its processes that answer, by name: those of the parent's children that have a place."""
        found = {}
        for pid in children(self.pid):
            line = command_line(pid)
            if place := re.search(r'--place\0\{"number":(\d+)', line):
                found[f"serve-{place[1]}"] = pid
        return found

    def run_folder(self):
        """What its processes share."""
        place = re.search(r'"run":"([^"]+)"', command_line(next(iter(self.workers().values()))))
        return Path(place[1])

    def metrics(self, *patterns):
        """The sums over all series that match a pattern, of one moment."""
        return metrics(self.http, *patterns)

    def stop(self, seconds=60.0):
        """SIGTERM; what it ends with."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        tree = descendants(self.pid)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for pid in tree:  # nothing of a test that failed may stay
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def _stat(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def alive(pid):
    """Whether the process is there and no mere entry that waits for its parent."""
    stat = _stat(pid)
    return stat is not None and stat[0] != "Z"


def children(pid):
    every = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [one for one in every if (stat := _stat(one)) and int(stat[1]) == pid and stat[0] != "Z"]


def descendants(pid):
    """All that it started, and they started."""
    found = children(pid)
    for one in found:
        found += children(one)
    return found


def command_line(pid):
    """Its arguments, each ended by a NUL; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def metrics(port, *patterns):
    """The sums over all series that match a pattern, of one moment."""
    lines = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode().splitlines()
    return [sum(float(line.split()[-1]) for line in lines if re.match(rf"{one}[ {{]", line)) for one in patterns]


def document(array, name="x", **parameters):
    """The body of a request for one tensor."""
    tensor = {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
    return {"inputs": [tensor], "parameters": parameters}


def column(answer, name="y"):
    """One output of an answer."""
    found = next(one for one in answer["outputs"] if one["name"] == name)
    return np.array(found["data"], np.float32).reshape(found["shape"])


class Connection:
    """One connection, kept open. Raises OSError and EOFError when it is lost."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port):
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, path, body=None, method="POST"):
        """(status, document)."""
        whole = b"" if body is None else orjson.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(whole)}\r\n\r\n"
        self.writer.write(head.encode() + whole)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
        found = await self.reader.readexactly(length)
        return int(lines[0].split()[1]), orjson.loads(found) if found else None

    async def close(self):
        """Not left to the garbage collector: the server counts a connection until its socket is closed."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def infer(self, model, array, name="x", **parameters):
        return await self.ask(f"/v2/models/{model}/infer", document(array, name, **parameters))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()


async def until(condition, seconds=60.0):
    """Wait for what must come; the bound is for a test that fails, not for a timing."""
    end = time.monotonic() + seconds
    while not (found := await condition() if asyncio.iscoroutinefunction(condition) else condition()):
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.05)
    return found
