"""Rows: how quickly they are written, what they weigh, and how quickly a request reads them, beside Feast on Redis."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import definitions
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from definitions import ONE_KIND, TWO_KINDS
from numpy.typing import NDArray
from peers import Feast

from millstream.features import FeatureSet
from millstream.features.events import keys_of
from millstream.features.online import Reader, Writer
from millstream.features.pipeline import stores_of
from millstream.features.plan import Plan
from millstream.features.state import State
from millstream.store.redis import RedisRows
from millstream.store.rows import RowFile, RowStore

ASKED = 200  # entities a request
CLIENTS = ("redis", "glide")  # of Feast
Keys = Mapping[str, Sequence[str]]


def written(root: Path, entities: int, repeats: int) -> dict[str, Any]:
    """A state of so many items written to new files, `repeats` times; the last file stays. rows_s: medians."""
    items = definitions.names("i", entities)
    table = definitions.events(entities, definitions.names("u", max(1, entities // 10)), items)
    state, at = State(ONE_KIND, entities), definitions.end_of(table)
    for batch in definitions.batches(table):
        state.apply("events", batch)
    walls, cpus, size = [], [], 0
    for number in range(repeats):
        folder = definitions.folder(root, f"rows{number}")
        stores = stores_of(ONE_KIND, folder, entities, write=True)
        writer = Writer(state, stores)
        writer.write_later()
        began, cpu = time.perf_counter(), time.process_time()
        count = writer.write(at)
        walls.append(count / (time.perf_counter() - began))
        cpus.append(count / (time.process_time() - cpu))
        size = stores["item"].size
        stores["item"].close()
        if count != entities:
            raise AssertionError(f"{count} rows were written of {entities}")
    return {"entities": entities, "rows_s": statistics.median(walls), "rows_cpu_s": statistics.median(cpus),
            "file_mb": size / 1e6, "at": at, "folder": str(folder)}  # fmt: skip


def read_in_process(root: Path, found: dict[str, Any], calls: int, rounds: int) -> dict[str, Any]:
    """Requests of the mapped file: p50 and p99 in microseconds, by kind of request."""
    entities, at = found["entities"], found["at"]
    one = Reader(ONE_KIND, stores_of(ONE_KIND, Path(found["folder"]), entities, write=False))
    two = Reader(TWO_KINDS, _of_two_kinds(root, entities // 10, at))
    users, items = definitions.names("u", entities // 10), definitions.names("i", entities)
    random = np.random.default_rng(1)
    requests: dict[str, tuple[Reader, list[Keys]]] = {
        "items": (one, [{"item": _some(random, items, ASKED)} for _ in range(calls)]),
        "item": (one, [{"item": _some(random, items, 1)} for _ in range(calls)]),
        "user_items": (
            two,
            [{"user": _some(random, users, 1), "item": _some(random, items[: entities // 10], ASKED)}
             for _ in range(calls)],
        ),
    }  # fmt: skip
    result: dict[str, Any] = {name: {"p50": [], "p99": [], "cpu": []} for name in requests}
    for _ in range(rounds):
        for name, (reader, asked) in requests.items():
            for key, figure in _timed(reader, asked, at).items():
                result[name][key].append(figure)
    return {name: {key: statistics.median(values) for key, values in kind.items()} for name, kind in result.items()}


def _of_two_kinds(root: Path, entities: int, at: int) -> dict[str, RowFile]:
    """Rows of users and items, as many of each."""
    users, items = definitions.names("u", entities), definitions.names("i", entities)
    state, folder = State(TWO_KINDS, entities), definitions.folder(root, "two")
    table = definitions.events(5 * entities, users, items)
    for batch in definitions.batches(table):
        state.apply("events", batch)
    stores = stores_of(TWO_KINDS, folder, entities, write=True)
    writer = Writer(state, stores)
    writer.write_later()
    writer.write(max(at, definitions.end_of(table)))
    for store in stores.values():
        store.close()
    return stores_of(TWO_KINDS, folder, entities, write=False)


def _timed(reader: Reader, requests: Sequence[Keys], at: int) -> dict[str, float]:
    """Microseconds of a request; none may miss an entity."""
    for keys in requests[:20]:
        if any(gone.any() for gone in reader.read(keys, at).missing.values()):
            raise AssertionError("entities without rows")
    walls, cpu, clock = [], time.process_time(), time.perf_counter
    for keys in requests:
        began = clock()
        reader.read(keys, at)
        walls.append(clock() - began)
    cpu = (time.process_time() - cpu) / len(requests)
    return {"p50": statistics.median(walls) * 1e6, "p99": float(np.quantile(walls, 0.99)) * 1e6, "cpu": cpu * 1e6}


def read_from_redis(
    root: Path, found: dict[str, Any], address: str, feast: Feast | None, entities: int, calls: int, rounds: int
) -> dict[str, Any]:
    """The first `entities` rows put into one Redis by both, and read in turns: milliseconds of a request of ASKED
    entities, and how many times as long as ours Feast's quickest client took (medians of the rounds)."""
    items, at = definitions.names("i", entities), found["at"]
    file = stores_of(ONE_KIND, Path(found["folder"]), found["entities"], write=False)["item"]
    reader = Reader(ONE_KIND, {"item": file})
    ours = _in_redis(ONE_KIND, file, address, items, at)
    result: dict[str, Any] = {"entities": entities}
    path = str(root / "rows.parquet")
    if feast:
        values = reader.read({"item": list(items)}, at).values
        time_of = pa.array(np.full(entities, at), pa.timestamp("us", "UTC"))
        columns = {name: values[:, number] for number, name in enumerate(ONE_KIND.columns)}
        pq.write_table(pa.table({"item": items, "event_timestamp": time_of, **columns}), path)
        result["feast_rows_s"] = feast.ask("materialise", path=path, key="item", rows=entities)["rows_s"]
        _check(ours, feast, path, list(items[:ASKED]), at)
    random = np.random.default_rng(2)
    turns = []
    for _ in range(rounds):
        asked = [{"item": _some(random, items, ASKED)} for _ in range(calls)]
        turn: dict[str, Any] = {"ours": _timed(ours, asked, at)}
        for client in CLIENTS if feast else ():
            assert feast is not None
            requests = [list(one["item"]) for one in asked[: max(3, calls // 10)]]
            turn[client] = feast.ask("read", path=path, key="item", client=client, requests=requests)
        turns.append(turn)
    middle = _medians(turns)
    result |= {
        "ms": middle(lambda turn: turn["ours"]["p50"] / 1e3),
        "cpu_ms": middle(lambda turn: turn["ours"]["cpu"] / 1e3),
    }
    for client in CLIENTS if feast else ():
        for what in ("wall_ms", "dict_ms", "cpu_ms"):
            result[f"feast_{client}_{what}"] = middle(lambda turn, c=client, w=what: turn[c][w])
    if feast:
        result["times"] = middle(
            lambda turn: min(turn[client]["wall_ms"] for client in CLIENTS) / turn["ours"]["p50"] * 1e3
        )
    return result


def _in_redis(features: FeatureSet, file: RowStore, address: str, items: NDArray[Any], at: int) -> Reader:
    store = RedisRows(f"redis://{address}", f"{features.hash}:item", Plan(features, "item").bytes)
    keys = keys_of(items)
    store.put(keys, file.get(keys).rows, at)
    store.vouch(at)
    return Reader(features, {"item": store})


def _check(ours: Reader, feast: Feast, path: str, names: list[str], at: int) -> None:
    """Both must read the same numbers."""
    mine = ours.read({"item": names}, at).values
    for client in CLIENTS:
        answer = feast.ask("values", path=path, key="item", client=client, names=names)["values"]
        theirs = np.array(answer, np.float32).T  # None becomes NaN
        if not np.array_equal(mine, theirs, equal_nan=True):
            raise AssertionError(f"Feast ({client}) and we read different values")


def _medians(turns: list[dict[str, Any]]) -> Callable[[Callable[[dict[str, Any]], float]], float]:
    return lambda of: statistics.median(of(turn) for turn in turns)


def _some(random: np.random.Generator, names: NDArray[np.object_], count: int) -> list[str]:
    return list(names[random.integers(0, len(names), count)])
