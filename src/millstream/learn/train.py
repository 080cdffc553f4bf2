"""Fold the ordered topic `examples` into a learner's weights. Nothing else ever changes them.

The law: weights at position n are the fold of examples[start:n), in order. So a learner that was killed is its last
base folded over the rest, and anybody can recompute what it should hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.models.online import OnlineLearner
from millstream.stream.event import decode
from millstream.stream.log import Reader, Record
from millstream.types import Example

LOOKED_BACK: Final = 10_000
"""Records of `examples` that are looked through for the last one of a sort."""
_AT_ONCE: Final = 500


class Batch(NamedTuple):
    """Examples of one model in order, columns of n: tokens uint32 [n, width]; labels, weights, scores float32; since,
    waited, times float64; takes_back, again bool.

    `since`: per example the instant from which its staleness counts (arrival + label wait, unix seconds); `waited`: the
    label wait, seconds; `scores`: what was served, 0 where nothing was; `times`: of the events; `takes_back`: comes
    after a negative of the same item; `again`: was told before.
    """

    tokens: NDArray[np.uint32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    since: NDArray[np.float64]
    waited: NDArray[np.float64]
    scores: NDArray[np.float32]
    times: NDArray[np.float64]
    takes_back: NDArray[np.bool_]
    again: NDArray[np.bool_]


class Folded(NamedTuple):
    """What one step learnt: the batch and the probabilities that were answered *before* learning it.

    `first`: the offset in `examples` where it began; `skipped`: examples of this model whose rows another feature
    definition made; they mean something else here.
    """

    batch: Batch
    predicted: NDArray[np.float32]
    first: int
    skipped: int


class Training:
    """A learner and how far into partition 0 of `examples` it has folded (`upto`, the next offset).

    `definition`: hash of the feature definition that its rows must have; `also`: another model whose examples it learns
    too.
    """

    def __init__(
        self, learner: OnlineLearner, model: str, definition: str, examples: Reader, upto: int, task: str = "",
        also: str = "",
    ) -> None:  # fmt: skip
        self.learner, self.model, self.definition, self.upto = learner, model, definition, upto
        self.task, self.also = task, also
        self._examples = examples

    def step(self, records_max: int = 10_000, *, learn: bool = True, until: int | None = None) -> Folded | None:
        """Fold the next examples, at most `records_max` and none from offset `until` on (offsets may leap); None when
        nothing new is committed. Without `learn`, they are answered and passed over."""
        if self.upto >= self._examples.end(0):
            return None
        records = self._examples.read(0, self.upto, records_max)
        if until is not None:
            records = [record for record in records if record.offset < until]
        if not records:
            return None
        batch, skipped = gather(records, self.model, self.definition, self.learner.width, self.task, self.also)
        if learn:
            predicted = self.learner.learn(batch.tokens, batch.labels, batch.weights)
        else:
            predicted = self.learner.predict({"tokens": batch.tokens})["probability"].astype(np.float32, copy=False)
        first, self.upto = self.upto, records[-1].offset + 1
        return Folded(batch, predicted, first, skipped)


def gather(
    records: list[Record], model: str, definition: str, width: int, task: str = "", also: str = ""
) -> tuple[Batch, int]:
    """The examples of `model`, and of `also` where one is named, among the records, as arrays, and how many were
    skipped because another feature definition made their rows. SetAside events, other models' examples and those of
    other tasks than `task` ("": any) are left out; examples from before there were tasks are of each."""
    whose = (model, also or model)
    ours = [e for e in map(decode, (r.value for r in records)) if isinstance(e, Example) and e.model in whose]
    ours = [e for e in ours if not task or e.task in ("", task)]
    events = [e for e in ours if e.definition == definition and len(e.tokens) == width * 4]
    tokens = np.frombuffer(b"".join(e.tokens for e in events), np.uint32).reshape(len(events), width)
    labels, weights, scores = (
        np.array([getattr(e, name) for e in events], np.float32) for name in ("label", "weight", "score")
    )
    arrivals, waited, times = (
        np.array([getattr(e, name) for e in events], np.float64) for name in ("arrival", "wait_s", "event_time")
    )
    late, again = (np.array([e.form == form for e in events], np.bool_) for form in ("late", "real"))
    batch = Batch(tokens, labels, weights, arrivals + waited, waited, scores, times, late, again)
    return batch, len(ours) - len(events)


def known_by(examples: Reader, when: float) -> int:
    """The offset of the first example whose label was not known yet at `when`, unix seconds."""
    for record in examples.records(0):
        event = decode(record.value)
        if isinstance(event, Example) and event.arrival + event.wait_s > when:
            return record.offset
    return examples.end(0)


def known_before(examples: Reader, offset: int, model: str = "", task: str = "", also: str = "") -> float:
    """When the label of the last example before `offset` was known, unix seconds; 0 where none of the last LOOKED_BACK
    records is one. Of `model` (and `also`) and `task` alone, where they are given."""
    end = min(offset, examples.end(0))
    first = max(examples.start(0), end - LOOKED_BACK)
    while end > first:
        at = max(first, end - _AT_ONCE)
        records = [record for record in examples.read(0, at, end - at) if record.offset < end]
        if found := list(_known(records, model, task, also)):
            return found[-1]
        end = at
    return 0.0


def known_first(examples: Reader, model: str, task: str, also: str = "") -> float:
    """When the label of the first example of a model (and `also`) and task was known; 0 where the log holds none."""
    at = examples.start(0)
    while records := examples.read(0, at, _AT_ONCE) if at < examples.end(0) else []:
        if found := next(_known(records, model, task, also), 0.0):
            return found
        at = records[-1].offset + 1
    return 0.0


def _known(records: list[Record], model: str, task: str, also: str) -> Iterator[float]:
    examples = [event for event in map(decode, (r.value for r in records)) if isinstance(event, Example)]
    for one in examples:
        if (not model or one.model in (model, also or model)) and (not task or one.task in ("", task)):
            yield one.arrival + one.wait_s


def in_words(when: float) -> str:
    """A time as people write it, in UTC, to the second."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
