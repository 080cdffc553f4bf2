"""Turns: two at once are found in a mix of two, who gives way to whom in a row of them, and nothing in one alone; by a
window's own sound."""

import numpy as np
import pytest
from scipy.signal import resample_poly

from millstream.errors import BadInput, Misconfigured
from millstream.models.speech.turns import WINDOW, Spoken, Turns

START, END = 48_000, 112_000


@pytest.fixture(scope="module")
def turns(newest):
    return Turns(newest("pyannote"))


@pytest.fixture(scope="module")
def one(speech):
    return speech[:WINDOW]


@pytest.fixture(scope="module")
def other(one):
    """The same words by a voice that is a fifth deeper, and slower."""
    return resample_poly(one, 125, 100).astype(np.float32)


@pytest.fixture(scope="module")
def both(one, other):
    """From START to END the other speaks too."""
    mixed = one.copy()
    mixed[START:END] += other[: END - START]
    return mixed


def test_two_at_once_are_found_and_one_alone_is_not(turns, one, both):
    alone, together = turns.spoken([one, both])
    assert alone.overlaps == [] and {who for _, who in alone.alone} == {alone.alone[0][1]}
    assert together.overlaps and all(START - 1600 <= start < end <= END + 1600 for start, end in together.overlaps)
    assert sum(end - start for start, end in together.overlaps) > 16_000


def test_who_gives_way_to_another_has_another_number(turns, one, other):
    (heard,) = turns.spoken([np.concatenate([one[:START], other[: WINDOW - START]])])
    assert all(a[1] <= b[0] for (a, _), (b, _) in zip(heard.alone, heard.alone[1:], strict=False))
    first, then = ({who: 0 for _, who in heard.alone} for _ in range(2))
    for (start, end), who in heard.alone:
        first[who] += max(0, min(end, START) - start)
        then[who] += max(0, end - max(start, START))
    assert max(first, key=first.get) != max(then, key=then.get)
    assert max(first.values()) > 0.7 * sum(first.values()) > 0 and max(then.values()) > 0.7 * sum(then.values()) > 0


def test_a_window_is_its_own_whoever_is_beside_it_and_may_be_short(turns, both):
    windows = [both, both[: END - 8000], np.zeros(0, np.float32), both[START : START + 400]]
    found = turns.spoken(windows)
    assert found == [turns.spoken([window])[0] for window in windows]
    for window, spoken in zip(windows, found, strict=True):
        spans = [*spoken.overlaps, *(span for span, _ in spoken.alone)]
        assert all(0 <= start < end <= len(window) for start, end in spans)
    assert found[1].overlaps and found[2] == Spoken([], [])
    assert turns.spoken([]) == []


def test_what_cannot_be_taken_is_refused(turns, newest):
    with pytest.raises(BadInput, match="160000 samples"):
        turns.spoken([np.zeros(WINDOW + 1, np.float32)])
    with pytest.raises(Misconfigured, match="millstream speech fetch pyannote"):
        Turns(newest("silero-vad"))
