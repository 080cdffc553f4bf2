"""`curate`: rows that are worth a person's look, what people say of them, and datasets made of that."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.trace import plain
from millstream.cli.verbs import Verbs, bounded, say

if TYPE_CHECKING:
    from millstream.app.curation import Exported, Filled
    from millstream.learn.curate.dataset import Dataset
    from millstream.learn.curate.queue import ReviewItem

LIMIT = 20
_limit = bounded(int, 1, 10_000, "a number from 1 to 10000")


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    curate = Verbs(verbs.add("curate", _list, "rows of the log for people to label, and datasets of them"))

    def verb(name: str, run: Callable[[argparse.Namespace], object], help: str) -> argparse.ArgumentParser:
        made = curate.add(name, run, help)
        made.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
        return made

    verb("fill", _fill, "choose rows of the log that are worth a look, and put them into the queue")
    listed = verb("list", _list, "what waits for a label")
    listed.add_argument("-n", type=_limit, default=LIMIT, help=f"how many (default: {LIMIT})")
    listed.add_argument("--reason", default="", help="only rows that are there for this reason")
    label = verb("label", _label, "say what a row is")
    label.add_argument("id", help="of the row, as `list` names it")
    label.add_argument("label", choices=("positive", "negative", "skip"))
    label.add_argument("--who", default="command line", help="who says so; recorded (default: command line)")
    export = verb("export", _export, "put what was labelled as the next version of a dataset")
    export.add_argument("name", help="of the dataset")
    export.add_argument(
        "--teacher", default="", metavar="[MODEL@]VERSION",
        help="add labels of this version of rows that nobody looked at, where its precision on gold is good enough",
    )  # fmt: skip
    verb("datasets", _datasets, "the versions of all datasets")


def _fill(args: argparse.Namespace) -> object:
    from millstream.app.curation import fill
    from millstream.app.installation import Installation

    with Installation.open(args.config) as at:
        found = fill(at, say)
    return found if args.json else list(_filled(found))


def _filled(found: Filled) -> Iterator[str]:
    added = ", ".join(f"{count} {name}" for name, count in found.added.items()) or "nothing new"
    yield f"{found.rows} rows looked at: {added}; {found.waiting} wait"
    for one in found.moved:
        yield f"  {one.what} of {one.slice} moved by {one.by:.3f} at least"


def _list(args: argparse.Namespace) -> object:
    from millstream.app.curation import queue
    from millstream.app.installation import Installation

    with Installation.open(args.config) as at:
        found = queue(at, args.n, args.reason)
    return found if args.json else [line for one in found for line in _listed(one)] or ["nothing waits"]


def _listed(one: ReviewItem) -> Iterator[str]:
    shown = ", ".join(plain(f"{name} {value}") for name, value in one.shown.items())
    item, user = plain(one.item), plain(one.user) or "somebody"
    yield f"{one.id}  {', '.join(one.reasons)}: {plain(one.why, 300)}"
    yield f"    item {item} for {user}, score {one.score:.3f} of {plain(one.model)} {plain(one.version)}"
    if shown:
        yield f"    {shown}"


def _label(args: argparse.Namespace) -> object:
    from millstream.app.curation import label
    from millstream.app.installation import Installation

    with Installation.open(args.config) as at:
        found = label(at, args.id, args.label, args.who)
    return found if args.json else f"{found.id} is {found.label}, says {found.who}; {found.waiting} wait"


def _export(args: argparse.Namespace) -> object:
    from millstream.app.curation import export
    from millstream.app.installation import Installation

    with Installation.open(args.config) as at:
        found = export(at, args.name, args.teacher, say)
    return found if args.json else list(_exported(found))


def _exported(found: Exported) -> Iterator[str]:
    yield _told(found.dataset) + ("" if found.new else "; nothing is new since")
    for side, one in found.teacher.items():
        refused = f"; refused: {one.refused}" if one.refused else ""
        yield (
            f"  teacher's {side} labels: {one.right} of {one.count} right on gold, precision {one.precision:.2f} "
            f"({one.low:.2f} to {one.high:.2f}){refused}"
        )
    if found.other_features:
        yield f"  {found.other_features} labelled rows are of other [features] and stay out"


def _datasets(args: argparse.Namespace) -> object:
    from millstream.app.curation import datasets
    from millstream.app.installation import Installation

    with Installation.open(args.config) as at:
        found = datasets(at)
    return found if args.json else [_told(one) for one in found] or ["there is no dataset"]


def _told(one: Dataset) -> str:
    kinds = ", ".join(f"{count} {name}" for name, count in one.counts.get("kind", {}).items())
    return f"{one.name}@{one.version}  {one.created}  {one.rows} rows ({kinds})  {one.digest[:19]}"
