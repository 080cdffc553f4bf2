"""`traffic`: who gets which version."""

from __future__ import annotations

import argparse
from pathlib import Path

from millstream.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    traffic = Verbs(verbs.add("traffic", _traffic, "who gets which version"))
    of = {
        name: traffic.add(name, _traffic, help)
        for name, help in (
            ("show", "the policy of a model"),
            ("promote", "make a version live"),
            ("rollback", "make the version before it live and hold it there"),
            ("split", "share traffic between versions: 12=0.9 13=0.1"),
            ("canary", "give a version a share of the traffic"),
            ("shadow", "score with versions whose answers nobody gets"),
            ("learning", "pause or resume learning"),
        )
    }
    for one in of.values():
        one.add_argument("path", type=Path, help="the repository")
        one.add_argument("model")
        one.add_argument("--who", default="command line", help="recorded with the change")
        one.add_argument("--why", default="", help="recorded with the change")
    of["promote"].add_argument("version")
    of["rollback"].add_argument("--to", default="", help="the version to go back to (default: the one before)")
    of["split"].add_argument("shares", nargs="+", help="VERSION=WEIGHT ...")
    of["split"].add_argument("--sticky-by", choices=("user", "request"), default="user")
    of["canary"].add_argument("version")
    of["canary"].add_argument("--share", type=float, default=0.05, help="of the traffic (default: 0.05)")
    of["shadow"].add_argument("versions", nargs="*", help="none: no shadow")
    of["learning"].add_argument("state", choices=("run", "paused"))


def _traffic(args: argparse.Namespace) -> object:
    from millstream.models import traffic
    from millstream.models.repository import Repository

    repository = Repository.open(args.path)
    if args.verb == "show":
        return repository.policy(args.model)
    change = {
        "promote": lambda: traffic.promote(args.version),
        "rollback": lambda: traffic.roll_back(args.to or traffic.previous(repository, args.model)),
        "split": lambda: traffic.split(args.shares, args.sticky_by),
        "canary": lambda: traffic.canary(args.version, args.share),
        "shadow": lambda: traffic.shadow(args.versions),
        "learning": lambda: traffic.learning(args.state),
    }[args.verb]()
    return repository.change_policy(args.model, change, who=args.who, why=args.why or f"traffic {args.verb}")
