"""What a person sees while the demo runs, and what it says at the end."""

from __future__ import annotations

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from millstream.demo.guest import OWN, PAGE, Change, Guest, found
from millstream.demo.visits import Compared


class Figures(msgspec.Struct, kw_only=True):
    """The figures of a run; `--json` prints exactly these. Times in seconds unless the name says ms."""

    requests: int = 0
    requests_per_s: float = 0.0
    errors: int = 0
    lists: int = 0
    list_ms_p50: float = 0.0
    list_ms_p99: float = 0.0
    latency_ms_p50: float = 0.0
    latency_ms_p99: float = 0.0
    outcomes: int = 0
    examples: int = 0
    set_aside: int = 0
    lost: int = 0
    duplicated: int = 0
    pushes: int = 0
    staleness_s_p50: float = 0.0
    staleness_s_p99: float = 0.0
    log_seconds_per_second: float = 0.0
    auc_live: float | None = None
    auc_frozen: float | None = None
    policies: Compared = Compared(arms={})
    changes: list[Change] = []
    versions: list[str] = []
    seconds: float = 0.0
    ledger: str = ""
    log: str = ""


def board(figures: Figures, total: int, data: str) -> Table:
    """The live table."""
    table = Table(title=f"Millstream learns from {data} while it serves it", expand=False, min_width=64)
    table.add_column("what")
    table.add_column("now", justify="right")
    table.add_column("meaning", style="dim")
    f = figures
    rows = [
        ("requests", f"{f.requests:,} of {total:,}", "rankings answered over HTTP"),
        (
            "requests/s",
            f"{f.requests_per_s:,.0f}",
            f"{f.log_seconds_per_second / 3600:,.1f} hours of the past a second",
        ),
        ("latency p50 / p99", f"{f.latency_ms_p50:.1f} / {f.latency_ms_p99:.1f} ms", "as the client saw it"),
        ("lists", f"{f.lists:,}", "whole lists, recalled from the catalogue"),
        ("list p50 / p99", f"{f.list_ms_p50:.1f} / {f.list_ms_p99:.1f} ms", "recall, rank, re-rank, log"),
        ("outcomes joined", f"{f.outcomes:,}", "impressions and likes, acknowledged when durable"),
        ("examples learnt", f"{f.examples:,}", "shown items with their label"),
        ("pushes", f"{f.pushes:,}", "new weights sent to the running server"),
        (
            "staleness p50 / p99",
            f"{f.staleness_s_p50:.2f} / {f.staleness_s_p99:.2f} s",
            "outcome to first answer with it",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row("AUC live", _auc(f.auc_live, "bold green"), "the model that learns, as answered")
    table.add_row("AUC frozen", _auc(f.auc_frozen, "yellow"), "version 1, never changed, in shadow")
    if f.errors:
        table.add_row("errors", Text(f"{f.errors:,}", style="bold red"), "answers that were not 200")
    return table


def shelf(guest: Guest, by_hand: bool) -> Group:
    """The guest's list as it is now, and what came of the last rating. `by_hand`: somebody may press keys."""
    guest.shown = guest.listing
    table = Table(title="One visitor's list, as it is now", expand=False, min_width=64)
    table.add_column("", justify="right")
    table.add_column("film")
    table.add_column("genres", style="dim")
    table.add_column("found by", style="dim")
    table.add_column("reasons", style="dim")
    new = {one.title for one in guest.changes[-1].came} if guest.changes else set()
    for position, slot in enumerate(guest.shown.items[:PAGE], 1):
        title = guest.title(slot.item)
        table.add_row(
            str(position % 10),
            Text(title, style="bold green" if title in new else ""),
            Text(guest.genres(slot.item)),
            Text(_paths(found(slot))),
            Text(" ".join(slot.reasons)),
        )
    said = [Text(f"rating {guest.rating} ...")] if guest.rating else [Text(line) for line in _told(guest.changes[-1:])]
    if by_hand:
        said.append(Text("Press a number to like that film (0: the tenth), Ctrl-C to end.", style="bold"))
    return Group(table, *said)


def _paths(names: list[str]) -> str:
    """What goes by the visitor first, as that says most."""
    return ", ".join(sorted(names, key=lambda name: name not in OWN))


def _told(changes: list[Change]) -> list[str]:
    """What ratings changed, in plain words."""
    lines = []
    for one in changes:
        if one.seconds is None:
            lines.append(f"Liked {one.rated}: the list did not change before the end.")
            continue
        lines.append(
            f"Liked {one.rated} (position {one.position}). {one.seconds:.2f} s later {len(one.came)} of the {PAGE} "
            f"films were others (of the list of somebody who rated nothing: {one.others})."
        )
        lines += [f"  + {came.title}  ({_paths(came.found)}; {' '.join(came.reasons)})" for came in one.came]
        if one.went:
            lines.append(f"  - {', '.join(one.went)}")
    return lines


def _story(guest: Guest) -> list[str]:
    """One visitor, from the first list on."""
    titles = ", ".join(guest.title(slot.item) for slot in guest.first.items[:PAGE])
    lines = [f"A new visitor's first list: {titles}.", *_told(guest.changes)]
    if guest.changes and (last := guest.changes[-1]).seconds is not None:
        lines.append(
            f"Of the {PAGE} films, {guest.of_genre(guest.first)} were {guest.genre} at first and {last.of_genre} are "
            f"now; of the list of somebody who rated nothing, {last.others_of_genre}."
        )
    return lines


def _arms(compared: Compared) -> list[str]:
    """The A/B of policies, and what it is worth."""
    lines = [
        f"  {name}: {arm.lists:,} lists of {arm.visitors} visitors; {arm.taken:.2f} films taken and {arm.liked:.2f} "
        f"liked a list, {arm.categories:.1f} categories a list, {100 * arm.films:.0f} % of all films shown"
        for name, arm in compared.arms.items()
    ]
    if compared.difference is None or compared.low is None or compared.high is None:
        return lines
    first, second = compared.arms
    shown = compared.low > 0 or compared.high < 0
    word = (second if compared.difference > 0 else first) + " is liked more" if shown else "no difference is shown"
    lines.append(
        f"  {second} less {first}: {compared.difference:+.2f} liked films a list, 95 % interval {compared.low:+.2f} to "
        f"{compared.high:+.2f}: {word}."
    )
    return lines


def verdict(figures: Figures, guest: Guest, base_url: str, folder: str, command: str, console: int = 0) -> list[str]:
    """Plain words, and where to look next; `command`: how the reader calls millstream, `console`: the port of the
    console where one runs."""
    f = figures
    lines = [f"{f.requests:,} rankings in {f.seconds:.0f} s ({f.requests_per_s:,.0f} a second), {f.errors} errors."]
    if f.auc_live is not None and f.auc_frozen is not None:
        gain = f.auc_live - f.auc_frozen
        word = "better than" if gain >= 0.01 else "no better than" if gain > -0.01 else "WORSE than"
        lines.append(
            f"Learning from its own traffic made the model {word} the one that stayed as it was: "
            f"AUC {f.auc_live:.3f} live, {f.auc_frozen:.3f} frozen ({gain:+.3f})."
        )
    lines.append(
        f"The books: {f.outcomes:,} outcomes acknowledged, {f.examples:,} examples, {f.set_aside:,} set aside, "
        f"{f.lost} lost, {f.duplicated} duplicated."
    )
    lines.append(
        f"Half of the outcomes were in the served weights within {f.staleness_s_p50:.2f} s, 99 % within "
        f"{f.staleness_s_p99:.2f} s."
    )
    lines += ["", *_story(guest)]
    if f.policies.arms:
        lines += ["", "Two policies of order, on visitors who take what they have a rating of in the data:"]
        lines += _arms(f.policies)
    lines += [
        "",
        "Where to look next:",
        *(
            [f"  http://127.0.0.1:{console}  (the console: how it learns, and what it recommends to you)"]
            if console
            else []
        ),
        f"  {command} recommend --url {base_url} --visitor {guest.name} --explain",
        f"  {command} report -c {folder}/millstream.toml",
        f"  {command} experiment order -c {folder}/millstream.toml",
        f"  curl {base_url}/v2/models/ranker",
        f"  curl {base_url}/metrics",
        f"  {command} models list {folder}/models",
        f"  {command} log tail {folder}/log examples",
        f"  {command} log audit {folder}/millstream.toml --ledger {f.ledger}",
    ]
    return lines


def _auc(value: float | None, style: str) -> Text:
    return Text("..." if value is None else f"{value:.4f}", style=style)
