"""A recogniser that hears sounds and says words of a script: for tests and load, where what is measured is not hearing.

The file is JSON, a Script. Each stretch of sound is a word: over `floor_db`, `word_ms` long, or as long as it lasts
where silence comes first. Which word it is: the next of the script (`by = "turn"`), or the one whose tone it is
(`by = "tone"`, which `speak` makes), so that it does not depend on where a window begins. A word that has not ended by
the end of the audio is said cut short, as real recognisers revise what they say.

Rules of the room:
- Sound is looked at in frames of 8 ms from the first sample, so windows that begin at multiples of 128 samples agree.
- `cost_ms` is waited for, not computed: as a model on an accelerator is.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from millstream import errors
from millstream.models.speech.heard import Heard, HeardWord
from millstream.models.speech.tensors import (
    RATE,
    STREAMING,
    STREAMING_OUTPUTS,
    WINDOWED,
    WINDOWED_OUTPUTS,
    column,
    windows,
)
from millstream.models.speech.utterances import Samples, Utterances
from millstream.types import Array

FRAME: Final = 128
_GAP = 8  # frames of silence, 64 ms, that end a word
_LEAST = 5  # frames, 40 ms: what is shorter is no word
_TONE_HZ, _TONE_STEP_HZ = 300.0, 50.0
_TONES_MAX = 120


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kind`: which of the two kinds of recogniser (models/speech/tensors.py). `cost_ms` of a call, and for each second
    of a row's audio; `lag_ms`: words of a streaming one that ended so long ago are committed."""

    words: tuple[str, ...]
    kind: Literal["windowed", "streaming"] = "windowed"
    by: Literal["turn", "tone"] = "turn"
    word_ms: Annotated[int, msgspec.Meta(ge=80, le=5000)] = 320
    floor_db: Annotated[float, msgspec.Meta(ge=-100, le=0)] = -50.0
    language: str = "en"
    cost_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    cost_ms_s: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    lag_ms: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 200

    def __post_init__(self) -> None:
        if not self.words or not all(word and not word.isspace() for word in self.words):
            raise ValueError("a script has words")
        if self.by == "tone" and len(self.words) > _TONES_MAX:
            raise ValueError(f"there are {_TONES_MAX} tones, the script has {len(self.words)} words")


