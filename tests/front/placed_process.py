"""A process that answers beside others: `placed_process.py FOLDER NUMBER OF`. It prints its port, ends with stdin."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
from front_house import Served
from talk_house import Hearing

from millstream.front.placing import Placing
from millstream.types import Principal


async def serve(folder: str, number: int, of: int) -> None:
    async with Served() as house:
        house.door.hearing = Hearing()
        house.door.keys = {"k": Principal("shop", ("*:speech",))}
        house.http.place(Placing(Path(folder), number, of))
        print(house.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
