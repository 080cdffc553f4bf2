"""What a person sees while the demo runs, and what it says at the end."""

from __future__ import annotations

import msgspec
from rich.table import Table
from rich.text import Text


class Figures(msgspec.Struct, kw_only=True):
    """The figures of a run; `--json` prints exactly these. Times in seconds unless the name says ms."""

    requests: int = 0
    requests_per_s: float = 0.0
    errors: int = 0
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


def verdict(figures: Figures, base_url: str, folder: str, command: str) -> list[str]:
    """Plain words, and where to look next; `command`: how the reader calls millstream."""
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
    lines += [
        "",
        "Where to look next:",
        f"  curl {base_url}/v2/models/ranker",
        f"  curl {base_url}/metrics",
        f"  {command} models list {folder}/models",
        f"  {command} log tail {folder}/log examples",
        f"  {command} log audit {folder}/millstream.toml --ledger {f.ledger}",
    ]
    return lines


def _auc(value: float | None, style: str) -> Text:
    return Text("..." if value is None else f"{value:.4f}", style=style)
