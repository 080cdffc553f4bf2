"""What a role does of the orders in topic `forget`, which `millstream forget` writes (forget.py).

    forget/0     Roll, Forget       by the command, one at a time
    forget/1     Forgot             by `learn`
    forget/2+P   Forgot             by the process that serves with partition P
    forget/S+I   Forgot             by shard I of recall, S being SHARD

Rules of the room:
- A role does an order once it can, and says so with its process id; then it looks at the next one.
- An order older than FRESH_S is let alone: its command was killed or gave up, and whoever gave it gives it again.
- Nothing here stops an answer: what fails is said once and tried again with the next look.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from millstream.clock import Clock
from millstream.errors import Error
from millstream.meter import Meter
from millstream.stream import LenientReader, Log, Writer, encode
from millstream.stream.forget import TOPIC
from millstream.types import Forget, Forgot, Roll

FRESH_S: Final = 3600.0
LEARN: Final = 1
SERVE: Final = 2  # and the partition of the process
SHARD: Final = 100_000  # and the number of the shard
logger = logging.getLogger("millstream")


class Orders:
    """Does them for one role. `partition`: its own of the topic; `forget`: removes what the role has, and says how much
    of what; None: not yet."""

    def __init__(
        self, log: Log, partition: int, clock: Clock, meter: Meter, forget: Callable[[Forget], dict[str, int] | None]
    ) -> None:
        self._log, self._partition, self._clock, self._forget = log, partition, clock, forget
        self._reader = LenientReader(log.reader(TOPIC), meter)
        self._at = 0
        self._writer: Writer | None = None
        self._rolling: Future[None] | None = None
        self._said = ""

    def poll(self) -> None:
        """Do what was ordered since the last look, as far as that can be done now."""
        try:
            for offset, event in self._reader.events(0, self._at):
                if isinstance(event, (Roll, Forget)) and self._clock.now() - event.at < FRESH_S:
                    counts = self._roll() if isinstance(event, Roll) else self._forget(event)
                    if counts is None:
                        return
                    self._answer(Forgot(of=offset, by=os.getpid(), counts=counts))
                self._at = offset + 1
        except Error as error:
            if str(error) != self._said:
                logger.error("an order to forget waits: %s", error)
            self._said = str(error)

    def _roll(self) -> dict[str, int] | None:
        """Begin new segments, beside whatever else this process does: it waits for the disk."""
        if self._rolling is None:
            thread = ThreadPoolExecutor(1, "roll")
            self._rolling = thread.submit(self._log.roll)
            thread.shutdown(wait=False)
        if not self._rolling.done():
            return None
        rolling, self._rolling = self._rolling, None
        rolling.result()
        return {}

    def _answer(self, done: Forgot) -> None:
        if self._writer is None:
            self._writer = self._log.writer(TOPIC, self._partition)
        self._writer.append(b"", encode(done))
