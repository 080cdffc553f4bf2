"""`keys`: who may use a service. A running one sees a change within a second."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millstream.cli.verbs import Verbs, positive
from millstream.errors import Conflict, Misconfigured


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    keys = Verbs(verbs.add("keys", _list, "the API keys of a service: their file holds digests, never keys"))
    new = keys.add("new", _new, "make a key, show it once, and write its digest down")
    new.add_argument("name", help="who it is for; said in logs and metrics")
    new.add_argument(
        "--may",
        nargs="+",
        required=True,
        metavar="MODEL:VERB",
        help='what it opens, such as "ranker:infer" "*:describe"; * is every model, or every verb',
    )
    new.add_argument("--rate", type=positive, default=0.0, help="requests a second at most (default: no bound)")
    new.add_argument(
        "--tenant", action="append", default=[], help="speaks for this tenant alone; may be repeated (default: for all)"
    )
    new.add_argument("--burst", type=positive, default=0.0, help="requests at once (default: as many as in a second)")
    listed = keys.add("list", _list, "names, rights and rates")
    revoke = keys.add("revoke", _revoke, "open nothing to a key any more, also on connections that are open")
    revoke.add_argument("name", help="every key of this name")
    for one in (new, listed, revoke):
        one.add_argument(
            "-f", "--file", type=Path, default=Path("keys.toml"), help="the keys file (default: keys.toml)"
        )


def _new(args: argparse.Namespace) -> object:
    from millstream.guard import auth

    with _changing(args.file) as path:
        before = _text(path) if path.exists() else ""
        if any(one.name == args.name for one in auth.entries(before, str(path))):
            raise Conflict(f"{path}: there is a key {args.name!r} already: revoke it, or choose another name")
        key, entry = auth.new_key(args.name, tuple(args.may), args.rate, args.burst, tuple(args.tenant))
        after = f"{before.rstrip()}\n\n{entry}" if before.strip() else entry
        auth.entries(after, str(path))
        _write(path, after)
    return {"name": args.name, "key": key, "file": str(args.file)}


def _list(args: argparse.Namespace) -> object:
    from millstream.guard import auth

    return [
        {"name": one.name, "sha256": f"{one.digest}...", "may": " ".join(one.verbs)}
        | ({"tenants": " ".join(one.tenants)} if one.tenants else {})
        | ({"rate": one.rate, "burst": one.burst or max(1.0, one.rate)} if one.rate else {})
        for one in auth.entries(_text(args.file), str(args.file))
    ]


def _revoke(args: argparse.Namespace) -> object:
    from millstream.guard import auth

    with _changing(args.file) as path:
        _write(path, auth.without(_text(path), args.name, str(path)))
    return {"name": args.name, "revoked": True, "file": str(args.file)}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Misconfigured(f"{path}: {error}; it is a text file") from None


def _write(path: Path, text: str) -> None:
    """Durable, and for those who could read it before."""
    from millstream.store.blob import write_atomic

    mode = path.stat().st_mode if path.exists() else 0o600
    write_atomic(path, text.encode(), mode & 0o777)


@contextmanager
def _changing(path: Path) -> Iterator[Path]:
    """The file behind the name, for one change at a time: two people lose neither's."""
    from millstream.store.blob import locked

    path = path.resolve()
    if not path.parent.is_dir():
        raise Misconfigured(f"{path.parent}: no such folder; make the folder first")
    with locked(path.parent):
        yield path
