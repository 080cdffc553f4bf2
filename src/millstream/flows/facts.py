"""Facts: rows that a back end writes into the sources of features. Acknowledged when they are durable, as outcomes.

Rules of the room:
- Only sources that are topics of their own are written here: what this service says itself (served, outcomes ...) it
  would otherwise be told by others.
- A row that the features could not take is refused here, where its writer hears of it: a column that the source does
  not declare, a value of another type, a time that is none. One bad row, and none of its call is written.
- Order is kept: rows that one connection sent one after the other stand in the log in that order.
- The gate for what is personal reads every text. A large request passes it beside the event loop, and whoever writes
  into its topic meanwhile goes after it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final

import msgspec

from millstream.clock import Clock
from millstream.errors import BadInput, Busy, NotFound, TooLarge
from millstream.features.define import Source
from millstream.features.registry import Registry
from millstream.guard.pii import Redacted
from millstream.meter import Counter, Meter
from millstream.stream.event import encode
from millstream.stream.log import Writer
from millstream.types import Fact

Row = Mapping[str, str | float | None]

ELSEWHERE: Final = {
    "outcomes": "POST /v1/outcomes writes it",
    "served": "every ranking writes it",
    "users": "`millstream log import --topic users` writes it",
    "items": "`millstream log import --topic items` writes it",
}
"""Topics that a source may read and nobody may write here, and who does."""
RESERVED: Final = frozenset((*ELSEWHERE, "examples", "deltas", "shadow", "policy", "features_read"))
ROWS_HERE_MAX, TEXT_HERE_MAX = 1000, 65_536
"""Rows and bytes of text of a call that passes the gate on the event loop."""
UNDER_WAY_MAX: Final = 1000
"""Calls of a topic that may be under way once one of them is large."""


class FactLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what a back end may write as facts."""

    rows_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000, description="rows of one request")] = 10_000
    ahead_s_max: Annotated[
        float, msgspec.Meta(ge=0.0, description="how far event_time may lie ahead of this machine's clock, seconds")
    ] = 86400.0
    text_bytes_max: Annotated[
        int, msgspec.Meta(ge=16, le=1_000_000, description="longest text of a column, bytes of UTF-8")
    ] = 4096
    request_bytes_max: Annotated[
        int, msgspec.Meta(ge=16, le=1 << 30, description="text of all columns and rows of one request, bytes of UTF-8")
    ] = 1 << 20


