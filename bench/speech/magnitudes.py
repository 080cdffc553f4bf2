"""The largest magnitudes between the layers of the model of voices, which its eight bits are made with.

    MILLSTREAM_AUDIO=DIR python bench/speech/magnitudes.py

Windows of 1.6 s every 3 s of recordings that no figure of voices is measured on (librivox, ljspeech, zh, cards, fsdd,
vad, jfk), and windows of 1.6 and .4 s every 4 s of them as they are, in a telephone's band (300 to 3400 Hz), and with
white noise 10 dB below. Prints what packages.py holds: three digits each, in the order of the tensors' names. The
model is fetched by pip. Seeded: the same recordings give the same numbers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import soundfile
import soxr
from numpy.typing import NDArray

from millstream.models.repository import Repository
from millstream.models.speech.eight_bits import between, plain
from millstream.models.speech.fbank import fbank
from millstream.models.speech.packages import SHELF
from millstream.models.speech.shelf import fetch

Sound = NDArray[np.float32]
RATE = 16_000
LONG, SHORT = int(1.6 * RATE), int(0.4 * RATE)
FOLDERS = ("librivox", "ljspeech", "zh", "cards", "vad", "fsdd")


def main() -> None:
    if not (audio := os.environ.get("MILLSTREAM_AUDIO")):
        sys.exit("MILLSTREAM_AUDIO names no folder of clips")
    paths = sorted(path for folder in FOLDERS for path in (Path(audio) / folder).glob("*.flac"))
    sounds = [read(path) for path in [*paths, Path(audio) / "jfk.flac"]]
    chance = np.random.default_rng(0)
    banks = [bank for sound in sounds for bank in windows(sound, 3, LONG)]
    for sound in sounds:
        for kind in (sound, telephone(sound, chance), noisy(sound, chance)):
            banks += [bank for size in (LONG, SHORT) for bank in windows(kind, 4, size)]
    with tempfile.TemporaryDirectory() as aside:
        found = magnitudes(model(Path(aside)), banks)
    print(f"{len(banks)} windows, {len(found)} tensors")
    print(", ".join(f"{one:.3g}" for one in found))


def model(folder: Path) -> onnx.ModelProto:
    """The model as its makers left it."""
    item = SHELF["wespeaker"]
    (file,) = item.files
    item = msgspec.structs.replace(item, files=(msgspec.structs.replace(file, eight_bits=()),))
    repository = Repository(folder / "models")
    fetch([item.name], repository, print, {item.name: item})
    plain(repository.folder(item.name, "1") / file.name, folder / "plain.onnx")
    return onnx.load(folder / "plain.onnx")


def magnitudes(whole: onnx.ModelProto, banks: Sequence[Sound]) -> list[float]:
    """Of each tensor that gets a scale."""
    names = between(whole.graph)
    for name in names:
        whole.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = np.zeros(len(names))
    for bank in banks:
        given = session.run(names, {"fbank": bank[None], "weights": np.ones((1, len(bank)), np.float32)})
        found = np.maximum(found, [np.abs(one).max() for one in given])
    return [float(one) for one in found]


def windows(sound: Sound, every_s: int, size: int) -> Iterator[Sound]:
    """Filterbanks of the windows that are not much softer than the recording."""
    for at in range(RATE // 4, len(sound) - size, every_s * RATE):
        part = sound[at : at + size]
        if np.square(part).mean() >= 0.1 * np.square(sound).mean():
            bank = fbank(part)
            yield (bank - bank.mean(axis=0)).astype(np.float32)


def read(path: Path) -> Sound:
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.ascontiguousarray(soxr.resample(sound.mean(axis=1), rate, RATE), np.float32)


def telephone(sound: Sound, chance: np.random.Generator) -> Sound:
    spectrum, hertz = np.fft.rfft(sound), np.fft.rfftfreq(len(sound), 1 / RATE)
    spectrum[(hertz < 300) | (hertz > 3400)] = 0
    return (np.fft.irfft(spectrum, len(sound)) + 1e-4 * chance.standard_normal(len(sound))).astype(np.float32)


def noisy(sound: Sound, chance: np.random.Generator) -> Sound:
    loud = np.sqrt(np.square(sound).mean() / 10)
    found: Sound = (sound + loud * chance.standard_normal(len(sound))).astype(np.float32)
    return found


if __name__ == "__main__":
    main()
