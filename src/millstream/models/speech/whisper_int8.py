"""Whisper in eight bits on a CPU, computed by ONNX Runtime: a folder as CTranslate2's converter wrote it, with the
members of CTranslate2's own model that a recogniser uses.

Rules of the room:
- One thread a call; any number of calls at once, which share the weights and nothing else.
- A window is computed alone: its text depends on nothing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from millstream import errors
from millstream.models.speech.alignment import costs, path
from millstream.models.speech.beam import Likely, Text, repeating, search
from millstream.models.speech.ct2_file import Weights
from millstream.models.speech.whisper_graph import Sizes, cross, decoder, encoder, own, sizes

NETWORK: Final = "WhisperSpec"
_MULTILINGUAL = 51_865  # tokens; a vocabulary of English has one less
_MASKED = np.float32(-np.inf)


class Spoken(NamedTuple):
    """As CTranslate2's WhisperGenerationResult: texts, the best one alone; the mean logarithm of its tokens'
    probabilities; the probability that nothing is said."""

    sequences_ids: list[list[int]]
    scores: list[float]
    no_speech_prob: float


class Aligned(NamedTuple):
    """As CTranslate2's WhisperAlignmentResult: pairs of a token and the position where it is, the last of them where
    the text ends; the probability of each token."""

    alignments: list[tuple[int, int]]
    text_token_probs: list[float]


class Config(msgspec.Struct, frozen=True):
    """What config.json says."""

    alignment_heads: list[tuple[int, int]] = []
    lang_ids: list[int] = []
    suppress_ids: list[int] = []
    suppress_ids_begin: list[int] = []


Window = dict[str, Any]
"""What the decoder is told of a window: ONNX Runtime's values by name."""


