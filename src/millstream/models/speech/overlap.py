"""Where two speak at once, by pyannote's segmentation model.

The model hears ten seconds, finds up to three speakers in them, and says of each frame who of them speaks (Plaquet and
Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization", INTERSPEECH 2023). Who they are is
nobody beyond the window; that they are two is what is wanted of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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


class Overlap:
    """Overlapping speech in windows of sound, by a model with pyannote's tensors. Misconfigured: another model."""

    def __init__(self, model: Model) -> None:
        inputs, outputs = ({spec.name for spec in side} for side in (model.inputs, model.outputs))
        if inputs != {_INPUT} or _OUTPUT not in outputs:
            raise errors.Misconfigured(
                f"no model that tells where two speak: it takes {sorted(inputs)} and gives {sorted(outputs)}, expected "
                f"[{_INPUT!r}] and {_OUTPUT!r}; fetch one: millstream speech fetch pyannote --models DIR"
            )
        self._model = model

    def spans(self, sounds: Sequence[NDArray[np.float32]]) -> list[list[Span]]:
        """Of windows float32 [n <= WINDOW] at 16 kHz: of each, where two or more speak, as first sample and the one
        behind the last. A window's answer depends on that window alone: each is a call. BadInput: one is too long."""
        return [self._one(sound) for sound in sounds]

    def _one(self, sound: NDArray[np.float32]) -> list[Span]:
        if len(sound) > WINDOW:
            raise errors.BadInput(f"overlap is looked for in {WINDOW} samples (10 s) at most, got {len(sound)}")
        waveform = np.zeros((1, 1, WINDOW), np.float32)
        waveform[0, 0, : len(sound)] = sound
        speaks = np.asarray(self._model.predict({_INPUT: waveform})[_OUTPUT])[0]
        several = (speaks > 0.5).sum(axis=1) > 1
        edges = np.flatnonzero(np.diff(several, prepend=False, append=False)).tolist()
        found = [(_FIRST + FRAME * a, _FIRST + FRAME * b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        return [(start, min(end, len(sound))) for start, end in found if start < len(sound)]
