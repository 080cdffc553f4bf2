"""Many live sessions at once, paced as people speak, over a scripted recogniser in a real engine.

    python bench/speech/sessions.py --models DIR [--sessions 100] [--seconds 600] [--cost-ms 20]

Each session says sentences of its own (tones that the recogniser knows), 100 ms a message, with pauses between, and
reads what it is told. Silero's detector runs for each, and decides nothing here: it does not take tones for speech.
Printed: finals lost or doubled or wrong (none may be), first words and finals after their audio, CPU of a session,
memory at a third and at the end, and what it gains in a minute between the two (least squares).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.flows.speech.live import Live
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.settings import FRAME, RATE, SpeechSettings
from millstream.flows.speech.wiring import Wiring
from millstream.machine import resident
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.runtimes.scripted import Script, speak
from millstream.models.speech import tensors
from millstream.models.speech.vad import Hearing, Vad
from millstream.spoken import Segment, Start

WORDS = tuple(f"word{n}" for n in range(60))


class Loud:
    """What is loud is speech; asks a real detector all the same, so that its time is spent."""

    def __init__(self, vad: Vad) -> None:
        self._vad = vad

    def fresh(self) -> Hearing:
        """As the detector's."""
        return self._vad.fresh()

    def probabilities(self, sound: NDArray[np.float32], hearing: Hearing) -> tuple[NDArray[np.float32], Hearing]:
        """Of each frame."""
        _, hearing = self._vad.probabilities(sound, hearing)
        frames = sound.reshape(-1, FRAME)
        loud = np.sqrt(np.einsum("ij,ij->i", frames, frames) / FRAME) > 0.01
        return np.where(loud, np.float32(0.95), np.float32(0.02)), hearing


async def talks(hall: Live, script: Script, seed: int, seconds: float, found: dict[str, list[float]]) -> int:
    """One session to its end; how many finals were lost, doubled or wrong."""
    random, said = Random(seed), list[str]()
    session = await hall.open(Start())
    heard: list[str] = []
    arrived: list[tuple[float, float]] = []

    async def read() -> None:
        begun: set[str] = set()
        async for told in session.messages():
            if isinstance(told, Segment) and told.id not in begun and told.words:
                begun.add(told.id)
                found["first"].append(when(told.start))
            if isinstance(told, Segment) and told.state == "final":
                heard.append(told.text)
                found["final"].append(when(told.end))

    def when(second: float) -> float:
        return time.monotonic() - next((at for upto, at in arrived if upto >= second), time.monotonic())

    reader = asyncio.create_task(read())
    await asyncio.sleep(random.random())
    began, at = time.monotonic(), 0.0
    while at < seconds:
        said.append(" ".join(random.choices(WORDS, k=random.randint(1, 12))))
        pause = np.zeros(int(random.uniform(0.9, 2.5) * RATE), np.float32)
        sound = np.concatenate([speak(script, said[-1].split()), pause])
        data = np.round(sound * 32767).astype("<i2").tobytes()
        for piece in (data[n : n + 3200] for n in range(0, len(data), 3200)):
            at += len(piece) / 2 / RATE
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            arrived.append((at, time.monotonic()))
            del arrived[:-600]
            await session.hear(piece)
            if random.random() < 0.02:
                session.ack(10**9)
    session.finish()
    await reader
    await session.close()
    return sum(one != other for one, other in zip(said, heard, strict=False)) + abs(len(said) - len(heard))


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of them."""
    script = Script(words=WORDS, by="tone", cost_ms=args.cost_ms)
    repository, clock, meter = Repository(folder / "models"), SystemClock(), Meter()
    manifest = Manifest(
        format="scripted",
        file="script.json",
        inputs=tensors.WINDOWED,
        outputs=tensors.WINDOWED_OUTPUTS,
        batching=tensors.batching(rows_max=32),
    )
    repository.put("fake", manifest, {"script.json": msgspec.json.encode(script)})
    weights = Repository(args.models)
    vad = Vad(load(weights, "silero-vad", weights.policy("silero-vad").live))
    engine = Engine(repository, clock, meter)
    await engine.start()
    wiring = Wiring(
        submit=engine.submit,
        model="fake",
        vad=Loud(vad),  # type: ignore[arg-type]
        clock=clock,
        numbers=Numbers(meter),
    )
    hall = Live(SpeechSettings(recogniser="fake"), wiring, lambda: ["1"], args.sessions, folder / "run")
    found: dict[str, list[float]] = {"first": [], "final": []}
    began, cpu = time.monotonic(), time.process_time()
    memory: list[tuple[float, float]] = []

    async def look() -> None:
        await asyncio.sleep(args.seconds / 3)
        while (at := time.monotonic() - began) < args.seconds:
            memory.append((at / 60, (resident() or 0) / 2**20))
            await asyncio.sleep(1.0)

    looking = asyncio.create_task(look())
    wrong = await asyncio.gather(*(talks(hall, script, n, args.seconds, found) for n in range(args.sessions)))
    await looking
    took = time.monotonic() - began
    used = time.process_time() - cpu
    await engine.stop()
    return {
        "sessions": args.sessions,
        "seconds": round(took),
        "finals": len(found["final"]),
        "wrong": sum(wrong),
        "first_s": [round(float(q), 2) for q in np.quantile(found["first"], (0.5, 0.95, 0.99))],
        "final_s": [round(float(q), 2) for q in np.quantile(found["final"], (0.5, 0.95, 0.99))],
        "cores": round(used / took, 2),
        "cpu_of_a_session": round(used / took / args.sessions, 4),
        "memory_mib": [round(each) for _, each in (memory[0], memory[-1])],
        "memory_mib_a_minute": round(float(np.polyfit(*zip(*memory, strict=True), 1)[0]), 2),
        "skipped": meter.sum("millstream_speech_steps_skipped_total"),
    }


def main() -> None:
    """The figures, a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="a repository with silero-vad")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--cost-ms", type=float, default=20.0, help="that a call of the recogniser takes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(args, Path(folder)))
    for name, value in found.items():
        print(f"{name:22}{value}", flush=True)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
