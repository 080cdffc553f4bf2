"""The role that searches a share of the items for those who make lists: one process a shard, with all that recall
needs and nothing else. See recall/shards.py for who asks, and how."""

from __future__ import annotations

import contextlib
import os

from millstream.app.installation import Installation
from millstream.app.lists import Following, kept_states, paths_of
from millstream.app.orders import SHARD, Orders
from millstream.app.towers import source
from millstream.errors import Conflict, Full, Misconfigured
from millstream.recall.catalogue import Catalogue
from millstream.recall.filters import Filters
from millstream.recall.index import Indexes
from millstream.recall.live import Live
from millstream.recall.shard import Part, Searched, Shard
from millstream.recall.shards import share_of, socket_of
from millstream.stream.forget import Names
from millstream.stream.writer import hold
from millstream.types import Forget

STATES = "_shards"
"""Folder of what shards keep, beside those of tenants, none of which may be called so."""


class Searches:
    """Shard `number` of the installation. Reads `items`, `users`, `identities`, `served`, `outcomes` and the indexes of
    recall. Another one of this number runs: Conflict; there is no such shard: Misconfigured."""

    def __init__(self, installation: Installation, number: int) -> None:
        self._at = at = installation
        settings, name = at.settings, f"recall-{number}"
        of = settings.recall.shards
        if of < 2 or number >= of or not settings.recommend.places:
            raise Misconfigured(
                f"role {name}: recall.shards is {of}; it makes roles recall-0 .. recall-{max(of - 1, 1)} where it is "
                "2 or more and lists are made (recommend.placements); correct the settings, or the role"
            )
        self._socket = socket_of(at.run, number)
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = hold(self._socket.parent)
        except Conflict:
            raise Conflict(f"{name} is running for {at.folder} already; stop that one first") from None
        self.meter = at.meter(name)
        self._followed: list[tuple[Live, Following]] = []
        self._kept = {tenant: at.live / STATES / tenant / f"{name}.npz" for tenant in settings.recommend.places}
        mine, searched = share_of(number, of), dict[str, Searched]()
        self._items = at.described_items(self.meter)
        towers = source(at, self._items.entities) if self._items is not None else None
        for tenant in self._kept:
            catalogue = Catalogue(settings.catalogue)
            histories = settings.histories.histories()
            live = Live(at.log, catalogue, histories, self.meter, settings.histories, tenant, people=False)
            indexes = Indexes(at.indexes / tenant)
            following = Following(indexes, catalogue, at.clock, self.meter, tenant, mine, towers)
            searched[tenant] = Searched(
                catalogue, Filters(catalogue), Part(catalogue, mine), paths_of(catalogue, live, following)
            )
            self._followed.append((live, following))
        self.shard = Shard(number, of, searched, self.meter)
        self._orders = Orders(at.log, SHARD + number, at.clock, self.meter, self._forget)

    async def start(self) -> None:
        """Know all that is in the log, and have an index if there is one; then answer."""
        for kept, (live, _) in zip(self._kept.values(), self._followed, strict=True):
            any(live.restore(file) for file in kept_states(kept.parent))  # all shards know the same
            live.catch_up()
        self.poll()
        for _, following in self._followed:
            await following.looked()
        await self.shard.listen(self._socket)

    def poll(self) -> None:
        """What is new. To be called on the event loop."""
        if self._items is not None:
            self._items.poll()
        for live, following in self._followed:
            live.poll()
            following.poll()
        self._orders.poll()

    def stop(self) -> None:
        """Answer no more, and keep what is known for the next start."""
        self.shard.close()
        for kept, (live, _) in zip(self._kept.values(), self._followed, strict=True):
            with contextlib.suppress(Full):
                live.save(kept)
        os.close(self._lock)

    def _forget(self, order: Forget) -> dict[str, int] | None:
        """Drop people from what is counted here; see app/forget.py."""
        if not all(live.reached(order.cut) for live, _ in self._followed):
            return None
        if order.kind == "user":
            mine = Names.of(order)
            for kept, (live, following) in zip(self._kept.values(), self._followed, strict=True):
                kept.unlink(missing_ok=True)
                following.forget(mine)
                live.forget(mine)
        return {}
