"""`experiment`: which arm of a split is better, by the log, at any look."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.report import table
from millstream.cli.verbs import Verbs, moment, say

if TYPE_CHECKING:
    from millstream.app.experiments.told import ExperimentReport, Lift
    from millstream.watch.experiments.settings import ExperimentSettings

OPTIONS = ("placement", "model", "tenant", "metric", "per", "least", "guard", "control")


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    made = verbs.add("experiment", _experiment, "which arm of a split is better: rules of a placement, versions")
    made.add_argument("name", nargs="?", default="", help="of [experiments]; without one, options say what it is")
    made.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    made.add_argument("--placement", help="compare the arms of its rules; with --model: its lists alone")
    made.add_argument("--model", help="compare the versions that its policy splits people among")
    made.add_argument("--tenant", help="whose lists, where there are tenants")
    made.add_argument("--metric", help="what decides: a kind of outcome, positives (default), revenue and others")
    made.add_argument("--per", choices=("list", "impression", "person"), help="of what the metric is (default: list)")
    made.add_argument("--least", type=float, help="smallest difference that matters: 0.05 for 5 %% (default)")
    made.add_argument(
        "--guard", action="append", metavar="METRIC=SHARE", help="must not get worse by more; may be said again"
    )
    made.add_argument("--control", help="arm that the others are compared with")
    made.add_argument("--since", type=moment, default=float("-inf"), metavar="TIME", help="when it began")
    made.add_argument("--until", type=moment, default=float("inf"), metavar="TIME", help="only lists up to then")


def _experiment(args: argparse.Namespace) -> object:
    from millstream.app.experiments.assessing import assess
    from millstream.app.installation import Installation
    from millstream.app.report.matching import Span
    from millstream.errors import BadInput

    said = {one: value for one in OPTIONS if (value := getattr(args, one)) is not None}
    if args.name and said:
        raise BadInput(f"millstream.toml says what experiment {args.name} is: leave out --{', --'.join(said)}")
    asked = args.name or _asked(said)
    with Installation.open(args.config) as installation:
        found = assess(installation, asked, Span(args.since, args.until), say)
    return found if args.json else list(_told(found))


def _asked(said: dict[str, object]) -> ExperimentSettings:
    """An experiment from options, held to what one of millstream.toml is held to."""
    import msgspec

    from millstream.errors import BadInput, Misconfigured
    from millstream.watch.experiments.settings import ExperimentSettings

    guards = said.pop("guard", None)
    assert guards is None or isinstance(guards, list)
    try:
        rails = {name: float(share) for name, _, share in (one.partition("=") for one in guards or [])}
        return msgspec.convert({**said, "guardrails": rails}, ExperimentSettings)
    except (ValueError, msgspec.ValidationError, Misconfigured) as error:
        raise BadInput(f"{error} (for instance: --placement home --metric like --guard revenue=0.02)") from None


def _told(found: ExperimentReport) -> Iterator[str]:
    """A report for a person."""
    yield found.verdict
    yield ""
    yield f"{found.split}: {found.metric}, beside {found.control}; {found.past:.0%} of the people have a past"
    rows = [["arm", "people", "to be", "lists", found.metric, "lift", "at any look", "noise less", "people wanted"]]
    lifts = {one.arm: one for one in found.lifts}
    rows += [
        [
            one.arm, f"{one.people:,}", f"{one.share:.1%}", f"{one.lists:,}",
            "-" if one.value is None else f"{one.value:.4g}", *_cells(lifts.get(one.arm)),
        ]
        for one in found.arms
    ]  # fmt: skip
    yield from table(rows)
    if found.rails:
        yield ""
    yield from (f"  {one.state}: {one.said}" for one in found.rails)
    for shadow in found.shadows:
        told = (
            ("correlation", shadow.correlation), ("by rank", shadow.rank_correlation), ("apart by", shadow.apart),
            ("another item first in", shadow.other_first),
        )  # fmt: skip
        words = (f"{what} {'-' if value is None else f'{value:.4g}'}" for what, value in told)
        yield f"  shadow {shadow.version} beside {shadow.requests:,} answers: {', '.join(words)}"


def _cells(lift: Lift | None) -> list[str]:
    if lift is None or lift.lift is None or lift.low is None or lift.high is None:
        return ["-"] * 4
    wanted = "-" if lift.wanted is None else f"{lift.wanted:,}"
    return [f"{lift.lift:+.2%}", f"{lift.low:+.2%} to {lift.high:+.2%}", f"{lift.less:.1%}", wanted]
