"""The bounds of the feature store, checked in one run, with Feast beside us.

    python bench/features [--quick] [--no-feast] [--parts rows,history,stream] [--json]

Feast runs in an environment and a process of its own, on the same Redis as our rows; both are given the same numbers,
which is checked. Where two are compared they take turns, and figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import history
import peers
import rows
from peers import Bound, Failed, Feast, table

import stream

PARTS = ("rows", "history", "stream")
WHOLE = {"entities": 1_000_000, "in_redis": 20_000, "calls": 500, "rounds": 7, "repeats": 3, "labels": 1_000_000,
         "events": 500_000, "steps": 15, "seconds": 20.0}  # fmt: skip
QUICK = {"entities": 50_000, "in_redis": 2_000, "calls": 50, "rounds": 3, "repeats": 2, "labels": 50_000,
         "events": 60_000, "steps": 3, "seconds": 3.0}  # fmt: skip


def measure(sizes: dict[str, Any], parts: list[str], with_feast: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"sizes": sizes}
    with tempfile.TemporaryDirectory(prefix="bench-features-") as name, contextlib.ExitStack() as stack:
        root, feast, address = Path(name), None, ""
        try:
            python = peers.feast_python() if with_feast else None
            address = stack.enter_context(peers.redis_server(root))
            if python:
                feast = Feast(python, root, address)
                stack.callback(feast.close)
        except Failed as error:
            print(error, file=sys.stderr)
        if "rows" in parts:
            _say("rows")
            found = result["written"] = rows.written(root, sizes["entities"], sizes["repeats"])
            result["read"] = rows.read_in_process(root, found, sizes["calls"], sizes["rounds"])
            if address:
                result["redis"] = rows.read_from_redis(
                    root, found, address, feast, sizes["in_redis"], sizes["calls"], sizes["rounds"]
                )
        if "history" in parts:
            _say("history")
            result["history"] = history.joined(root, feast, sizes["labels"], sizes["repeats"])
        if "stream" in parts:
            _say("stream")
            result["stream"] = stream.followed(root, sizes["events"], sizes["steps"])
            result["fresh"] = stream.fresh(root, sizes["seconds"])
    return result


def check(result: dict[str, Any]) -> list[Bound]:
    """Every bound; nan where this run did not measure it."""

    def of(*path: str) -> float:
        found: Any = result
        for part in path:
            found = found.get(part, {})
        return found if isinstance(found, (int, float)) else math.nan

    joins = [one["wall_s"] for one in result.get("history", {}).get("feast", {}).values()]

    def rate(*path: str) -> float:
        return of(*path) / 1e3

    whole = of("written", "entities") == 1_000_000
    events_s, rows_s = "k events/s", "k rows/s"
    return [
        Bound("200 entities x 20 features, mapped file, p50", 0.2, of("read", "items", "p50") / 1e3, unit="ms"),
        Bound("a user and 200 items, 10 features each, p50", 0.2, of("read", "user_items", "p50") / 1e3, unit="ms"),
        Bound("1 entity x 20 features, p50", 20.0, of("read", "item", "p50"), unit="us"),
        Bound("200 x 20 from Redis, p50", 1.0, of("redis", "ms"), unit="ms"),
        Bound("Feast's time of ours, same Redis, its quicker client", 20.0, of("redis", "times"), at_least=True),
        Bound("point-in-time, 20 windows of 2 kinds of entities", 5.0, of("history", "wall_s"), unit="s"),
        Bound(
            "Feast's time of ours, its quicker store, which joins rows computed before", 5.0,
            min(joins, default=math.nan) / of("history", "wall_s"), at_least=True,
        ),
        Bound("from the log to rows, keeping up", 200.0, rate("stream", "steady"), True, events_s),
        Bound("from the log to rows, catching up", 200.0, rate("stream", "behind"), True, events_s),
        Bound("rows written to a new file", 200.0, rate("written", "rows_s"), True, rows_s),
        Bound("1 M entities x 20 float32, file", 200.0, of("written", "file_mb") if whole else math.nan, unit="MB"),
        Bound("event to readable row, p99", 1000.0, of("fresh", "p99_ms"), unit="ms"),
    ]  # fmt: skip


def report(result: dict[str, Any]) -> str:
    parts = [table(check(result))]
    if "read" in result:
        parts.append(_of_rows(result))
    if "history" in result:
        parts.append(_of_history(result["history"]))
    if "stream" in result:
        parts.append(_of_stream(result["stream"], result["fresh"]))
    return "\n\n".join(parts)


def _of_rows(result: dict[str, Any]) -> str:
    one, read = result["written"], result["read"]
    text = (
        f"Reading: {one['entities']:,} items with 20 FP32 features each (counts, sums, means and clicks over 1h, 1d, "
        "7d and for ever, the latest, least, largest, and spread), names drawn at random; a user and items: 10 "
        f"features of each. p50 / p99 / CPU: 200 items {_us(read['items'])}, a user and 200 items "
        f"{_us(read['user_items'])}, 1 item {_us(read['item'])}.\n\n"
        f"Writing: the rows of {one['entities']:,} entities, computed from their state and put "
        f"into a new file, {one['rows_s'] / 1e3:.0f} k rows/s ({one['rows_cpu_s'] / 1e3:.0f} k rows a second of CPU)"
    )
    redis = result.get("redis", {})
    if "feast_rows_s" in redis:
        text += f"; Feast materialises {redis['feast_rows_s'] / 1e3:.1f} k rows/s of {redis['entities']:,} into Redis"
    text += f". The file of {one['entities']:,} entities has {one['file_mb']:.0f} MB (10^6 bytes)."
    if "times" in redis:
        clients = ", ".join(
            f"{name} {redis[f'feast_{name}_wall_ms']:.1f} ms ({redis[f'feast_{name}_dict_ms']:.1f} with to_dict; "
            f"CPU of that {redis[f'feast_{name}_cpu_ms']:.1f})"
            for name in rows.CLIENTS
        )
        text += (
            f"\n\nRedis: {redis['entities']:,} entities, 200 a request, the same values in one server; ours gives a "
            f"matrix in {redis['ms']:.2f} ms (CPU {redis['cpu_ms']:.2f}), Feast {peers.FEAST}'s get_online_features "
            f"an answer, by client: {clients}. Its registry is cached for ever."
        )
    return text


def _of_history(found: dict[str, Any]) -> str:
    text = (
        f"Point in time: {found['rows']:,} events in a Parquet file, {found['rows']:,} labels, 20 columns computed "
        f"from the events: {found['wall_s']:.2f} s, CPU {found['cpu_s']:.2f} s; labels in are rows out."
    )
    if "feast" in found:
        stores = "; ".join(
            f"{name} {one['wall_s']:.1f} s (CPU {one['cpu_s']:.1f}), {one['rows']:,} rows out"
            for name, one in found["feast"].items()
        )
        text += (
            f" Feast computes no windows here: it joins {found['rows']:,} rows of 20 values that were computed before, "
            f"of one kind of entity, with as many labels: {stores}."
        )
    return text


def _of_stream(found: dict[str, Any], fresh: dict[str, Any]) -> str:
    return (
        f"Stream: facts of 4 columns in one partition, 20 features of {stream.USERS:,} users and {stream.ITEMS:,} "
        f"items. Keeping up: {stream.STEP:,} events come, one step takes them and writes all rows that they change, "
        f"{found['steady'] / 1e3:.0f} k events/s ({found['steady_cpu'] / 1e3:.0f} k a second of CPU). Catching up: "
        f"{found['events']:,} events, rows at the end, {found['behind'] / 1e3:.0f} k events/s "
        f"({found['behind_cpu'] / 1e3:.0f} k). A snapshot of this state, {found['snapshot_mb']:.0f} MB, once a "
        f"minute, holds the stream up for {found['save_s']:.2f} s.\n\n"
        f"Freshness: three processes, {fresh['events_s']:.0f} events/s, {fresh['events']:,} of them, "
        f"a step every {stream.POLL_S:g} s; from before an event is appended "
        f"until a reader has its value, every event counted: p50 {fresh['p50_ms']:.0f} ms, "
        f"p99 {fresh['p99_ms']:.0f} ms, longest {fresh['most_ms']:.0f} ms."
    )


def _us(one: dict[str, float]) -> str:
    return f"{one['p50']:.0f} / {one['p99']:.0f} / {one['cpu']:.0f} us"


def _say(part: str) -> None:
    print(f"{part} ...", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; no figure counts")
    parser.add_argument("--no-feast", action="store_true", help="ours alone")
    parser.add_argument("--parts", help=f"which, separated by commas (default: {','.join(PARTS)})")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",") if arguments.parts else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    result = measure(QUICK if arguments.quick else WHOLE, parts, not arguments.no_feast)
    print(json.dumps(result) if arguments.json else report(result))


if __name__ == "__main__":
    main()
