"""`backup`, `restore`: an installation as one file, taken while it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from millstream.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    backup = verbs.add("backup", _backup, "take log, repository and state of an installation while it runs")
    backup.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    backup.add_argument("file", type=Path, metavar="FILE.tar", help="where it is written")
    restore = verbs.add("restore", _restore, "make an installation again from a backup, and check all of it")
    restore.add_argument("file", type=Path, metavar="FILE.tar", help="what `millstream backup` wrote")
    restore.add_argument("folder", type=Path, help="where the installation shall be; empty, or not there")


def _backup(args: argparse.Namespace) -> object:
    from millstream import config
    from millstream.app.installation import Settings
    from millstream.clock import SystemClock
    from millstream.ops.backup import backup

    file = args.config.resolve()
    settings = config.read(file, Settings)
    named = (settings.keys, settings.feature_store.definitions)
    return backup(file.parent, file.name, named, args.file, SystemClock())


def _restore(args: argparse.Namespace) -> object:
    from millstream.clock import SystemClock
    from millstream.ops.restore import restore

    return restore(args.file, args.folder, SystemClock())
