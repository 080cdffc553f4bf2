"""Quiet speech as loud as near speech, before anything listens to it; noise stays where it is.

A voice detector misses what comes from far away. So the loud tenth of the last seconds is brought to TARGET_DB, by a
gain that moves slowly once it has heard two seconds of what may be speech, at once before. It changes only where the
loud blocks stand out of the quiet ones by SPEECH_DB, as speech does and a steady noise does not; until anything has, as
if everything were speech. It never goes so far up that the quiet ones would come above NOISE_DB. What would then be too
loud is bent below 1 (`_bent`). A constant offset is taken away.

Everything is decided in blocks of BLOCK samples at multiples of BLOCK, so cuts of the audio change nothing; sample k
that comes out is sample k that went in.
"""

from __future__ import annotations

from collections import deque
from math import log10
from typing import Any, Final

import numpy as np

from millstream.flows.speech.resample import BLOCK, Sound

TARGET_DB: Final = -20.0
"""Of the loud blocks, as RMS below full scale."""
NOISE_DB: Final = -40.0
"""No block that is quieter than nine of ten is brought above it."""
SPEECH_DB: Final = 9.0
GAIN_DB: Final = (-6.0, 45.0)
_WINDOW = 156  # blocks, 5 s
_QUIET, _LOUD = 0.1, 0.9  # quantiles of it
_SLOW_UP, _SLOW_DOWN, _FAST = 0.2, 0.4, 12.0  # dB a block: 6 and 12 a second; and while nothing was heard yet
_SETTLED = 62  # blocks of what may be speech until it moves slowly, 2 s
_OFFSET = 0.03  # of a block's mean that goes into the offset: it follows within a second
_SILENCE_DB = -100.0
_KNEE = 0.8
_NUMBERS = np.arange(BLOCK, dtype=np.float64)


class Level:
    """One session's level. `gain_db`: as it is now."""

    def __init__(self) -> None:
        self.gain_db = 0.0
        self._offset: float | None = None
        self._levels: deque[float] = deque(maxlen=_WINDOW)
        self._heard = 0
        self._held = np.zeros(0, np.float32)

    def feed(self, sound: Sound) -> Sound:
        """Take float32 [n] in; the whole blocks come out."""
        held = np.concatenate([self._held, sound])
        whole = len(held) - len(held) % BLOCK
        made = np.empty(whole, np.float32)
        for at in range(0, whole, BLOCK):
            made[at : at + BLOCK] = self._block(held[at : at + BLOCK])
        self._held = held[whole:].copy()
        return made

    def flush(self) -> Sound:
        """The rest, once, at the end: less than a block."""
        rest, missing = len(self._held), -len(self._held) % BLOCK
        if not rest:
            return self._held
        still = float(self._held.mean()) if self._offset is None else self._offset  # else the offset would seem to end
        return self.feed(np.full(missing, still, np.float32))[:rest]

    def save(self) -> dict[str, Any]:
        """All there is to go on from."""
        return {
            "gain_db": self.gain_db,
            "offset": self._offset,
            "levels": list(self._levels),
            "heard": self._heard,
            "held": self._held.tobytes(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what was saved."""
        self.gain_db, self._offset, self._heard = saved["gain_db"], saved["offset"], saved["heard"]
        self._levels = deque(saved["levels"], maxlen=_WINDOW)
        self._held = np.frombuffer(saved["held"], np.float32)

    def _block(self, block: Sound) -> Sound:
        block = self._centred(block)
        power = float(np.square(block, dtype=np.float64).mean())
        self._levels.append(max(_SILENCE_DB, 10 * log10(power + 1e-12)))
        before, self.gain_db = self.gain_db, self._next()
        return _bent(block * _line(10 ** (before / 20), 10 ** (self.gain_db / 20)))

    def _centred(self, block: Sound) -> Sound:
        """Without the offset, which moves along a line from block to block."""
        mean = float(block.mean(dtype=np.float64))
        before = mean if self._offset is None else self._offset
        self._offset = before + _OFFSET * (mean - before)
        return block - _line(before, self._offset)

    def _next(self) -> float:
        """The gain at the end of this block."""
        ordered = sorted(self._levels)
        quiet, loud = (ordered[int(share * (len(ordered) - 1))] for share in (_QUIET, _LOUD))
        now = self._levels[-1]
        wanted = self.gain_db if self._heard else GAIN_DB[1]
        if loud - quiet >= SPEECH_DB:
            self._heard += now > quiet + SPEECH_DB
            wanted = min(max(TARGET_DB - loud, GAIN_DB[0]), GAIN_DB[1])
        wanted = min(wanted, max(0.0, NOISE_DB - quiet))
        up, down = (_SLOW_UP, _SLOW_DOWN) if self._heard > _SETTLED else (_FAST, _FAST)
        return min(max(wanted, self.gain_db - down), self.gain_db + up)


def _line(first: float, last: float) -> Sound:
    """From one to the other along a block: numpy.linspace to the bit, at a third of its price."""
    made = _NUMBERS * ((last - first) / (BLOCK - 1)) + first
    made[-1] = last
    return made.astype(np.float32)


def _bent(sound: Sound) -> Sound:
    """What is beyond _KNEE comes ever closer to 1 and stays below it."""
    over = np.abs(sound) - np.float32(_KNEE)
    if over.max() <= 0:
        return sound
    room = np.float32(1 - _KNEE)
    bent = np.copysign(np.float32(_KNEE) + room * over / (over + room), sound)
    return np.where(over > 0, bent, sound).astype(np.float32)
