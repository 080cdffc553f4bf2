"""`models pack`: one version as one file that runs elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from millstream.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    """The verb of this file; `verbs` are those of `models`."""
    pack = verbs.add("pack", _pack, "make one archive of a version, to be served or added elsewhere")
    pack.add_argument("path", type=Path, help="the repository")
    pack.add_argument("model")
    pack.add_argument("version", nargs="?", default="", help="its number (default: the live one)")
    pack.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.zip", help="where it is written")
    pack.add_argument(
        "--wheels", action="store_true", help="with its locked dependencies, for machines like this without an index"
    )


def _pack(args: argparse.Namespace) -> object:
    from millstream.models.archive import pack
    from millstream.models.repository import Repository

    return pack(Repository.open(args.path), args.model, args.version, args.output, args.wheels)
