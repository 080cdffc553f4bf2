"""The command line: each verb is a few lines over the rooms. Tables and logs go to stderr; with `--json` the result is
one line on stdout, the last thing printed. An error is one sentence on stderr and exit code 1.

A group of verbs has a file of its own with `add(verbs)`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence

import msgspec

from millstream import __version__
from millstream.cli import (
    backup,
    console,
    curate,
    experiment,
    features,
    forget,
    init,
    keys,
    log,
    models,
    recommend,
    report,
    serve,
    simulate,
    speech,
    trace,
    traffic,
    train,
    transcribe,
    watch,
)
from millstream.cli.verbs import Verbs
from millstream.errors import Error


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command `millstream`."""
    args = parser().parse_args(argv)
    args.line = sys.argv[1:] if argv is None else [*argv]
    level = logging.DEBUG if args.verbose else logging.INFO
    who = f" {args.place.name}" if getattr(args, "place", None) else ""  # several processes share this stderr
    format = f"%(asctime)s{who} %(name)s %(levelname)s %(message)s"
    logging.basicConfig(level=level, stream=sys.stderr, format=format)
    try:
        result = args.run(args)
        built = msgspec.to_builtins(result)
        if result is not None:
            _show(built, args.json)
    except Error as error:
        sys.exit(f"millstream: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough; nothing more can be said to it, at the end neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        sys.exit(f"millstream: {error.filename or args.verb}: {error.strerror or error}")
    if isinstance(built, dict) and built.get("sound") is False:
        sys.exit(1)


def _show(result: object, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
        return
    for row in result if isinstance(result, list) else [result]:
        print("  ".join(f"{key} {value}" for key, value in row.items()) if isinstance(row, dict) else row)
    sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    """Everything that can be typed."""
    made = argparse.ArgumentParser(prog="millstream", description=__doc__.partition("\n\n")[0] if __doc__ else None)
    made.add_argument("--version", action="version", version=f"millstream {__version__}")
    made.set_defaults(json=False, verbose=False)
    verbs = Verbs(made)
    groups = (
        serve, init, train, recommend, report, experiment, models, features, traffic, curate, watch, log, keys,
        console, backup, forget, simulate, speech, transcribe, trace,
    )  # fmt: skip
    for group in groups:
        group.add(verbs)
    return made
