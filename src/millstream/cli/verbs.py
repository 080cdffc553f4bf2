"""What all verbs share: how they are declared, the numbers they take, and the loop they run on."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")


class Verbs:
    """The verbs of a parser; each takes the options that every verb has."""

    def __init__(self, parser: argparse.ArgumentParser, required: bool = True) -> None:
        # Suppressed: `models --json list` has said it before `list` could take it back by a default of its own.
        self._shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
        self._shared.add_argument(
            "--json", action="store_true", help="print the result as one line of JSON, last, on stdout"
        )
        self._shared.add_argument("--verbose", action="store_true", help="say more on stderr")
        self._parsers = parser.add_subparsers(required=required, metavar="VERB")

    def add(self, name: str, run: Callable[[argparse.Namespace], object], help: str) -> argparse.ArgumentParser:
        made = self._parsers.add_parser(name, help=help, description=help, parents=[self._shared])
        made.set_defaults(run=run, verb=name)
        return made


def asyncio_run(main: Coroutine[object, object, T]) -> T:
    """Run on uvloop, the event loop of every process of this program."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def bounded(of: Callable[[str], float], low: float, high: float, what: str) -> Callable[[str], float]:
    """A type of argument: a number within [low, high]."""

    def number(text: str) -> float:
        try:
            value = of(text)
        except ValueError:
            value = high + 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return number


port = bounded(int, 0, 65535, "a port: 0 to 65535")
count_of = bounded(int, 1, 1_000_000, "a number from 1 to 1000000")
rows = bounded(int, 1, 65536, "a number from 1 to 65536")
instances = bounded(int, 1, 256, "a number from 1 to 256")
positive = bounded(float, 0.001, 1e9, "a number above 0")
from_zero = bounded(float, 0.0, 1e12, "a number, 0 or more")
not_negative = bounded(float, 0.0, 1e9, "a number of seconds, 0 or more")


def duration(text: str) -> float:
    """A time of the command line, in milliseconds."""
    from millstream.models.manifest import milliseconds

    try:
        return milliseconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def moment(text: str) -> float:
    """A time of the command line, as unix seconds; without a zone it is UTC."""
    try:
        try:
            seconds = float(text)
        except ValueError:
            found = datetime.datetime.fromisoformat(text)
            return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
        datetime.datetime.fromtimestamp(seconds, datetime.UTC)  # not nan, nor beyond the calendar
        return seconds
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 2026-03-01T12:00:00Z, or unix seconds") from None


def say(line: str) -> None:
    """Tell a person how far it is; the result alone goes to stdout."""
    print(line, file=sys.stderr, flush=True)
