"""What goes wrong with traffic: robots, outages, poisoned labels, clocks, and columns under other names.

Rules of the room:
- The truth stays as it is. A disturbance changes what the service is *told* of it (`Moment.told`, `delay_s`,
  `event_time`, `user`), and says so in `Moment.cause`; so what a loop made of it can be compared with what was true.
- All randomness comes from the generator that is handed in; moments stay in the order of their own time, except where
  `skew_s` puts a client's clock aside.
- Spans are seconds since the first moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from millstream.simulate.world import Moment


class Span(msgspec.Struct, frozen=True):
    """`seconds` of time from `start_s` on."""

    start_s: float
    seconds: float

    def has(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.start_s + self.seconds

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds


class Poison(msgspec.Struct, frozen=True):
    """In a span, this share of the labels is told the wrong way round."""

    span: Span
    share: float


class Disturbances(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong. Nothing, left as it is.

    `bots`: share of the moments that are of `accounts` robots, which are told to click whatever they see. `lost`: in
    these spans nothing is reported. `late`: what happens in these spans is reported when they end, all at once.
    `poison`: see there. `skewed`: share of the users whose clock is `skew_s` ahead (below 0: behind). `renamed`:
    (seconds, old, new): from then on items and users come with column `old` under the name `new`.
    """

    bots: float = 0.0
    accounts: int = 20
    lost: tuple[Span, ...] = ()
    late: tuple[Span, ...] = ()
    poison: tuple[Poison, ...] = ()
    skewed: float = 0.0
    skew_s: float = 0.0
    renamed: tuple[tuple[float, str, str], ...] = ()

    def row(self, row: Mapping[str, Any], at_s: float) -> dict[str, Any]:
        """A user's or an item's attributes as they come at that time."""
        names = {old: new for start_s, old, new in self.renamed if at_s >= start_s}
        return {names.get(name, name): value for name, value in row.items()}


def disturbed(
    moments: Iterable[Moment], what: Disturbances, random: np.random.Generator, start: float
) -> Iterator[Moment]:
    """The moments with what goes wrong; `start`: unix seconds that spans count from."""
    for moment in moments:
        at_s, draws = moment.event_time - start, random.random(3)
        changed: dict[str, Any] = {}
        causes = []
        if draws[0] < what.bots:
            robot = f"bot{int(random.integers(0, what.accounts))}"
            changed.update(user=robot, told=True, delay_s=0.0)
            causes.append("bot")
        elif any(one.span.has(at_s) and draws[1] < one.share for one in what.poison):
            changed.update(told=not moment.label)
            causes.append("poison")
        if any(span.has(at_s) for span in what.lost):
            changed.update(told=None)
            causes.append("lost")
        elif ends := [span.end_s for span in what.late if span.has(at_s)]:
            changed.update(delay_s=max(moment.delay_s, max(ends) - at_s))
            causes.append("late")
        if what.skewed and share_of(moment.user) < what.skewed:
            changed.update(event_time=moment.event_time + what.skew_s)
            causes.append("skew")
        yield msgspec.structs.replace(moment, **changed, cause=",".join(causes)) if causes else moment


def share_of(user: str) -> float:
    """A number in [0, 1) that stays a user's own, in every process."""
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:4], "big") / 2**32
