"""The online learner beside Vowpal Wabbit and River, on MovieLens-100K in time order.

1. The same hashed rows to all three, with the same settings: progressive AUC must be equal to Vowpal Wabbit's within
   0.001 (the formula is the same; predictions agree to about 1e-6). River works out a weight from what it has seen only
   when it next learns that feature, so it answers with weights that lag by one; its AUC is what that gives.
2. Rows a second: each learner on rows already hashed (Vowpal Wabbit from its own binary cache, River from dicts that
   are made already), then each from a file of raw columns to the last row learnt (Vowpal Wabbit from its own text
   format with the same crosses, which its native code parses and hashes on a thread of its own; ours parses, hashes
   and learns on one thread; River gets a dict of names and their crosses a row, as its users write it).

River is slow: it sees the log once, and of the raw columns a fifth; the others see it `--tile` times over.

    python bench/learners.py [--data FOLDER_OR_ARCHIVE] [--tile 10] [--repeats 3] [--json]

`--data` is a folder with ml-100k.inter, .user and .item, or an archive with these three inside; left out, the demo's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim
from vowpalwabbit.pyvw import Workspace

from millstream import config
from millstream.demo.data import wheel
from millstream.features import Definition, Rows, Texts
from millstream.learn.quality import auc
from millstream.models.online import Ftrl, Settings

DEFINITION = Definition.read(
    {
        "user": [{"name": "id"}, {"name": "age", "bucket": 10}, {"name": "sex"}, {"name": "occupation"}],
        "item": [{"name": "id"}, {"name": "year", "bucket": 10}, {"name": "genres", "places": 6}],
        "crosses": ["user.id*item.genres", "user.id*item.year", "user.age*item.id", "user.sex*item.id"],
    }
)
SETTINGS = Settings(alpha=0.2, beta=1.0, l1=0.1, l2=1.0, bits=20)
FIELDS = ("label", "user.id", "user.age", "user.sex", "user.occupation", "item.id", "item.year", "item.genres")
RIVER_RAW = 0.2  # the part of the log that River sees as raw columns
CHUNK = 1 << 22  # bytes of raw columns in work at a time
FIRST = 0.2  # the part of the log that no AUC counts


def read(data: Path, name: str) -> list[list[str]]:
    """Records of one of the three tables, header dropped."""
    if data.is_dir():
        text = (data / f"ml-100k.{name}").read_text()
    else:
        with zipfile.ZipFile(data) as archive:
            inside = next(path for path in archive.namelist() if path.endswith(f"ml-100k.{name}"))
            text = archive.read(inside).decode()
    return [line.split("\t") for line in text.splitlines()[1:]]


def joined(data: Path) -> list[list[str]]:
    """One record of FIELDS a rating, by time; ratings of one second stay in the order of the file."""
    users = {id: [id, age, sex, occupation] for id, age, sex, occupation, _ in read(data, "user")}
    items = {id: [id, year, genres.replace(" ", "|")] for id, _, year, genres in read(data, "item")}
    ratings = sorted(read(data, "inter"), key=lambda rating: float(rating[3]))
    return [["1" if float(rating) >= 4 else "0", *users[user], *items[item]] for user, item, rating, _ in ratings]


def lines_of(records: list[list[str]]) -> bytes:
    """Records as a file of raw columns has them."""
    return "".join("\t".join(record) + "\n" for record in records).encode()


def rows_of(raw: bytes, definition: Definition = DEFINITION) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """(tokens, labels) of lines of FIELDS."""
    columns = dict(zip(FIELDS, Texts.table(raw, len(FIELDS)), strict=True))
    rows = Rows(definition)
    sides = [
        rows.tokens(side, {name[5:]: texts for name, texts in columns.items() if name.startswith(side)})
        for side in ("user", "item")
    ]
    label = columns["label"]
    return rows.many(*sides), (label.data[label.starts] == ord("1")).astype(np.float32)


def learn_raw(path: Path) -> None:
    """A file of raw columns into a fresh model, in bounded memory."""
    model = Ftrl(SETTINGS, DEFINITION.width)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            model.learn(*rows_of(chunk + file.readline()))


def vw(arguments: str) -> None:
    """Run Vowpal Wabbit's native driver over the file that `arguments` names."""
    s = SETTINGS
    Workspace(
        f"{arguments} --ftrl --ftrl_alpha {s.alpha} --ftrl_beta {s.beta} --l1 {s.l1} --l2 {s.l2} -b {s.bits} "
        "--noconstant --loss_function logistic --link logistic --holdout_off --quiet"
    ).finish()


