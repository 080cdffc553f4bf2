"""Kaldi's filterbanks: Kaldi's own code says the same."""

import kaldi_native_fbank as knf
import numpy as np
import pytest

from millstream.models.speech.fbank import BINS, HOP, LENGTH, fbank


def kaldi(sound):
    """float32 [t, 80] by Kaldi's code."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hamming"
    options.frame_opts.samp_freq = 16_000
    options.mel_opts.num_bins = BINS
    options.energy_floor = 0.0
    made = knf.OnlineFbank(options)
    made.accept_waveform(16_000, (sound * 32768).tolist())
    made.input_finished()
    return np.array([made.get_frame(row) for row in range(made.num_frames_ready)], np.float32).reshape(-1, BINS)


def sounds():
    random = np.random.default_rng(1)
    at = np.arange(16_000) / 16_000
    yield "noise", 0.3 * random.standard_normal(16_000)
    yield "tone with an offset", 0.5 * np.sin(2 * np.pi * 440 * at) + 0.2
    yield "chirp", 0.9 * np.sin(2 * np.pi * 3900 * at * at)
    yield "quiet", 1e-4 * random.standard_normal(5000)
    yield "clipped", np.clip(4 * random.standard_normal(3000), -1, 1)
    yield "one frame", random.standard_normal(LENGTH) * 0.1


@pytest.mark.parametrize(("name", "sound"), list(sounds()), ids=lambda one: one if isinstance(one, str) else "")
def test_it_says_what_kaldi_says(name, sound):
    sound = sound.astype(np.float32)
    expected, found = kaldi(sound), fbank(sound)
    assert found.shape == expected.shape and found.dtype == np.float32
    # Kaldi computes in float32, so bins with nearly nothing in them differ most
    assert np.abs(found - expected).max() < 5e-3 and np.abs(found - expected).mean() < 2e-4


def test_of_speech_too(speech):
    sound = speech[:64_000]
    assert np.abs(fbank(sound) - kaldi(sound)).mean() < 2e-4


def test_only_whole_frames_count_and_silence_is_finite():
    assert fbank(np.zeros(LENGTH - 1, np.float32)).shape == (0, BINS)
    assert fbank(np.zeros(LENGTH + HOP, np.float32)).shape == (2, BINS)
    assert np.isfinite(fbank(np.zeros(1000, np.float32))).all()
