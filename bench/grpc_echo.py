"""CPU per call of the gRPC transport beside grpcio's own servers: `python bench/grpc_echo.py [--seconds S] [--json]`.

Each server answers a call with the bytes it got, through no codec at all: what is left is the transport. The client is
a process of its own, 64 calls in flight on one channel or spread over 8. The figure is user + system time of the whole
server process per answered call, which does not move with the client; servers take turns, the table has medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import threading
import time
from concurrent import futures
from multiprocessing.connection import Connection as Pipe

import grpc
import uvloop

from millstream.clock import SystemClock
from millstream.front.grpc import Call, Grpc, Receiver
from millstream.meter import Meter

IN_FLIGHT = 64
CHANNELS = (1, 8)
MESSAGE = bytes(range(200))
THREADS = 10
WARM_S = 0.5
METHOD = "/echo.Echo/Echo"


class Echo:
    """A call that gets back what it sent."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def message(self, data: bytes) -> None:
        self._call.send(data)

    def ended(self) -> None:
        self._call.finish()

    def cancelled(self) -> None:
        pass


class EchoService:
    def open(self, call: Call) -> Receiver:
        return Echo(call)


class Sync(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The same for grpcio's threads."""

    def service(self, details: object) -> object:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


class Async(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The same for grpcio's coroutines."""

    def service(self, details: object) -> object:
        return grpc.unary_unary_rpc_method_handler(self.answer)

    async def answer(self, request: bytes, context: object) -> bytes:
        return request


def answer_cpu(pipe: Pipe) -> None:
    """Say how much CPU this process has used whenever the bench asks."""
    while pipe.recv():
        pipe.send(time.process_time())
    os._exit(0)


def serve_millstream(pipe: Pipe) -> None:
    async def serve() -> None:
        server = Grpc(EchoService(), Meter(), SystemClock())
        pipe.send(await server.start("127.0.0.1", 0))
        threading.Thread(target=answer_cpu, args=(pipe,)).start()
        await asyncio.Event().wait()

    uvloop.run(serve())


def serve_sync(pipe: Pipe) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers((Sync(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send(port)
    answer_cpu(pipe)


def serve_aio(pipe: Pipe) -> None:
    async def serve() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Async(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(port)
        threading.Thread(target=answer_cpu, args=(pipe,)).start()
        await asyncio.Event().wait()

    asyncio.run(serve())


SERVERS = {"millstream": serve_millstream, "grpcio, 10 threads": serve_sync, "grpc.aio": serve_aio}


def load(pipe: Pipe, port: int, channels: int, seconds: float, timeout_s: float | None) -> None:
    """The client: calls in a closed loop; says when it is warm, then (calls, their latencies in seconds)."""

    async def run() -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        opened = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(channels)]
        calls = [channel.unary_unary(METHOD) for channel in opened]
        until = time.perf_counter() + WARM_S
        took: list[float] = []

        async def one(at: int) -> None:
            while (begun := time.perf_counter()) < until:
                assert await calls[at % channels](MESSAGE, timeout=timeout_s) == MESSAGE
                took.append(time.perf_counter() - begun)

        await asyncio.gather(*map(one, range(IN_FLIGHT)))
        took.clear()
        pipe.send("warm")
        pipe.recv()
        until = time.perf_counter() + seconds
        await asyncio.gather(*map(one, range(IN_FLIGHT)))
        pipe.send(took)

    asyncio.run(run())


def measure(name: str, channels: int, seconds: float, timeout_s: float | None) -> dict[str, float]:
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    server = processes.Process(target=SERVERS[name], args=(theirs,))
    server.start()
    port = ours.recv()
    pipe, other = processes.Pipe()
    client = processes.Process(target=load, args=(other, port, channels, seconds, timeout_s))
    client.start()
    assert pipe.recv() == "warm"
    ours.send(True)
    before = ours.recv()
    pipe.send(True)
    took = sorted(pipe.recv())
    ours.send(True)
    cpu = ours.recv() - before
    ours.send(False)
    client.join()
    server.join()
    rate, p99 = len(took) / seconds, took[int(len(took) * 0.99)]
    return {
        "cpu_us": cpu / len(took) * 1e6,
        "calls_per_s": rate,
        "p50_ms": took[len(took) // 2] * 1e3,
        "p99_ms": p99 * 1e3,
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}, Python {platform.python_version()}"
    lines = [f"{machine}; grpcio {grpc.__version__}", f"{len(MESSAGE)} bytes each way, {IN_FLIGHT} calls in flight", ""]
    lines.append(f"{'':<34}{'CPU us/call':>12}{'calls/s':>10}{'p50 ms':>9}{'p99 ms':>9}")
    for name, row in rows.items():
        figures = f"{row['cpu_us']:>12.1f}{row['calls_per_s']:>10,.0f}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}"
        lines.append(f"{name:<34}{figures}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each run lasts")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each server; the median counts")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=list(SERVERS), help="which to run")
    parser.add_argument("--timeout", type=float, help="a deadline for every call, in seconds (default: none)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for channels in CHANNELS:
            for name in options.servers:
                title = f"{name}, {channels} channel{'s' if channels > 1 else ''}"
                runs.setdefault(title, []).append(measure(name, channels, options.seconds, options.timeout))
    rows = {name: {key: statistics.median(run[key] for run in of) for key in of[0]} for name, of in runs.items()}
    print(json.dumps(rows) if options.json else table(rows))


if __name__ == "__main__":
    main()
