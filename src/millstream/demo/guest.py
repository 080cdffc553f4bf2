"""The visitor whose list is on the screen: what changes when somebody rates a film, how soon, and why.

The list of somebody who rates nothing, asked for at the same moments, says how much of a change the rest of the world
made: everybody's ratings move the weights and what is popular all the time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import msgspec

from millstream.clock import Clock
from millstream.demo.data import Row
from millstream.demo.shelf import Shelf
from millstream.types import Listing, Slot

NAME, OTHER = "you", "somebody"
GENRE = "Sci-Fi"
PAGE = 10
SCROLLED = 100  # so far down the list the visitor looks for a film to rate
LOOK_S, POLL_S = 2.0, 0.1
FIRST_S, NEXT_S, RATINGS = 1.5, 5.0, 3
CHANGED_S_MAX, SETTLED_S = 10.0, 2.0
OWN = frozenset(("similar", "tags", "item_cf", "user_cf", "factors"))
"""Paths that go by what the visitor liked; they find nothing for somebody who liked nothing."""


class Came(msgspec.Struct):
    """A film that was not on the list before. `found`: the paths of recall that found it; `reasons`: of its place."""

    title: str
    found: list[str]
    reasons: list[str]


class Change(msgspec.Struct, kw_only=True):
    """What a rating changed. `seconds`: from the rating to the first list that goes by it, None where none came;
    `came`, `went`: of the first PAGE films, beside the one that was rated; `of_genre`: how many of these are of the
    visitor's genre now. `others`, `others_of_genre`: of the list of somebody who rated nothing, at the same time."""

    rated: str
    position: int
    seconds: float | None = None
    came: list[Came] = []
    went: list[str] = []
    of_genre: int = 0
    others: int = 0
    others_of_genre: int = 0


class Guest:
    """A visitor without an account. `run` looks at the list all the time and rates RATINGS films of one genre, unless
    somebody else takes over (`like`). `first`, `listing`: the list as it was and is; `shown`: as it was drawn last."""

    name = NAME

    def __init__(self, items: Sequence[Row], shelf: Shelf, clock: Clock) -> None:
        self.shelf, self._clock = shelf, clock
        self._titles = {str(item["id"]): _title(item) for item in items}
        self._genres: dict[str, list[str]] = {str(item["id"]): item["genres"] for item in items}
        having = Counter(genre for genres in self._genres.values() for genre in genres)
        self.genre = GENRE if GENRE in having else min(having, key=lambda genre: (having[genre], genre))
        self.first = self.listing = self.shown = Listing(id="", model="", version="", items=[])
        self.changes: list[Change] = []
        self.rating = ""
        self._by_hand = False
        self._asked = 0
        self._rated: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self.stopping = asyncio.Event()

    def title(self, item: str) -> str:
        """Of a film, with its year."""
        return self._titles.get(item, item)

    def genres(self, item: str) -> str:
        """Of a film, in one text."""
        return " ".join(self._genres.get(item, []))

    def of_genre(self, listing: Listing) -> int:
        """How many films of its first page are of the visitor's genre."""
        return sum(self.genre in self._genres.get(slot.item, []) for slot in listing.items[:PAGE])

    async def run(self) -> None:
        """Until `stopping` is set."""
        began = self._clock.monotonic()
        while not self.stopping.is_set():
            if not self._one_at_a_time.locked():
                async with self._one_at_a_time:
                    self.listing = await self._ask(NAME)
                    self.first = self.first if self.first.items else self.listing
            due = began + FIRST_S + NEXT_S * len(self.changes)
            if not self._by_hand and len(self.changes) < RATINGS and self._clock.monotonic() >= due:
                await self._rate(self._choice())
            await self._pause(LOOK_S if self._by_hand or len(self.changes) >= RATINGS else 0.25)

    async def like(self, position: int) -> None:
        """Somebody likes the film at this position (from 0) of the list that was drawn last, and takes over."""
        self._by_hand = True
        if position < len(self.shown.items[:PAGE]):
            await self._rate((self.shown, position))

    def _choice(self) -> tuple[Listing, int] | None:
        """The film that is most of the visitor's genre and likely to be liked, as far as the visitor scrolls; the first
        where there is none."""
        best, position = 0.0, 0
        for at, slot in enumerate(self.listing.items):
            genres = self._genres.get(slot.item, [])
            fits = (self.genre in genres) / max(len(genres), 1) * slot.score
            if fits > best and slot.item not in self._rated:
                best, position = fits, at
        return (self.listing, position) if self.listing.items else None

    async def _rate(self, chosen: tuple[Listing, int] | None) -> None:
        async with self._one_at_a_time:
            if chosen is None or (slot := chosen[0].items[chosen[1]]).item in self._rated:
                return
            before, position = chosen
            self._rated.add(slot.item)
            self.rating = self.title(slot.item)
            change = Change(rated=self.rating, position=position + 1)
            mine, other = await self._ask(NAME), await self._ask(OTHER)
            began = self._clock.monotonic()
            await self.shelf.tell(before, [(slot, True)])
            while not self.stopping.is_set() and self._clock.monotonic() - began < CHANGED_S_MAX:
                self.listing = await self._ask(NAME)
                seconds = self._clock.monotonic() - began
                came, went = self._between(mine, self.listing)
                known = all(one.item != slot.item for one in self.listing.items)  # what was liked does not come again
                if known and (seconds > SETTLED_S or any(OWN.intersection(one.found) for one in came)):
                    theirs = await self._ask(OTHER)
                    change = msgspec.structs.replace(
                        change, seconds=round(seconds, 3), came=came, of_genre=self.of_genre(self.listing),
                        went=[title for title in went if title != self.rating],
                        others=len(self._between(other, theirs)[0]), others_of_genre=self.of_genre(theirs),
                    )  # fmt: skip
                    break
                await self._pause(POLL_S)
            self.changes.append(change)
            self.rating = ""

    def _between(self, before: Listing, after: Listing) -> tuple[list[Came], list[str]]:
        """What came to the page, and what went from it."""
        old, new = before.items[:PAGE], after.items[:PAGE]
        there, here = {slot.item for slot in old}, {slot.item for slot in new}
        came = [Came(self.title(one.item), found(one), one.reasons) for one in new if one.item not in there]
        return came, [self.title(one.item) for one in old if one.item not in here]

    async def _ask(self, who: str) -> Listing:
        self._asked += 1
        return await self.shelf.list(f"{who}-{self._asked}", visitor=who, n=SCROLLED, explain=True)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return


def found(slot: Slot) -> list[str]:
    """The paths of recall that found an item."""
    return list((slot.why or {}).get("recall", []))


def _title(item: Row) -> str:
    title, year = str(item["title"]), str(item["year"])
    return f"{title} ({year})" if year.isdecimal() and f"({year})" not in title else title
