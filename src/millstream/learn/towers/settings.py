"""How two towers are made: table [towers] of `millstream.toml`. Imports no framework."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from millstream.errors import Misconfigured

_TABLE_MAX: Final = 1 << 28  # numbers in the table of tokens: 1 GiB of float32


class TowerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of two towers. Out of bounds: Misconfigured."""

    width: Annotated[int, Meta(ge=2, le=512, description="numbers of a vector, and of what stands for a token")] = 64
    bits: Annotated[int, Meta(ge=10, le=22, description="log2 of the slots that tokens share")] = 18
    hidden: Annotated[int, Meta(ge=1, le=1024, description="units of each tower's hidden layer")] = 64
    seen: Annotated[int, Meta(ge=1, le=1000, description="a token counts once so many likes have it; else as none")] = 2
    history: Annotated[int, Meta(ge=1, le=500, description="items liked last that the user's tower looks at")] = 50
    temperature: Annotated[
        float, Meta(gt=0, le=10, description="inner products are divided by it before they compete")
    ] = 0.1
    masked: Annotated[
        float,
        Meta(ge=0, lt=1, description="share of the items without their own token while learning, as new ones are"),
    ] = 0.1
    rate: Annotated[float, Meta(gt=0, le=1, description="step of the layers, and of what stands for tokens (Adam)")] = (
        0.003
    )
    decay: Annotated[float, Meta(ge=0, le=10, description="L2 penalty on what stands for a row's tokens")] = 0.1
    dropout: Annotated[float, Meta(ge=0, lt=1, description="share of a tower's inputs left out while learning")] = 0.1
    batch: Annotated[int, Meta(ge=2, le=65_536, description="likes of one step, whose items compete")] = 1024
    passes: Annotated[int, Meta(ge=1, le=1000, description="times over the likes, where --passes says nothing")] = 8

    def __post_init__(self) -> None:
        if self.width << self.bits > _TABLE_MAX:
            raise Misconfigured(f"towers: 2^{self.bits} slots of {self.width} numbers are over 1 GiB; take fewer")
