"""Topic `served`: who answered what, written before the answer leaves."""

from __future__ import annotations

import logging

from millstream.errors import Full
from millstream.meter import Meter
from millstream.stream.event import encode
from millstream.stream.log import Writer
from millstream.types import Served

logger = logging.getLogger("millstream.flows")


class ServedLog:
    """Topic `served`, written before an answer leaves. A full disk does not stop answers: the event is missing then,
    which is counted and said, and outcomes of that request will be set aside as unknown."""

    def __init__(self, writer: Writer, meter: Meter) -> None:
        self._writer = writer
        self._missing = meter.counter("millstream_served_missing_total", "Answers given without a served event.")

    def append(self, event: Served) -> None:
        """Write the event; on return it survives a kill -9 of this process. Never raises for a full disk."""
        try:
            value = encode(event)
            self._writer.append(event.request.encode(), value)
        except Full as error:
            if not self._missing.value:
                logger.error("answers go out without a served event: %s", error)
            self._missing.add()
