"""Whisper models: a windowed recogniser in the serving process (format "whisper"). ONNX Runtime computes what is in
eight bits on a CPU (`models/speech/whisper_int8.py`), CTranslate2 the rest.

A version's folder is what CTranslate2's converter writes, with the tokenizer beside it: model.bin, config.json,
vocabulary.json or vocabulary.txt, tokenizer.json. The buckets of its `[batching.length]` are the windows that it hears:
a row is heard in the shortest one that holds it and .5 s of silence behind. One of 10 s costs a quarter of one of 30 s;
a model that does badly with short ones says so (`window_s` in its [settings]). A row with a beam of one is a hypothesis
that is soon made anew: its window may be shorter still (`step_window_s`).

Rules of the room:
- One thread a call; both let go of the GIL while they compute.
- A row's answer depends on the row alone: rows are computed one by one.
- No chance: what a decoder repeats is decoded again without repeats, or cut; nothing is sampled.
- Times cost a tenth of a step, so they are exact only where they are asked for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.machine import cores
from millstream.models.manifest import Cell, Manifest
from millstream.models.speech.hanzi import PROMPT, simplified
from millstream.models.speech.heard import Heard
from millstream.models.speech.loops import compression, doubled, looping, unlooped
from millstream.models.speech.mel import HOP, log_mel
from millstream.models.speech.pieces import Tokens, begun, text_of, without_silence, words
from millstream.models.speech.tensors import RATE, WINDOWED, WINDOWED_OUTPUTS, Window, batching, column, windows
from millstream.models.speech.vocabulary import Vocabulary
from millstream.models.speech.whisper_int8 import Int8Whisper
from millstream.types import Array, TensorSpec

FILES: Final = ("model.bin", "config.json", "tokenizer.json")
"""What a version has, beside its vocabulary."""
VOCABULARIES: Final = ("vocabulary.json", "vocabulary.txt")
WINDOW_S_MAX: Final = 30
WINDOWS_S: Final = (6, 8, 10, 12, 15, 20, 25, 30)
"""Windows of versions that are added; shorter than their `step_window_s` there is none."""
BEAM_MAX: Final = 16
_UNSURE = -1.0
_NOTHING = ((0.6, _UNSURE), (0.8, -0.5))
"""Over the one (no speech) and under the other (how sure), nothing was said. The first is of Radford et al., 2022; the
second for the "you" that is heard in pure silence (.90, -.69): lone words of .3 s stay under .6."""
_SILENT = 3e-5  # -90 dBFS, less than a step of 16 bits
_TEXT_TOKENS_MAX = 224  # half of what Whisper's decoder has room for; the other half is the prompt's
_PREFIX_TOKENS_MAX = 200
_TOKENS_S, _TOKENS_MORE = 12, 8  # room of a row's text, over twice of what anybody says in it: a loop ends there
_REST = round(0.5 * RATE)  # samples of silence behind the sound: without it, the last sentence may come twice
_TICK_S = 0.02  # what a column of the encoder stands for
_LONGEST_WORD_S = 1.5
log = logging.getLogger(__name__)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A version's [settings]. `compute_type`: what it is computed in; "" is int8 on a CPU, float16 on a GPU.
    `window_s`: the shortest window that the model does well with; `step_window_s`: the shortest that will do for a
    hypothesis (whisper-base in 6 s has 2.7 words of a hundred more wrong than in 10 s, at 65 % of the cost)."""

    compute_type: Literal["", "float32", "float16", "bfloat16", "int8"] = ""
    window_s: Annotated[float, msgspec.Meta(ge=1, le=WINDOW_S_MAX)] = 10.0
    step_window_s: Annotated[float, msgspec.Meta(ge=1, le=WINDOW_S_MAX)] = 6.0


def settings_of(where: str, said: Mapping[str, object]) -> Settings:
    """The [settings] of a manifest. Misconfigured: they are none of a Whisper model's."""
    try:
        return msgspec.convert(said, Settings)
    except msgspec.ValidationError as error:
        known = ", ".join(Settings.__struct_fields__)
        raise errors.Misconfigured(f"{where}: [settings] {error}; a Whisper model has {known}") from error


def manifest(settings: Settings = Settings()) -> Manifest:  # noqa: B008  # frozen
    """What a version of a Whisper model says of itself. Example: a moment of silence."""
    example: dict[str, list[Cell | list[object]]] = {
        "audio": [[0.0] * HOP],
        "samples": [HOP],
        "language": ["en"],
        "prefix": [""],
        "beam": [1],
        "stamps": [False],
    }
    return Manifest(
        format="whisper",
        file=FILES[0],
        inputs=WINDOWED,
        outputs=WINDOWED_OUTPUTS,
        batching=batching([seconds for seconds in WINDOWS_S if seconds >= settings.step_window_s]),
        settings=msgspec.to_builtins(settings),
        example=example,
    )


