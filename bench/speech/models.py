"""Recognisers on clips with references: words wrong, CPU seconds a second of audio, memory.

    MILLSTREAM_AUDIO=CLIPS python bench/speech/models.py --models DIR [--quick] [--json]

Each row is a process of its own, one thread, every clip alone. WER after Whisper's own normaliser of English, over all
words of the clips together; lone digits apart. RTF: CPU seconds a second of audio; with word times: so many times that,
on the first eight clips. Memory: resident after the clips, less before the model. Then characters wrong of Chinese,
without punctuation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
import soundfile
from scipy.signal import resample_poly
from whisper_normalizer.english import EnglishTextNormalizer

from millstream.machine import resident
from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.models.runtimes import whisper
from millstream.models.speech.heard import Heard, read

RATE = 16_000
Array = np.ndarray[Any, Any]
WAYS = [
    ("whisper-base", "int8", 10, 1),
    ("whisper-base", "int8", 10, 5),
    ("whisper-base", "int8", 30, 1),
    ("whisper-base", "int8", 30, 5),
    ("whisper-base", "float32", 10, 1),
    ("whisper-base", "float32", 10, 5),
    ("whisper-base", "float32", 30, 1),
    ("whisper-tiny-en", "int8", 10, 1),
    ("whisper-tiny-en", "int8", 30, 1),
    ("whisper-tiny-en", "int8", 30, 5),
    ("whisper-tiny-en", "float32", 30, 1),
]
QUICK = [way for way in WAYS if way[1:] == ("int8", 10, 1)]
ALIGNED = 8


_normal = EnglishTextNormalizer()


class Clip(NamedTuple):
    """A clip: its file's name, what is said in it, and its sound."""

    name: str
    said: str
    sound: Array


def clips(folder: Path) -> list[Clip]:
    """Those that SOURCES.md has a transcript of, at most 30 s long."""
    found = []
    for line in (folder / "SOURCES.md").read_text().splitlines():
        cells = line.split("|")
        if len(cells) > 8 and cells[1].endswith(".flac") and cells[7].strip():
            sound, rate = soundfile.read(folder / cells[1], dtype="float32", always_2d=True)
            sound = resample_poly(sound.mean(axis=1), RATE, rate) if rate != RATE else sound.mean(axis=1)
            found.append(Clip(cells[1], cells[7].strip(), np.asarray(sound[: 30 * RATE], np.float32)))
    return found


def inputs(sounds: list[Array], language: str, beam: int, stamps: bool = False) -> dict[str, Array]:
    """Rows of a windowed recogniser."""
    count = len(sounds)
    audio = np.zeros((count, max(map(len, sounds))), np.float32)
    for row, sound in zip(audio, sounds, strict=True):
        row[: len(sound)] = sound
    return {
        "audio": audio,
        "samples": np.array([len(sound) for sound in sounds], np.int32),
        "language": np.full(count, language, object),
        "prefix": np.full(count, "", object),
        "beam": np.full(count, beam, np.int32),
        "stamps": np.full(count, stamps),
    }


def text(heard: Heard) -> str:
    """What it reads."""
    return "".join(f" {word.text}" if word.space else word.text for word in heard.words).strip()


def wer(pairs: list[tuple[str, str]]) -> float:
    """Percent of words wrong; (said, heard)."""
    return 100 * float(jiwer.wer([plain(said) for said, _ in pairs], [plain(heard) for _, heard in pairs]))


def plain(text: str) -> str:
    """English in Whisper's own normal form, each figure of a number by itself: it makes one word of "oh two one"."""
    return " ".join(re.sub(r"\bone\b", "1", re.sub(r"(\d)", r" \1 ", _normal(text))).split())


def cer(pairs: list[tuple[str, str]]) -> float:
    """Percent of characters wrong, punctuation apart."""
    return 100 * float(jiwer.cer([letters(said) for said, _ in pairs], [letters(heard) for _, heard in pairs]))


def letters(text: str) -> str:
    """A text's letters and figures."""
    return "".join(letter for letter in text if unicodedata.category(letter)[0] in "LN")


def load(root: Path, model: str, compute: str, window_s: float) -> whisper.Whisper:
    """A version of the repository in one of several ways."""
    repository = Repository(root)
    version = repository.policy(model).live
    said: Manifest = whisper.manifest(whisper.Settings(compute_type=compute, window_s=window_s))  # type: ignore[arg-type]
    return whisper.load(repository.folder(model, version), said, "cpu")


