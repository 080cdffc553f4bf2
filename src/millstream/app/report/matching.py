"""Lists of the log with what was done with them, in memory that does not grow with the log.

Two passes: each list, and each outcome, goes to one of BUCKETS files by its request's hash, as a few bytes a place;
then each bucket is matched alone, in arrays. An outcome finds its list however long it took to come, and in whatever
order the two stand in the log; lists and outcomes told twice count once.

Rules of the room:
- Memory: some bytes of each bucket (buckets.py), what one bucket holds (1 of BUCKETS lists: 76 bytes a list, 16 a
  place, 33 an outcome, and some times that while it is matched), and the catalogue.
- On disk, below `state/` and gone with the process: those bytes of all.
- What cannot be read, or is no list, is counted and left out.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.app.report.buckets import Buckets
from millstream.errors import BadInput, Corrupt
from millstream.guard.tenants import start
from millstream.meter import Meter
from millstream.recall.catalogue import Catalogue
from millstream.stream import LenientReader, Log
from millstream.types import Forgotten, Outcome, Served
from millstream.watch.report.part import SOURCES, Floats, Part

BUCKETS: Final = 256
POLICIES_MAX: Final = 32
SAY_S: Final = 5.0
EXTRA: Final = 5
RANKINGS: Final = "(rankings)"
"""The placement of what was put in order without one: candidates of the caller's own."""
SHOWN, POSITIVE, CONVERTED, PAID, HIDDEN, DWELL, FIRST, SECOND = (1 << bit for bit in range(8))
NAMED: Final = (FIRST, SECOND)
"""Bits of the kinds that a meaning names."""
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)

_LIST: Final = np.dtype(
    [
        ("request", "<i8"), ("person", "<u8"), ("time", "<f8"), ("policy", "<u4"), ("paths", "<u4"), ("count", "<u4"),
        ("extra", "<f8", (EXTRA,)),
    ]
)  # fmt: skip
_PLACE: Final = np.dtype([("item", "<i8"), ("sources", "<u4"), ("price", "<f4")])
_OUTCOME: Final = np.dtype([("request", "<i8"), ("item", "<i8"), ("key", "<i8"), ("value", "<f8"), ("means", "u1")])
_VISIT: Final = np.dtype([("policy", "<u4"), ("person", "<u8"), ("time", "<f8")])
_list, _outcome, _visit = struct.Struct("<qQdIII5d"), struct.Struct("<qqqdB"), struct.Struct("<IQd")

Say = Callable[[str], None]
Weigh = Callable[[Any], tuple[float, ...] | None]
"""EXTRA numbers to be kept beside a list; None: none."""
Name = Callable[[Any], "Policy"]
"""The policy that made a list."""


class Listed(msgspec.Struct, frozen=True, tag="served", gc=False):
    """Of a served event what a report needs: what may be long beside it is passed over."""

    request: str
    model: str
    version: str
    user: str
    arm: str
    candidates: list[str]
    event_time: float
    scores: bytes = b""
    explored: int = -1
    placement: str = ""
    order: bytes = b""
    sources: bytes = b""
    paths: list[str] = []
    rules: str = ""
    rules_hash: str = ""
    prices: bytes = b""
    late: list[str] = []
    ranker: str = ""


class Policy(NamedTuple):
    """An arm of a placement, by the rules that it had; `hash` "" where the log does not say."""

    placement: str
    arm: str
    hash: str


class Meaning(NamedTuple):
    """What kinds of outcomes mean. `positives`: kind -> value from which it speaks for an item; `conversions`, whose
    values are money; `paid`: kinds on which an ad's price is due; `hidden`; `dwell`: seconds; `named`: kind -> value,
    of two kinds at most that are told apart."""

    positives: Mapping[str, float]
    conversions: tuple[str, ...]
    paid: tuple[str, ...]
    hidden: tuple[str, ...]
    dwell: str
    named: Mapping[str, float] = {}

    def of(self, kind: str, value: float) -> int:
        """The bits of an outcome."""
        if kind == "impression":
            return SHOWN
        positive = kind in self.positives and value >= self.positives[kind]
        converted = kind in self.conversions and value > 0
        found = SHOWN | POSITIVE * positive | CONVERTED * converted | HIDDEN * (kind in self.hidden)
        found |= PAID * (kind in self.paid and value > 0) | DWELL * (kind == self.dwell)
        if kind in self.named and value >= self.named[kind]:
            found |= NAMED[[*self.named].index(kind)]
        return found if found != SHOWN or kind in self.positives else 0