class Whisper:
    """A Model over one folder. Corrupt: it is not a whole one; Misconfigured: its manifest asks for what cannot be;
    Missing: the extra is not installed."""

    inputs: tuple[TensorSpec, ...] = WINDOWED
    outputs: tuple[TensorSpec, ...] = WINDOWED_OUTPUTS

    def __init__(self, folder: Path, said: Manifest, device: str = "cpu") -> None:
        self._where = str(folder)
        settings = settings_of(self._where, said.settings)
        self.windows = _windows(self._where, said, settings.step_window_s)
        self._fine = [samples for samples in self.windows if samples >= settings.window_s * RATE] or self.windows[-1:]
        self._model, self.device, self.compute_type = _open(folder, said, settings.compute_type, device)
        self._vocabulary = Vocabulary(folder, bool(self._model.is_multilingual))

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """What is said in each row. BadInput: over 30 s, a language that the model does not know, or a prefix that does
        not fit."""
        rows = [self._row(window) for window in windows(inputs)]
        return {"heard": column([self._hear(row) for row in rows])}

    def close(self) -> None:
        """Give its memory back."""
        self._model.unload_model()

    def _row(self, asked: Window) -> _Row:
        most = self.windows[-1]
        among = self.windows if asked.beam == 1 else self._fine
        length = next((samples for samples in among if len(asked.audio) + _REST <= samples), most)
        if len(asked.audio) > most:
            raise errors.BadInput(
                f"audio of {len(asked.audio) / RATE:.1f} s; {most / RATE:g} s are heard at once: split it"
            )
        if asked.beam > BEAM_MAX:
            raise errors.BadInput(f"beam {asked.beam}: at most {BEAM_MAX} hypotheses are followed")
        language = self._vocabulary.language(asked.language)
        prefix = self._vocabulary.encode(begun(asked.prefix))
        if len(prefix) > _PREFIX_TOKENS_MAX:
            raise errors.BadInput(f"a prefix of {len(prefix)} tokens: send at most {_PREFIX_TOKENS_MAX}")
        return _Row(asked, length, language, prefix)

    def _hear(self, row: _Row) -> Heard:
        mel = log_mel(row.asked.audio, row.length, self._model.n_mels)
        encoded = self._model.encode(mel[None])
        language = row.language or self._detect(encoded)
        said = self._decode(encoded, row, language)
        text = self._vocabulary.text(said.tokens)
        if looping(text, len(said.tokens), len(row.asked.audio) / RATE):
            said = self._without_loop(encoded, row, said, language)
        if again := doubled([one.lower() for one in self._vocabulary.spelling(said.tokens)]):
            said = said._replace(tokens=self._without_echo(encoded, row, said.tokens, again, language))
        if _nothing(row, said) or (language == "zh" and text == PROMPT):
            said = said._replace(tokens=row.prefix)
        return self._told(encoded, mel, row, said, language)

    def _detect(self, encoded: Any) -> str:
        """The language of a window; of a model that knows one, that one."""
        if not self._model.is_multilingual:
            return "en"
        return str(self._model.detect_language(encoded)[0][0][0].strip("<|>"))

    def _decode(self, encoded: Any, row: _Row, language: str, no_repeat: int = 0) -> _Said:
        (result,) = self._model.generate(
            encoded,
            [[*self._vocabulary.prompt(language), *row.prefix]],
            beam_size=row.asked.beam,
            max_length=2 * _room(row),  # it takes half of what it is told for the text
            suppress_blank=not row.prefix,  # with a prefix the text may be whole already
            return_scores=True,
            return_no_speech_prob=True,
            no_repeat_ngram_size=no_repeat,
        )
        return _said(result, row, self._vocabulary.end)

    def _without_loop(self, encoded: Any, row: _Row, said: _Said, language: str) -> _Said:
        """The same without its loop: decoded again so that nothing comes twice, where that makes sense of it, else
        cut; a hypothesis is cut at once, as it is soon made anew."""
        if row.asked.beam > 1:
            again = self._decode(encoded, row, language, no_repeat=3)
            text = self._vocabulary.text(again.tokens)
            if again.sure > max(_UNSURE, said.sure - 1) and not looping(
                text, len(again.tokens), len(row.asked.audio) / RATE
            ):
                return again
        kept = len(row.prefix)
        return said._replace(tokens=[*said.tokens[:kept], *unlooped(said.tokens[kept:])])

    def _without_echo(self, encoded: Any, row: _Row, tokens: list[int], length: int, language: str) -> list[int]:
        """Without the last `length` tokens, where they say once more what is before them in less than half its time."""
        clock, _ = self._aligned(encoded, row, tokens, language)
        first, middle, last = clock[len(tokens) - 2 * length], clock[len(tokens) - length], clock[len(tokens)]
        if len(tokens) - length < len(row.prefix) or last - middle >= (middle - first) / 2:
            return tokens
        return tokens[:-length]

    def _told(self, encoded: Any, mel: NDArray[np.float32], row: _Row, said: _Said, language: str) -> Heard:
        seconds = len(row.asked.audio) / RATE
        spelling = self._vocabulary.spelling(said.tokens)
        loud = _loud(mel[:, : len(row.asked.audio) // HOP])
        if row.asked.stamps and said.tokens:
            clock, sure = self._aligned(encoded, row, said.tokens, language)
        else:
            clock, sure = _spread(loud, len(said.tokens)), [math.exp(said.sure)] * len(said.tokens)
        respell = simplified if language == "zh" else None
        found = words(Tokens(spelling, np.clip(clock, 0, seconds).tolist(), sure), row.asked.prefix, respell)
        return Heard(
            words=without_silence(found, loud, HOP / RATE),
            language=language,
            no_speech=round(said.no_speech, 4),
            compression=round(compression(text_of(spelling)), 2),
            tokens=len(said.tokens),
            timed=row.asked.stamps,
        )

    def _aligned(
        self, encoded: Any, row: _Row, tokens: list[int], language: str
    ) -> tuple[NDArray[np.float64], list[float]]:
        """When each token begins and the last one ends, by where the decoder looked (dynamic time warping over its
        attention, Radford et al.), and the probability of each."""
        frames = max(2, len(row.asked.audio) // HOP)
        (found,) = self._model.align(encoded, self._vocabulary.start(language), [tokens], frames)
        path = np.array(found.alignments)
        jumps = np.concatenate([[True], np.diff(path[:, 0]) > 0])
        clock = path[jumps, 1] * _TICK_S
        clock = np.concatenate([clock, np.full(max(0, len(tokens) + 1 - len(clock)), len(row.asked.audio) / RATE)])
        clock = clock[: len(tokens) + 1]
        clock[0] = max(clock[0], clock[1] - _LONGEST_WORD_S)  # the silence before it would be its own
        return clock, list(found.text_token_probs)


class _Row(msgspec.Struct, frozen=True):
    """What is asked, the `length` of its window in samples, its language ("": find out) and the prefix's tokens."""

    asked: Window
    length: int
    language: str
    prefix: list[int]


class _Said(msgspec.Struct, frozen=True):
    """What a decoder said: its tokens, those of the prefix first; `sure`: the mean logarithm of their probabilities."""

    tokens: list[int]
    sure: float
    no_speech: float

    def _replace(self, tokens: list[int]) -> _Said:
        return msgspec.structs.replace(self, tokens=tokens)


def load(folder: Path, said: Manifest, device: str) -> Whisper:
    """The model in a version's folder."""
    return Whisper(folder, said, device)


def _room(row: _Row) -> int:
    """Tokens that a row's text may have, its prefix with it."""
    return min(math.ceil(len(row.asked.audio) / RATE * _TOKENS_S) + _TOKENS_MORE + len(row.prefix), _TEXT_TOKENS_MAX)


def _said(result: Any, row: _Row, end: int) -> _Said:
    """A decoder's result. The prefix costs it nothing, so its tokens do not count in the mean."""
    tokens = [token for token in result.sequences_ids[0] if token < end]
    if tokens[: len(row.prefix)] != row.prefix:
        tokens = [*row.prefix, *tokens]
    own = len(tokens) - len(row.prefix) + 1  # the end is a token, too
    return _Said(tokens, float(result.scores[0]) * len(tokens) / own, float(result.no_speech_prob))


def _nothing(row: _Row, said: _Said) -> bool:
    """Whether what was said is what decoders say of silence."""
    loudest = float(np.abs(row.asked.audio).max(initial=0.0))
    return loudest < _SILENT or any(said.no_speech > none and said.sure < sure for none, sure in _NOTHING)


def _loud(mel: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which columns of a spectrum are louder than a quarter of the way from its quietest to its loudest."""
    level: NDArray[np.float32] = mel.mean(axis=0)
    if not len(level):
        return np.zeros(0, np.bool_)
    return np.asarray(level > level.min() * 0.75 + level.max() * 0.25)


def _spread(loud: NDArray[np.bool_], count: int) -> NDArray[np.float64]:
    """A guess at when `count` tokens begin, and the last one ends: each takes as much of what is loud."""
    passed = np.concatenate([[0.0], np.cumsum(np.maximum(loud, 1e-3))])
    return np.interp(np.linspace(0, passed[-1], count + 1), passed, np.arange(len(passed)) * HOP / RATE)


def _windows(where: str, said: Manifest, least_s: float) -> tuple[int, ...]:
    """The windows of a manifest in samples, none shorter than `least_s`. Misconfigured: they are none of Whisper's."""
    length = said.batching.length
    if length is None:
        return (WINDOW_S_MAX * RATE,)
    if length.of != ("audio",) or length.axis != 1 or length.lengths != "samples":
        raise errors.Misconfigured(f"{where}: [batching.length] wants of = ['audio'], axis = 1, lengths = 'samples'")
    if length.buckets[-1] > WINDOW_S_MAX * RATE or any(bucket % (2 * HOP) for bucket in length.buckets):
        raise errors.Misconfigured(
            f"{where}: [batching.length] buckets are windows in samples at {RATE} Hz: multiples of {2 * HOP}, at most "
            f"{WINDOW_S_MAX * RATE}, which is {WINDOW_S_MAX} s; got {list(length.buckets)}"
        )
    return tuple(bucket for bucket in length.buckets if bucket >= least_s * RATE) or length.buckets[-1:]


class _Opened(Protocol):
    """A model as CTranslate2 has it (its documentation says what each member does), which takes arrays."""

    n_mels: int
    is_multilingual: bool
    compute_type: str

    def encode(self, mels: NDArray[np.float32], /) -> Any: ...
    def detect_language(self, encoded: Any, /) -> Any: ...
    def generate(
        self,
        encoded: Any,
        prompts: Any,
        /,
        *,
        beam_size: int,
        max_length: int,
        suppress_blank: bool,
        no_repeat_ngram_size: int,
        return_scores: bool,
        return_no_speech_prob: bool,
    ) -> Any: ...
    def align(self, encoded: Any, start: Any, texts: Any, frames: int, /) -> Any: ...
    def unload_model(self) -> None: ...


class _CTranslate2:
    """Its model, with arrays for its own values."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, mels: NDArray[np.float32], /) -> Any:
        from ctranslate2 import StorageView

        return self._model.encode(StorageView.from_array(np.ascontiguousarray(mels)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _open(folder: Path, said: Manifest, compute_type: str, device: str) -> tuple[_Opened, str, str]:
    """The model, its device, and what it is computed in."""
    if absent := [name for name in FILES if not (folder / name).is_file()]:
        raise errors.Corrupt(f"{folder}: {absent[0]} is not there; a Whisper version has {', '.join(FILES)}")
    try:
        kind, number = _device(str(folder), device)
        if kind == "cpu" and compute_type in ("", "int8"):
            return Int8Whisper(folder), "cpu", "int8"
        import ctranslate2
    except ModuleNotFoundError as missing:
        raise errors.Missing.extra("speech", f"{folder}: a Whisper model") from missing
    ctranslate2.set_log_level(logging.ERROR)
    compute = _compute_type(str(folder), compute_type, kind, number, ctranslate2)
    try:
        model = ctranslate2.models.Whisper(
            str(folder),
            device=kind,
            device_index=number,
            compute_type=compute,
            inter_threads=said.batching.instances or cores(),  # as many calls at once as an engine may make
            intra_threads=1,
        )
    except (RuntimeError, ValueError) as error:
        raise errors.Corrupt(
            f"{folder}: no Whisper model that CTranslate2 {ctranslate2.__version__} can load: {error}; convert it "
            "(ct2-transformers-converter) or copy it again"
        ) from error
    opened: Any = _CTranslate2(model)  # its members are the extension's
    return opened, kind if kind == "cpu" else f"{kind}:{number}", str(model.compute_type)


def _device(where: str, device: str) -> tuple[str, int]:
    """(cpu or cuda, its number); a GPU that is not there is said, and the CPU takes its place."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or not (number or "0").isdigit():
        raise errors.Misconfigured(f"{where}: device {device!r}; say 'cpu' or 'cuda:0'")
    if kind == "cpu":
        return kind, 0
    import ctranslate2

    there = int(ctranslate2.get_cuda_device_count())
    if int(number or 0) >= there:
        log.error("%s: device %s, CTranslate2 finds %d GPUs: it is computed on the CPU instead", where, device, there)
        return "cpu", 0
    return kind, int(number or 0)


def _compute_type(where: str, asked: str, kind: str, number: int, ctranslate2: Any) -> str:
    """What to compute in: as asked, else float32 where this machine cannot, which is said."""
    wanted = asked or ("int8" if kind == "cpu" else "float16")
    there = ctranslate2.get_supported_compute_types(kind, number)
    if wanted in there:
        return wanted
    log.error(
        "%s: compute_type %s is not to be had on this %s, which has %s: it is computed in float32 instead",
        where, wanted, kind, ", ".join(sorted(there)),
    )  # fmt: skip
    return "float32"
