"""The tensors that recognisers take and give: the same of every one, so that a session needs to know only its kind.

A windowed recogniser is given a stretch of speech and says all of it, and keeps nothing. A streaming one is given what
is new, keeps the rest in a slot, and says all of the utterance so far.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.manifest import Batching, Length
from millstream.models.speech.heard import Heard, told
from millstream.types import Array, TensorSpec

RATE: Final = 16_000
"""Hz of all audio that models take: one channel, float32, -1 .. 1."""
_AUDIO = TensorSpec("audio", "FP32", (-1, -1))
_SAMPLES = TensorSpec("samples", "INT32", (-1,))
_HEARD = TensorSpec("heard", "BYTES", (-1,))
WINDOWED: Final[tuple[TensorSpec, ...]] = (
    _AUDIO,
    _SAMPLES,
    TensorSpec("language", "BYTES", (-1,)),
    TensorSpec("prefix", "BYTES", (-1,)),
    TensorSpec("beam", "INT32", (-1,)),
    TensorSpec("stamps", "BOOL", (-1,)),
)
"""Inputs of a windowed recogniser. `samples`: how many of a row of `audio` count; `language` "": find out; `prefix`:
text that the answer begins with; `beam`: hypotheses that are followed; `stamps`: whether words want exact times."""
WINDOWED_OUTPUTS: Final[tuple[TensorSpec, ...]] = (_HEARD,)
"""`heard`: a Heard as JSON, a row."""
STREAMING: Final[tuple[TensorSpec, ...]] = (_AUDIO, _SAMPLES, TensorSpec("end", "BOOL", (-1,)))
"""Inputs of a streaming recogniser. `end`: the utterance ends with this audio, and the slot is fresh afterwards. Its
version has no [batching.length], as padding is not for a state: steps of one size share calls."""
STREAMING_OUTPUTS: Final[tuple[TensorSpec, ...]] = (_HEARD, TensorSpec("committed", "INT32", (-1,)))
"""`heard`: all of the utterance so far, times from its first sample; `committed`: so many first words stay."""


def hears(inputs: Container[str], outputs: Container[str]) -> bool:
    """Whether what takes and gives tensors of these names is a recogniser, of either kind: what it says, and a prefix
    that it is given, is what people said, numbers and addresses too."""
    return _AUDIO.name in inputs and _HEARD.name in outputs


class Window(msgspec.Struct, frozen=True):
    """A row of a windowed recogniser's inputs."""

    audio: NDArray[np.float32]
    language: str
    prefix: str
    beam: int
    stamps: bool


def windows(inputs: dict[str, Array]) -> list[Window]:
    """The rows, each cut to its own audio. BadInput: `samples` says more than there are; text that is not UTF-8."""
    return [
        Window(audio, text(inputs["language"][row]), text(inputs["prefix"][row]), max(1, int(beam)), bool(stamps))
        for row, (audio, beam, stamps) in enumerate(
            zip(sounds(inputs), inputs["beam"].tolist(), inputs["stamps"].tolist(), strict=True)
        )
    ]


def sounds(inputs: dict[str, Array]) -> list[NDArray[np.float32]]:
    """Each row's own audio, without what pads it. BadInput: `samples` says more than there are."""
    audio, counts = inputs["audio"], inputs["samples"].tolist()
    if any(not 0 <= count <= audio.shape[1] for count in counts):
        raise errors.BadInput(f"samples: expected 0 to {audio.shape[1]}, as many as 'audio' has; got {counts}")
    return [np.asarray(row[:count], np.float32) for row, count in zip(audio, counts, strict=True)]


def text(cell: object) -> str:
    """A BYTES value. BadInput: it is not UTF-8."""
    if not isinstance(cell, bytes):
        return str(cell)
    try:
        return cell.decode()
    except UnicodeDecodeError as error:
        raise errors.BadInput(f"a BYTES value is not UTF-8 text ({error}); send text") from error


def column(heard: Iterable[Heard]) -> Array:
    """The output `heard` of these rows."""
    found = [told(one) for one in heard]
    cells = np.empty(len(found), np.object_)
    cells[:] = found
    return cells


def batching(seconds: Iterable[float] = (5, 10, 20, 30), rows_max: int = 8) -> Batching:
    """Buckets of a windowed recogniser's audio, by seconds: the engine pads a row with silence, and fills `samples`."""
    buckets = tuple(round(each * RATE) for each in seconds)
    return Batching(rows_max=rows_max, length=Length(of=("audio",), buckets=buckets, lengths="samples"))
