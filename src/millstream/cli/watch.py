"""`watch`: is it well; rules tried on what was recorded; what a rule did, undone."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.verbs import Verbs, count_of, moment

if TYPE_CHECKING:
    from millstream.types import Alert


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    status = verbs.add("watch", _status, "is it well: alerts that fire now, and rules")
    status.add_argument("-c", "--config", type=Path, help="millstream.toml of the installation")
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
    undo = watch.add("undo", _undo, "take back what an alert's action did")
    undo.add_argument("alert", help="its id")
    undo.add_argument("--who", default="command line", help="recorded with the change")
    undo.add_argument("--why", default="", help="recorded with the change")
    for one in (alerts, rules, replay, undo):
        one.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")


def _status(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.watching import wellbeing
    from millstream.errors import BadInput

    if args.config is None:
        raise BadInput("say of which installation: millstream watch -c millstream.toml")
    with Installation.open(args.config) as installation:
        found = wellbeing(installation)
    return found if args.json else [found.said, *_lines(found.firing)]


def _alerts(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.watching import last_alerts

    with Installation.open(args.config) as installation:
        found = last_alerts(installation, args.n)
    return {"alerts": found} if args.json else list(_lines(found))


def _rules(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation

    with Installation.open(args.config) as installation:
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
    from millstream.app.installation import Installation
    from millstream.app.watching import replay, rules_of

    with Installation.open(args.config) as installation:
        rules = rules_of(args.rules) if args.rules else installation.settings.watch.in_force
        found = replay(installation, rules, args.since, args.until)
    if args.json:
        return {"alerts": found}
    return [*_lines(found), f"{sum(one.state == 'firing' for one in found)} alerts of {len(rules)} rules"]


def _undo(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.watching import alert_of
    from millstream.watch.alarms.action import undo

    with Installation.open(args.config) as installation:
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
