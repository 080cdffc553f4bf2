"""How a review queue and a dataset are made: table [curate] of `millstream.toml`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class CurateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of the queue, its reasons, and labels of a teacher."""

    rows_max: Annotated[
        int, Meta(ge=100, le=2_000_000, description="the latest scored rows of the log that are looked at")
    ] = 100_000
    open_max: Annotated[int, Meta(ge=1, le=10_000, description="rows that wait for a person")] = 1000
    reason_max: Annotated[int, Meta(ge=1, le=10_000, description="of these, rows of one reason")] = 200
    person_max: Annotated[int, Meta(ge=1, le=1000, description="of these, rows of one user, robots too")] = 5
    item_max: Annotated[int, Meta(ge=1, le=1000, description="of these, rows of one item")] = 20
    keep_s: Annotated[
        float,
        Meta(ge=60, le=31_536_000, description="a row without a label leaves the queue after so long, seconds"),
    ] = 2_592_000.0
    threshold: Annotated[
        float, Meta(gt=0, lt=1, description="calibrated score from which a row counts as positive")
    ] = 0.5
    uncertain: Annotated[
        float, Meta(gt=0, le=0.5, description="a calibrated score so near to the threshold is uncertain")
    ] = 0.1
    apart: Annotated[float, Meta(gt=0, lt=1, description="two models whose scores are so far apart disagree")] = 0.2
    corrections: Annotated[
        tuple[str, ...], Meta(max_length=64, description="kinds of outcomes by which a user contradicts an answer")
    ] = ("dislike", "report", "correction")
    near: Annotated[
        float, Meta(ge=0.1, le=1, description="rows that share so much of their tokens are duplicates (Jaccard)")
    ] = 0.8
    cluster: Annotated[
        float, Meta(ge=0.1, le=1, description="rows that share so much of their tokens are of one cluster (Jaccard)")
    ] = 0.5
    cluster_rows: Annotated[int, Meta(ge=4, le=10_000, description="a cluster of fewer rows is none")] = 8
    recent: Annotated[
        float, Meta(gt=0, le=0.5, description="the latest share of the rows, in which slices may have moved")
    ] = 0.25
    drift: Annotated[
        float,
        Meta(
            gt=0,
            lt=1,
            description="a slice drifts whose mean score, or its distance to the labels, surely moved so far",
        ),
    ] = 0.05
    weight: Annotated[
        float, Meta(gt=0, le=1000, description="examples of the log that a person's label counts as in training")
    ] = 3.0
    confidence: Annotated[
        float,
        Meta(gt=0.5, lt=1, description="a teacher's score from which it says positive; below the rest to 1: negative"),
    ] = 0.9
    precision_min: Annotated[
        float, Meta(gt=0, lt=1, description="a teacher's labels are refused whose precision is not surely so high")
    ] = 0.8
    gold_min: Annotated[
        int, Meta(ge=10, le=100_000, description="gold labels that a teacher's precision is measured on, at least")
    ] = 50
    pseudo_max: Annotated[int, Meta(ge=1, le=1_000_000, description="a teacher's labels in one dataset")] = 5000
    pseudo_weight: Annotated[
        float, Meta(gt=0, le=1000, description="examples of the log that a teacher's label counts as in training")
    ] = 0.5
