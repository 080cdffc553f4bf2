"""Who of up to three speaks when, in ten seconds of sound, by pyannote's segmentation model.

The model hears ten seconds, finds up to three speakers in them, and says of each frame who of them speaks (Plaquet and
Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization", INTERSPEECH 2023). Who they are is
nobody beyond the window; where one gives way to another, and where two speak at once, is what is wanted of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.model import Model

WINDOW: Final = 160_000
"""Samples that it hears at once, 10 s at 16 kHz; behind fewer it hears silence."""
FRAME: Final = 270
"""Samples of a frame: its filters go by tens, and are pooled by three, three times."""
_FIRST: Final = 360  # the sample that the first frame begins with: each sees 991 samples, and is their middle
_INPUT, _OUTPUT = "waveforms", "segmentation"
Span = tuple[int, int]
"""First sample, and the one behind the last."""


class Spoken(NamedTuple):
    """Of a window, in samples from its first: `overlaps`, where two or more speak; `alone`: where one does, and the
    number, 0 .. 2, that they have in this window. Both in order."""

    overlaps: list[Span]
    alone: list[tuple[Span, int]]


class Turns:
    """Turns of speakers in windows of sound, by a model with pyannote's tensors. Misconfigured: another model."""

    def __init__(self, model: Model) -> None:
        inputs, outputs = ({spec.name for spec in side} for side in (model.inputs, model.outputs))
        if inputs != {_INPUT} or _OUTPUT not in outputs:
            raise errors.Misconfigured(
                f"no model that tells turns: it takes {sorted(inputs)} and gives {sorted(outputs)}, expected "
                f"[{_INPUT!r}] and {_OUTPUT!r}; fetch one: millstream speech fetch pyannote --models DIR"
            )
        self._model = model

    def spoken(self, sounds: Sequence[NDArray[np.float32]]) -> list[Spoken]:
        """Of windows float32 [n <= WINDOW] at 16 kHz. A window's answer depends on that window alone: each is a call.
        BadInput: one is too long."""
        return [self._one(sound) for sound in sounds]

    def _one(self, sound: NDArray[np.float32]) -> Spoken:
        if len(sound) > WINDOW:
            raise errors.BadInput(f"turns are looked for in {WINDOW} samples (10 s) at most, got {len(sound)}")
        waveform = np.zeros((1, 1, WINDOW), np.float32)
        waveform[0, 0, : len(sound)] = sound
        speaks = np.asarray(self._model.predict({_INPUT: waveform})[_OUTPUT])[0] > 0.5
        count = speaks.sum(axis=1)
        alone = [
            (span, who) for who in range(speaks.shape[1]) for span in _spans((count == 1) & speaks[:, who], len(sound))
        ]
        return Spoken(_spans(count > 1, len(sound)), sorted(alone))


def _spans(frames: NDArray[np.bool_], length: int) -> list[Span]:
    """Runs of frames as samples of a window of that length."""
    edges = np.flatnonzero(np.diff(frames, prepend=False, append=False)).tolist()
    found = [(_FIRST + FRAME * a, _FIRST + FRAME * b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [(start, min(end, length)) for start, end in found if start < length]
