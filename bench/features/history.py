"""Training frames: a million events and a million labels, beside Feast's join of rows that were computed before."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import definitions
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from definitions import SPAN_S, START_S, TWO_KINDS
from peers import Feast

from millstream.features.offline import training_frame

OFFLINE = ("duckdb", "dask")


def joined(root: Path, feast: Feast | None, rows: int, repeats: int) -> dict[str, Any]:
    """`rows` events, which lie in a Parquet file, and as many labels: seconds (medians), and Feast's."""
    users, items = definitions.names("u", max(1, rows // 10)), definitions.names("i", max(1, rows // 50))
    pq.write_table(definitions.events(rows, users, items), root / "events.parquet")
    random = np.random.default_rng(1)
    moments = START_S + random.uniform(0, SPAN_S, rows)
    user = users[random.integers(0, len(users), rows)]
    labels = pa.table({"event_time": moments, "user": user, "item": items[random.integers(0, len(items), rows)]})
    walls, cpus = [], []
    for _ in range(repeats):
        began, cpu = time.perf_counter(), time.process_time()
        frame = training_frame(TWO_KINDS, labels, {"events": root / "events.parquet"})
        walls.append(time.perf_counter() - began)
        cpus.append(time.process_time() - cpu)
        if len(frame) != rows or not np.asarray(frame["item_count_lifetime"]).any():
            raise AssertionError("labels were lost, or nothing was counted")
    result = {"rows": rows, "wall_s": statistics.median(walls), "cpu_s": statistics.median(cpus)}
    if feast:
        result["feast"] = _of_feast(root, feast, moments, user, rows, frame)
    return result


def _of_feast(root: Path, feast: Feast, moments: Any, user: Any, rows: int, frame: pa.Table) -> dict[str, Any]:
    """What each of its offline stores needs to join as many precomputed rows: of a user, with the frame's 20 columns,
    at the times of the events."""
    came = np.asarray(pq.read_table(root / "events.parquet", columns=["arrival"])["arrival"])
    whose = pq.read_table(root / "events.parquet", columns=["user"])["user"]
    columns = {name: frame[name] for name in TWO_KINDS.columns}
    pq.write_table(pa.table({"user": whose, "event_timestamp": _stamps(came), **columns}), root / "computed.parquet")
    pq.write_table(pa.table({"user": user, "event_timestamp": _stamps(moments)}), root / "labels.parquet")
    paths = {"path": str(root / "computed.parquet"), "labels": str(root / "labels.parquet")}
    return {offline: feast.ask("join", key="user", offline=offline, **paths) for offline in OFFLINE}


def _stamps(seconds: Any) -> pa.Array:
    return pa.array((np.asarray(seconds) * 1e6).astype(np.int64), pa.timestamp("us", "UTC"))