def vw_hashed(tokens: NDArray[np.uint32], labels: NDArray[np.float32]) -> str:
    """The hashed rows as Vowpal Wabbit text: a numeric feature name is used as the index it is."""
    slots = tokens & np.uint32((1 << SETTINGS.bits) - 1)
    return "".join(
        f"{1 if label else -1} | {' '.join(map(str, row[kept]))}\n"
        for row, kept, label in zip(slots, tokens != 0, labels, strict=True)
    )


def vw_raw(records: list[list[str]]) -> str:
    """The raw columns as Vowpal Wabbit text, a namespace a column, numbers already in their buckets."""
    lines = []
    for label, user, age, sex, occupation, item, year, genres in records:
        decade = f"d{int(year) // 10}" if year.isdigit() else ""
        lines.append(
            f"{1 if label == '1' else -1} |u u{user} |a a{int(age) // 10} |s {sex} |o {occupation} |i i{item} "
            f"|y {decade} |g {genres.replace('|', ' ')}\n"
        )
    return "".join(lines)


VW_CROSSES = "-q ug -q uy -q ai -q si"


def river() -> linear_model.LogisticRegression:
    """River's model with our settings."""
    s = SETTINGS
    how = optim.FTRLProximal(alpha=s.alpha, beta=s.beta, l1=s.l1, l2=s.l2)
    return linear_model.LogisticRegression(optimizer=how, intercept_lr=0.0)


def river_hashed(tokens: NDArray[np.uint32]) -> list[dict[int, float]]:
    """The hashed rows as River takes them: slot to 1."""
    slots = tokens & np.uint32((1 << SETTINGS.bits) - 1)
    return [dict.fromkeys(row[kept].tolist(), 1.0) for row, kept in zip(slots, tokens != 0, strict=True)]


