"""What it costs to carry audio: CPU of a serving process, for a second of speech, by border and size of messages.

    python bench/speech/borders.py [--seconds 600]

The process has the two borders and a session that takes audio and hears nothing in it. Clients are `websockets` and
grpcio, in this process, and send as fast as they are let. Audio is PCM of 16 bits at 16 kHz: 32,000 bytes a second.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop
import websockets.sync.client

from millstream.clock import SystemClock
from millstream.front import Http
from millstream.front.grpc import Grpc
from millstream.front.grpc.service import Inference
from millstream.front.grpc.speech import CLASSES
from millstream.meter import Meter
from millstream.spoken import Ack, Edit, End, Finish, Ready, Start, Told
from millstream.types import Principal

SECOND = 32_000
Said, Heard = CLASSES["millstream.speech.v1.Said"], CLASSES["millstream.speech.v1.Told"]


class Deaf:
    """A session that counts what it is sent."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[Told] = asyncio.Queue()
        self._told.put_nowait(Ready(session="s", resume_token="t"))
        self._bytes = 0

    async def hear(self, audio: bytes) -> None:
        """Count it."""
        self._bytes += len(audio)

    async def say(self, said: Ack | Edit | Finish) -> None:
        """The end, with what came."""
        self._told.put_nowait(End(seq=1, last_seq=0, audio_ms=self._bytes * 1000 // SECOND))

    async def messages(self) -> AsyncIterator[Told]:
        """Ready, and the end."""
        while True:
            yield await self._told.get()

    async def close(self) -> None:
        """Nothing is open."""


class Door:
    """As much of a Door as the borders ask for here."""

    def principal(self, key: str | None, peer: str) -> Principal:
        """Anybody."""
        return Principal("anyone")

    def listens(self, principal: Principal) -> None:
        """To anybody."""

    async def speech(self, start: Start, principal: Principal) -> Deaf:
        """A session."""
        return Deaf()


def serve(ports: Connection) -> None:
    """The process that is measured: it says its ports, and its CPU seconds whenever it is asked."""

    async def run() -> None:
        door: Any = Door()
        http = Http(door, Meter(), SystemClock())
        border = Grpc(Inference(door, SystemClock()), Meter(), SystemClock())
        ports.send((await http.start(), await border.start()))
        while await asyncio.to_thread(ports.recv):
            ports.send(time.process_time())

    uvloop.run(run())


def over_websocket(port: int, seconds: int, piece: int) -> int:
    """Milliseconds of audio that arrived."""
    with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/v1/speech", compression=None) as client:
        client.send('{"type":"start"}')
        client.recv()
        for _ in range(seconds * SECOND // piece):
            client.send(bytes(piece))
        client.send('{"type":"finish"}')
        return int(str(client.recv()).split('"audio_ms":')[1].rstrip("}"))


def over_grpc(port: int, seconds: int, piece: int) -> int:
    """Milliseconds of audio that arrived."""

    def said() -> Iterator[Any]:
        yield Said(start={})
        for _ in range(seconds * SECOND // piece):
            yield Said(audio=bytes(piece))

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        path = "/millstream.speech.v1.Speech/Converse"
        call = channel.stream_stream(path, Said.SerializeToString, Heard.FromString)
        return int(list(call(said()))[-1].end.audio_ms)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="of audio, for each line")
    seconds = parser.parse_args().seconds
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    http, border = ours.recv()
    print("| border | a message | CPU of the server, ms a second of audio | streams a core, at most |")
    print("|---|---|---|---|")
    for name, send, port in (("WebSocket", over_websocket, http), ("gRPC", over_grpc, border)):
        for ms in (20, 100, 500):
            ours.send(True)
            before = ours.recv()
            arrived = send(port, seconds, SECOND * ms // 1000)
            ours.send(True)
            spent = ours.recv() - before
            assert arrived == seconds * 1000, arrived
            print(f"| {name} | {ms} ms | {1000 * spent / seconds:.2f} | {seconds / spent:,.0f} |", flush=True)
    ours.send(False)


if __name__ == "__main__":
    main()
