"""Rows on other machines: what their values look like, and how reading goes on while a store does not answer.

Rules of the room:
- A value is 8 bytes, little-endian unix microseconds when it was put, and the row's bytes. A value of another length is
  another layout's: no row.
- A store on another machine says what is wrong as Busy, or Misconfigured where somebody has to correct it. `Steady` is
  for those who must not wait for it: whatever the store does (a name that is not resolved, a connection that is not
  made, an answer that trickles), `get` takes no longer than its timeout, and then gives what was read lately.
- After a failure nobody asks for a pause, which grows with each failure, so that not every request pays the timeout.
- What was read lately has two bounds: how many rows, and how old. Beyond them a row is missing, which is counted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.store.rows import WIDTH_MAX, Found, Keys, Rows, RowStore

logger = logging.getLogger(__name__)

STAMP: Final = 8  # bytes before the row's own
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 5.0
SETTLED_S: Final = 5.0  # without a failure, before it is said that a store is well again
LABEL_MAX: Final = 200
WINDOW: Final = 1024
T = TypeVar("T")


def pack(rows: Rows, at: int) -> list[bytes]:
    """The values of `rows` [n, width], put at `at`."""
    data = np.empty((len(rows), STAMP + rows.shape[1]), np.uint8)
    data[:, :STAMP] = np.frombuffer(at.to_bytes(STAMP, "little"), np.uint8)
    data[:, STAMP:] = rows
    whole, size = data.tobytes(), data.shape[1]
    return [whole[first : first + size] for first in range(0, len(whole), size)]


def unpack(values: Sequence[bytes | None], width: int) -> tuple[Found, int]:
    """The rows in `values`, None where there is none; and how many values have another length than a row has."""
    size, odd = STAMP + width, 0
    if set(map(type, values)) != {bytes} or set(map(len, values)) != {size}:  # type: ignore[arg-type]
        odd = sum(value is not None and len(value) != size for value in values)
        none = bytes(size)
        values = [none if value is None or len(value) != size else value for value in values]
    data = np.frombuffer(b"".join(values), np.uint8).reshape(-1, size)  # type: ignore[arg-type]
    written = np.ascontiguousarray(data[:, :STAMP]).view("<i8")[:, 0]
    return Found(data[:, STAMP:].copy(), written.astype(np.int64, copy=False)), odd


def names(stem: str, keys: Keys) -> list[str]:
    """The names of `keys`: `stem` and the 16 hexadecimal digits of each."""
    digits = keys.astype(">u8").tobytes().hex()
    return [stem + digits[first : first + 16] for first in range(0, len(digits), 16)]


def pack_time(where: str, at: int) -> bytes:
    """The value of what was vouched for; no time: BadInput."""
    if not 0 <= at < 1 << 63:
        raise errors.BadInput(f"{where}: at = {at}: unix microseconds")
    return at.to_bytes(STAMP, "little")


def unpack_time(value: bytes | None) -> int:
    """The time in a value of `pack_time`; 0 for anything else."""
    return int.from_bytes(value, "little") if value and len(value) == STAMP else 0


def check_named(where: str, label: str, width: int) -> None:
    """Refuse a label that cannot be part of a key, or a width that no row has: Misconfigured."""
    if not (1 <= len(label) <= LABEL_MAX and label.isascii() and label.isprintable()):
        raise errors.Misconfigured(f"{where}: label {label[:80]!r}: 1 to {LABEL_MAX} printable ASCII letters")
    if not 1 <= width <= WIDTH_MAX:
        raise errors.Misconfigured(f"{where}: rows of {width} bytes: take 1 to {WIDTH_MAX}")


def check_keys(where: str, keys: Any) -> Keys:
    """`keys` as uint64 [n]; anything else: BadInput."""
    found: Keys = np.ascontiguousarray(keys, np.uint64)
    if found.ndim != 1:
        raise errors.BadInput(f"{where}: keys {list(found.shape)}: give uint64 [n]")
    return found


def check_put(where: str, width: int, keys: Any, rows: Rows, at: int) -> Keys:
    """`keys` as uint64 [n], if they can be put with `rows` as of `at`; else BadInput."""
    found, n = check_keys(where, keys), len(keys)
    if not found.all():
        raise errors.BadInput(f"{where}: key {int(np.argmin(found))} is 0, which stands for no entity")
    if rows.shape != (n, width) or rows.dtype != np.uint8:
        raise errors.BadInput(f"{where}: rows {rows.dtype} {list(rows.shape)} for {n} keys; give uint8 [{n}, {width}]")
    if not 1 <= at < 1 << 63:
        raise errors.BadInput(f"{where}: at = {at}: unix microseconds")
    return found


class Steady:
    """A RowStore for those who rank: `get` asks `rows`, waits `timeout_s` at most, and gives what it read in the last
    `stale_s_max` seconds where no answer came; other rows are missing then. Many threads may use it.

    `failures` counts times that no answer came in time, `stale` rows that were given as read before, `lost` rows that
    were not there to give. An answer that comes too late is kept for the next time. What is forgotten in the store is
    given here for `stale_s_max` at most, and only while the store is away.
    """

    def __init__(
        self,
        rows: RowStore,
        name: str = "the store of rows",
        *,
        timeout_s: float = 0.05,
        stale_s_max: float = 60.0,
        rows_max: int = 100_000,
        threads: int = 8,
        clock: Clock | None = None,
    ) -> None:
        if min(timeout_s, rows_max, threads) <= 0 or stale_s_max < 0:
            raise errors.Misconfigured(
                f"{name}: timeout_s = {timeout_s}, rows_max = {rows_max}, threads = {threads}, stale_s_max = "
                f"{stale_s_max}: take more than 0, of stale_s_max 0 or more"
            )
        self.width, self.name = rows.width, name
        self.timeout_s, self.stale_s_max = timeout_s, stale_s_max
        self.failures = self.stale = self.lost = 0
        self._rows, self._clock = rows, clock or SystemClock()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="rows")
        self._lock = threading.Lock()
        self._lately = _Lately(rows_max, rows.width)
        self._vouched: int | None = None
        self._outage = 0  # a number for each failure: who asked before it knows nothing of what is now
        self._pause = self._again = 0.0
        self._began: float | None = None
        self._last = 0.0

    @property
    def down(self) -> bool:
        """Whether the last word of the store was a failure."""
        return self._pause > 0

    def get(self, keys: Keys) -> Found:
        """See RowStore. Never an error of the store's."""
        keys = check_keys(self.name, keys)
        answer = self._asked(partial(self._fetch, keys, self._clock.monotonic()))
        if answer:
            found, self._vouched = answer
            return found
        with self._lock:
            found, vouched = self._lately.read(keys, self._clock.monotonic() - self.stale_s_max)
            here = int(np.count_nonzero(found.written))
            self.stale += here
            self.lost += len(keys) - here
        if here:
            self._vouched = vouched
        return found

    def vouched(self) -> int:
        """As of when the rows of the last `get` are right: read with them. Before the first it is asked for; no answer
        is 0."""
        if self._vouched is None:
            self._vouched = self._asked(self._rows.vouched)
        return self._vouched or 0

    def put(self, keys: Keys, rows: Rows, at: int) -> None:
        """See RowStore. Nothing of this is caught: who writes has to know."""
        self._rows.put(keys, rows, at)
        with self._lock:
            self._lately.discard(keys.tolist())

    def vouch(self, at: int) -> None:
        """See RowStore, and `put`."""
        self._rows.vouch(at)
        self._vouched = at

    def close(self) -> None:
        """Nothing is asked any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, keys: Keys, asked: float) -> tuple[Found, int]:
        found = self._rows.get(keys)
        vouched = self._rows.vouched()
        with self._lock:
            self._lately.note(keys, found, asked, vouched)
        return found, vouched

    def _asked(self, call: Callable[[], T]) -> T | None:
        """What `call` gives within the timeout, or None. Another thread makes it: there is no other bound for all that
        a client does, resolving names first of all."""
        outage = self._may_ask()
        if outage is None:
            return None
        future = self._threads.submit(call)
        try:
            answer = future.result(self.timeout_s)
        except TimeoutError:
            future.cancel()  # if it waits for a thread; else its answer is kept when it comes
            self._failed(outage, f"no answer in {self.timeout_s} s")
            return None
        except (errors.Busy, errors.Misconfigured) as error:
            self._failed(outage, str(error))
            return None
        if self._began is not None:
            self._answered(outage)
        return answer

    def _may_ask(self) -> int | None:
        with self._lock:
            if self._pause:
                now = self._clock.monotonic()
                if now < self._again:
                    return None
                self._again = now + self._pause  # one asks; the others go on without
            return self._outage

    def _failed(self, outage: int, why: str) -> None:
        with self._lock:
            self.failures += 1
            if outage != self._outage:
                return  # of several that asked at once, one made the pause
            self._outage += 1
            self._last = self._clock.monotonic()
            self._pause = min(2 * self._pause, PAUSE_S_MAX) or PAUSE_S
            self._again = self._last + self._pause
            if self._began is not None:
                return
            self._began = self._last
        logger.warning(
            "%s does not answer: %s. Rows read in the last %g s are served, others are missing, until it does",
            self.name,
            why,
            self.stale_s_max,
        )

    def _answered(self, outage: int) -> None:
        with self._lock:
            now = self._clock.monotonic()
            if outage == self._outage:
                self._pause = 0.0
            if self._pause or self._began is None or now < self._last + SETTLED_S:
                return
            lasted, self._began = now - self._began, None
        logger.warning(
            "%s answers again; it began to fail %.1f s ago. Counted so far: %d failures, %d rows stale, %d lost",
            self.name,
            lasted,
            self.failures,
            self.stale,
            self.lost,
        )


class _Lately:
    """The rows that were read last, at most `limit`. For one thread at a time. To make room, a hand goes round and
    takes from each WINDOW of slots the eighth whose reading is longest ago: it is no queue to be kept in order."""

    def __init__(self, limit: int, width: int) -> None:
        self._limit, self._window = limit, min(limit, WINDOW)
        self._slots: dict[int, int] = {}
        self._free = list(range(limit))
        self._hand = self._turn = 0
        self._turns = np.zeros(limit, np.int64)  # of each slot: when it was read, as a number of calls
        self._keys = np.zeros(limit, np.uint64)  # 0: the slot is free
        self._rows = np.zeros((limit, width), np.uint8)
        self._written = np.zeros(limit, np.int64)
        self._vouched = np.zeros(limit, np.int64)
        self._asked = np.zeros(limit)

    def note(self, keys: Keys, found: Found, asked: float, vouched: int) -> None:
        """Keep what the store was `asked` for then."""
        here = found.written != 0
        if not here.all():
            self.discard(keys[~here].tolist())
            keys, found = keys[here], Found(found.rows[here], found.written[here])
        if len(keys) > self._limit:
            self.discard(keys[self._limit :].tolist())
            keys, found = keys[: self._limit], Found(found.rows[: self._limit], found.written[: self._limit])
        self._turn += 1
        slots = self._find(keys)
        new = slots < 0
        self._turns[slots[~new]] = self._turn
        if new.any():
            fresh, which = np.unique(keys[new], return_inverse=True)
            room = self._room(len(fresh))
            self._slots.update(zip(fresh.tolist(), room, strict=True))
            self._keys[room] = fresh
            self._turns[room] = self._turn
            slots[new] = np.array(room)[which]
        self._rows[slots] = found.rows
        self._written[slots] = found.written
        self._vouched[slots] = vouched
        self._asked[slots] = asked

    def read(self, keys: Keys, since: float) -> tuple[Found, int]:
        """The rows of `keys` that were asked for `since` then; and the least that was vouched for with any of them."""
        out = Found(np.zeros((len(keys), self._rows.shape[1]), np.uint8), np.zeros(len(keys), np.int64))
        slots = self._find(keys)
        here = np.flatnonzero((slots >= 0) & (self._asked[slots] >= since))
        slots = slots[here]
        out.rows[here] = self._rows[slots]
        out.written[here] = self._written[slots]
        return out, int(self._vouched[slots].min(initial=np.iinfo(np.int64).max))

    def discard(self, keys: Sequence[int]) -> None:
        """These are not to be given any more."""
        if self._slots:
            gone = [slot for key in keys if (slot := self._slots.pop(key, -1)) >= 0]
            self._keys[gone] = 0
            self._free += gone

    def _find(self, keys: Keys) -> NDArray[np.int64]:
        return np.fromiter(map(self._slots.get, keys.tolist(), repeat(-1)), np.int64, len(keys))

    def _room(self, n: int) -> list[int]:
        """`n` slots, at most `limit` less those that this turn has read: of these none is taken."""
        while len(self._free) < n:
            window = np.arange(self._hand, self._hand + self._window) % self._limit
            self._hand = (self._hand + self._window) % self._limit
            used = window[(self._keys[window] != 0) & (self._turns[window] < self._turn)]
            oldest = used[np.argsort(self._turns[used], kind="stable")[: -(-self._window // 8)]]
            self.discard(self._keys[oldest].tolist())
        room = self._free[-n:]
        del self._free[-n:]
        return room
