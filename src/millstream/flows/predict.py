"""Plain inference: named arrays in, named arrays out.

With a log, one served event a request is written before the answer leaves; it holds who answered, not the arrays.
Without one (`millstream serve PATH`) the engine's own future goes to the border: nothing stands between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from millstream.clock import Clock
from millstream.types import Output, Request, Served

if TYPE_CHECKING:  # serving models alone has no log to load
    from millstream.flows.served import ServedLog

Submit = Callable[[Request], "asyncio.Future[Output]"]


class Predict:
    """`call(request)` is a future of the engine's Output. `says_whose`: the log says for whom (`Request.key`); not
    where there are tenants, as a name that is of none of them is nobody's whom one could forget."""

    says_whose = True

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
            user=request.key if self.says_whose else "",
            candidates=[],
            event_time=self._clock.now(),
        )
        await served.append(event)
        return output
