"""How often an experiment says something of nothing, how soon it says something of something, and what a past is worth.

    python bench/experiments.py [--trials 500] [--json]

People come over thirty days, each of whom is looked at a few times; some like much and some little. Somebody looks at
the experiment every evening. Beside what `millstream experiment` says stand the usual z-test, of the same estimate and
the same error, and a z-test that is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.watch.experiments import sample
from millstream.watch.experiments.effect import Effect, Moments, compare

DAYS, ALPHA, Z = 30, 0.05, 1.959964
PEOPLE, RATE, LISTS = 12_000, 0.15, 3.0
UNEVEN = 0.6  # standard deviation of what people like, over its mean


class Found(NamedTuple):
    """Shares of the trials: an interval left 0 out at a look, or (`z`) a z-test said so; the same at the last day; the
    truth was outside at a look. Mean day of what was said, and share of variance that the past took."""

    shown: float
    z: float
    z_last: float
    missed: float
    day: float
    less: float


def drawn(
    random: np.random.Generator, n: int, lift: float, past: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """(arm [n], columns [4, n]): likes over lists, and the same of a past of so many lists."""
    arm = random.random(n) < 0.5
    wish = np.clip(RATE * random.gamma(1 / UNEVEN**2, UNEVEN**2, n), 0.0, 0.8)
    lists = 1 + random.poisson(LISTS - 1, n)
    likes = random.binomial(lists, np.clip(wish * np.where(arm, 1.0 + lift, 1.0), 0.0, 1.0))
    before = random.poisson(past, n)
    return arm, np.array([likes, lists, random.binomial(before, wish), before], np.float64)


def looked(seed: int, n: int, lift: float, least: float, past: float) -> list[Effect | None]:
    """What is said each evening."""
    arm, columns = drawn(np.random.default_rng(seed), n, lift, past)
    sums, found = [Moments.of(columns[:, :0])] * 2, []
    for day in np.array_split(np.arange(n), DAYS):
        came = [Moments.of(columns[:, day[arm[day] == of]]) for of in (False, True)]
        sums = [Moments(*map(sum, zip(*both, strict=True))) for both in zip(sums, came, strict=True)]
        found.append(compare(*sums, least, ALPHA))
    return found


def tried(trials: int, n: int, lift: float, least: float, past: float = 0.0) -> Found:
    """So many experiments."""
    rows, shown, z, last, missed, days, less = range(trials), 0, 0, 0, 0, [], []
    for seed in rows:
        said = [(day, one) for day, one in enumerate(looked(seed, n, lift, least, past), 1) if one is not None]
        seen = [day for day, one in said if not one.low <= 0.0 <= one.high]
        shown += bool(seen)
        days += seen[:1]
        z += any(abs(one.log) > Z * one.error for _, one in said)
        last += abs(said[-1][1].log) > Z * said[-1][1].error
        missed += any(not one.low <= lift <= one.high for _, one in said)
        less.append(said[-1][1].less)
    day = float(np.mean(days)) if days else math.nan
    return Found(shown / trials, z / trials, last / trials, missed / trials, day, float(np.mean(less)))


def splits(trials: int, people: int, share: float) -> float:
    """How often a split that should be half and half is said to be off, looked at every evening."""
    random, off = np.random.default_rng(1), 0
    until = np.arange(1, DAYS + 1) * (people // DAYS)
    for _ in range(trials):
        mine = np.cumsum(random.binomial(people // DAYS, share, DAYS))
        off += any(
            sample.chance([int(one), int(all - one)], [0.5, 0.5]) < sample.ALPHA
            for one, all in zip(mine, until, strict=True)
        )
    return off / trials


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, default=500)
    options.add_argument("--json", action="store_true", help="one line of JSON, last")
    chosen = options.parse_args()
    began, trials, told = time.monotonic(), chosen.trials, {}
    print(f"{trials} experiments for each row, {PEOPLE:,} people, {DAYS} evenings; an effect of 10 % is said to matter")
    print(
        f"{'truth':30}{'said, ours':>12}{'z, evenings':>13}{'z, at the end':>15}{'truth outside':>15}{'mean day':>10}"
        f"{'less noise':>12}"
    )
    for name, lift, past in (
        ("no difference", 0.0, 0.0), ("no difference, with a past", 0.0, 20.0), ("+5 %", 0.05, 0.0),
        ("+10 %", 0.1, 0.0), ("+10 %, past of 5 lists", 0.1, 5.0), ("+10 %, past of 20 lists", 0.1, 20.0),
        ("+20 %", 0.2, 0.0),
    ):  # fmt: skip
        found = told[name] = tried(trials, PEOPLE, lift, 0.1, past)
        day = "-" if math.isnan(found.day) or not lift else f"{found.day:.1f}"
        print(
            f"{name:30}{found.shown:12.1%}{found.z:13.1%}{found.z_last:15.1%}{found.missed:15.1%}{day:>10}"
            f"{found.less:12.1%}"
        )
    print()
    print(f"{'split, said to be half and half':44}{'said to be off':>16}")
    for people, share in ((20_000, 0.5), (20_000, 0.51), (20_000, 0.52), (1000, 0.6), (1_000_000, 0.505)):
        off = splits(trials, people, share)
        told[f"{people} at {share}"] = off
        print(f"{f'{share:.1%} of {people:,} people':44}{off:16.1%}")
    print(f"\n{time.monotonic() - began:.0f} s")
    if chosen.json:
        print(json.dumps({name: one._asdict() if isinstance(one, Found) else one for name, one in told.items()}))


if __name__ == "__main__":
    main()
