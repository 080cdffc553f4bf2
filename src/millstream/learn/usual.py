"""What share of the shown is liked, and whether it has leapt: robots that click a part of what they see.

Nothing of what robots say looks wrong by itself, and a learner follows them within seconds, so its own scores do not
show them. The share of positives does, beside its own long past.

Rules of the room:
- Counted are examples whose *neighbours* are known too. A positive comes at once and a negative a label wait later, so
  whenever traffic grows, or comes back, the newest examples are mostly positive, and nobody clicks more than before.
  What was shown in one second is therefore counted together, once a negative has come of something shown after it.
- After a gap (examples that nobody told) a second may hold positives whose negatives were passed over, or the other
  way round. So what waits is dropped, and what is counted was shown after the first positives that come.
- They are counted in blocks, ten to the gate's window. A block that leaves the window enters the past, which fades. So
  the past does not hold what it is compared with, and while learning stands still no block enters it.
- A leap is one of the odds, above a bound (the effect), and beyond what chance makes of that bound (the evidence).
  Chance is as large as blocks have really varied: people come in sittings, and that varies more than coins would.
- Counts follow from the order of the examples alone, not from how they were cut; `dump` and `load` keep each bit.
"""

from __future__ import annotations

import base64
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import Corrupt

BLOCKS: Final = 10  # in a window
LEAPT: Final = "does somebody click without looking?"  # the end of the reason, which knows it again in a policy
SPAN_S: Final = 86_400.0  # behind the newest, none waits any more: so many seconds are kept at most
_SURE: Final = 4.0  # standard errors
_FIRST: Final = 9  # positives after a gap that say when counting begins: several, as a clock may be odd
_POSITIVES: Final = 50  # with fewer, nothing is said
_KNOWN: Final = 3 * BLOCKS  # blocks of a past that is long enough to be usual


class _Count(msgspec.Struct, array_like=True):
    positives: float = 0.0
    examples: float = 0.0


class _Books(msgspec.Struct):
    """All that is kept. `first`: times of the first positives, whose median is the first showing that is counted; what
    was shown until `reached` is decided; `waiting`: (the end of a second that is not, positives, examples); `begun`:
    the block that is not full; `spread`: fading sum of squared deviations of `spreads` blocks, in variances of coins;
    `blocks`: how many have entered the past."""

    first: list[float] = []
    reached: float = float("-inf")
    waiting: list[tuple[float, float, float]] = []
    begun: _Count = msgspec.field(default_factory=_Count)
    window: list[_Count] = []
    past: _Count = msgspec.field(default_factory=_Count)
    spread: float = 0.0
    spreads: float = 0.0
    blocks: int = 0


