"""Entities that are to be forgotten leave the files of feature sets that nobody keeps at the moment.

Rules of the room:
- Every set's folder is looked at, also those of definitions that are used no more. Who keeps one holds the lock of its
  rows, and does this by itself (Pipeline.forget); such a folder is left alone.
- The file of rows is overwritten in place, the snapshot is written anew: killed in between and done again, it ends the
  same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from millstream import errors
from millstream.features import snapshot
from millstream.features.events import Hashes
from millstream.features.snapshot import SNAPSHOT
from millstream.store import rowfile
from millstream.store.rowfile import Sheet
from millstream.store.rows import RowFile


class Gone(msgspec.Struct):
    """How many `rows` and how many entities in `snapshots` were removed; `kept`: folders that somebody keeps."""

    rows: int = 0
    snapshots: int = 0
    kept: list[str] = []


def forget(root: Path, kind: str, keys: Hashes, mine: Callable[[str], bool]) -> Gone:
    """Remove entities of a kind below the folder of all rows: by their keys, and in snapshots also by the names of who
    made a request. Corrupt, Later: a file that cannot be read; Full."""
    gone = Gone()
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not folder.is_dir():
            continue
        with ExitStack() as held:
            try:
                stores = {path.stem: held.enter_context(_opened(path)) for path in sorted(folder.glob("*.rows"))}
            except errors.Conflict:
                gone.kept.append(folder.name)
                continue
            if kind in stores:
                gone.rows += stores[kind].forget(keys)
            part = folder / f".{SNAPSHOT}.part"  # of a writer that was killed
            part.unlink(missing_ok=True)
            gone.snapshots += snapshot.forget(folder / SNAPSHOT, kind, keys, mine)
    return gone


def _opened(path: Path) -> RowFile:
    sheet = Sheet(path)
    return RowFile.create(path, sheet.width, sheet.label, limit=rowfile.ROWS_MAX)
