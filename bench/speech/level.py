"""What the level does for the voice detector: speech found in quiet recordings, with it and without.

    MILLSTREAM_AUDIO=CLIPS python bench/speech/level.py --models DIR [--json]

The labelled clips (vad/), made quieter and cut to 16 bits, as a far microphone gives them. Recall and precision: of
frames of 32 ms, speech where Silero's model says over .5. "missed": stretches of speech that are never found, "late":
found after more than .3 s, which is what a segment's pre-roll holds. Then what is no speech: the share of its frames
that is taken for it. NOISE_DB of level.py was chosen on these clips.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from millstream.flows.speech.level import Level
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.speech.vad import FRAME, Vad

RATE = 16_000
QUIETER_DB = (0, -10, -20, -30, -40, -50)
LATE = 10  # frames
Array = np.ndarray[Any, Any]


class Found(NamedTuple):
    """What the detector made of all clips."""

    recall: float
    precision: float
    missed: int
    late: int
    stretches: int


def clips(folder: Path) -> list[tuple[Array, Array]]:
    """Sound, and for each whole frame whether most of it is speech."""
    made = []
    for scv in sorted((folder / "vad").glob("*.scv")):
        sound, _ = soundfile.read(scv.with_suffix(".flac"), dtype="float32")
        fields = scv.read_text().strip().split(",")[1:]
        said = np.zeros(len(sound), bool)
        for start, end, label in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
            said[int(float(start) * RATE) : int(float(end) * RATE)] = label.strip() == "1"
        frames = len(sound) // FRAME
        made.append((sound[: frames * FRAME], said[: frames * FRAME].reshape(-1, FRAME).mean(1) > 0.5))
    return made


def levelled(sound: Array) -> Array:
    """Through the level."""
    level = Level()
    return np.concatenate([level.feed(sound), level.flush()])


def spoken(vad: Vad, sound: Array) -> Array:
    """Which frames the detector takes for speech."""
    likely, _ = vad.probabilities(sound, vad.fresh())
    return likely > 0.5


def found(vad: Vad, given: list[tuple[Array, Array]], quieter_db: float, level: bool) -> Found:
    """Over all clips."""
    right = wrong = speech = missed = late = stretches = 0
    for sound, said in given:
        quiet = (np.round(sound * 10 ** (quieter_db / 20) * 32768) / 32768).astype(np.float32)
        heard = spoken(vad, levelled(quiet) if level else quiet)
        right, wrong, speech = right + (heard & said).sum(), wrong + (heard & ~said).sum(), speech + said.sum()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], said.astype(np.int8), [0]])))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            first = np.flatnonzero(heard[start:end])
            stretches += 1
            missed += not len(first)
            late += not len(first) or first[0] >= LATE
    return Found(100 * right / speech, 100 * right / max(right + wrong, 1), missed, late, stretches)


def noises() -> dict[str, Array]:
    """Twenty seconds of what is no speech, at an RMS of one."""
    random, count = np.random.default_rng(0), 20 * RATE // FRAME * FRAME
    at = np.arange(count) / RATE

    def coloured(power: float) -> Array:
        spectrum = np.fft.rfft(random.standard_normal(count))
        return np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 50) ** power, count)

    made = {
        "white noise": coloured(0),
        "pink noise": coloured(0.5),
        "pink noise that swells": coloured(0.5) * (1 + 0.9 * np.sin(2 * np.pi * 0.7 * at)),
        "bursts of pink noise": coloured(0.5) * np.where(at % 2 < 0.4, 1, 0.05),
        "hum of 50 Hz": np.sin(2 * np.pi * 50 * at) + 0.3 * np.sign(np.sin(2 * np.pi * 100 * at)),
        "clicks": coloured(0) * 0.03 + (np.arange(count) % 9000 < 40) * 5,
    }
    return {name: sound / sound.std() for name, sound in made.items()}


def main() -> None:
    """Measure, and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--models", type=Path, required=True)
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    repository = Repository(args.models)
    vad = Vad(load(repository, "silero-vad", repository.policy("silero-vad").live))
    given = clips(Path(os.environ["MILLSTREAM_AUDIO"]))
    rows = {db: (found(vad, given, db, False), found(vad, given, db, True)) for db in QUIETER_DB}
    false = {
        name: [
            100
            * np.mean([spoken(vad, through((sound * 10 ** (db / 20)).astype(np.float32))) for db in (-30, -50, -70)])
            for through in (np.asarray, levelled)
        ]
        for name, sound in noises().items()
    }
    cpu = time.process_time()
    seconds = sum(len(levelled(sound)) for sound, _ in given) / RATE
    cost = 1000 * (time.process_time() - cpu) / seconds
    if args.json:
        told = {str(db): [one._asdict() for one in pair] for db, pair in rows.items()}
        print(json.dumps({"quieter_db": told, "false": false, "cpu_ms_s": cost}, default=float))
        return
    print("| quieter by | recall %: raw | levelled | precision %: raw | levelled | missed, late: raw | levelled |")
    print("|-:|-:|-:|-:|-:|-:|-:|")
    for db, (raw, made) in rows.items():
        print(
            f"| {-db} dB | {raw.recall:.1f} | {made.recall:.1f} | {raw.precision:.1f} | {made.precision:.1f} "
            f"| {raw.missed}, {raw.late} of {raw.stretches} | {made.missed}, {made.late} |"
        )
    print("\n| no speech, at -30, -50 and -70 dB | taken for it %: raw | levelled |\n|-|-:|-:|")
    for name, (raw_share, made_share) in false.items():
        print(f"| {name} | {raw_share:.1f} | {made_share:.1f} |")
    print(f"\nThe level takes {cost:.2f} ms of CPU a second of audio.")


if __name__ == "__main__":
    main()
