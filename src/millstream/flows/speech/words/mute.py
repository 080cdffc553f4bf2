"""Audio without what was masked in its words.

A recogniser's word times are off by tens of milliseconds (whisper's by up to 100 or so), so a span is widened by
MARGIN_S on both sides, and further to where the words beside it say that they end and begin, at most REACH_S. Where no
time can be trusted, none of the audio is kept (`droppable`): hypotheses only guess them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream.flows.speech.settings import RATE
from millstream.spoken import Word

MARGIN_S: Final = 0.1
REACH_S: Final = 0.3
FADE_S: Final = 0.01
WORD_S_MIN: Final = 0.05
Span = tuple[float, float]


def widened(words: Sequence[Word], spans: Sequence[Span]) -> list[Span]:
    """The spans of a final with what may still belong to them: up to the words beside each, at most so far that REACH_S
    is silent once `mute` has taken its margin. `words`: as they were heard, or as they are shown."""
    wide: list[Span] = []
    for start, end in spans:
        before = max((one.end for one in words if one.end <= start + 1e-6), default=start - REACH_S)
        after = min((one.start for one in words if one.start >= end - 1e-6), default=end + REACH_S)
        wide.append((start - _more(start - before), end + _more(after - end)))
    return wide


def _more(gap: float) -> float:
    """What `mute` does not take off by itself, of a gap between words."""
    return min(max(gap - MARGIN_S, 0.0), REACH_S - MARGIN_S)


def droppable(words: Sequence[Word], spans: Sequence[Span], timed: bool) -> bool:
    """Whether the times of a final's spans cannot be trusted, so that its audio is not to be kept: some of its words
    have none that were measured (not `timed`), a span too short for what was said in it, or words without an order in
    time. `words`: as they are shown, each masked one in its place."""
    if not spans:
        return False
    if not timed:
        return True
    if any(not (np.isfinite(start) and np.isfinite(end)) or end - start < WORD_S_MIN for start, end in spans):
        return True
    ordered = all(a.start <= b.start + 1e-6 for a, b in pairwise(words))
    return not ordered or any(one.end < one.start for one in words)


def mute(audio: NDArray[np.float32], spans: Sequence[Span], begin: float = 0.0) -> NDArray[np.float32]:
    """A copy of mono audio at RATE, float32 [n], silent in the spans (seconds of the session; `begin`: of its first
    sample) and MARGIN_S around each. It fades out before and in after them, so that nothing clicks."""
    kept = np.array(audio, np.float32)
    margin, fade = round(MARGIN_S * RATE), round(FADE_S * RATE)
    ramp = np.linspace(1.0, 0.0, fade, endpoint=False, dtype=np.float32)
    for start, end in spans:
        first = max(0, int(np.floor((start - begin) * RATE)) - margin)
        last = min(len(kept), int(np.ceil((end - begin) * RATE)) + margin)
        if last <= 0 or first >= len(kept):
            continue
        kept[first:last] = 0.0
        out = kept[max(0, first - fade) : first]
        out *= ramp[fade - len(out) :] if len(out) else 1.0
        back = kept[last : last + fade]
        back *= ramp[::-1][: len(back)]
    return kept
