"""Which tokens a deep ranker knows: those that were seen often enough, each at a place of its own while it learns.

Tokens share 2^bits slots by their value; slot 0 is that of no token. A slot that was seen too seldom is as none, in
training and in the file that is served, so what the file does not know says nothing, instead of something by chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millstream.learn.deep.rows import CHUNK, Shown, Tokens


def slots(tokens: Any, bits: int) -> Any:
    """The slot of each token, int64: 0 for no token, else 1 to 2^bits - 1. For numpy arrays, and for tensors alike."""
    size = (1 << bits) - 1
    return (tokens % size + 1) * (tokens != 0)


class Vocabulary:
    """The places of slots. `known` int64 [size - 1]: the slots that have one, place 1 first; `of_slots` int64 [2^bits]:
    the place of each, 0 for none; `size`: places, that of none among them."""

    def __init__(self, counts: NDArray[np.int64], bits: int, seen: int) -> None:
        """Of `counts` [2^bits], how often each slot was seen; those of fewer than `seen` have no place."""
        self.bits = bits
        self.known: NDArray[np.int64] = np.flatnonzero(counts[1:] >= seen) + 1
        self.of_slots = np.zeros(1 << bits, np.int64)
        self.of_slots[self.known] = np.arange(1, len(self.known) + 1)

    @classmethod
    def of(cls, shown: Shown, end: int, bits: int, seen: int) -> Vocabulary:
        """Of rows before `end`."""
        counts = np.zeros(1 << bits, np.int64)
        for at in range(0, end, CHUNK):
            rows = np.arange(at, min(end, at + CHUNK))
            counts += np.bincount(slots(shown.tokens(rows).astype(np.int64), bits).ravel(), minlength=len(counts))
            if shown.history:
                counts += np.bincount(
                    slots(shown.histories(rows).astype(np.int64), bits).ravel(), minlength=len(counts)
                )
        return cls(counts, bits, seen)

    @property
    def size(self) -> int:
        return len(self.known) + 1

    def places(self, tokens: Tokens) -> NDArray[np.int64]:
        """The place of each token; 0 for what is not known."""
        found: NDArray[np.int64] = self.of_slots[slots(tokens.astype(np.int64), self.bits)]
        return found
