"""Live sessions on clips with references: words wrong beside whole segments, how soon, how often changed, at what cost.

    MILLSTREAM_AUDIO=CLIPS python bench/speech/streaming.py --models DIR [--recogniser whisper-base] [--few N] [--json]

Each clip is a session on a clock of its own: audio at its pace in messages of 20 ms, every call of the recogniser takes
the CPU time that it took here, one thread. "whole": no hypotheses, only the final text of each segment: what streaming
is measured against. First: from the first sample of speech, as the cutter has it, to the first words shown. Final: from
the end of speech to its final text. RTF: CPU seconds a second of audio, everything. Changed: words that were shown and
changed before they were final, a final word.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from millstream.clock import FakeClock
from millstream.flows.speech.live import Live
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.settings import RATE, Profile, SpeechSettings
from millstream.flows.speech.wiring import Wiring
from millstream.meter import Meter
from millstream.models.model import Model, load
from millstream.models.repository import Repository
from millstream.models.speech.vad import Vad
from millstream.spoken import Segment, Start, Told
from millstream.types import Output, Ran, Request
from models import Clip, cer, clips, wer

QUANTILES = (0.5, 0.95, 0.99)
CAPTION: dict[str, Any] = {"hangover_ms": 512, "segment_s_max": 12.0}
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"partials": False},
    "1 s": {"step_ms": 992},
    "1 s, look-ahead 1.5 s": {"step_ms": 992, "look_ahead_ms": 1500},
    "1 s, look-ahead 2.5 s": {"step_ms": 992, "look_ahead_ms": 2500},
    ".5 s": {"step_ms": 512},
    ".5 s, look-ahead 1.5 s": {"step_ms": 512, "look_ahead_ms": 1500},
}


class Desk:
    """The engine's submit over a model in this thread, its CPU time spent on the clock."""

    def __init__(self, model: Model, clock: FakeClock) -> None:
        self._model, self._clock = model, clock
        self.calls = 0

    def submit(self, request: Request) -> asyncio.Future[Output]:
        """An answer, after its time."""
        return asyncio.ensure_future(self._answer(request))

    async def _answer(self, request: Request) -> Output:
        began = time.process_time()
        samples = np.array([request.inputs["audio"].shape[1]], np.int32)
        found = self._model.predict({**request.inputs, "samples": samples})
        took = time.process_time() - began
        self.calls += 1
        await self._clock.sleep(took)
        return Output(found, request.model, "1", ran=Ran(1, 1, compute_s=took))


async def live(
    model: Model, vad: Vad, profile: Profile, clip: Clip, numbers: Numbers
) -> tuple[list[tuple[float, Told]], int]:
    """What a session tells of a clip and two seconds of silence, and when, and how often it asked."""
    clock = FakeClock()
    desk = Desk(model, clock)
    settings = SpeechSettings(recogniser="model")
    wiring = Wiring(submit=desk.submit, model="model", vad=vad, clock=clock, numbers=numbers)
    hall = Live(_With(settings, profile), wiring, lambda: ["1"], 1)  # type: ignore[arg-type]
    opening = asyncio.create_task(hall.open(Start(language="zh" if clip.name.startswith("zh/") else "en")))
    while not opening.done():
        clock.advance(0.01)
        await asyncio.sleep(0)
    session, began = opening.result(), clock.monotonic()
    told: list[tuple[float, Told]] = []

    async def read() -> None:
        async for message in session.messages():
            told.append((clock.monotonic() - began, message))  # noqa: PERF401  when it came

    reader = asyncio.create_task(read())
    for n, piece in enumerate(_pieces(np.concatenate([clip.sound, np.zeros(2 * RATE, np.float32)]))):
        while clock.monotonic() - began < 0.02 * (n + 1) - 1e-9:
            clock.advance(0.01)
            for _ in range(4):
                await asyncio.sleep(0)
        await session.hear(piece)
    session.finish()
    while not reader.done():
        clock.advance(0.01)
        await asyncio.sleep(0)
    await session.close()
    return told, desk.calls


