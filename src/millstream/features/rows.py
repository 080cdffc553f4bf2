"""What the log's topics say, as events of sources.

    outcomes          user (of the request that it belongs to), item, kind, value, request, id
    users, items      user or item, and every attribute that the source names
    any other topic   facts that a back end wrote; see flows/facts.py

Rules of the room:
- Only the columns that a source declares are taken; what it declares and an event lacks is missing.
- An attribute that is a list is one text, its values joined by "|". A value of another type than its column's is
  missing, and counted: the log has it, so nobody can be told any more.
- Who made a request is remembered for the latest `REQUESTS_MAX` of them; outcomes of older ones have no user.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from millstream.features.define import Source
from millstream.features.events import Events, keys_of, micros
from millstream.stream.event import Event
from millstream.types import Entity, Fact, Outcome, Served

REQUESTS_MAX: Final = 200_000
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


def events_of(
    source: Source,
    topic: str,
    records: Sequence[tuple[float, Event | None]],
    requests: Requests,
    odd: Callable[[], None],
) -> Events:
    """Events of `source` out of a topic's (arrival, event), in their order; `odd` is told of each value that is not of
    its column's type."""
    taken = [(arrival, event) for arrival, event in records if _is_row(event)]
    of: Any = _of_outcomes if topic == "outcomes" else _of_entities if topic in ("users", "items") else _of_facts
    numbers, texts = {}, {}
    for name, kind in source.columns.items():
        column = of(name, topic, [event for _, event in taken], requests)
        if kind == "number":
            numbers[name] = np.array([_number(value, odd) for value in column], np.float64)
        else:
            texts[name] = keys_of([_text(value, odd) for value in column])
    arrivals = micros(np.array([arrival for arrival, _ in taken], np.float64))
    times = [getattr(event, "event_time", 0.0) or arrival for arrival, event in taken]
    return Events(np.minimum(micros(np.array(times, np.float64)), arrivals), arrivals, numbers, texts)


def _is_row(event: Event | None) -> bool:
    return isinstance(event, (Fact, Entity)) or (isinstance(event, Outcome) and event.kind != "watermark")


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
    return [event.values.get(name) for event in events]


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
