"""Work beside the event loop: what is put there is taken by a thread, in batches.

Rules of the room:
- Putting costs the loop an append: no lock that is waited for, no system call, no waking up. The thread looks every
  LOOK_S.
- What waits is bounded. More than that is dropped and counted: an answer never waits for a disk or a network.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from millstream.meter import Counter

T = TypeVar("T")

logger = logging.getLogger(__name__)

LOOK_S = 0.2
BATCH_MAX = 512


class Aside(Generic[T]):
    """A bounded queue and its thread, `name`. `take` gets what has gathered; `lost` counts what found no room."""

    def __init__(self, name: str, take: Callable[[list[T]], None], waiting_max: int, lost: Counter) -> None:
        self._take, self._most, self._lost = take, waiting_max, lost
        self._waiting: deque[T] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to take."""
        self._thread.start()

    def put(self, item: T) -> None:
        """Have it taken, or drop it where too much waits already."""
        if len(self._waiting) >= self._most:
            self._lost.add()
        else:
            self._waiting.append(item)

    def stop(self, within_s: float) -> None:
        """Take what waits, and end; what a disk or a network does not take within that time is given up. Blocks."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(within_s)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(LOOK_S)
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
                try:
                    self._take(batch)
                except Exception:
                    logger.exception("%d of what goes beside the loop are lost", len(batch))
