"""How indexes for recall are built. Apart from what builds them, as settings are read where no compiler is."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

Coding = Literal["sq8", "pq"]
WINDOW: Final = 50
SHRINK: Final = 5.0


class FactorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How items are factorised."""

    width: Annotated[int, msgspec.Meta(ge=1, le=1024, description="numbers a vector")] = 64
    unseen: Annotated[float, msgspec.Meta(gt=0, le=10, description="weight of a pair that nobody liked yet")] = 0.1
    penalty: Annotated[float, msgspec.Meta(gt=0, description="L2 penalty of somebody who liked one item")] = 0.6
    power: Annotated[float, msgspec.Meta(ge=0, le=1, description="the penalty grows with the likes to this power")] = (
        0.5
    )
    turns: Annotated[int, msgspec.Meta(ge=1, le=100, description="times that users and items are solved")] = 12
    steps: Annotated[int, msgspec.Meta(ge=1, le=50, description="of conjugate gradients a row and turn")] = 4


class BuildSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How indexes are built. Those who follow them look for new ones by themselves."""

    every_s: Annotated[float, msgspec.Meta(ge=0.1, description="between the starts of two builds, seconds")] = 300.0
    least_events: Annotated[
        int, msgspec.Meta(ge=1, description="new positives, and items told of, that a build is made for")
    ] = 100
    positives_max: Annotated[
        int, msgspec.Meta(ge=1, le=200_000_000, description="latest positives that an index is built of")
    ] = 5_000_000
    requests_max: Annotated[
        int, msgspec.Meta(ge=1, le=50_000_000, description="requests whose user is remembered until outcomes come")
    ] = 1_000_000
    window: Annotated[int, msgspec.Meta(ge=2, le=1000, description="last different items of a person that count")] = (
        WINDOW
    )
    neighbours: Annotated[int, msgspec.Meta(ge=1, le=1000, description="nearest items kept of each")] = 100
    takers: Annotated[int, msgspec.Meta(ge=1, le=10_000, description="latest people kept of each item")] = 200
    shrink: Annotated[float, msgspec.Meta(ge=0, description="people behind a similarity at which it counts half")] = (
        SHRINK
    )
    turns_again: Annotated[
        int, msgspec.Meta(ge=1, le=100, description="turns of the factors that begin from the index before")
    ] = 3
    codes: Annotated[
        Coding, msgspec.Meta(description="of vectors: a byte a number (sq8), or one for four (pq), above 10 million")
    ] = "sq8"
    shards: Annotated[
        int, msgspec.Meta(ge=0, le=64, description="processes that items are shared out to, to be searched; 0, 1: none")
    ] = 0
    towers: Annotated[
        str, msgspec.Meta(max_length=128, description="model of two towers whose vectors are searched; empty: none")
    ] = "towers"
    factors: FactorSettings = FactorSettings()
