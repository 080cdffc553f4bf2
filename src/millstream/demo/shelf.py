"""How the demo asks for lists and tells what somebody did with them: what visits.py and guest.py have in common.

What a person did with an item leaves in one call, impression and like together, and a little behind the time that the
replay has told: it makes nothing of the replay late, whatever overtakes what on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import orjson

from millstream.demo.pipe import Answer, Books, Pipe
from millstream.types import Listing, Outcome, Slot

BEHIND_S = 5.0
_EMPTY = Listing(id="", model="", version="", items=[])


class Shelf:
    """A connection that asks for lists. `told()`: the event time that the replay has told, unix seconds."""

    def __init__(self, pipe: Pipe, books: Books, told: Callable[[], float]) -> None:
        self._pipe, self._books, self._told = pipe, books, told
        self.latencies: list[float] = []

    async def list(self, id: str, **wish: object) -> Listing:
        """A list as docs/recommend.md says, without items where the answer was none, which is counted."""
        answer = await (await self._pipe.post("/v1/recommend", orjson.dumps({"id": id, **wish})))
        self.latencies.append(answer.seconds)
        if answer.status != 200:
            self._books.count_error(answer)
            return _EMPTY
        return msgspec.json.decode(answer.body, type=Listing)

    async def tell(self, listing: Listing, did: Sequence[tuple[Slot, bool]]) -> Answer | None:
        """Somebody looked at these items of a list, and liked them or not; None where there is nothing to tell."""
        if not did:
            return None
        at = self._told() - BEHIND_S
        return await (
            await self._books.tell(
                self._pipe,
                [
                    Outcome(request=listing.id, item=slot.item, kind=kind, value=value, event_time=at)
                    for slot, liked in did
                    for kind, value in (("impression", 1.0), ("like", float(liked)))
                ],
            )
        )

    def close(self) -> None:
        """Hang up."""
        self._pipe.close()
