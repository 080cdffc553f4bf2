"""`recommend`: ask a running service for a list, as a person reads it; or make lists for many users into a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from millstream.cli.verbs import Verbs, asyncio_run, count_of, say
from millstream.errors import BadInput

URL = "http://127.0.0.1:8000"


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    made = verbs.add("recommend", _recommend, "ask a running service for a list, or make lists for many users")
    made.add_argument("--user", default="", help="who it is for")
    made.add_argument("--visitor", default="", help="somebody without an account, in place of a user")
    made.add_argument("--similar", default="", metavar="ITEM", help="items like this one")
    made.add_argument("--tenant", default="", help="whose list, where there are tenants")
    made.add_argument("--placement", default="", help="where the list will stand (default: the first one configured)")
    made.add_argument("-n", "--n", type=count_of, default=0, help="items on the page (default: the placement's)")
    made.add_argument("--exclude", action="append", default=[], metavar="ITEM", help="must not come; may be repeated")
    made.add_argument(
        "--context", action="append", default=[], metavar="NAME=VALUE", help="of the moment; may be repeated"
    )
    made.add_argument("--explain", action="store_true", help="say how each item came to its place")
    made.add_argument("--url", default=URL, help=f"of the service (default: {URL})")
    made.add_argument("-c", "--config", type=Path, help="of lists for many: millstream.toml of the installation")
    made.add_argument("--users", metavar="FILE", help="lists for these, one a line; or `all`: for everybody known")
    made.add_argument("--out", type=Path, metavar="FILE", help="where such lists are written, as Parquet")
    made.add_argument("--key-file", type=Path, metavar="FILE", help="holds the key, where the service wants one")


def _recommend(args: argparse.Namespace) -> object:
    return _batch(args) if args.users or args.out or args.config else _asked(args)


def _batch(args: argparse.Namespace) -> object:
    """Lists for many, made here: no service is needed."""
    if not (args.users and args.out and args.config):
        raise BadInput("lists for many users need all of -c millstream.toml, --users FILE (or all) and --out FILE")
    one = [name for name in ("user", "visitor", "similar", "exclude", "context", "explain") if getattr(args, name)]
    if one:
        raise BadInput(f"--{one[0]} is of one list; leave it out beside --users")
    from millstream.app import batch

    users = None if args.users == "all" else Path(args.users)
    return asyncio_run(batch.run(args.config, users, args.out, args.placement, args.n, say, args.tenant))


def _asked(args: argparse.Namespace) -> object:
    from millstream.client import Client, Wish

    wish: Wish = {}
    for name in ("visitor", "placement", "n", "exclude", "explain"):
        if value := getattr(args, name):
            wish[name] = value
    if args.context:
        wish["context"] = dict(_pair(text) for text in args.context)
    key = args.key_file.read_text().strip() if args.key_file else ""
    with Client(args.url, key, tenant=args.tenant) as client:
        alike = args.similar
        found = client.similar(alike, args.user, **wish) if alike else client.recommend(args.user, **wish)
    if args.json:
        return found
    rows: list[dict[str, object]] = []
    for place, slot in enumerate(found.items, 1):
        why = slot.why or {}
        said: dict[str, object] = {
            "": f"{place:3}",
            "item": slot.item,
            "score": f"{slot.score:.4f}",
            "because": " ".join(slot.reasons),
        }
        if why:
            said["found by"] = ", ".join(why["recall"])
            said |= {name: f"{value:.4f}" for name, value in why["outputs"].items()}
        rows.append(said)
    return rows


def _pair(text: str) -> tuple[str, str | float]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise BadInput(f"--context {text!r}: write NAME=VALUE")
    try:
        return name, float(value)
    except ValueError:
        return name, value
