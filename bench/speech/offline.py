"""Recordings transcribed offline: what it costs, and how many words are wrong.

    MILLSTREAM_AUDIO=CLIPS python bench/speech/offline.py --models DIR [--recogniser whisper-base] [--json]

The clips with transcripts (SOURCES.md; of the isolated digits none) through the code of `millstream transcribe`: each
as a file of its own, several beside each other; then the English ones as one long recording, joined in a fixed order
with .6 to 1.5 s of silence between, without and with speakers told apart. RTF: CPU seconds of the whole process
(reading, level, detector, recogniser, voices, turns) a second of audio. The last column: hours of audio that an hour of
this machine transcribes. WER and CER as in models.py, nothing masked. The loading of models is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import time
import wave
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from millstream.app.transcribing import offline, source
from millstream.flows.speech.offline import PROFILE, Offline, Recording
from millstream.flows.speech.settings import Profile
from millstream.machine import cores
from millstream.spoken import written
from models import RATE, Array, Clip, cer, clips, wer

GAP_S = (0.6, 1.5)
DIGITS = "fsdd/"


class Row(NamedTuple):
    """A line of the table."""

    what: str
    audio_s: float
    segments: int
    wer: float
    cer: float
    rtf: float
    hours: float


def file_of(sound: Array) -> io.BytesIO:
    """A sound as a file of 16 bits."""
    to = io.BytesIO()
    with wave.open(to, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    to.seek(0)
    return to


def joined(given: list[Clip]) -> Array:
    """All of them as one recording."""
    random = np.random.default_rng(0)
    parts = []
    for clip in given:
        parts += [clip.sound, np.zeros(int(random.uniform(*GAP_S) * RATE), np.float32)]
    return np.concatenate(parts)


def text(recording: Recording) -> str:
    """All that it says."""
    return " ".join(written(line.words) for line in recording.lines)


async def measured(
    what: str, audio_s: float, work: Callable[[], Awaitable[tuple[list[Recording], float, float]]]
) -> Row:
    """A row of what `work` gives: recordings, WER and CER."""
    cpu, wall = time.process_time(), time.perf_counter()
    recordings, words, letters = await work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    segments = sum(recording.segments for recording in recordings)
    return Row(what, audio_s, segments, words, letters, cpu / audio_s, audio_s / wall)


def files(through: Offline, given: list[Clip]) -> Callable[[], Awaitable[tuple[list[Recording], float, float]]]:
    """Each clip as a file."""

    async def work() -> tuple[list[Recording], float, float]:
        found = await asyncio.gather(*(through.transcribe(file_of(clip.sound), clip.name) for clip in given))
        told = [(clip.said, text(one)) for clip, one in zip(given, found, strict=True)]
        english = [pair for pair, clip in zip(told, given, strict=True) if not clip.name.startswith("zh")]
        return list(found), wer(english), cer([pair for pair in told if pair not in english])

    return work


def long(
    through: Offline, given: list[Clip], speakers: bool
) -> Callable[[], Awaitable[tuple[list[Recording], float, float]]]:
    """The clips as one recording."""

    async def work() -> tuple[list[Recording], float, float]:
        found = await through.transcribe(file_of(joined(given)), "long", speakers=speakers)
        return [found], wer([(" ".join(clip.said for clip in given), text(found))]), float("nan")

    return work


async def rows(models: Path, audio: Path, recogniser: str, profile: Profile = PROFILE) -> list[Row]:
    """The table."""
    given = [clip for clip in clips(audio) if not clip.name.startswith(DIGITS)]
    english = [clip for clip in given if not clip.name.startswith("zh")]
    seconds = sum(len(clip.sound) for clip in given) / RATE
    async with offline(source(models, None, recogniser, personal=True), profile) as through:
        await through.transcribe(file_of(english[0].sound), "warm")
        length = len(joined(english)) / RATE
        return [
            await measured("clips, a file each", seconds, files(through, given)),
            await measured("one long recording", length, long(through, english, False)),
            await measured("the same, with speakers", length, long(through, english, True)),
        ]


def main() -> None:
    """Measure, and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--models", type=Path, required=True)
    options.add_argument("--recogniser", default="whisper-base")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    found = asyncio.run(rows(args.models, Path(os.environ["MILLSTREAM_AUDIO"]), args.recogniser))
    if args.json:
        told: list[dict[str, Any]] = [row._asdict() for row in found]
        print(json.dumps(told))
        return
    print(f"{args.recogniser}, {cores()} cores\n")
    print(f"| {'':24} | audio s | segments | WER % | CER % |   RTF | audio hours an hour |")
    print("|-|-:|-:|-:|-:|-:|-:|")
    for row in found:
        wrong = f"{row.wer:5.1f} | {row.cer:5.1f}"
        print(
            f"| {row.what:24} | {row.audio_s:7.0f} | {row.segments:8} | {wrong} | {row.rtf:5.3f} | {row.hours:19.0f} |"
        )


if __name__ == "__main__":
    main()
