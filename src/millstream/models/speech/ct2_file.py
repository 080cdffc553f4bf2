"""The file of CTranslate2: the weights of a network by name, as its converter writes them (`model.bin`).

Numbers are little endian. A head: the format's version (6), what network it is, the revision of that; then the
variables: name, shape, type, bytes; then other names of some of them. Weights of eight bits have a `weight_scale` for
each row beside them, which they are divided by.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors

FORMAT: Final = 6
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class Weights(Mapping[str, NDArray[Any]]):
    """The variables of the file at `path`, as they are there; none is read before it is asked for. Corrupt: it is not
    a whole file of the network `spec`, or one in a type that numpy has not."""

    def __init__(self, path: Path, spec: str) -> None:
        try:
            with open(path, "rb") as file:
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._found = self._variables(spec)
        except (OSError, ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise errors.Corrupt(
                f"{path}: not a whole {spec} of CTranslate2, format {FORMAT} ({error}); convert it "
                "(ct2-transformers-converter) or copy it again"
            ) from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._found[name]

    def __iter__(self) -> Any:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def floats(self, name: str) -> NDArray[np.float32]:
        """A variable in 32 bits, with its scales multiplied in."""
        found = self[name].astype(np.float32)
        if (scale := f"{name}_scale") in self._found:
            found /= self.floats(scale).reshape(-1, *[1] * (found.ndim - 1))
        return found

    def let_go(self) -> None:
        """Give back the memory of what was read; what is read again comes from the file again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)

    def _variables(self, spec: str) -> dict[str, NDArray[Any]]:
        file = _Cursor(np.frombuffer(self._file, np.uint8))
        version, name, _ = file.number("I"), file.text(), file.number("I")
        if (version, name) != (FORMAT, spec):
            raise ValueError(f"it is {name!r}, format {version}")
        found: dict[str, NDArray[Any]] = {}
        for _ in range(file.number("I")):
            name = file.text()
            shape = [file.number("I") for _ in range(file.number("B"))]
            dtype = np.dtype(_DTYPES[file.number("B")]).newbyteorder("<")
            found[name] = file.take(file.number("I")).view(dtype).reshape(shape)
        for _ in range(file.number("I")):
            alias, name = file.text(), file.text()
            found[alias] = found[name]
            if f"{name}_scale" in found:  # which the file leaves to be understood
                found[f"{alias}_scale"] = found[f"{name}_scale"]
        return found


class _Cursor:
    """A place in a file, which goes on with what is read."""

    def __init__(self, whole: NDArray[np.uint8]) -> None:
        self._whole, self._at = whole, 0

    def take(self, count: int) -> NDArray[np.uint8]:
        found = self._whole[self._at : self._at + count]
        if len(found) < count:
            raise ValueError(f"it ends at {len(self._whole)} bytes")
        self._at += count
        return found

    def number(self, kind: str) -> int:
        (found,) = struct.unpack(f"<{kind}", bytes(self.take(struct.calcsize(f"<{kind}"))))
        return int(found)

    def text(self) -> str:
        return bytes(self.take(self.number("H")))[:-1].decode()
