"""The file that holds a learner: its first line names kind and format, its last 32 bytes prove that it is whole.

MAGIC ("millstream KIND FORMAT" and a newline), u32 length, header as JSON, the arrays that the header describes,
SHA-256 of all before; little-endian.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.types import Array

VERSION: Final = 1
Header = TypeVar("Header")


def sealed(kind: str, header: Any, arrays: Iterable[NDArray[Any]]) -> bytes:
    """The bytes of a snapshot."""
    said = msgspec.json.encode(header)
    parts = [_magic(kind, VERSION), len(said).to_bytes(4, "little"), said, *(array.tobytes() for array in arrays)]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def kind_of(path: Path) -> str:
    """The kind whose snapshot `path` is, from its first line. No snapshot: Corrupt."""
    with path.open("rb") as file:
        begin = file.read(64)
    if found := re.match(rb"millstream (\w+) (\d+)\n", begin):
        return found[1].decode()
    raise errors.Corrupt(f"{path}: not a snapshot of an online learner (it begins {begin[:16]!r})")


def opened(path: Path, kind: str, header: type[Header]) -> tuple[Header, Body]:
    """(header, the arrays behind it) of a snapshot of `kind` whose checksum holds. Else Corrupt, or Later."""
    data = path.read_bytes()
    body, seal = data[:-32], data[-32:]
    if not body.startswith(magic := _magic(kind, VERSION)):
        if later := re.match(rb"millstream %s (\d+)\n" % kind.encode(), body):
            raise errors.Later(path, int(later[1]), VERSION)
        raise errors.Corrupt(f"{path}: not a snapshot of kind {kind!r} (it begins {data[:16]!r})")
    if hashlib.sha256(body).digest() != seal:
        raise errors.Corrupt(f"{path}: the checksum does not match; restore the file or take an older snapshot")
    at = len(magic) + 4
    length = int.from_bytes(body[at - 4 : at], "little")
    return msgspec.json.decode(body[at : at + length], type=header), Body(body, at + length)


class Body:
    """The arrays of a snapshot, one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def take(self, dtype: str, count: int) -> Array:
        """The next array, read-only."""
        array: Array = np.frombuffer(self._data, dtype, count, self._at)
        self._at += array.nbytes
        return array


def _magic(kind: str, version: int) -> bytes:
    return f"millstream {kind} {version}\n".encode()