class Span(NamedTuple):
    """Lists of which time, unix seconds of their events; of which placement, "" for all; and of which tenant, where
    there are tenants."""

    since: float = -np.inf
    until: float = np.inf
    placement: str = ""
    tenant: str = ""


class Sample(NamedTuple):
    """A part of the log: records from these offsets on (topic -> partition), of one in `one_of` requests."""

    begin: Mapping[str, Mapping[int, int]] = {}
    one_of: int = 1

    def has(self, key: bytes) -> bool:
        """Whether a record of this key, its request, is of it."""
        return self.one_of == 1 or crc32(key) % self.one_of == 0


WHOLE: Final = Sample()


class Matched(NamedTuple):
    """A part of the log: `part`, and of its lists `time` [L], `extra` float64 [L, EXTRA], NaN where there was nothing
    to keep, and `first`, the place in `part` of each one's first position, -1 of an empty list; `means` uint8 [P]: the
    bits of all that was done with a place."""

    part: Part
    time: Floats
    extra: Floats
    first: NDArray[np.int64]
    means: NDArray[np.uint8]


class Matching:
    """Reads the log when it is made; then `parts` and `visits` give it back. `folder`: for the files in between;
    `event`: as what a list is decoded, which `weigh` and `name` are told."""

    def __init__(
        self, log: Log, folder: Path, span: Span, meaning: Meaning, weigh: Weigh | None, say: Say,
        event: type[Listed] | type[Served] = Listed, name: Name | None = None, sample: Sample = WHOLE,
    ) -> None:  # fmt: skip
        self._sample = sample
        self._span, self._meaning, self._weigh, self._said = span, meaning, weigh, _Said(say)
        self._name = name or by_rules
        self._start = start(span.tenant)
        self._lists, self._places, self._outcomes, self._visits = (
            Buckets(folder, kind, BUCKETS) for kind in (_LIST, _PLACE, _OUTCOME, _VISIT)
        )
        self._policies: dict[Policy, int] = {}
        self._sources: dict[str, int] = {}
        self._paths: dict[tuple[str, ...], int] = {}
        self.placements: list[str] = []
        self.lists = self.odd = self.unmatched = 0
        self.end = -np.inf
        try:
            self._read(log, "served", event, self._take_list)
            self._read(log, "outcomes", Outcome, self._take_outcome)
        except BaseException:
            self.close()
            raise

    @property
    def policies(self) -> list[Policy]:
        """All there are, by number."""
        return [*self._policies]

    @property
    def sources(self) -> list[str]:
        """What found items, by bit."""
        return [*self._sources]

    def close(self) -> None:
        """Give the disk back."""
        for one in (self._lists, self._places, self._outcomes, self._visits):
            one.close()

    def parts(self, catalogue: Catalogue, new_s: float) -> Iterator[Matched]:
        """The log, a bucket at a time. `new_s`: the age up to which an item is new, seconds."""
        items = _Items(catalogue)
        placement_of = np.array([self.placements.index(policy.placement) for policy in self._policies], np.int64)
        bits = self._bits()
        for bucket in range(BUCKETS):
            lists, places = _once(self._lists.of(bucket), self._places.of(bucket))
            outcomes = self._outcomes.of(bucket)
            if len(lists) or len(outcomes):
                yield self._matched(lists, places, outcomes, items, placement_of, bits, new_s)

    def visits(self) -> Iterator[NDArray[Any]]:
        """(policy, person, time) of lists of those who are known, each person's in one array."""
        for bucket in range(BUCKETS):
            yield self._visits.of(bucket)

    def _read(self, log: Log, topic: str, kind: Any, take: Callable[[Any], None]) -> None:
        reader = LenientReader(log.reader(topic), Meter())
        decode = msgspec.msgpack.Decoder(kind | Forgotten).decode
        partitions = reader.partitions()
        total, done = sum(reader.end(partition) for partition in partitions), 0
        for partition in partitions:
            for record in reader.records(partition, self._sample.begin.get(topic, {}).get(partition, 0)):
                done += 1
                if not self._sample.has(record.key):
                    continue
                try:
                    event = decode(record.value)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    reader.lose(Corrupt(f"partition {partition}, offset {record.offset}: {error}"))
                    continue
                if not isinstance(event, Forgotten):
                    take(event)
                if done % 1000 == 0:
                    self._said(f"{topic}: {done:,} of {total:,} read")

    def _take_list(self, event: Listed | Served) -> None:
        span = self._span
        if not span.since <= event.event_time <= span.until or span.placement not in ("", event.placement):
            return
        if not event.request.startswith(self._start):
            return
        try:
            places = _places(event)
        except (ValueError, IndexError):
            self.odd += 1
            return
        extra = self._weigh(event) if self._weigh is not None else None
        policy = self._policy(event)
        person = int.from_bytes(
            blake2b((event.user or event.request).encode(errors="surrogatepass"), digest_size=8).digest()
        )
        request = hash(event.request)
        bucket = request % BUCKETS
        self._lists.add(
            bucket,
            _list.pack(
                request, person, event.event_time, policy, self._path(event.paths), len(places),
                *(extra if extra is not None else (np.nan,) * EXTRA),
            ),
        )  # fmt: skip
        self._places.add(bucket, places.tobytes())
        if event.user:
            self._visits.add(person % BUCKETS, _visit.pack(policy, person, event.event_time))
        self.lists += 1
        self.end = max(self.end, event.event_time)

    def _take_outcome(self, event: Outcome) -> None:
        means = self._meaning.of(event.kind, event.value)
        if means and event.request and event.request.startswith(self._start):
            request = hash(event.request)
            packed = _outcome.pack(request, hash(event.item), hash(event.key()), _float(event.value), means)
            self._outcomes.add(request % BUCKETS, packed)

    def _policy(self, event: Listed | Served) -> int:
        policy = self._name(event)
        number = self._policies.get(policy)
        if number is None:
            number = self._policies[policy] = len(self._policies)
            if number == POLICIES_MAX:
                raise BadInput(
                    f"in this span there are more than {POLICIES_MAX} sets of rules; a shorter one (--since, --until), "
                    "or one placement (--placement), has fewer"
                )
            if policy.placement not in self.placements:
                self.placements.append(policy.placement)
        return number

    def _path(self, names: list[str]) -> int:
        key = tuple(names)
        number = self._paths.get(key)
        if number is None:
            number = self._paths[key] = len(self._paths)
            for name in names:
                if len(self._sources) < SOURCES:
                    self._sources.setdefault(name, len(self._sources))
        return number

    def _bits(self) -> NDArray[np.uint32]:
        """[sets of paths, 32]: what a bit of each set is in `sources`."""
        found = np.zeros((max(1, len(self._paths)), 32), np.uint32)
        for names, number in self._paths.items():
            for bit, name in enumerate(names[:32]):
                found[number, bit] = 1 << self._sources[name] if name in self._sources else 0
        return found

    def _matched(
        self, lists: NDArray[Any], places: NDArray[Any], outcomes: NDArray[Any], items: _Items,
        placement_of: NDArray[np.int64], bits: NDArray[np.uint32], new_s: float,
    ) -> Matched:  # fmt: skip
        count = lists["count"].astype(np.int64)
        starts = np.cumsum(count) - count
        of = np.repeat(np.arange(len(lists)), count)
        number = items.numbers(places["item"])
        done = self._done(_keys(lists["request"][of], places["item"]), outcomes)
        paid = np.where(done.means & PAID, np.nan_to_num(places["price"]), 0.0)
        part = Part(
            policy=lists["policy"].astype(np.int64),
            placement=placement_of[lists["policy"]],
            person=lists["person"],
            of=of,
            position=np.arange(len(of)) - starts[of],
            item=number,
            sources=_translated(places["sources"], lists["paths"][of], bits),
            shown=(done.means & SHOWN) > 0,
            positive=(done.means & POSITIVE) > 0,
            converted=(done.means & CONVERTED) > 0,
            hidden=(done.means & HIDDEN) > 0,
            new=(number >= 0) & (lists["time"][of] - items.created[number] <= new_s),
            category=np.where(number >= 0, items.category[number], -1),
            dwell_s=np.where(done.means & DWELL, done.dwell_s, np.nan),
            revenue=done.money + paid,
        )
        first = np.where(count > 0, starts, -1)
        return Matched(part, lists["time"].astype(np.float64), lists["extra"].astype(np.float64), first, done.means)

    def _done(self, keys: NDArray[np.uint64], outcomes: NDArray[Any]) -> _Done:
        """What was done with each place of a list, by keys of request and item."""
        _, kept = np.unique(outcomes["key"], return_index=True)
        outcomes = outcomes[kept]
        order = np.argsort(keys)
        wanted = _keys(outcomes["request"], outcomes["item"])
        near = np.minimum(np.searchsorted(keys[order], wanted), max(len(keys) - 1, 0))
        hit = keys[order[near]] == wanted if len(keys) else np.zeros(len(wanted), np.bool_)
        self.unmatched += int((~hit).sum())
        place, outcomes = order[near[hit]], outcomes[hit]
        means = np.zeros(len(keys), np.uint8)
        np.bitwise_or.at(means, place, outcomes["means"])
        value = outcomes["value"].astype(np.float64)
        sold, stayed = (outcomes["means"] & CONVERTED) > 0, (outcomes["means"] & DWELL) > 0
        return _Done(
            means,
            np.asarray(np.bincount(place[sold], value[sold], len(keys)), np.float64),
            np.asarray(np.bincount(place[stayed], value[stayed], len(keys)), np.float64),
        )