def river_learns(rows: list[dict[int, float]], labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Its probabilities, each before its row is learnt."""
    model, truths = river(), (labels > 0).tolist()
    before = np.empty(len(rows), np.float32)
    for at, (row, truth) in enumerate(zip(rows, truths, strict=True)):
        before[at] = model.predict_proba_one(row)[True]
        model.learn_one(row, truth)
    return before


def river_learns_raw(path: Path) -> None:
    """A file of raw columns into a fresh model: a dict of names a row, crosses by joining them."""
    model = river()
    with path.open() as file:
        for line in file:
            label, user, age, sex, occupation, item, year, genres = line.rstrip("\n").split("\t")
            kinds = genres.split("|")
            age, year = f"{int(age) // 10}", f"{int(year) // 10}" if year.isdigit() else ""
            row = {f"u={user}": 1.0, f"a={age}": 1.0, f"s={sex}": 1.0, f"o={occupation}": 1.0, f"i={item}": 1.0}
            row |= {f"y={year}": 1.0, f"uy={user},{year}": 1.0, f"ai={age},{item}": 1.0, f"si={sex},{item}": 1.0}
            row |= {f"g={kind}": 1.0 for kind in kinds} | {f"ug={user},{kind}": 1.0 for kind in kinds}
            model.learn_one(row, label == "1")


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Wall times of `repeats` runs, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken[1:]


def measure(data: Path, tile: int, repeats: int) -> dict[str, float]:
    """Every figure of the table."""
    records = joined(data)
    raw = lines_of(records)
    tokens, labels = rows_of(raw)
    after = int(len(records) * FIRST)
    found: dict[str, float] = {"rows": float(len(records) * tile), "rows_river": float(len(records))}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "raw.tsv").write_bytes(raw * tile)
        (place / "sample.tsv").write_bytes(lines_of(records[: int(len(records) * RIVER_RAW)]))
        (place / "hashed.vw").write_text(vw_hashed(tokens, labels))
        (place / "tiled.vw").write_text(vw_hashed(tokens, labels) * tile)
        (place / "raw.vw").write_text(vw_raw(records) * tile)

        ours = Ftrl(SETTINGS, DEFINITION.width).learn(tokens, labels)
        vw(f"-d {place}/hashed.vw -p {place}/predictions")
        theirs = np.loadtxt(place / "predictions", dtype=np.float32)
        dicts = river_hashed(tokens)
        start = time.perf_counter()
        found["auc_river"] = auc(labels[after:], river_learns(dicts, labels)[after:])
        taken = time.perf_counter() - start
        found["auc_ours"] = auc(labels[after:], ours[after:])
        found["auc_vw"] = auc(labels[after:], theirs[after:])
        found["prediction_difference_max"] = float(np.abs(ours - theirs).max())

        tiled, many = np.tile(tokens, (tile, 1)), np.tile(labels, tile)
        vw(f"-d {place}/tiled.vw --cache_file {place}/cache")
        runs: dict[str, Callable[[], object]] = {
            "learner_ours": lambda: Ftrl(SETTINGS, DEFINITION.width).learn(tiled, many),
            "learner_vw": lambda: vw(f"-d {place}/tiled.vw --cache_file {place}/cache"),  # the cache is there, and read
            "raw_ours": lambda: learn_raw(place / "raw.tsv"),
            "raw_vw": lambda: vw(f"-d {place}/raw.vw {VW_CROSSES}"),
        }
        for name, run in runs.items():
            times = seconds(run, repeats)
            found[f"{name}_rows_per_s"] = len(many) / statistics.median(times)
            found[f"{name}_rows_per_s_best"] = len(many) / min(times)
        found["learner_river_rows_per_s"] = len(labels) / taken
        start = time.perf_counter()
        river_learns_raw(place / "sample.tsv")
        found["raw_river_rows_per_s"] = int(len(records) * RIVER_RAW) / (time.perf_counter() - start)
    return found


def table(found: dict[str, float], machine: str) -> str:
    """The figures for people."""
    lines = [
        f"{machine}; MovieLens-100K, {found['rows']:,.0f} rows, {DEFINITION.width} places, 2^{SETTINGS.bits} slots",
        f"{'':36}{'Millstream':>12}{'VW native':>12}{'':>7}{'River':>10}",
        f"{'progressive AUC, last 80 %':36}{found['auc_ours']:12.5f}{found['auc_vw']:12.5f}{'':>7}"
        f"{found['auc_river']:10.5f}",
    ]
    for name, what in (("learner", "hashed rows learnt"), ("raw", "raw columns to learnt")):
        ours, theirs = (found[f"{name}_{who}_rows_per_s"] for who in ("ours", "vw"))
        slow = found[f"{name}_river_rows_per_s"]
        lines.append(
            f"{f'{what}, rows/s, median':36}{ours:12,.0f}{theirs:12,.0f}{ours / theirs:6.1f}x{slow:10,.0f}"
            f"{ours / slow:6.0f}x"
        )
        ours, theirs = (found[f"{name}_{who}_rows_per_s_best"] for who in ("ours", "vw"))
        lines.append(f"{f'{what}, rows/s, best':36}{ours:12,.0f}{theirs:12,.0f}{ours / theirs:6.1f}x")
    lines.append(f"largest difference of two predictions, VW: {found['prediction_difference_max']:.1e}")
    lines.append(f"River: one run of {found['rows_river']:,.0f} hashed rows, and of a fifth of them as raw columns")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description="The online learner beside Vowpal Wabbit and River.")
    options.add_argument("--data", type=Path, help="MovieLens-100K: a folder or an archive (default: the demo's)")
    options.add_argument("--tile", type=int, default=10, help="how often the log is repeated for the timings")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--json", action="store_true", help="one line of JSON on stdout, last")
    chosen = options.parse_args()
    found = measure(chosen.data or wheel(config.cache_folder()), chosen.tile, chosen.repeats)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(table(found, machine), file=sys.stderr if chosen.json else sys.stdout)
    if chosen.json:
        print(json.dumps({"machine": machine, **found}))
    if abs(found["auc_ours"] - found["auc_vw"]) > 0.001:
        raise SystemExit("the two AUCs differ by more than 0.001: one of the learners is not what it says")


if __name__ == "__main__":
    main()
