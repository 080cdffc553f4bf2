"""What a process knows of items and people, followed from the log as it is written.

Rules of the room:
- It reads topics items, users and identities from their beginning, served and outcomes from `backlog_max` records
  before their end, or all from where a saved state left. What comes later in this order speaks of what comes before,
  and waits until that has been read to its end.
- The latest attributes of an item or a user count, by their arrival: each process writes a partition of its own.
- An outcome counts for the user of its request. One that comes before its request waits, `waiting_max` of them; told
  twice it counts once, within the last `outcomes_max`.
- Time is event time, and never later than its arrival: a client's clock that runs ahead moves nothing.
- Where there are tenants it knows one, whose records are those whose keys begin with its name (guard/tenants.py): what
  the others say, and how much, changes nothing here.
- What cannot be used is skipped and counted: answering goes on with what there is.
- One thread polls; others read.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import TooLarge
from millstream.guard.pii import VISITOR
from millstream.guard.tenants import outside, start
from millstream.meter import Meter
from millstream.recall.attributes import texts
from millstream.recall.catalogue import Catalogue
from millstream.recall.histories import Histories
from millstream.store.blob import writing
from millstream.stream import LenientReader, Log, Record
from millstream.types import Entity, Forgotten, Merge, Outcome

VERSION: Final = 2
TOPICS: Final = (("items", "users", "identities"), ("served",), ("outcomes",))
STEP: Final = 100_000  # records of a partition at a time, at a start
_LATELY: Final = ("served", "outcomes")
_CAUSES: Final = ("items_max", "attribute", "unknown_request", "unknown_item", "duplicate")
logger = logging.getLogger(__name__)

Count = Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]


class LiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What outcomes say of items and users, and how much of it is remembered."""

    kinds: Annotated[
        dict[str, float],
        msgspec.Meta(max_length=255, description="feedback kind = value from which it speaks for an item"),
    ] = msgspec.field(default_factory=lambda: {"click": 1.0, "like": 1.0, "purchase": 1.0})
    blocks: Annotated[
        tuple[str, ...], msgspec.Meta(description="feedback kinds after which the user gets the item no more")
    ] = ("block", "hide")
    segment: Annotated[
        str, msgspec.Meta(max_length=200, description="attribute of a user that says in which segment they are")
    ] = ""
    users_max: Annotated[Count, msgspec.Meta(description="users remembered; those heard of longest ago go first")] = (
        1_000_000
    )
    history_max: Annotated[
        int, msgspec.Meta(ge=1, le=10_000, description="things that a user did which are remembered")
    ] = 100
    shown_max: Annotated[
        int, msgspec.Meta(ge=1, le=10_000, description="items that a user was shown which are remembered")
    ] = 200
    blocks_max: Annotated[
        int, msgspec.Meta(ge=1, le=100_000, description="items that a user blocked which are remembered")
    ] = 500
    requests_max: Annotated[Count, msgspec.Meta(description="requests whose user is remembered, for outcomes")] = (
        200_000
    )
    waiting_max: Annotated[Count, msgspec.Meta(description="outcomes that wait for their request")] = 10_000
    outcomes_max: Annotated[
        Count, msgspec.Meta(description="outcomes remembered, so that one told again counts once")
    ] = 200_000
    backlog_max: Annotated[
        Count, msgspec.Meta(description="records of served and outcomes read at a start without a saved state")
    ] = 500_000

    def histories(self) -> Histories:
        """Empty histories of this size and of these kinds."""
        return Histories(tuple(self.kinds), self.history_max, self.users_max, self.shown_max, self.blocks_max)


class Listener(Protocol):
    """Who counts what is liked; Popular is one. `state`, `restore`, `clear` as there."""

    name: str

    def on_positive(self, user: str, number: int, time: float, segment: str) -> None: ...
    def state(self) -> dict[str, NDArray[Any]]: ...
    def restore(self, state: Mapping[str, NDArray[Any]]) -> None: ...
    def clear(self) -> None: ...


