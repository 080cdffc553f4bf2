"""What had been learnt by an earlier time, as a version of its own.

The weights at a place in `examples` are the newest base that ends before it, and the fold of what lies between.
Learning puts a base after whatever it passed over, so no fold learns what the gate refused.
"""

from __future__ import annotations

import msgspec

from millstream.errors import NotFound
from millstream.learn.train import Training
from millstream.models import online
from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.stream.log import Log

MADE_BY = "millstream train rollback"


class Rebuilt(msgspec.Struct, frozen=True):
    """Version `version` holds `base` and the examples from there to before `upto`: `learnt` of them."""

    model: str
    version: str
    base: str
    upto: int
    learnt: int


def rebuild(repository: Repository, log: Log, model: str, task: str, upto: int) -> Rebuilt:
    """Put the weights as of example `upto` (which they do not have yet) as a new version; nobody is served it yet.
    `task`: the one that the model learns.

    NotFound: no base is as old as that, or the log begins later than the one that is.
    """
    base, manifest = _newest(repository, model, upto)
    learner, metadata = online.load(repository.folder(model, base) / manifest.file)
    examples = log.reader("examples")
    training = Training(learner, model, manifest.features, examples, _upto(manifest), task)
    if training.upto < upto and training.upto < examples.start(0):
        raise NotFound(
            f"{model}: base {base} ends before example {training.upto}, and the log begins at {examples.start(0)}; "
            "`millstream traffic rollback` goes back to a base as it is"
        )
    learnt = 0
    while training.upto < upto and (folded := training.step(until=upto)) is not None:
        learnt += len(folded.batch.labels)
    learner.delta()  # the version holds these slots itself
    lineage: dict[str, object] = {"made_by": MADE_BY, "parent": base, "upto": training.upto}
    made = msgspec.structs.replace(manifest, lineage=lineage)
    version = repository.put(model, made, {manifest.file: learner.dump(metadata)})
    return Rebuilt(model, version, base, training.upto, learnt)


def _newest(repository: Repository, model: str, upto: int) -> tuple[str, Manifest]:
    """The version whose examples end last of those that end by `upto`; of equals the newest."""
    found = [(version, repository.manifest(model, version)) for version in repository.versions(model)]
    learnt = [(version, one) for version, one in found if "upto" in one.lineage and _upto(one) <= upto]
    if not learnt:
        kept = min((_upto(one) for _, one in found if "upto" in one.lineage), default=0)
        raise NotFound(f"{model}: the oldest base that is kept ends at example {kept}, later than {upto}")
    return max(learnt, key=lambda one: (_upto(one[1]), int(one[0])))


def _upto(manifest: Manifest) -> int:
    return int(str(manifest.lineage["upto"]))
