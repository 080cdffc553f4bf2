"""Answers that are kept for the next caller who asks the same of the same version.

Rules of the room:
- A key is a digest of every input's name, type, shape and bytes and of the outputs asked for: never the id, the user or
  the priority. So only a model whose answer depends on nothing else may have a cache; it is off unless it asks for one.
- An answer belongs to one `version@delta`: when learning moves the version on, all of its answers go.
- Bounded by entries and by bytes; the least recently used go first. What is kept is a copy that nobody can change.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from millstream.models.manifest import Cache as Bounds
from millstream.types import Array, Request


class Kept(NamedTuple):
    """An answer, when it was computed (monotonic seconds) and what it weighs."""

    outputs: dict[str, Array]
    at: float
    size: int


class Cache:
    """The answers of one version."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._name = ""
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str, key: bytes, now: float) -> dict[str, Array] | None:
        """The answer of `name`, a version@delta, to the request of this key."""
        if name != self._name:
            self._forget(name)
        found = self._kept.get(key)
        if found is None:
            return None
        if self._bounds.ttl_s and now - found.at > self._bounds.ttl_s:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found.outputs

    def put(self, name: str, key: bytes, outputs: dict[str, Array], now: float) -> None:
        """Keep a copy of an answer that `name` has computed."""
        if name != self._name:
            self._forget(name)
        if key in self._kept:
            self._drop(key)
        size = sum(_weight(array) for array in outputs.values()) + len(key)
        if size > self._bounds.bytes_max:
            return
        copies = {}
        for output, array in outputs.items():
            copy = copies[output] = array.copy()
            copy.flags.writeable = False
        self._kept[key] = Kept(copies, now, size)
        self._size += size
        while self._size > self._bounds.bytes_max or len(self._kept) > self._bounds.entries:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        self._size -= self._kept.pop(key).size

    def _forget(self, name: str) -> None:
        self._kept.clear()
        self._name, self._size = name, 0


def key_of(request: Request) -> bytes:
    """What two requests must share to share an answer."""
    digest = blake2b(digest_size=16)
    for name in sorted(request.inputs):
        array = request.inputs[name]
        digest.update(f"{name}\0{array.dtype.str}{array.shape}".encode("utf-8", "surrogatepass"))
        if array.dtype.hasobject:
            for cell in array.ravel().tolist():
                text = cell if isinstance(cell, bytes) else str(cell).encode("utf-8", "surrogatepass")
                digest.update(len(text).to_bytes(8, "little") + text)
        else:
            digest.update(np.ascontiguousarray(array).data)
    for name in request.outputs:
        digest.update(f"\0{name}".encode("utf-8", "surrogatepass"))
    return digest.digest()


def _weight(array: Array) -> int:
    if array.dtype.hasobject:
        return sum(len(str(cell)) + 64 for cell in array.ravel().tolist())
    return array.nbytes
