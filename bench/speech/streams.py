"""Live streams a core with one Whisper model: sessions of ours beside faster-whisper's own streaming loop, in one run.

    MILLSTREAM_AUDIO=CLIPS python bench/speech/streams.py --models DIR [--recogniser whisper-base] [--minutes 2]
        [--at-once 4]

A stream is somebody who reads without end: clips one behind the other. Ours: a session as it is served, a hypothesis
each 992 ms, detector and final texts in it. The peer: the loop of whisper_streaming (Machacek, Dabre, Bojar, "Turning
Whisper into Real-Time Transcription System", 2023) over faster-whisper: every second the whole buffer is transcribed
anew in a window of 30 s, with word times, and with the text before it as a prompt; what two hypotheses agree on is
committed (LocalAgreement-2); a buffer over 15 s is cut behind the last whole segment that was committed. With a beam of
5, as it comes, and of 1, as our hypotheses. Same weights, int8, one thread, CPU seconds; streams take turns, each with
another system first; medians over the streams.

Then the whole on one core: --at-once sessions at the pace of speech through a real engine, which makes one call of what
waits together. First words: from the onset as the cutter has it; final: from the end of speech; wall clock, p50 / p95.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from msgspec.structs import replace
from numpy.typing import NDArray
from streaming import live

from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.flows.speech.live import Live
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.settings import PROFILES, RATE, ProfileSaid, SpeechSettings
from millstream.flows.speech.wiring import Wiring
from millstream.meter import Meter
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.speech.vad import Vad
from millstream.spoken import Segment, Start
from models import Clip, clips, wer

USED = 0.7
BUFFER_S, STEP_S, PROMPT_CHARS = 15.0, 1.0, 200
Timed = tuple[float, float, str]


class Loop:
    """The peer's loop over one stream."""

    def __init__(self, model: WhisperModel, beam: int) -> None:
        self._model, self._beam = model, beam
        self._audio: NDArray[np.float32] = np.zeros(0, np.float32)
        self._offset_s = 0.0
        self._before: list[Timed] = []
        self.committed: list[Timed] = []

    def hear(self, sound: NDArray[np.float32]) -> None:
        """A second more."""
        self._audio = np.concatenate([self._audio, sound])
        prompt = "".join(text for _, end, text in self.committed if end <= self._offset_s)[-PROMPT_CHARS:]
        found, _ = self._model.transcribe(
            self._audio, language="en", beam_size=self._beam, word_timestamps=True, initial_prompt=prompt or None
        )
        segments = list(found)
        words = [
            (word.start + self._offset_s, word.end + self._offset_s, word.word)
            for segment in segments
            for word in segment.words or []
        ]
        last = self.committed[-1][1] if self.committed else 0.0
        fresh = [word for word in words if word[0] > last - 0.1]
        for old, new in zip(self._before, fresh, strict=False):
            if old[2].strip() != new[2].strip():
                break
            self.committed.append(new)
        last = self.committed[-1][1] if self.committed else 0.0
        self._before = [word for word in fresh if word[1] > last]
        if len(self._audio) > BUFFER_S * RATE:
            ends = [segment.end for segment in segments if segment.end + self._offset_s <= last]
            cut_s = ends[-1] if ends else last - self._offset_s
            self._audio = self._audio[round(max(cut_s, 0.0) * RATE) :]
            self._offset_s += max(cut_s, 0.0)

    def text(self) -> str:
        """All that was said, with what is not committed yet."""
        return "".join(text for _, _, text in [*self.committed, *self._before])


