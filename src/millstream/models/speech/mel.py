"""The spectrum that Whisper hears: log energies of mel bands, 100 columns a second.

As its authors compute it (Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, and their
code): Hann windows of 25 ms every 10 ms, their middles on the samples 0, 160, 320 ..., the sound mirrored at its
ends; Slaney's mel scale; base 10; what is 8 below the loudest is lifted to that; then (x + 4) / 4.

Rules of the room:
- A spectrum is of a window that the caller says, with silence behind the sound, and depends on nothing else.
- No matrix product: it might start threads, and add up in another order on another machine.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.models.speech.tensors import RATE

HOP: Final = 160
"""Samples from one column to the next."""
_SPAN = 400
_LINEAR_HZ, _LINEAR_STEP_HZ = 1000.0, 200 / 3  # Slaney: a mel is 66.7 Hz below 1 kHz, and a factor above
_LOG_STEP = np.log(6.4) / 27
_FLOOR = 1e-10
_RANGE = 8.0


class _Bands(NamedTuple):
    """The triangles of all bands, one behind the other: bins of the spectrum with their weights, and where each band
    begins among them."""

    bins: NDArray[np.intp]
    weights: NDArray[np.float32]
    starts: NDArray[np.intp]


def log_mel(sound: NDArray[np.float32], window: int, bands: int = 80) -> NDArray[np.float32]:
    """`sound` (float32 [n], 16 kHz) with silence up to `window` samples, a multiple of 160, as float32
    [bands, window / 160]. ValueError: it is longer than the window."""
    if not len(sound) <= window or window % HOP or window <= _SPAN:
        raise ValueError(f"{len(sound)} samples, a window of {window}: expected a multiple of {HOP} that holds them")
    columns = window // HOP
    spectrum = np.full((columns, bands), _FLOOR, np.float32)
    heard = min(columns, (len(sound) + _SPAN // 2) // HOP + 1)  # columns behind it see silence alone
    padded = np.zeros(heard * HOP + _SPAN, np.float32)
    padded[_SPAN // 2 : _SPAN // 2 + len(sound)] = sound
    padded[: _SPAN // 2] = padded[_SPAN : _SPAN // 2 : -1]
    if heard == columns:  # mirrored at the window's end
        end = _SPAN // 2 + window
        padded[end:] = padded[end - 2 : end - 2 - len(padded[end:]) : -1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, _SPAN)[: heard * HOP : HOP]
    found = np.fft.rfft(frames * _hann(), axis=1).astype(np.complex64)
    power = np.square(found.real) + np.square(found.imag)
    shape = _bands(bands)
    energies = np.add.reduceat(power[:, shape.bins] * shape.weights, shape.starts, axis=1)
    spectrum[:heard] = np.maximum(energies, _FLOOR)
    levels = np.log10(spectrum, out=spectrum)
    np.maximum(levels, levels.max() - _RANGE, out=levels)
    return np.ascontiguousarray((levels.T + 4) / 4, np.float32)


@cache
def _hann() -> NDArray[np.float32]:
    return np.hanning(_SPAN + 1)[:-1].astype(np.float32)


@cache
def _bands(count: int) -> _Bands:
    """Triangles of equal area, evenly spaced in mel from 0 to 8 kHz (Slaney, Auditory Toolbox, 1998)."""
    top = _LINEAR_HZ / _LINEAR_STEP_HZ + np.log(RATE / 2 / _LINEAR_HZ) / _LOG_STEP
    mels = np.linspace(0, top, count + 2)
    above = _LINEAR_HZ * np.exp(_LOG_STEP * (mels - _LINEAR_HZ / _LINEAR_STEP_HZ))
    edges = np.where(mels * _LINEAR_STEP_HZ < _LINEAR_HZ, mels * _LINEAR_STEP_HZ, above)
    hertz = np.arange(_SPAN // 2 + 1) * (RATE / _SPAN)
    bins: list[int] = []
    weights: list[float] = []
    starts: list[int] = []
    for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
        triangle = np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)) * 2 / (high - low)
        inside = np.nonzero(triangle > 0)[0]
        inside = inside if len(inside) else np.array([round(middle / (RATE / _SPAN))])
        starts.append(len(bins))
        bins += inside.tolist()
        weights += np.maximum(triangle[inside], 0).tolist()
    return _Bands(np.array(bins), np.array(weights, np.float32), np.array(starts))
