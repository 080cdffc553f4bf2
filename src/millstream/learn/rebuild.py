"""What had been learnt by an earlier time, as a version of its own.

Rules of the room:
- The weights at a place in `examples` are the newest base that ends before it, and the fold of what lies between.
- Only what was live is gone back to: a candidate that nobody had is no past. The bases that learning put are live from
  where they end on; so is what learning began with. Any other version that went live has its place in the base that
  learning put from it, as learning goes on from the present: until it has, from the end of what was pushed on.
- Learning puts a base after whatever it passed over, so no fold learns what the gate refused.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec

from millstream.errors import BadInput, NotFound
from millstream.learn.learning import MADE_BY as LEARNT
from millstream.learn.learning import group
from millstream.learn.train import Training, in_words, known_before, known_by
from millstream.models import online
from millstream.models.manifest import Manifest
from millstream.models.policy import Policy
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


class _Base(NamedTuple):
    """A version that was live from example `at` on, with what came before it. `taken`: when somebody other than
    learning had put another version in the place of what was live; 0 where it continues that."""

    at: int
    version: str
    manifest: Manifest
    taken: float = 0.0


def rebuild(repository: Repository, log: Log, model: str, task: str, to: float, now: float, also: str = "") -> Rebuilt:
    """Put the weights that were live at `to` (unix seconds, not after `now`), with every example whose label was known
    by then, as a new version; nobody is served it yet. `task`: the one that the model learns; `also`: another model
    whose examples it learns too.

    BadInput: `to` is no time yet. NotFound: no base that was live is as old as that, or the log begins later than the
    one that is.
    """
    if not to <= now:
        raise BadInput(f"{model}: {to:.0f} is no time that has been yet (it is {in_words(now)}); give an earlier --to")
    examples = log.reader("examples")
    upto = known_by(examples, to)
    base = _newest(repository, log, model, upto, to)
    learner, metadata = online.load(repository.folder(model, base.version) / base.manifest.file)
    training = Training(learner, model, base.manifest.features, examples, base.at, task, also)
    if training.upto < upto and training.upto < examples.start(0):
        raise NotFound(
            f"{model}: base {base.version}, which was live at {in_words(to)}, ends before example {training.upto}, and "
            f"the log begins at {examples.start(0)}; give a later --to, or go back to the version as it is: "
            f"`millstream traffic rollback` with --to {base.version}"
        )
    learnt = 0
    while training.upto < upto and (folded := training.step(until=upto)) is not None:
        learnt += len(folded.batch.labels)
    learner.delta()  # the version holds these slots itself
    lineage: dict[str, object] = {"made_by": MADE_BY, "parent": base.version, "upto": training.upto}
    made = msgspec.structs.replace(base.manifest, lineage=lineage)
    version = repository.put(model, made, {base.manifest.file: learner.dump(metadata)})
    return Rebuilt(model, version, base.version, training.upto, learnt)


def _newest(repository: Repository, log: Log, model: str, upto: int, to: float) -> _Base:
    """The base that ends last of those that end by `upto`; of equals the newest that was live by `to`."""
    bases = _bases(repository, log, model)
    found = [base for base in bases if base.at <= upto]
    if by_then := [base for base in found if base.at < upto or base.taken <= to] or found:
        return max(by_then, key=lambda one: (one.at, int(one.version)))
    if not bases:
        raise NotFound(f"{model}: no version that was live says how far it has learnt, so none can be gone back to")
    oldest = min(bases, key=lambda one: (one.at, int(one.version)))
    known = known_before(log.reader("examples"), oldest.at)
    raise NotFound(
        f"{model}: the oldest base that is kept and was live, version {oldest.version}, ends at example {oldest.at}"
        f"{f', known {in_words(known)}' if known else ''}, later than {upto}, which is {in_words(to)}; give a later "
        "--to, or keep more of them (learn.push.bases_kept)"
    )


def _bases(repository: Repository, log: Log, model: str) -> list[_Base]:
    """The versions that were live and are there, each with its place."""
    live, lives, there = repository.policy(model).live, was_live(repository, model), repository.versions(model)
    first, pushed, found = next(iter(lives)), log.committed(group(model), "examples").get(0, 0), list[_Base]()
    for version in [one for one in lives if one in there]:
        manifest = repository.manifest(model, version)
        if "upto" not in manifest.lineage:
            continue
        at, parent = int(str(manifest.lineage["upto"])), str(manifest.lineage.get("parent", ""))
        if manifest.lineage.get("made_by") == LEARNT:
            begins = parent in there and repository.manifest(model, parent).lineage.get("made_by") != LEARNT
            found.append(_Base(at, version, manifest, lives[version] if begins else 0.0))
        elif version == first:
            found.append(_Base(at, version, manifest))
        elif version == live:
            found.append(_Base(max(at, pushed), version, manifest, lives[version]))
    return found


def was_live(repository: Repository, model: str) -> dict[str, float]:
    """The versions that everybody was served, those that are gone too, in order, and since when (unix seconds; 0 where
    nobody noted it)."""
    lives: dict[str, float] = {}
    for policy in (*repository.history(model), repository.policy(model)):
        lives.setdefault(policy.live, _when(policy))
    before, there = [next(iter(lives))], repository.versions(model)  # and of the time before there was a policy
    while before[-1] in there and (parent := repository.manifest(model, before[-1]).lineage.get("parent")):
        if parent in before:
            break
        before.append(str(parent))
    return dict.fromkeys(before[::-1], 0.0) | lives


def _when(policy: Policy) -> float:
    try:
        return datetime.fromisoformat(policy.when).timestamp()
    except ValueError:  # nobody noted it, or wrote it by hand
        return 0.0
