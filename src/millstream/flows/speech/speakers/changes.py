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
    equals the older id; an id that is fixed stays whatever the weight. A label that no id is left for is not in it."""
    shared: dict[tuple[int, str], float] = {}
    for label, ident, weight, stays in zip(labels, ids, weights, fixed, strict=True):
        if ident:
            shared[label, ident] = shared.get((label, ident), 0.0) + (float("inf") if stays else weight)
    found: dict[int, str] = {}
    for label, ident in sorted(shared, key=lambda pair: (-shared[pair], int(pair[1][1:]), pair[0])):
        if label not in found and ident not in found.values():
            found[label] = ident
    return found