def one(root: Path, folder: Path, model: str, compute: str, window_s: float, beam: int) -> dict[str, Any]:
    """A row of the table, in this process."""
    given = [clip for clip in clips(folder) if not clip.name.startswith("zh/")]
    before = resident() or 0
    made = load(root, model, compute, window_s)
    made.predict(inputs([np.zeros(RATE, np.float32)], "en", beam))
    pairs: dict[str, list[tuple[str, str]]] = {"en": [], "digits": []}
    cpu = seconds = 0.0
    few: list[tuple[float, float]] = []  # CPU of clips without word times, and with
    for clip in given:
        kind = "digits" if clip.name.startswith("fsdd/") else "en"
        began = time.process_time()
        (cell,) = made.predict(inputs([clip.sound], "en", beam))["heard"]
        taken = time.process_time() - began
        pairs[kind].append((clip.said, text(read(cell))))
        if kind == "en":
            cpu, seconds = cpu + taken, seconds + len(clip.sound) / RATE
            if len(few) < ALIGNED:
                began = time.process_time()
                made.predict(inputs([clip.sound], "en", beam, stamps=True))
                few.append((taken, time.process_time() - began))
    return {
        "model": model, "compute": made.compute_type, "window_s": window_s, "beam": beam,
        "clips": len(pairs["en"]), "seconds": seconds,
        "wer": wer(pairs["en"]), "digits": wer(pairs["digits"]),
        "rtf": cpu / seconds, "stamps": sum(after for _, after in few) / sum(before for before, _ in few),
        "memory_mb": ((resident() or 0) - before) / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "heard": [heard for _, heard in pairs["en"]],
    }  # fmt: skip


def chinese(root: Path, folder: Path) -> dict[str, Any]:
    """Characters wrong of the Chinese clips, each twelve times: softer, and shifted by a few samples, as two clips tell
    more of chance than of the model."""
    given = [clip for clip in clips(folder) if clip.name.startswith("zh/")]
    made = load(root, "whisper-base", "int8", 10)
    result: dict[str, Any] = {"clips": len(given), "window_s": 10}
    for beam in (1, 5):
        pairs = []
        for clip in given:
            for number in range(12):
                sound = np.concatenate([np.zeros(37 * number, np.float32), clip.sound * np.float32(1 - 0.05 * number)])
                pairs.append((clip.said, text(read(made.predict(inputs([sound], "zh", beam))["heard"][0]))))
        result[f"cer_{beam}"] = cer(pairs)
    return result


def report(rows: list[dict[str, Any]], zh: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        f"{rows[0]['clips']} English clips, {rows[0]['seconds']:.0f} s; 30 digits of half a second apart from them.",
        "",
        "| model | computed in | window | beam | WER | digits | RTF | with word times | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['compute']} | {row['window_s']:g} s | {row['beam']} | {row['wer']:.1f} | "
        f"{row['digits']:.0f} | {row['rtf']:.3f} | {row['stamps']:.2f} x | {row['memory_mb']:.0f} MB |"
        for row in rows
    ]
    lines += [
        "",
        f"Characters wrong in {zh['clips']} Chinese clips, twelve variants of each, whisper-base in int8: "
        f"{zh['cer_1']:.1f} % with beam 1, {zh['cer_5']:.1f} % with beam 5.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(sys.prefix) / "speech-models", help="the repository")
    parser.add_argument("--audio", type=Path, default=os.environ.get("MILLSTREAM_AUDIO"), help="the folder of clips")
    parser.add_argument("--quick", action="store_true", help="two ways of each model only")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the tables")
    arguments = parser.parse_args()
    if arguments.audio is None:
        parser.error("no clips: set MILLSTREAM_AUDIO to their folder")
    root, folder = arguments.models, Path(arguments.audio)
    if arguments.one:
        way = json.loads(arguments.one)
        part = one if way else chinese
        print(json.dumps(part(root, folder, *way)))
        return

    def alone(way: list[Any]) -> dict[str, Any]:
        command = [sys.executable, __file__, "--models", str(root), "--audio", str(folder), "--one", json.dumps(way)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
        print(re.sub(r'"heard".*', "", done.stdout.decode())[:200], file=sys.stderr)
        return dict(json.loads(done.stdout))

    rows = [alone(list(way)) for way in (QUICK if arguments.quick else WAYS)]
    zh = alone([])
    print(json.dumps({"rows": rows, "zh": zh}) if arguments.json else report(rows, zh))


if __name__ == "__main__":
    main()
