"""`watch`: is it well; rules tried on what was recorded; what a rule did, undone."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.verbs import Verbs, count_of, moment

if TYPE_CHECKING:
    from millstream.app.installation import Installation
    from millstream.types import Alert


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    status = verbs.add("watch", _status, "is it well: alerts that fire now, and rules")
    status.add_argument("-c", "--config", type=Path, default=None, help="millstream.toml of the installation")
    watch = Verbs(status, required=False)
    alerts = watch.add("alerts", _alerts, "the last alerts, newest last")
    alerts.add_argument("-n", type=count_of, default=20, help="how many (default: 20)")
    rules = watch.add("rules", _rules, "the rules that are in force")
    watch.add("quantities", _quantities, "what a rule can look at")
    replay = watch.add("replay", _replay, "the alerts that rules would have made of what was recorded")
    replay.add_argument(
        "--rules", type=Path, metavar="FILE", help="TOML with [watch.rules.NAME]; default: as configured"
    )
    replay.add_argument("--since", type=moment, default=float("-inf"), metavar="TIME", help="only alerts from then on")
    replay.add_argument("--until", type=moment, default=float("inf"), metavar="TIME", help="only alerts up to then")
    levels = watch.add("levels", _levels, "what was promised of each model, and what is left of its error budget")
    triangle = watch.add("triangle", _triangle, "latency, throughput and resources of each version, and its cost")
    export = watch.add("export", _export, "the rules for Prometheus, and a dashboard for Grafana")
    export.add_argument("--prometheus", type=Path, metavar="FILE", help="write a file for its `rule_files`")
    export.add_argument("--grafana", type=Path, metavar="FILE", help="write a dashboard to import")
    undo = watch.add("undo", _undo, "take back what an alert's action did")
    undo.add_argument("alert", help="its id")
    undo.add_argument("--who", default="command line", help="recorded with the change")
    undo.add_argument("--why", default="", help="recorded with the change")
    for one in (alerts, rules, replay, levels, triangle, export, undo):
        one.add_argument(
            "-c", "--config", type=Path, default=argparse.SUPPRESS, help="millstream.toml of the installation"
        )  # that of `watch` counts where this one is not said


def _opened(args: argparse.Namespace) -> Installation:
    from millstream.app.installation import Installation
    from millstream.errors import BadInput

    if args.config is None:
        raise BadInput("say of which installation: millstream watch -c millstream.toml ...")
    return Installation.open(args.config)


def _status(args: argparse.Namespace) -> object:
    from millstream.app.watching import wellbeing

    with _opened(args) as installation:
        found = wellbeing(installation)
    return found if args.json else [found.said, *_lines(found.firing)]


def _alerts(args: argparse.Namespace) -> object:
    from millstream.app.watching import last_alerts

    with _opened(args) as installation:
        found = last_alerts(installation, args.n)
    return {"alerts": found} if args.json else list(_lines(found))


def _rules(args: argparse.Namespace) -> object:

    with _opened(args) as installation:
        rules = installation.settings.watch.in_force
    if args.json:
        return rules
    return [f"{name:18} {one.severity:6} {_what(one)}" for name, one in rules.items()]


def _quantities(args: argparse.Namespace) -> object:
    import millstream.app.watching  # noqa: F401  (monitors name theirs)
    from millstream.watch.quantities import QUANTITIES

    if args.json:
        return QUANTITIES
    return [f"{one.name:22} {one.kind:5} {one.help}" for one in QUANTITIES.values()]


def _replay(args: argparse.Namespace) -> object:
    from millstream.app.watching import replay, rules_of

    with _opened(args) as installation:
        rules = rules_of(args.rules) if args.rules else installation.settings.watch.in_force
        found = replay(installation, rules, args.since, args.until)
    if args.json:
        return {"alerts": found}
    return [*_lines(found), f"{sum(one.state == 'firing' for one in found)} alerts of {len(rules)} rules"]


def _levels(args: argparse.Namespace) -> object:
    from millstream.app.watching import budgets

    with _opened(args) as installation:
        found = budgets(installation)
    if args.json:
        return {"budgets": found}
    head = f"{'model':20} {'objective':10} {'promised':>9} {'kept':>9} {'budget left':>12} {'burn, 1 h':>10}"
    told = [
        f"{one.model:20} {one.objective:10} {one.goal:9.2%} {one.kept:9.3%} {one.left:12.1%} {one.burn:10.2f}"
        for one in found
    ]
    return [head, *told] if told else "no request was counted yet; `millstream up` runs the role watch"


def _triangle(args: argparse.Namespace) -> object:
    from millstream.meter import Meter
    from millstream.watch.triangle import triangle

    with _opened(args) as installation:
        watch, meters = installation.settings.watch, Meter.reading(installation.folder / "state" / "meters")
        found = triangle(meters.total(), watch.core_hour_price, watch.gpu_hour_price)
    if args.json:
        return {"versions": found}
    columns = ("answers", "p50 ms", "p99 ms", "a core-s", "core-s", "MB", "GPU MB", "a million")
    told = [f"{'model':16} {'version':>8} " + " ".join(f"{name:>10}" for name in columns)]
    for one in found:
        numbers = (
            one.answers, one.p50_ms, one.p99_ms, one.answers_a_core_s, one.core_s, one.memory_bytes / 2**20,
            one.device_bytes / 2**20, one.cost_per_million,
        )  # fmt: skip
        told.append(f"{one.model:16} {one.version:>8} " + " ".join(f"{number:10,.4g}" for number in numbers))
    return told


def _export(args: argparse.Namespace) -> object:
    from millstream.errors import BadInput
    from millstream.store.blob import write_atomic
    from millstream.watch.alarms.grafana import dashboard
    from millstream.watch.alarms.prometheus import rule_file

    if not (args.prometheus or args.grafana):
        raise BadInput("say what to write: --prometheus rules.yml, --grafana dashboard.json")
    with _opened(args) as installation:
        rules = installation.settings.watch.in_force
    import millstream.app.watching  # noqa: F401  (monitors name their quantities)

    for file, made in ((args.prometheus, rule_file), (args.grafana, dashboard)):
        if file:
            write_atomic(file, made(rules).encode())
    written = [str(file) for file in (args.prometheus, args.grafana) if file]
    return {"files": written} if args.json else f"{len(rules)} rules in {' and '.join(written)}"


def _undo(args: argparse.Namespace) -> object:
    from millstream.app.watching import alert_of
    from millstream.watch.alarms.action import undo

    with _opened(args) as installation:
        alert = alert_of(installation.log, args.alert, installation.settings.log.partition)
        policy = undo(installation.repository, alert, args.who, args.why)
    return policy if args.json else f"policy {policy.version} is as it was before {alert.rule} changed it"


def _lines(alerts: list[Alert]) -> Iterator[str]:
    for one in alerts:
        at = datetime.datetime.fromtimestamp(one.at, datetime.UTC).isoformat(timespec="seconds")
        yield f"{at}  {one.state:8} {one.severity:6} {one.rule}: {one.said}"
        if one.did and one.state == "firing":
            yield f"{'':22}did: {one.did}"
        if one.state == "firing":
            yield f"{'':22}id {one.id}" + (f"; see {one.runbook}" if one.runbook else "")


def _what(rule: object) -> str:
    from millstream.watch.alarms.rule import Rule
    from millstream.watch.alarms.state import spoken

    assert isinstance(rule, Rule)
    return spoken(rule)
