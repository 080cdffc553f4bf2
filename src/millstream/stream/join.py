"""Join what was served with what people did, into examples: one shown item, one label.

The rules, in the order they are applied to an outcome:
1. Time is event time. The watermark is the latest event time seen in outcomes, none counting as later than `ahead_s`
   after its arrival; when no outcome has come for `idle_s` it moves on by itself, so the last window before a quiet
   night closes too.
2. An outcome is set aside, with its cause, when its request is unknown or expired, its item was no candidate, its kind
   has no meaning here, its item already gave an example (late) or its key was seen before (duplicate).
3. An impression opens the item's window [event_time, event_time + window_s). **Only a shown item becomes an example.**
4. A positive (a feedback kind of `positive` whose value reaches its threshold) makes the example at once, label 1.
   A feedback below the threshold waits with the impression: the person may still change their mind.
5. When the watermark reaches the window's end without a positive, the example is made with label 0.
6. Feedback that comes before its impression is held for one window, then set aside (no_impression).
7. A request is remembered for `keep_s` of event time, `requests_max` of them at most; what is still open in a request
   that must go is set aside (expired). A served event without candidates (plain inference) is not remembered.
8. A step makes at most CLOSED_MAX examples from closing windows, so that it fits a frame; the rest come with the next.

Every acknowledged outcome therefore ends in exactly one place: an example's `outcomes`, or one SetAside.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec

from millstream.errors import Corrupt
from millstream.stream.event import Event, decode
from millstream.stream.log import Log, Record
from millstream.types import Example, Forgotten, Outcome, Served, SetAside

Emitted = Iterator[tuple[str, Event]]


class JoinSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How outcomes become examples."""

    window_s: Annotated[
        float, msgspec.Meta(ge=0.0, le=30 * 86400.0, description="event time a negative waits for a positive, seconds")
    ] = 30.0
    ahead_s: Annotated[
        float,
        msgspec.Meta(
            ge=0.0, le=3600.0, description="how far a client's clock may run ahead and still move time, seconds"
        ),
    ] = 5.0
    keep_s: Annotated[
        float, msgspec.Meta(ge=1.0, le=60 * 86400.0, description="event time a request is remembered, seconds")
    ] = 3600.0
    idle_s: Annotated[
        float, msgspec.Meta(ge=0.1, le=3600.0, description="silence after which time moves with the clock, seconds")
    ] = 5.0
    requests_max: Annotated[
        int, msgspec.Meta(ge=1, le=10_000_000, description="requests remembered at most; the oldest go first")
    ] = 200_000
    positive: Annotated[
        dict[str, float], msgspec.Meta(description="feedback kind = value from which it is a positive")
    ] = msgspec.field(default_factory=lambda: {"like": 1.0})
    feedback: Annotated[
        tuple[str, ...], msgspec.Meta(description="other feedback kinds that are known but never a positive")
    ] = ("click", "dwell", "skip", "rating", "comment")


CLOSED_MAX = 5000


class _Window(msgspec.Struct):
    """An item that waits: for a positive (shown) or for its impression (not shown)."""

    shown: bool
    event_time: float
    arrival: float
    keys: list[str]
    positive: bool = False


class _Open(msgspec.Struct):
    """A remembered request. `partition`, `offset`: where its served event stands in the log."""

    served: Served
    partition: int
    offset: int
    windows: dict[str, _Window]
    made: set[str]
    keys: set[str]


class _Saved(msgspec.Struct):
    """A remembered request in a snapshot: the served event itself stays in the log."""

    partition: int
    offset: int
    windows: dict[str, _Window]
    made: set[str]
    keys: set[str]


class _State(msgspec.Struct):
    event_time: float
    heard: float
    left_over: bool
    requests: list[_Saved]