def read(path: Path) -> Script:
    """The script in a file. Corrupt: it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Script)
    except msgspec.MsgspecError as error:
        raise errors.Corrupt(f"{path}: no script ({error}); write it again") from error


def load(path: Path) -> Scripted | ScriptedStream:
    """The recogniser of the script in a file."""
    script = read(path)
    return Scripted(script) if script.kind == "windowed" else ScriptedStream(script)


def speak(script: Script, words: Sequence[str], gap_ms: int = 120, level_db: float = -20.0) -> Samples:
    """Sound that a recogniser of the script says as `words` (`by = "tone"`: these; else: so many). float32 [n]."""
    length = script.word_ms * RATE // 1000 // FRAME * FRAME
    at = np.arange(length) / RATE
    gap = np.zeros(gap_ms * RATE // 1000, np.float32)
    found = [gap]
    for word in words:
        hertz = _TONE_HZ + _TONE_STEP_HZ * script.words.index(word)
        found += [(np.sqrt(2) * 10 ** (level_db / 20) * np.sin(2 * np.pi * hertz * at)).astype(np.float32), gap]
    return np.concatenate(found)


class Scripted:
    """The windowed kind: a Model that keeps nothing."""

    inputs, outputs = WINDOWED, WINDOWED_OUTPUTS

    def __init__(self, script: Script) -> None:
        self.script = script

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """What each row says; no row's answer depends on another's."""
        rows = windows(inputs)
        _cost(self.script, [row.audio for row in rows])
        return {"heard": column(_heard(self.script, row.audio, row.prefix, row.language) for row in rows)}


class ScriptedStream:
    """The streaming kind: Stateful, a slot keeps its utterance's audio."""

    inputs, outputs = STREAMING, STREAMING_OUTPUTS

    def __init__(self, script: Script) -> None:
        self.script = script

    def slots(self, count: int) -> Utterances:
        """Room for `count` sessions."""
        return Utterances(lambda: _Utterance(self.script), count)

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Every row as a session of length one."""
        return self.slots(0).step(inputs, np.full(len(inputs["audio"]), -1))


class _Utterance:
    """What a slot has heard."""

    def __init__(self, script: Script) -> None:
        self._script, self._audio = script, np.empty(0, np.float32)

    def feed(self, audio: Samples, end: bool) -> tuple[Heard, int]:
        """See utterances.Utterance."""
        _cost(self._script, [audio])
        self._audio = np.concatenate([self._audio, audio])
        heard = _heard(self._script, self._audio, "", "")
        late = len(self._audio) / RATE - self._script.lag_ms / 1000
        return heard, len(heard.words) if end else sum(word.end <= late for word in heard.words)

    def drop(self) -> None:
        """See utterances.Utterance."""


def _cost(script: Script, rows: Sequence[Samples]) -> None:
    wait_ms = script.cost_ms + script.cost_ms_s * sum(map(len, rows)) / RATE
    if wait_ms:
        time.sleep(wait_ms / 1000)


def _heard(script: Script, audio: Samples, prefix: str, language: str) -> Heard:
    places = list(_places(script, audio))
    said = _said(script, audio, places, prefix)
    words = []
    for (start, end, whole), word in zip(places, said, strict=False):
        shown = word if whole else word[: (len(word) + 1) // 2]
        confidence = 0.9 if whole else 0.3
        words.append(HeardWord(shown, start * FRAME / RATE, end * FRAME / RATE, confidence, not _is_han(word)))
    for word in said[len(places) :]:  # of the prefix, over sound that is no word here
        at = len(audio) // FRAME * FRAME / RATE
        words.append(HeardWord(word, at, at, 0.1, not _is_han(word)))
    written = " ".join(word.text for word in words).encode()
    return Heard(
        words=words,
        language=language or script.language,
        no_speech=0.0 if places else 1.0,
        compression=len(written) / len(zlib.compress(written)) if written else 0.0,
        tokens=len(words),
    )


def _said(script: Script, audio: Samples, places: Sequence[tuple[int, int, bool]], prefix: str) -> list[str]:
    """The word of every place, the words of `prefix` first."""
    first = _split(script, prefix)
    known = {word: number for number, word in enumerate(script.words)}
    after = known[first[-1]] + 1 if first and first[-1] in known else len(first)
    rest = places[len(first) :]
    if script.by == "tone":
        return [*first, *(script.words[_tone(script, audio, start, end)] for start, end, _ in rest)]
    return [*first, *(script.words[(after + number) % len(script.words)] for number in range(len(rest)))]


def _split(script: Script, text: str) -> list[str]:
    """The words of a text: those between spaces, and of what is written without them, the script's own."""
    found = []
    for part in text.split():
        while part:
            word = next((one for one in script.words if _is_han(one) and part.startswith(one)), "")
            latin = next((at for at, sign in enumerate(part) if _is_han(sign)), len(part))
            word = word or part[: max(1, latin)]
            found.append(word)
            part = part[len(word) :]
    return found


def _is_han(word: str) -> bool:
    return "\u4e00" <= word[0] <= "\u9fff"


def _places(script: Script, audio: Samples) -> Iterator[tuple[int, int, bool]]:
    """(first frame, frame after the last, whether it is whole) of every word."""
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME)
    loud = np.einsum("ij,ij->i", frames, frames) > FRAME * 10 ** (script.floor_db / 10)
    longest = script.word_ms * RATE // 1000 // FRAME
    (heard,) = np.nonzero(loud)
    if not len(heard):
        return
    breaks = np.nonzero(np.diff(heard) > _GAP)[0] + 1
    for run in np.split(heard, breaks):
        begin, end = int(run[0]), int(run[-1]) + 1
        for start in range(begin, end, longest):
            stop = min(start + longest, end)
            whole = stop - start == longest or len(loud) - stop > _GAP
            if stop - start >= (_LEAST if start == begin else longest // 2):
                yield start, stop, whole


def _tone(script: Script, audio: Samples, start: int, end: int) -> int:
    """The number of the word whose tone sounds loudest there."""
    sound = audio[start * FRAME : end * FRAME]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 4 * RATE // 10))
    hertz = float(np.argmax(spectrum)) * 10 / 4
    return min(max(round((hertz - _TONE_HZ) / _TONE_STEP_HZ), 0), len(script.words) - 1)
