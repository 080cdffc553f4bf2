"""All steps together, and the one greedy builder that fills a list from its first position to its last.

Rules of the room:
- A list has as many items as asked, or all that no step dropped; it is never shorter because steps disagree.
- A position goes, in this order, to what is pinned there, to the first step that claims it, to the best score and worth
  among what every step lets stand; of equals, to the candidate that came first.
- Where nothing may stand, steps give way, for this position only: a step keeps its say if anything is left by it and
  the steps before it, so the last in the list is given up first. An item that stands against a step says so
  ("relaxed:window:category"), and is counted. Drops never give way.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import BadInput, Conflict, Misconfigured
from millstream.flows.rerank.diversity import Dpp, Mmr, Window
from millstream.flows.rerank.exposure import Ads, Fresh
from millstream.flows.rerank.sift import Blocks, Boost, NearDuplicates, Newer, Pins, Seen
from millstream.flows.rerank.slate import Floats, Mask, Slate
from millstream.flows.rerank.step import Claim, Page, Step, Work
from millstream.types import Served

AnyStep = Seen | NearDuplicates | Blocks | Pins | Boost | Newer | Window | Mmr | Dpp | Fresh | Ads
Steps = Annotated[
    tuple[AnyStep, ...], msgspec.Meta(max_length=32, description="steps of re-ranking, in the order they are kept")
]
LENGTH_MAX: Final = 1000
_ONCE: Final = (Pins, Fresh, Ads)


class Order(NamedTuple):
    """A list. `places` int32 [m]: candidates, first position first; `reasons` [m]: why each stands there, words with
    blanks between: score, pin, fresh, ad or explore, then worth ("diverse:-0.12") and steps it stands against.
    `relaxed`: step -> how often; `charges`: place -> price of a click, for what was sold; `dropped`: step -> the places
    that it was the first to drop."""

    places: NDArray[np.int32]
    reasons: list[str]
    relaxed: dict[str, int]
    charges: dict[int, float]
    dropped: dict[str, NDArray[np.int32]]


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps in the order that they are kept: the last gives way first."""

    steps: Steps = ()

    def __post_init__(self) -> None:
        for kind in _ONCE:
            if sum(isinstance(step, kind) for step in self.steps) > 1:
                raise Misconfigured(f"step {kind.__struct_config__.tag} stands twice in one list of steps; make it one")

    @property
    def reads(self) -> frozenset[str]:
        """The columns of a slate that any step looks at."""
        return frozenset(column for step in self.steps for column in step.reads())

    @property
    def items(self) -> tuple[str, ...]:
        """Items that pins name: they stand only if they are among the candidates."""
        return tuple(item for step in self.steps for item in step.pins())

    @property
    def named(self) -> dict[str, frozenset[str]]:
        """Column -> names whose codes a slate must know (`Slate.codes`)."""
        named: dict[str, set[str]] = {}
        for step in self.steps:
            if isinstance(step, Boost):
                named.setdefault(step.by, set()).add(step.value)
        return {column: frozenset(names) for column, names in named.items()}

    def hash(self, n: int) -> str:
        """Names what makes lists of at most n items: these steps with these settings, 16 hexadecimal digits. A setting
        that is as by default does not count, so one that a later release adds changes no hash."""
        steps = [{"step": step.__struct_config__.tag} | _changed(step) for step in self.steps]
        told = msgspec.json.encode([n, steps], order="sorted")
        return hashlib.blake2b(told, digest_size=8, person=b"rules").hexdigest()

    def again(self, event: Served, n: int) -> Order:
        """The list of a served event, made again from what was logged, bit for bit. Conflict: it was made by other
        rules than these; Corrupt: its slate cannot be read."""
        if event.rules_hash and event.rules_hash != self.hash(n):
            raise Conflict(
                f"request {event.request[:80]!r} was put in order by rules {event.rules_hash}, these are "
                f"{self.hash(n)}: make it again by the rules, and the list_max, of that time"
            )
        return self.order(Slate.unpack(event.slate, event.candidates), n)

    def order(self, slate: Slate, n: int) -> Order:
        """The list of at most n items, 0 to LENGTH_MAX, else BadInput. A pure function: nothing is kept or written."""
        if not 0 <= n <= LENGTH_MAX:
            raise BadInput(f"a list of {n} items; ask for 0 to {LENGTH_MAX}")
        wanted = self._wanted(slate)
        alive, dropped = self._drop(slate, wanted)
        length = min(n, int(alive.sum()))
        fixed = _settle(wanted, slate.first, alive, n, length)
        base = slate.finite()
        page = Page(slate, alive, length, fixed, _spread(base[alive]))
        works = [(step.name, work) for step in self.steps if (work := step.work(page)) is not None]
        build = _Build(page, base, works)
        for position in range(length):
            build.fill(position)
        return Order(np.array(build.places, np.int32), build.reasons, dict(build.relaxed), build.charges, dropped)

    def first(self, slate: Slate, n: int, share: float) -> Floats:
        """How likely each candidate is to stand first, float64 [len(slate)], where in `share` of the requests chance
        puts one of the list's items there, each as likely: logged outcomes are weighed by it (learn/estimate.py)."""
        places = self.order(msgspec.structs.replace(slate, first=-1), n).places
        chances = np.zeros(len(slate))
        if len(places):
            chances[places] = share / len(places)
            chances[places[0]] += 1.0 - share
        return chances

    def _wanted(self, slate: Slate) -> dict[int, int]:
        """Place -> position of what is pinned."""
        pins = {item: position for step in self.steps for item, position in step.pins().items()}
        return {place: pins[item] for place, item in enumerate(slate.items) if item in pins} if pins else {}

    def _drop(self, slate: Slate, wanted: dict[int, int]) -> tuple[Mask, dict[str, NDArray[np.int32]]]:
        pinned = np.zeros(len(slate), np.bool_)
        pinned[list(wanted)] = True
        alive = np.ones(len(slate), np.bool_)
        dropped: dict[str, NDArray[np.int32]] = {}
        for step in self.steps:
            if (gone := step.drop(slate, pinned)) is not None and (gone := gone & alive).any():
                dropped[step.name] = np.flatnonzero(gone).astype(np.int32)
                alive &= ~gone
        return alive, dropped


