"""From tables to lists for everybody: how long `millstream init` takes, and how many lists a minute a batch makes.

    python bench/batches.py [--users 5000] [--items 20000] [--interactions 100000] [--json]

The tables are made here: users with a taste for one of 20 categories, items of one category each that are popular by a
power law, a view of something for each interaction, and a purchase after some. Each command is a process of its own, as
a user runs it; times are those of the whole process, the batch's rate is as it says itself, its start left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TASTES = 20
DAYS = 100


def tables(folder: Path, users: int, items: int, count: int) -> None:
    """events.csv and items.csv."""
    chance = np.random.default_rng(1)
    who, when = chance.integers(users, size=count), np.sort(chance.random(count)) * DAYS * 86400 + 1.7e9
    what = (items * chance.random(count) ** 2).astype(np.int64)
    suits = chance.random(count) < 0.6
    what = np.where(suits, np.minimum(what - what % TASTES + who % TASTES, items - 1), what)
    bought = chance.random(count) < np.where(what % TASTES == who % TASTES, 0.25, 0.04)
    with (folder / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["timestamp", "visitorid", "event", "itemid"])
        for user, item, at, more in zip(who.tolist(), what.tolist(), when.tolist(), bought.tolist(), strict=True):
            rows.writerow([int(at * 1000), user, "view", item])
            if more:
                rows.writerow([int(at * 1000) + 60_000, user, "transaction", item])
    with (folder / "items.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["itemid", "category", "brand", "price"])
        for n in range(items):
            rows.writerow([n, f"c{n % TASTES}", f"b{n % 500}", 5 + n % 400])


def run(*words: object) -> tuple[float, dict[str, object]]:
    """Seconds of a command, and what it says."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "millstream", *map(str, words), "--json"], stdout=subprocess.PIPE, check=True, text=True
    )
    return time.perf_counter() - began, json.loads(done.stdout)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    for name, default in (("users", 5_000), ("items", 20_000), ("interactions", 100_000)):
        asked.add_argument(f"--{name}", type=int, default=default)
    asked.add_argument("--json", action="store_true")
    args = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables(folder, args.users, args.items, args.interactions)
        files = ["--items", folder / "items.csv", "--interactions", folder / "events.csv"]
        init_s, made = run("init", folder / "shop", *files, "--yes")
        after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        toml, out = folder / "shop" / "millstream.toml", folder / "lists.parquet"
        whole_s, told = run("recommend", "-c", toml, "--users", "all", "--out", out)
        figures = {
            "cpus": os.cpu_count(), "machine": platform.machine(), "users": made["users"], "items": made["items"],
            "showings": made["examples"], "init_s": round(init_s, 1), "init_mib": round(after),
            "auc": round(float(str(made["auc"])), 4), "lists": told["lists"], "lists_per_minute": told["per_minute"],
            "batch_s": round(whole_s, 1), "file_mib": round(out.stat().st_size / 2**20, 1),
            "empty": told["empty"], "missed": told["missed"],
        }  # fmt: skip
    if args.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:18} {value}")


if __name__ == "__main__":
    main()
