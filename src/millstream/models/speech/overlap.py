"""Voices at once: which of up to three local voices speak, over ten seconds, by pyannote's segmentation model.

Voices are numbered within a window only: the first of one window need not be the first of the next (Plaquet and
Bredin, Interspeech 2023).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.model import Model

WINDOW: Final = 160_000
"""Samples that the model takes: 10 s."""
FRAMES: Final = 589
VOICES: Final = 3
_INPUT, _OUTPUT = "waveforms", "segmentation"


class Overlap:
    """Who speaks when within ten seconds, by a model with pyannote's tensors. Misconfigured: another model."""

    def __init__(self, model: Model) -> None:
        inputs, outputs = ([spec.name for spec in side] for side in (model.inputs, model.outputs))
        if inputs != [_INPUT] or outputs != [_OUTPUT]:
            raise errors.Misconfigured(
                f"no model that finds voices at once: it takes {inputs} and gives {outputs}, expected [{_INPUT!r}] and "
                f"[{_OUTPUT!r}]; fetch one: millstream speech fetch segmentation --models DIR"
            )
        self._model = model

    def activity(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of up to 10 s at 16 kHz: float32 [589, 3], 0 or 1, a row each 17 ms of the whole 10 s; what is missing at the
        end is silence. ValueError: more."""
        if len(sound) > WINDOW:
            raise ValueError(f"{len(sound)} samples, at most {WINDOW} are taken")
        whole = np.zeros((1, 1, WINDOW), np.float32)
        whole[0, 0, : len(sound)] = sound
        found: NDArray[np.float32] = np.asarray(self._model.predict({_INPUT: whole})[_OUTPUT], np.float32)[0]
        return found

    def share(self, sound: NDArray[np.float32]) -> float:
        """The part of the speech in a sound of any length in which more than one voice speaks: 0 .. 1, 0 without
        speech."""
        speech = both = 0
        for at in range(0, len(sound), WINDOW):
            part = sound[at : at + WINDOW]
            voices = self.activity(part)[: -(-len(part) * FRAMES // WINDOW)].sum(axis=1)
            speech += int((voices >= 1).sum())
            both += int((voices >= 2).sum())
        return both / speech if speech else 0.0
