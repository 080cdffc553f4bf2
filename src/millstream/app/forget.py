"""`millstream forget`: take what an installation keeps of somebody out of it, while it runs or while it is stopped.

The order of things, so that whoever is killed anywhere does it again and ends where they would have ended:

1. Every writer begins a new segment: running roles do as `Roll` asks them to (orders.py), what nobody writes is taken.
   What the log had before lies in segments that nobody writes any more. Whatever comes after it is somebody new.
2. Those segments are searched; nothing is changed yet.
3. `Forget` names digests and offsets. `learn` reads up to there, drops the people from the state of the join, from rows
   and snapshots, saves, puts a base, so that no restart needs the records again, and begins new segments once more.
   `serve` reads up to there, too, and drops attributes, what people did and answers. Where no `learn` runs this process
   is it, and holds its lock.
4. The segments are replaced (stream/forget.py), and the files of feature sets that nobody keeps (features/forget.py).
5. `Forget` goes, too.

Rules of the room:
- Nothing leaves the log before every running role has said that it is done: none of them can bring it back.
- One such command at a time, and none beside a backup, which would hold one half from before and one from after.
- The name itself is written nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import msgspec

from millstream.app.installation import Installation
from millstream.app.orders import LEARN, SERVE, SHARD
from millstream.errors import BadInput, Busy, Conflict, Misconfigured
from millstream.guard.pii import pseudonym
from millstream.guard.tenants import person
from millstream.learn import Learning
from millstream.learn.curate import dataset as datasets
from millstream.meter import Meter
from millstream.ops.backup import remove_pins
from millstream.store.blob import locked
from millstream.stream import Log, Operation, Writer, decode, encode, segment
from millstream.stream import forget as records
from millstream.stream.forget import NOBODYS, TOPIC, Found, Names, digest, spellings, with_visitors
from millstream.stream.writer import holder
from millstream.types import Forget, Forgot, Roll

WAIT_S: Final = 60.0
NAMES_MAX: Final = 1000
LOOK_S: Final = 0.05
_SALT_BYTES: Final = 16
Ends = dict[tuple[str, int], int]


class Stays(msgspec.Struct, frozen=True):
    """What is still there, and until when, or what to do."""

    what: str
    until: str


class Report(msgspec.Struct, kw_only=True):
    """What was removed. `records` of the log by topic, in `segments` that were replaced; `rows` of features;
    `snapshots`: entities in saved states of sets that nobody keeps; `waiting`: requests that the join remembered;
    `labelled`: rows of datasets; `attributes` and `answers` in the memory of running servers; `bases` of weights that
    were put; `audio`: recordings of speech; `sessions` of speech that nobody was in any more. `roles`: which took part.
    `shared`: request ids that others used as well, whose outcomes stay as theirs.
    `damaged`: segments and datasets that could not be read, and may hold the rest: then it is not `sound`."""

    sound: bool = True
    found: bool = False
    records: dict[str, int] = {}
    segments: int = 0
    rows: int = 0
    snapshots: int = 0
    waiting: int = 0
    labelled: int = 0
    attributes: int = 0
    answers: int = 0
    bases: int = 0
    audio: int = 0
    sessions: int = 0
    shared: int = 0
    roles: list[str] = []
    damaged: list[str] = []
    stays: list[Stays] = []


async def forget(
    at: Installation, users: Sequence[str], kind: str = "user", wait_s: float = WAIT_S, tenant: str = ""
) -> Report:
    """Forget entities of a kind by the names that callers use for them; harmless for those that nobody knows. `tenant`:
    whose they are, where there are tenants.

    BadInput; Misconfigured: the log is on Kafka; Conflict: another one runs, a backup, or a process that takes no
    orders holds a partition; Busy: a role did not answer within `wait_s`; Full. After any of the last three, run it
    again."""
    if not users or not all(users) or len(users) > NAMES_MAX:
        raise BadInput(f"{len(users)} names: give 1 to {NAMES_MAX}, none of them empty")
    if at.settings.log.kafka:
        raise Misconfigured(
            "the log is on Kafka, whose records nobody can change: nothing was forgotten. What there is of somebody "
            "goes when the retention of its topics has passed; docs/forget.md says what to set, and for how long"
        )
    if kind == "item":
        raise BadInput("items are not people: nothing here forgets one")
    tenants = at.settings.recommend.tenants
    if (tenant or (tenants and kind == "user")) and tenant not in tenants:
        there = ", ".join(tenants) or "no tenants here"
        raise BadInput(f"tenant {tenant!r}: a person is one tenant's, name it with --tenant; there are: {there}")
    users = [person(tenant, pseudonym(user)) for user in users] if tenant else users
    names, report = spellings(users), Report()
    names = with_visitors(at.log, names) if kind == "user" else names
    with _alone(at) as orders, ExitStack() as held:
        records.tidy(at.log)
        remove_pins(at.folder)
        orders.roll()
        records.clear_orders(at.log)
        join = _join(at)
        if join is not None:
            held.callback(join.abandon)
        roles = _Roles(at, wait_s, learns=join is not None)
        ends = _ends(at.log)
        await roles.obey(orders, Roll(at=at.clock.now()))
        _roll_the_rest(at.log, ends)
        found = records.find(at.log, names, kind)
        order = _order(at, names, kind, found)
        if join is not None:
            _drop(at, join, order, report)
        offset = await roles.obey(orders, order)
        records.find_again(at.log, found)  # `learn` may have made examples until it had read so far
        _files(at, order, found.requests, report)
        report.segments = records.clear(found)
        await roles.answered(offset)  # who started meanwhile may have read what has gone now
        roles.count(offset, report)
        orders.roll()
        records.clear_orders(at.log)
    report.records, report.shared = found.records, found.shared
    report.damaged += found.damaged
    report.sound = not report.damaged
    kept = (report.rows, report.snapshots, report.waiting, report.labelled, report.attributes, report.answers)
    report.found = bool(found.records) or any((*kept, report.audio, report.sessions))
    report.stays = _stays(at)
    return report


@contextmanager
def _alone(at: Installation) -> Iterator[Writer]:
    """The writer of orders, which one process has, while no backup runs."""
    state = at.folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    other = Conflict(f"a backup of {at.folder}, or another `millstream forget`, is under way; wait for its end")
    with locked(state / "backup.lock", other), at.log.writer(TOPIC) as orders:
        yield orders


def _join(at: Installation) -> Operation | None:
    """The join, where no `learn` runs: its lock makes this process the one that keeps state."""
    try:
        return at.join()
    except Conflict:
        return None


def _ends(log: Log) -> Ends:
    """Where every partition that may hold people ends."""
    readers = {topic: log.reader(topic) for topic in log.topics() if topic not in NOBODYS}
    return {(topic, p): reader.end(p) for topic, reader in readers.items() for p in reader.partitions()}


def _roll_the_rest(log: Log, ends: Ends) -> None:
    """Take the partitions that nobody writes and begin new segments there. Conflict: somebody writes one who takes no
    orders."""
    log.roll()
    for topic, partition in ends:
        folder = log.root / topic / str(partition)
        if not holder(folder):
            with log.writer(topic, partition) as writer:
                writer.roll()
    for (topic, partition), end in ends.items():
        folder = log.root / topic / str(partition)
        if max(segment.segments(folder), default=end) < end:
            raise Conflict(
                f"{folder} is written by process {holder(folder) or 'unknown'}, which is neither `serve` nor `learn` "
                "of this release: wait for its end (an import?), or stop it; nothing was forgotten yet"
            )


def _order(at: Installation, names: frozenset[str], kind: str, found: Found) -> Forget:
    from millstream.features.events import keys_of  # brings the compiler

    salt = os.urandom(_SALT_BYTES)
    return Forget(
        at=at.clock.now(),
        kind=kind,
        salt=salt,
        digests=sorted(digest(name, salt) for name in names),
        keys=keys_of(sorted(names)).tolist(),
        cut=found.cut,
        served="served" in found.records,
    )


def _drop(at: Installation, join: Operation, order: Forget, report: Report) -> None:
    """What `learn` does, where none runs; what the join has not read yet, it will find cleared."""
    if order.served and at.settings.learn.model:
        deltas = at.log.writer("deltas")
        learning = Learning(at.settings.learn, at.repository, at.log, deltas, at.clock, Meter(), also=at.also)
        report.bases += learning.rebase(at.log.reader("examples").end(0) - 1)
        deltas.close()
    if order.kind == "user":
        report.waiting += join.forget(Names.of(order))
    for part in (at.folder / "state").glob(".join.snapshot.*.part"):  # of a process that was killed
        part.unlink(missing_ok=True)


def _files(at: Installation, order: Forget, requests: set[str], report: Report) -> None:
    import numpy as np

    from millstream.features.forget import forget as forget_files
    from millstream.flows.speech import kept, store

    for pattern in ("*.npz", ".*.npz.part"):  # of servers that do not run, or were killed: they read the log again
        for page in at.live.rglob(pattern):
            page.unlink(missing_ok=True)
    if order.kind == "user":
        gone_rows, unread = datasets.forget(at.folder / "datasets", Names.of(order))
        report.labelled += gone_rows
        named = Names.of(order)

        def theirs(session: str) -> bool:
            return session in requests or named(session)

        report.audio += kept.forget(at.folder / "state" / "review-audio", theirs)
        report.sessions += store.forget(at.folder / "state" / "speech", theirs)
        report.damaged += unread
    gone = forget_files(at.rows, order.kind, np.array(order.keys, np.uint64), Names.of(order))
    report.rows += gone.rows
    report.snapshots += gone.snapshots


class _Roles:
    """The roles that run, and what they answered. `learns`: this process is `learn` meanwhile."""

    def __init__(self, at: Installation, wait_s: float, learns: bool) -> None:
        self._log, self._clock, self._wait_s, self._learns = at.log, at.clock, wait_s, learns
        self._shards = {SHARD + number: at.run / f"recall-{number}" for number in range(at.settings.recall.shards)}
        self._reader, self._read = at.log.reader(TOPIC), dict[int, int]()
        self._answers: dict[tuple[int, int, int], dict[str, int]] = {}

    async def obey(self, orders: Writer, order: Roll | Forget) -> int:
        """Give an order and wait until all have done it; its offset. Busy."""
        offset = orders.append(b"", encode(order))
        await self.answered(offset)
        return offset

    async def answered(self, offset: int) -> None:
        """Wait until every role that runs now has done an order. Busy."""
        until = self._clock.monotonic() + self._wait_s
        while missing := self._missing(offset):
            if self._clock.monotonic() > until:
                raise Busy(
                    f"{' and '.join(missing)} did not answer within {self._wait_s:.0f} s: starting, far behind, or of "
                    "an earlier release; not everything is forgotten. Run this again"
                )
            await self._clock.sleep(LOOK_S)

    def count(self, offset: int, report: Report) -> None:
        """Add what the roles removed."""
        names: set[str] = set()
        for (of, partition, _), counts in self._answers.items():
            if of == offset:
                names.add(_name(partition))
                for name, count in counts.items():
                    setattr(report, name, getattr(report, name) + count)
        report.roles = sorted(names)

    def _missing(self, offset: int) -> list[str]:
        """Roles that run and have not done an order."""
        self._listen()
        return [
            f"{_name(partition)} (process {process})"
            for partition, process in self._running()
            if not any((of, by) == (offset, partition) and process == str(pid) for of, by, pid in self._answers)
        ]

    def _running(self) -> Iterator[tuple[int, str]]:
        """(partition of the topic, process) of each role."""
        if not self._learns and (process := holder(self._log.root / "examples" / "0")):
            yield LEARN, process
        for partition in self._log.reader("served").partitions():
            if process := holder(self._log.root / "served" / str(partition)):
                yield SERVE + partition, process
        for partition, folder in self._shards.items():
            if process := holder(folder):
                yield partition, process

    def _listen(self) -> None:
        for partition in self._reader.partitions():
            for record in self._reader.records(partition, self._read.get(partition, 0)) if partition else ():
                self._read[partition] = record.offset + 1
                event = decode(record.value)
                if isinstance(event, Forgot):
                    self._answers[event.of, partition, event.by] = event.counts


def _name(partition: int) -> str:
    if partition >= SHARD:
        return f"recall-{partition - SHARD}"
    return "learn" if partition == LEARN else f"serve-{partition - SERVE}"


def _stays(at: Installation) -> list[Stays]:
    """What is out of reach here; docs/forget.md says more."""
    found = [
        Stays("backups", "you delete them; after restoring an older one run this again"),
        Stays("files of `features export`, tables of `materialise`", "you delete the days and export them again"),
        Stays("rows of other entities that hold the name's hash (last_n, top_k ...)", "their window or n has passed"),
        Stays("ids of this person's events, as hashes, in snapshots", "the source's `again` (an hour) has passed"),
    ]
    if any(at.indexes.rglob("index.toml")):
        found.append(Stays("likes without a name in indexes (state/recall)", "`learn` has built two newer ones"))
    for model in sorted({at.model, at.ranker, at.settings.recall.towers} & set(at.repository.models())):
        until = "`millstream train offline`, and older versions removed"
        found.append(Stays(f"weights of {model} that were learnt", until))
    if any((at.folder / "models").glob("*/watch/recorded.jsonl")):
        found.append(Stays("models/*/watch/recorded.jsonl, which does not say whose", "newer requests replace it"))
    return found
