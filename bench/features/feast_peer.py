"""Feast, in its own Python: takes one command a line (JSON), answers each with one. Started by peers.py.

    python feast_peer.py FOLDER HOST:PORT

    materialise   rows of one view from a Parquet file into Redis        -> rows_s
    read          requests of entities from Redis, by one of its clients -> wall_ms, dict_ms, cpu_ms (medians)
    values        one request, as a matrix                               -> values
    join          labels with a view's rows as of each label's time      -> wall_s, cpu_s, rows

All settings are those that make it quickest: the registry is held for ever, rows are written without looking at what
was there, requests name their entities by column.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float32, String
from feast.value_type import ValueType

UTC = datetime.UTC
BEGIN, END = datetime.datetime(2020, 1, 1, tzinfo=UTC), datetime.datetime(2030, 1, 1, tzinfo=UTC)


class Peer:
    def __init__(self, folder: Path, redis: str) -> None:
        self._folder, self._redis = folder, redis
        self._stores: dict[tuple[str, str, str], FeatureStore] = {}
        self._columns: list[str] = []

    def materialise(self, path: str, key: str, rows: int) -> dict[str, Any]:
        store = self._store(path, key, "redis", "duckdb")
        began = time.perf_counter()
        store.materialize(BEGIN, END)
        return {"rows_s": rows / (time.perf_counter() - began)}

    def read(self, path: str, key: str, client: str, requests: list[list[str]]) -> dict[str, Any]:
        store = self._store(path, key, client, "duckdb")
        features = [f"rows:{name}" for name in self._columns]
        walls, dicts, cpu = [], [], time.process_time()
        for names in requests:
            began = time.perf_counter()
            answer = store.get_online_features(features=features, entity_rows={key: names})
            walls.append(time.perf_counter() - began)
            answer.to_dict()
            dicts.append(time.perf_counter() - began)
        cpu = (time.process_time() - cpu) / len(requests)
        return {
            "wall_ms": statistics.median(walls) * 1e3,
            "dict_ms": statistics.median(dicts) * 1e3,
            "cpu_ms": cpu * 1e3,
        }

    def values(self, path: str, key: str, client: str, names: list[str]) -> dict[str, Any]:
        features = [f"rows:{name}" for name in self._columns]
        store = self._store(path, key, client, "duckdb")
        answer = store.get_online_features(features=features, entity_rows={key: names}).to_dict()
        return {"values": [answer[name] for name in self._columns]}

    def join(self, path: str, key: str, offline: str, labels: str) -> dict[str, Any]:
        store = self._store(path, key, "redis", offline)
        frame = pandas.read_parquet(labels)
        features = [f"rows:{name}" for name in self._columns]
        began, cpu = time.perf_counter(), time.process_time()
        job = store.get_historical_features(entity_df=frame, features=features)
        table = job.to_df() if offline == "dask" else job.to_arrow()
        return {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu, "rows": len(table)}

    def _store(self, path: str, key: str, client: str, offline: str) -> FeatureStore:
        """A store whose view "rows" has the columns of the Parquet file `path`, by `key`."""
        self._columns = [name for name in pq.read_schema(path).names if name not in (key, "event_timestamp")]
        if (path, client, offline) in self._stores:
            return self._stores[path, client, offline]
        online = {"type": "redis", "connection_string": self._redis, "skip_dedup": True, "client": client}
        store = FeatureStore(
            config=RepoConfig(
                project="bench",
                provider="local",
                registry={"path": str(self._folder / f"{len(self._stores)}.db"), "cache_ttl_seconds": 0},
                online_store=online,
                offline_store={"type": offline},
                entity_key_serialization_version=3,
            )
        )
        entity = Entity(name=key, join_keys=[key], value_type=ValueType.STRING)
        fields = [Field(name=key, dtype=String), *(Field(name=name, dtype=Float32) for name in self._columns)]
        source = FileSource(path=path, timestamp_field="event_timestamp")
        view = FeatureView(
            name="rows", entities=[entity], ttl=datetime.timedelta(0), schema=fields, source=source, online=True
        )
        store.apply([entity, view])
        self._stores[path, client, offline] = store
        return store


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Feast prints
    peer = Peer(Path(sys.argv[1]), sys.argv[2])
    for line in sys.stdin:
        command = json.loads(line)
        answers.write(json.dumps(getattr(peer, command.pop("do"))(**command)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
