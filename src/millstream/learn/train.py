"""Fold the ordered topic `examples` into a learner's weights. Nothing else ever changes them.

The law: weights at position n are the fold of examples[start:n), in order. So a learner that was killed is its last
base folded over the rest, and anybody can recompute what it should hold.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.features import Definition
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl, Settings
from millstream.models.repository import Repository
from millstream.stream.event import decode
from millstream.stream.log import Log, Reader, Record
from millstream.types import Example


class Batch(NamedTuple):
    """Examples of one model in order: tokens uint32 [n, width], labels, weights float32 [n], since, waited float64 [n].

    `since`: per example the instant from which its staleness counts (arrival + label wait, unix seconds); `waited`: the
    label wait, seconds.
    """

    tokens: NDArray[np.uint32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    since: NDArray[np.float64]
    waited: NDArray[np.float64]


class Folded(NamedTuple):
    """What one step learnt: the batch and the probabilities that were answered *before* learning it.

    `skipped`: examples of this model whose rows another feature definition made; they mean something else here.
    """

    batch: Batch
    predicted: NDArray[np.float32]
    skipped: int


class Training:
    """A learner and how far into partition 0 of `examples` it has folded (`upto`, the next offset).

    `definition`: hash of the feature definition that its rows must have.
    """

    def __init__(self, learner: Ftrl, model: str, definition: str, examples: Reader, upto: int) -> None:
        self.learner, self.model, self.definition, self.upto = learner, model, definition, upto
        self._examples = examples

    def step(self, records_max: int = 10_000) -> Folded | None:
        """Fold the next examples, at most `records_max`; None when nothing new is committed."""
        if self.upto >= self._examples.end(0):
            return None
        records = self._examples.read(0, self.upto, records_max)
        if not records:
            return None
        batch, skipped = gather(records, self.model, self.definition, self.learner.width)
        predicted = self.learner.learn(batch.tokens, batch.labels, batch.weights)
        self.upto = records[-1].offset + 1
        return Folded(batch, predicted, skipped)

    def catch_up(self) -> int:
        """Fold all there is; how many examples that was."""
        learnt = 0
        while (folded := self.step()) is not None:
            learnt += len(folded.batch.labels)
        return learnt


def gather(records: list[Record], model: str, definition: str, width: int) -> tuple[Batch, int]:
    """The examples of `model` among the records, as arrays, and how many were skipped because another feature
    definition made their rows. SetAside events and other models' examples are left out."""
    ours = [e for e in map(decode, (r.value for r in records)) if isinstance(e, Example) and e.model == model]
    events = [e for e in ours if e.definition == definition and len(e.tokens) == width * 4]
    tokens = np.frombuffer(b"".join(e.tokens for e in events), np.uint32).reshape(len(events), width)
    labels = np.array([e.label for e in events], np.float32)
    weights = np.array([e.weight for e in events], np.float32)
    since = np.array([e.arrival + e.wait_s for e in events], np.float64)
    waited = np.array([e.wait_s for e in events], np.float64)
    return Batch(tokens, labels, weights, since, waited), len(ours) - len(events)


def train_base(model: str, definition: Definition, settings: Settings, log: Log, repository: Repository) -> str:
    """Fold all of `examples` into a new version of `model` and return its number. It goes live only if it is the first.

    The version says how far it has folded, so a learner that continues it learns every example once.
    """
    training = Training(Ftrl(settings, definition.width), model, definition.hash, log.reader("examples"), 0)
    learnt = training.catch_up()
    training.learner.delta()  # a base carries these slots itself
    manifest = Manifest(
        format="ftrl",
        file="model.ftrl",
        features=definition.hash,
        settings=msgspec.to_builtins(settings),
        lineage={"made_by": "millstream train", "examples": learnt, "upto": training.upto},
    )
    live = repository.policy(model).live if model in repository.models() else ""
    version = repository.put(model, manifest, {manifest.file: training.learner.dump()})
    repository.change_policy(
        model,
        lambda policy: msgspec.structs.replace(policy, live=live or version),
        who="millstream train",
        why=f"version {version} was trained" + (f"; {live} stays live until somebody promotes it" if live else ""),
    )
    return version
