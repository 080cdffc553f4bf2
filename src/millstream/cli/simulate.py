"""`simulate`: traffic with known truth, as files or against a running service."""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.cli.verbs import Verbs, bounded, count_of, positive
from millstream.errors import BadInput

if TYPE_CHECKING:
    from millstream.simulate import Disturbances, Simulator

_SPAN = re.compile(r"(?P<start>[\d.]+)\+(?P<seconds>[\d.]+)(?:\*(?P<share>[\d.]+))?")
_share = bounded(float, 0.0, 1.0, "a share from 0 to 1")
_moments = bounded(int, 1, 100_000_000, "a number from 1 to 100000000")


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    made = verbs.add("simulate", _simulate, "traffic with known truth, as files or against a running service")
    made.add_argument("folder", type=Path, nargs="?", help="where users, items, history and truth go, as CSV")
    made.add_argument("--url", default="", help="ask this service instead, which knows the users and items of FOLDER")
    made.add_argument("--key-file", type=Path, metavar="FILE", help="holds the key, where the service wants one")
    made.add_argument("--seconds", type=positive, default=60.0, help="with --url: for so long (default: 60)")
    made.add_argument("--count", type=_moments, default=100_000, help="moments in the files (default: 100000)")
    made.add_argument("--seed", type=int, default=7, help="the same seed is the same world (default: 7)")
    made.add_argument("--users", type=count_of, default=1000)
    made.add_argument("--items", type=count_of, default=1000)
    made.add_argument("--candidates", type=count_of, default=10, help="that a request brings (default: 10)")
    made.add_argument("--rate", type=positive, default=10.0, help="moments a second (default: 10)")
    made.add_argument("--delay", type=positive, default=30.0, metavar="S", help="of a click, on average (default: 30)")
    made.add_argument(
        "--drift", type=float, default=40_000.0, metavar="S", help="tastes turn once in so long, 0: never"
    )
    made.add_argument("--bots", type=_share, default=0.0, metavar="SHARE", help="moments of robots that click it all")
    for name, help in (
        ("lost", "START+SECONDS: nothing is reported then"),
        ("late", "START+SECONDS: what happens then is reported at its end"),
        ("poison", "START+SECONDS*SHARE: so many labels are told the wrong way round"),
        ("rename", "START:OLD=NEW: from then on a column of users and items has another name"),
    ):
        made.add_argument(f"--{name}", action="append", default=[], metavar="SPEC", help=help)
    made.add_argument("--skew", default="", metavar="SHARE*SECONDS", help="so many users' clocks run ahead")


def _simulate(args: argparse.Namespace) -> object:
    import numpy as np

    from millstream.simulate import Simulator

    if not (args.folder or args.url):
        raise BadInput("say where to: a FOLDER for files, or --url of a running service")
    random = np.random.default_rng(args.seed)
    try:
        world = Simulator(
            random,
            users=args.users,
            items=args.items,
            candidates=args.candidates,
            start=time.time() if args.url else 1_600_000_000.0,
            rate=args.rate,
            delay_s=args.delay,
            drift_period_s=args.drift,
        )
    except ValueError as error:
        raise BadInput(str(error)) from None
    return _drive(args, world, random) if args.url else _write(args, world, random)


def _drive(args: argparse.Namespace, world: Simulator, random: Any) -> object:
    from millstream.client import Client
    from millstream.simulate.drive import drive

    if _disturbances(args) != _disturbances(None):
        raise BadInput("--url asks as people do; disturbances are for files")
    key = args.key_file.read_text().strip() if args.key_file else ""
    with Client(args.url, key) as client:
        return drive(client, world, args.seconds, random, lambda line: print(line, file=sys.stderr, flush=True))


def _write(args: argparse.Namespace, world: Simulator, random: Any) -> object:
    from millstream.simulate import disturbed

    what = _disturbances(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("users", world.users), ("items", world.items)):
        told = [{k: "|".join(v) if isinstance(v, list) else v for k, v in what.row(row, 0.0).items()} for row in rows]
        _csv(args.folder / f"{name}.csv", told)
    start, counts = 1_600_000_000.0, {"moments": 0, "told": 0, "clicks": 0, "disturbed": 0}
    with (
        (args.folder / "history.csv").open("w", newline="") as told_file,
        (args.folder / "truth.csv").open("w", newline="") as true_file,
    ):
        told_rows, true_rows = csv.writer(told_file), csv.writer(true_file)
        told_rows.writerow(["user", "item", "event_time", "like", "delay_s"])
        true_rows.writerow(["user", "item", "event_time", "probability", "label", "cause"])
        for one in disturbed(world.moments(args.count), what, random, start):
            counts["moments"] += 1
            counts["clicks"] += one.label
            counts["disturbed"] += bool(one.cause)
            at = f"{one.event_time:.6f}"
            true_rows.writerow([one.user, one.item, at, f"{one.probability:.6f}", int(one.label), one.cause])
            if one.told is not None:
                counts["told"] += 1
                told_rows.writerow([one.user, one.item, at, int(one.told), f"{one.delay_s:.6f}"])
    return {"folder": str(args.folder), **counts}


def _csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _disturbances(args: argparse.Namespace | None) -> Disturbances:
    from millstream.simulate import Disturbances, Poison, Span

    if args is None:
        return Disturbances()
    share, _, ahead = args.skew.partition("*")
    try:
        return Disturbances(
            bots=args.bots,
            lost=tuple(Span(*_span(text)[:2]) for text in args.lost),
            late=tuple(Span(*_span(text)[:2]) for text in args.late),
            poison=tuple(Poison(Span(*_span(text)[:2]), _span(text)[2]) for text in args.poison),
            skewed=float(share or 0.0),
            skew_s=float(ahead or 0.0),
            renamed=tuple(_renamed(text) for text in args.rename),
        )
    except ValueError as error:
        raise BadInput(f"{error}; see `millstream simulate --help` for how it is written") from None


def _span(text: str) -> tuple[float, float, float]:
    if (match := _SPAN.fullmatch(text)) is None:
        raise ValueError(f"{text!r} is no START+SECONDS, nor START+SECONDS*SHARE")
    return float(match["start"]), float(match["seconds"]), float(match["share"] or 1.0)


def _renamed(text: str) -> tuple[float, str, str]:
    start, _, names = text.partition(":")
    old, _, new = names.partition("=")
    if not new:
        raise ValueError(f"{text!r} is no START:OLD=NEW")
    return float(start), old, new
