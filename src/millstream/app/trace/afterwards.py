"""What came of an answer: outcomes, the examples that the join made of them, the pushes that learnt those, and the
first answers with them.

Rules of the room:
- An outcome ends in one place: in examples, set aside by its key, set aside as a number, or it waits still.
- A push learnt an example if it reaches beyond it and counts the moment in which its label was known among its own
  (`Delta.arrivals`): what the gate refused lies before the end of a push, too, and is in none.
- An answer has a push in it if its version@delta is that delta or a later one of the same base, or a base that was put
  after it, with nothing between the two.
- How far is looked for the first answer with a push is bounded (LOOKED).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from millstream.app.installation import Installation
from millstream.app.trace.answer import lineage_of
from millstream.app.trace.told import End, Happened, Pushed, Seen
from millstream.errors import Corrupt
from millstream.learn.learning import MADE_BY
from millstream.meter import Meter
from millstream.stream import LenientReader
from millstream.stream.audit import read_upto
from millstream.stream.event import Event, decode
from millstream.stream.keyed import Keyed, Progress
from millstream.stream.reader import Record
from millstream.types import Beside, Example, Forgotten, Outcome, SetAside

BEFORE_S: Final = 60.0
"""Events of a request are looked for from so long before its answer: clocks of processes differ, and are set."""
MOST: Final = 10_000
"""Records of a request in one topic that are told; whose client tells more of it has their first ones."""
LOOKED: Final = 20_000
"""Answers that are looked at for the first one with a push."""
COUNTED: Final = "late, or a negative that sampling left out"


class _Delta(msgspec.Struct, frozen=True, tag="delta"):
    """Of a delta, what says whom it learnt."""

    model: str
    base: str
    sequence: int
    upto: int
    slots: bytes
    arrivals: bytes


class _By(msgspec.Struct, frozen=True, tag="served", omit_defaults=True):
    """Of a served event, who answered."""

    request: str
    model: str
    version: str
    beside: dict[str, Beside] = {}


_delta = msgspec.msgpack.Decoder(_Delta | Forgotten).decode
_by = msgspec.msgpack.Decoder(_By | Forgotten).decode


class Made(NamedTuple):
    """What stands in topic `examples` under a request: offsets with examples, and with what was set aside."""

    examples: list[tuple[int, Example]]
    aside: list[tuple[int, SetAside]]


class Afterwards:
    """Looks for what came of one request by the `key` of its records, from `since` on, unix seconds. `notes`: what
    could not be read, or is too much."""

    def __init__(self, at: Installation, key: bytes, since: float, until: float, progress: Progress) -> None:
        self._at, self._key, self._progress = at, key, progress
        self._since, self._until = since - BEFORE_S, until
        self.notes: list[str] = []

    def events(self, topic: str) -> Iterator[tuple[Record, Event]]:
        """The request's events of a topic, oldest first."""
        keyed = Keyed(self._at.log.reader(topic), self._progress)
        for number, record in enumerate(keyed.oldest({self._key}, self._since, self._until)):
            if number == MOST:
                self.notes.append(f"topic {topic} has more than {MOST:,} records of this request: these are the first")
                break
            try:
                yield record, decode(record.value)
            except Corrupt as error:
                self.notes.append(f"topic {topic}, partition {record.partition}, offset {record.offset}: {error}")
        self.notes += keyed.damaged

    def outcomes(self) -> list[tuple[Record, Outcome]]:
        """What was told."""
        return [(record, event) for record, event in self.events("outcomes") if isinstance(event, Outcome)]

    def made(self) -> Made:
        """What the join made of it."""
        found = Made([], [])
        for record, event in self.events("examples"):
            if isinstance(event, Example):
                found.examples.append((record.offset, event))
            elif isinstance(event, SetAside):
                found.aside.append((record.offset, event))
        return found

    def ends(self, told: Sequence[tuple[Record, Outcome]], made: Made, answered: float) -> list[Happened]:
        """Where each outcome is now. `answered`: when the answer was logged, unix seconds."""
        places = _places(made)
        open_until: _Open | None = None
        found = []
        for record, outcome in told:
            waiting = places.get(outcome.key(), [])
            end: End
            examples: list[int] = []
            if waiting:
                end, cause, examples = waiting.pop(0)
            else:
                open_until = open_until or self._open_until(told)
                end, cause = "waiting", open_until.why(record, outcome)
                if not cause:
                    end, cause = "counted", COUNTED
            found.append(
                Happened(
                    key=outcome.key(), kind=outcome.kind, item=outcome.item, value=outcome.value,
                    event_time=outcome.event_time, arrival=record.arrival, after_s=record.arrival - answered,
                    end=end, cause=cause, examples=examples, text=outcome.text,
                )
            )  # fmt: skip
        return found

    def _open_until(self, told: Sequence[tuple[Record, Outcome]]) -> _Open:
        """What says whether an outcome may wait: how far the join has read, and where its time stands, nearly."""
        join, log = self._at.settings.join, self._at.log
        watermark = heard = -math.inf
        reader = LenientReader(log.reader("outcomes"), Meter())
        for partition in reader.partitions() if told else ():
            at = max(0, reader.end(partition) - 100)
            for record, event in reader.decoded(partition, at, decode):  # damage is told by who tells the outcomes
                if isinstance(event, Outcome):
                    watermark = max(watermark, min(event.event_time, record.arrival + join.ahead_s))
                    heard = max(heard, record.arrival)
        watermark += max(0.0, self._at.clock.now() - heard - join.idle_s) if told else 0.0
        latest: dict[tuple[str, str], float] = {}
        for _, outcome in told:
            item = outcome.request, outcome.item
            latest[item] = max(latest.get(item, outcome.event_time), outcome.event_time)
        return _Open(read_upto(log) if told else {}, watermark, join.settled_s, latest)


