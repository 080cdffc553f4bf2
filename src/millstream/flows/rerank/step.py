"""What a step of re-ranking is. A step is a setting; its work on one slate is an object that the builder asks.

Rules of the room:
- A step drops before anything is placed, or works while the list is built: adds worth, says what may stand, or claims
  a position. It does what it does from the slate and from what is placed already, nothing else.
- What is dropped stays dropped. What may not stand may, when nothing else can: that is counted and said (rules.py).
- Places count candidates, positions count the list; both from 0 in here, and positions from 1 in settings.
- Worth is in units of the scores. A weight in the settings is in spreads, the standard deviation of the slate's scores,
  so that it means the same for probabilities and for log odds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.flows.rerank.slate import Floats, Mask, Slate

QUANTUM = 2.0**11


class Page(NamedTuple):
    """What is to be built. `alive` bool [n]: what no step dropped; `length`: positions; `fixed`: position -> place,
    settled before anything else; `spread`: the standard deviation of the scores, 1 where they have none."""

    slate: Slate
    alive: Mask
    length: int
    fixed: dict[int, int]
    spread: float


class Claim(NamedTuple):
    """A position for the candidate at `place`, whatever its score. `price`: what a click costs; None: nobody pays."""

    place: int
    reason: str
    price: float | None = None


class Work:
    """A step at work. `worth` float64 [n], if any, counts at the next position; `label` names it in reasons. What a
    step does not do stays as it is here."""

    label = ""
    worth: Floats | None = None

    def may(self, position: int) -> Mask | None:
        """What may stand at `position`, bool [n]; None: everything."""
        return None

    def claim(self, position: int, allowed: Mask) -> Claim | None:
        """Takes `position` for one of `allowed`, which holds at least one."""
        return None

    def placed(self, position: int, place: int, claim: Claim | None) -> None:
        """Told of every position in turn; `claim`: the one by which it was taken."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step"):
    """A step as it is configured."""

    @property
    def name(self) -> str:
        """How reasons and counts call it."""
        return str(self.__struct_config__.tag)

    def reads(self) -> tuple[str, ...]:
        """The columns of a slate that it looks at."""
        return ()

    def drop(self, slate: Slate, pinned: Mask) -> Mask | None:
        """What must not stand anywhere, bool [n]; None: nothing. `pinned`: what a pin wants."""
        return None

    def pins(self) -> dict[str, int]:
        """Item -> position, from 0."""
        return {}

    def named(self, name: Callable[[str], str]) -> Self:
        """The same step, the items that it is about being called as `name` calls them."""
        return self

    def work(self, page: Page) -> Work | None:
        """What it does while the list is built; None: nothing on this page."""
        return None


def units(slate: Slate) -> NDArray[np.float32]:
    """The embeddings as float32 [n, d] of length 1, zeros where there is none.

    In steps of 2**-11, so that products and sums of two of them are exact in float32, in whatever order a library adds
    them up: likeness is the same on every machine.
    """
    wide = slate.column("embedding").astype(np.float64)
    length = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    known = np.isfinite(length) & (length > 0)
    wide[~known] = 0.0
    length[~known] = 1.0
    wide /= length[:, None]
    return (np.rint(wide * QUANTUM) / QUANTUM).astype(np.float32)


def compact(codes: NDArray[np.integer]) -> tuple[NDArray[np.intp], int]:
    """Codes [n] as 0..k - 1 in any order, and k for a negative one, which nothing is alike to; and k."""
    found, inverse = np.unique(codes, return_inverse=True)
    unknown = int(np.searchsorted(found, 0))
    k = len(found) - unknown
    return np.where(inverse < unknown, k, inverse - unknown), k
