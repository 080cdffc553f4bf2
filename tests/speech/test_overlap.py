"""Where two speak at once: found in a mix of two, nowhere in one of them, and by a window's own sound alone."""

import numpy as np
import pytest
from scipy.signal import resample_poly

from millstream.errors import BadInput, Misconfigured
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.speech.overlap import WINDOW, Overlap

START, END = 48_000, 112_000


def loaded(folder, name):
    repository = Repository(folder)
    return load(repository, name, repository.versions(name)[-1])


@pytest.fixture(scope="module")
def overlap(speech_models):
    return Overlap(loaded(speech_models, "pyannote"))


@pytest.fixture(scope="module")
def one(speech):
    return speech[:WINDOW]


@pytest.fixture(scope="module")
def two(one):
    """From START to END somebody else speaks too: the same words by a voice that is a fifth deeper, and slower."""
    other = resample_poly(one, 125, 100).astype(np.float32)
    mixed = one.copy()
    mixed[START:END] += other[: END - START]
    return mixed


def test_two_at_once_are_found_and_one_alone_is_not(overlap, one, two):
    alone, together = overlap.spans([one, two])
    assert alone == []
    assert together and all(START - 1600 <= start < end <= END + 1600 for start, end in together)
    assert sum(end - start for start, end in together) > 16_000


def test_a_window_is_its_own_whoever_is_beside_it_and_may_be_short(overlap, two):
    windows = [two, two[: END - 8000], np.zeros(0, np.float32), two[START : START + 400]]
    found = overlap.spans(windows)
    assert found == [overlap.spans([window])[0] for window in windows]
    for window, spans in zip(windows, found, strict=True):
        assert all(0 <= start < end <= len(window) for start, end in spans)
    assert found[1] and not found[2]
    assert overlap.spans([]) == []


def test_what_cannot_be_taken_is_refused(overlap, speech_models):
    with pytest.raises(BadInput, match="160000 samples"):
        overlap.spans([np.zeros(WINDOW + 1, np.float32)])
    with pytest.raises(Misconfigured, match="millstream speech fetch pyannote"):
        Overlap(loaded(speech_models, "silero-vad"))
