"""CMU Sphinx: a streaming recogniser of English that is fast, poor, and has real state (format "pocketsphinx").

A version has the acoustic model's folder, which `file` names, and beside it one language model (`.lm.bin`) and one
dictionary (`.dict`); `millstream speech fetch pocketsphinx` makes one.

Rules of the room:
- A decoder is some 70 MB and is made in a third of a second, so it is kept for the next utterance. Its front end is
  made anew for that: it follows the noise and the mean of all it has heard, and words would depend on who spoke before.
- The best path may change up to the end, so nothing is committed before it, and a word's confidence is 0 until then.
- It hears 16 bits: what is beyond -1 .. 1 is clipped.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.speech.heard import Heard, HeardWord
from millstream.models.speech.tensors import RATE, STREAMING, STREAMING_OUTPUTS
from millstream.models.speech.utterances import Samples, Utterances
from millstream.types import Array

_FRAME_S: Final = 0.01
_SPOKEN_AS = re.compile(r"\(\d+\)$")  # was(2): the second way to say it
_NO_WORD = re.compile(r"<.*>|\[.*\]|\+\+.*\+\+")


class Pocketsphinx:
    """Stateful, over one acoustic model. Missing: the package is not installed; Corrupt: files that it cannot read."""

    inputs, outputs = STREAMING, STREAMING_OUTPUTS

    def __init__(self, folder: Path) -> None:
        try:
            import pocketsphinx
        except ImportError as error:
            raise errors.Missing.extra("pocketsphinx", f"{folder}: format 'pocketsphinx'") from error
        self._made: Any = pocketsphinx
        self._files = {"hmm": str(folder), "lm": _only(folder, "*.lm.bin"), "dict": _only(folder, "*.dict")}
        self._free: list[Any] = []
        self._lock = threading.Lock()
        self._free.append(self._decoder())

    def slots(self, count: int) -> Utterances:
        """Room for `count` sessions; each that is in the middle of an utterance has a decoder."""
        return Utterances(self._begin, count)

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Every row as a session of length one."""
        return Utterances(self._begin, 0).step(inputs, np.full(len(inputs["audio"]), -1))

    def _decoder(self) -> Any:
        try:
            return self._made.Decoder(self._made.Config(loglevel="FATAL", **self._files))
        except Exception as error:
            raise errors.Corrupt(
                f"{self._files['hmm']}: pocketsphinx cannot read it ({error}); fetch it again"
            ) from error

    def _begin(self) -> _Sphinx:
        with self._lock:
            decoder = self._free.pop() if self._free else None
        decoder = decoder or self._decoder()
        decoder.reinit_feat()
        decoder.start_utt()
        return _Sphinx(decoder, self._free)


class _Sphinx:
    """An utterance; its decoder goes back to `free`."""

    def __init__(self, decoder: Any, free: list[Any]) -> None:
        self._decoder, self._free = decoder, free
        self._samples, self._ended = 0, False

    def feed(self, audio: Samples, end: bool) -> tuple[Heard, int]:
        """See utterances.Utterance."""
        self._samples += len(audio)
        if len(audio):
            self._decoder.process_raw(_pcm16(audio).tobytes())
        if end:
            self._decoder.end_utt()
            self._ended = True
        words = self._words() if self._decoder.hyp() is not None else []
        return Heard(words=words, language="en", tokens=len(words)), len(words) if end else 0

    def drop(self) -> None:
        """See utterances.Utterance."""
        if not self._ended:
            self._decoder.end_utt()
        self._free.append(self._decoder)

    def _words(self) -> list[HeardWord]:
        last = self._samples / RATE
        found = []
        for one in self._decoder.seg():
            if _NO_WORD.fullmatch(one.word):
                continue
            start, end = min(one.start_frame * _FRAME_S, last), min((one.end_frame + 1) * _FRAME_S, last)
            confidence = min(max(float(one.prob), 0.0), 1.0) if self._ended else 0.0
            found.append(HeardWord(_SPOKEN_AS.sub("", one.word), start, end, confidence))
        return found


def _pcm16(audio: Samples) -> NDArray[np.int16]:
    return np.round(np.clip(audio, -1.0, 1.0) * 32767).astype("<i2")


def _only(folder: Path, pattern: str) -> str:
    found = sorted(folder.parent.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise errors.Misconfigured(f"{folder.parent}: expected one {pattern} beside {folder.name}, got {names}")
    return str(found[0])
