"""`trace`: the whole story of one request, on one screen."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.verbs import Verbs, moment, say

if TYPE_CHECKING:
    from millstream.app.story import Candidate, Feature, Story

SHOWN = 10
"""Candidates on the screen: the first ones, and those that people did something with."""
ROWS = 20
"""Outcomes, examples and pushes on the screen, of each."""
WIDE = 120


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    made = verbs.add("trace", _trace, "the story of one request: who asked, who answered, why, and what came of it")
    made.add_argument("request", help="the id of a request, as its answer has it")
    made.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    made.add_argument(
        "--since", type=moment, default=float("-inf"), metavar="TIME", help="it was answered then or later"
    )
    made.add_argument("--until", type=moment, default=float("inf"), metavar="TIME", help="it was answered by then")
    made.add_argument("--tenant", default="", help="whose request, where there are tenants (default: whoever has it)")
    made.add_argument("--otlp", default="", metavar="URL", help="send the story to a collector, as spans of one trace")


def _trace(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.story import tell

    with Installation.open(args.config) as installation:
        story = tell(installation, args.request, args.since, args.until, args.tenant, say)
    if args.otlp:
        from millstream.app.trace.spans import send

        trace = send(story, args.otlp)
        say(f"sent to {args.otlp} as trace {trace}")
    return story if args.json else [*lines(story)]


def plain(text: str, most: int = 80) -> str:
    """Text of a stranger for a terminal: what is not printable is written as an escape, and it is not long."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return shown if len(text) <= most and len(shown) <= 2 * most else shown[:most] + "..."


def lines(story: Story) -> Iterator[str]:
    """The story for a person at a terminal; what is longer than WIDE goes on below, but for the table."""
    yield from _wrapped(_head(story))
    yield from _candidates(story)
    yield from _wrapped(_body(story))


def _wrapped(several: Iterator[str]) -> Iterator[str]:
    for one in several:
        yield from textwrap.wrap(one, WIDE, subsequent_indent=" " * 13, break_on_hyphens=False) or [""]


def _head(story: Story) -> Iterator[str]:
    of = f" of {plain(story.tenant)}" if story.tenant else ""
    yield f"request {plain(story.request)}{of}: {plain(story.said, 400)}"
    yield from _asked(story)
    yield from _answered(story)


def _body(story: Story) -> Iterator[str]:
    yield from _features(story)
    yield from _outcomes(story)
    yield from _examples(story)
    yield from _pushes(story)
    yield from (f"note       {plain(one, 400)}" for one in story.notes)


def _asked(story: Story) -> Iterator[str]:
    asked, place = story.asked, story.place
    if place is not None:
        times = f", {asked.times} times" if asked.times > 1 else ""
        where = f"{place.topic} {place.partition}:{place.offset}{times}"
        yield f"asked      {_when(place.arrival)} ({where}), event time {_when(asked.event_time)}"
    same = {True: " (as in the settings now)", False: " (the settings have others now)", None: ""}[asked.rules_same]
    arm = f" arm {plain(asked.rules)}" if asked.rules else ""
    parts = [
        f"user {plain(asked.user)}" if asked.user else "",
        f"placement {plain(asked.placement)}" if asked.placement else "",
        f"rules {asked.rules_hash}{arm}{same}" if asked.rules_hash else "",
        " ".join(f"{plain(name, 40)}={plain(str(value), 40)}" for name, value in [*asked.context.items()][:8]),
        f"liked before: {_some(asked.history[::-1], 5)}" if asked.history else "",
    ]
    if any(parts):
        yield "           " + "; ".join(filter(None, parts))


def _answered(story: Story) -> Iterator[str]:
    by = story.answered
    if not by.model:
        return
    made = f" (base made by {plain(by.made_by)}" + (f" from {plain(by.parent)})" if by.parent else ")")
    version = f" {plain(by.version)}" if by.version else ": nothing ranked"
    yield f"answered   {plain(by.model)}{version}" + (made if by.made_by else "") + f", traffic {plain(by.arm)}"
    if by.changed is not None:
        one, why = by.changed, plain(by.changed.why) or "no reason said"
        yield f"           policy {one.number} of {plain(one.when)} by {plain(one.who)}: {why}"
    elif by.policy:
        yield f"           policy {by.policy}"
    said = [f"{plain(name)} {plain(version) or 'was silent'}" for name, version in by.beside.items()]
    if said:
        yield f"           beside it {', '.join(said)}"
    if by.instead or by.missed:
        instead = f"the ranker gave way to {plain(by.instead)}; " if by.instead else ""
        yield f"           {instead}missed: {_some(by.missed, 8) or 'nothing'}"
    for name, numbers in by.shadows.items():
        yield f"shadow     {plain(name)}: {' '.join(f'{one:.4g}' for one in numbers[:8])}"


