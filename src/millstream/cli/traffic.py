"""`traffic`: who gets which version."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.cli.verbs import Verbs, bounded, count_of, from_zero

if TYPE_CHECKING:
    from millstream.models.policy import Guard
    from millstream.models.traffic import Move

HISTORY = 20
_share = bounded(float, 0.0, 1.0, "a share from 0 to 1")
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
    history = verb("history", _history, "the last policies: which, who, when and why")
    history.add_argument("-n", type=count_of, default=HISTORY, help=f"how many (default: {HISTORY})")
    moves = {
        name: verb(name, _move, help)
        for name, help in (
            ("promote", "make a version live"),
            ("rollback", "make the version before it live and hold it there"),
            ("split", "share traffic between versions: 12=0.9 13=0.1"),
            ("canary", "give a version a share of the traffic"),
            ("shadow", "score with versions whose answers nobody gets"),
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
    _add_canary(moves["canary"])
    _add_comparison(traffic)


def _add_canary(canary: argparse.ArgumentParser) -> None:
    canary.add_argument("version")
    canary.add_argument("--share", type=_share, default=0.05, help="of the traffic, 0 ends it (default: 0.05)")
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
    from millstream.watch.canary.guard import last_word

    repository = Repository.open(args.path)
    shown: dict[str, Any] = msgspec.to_builtins(repository.policy(args.model))
    if (word := last_word(repository, args.model)) is not None:
        shown["guard"] = f"canary {word.canary}: {word.said}"
    return shown


def _history(args: argparse.Namespace) -> object:
    from millstream.models.repository import Repository

    return Repository.open(args.path).history(args.model, args.n)


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
    if args.json:
        return found
    lines = [line for shadow in found["shadows"] for line in _compared(found, shadow)]
    return lines or [f"{args.model} has no shadow"]


def _compared(found: dict[str, Any], shadow: dict[str, Any]) -> list[str]:
    """What is known of one shadow, for a person."""
    share = f" ({shadow['differing'] / shadow['compared']:.1%})" if shadow["compared"] else ""
    lines = [
        f"{found['model']} {shadow['version']} beside live {found['live']}: {shadow['copies']} copies, "
        f"{shadow['lost']} lost, {shadow['compared']} compared, {shadow['differing']} differing{share}; memory live "
        f"{shadow['live_memory_bytes'] / 2**20:.0f} MB, shadow {shadow['memory_bytes'] / 2**20:.0f} MB"
    ]
    if shadow.get("problem"):
        lines.append(f"  problem: {shadow['problem']}")
    if seen := shadow["seen"]:
        lines.append(
            f"  process {found['process']} saw: {seen['compared']} compared, {seen['skipped']} skipped, "
            f"{seen['failed']} failed; median time live {seen['live_ms']:.2f} ms, shadow {seen['shadow_ms']:.2f} ms"
        )
        lines += [f"  {name}: {_output(one)}" for name, one in seen["outputs"].items()]
    return lines


def _output(one: dict[str, Any]) -> str:
    """How one output differs."""
    if one["kind"] == "text":
        rate = one["character_error_rate"]
        return f"text, {one['exact']} of {one['texts']} the same, character error rate {rate:.4f}"
    rank = "" if one["rank_correlation"] is None else f", rank correlation {one['rank_correlation']:.4f}"
    return (
        f"numeric, {one['differing'] / max(1, one['elements']):.1%} of the elements differ, "
        f"delta {one['delta_mean_abs']:.4g} on average, {one['delta_max_abs']:.4g} at most{rank}"
    )
