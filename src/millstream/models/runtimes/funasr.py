"""FunASR's offline recognisers, for whoever has weights (format "funasr"): Paraformer, SenseVoice and their kin.

`file` is the folder that FunASR saves a model in: config.yaml, model.pt, its tokens. It runs on PyTorch and unpickles
what it loads, so it is a program, in processes of its own (models/apart/).

Rules of the room:
- Rows are heard one by one: what is said in one does not depend on how long the others are.
- It can neither be told how to begin nor say how sure it is: the words of a prefix take the places of as many words
  that it heard, and confidence is 0.
- Nothing is fetched: a model that names parts of a hub is not whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.runtimes import Found
from millstream.models.speech.heard import Heard, HeardWord
from millstream.models.speech.tensors import RATE, WINDOWED, WINDOWED_OUTPUTS, Window, column, windows
from millstream.types import Array

_TAG = re.compile(r"<\|([^|]*)\|>")
_HAN = re.compile(r"[\u3400-\u9fff]")
_UNIT = re.compile(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+")
_PUNCTUATION = re.compile(r"^[^\w]+$")
_LANGUAGES: Final = {"zh", "en", "ja", "ko", "yue"}


class FunAsr:
    """A Model over FunASR's `AutoModel`."""

    inputs, outputs = WINDOWED, WINDOWED_OUTPUTS

    def __init__(self, model: Any) -> None:
        self._model = model

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """What is said in each row."""
        return {"heard": column(self._hear(row) for row in windows(inputs))}

    def _hear(self, row: Window) -> Heard:
        if len(row.audio) < RATE // 10 or not np.any(row.audio):  # its front end wants some frames
            return _told("", [], row)
        told = self._model.generate(input=[row.audio], fs=RATE, language=row.language or "auto", disable_pbar=True)
        first = told[0] if told else {}
        return _told(str(first.get("text", "")), first.get("timestamp") or [], row)


def load(folder: Path, manifest: Manifest, device: str) -> FunAsr:
    """The model in the version's folder. Misconfigured: it is not whole."""
    from funasr import AutoModel

    path = folder / manifest.file
    if not (path / "config.yaml").is_file():
        raise errors.Misconfigured(f"{path}: no config.yaml in it; FunASR's models are folders with one")
    return FunAsr(AutoModel(model=str(path), device=device, disable_update=True, disable_pbar=True, log_level="ERROR"))


def inspect(folder: Path, manifest: Manifest, example: dict[str, Array]) -> Found:
    """Its tensors, which are those of every windowed recogniser."""
    load(folder, manifest, "cpu")
    row: dict[str, Array] = {
        "audio": np.zeros((1, RATE), np.float32),
        "samples": np.array([RATE], np.int32),
        "language": np.array([b""], np.object_),
        "prefix": np.array([b""], np.object_),
        "beam": np.array([1], np.int32),
        "stamps": np.array([False]),
    }
    return Found(WINDOWED, WINDOWED_OUTPUTS, example or row, ("a recogniser of FunASR",))


def _told(text: str, stamps: Sequence[Sequence[float]], row: Window) -> Heard:
    """FunASR's answer as everybody's: `stamps` are [start, end] in ms of each word or character, or none."""
    tags = [tag for tag in _TAG.findall(text) if tag in _LANGUAGES]
    units = _units(_TAG.sub(" ", text))
    found, prefix = _words(units, stamps, len(row.audio) / RATE), _units(row.prefix)
    if prefix:
        found = _begun(prefix, found, len(row.audio) / RATE)
    language = row.language or (tags[0] if tags else "")
    return Heard(
        words=found,
        language=language,
        no_speech=0.0 if found else 1.0,
        tokens=len(found),
        timed=len(stamps) == len(units) and units[: len(prefix)] == prefix,
    )


def _units(text: str) -> list[str]:
    """The words of a text: what stands between spaces, and each Chinese character; punctuation goes with the word
    before it."""
    found: list[str] = []
    for unit in _UNIT.findall(text):
        if found and _PUNCTUATION.match(unit):
            found[-1] += unit
        elif found and _HAN.match(found[-1][0]) and (lead := re.match(r"[^\w\s]+", unit)):
            found[-1] += lead[0]
            found.append(unit[lead.end() :])
        else:
            found.append(unit)
    return found


def _words(units: Sequence[str], stamps: Sequence[Sequence[float]], length_s: float) -> list[HeardWord]:
    """Units with their times; where there is not one stamp each, they share the audio by their letters."""
    if len(stamps) == len(units):
        times = [(float(start) / 1000, float(end) / 1000) for start, end in stamps]
    else:
        edges = np.concatenate([[0], np.cumsum([len(unit) for unit in units])])
        edges = edges / max(1, edges[-1]) * length_s
        times = [(float(start), float(end)) for start, end in pairwise(edges)]
    found, at = [], 0.0
    for unit, (start, end) in zip(units, times, strict=False):
        at = min(max(start, at), length_s)
        found.append(HeardWord(unit, at, min(max(end, at), length_s), 0.0, _HAN.match(unit) is None))
    return found


def _begun(prefix: Sequence[str], heard: Sequence[HeardWord], length_s: float) -> list[HeardWord]:
    """The words of a prefix over the times of the first words that were heard, then the others."""
    found: list[HeardWord] = []
    for place, unit in enumerate(prefix):
        at = heard[place] if place < len(heard) else None
        start, end = (at.start, at.end) if at else (found[-1].end if found else length_s, length_s)
        found.append(HeardWord(unit, start, end, 0.0, _HAN.match(unit) is None))
    return [*found, *heard[len(prefix) :]]
