"""Which examples a learner may be judged by: those of traffic that runs for long enough.

A positive comes at once and a negative a label wait later. Where traffic begins, or comes back, a learner is therefore
told positives alone, for a whole label wait; its weights lean that way, and the negatives that follow look like wrong
labels to it. Nobody did anything wrong, and it finds back by itself as soon as it is told both.

Rules of the room:
- Traffic begins where nothing was shown for a quarter of a label wait. It is settled two label waits later: after one
  there are negatives, after another the learner has been told as much of them as of positives.
- Before that examples are not judged, but for a few: where little is shown within a label wait, there are such gaps all
  day, and they mean nothing.
- An item was shown when its client says, but no later than its label was known by the log's clock, less what that
  waited: a click comes some time after the showing, and some clients' clocks are ahead.
- What is settled follows from the order of the examples alone, not from how they were cut.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream.errors import Corrupt

WAITS: Final = 2  # label waits until traffic is settled
GAPS: Final = 4  # in a label wait: nothing shown for so long is a gap


class Settled:
    """Feed it every example; it says which are to be judged. `wait_s`: the label wait, 0: all are; `few`: examples of
    an unsettled time that are judged all the same."""

    def __init__(self, wait_s: float, few: int) -> None:
        self._wait_s, self._few = wait_s, few
        self._begun = self._shown = float("-inf")
        self._unsettled = 0

    def of(
        self, known: NDArray[np.float64], waited: NDArray[np.float64], times: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Which of n examples, in order: `known` [n], when each label was, unix seconds; `waited` [n], how long;
        `times` [n], when clients say that the items were shown."""
        if not self._wait_s or not len(known):
            return np.ones(len(known), np.bool_)
        shown = np.minimum(known - waited, times)
        last = np.maximum.accumulate(np.append(self._shown, shown))
        begins = shown >= last[:-1] + self._wait_s / GAPS
        which = np.cumsum(begins)  # 0: what ran before
        begun = np.append(self._begun, shown[begins])[which]
        early = known < begun + WAITS * self._wait_s
        so_far = np.cumsum(early)
        before = np.append(-self._unsettled, (so_far - early)[begins])[which]  # early ones of times before its own
        self._begun, self._shown, self._unsettled = float(begun[-1]), float(last[-1]), int((so_far - before)[-1])
        settled: NDArray[np.bool_] = ~early | (so_far - before <= self._few)
        return settled

    def dump(self) -> str:
        """All of it as text, for the metadata of a base."""
        return f"{self._begun!r} {self._shown!r} {self._unsettled}"

    def restore(self, text: str) -> None:
        """What `dump` gave. Corrupt."""
        try:
            begun, shown, unsettled = text.split(" ")
            self._begun, self._shown, self._unsettled = float(begun), float(shown), int(unsettled)
        except ValueError:
            raise Corrupt(f"a base says {text!r} of when traffic began; make another base live") from None