class _Open(NamedTuple):
    read: object
    watermark: float
    window_s: float
    latest: dict[tuple[str, str], float]

    def why(self, record: Record, outcome: Outcome) -> str:
        """Why an outcome has no place yet; "" where it should have one."""
        read = self.read
        if isinstance(read, dict) and record.offset >= read.get(record.partition, 0):
            return "the join has not read it"
        ends = self.latest[outcome.request, outcome.item] + self.window_s
        return f"its window is open for {ends - self.watermark:.0f} s more" if ends > self.watermark else ""


_End = tuple[Literal["example", "set aside"], str, list[int]]


def _places(made: Made) -> dict[str, list[_End]]:
    """The places of each key, those of what came first before those of its retries."""
    found: dict[str, list[tuple[bool, int, _End]]] = {}
    learnt: dict[str, list[int]] = {}
    for offset, example in made.examples:
        for key in example.outcomes:
            learnt.setdefault(key, []).append(offset)
    for key, offsets in learnt.items():
        found[key] = [(False, offsets[0], ("example", "", offsets))]
    for offset, aside in made.aside:
        if aside.outcome:
            place: _End = "set aside", aside.cause, []
            found.setdefault(aside.outcome, []).append((aside.cause == "duplicate", offset, place))
    return {key: [place for _, _, place in sorted(several, key=lambda one: one[:2])] for key, several in found.items()}


class Found(NamedTuple):
    """A push, and the offsets of the request's examples that it learnt. `at`: when it was logged."""

    offset: int
    at: float
    delta: _Delta
    examples: list[int]


