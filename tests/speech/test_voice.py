"""Voices: near for one speaker, far for two; a window's numbers are its own."""

import numpy as np
import pytest

from millstream.errors import BadInput, Misconfigured
from millstream.models.speech.voice import LEAST, SIZE, Voice


@pytest.fixture(scope="module")
def voice(newest):
    return Voice(newest("wespeaker"))


def test_a_voice_is_near_itself_and_far_from_another(voice, clip):
    one = [clip("librispeech/2609-156975-0002")[at : at + 32_000] for at in (16_000, 64_000, 112_000)]
    other = [clip("librispeech/367-130732-0002")[at : at + 32_000] for at in (16_000, 64_000, 112_000)]
    found = voice.embed([*one, *other])
    alike = found @ found.T
    same = [alike[a, b] for a in range(6) for b in range(a) if a // 3 == b // 3]
    differ = [alike[a, b] for a in range(6) for b in range(a) if a // 3 != b // 3]
    assert min(same) > max(differ) + 0.1


def test_a_row_is_of_length_one_and_its_own_whoever_is_beside_it(voice):
    random = np.random.default_rng(0)
    windows = [0.1 * random.standard_normal(size).astype(np.float32) for size in (LEAST, 16_000, 25_600, 16_000)]
    together = voice.embed(windows)
    assert together.shape == (4, SIZE) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for row, window in zip(together, windows, strict=True):
        assert np.array_equal(voice.embed([window])[0], row)
    assert voice.embed([]).shape == (0, SIZE)


def test_level_does_not_move_a_voice(voice, speech):
    sound = speech[16_000:48_000]
    loud, quiet = voice.embed([sound, sound * np.float32(0.1)])
    assert loud @ quiet > 0.99


def test_what_cannot_be_taken_is_refused(voice, newest):
    with pytest.raises(BadInput, match="3200 samples"):
        voice.embed([np.zeros(LEAST - 1, np.float32)])
    assert np.isfinite(voice.embed([np.zeros(LEAST, np.float32)])).all()
    with pytest.raises(Misconfigured, match="millstream speech fetch wespeaker"):
        Voice(newest("silero-vad"))
