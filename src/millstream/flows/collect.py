"""Outcomes: what people did. An outcome is acknowledged only when it is durable (it survives power loss).

Order is kept: outcomes that one connection sent one after the other stand in the log in that order.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter as Tally
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from millstream.clock import Clock
from millstream.errors import BadInput
from millstream.guard.tenants import inside
from millstream.meter import Counter, Meter
from millstream.stream.event import encode
from millstream.stream.log import Writer
from millstream.types import Outcome

KINDS_MAX: Final = 32
KIND_CHARS: Final = 64
"""So many kinds of outcomes are counted apart, by so much of their names; the others together."""


class CollectLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what a client may send as outcomes."""

    ahead_s_max: Annotated[
        float, msgspec.Meta(ge=0.0, description="how far event_time may lie ahead of this machine's clock, seconds")
    ] = 86400.0
    name_bytes_max: Annotated[
        int, msgspec.Meta(ge=16, le=65536, description="longest id, request, item or kind, bytes of UTF-8")
    ] = 512
    text_chars_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000, description="longest comment, characters")] = 4096


def of_tenant(outcome: Outcome, tenant: str) -> Outcome:
    """An outcome that a tenant tells as the log has it: it can be about no other's request."""
    return Outcome(
        request=inside(tenant, outcome.request), item=inside(tenant, outcome.item), kind=outcome.kind,
        value=outcome.value, event_time=outcome.event_time, id=inside(tenant, outcome.id), text=outcome.text,
    )  # fmt: skip


class Collect:
    """`call(outcomes)` is a future of how many were accepted: all of them or, on a bad one, none."""

    def __init__(self, outcomes: Writer, clock: Clock, meter: Meter, limits: CollectLimits) -> None:
        self._writer, self._clock, self._limits = outcomes, clock, limits
        self._accepted = meter.counter("millstream_outcomes_total", "Outcomes made durable.")
        self._meter, self._kinds = meter, dict[str, Counter]()

    def call(self, outcomes: Sequence[Outcome]) -> asyncio.Future[int]:
        now = self._clock.now()
        outcomes = [o if o.event_time else msgspec.structs.replace(o, event_time=now) for o in outcomes]
        for number, outcome in enumerate(outcomes):
            self._check(number, outcome, now + self._limits.ahead_s_max)
        ready = [(encode(o), o.request.encode()) for o in outcomes]  # all of them, before the first is written
        durable = [self._writer.append_durable(key, value) for value, key in ready]
        return asyncio.ensure_future(self._acknowledge(durable, [o.kind for o in outcomes]))

    async def _acknowledge(self, durable: list[asyncio.Future[int]], kinds: list[str]) -> int:
        await asyncio.gather(*durable)  # not one by one: each failure must be heard
        self._accepted.add(len(durable))
        for kind, count in Tally(kinds).items():
            self._of_kind(kind).add(count)
        return len(durable)

    def _of_kind(self, kind: str) -> Counter:
        if (counter := self._kinds.get(kind)) is None:
            if len(self._kinds) >= KINDS_MAX:
                kind = "other"
            labels = {"kind": kind[:KIND_CHARS]}
            counter = self._kinds[kind] = self._meter.counter(
                "millstream_outcome_kinds_total", "Outcomes made durable, by kind.", labels
            )
        return counter

    def _check(self, number: int, outcome: Outcome, latest: float) -> None:
        where = f"outcome {number}"
        if not math.isfinite(outcome.event_time) or not math.isfinite(outcome.value):
            raise BadInput(
                f"{where}: event_time and value must be finite numbers, got {outcome.event_time} and {outcome.value}"
            )
        if outcome.event_time < 0.0:
            raise BadInput(
                f"{where}: event_time {outcome.event_time:g} lies before 1970; send unix seconds, or none for now"
            )
        if outcome.event_time > latest:
            raise BadInput(
                f"{where}: event_time {outcome.event_time:.0f} is {outcome.event_time - self._clock.now():.0f} s ahead "
                f"of this server's clock, {self._limits.ahead_s_max:.0f} s are allowed; send unix seconds"
            )
        if not outcome.kind:
            raise BadInput(f'{where}: kind is empty; it names what happened, such as "impression" or "like"')
        if outcome.kind != "watermark" and not (outcome.request and outcome.item):
            raise BadInput(f"{where}: request and item say what the outcome belongs to; one of them is empty")
        if len(outcome.text) > self._limits.text_chars_max:
            raise BadInput(
                f"{where}: text has {len(outcome.text)} characters, {self._limits.text_chars_max} are allowed"
            )
        for name in ("id", "request", "item", "kind"):
            size = len(getattr(outcome, name).encode(errors="surrogatepass"))
            if size > self._limits.name_bytes_max:
                raise BadInput(f"{where}: {name} has {size} bytes, {self._limits.name_bytes_max} are allowed")
