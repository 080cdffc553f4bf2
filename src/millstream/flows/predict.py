"""Plain inference: named arrays in, named arrays out.

With a log, one served event a request is written before the answer leaves; it holds who answered, not the arrays.
Without one (`millstream serve PATH`) the engine's own future goes to the border: nothing stands between them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from millstream.clock import Clock
from millstream.errors import Full
from millstream.meter import Meter
from millstream.stream.event import encode
from millstream.stream.log import Writer
from millstream.types import Output, Request, Served

Submit = Callable[[Request], "asyncio.Future[Output]"]
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


class Predict:
    """`call(request)` is a future of the engine's Output."""

    def __init__(self, submit: Submit, clock: Clock, served: ServedLog | None = None) -> None:
        self._submit, self._clock, self._served = submit, clock, served

    def call(self, request: Request) -> asyncio.Future[Output]:
        """The engine's answer, logged before the future is done. Raises what `submit` raises at once."""
        if self._served is None:
            return self._submit(request)
        return asyncio.ensure_future(self._logged(request, self._served))

    async def _logged(self, request: Request, served: ServedLog) -> Output:
        output = await self._submit(request)
        event = Served(
            request=request.id,
            model=output.model,
            version=output.version,
            policy=output.policy,
            arm=output.arm,
            user=request.key,
            candidates=[],
            event_time=self._clock.now(),
        )
        served.append(event)
        return output