class Join:
    """The operator. Inputs: topics `served`, then `outcomes`. Outputs: Example | SetAside, keyed by request."""

    inputs = ("served", "outcomes")

    def __init__(self, settings: JoinSettings) -> None:
        self._settings = settings
        self._event_time = float("-inf")
        self._heard = float("-inf")
        self._hearing = False
        self._closed, self._left_over = 0, False
        self._requests: OrderedDict[str, _Open] = OrderedDict()
        self._closing: list[tuple[float, str, str]] = []

    def on_item(self, topic: str, record: Record, event: Event) -> Emitted:
        if isinstance(event, Served):
            yield from self._on_served(record, event)
        elif isinstance(event, Outcome):
            yield from self._on_outcome(record.arrival, event)
        elif not isinstance(event, Forgotten):
            raise Corrupt(f"topic {topic} offset {record.offset}: a {type(event).__name__} does not belong here")

    def on_time(self, now: float, steady: float) -> Emitted:
        if self._hearing:
            self._heard, self._hearing = steady, False
        idle = steady - self._heard - self._settings.idle_s
        if (idle > 0 and self._event_time > float("-inf")) or self._left_over:
            yield from self._close(self._event_time + max(0.0, idle), now)
        self._closed = 0

    def pending(self) -> bool:
        return self._left_over

    def wake_at(self) -> float | None:
        if self._left_over:
            return float("-inf")
        if not self._closing:
            return None
        return self._heard + self._settings.idle_s + max(0.0, self._closing[0][0] - self._event_time)

    def needed(self, topic: str) -> dict[int, int]:
        if topic != "served":
            return {}
        first: dict[int, int] = {}
        for request in self._requests.values():
            first.setdefault(request.partition, request.offset)
        return first

    def _on_served(self, record: Record, served: Served) -> Emitted:
        # of a retry that was scored again, the first answer logged stands
        if served.request in self._requests or not served.candidates:
            return
        self._requests[served.request] = _Open(served, record.partition, record.offset, {}, set(), set())
        while len(self._requests) > self._settings.requests_max:
            yield from self._forget()

    def _on_outcome(self, arrival: float, outcome: Outcome) -> Emitted:
        self._hearing = True
        if outcome.kind != "watermark":
            yield from self._place(arrival, outcome)
        event_time = min(outcome.event_time, arrival + self._settings.ahead_s)
        if event_time > self._event_time:
            self._event_time = event_time
            yield from self._close(self._event_time, arrival)

    def _place(self, arrival: float, outcome: Outcome) -> Emitted:
        open_ = self._requests.get(outcome.request)
        if open_ is None:
            gone = outcome.event_time < self._event_time - self._settings.keep_s
            yield self._set_aside(outcome, "expired" if gone else "unknown_request")
            return
        key, item = outcome.key(), outcome.item
        if key in open_.keys:
            yield self._set_aside(outcome, "duplicate")
            return
        cause = self._cause(open_, outcome)
        if cause:
            yield self._set_aside(outcome, cause)
            return
        open_.keys.add(key)
        shown = outcome.kind == "impression"
        window = open_.windows.get(item)
        if window is None:
            window = open_.windows[item] = _Window(shown, outcome.event_time, arrival, [])
            self._close_later(open_, item)
        elif shown:
            window.shown, window.event_time = True, outcome.event_time
            self._close_later(open_, item)
        window.keys.append(key)
        threshold = self._settings.positive.get(outcome.kind)
        if threshold is not None and outcome.value >= threshold:
            window.positive, window.arrival = True, arrival
        if window.shown and window.positive:
            yield self._example(open_, item, 1.0, window.arrival, 0.0)

    def _cause(self, open_: _Open, outcome: Outcome) -> str:
        kind, item = outcome.kind, outcome.item
        if item not in open_.served.candidates:
            return "not_a_candidate"
        if kind != "impression" and kind not in self._settings.positive and kind not in self._settings.feedback:
            return "unknown_kind"
        if item in open_.made:
            return "late"
        window = open_.windows.get(item)
        return "duplicate" if kind == "impression" and window is not None and window.shown else ""

    def _close_later(self, open_: _Open, item: str) -> None:
        at = open_.windows[item].event_time + self._settings.window_s
        heapq.heappush(self._closing, (at, open_.served.request, item))

    def _close(self, watermark: float, now: float) -> Emitted:
        while self._closing and self._closing[0][0] <= watermark:
            self._left_over = self._closed >= CLOSED_MAX
            if self._left_over:
                return
            at, request, item = heapq.heappop(self._closing)
            open_ = self._requests.get(request)
            window = open_.windows.get(item) if open_ else None
            if open_ is None or window is None or window.event_time + self._settings.window_s > at:
                continue  # it made its example, or waits on from a later impression
            self._closed += 1
            if window.shown:
                yield self._example(open_, item, 0.0, window.arrival, max(0.0, now - window.arrival))
            else:
                yield from self._expire(open_, item, "no_impression")
        self._left_over = False
        while self._requests:
            oldest = next(iter(self._requests.values()))
            if oldest.served.event_time + self._settings.keep_s > watermark:
                break
            yield from self._forget()

    def _example(self, open_: _Open, item: str, label: float, arrival: float, wait_s: float) -> tuple[str, Example]:
        served = open_.served
        window = open_.windows.pop(item)
        open_.made.add(item)
        at = served.candidates.index(item)
        width = len(served.tokens) // len(served.candidates)
        score = memoryview(served.scores).cast("f")[at] if served.scores else 0.0
        return served.request, Example(
            request=served.request,
            item=item,
            model=served.model,
            version=served.version,
            tokens=served.tokens[at * width : (at + 1) * width],
            score=score,
            label=label,
            weight=1.0,
            event_time=window.event_time,
            arrival=arrival,
            wait_s=wait_s,
            outcomes=window.keys,
            definition=served.definition,
        )

    def _forget(self) -> Emitted:
        _, open_ = self._requests.popitem(last=False)
        for item in list(open_.windows):
            yield from self._expire(open_, item, "expired")

    def _expire(self, open_: _Open, item: str, cause: str) -> Emitted:
        window, request = open_.windows.pop(item), open_.served.request
        for key in window.keys:
            aside = SetAside(outcome=key, cause=cause, request=request, item=item, event_time=window.event_time)
            yield request, aside

    def _set_aside(self, outcome: Outcome, cause: str) -> tuple[str, SetAside]:
        return outcome.request, SetAside(
            outcome=outcome.key(),
            cause=cause,
            request=outcome.request,
            item=outcome.item,
            event_time=outcome.event_time,
        )

    def snapshot(self) -> bytes:
        requests = [_Saved(o.partition, o.offset, o.windows, o.made, o.keys) for o in self._requests.values()]
        return msgspec.msgpack.encode(_State(self._event_time, self._heard, self._left_over, requests))

    def restore(self, state: bytes, log: Log) -> None:
        saved = msgspec.msgpack.decode(state, type=_State)
        self._event_time, self._heard, self._left_over = saved.event_time, saved.heard, saved.left_over
        reader = log.reader("served")
        for one in saved.requests:
            served = decode(reader.read(one.partition, one.offset, 1)[0].value)
            if not isinstance(served, Served):  # somebody was forgotten, and this is an older snapshot
                continue
            self._requests[served.request] = _Open(served, one.partition, one.offset, one.windows, one.made, one.keys)
            for item in one.windows:
                self._close_later(self._requests[served.request], item)

    def forget(self, mine: Callable[[str], bool]) -> int:
        gone = [request for request, open_ in self._requests.items() if mine(open_.served.user)]
        for request in gone:
            del self._requests[request]
        self._closing = [one for one in self._closing if one[1] in self._requests]
        heapq.heapify(self._closing)
        return len(gone)

    def configuration(self) -> bytes:
        return msgspec.msgpack.encode(self._settings)

    def configure(self, configuration: bytes) -> None:
        self._settings = msgspec.msgpack.decode(configuration, type=JoinSettings)
        self._closing.clear()
        for open_ in self._requests.values():
            for item in open_.windows:
                self._close_later(open_, item)
