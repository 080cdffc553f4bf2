"""The highest rate that holds a goal, by trying rates: rules alone, no processes and no clocks.

Rules of the room:
- A rate is *held* when 99 % of its requests are answered within the goal of the moment they were due, every one with a
  200, and the backlog does not grow.
- One unlucky window is tried again; the rate that is reported held in most of three.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import numpy as np

from millstream.ops.generator import Order, Tally
from millstream.ops.load import numbers

FIRST, UP, DOWN = 0.7, 1.4, 0.6
TOLERANCE = 0.05
ACHIEVED = 0.98
WINDOWS_MAX = 40
RANGE = 200, 4  # of the peak: rates from 1/200 to 4 times are tried


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One window at `rate` requests a second. `achieved`: the share of the rate that was answered without the backlog
    growing; `errors`: requests that were refused or cut off; `late`: those without an answer at the end. Latencies
    count from when a request was due."""

    rate: float
    held: bool
    achieved: float
    errors: int
    late: int
    p50_ms: float
    p99_ms: float


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate that held with the windows that say so, and the lowest above it that did not. `rate` 0: none."""

    rate: float
    windows: list[Tried]
    above: Tried | None
    tried: list[Tried]


def judge(order: Order, tally: Tally, goal_ms: float) -> Tried:
    """What a window at a fixed rate says. A request without an answer at its end has taken all the time there was."""
    late = tally.unanswered + tally.unsent
    took = np.append(numbers(tally.took_ms), np.full(late, (order.seconds + order.grace_s) * 1e3, np.float32))
    p50_ms, p99_ms = map(float, np.quantile(took, (0.5, 0.99))) if len(took) else (0.0, 0.0)
    errors = tally.scheduled - tally.statuses.get(200, 0) - late
    achieved = _achieved(order, tally)
    held = bool(len(took)) and not errors and p99_ms <= goal_ms and achieved >= ACHIEVED
    return Tried(rate=order.rate, held=held, achieved=achieved, errors=errors, late=late, p50_ms=p50_ms, p99_ms=p99_ms)


def _achieved(order: Order, tally: Tally) -> float:
    """A server that answers a share s of the rate falls behind, and latencies from the due moment grow by 1/s - 1
    seconds each second: so much between the middle of a window's first half and that of its second. Medians, so that
    one pause of the machine is not taken for it."""
    due, took = numbers(tally.due), numbers(tally.took_ms)
    answered = len(took) / max(1, tally.scheduled)
    second = due >= order.seconds / 2
    if not second.any() or second.all():
        return answered
    growth = float(np.median(took[second]) - np.median(took[~second])) / 1e3 / (order.seconds / 2)
    return min(answered, 1 / (1 + max(0.0, growth)))


async def search(attempt: Callable[[float], Awaitable[Tried]], peak: float) -> Found:
    """Try rates around `peak` (what the server answers when nobody pauses) until the highest that holds is known to
    TOLERANCE. At most WINDOWS_MAX windows, and those of the last checks."""
    tried: list[Tried] = []
    low: Tried | None = None
    above: Tried | None = None

    async def once(rate: float) -> Tried:
        tried.append(await attempt(rate))
        return tried[-1]

    async def twice(rate: float) -> Tried:
        first = await once(rate)
        return first if first.held else await once(rate)

    rate = peak * FIRST
    while peak / RANGE[0] <= rate <= peak * RANGE[1] and len(tried) < WINDOWS_MAX:
        one = await twice(rate)
        if one.held:
            low = one
        else:
            above = one
        if low and above and above.rate - low.rate <= TOLERANCE * low.rate:
            break
        rate = (low.rate + above.rate) / 2 if low and above else rate * (UP if low else DOWN)
    back = TOLERANCE
    while low and low.rate >= peak / RANGE[0]:
        windows = [low, await once(low.rate), await once(low.rate)] if low.held else [low]
        if sum(one.held for one in windows) > len(windows) / 2:
            return Found(rate=low.rate, windows=windows, above=above, tried=tried)
        above = next(one for one in windows if not one.held)
        low = await twice(low.rate * (1 - back))
        back = min(1 - DOWN, back + TOLERANCE)  # further each time: the machine is not what it was a moment ago
    return Found(rate=0.0, windows=[], above=above, tried=tried)


def ms(value: float) -> str:
    """A latency as a person reads it."""
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"
