"""The books must balance: what a client was acknowledged, against what the log made of it.

Independent of the join on purpose: it knows the topics' contents and one rule (a window), none of the join's code.
Each acknowledged outcome must end in exactly one example, or be set aside once with a cause, or still be waiting for
its window. Anything else is lost or duplicated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from millstream.errors import BadInput
from millstream.stream.event import decode
from millstream.stream.log import Log, Record
from millstream.types import Example, Outcome, SetAside


class Acknowledged(msgspec.Struct, frozen=True):
    """A line of the ledger: an outcome that a client was told is safe. `outcome` is its key."""

    outcome: str
    event_time: float


class Audit(msgspec.Struct, frozen=True):
    """The balance. It is sound when `lost` and `duplicated` are 0; `waiting` outcomes have an open window.

    `not_logged` (part of `lost`) counts acknowledged outcomes that are not even in the `outcomes` topic.
    """

    acknowledged: int
    learnt: int
    set_aside: int
    waiting: int
    lost: int
    duplicated: int
    not_logged: int
    examples: int
    causes: dict[str, int]
    lost_first: list[str]

    @property
    def balanced(self) -> bool:
        return self.lost == 0 and self.duplicated == 0


def read_ledger(path: Path) -> Iterator[Acknowledged]:
    """The lines of a ledger file (JSON, one a line). A torn last line is what a killed client leaves: it is ignored."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if line:
            try:
                yield msgspec.json.decode(line, type=Acknowledged)
            except msgspec.MsgspecError as error:
                if number < len(lines):
                    raise BadInput(
                        f'{path} line {number}: {error}; a ledger line is {{"outcome": key, "event_time": seconds}}'
                    ) from None


def audit(log: Log, ledger: Iterable[Acknowledged], window_s: float) -> Audit:
    """Compare a ledger with topics `outcomes` and `examples`. Memory: a few hundred bytes an outcome."""
    logged, last = _outcomes(log)
    learnt: Counter[str] = Counter()
    aside: dict[str, str] = {}
    pairs: Counter[tuple[str, str]] = Counter()
    for record in _records(log, "examples"):
        event = decode(record.value)
        if isinstance(event, Example):
            pairs[event.request, event.item] += 1
            learnt.update(event.outcomes)
        elif isinstance(event, SetAside) and event.cause != "duplicate":
            aside[event.outcome] = event.cause
    acknowledged = {one.outcome: one.event_time for one in ledger}
    nowhere = [key for key in acknowledged if key not in learnt and key not in aside]
    waiting = [key for key in nowhere if key in logged and acknowledged[key] + window_s > last]
    lost = sorted(set(nowhere) - set(waiting))
    twice = sum(count - 1 for count in pairs.values()) + sum(count - 1 for count in learnt.values())
    both = sum(key in learnt for key in aside)
    return Audit(
        acknowledged=len(acknowledged),
        learnt=sum(key in learnt for key in acknowledged),
        set_aside=sum(key in aside for key in acknowledged),
        waiting=len(waiting),
        lost=len(lost),
        duplicated=twice + both,
        not_logged=sum(key not in logged for key in acknowledged),
        examples=pairs.total(),
        causes=dict(Counter(aside.values())),
        lost_first=lost[:10],
    )


def _outcomes(log: Log) -> tuple[set[str], float]:
    """Keys of every logged outcome, and the latest event time among them."""
    keys, last = set(), float("-inf")
    for record in _records(log, "outcomes"):
        event = decode(record.value)
        if isinstance(event, Outcome):
            keys.add(event.key())
            last = max(last, event.event_time)
    return keys, last


def _records(log: Log, topic: str) -> Iterator[Record]:
    reader = log.reader(topic)
    for partition in reader.partitions():
        at, end = reader.start(partition), reader.end(partition)
        while at < end and (records := reader.read(partition, at, 4096)):
            yield from records
            at = records[-1].offset + 1
