"""A Grafana dashboard of the same definitions: how it stands, what is promised, every quantity, and every rule beside
its limit.

Rules of the room:
- Expressions come from prometheus.py alone; the table below says which quantities stand together. Those that no panel
  names stand in the last row, so none is missing.
- The data source is a variable: the file has no address of anybody's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from millstream.watch.alarms.prometheus import COUNT, FIRING, aggregated, series, value
from millstream.watch.alarms.rule import Rule
from millstream.watch.quantities import QUANTITIES, Quantity

SCHEMA: Final = 38  # of Grafana 10
UID: Final = "millstream"
_WIDTH, _HEIGHT = 24, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_UNITS = {"seconds": "s", "bytes": "bytes"}


class Line(NamedTuple):
    """A quantity in a panel, by these labels; `of`: over another one."""

    quantity: str
    by: tuple[str, ...] = ()
    of: str = ""


class Shown(NamedTuple):
    """A panel: its title, and what it draws."""

    title: str
    lines: tuple[Line, ...]


_VERSION = ("model", "version")
ROWS: Final[dict[str, tuple[Shown, ...]]] = {
    "Traffic": (
        Shown("Requests a second", (Line("requests", _VERSION),)),
        Shown("Failed, refused, late, a second", tuple(Line(one, ("model",)) for one in ("failures", "busy", "late"))),
        Shown("HTTP answers a second", (Line("http_answers", ("status",)),)),
    ),
    "Latency": (
        Shown("Answer, p50 and p99", (Line("answer_p50", _VERSION), Line("answer_p99", _VERSION))),
        Shown("Queue, p99", (Line("queue_p99", _VERSION),)),
        Shown("Model, p50 and p99", (Line("compute_p50", _VERSION), Line("compute_p99", _VERSION))),
    ),
    "Resources": (
        Shown("CPU, cores", (Line("cpu_seconds", ("role",)),)),
        Shown("Memory of processes", (Line("memory_bytes", ("role",)),)),
        Shown("Rows a batch", (Line("rows", _VERSION, "batches"),)),
        Shown("Rows that wait", (Line("rows_waiting", ("model",)),)),
    ),
    "Lists": (
        Shown("Lists a second, and empty ones", (Line("lists"), Line("empty_lists"))),
        Shown("Recall paths late or failed", (Line("recall_late", ("path",)), Line("recall_failed", ("path",)))),
        Shown("Not scored by the live ranker, a second", (Line("rank_instead", ("by",)),)),
    ),
    "The loop": (
        Shown("Outcomes, examples and what is set aside, a second", tuple(
            Line(one) for one in ("outcomes", "examples", "learnt", "set_aside")
        )),
        Shown("Pushes a second", (Line("pushes"), Line("pushes_refused"), Line("deltas_applied", ("model",)))),
        Shown("From an outcome to an answer that contains it, p99", (Line("staleness_p99"),)),
        Shown("AUC, as labels come", (Line("learning_auc", ("scores", "slice")),)),
    ),
    "Features": (
        Shown("Age of rows", (Line("feature_age", ("set",)),)),
        Shown("Share of missing values", (Line("feature_nulls", ("set", "feature")),)),
    ),
}  # fmt: skip


def dashboard(rules: Mapping[str, Rule]) -> str:
    """JSON that Grafana imports."""
    panels = list(_placed(_rows(rules)))
    found = {
        "uid": UID,
        "title": "Millstream",
        "tags": ["millstream"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _rows(rules: Mapping[str, Rule]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    yield "Is it well", [_firing(), *_promised()]
    for title, panels in ROWS.items():
        yield title, [_shown(panel) for panel in panels]
    yield "Rules and their limits", [_limit(name, rule) for name, rule in rules.items()]
    shown = {line.quantity for panels in ROWS.values() for panel in panels for line in panel.lines}
    shown |= {line.of for panels in ROWS.values() for panel in panels for line in panel.lines}
    yield (
        "All else that is watched",
        [_shown(Shown(quantity.help, (Line(name),))) for name, quantity in QUANTITIES.items() if name not in shown],
    )


def _placed(rows: Iterator[tuple[str, list[dict[str, Any]]]]) -> Iterator[dict[str, Any]]:
    """Panels where they stand: rows of up to three."""
    at = 0
    for title, panels in rows:
        yield {"type": "row", "title": title, "gridPos": {"x": 0, "y": at, "w": _WIDTH, "h": 1}, "panels": []}
        at += 1
        across = 2 if len(panels) in (2, 4) else 3
        width = _WIDTH // across
        for number, panel in enumerate(panels):
            place = {"x": number % across * width, "y": at + number // across * _HEIGHT, "w": width, "h": _HEIGHT}
            yield panel | {"gridPos": place}
        at += -(-len(panels) // across) * _HEIGHT


def _firing() -> dict[str, Any]:
    steps = _steps("green", (1, "red"))
    panel = _panel(
        "Alerts that fire", [(f"max by (rule, severity) ({FIRING})", "{{severity}}: {{rule}}")], "none", steps
    )
    return panel | {"type": "stat", "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background"}}


def _promised() -> Iterator[dict[str, Any]]:
    def spent(window: str) -> str:
        missed, allowed = (
            f'sum by (model, objective) (increase({COUNT}{{quantity="{one}"}}[{window}]))'
            for one in ("missed", "allowed")
        )
        return f"{missed} / ({allowed} > 0)"

    of = "{{model}} {{objective}}"
    steps = _steps("green", (1, "orange"), (14.4, "red"))
    yield _panel("Burn of the error budget, 1 is as promised", [(spent("1h"), of)], "none", steps)
    steps = _steps("red", (0, "green"))
    yield _panel("Error budget left, of 30 days", [(f"1 - {spent('30d')}", of)], "percentunit", steps)


def _shown(panel: Shown) -> dict[str, Any]:
    targets, unit = [], "none"
    for line in panel.lines:
        quantity = QUANTITIES[line.quantity]
        unit = "percentunit" if line.of and line.of != "batches" else _UNITS.get(quantity.unit, "short")
        legend = " ".join(
            (*(f"{{{{{label}}}}}" for label in line.by), *([line.quantity] if len(panel.lines) > 1 else []))
        )
        targets.append((_drawn(line, quantity), legend or line.quantity))
        if quantity.kind == "count" and quantity.unit == "seconds":
            unit = "short"  # seconds a second: cores
    return _panel(panel.title, targets, unit)


def _drawn(line: Line, quantity: Quantity) -> str:
    now = aggregated(quantity, line.by, series(quantity, {}, "1m"))
    if line.of:
        return f"{now} / ({aggregated(QUANTITIES[line.of], line.by, series(QUANTITIES[line.of], {}, '1m'))} > 0)"
    return f"{now} / 60" if quantity.kind == "count" else now


def _limit(name: str, rule: Rule) -> dict[str, Any]:
    """What a rule compares, and its limit as a threshold."""
    legend = " ".join(f"{{{{{'instance' if label == 'server' else label}}}}}" for label in rule.by)
    bad, good = ("red", "green") if rule.above is not None else ("green", "red")
    steps = _steps(good, (rule.limit, bad))
    unit = "none" if rule.of or rule.against else _UNITS.get(QUANTITIES[rule.quantity].unit, "short")
    panel = _panel(f"{name}: {rule.says}" if rule.says else name, [(value(rule), legend or rule.quantity)], unit, steps)
    panel["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"] = {"mode": "line"}
    return panel | {"description": rule.runbook}


def _steps(first: str, *others: tuple[float, str]) -> list[dict[str, Any]]:
    """Colours from numbers on."""
    return [{"color": first, "value": None}, *({"color": color, "value": begin} for begin, color in others)]


def _panel(
    title: str, targets: Sequence[tuple[str, str]], unit: str, steps: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": unit, "custom": {"fillOpacity": 8, "showPoints": "never"}}
    if steps:
        defaults["thresholds"] = {"mode": "absolute", "steps": list(steps)}
    return {
        "type": "timeseries",
        "title": title[:1].upper() + title[1:],
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(65 + number), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(targets)
        ],
    }
