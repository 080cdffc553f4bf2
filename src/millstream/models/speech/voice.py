"""A voice as 256 numbers: near each other for one speaker, far for two.

The model takes Kaldi's filterbanks with their mean over the window taken off, which takes the channel off with it
(WeSpeaker, Wang et al., ICASSP 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.model import Model
from millstream.models.speech.fbank import fbank

LEAST: Final = 3200
"""Samples of the shortest window, .2 s; below about a second voices are hard to tell."""
SIZE: Final = 256
_INPUTS, _OUTPUT = {"fbank", "weights"}, "embedding"


class Voice:
    """Voices of windows of sound, by a model with WeSpeaker's tensors. Misconfigured: another model."""

    def __init__(self, model: Model) -> None:
        inputs, outputs = ({spec.name for spec in side} for side in (model.inputs, model.outputs))
        if inputs != _INPUTS or _OUTPUT not in outputs:
            raise errors.Misconfigured(
                f"no model that tells voices: it takes {sorted(inputs)} and gives {sorted(outputs)}, expected "
                f"{sorted(_INPUTS)} and {_OUTPUT!r}; fetch one: millstream speech fetch wespeaker --models DIR"
            )
        self._model = model

    def embed(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Of windows float32 [n >= LEAST] at 16 kHz: float32 [len(sounds), 256], each of length one. A window's row
        depends on that window alone: each is a call. BadInput: a window is too short."""
        found = np.empty((len(sounds), SIZE), np.float32)
        for row, sound in enumerate(sounds):
            found[row] = self._one(sound)
        return found

    def _one(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(sound) < LEAST:
            raise errors.BadInput(f"a voice wants {LEAST} samples (.2 s) at least, got {len(sound)}")
        bank = fbank(sound)
        bank -= bank.mean(axis=0)
        out = self._model.predict({"fbank": bank[None], "weights": np.ones((1, len(bank)), np.float32)})
        voice = np.asarray(out[_OUTPUT], np.float64)[0]
        length = float(np.linalg.norm(voice))
        found: NDArray[np.float32] = (voice / length if length else voice).astype(np.float32)
        return found
