"""Versions that no route names any more, and how long each stays.

Rules of the room:
- A version goes when its last request and session have ended.
- The one that was live before stays longer, so that taking a promotion back loads nothing: of each model the last. No
  learner stays, which would have to learn what it missed.
- Freeing a large model holds everybody up for some milliseconds: not while another one begins.
"""

from __future__ import annotations

from collections.abc import Callable

from millstream.engine.lane import Lane
from millstream.models.model import Learner

LEAVE_S = 5.0


class Retired:
    """The retired lanes of an engine; `free(lane)` lets go of one that nobody needs. `keep_s`: how long the version
    that was live before stays. Times are seconds of `now`."""

    def __init__(self, keep_s: float, now: Callable[[], float], free: Callable[[Lane], None]) -> None:
        self._keep_s, self._now, self._free = keep_s, now, free
        self._until: dict[Lane, float] = {}
        self._last: dict[str, Lane] = {}  # of each model, the one that was live before

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, lane: Lane, live: bool) -> None:
        """No route names it any more; it was `live` until now."""
        now = self._now()
        self._until[lane] = now
        if live and self._keep_s and not isinstance(lane.loaded, Learner):
            if (before := self._last.get(lane.model)) is not None:
                self._until[before] = min(self._until[before], now + LEAVE_S)
            self._last[lane.model], self._until[lane] = lane, now + self._keep_s
        self.look(lane)

    def let_go(self, model: str) -> None:
        """Keep no version of this model for a roll back."""
        if (lane := self._last.pop(model, None)) is not None:
            self._until[lane] = self._now()
            self.look(lane)

    def revive(self, model: str, version: str, stamp: object) -> Lane | None:
        """A version of these very files that is still here, and is named again."""
        for lane in self._until:
            if (lane.model, lane.version, lane.stamp) == (model, version, stamp):
                self._forget(lane)
                return lane
        return None

    def look(self, lane: Lane) -> None:
        """Something of a lane has ended: if nothing needs it any more, it goes."""
        if lane in self._until and lane.idle() and self._until[lane] <= self._now():
            self._forget(lane)
            self._free(lane)

    def look_at_all(self) -> None:
        """Time has passed."""
        for lane in list(self._until):
            self.look(lane)

    def _forget(self, lane: Lane) -> None:
        del self._until[lane]
        if self._last.get(lane.model) is lane:
            del self._last[lane.model]