class Int8Whisper:
    """The model in a version's folder. Corrupt: it is not a whole one; Missing: the extra is not installed."""

    n_mels: int
    is_multilingual: bool
    compute_type: str = "int8"

    def __init__(self, folder: Path) -> None:
        try:
            import onnx  # noqa: F401
        except ImportError:
            raise errors.Missing.extra("speech", f"{folder}: Whisper in eight bits") from None
        weights = Weights(folder / "model.bin", NETWORK)
        try:
            self._config = msgspec.json.decode((folder / "config.json").read_bytes(), type=Config)
            self._names = _vocabulary(folder)
            self._read(weights)
        except (KeyError, ValueError, OSError, msgspec.ValidationError) as error:
            raise errors.Corrupt(
                f"{folder}: no Whisper model of CTranslate2 ({error!r}); convert it (ct2-transformers-converter) or "
                "copy it again"
            ) from error

    def unload_model(self) -> None:
        """Give its memory back."""
        del self._encoder, self._decoder

    def encode(self, mels: NDArray[np.float32]) -> list[Window]:
        """What is heard in each window of mels [windows, n_mels, columns]."""
        names = cross(self._decoder.sizes.layers)
        return [
            dict(zip(names, self._encoder.run_with_ort_values(names, {"mel": _value(mel[None])}), strict=True))
            for mel in mels
        ]

    def detect_language(self, encoded: Sequence[Window]) -> list[list[tuple[str, float]]]:
        """Of each window: the languages with their probabilities, the likeliest first."""
        found = []
        for window in encoded:
            others = _off(len(self._names), set(range(len(self._names))) - set(self._config.lang_ids))
            text = _Reading(self._decoder, window)
            text.read([[self._start]], [0], _value(others[None, None]))
            sure = {self._names[token]: float(np.exp(text.logs()[0, 0, token])) for token in self._config.lang_ids}
            found.append(sorted(sure.items(), key=lambda one: -one[1]))
        return found

    def generate(
        self,
        encoded: Sequence[Window],
        prompts: Sequence[Sequence[int]],
        *,
        beam_size: int = 5,
        max_length: int = 448,
        suppress_blank: bool = True,
        no_repeat_ngram_size: int = 0,
        return_scores: bool = True,
        return_no_speech_prob: bool = True,
    ) -> list[Spoken]:
        """What is said in each window behind its prompt; what a prompt has of a text is that text's beginning. A text
        has at most half of `max_length` tokens, and no more than are left of that behind what is no text."""
        return [
            self._said(window, list(prompt), beam_size, max_length, suppress_blank, no_repeat_ngram_size)
            for window, prompt in zip(encoded, prompts, strict=True)
        ]

    def align(
        self, encoded: Sequence[Window], start: Sequence[int], texts: Sequence[Sequence[int]], frames: int
    ) -> list[Aligned]:
        """When each token of each window's text was said, in its first `frames` columns."""
        return [self._aligned(*one, list(start), frames) for one in zip(encoded, texts, strict=True)]

    def _read(self, weights: Weights) -> None:
        numbers = {name: number for number, name in enumerate(self._names)}
        self._start, self._end, self._plain = (
            numbers[f"<|{name}|>"] for name in ("startoftranscript", "endoftext", "notimestamps")
        )
        self._silent = numbers.get("<|nospeech|>", numbers.get("<|nocaptions|>", self._end))
        has, never = sizes(weights), self._config.suppress_ids
        if len(self._names) != has.vocabulary:
            raise ValueError(f"a vocabulary of {len(self._names)}, the weights are for {has.vocabulary}")
        clocks = self._config.alignment_heads or [
            (layer, head) for layer in range(has.layers // 2, has.layers) for head in range(has.heads)
        ]
        self._encoder = _session(encoder(weights))
        self._decoder = _Decoder(weights, has, sorted(clocks))
        weights.let_go()
        self.n_mels, self.is_multilingual = has.bands, has.vocabulary >= _MULTILINGUAL
        self._anything = np.zeros(has.vocabulary, np.float32)
        self._text = _off(has.vocabulary, never)
        self._first = _off(has.vocabulary, [*never, *self._config.suppress_ids_begin])
        self._off = _value(self._text[None, None])

    def _said(
        self, window: Window, prompt: list[int], beam: int, max_length: int, blank: bool, no_repeat: int
    ) -> Spoken:
        at = prompt.index(self._start)
        begin = next((place for place in range(at, len(prompt)) if prompt[place] < self._end), len(prompt))
        begun, text = prompt[begin:], _Reading(self._decoder, window, 2 * beam)

        def off(texts: Sequence[Sequence[int]]) -> Any:
            if not no_repeat:
                return self._off
            return _value(np.stack([_without(self._text, repeating(one, no_repeat)) for one in texts])[:, None])

        def step(rows: list[int], texts: list[Text]) -> Likely:
            text.keep(rows)
            return text.read([one.tokens[-1:] for one in texts], [0], off([one.tokens for one in texts]))

        first = self._first if blank else self._text
        if no_repeat:
            first = _without(first, repeating(begun, no_repeat))
        likely = text.read([prompt], [at, len(prompt) - 1], _value(np.stack([self._anything, first])[None]))
        silent = float(np.exp(text.logs()[0, 0, self._silent]))
        most = min(max_length // 2, max_length - begin + 1, self._decoder.sizes.room - begin)
        found = search(likely, step, begun, self._end, beam, most)
        return Spoken([found.tokens], [found.sure], silent)

    def _aligned(self, window: Window, tokens: Sequence[int], start: list[int], frames: int) -> Aligned:
        text, count = _Reading(self._decoder, window), len(tokens)
        words = _off(len(self._names), range(self._end, len(self._names)))
        told = [len(start) + place for place in range(count)]
        text.read([[*start, self._plain, *tokens, self._end]], told, _value(words[None, None]))
        probabilities = np.exp(text.logs()[0, np.arange(count), list(tokens)])
        seen = text.seen()[:, len(start) : -1, : max(1, frames // 2)]
        return Aligned(path(costs(seen)), probabilities.tolist())


class _Decoder:
    """The graph of a decoder; tokens go into it as embeddings with their places, read where the file has them."""

    def __init__(self, weights: Weights, has: Sizes, clocks: Sequence[tuple[int, int]]) -> None:
        self.sizes = has
        self._words = weights["decoder/embeddings/weight"]
        self._steps = weights.get("decoder/embeddings/weight_scale")
        self._places = weights.floats("decoder/position_encodings/encodings")
        self._session = _session(decoder(weights, clocks))
        self.begun = _value(np.zeros((1, has.heads, 0, has.size // has.heads), np.float32))

    def embedded(self, tokens: NDArray[np.int64], before: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._words[tokens].astype(np.float32)
        if self._steps is not None:
            found /= self._steps[tokens][..., None].astype(np.float32)
        return found + self._places[before : before + tokens.shape[1]]

    def run(self, names: list[str], given: dict[str, Any]) -> list[Any]:
        found: list[Any] = self._session.run_with_ort_values(names, given)
        return found


class _Reading:
    """Texts of one window on their way through a decoder; `most`: how many likely tokens of each it tells."""

    def __init__(self, decoder: _Decoder, window: Window, most: int = 1) -> None:
        self._decoder, self._window, self._most = decoder, window, _value(np.array([most]))
        layers = decoder.sizes.layers
        self._past = dict.fromkeys(own(layers, "past"), decoder.begun)
        self._names = ["best", "which", "logs", "seen", *own(layers, "new")]
        self._length = 0
        self._told: list[Any] = []

    def read(self, texts: Sequence[Sequence[int]], at: Sequence[int], off: Any) -> Likely:
        """Go on with more tokens of each text. What is likely behind the last of `at`, which are places among them;
        off [texts or 1, places or 1, vocabulary]: what may not be."""
        tokens = np.array(texts, np.int64)
        count = tokens.shape[1]
        mask = np.triu(np.full((count, self._length + count), _MASKED), self._length + 1)
        given = {"x": self._decoder.embedded(tokens, self._length), "mask": mask, "at": np.array(at, np.int64)}
        given = {name: _value(value) for name, value in given.items()} | {"off": off, "most": self._most}
        self._told = self._decoder.run(self._names, given | self._window | self._past)
        self._past = dict(zip(self._past, self._told[4:], strict=True))
        self._length += count
        best, which = (one.numpy()[:, -1] for one in self._told[:2])
        return Likely(best, which)

    def keep(self, rows: list[int]) -> None:
        """Go on with these of the texts, each of which may be there more than once."""
        if rows != list(range(self._told[0].shape()[0])):
            self._past = {name: _value(value.numpy()[rows]) for name, value in self._past.items()}

    def logs(self) -> NDArray[np.float32]:
        """The logarithms of all probabilities at the places of the last `read`: [texts, places, vocabulary]."""
        found: NDArray[np.float32] = self._told[2].numpy()
        return found

    def seen(self) -> NDArray[np.float32]:
        """Where the heads that are clocks looked, at each of the last tokens: [heads, tokens, positions]."""
        found: NDArray[np.float32] = self._told[3].numpy()
        return found


def _value(array: NDArray[Any]) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _off(vocabulary: int, tokens: Any) -> NDArray[np.float32]:
    return _without(np.zeros(vocabulary, np.float32), list(tokens))


def _without(off: NDArray[np.float32], tokens: list[int]) -> NDArray[np.float32]:
    found = off.copy()
    found[tokens] = _MASKED
    return found


def _session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # without VNNI sums of two products may not fit in 16 bits: there weights are taken as unsigned, in twice the time
    options.add_session_config_entry("session.x64quantprecision", "0" if _vnni() else "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@cache
def _vnni() -> bool:
    """Whether this processor is known to add up products of eight bits in 32."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _vocabulary(folder: Path) -> list[str]:
    """All tokens in their order, as CTranslate2's converter writes them."""
    if (folder / "vocabulary.json").is_file():
        return msgspec.json.decode((folder / "vocabulary.json").read_bytes(), type=list[str])
    return (folder / "vocabulary.txt").read_text("utf-8").removesuffix("\n").split("\n")
