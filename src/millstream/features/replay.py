"""Feature sets as of times in the past, out of the log: what arrived before a time, read as of that time.

One way to compute it for all who look back: imports of history, `features verify`, tests. It is the state that serving
keeps, replayed; training frames do the same over files.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from numpy.typing import NDArray

from millstream.features.define import Source
from millstream.features.events import Copies, Events, Times, keys_of
from millstream.features.matrix import Columns
from millstream.features.rows import Requests, events_of
from millstream.features.sets import FeatureSet
from millstream.features.state import State
from millstream.features.tiles import FOREVER
from millstream.stream.event import Event, decode
from millstream.stream.log import Log

CHUNK: Final = 2000
Came = Iterator[tuple[float, Event | None]]
"""(arrival, event), in the order in which they came."""


def matrix(
    features: FeatureSet, events: Mapping[str, Events], names: Mapping[str, Sequence[str]], known: Times,
    at: Times | None = None, request: Mapping[str, Any] | None = None,
) -> NDArray[Any]:  # fmt: skip
    """[n, columns] of n rows by what had arrived before `known` (microseconds), read as of `at` (None: then). `events`:
    by source, all that it has had, each once, in the order in which they came; `names`: n of each kind of entity."""
    keys = {kind: keys_of(names[kind]) for kind in features.entities}
    values = State(features).replayed(events, keys, known, known if at is None else at)
    return Columns(features).make(values, request or {}, len(known))


def events_in(source: Source, log: Log, before: Events | None = None) -> Events:
    """All that a source has had by the log, in the order in which it came, each event once. `before`: what came before
    the log begins."""
    topic = source.log_topic
    served = whole(log, "served") if topic == "outcomes" else iter(())
    return events_from(source, served, whole(log, topic), before)


def events_from(source: Source, served: Came, came: Came, before: Events | None = None) -> Events:
    """As `events_in`, of what was served and what came on the source's topic."""
    topic, requests = source.log_topic, Requests()
    waits = next(served, None)
    found: list[Events] = [] if before is None else [before]
    while chunk := list(islice(came, CHUNK)):
        some: list[Event | None] = []
        while waits is not None and waits[0] <= chunk[-1][0]:  # as pipeline.py reads: nobody is forgotten too early
            some.append(waits[1])
            waits = next(served, None)
        requests.add(some)
        found.append(events_of(source, topic, chunk, requests, lambda: None))
    every = events_of(source, topic, [], requests, lambda: None)
    begins = min((int(one.arrivals[0]) for one in found[1 if before is not None else 0 :] if len(one)), default=FOREVER)
    for at, one in enumerate(found):
        every = every.joined(one.take(one.arrivals < begins) if before is not None and at == 0 else one)
    new = Copies(source).new(every)
    return every if new is None else every.take(new)


def whole(log: Log, topic: str) -> Came:
    """All of a topic, its partitions merged by arrival. Damage: Corrupt."""
    reader = log.reader(topic)
    partitions = [log.reader(topic).records(partition) for partition in reader.partitions()]
    for record in heapq.merge(*partitions, key=lambda record: (record.arrival, record.partition, record.offset)):
        yield record.arrival, decode(record.value)
