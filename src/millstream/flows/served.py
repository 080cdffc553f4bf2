"""Topic `served`: who answered what, written before the answer leaves."""

from __future__ import annotations

import asyncio
import logging

from millstream.errors import Busy, Full
from millstream.meter import Meter
from millstream.stream.event import encode
from millstream.stream.log import Writer
from millstream.types import Served

FAR_S = 1.0  # an answer waits no longer for a log that is on other machines
logger = logging.getLogger("millstream.flows")


class ServedLog:
    """Topic `served`, written before an answer leaves. A full disk, or a cluster that is away, does not stop answers:
    the event is missing then, which is counted and said, and outcomes of that request will be set aside as unknown."""

    def __init__(self, writer: Writer, meter: Meter) -> None:
        self._writer = writer
        self._missing = meter.counter("millstream_served_missing_total", "Answers given without a served event.")

    async def append(self, event: Served) -> None:
        """Write the event; on return it survives a kill -9 of this process. Never raises for a full disk."""
        value = encode(event)  # before the key: it says what is wrong with a text
        key = event.request.encode()
        try:
            if not self._writer.far:
                self._writer.append(key, value)
            elif self._writer.away:
                self._miss("the log is away")
            else:
                await asyncio.wait_for(self._writer.append_durable(key, value), FAR_S)
        except (Full, Busy) as error:
            self._miss(str(error))
        except TimeoutError:
            self._miss(f"the log has not acknowledged one within {FAR_S:.0f} s")

    def _miss(self, why: str) -> None:
        if not self._missing.value:
            logger.error("answers go out without a served event: %s", why)
        self._missing.add()
