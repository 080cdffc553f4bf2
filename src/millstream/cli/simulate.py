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

import msgspec

from millstream.cli.verbs import Verbs, bounded, count_of, from_zero, positive
from millstream.errors import BadInput

if TYPE_CHECKING:
    from millstream.simulate import Disturbances, Poison, Simulator, Span

START = 1_600_000_000.0
"""When the world of the files begins, unix seconds."""
_WORLD = "world.json"
_NUMBER = r"\d{1,12}(?:\.\d{1,12})?"
_SPAN = re.compile(rf"({_NUMBER})\+({_NUMBER})")
_POISON = re.compile(rf"({_NUMBER}\+{_NUMBER})(?:\*({_NUMBER}))?")
_SKEW = re.compile(rf"({_NUMBER})\*(-?{_NUMBER})")
_RENAME = re.compile(rf"({_NUMBER}):([^=:]+)=([^=]+)")
_share = bounded(float, 0.0, 1.0, "a share from 0 to 1")
_moments = bounded(int, 1, 100_000_000, "a number from 1 to 100000000")
_seed = bounded(int, 0, 2**63 - 1, "a number from 0 to 2^63 - 1")


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a world; it lies beside the files of one. `drift`: seconds in which tastes turn once, 0: never."""

    seed: int = 7
    users: int = 1000
    items: int = 1000
    candidates: int = 10
    rate: float = 10.0
    delay: float = 30.0
    drift: float = 40_000.0


_ITSELF = ("seed", "users", "items")  # what a world cannot have otherwise and stay the same


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    made = verbs.add("simulate", _simulate, "traffic with known truth, as files or against a running service")
    made.add_argument("folder", type=Path, nargs="?", help="where users, items, history and truth go, as CSV")
    made.add_argument(
        "--url", default="", help="ask this service instead; with FOLDER as people of the world whose files lie there"
    )
    made.add_argument("--key-file", type=Path, metavar="FILE", help="holds the key, where the service wants one")
    made.add_argument("--seconds", type=positive, default=60.0, help="with --url: for so long (default: 60)")
    made.add_argument("--count", type=_moments, default=100_000, help="moments in the files (default: 100000)")
    _add_world(made)
    made.add_argument("--bots", type=_share, default=0.0, metavar="SHARE", help="moments of robots that click it all")
    for name, of, spec, help in (
        ("lost", _span, "START+SECONDS", "nothing is reported then"),
        ("late", _span, "START+SECONDS", "what happens then is reported at its end"),
        ("poison", _poison, "START+SECONDS*SHARE", "so many labels are told the wrong way round (default: all)"),
        ("rename", _rename, "START:OLD=NEW", "from then on a column of users and items has another name"),
    ):
        made.add_argument(f"--{name}", type=of, action="append", default=[], metavar="SPEC", help=f"{spec}: {help}")
    made.add_argument(
        "--skew", type=_skew, default=(0.0, 0.0), metavar="SHARE*SECONDS", help="so many users' clocks run ahead"
    )


def _add_world(made: argparse.ArgumentParser) -> None:
    """What `Made` holds; each is None where it is not given."""
    made.add_argument("--seed", type=_seed, help="the same seed is the same world (default: 7)")
    made.add_argument("--users", type=count_of, help="(default: 1000)")
    made.add_argument("--items", type=count_of, help="(default: 1000)")
    made.add_argument("--candidates", type=count_of, help="that a request brings (default: 10)")
    made.add_argument("--rate", type=positive, help="moments a second (default: 10)")
    made.add_argument("--delay", type=positive, metavar="S", help="of a click, on average (default: 30)")
    made.add_argument(
        "--drift", type=from_zero, metavar="S", help="tastes turn once in so long, 0: never (default: 40000)"
    )


def _simulate(args: argparse.Namespace) -> object:
    import numpy as np

    from millstream.simulate import Simulator

    if not (args.folder or args.url):
        raise BadInput("say where to: a FOLDER for files, or --url of a running service")
    made = _made(args)
    random = np.random.default_rng(made.seed)
    try:
        world = Simulator(
            random,
            users=made.users,
            items=made.items,
            candidates=made.candidates,
            start=time.time() if args.url else START,
            rate=made.rate,
            delay_s=made.delay,
            drift_period_s=made.drift,
        )
    except ValueError as error:
        raise BadInput(str(error)) from None
    return _drive(args, world, random) if args.url else _write(args, made, world, random)


def _made(args: argparse.Namespace) -> Made:
    """The world that is asked for: with --url and FOLDER the one whose files lie there, and no other."""
    given = {name: value for name in Made.__struct_fields__ if (value := getattr(args, name)) is not None}
    if not (args.url and args.folder):
        return Made(**given)
    try:
        there = msgspec.json.decode((args.folder / _WORLD).read_bytes(), type=Made)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(
            f"{args.folder} has no {_WORLD}, so it is not known whose files these are; `millstream simulate "
            f"{args.folder}` makes them, or leave FOLDER out and say --seed, --users and --items as they were"
        ) from None
    except msgspec.MsgspecError as error:
        raise BadInput(f"{args.folder / _WORLD}: {error}; make the files again") from None
    for name in _ITSELF:
        if given.get(name, getattr(there, name)) != getattr(there, name):
            raise BadInput(
                f"{args.folder} holds a world of --{name} {getattr(there, name)}, and --{name} {given[name]} is "
                "another one, which the service does not know; leave it out"
            )
    return msgspec.structs.replace(there, **given)


def _drive(args: argparse.Namespace, world: Simulator, random: Any) -> object:
    from millstream.client import Client
    from millstream.simulate.drive import drive

    if args.bots or args.lost or args.late or args.poison or args.rename or args.skew[0]:
        raise BadInput("--url asks as people do; disturbances are for files")
    key = args.key_file.read_text().strip() if args.key_file else ""
    with Client(args.url, key) as client:
        found = drive(client, world, args.seconds, random, lambda line: print(line, file=sys.stderr, flush=True))
    return msgspec.structs.replace(found, lost=client.dropped)


def _write(args: argparse.Namespace, made: Made, world: Simulator, random: Any) -> object:
    from millstream.simulate import disturbed

    what = _disturbances(args, world)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / _WORLD).write_bytes(msgspec.json.encode(made) + b"\n")
    for at_s in sorted({0.0, *(start_s for start_s, _, _ in what.renamed)}):
        after = f"-{at_s:g}" if at_s else ""  # columns have other names from then on
        for name, rows in (("users", world.users), ("items", world.items)):
            told = [what.row(row, at_s) for row in rows]
            flat = [{k: "|".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in told]
            _csv(args.folder / f"{name}{after}.csv", flat)
    counts = {"moments": 0, "told": 0, "clicks": 0, "disturbed": 0}
    with (
        (args.folder / "history.csv").open("w", newline="") as told_file,
        (args.folder / "truth.csv").open("w", newline="") as true_file,
    ):
        told_rows, true_rows = csv.writer(told_file), csv.writer(true_file)
        told_rows.writerow(["user", "item", "event_time", "like", "delay_s"])
        true_rows.writerow(["user", "item", "event_time", "probability", "label", "cause"])
        for one in disturbed(world.moments(args.count), what, random, START):
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


def _disturbances(args: argparse.Namespace, world: Simulator) -> Disturbances:
    """What goes wrong. BadInput: a column that nobody has, or two of one name."""
    from millstream.simulate import Disturbances

    columns = {*world.users[0], *world.items[0]}
    for start_s, old, new in args.rename:
        if old not in columns or new in columns:
            why = f"there is no column {old!r}" if old not in columns else f"there is a column {new!r} already"
            raise BadInput(f"--rename {start_s:g}:{old}={new}: {why}; there are: {', '.join(sorted(columns))}")
        columns.add(new)
    return Disturbances(
        bots=args.bots,
        lost=tuple(args.lost),
        late=tuple(args.late),
        poison=tuple(args.poison),
        skewed=args.skew[0],
        skew_s=args.skew[1],
        renamed=tuple(args.rename),
    )


def _parts(pattern: re.Pattern[str], text: str, what: str) -> tuple[Any, ...]:
    if (match := pattern.fullmatch(text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}, numbers such as 3600 or 0.3")
    return match.groups()


def _span(text: str) -> Span:
    from millstream.simulate import Span

    start_s, seconds = map(float, _parts(_SPAN, text, "START+SECONDS"))
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} lasts no time: give SECONDS above 0")
    return Span(start_s, seconds)


def _poison(text: str) -> Poison:
    from millstream.simulate import Poison

    span, share = _parts(_POISON, text, "START+SECONDS*SHARE")
    return Poison(_span(span), _share(share or "1"))


def _skew(text: str) -> tuple[float, float]:
    share, seconds = _parts(_SKEW, text, "SHARE*SECONDS")
    return _share(share), float(seconds)


def _rename(text: str) -> tuple[float, str, str]:
    start_s, old, new = _parts(_RENAME, text, "START:OLD=NEW")
    return float(start_s), old, new
