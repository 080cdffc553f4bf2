"""What items and users there are, told by a back end: attributes, and which visitor turned out to be whom.

Acknowledged when durable; every process that answers takes it in within `poll_s`. The latest of an id counts, whole:
an attribute that is left out is gone. An item with `deleted` true is recommended no more.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from millstream.clock import Clock
from millstream.errors import BadInput, TooLarge
from millstream.guard.pii import Redacted, pseudonym, visitor
from millstream.guard.tenants import inside, person
from millstream.meter import Meter
from millstream.stream.event import encode
from millstream.stream.log import Writer
from millstream.types import Entity, Merge

Value = str | int | float | bool | list[str | int | float] | None
Topic = Literal["users", "items"]
TOPICS = ("users", "items", "identities")


class UpsertLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what a back end may tell of items and users."""

    rows_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000, description="items or users of one request")] = 10_000
    attributes_max: Annotated[int, msgspec.Meta(ge=1, le=10_000, description="attributes of one of them")] = 100
    values_max: Annotated[
        int, msgspec.Meta(ge=1, le=100_000, description="values of an attribute, an embedding's too")
    ] = 2048
    text_bytes_max: Annotated[int, msgspec.Meta(ge=16, le=1_000_000, description="longest text, bytes of UTF-8")] = 4096
    request_bytes_max: Annotated[int, msgspec.Meta(ge=16, le=1 << 30, description="all of one request, bytes")] = (
        8 << 20
    )


class Upserts:
    """`call(topic, rows)` is a future of how many were accepted: all of them or, on a bad one, none. A row: an `id`,
    and attributes beside it. `merge(merges)`: visitors that are users. `tenant`: whose they are, where there are any.
    `writer`: of a topic, asked once for each."""

    def __init__(self, writer: Callable[[str], Writer], clock: Clock, meter: Meter, limits: UpsertLimits) -> None:
        self._limits, self._clock, self._writer = limits, clock, writer
        self._writers: dict[str, Writer] = {}
        help_ = "Users, items and identities made durable."
        self._accepted = {topic: meter.counter("millstream_upserts_total", help_, {"topic": topic}) for topic in TOPICS}

    def call(self, topic: Topic, rows: Sequence[Mapping[str, Value]], tenant: str = "") -> asyncio.Future[int]:
        """BadInput, TooLarge; the future: Full, and what the log says."""
        limits = self._limits
        if len(rows) > limits.rows_max:
            raise TooLarge(f"{topic}: {len(rows)} in one request, at most {limits.rows_max}: split it")
        ready = [self._entity(f"{topic}[{number}]", topic, row, tenant) for number, row in enumerate(rows)]
        return self._append(topic, ready)

    def merge(self, merges: Sequence[Merge], tenant: str = "") -> asyncio.Future[int]:
        """As `call`; from now on what a visitor did is the user's."""
        if len(merges) > self._limits.rows_max:
            raise TooLarge(f"merges: {len(merges)} in one request, at most {self._limits.rows_max}: split it")
        ready = []
        for number, one in enumerate(merges):
            if not one.visitor or not one.user or one.visitor == one.user:
                raise BadInput(f"merges[{number}]: visitor and user are two ids, got {one.visitor!r} and {one.user!r}")
            self._text(f"merges[{number}].visitor", one.visitor)
            self._text(f"merges[{number}].user", one.user)
            when = one.event_time if math.isfinite(one.event_time) and one.event_time > 0 else self._clock.now()
            who, user = person(tenant, visitor(one.visitor)), person(tenant, pseudonym(one.user))
            ready.append((user.encode(), encode(Merge(visitor=who, user=user, event_time=when))))
        return self._append("identities", ready)

    def _append(self, topic: str, ready: list[tuple[bytes, Redacted]]) -> asyncio.Future[int]:
        if not ready:
            raise BadInput(f"{topic}: the list is empty; send at least one")
        if (size := sum(len(value) for _, value in ready)) > self._limits.request_bytes_max:
            raise TooLarge(f"{topic}: {size} bytes, at most {self._limits.request_bytes_max} in one request: split it")
        if (writer := self._writers.get(topic)) is None:
            writer = self._writers[topic] = self._writer(topic)
        durable = [writer.append_durable(key, value) for key, value in ready]
        return asyncio.ensure_future(self._acknowledge(topic, durable))

    async def _acknowledge(self, topic: str, durable: list[asyncio.Future[int]]) -> int:
        await asyncio.gather(*durable)  # not one by one: each failure must be heard
        self._accepted[topic].add(len(durable))
        return len(durable)

    def _entity(self, where: str, topic: Topic, row: Mapping[str, Value], tenant: str) -> tuple[bytes, Redacted]:
        ident = row.get("id")
        if not isinstance(ident, str) or not ident:
            raise BadInput(f"{where}.id: {ident!r} is no id; send a text")
        self._text(f"{where}.id", ident)
        if len(row) - 1 > self._limits.attributes_max:
            raise BadInput(f"{where}: {len(row) - 1} attributes, at most {self._limits.attributes_max}")
        attributes = {}
        for name, value in row.items():
            if name != "id":
                self._value(f"{where}.{name[:80]}", value)
                attributes[name] = int(value) if isinstance(value, bool) else value
        name = person(tenant, pseudonym(ident)) if topic == "users" else inside(tenant, ident)
        return name.encode(), encode(Entity(id=name, attributes=attributes))

    def _value(self, where: str, value: Value) -> None:
        several = isinstance(value, list)
        values = value if isinstance(value, list) else [value]
        if len(values) > self._limits.values_max:
            raise BadInput(f"{where}: {len(values)} values, at most {self._limits.values_max}")
        for one in values:
            if type(one) not in (str, int, float) and (several or not (one is None or type(one) is bool)):
                raise BadInput(f"{where}: {str(one)[:40]} is no value; send a text, a number, or one list of them")
            if isinstance(one, str):
                self._text(where, one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise BadInput(f"{where}: {one} is no finite number; send one, or null where it is missing")

    def _text(self, where: str, text: str) -> None:
        size = len(text.encode(errors="surrogatepass"))
        if size > self._limits.text_bytes_max:
            raise BadInput(f"{where}: {size} bytes of text, at most {self._limits.text_bytes_max}")
