"""The rules as Prometheus's own: an expression a rule, over what /metrics has, and a file of alerting rules.

Rules of the room:
- The same tables make both: rule.py's rules over quantities.py. Counts become `increase` over the rule's window, levels
  means over it, groups of labels `by`; `for_s` is `for` and, as it is resolved, `keep_firing_for` (Prometheus 2.42).
- What differs: /metrics sums the processes of a machine, so `server` is a scrape's `instance`; windows are a minute at
  least, as a scrape comes every 15 s or so; a counter's first value is not an increase.
- Servers of one machine beside each other are only seen by role `watch`: a rule against peers holds there, too, where
  that role says that it fires (`millstream_alerts_firing`).
- That role `watch` itself goes on is said by a rule that only this file has, `watch-silent`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from millstream.watch.alarms.rule import Rule
from millstream.watch.alarms.state import LEAST, PEERS, SURE, spoken
from millstream.watch.quantities import QUANTITIES, Quantity

WINDOW_MIN_S: Final = 60.0
EVALUATED_S: Final = 15
LEVEL: Final = "millstream_watch_level"
COUNT: Final = "millstream_watch_count_total"
FIRING: Final = "millstream_alerts_firing"
SILENT: Final = "watch-silent"
_STRATA: Final = ("model", "version")
"""What servers serve different mixes of."""


def rule_file(rules: Mapping[str, Rule]) -> str:
    """YAML of a file for `rule_files` of prometheus.yml."""
    lines = [
        "# Written by `millstream watch export --prometheus`: change the rules there, and write it again.",
        "groups:",
        "  - name: millstream",
        f"    interval: {EVALUATED_S}s",
        "    rules:",
    ]
    for name, rule in rules.items():
        lines += _alert(name, expression(name, rule), rule.for_s, rule.severity, _summary(rule), rule.runbook)
    silent = "absent(millstream_watch_seconds_count) or increase(millstream_watch_seconds_count[3m]) == 0"
    said = "role watch has looked at nothing for minutes: the other rules of Millstream may be blind"
    lines += _alert(SILENT, silent, 60.0, "page", said, f"docs/runbooks.md#{SILENT}")
    return "\n".join(lines) + "\n"


def expression(name: str, rule: Rule) -> str:
    """PromQL that has a series for each group of which the rule holds."""
    held = _held(rule, rule.over_s)
    if rule.also_s:
        held = f"({held}) and ({_beyond(rule, value(rule, rule.also_s))})"
    if rule.against == "peers":
        held = f"({held}) or (max by (rule) ({_selector(FIRING, {'rule': name})}) > 0)"
    return held


def value(rule: Rule, over_s: float = 0.0) -> str:
    """PromQL of what the rule compares with its limit, by group, over its window or another one."""
    window = _window(over_s or rule.over_s)
    if rule.against == "peers":
        return _beside_peers(rule, window)[0]
    if rule.against == "past":
        return _beside_past(rule, window)[0]
    return _value(rule, window, "")


def series(quantity: Quantity, where: Mapping[str, str], window: str, offset: str = "") -> str:
    """PromQL of a quantity with all its labels: a count's increase, or a level's mean, over `window`."""
    if not quantity.metric:
        named = {"quantity": quantity.name, **where}
        if quantity.kind == "count":
            return f"increase({_selector(COUNT, named)}[{window}]{offset})"
        return f"avg_over_time({_selector(LEVEL, named)}[{window}]{offset})"
    metric = quantity.metric

    def increase(name: str, **more: str) -> str:
        return f"increase({_selector(name, where, {**quantity.where, **more})}[{window}]{offset})"

    if quantity.take == "quantile":
        return _quantile(quantity, where, window, offset)
    if quantity.take == "over":
        return (
            f"({increase(f'{metric}_count')} - ignoring (le) {increase(f'{metric}_bucket', le=_edge(quantity.edge))})"
        )
    if quantity.take == "sum":
        return increase(f"{metric}_sum")
    if quantity.kind == "count":
        return increase(metric if metric.endswith("_total") else f"{metric}_count")  # of a histogram
    return f"avg_over_time({_selector(metric, where, quantity.where)}[{window}]{offset})"


def aggregated(quantity: Quantity, by: Sequence[str], series: str, worst: str = "max") -> str:
    """The counts of a group added up; of levels the `worst` ("max" or "min")."""
    how = "sum" if quantity.kind == "count" else worst
    return f"{how} by ({', '.join(by)}) ({series})" if by else f"{how} ({series})"


def quoted(text: str) -> str:
    """A YAML scalar of one line."""
    return json.dumps(text) if not text.isprintable() else "'" + text.replace("'", "''") + "'"


def _summary(rule: Rule) -> str:
    of = ", ".join(f"{label} {{{{ $labels.{_label(rule, label)} }}}}" for label in rule.by)
    said = spoken(replace(rule, for_s=0.0, least=0.0, action=""))
    told = _plain(f"{rule.says}: {said}" if rule.says else said)
    return (f"{of}: " if of else "") + told + '; it is {{ $value | printf "%.4g" }}'


def _held(rule: Rule, over_s: float) -> str:
    window = _window(over_s)
    held = [f"({_beyond(rule, value(rule, over_s))})"]
    if rule.matters:
        held.append(f"({_itself(rule, window)} >= {_number(rule.matters)})")
    if QUANTITIES[rule.quantity].kind == "level":
        return " and ".join(held) if len(held) > 1 else _beyond(rule, value(rule, over_s))
    if rule.against:
        _, sure = _beside_peers(rule, window) if rule.against == "peers" else _beside_past(rule, window)
        held += [] if QUANTITIES[rule.quantity].unit else [sure]  # chance parts events, not seconds
    least = max(rule.least, LEAST) if rule.against == "peers" and rule.of else rule.least
    if least:
        by = _by(rule) if rule.against == "peers" else None
        now, before = (_aggregate(rule, rule.of or rule.quantity, window, offset, by) for offset in ("", " offset 1d"))
        held.append(f"({now} >= {_number(least)})")
        if rule.against == "past":
            held[-1] = f"({now} >= {_number(least)} {'and' if rule.of else 'or'} {before} >= {_number(least)})"
    return " and ".join(held) if len(held) > 1 else held[0][1:-1]


def _beyond(rule: Rule, value: str) -> str:
    return f"({value}) {'>' if rule.above is not None else '<'} {_number(rule.limit)}"


def _itself(rule: Rule, window: str) -> str:
    """What is compared with peers or the past, alone."""
    by = _by(rule) if rule.against == "peers" else None
    upper = _aggregate(rule, rule.quantity, window, "", by)
    return f"{upper} / ({_aggregate(rule, rule.of, window, '', by)} > 0)" if rule.of else upper


def _value(rule: Rule, window: str, offset: str, filled: bool = False) -> str:
    if not rule.of:
        return _aggregate(rule, rule.quantity, window, offset)
    filled = filled or rule.below is not None
    upper = _filled(rule, window, offset, None) if filled else _aggregate(rule, rule.quantity, window, offset)
    return f"{upper} / ({_aggregate(rule, rule.of, window, offset)} > 0)"


def _filled(rule: Rule, window: str, offset: str, by: Sequence[str] | None) -> str:
    """What the rule counts, and 0 where it has no series but what it is divided by has one."""
    upper = _aggregate(rule, rule.quantity, window, offset, by)
    return f"(({upper}) or ({_aggregate(rule, rule.of, window, offset, by)}) * 0)" if rule.of else f"({upper})"


def _aggregate(rule: Rule, name: str, window: str, offset: str = "", by: Sequence[str] | None = None) -> str:
    quantity = QUANTITIES[name]
    labels = [_label(rule, label) for label in rule.by] if by is None else by
    where = {_label(rule, label): value for label, value in rule.where.items()}
    worst = "max" if rule.above is not None else "min"
    return aggregated(quantity, labels, series(quantity, where, window, offset), worst)


def _beside_past(rule: Rule, window: str) -> tuple[str, str]:
    """(the multiple, that chance does not explain it), as state.py has them."""
    now, before = (_value(rule, window, offset, rule.of != "") for offset in ("", " offset 1d"))
    times = f"({now}) / ({before})" if rule.of else f"({now}) / (({before}) > 0)"
    if not rule.of:
        both = f"({now} + {before})"
        return times, f"(abs({now} - {both} / 2) - 0.5 > {SURE:g} * sqrt({both} / 4))"
    (count, number), (counts, numbers) = (
        (_filled(rule, window, offset, None), _aggregate(rule, rule.of, window, offset))
        for offset in ("", " offset 1d")
    )
    both, share = f"({count} + {counts})", f"({number} / ({number} + {numbers}))"
    varies = f"{both} * {share} * (1 - {share})"
    return times, f"(abs({count} - {both} * {share}) - 0.5 > {SURE:g} * sqrt({varies}))"


def _beside_peers(rule: Rule, window: str) -> tuple[str, str]:
    """As `_beside_past`, but that the median is of all servers, and a level has no chance."""
    by = _by(rule)
    if QUANTITIES[rule.quantity].kind == "level":
        one, others = _aggregate(rule, rule.quantity, window, "", by), ", ".join(by[1:])
        median = f"quantile by ({others}) (0.5, {one})" if others else f"quantile (0.5, {one})"
        there = f"count by ({others}) ({one})" if others else f"count ({one})"
        return f"({one}) / on ({others}) group_left () (({median}) > 0 and ({there}) > {PEERS})", ""
    strata = ("instance", *dict.fromkeys((*_STRATA, *by[1:])))
    count = _filled(rule, window, "", strata)
    number = f"({_aggregate(rule, rule.of, window, '', strata)})" if rule.of else f"({count} * 0 + 1)"
    alike, group = ", ".join(strata[1:]), ", ".join(by)
    on = f"on ({alike}) group_left ()"
    usual = f"quantile by ({alike}) (0.5, {count} / ({number} > 0))"
    there = f"count by ({alike}) ({number} > 0)"
    expected = f"{number} * {on} ({usual} and {there} > {PEERS})"
    share = f"({number} / {on} sum by ({alike}) ({number}))"
    more = f"sum by ({group}) ({count} - {share} * {on} sum by ({alike}) ({count}))"
    varies = f"sum by ({group}) ({share} * (1 - {share}) * {on} sum by ({alike}) ({count}))"
    times = f"sum by ({group}) ({count}) / sum by ({group}) ({expected})"
    return times, f"(abs({more}) - 0.5 > {SURE:g} * sqrt({varies}))"


def _by(rule: Rule) -> tuple[str, ...]:
    """The labels of a group where servers stand beside each other: the server first."""
    return ("instance", *(label for label in rule.by if label != "server"))


def _quantile(quantity: Quantity, where: Mapping[str, str], window: str, offset: str) -> str:
    """As the monitor has it: of the last minute, and the mean of that over the window. A minute without a request has
    no quantile."""
    buckets = _selector(f"{quantity.metric}_bucket", where, quantity.where)
    if window == _window(WINDOW_MIN_S):
        return f"(histogram_quantile({quantity.q:g}, rate({buckets}[1m]{offset})) >= 0)"
    minutes = f"(histogram_quantile({quantity.q:g}, rate({buckets}[1m])) >= 0)"
    return f"avg_over_time({minutes}[{window}:{EVALUATED_S}s]{offset})"


def _label(rule: Rule, label: str) -> str:
    """What /metrics and a scrape call it: readings of role watch keep their `server`."""
    return "instance" if label == "server" and QUANTITIES[rule.quantity].metric else label


def _selector(metric: str, equal: Mapping[str, str], like: Mapping[str, str] | None = None) -> str:
    said = [f"{label}={json.dumps(value, ensure_ascii=False)}" for label, value in equal.items()]
    said += [f"{label}=~{json.dumps(pattern, ensure_ascii=False)}" for label, pattern in (like or {}).items()]
    return f"{metric}{{{','.join(said)}}}" if said else metric


def _edge(edge: float) -> str:
    """A bucket as a release of Prometheus writes it: 1 or 1.0."""
    return re.escape(f"{edge:g}") + r"(\.0)?" if float(edge).is_integer() else re.escape(f"{edge:g}")


def _window(seconds: float) -> str:
    seconds = max(WINDOW_MIN_S, math.ceil(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _number(number: float) -> str:
    return f"{number:.10g}"


def _plain(text: str) -> str:
    """Text that Prometheus's templates leave as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _alert(name: str, expression: str, for_s: float, severity: str, summary: str, runbook: str) -> list[str]:
    lines = [f"      - alert: {quoted(name)}", f"        expr: {quoted(expression)}"]
    if for_s:
        lines += [f"        for: {math.ceil(for_s)}s", f"        keep_firing_for: {math.ceil(for_s)}s"]
    lines += ["        labels:", f"          severity: {severity}", "        annotations:"]
    lines += [f"          summary: {quoted(summary)}"]
    return lines + ([f"          runbook: {quoted(runbook)}"] if runbook else [])
