"""What a model that keeps learning is worth, kind by kind, on MovieLens-100K in time order.

Every kind learns the first fifth of the log; then one copy of it stands still and the other goes on, row by row, and
each row is answered before it is learnt. AUC is over the last four fifths. A difference of two AUCs has a 95 % interval
from a paired bootstrap: 1000 draws of users, with all their rows, the same draw for both.

Settings were chosen on the first fifth alone, by its progressive AUC over 150 to 300 random draws, as many for each
kind. `FTRL default` is what Vowpal Wabbit is compared with in learners.py, and was not chosen; the table has FTRL's.
Two feature definitions: with the crosses of learners.py, which are what a person knows about this log, and without any.

    python bench/deepfm.py [--data FOLDER_OR_ARCHIVE] [--draws 1000] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners import DEFINITION, FIRST, SETTINGS, joined, lines_of, rows_of
from millstream import config
from millstream.demo.data import wheel
from millstream.features import Definition
from millstream.models.online import DeepFmSettings, FmSettings, FtrlTableSettings, Settings, begin

PLAIN = msgspec.structs.replace(DEFINITION, crosses=())
FTRL_CROSSED = Settings(alpha=0.2, beta=0.3, l1=0.0, l2=0.1)
FTRL_PLAIN = Settings(alpha=0.4, beta=0.1, l1=0.0, l2=0.0)
LEARNERS: dict[str, tuple[Definition, dict[str, tuple[str, msgspec.Struct]]]] = {
    "with crosses": (
        DEFINITION,
        {
            "FTRL default": ("ftrl", SETTINGS),
            "FTRL": ("ftrl", FTRL_CROSSED),
            "FTRL, table": (
                "ftrl_table",
                FtrlTableSettings(alpha=0.2, beta=0.3, l1=0.0, l2=0.1, seen=1, keep=50_000),
            ),
            "FM": ("fm", FmSettings(alpha=0.2, beta=0.3, l1=0.0, bits=20, factors=16, decay=0.0)),
            "DeepFM": (
                "deepfm",
                DeepFmSettings(
                    alpha=0.1, beta=0.1, bits=20, rate=0.08, ease=0.3, decay=0.03, scale=0.01, dense_rate=0.03
                ),
            ),
        },
    ),
    "without": (
        PLAIN,
        {
            "FTRL default": ("ftrl", SETTINGS),
            "FTRL": ("ftrl", FTRL_PLAIN),
            "FM": (
                "fm",
                FmSettings(alpha=0.4, beta=0.1, l1=0.0, l2=0.1, bits=20, factors=16, rate=0.08, decay=0.003),
            ),
            "DeepFM": (
                "deepfm",
                DeepFmSettings(
                    alpha=0.4, beta=0.1, l1=0.0, l2=0.1, bits=20, factors=16, rate=0.08, decay=0.003, hidden=(64, 32),
                    dense_rate=0.001,
                ),
            ),
        },
    ),
}  # fmt: skip
COMPARED = (("DeepFM live", "DeepFM frozen"), ("DeepFM live", "FTRL live"), ("FM live", "FTRL live"))
Scores = NDArray[np.float32]


class Line(NamedTuple):
    """Of one learner: probabilities of the last rows, live and frozen, rows learnt a second, microseconds that the
    served copy takes for 100 rows."""

    live: Scores
    frozen: Scores
    rows_per_s: float
    hundred_us: float


def follow(kind: str, settings: msgspec.Struct, tokens: NDArray[np.uint32], labels: Scores) -> Line:
    """Learn the first rows, then go on beside a copy that does not."""
    after = int(len(labels) * FIRST)
    learner = begin(kind, settings, tokens.shape[1])  # type: ignore[arg-type]
    learner.learn(tokens[:after], labels[:after])
    served = learner.served()
    frozen = served.predict({"tokens": tokens[after:]})["probability"]
    start = time.perf_counter()
    live = learner.learn(tokens[after:], labels[after:])
    taken = time.perf_counter() - start
    few, times = {"tokens": tokens[:100]}, []
    for _ in range(200):
        start = time.perf_counter()
        served.predict(few)
        times.append(time.perf_counter() - start)
    return Line(live, frozen.astype(np.float32), len(live) / taken, float(np.median(times)) * 1e6)


def ranked(labels: Scores, scores: Scores) -> Callable[[NDArray[np.float64]], float]:
    """AUC of rows that count as much as their weights, ties half; the order is worked out once."""
    order = np.argsort(scores, kind="stable")
    ordered, truth = scores[order], labels[order] > 0
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))

    def auc(weights: NDArray[np.float64]) -> float:
        weights = weights[order]
        positive = np.add.reduceat(weights * truth, starts)
        negative = np.add.reduceat(weights * ~truth, starts)
        below = np.cumsum(negative) - negative / 2
        return float(positive @ below / (positive.sum() * negative.sum()))

    return auc


def bootstrap(users: NDArray[np.intp], of: dict[str, Callable[..., float]], draws: int) -> dict[str, list[float]]:
    """AUCs of every draw of users, the same for all."""
    random, count = np.random.default_rng(1), int(users.max()) + 1
    found: dict[str, list[float]] = {name: [] for name in of}
    for _ in range(draws):
        weights = np.bincount(random.integers(0, count, count), minlength=count)[users].astype(np.float64)
        for name, auc in of.items():
            found[name].append(auc(weights))
    return found


def measure(data: Path, draws: int) -> dict[str, dict[str, object]]:
    """Every figure of both tables."""
    records = joined(data)
    after = int(len(records) * FIRST)
    users = np.unique([record[1] for record in records[after:]], return_inverse=True)[1]
    found: dict[str, dict[str, object]] = {}
    for name, (definition, learners) in LEARNERS.items():
        tokens, labels = rows_of(lines_of(records), definition)
        lines = {one: follow(kind, how, tokens, labels) for one, (kind, how) in learners.items()}
        last = labels[after:]
        scores = {f"{one} {what}": getattr(line, what) for one, line in lines.items() for what in ("live", "frozen")}
        aucs = {one: ranked(last, score) for one, score in scores.items()}
        whole = {one: auc(np.ones(len(last))) for one, auc in aucs.items()}
        needed = {one: aucs[one] for pair in COMPARED for one in pair}
        drawn = bootstrap(users, needed, draws)
        found[name] = {
            "learners": {
                one: {
                    "live": whole[f"{one} live"],
                    "frozen": whole[f"{one} frozen"],
                    "calibration": float(line.live.mean() / last.mean()),
                    "rows_per_s": line.rows_per_s,
                    "hundred_rows_us": line.hundred_us,
                }
                for one, line in lines.items()
            },
            "differences": {
                f"{one} - {other}": [
                    whole[one] - whole[other],
                    *np.quantile(np.subtract(drawn[one], drawn[other]), [0.025, 0.975]).tolist(),
                ]
                for one, other in COMPARED
            },
        }
    return found


def table(found: dict[str, dict[str, object]]) -> str:
    """The figures for people."""
    lines = []
    for name, figures in found.items():
        lines.append(f"{f'features {name}':28}{'live':>8}{'frozen':>8}{'p / y':>8}{'rows/s':>12}{'100 rows':>11}")
        for one, f in figures["learners"].items():  # type: ignore[attr-defined]
            lines.append(
                f"{one:28}{f['live']:8.4f}{f['frozen']:8.4f}{f['calibration']:8.3f}{f['rows_per_s']:12,.0f}"
                f"{f['hundred_rows_us']:8,.0f} us"
            )
        for one, (gain, low, high) in figures["differences"].items():  # type: ignore[attr-defined]
            lines.append(f"{one:36}{gain:+8.4f}   95 % [{low:+.4f}, {high:+.4f}]")
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    options = argparse.ArgumentParser(description="Learners that keep learning beside themselves standing still.")
    options.add_argument("--data", type=Path, help="MovieLens-100K: a folder or an archive (default: the demo's)")
    options.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    options.add_argument("--json", action="store_true", help="one line of JSON on stdout, last")
    chosen = options.parse_args()
    found = measure(chosen.data or wheel(config.cache_folder()), chosen.draws)
    print(table(found), file=sys.stderr if chosen.json else sys.stdout)
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
