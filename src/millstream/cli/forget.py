"""`forget`: take what an installation keeps of somebody out of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.verbs import Verbs, asyncio_run, positive
from millstream.errors import Corrupt

if TYPE_CHECKING:
    from millstream.app.forget import Report


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    forget = verbs.add("forget", _forget, "take what is kept of people out of the log, rows and state")
    forget.add_argument("user", nargs="+", metavar="USER", help="the name that callers use")
    forget.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    forget.add_argument("--of", metavar="KIND", default="user", help="the kind of entity (default: user)")
    forget.add_argument("--tenant", default="", help="whose they are, where there are tenants")
    forget.add_argument(
        "--wait", type=positive, default=60.0, metavar="S", help="for each running role at most, seconds (default: 60)"
    )


def _forget(args: argparse.Namespace) -> object:
    from millstream.app.forget import forget
    from millstream.app.installation import Installation

    with Installation.open(args.config) as installation:
        report = asyncio_run(forget(installation, args.user, args.of, args.wait, args.tenant))
    if args.json:
        return report
    lines = _lines(report)
    if report.damaged:
        print(*lines, sep="\n")
        raise Corrupt(f"what could not be read may hold the rest: {'; '.join(report.damaged)}")
    return lines


def _lines(report: Report) -> list[str]:
    """The report for people."""
    places = {f"log, topic {topic}": count for topic, count in sorted(report.records.items())}
    places |= {
        "rows of features": report.rows,
        "saved states of features": report.snapshots,
        "requests waiting for outcomes": report.waiting,
        "labelled rows of datasets": report.labelled,
        "recordings of speech": report.audio,
        "sessions of speech": report.sessions,
        "attributes in running servers": report.attributes,
        "answers in running servers": report.answers,
    }
    lines = [f"{count:>8}  {place}" for place, count in places.items() if count]
    if not report.found:
        lines.append("nothing was found")
    if report.shared:
        lines.append(
            f"{report.shared:>8}  request ids that others used too: their outcomes stay, as those of the others"
        )
    return [*lines, "not in reach:", *(f"  {one.what}: until {one.until}" for one in report.stays)]
