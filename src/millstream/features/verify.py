"""Whether what was served is what training would see: samples of reads, recomputed from the log as of their time.

Each value that was read ends in one of these:

    equal      it is the value as of the time of the read
    late       it is the value as of the rows' own time: something came, or a window moved on, between that and the read
    ttl        there was no row any more
    version    the definition that made it is not here any more
    retention  the log begins later than the set's events, or somebody was forgotten, so nothing can be said
    code       none of these: a fault in the program, or in the files it read
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.features.events import Events
from millstream.features.matrix import Columns
from millstream.features.plan import Values
from millstream.features.replay import events_in, matrix, whole
from millstream.features.sets import FeatureSet
from millstream.features.state import State
from millstream.stream.log import Log
from millstream.types import FeaturesRead, Forgotten

TOPIC: Final = "features_read"
CAUSES: Final = ("equal", "late", "ttl", "version", "retention", "code")
SHOWN_MAX: Final = 20


class Odd(msgspec.Struct, frozen=True):
    """A value that nothing explains."""

    features: str
    column: str
    keys: dict[str, str]
    at: float
    read: float | None
    recomputed: float | None


class Verified(msgspec.Struct):
    """How many values ended where, by feature set, and some of those that nothing explains."""

    reads: int = 0
    values: dict[str, dict[str, int]] = {}
    odd: list[Odd] = []

    @property
    def sound(self) -> bool:
        """Whether everything is explained."""
        return not any(found["code"] for found in self.values.values())


def verify(sets: Mapping[str, FeatureSet], log: Log, events: Mapping[str, Events] | None = None) -> Verified:
    """Recompute every read of topic `features_read`. `events`: by source, what came before the log begins. Damage in
    the log: Corrupt."""
    reads = [event for _, event in whole(log, TOPIC) if isinstance(event, FeaturesRead)]
    found = Verified(len(reads), {})
    by_set: dict[tuple[str, str], list[FeaturesRead]] = {}
    for read in reads:
        by_set.setdefault((read.features, read.hash), []).append(read)
    for (name, hashed), some in by_set.items():
        counts = found.values.setdefault(name, dict.fromkeys(CAUSES, 0))
        features = sets.get(name)
        if features is None or features.hash != hashed:
            counts["version"] += sum(len(read.values) // 8 for read in some)
            continue
        before = events or {}
        came = {source.name: events_in(source, log, before.get(source.name)) for source in features.sources}
        _compare(features, some, came, counts, found.odd, partial(_begins_late, features, log, before))
    return found


class _Asked:
    """Reads of one set as rows: each row of a read is one."""

    def __init__(self, features: FeatureSet, reads: Sequence[FeaturesRead]) -> None:
        width = len(features.columns)
        self.read = np.concatenate([np.frombuffer(one.values, "<f8").reshape(-1, width) for one in reads])
        rows = [len(one.values) // 8 // width for one in reads]
        self.at = np.repeat(np.array([one.at for one in reads], np.int64), rows)
        self.as_of = np.repeat(np.array([one.as_of for one in reads], np.int64), rows)
        pairs = list(zip(reads, rows, strict=True))
        self.names = {
            kind: [name for one, n in pairs for name in _shared(one.keys[kind], n)] for kind in features.entities
        }
        self.request = {
            name: np.array([value for one, n in pairs for value in _shared(one.request[name], n)], np.float64)
            for name in Columns(features).request
        }


def _shared(values: Sequence[Any], n: int) -> list[Any]:
    """n of them: one may be that of all."""
    return list(values) * (n if len(values) == 1 else 1)


def _compare(
    features: FeatureSet, reads: Sequence[FeaturesRead], events: Mapping[str, Events], counts: dict[str, int],
    odd: list[Odd], begins_late: Callable[[], bool],
) -> None:  # fmt: skip
    asked = _Asked(features, reads)
    now = matrix(features, events, asked.names, asked.at, asked.at, asked.request)
    then = matrix(features, events, asked.names, asked.as_of, asked.at, asked.request)
    gone = _same(asked.read, _of_nothing(features, asked))
    equal = _same(asked.read, now)
    late = ~equal & (_same(asked.read, then) | ~_same(now, then))
    ttl = ~equal & ~late & gone
    code = ~(equal | late | ttl)
    for cause, which in (("equal", equal), ("late", late), ("ttl", ttl)):
        counts[cause] += int(which.sum())
    if not code.any():
        return
    if begins_late():  # it reads the log once more
        counts["retention"] += int(code.sum())
        return
    counts["code"] += int(code.sum())
    for row, column in np.argwhere(code)[: max(0, SHOWN_MAX - len(odd))].tolist():
        keys = {kind: names[row] for kind, names in asked.names.items()}
        values = [None if np.isnan(one) else float(one) for one in (asked.read[row, column], now[row, column])]
        odd.append(Odd(features.name, features.columns[column], keys, asked.at[row] / 1e6, *values))


def _of_nothing(features: FeatureSet, asked: _Asked) -> Values:
    n = len(asked.at)
    values = {kind: np.tile(table.plan.nothing, (n, 1)) for kind, table in State(features).entities.items()}
    made: NDArray[np.float64] = Columns(features).make(values, asked.request, n).astype(np.float64)
    return made


def _same(left: Values, right: Values) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (left == right) | (np.isnan(left) & np.isnan(right))
    return same


def _begins_late(features: FeatureSet, log: Log, before: Mapping[str, Events]) -> bool:
    """Whether retention, or `forget`, has taken events of a source of which nobody gave the earlier ones."""
    topics = {source.log_topic for source in features.sources if source.name not in before}
    topics |= {"served"} if "outcomes" in topics else set()
    readers = [log.reader(topic) for topic in topics]
    return any(reader.start(partition) > 0 for reader in readers for partition in reader.partitions()) or any(
        isinstance(event, Forgotten) for topic in topics for _, event in whole(log, topic)
    )
