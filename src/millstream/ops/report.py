"""What a person reads of a capacity: the figures, what they mean, and the arithmetic with its formula."""

from __future__ import annotations

from millstream.ops.capacity import Capacity, Fleet
from millstream.ops.probe import FACTOR, Overload
from millstream.ops.search import ms

DISTURBED = 0.25


def render(capacity: Capacity) -> str:
    """The report as text, some lines of at most 120 columns or so; without a final line end."""
    rows = f"{capacity.rows} row{'s' * (capacity.rows != 1)}"
    lines = [f"{capacity.model} {capacity.version}, requests of {rows}: {capacity.source}"]
    goal = f"p99 <= {ms(capacity.goal_ms)}"
    if capacity.rate:
        lines.append(
            f"holds       {_rate(capacity.rate)} requests/s at {goal}: p50 {ms(capacity.p50_ms)}, "
            f"p99 {ms(capacity.p99_ms)} (the worst window {ms(capacity.p99_worst_ms)})"
        )
    else:
        lines.append(f"holds       no rate at {goal}")
    lines.append(
        f"            one connection alone {ms(capacity.alone_ms)}; {capacity.connections} that never pause get "
        f"{_rate(capacity.peak)} answers/s"
    )
    spent = [f"{capacity.cpu_us:.0f} us of CPU" if capacity.cpu_us is not None else ""]
    spent.append(f"{capacity.joules:.3g} J, all of the machine's" if capacity.joules is not None else "")
    spent = [one for one in spent if one]
    if spent:
        lines.append(f"            an answer takes {' and '.join(spent)}")
    if capacity.seen.memory_mb is not None:
        lines[-1] += f"; the server has {capacity.seen.memory_mb:.0f} MB in memory"
    lines.append(f"limited by  {capacity.limit.what}: {capacity.limit.figure}")
    lines.append(f"            to change it: {capacity.limit.change}")
    lines += _overload(capacity.overload)
    if capacity.fleet is not None:
        lines += _fleet(capacity.fleet)
    if capacity.others >= DISTURBED:
        lines.append(
            f"beware      other programs used {capacity.others:.2f} of {capacity.seen.cores} cores meanwhile; "
            "a quiet machine holds more"
        )
    return "\n".join(lines)


def _overload(overload: Overload) -> list[str]:
    refused = sum(overload.refused.values())
    by_status = ", ".join(f"{count} x {status}" for status, count in overload.refused.items())
    return [
        f"at {FACTOR:g}x      {overload.verdict}: {overload.why}",
        f"            {overload.factor:.1f} times the rate was sent; {_rate(overload.goodput)} answers/s = "
        f"{overload.share:.0%} of the peak, p99 {ms(overload.p99_ms)}",
        f"            {refused} refused{f' ({by_status})' if refused else ''}, {overload.broken} cut off; "
        f"right after, 90% of the rate above {'hold again' if overload.recovers else 'do NOT hold'}",
    ]


def _fleet(fleet: Fleet) -> list[str]:
    cost = fleet.machine_cost_per_hour
    lines = []
    if fleet.requests_per_day:
        lines += [
            f"machines    {fleet.requests_per_day:,.0f} requests a day / 86,400 s = {fleet.average:,.1f}/s on average, "
            f"x {fleet.peak_factor:g} = {fleet.peak:,.1f}/s at the peak",
            f"            ceil({fleet.peak:,.1f} / ({fleet.rate:,.1f} x {fleet.headroom:g} headroom)) + {fleet.spare} "
            f"spare = {fleet.machines} machines",
        ]
        if cost:
            lines.append(
                f"            {fleet.machines} x {cost:g} an hour x 24 h = {fleet.cost_per_day:,.2f} a day = "
                f"{fleet.cost_per_million:,.4g} per million answers"
            )
    label = "machines    " if not lines else "            "
    full = f"{label}one machine kept at {fleet.headroom:.0%} all day answers {fleet.answers_per_day:,.0f}"
    return [*lines, full + (f", {fleet.full_cost_per_million:,.4g} per million" if cost else "")]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
