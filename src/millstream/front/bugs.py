"""What a border says of an error that no caller can mend, and what the log gets of it.

Rules of the room:
- A model's failure is logged by the engine, once: not again here for each of its requests.
- A bug of ours is logged whole where it first shows, then at most once a minute for each place, with how often it came.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable

from millstream import errors

AGAIN_S = 60.0
PLACES_MAX = 256


class Bugs:
    """Where bugs have shown. `now`: seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._places: dict[object, tuple[float, int]] = {}  # place -> when it was logged, and how often it came since

    def say(self, log: logging.Logger, error: Exception, what: str) -> None:
        """Log a bug, unless its place was logged within the last minute: then count it."""
        now, place = self._now(), _place(error)
        when, more = self._places.get(place, (now - AGAIN_S, 0))
        if now - when < AGAIN_S:
            self._places[place] = when, more + 1
            return
        if len(self._places) >= PLACES_MAX:
            self._places.clear()
        self._places[place] = now, 0
        log.error("%s%s", what, f" ({more} more like it since it was said last)" if more else "", exc_info=error)


def _place(error: Exception) -> object:
    frames = traceback.extract_tb(error.__traceback__, -1) if error.__traceback__ else []
    return type(error), *((frame.filename, frame.lineno) for frame in frames)


bugs = Bugs()


def told(log: logging.Logger, error: Exception, what: str) -> bool:
    """Whether the caller is told what `error` says. If not, it is in the log: here, as `what` failed, or from the
    engine."""
    if isinstance(error, errors.Failed):
        return False
    if isinstance(error, errors.Error) and type(error) is not errors.Error:
        return True
    bugs.say(log, error, what)
    return False