class Facts:
    """`call(source, rows)` is a future of how many were accepted: all of them or, on a bad one, none. `registry`: the
    sources, and which of their columns are names; `writer`: of a topic, asked once for each; `bytes_max`: what a call
    may take in the log."""

    def __init__(
        self,
        registry: Registry,
        writer: Callable[[str], Writer],
        clock: Clock,
        meter: Meter,
        limits: FactLimits,
        bytes_max: int,
    ) -> None:
        self._sources = sources = registry.sources
        self._clock, self._limits, self._bytes_max = clock, limits, bytes_max
        topics = {source.log_topic for source in sources.values()} - RESERVED
        self._writers = {topic: writer(topic) for topic in sorted(topics)}
        # What the gate is told; it knows `user` by itself. Sources may share a topic: what one writes, all read.
        self._names = {topic: tuple(sorted(registry.names(topic) - {"user"})) for topic in topics}
        self._turns = {topic: asyncio.Lock() for topic in topics}
        self._under_way = dict.fromkeys(topics, 0)
        self._accepted: dict[str, Counter] = {
            name: meter.counter("millstream_facts_total", "Facts made durable.", {"source": name})
            for name, source in sources.items()
            if source.log_topic in topics
        }

    def call(self, source: str, rows: Sequence[Row]) -> asyncio.Future[int]:
        """Write rows: their columns, and `event_time` in unix seconds (left out or 0: now). BadInput, NotFound,
        TooLarge, Busy; the future fails with Full, and that of a large call or of one behind it with any of them."""
        found = self._find(source)
        topic = found.log_topic
        if len(rows) > self._limits.rows_max:
            raise TooLarge(f"facts: {len(rows)} rows in one request, at most {self._limits.rows_max}: split it")
        text, most = sum(_size(value) for row in rows for value in row.values()), self._limits.request_bytes_max
        if text > most:
            raise TooLarge(f"facts: {text} bytes of text in one request, at most {most} are taken at once: split it")
        now = self._clock.now()
        large = len(rows) > ROWS_HERE_MAX or text > TEXT_HERE_MAX
        if not large and not self._under_way[topic]:
            durable = self._append(topic, self._ready(found, rows, now))
            return asyncio.ensure_future(self._acknowledge(source, durable))
        if self._under_way[topic] >= UNDER_WAY_MAX:
            raise Busy(f"facts: {UNDER_WAY_MAX} requests to write into {topic} wait for a large one; send it again")
        self._under_way[topic] += 1
        accepted = asyncio.ensure_future(self._in_turn(found, rows, now, large))
        accepted.add_done_callback(lambda _: self._done(topic))
        return accepted

    async def _in_turn(self, source: Source, rows: Sequence[Row], now: float, large: bool) -> int:
        """Behind those who called before: tasks begin, and a lock lets them in, in the order in which they came."""
        topic = source.log_topic
        async with self._turns[topic]:
            if large:
                ready = await asyncio.to_thread(self._ready, source, rows, now)
            else:
                ready = self._ready(source, rows, now)
            durable = self._append(topic, ready)
        return await self._acknowledge(source.name, durable)

    def _done(self, topic: str) -> None:
        self._under_way[topic] -= 1

    def _ready(self, source: Source, rows: Sequence[Row], now: float) -> list[Redacted]:
        """Rows as the log takes them. BadInput, TooLarge."""
        ready = [encode(self._fact(source, number, row, now)) for number, row in enumerate(rows)]
        if (size := sum(map(len, ready))) > self._bytes_max:
            raise TooLarge(f"facts: {size} bytes in one request, at most {self._bytes_max} are taken at once: split it")
        return ready

    def _append(self, topic: str, ready: list[Redacted]) -> list[asyncio.Future[int]]:
        writer = self._writers[topic]
        # Without a key: what a row is about stands in its columns, which pass the gate for what is personal.
        return [writer.append_durable(b"", value) for value in ready]

    async def _acknowledge(self, source: str, durable: list[asyncio.Future[int]]) -> int:
        await asyncio.gather(*durable)  # not one by one: each failure must be heard
        self._accepted[source].add(len(durable))
        return len(durable)

    def _find(self, name: str) -> Source:
        source = self._sources.get(name)
        if source is None:
            there = ", ".join(sorted(self._accepted)) or "none"
            raise NotFound(f"no source {name[:80]!r}; those that are written here: {there}")
        if name not in self._accepted:
            topic = source.log_topic
            who = ELSEWHERE.get(topic, "this service writes it itself")
            raise BadInput(f"source {name} reads topic {topic}, which is not written here: {who}")
        return source

    def _fact(self, source: Source, number: int, row: Row, now: float) -> Fact:
        where = f"facts: rows[{number}]"
        values: dict[str, str | float | None] = {}
        for name, value in row.items():
            if name != "event_time":
                self._check(source, name, value, where)
                values[name] = value
        if all(value is None or value == "" for value in values.values()):
            raise BadInput(f"{where} says nothing; send some of {', '.join(source.columns)}")
        when = self._time(row.get("event_time"), now, where)
        return Fact(event_time=when, values=values, names=self._names[source.log_topic])

    def _time(self, given: str | float | None, now: float, where: str) -> float:
        if given is None or (given == 0 and not isinstance(given, bool)):
            return now
        if isinstance(given, (str, bool)) or not 0 <= given < math.inf:  # false for NaN
            raise BadInput(f"{where}.event_time: {given!r} is no time; send unix seconds, or leave it out for now")
        if given > now + self._limits.ahead_s_max:
            raise BadInput(
                f"{where}.event_time: {given:.0f} is {given - now:.0f} s ahead of this server's clock, "
                f"{self._limits.ahead_s_max:.0f} s are allowed; send unix seconds"
            )
        return float(given)

    def _check(self, source: Source, name: str, value: str | float | None, where: str) -> None:
        kind = source.columns.get(name)
        if kind is None:
            raise BadInput(
                f"{where}: source {source.name} has no column {name[:80]!r}; it has {', '.join(source.columns)}, and "
                "event_time (arrival is stamped here)"
            )
        if value is None:
            return
        if (kind == "text") != isinstance(value, str) or isinstance(value, bool):
            what = "text" if kind == "text" else "numbers"
            raise BadInput(f"{where}.{name} is a column of {what}, got {str(value)[:80]!r}; send that, or null")
        if isinstance(value, str):
            size = _size(value)
            if size > self._limits.text_bytes_max:
                raise BadInput(f"{where}.{name}: {size} bytes of text, {self._limits.text_bytes_max} are allowed")
        elif not math.isfinite(value):
            raise BadInput(f"{where}.{name}: {value} is no finite number; send one, or null where it is missing")


def _size(value: str | float | None) -> int:
    """Bytes of a text in UTF-8; 0 of all else."""
    if not isinstance(value, str):
        return 0
    return len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
