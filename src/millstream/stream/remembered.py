"""What the join remembers: of a request where its served event lies in the log, and what became of its items.

Rules of the room:
- The served event itself stays in the log. Those of late are kept decoded, up to DECODED_BYTES; others are read again.
- A request with nothing open is *frozen*: its items and keys are one piece of bytes, exact, thawed when asked for.
- A key that begins with its request is kept without it. Nothing here counts as seen that was not.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

import msgspec

from millstream.errors import NotFound
from millstream.stream.event import decode
from millstream.stream.log import Log
from millstream.stream.reader import Reader, Record
from millstream.types import Served

DECODED_BYTES = 64 << 20
PAGE, PAGE_BYTES, PAGES_MAX = 64, 256 << 10, 32
READERS_MAX = 4
NEVER = float("inf")
TAKEN = 1 << 30  # in Item.waits, beside the bits of tasks: an example has this key
ORPHAN = 1 << 29  # and: its task is no more


class Item(msgspec.Struct, gc=False, array_like=True):
    """A candidate that waits: for its impression, or shown, for what its tasks wait for. Masks have a bit a task.

    `open`: no example yet; `given`: a negative was made, a positive may still come; `again`: a positive was made, and
    is told again when labels are final; `late`: of those, the ones that came after the window; `positive`: a positive
    was seen. `keys`, `waits`: outcomes without a place, and which tasks each waits for.
    """

    place: int
    shown: bool
    event_time: float
    arrival: float
    open: int
    given: int = 0
    again: int = 0
    late: int = 0
    positive: int = 0
    keys: list[str] = []
    waits: list[int] = []

    @property
    def live(self) -> int:
        return self.open | self.given | self.again

    def take(self, bit: int, since: int = 0) -> list[str]:
        """The outcomes that wait for a task, from number `since` on: an example has them."""
        taken = [key for key, wait in self._pairs(since) if wait & bit]
        self.waits[since:] = [wait & ~bit | TAKEN if wait & bit else wait for wait in self.waits[since:]]
        self._keep()
        return taken

    def leave(self, bit: int, since: int = 0) -> list[str]:
        """There is no example: those of the outcomes that wait for a task which have no place without it."""
        left = [key for key, wait in self._pairs(since) if wait == bit]
        self.waits[since:] = [wait & ~bit for wait in self.waits[since:]]
        self._keep()
        return left

    def placeless(self) -> list[str]:
        """The outcomes that no example has."""
        return [key for key, wait in self._pairs(0) if not wait & TAKEN]

    def _pairs(self, since: int) -> list[tuple[str, int]]:
        return list(zip(self.keys[since:], self.waits[since:], strict=True))

    def _keep(self) -> None:
        """Those that still wait for a task."""
        pairs = [(key, wait) for key, wait in self._pairs(0) if wait & ~TAKEN]
        self.keys, self.waits = [key for key, _ in pairs], [wait for _, wait in pairs]


class Remembered(msgspec.Struct, gc=False, array_like=True):
    """A request. `partition`, `offset`: where its served event stands in the log; `count`: of its candidates; `due`:
    when its next window ends.

    `items`, `made` (item whose tasks are all done -> mask of the positives) and `keys` are None while it is frozen.
    """

    request: str
    partition: int
    offset: int
    count: int
    event_time: float
    frozen: bytes = b""
    due: float = NEVER
    items: dict[str, Item] | None = None
    made: dict[str, int] | None = None
    keys: set[str] | None = None

    def thaw(self) -> dict[str, Item]:
        """Its open items, ready to be changed, with `made` and `keys` beside them."""
        if self.items is None:
            self.items = {}
            if self.frozen:
                self.made, keys = _thaw(self.frozen)
                prefix = self.request + "/"
                self.keys = {prefix + key[1:] if key[0] == "=" else key[1:] for key in keys}
                self.frozen = b""
            else:
                self.made, self.keys = {}, set()
        return self.items

    def move(self, moves: list[tuple[int, int]], every: int) -> None:
        """Tasks have other bits now: `moves` (from, to). What waits for one that is no more will expire; a new one
        begins with impressions to come."""

        def moved(mask: int) -> int:
            return sum(new for old, new in moves if mask & old)

        for item in self.thaw().values():
            item.open = moved(item.open) if item.shown else every
            item.given, item.again, item.late = moved(item.given), moved(item.again), moved(item.late)
            item.positive = moved(item.positive)
            item.waits = [moved(wait) | wait & (TAKEN | ORPHAN) or ORPHAN for wait in item.waits]
        self.made = {name: moved(mask) for name, mask in (self.made or {}).items()}
        self.freeze()

    def freeze(self) -> None:
        """Make it small, if nothing of it is open."""
        if self.items is None or self.items:
            return
        if self.made or self.keys:
            prefix = self.request + "/"
            skip = len(prefix)
            keys = ["=" + key[skip:] if key.startswith(prefix) else "~" + key for key in self.keys or ()]
            self.frozen = _freeze((self.made or {}, keys))
        self.items = self.made = self.keys = None
        self.due = NEVER


_freeze = msgspec.msgpack.Encoder().encode
_thaw = msgspec.msgpack.Decoder(tuple[dict[str, int], list[str]]).decode


class Answers:
    """The served events of what is remembered, from the log. `gone`: how often one was not there any more."""

    def __init__(self) -> None:
        self.gone = 0
        self._log: Log | None = None
        self._decoded: OrderedDict[str, Served] = OrderedDict()
        self._bytes = 0
        self._pages: OrderedDict[tuple[int, int], list[Record]] = OrderedDict()
        self._readers: dict[tuple[int, int], Reader] = {}

    def attach(self, log: Log) -> None:
        self._log = log

    def put(self, served: Served) -> None:
        """Keep it decoded for a while."""
        self._decoded[served.request] = served
        self._bytes += _size(served)
        while self._bytes > DECODED_BYTES:
            self._bytes -= _size(self._decoded.popitem(last=False)[1])

    def get(self, one: Remembered) -> Served | None:
        """The served event of a request; None when the log has lost it or was told to forget it."""
        served = self._decoded.get(one.request)
        if served is not None:
            return served
        value = self._read(one.partition, one.offset)
        event = decode(value) if value else None
        if not isinstance(event, Served) or event.request != one.request:
            self.gone += 1
            return None
        self.put(event)
        return event

    def scored(self, one: Remembered) -> Served | Scored | None:
        """As `get`, where the candidates are not asked for."""
        served = self._decoded.get(one.request)
        if served is not None:
            return served
        value = self._read(one.partition, one.offset)
        try:
            scored = _scored(value)
        except msgspec.MsgspecError:
            scored = None  # forgotten
        if scored is None or scored.request != one.request:
            self.gone += 1
            return None
        return scored

    def forgotten(self, one: Remembered) -> bool:
        """Whether who made the request was forgotten since."""
        value = self._read(one.partition, one.offset)
        try:
            return bool(value) and not _scored(value)
        except msgspec.MsgspecError:
            return True

    def drop(self, request: str) -> None:
        """It is not remembered any more."""
        served = self._decoded.pop(request, None)
        if served is not None:
            self._bytes -= _size(served)

    def clear(self) -> None:
        """Keep nothing."""
        self._decoded.clear()
        self._pages.clear()
        self._bytes = 0

    def _read(self, partition: int, offset: int) -> bytes:
        """Pages of records, as what is needed next mostly lies beside what is needed now."""
        first = offset - offset % PAGE
        page = self._pages.get((partition, first))
        if page is None or not page[0].offset <= offset <= page[-1].offset:
            page = self._page(partition, first)  # none where it begins in what retention took
            if not page or page[-1].offset < offset:  # short for its bytes, or for a hole
                page = self._page(partition, offset)
            if not page:
                return b""
            self._pages[partition, first] = page
            if len(self._pages) > PAGES_MAX:
                self._pages.popitem(last=False)
        at = offset - page[0].offset
        if at < len(page) and page[at].offset == offset:  # unless there is a hole between
            return page[at].value
        return next((record.value for record in page if record.offset == offset), b"")

    def _page(self, partition: int, offset: int) -> list[Record]:
        """Up to PAGE records, none where they are gone, by a reader that stands there, if one does: of windows that
        open and of windows that close, both go on where they were."""
        assert self._log is not None
        reader = self._readers.pop((partition, offset), None)
        if reader is None and len(self._readers) >= READERS_MAX:
            reader = self._readers.pop(next(iter(self._readers)))
        if reader is None:
            reader = self._log.reader("served")
        try:
            page = reader.read(partition, offset, PAGE - offset % PAGE, PAGE_BYTES)
        except NotFound:
            page = []
        self._readers[partition, page[-1].offset + 1 if page else -1] = reader
        return page


class Scored(msgspec.Struct, gc=False, tag="served"):
    """What an example takes of a served event: read in a third of the time."""

    request: str
    model: str
    version: str
    tokens: bytes
    scores: bytes
    definition: str = ""


_scored = msgspec.msgpack.Decoder(Scored).decode
score_of = struct.Struct("<f").unpack_from


def _size(served: Served) -> int:
    """About what it takes in memory, bytes."""
    return len(served.tokens) + 70 * len(served.candidates) + 400
