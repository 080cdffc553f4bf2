"""Records that are too many for memory, apart by bucket, so that they can be taken a bucket at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WAITING: Final = 16 << 10
"""Bytes of a bucket that wait in memory, about."""


class Buckets:
    """`count` buckets of records of one `kind`: some of each wait in memory, the others lie in a file without a name in
    `folder`, which is gone with the process."""

    def __init__(self, folder: Path, kind: np.dtype[Any], count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._kind = kind
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by close
        self._waiting = [bytearray() for _ in range(count)]
        self._chunks: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self._end = 0

    def add(self, bucket: int, data: bytes) -> None:
        """Some whole records."""
        waiting = self._waiting[bucket]
        waiting += data
        if len(waiting) >= WAITING:
            self._file.write(waiting)
            self._chunks[bucket].append((self._end, len(waiting)))
            self._end += len(waiting)
            self._waiting[bucket] = bytearray()

    def of(self, bucket: int) -> NDArray[Any]:
        """All records of a bucket, in the order that they came."""
        found = []
        for start, size in self._chunks[bucket]:
            self._file.seek(start)
            found.append(self._file.read(size))
        self._file.seek(0, 2)
        return np.frombuffer(b"".join([*found, bytes(self._waiting[bucket])]), self._kind)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()