def by_rules(event: Listed | Served) -> Policy:
    """The policy of a list: the rules that put it in order, or the arm of the model where there were none."""
    if event.placement:
        return Policy(event.placement, event.rules, event.rules_hash)
    return Policy(RANKINGS, event.arm, "")


class _Done(NamedTuple):
    means: NDArray[np.uint8]
    money: Floats
    dwell_s: Floats


class _Items:
    """Numbers, dates and categories of the catalogue's items, by hash of their names; the last row is of none."""

    def __init__(self, catalogue: Catalogue) -> None:
        names = catalogue.names(np.arange(catalogue.count, dtype=np.int32))
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]
        self.created = np.append(catalogue.created, np.nan)
        self.category = np.append(catalogue.category, -1)

    def numbers(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """-1 for those that are unknown."""
        if not len(self._hashes):
            return np.full(len(hashes), -1, np.int64)
        near = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.where(self._hashes[near] == hashes, self._order[near], -1).astype(np.int64)


class _Said:
    """Progress, now and then."""

    def __init__(self, say: Say) -> None:
        self._say, self._at = say, time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._at >= SAY_S:
            self._at = time.monotonic()
            self._say(line)


def _places(event: Listed | Served) -> NDArray[Any]:
    """The places of a list, first position first."""
    if event.placement:
        order = np.frombuffer(event.order, "<u4").astype(np.int64)
    else:  # what was answered: best first, after what chance put there
        scores = np.frombuffer(event.scores, "<f4") if event.scores else np.zeros(len(event.candidates), "<f4")
        order = np.argsort(-scores, kind="stable")  # without scores, as in imported history: as they were told
        if event.explored >= 0:
            order = np.concatenate(([event.explored], order[order != event.explored]))
    candidates = event.candidates
    found = np.zeros(len(order), _PLACE)
    found["item"] = [hash(candidates[place]) for place in order.tolist()]
    if event.sources:
        found["sources"] = np.frombuffer(event.sources, "<u4")[order]
    found["price"] = np.frombuffer(event.prices, "<f4") if event.prices else np.nan
    return found


def _once(lists: NDArray[Any], places: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lists without those that were logged a second time."""
    _, first = np.unique(lists["request"], return_index=True)
    if len(first) == len(lists):
        return lists, places
    kept = np.zeros(len(lists), np.bool_)
    kept[first] = True
    return lists[kept], places[np.repeat(kept, lists["count"])]


def _keys(request: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One number for a request and an item."""
    return np.asarray(request.astype(np.uint64) * _MIX + item.astype(np.uint64), np.uint64)


def _translated(sources: NDArray[np.uint32], paths: NDArray[np.uint32], bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    found = np.zeros(len(sources), np.uint32)
    for bit in range(32):
        has = (sources >> np.uint32(bit)) & 1 > 0
        if has.any():
            found[has] |= bits[paths[has], bit]
    return found


def _float(value: float) -> float:
    """As a number that sums stay numbers with."""
    return min(max(value, -1e15), 1e15) if value == value else 0.0