class _With:
    """Settings of which every profile is one."""

    def __init__(self, settings: SpeechSettings, profile: Profile) -> None:
        self._settings, self._profile = settings, profile

    def asked(self, name: str, speakers: str = "") -> Profile:
        return self._profile

    def __getattr__(self, name: str) -> object:
        return getattr(self._settings, name)


def _pieces(sound: np.ndarray[Any, Any]) -> Iterator[bytes]:
    data = np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()
    for at in range(0, len(data), 640):
        yield data[at : at + 640]


def measured(model: Model, vad: Vad, way: dict[str, Any], given: list[Clip]) -> dict[str, Any]:
    """A row of the table."""
    profile = Profile(**{**CAPTION, "speakers": "none", "instant": False, **way})
    numbers, cpu, seconds, calls = Numbers(Meter()), 0.0, 0.0, 0
    pairs: list[tuple[str, str]] = []
    chinese: list[tuple[str, str]] = []
    first: list[float] = []
    final: list[float] = []
    for clip in given:
        began = time.process_time()
        told, asked = asyncio.run(live(model, vad, profile, clip, numbers))
        cpu += time.process_time() - began
        seconds += len(clip.sound) / RATE
        calls += asked
        shown = [(at, one) for at, one in told if isinstance(one, Segment) and one.words]
        finals = [one for _, one in shown if one.state == "final"]
        final += [at - one.end for at, one in shown if one.state == "final"]
        seen: dict[str, float] = {}
        for at, one in shown:
            seen.setdefault(one.id, at - one.start)
        first += seen.values()
        zh = clip.name.startswith("zh/")
        (chinese if zh else pairs).append((clip.said, ("" if zh else " ").join(one.text for one in finals)))

    return {
        "wer": round(wer(pairs), 1),
        "cer_zh": round(cer(chinese), 1) if chinese else None,
        "first_s": [round(float(q), 2) for q in np.quantile(first, QUANTILES)],
        "final_s": [round(float(q), 2) for q in np.quantile(final, QUANTILES)],
        "rtf": round(cpu / seconds, 3),
        "changed": round(numbers.revised.value / max(numbers.words.value, 1), 2),
        "calls_s": round(calls / seconds, 2),
        "texts": [f"{heard} | {said}" for said, heard in pairs],
    }


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--recogniser", default="whisper-base")
    parser.add_argument("--few", type=int, default=1, help="every so many clips")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--texts", action="store_true", help="print what was heard of each clip")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    repository = Repository(args.models)
    made = {name: load(repository, name, repository.policy(name).live) for name in ("silero-vad", args.recogniser)}
    found = clips(Path(os.environ["MILLSTREAM_AUDIO"]))
    given = [clip for clip in found if not clip.name.startswith("fsdd/")][:: args.few]
    print(f"{len(given)} clips, {sum(len(clip.sound) for clip in given) / RATE:.0f} s; p50 / p95 / p99")
    print(f"{'step':24}{'WER':>6}{'zh':>6}   {'first s':22}{'final s':22}{'RTF':>6}{'changed':>9}{'calls/s':>9}")
    rows = {}
    for name in args.ways:
        row = rows[name] = measured(made[args.recogniser], Vad(made["silero-vad"]), WAYS[name], given)
        for text in row.pop("texts") if args.texts else []:
            print(f"  {text}")
        first, final = (" / ".join(f"{each:.2f}" for each in row[key]) for key in ("first_s", "final_s"))
        zh = "-" if row["cer_zh"] is None else row["cer_zh"]
        said = f"{name:24}{row['wer']:>6}{zh:>6}   {first:22}{final:22}"
        print(f"{said}{row['rtf']:>6}{row['changed']:>9}{row['calls_s']:>9}", flush=True)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
