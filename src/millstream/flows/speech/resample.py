"""Audio of any rate at the rate inside, the same to the last bit however it is cut.

Rules of the room:
- An output sample is a sum over its own neighbours, in one order, made in blocks of BLOCK that begin at multiples of
  BLOCK: neither how the input was cut nor when it came can change a bit.
- The state is a few milliseconds of input: it can be written down, and another process goes on from it exactly.
- Time does not move: output n is the sound at n / 16,000 s. What a filter would have to know of the time before the
  first sample, and after the last, is silence.

The filter is a sinc under a Kaiser window (J. O. Smith, "Digital Audio Resampling"), its cutoff at .94 of the lower
of both Nyquist frequencies: even to .86 of it, 80 dB down from 1.02 of it on.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream.flows.speech.settings import FRAME, RATE

Sound = NDArray[np.float32]
BLOCK: Final = FRAME
_CROSSINGS = 32  # of zero, on either side
_CUTOFF = 0.94
_BETA = 8.0
_EXACT = 640  # phases of 11,025 Hz; with more, a phase is a line between the two of PHASES beside it (-105 dB)
_PHASES = 256
_FEW = 4  # so many phases are cheaper one after the other, where no row need be copied
_NOTHING = np.zeros(0, np.float32)


class Resampler:
    """From `rate` Hz to 16,000. 16,000 itself passes as it is, at once; else whole blocks come out."""

    def __init__(self, rate: int) -> None:
        common = gcd(rate, RATE)
        self._up, self._down = RATE // common, rate // common
        self._taps = _taps(rate)
        self._taken = self._made = 0
        self._held = np.zeros(self._taps // 2 - 1, np.float32)
        self._rate = rate

    def feed(self, sound: Sound) -> Sound:
        """Take float32 [n] in; what is ready comes out, float32 [m]."""
        self._taken += len(sound)
        if self._rate == RATE:
            self._made = self._taken
            return sound
        held = np.concatenate([self._held, sound])
        made, at = [], 0
        while at + self._begins(self._made + BLOCK - 1) - self._begins(self._made) + self._taps <= len(held):
            made.append(self._block(held[at:]))
            at += self._begins(self._made + BLOCK) - self._begins(self._made)
            self._made += BLOCK
        self._held = held[at:].copy()
        return np.concatenate(made) if made else _NOTHING

    def flush(self) -> Sound:
        """The rest, once, at the end: together as many samples as the input lasts, rounded up."""
        rest = -(-self._taken * self._up // self._down) - self._made
        if rest <= 0:
            return _NOTHING
        silence = np.zeros(self._begins(rest + BLOCK) + 2 * self._taps, np.float32)
        taken, last = self._taken, self.feed(silence)[:rest]
        self._taken = taken
        return last

    def save(self) -> dict[str, Any]:
        """All there is to go on from."""
        return {"taken": self._taken, "made": self._made, "held": self._held.tobytes()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what was saved at the same rate."""
        self._taken, self._made = saved["taken"], saved["made"]
        self._held = np.frombuffer(saved["held"], np.float32)

    def _begins(self, output: int) -> int:
        """The first input sample, counted from `held`'s first of all, that an output sample wants."""
        return output * self._down // self._up

    def _block(self, held: Sound) -> Sound:
        """BLOCK samples; the first tap of the first one is held[0]."""
        first = self._made * self._down % self._up
        rows = np.lib.stride_tricks.sliding_window_view(held, self._taps)
        if self._up <= _FEW:
            made = np.empty(BLOCK, np.float32)
            for each in range(min(self._up, BLOCK)):
                at = first + each * self._down
                count = -(-(BLOCK - each) // self._up)
                own = rows[at // self._up :: self._down][:count]
                made[each :: self._up] = np.einsum("ij,j->i", own, _bank(self._rate)[at % self._up])
            return made
        begins, phases = np.divmod(first + self._down * np.arange(BLOCK), self._up)
        summed: Sound = np.einsum("ij,ij->i", rows[begins], self._weights(phases))
        return summed

    def _weights(self, phases: NDArray[np.int64]) -> Sound:
        bank = _bank(self._rate)
        if self._up <= _EXACT:
            return bank[phases]
        whole, part = np.divmod(phases * _PHASES, self._up)
        share = (part / self._up).astype(np.float32)[:, None]
        between: Sound = bank[whole] * (1 - share) + bank[whole + 1] * share
        return between


def _taps(rate: int) -> int:
    """Input samples that an output sample is made of."""
    return 2 * int(np.ceil(_CROSSINGS / (_CUTOFF * min(1.0, RATE / rate))))


@lru_cache(maxsize=32)
def _bank(rate: int) -> Sound:
    """The filter at every phase, float32 [phases (one more where they are lines), taps]: row p is what an output wants
    that lies p / phases of a sample behind tap taps / 2 - 1."""
    up, taps = RATE // gcd(rate, RATE), _taps(rate)
    phases = np.arange(up) / up if up <= _EXACT else np.arange(_PHASES + 1) / _PHASES
    at = np.arange(taps) - (taps // 2 - 1) - phases[:, None]
    cut = _CUTOFF * min(1.0, RATE / rate)
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (at / (taps // 2)) ** 2, 0, None))) / np.i0(_BETA)
    rows = np.sinc(cut * at) * window
    made: Sound = (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)  # so that what stands still stays so
    return made
