"""Streaming transducers on sherpa-onnx, for whoever has weights (format "sherpa").

A version has `tokens.txt`, which `file` names, and beside it one file each of `encoder*.onnx`, `decoder*.onnx` and
`joiner*.onnx`, as the project publishes its models.

Rules of the room:
- sherpa-onnx ends the process over a file that lacks what it looks for, so that is looked for here first.
- Greedy search: a token that was said stays, so a word is committed once the next one has begun.
- Behind an utterance comes silence, which an encoder that looks ahead needs to say the last word.
- One thread a call, and streams one by one: what is heard in one does not depend on another.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from millstream import errors
from millstream.models.speech.heard import Heard, HeardWord
from millstream.models.speech.tensors import RATE, STREAMING, STREAMING_OUTPUTS
from millstream.models.speech.utterances import Samples, Utterances
from millstream.types import Array

_SILENCE_S: Final = 0.66
_WORD_END_S: Final = 0.2  # a token has a time and no length
_SAID: Final = {
    "encoder": ("model_type", "T", "decode_chunk_len"),
    "decoder": ("vocab_size", "context_size"),
    "joiner": ("joiner_dim",),
}
_NOT_WHOLE = "; a version has tokens.txt and one each of encoder*.onnx, decoder*.onnx, joiner*.onnx"


class Sherpa:
    """Stateful, over one transducer. Missing: the package is not installed; Misconfigured: files that are not there, or
    that it cannot read."""

    inputs, outputs = STREAMING, STREAMING_OUTPUTS

    def __init__(self, tokens: Path) -> None:
        try:
            import sherpa_onnx
        except ImportError as error:
            raise errors.Missing.extra("sherpa", f"{tokens.parent}: format 'sherpa'") from error
        parts = {part: _only(tokens.parent, f"{part}*.onnx") for part in ("encoder", "decoder", "joiner")}
        if not tokens.is_file():
            raise errors.Misconfigured(f"{tokens.parent}: no {tokens.name}{_NOT_WHOLE}")
        for part, path in parts.items():
            _check(path, _SAID[part])
        try:
            self._recogniser: Any = sherpa_onnx.OnlineRecognizer.from_transducer(
                tokens=str(tokens), num_threads=1, decoding_method="greedy_search", **parts
            )
        except Exception as error:
            raise errors.Misconfigured(f"{tokens.parent}: sherpa-onnx cannot read it ({error}){_NOT_WHOLE}") from error

    def slots(self, count: int) -> Utterances:
        """Room for `count` sessions."""
        return Utterances(self._begin, count)

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Every row as a session of length one."""
        return self.slots(0).step(inputs, np.full(len(inputs["audio"]), -1))

    def _begin(self) -> _Stream:
        return _Stream(self._recogniser)


class _Stream:
    """An utterance."""

    def __init__(self, recogniser: Any) -> None:
        self._recogniser, self._stream = recogniser, recogniser.create_stream()
        self._samples = 0

    def feed(self, audio: Samples, end: bool) -> tuple[Heard, int]:
        """See utterances.Utterance."""
        self._samples += len(audio)
        self._stream.accept_waveform(RATE, audio)
        if end:
            self._stream.accept_waveform(RATE, np.zeros(round(_SILENCE_S * RATE), np.float32))
            self._stream.input_finished()
        while self._recogniser.is_ready(self._stream):
            self._recogniser.decode_stream(self._stream)
        result = self._recogniser.get_result_all(self._stream)
        found = words(result.tokens, result.timestamps, result.ys_probs, self._samples / RATE)
        return Heard(words=found, tokens=len(result.tokens)), len(found) if end else max(0, len(found) - 1)

    def drop(self) -> None:
        """See utterances.Utterance."""


def words(tokens: list[str], times: list[float], logs: list[float], length_s: float) -> list[HeardWord]:
    """Tokens of a transducer as words: one begins at a token with a space (or the mark for it) before it, and at every
    Chinese character. `times` of each token in seconds, `logs` their log probabilities. Where there are fewer than
    tokens, what is left has the last time, and says nothing of how sure it is."""
    times = [*times, *[times[-1] if times else 0.0] * (len(tokens) - len(times))]
    found: list[tuple[str, bool, list[int]]] = []
    for number, token in enumerate(tokens):
        text = token.replace("\u2581", " ")
        spaced, text = text.startswith(" "), text.strip()
        han = text != "" and "\u4e00" <= text[0] <= "\u9fff"
        if spaced or han or not found or _is_han(found[-1][0]):
            found.append((text, not han, [number]))
        else:
            found[-1] = (found[-1][0] + text, found[-1][1], [*found[-1][2], number])
    said = [(text, space, numbers) for text, space, numbers in found if text]
    made = []
    for place, (text, space, numbers) in enumerate(said):
        start = min(times[numbers[0]], length_s)
        until = times[said[place + 1][2][0]] if place + 1 < len(said) else length_s
        end = max(start, min(times[numbers[-1]] + _WORD_END_S, until, length_s))
        sure = [math.exp(min(logs[number], 0.0)) for number in numbers if number < len(logs)]
        made.append(HeardWord(text, start, end, sum(sure) / len(sure) if sure else 0.0, space))
    return made


def _is_han(text: str) -> bool:
    return text != "" and "\u4e00" <= text[-1] <= "\u9fff"


def _check(path: str, wanted: tuple[str, ...]) -> None:
    """Misconfigured: the file does not load, or does not say in its metadata what a streaming transducer says."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # what ONNX Runtime raises shares no base class of its own
        raise errors.Misconfigured(f"{path}: no whole ONNX file ({error}); copy it again") from error
    said = session.get_modelmeta().custom_metadata_map
    if lacks := [name for name in wanted if name not in said]:
        raise errors.Misconfigured(
            f"{path}: its metadata lacks {', '.join(lacks)}, which a streaming transducer of sherpa-onnx has; take a "
            "model whose name says `streaming`"
        )


def _only(folder: Path, pattern: str) -> str:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise errors.Misconfigured(f"{folder}: expected one {pattern}, got {names}{_NOT_WHOLE}")
    return str(found[0])
