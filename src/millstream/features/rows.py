"""What the log's topics say, as events of sources.

    outcomes          user (of the request that it belongs to), item, kind, value, request, id
    users, items      user or item, and every attribute that the source names
    any other topic   facts that a back end wrote; see flows/facts.py

Rules of the room:
- Only the columns that a source declares are taken; what it declares and an event lacks is missing.
- An attribute that is a list is one text, its values joined by "|". A value of another type than its column's is
  missing, and counted: the log has it, so nobody can be told any more.
- Who made a request is remembered for the latest `REQUESTS_MAX` of them; outcomes of older ones have no user.
- The state takes these events as hashes (`events_of`), files keep their text (`Said`): one reading of the topics.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.features.define import Source
from millstream.features.events import SECONDS_MAX, Events, keys_of, micros
from millstream.stream.event import Event
from millstream.types import Entity, Fact, Outcome, Served

REQUESTS_MAX: Final = 200_000
_ROWS: Final[dict[str, type]] = {"outcomes": Outcome, "users": Entity, "items": Entity}  # the others have facts
_SECOND, _VALUES = itemgetter(1), attrgetter("values")
BUILT_IN: Final = {
    "outcomes": {"user": "text", "item": "text", "kind": "text", "value": "number", "request": "text", "id": "text"}
}
"""Topics whose columns are given, with their types."""


class Requests:
    """Who made each of the latest requests."""

    def __init__(self) -> None:
        self.users: OrderedDict[str, str] = OrderedDict()

    def add(self, events: Sequence[Event | None]) -> None:
        """Served events."""
        for event in events:
            if isinstance(event, Served):
                self.users[event.request] = event.user
        while len(self.users) > REQUESTS_MAX:
            self.users.popitem(last=False)

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Drop the requests of users by their names; how many."""
        gone = [request for request, user in self.users.items() if mine(user)]
        for request in gone:
            del self.users[request]
        return len(gone)


class Said(msgspec.Struct, frozen=True):
    """n events of one source as a topic has them. `event_times`, `arrivals` float64 [n], unix seconds; `numbers`
    float64 [n], NaN where missing; `texts` n texts, empty where missing."""

    event_times: NDArray[np.float64]
    arrivals: NDArray[np.float64]
    numbers: dict[str, NDArray[np.float64]]
    texts: dict[str, list[str]]

    @classmethod
    def of(
        cls,
        source: Source,
        topic: str,
        records: Sequence[tuple[float, Event | None]],
        requests: Requests,
        odd: Callable[[], None],
    ) -> Said:
        """What a topic's (arrival, event) say of `source`, in their order; `odd` is told of each value that is not of
        its column's type."""
        taken: Sequence[Any] = records
        if set(map(type, map(_SECOND, records))) != {Fact} or topic in _ROWS:
            taken = [one for one in records if _is_row(one[1], topic)]
        if topic in ("users", "items"):  # which have no time of their own
            times = np.array([arrival for arrival, _ in taken], np.float64)
        else:
            times = np.array([event.event_time or arrival for arrival, event in taken], np.float64)
        good = np.abs(times) < SECONDS_MAX
        if not good.all():  # no time, or one that no clock has: it is in the log, and must not stop what follows it
            for _ in range(len(taken) - int(good.sum())):
                odd()
            taken, times = [one for one, fits in zip(taken, good.tolist(), strict=True) if fits], times[good]
        events = [event for _, event in taken]
        of: Any = _of_outcomes if topic == "outcomes" else _of_entities if topic in ("users", "items") else _of_facts
        numbers, texts = {}, {}
        for name, kind in source.columns.items():
            column = of(name, topic, events, requests)
            if kind == "number":
                plain = set(map(type, column)) <= {float, int}
                if not plain or not np.isfinite(found := np.array(column, np.float64)).all():
                    found = np.array([_number(value, odd) for value in column], np.float64)
                numbers[name] = found
            elif set(map(type, column)) <= {str}:
                texts[name] = column
            else:
                texts[name] = [value if type(value) is str else _text(value, odd) for value in column]
        return cls(times, np.array([arrival for arrival, _ in taken], np.float64), numbers, texts)


def events_of(
    source: Source,
    topic: str,
    records: Sequence[tuple[float, Event | None]],
    requests: Requests,
    odd: Callable[[], None],
) -> Events:
    """Events of `source` out of a topic's (arrival, event); see Said.of."""
    said = Said.of(source, topic, records, requests, odd)
    arrivals = micros(said.arrivals)
    texts = {name: keys_of(column) for name, column in said.texts.items()}
    return Events(np.minimum(micros(said.event_times), arrivals), arrivals, said.numbers, texts)


def _is_row(event: Event | None, topic: str) -> bool:
    return isinstance(event, _ROWS.get(topic, Fact)) and getattr(event, "kind", "") != "watermark"


def _of_outcomes(name: str, topic: str, events: Sequence[Any], requests: Requests) -> list[Any]:
    if name == "user":
        users = requests.users
        return [users.get(event.request) for event in events]
    if name == "id":
        return [event.key() for event in events]
    return [getattr(event, name, None) for event in events]


def _of_entities(name: str, topic: str, events: Sequence[Any], requests: Requests) -> list[Any]:
    if name == topic[:-1]:
        return [event.id for event in events]
    return [event.attributes.get(name) for event in events]


def _of_facts(name: str, topic: str, events: Sequence[Any], requests: Requests) -> list[Any]:
    values = list(map(_VALUES, events))
    try:
        return list(map(itemgetter(name), values))
    except KeyError:  # somebody left it out
        return [one.get(name) for one in values]


def _number(value: Any, odd: Callable[[], None]) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    if value is not None:
        odd()
    return math.nan


def _text(value: Any, odd: Callable[[], None]) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "|".join(str(one) for one in value)
    if value is not None:
        odd()
    return ""
