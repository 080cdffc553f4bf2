"""`report`: what became of lists, by the log; and what other rules would have earned."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.verbs import Verbs, moment, say

if TYPE_CHECKING:
    from millstream.app.report.summary import Figure, Placed, Report
    from millstream.app.report.whatif import WhatIf


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    made = verbs.add("report", _report, "what became of lists: rules compared on three axes, sources, positions")
    made.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    made.add_argument("--since", type=moment, default=float("-inf"), metavar="TIME", help="only lists from then on")
    made.add_argument("--until", type=moment, default=float("inf"), metavar="TIME", help="only lists up to then")
    made.add_argument("--placement", default="", help="only of this one")
    made.add_argument("--tenant", default="", help="whose lists, where there are tenants")
    made.add_argument(
        "--rules", type=Path, metavar="FILE",
        help="what these rules would have earned: a TOML file with [[rerank]] steps, as of a placement",
    )  # fmt: skip


def _report(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.report.matching import Span
    from millstream.app.report.summary import report
    from millstream.app.report.whatif import what_if

    span = Span(args.since, args.until, args.placement, args.tenant)
    with Installation.open(args.config) as installation:
        if args.rules is not None:
            judged = what_if(installation, args.rules, span, say)
            return judged if args.json else list(_judged(judged))
        found = report(installation, span, say)
    return found if args.json else list(_told(found))


def _told(found: Report) -> Iterator[str]:
    """A report for a person."""
    yield (
        f"{found.lists:,} lists; {found.items:,} items in the catalogue; {found.unmatched:,} outcomes of no list here"
        + (f"; {found.odd:,} lists could not be read" if found.odd else "")
        + (f"; {found.unknown:,} impressions of items that the log never told of" if found.unknown else "")
    )
    for placed in found.placements:
        yield ""
        yield f"placement {placed.placement}"
        yield from _policies(placed)
        yield from _sources(placed)
        yield from _positions(placed)


def _policies(placed: Placed) -> Iterator[str]:
    policies = placed.policies
    rows = [["", *(one.policy for one in policies)]]
    sums = ("lists", "impressions", "positives", "users", "revenue")
    rows += [[name, *(f"{getattr(one, name):,.10g}" for one in policies)] for name in sums]
    rows.append(["catalogue shown", *("-" if one.covered is None else f"{one.covered:.2%}" for one in policies)])
    measures = dict.fromkeys(name for one in policies for name in one.figures)
    rows += [[name, *(_figure(one.figures.get(name)) for one in policies)] for name in measures]
    yield from table(rows)
    for one in placed.differences:
        which = f"{one.measure} of {one.first} less {one.second}"
        better = f"  {one.better} is better" if one.better else ""
        yield f"  {which}: {one.value:+.4g} ({one.low:.4g} to {one.high:.4g}){better}"
    yield from (f"  {sentence}" for sentence in placed.verdicts)


def _sources(placed: Placed) -> Iterator[str]:
    if placed.sources:
        rows = [["found by", "impressions", "of all", "alone", "CTR", "of positives", "alone", "revenue"]]
        rows += [
            [
                one.source, f"{one.impressions:,}", f"{one.share:.1%}", f"{one.only_share:.1%}", f"{one.ctr:.4f}",
                f"{one.share_of_positives:.1%}", f"{one.only_share_of_positives:.1%}", f"{one.revenue:,.10g}",
            ]
            for one in placed.sources
        ]  # fmt: skip
        yield from table(rows)


def _positions(placed: Placed) -> Iterator[str]:
    rows = [["position", "impressions", "positives", "CTR", "looked at"]]
    rows += [
        [
            str(one.position), f"{one.impressions:,}", f"{one.positives:,}", f"{one.ctr:.4f}",
            "-" if one.examination is None else f"{one.examination:.3f}",
        ]
        for one in placed.positions
    ]  # fmt: skip
    yield from table(rows)


def _judged(found: WhatIf) -> Iterator[str]:
    """What other rules would have earned, for a person."""
    yield (
        f"{found.lists:,} lists of {found.people:,} people at {found.placement}; chance chose the first place in "
        f"{found.explored:.1%}" + (f"; {found.skipped:,} lists were logged without chances" if found.skipped else "")
    )
    yield (
        f"the new rules would put another item first in {found.changed:.1%}; effective lists {found.effective:,.0f}, "
        f"mean weight {found.mean_weight:.4f}, largest {found.largest_weight:.2%} of all, covered {found.covered:.2%}"
    )
    if found.filled:
        yield f"as items are now, not as they were then: {', '.join(found.filled)}"
    rows = [["of a list's first place", "logged", "IPS", "SNIPS", "doubly robust", "gain"]]
    rows += [
        [one.reward, *(_figure(of) for of in (one.logged, one.ips, one.snips, one.dr, one.gain))]
        for one in found.earned
    ]
    yield from table(rows)
    yield found.verdict


def _figure(one: Figure | None) -> str:
    if one is None:
        return "-"
    return f"{one.value:.4g}" + ("" if one.low is None or one.high is None else f" ({one.low:.4g} to {one.high:.4g})")


def table(rows: Iterable[list[str]]) -> Iterator[str]:
    """Lines of columns, as wide as what stands in them; the first to the left, the others to the right."""
    rows = list(rows)
    wide = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    yield ""
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], wide[1:], strict=True))
        yield "  ".join([f"  {row[0]:{wide[0]}}", *cells])
