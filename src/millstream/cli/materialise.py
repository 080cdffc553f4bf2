"""`features export`, `features materialise`, `features dag`: from the log to files, and from files to rows."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from millstream.cli.verbs import Verbs
from millstream.errors import BadInput, Misconfigured, NotFound

if TYPE_CHECKING:
    from millstream.app.installation import Installation
    from millstream.features.sets import FeatureSet

_SECOND: Final = 1_000_000
_LATEST: Final = 2**53 // _SECOND
_MOMENT: Final = "a date (UTC), a date with time and zone, or unix seconds"


def add(features: Verbs) -> None:
    """The verbs of this file, below `features`."""
    export = features.add("export", _export, "the events of a source as Parquet files, by day of arrival")
    export.add_argument("source", help="of a feature set")
    export.add_argument("--to", dest="folder", type=Path, required=True, metavar="FOLDER", help="where the files go")
    export.add_argument("--from", dest="begin", type=moment, metavar="TIME", help=f"from this day on: {_MOMENT}")
    export.add_argument("--until", type=moment, metavar="TIME", help="what arrived before (default: now)")
    fill = features.add("materialise", _materialise, "fill the rows of a set from the tables of its sources")
    fill.add_argument("set", nargs="?", help="(default: every set that has a table)")
    fill.add_argument(
        "--from",
        dest="begin",
        type=moment,
        metavar="TIME",
        help="what arrived from then on (default: all that is not in)",
    )
    fill.add_argument("--to", type=moment, required=True, metavar="TIME", help=f"what arrived before: {_MOMENT}")
    plan = features.add("dag", _dag, "print a file for a scheduler that materialises a set, window after window")
    plan.add_argument("scheduler", choices=("airflow", "dagster"))
    plan.add_argument("set")
    plan.add_argument("--schedule", default="@daily", help="a preset or five fields of cron, UTC (default: @daily)")
    plan.add_argument("--start", type=moment, metavar="TIME", help="where the first window begins (default: today)")
    for one in (export, fill, plan):
        one.add_argument(
            "-c",
            "--config",
            type=Path,
            default=Path("millstream.toml"),
            help="millstream.toml of the installation (default: the one here)",
        )


def moment(text: str) -> int:
    """A moment of the command line as microseconds: 2026-01-31 (UTC), 2026-01-31T12:00:00Z, or unix seconds."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = None
        if found is None or (found.tzinfo is None and len(text) > 10):
            raise argparse.ArgumentTypeError(f"{text!r} is no moment: write {_MOMENT}") from None
        past = (found if found.tzinfo else found.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
        return (past.days * 86400 + past.seconds) * _SECOND + past.microseconds
    if not 0 <= seconds < _LATEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no moment: write {_MOMENT}")
    return round(seconds * _SECOND)


def _export(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.features.export import export

    with Installation.open(args.config) as at:
        sources = at.registry.sources
        if args.source not in sources:
            raise NotFound(f"no source {args.source[:80]!r}; there are: {', '.join(sorted(sources)) or 'none'}")
        return export(sources[args.source], at.log, args.folder, at.clock, args.begin, args.until, _tell)


def _materialise(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.features.backfill import materialise

    with Installation.open(args.config) as at:
        done = [
            materialise(
                one,
                at.rows,
                {source.name: at.folder / source.table for source in one.sources if source.table},
                args.to,
                args.begin,
                now=round(at.clock.now() * _SECOND),
                limit=at.settings.feature_store.entities_max,
                tell=_tell,
            )
            for one in _sets(at, args.set)
        ]
    return done[0] if args.set else done


def _sets(at: Installation, name: str | None) -> list[FeatureSet]:
    registry = at.registry
    if name:
        return [registry.find(name)]
    found = [one for one in registry.sets.values() if any(source.table for source in one.sources)]
    if not found:
        raise Misconfigured(f"{at.folder}: no feature set has a source with a table; name one in its definition")
    return found


def _dag(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.ops.dags import dag

    with Installation.open(args.config) as at:
        one = at.registry.find(args.set)
        if not any(source.table for source in one.sources):
            raise BadInput(f"feature set {one.name}: none of its sources names a table; it comes from the log")
        today = int(at.clock.now()) // 86400 * 86400
    start = datetime.fromtimestamp(today if args.start is None else args.start // _SECOND, UTC)
    text = dag(args.scheduler, args.set, args.schedule, args.config, start)
    return {"scheduler": args.scheduler, "set": args.set, "file": text} if args.json else text.rstrip("\n")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
