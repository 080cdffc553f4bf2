"""Now and then, put first what is not thought best: or nobody ever learns what it would have been worth.

Epsilon-greedy, with the propensity logged: with probability `share` a candidate drawn evenly takes the first place, the
others keep their order. How likely each was to be first is then known exactly, share / n, and 1 - share more for the
best; so outcomes can be weighed by it (inverse propensity: Horvitz and Thompson, 1952) long after.

Rules of the room:
- The coin is a hash of the request's id: a retry explores as the first try did, also after a restart.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Explored(NamedTuple):
    """`first`: the place, in the candidates, of the one that chance put first, -1 for none; `propensities` float32 [n]:
    how likely each was to be first."""

    first: int
    propensities: NDArray[np.float32]


def explored(request: str, scores: NDArray[np.float32], share: float) -> Explored:
    """What chance does to a request with these scores [n]."""
    count = len(scores)
    propensities = np.full(count, share / count, np.float32)
    propensities[int(np.argmax(scores))] += np.float32(1.0 - share)
    digest = hashlib.blake2b(request.encode(errors="surrogatepass"), digest_size=16, person=b"explore").digest()
    coin, place = int.from_bytes(digest[:8], "big") / 2**64, int.from_bytes(digest[8:], "big") % count
    return Explored(place if coin < share else -1, propensities)
