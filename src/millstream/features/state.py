"""What is remembered of every entity of a feature set, and the values that follow from it: compiled, one code for the
stream and for replays over history.

Rules of the room:
- Events are applied in the order in which they came. The same events in any batches give the same bits.
- A ring of tiles holds a window: events older than its far edge change nothing, whenever they come, so late events need
  no rule of their own; see docs/features.md.
- A value is read as of a time at or after the arrival of everything that was applied.
- Entities are bounded by `limit`: the events of others are not taken, and counted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millstream.features import tiles
from millstream.features.events import Copies, Events, Hashes, Places, Times
from millstream.features.plan import BASE, Plan, Values
from millstream.features.sets import FeatureSet
from millstream.machine import cores

log = logging.getLogger(__name__)


class State:
    """The state of all entities of a feature set."""

    def __init__(self, features: FeatureSet, limit: int = 10_000_000) -> None:
        self.features = features
        self.copies = {source.name: Copies(source) for source in features.sources}
        self.entities = {entity: Entities(Plan(features, entity), limit) for entity in features.entities}

    def apply(self, source: str, events: Events) -> dict[str, Times]:
        """Take events of a source, which came after those that were taken before. The places of the entities that they
        changed, by kind of entity; ascending, each once."""
        new = self.copies[source].new(events)
        if new is not None and not new.all():
            events = events.take(new)
        return {name: table.apply(source, events) for name, table in self.entities.items()}

    def replayed(
        self, events: Mapping[str, Events], keys: Mapping[str, Hashes], known: Times, at: Times
    ) -> dict[str, Values]:
        """By kind of entity the values [n, width] of n rows by what had arrived before `known`, as rows hold them, read
        as of `at`. `events`: by source all that it has had, each once, in the order in which they came; `keys`: n of
        each kind. The state itself stays as it is."""
        stored = {kind: np.tile(table.plan.nothing_stored, (len(known), 1)) for kind, table in self.entities.items()}
        with ThreadPoolExecutor(cores()) as threads:  # the kernels run without the GIL, each into columns of its own
            replays = [
                threads.submit(table.replay, source, some, keys[kind], known, stored[kind])
                for source, some in events.items()
                for kind, table in self.entities.items()
            ]
        for replay in replays:
            replay.result()
        plans = {kind: table.plan for kind, table in self.entities.items()}
        return {kind: plan.finish(plan.rounded(stored[kind]), at) for kind, plan in plans.items()}

    def read(self, entity: str, keys: Hashes, at: int) -> Values:
        """float64 [n, values]: of each entity its values as of `at` (microseconds), in the order of the set's
        aggregates, before they are stored as their datatypes. Missing: NaN, of tokens 0."""
        return self.entities[entity].read(keys, at)


class Entities:
    """The state of entities of one kind, a place each. See Plan for its layout."""

    def __init__(self, plan: Plan, limit: int) -> None:
        self.plan, self.limit, self.refused = plan, limit, 0
        self.places = Places()
        self._floats = np.zeros((0, plan.floats), np.float64)
        self._counts = np.zeros((0, plan.counts), np.uint32)
        self._registers = np.zeros((0, plan.registers), np.uint8)

    def apply(self, source: str, events: Events) -> Times:
        """Take events of a source; the places that they changed, ascending."""
        changed = [self._apply(feed, events) for feed in self.plan.feeds(source)] if len(events) else []
        if len(changed) == 1:
            return changed[0]
        return np.unique(np.concatenate(changed)) if changed else np.zeros(0, np.int64)

    def _apply(self, feed: Any, events: Events) -> Times:
        keys = events.texts[feed.key]
        room = self.places.count + len(keys) <= self.limit
        places = self.places.place(keys) if room else self._place_some(keys)
        self._make_room()
        used = np.array(sorted(feed.uses), np.int64)
        values, masks = feed.values(events), feed.masks(events)
        arrays = self._floats, self._counts, self._registers
        tiles.apply(places, events.times, values, masks, self.plan.bases, used, *arrays)
        return self._each_once(places)

    def _each_once(self, places: Times) -> Times:
        """The numbers of entities, ascending; a mark for each is quicker than sorting while there are not very many."""
        if self.places.count > 64 * len(places):
            return np.unique(places[places >= 0])
        marks = np.zeros(self.places.count + 1, np.bool_)
        marks[places] = True  # -1 marks the last, which is nobody's
        return np.flatnonzero(marks[:-1])

    def _place_some(self, keys: Hashes) -> Times:
        """Place as many new keys as there is room for, and count those left out."""
        places = self.places.find(keys)
        room = self.limit - self.places.count
        unknown = np.unique(keys[(places < 0) & (keys != 0)])
        if len(unknown) > room:
            self.refused += len(unknown) - room
            if self.refused == len(unknown) - room:
                log.error("over %d entities (feature_store.entities_max): no new ones are taken", self.limit)
        self.places.place(unknown[:room])
        return self.places.find(keys)

    def _make_room(self) -> None:
        count, have = self.places.count, len(self._floats)
        if count <= have:
            return
        room = max(count, have + have // 2 + 64)
        self._floats = _longer(self._floats, room)
        self._floats[have:] = self.plan.blank
        self._counts, self._registers = _longer(self._counts, room), _longer(self._registers, room)

    def stored(self, places: Times, at: int) -> tuple[Values, Times]:
        """(stored values [n, width] as of `at`, when each entity's change though nothing happens: microseconds)."""
        plan = self.plan
        out = np.empty((len(places), plan.width), np.float64)
        until = np.empty(len(places), np.int64)
        arrays = self._floats, self._counts, self._registers
        tiles.read(places, at, plan.bases, plan.outputs, plan.quantiles, *arrays, out, until, plan.totals())
        return out, until

    def read(self, keys: Hashes, at: int) -> Values:
        """float64 [n, values] as of `at`; see State.read."""
        places = self.places.find(keys)
        known = places >= 0
        out = np.tile(self.plan.nothing, (len(keys), 1))
        if known.any():
            out[known] = self.plan.finish(self.stored(places[known], at)[0], at)
        return out

    def replay(self, source: str, events: Events, keys: Hashes, at: Times, out: Values) -> None:
        """Read between the events of a source, of which `events` are all, in the order in which they came: into row i
        of `out` [n, width] the stored values that are made of this source, of `keys`[i] as of `at`[i]. The state itself
        stays as it is: one entity's is made after the other's."""
        plan = self.plan
        row = np.zeros((1, plan.floats)), np.zeros((1, plan.counts), np.uint32), np.zeros((1, plan.registers), np.uint8)
        for feed in plan.feeds(source):
            known = Places()
            wanted = known.place(keys)
            places = known.find(events.texts[feed.key])
            order, readings = _by_place(places, None, known.count), _by_place(wanted, np.argsort(at), known.count)
            used = np.array(sorted(feed.uses), np.int64)
            outputs = plan.outputs[np.isin(plan.outputs[:, BASE], used)]
            tiles.replay(
                places, events.times, feed.values(events), feed.masks(events), plan.bases, used, order, events.arrivals,
                wanted, at, readings, outputs, plan.quantiles, plan.blank, *row, out, plan.totals(),
            )  # fmt: skip

    def forget(self, keys: Hashes) -> int:
        """Remove entities; how many there were. Those that are left get other places."""
        arrays = self.arrays()
        kept = ~np.isin(arrays["keys"], keys)
        if kept.all():
            return 0
        self.restore({name: array[kept] for name, array in arrays.items()})
        return int((~kept).sum())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, to be kept."""
        n = self.places.count
        return {"keys": self.places.keys[:n], "floats": self._floats[:n], "counts": self._counts[:n],
                "registers": self._registers[:n]}  # fmt: skip

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take over what `arrays` gave, of the same plan."""
        self.places = Places()
        self.places.place(arrays["keys"])
        self._floats, self._counts = arrays["floats"].copy(), arrays["counts"].copy()
        self._registers = arrays["registers"].copy()


def _longer(array: NDArray[Any], room: int) -> NDArray[Any]:
    """With zeros behind it; memory is taken when it is written."""
    made = np.zeros((room, array.shape[1]), array.dtype)
    made[: len(array)] = array
    return made


def _by_place(places: Times, order: Times | None, count: int) -> Times:
    """The numbers of `places` [n], by place, those of one place in the given `order`; -1 is left out."""
    order = np.arange(len(places)) if order is None else order
    starts = np.zeros(count + 1, np.int64)
    out = np.empty(len(places), np.int64)
    return out[: tiles.sort(places, order, starts, out)]
