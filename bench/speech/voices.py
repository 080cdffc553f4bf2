"""Voices told apart: how often, by windows of 1, 1.6 and 3 s, and what a window costs.

    MILLSTREAM_AUDIO=DIR python bench/speech/voices.py [--models DIR] [--windows 200] [--json]

Windows are cut out of the read clips (librispeech/SPEAKER-CHAPTER-NUMBER.flac), one after the other, those with less
than a tenth of the clip's mean energy left out. Trials: all pairs of windows of different recordings. Equal error rate:
where as many pairs of one speaker are refused as pairs of two are taken for one. Beside it, how alike the windows are:
1 of 100 pairs of one speaker is less, 1 of 100 pairs of two is more. CPU time, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.speech.shelf import missing
from millstream.models.speech.voice import Voice

RATE = 16_000
LENGTHS_S = (1.0, 1.6, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, default=Path(sys.prefix) / "speech-models")
    parser.add_argument("--audio", type=Path, default=os.environ.get("MILLSTREAM_AUDIO"))
    parser.add_argument("--windows", type=int, default=200, help="most of one length (default: 200)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.audio is None:
        sys.exit("MILLSTREAM_AUDIO names no folder of clips")
    repository = Repository(args.models)
    if lacks := missing(repository, ["wespeaker"]):
        sys.exit(lacks)
    voice = Voice(load(repository, "wespeaker", repository.policy("wespeaker").live))
    voice.embed([np.zeros(RATE, np.float32)])
    rows = [measured(voice, Path(args.audio), length, args.windows) for length in LENGTHS_S]
    if args.json:
        print(json.dumps(rows))
        return
    print("| window s | windows | speakers | pairs of one, of two | EER % | alike: one, two | ms a window |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['window_s']:g} | {row['windows']} | {row['speakers']} | {row['same']:,}, {row['different']:,} | "
            f"{row['eer']:.1f} | {row['low']:.2f}, {row['high']:.2f} | {row['ms']:.0f} |"
        )


def measured(voice: Voice, audio: Path, seconds: float, most: int) -> dict[str, float]:
    """The figures of one length."""
    sounds, speakers, clips = cut(audio, seconds, most)
    began = time.process_time()
    voices = voice.embed(sounds)
    spent = time.process_time() - began
    alike = voices @ voices.T
    first, second = np.triu_indices(len(sounds), 1)
    other = clips[first] != clips[second]
    first, second = first[other], second[other]
    scores, one = alike[first, second], speakers[first] == speakers[second]
    same, different = scores[one], scores[~one]
    return {
        "window_s": seconds,
        "windows": len(sounds),
        "speakers": len(set(speakers.tolist())),
        "same": len(same),
        "different": len(different),
        "eer": 100 * equal_error(same, different),
        "low": float(np.percentile(same, 1)),
        "high": float(np.percentile(different, 99)),
        "ms": 1000 * spent / len(sounds),
    }


def cut(audio: Path, seconds: float, most: int) -> tuple[list[NDArray[np.float32]], NDArray[np.str_], NDArray[np.intp]]:
    """Windows, whose they are, and of which clip; of each clip at most its share of `most`."""
    paths = sorted((audio / "librispeech").glob("*.flac"))
    size, share = int(seconds * RATE), max(1, -(-most // len(paths)))
    sounds, speakers, clips = [], [], []
    for number, path in enumerate(paths):
        sound, _ = soundfile.read(path, dtype="float32")
        parts = [sound[at : at + size] for at in range(0, len(sound) - size + 1, size)]
        loud = [part for part in parts if np.square(part).mean() > 0.1 * np.square(sound).mean()]
        chosen = [loud[place] for place in sorted({*np.linspace(0, len(loud) - 1, min(share, len(loud))).astype(int)})]
        sounds += chosen
        speakers += [path.name.partition("-")[0]] * len(chosen)
        clips += [number] * len(chosen)
    return sounds, np.array(speakers), np.array(clips)


def equal_error(same: NDArray[np.float32], different: NDArray[np.float32]) -> float:
    """Where the two kinds of error cross, 0 .. 1."""
    bars = np.sort(np.concatenate([same, different]))
    refused = np.searchsorted(np.sort(same), bars) / len(same)
    taken = 1 - np.searchsorted(np.sort(different), bars) / len(different)
    place = int(np.argmin(np.abs(refused - taken)))
    return float((refused[place] + taken[place]) / 2)


if __name__ == "__main__":
    main()
