"""Who liked what, read from the log: the latest positives, as columns for a build.

Rules of the room:
- Topics `served` (who asked), `outcomes` (what they did) and `identities` (who is who) are followed together: an
  outcome waits until its request has been read, or until `served` has been read past its time.
- What counts is a kind with its threshold, as in the join's tasks. Requests of nobody do not: all of them together are
  no person. One person liking one item twice stays two rows; a build takes the later.
- Bounded: `positives_max` rows, the oldest go first, and with them the names that nothing else needs; `requests_max`
  requests. An outcome whose request is not there any more is counted and passed over.
- Where there are tenants it is about one, as live.py is.
- All of it can be read anew, so nothing is kept on disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.guard.tenants import start
from millstream.meter import Meter
from millstream.recall.cooccur import Positives
from millstream.stream.lenient import LenientReader
from millstream.stream.log import Log
from millstream.stream.reader import Reader
from millstream.types import Forgotten, Merge, Outcome

STEP: Final = 2_000  # events of a topic at a time
SLACK_S: Final = 60.0  # by so much may the clocks of two processes differ
_MERGES: Final = 100_000  # visitors who are remembered to be users


_NOBODY: Final = b"\x90"  # an empty list: plain inference, which recommends nothing


class _Served(msgspec.Struct, frozen=True, tag="served", gc=False):
    """Of a served event what is needed here: the rest, which may be long, is passed over."""

    request: str
    user: str
    candidates: msgspec.Raw
    event_time: float


_DECODE: Final[dict[str, Callable[[bytes], Any]]] = {
    "served": msgspec.msgpack.Decoder(_Served | Forgotten).decode,
    "outcomes": msgspec.msgpack.Decoder(Outcome | Forgotten).decode,
    "identities": msgspec.msgpack.Decoder(Merge | Forgotten).decode,
}


class Gathered(NamedTuple):
    """What a build is made of: `positives` over rows of `items`; `users`: how many rows people have."""

    positives: Positives
    items: list[str]
    users: int


class Liked:
    """The positives so far. One thread uses it. `total`: read since the start; `lost`: outcomes without a request of
    somebody."""

    def __init__(
        self, log: Log, meter: Meter, kinds: Mapping[str, float], positives_max: int, requests_max: int,
        tenant: str = "",
    ) -> None:  # fmt: skip
        self._kinds, self._most, self._requests_max = dict(kinds), positives_max, requests_max
        mine = start(tenant).encode()
        self._topics = {name: _Topic(log.reader(name), meter, mine) for name in ("served", "outcomes", "identities")}
        self._requests: OrderedDict[str, str] = OrderedDict()
        self._same: OrderedDict[str, str] = OrderedDict()
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._columns = Positives(np.empty(64, np.int32), np.empty(64, np.int32), np.empty(64, np.float64))
        self._count = self.total = self.lost = 0

    @property
    def offsets(self) -> dict[str, dict[str, int]]:
        """Topic -> partition -> the first record that has not been read."""
        return {name: {str(p): at for p, at in topic.at.items()} for name, topic in self._topics.items()}

    def step(self) -> int:
        """Read on by a bounded number of events; how many they were, 0 at the end."""
        ends = self._topics["outcomes"].ends()  # requests of what comes after these may not have been read
        return self._merges() + self._served() + self._outcomes(ends)

    def reached(self, cut: Mapping[str, Mapping[int, int]]) -> bool:
        """Whether everything that can be read before these offsets, by topic and partition, has been taken; topics that
        are not read here are nobody's."""
        return all(topic.past(cut.get(name, {})) for name, topic in self._topics.items())

    def gathered(self) -> Gathered:
        """The latest positives, in copies: rows are those of people and items that have any."""
        return self.copied()()

    def people(self) -> list[str]:
        """Who the rows of people are that `gathered` gives now."""
        names = list(self._users)
        return [names[row] for row in np.unique(self._same_rows()[self._columns.users[: self._count]]).tolist()]

    def copied(self) -> Callable[[], Gathered]:
        """What `gathered` is now: copied here, sorted by who calls it, in any thread and at any time."""
        columns = Positives(*(column[: self._count].copy() for column in self._columns))  # type: ignore[arg-type]
        return partial(_gathered, columns, self._same_rows(), list(self._items))

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Leave out whoever `mine` says, with all they liked; how many they were."""
        gone = [user for user in self._users if mine(user)]
        if gone:
            rows = np.array([self._users[user] for user in gone], np.int32)
            self._keep(~np.isin(self._columns.users[: self._count], rows))
        for names in (self._requests, self._same):
            for key in [key for key, user in names.items() if mine(user) or mine(key)]:
                del names[key]
        return len(gone)

    def _merges(self) -> int:
        read = 0
        for event in self._topics["identities"].read():
            read += 1
            if isinstance(event, Merge) and (user := self._name(event.user)) != event.visitor:
                self._same[event.visitor] = user
                self._same.move_to_end(event.visitor)
                if len(self._same) > _MERGES:
                    self._same.popitem(last=False)
        return read

    def _name(self, user: str) -> str:
        """Who this is, as Histories.name says it. Merges make no ring: nobody is merged into who they are already."""
        while (other := self._same.get(user)) is not None:
            user = other
        return user

    def _served(self) -> int:
        read = 0
        for event in self._topics["served"].read():
            read += 1
            if isinstance(event, _Served) and event.user and event.candidates != _NOBODY:
                self._requests[event.request] = event.user
                if len(self._requests) > self._requests_max:
                    self._requests.popitem(last=False)
        return read

    def _outcomes(self, ends: dict[int, int]) -> int:
        """What can be told now: the rest stays where it is."""
        read = 0
        for event in self._topics["outcomes"].read(ends, self._waits):
            read += 1
            if not isinstance(event, Outcome) or not self._likes(event):
                continue
            user = self._requests.get(event.request)
            if user is None:
                self.lost += 1
            else:
                self._add(user, event.item, event.event_time)
        return read

    def _likes(self, event: Outcome) -> bool:
        least = self._kinds.get(event.kind)
        return least is not None and event.value >= least

    def _waits(self, event: object) -> bool:
        """Whether the request of an outcome may still come."""
        if not isinstance(event, Outcome) or not self._likes(event) or event.request in self._requests:
            return False
        return self._topics["served"].reached < event.event_time + SLACK_S

    def _add(self, user: str, item: str, time: float) -> None:
        at = self._count
        if at == len(self._columns.users):
            whose, what, when = self._columns
            self._columns = Positives(np.resize(whose, 2 * at), np.resize(what, 2 * at), np.resize(when, 2 * at))
        users, items, times = self._columns
        users[at] = self._users.setdefault(user, len(self._users))
        items[at] = self._items.setdefault(item, len(self._items))
        times[at] = time
        self._count, self.total = at + 1, self.total + 1
        if self._count >= self._most + max(self._most // 4, 1):
            kept = np.zeros(self._count, np.bool_)
            kept[self._count - self._most :] = True
            self._keep(kept)

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        """Only these rows, and the names that they need."""
        rows, columns = np.flatnonzero(kept), self._columns
        self._users, users = _renumbered(self._users, columns.users[rows])
        self._items, items = _renumbered(self._items, columns.items[rows])
        self._count, room = len(rows), np.zeros(64, np.int32)  # doubling needs something to double
        self._columns = Positives(
            np.append(users, room), np.append(items, room), np.append(columns.times[rows], room.astype(np.float64))
        )

    def _same_rows(self) -> NDArray[np.int32]:
        """For each row of people that of who they turned out to be."""
        same = np.arange(len(self._users), dtype=np.int32)
        for visitor in self._same:
            row = self._users.get(visitor, -1)
            if row >= 0:
                same[row] = self._users.get(self._name(visitor), row)
        return same


class _Topic:
    """Where a follower stands. `reached`: the time up to which every partition has been read; infinite at the end."""

    def __init__(self, reader: Reader, meter: Meter, mine: bytes) -> None:
        self._lenient, self._decode, self._mine = LenientReader(reader, meter), _DECODE[reader.topic], mine
        self.at: dict[int, int] = {}
        self._times: dict[int, float] = {}
        self.reached = float("-inf")

    def ends(self) -> dict[int, int]:
        """Partition -> the offset after its last record; 0 where that cannot be told."""
        return {partition: self._lenient.end(partition) for partition in self._lenient.partitions()}

    def past(self, cut: Mapping[int, int]) -> bool:
        """Whether everything that can be read before these offsets has been read."""
        return all(
            self._lenient.past(partition, self.at.get(partition, 0), offset) for partition, offset in cut.items()
        )

    def read(
        self, ends: dict[int, int] | None = None, waits: Callable[[object], bool] = lambda _: False
    ) -> Iterator[object]:
        """The next STEP events of each partition, up to `ends` or to one that waits; of those that are ahead of another
        in time, none."""
        behind = []
        slowest = self.reached
        for partition in self.ends() if ends is None else ends:
            if self._times.get(partition, float("-inf")) > slowest:  # the others first: so few requests are held
                behind.append(self._times[partition])
                continue
            begin = at = self.at.get(partition, 0)
            for record, event in self._lenient.decoded(partition, at, self._decode, self._mine):
                bound = ends is not None and record.offset >= ends[partition]
                if bound or record.offset - begin >= STEP or waits(event):
                    behind.append(self._times.get(partition, float("-inf")))
                    break
                self.at[partition] = record.offset + 1
                if isinstance(event, _Served | Outcome):
                    self._times[partition] = max(self._times.get(partition, float("-inf")), event.event_time)
                yield event
        self.reached = min(behind, default=float("inf"))


def _gathered(columns: Positives, same: NDArray[np.int32], names: list[str]) -> Gathered:
    users, whose = np.unique(same[columns.users], return_inverse=True)
    items, what = np.unique(columns.items, return_inverse=True)
    positives = Positives(whose.astype(np.int32), what.astype(np.int32), columns.times)
    return Gathered(positives, [names[row] for row in items.tolist()], len(users))


def _renumbered(names: dict[str, int], rows: NDArray[np.int32]) -> tuple[dict[str, int], NDArray[np.int32]]:
    used, numbered = np.unique(rows, return_inverse=True)
    listed = list(names)
    return {listed[row]: at for at, row in enumerate(used.tolist())}, numbered.astype(np.int32)
