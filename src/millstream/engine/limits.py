"""How much an engine takes on: what an operator sets under `[engine]`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec.structs import fields, replace

from millstream.models.manifest import Batching, BatchLimits


class EngineLimits(BatchLimits, frozen=True, forbid_unknown_fields=True):
    """How much the engine takes on at once: how versions are batched that do not say it themselves, and the rest."""

    rows_max: Annotated[
        int, msgspec.Meta(ge=0, le=65536, description="most rows in one call; 0: as many as take 10 ms, 32 to 1024")
    ] = 0
    queue_rows_max: Annotated[
        int, msgspec.Meta(ge=1, le=1_000_000, description="most rows that wait for one version; more are refused (429)")
    ] = 8192
    inline_us_max: Annotated[
        int, msgspec.Meta(ge=0, le=10_000, description="models with quicker batches run on the loop, microseconds")
    ] = 150
    memory_bytes_max: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="memory of all loaded versions; over it the model asked least recently is unloaded until it is "
            "asked again; 0: no bound",
        ),
    ] = 0
    poll_s: Annotated[
        float, msgspec.Meta(ge=0.001, le=60, description="between two looks at policies and versions, seconds")
    ] = 0.2
    keep_s: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=86400,
            description="the version that was live before stays loaded for so long, for a roll back at once, seconds; "
            "0, or with memory_bytes_max: not at all",
        ),
    ] = 600.0
    drain_s: Annotated[
        float, msgspec.Meta(ge=0, le=3600, description="at a stop, sessions may go on for so long, seconds")
    ] = 10.0

    def over(self, own: Batching) -> Batching:
        """What a version says of its batching, with these settings where it says nothing."""
        mine = {field.name: getattr(own, field.name) or getattr(self, field.name) for field in fields(BatchLimits)}
        return replace(own, **mine)