class _Build:
    """A list that is being built; `fill` is called once a position, in order."""

    def __init__(self, page: Page, base: Floats, works: list[tuple[str, Work]]) -> None:
        self._page, self._base, self._works = page, base, works
        self._free = page.alive.copy()
        self._free[list(page.fixed.values())] = False
        self._lifting = [work for _, work in works if work.worth is not None]
        self._claiming = [work for _, work in works if type(work).claim is not Work.claim]
        self._limiting = [(name, work) for name, work in works if type(work).may is not Work.may]
        self.places: list[int] = []
        self.reasons: list[str] = []
        self.relaxed: Counter[str] = Counter()
        self.charges: dict[int, float] = {}

    def fill(self, position: int) -> None:
        """Puts the next item."""
        limits = [(name, may) for name, work in self._limiting if (may := work.may(position)) is not None]
        if position in self._page.fixed:
            place, claim = self._page.fixed[position], None
            reason = "explore" if place == self._page.slate.first else "pin"
        else:
            allowed, strict = self._allowed([may for _, may in limits])
            claim = self._claimed(position, allowed) if strict else None  # else it is nobody's wish
            place, reason = (claim.place, claim.reason) if claim else self._best(allowed)
        against = [name for name, may in limits if not may[place]]
        self.relaxed.update(against)
        self.reasons.append(" ".join([reason, *(f"relaxed:{name}" for name in against)]))
        self.places.append(place)
        self._free[place] = False
        if claim is not None and claim.price is not None:
            self.charges[place] = claim.price
        for _, work in self._works:
            work.placed(position, place, claim)

    def _allowed(self, limits: list[Mask]) -> tuple[Mask, bool]:
        """What may stand, at least one, each step in turn having its say if that leaves anything; whether all had."""
        allowed, strict = self._free, True
        for may in limits:
            fewer = allowed & may
            if fewer.any():
                allowed = fewer
            else:
                strict = False
        return allowed, strict

    def _claimed(self, position: int, allowed: Mask) -> Claim | None:
        return next((claim for work in self._claiming if (claim := work.claim(position, allowed)) is not None), None)

    def _best(self, allowed: Mask) -> tuple[int, str]:
        """The place of the best score and worth, and what made it."""
        total = self._base
        lifts = [(work.label, work.worth) for work in self._lifting if work.worth is not None]
        for _, worth in lifts:
            total = total + worth
        place = int(np.where(allowed, total, -np.inf).argmax())
        made = [f"{label}:{value:+.3g}" for label, worth in lifts if (value := float(worth[place]))]
        return place, " ".join(["score", *made])


def _changed(step: Step) -> dict[str, object]:
    """The settings of a step that are not as by default."""
    fields = msgspec.structs.fields(step)
    return {field.name: value for field in fields if (value := getattr(step, field.name)) != field.default}


def _spread(scores: Floats) -> float:
    """The standard deviation of those that are numbers, to nine digits, which no library's way of adding up changes."""
    known = scores[np.abs(scores) < 1e30]
    return float(f"{known.std():.9g}") or 1.0 if len(known) else 1.0


def _settle(wanted: dict[int, int], first: int, alive: Mask, n: int, length: int) -> dict[int, int]:
    """Position -> place of what stands before anything else: what chance puts first, then pins, each at its position or
    the next free one; at the last free one where the list ends before."""
    fixed: dict[int, int] = {}
    if first >= 0 and length and alive[first]:
        fixed[0] = first
    for place, position in sorted(wanted.items(), key=lambda pin: pin[1]):
        if position >= n or not alive[place] or place == fixed.get(0):
            continue
        at = next((p for p in range(position, length) if p not in fixed), None)
        if at is None:
            at = next((p for p in range(min(position, length) - 1, -1, -1) if p not in fixed), None)
        if at is not None:
            fixed[at] = place
    return fixed
