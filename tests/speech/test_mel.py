"""The spectrum that Whisper hears, against the one that another package computes."""

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor

from millstream.models.speech.mel import log_mel


def sound(samples, seed=0):
    random = np.random.default_rng(seed)
    at = np.arange(samples) / 16_000
    tones = sum(np.sin(2 * np.pi * hertz * at) for hertz in (110.0, 440.0, 3100.0))
    return (0.1 * tones * (1 + np.sin(9 * at)) + 0.01 * random.standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("samples", [0, 1, 100, 48_123, 79_799, 79_801, 79_990, 80_000])
def test_it_is_what_another_package_computes(samples, bands):
    window = 80_000
    given = sound(samples)
    expected = FeatureExtractor(feature_size=bands)(np.pad(given, (0, window - samples)), padding=0)
    found = log_mel(given, window, bands)
    assert found.dtype == np.float32
    assert found.shape == (bands, window // 160) == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_of_a_longer_window_it_is_the_beginning():
    given = sound(40_000)
    short, long = log_mel(given, 80_000), log_mel(given, 160_000)
    np.testing.assert_array_equal(short, long[:, :500])
    np.testing.assert_array_equal(long[:, 500:], np.broadcast_to(long[:, -1:], (80, 500)))


def test_a_window_holds_its_sound():
    with pytest.raises(ValueError, match="80001 samples, a window of 80000"):
        log_mel(sound(80_001), 80_000)
    with pytest.raises(ValueError, match="a multiple of 160"):
        log_mel(sound(10), 80_001)