class _Served(msgspec.Struct, frozen=True, tag="served", gc=False):
    """Of a served event what is needed here: the rest, which may be long, is passed over."""

    request: str
    user: str


class _User(msgspec.Struct, frozen=True, tag="entity", gc=False):
    """A user with attributes as they lie in the log: most are never looked at."""

    id: str
    attributes: msgspec.Raw


_DECODE: Final[dict[str, Callable[[bytes], Any]]] = {
    "items": msgspec.msgpack.Decoder(Entity | Forgotten).decode,
    "users": msgspec.msgpack.Decoder(_User | Forgotten).decode,
    "identities": msgspec.msgpack.Decoder(Merge | Forgotten).decode,
    "served": msgspec.msgpack.Decoder(_Served | Forgotten).decode,
    "outcomes": msgspec.msgpack.Decoder(Outcome | Forgotten).decode,
}
_decode_attributes = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Live:
    """Follows the log into `catalogue` and `histories`, and keeps users' attributes. Users are named as the log names
    them (guard.pii.pseudonym). `tenant`: whose records count, "" for all."""

    def __init__(
        self, log: Log, catalogue: Catalogue, histories: Histories, meter: Meter, settings: LiveSettings | None = None,
        tenant: str = "", people: bool = True,
    ) -> None:  # fmt: skip
        """`people` false: of a user nothing is kept but who they are and their segment, for those who listen."""
        self._people = people
        self.catalogue, self.histories, self.settings = catalogue, histories, settings or LiveSettings()
        if missing := [kind for kind in self.settings.kinds if kind not in histories.kinds]:
            raise ValueError(f"histories keep {histories.kinds}, not {missing}; make them by settings.histories()")
        self.tenant, self._mine = tenant, start(tenant).encode()
        self._topics = {topic: LenientReader(log.reader(topic), meter) for topics in TOPICS for topic in topics}
        self._listeners: list[Listener] = []
        help_ = "Records that recall could not use."
        self._skipped = {
            cause: meter.counter("millstream_recall_skipped_total", help_, {"cause": cause}) for cause in _CAUSES
        }
        labels = {"tenant": tenant} if tenant else None
        self._items = meter.gauge("millstream_recall_items", "Items that recall knows.", labels, joined="max")
        self._requests_max = self.settings.requests_max
        self._begin()

    def _begin(self) -> None:
        self._at: dict[str, dict[int, int]] = {topic: {} for topic in self._topics}
        self._attributes: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # with their arrival
        self._requests: OrderedDict[str, str] = OrderedDict()
        self._waiting: OrderedDict[str, list[tuple[float, Outcome]]] = OrderedDict()
        self._waiting_count = 0
        self._lately: OrderedDict[int, None] = OrderedDict()

    def listen(self, listener: Listener) -> None:
        """Tell this one of everything liked from now on, and save its state with the rest. Before `restore`."""
        self._listeners.append(listener)

    def attributes(self, user: str) -> Mapping[str, Any]:
        """The attributes of a user as they are now; none of one who is not known."""
        found = self._attributes.get(self.histories.name(user))
        return _decode_attributes(found[1]) if found is not None else {}

    def users(self) -> list[str]:
        """Everybody with an account of whom something is known, as the log names them, in order of name."""
        return sorted(one for one in {*self._attributes, *self.histories.users()} if not self._visits(one))

    def _visits(self, name: str) -> bool:
        return outside(self.tenant, name).startswith(VISITOR)

    def segment(self, user: str) -> str:
        """The segment of a user; "" without one."""
        name = self.settings.segment
        found = texts(self.attributes(user).get(name), 1) if name else []
        return found[0] if found else ""

    def poll(self, most: int = 2000) -> int:
        """Take in what is new, up to `most` records of each partition: how many. 0: there is nothing new."""
        count = 0
        for topics in TOPICS:
            taken = [
                self._follow(topic, self._topics[topic], partition, most)
                for topic in topics
                for partition in self._topics[topic].partitions()
            ]
            count += sum(taken)
            if max(taken, default=0) >= most:
                break  # there may be more, of which the next topics speak
        self._items.set(self.catalogue.count)
        return count

    def catch_up(self) -> int:
        """Take in all there is, before anybody asks: how many records. Meanwhile it remembers the requests of a whole
        backlog, as their outcomes are read after all of them."""
        count, self._requests_max = 0, max(self.settings.requests_max, self.settings.backlog_max)
        try:
            with self.catalogue.together():
                while taken := self.poll(STEP):
                    count += taken
        finally:
            self._requests_max = self.settings.requests_max
        while len(self._requests) > self._requests_max:
            self._requests.popitem(last=False)
        return count

    def reached(self, cut: Mapping[str, Mapping[int, int]]) -> bool:
        """Whether everything that can be read before these offsets, by topic and partition, has been taken; topics that
        are not read here are nobody's. To be called by the thread that polls."""
        return all(
            reader.past(partition, self._at[topic].get(partition, 0), offset)
            for topic, reader in self._topics.items()
            for partition, offset in cut.get(topic, {}).items()
        )

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Forget users by their names: attributes, histories, whose request it was. How many were known. A state that
        was saved before still has them: save again."""
        known = {user for user in self._attributes if mine(user)}
        for user in known:
            del self._attributes[user]
        for request in [request for request, user in self._requests.items() if mine(user)]:
            del self._requests[request]
        return max(len(known), self.histories.forget(mine))

    def save(self, path: Path) -> None:
        """Write all that is known to `path`, in one step; nothing where somebody takes away what is half written, as
        `millstream forget` does. Disk full: Full. To be called by the thread that polls."""
        about = {
            "version": VERSION, "settings": self._stamp(), "at": self._at, "requests": list(self._requests.items()),
            "attributes": [(user, *one) for user, one in self._attributes.items()],
            "waiting": [one for several in self._waiting.values() for one in several],
        }  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {
            "about": np.frombuffer(msgspec.msgpack.encode(about), np.uint8),
            "lately": np.fromiter(self._lately, np.uint64, len(self._lately)),
        }
        for name, part in self._parts().items():
            arrays |= {f"{name}.{key}": array for key, array in part.state().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), writing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def restore(self, path: Path) -> bool:
        """Know what `save` wrote, and go on from there; whether it could be read. What is missing, damaged, or of other
        settings or another version is said, and everything begins anew."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            self._take(arrays)
            return True
        except FileNotFoundError:
            return False
        except Exception as error:  # a file that is damaged in any way at all
            logger.warning("%s is not used, the log is read again: %s", path, error)
            self._begin()
            for part in self._parts().values():
                part.clear()
            return False

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        about = msgspec.msgpack.decode(arrays["about"].tobytes(), type=_About)
        if about.version != VERSION or about.settings != self._stamp():
            raise ValueError("it is of another version, or of other settings")
        for name, part in self._parts().items():
            start = f"{name}."
            part.restore({key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)})
        self._begin()
        self._at |= about.at
        self._requests.update(about.requests)
        self._attributes.update((user, (told, one)) for user, told, one in about.attributes)
        self._lately.update(dict.fromkeys(arrays["lately"].tolist()))
        for arrival, outcome in about.waiting:
            self._wait(arrival, outcome)

    def _parts(self) -> dict[str, Catalogue | Histories | Listener]:
        return {"catalogue": self.catalogue, "histories": self.histories, **{one.name: one for one in self._listeners}}

    def _stamp(self) -> bytes:
        """What a state depends on: with other attributes, or kinds, the log says something else."""
        settings = self.settings
        said = self.catalogue.settings, settings.kinds, settings.blocks, settings.segment
        return msgspec.msgpack.encode(said if self._people else (*said, "nobody"))

    def _follow(self, topic: str, reader: LenientReader, partition: int, most: int) -> int:
        positions = self._at[topic]
        if partition not in positions:
            positions[partition] = self._start(topic, partition)
        count, take = 0, getattr(self, f"_on_{topic}")
        for record, event in reader.decoded(partition, positions[partition], _DECODE[topic], self._mine):
            positions[partition] = record.offset + 1
            if event is not None and type(event) is not Forgotten:
                take(record, event)
            count += 1
            if count >= most:
                break
        return count

    def _start(self, topic: str, partition: int) -> int:
        return max(0, self._topics[topic].end(partition) - self.settings.backlog_max) if topic in _LATELY else 0

    def _on_items(self, record: Record, item: Entity) -> None:
        odd = sum(self.catalogue.odd.values())
        try:
            self.catalogue.upsert(item.id, item.attributes, record.arrival)
        except TooLarge as error:
            if not self._skipped["items_max"].value:
                logger.error("%s is not recommended: %s; said once", item.id, error)
            self._skipped["items_max"].add()
        if more := sum(self.catalogue.odd.values()) - odd:
            self._skipped["attribute"].add(more)

    def _on_users(self, record: Record, user: _User) -> None:
        if user.id in self._attributes and record.arrival < self._attributes[user.id][0]:
            return
        if not self._people:
            if not (name := self.settings.segment):
                return
            said = _decode_attributes(user.attributes).get(name)
            user = _User(user.id, msgspec.Raw(msgspec.msgpack.encode({name: said})))
        self._attributes[user.id] = record.arrival, bytes(user.attributes)
        self._attributes.move_to_end(user.id)
        if len(self._attributes) > self.settings.users_max:
            self._attributes.popitem(last=False)

    def _on_identities(self, record: Record, merge: Merge) -> None:
        self.histories.merge(merge.visitor, merge.user)

    def _on_served(self, record: Record, served: _Served) -> None:
        if not served.user:
            return
        self._requests[served.request] = served.user
        if len(self._requests) > self._requests_max:
            self._requests.popitem(last=False)
        waiting = self._waiting.pop(served.request, ())
        self._waiting_count -= len(waiting)
        for arrival, outcome in waiting:
            self._count(served.user, arrival, outcome)

    def _on_outcomes(self, record: Record, outcome: Outcome) -> None:
        if not outcome.request or not self._means_something(outcome.kind):
            return
        key = int.from_bytes(blake2b(outcome.key().encode(), digest_size=8).digest(), "little")
        if key in self._lately:
            self._skipped["duplicate"].add()
            return
        self._lately[key] = None
        if len(self._lately) > self.settings.outcomes_max:
            self._lately.popitem(last=False)
        user = self._requests.get(outcome.request)
        if user is None:
            self._wait(record.arrival, outcome)
        else:
            self._count(user, record.arrival, outcome)

    def _means_something(self, kind: str) -> bool:
        return kind == "impression" or kind in self.settings.kinds or kind in self.settings.blocks

    def _wait(self, arrival: float, outcome: Outcome) -> None:
        self._waiting.setdefault(outcome.request, []).append((arrival, outcome))
        self._waiting_count += 1
        while self._waiting_count > self.settings.waiting_max:
            gone = len(self._waiting.popitem(last=False)[1])
            self._waiting_count -= gone
            self._skipped["unknown_request"].add(gone)

    def _count(self, user: str, arrival: float, outcome: Outcome) -> None:
        catalogue, kind, user = self.catalogue, outcome.kind, self.histories.name(user)
        number = catalogue.number(outcome.item)
        if number < 0:
            self._skipped["unknown_item"].add()
            return
        time = outcome.event_time if 0 < outcome.event_time < arrival else arrival
        if kind == "impression":
            catalogue.impressions[number] += 1
            if self._people:
                self.histories.show(user, number, time)
        elif kind in self.settings.blocks:
            if self._people:
                self.histories.block(user, number, time)
        elif outcome.value >= self.settings.kinds[kind]:
            catalogue.positives[number] += 1
            if self._people:
                self.histories.add(user, number, kind, time)
            segment = self.segment(user)
            for listener in self._listeners:
                listener.on_positive(user, number, time, segment)


class _About(msgspec.Struct):
    version: int
    settings: bytes
    at: dict[str, dict[int, int]]
    requests: list[tuple[str, str]]
    attributes: list[tuple[str, float, bytes]]
    waiting: list[tuple[float, Outcome]]
