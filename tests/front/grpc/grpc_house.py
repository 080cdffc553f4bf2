"""A House behind real ports, gRPC and HTTP, in a thread of its own, so that clients that block may call it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop
from front_house import House

from millstream.clock import SystemClock
from millstream.front import Http
from millstream.front.grpc import Grpc
from millstream.front.grpc.service import Inference
from millstream.meter import Meter

T = TypeVar("T")


class GrpcServed:
    """`with GrpcServed() as served:`; `served.url` is what a client is given, `http_port` leads to the same House."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.door = House(self.meter)
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> GrpcServed:
        self.thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _start(self) -> None:
        self.grpc = Grpc(Inference(self.door, SystemClock()), self.meter, SystemClock())
        self.http = Http(self.door, self.meter, SystemClock())
        self.port = await self.grpc.start(port=0)
        self.http_port = await self.http.start(port=0)

    async def _stop(self) -> None:
        await asyncio.gather(self.grpc.stop(), self.http.stop())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on the server's loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def hold(self) -> None:
        """From now on requests wait for `release`."""
        self.door.held = []

    def release(self) -> None:
        """Answer what waits, and from now on at once."""

        async def release() -> None:
            held, self.door.held = self.door.held or [], None
            for future, answer in held:
                if not future.done():
                    future.set_result(answer)

        self.run(release())


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.002)
