"""Join what was served with what people did, into examples: one shown item, one task, one label.

The rules, in the order they are applied to an outcome:
1. Time is event time. The watermark is the latest event time seen in outcomes, none counting as later than `ahead_s`
   after its arrival; when no outcome has come for `idle_s` it moves on by itself, so the last window before a quiet
   night closes too.
2. An outcome is set aside, with its cause, when its request is unknown or expired, its key was seen before while its
   request was remembered (duplicate), its item was no candidate, or its kind has no meaning here.
3. It belongs to the tasks that have its kind; an impression, or a kind of `feedback` that no task has, to all of them.
4. An impression opens, in each task, the item's window [event_time, event_time + window_s). **Only a shown item becomes
   an example.** A second impression is a duplicate.
5. A positive of a task (a kind of it whose value reaches its threshold) makes the task's example at once, label 1.
   Other feedback waits with the impression: the person may still change their mind.
6. When the watermark reaches the window's end without a positive, the example is made with label 0.
7. Feedback that comes before its impression is held for the longest window of any task, then set aside (no_impression).
8. What comes when its tasks have their examples is late: set aside each (count) or as a number (drop); a positive whose
   example was negative makes one more example, of form "late", that takes the negative back (correct).
9. A request is remembered for `keep_s` of event time, `requests_max` of them at most; what has no place when it must go
   is set aside (expired). A served event without candidates (plain inference) is not remembered.
10. A step makes about CLOSED_MAX examples from closing windows, so that it fits a frame; the rest come with the next.

A task may tell negatives early (`delayed`; weights in tasks.py): fnw and fnc make one of form "fake" when the item is
shown, and a positive within the window is of form "late"; defer tells a label at the window's end, a positive after it
as "late", and, `attribution_s` after the impression, every other label a second time as "real". Of negatives a share is
kept (`negatives`); an outcome that is left without a place so is set aside as a number (sampled).

Every acknowledged outcome therefore ends in the `outcomes` of at least one example, at most once a task, or in one
SetAside, by its key or in a count. An example's event_time is its impression's; of form "late", its positive's.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from millstream.errors import Corrupt
from millstream.stream import earlier
from millstream.stream.event import Event
from millstream.stream.log import Log, Record
from millstream.stream.remembered import NEVER, TAKEN, Answers, Item, Remembered
from millstream.stream.tasks import JoinSettings, Late, Replayed, Rule, Task, rules
from millstream.stream.told import Emitted, aside, estimate, example, set_aside
from millstream.types import Forgotten, Outcome, Served

__all__ = ["CLOSED_MAX", "Join", "JoinSettings", "Task"]

CLOSED_MAX = 5000


class _State(msgspec.Struct):
    event_time: float
    heard: float
    left_over: bool
    late: dict[str, Late]
    remembered: list[Remembered]


class Join:
    """The operator. Inputs: topics `served`, then `outcomes`. Outputs: Example | SetAside, keyed by request."""

    inputs = ("served", "outcomes")

    def __init__(self, settings: JoinSettings) -> None:
        self._event_time = self._heard = float("-inf")
        self._hearing = self._left_over = False
        self._closed = self._dropped = self._sampled = 0
        self._requests: dict[str, Remembered] = {}
        self._order: deque[Remembered] = deque()
        self._answers = Answers()
        self._closing: list[tuple[float, str]] = []
        self._late: dict[str, Late] = {}
        self._set(settings)

    def _set(self, settings: JoinSettings) -> None:
        self._settings, self._rules = settings, rules(settings)
        self._all = (1 << len(self._rules)) - 1
        self._one = len(self._rules) == 1
        self._plain = self._one and self._rules[0].delayed == "wait" and self._rules[0].share == 1.0
        self._longest_s = settings.window_s
        self._soonest_s = min(rule.window_s for rule in self._rules)
        self._fakes = sum(rule.bit for rule in self._rules if rule.delayed in ("fnw", "fnc"))
        self._corrects = sum(rule.bit for rule in self._rules if settings.tasks[rule.name].late == "correct")
        self._drops = sum(rule.bit for rule in self._rules if settings.tasks[rule.name].late == "drop")
        self._late = {rule.name: self._late.get(rule.name) or Late() for rule in self._rules}
        self._kinds: dict[str, tuple[int, tuple[tuple[float, int], ...]]] = {}
        for rule in self._rules:
            for kind, least in settings.kinds(rule.name).items():
                mask, least_of = self._kinds.get(kind, (0, ()))
                self._kinds[kind] = mask | rule.bit, (*least_of, (least, rule.bit))
        for kind in (*settings.feedback, "impression"):
            self._kinds.setdefault(kind, (self._all, ()))

    @property
    def gone(self) -> int:
        """How often a served event that is remembered was not in the log any more."""
        return self._answers.gone

    def attach(self, log: Log) -> None:
        self._answers.attach(log)

    def on_items(self, topic: str, records: Sequence[Record], events: Sequence[Event], out: Emitted) -> None:
        for record, event in zip(records, events, strict=True):
            if type(event) is Outcome:
                self._hearing = True
                if event.kind != "watermark":
                    self._place(record.arrival, event, out)
                event_time = min(event.event_time, record.arrival + self._settings.ahead_s)
                if event_time > self._event_time:
                    self._event_time = event_time
                    self._close(event_time, record.arrival, out)
            elif type(event) is Served:
                self._on_served(record, event, out)
            elif type(event) is not Forgotten:
                raise Corrupt(f"topic {topic} offset {record.offset}: a {type(event).__name__} does not belong here")

    def on_time(self, now: float, steady: float, out: Emitted) -> None:
        if self._hearing:
            self._heard, self._hearing = steady, False
        idle = steady - self._heard - self._settings.idle_s
        if (idle > 0 and self._event_time > float("-inf")) or self._left_over:
            self._close(self._event_time + max(0.0, idle), now, out)
        for cause, count in (("late", self._dropped), ("sampled", self._sampled)):
            if count:
                out.append(("", aside("", cause, "", "", self._event_time, count)))
        self._closed = self._dropped = self._sampled = 0

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
        for one in self._order:
            if one.partition not in first:
                first[one.partition] = one.offset
        return first

    def _on_served(self, record: Record, served: Served, out: Emitted) -> None:
        # of a retry that was scored again, the first answer logged stands
        if served.request in self._requests or not served.candidates:
            return
        one = Remembered(served.request, record.partition, record.offset, len(served.candidates), served.event_time)
        self._requests[served.request] = one
        self._order.append(one)
        self._answers.put(served)
        while len(self._order) > self._settings.requests_max:
            self._forget(out)

    def _place(self, arrival: float, outcome: Outcome, out: Emitted) -> None:
        one = self._requests.get(outcome.request)
        if one is None:
            gone = outcome.event_time < self._event_time - self._settings.keep_s
            cause = "expired" if gone else "unknown_request"
        else:
            items = one.items if one.items is not None else one.thaw()
            cause = self._add(one, items, arrival, outcome, out)
            if not items:
                one.freeze()
        if cause:
            found = aside(outcome.key(), cause, outcome.request, outcome.item, outcome.event_time)
            out.append((outcome.request, found))

    def _add(self, one: Remembered, items: dict[str, Item], arrival: float, outcome: Outcome, out: Emitted) -> str:
        """Give an outcome to its tasks, or say why not."""
        assert one.keys is not None and one.made is not None
        key, name, shown = outcome.key(), outcome.item, outcome.kind == "impression"
        if key in one.keys:
            return "duplicate"
        item, place = items.get(name), 0
        if item is None and name not in one.made:
            served = self._answers.get(one)
            if served is None:
                return "expired"
            try:
                place = served.candidates.index(name)
            except ValueError:
                return "not_a_candidate"
        meaning = self._kinds.get(outcome.kind)
        if meaning is None:
            return "unknown_kind"
        takes, positive = meaning[0], 0
        for least, bit in meaning[1]:
            if outcome.value >= least:
                positive |= bit
        if item is None:
            if name in one.made:
                return self._add_late(one, name, takes, positive, key, arrival, outcome, out)
            item = items[name] = Item(place, shown, outcome.event_time, arrival, self._all, 0, 0, 0, 0, [key], [takes])
            self._schedule(one, outcome.event_time + (self._soonest_s if shown else self._longest_s))
        else:
            if not item.shown:
                if shown:
                    item.shown, item.event_time, item.arrival = True, outcome.event_time, arrival
                    self._schedule(one, outcome.event_time + self._soonest_s)
            elif shown:
                return "duplicate"
            else:
                belongs, takes = takes, takes & item.open | positive & item.given
                if belongs != takes:
                    seen = item.positive | item.live
                    wrong = self._correct(one, name, seen, positive, key, arrival, outcome, out)
                    item.positive |= wrong
                    takes |= TAKEN if wrong else 0
                    if not takes:
                        return self._too_late(belongs)
            if takes != TAKEN:
                item.keys.append(key)
                item.waits.append(takes)
        one.keys.add(key)
        if not item.shown:
            item.positive |= positive
            return ""
        if shown:
            positive |= item.positive
            if self._fakes:
                self._fake(one, name, item, out)
        if positive:
            self._positives(one, name, item, positive, arrival, outcome.event_time, out)
        return ""

    def _add_late(
        self, one: Remembered, name: str, belongs: int, positive: int, key: str, arrival: float, outcome: Outcome,
        out: Emitted,
    ) -> str:  # fmt: skip
        """An outcome of an item of which every task has its example."""
        assert one.keys is not None and one.made is not None
        wrong = self._correct(one, name, one.made[name], positive, key, arrival, outcome, out)
        if not wrong:
            return self._too_late(belongs)
        one.made[name] |= wrong
        one.keys.add(key)
        return ""

    def _too_late(self, belongs: int) -> str:
        """The cause of an outcome that came too late for the tasks it belongs to, if each is told."""
        if belongs & ~self._drops:
            return "late"
        self._dropped += 1
        return ""

    def _correct(
        self, one: Remembered, name: str, seen: int, positive: int, key: str, arrival: float, outcome: Outcome,
        out: Emitted,
    ) -> int:  # fmt: skip
        """Take negatives back that turn out wrong; in which tasks. `seen`: those without a negative to take back."""
        wrong = positive & self._corrects & ~seen
        served = self._answers.get(one) if wrong else None
        if served is None:
            return 0
        place = served.candidates.index(name)
        for rule in self._rules:
            if rule.bit & wrong:
                weight = rule.correction(estimate(served, place), rule.keeps(one.request, name))
                at = outcome.event_time
                out.append(example(rule, "late", one, served, name, place, 1.0, weight, at, arrival, 0.0, [key]))
        return wrong

    def _fake(self, one: Remembered, name: str, item: Item, out: Emitted) -> None:
        """Just shown: negatives at once, in the tasks that do so. Of a positive that waits already, all is its own but
        the impression, which came last."""
        for rule in self._rules:
            bit = rule.bit & self._fakes
            if bit:
                item.open, item.given = item.open & ~bit, item.given | bit
                since = len(item.keys) - 1 if bit & item.positive else 0
                self._tell(one, name, item, rule, "fake", 0.0, item.arrival, 0.0, item.event_time, out, since)

    def _positives(
        self, one: Remembered, name: str, item: Item, bits: int, arrival: float, event_time: float, out: Emitted
    ) -> None:
        """A positive came, of a shown item, for the tasks of `bits`: their examples."""
        for rule in self._rules:
            bit = rule.bit & bits
            if bit & item.open:
                item.open &= ~bit
                form, at = "", item.event_time
            elif bit & item.given:
                item.given &= ~bit
                form, at = "late", event_time
                item.late |= bit
            else:
                continue
            item.positive |= bit
            if rule.delayed == "defer":
                item.again |= bit
            self._tell(one, name, item, rule, form, 1.0, arrival, 0.0, at, out)
        self._done(one, name, item)

    def _close(self, watermark: float, now: float, out: Emitted) -> None:
        closing, end = self._closing, self._end_plain if self._plain else self._end
        while closing and closing[0][0] <= watermark:
            if self._closed >= CLOSED_MAX:
                self._left_over = True
                return
            at, request = heapq.heappop(closing)
            one = self._requests.get(request)
            if one is not None and one.due == at:
                end(one, at, now, out)
        oldest = watermark - self._settings.keep_s
        while self._order and self._order[0].event_time <= oldest:
            self._forget(out)
        self._left_over = False

    def _end(self, one: Remembered, at: float, now: float, out: Emitted) -> None:
        """The windows of a request that end at `at`."""
        assert one.items is not None
        one.due, due = NEVER, NEVER
        for name, item in [*one.items.items()]:
            ends = self._due(item)
            if ends <= at:
                if self._closed >= CLOSED_MAX:
                    due = at
                    break
                self._closed += 1
                self._end_item(one, name, item, at, now, out)
                ends = self._due(item) if item.live else NEVER
            due = min(due, ends)
        if due < NEVER:
            self._schedule(one, due)
        one.freeze()

    def _end_plain(self, one: Remembered, at: float, now: float, out: Emitted) -> None:
        """As _end, for what most installations have: one task that waits, and keeps all."""
        assert one.items is not None and one.made is not None
        rule = self._rules[0]
        served = self._answers.scored(one)
        one.due, due = NEVER, NEVER
        for name, item in [*one.items.items()]:
            ends = item.event_time + rule.window_s if item.open else NEVER
            if ends > at:
                due = min(due, ends)
                continue
            if self._closed >= CLOSED_MAX:
                due = at
                break
            self._closed += 1
            del one.items[name]
            item.open = 0
            if not item.shown or served is None:
                cause = "expired" if item.shown else "no_impression"
                set_aside(one, name, item, item.placeless(), cause, out)
            else:
                at_, waited = item.event_time, now - item.arrival if now > item.arrival else 0.0
                keys = item.keys
                out.append(example(rule, "", one, served, name, item.place, 0.0, 1.0, at_, item.arrival, waited, keys))
            if item.shown:
                one.made[name] = item.positive
        if due < NEVER:
            self._schedule(one, due)
        one.freeze()

    def _end_item(self, one: Remembered, name: str, item: Item, at: float, now: float, out: Emitted) -> None:
        if not item.shown:
            assert one.items is not None
            del one.items[name]
            item.open = 0
            set_aside(one, name, item, item.keys, "no_impression", out)
            return
        waited = max(0.0, now - item.arrival)
        for rule in self._rules:
            bit = rule.bit
            if item.open & bit:
                if item.event_time + rule.window_s <= at:
                    item.open &= ~bit
                    item.given |= bit if rule.delayed == "defer" else 0
                    self._tell(one, name, item, rule, "", 0.0, item.arrival, waited, item.event_time, out)
            elif (item.given | item.again) & bit and item.event_time + rule.until_s <= at:
                label = float(item.again & bit > 0)
                again = rule.delayed == "defer" and not item.late & bit
                if label and rule.delayed == "defer":
                    self._late[rule.name].add(not again)
                item.given, item.again = item.given & ~bit, item.again & ~bit
                if again:
                    self._tell(one, name, item, rule, "real", label, item.arrival, waited, item.event_time, out)
        self._done(one, name, item)

    def _due(self, item: Item) -> float:
        """When the first window of an item ends."""
        if not item.shown:
            return item.event_time + self._longest_s
        wait = NEVER
        for rule in self._rules:
            if item.open & rule.bit:
                wait = min(wait, rule.window_s)
            elif (item.given | item.again) & rule.bit:
                wait = min(wait, rule.until_s)
        return item.event_time + wait

    def _schedule(self, one: Remembered, due: float) -> None:
        if due < one.due:
            one.due = due
            heapq.heappush(self._closing, (due, one.request))

    def _done(self, one: Remembered, name: str, item: Item) -> None:
        """Nothing more will come of an item, if so. One with outcomes of a task that is no more stays, to expire."""
        if not (item.open or item.given or item.again or item.keys):
            assert one.items is not None and one.made is not None
            del one.items[name]
            one.made[name] = item.positive

    def _tell(
        self, one: Remembered, name: str, item: Item, rule: Rule, form: str, label: float, arrival: float,
        wait_s: float, event_time: float, out: Emitted, since: int = 0,
    ) -> None:  # fmt: skip
        """A task's example of an item, with the outcomes that waited for it, from number `since` on; or these set
        aside."""
        if label == 0.0 and not rule.keeps(one.request, name):
            self._sampled += len(item.leave(rule.bit, since))
            return
        served = self._answers.scored(one)
        if served is None:
            set_aside(one, name, item, item.leave(rule.bit, since), "expired", out)
            return
        if rule.delayed == "wait":
            weight = 1.0 if label else rule.negative(None, 0.0)
        else:
            told = rule.positive if label else rule.negative
            weight = told(estimate(served, item.place), self._late[rule.name].share)
        if self._one and not since:
            keys, item.keys, item.waits = item.keys, [], []
        else:
            keys = item.take(rule.bit, since)
        made = example(rule, form, one, served, name, item.place, label, weight, event_time, arrival, wait_s, keys)
        out.append(made)

    def _forget(self, out: Emitted) -> None:
        one = self._order.popleft()
        del self._requests[one.request]
        self._answers.drop(one.request)
        for name, item in (one.items or {}).items():
            set_aside(one, name, item, item.placeless(), "expired", out)

    def snapshot(self) -> bytes:
        state = _State(self._event_time, self._heard, self._left_over, self._late, list(self._order))
        return msgspec.msgpack.encode(state)

    def restore(self, state: bytes, log: Log) -> None:
        saved = msgspec.msgpack.decode(earlier.state(state, log), type=_State)
        self._event_time, self._heard, self._left_over = saved.event_time, saved.heard, saved.left_over
        self._late |= saved.late
        # it may be from before somebody was forgotten
        self._order = deque(one for one in saved.remembered if not self._answers.forgotten(one))
        self._requests = {one.request: one for one in self._order}
        self._schedule_all()

    def forget(self, mine: Callable[[str], bool]) -> int:
        served = ((one, self._answers.get(one)) for one in self._order)
        left = [one for one, event in served if event is not None and not mine(event.user)]
        gone = len(self._order) - len(left)
        self._order, self._requests = deque(left), {one.request: one for one in left}
        self._answers.clear()
        self._schedule_all()
        return gone

    def configuration(self) -> bytes:
        return msgspec.msgpack.encode(self._settings)

    def configure(self, configuration: bytes) -> None:
        before = [rule.name for rule in self._rules]
        self._set(msgspec.msgpack.decode(earlier.configuration(configuration), type=Replayed))
        names = [rule.name for rule in self._rules]
        if names != before and len(names) + len(before) > 2:  # one task under another name is that task
            moves = [(1 << n, 1 << names.index(name)) for n, name in enumerate(before) if name in names]
            for one in self._order:
                one.move(moves, self._all)
        self._schedule_all()

    def _schedule_all(self) -> None:
        self._closing.clear()
        for one in self._order:
            one.due = NEVER
            for item in (one.items or {}).values():
                self._schedule(one, self._due(item))
