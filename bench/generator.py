"""What one load generator can send: `python bench/generator.py [--seconds S] [--repeats N]`.

The server is an echo that does next to nothing, so what is seen is the generator's own price: requests a second of its
CPU time, closed loop (as fast as they are answered) and open loop (a schedule),
64 connections.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys

from millstream.ops.generator import Order, Setup
from millstream.ops.load import Load

REQUEST = b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
ANSWER = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 1\r\ncontent-length: 100\r\n\r\n" + b"x" * 100
RATES = {"closed loop": 0.0, "open loop, 8,000/s": 8000.0}
ECHO = f"""
import asyncio, uvloop
class Echo(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write({ANSWER!r} * (len(data) // {len(REQUEST)}))
async def main():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""


async def measure(port: int, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Requests answered per second of the generator's CPU time, by kind of load."""
    found: dict[str, list[float]] = {name: [] for name in RATES}
    async with Load(Setup("127.0.0.1", port, [REQUEST])) as load:
        for _ in range(repeats):
            for name, rate in RATES.items():
                tally = await load.measure(Order(rate=rate, seconds=seconds, connections=64))
                found[name].append(tally.statuses[200] / (tally.cpu * tally.seconds))
    return found


def main() -> None:
    options = argparse.ArgumentParser(description="What one load generator can send.")
    options.add_argument("--seconds", type=float, default=1.0, help="of each window")
    options.add_argument("--repeats", type=int, default=5)
    chosen = options.parse_args()
    server = subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        found = asyncio.run(measure(int(server.stdout.readline()), chosen.seconds, chosen.repeats))
    finally:
        server.kill()
        server.wait()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {chosen.repeats} windows")
    print(f"{'requests per second of CPU time':36}{'median':>10}{'best':>10}")
    for name, rates in found.items():
        print(f"{name:36}{statistics.median(rates):10,.0f}{max(rates):10,.0f}")


if __name__ == "__main__":
    main()
