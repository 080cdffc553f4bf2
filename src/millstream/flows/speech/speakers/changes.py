"""What is told of speakers beside a segment's own, and which of the voices found now is which of those told before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from millstream.spoken import Speaker

UNKNOWN: Final = "unknown"
ANALYSING: Final = "analysing"
"""Names of a Speaker without an id: nobody known, and not decided yet."""


class Named(msgspec.Struct, frozen=True):
    """A spoken.SpeakerTold that has no seq yet."""

    op: Literal["new", "merge", "rename"]
    id: str
    name: str = ""
    into: str = ""


class Moved(msgspec.Struct, frozen=True):
    """A spoken.Correction that has neither seq nor rev yet."""

    segment: str
    speaker: Speaker
    reason: str


Change = Named | Moved


class Shown(msgspec.Struct, frozen=True):
    """Who a segment is shown with, and what is told before it."""

    speaker: Speaker
    told: list[Change] = []


def match(labels: Sequence[int], ids: Sequence[str], weights: Sequence[float], fixed: Sequence[bool]) -> dict[int, str]:
    """Which label is which id: each id goes to the label that has most of its speech, the weightiest pair first, of
    equals the older id. An id that is fixed there (a person said so) goes before others, unless more of its speech that
    is not is elsewhere. A label that no id is left for is not in it."""
    free: dict[tuple[int, str], float] = {}
    said: dict[tuple[int, str], float] = {}
    for label, ident, weight, stays in zip(labels, ids, weights, fixed, strict=True):
        if ident:
            of = said if stays else free
            of[label, ident] = of.get((label, ident), 0.0) + weight
    shared = {pair: free.get(pair, 0.0) + said.get(pair, 0.0) for pair in {**free, **said}}
    for pair in said:
        if all(weight <= shared[pair] for other, weight in free.items() if other[1] == pair[1] and other != pair):
            shared[pair] += float("inf")
    found: dict[int, str] = {}
    for label, ident in sorted(shared, key=lambda pair: (-shared[pair], int(pair[1][1:]), pair[0])):
        if label not in found and ident not in found.values():
            found[label] = ident
    return found
