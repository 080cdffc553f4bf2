"""What all parts measure: one source, two feature sets of 20 columns, and the events that fill them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from millstream.features import Aggregate, FeatureSet, Source
from millstream.features.define import SECOND
from millstream.features.events import Events
from millstream.features.offline import events_of

WINDOWS = ("1h", "1d", "7d", "lifetime")
CLICK = "kind == 'click'"
START_S, SPAN_S = 1_750_000_000, 30 * 86_400
SOURCE = Source(name="events", columns={"user": "text", "item": "text", "kind": "text", "value": "number"})


def _ten(entity: str) -> list[Aggregate]:
    """Counts and sums over four windows, one of them under a condition, and the latest value."""
    made = []
    for window in WINDOWS:
        made.append(Aggregate(name=f"{entity}_count_{window}", source=SOURCE, key=entity, op="count", window=window))
        made.append(
            Aggregate(name=f"{entity}_sum_{window}", source=SOURCE, key=entity, op="sum", column="value", window=window)
        )
    made.append(Aggregate(name=f"{entity}_clicks_1d", source=SOURCE, key=entity, op="count", window="1d", where=CLICK))
    made.append(Aggregate(name=f"{entity}_last", source=SOURCE, key=entity, op="last", column="value"))
    return made


def _twenty() -> list[Aggregate]:
    """Twenty of an item: as above, with means, clicks over all windows, and the values' range and spread."""
    made = [one for one in _ten("item") if one.name != "item_clicks_1d"]
    for window in WINDOWS:
        made.append(
            Aggregate(name=f"item_mean_{window}", source=SOURCE, key="item", op="mean", column="value", window=window)
        )
        made.append(
            Aggregate(name=f"item_clicks_{window}", source=SOURCE, key="item", op="count", window=window, where=CLICK)
        )
    made += [Aggregate(name=f"item_{op}", source=SOURCE, key="item", op=op, column="value") for op in _SPREAD]
    return made


_SPREAD = ("min", "max", "std")
TWO_KINDS = FeatureSet(name="two_kinds", features=(*_ten("user"), *_ten("item")))
ONE_KIND = FeatureSet(name="one_kind", features=tuple(_twenty()))


def names(letter: str, count: int) -> NDArray[np.object_]:
    """Entities' names, "u0", "u1" ..."""
    return np.array([f"{letter}{at}" for at in range(count)], object)


def events(count: int, users: NDArray[np.object_], items: NDArray[np.object_], seed: int = 0) -> pa.Table:
    """Events of a month in the order in which they came, as a table of SOURCE. Each came some seconds after it
    happened; the first len(items) are of one item each, so that all items have a row."""
    random = np.random.default_rng(seed)
    arrival = START_S + np.sort(random.uniform(0, SPAN_S, count))
    item = random.integers(0, len(items), count)
    item[: len(items)] = np.arange(len(items))[:count]
    return pa.table({
        "event_time": arrival - random.exponential(5, count),
        "arrival": arrival,
        "user": users[random.integers(0, len(users), count)],
        "item": items[item],
        "kind": np.array(["click", "view"], object)[random.integers(0, 2, count)],
        "value": random.normal(size=count),
    })  # fmt: skip


def batches(table: pa.Table, size: int = 250_000) -> list[Events]:
    """The table as batches for a state."""
    return [events_of(SOURCE, table.slice(first, size)) for first in range(0, len(table), size)]


def end_of(table: pa.Table) -> int:
    """A time after all of it, microseconds."""
    return int(table["arrival"][-1].as_py() * SECOND) + SECOND


def folder(root: Path, name: str) -> Path:
    """A new folder."""
    made = root / name
    made.mkdir()
    return made
