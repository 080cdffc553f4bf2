"""Speech or silence, 32 ms at a time, by Silero's model.

The model looks at a frame of 512 samples with the 64 before it, and carries an LSTM's state from frame to frame. Its
sequence form computes many frames in one call, and the numbers are the same to the last bit however they are grouped,
so what is decided by them does not depend on how audio arrived.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.model import Model

FRAME: Final = 512
"""Samples of a frame, at 16 kHz."""
_BEFORE, _STATE = 64, (1, 1, 128)
_FRAMES_MAX = 512  # of a call: 16 s, and a megabyte
_INPUTS, _OUTPUTS = {"input", "h", "c"}, {"speech_probs", "hn", "cn"}
Samples = NDArray[np.float32]


class Hearing(msgspec.Struct, frozen=True, eq=False):
    """What is carried from one frame to the next: `h` and `c` float32 [1, 1, 128], `before` the last 64 samples."""

    h: NDArray[np.float32]
    c: NDArray[np.float32]
    before: Samples

    def save(self) -> dict[str, bytes]:
        """As bytes, little endian float32."""
        return {name: getattr(self, name).astype("<f4").tobytes() for name in ("h", "c", "before")}

    @classmethod
    def restored(cls, saved: dict[str, bytes]) -> Hearing:
        """What `save` gave. ValueError: it is none."""
        try:
            h, c, before = (np.frombuffer(saved[name], "<f4").astype(np.float32) for name in ("h", "c", "before"))
            return cls(h.reshape(_STATE), c.reshape(_STATE), before.reshape(_BEFORE))
        except KeyError as error:
            raise ValueError(f"the saved state of hearing lacks {error}") from None


class Vad:
    """Speech in sound, by a model with Silero's tensors; holds nothing between calls. Misconfigured: another model."""

    def __init__(self, model: Model) -> None:
        inputs, outputs = ({spec.name for spec in side} for side in (model.inputs, model.outputs))
        if not inputs >= _INPUTS or not outputs >= _OUTPUTS:
            raise errors.Misconfigured(
                f"no model that tells speech: it takes {sorted(inputs)} and gives {sorted(outputs)}, expected "
                f"{sorted(_INPUTS)} and {sorted(_OUTPUTS)}; fetch one: millstream speech fetch silero-vad --models DIR"
            )
        self._model = model

    def fresh(self) -> Hearing:
        """Before the first sample, silence."""
        return Hearing(np.zeros(_STATE, np.float32), np.zeros(_STATE, np.float32), np.zeros(_BEFORE, np.float32))

    def probabilities(self, sound: Samples, hearing: Hearing) -> tuple[NDArray[np.float32], Hearing]:
        """How likely each frame of `sound`, float32 [n * 512], is speech: float32 [n], 0 .. 1; and what is carried on.
        ValueError: not whole frames."""
        if len(sound) % FRAME:
            raise ValueError(f"{len(sound)} samples are not whole frames of {FRAME}")
        found = []
        for at in range(0, len(sound), _FRAMES_MAX * FRAME):
            some, hearing = self._call(sound[at : at + _FRAMES_MAX * FRAME], hearing)
            found.append(some)
        return np.concatenate(found) if found else np.empty(0, np.float32), hearing

    def _call(self, sound: Samples, hearing: Hearing) -> tuple[NDArray[np.float32], Hearing]:
        frames = np.empty((len(sound) // FRAME, _BEFORE + FRAME), np.float32)
        frames[:, _BEFORE:] = sound.reshape(-1, FRAME)
        frames[0, :_BEFORE] = hearing.before
        frames[1:, :_BEFORE] = frames[:-1, -_BEFORE:]
        out = self._model.predict({"input": frames, "h": hearing.h, "c": hearing.c})
        found, h, c = (np.asarray(out[name], np.float32) for name in ("speech_probs", "hn", "cn"))
        return found.reshape(-1), Hearing(h, c, frames[-1, -_BEFORE:].copy())
