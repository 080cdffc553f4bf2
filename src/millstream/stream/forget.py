"""Take what somebody's records say out of the log: which records these are, and segments without what they said.

Rules of the room:
- Only segments that nobody writes any more are looked at: those before the last one of a partition, wholly synced. Who
  wants everything has the writers roll first.
- A segment is written aside and renamed over: at any moment it is the old one or the new one. A reader that has the old
  one open goes on in it; every frame, record and offset is at the same byte in the new one.
- A record that goes becomes `Forgotten`, as long as it was, without its key. All other bytes but its frame's checksum
  stay. What was cleared once is found no more: doing it again changes nothing.
- Whose a record is: `Served` by its user; what people did, examples and shadows by the request that was served to
  them; facts by the column of the kind; users by their id; samples of reads by their keys; reviews by their user or
  request, and labels by the review. A request id that somebody else was served under too is theirs as well, so what
  hangs on it stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from millstream import errors
from millstream.guard.pii import pseudonym
from millstream.store.blob import locked, writing
from millstream.stream import segment
from millstream.stream.event import decode
from millstream.stream.log import Log
from millstream.stream.segment import FRAME, PREFIX, RECORD, BadFrame, Frame, Mark
from millstream.types import Entity, Fact, FeaturesRead, Forget, Merge, Served

TOPIC: Final = "forget"
REVIEWS: Final = "reviews"
BY_REQUEST: Final = ("outcomes", "examples", "shadow")
NOBODYS: Final = frozenset(("deltas", "policy", "items", "readings", "alerts", TOPIC))
"""Topics without people who are served: weights, changes of traffic by operators, items, sums that the role `watch`
read and what it said of them."""
_HEAD: Final = b"\x82\xa4type\xa9forgotten\xa3pad\xc6"  # a map of the tag and of so many bytes, a u32 that follows
_LEAST: Final = len(_HEAD) + 4
_COPY_BYTES: Final = 1 << 20

Mine = Callable[[bytes], bool]
"""Whether a record is to go, by its value."""


class Found(msgspec.Struct):
    """Records that are to go. `segments`: path -> (byte where the frame begins, bytes where its records begin);
    `records`: how many by topic; `cut`: the offset after the last record that was looked at, by topic and partition;
    `requests`: theirs alone; `shared`: requests that others were served under too; `damaged`: what could not be read,
    and may hold them still."""

    segments: dict[Path, list[tuple[int, list[int]]]] = {}
    records: dict[str, int] = {}
    cut: dict[str, dict[int, int]] = {}
    requests: set[str] = set()
    shared: int = 0
    damaged: list[str] = []


class Names:
    """Tells the names that were digested, without knowing them."""

    def __init__(self, salt: bytes, digests: Collection[bytes]) -> None:
        self._salt, self._digests = salt, frozenset(digests)

    @classmethod
    def of(cls, event: Forget) -> Names:
        """The names that an event is about."""
        return cls(event.salt, event.digests)

    def __call__(self, name: str) -> bool:
        return digest(name, self._salt) in self._digests


def digest(name: str, salt: bytes) -> bytes:
    """What stands for a name in a `Forget` event."""
    return blake2b(name.encode("utf-8", "surrogatepass"), key=salt, digest_size=16).digest()


def spellings(names: Collection[str]) -> frozenset[str]:
    """The names as they were given, and as the log has them."""
    return frozenset(names) | {pseudonym(name) for name in names}


def with_visitors(log: Log, names: frozenset[str]) -> frozenset[str]:
    """The names, and those of the visitors who turned out to be one of them. Damaged records are passed over."""
    reader, merges = log.reader("identities"), []
    for partition in reader.partitions():
        with suppress(errors.Corrupt):
            events = (decode(record.value) for record in reader.records(partition))
            merges += [event for event in events if isinstance(event, Merge)]
    while more := {one.visitor for one in merges if one.user in names} - names:
        names |= more
    return names


def find(log: Log, names: Collection[str], kind: str = "user") -> Found:
    """The records of entities of a kind, by all their names (`spellings`), in what is written no more."""
    found, known = Found(), [name.encode("utf-8", "surrogatepass") for name in names]

    def named(value: bytes) -> bool:
        return any(name in value for name in known) and _about(value, names, kind)

    topics = [topic for topic in log.topics() if topic not in NOBODYS]
    _look(log, "served", _served_to(names, known, found.requests) if kind == "user" else named, found)
    if found.requests:
        others: set[str] = set()
        _look(log, "served", _served_to_others(names, found.requests, others), Found())
        found.requests -= others
        found.shared = len(others)
    for topic in topics:
        if topic == REVIEWS and kind == "user":
            _look(log, topic, _reviewed(log, names, found.requests), found)
        elif topic != "served":
            _look(log, topic, _of_requests(found.requests) if topic in BY_REQUEST else named, found)
    return found


def find_again(log: Log, found: Found, topic: str = "examples") -> None:
    """Look at a topic once more, for what was made meanwhile of what is going."""
    found.segments = {path: frames for path, frames in found.segments.items() if path.parent.parent.name != topic}
    found.records.pop(topic, None)
    _look(log, topic, _of_requests(found.requests), found)


def clear(found: Found) -> int:
    """Take what was found out of the log; how many segments were replaced. No room: Full, and the rest stays as it is.

    What was served goes last: whose the rest is follows from it, for who is killed here and does it again."""
    order = sorted(found.segments, key=lambda path: (path.parent.parent.name == "served", path))
    return sum(_replace(path, found.segments[path]) for path in order)


def tidy(log: Log) -> None:
    """Remove what an earlier run left half written, when it was killed. For one process at a time."""
    for topic in log.topics():
        for part in (log.root / topic).glob("*/.*.seg.part"):
            part.unlink(missing_ok=True)


def clear_orders(log: Log) -> None:
    """Take the orders to forget out of topic `forget`, as far as they are written no more: they are carried out."""
    found = Found()
    _look(log, TOPIC, lambda value: _tag(value) == "forget", found)
    clear(found)


class _Request(msgspec.Struct):
    request: str = ""


class _Tag(msgspec.Struct):
    type: str = ""


class _ServedTo(msgspec.Struct):
    """Whose a served event is; the rest of it is not read."""

    request: str = ""
    user: str = ""
    type: str = ""


class _Reviewed(msgspec.Struct):
    """Whose a review, or a label of one, is; the rest of it is not read."""

    id: str = ""
    request: str = ""
    user: str = ""
    type: str = ""


_request = msgspec.msgpack.Decoder(_Request).decode
_review = msgspec.msgpack.Decoder(_Reviewed).decode
_tagged = msgspec.msgpack.Decoder(_Tag).decode
_served = msgspec.msgpack.Decoder(_ServedTo).decode


def _tag(value: bytes) -> str:
    return _tagged(value).type


def _served_to(names: Collection[str], known: list[bytes], requests: set[str]) -> Mine:
    """Served events of these people; their requests are noted."""

    def mine(value: bytes) -> bool:
        if not any(name in value for name in known):
            return False
        event = decode(value)
        if not isinstance(event, Served) or event.user not in names:
            return False
        if event.request:
            requests.add(event.request)
        return True

    return mine


def _served_to_others(names: Collection[str], requests: set[str], others: set[str]) -> Mine:
    """Nothing; of these requests, those that somebody else was served under are noted."""

    def mine(value: bytes) -> bool:
        event = _served(value)
        if event.request in requests and event.user not in names and event.type == "served":
            others.add(event.request)
        return False

    return mine


def _of_requests(requests: set[str]) -> Mine:
    return lambda value: bool(requests) and _request(value).request in requests


def _reviewed(log: Log, names: Collection[str], requests: set[str]) -> Mine:
    """Reviews of what was served to these people, and the labels that others gave them, wherever those stand."""
    ids: set[str] = set()

    def noted(value: bytes) -> bool:
        one = _review(value)
        if one.type == "review" and (one.user in names or one.request in requests):
            ids.add(one.id)
        return False

    _look(log, REVIEWS, noted, Found())
    return lambda value: bool(ids) and _review(value).id in ids


def _about(value: bytes, names: Collection[str], kind: str) -> bool:
    """Whether an event is about an entity of the kind."""
    event = decode(value)
    if isinstance(event, Fact):
        return event.values.get(kind) in names
    if isinstance(event, FeaturesRead):
        return any(name in names for name in event.keys.get(kind, ()))
    if isinstance(event, Merge):
        return kind == "user" and (event.visitor in names or event.user in names)
    return isinstance(event, Entity) and kind == "user" and event.id in names


def _look(log: Log, topic: str, mine: Mine, found: Found) -> None:
    """Add the records of a topic that are to go."""
    count, cut = 0, found.cut.setdefault(topic, {})
    for partition in log.reader(topic).partitions():
        for base, path in _closed(log.root / topic / str(partition)):
            chosen: list[tuple[int, list[int]]] = []
            try:
                for frame, starts in _chosen(path, base, mine):
                    cut[partition] = max(cut.get(partition, 0), frame.next)
                    if starts:
                        chosen.append((frame.position, starts))
                        count += len(starts)
            except FileNotFoundError:  # retention has taken it
                continue
            except (errors.Corrupt, msgspec.MsgspecError) as error:
                why = str(error) if isinstance(error, BadFrame) else f"{path}: {error}"
                found.damaged += [why] if why not in found.damaged else []
            if chosen:
                found.segments[path] = chosen
    if count:
        found.records[topic] = found.records.get(topic, 0) + count


def _closed(folder: Path) -> list[tuple[int, Path]]:
    """(base, path) of the segments of a partition that nobody writes any more, nor mends after a power loss."""
    bases = segment.segments(folder)
    try:
        synced = Mark(folder / "committed").synced
    except FileNotFoundError:
        return []
    return [(base, segment.segment_path(folder, base)) for base, after in pairwise(bases) if after <= synced]


def _chosen(path: Path, base: int, mine: Mine) -> Iterator[tuple[Frame, list[int]]]:
    """Every frame of a segment that has records: (the frame, bytes where those that are to go begin)."""
    data = segment.mapped(path)
    for frame in segment.frames(path, base):
        at, starts = frame.records, []
        for _ in range(frame.count):
            key_length, value_length = RECORD.unpack_from(data, at)
            value = at + RECORD.size + key_length
            if mine(data[value : value + value_length]):
                starts.append(at)
            at = value + value_length
        if frame.count:
            yield frame, starts


def _replace(path: Path, frames: list[tuple[int, list[int]]]) -> int:
    """Put a segment without these records in the place of `path`; 0 where it is gone."""
    try:
        data = memoryview(segment.mapped(path))
        # The folder's lock is taken for the rename alone, and given back after it.
        with ExitStack() as held, writing(path) as file:
            for start in range(0, len(data), _COPY_BYTES):
                file.write(data[start : start + _COPY_BYTES])
            for position, starts in frames:
                file.seek(position)
                file.write(_cleared(data, position, starts))
            owner = path.stat()  # the service goes on with it, whoever runs this
            os.fchmod(file.fileno(), owner.st_mode & 0o777)
            with suppress(OSError):
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(file.fileno())
            held.enter_context(locked(path.parent))
            if not path.exists():
                raise FileNotFoundError(path)
    except FileNotFoundError:  # retention has taken it: what is gone must not come back
        return 0
    return 1


def _cleared(data: memoryview, position: int, starts: list[int]) -> bytes:
    """The frame at a byte of a segment, its records at `starts` without what they said."""
    length = FRAME.unpack_from(data, position)[0]
    frame = bytearray(data[position : position + PREFIX.size + length])
    for start in starts:
        at = start - position
        key_length, value_length = RECORD.unpack_from(frame, at)
        size = key_length + value_length
        if size < _LEAST:
            raise errors.Corrupt(f"byte {start}: a record of {size} bytes, and an event has {_LEAST} at least")
        pad = size - _LEAST
        RECORD.pack_into(frame, at, 0, size)
        at += RECORD.size
        frame[at : at + size] = _HEAD + pad.to_bytes(4, "big") + bytes(pad)
    segment.seal(frame)
    return bytes(frame)
