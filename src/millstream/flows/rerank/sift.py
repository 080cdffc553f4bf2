"""Steps that need no list: what must not stand, what stands where an editor wants it, what is lifted a little.

Rules of the room:
- What is dropped here is never given back, however short the list gets.
- A pin stands against every score and every step that says what may stand; against a drop it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from millstream.errors import Misconfigured
from millstream.flows.rerank.slate import Floats, Mask, Slate
from millstream.flows.rerank.step import Page, Step, Work, units

Item = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Position = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Seen(Step, frozen=True, tag="seen"):
    """Drops what this user was shown, or clicked, lately: columns `seen` and `clicked_at` (unix seconds)."""

    shown: Annotated[bool, msgspec.Meta(description="drop what the user was shown lately")] = True
    clicked_s: Annotated[
        float, msgspec.Meta(ge=0.0, le=1e9, description="drop what was clicked within so many seconds")
    ] = 604_800.0

    def reads(self) -> tuple[str, ...]:
        return ("seen", "clicked_at") if self.shown else ("clicked_at",)

    def drop(self, slate: Slate, pinned: Mask) -> Mask | None:
        lately = slate.now - slate.column("clicked_at") < self.clicked_s  # not true of NaN
        if self.shown:
            lately |= slate.column("seen").astype(np.bool_)
        return lately


class NearDuplicates(Step, frozen=True, tag="near_duplicates"):
    """Of candidates that are nearly the same, leaves the one with the best score, a pinned one before others. The same:
    of one group in column `near`, or where a slate has no such column, embeddings that are alike enough. Of a chain
    (a like b, b like c) b goes when a stays, and c stays."""

    likeness: Annotated[
        float, msgspec.Meta(gt=0.0, le=0.99, description="cosine of embeddings from which two items are the same")
    ] = 0.98

    def reads(self) -> tuple[str, ...]:
        return ("near", "embedding")

    def drop(self, slate: Slate, pinned: Mask) -> Mask | None:
        best = np.lexsort((-slate.finite(), ~pinned))  # stable: the first of two that are equal
        if "near" in slate.columns:
            return _later_of_group(slate.columns["near"], best)
        if "embedding" in slate.columns and slate.columns["embedding"].shape[1]:
            return _later_alike(units(slate)[best], best, self.likeness)
        return None


class Blocks(Step, frozen=True, tag="blocks"):
    """Drops items by name."""

    items: Annotated[
        tuple[Item, ...], msgspec.Meta(max_length=10_000, description="items that never stand in the list")
    ] = ()

    def named(self, name: Callable[[str], str]) -> Self:
        return replace(self, items=tuple(map(name, self.items)))

    def drop(self, slate: Slate, pinned: Mask) -> Mask | None:
        blocked = frozenset(self.items)
        return np.fromiter((item in blocked for item in slate.items), np.bool_, len(slate)) if blocked else None


class Pins(Step, frozen=True, tag="pins"):
    """Puts items at positions. An item that is no candidate is put nowhere; where candidates are fewer than positions,
    a pin stands as far down as the list goes."""

    items: Annotated[
        dict[Item, Position], msgspec.Meta(max_length=200, description="item = its position, the first is 1")
    ] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.items.values())) != len(self.items):
            raise Misconfigured(f"step pins: two items have one position in {dict(self.items)}; give each its own")

    def named(self, name: Callable[[str], str]) -> Self:
        return replace(self, items={name(item): position for item, position in self.items.items()})

    def pins(self) -> dict[str, int]:
        return {item: position - 1 for item, position in self.items.items()}


class Boost(Step, frozen=True, tag="boost"):
    """Lifts or lowers the candidates with one value in a column: the score is worth `factor` times itself, and a
    negative one moves by as much in the same direction."""

    value: Annotated[str, msgspec.Meta(min_length=1, description="a name in that column, such as a category's")]
    by: Annotated[Literal["category", "author"], msgspec.Meta(description="the column")] = "category"
    factor: Annotated[float, msgspec.Meta(ge=0.0, le=100.0, description="below 1 lowers")] = 1.2

    def reads(self) -> tuple[str, ...]:
        return (self.by,)

    def work(self, page: Page) -> Work | None:
        code = page.slate.codes.get(self.by, {}).get(self.value, -1)
        if code < 0:
            return None  # no candidate has it
        base = page.slate.finite()
        return Lifted("boost", np.where(page.slate.column(self.by) == code, (self.factor - 1.0) * np.abs(base), 0.0))


class Newer(Step, frozen=True, tag="newer"):
    """Lifts new items, less as they age: `weight` spreads for one that is born now, half of it after `half_life_s`."""

    weight: Annotated[float, msgspec.Meta(ge=0.0, le=100.0, description="of an item born now, in spreads")] = 0.5
    half_life_s: Annotated[float, msgspec.Meta(gt=0.0, le=1e9, description="seconds after which half is left")] = (
        86400.0
    )

    def reads(self) -> tuple[str, ...]:
        return ("created",)

    def work(self, page: Page) -> Work | None:
        age = np.maximum(page.slate.now - page.slate.column("created"), 0.0)
        left: Floats = np.round(np.nan_to_num(np.exp2(-age / self.half_life_s), nan=0.0), 9).astype(np.float64)
        return Lifted("newer", self.weight * page.spread * left)


class Lifted(Work):
    """Adds the same, whatever is placed."""

    def __init__(self, label: str, worth: Floats) -> None:
        self.label, self.worth = label, worth


def _later_of_group(group: NDArray[np.integer], best: NDArray[np.intp]) -> Mask:
    ordered = group[best]
    _, first = np.unique(ordered, return_index=True)
    later = ordered >= 0
    later[first] = False
    gone = np.zeros(len(group), np.bool_)
    gone[best] = later
    return gone


def _later_alike(vectors: NDArray[np.float32], best: NDArray[np.intp], likeness: float) -> Mask:
    """`vectors` lie best first."""
    alike = np.triu(vectors @ vectors.T >= np.float32(likeness), 1)
    later = np.zeros(len(best), np.bool_)
    for at in np.flatnonzero(alike.any(axis=1)).tolist():
        if not later[at]:
            later |= alike[at]
    gone = np.zeros(len(best), np.bool_)
    gone[best] = later
    return gone
