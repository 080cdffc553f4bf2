"""What outcomes mean to a report."""

from __future__ import annotations

from typing import Annotated

import msgspec

Meta = msgspec.Meta


class ReportSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `millstream report` counts as what; what speaks for an item, `[histories]` and `[join.tasks]` say."""

    conversions: Annotated[
        tuple[str, ...], Meta(description="feedback kinds that are conversions; their values are revenue")
    ] = ("purchase",)
    paid: Annotated[tuple[str, ...], Meta(description="feedback kinds on which the price of an ad is due, once")] = (
        "click",
    )
    dwell: Annotated[str, Meta(description="feedback kind with how long somebody stayed as its value, seconds")] = (
        "dwell"
    )
    new_s: Annotated[float, Meta(gt=0.0, le=1e10, description="age up to which an item is new, seconds")] = 604_800.0
    visit_s: Annotated[
        float,
        Meta(gt=0.0, le=86400.0, description="silence after which somebody's next list is another visit, seconds"),
    ] = 1800.0
