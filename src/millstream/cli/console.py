"""`console`: pages for people."""

from __future__ import annotations

import argparse
from pathlib import Path

from msgspec.structs import replace

from millstream.cli.verbs import Verbs, asyncio_run, port


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    console = verbs.add("console", _console, "pages that show how an installation is, and move its traffic")
    console.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    console.add_argument("--port", type=port, help="0 picks a free one (default: as [console] says, else 8002)")


def _console(args: argparse.Namespace) -> None:
    from millstream.app.installation import Installation
    from millstream.app.roles import run_console

    with Installation.open(args.config) as installation:
        if args.port is not None:
            settings = installation.settings
            installation.settings = replace(settings, console=replace(settings.console, port=args.port))
        asyncio_run(run_console(installation))
