"""What makes lists in a process that answers: followed from the log, with the indexes that `learn` builds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from millstream.app.installation import Installation
from millstream.app.shelves import Shelves
from millstream.app.towers import source
from millstream.clock import Clock
from millstream.engine import Engine
from millstream.errors import Error, Full
from millstream.features import Entities
from millstream.flows.predict import Submit
from millstream.flows.recommend.lists import Lists
from millstream.flows.recommend.rank import Matrix, More
from millstream.flows.recommend.world import World
from millstream.flows.served import ServedLog
from millstream.guard.tenants import outside, start
from millstream.meter import Meter
from millstream.recall.catalogue import Catalogue
from millstream.recall.cooccur import Cooccurrence
from millstream.recall.filters import Filters
from millstream.recall.index import Attached, Indexes
from millstream.recall.live import Live
from millstream.recall.paths import Given, Newest, Popular, SimilarToLast, Tags
from millstream.recall.scene import Found, Scene
from millstream.recall.scene import Path as Way
from millstream.recall.shards import Elsewhere, Shards
from millstream.recall.shelf import Mine
from millstream.recall.shelving import Source
from millstream.recall.towers import Retrieval
from millstream.stream import LenientReader
from millstream.types import Served

LOOK_S = 2.0  # between two looks for a newer index
LATELY_MAX = 50_000
BATCH = "batch:"
"""What the requests of batches begin with (batch.py): so many lists would push those out that people page through."""
FREE = ("popular", "newest", "similar", "tags", "given")
"""Paths that need no index."""
INDEXED = ("item_cf", "user_cf", "factors")
logger = logging.getLogger("millstream")


class Current:
    """A path of the newest index. It knows nothing until there is one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now: Way | None = None

    def recall(self, scene: Scene, k: int) -> Found:
        """What the index that is current knows."""
        way = self.now
        return way.recall(scene, k) if way is not None else Found.nothing()


class Following:
    """Keeps paths on the newest index, and counts what is liked since, so that it is no older than what people did."""

    name = "since"

    def __init__(
        self, indexes: Indexes, catalogue: Catalogue, clock: Clock, meter: Meter, tenant: str = "",
        mine: Mine | None = None, source: Source | None = None,
    ) -> None:  # fmt: skip
        """`mine`: the items that are searched here by their vectors; None: all. `source`: the towers whose vectors an
        index has; None: there is no such path."""
        names = INDEXED if source is None else (*INDEXED, Retrieval.name)
        self.paths = {name: Current(name) for name in names}
        self.shelves = Shelves(catalogue, source, meter, tenant)
        self._indexes, self._catalogue, self._clock, self._mine = indexes, catalogue, clock, mine
        labels = {"tenant": tenant} if tenant else None
        help_ = "Number of the recall index that is used."
        self._number = meter.gauge("millstream_recall_index", help_, labels, joined="max")
        self._since = Cooccurrence()
        self._lately: deque[tuple[float, str, int]] = deque(maxlen=LATELY_MAX)  # likes: when, of whom, of what
        self._attached: Attached | None = None
        self._look_at = clock.monotonic()
        self._looking: asyncio.Task[None] | None = None

    def on_positive(self, user: str, number: int, time: float, segment: str) -> None:
        """Somebody liked an item."""
        self._since.add(user, number)
        self._lately.append((time, user, number))

    def state(self) -> dict[str, NDArray[Any]]:
        """Nothing: the next index has it."""
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Nothing was kept."""

    def clear(self) -> None:
        """Count anew."""
        self._since = Cooccurrence()
        self._lately.clear()

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Forget what these people liked since the index was built."""
        self._lately = deque((one for one in self._lately if not mine(one[1])), LATELY_MAX)
        return self._since.forget(mine)

    def poll(self) -> None:
        """Look for a newer index, now and then and beside the event loop; add what came to the one there is."""
        self.shelves.poll()
        if self._clock.monotonic() < self._look_at or (self._looking is not None and not self._looking.done()):
            return
        self._look_at = self._clock.monotonic() + LOOK_S
        self._looking = asyncio.ensure_future(self._look())

    async def looked(self) -> None:
        """Until the look that is under way, if any, is done."""
        if self._looking is not None:
            await self._looking

    async def _look(self) -> None:
        after = self._attached.index.number if self._attached is not None else -1
        try:
            index = await asyncio.to_thread(self._indexes.newest, after)
            if index is None:
                if self._attached is not None:
                    await asyncio.to_thread(self._attached.refresh)
                return
            self.shelves.expect()
            attached = await asyncio.to_thread(index.attach, self._catalogue, self._mine)
            opened = await asyncio.to_thread(self.shelves.open, attached)
        except (Error, OSError, MemoryError) as error:
            logger.error("the recall index stays as it is: %s", error)
            return
        self._since = Cooccurrence()
        for time, user, number in self._lately:  # what the index has not seen: it was being built
            if time > index.about.newest:
                self._since.add(user, number)
        for way in attached.paths(self._since):
            self.paths[way.name].now = way
        if Retrieval.name in self.paths:
            self.paths[Retrieval.name].now = opened.retrieval
        self.shelves.take(opened)
        self._attached = attached
        self._number.set(index.number)
        logger.info("recall goes by index %d, of %d items", index.number, index.about.items)


