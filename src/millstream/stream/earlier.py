"""What an earlier release saved of the join, as this one has it: a restart after an upgrade goes on where it stood.

Up to 0.2 there was one task without a name, whose kinds stood in `positive`, and windows by item. An example made then
is taken to be positive here: what was learnt of it is not known, and so it is never corrected.
"""

from __future__ import annotations

import msgspec

from millstream.stream.event import decode
from millstream.stream.log import Log
from millstream.stream.remembered import Item, Remembered
from millstream.stream.tasks import Replayed, Task
from millstream.types import Served


class _Settings(msgspec.Struct):
    """`[join]` before there were tasks."""

    window_s: float
    positive: dict[str, float]
    ahead_s: float
    keep_s: float
    idle_s: float
    requests_max: int
    feedback: tuple[str, ...]


class _Window(msgspec.Struct):
    shown: bool
    event_time: float
    arrival: float
    keys: list[str]
    positive: bool


class _Request(msgspec.Struct):
    partition: int
    offset: int
    windows: dict[str, _Window]
    made: set[str]
    keys: set[str]


class _State(msgspec.Struct):
    event_time: float
    heard: float
    left_over: bool
    requests: list[_Request]


def configuration(data: bytes) -> bytes:
    """A join's configuration, in today's form."""
    if "positive" not in msgspec.msgpack.decode(data):
        return data
    old = msgspec.msgpack.decode(data, type=_Settings)
    settings = Replayed(
        tasks={"like": Task(kinds=old.positive, window_s=old.window_s)}, ahead_s=old.ahead_s, keep_s=old.keep_s,
        idle_s=old.idle_s, requests_max=old.requests_max, feedback=old.feedback,
    )  # fmt: skip
    return msgspec.msgpack.encode(settings)


def state(data: bytes, log: Log) -> bytes:
    """A join's state, in today's form. What was forgotten meanwhile is left out."""
    if "requests" not in (found := msgspec.msgpack.decode(data)):
        return data
    old = msgspec.convert(found, _State)
    reader, requests = log.reader("served"), []
    for one in old.requests:
        served = decode(reader.read(one.partition, one.offset, 1)[0].value)
        if not isinstance(served, Served):
            continue
        items = {
            name: Item(
                served.candidates.index(name), window.shown, window.event_time, window.arrival, 1,
                positive=int(window.positive), keys=window.keys, waits=[1] * len(window.keys),
            )
            for name, window in one.windows.items()
        }  # fmt: skip
        made = dict.fromkeys(one.made, 1)
        requests.append(
            Remembered(
                served.request,
                one.partition,
                one.offset,
                len(served.candidates),
                served.event_time,
                items=items,
                made=made,
                keys=one.keys,
            )
        )
        requests[-1].freeze()
    now = {
        "event_time": old.event_time,
        "heard": old.heard,
        "left_over": old.left_over,
        "late": {},
        "remembered": requests,
    }
    return msgspec.msgpack.encode(now)