def pushes(
    at: Installation, examples: Iterable[tuple[int, Example]], progress: Progress
) -> tuple[list[Found], dict[int, str]]:
    """The pushes that learnt these examples, and of each example that none did, why."""
    why: dict[int, str] = {}
    waits: dict[int, float] = {}
    task, since = at.task.name, math.inf
    for offset, one in examples:
        if one.model not in (at.model, at.also or at.model):
            why[offset] = f"{one.model} does not learn online here, {at.model} does"
        elif one.task not in ("", task):
            why[offset] = f"it is of task {one.task}, and {at.model} learns {task}"
        else:
            waits[offset] = one.arrival + one.wait_s
            since = min(since, waits[offset])
    found: list[Found] = []
    trained = _Trained(at)
    keyed = Keyed(at.log.reader("deltas"), progress)
    for record in keyed.oldest({at.model.encode()}, since - BEFORE_S) if waits else ():
        try:
            delta = _delta(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if isinstance(delta, Forgotten) or not (reached := [offset for offset in waits if offset < delta.upto]):
            continue
        moments = np.frombuffer(delta.arrivals, "<f8")
        if learnt := [offset for offset in reached if np.any(moments == waits[offset])]:
            found.append(Found(record.offset, record.arrival, delta, learnt))
        for offset in reached:
            del waits[offset]
            if offset not in learnt:
                name = f"{delta.base}@{delta.sequence}"
                passed = f"push {name} reaches beyond it without it: refused by the gate, or learning began after it"
                why[offset] = trained.has(offset) or passed
        if not waits:
            break
    for offset in waits:
        why[offset] = trained.has(offset) or "no push has reached it yet"
    return found, why


class _Trained:
    """Versions that were trained, not pushed; manifests are read once for all examples."""

    def __init__(self, at: Installation) -> None:
        self._at = at
        self._versions: list[tuple[str, int, str]] | None = None  # version, upto, made by

    def has(self, offset: int) -> str:
        """Whether one of them has learnt an example; as a reason that no push has it."""
        if self._versions is None:
            self._versions = [*self._read()]
        for version, upto, made_by in self._versions:
            if upto > offset:
                return f"version {version} of {self._at.model} has it, made by {made_by}"
        return ""

    def _read(self) -> Iterator[tuple[str, int, str]]:
        repository, model = self._at.repository, self._at.model
        for version in repository.versions(model) if model in repository.models() else ():
            lineage = lineage_of(self._at, model, version)
            upto = str(lineage.get("upto", ""))
            if lineage.get("made_by") != MADE_BY and upto.isdecimal():
                yield version, int(upto), str(lineage.get("made_by"))


def told(at: Installation, found: Sequence[Found], known: dict[int, float], progress: Progress) -> list[Pushed]:
    """Pushes as a story has them. `known`: by offset of an example, when its label was."""
    seen = _seen(at, found, progress)
    return [
        Pushed(
            model=one.delta.model, version=f"{one.delta.base}@{one.delta.sequence}", at=one.at, offset=one.offset,
            upto=one.delta.upto, examples=len(one.delta.arrivals) // 8, slots=len(one.delta.slots) // 4,
            staleness_s=max(0.0, (first.at if first else one.at) - max(known[offset] for offset in one.examples)),
            seen=first,
        )
        for one, first in zip(found, seen, strict=True)
    ]  # fmt: skip


def _seen(at: Installation, found: Sequence[Found], progress: Progress) -> list[Seen | None]:
    """Of each push, the first answer with it."""
    seen: list[Seen | None] = [None for _ in found]
    if not found:
        return seen
    lines = _Lines(at, found[0].delta.model)
    keyed = Keyed(at.log.reader("served"), progress)
    for looked, record in enumerate(keyed.oldest(None, min(one.at for one in found))):
        if looked == LOOKED or all(seen):
            break
        try:
            by = _by(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if isinstance(by, Forgotten):
            continue
        for number, one in enumerate(found):
            if seen[number] is None and record.arrival >= one.at:
                version = by.version if by.model == one.delta.model else _beside(by, one.delta.model)
                if lines.contains(version, one.delta):
                    seen[number] = Seen(by.request, version, record.arrival)
    return seen


def _beside(by: _By, model: str) -> str:
    said = by.beside.get(model)
    return said.version if said is not None else ""


class _Lines:
    """Which bases of a model go on from which."""

    def __init__(self, at: Installation, model: str) -> None:
        self._at, self._model = at, model
        self._parents: dict[str, str] = {}

    def contains(self, version: str, delta: _Delta) -> bool:
        """Whether this version@delta was made of what a delta says."""
        base, _, sequence = version.partition("@")
        if not (base.isdecimal() and sequence.isdecimal()):
            return False
        if base == delta.base:
            return int(sequence) >= delta.sequence
        while int(base) > int(delta.base):
            base = self._before(base)
            if base == delta.base:
                return True
        return False

    def _before(self, base: str) -> str:
        """The base that a base goes on from; "0" where it began anew, or went back."""
        if base not in self._parents:
            self._parents[base] = "0"
            lineage = lineage_of(self._at, self._model, base)
            parent = str(lineage.get("parent", ""))
            if lineage.get("made_by") == MADE_BY and parent.isdecimal():
                between = map(str, range(int(parent) + 1, int(base)))
                if not any(lineage_of(self._at, self._model, one).get("made_by") == MADE_BY for one in between):
                    self._parents[base] = parent
        return self._parents[base]
