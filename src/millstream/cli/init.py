"""`init`: from a team's own tables to a running recommender, asked on a terminal or told by options."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.verbs import Verbs, bounded, port
from millstream.errors import BadInput, Error

if TYPE_CHECKING:
    from millstream.app.init.founding import Founded
    from millstream.learn.interactions import Interactions, Liked
    from millstream.learn.tables import Looked

NEWEST = 2_000_000
_newest = bounded(int, 1, 200_000_000, "a number from 1 to 200000000")


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    made = verbs.add("init", _init, "an installation that recommends, from your own tables")
    made.add_argument("folder", type=Path, help="where it is made: a new folder, or an empty one")
    tables = "FILE (.csv, .tsv, .jsonl, .parquet); several are read one after the other"
    for name, what, needed in (
        ("interactions", "who did what with which item when", True),
        ("items", "items and their attributes; without it they are bare ids", False),
        ("users", "users and their attributes; without it they are bare ids", False),
    ):
        made.add_argument(
            f"--{name}", type=Path, nargs="+", default=[], required=needed, metavar="FILE", help=f"{what}: {tables}"
        )
    made.add_argument(
        "--map", nargs="+", default=[], metavar="FIELD=COLUMN",
        help="what is not as guessed: user, item, event_time, kind, rating, items.FIELD, users.FIELD, with :TYPE "
        "behind it where it needs one (str, float, list, iso, s, ms, us, ns); nothing behind = leaves the field out",
    )  # fmt: skip
    made.add_argument(
        "--liked", nargs="+", default=[], metavar="KIND",
        help="kinds of events that mean an item was liked; or rating>=NUMBER; or all",
    )  # fmt: skip
    made.add_argument("--yes", action="store_true", help="take what is proposed, ask nothing")
    made.add_argument(
        "--newest", type=_newest, default=NEWEST, metavar="N", help=f"interactions taken at most (default: {NEWEST})"
    )
    made.add_argument("--http-port", type=port, default=8000, help="port of the service (default: 8000)")


def _init(args: argparse.Namespace) -> object:
    from millstream.app.init import founding
    from millstream.clock import SystemClock
    from millstream.learn import tables
    from millstream.learn.columns import read_entries

    if not (args.yes or sys.stdin.isatty()):
        raise BadInput("nobody can be asked here, as stdin is no terminal: --yes takes what is proposed")
    founding.check_free(args.folder)
    looked = tables.look(tables.Tables(args.interactions, args.items, args.users))
    looked.revise(read_entries(args.map))
    _agree(looked, args.yes)
    interactions = tables.gather(looked, args.newest, SystemClock())
    liked = tables.read_liked(args.liked, interactions) if args.liked else tables.proposed(looked, interactions)
    liked = _weigh(interactions, liked, args.yes or bool(args.liked))
    founded = founding.found(args.folder, looked, interactions, liked, args.http_port, _say)
    founded.next = _next(args.folder, args.http_port, interactions)
    return founded if args.json else list(_told(founded))


def _agree(looked: Looked, taken: bool) -> None:
    """Show the map, and change it until somebody takes it. `taken`: nobody is asked, and what lacks is BadInput."""
    from millstream.learn.columns import read_entries

    while True:
        for line in _mapped(looked):
            _say(line)
        if taken:
            return looked.check()
        try:
            words = _ask("Enter if this is right, or what is not, as FIELD=COLUMN ...: ")
            looked.revise(read_entries(words))
            if not words:
                return looked.check()
        except Error as error:
            _say(str(error))


def _weigh(interactions: Interactions, liked: Liked, taken: bool) -> Liked:
    """Show what counts as liked, and change it until somebody takes it."""
    from millstream.learn.tables import read_liked

    while True:
        for line in _weighed(interactions, liked):
            _say(line)
        if taken:
            return liked
        try:
            words = _ask("Enter if this is right, or kinds of events, or rating>=NUMBER, or all: ")
            if not words:
                return liked
            liked = read_liked(words, interactions)
        except Error as error:
            _say(str(error))


def _ask(question: str) -> list[str]:
    print(question, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt
    try:
        return shlex.split(line)
    except ValueError as error:
        raise BadInput(f"{line.strip()}: {error}") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _mapped(looked: Looked) -> Iterator[str]:
    """The map for a person."""
    for table, map in looked.maps.items():
        facts = {one.name: one for one in looked.facts[table]}
        if not facts:
            continue
        yield f"{table} ({', '.join(path.name for path in getattr(looked.tables, table))}):"
        for field, part in map.items():
            some = ", ".join(sorted(facts[part.column].values)[:3])
            yield f"  {field:12} = {part.column}:{part.type:6}  such as {some[:60]}"
        used = {part.column for part in map.values()}
        if left := [name for name in facts if name not in used]:
            yield f"  left out: {', '.join(left)}"


def _weighed(interactions: Interactions, liked: Liked) -> Iterator[str]:
    """What counts as liked, for a person."""
    import numpy as np

    counts = interactions.counts()
    if counts:
        yield "events: " + ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
    known = interactions.ratings[~np.isnan(interactions.ratings)]
    if len(known):
        values, often = np.unique(known, return_counts=True)
        shown = [f"{value:g} {count:,}" for value, count in zip(values, often, strict=True)]
        few = shown if len(shown) <= 12 else [f"{np.quantile(known, q):g} at {q:.0%}" for q in (0.1, 0.5, 0.9)]
        yield "ratings: " + ", ".join(few)
    share = 100 * float(interactions.positives(liked).mean())
    yield f"liked: {liked} ({share:.1f} % of {len(interactions.times):,} interactions)"


def _next(folder: Path, port: int, interactions: Interactions) -> list[str]:
    """The commands to go on with."""
    toml, user = shlex.quote(str(folder / "millstream.toml")), interactions.user_names[interactions.users[-1]]
    body = shlex.quote(json.dumps({"user": user}, ensure_ascii=False))
    url = "" if port == 8000 else f" --url http://127.0.0.1:{port}"
    return [
        f"millstream up -c {toml}",
        f"curl -s http://127.0.0.1:{port}/v1/recommend -d {body}",
        f"millstream recommend --user {shlex.quote(user)} --explain{url}",
    ]


def _told(founded: Founded) -> Iterator[str]:
    yield f"{founded.folder}: {founded.items:,} items, {founded.users:,} users, {founded.interactions:,} interactions"
    if founded.version:
        how = f", AUC {founded.auc:.3f} on the last fifth" if founded.auc is not None else ""
        yield f"  version {founded.version} ranks, from {founded.examples:,} examples{how}"
    yield f"  recall knows {founded.indexed:,} likes"
    for line in founded.warnings:
        yield f"  note: {line}"
    yield "next:"
    for line in founded.next:
        yield f"  {line}"