def paths_of(catalogue: Catalogue, live: Live, following: Following) -> dict[str, Way]:
    """All paths of recall over what a process knows, by name; those that count what is liked listen to it."""
    popular = Popular()
    for listener in (popular, following):
        live.listen(listener)
    following.shelves.similar = similar = SimilarToLast(catalogue)
    paths: list[Way] = [popular, Newest(catalogue), similar, Tags(catalogue), Given()]
    return {one.name: one for one in [*paths, *following.paths.values()]}


def kept_states(folder: Path) -> list[Path]:
    """What processes kept there of what they knew, the latest first."""
    return sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)


class Lister:
    """Everything of lists in one process: `lists` answers, `poll` keeps it current. `own`: the partition of `served`
    that this process writes; `tenant`: whose lists, where there are tenants: each has a world of its own."""

    def __init__(
        self, at: Installation, meter: Meter, engine: Engine, submit: Submit, served: ServedLog,
        entities: Entities | None, matrix: Matrix, more: More, own: int, tenant: str = "",
    ) -> None:  # fmt: skip
        settings = at.settings
        catalogue = Catalogue(settings.catalogue)
        self.live = Live(at.log, catalogue, settings.histories.histories(), meter, settings.histories, tenant)
        self.shards: Shards | None = None
        if settings.recall.shards > 1:
            self.shards = Shards(at.run, settings.recall.shards, at.clock, meter)
        towers = source(at, entities) if entities is not None else None
        indexes = Indexes(at.indexes / tenant)
        self.following = Following(indexes, catalogue, at.clock, meter, tenant, source=towers)
        if self.shards is None:
            by_name = paths_of(catalogue, self.live, self.following)
        else:
            by_name = {name: Elsewhere(name) for name in (*FREE, *self.following.paths)} | {"given": Given()}
        self.world = World(catalogue, Filters(catalogue), self.live, by_name, meter, self.shards)
        limits = settings.recommend
        self.lists = Lists(
            self.world, submit, lambda model: _others(engine, model), at.clock, served, meter, limits.model,
            limits.places[tenant], limits.asks, limits.explore, entities, matrix, more,
        )  # fmt: skip
        self._served, self._own = LenientReader(at.log.reader("served"), meter), own
        self._heard: dict[int, int] = {}
        self._kept = at.live / tenant / f"{meter.name}.npz"
        self._mine = start(tenant).encode()

    def start(self) -> None:
        """Know all that is in the log, before anybody asks. With shards: on the event loop."""
        if self.shards is not None:
            self.shards.start()
        any(self.live.restore(file) for file in kept_states(self._kept.parent))  # all processes know the same
        self.live.catch_up()
        self._hear(self._served.partitions())

    def poll(self) -> None:
        """What is new. To be called on the event loop."""
        self.live.poll()
        self._hear([one for one in self._served.partitions() if one != self._own])  # its own lists it remembers
        if self.shards is None:
            self.following.poll()

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Drop people by their names, from memory and from what was kept; of how many."""
        self._kept.unlink(missing_ok=True)
        self.lists.forget(mine)
        self.following.forget(mine)
        return self.live.forget(mine)

    def stop(self) -> None:
        """Keep what is known, so that the next start need not read it all again."""
        self.world.close()
        if self.shards is not None:
            self.shards.close()
        with contextlib.suppress(Full):
            self.live.save(self._kept)

    def _batch(self, request: str) -> bool:
        return outside(self.lists.tenant, request).startswith(BATCH)

    def _hear(self, partitions: Sequence[int]) -> None:
        """Lists of other processes and of earlier ones, for their next pages."""
        for partition in partitions:
            if partition not in self._heard:
                self._heard[partition] = max(0, self._served.end(partition) - self.lists.kept)
            for offset, event in self._served.events(partition, self._heard[partition], self._mine):
                if isinstance(event, Served) and not self._batch(event.request):  # those have no next page
                    self.lists.take(event)
                self._heard[partition] = offset + 1


def _others(engine: Engine, model: str) -> Sequence[str]:
    """Loaded versions beside the live one, newest first."""
    view = next((view for view in engine.views() if view.model == model), None)
    if view is None:
        return ()
    live = view.live.partition("@")[0]
    names = {name.partition("@")[0] for name in view.versions}
    return sorted(names - {live}, key=int, reverse=True)
