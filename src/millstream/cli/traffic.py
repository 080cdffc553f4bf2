"""`traffic`: who gets which version."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.cli.verbs import Verbs, count_of, from_zero

if TYPE_CHECKING:
    from millstream.models.policy import Guard
    from millstream.models.traffic import Move

_GUARD = ("errors", "p99", "drift", "requests_min", "requests")


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    traffic = Verbs(verbs.add("traffic", _show, "who gets which version"))

    def verb(name: str, run: Callable[[argparse.Namespace], object], help: str) -> argparse.ArgumentParser:
        made = traffic.add(name, run, help)
        made.add_argument("path", type=Path, help="the repository")
        made.add_argument("model")
        return made

    verb("show", _show, "the policy of a model, and what the guard of its canary said last")
    verb("history", _history, "every policy there was: who, when it was which, and why")
    moves = {
        name: verb(name, _move, help)
        for name, help in (
            ("promote", "make a version live"),
            ("rollback", "make the version before it live and hold it there"),
            ("split", "share traffic between versions: 12=0.9 13=0.1"),
            ("canary", "give a version a share of the traffic"),
            ("shadow", "score with versions whose answers nobody gets"),
            ("learning", "pause or resume learning"),
        )
    }
    for one in moves.values():
        one.add_argument("--who", default="command line", help="recorded with the change")
        one.add_argument("--why", default="", help="recorded with the change")
        one.add_argument("--policy", type=int, metavar="N", help="only if the policy is still number N")
    moves["promote"].add_argument("version")
    moves["rollback"].add_argument("--to", default="", help="the version to go back to (default: the one before)")
    moves["split"].add_argument("shares", nargs="+", help="VERSION=WEIGHT ...")
    moves["split"].add_argument("--sticky-by", choices=("user", "request"), default="user")
    moves["shadow"].add_argument("versions", nargs="*", help="none: no shadow")
    moves["learning"].add_argument("state", choices=("run", "paused"))
    _add_canary(moves["canary"])
    _add_comparison(traffic)


def _add_canary(canary: argparse.ArgumentParser) -> None:
    canary.add_argument("version")
    canary.add_argument("--share", type=float, default=0.05, help="of the traffic, 0 ends it (default: 0.05)")
    canary.add_argument("--guard", action="store_true", help="take it back, or promote it, by itself")
    canary.add_argument(
        "--errors", type=from_zero, metavar="X", help="guard: most additional share of failures (default: 0.005)"
    )
    canary.add_argument("--p99", type=from_zero, metavar="X", help="guard: at most so many times live's (default: 1.5)")
    canary.add_argument(
        "--drift", type=from_zero, metavar="X", help="guard: largest distance of the scores, 0 to 1 (default: 0.1)"
    )
    canary.add_argument(
        "--requests-min", type=count_of, metavar="N", help="guard: nothing is decided before (default: 200)"
    )
    canary.add_argument(
        "--requests", type=count_of, metavar="N", help="guard: one that is not worse becomes live (default: 10000)"
    )
    canary.add_argument("--no-promote", action="store_true", help="guard: leave it to me to make it live")


def _add_comparison(traffic: Verbs) -> None:
    comparison = traffic.add("comparison", _comparison, "what shadow versions say, from a running service")
    comparison.add_argument("model")
    comparison.add_argument("--url", default="http://127.0.0.1:8000", help="of the service (default: this machine's)")
    comparison.add_argument("--key-file", type=Path, metavar="FILE", help="holds the key, where the service wants one")


def _show(args: argparse.Namespace) -> object:
    import msgspec

    from millstream.models.repository import Repository
    from millstream.watch.guard import last_word

    repository = Repository.open(args.path)
    shown: dict[str, Any] = msgspec.to_builtins(repository.policy(args.model))
    if (word := last_word(repository, args.model)) is not None:
        shown["guard"] = f"canary {word.canary}: {word.said}"
    return shown


def _history(args: argparse.Namespace) -> object:
    from millstream.models.repository import Repository

    return Repository.open(args.path).history(args.model)


def _move(args: argparse.Namespace) -> object:
    from millstream.models import traffic
    from millstream.models.repository import Repository

    said: dict[str, Any] = {"who": args.who, "why": args.why, "policy": args.policy}
    make: dict[str, Callable[[], Move]] = {
        "promote": lambda: traffic.Promote(version=args.version, **said),
        "rollback": lambda: traffic.RollBack(to=args.to, **said),
        "split": lambda: traffic.Split(shares=traffic.weights(args.shares), sticky_by=args.sticky_by, **said),
        "canary": lambda: traffic.TryOut(version=args.version, share=args.share, guard=_guard(args), **said),
        "shadow": lambda: traffic.Copy(versions=tuple(args.versions), **said),
        "learning": lambda: traffic.Learning(state=args.state, **said),
    }
    return traffic.make(Repository.open(args.path), args.model, args.verb, make[args.verb]())


def _guard(args: argparse.Namespace) -> Guard | None:
    """The guard that was asked for: by `--guard`, or by one of its bounds."""
    from millstream.errors import BadInput
    from millstream.models.policy import Guard

    bounds = {name: getattr(args, name) for name in _GUARD if getattr(args, name) is not None}
    if not (args.guard or bounds or args.no_promote):
        return None
    try:
        return Guard(**bounds, promote=not args.no_promote)
    except ValueError as error:
        raise BadInput(str(error)) from None


def _comparison(args: argparse.Namespace) -> object:
    from millstream.client import Client

    key = args.key_file.read_text().strip() if args.key_file else ""
    with Client(args.url, key) as client:
        found = client.comparison(args.model)
    return found if args.json else found["shadows"] or [f"{args.model} has no shadow"]