class Usual:
    """Feed it every label; `leap` says what is odd. `window`: examples of the present; `history`: windows after which
    an example of the past counts 1/e."""

    def __init__(self, window: int, history: int) -> None:
        self._size, self._fade = max(1, window // BLOCKS), float(np.exp(-1 / (BLOCKS * history)))
        self._books = _Books()

    def observe(self, labels: NDArray[np.floating], times: NDArray[np.float64], *, passed_over: bool) -> None:
        """Labels [n] in their order; `times` [n]: when the items were shown, seconds; `passed_over`: they are not
        learnt, and so they never become usual."""
        books, positive = self._books, labels > 0
        start = 0
        if missing := _FIRST - len(books.first):
            found = np.flatnonzero(positive)[:missing]
            books.first += times[found].tolist()
            start = int(found[-1]) + 1 if len(found) == missing else len(labels)
        counted = np.arange(len(labels)) >= start
        counted &= times >= (sorted(books.first)[_FIRST // 2] if len(books.first) == _FIRST else 0.0)
        if counted.any():
            self._count(positive[counted], times[counted], passed_over)

    def _count(self, positive: NDArray[np.bool_], times: NDArray[np.float64], passed_over: bool) -> None:
        """Into blocks."""
        positives, examples = np.cumsum(self._decided(positive, times), axis=1)
        before, books = _Count(), self._books
        while True:
            full = before.examples + self._size - books.begun.examples
            if (at := int(np.searchsorted(examples, full))) == len(examples):
                break
            upto = _Count(float(positives[at]), float(examples[at]))
            self._close(_more(books.begun, upto, before), passed_over)
            books.begun, before = _Count(), upto
        books.begun = _more(books.begun, _Count(float(positives[-1]), float(examples[-1])), before)

    def _decided(self, positive: NDArray[np.bool_], times: NDArray[np.float64]) -> NDArray[np.float64]:
        """[2, n]: how many positives and how many examples are counted when each has come."""
        books, waiting = self._books, np.array(self._books.waiting).reshape(-1, 3)
        reached = np.maximum.accumulate(np.maximum(books.reached, np.where(positive, times - SPAN_S, times)))
        ends = np.append(waiting[:, 0], np.ceil(times))
        came = np.append(np.zeros(len(waiting), np.int64), np.arange(len(positive)))
        at = np.maximum(came, np.searchsorted(reached, ends))
        counts = np.append(waiting[:, 1], positive), np.append(waiting[:, 2], np.ones(len(positive)))
        known = at < len(positive)
        left, which = np.unique(ends[~known], return_inverse=True)
        still = [np.bincount(which, one[~known], len(left)).tolist() for one in counts]
        books.reached, books.waiting = float(reached[-1]), list(zip(left.tolist(), *still, strict=True))
        return np.stack([np.bincount(at[known], one[known], len(positive)) for one in counts])

    def _close(self, block: _Count, passed_over: bool) -> None:
        """A block is full: it is of the present, and the oldest there becomes the past."""
        books = self._books
        books.window.append(block)
        if len(books.window) <= BLOCKS:
            return
        old, rate = books.window.pop(0), self._rate()
        if passed_over:
            return
        if books.blocks >= BLOCKS and 0 < rate < 1:
            chance = old.examples * rate * (1 - rate)
            books.spread = books.spread * self._fade + (old.positives - old.examples * rate) ** 2 / chance
            books.spreads = books.spreads * self._fade + 1
        books.past.positives = books.past.positives * self._fade + old.positives
        books.past.examples = books.past.examples * self._fade + old.examples
        books.blocks += 1

    def _rate(self) -> float:
        return self._books.past.positives / max(1.0, self._books.past.examples)

    def full(self) -> bool:
        """Whether the present is a whole window."""
        return len(self._books.window) == BLOCKS

    def leap(self, times: float) -> str:
        """How the last blocks, one of them or several, had odds of more than `times` those of the past; "": none."""
        books, rate = self._books, self._rate()
        if books.blocks < _KNOWN:
            return ""
        bound = times * rate / (1 - rate + times * rate)
        wide = max(1.0, books.spread / books.spreads) if books.spreads else 1.0
        last = _Count()
        for block in reversed(books.window):
            last = _more(last, block, _Count())
            chance = (wide * last.examples * bound * (1 - bound)) ** 0.5
            if last.positives >= _POSITIVES and last.positives > last.examples * bound + _SURE * chance:
                return (
                    f"{last.positives:.0f} of {last.examples:.0f} examples whose wait is over are positive, where "
                    f"{last.examples * rate:.0f} are usual: {LEAPT}"
                )
        return ""

    def look_anew(self) -> None:
        """After a gap, the present begins now; what is usual stays known."""
        kept = self._books
        self._books = _Books(past=kept.past, spread=kept.spread, spreads=kept.spreads, blocks=kept.blocks)

    def forget(self) -> None:
        """What is usual begins anew, with what comes."""
        self._books = _Books()

    def dump(self) -> str:
        """All of it as text, for the metadata of a base."""
        return base64.b85encode(msgspec.msgpack.encode(self._books)).decode()

    def restore(self, text: str) -> None:
        """What `dump` gave. Corrupt."""
        try:
            self._books = msgspec.msgpack.decode(base64.b85decode(text), type=_Books)
        except (ValueError, msgspec.MsgspecError) as error:
            raise Corrupt(f"the usual labels in a base cannot be read: {error}; make another base live") from None


def _more(begun: _Count, upto: _Count, before: _Count) -> _Count:
    """`begun` with what lies between two running counts."""
    return _Count(begun.positives + upto.positives - before.positives, begun.examples + upto.examples - before.examples)
