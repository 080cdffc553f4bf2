"""Who writes topic `reviews`: processes that choose rows, people who label, and servers that hear speech."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from millstream.app.installation import Installation
from millstream.errors import Busy, Conflict
from millstream.stream import Writer
from millstream.stream.log import open_log

TOPIC: Final = "reviews"
PARTITIONS: Final = 4
"""So many processes may write at one moment."""


@contextmanager
def writer(at: Installation) -> Iterator[Writer]:
    """A writer of the topic, for a moment: nobody holds a partition while a person thinks. Busy."""
    with open_log(at.folder / "log", at.clock, at.settings.log) as log:
        for partition in range(PARTITIONS):
            try:
                found = log.writer(TOPIC, partition)
            except Conflict:
                continue
            yield found
            return
    raise Busy(f"{PARTITIONS} processes write topic {TOPIC!r} at this moment; try again")
