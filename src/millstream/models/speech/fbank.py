"""Log-mel filterbanks as Kaldi computes them, which models of voices are trained on.

Frames of 25 ms every 10 ms, whole ones only; the mean taken off, pre-emphasis .97, a Hamming window, 512 points; 80
triangles, even in mel (1127 ln(1 + f / 700)) from 20 Hz to 8 kHz; the natural logarithm. No dither: the same sound
gives the same numbers. Source: Kaldi, feat/feature-fbank.cc and feat/mel-computations.cc.

Rules of the room:
- No matrix product: it starts threads, which cost more than they save, and might add up in another order elsewhere.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 16_000
LENGTH: Final = 400
HOP: Final = 160
BINS: Final = 80
_POINTS = 512
_EMPHASIS = 0.97
_LOW_HZ, _HIGH_HZ = 20.0, 8000.0
_FLOOR = float(np.finfo(np.float32).eps)


def fbank(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of float32 [n] at 16 kHz, -1 .. 1: float32 [t, 80], t = 1 + (n - 400) // 160, 0 for less than a frame."""
    count = 1 + (len(sound) - LENGTH) // HOP if len(sound) >= LENGTH else 0
    if not count:
        return np.empty((0, BINS), np.float32)
    scaled = np.asarray(sound, np.float64) * 32768.0  # Kaldi's samples are those of 16 bits
    frames = np.lib.stride_tricks.sliding_window_view(scaled, LENGTH)[::HOP][:count]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - _EMPHASIS * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.fft.rfft(frames * _WINDOW, _POINTS)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    energies = np.add.reduceat(power[:, _INSIDE] * _WEIGHTS, _STARTS, axis=1)
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127.0 * np.log1p(hertz / 700.0)


def _triangles() -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
    """The points of the spectrum that each bin adds up, one bin behind the other, their weights, and where each begins
    among them."""
    low, high = _mel(np.array([_LOW_HZ, _HIGH_HZ]))
    edges = np.linspace(low, high, BINS + 2)
    points = _mel(np.arange(_POINTS // 2) * RATE / _POINTS)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (points - left) / (centre - left), (right - points) / (right - centre)
    weights = np.maximum(np.minimum(rising, falling), 0.0)
    bins, inside = np.nonzero(weights)
    return inside, weights[bins, inside], np.searchsorted(bins, np.arange(BINS))


_WINDOW: Final = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(LENGTH) / (LENGTH - 1))
_INSIDE, _WEIGHTS, _STARTS = _triangles()
