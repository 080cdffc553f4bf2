"""Take what was learnt to the servers: small deltas often, a new immutable base now and then.

- A delta holds what learning touched since the last one, as absolute weights: slots, and whatever of the learner
  belongs to no slot. It is one event in topic `deltas`; every serving process follows the topic and applies it between
  two of its own batches.
- A base is an ordinary version in the repository that holds the learner's whole state and says how far into
  `examples` it has folded. Deltas name their base, so weights of two bases can never mix.
- The learner never writes into a version that somebody put: it starts a base of its own from it.
"""

from __future__ import annotations

import zlib
from typing import Annotated

import msgspec
import numpy as np

from millstream.models.online import Change
from millstream.stream.event import encode
from millstream.stream.log import Writer
from millstream.types import Delta


class PushSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often what was learnt reaches the servers."""

    push_s: Annotated[float, msgspec.Meta(ge=0.01, le=86400, description="least time between two deltas, seconds")] = (
        1.0
    )
    base_examples: Annotated[
        int, msgspec.Meta(ge=1, description="examples after which a new base is put; a restart folds at most so many")
    ] = 50_000
    bases_kept: Annotated[
        int,
        msgspec.Meta(ge=2, le=1000, description="bases made by learning that stay; and so many versions of `train`"),
    ] = 5


class Push:
    """Writes deltas of one base in sequence."""

    def __init__(self, deltas: Writer, model: str, base: str, sequence: int) -> None:
        """`sequence`: that of the last delta on this base in the log, 0 when there is none."""
        self._deltas, self.model, self.base, self.sequence = deltas, model, base, sequence

    def push(
        self, change: Change, since: list[float], upto: int, calibration: tuple[float, float] | None = None
    ) -> Delta:
        """Append the next delta: what learning touched, containing examples before offset `upto`, and slope and
        intercept of the calibration where they are new."""
        parts = {
            "slots": change.slots.tobytes(),
            "weights": change.weights.tobytes(),
            "dense": change.dense.tobytes(),
            "calibration": np.array(calibration or (), np.float64).tobytes(),
        }
        checksum = 0
        for part in parts.values():
            checksum = zlib.crc32(part, checksum)
        delta = Delta(
            model=self.model,
            base=self.base,
            sequence=self.sequence + 1,
            upto=upto,
            arrivals=np.array(since, np.float64).tobytes(),
            checksum=checksum,
            **parts,
        )
        self._deltas.append(self.model.encode(), encode(delta))
        self.sequence += 1
        return delta
