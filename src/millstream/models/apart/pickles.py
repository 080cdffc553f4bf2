"""What a pickle would import, found out without importing it.

Rules of the room:
- A list for a person who decides about trust, not a proof: whatever the names do when they run, they would do.
- The pickle is read to its end with a dead stand-in for everything that it names, so nothing of it runs; one that
  cannot be read that way says so.
- joblib's files are pickles with the bytes of arrays between the opcodes; those are stepped over. Compressed ones are
  unpacked first, to a bound.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

BYTES_MAX = 1 << 30
UNREAD = "(the rest cannot be read without running it)"
_ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"
_PACKED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZ": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"]\x00": lzma.LZMAFile,
}
_Reader: Any = pickle._Unpickler  # the one in Python: joblib's own reader is one, too


def is_pickle(path: Path) -> bool:
    """Whether the file is called as pickles are."""
    return path.suffix.lower() in (".pkl", ".pickle", ".joblib")


def imports_of(path: Path) -> list[str]:
    """What the pickle (or joblib file) in `path` would import, as "module.name", sorted; UNREAD after these when it
    cannot be read to its end."""
    try:
        content = _content(path)
    except Exception:  # torn, in one of many ways
        return [UNREAD]
    return imports_in(content)


def imports_in(content: bytes) -> list[str]:
    """`imports_of`, of bytes that are not packed."""
    found: set[str] = set()
    try:
        _Looker(io.BytesIO(content), found).load()
    except Exception:  # bytes that are no pickle fail in as many ways as there are
        return [*sorted(found), UNREAD]
    return sorted(found)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.peek(8)[:8]
        if re.match(rb"\x78[\x01\x5e\x9c\xda]", start):
            return zlib.decompressobj().decompress(file.read(BYTES_MAX), BYTES_MAX)
        unpack = next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), None)
        content: bytes = (unpack(file) if unpack else file).read(BYTES_MAX)
        return content


class _Dead:
    """What stands for everything that a pickle names, makes and calls: it takes all of it and does nothing."""

    def __new__(cls, *args: Any, **named: Any) -> _Dead:
        made = object.__new__(cls)
        made.__dict__["given"] = args
        return made

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def __call__(self, *args: Any, **named: Any) -> _Dead:
        return _Dead(*args)

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, *items: Any) -> None:
        """Take it."""

    extend = add = append


class _Array(_Dead):
    """joblib's wrapper of an array, whose bytes follow it."""


class _Looker(_Reader):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = dict(_Reader.dispatch)

    def __init__(self, file: BinaryIO, found: set[str]) -> None:
        super().__init__(file)
        self._from, self._found = file, found

    def find_class(self, module: str, name: str) -> Any:
        self._found.add(f"{module}.{name}")
        return _Array if f"{module}.{name}" == _ARRAY else type("_Dead", (_Dead,), {})

    def persistent_load(self, pid: Any) -> Any:
        return _Dead()

    def load_build(self) -> None:
        super().load_build()
        if isinstance(self.stack[-1], _Array):
            self._step_over(self.stack[-1].__dict__["state"])

    dispatch[pickle.BUILD[0]] = load_build

    def _step_over(self, array: dict[str, Any]) -> None:
        dtype = np.dtype(array["dtype"].given[0])
        if dtype.hasobject:
            _Looker(self._from, self._found).load()
            return
        if array.get("numpy_array_alignment_bytes") is not None:
            self._from.read(self._from.read(1)[0])
        self._from.seek(math.prod(array["shape"]) * dtype.itemsize, io.SEEK_CUR)
