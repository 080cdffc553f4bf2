"""A session's audio as far as it is needed, and when it came."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from millstream.flows.speech.settings import RATE

Samples = NDArray[np.float32]


class Ribbon:
    """The session's audio from some sample on."""

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self._kept = np.zeros(4 * RATE, np.float32)
        self._count = 0

    @property
    def end(self) -> int:
        """The sample behind the last."""
        return self.start + self._count

    def append(self, sound: Samples) -> None:
        """More of it."""
        if self._count + len(sound) > len(self._kept):
            grown = np.zeros(2 * (self._count + len(sound)), np.float32)
            grown[: self._count] = self._kept[: self._count]
            self._kept = grown
        self._kept[self._count : self._count + len(sound)] = sound
        self._count += len(sound)

    def cut(self, start: int, end: int) -> Samples:
        """A copy of what is there between two samples; silence where nothing is."""
        found = np.zeros(max(end - start, 0), np.float32)
        first, last = max(start, self.start), min(end, self.end)
        if first < last:
            found[first - start : last - start] = self._kept[first - self.start : last - self.start]
        return found

    def forget(self, before: int) -> None:
        """Keep nothing before that sample; done when it is worth it."""
        gone = min(before - self.start, self._count)
        if gone < 2 * RATE:
            return
        self._kept[: self._count - gone] = self._kept[gone : self._count]
        self._count -= gone
        self.start += gone
        if len(self._kept) > 16 * RATE and self._count < len(self._kept) // 4:
            self._kept = self._kept[: len(self._kept) // 2].copy()


class Arrivals:
    """When which of the session's samples came."""

    def __init__(self) -> None:
        self._came: deque[tuple[int, float]] = deque(maxlen=4096)
        self._least = float("inf")

    def came(self, upto: int, at: float) -> None:
        """Samples up to here came now."""
        self._came.append((upto, at))
        self._least = min(self._least, at - upto / RATE)

    def when(self, sample: int, at: float) -> float:
        """When this one came; `at` where that is not known."""
        return next((came for upto, came in self._came if upto >= sample), at)

    def late_s(self, sample: int) -> float:
        """How much later it came, by the pace of speech, than the one that was soonest."""
        return (
            max(0.0, self.when(sample, self._least + sample / RATE) - sample / RATE - self._least)
            if self._came
            else 0.0
        )

    def forget(self, before: int) -> None:
        """Nobody asks for samples before this one."""
        while len(self._came) > 1 and self._came[0][0] < before:
            self._came.popleft()