def streams(found: list[Clip], minutes: float, each_s: float) -> Iterator[Clip]:
    """Streams of clips, each about `each_s` long."""
    left, made, said = minutes * 60, [np.zeros(0, np.float32)], []
    for clip in found:
        made += [clip.sound, np.zeros(RATE // 2, np.float32)]
        said.append(clip.said)
        seconds = sum(map(len, made)) / RATE
        if seconds >= each_s:
            yield Clip(f"to {clip.name}", " ".join(said), np.concatenate(made))
            left -= seconds
            made, said = [np.zeros(0, np.float32)], []
            if left <= 0:
                return


async def talks(hall: Live, stream: Clip, after_s: float, found: dict[str, list[float]]) -> str:
    """A session at the pace of speech; its final texts."""
    await asyncio.sleep(after_s)
    session = await hall.open(Start(language="en"))
    told: list[str] = []
    begun: set[str] = set()
    began = time.monotonic()

    async def read() -> None:
        async for one in session.messages():
            if isinstance(one, Segment) and one.words:
                at = time.monotonic() - began
                if one.id not in begun:
                    begun.add(one.id)
                    found["first"].append(at - one.start)
                if one.state == "final":
                    told.append(one.text)
                    found["final"].append(at - one.end)

    reader = asyncio.create_task(read())
    data = np.round(np.clip(stream.sound, -1, 1) * 32767).astype("<i2").tobytes()
    for n in range(0, len(data), 3200):
        await asyncio.sleep(max(0.0, began + n / 2 / RATE - time.monotonic()))
        await session.hear(data[n : n + 3200])
    session.finish()
    await reader
    await session.close()
    return " ".join(told)


async def at_once(models: Path, recogniser: str, vad: Vad, given: list[Clip], folder: Path) -> str:
    """What sessions of these streams take of the one core that this process has."""
    (folder / "models").mkdir()
    (folder / "models" / recogniser).symlink_to((models / recogniser).resolve())
    engine = Engine(Repository(folder / "models"), SystemClock(), Meter())
    await engine.start()
    wiring = Wiring(submit=engine.submit, model=recogniser, vad=vad, clock=SystemClock(), numbers=Numbers(Meter()))
    alone = ProfileSaid(speakers="none", instant=False)
    settings = SpeechSettings(recogniser=recogniser, profiles={"caption": alone})
    live_version = Repository(models).policy(recogniser).live
    hall = Live(settings, wiring, lambda: [live_version], len(given), folder / "run")
    found: dict[str, list[float]] = {"first": [], "final": []}
    began, cpu = time.monotonic(), time.process_time()
    texts = await asyncio.gather(*(talks(hall, one, 0.29 * n, found) for n, one in enumerate(given)))
    used = (time.process_time() - cpu) / (time.monotonic() - began)
    await engine.stop()
    wrong = wer([(one.said, text) for one, text in zip(given, texts, strict=True)])
    first, final = (
        " / ".join(f"{q:.2f}" for q in np.quantile(found[name], (0.5, 0.95))) for name in ("first", "final")
    )
    return (
        f"{len(given)} sessions on one core: {used:.2f} of it, {len(given) * USED / used:.1f} streams a core at .7; "
        f"first words {first} s, final texts {final} s; WER {wrong:.1f}"
    )


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--recogniser", default="whisper-base")
    parser.add_argument("--minutes", type=float, default=2.0, help="of audio, in all")
    parser.add_argument("--each", type=float, default=30.0, help="seconds of a stream, at least")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a session, of those at once, at least")
    parser.add_argument("--at-once", type=int, default=4, help="sessions on one core; 0: none")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    repository = Repository(args.models)
    version = repository.policy(args.recogniser).live
    model = load(repository, args.recogniser, version)
    vad = Vad(load(repository, "silero-vad", repository.policy("silero-vad").live))
    folder = repository.folder(args.recogniser, version)
    peer = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1, num_workers=1)
    profile = replace(PROFILES["caption"], speakers="none", instant=False)

    def ours(stream: Clip) -> str:
        told, _ = asyncio.run(live(model, vad, profile, stream, Numbers(Meter())))
        return " ".join(one.text for _, one in told if isinstance(one, Segment) and one.state == "final")

    def theirs(beam: int) -> Callable[[Clip], str]:
        def run(stream: Clip) -> str:
            loop, step = Loop(peer, beam), round(STEP_S * RATE)
            for at in range(0, len(stream.sound), step):
                loop.hear(stream.sound[at : at + step])
            return loop.text()

        return run

    systems: dict[str, Callable[[Clip], str]] = {
        "millstream, 1 s step": ours,
        "faster-whisper's loop, beam 1": theirs(1),
        "faster-whisper's loop, beam 5": theirs(5),
    }
    rtf: dict[str, list[float]] = {name: [] for name in systems}
    pairs: dict[str, list[tuple[str, str]]] = {name: [] for name in systems}
    read = [clip for clip in clips(Path(os.environ["MILLSTREAM_AUDIO"])) if clip.name.startswith("librispeech/")]
    for n, stream in enumerate(streams(read, args.minutes, args.each)):
        names = list(systems)
        for name in names[n % 3 :] + names[: n % 3]:
            began = time.process_time()
            text = systems[name](stream)
            rtf[name].append((time.process_time() - began) / (len(stream.sound) / RATE))
            pairs[name].append((stream.said, text))
        print(f"  {stream.name}, {len(stream.sound) / RATE:.0f} s: {_row(rtf)}", flush=True)
    print(f"{'':34}{'RTF':>8}{'streams a core at .7':>22}{'WER':>7}{'ratio':>7}")
    mine = statistics.median(rtf["millstream, 1 s step"])
    for name, each in rtf.items():
        middle = statistics.median(each)
        print(f"{name:34}{middle:>8.3f}{USED / middle:>22.1f}{wer(pairs[name]):>7.1f}{middle / mine:>7.2f}")
    if args.at_once:
        turned = (read[n % len(read) :] + read[: n % len(read)] for n in range(0, 3 * args.at_once, 3))
        said = [next(streams(each, args.seconds / 60, args.seconds)) for each in turned]
        with tempfile.TemporaryDirectory() as folder:
            print(asyncio.run(at_once(args.models, args.recogniser, vad, said, Path(folder))))


def _row(rtf: dict[str, list[float]]) -> dict[str, Any]:
    return {name: round(each[-1], 3) for name, each in rtf.items()}


if __name__ == "__main__":
    main()
