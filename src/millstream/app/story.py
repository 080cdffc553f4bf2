"""The whole story of one request, told from the log and the repository: who asked, what was looked at, who answered,
what people did, what was learnt of it, and when that came back to people.

    served ──► shadow ──► outcomes ──► examples ──► deltas ──► served
      │ key      key        key           key         upto       version@delta
      └► users, items (what was known then)       policy history, manifests

Rules of the room:
- Nothing is written, and no service has to run. Damage and what retention took are told (`Story.notes`), and the rest
  of the story is told all the same.
- A request is looked for by the key of its records, newest segments first (stream/keyed.py); what came of it from its
  own time on. `since` and `until` say where its answer is looked for.
- Where there are tenants, names are told as the tenant calls them, and a story of one tenant has nothing of another's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec
import numpy as np

from millstream.app.installation import Installation
from millstream.app.tenants import NOBODYS
from millstream.app.trace import afterwards, answer
from millstream.app.trace.afterwards import BEFORE_S, Afterwards
from millstream.app.trace.told import (
    Answered,
    Asked,
    Candidate,
    Change,
    Feature,
    Happened,
    Learnt,
    Place,
    Pushed,
    Read,
    Seen,
    Story,
    said,
)
from millstream.errors import BadInput, Corrupt, Error, Misconfigured, NotFound
from millstream.guard.tenants import inside, outside, start
from millstream.stream.event import decode
from millstream.stream.keyed import Keyed, Progress
from millstream.stream.reader import Record
from millstream.types import Entity, FeaturesRead, Served, Shadow

__all__ = [
    "Answered", "Asked", "Candidate", "Change", "Feature", "Happened", "Learnt", "Place", "Pushed", "Read", "Seen",
    "Story", "tell",
]  # fmt: skip

ID_BYTES_MAX: Final = 65536
"""Longer than any id that a request may have."""
NAMED: Final = 100
"""Items of an answer whose attributes are looked up: the first of it, and those that people did something with."""
ENTITIES: Final = 1_000_000
"""Records of topic `items` that are looked at for them."""
READ_S: Final = 5.0
"""A logged read of features belongs to a request of the same person so near to it."""
Say = Callable[[str], None]


def tell(
    at: Installation, request: str, since: float = -math.inf, until: float = math.inf, tenant: str = "",
    say: Say = lambda line: None,
) -> Story:  # fmt: skip
    """The story of a request by its id, as its caller knows it. `since`, `until`: unix seconds between which it was
    answered; `tenant`: whose id that is, "" for whoever has it; `say`: is told how far the search is.

    NotFound: the log has nothing under that id in that time, or there is no such tenant; BadInput: it cannot be an id.
    """
    return _Telling(at, say).tell(request, since, until, tenant)


class _Telling:
    """One story in the making."""

    def __init__(self, at: Installation, say: Say) -> None:
        self._at, self._say = at, say
        self._passed = 0
        self._notes: list[str] = []

    def tell(self, request: str, since: float, until: float, tenant: str) -> Story:
        keys = self._keys(request, tenant)
        found, served, times = self._served(keys, since, until)
        if found is None:
            found, key = None, self._orphan(keys, request, since, until)
        else:
            key = found.key
        name = key.decode("utf-8", "surrogatepass")
        tenant = self._tenant_of(name)
        begin = found.arrival if found is not None else since if math.isfinite(since) else 0.0
        after = Afterwards(self._at, key, begin, math.inf, self._progress("records"))
        shadows = [event for _, event in after.events("shadow") if isinstance(event, Shadow)]
        told, made = after.outcomes(), after.made()
        happened = after.ends(told, made, begin if found is not None else told[0][0].arrival if told else 0.0)
        pushed, why = self._pushes(made)
        learnt = self._learnt(made, pushed, why)
        known = {one.offset: one.known for one in learnt}
        self._notes += after.notes
        event = served or Served(
            request=name, model="", version="", policy=0, arm="", user="", candidates=[], event_time=0.0
        )
        candidates = answer.candidates(event, shadows, self._notes)
        user, candidates = self._features(event, candidates, happened, found)
        story = Story(
            request=outside(tenant, name) if tenant else name.removeprefix(NOBODYS) if self._tenants else name,
            tenant=tenant,
            kind=_kind(served),
            said="",
            place=Place("served", found.partition, found.offset, found.arrival) if found is not None else None,
            asked=answer.asked(self._at, event, tenant, times),
            answered=answer.answered(self._at, event, shadows),
            user=user,
            candidates=candidates,
            reads=self._reads(event, found),
            outcomes=happened,
            examples=learnt,
            pushes=afterwards.told(self._at, pushed, known, self._progress("answers")),
            notes=self._notes,
        )
        if tenant:
            story = _of_tenant(story, tenant)
        return msgspec.structs.replace(story, said=said(story))

    @property
    def _tenants(self) -> Sequence[str]:
        return list(self._at.settings.recommend.tenants)

    def _keys(self, request: str, tenant: str) -> set[bytes]:
        """What the records of this id may have as their key."""
        if not request:
            raise BadInput("the request id is empty; it is the `id` of a request, or of its answer where none was sent")
        raw = request.encode("utf-8", "surrogatepass")
        if len(raw) > ID_BYTES_MAX:
            raise BadInput(f"the request id has {len(raw)} bytes; an id has {ID_BYTES_MAX} at most")
        tenants = self._tenants
        if tenant and tenant not in tenants:
            raise NotFound(f"tenant {tenant[:80]!r} is not configured; there are: {', '.join(tenants) or 'none'}")
        if tenant:
            return {inside(tenant, request).encode("utf-8", "surrogatepass")}
        if tenants:
            names = [NOBODYS + request, *(inside(one, request) for one in tenants)]
            return {name.encode("utf-8", "surrogatepass") for name in names}
        return {raw}

    def _tenant_of(self, name: str) -> str:
        return next((one for one in self._tenants if name.startswith(start(one))), "")

    def _progress(self, what: str) -> Progress:
        def passed(count: int) -> None:
            self._passed += count
            self._say(f"{self._passed:,} {what} looked at")

        return passed

    def _served(self, keys: set[bytes], since: float, until: float) -> tuple[Record | None, Served | None, int]:
        """The first record of the newest request of this name, its event, and how often it is there."""
        keyed = Keyed(self._at.log.reader("served"), self._progress("answers"))
        newest = next(keyed.newest(keys, since, until), None)
        self._notes += keyed.damaged
        if newest is None:
            return None, None, 0
        near = Keyed(self._at.log.reader("served"), self._progress("answers"))
        several = [*near.oldest({newest.key}, max(since, newest.arrival - BEFORE_S), newest.arrival + BEFORE_S)]
        first = several[0] if several else newest
        try:
            event = decode(first.value)
        except Corrupt as error:
            self._notes.append(f"topic served, partition {first.partition}, offset {first.offset}: {error}")
            return first, None, len(several)
        return first, event if isinstance(event, Served) else None, len(several)

    def _orphan(self, keys: set[bytes], request: str, since: float, until: float) -> bytes:
        """The key under which the log has at least outcomes; NotFound."""
        for topic in ("outcomes", "examples"):
            keyed = Keyed(self._at.log.reader(topic), self._progress("outcomes"))
            if (newest := next(keyed.newest(keys, since, until), None)) is not None:
                self._notes.append(
                    "its answer is not in the log: retention took it, the log was full when it was given, or nobody "
                    "ever gave one under this id"
                )
                return newest.key
            self._notes += keyed.damaged
        shown = request if len(request) <= 80 else request[:80] + "..."
        span = " in that time (--since, --until)" if math.isfinite(since) or math.isfinite(until) else ""
        raise NotFound(
            f"no request {shown!r} in the log{span}: it may be older than the log is kept (log.retain_s), its person "
            "may have been forgotten, or it is another installation's; `millstream log tail` shows ids of the last ones"
            + (f"; not readable: {self._notes[0]}" if self._notes else "")
        )

    def _pushes(self, made: afterwards.Made) -> tuple[list[afterwards.Found], dict[int, str]]:
        if not made.examples:
            return [], {}
        try:
            return afterwards.pushes(self._at, made.examples, self._progress("pushes"))
        except Error as error:
            self._notes.append(f"pushes: {error}")
            return [], {}

    def _learnt(self, made: afterwards.Made, pushed: Sequence[afterwards.Found], why: dict[int, str]) -> list[Learnt]:
        return [
            Learnt(
                offset=offset, item=one.item, task=one.task, form=one.form, label=one.label, weight=one.weight,
                score=one.score, event_time=one.event_time, arrival=one.arrival, known=one.arrival + one.wait_s,
                outcomes=one.outcomes, why_not=why.get(offset, ""),
                pushes=[number for number, push in enumerate(pushed) if offset in push.examples],
            )
            for offset, one in made.examples
        ]  # fmt: skip

    def _features(
        self, served: Served, candidates: list[Candidate], happened: Iterable[Happened], found: Record | None
    ) -> tuple[list[Feature], list[Candidate]]:
        """Features of the person, and candidates with theirs and their titles, where they can be told."""
        touched = {one.item for one in happened}
        wanted = {
            one.item for one in candidates if 0 < one.position <= NAMED or one.item in touched
        }  # fmt: skip
        until = found.arrival if found is not None else math.inf
        items = self._entities("items", wanted, until)
        title = self._at.settings.catalogue.title
        candidates = [
            msgspec.structs.replace(one, title=text)
            if isinstance(text := items.get(one.item, {}).get(title), str)
            else one
            for one in candidates
        ]
        if not served.tokens or not candidates:
            return [], candidates
        try:
            return self._named(served, candidates, wanted, items, until)
        except Error as error:  # settings without [features], the compiler is not installed
            self._notes.append(f"feature rows cannot be read: {error}")
            return [], candidates

    def _named(
        self, served: Served, candidates: list[Candidate], wanted: set[str], items: dict[str, dict[str, object]],
        until: float,
    ) -> tuple[list[Feature], list[Candidate]]:  # fmt: skip
        from millstream.app.trace.names import Naming, matrix

        definition = self._at.definition
        if definition.hash != served.definition:
            raise Misconfigured(
                f"definition {served.definition or 'none'} made them, and the settings have {definition.hash}"
            )
        rows = matrix(served.tokens, len(served.candidates), definition)
        if rows is None:
            raise Corrupt(f"{len(served.tokens)} bytes are no rows of {len(served.candidates)} candidates")
        naming, place = Naming(definition), {item: at for at, item in enumerate(served.candidates)}
        person = self._entities("users", {served.user} - {""}, until).get(served.user, {})
        user = naming.side("user", served.user, person, rows[0])
        shown = [one.item for one in candidates if one.item in wanted]
        kept = dict(zip(shown, naming.of_set(rows[[place[item] for item in shown]]), strict=True)) if shown else {}
        return user, [
            msgspec.structs.replace(
                one,
                features=naming.side("item", one.item, items.get(one.item, {}), rows[place[one.item]]) + kept[one.item],
            )
            if one.item in kept
            else one
            for one in candidates
        ]

    def _entities(self, topic: str, names: set[str], until: float) -> dict[str, dict[str, object]]:
        """Attributes as they were known then, of those of whom the log tells."""
        keys = {name.encode("utf-8", "surrogatepass"): name for name in names}
        found: dict[str, tuple[float, dict[str, object]]] = {}
        keyed = Keyed(self._at.log.reader(topic), self._progress(topic))
        for record in keyed.newest(keys, until=until) if keys else ():
            if record.arrival <= found.get(keys[record.key], (-math.inf,))[0]:
                continue
            try:
                event = decode(record.value)
            except Corrupt:
                continue
            if isinstance(event, Entity):
                found[keys[record.key]] = record.arrival, {**event.attributes}
            if len(found) == len(keys) or keyed.passed > ENTITIES:
                break
        return {name: attributes for name, (_, attributes) in found.items()}

    def _reads(self, served: Served, found: Record | None) -> list[Read]:
        """Logged reads of features about this person at that moment."""
        if found is None or not served.user:
            return []
        reads = []
        keyed = Keyed(self._at.log.reader("features_read"), self._progress("reads"))
        for record in keyed.oldest(None, found.arrival - READ_S, found.arrival + READ_S):
            try:
                event = decode(record.value)
            except Corrupt:
                continue
            if isinstance(event, FeaturesRead) and served.user in event.keys.get("user", ()):
                reads.append(self._read(event))
        return reads

    def _read(self, event: FeaturesRead) -> Read:
        rows = max((len(names) for names in event.keys.values()), default=0)
        columns: Sequence[str] = ()
        try:
            columns = next((one.columns for one in self._at.registry.sets.values() if one.hash == event.hash), ())
        except Error as error:
            self._notes.append(f"feature sets: {error}")
        width = len(event.values) // (8 * rows) if rows else 0
        values = np.frombuffer(event.values[: 8 * rows * width], "<f8").reshape(rows, width)
        names = columns if len(columns) == width else [f"column {number}" for number in range(width)]
        told = [
            {name: float(value) if math.isfinite(value) else None for name, value in zip(names, row, strict=True)}
            for row in values.tolist()
        ]
        return Read(event.features, event.hash, event.at / 1e6, event.as_of / 1e6, event.keys, told)


def _kind(served: Served | None) -> Literal["list", "ranking", "inference", "history", "unknown"]:
    if served is None:
        return "unknown"
    if served.version == answer.HISTORY:
        return "history"
    if not served.candidates and not served.placement:
        return "inference"
    return "list" if served.placement else "ranking"


def _of_tenant(story: Story, tenant: str) -> Story:
    """A story with its names as the tenant calls them."""
    replace = msgspec.structs.replace

    def mine(name: str) -> str:
        return outside(tenant, name)

    def key(of: str) -> str:
        begins = f"{start(tenant)}{story.request}/"  # of an outcome that has no id of its own: request/item/kind
        return f"{story.request}/{mine(of.removeprefix(begins))}" if of.startswith(begins) else mine(of)

    asked = replace(story.asked, user=mine(story.asked.user), history=[*map(mine, story.asked.history)])
    return replace(
        story,
        asked=asked,
        user=[_feature(one, "user.id", mine) for one in story.user],
        candidates=[
            replace(one, item=mine(one.item), features=[_feature(each, "item.id", mine) for each in one.features])
            for one in story.candidates
        ],
        reads=[
            replace(one, entities={kind: [*map(mine, names)] for kind, names in one.entities.items()})
            for one in story.reads
        ],
        outcomes=[replace(one, key=key(one.key), item=mine(one.item)) for one in story.outcomes],
        examples=[replace(one, item=mine(one.item), outcomes=[*map(key, one.outcomes)]) for one in story.examples],
        pushes=[_seen_by(one, mine, tenant) for one in story.pushes],
    )


def _feature(one: Feature, name: str, mine: Callable[[str], str]) -> Feature:
    return msgspec.structs.replace(one, values=[*map(mine, one.values)]) if one.name == name else one


def _seen_by(one: Pushed, mine: Callable[[str], str], tenant: str) -> Pushed:
    """A push; which request of another tenant was the first with it is nobody's business."""
    seen = one.seen
    if seen is None:
        return one
    name = mine(seen.request) if seen.request.startswith(start(tenant)) else ""
    return msgspec.structs.replace(one, seen=msgspec.structs.replace(seen, request=name))