def _candidates(story: Story) -> Iterator[str]:
    """A table of the first candidates, with a column for all that any of them has."""
    touched = {one.item for one in story.outcomes}
    shown = [one for place, one in enumerate(story.candidates) if place < SHOWN or one.item in touched][: 2 * SHOWN]
    if not shown:
        return
    names = list(dict.fromkeys(name for one in shown for name in one.outputs))
    shadows = list(dict.fromkeys(name for one in shown for name in one.shadow))
    head = ["", "item", "title", "found by", "recall", *names, *shadows, "score", "first", "price", "because"]
    rows = [_row(one, names, shadows) for one in shown]
    kept = [0, 1, *(at for at in range(2, len(head)) if any(row[at] for row in rows))]
    wide = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    yield ""
    for row in (head, *rows):
        cells = [row[at].rjust(wide[at]) if _number(rows, at) else row[at].ljust(wide[at]) for at in kept]
        yield "  ".join(cells).rstrip()
    if left := len(story.candidates) - len(shown):
        yield f"     and {left:,} more candidates (--json has them all)"
    yield ""


def _row(one: Candidate, names: Sequence[str], shadows: Sequence[str]) -> list[str]:
    return [
        f"{one.position:4}" if one.position else "   -",
        plain(one.item, 24),
        plain(one.title, 28),
        plain(", ".join(one.sources), 32),
        _float(one.recall),
        *(_float(one.outputs.get(name)) for name in names),
        *(_float(one.shadow.get(name)) for name in shadows),
        _float(one.score),
        _float(one.propensity) + ("*" if one.explored else ""),
        _float(one.price),
        plain(" ".join(one.reasons), 40),
    ]


def _number(rows: Sequence[Sequence[str]], at: int) -> bool:
    return all(not row[at] or row[at].strip(" *-+.e0123456789") == "" for row in rows)


def _features(story: Story) -> Iterator[str]:
    """Features of the person, and of the items that people did something with."""
    if story.user:
        yield f"features   user: {_row_of(story.user)}"
    touched = {one.item for one in story.outcomes}
    several = [one for one in story.candidates if one.features and (one.item in touched or not touched)]
    for one in several[:3]:
        yield f"           {plain(one.item, 24)}: {_row_of(one.features)}"
    for read in story.reads[:2]:
        known = [f"{name} {value:.6g}" for row in read.values[:1] for name, value in row.items() if value is not None]
        when = f"{_when(read.at)}, rows as of {_when(read.as_of)}"
        yield f"read       {plain(read.features)} at {when}: {_some(known, 12)}"


def _row_of(features: Sequence[Feature]) -> str:
    known = [one for one in features if one.known in ("exact", "about")]
    said = [
        f"{plain(one.name.partition('.')[2], 24)}={'~' if one.known == 'about' else ''}{_some(one.values, 4)}"
        for one in known[:14]
    ]
    hidden = [plain(one.name.partition(".")[2], 24) for one in features if one.known == "hidden"]
    empty = sum(one.known == "empty" for one in features)
    more = [f"not named: {', '.join(hidden[:6])}"] if hidden else []
    return "; ".join([" ".join(said), *more, *([f"{empty} empty"] if empty else [])])


def _outcomes(story: Story) -> Iterator[str]:
    if not story.outcomes:
        yield "outcomes   none in the log"
    for number, one in enumerate(story.outcomes[:ROWS]):
        value = "" if one.value == 1.0 else f" = {one.value:g}"
        ends = {
            "example": "example",
            "set aside": "set aside:",
            "waiting": "waiting:",
            "counted": "set aside as a number:",
        }
        end = f"{ends[one.end]} {', '.join(map(str, one.examples)) or plain(one.cause)}"
        text = f'  "{plain(one.text, 40)}"' if one.text else ""
        head = "outcomes " if number == 0 else "         "
        yield f"{head}  {one.after_s:+9.3f} s  {plain(one.kind, 24)} {plain(one.item, 24)}{value} -> {end}{text}"
    yield from _more(len(story.outcomes), "outcomes")


def _examples(story: Story) -> Iterator[str]:
    for number, one in enumerate(story.examples[:ROWS]):
        form = f" {one.form}" if one.form else ""
        pushes = ", ".join(f"{plain(story.pushes[at].model)} {story.pushes[at].version}" for at in one.pushes)
        head = "examples " if number == 0 else "         "
        label = f"label {one.label:g}, weight {one.weight:.4g}, known {_when(one.known)}"
        yield (
            f"{head}  {one.offset}: {plain(one.item, 24)}, task {plain(one.task, 24)}{form}, {label} -> "
            + (f"push {pushes}" if pushes else plain(one.why_not, 200))
        )
    yield from _more(len(story.examples), "examples")


def _pushes(story: Story) -> Iterator[str]:
    for number, one in enumerate(story.pushes[:ROWS]):
        head = "pushes   " if number == 0 else "         "
        seen = one.seen
        first = f"first answer with it {plain(seen.request) or 'of somebody else'} by {seen.version}" if seen else (
            "no answer with it yet"
        )  # fmt: skip
        yield (
            f"{head}  {plain(one.model)} {one.version} at {_when(one.at)}: {one.examples} examples up to {one.upto}, "
            f"{one.slots} weights; {first}, {one.staleness_s:.3f} s after the label was known"
        )
    yield from _more(len(story.pushes), "pushes")


def _more(count: int, what: str) -> Iterator[str]:
    if count > ROWS:
        yield f"           and {count - ROWS} more {what} (--json has them all)"


def _some(values: Sequence[str], most: int) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(plain(one, 40) for one in values[:most]) + more


def _float(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _when(time: float) -> str:
    """In UTC, to the millisecond; a time beyond the calendar as its number."""
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    except (ValueError, OverflowError, OSError):
        return f"{time:g}"
