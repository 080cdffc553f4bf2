"""Visitors of lists: they get whole lists under two sets of rules, and what they do with them is compared.

Nobody knows what these people would have thought of films that they never rated. So the model of a visitor is: of the
films on a list they take those that they have a rating of in the data, and like what they liked there; of the others
nothing is reported, and they never come again, as the visitor asks to leave out what stood on earlier lists. Visitors
are not among the people whose ratings are replayed, nor in the history: no rating is told twice, and the AUC of the
replay knows none of them beforehand.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from millstream.clock import Clock
from millstream.demo.data import Row, Shown
from millstream.demo.shelf import Shelf

EVERY = 5  # one in so many people visits lists
PAGE = 10
AT_ONCE_MAX = 4
Z = 1.96
"""Of a normal interval of 95 %."""


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a set of rules: means a list, `films`: different ones that stood on any list, a share of all."""

    lists: int
    visitors: int
    taken: float
    liked: float
    categories: float
    films: float


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Arms by name; `difference`: liked films a list, the second arm less the first, as means of visitors, `low` to
    `high` with 95 % (Welch). None while an arm has fewer than two visitors."""

    arms: dict[str, Arm]
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Visit(msgspec.Struct):
    """One list: what stood on it, how many of it were taken, and how many of those were liked."""

    user: str
    arm: str
    items: list[str]
    taken: int
    liked: int


def apart(users: Sequence[Row], shown: Sequence[Shown]) -> tuple[list[Shown], dict[str, dict[str, bool]]]:
    """The moments of those who are replayed, and of every EVERYth user what they rated and whether they liked it."""
    tastes: dict[str, dict[str, bool]] = {str(user["id"]): {} for user in users[::EVERY]}
    replayed = []
    for one in shown:
        if one.user in tastes:
            tastes[one.user][one.item] = one.like
        else:
            replayed.append(one)
    return replayed, {user: taste for user, taste in tastes.items() if taste}


class Visits:
    """`rate` lists a second, of one visitor after the other, round and round. `items`: the catalogue's rows."""

    def __init__(
        self, tastes: Mapping[str, Mapping[str, bool]], items: Sequence[Row], shelf: Shelf, clock: Clock, rate: float
    ) -> None:
        self._tastes, self.shelf, self._clock, self._rate = tastes, shelf, clock, rate
        self._category = {str(item["id"]): str(item["category"]) for item in items}
        self._seen: dict[str, list[str]] = {user: [] for user in tastes}
        self.visits: list[Visit] = []
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Until `stopping` is set; returns when everything sent has been answered."""
        under_way, began = set[asyncio.Task[None]](), self._clock.monotonic()
        users, number = list(self._tastes), 0
        while users and not self.stopping.is_set():
            early = began + number / self._rate - self._clock.monotonic()
            if early > 0:
                await self._clock.sleep(min(early, 0.5))
            elif len(under_way) >= AT_ONCE_MAX:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            else:
                task = asyncio.create_task(self._visit(users[number % len(users)], number))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                number += 1
        await asyncio.gather(*under_way)

    async def _visit(self, user: str, number: int) -> None:
        seen, taste = self._seen[user], self._tastes[user]
        listing = await self.shelf.list(f"visit-{number}", user=user, n=PAGE, exclude=seen)
        if not listing.items:
            return
        items = [slot.item for slot in listing.items]
        did = [(slot, taste[slot.item]) for slot in listing.items if slot.item in taste]
        seen.extend(items)
        self.visits.append(Visit(user, listing.arm, items, len(did), sum(liked for _, liked in did)))
        await self.shelf.tell(listing, did)

    def compared(self) -> Compared:
        """The arms so far, in order of their names."""
        by_arm: dict[str, list[Visit]] = {}
        for visit in self.visits:
            by_arm.setdefault(visit.arm, []).append(visit)
        arms = {name: self._arm(visits) for name, visits in sorted(by_arm.items())}
        return _differing(arms, [_each(by_arm[name]) for name in arms])

    def _arm(self, visits: Sequence[Visit]) -> Arm:
        count = len(visits)
        categories = [len({self._category[item] for item in visit.items}) for visit in visits]
        return Arm(
            lists=count,
            visitors=len({visit.user for visit in visits}),
            taken=round(sum(visit.taken for visit in visits) / count, 3),
            liked=round(sum(visit.liked for visit in visits) / count, 3),
            categories=round(sum(categories) / count, 3),
            films=round(len({item for visit in visits for item in visit.items}) / len(self._category), 4),
        )


def _each(visits: Sequence[Visit]) -> list[float]:
    """Liked films a list, a number a visitor."""
    found: dict[str, list[int]] = {}
    for visit in visits:
        found.setdefault(visit.user, []).append(visit.liked)
    return [sum(liked) / len(liked) for liked in found.values()]


def _differing(arms: dict[str, Arm], each: Sequence[Sequence[float]]) -> Compared:
    if len(each) != 2 or min(map(len, each)) < 2:
        return Compared(arms=arms)
    first, second = (np.asarray(one) for one in each)
    found = float(second.mean() - first.mean())
    half = Z * math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    return Compared(arms=arms, difference=round(found, 3), low=round(found - half, 3), high=round(found + half, 3))
