"""What a person says to learning, and what it says of itself: `millstream train`.

Nothing here talks to the role that learns: a person's word is the policy file, its own is a file in `state/learning`
and the counters of the servers. So all of it works while roles run, while they do not, and from another machine.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import numpy as np

from millstream.app.installation import Installation
from millstream.errors import Conflict, Error, Misconfigured, Missing, NotFound
from millstream.learn import offline
from millstream.learn.curate import dataset as stored
from millstream.learn.curate.dataset import Curated, Dataset
from millstream.learn.judge import Report, read_report
from millstream.learn.learning import MADE_BY as LEARNT
from millstream.learn.learning import group
from millstream.learn.offline import Plan, Progress, Source, Trained
from millstream.learn.rebuild import MADE_BY as ROLLED_BACK
from millstream.learn.rebuild import Rebuilt, rebuild, was_live
from millstream.learn.train import in_words, known_before
from millstream.learn.validation import Figures
from millstream.meter import Meter, quantile
from millstream.models import online, traffic
from millstream.models.manifest import Manifest
from millstream.models.policy import Guard, Policy
from millstream.stream import decode
from millstream.types import Delta

MADE_BY = "millstream train"
S = TypeVar("S", bound=msgspec.Struct)
NEWEST = 1000  # deltas that are looked through for the last one


def make_rows(at: Installation) -> None:
    """Make the rows of features out of the history, as `learn` would, so that the first ranking has them."""
    for one in at.registry.sets.values():
        from millstream.features.pipeline import Pipeline

        pipeline = Pipeline(one, at.log, at.rows, at.clock, Meter())
        while pipeline.step():
            pass
        pipeline.close()


def need_torch(what: str) -> None:
    """Missing: torch, or what writes ONNX, is not installed. Before the log is read and an hour is spent on it."""
    for package, extra in (("torch", "torch"), ("onnxscript", "convert")):
        if importlib.util.find_spec(package) is None:
            raise Missing.extra(extra, f"training {what} ({package})")


def chosen(settings: S, plan: Plan, table: str) -> S:
    """A network's settings of `table`, with those that the plan sets; Misconfigured for one that is not right."""
    try:
        return msgspec.convert(msgspec.to_builtins(settings) | plan.settings, type(settings))
    except msgspec.ValidationError as error:
        raise Misconfigured(f"{table}: {error}") from None


class Staleness(msgspec.Struct, frozen=True):
    """Of one process that serves, seconds from outcome to answer."""

    process: str
    p50_s: float
    p99_s: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a model learns. `learning`: run, paused, pinned or off; `live`: the base that is served; `offset`: where in
    topic `examples` the served weights end, `end`: where it ends itself (it also holds other models' and tasks'
    examples, and what was set aside); `watermark`: when the label of the model's last example before `offset` was
    known, unix seconds, 0 where there is none; `slope`, `intercept`: of the calibration; `figures`: by slice ("" for
    all) and source."""

    model: str
    learning: str
    why: str
    who: str
    live: str
    offset: int
    end: int
    watermark: float
    pushes_on_base: int
    slope: float
    intercept: float
    figures: dict[str, dict[str, Figures]]
    staleness: list[Staleness]


def folder_of(installation: Installation) -> Path:
    """Where each model that learns says how it does."""
    return installation.folder / "state" / "learning"


def status(installation: Installation) -> Status:
    """How the installation's model learns."""
    at, model = installation, installation.model
    if model not in at.repository.models():
        raise NotFound(f"{model} has no version yet; `millstream train offline` makes the first from the log")
    policy = at.repository.policy(model)
    who, why = _stopped(policy)
    examples = at.log.reader("examples")
    pushed = at.log.committed(group(model), "examples").get(0, 0)
    report = read_report(folder_of(at) / model) or Report(0, 0.0, 1.0, 0.0, {})
    return Status(
        model=model,
        learning=_state(at, policy),
        why=why,
        who=who,
        live=policy.live,
        offset=pushed,
        end=examples.end(0),
        watermark=known_before(examples, pushed, model, at.task.name, at.also),
        pushes_on_base=_pushes(at, policy.live),
        slope=round(report.slope, 4),
        intercept=round(report.intercept, 4),
        figures=report.figures,
        staleness=_staleness(at),
    )


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A version, trained offline on `examples`, with `settings` other than configured; `role`: what the policy gives
    it. Figures are of the examples that it was judged by: its own, those of the live version's file where that had
    learnt none of them, and of the scores served."""

    model: str
    version: str
    role: str
    examples: int
    settings: dict[str, Any]
    figures: dict[str, Figures]


def train(
    installation: Installation, plan: Plan | None = None, role: str = "", say: Progress = lambda line: None,
    dataset: str = "",
) -> Made:  # fmt: skip
    """Join all that the log holds and train a version of the installation's model from it by `plan`. The first version
    goes live; another enters as `role` says: "shadow", "canary" with a guard, or "" for nobody. Where a role joins
    already, what that made is trained from. `dataset`: "NAME" or "NAME@VERSION", labelled rows that are learnt beside
    them. BadInput: there is nothing to learn; NotFound, Conflict: there is no such dataset, or of other features."""
    if join(installation):
        say("another process joins what comes (`millstream up`?): training from the examples that are there")
    return train_joined(installation, plan or Plan(), role, say, dataset)


def join(at: Installation) -> bool:
    """Join all that the log holds; or whether that is left to a role which does so. While `up` runs nobody takes its
    place, also where `learn` is just starting again."""
    try:
        with at.alone():  # asked, and let go at once: `up` may start whenever it is told to
            pass
        operation = at.join()
    except Conflict:
        return True
    try:
        while operation.step():
            pass
    finally:
        operation.close()
    return False


def train_joined(
    installation: Installation, plan: Plan, role: str = "", say: Progress = lambda line: None, dataset: str = ""
) -> Made:
    """As `train`, from the examples that are there."""
    at = installation
    source = Source(at.model, at.definition.hash, at.definition.width, at.task, at.also)
    kind, state = at.settings.learner.kind, at.folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    live = at.repository.policy(at.model).live if at.model in at.repository.models() else ""
    beside = at.repository.manifest(at.model, live) if live else None
    of, curated = _curated(at, dataset) if dataset else (None, None)
    trained = offline.train(
        at.log.reader("examples"), source, plan, lambda other: at.learner(**other), kind, state, say,
        had=int(str(beside.lineage.get("upto", 0))) if beside else 0,
        some=beside is not None and beside.features == source.definition and not at.settings.learner.start,
        curated=curated,
    )  # fmt: skip
    found = {"candidate": trained.figures, "live": _live(at, live, trained, say), "served": trained.served}
    if curated is not None:
        found |= _by_gold(at, live, trained, curated)
    figures = {name: one for name, one in found.items() if one is not None}
    version, role = put(at, at.model, *_version(at, plan, trained, figures, of), role)
    return Made(
        model=at.model,
        version=version,
        role=role,
        examples=trained.examples,
        settings=msgspec.to_builtins(trained.learner.settings),
        figures=figures,
    )


def put(at: Installation, model: str, manifest: Manifest, files: dict[str, bytes], role: str) -> tuple[str, str]:
    """Put what was trained as a version, give it its part (`train`) and drop old ones; the version, and its part."""
    live = at.repository.policy(model).live if model in at.repository.models() else ""
    version = at.repository.put(model, manifest, files)
    role = _enter(at, model, version, live, role)
    _drop_old(at, model)
    return version, role


def _version(
    at: Installation, plan: Plan, trained: Trained, figures: dict[str, Figures], of: Dataset | None
) -> tuple[Manifest, dict[str, bytes]]:
    learner = trained.learner
    learner.delta()  # a base carries these slots itself
    manifest = Manifest(
        format=learner.kind,
        file=f"model.{learner.kind}",
        features=at.definition.hash,
        settings=msgspec.to_builtins(learner.settings),
        lineage={
            "made_by": MADE_BY,
            "examples": trained.examples,
            "upto": trained.upto,
            "passes": plan.passes,
            "figures": {name: known_of(one) for name, one in figures.items()},
            **({"dataset": f"{of.name}@{of.version}", "dataset_digest": of.digest} if of else {}),
        },
    )
    slope, intercept = trained.calibration.fit() if at.settings.learn.calibrate else (1.0, 0.0)
    correction = msgspec.structs.replace(at.task.correction, slope=slope, intercept=intercept)
    metadata = {**correction.metadata(), "calibration": trained.calibration.dump()}
    return manifest, {manifest.file: learner.dump(metadata)}


def _curated(at: Installation, spec: str) -> tuple[Dataset, Curated]:
    """A dataset, and its rows. NotFound; Corrupt; Conflict: other features made its rows."""
    of = stored.find(at.folder / "datasets", spec)
    if of.definition != at.definition.hash:
        raise Conflict(
            f"dataset {of.name}@{of.version} has rows of features {of.definition}, and [features] is "
            f"{at.definition.hash} now: label rows of these, `millstream curate fill` finds some"
        )
    return of, stored.columns(of, stored.rows(at.folder / "datasets", of))


def _by_gold(at: Installation, live: str, trained: Trained, curated: Curated) -> dict[str, Figures | None]:
    """How good what was trained is by gold rows, and beside it the live version's file, and what a teacher added."""
    correction = at.task.correction
    found = {"candidate by gold": offline.judged_by(trained.learner.served(correction), curated)}
    if trained.plain is not None:
        found["without a teacher by gold"] = offline.judged_by(trained.plain.served(correction), curated)
    if live and at.repository.manifest(at.model, live).features == at.definition.hash:
        with suppress(Error):
            file = at.repository.folder(at.model, live) / at.repository.manifest(at.model, live).file
            found["live by gold"] = offline.judged_by(online.load_served(file), curated)
    return found


def known_of(one: Figures) -> dict[str, float]:
    return {name: value for name, value in msgspec.to_builtins(one).items() if value is not None}


def _live(at: Installation, live: str, trained: Trained, say: Progress) -> Figures | None:
    """How good the live version's file is on the same rows; None where it cannot be asked, or has learnt any of them:
    nobody is judged by what he was told."""
    if not live or trained.first >= len(trained.rows):
        return None
    if (known := trained.rows.had - trained.first) > 0:
        say(f"version {live} is live and had learnt {known} of the examples to judge by: `served` is how good it was")
        return None
    try:
        manifest = at.repository.manifest(at.model, live)
        served = online.load_served(at.repository.folder(at.model, live) / manifest.file)
        if manifest.features != at.definition.hash:
            return None
        scores = served.predict({"tokens": np.ascontiguousarray(trained.rows.tokens[trained.first :])})["probability"]
    except Error:
        return None
    return offline.figures(scores.astype(np.float32), trained.rows, trained.first, len(trained.rows))


def _enter(at: Installation, model: str, version: str, live: str, role: str) -> str:
    """Give a new version its part in the policy; what that is."""
    if not live:
        why = f"version {version} was trained, and is the first"
        at.repository.change_policy(model, lambda now: msgspec.structs.replace(now, live=version), who=MADE_BY, why=why)
        return "live"
    why = f"version {version} was trained"
    if role == "shadow":
        at.repository.change_policy(
            model, lambda now: traffic.shadow([*_others(at, model, now), version])(now), who=MADE_BY, why=why
        )
    elif role == "canary":
        traffic.make(
            at.repository, model, "canary", traffic.TryOut(version=version, guard=Guard(), who=MADE_BY, why=why)
        )
    else:
        at.repository.change_policy(
            model, lambda now: msgspec.structs.replace(now, live=now.live or version), who=MADE_BY,
            why=f"{why}; {live} stays live until somebody promotes it",
        )  # fmt: skip
    return role


def _others(at: Installation, model: str, policy: Policy) -> list[str]:
    """The shadows that somebody else gave the model: a new one of ours takes the place of an earlier one."""
    return [one for one in policy.shadow if at.repository.manifest(model, one).lineage.get("made_by") != MADE_BY]


def _drop_old(at: Installation, model: str) -> None:
    """Remove the oldest versions that `train` and its roll back made, beyond as many as there may be bases: of those
    that were live and of those that never were. What the policy names stays, and what a kept base came from."""
    manifests: dict[str, Manifest] = {}
    for one in at.repository.versions(model):
        with suppress(NotFound, OSError):  # learning removes its own meanwhile
            manifests[one] = at.repository.manifest(model, one)
    lives, policy = was_live(at.repository, model), at.repository.policy(model)
    needed = {*policy.named(), next(iter(lives))}
    for lineage in (manifest.lineage for manifest in manifests.values()):
        if lineage.get("made_by") == LEARNT:
            needed |= {str(lineage.get("parent")), str(lineage.get("frozen"))}
    ours = [one for one, manifest in manifests.items() if manifest.lineage.get("made_by") in (MADE_BY, ROLLED_BACK)]
    for kind in ([one for one in ours if one in lives], [one for one in ours if one not in lives]):
        for version in kind[: -at.settings.learn.push.bases_kept]:
            if version not in needed:
                with suppress(Conflict, NotFound):  # it was given a part meanwhile, or is gone
                    at.repository.remove(model, version)


def change(installation: Installation, state: str, who: str, why: str, policy: int | None = None) -> Policy:
    """Pause learning (`paused`) or let it go on (`run`); the policy after it. Conflict: it is not number `policy` any
    more, where that is said."""
    said = why or ("let go on by `train resume`" if state == "run" else "paused by `train pause`")
    move = traffic.Learning(state="run" if state == "run" else "paused", policy=policy, who=who, why=said)
    return traffic.make(installation.repository, installation.model, "learning", move)


def roll_back(installation: Installation, to: float, who: str, why: str) -> Rebuilt:
    """Serve what was live at `to` (unix seconds) with what it had learnt of labels that were known by then, as a
    version of its own. Learning goes on from there with what comes from now on: what came between is not learnt again.
    BadInput: `to` is still to come; NotFound: nothing that was live is kept from so long ago."""
    at, model = installation, installation.model
    made = rebuild(at.repository, at.log, model, at.task.name, to, at.clock.now(), at.also)
    why = why or f"weights as of {in_words(to)}"
    at.repository.change_policy(model, traffic.promote(made.version), who=who, why=why)
    _drop_old(at, model)
    return made


def _state(at: Installation, policy: Policy) -> str:
    if at.settings.learn.model != at.model:
        return "off"
    return "pinned" if policy.pin else policy.learning


def _stopped(policy: Policy) -> tuple[str, str]:
    """Who pinned the model or paused its learning, and why; of a file written by hand, who changed it last."""
    by, why = policy.paused_by, policy.paused_why
    if policy.pin and not policy.gate_pinned:
        by, why = policy.pinned_by, policy.pinned_why
    return (by, why) if by or why else (policy.who, policy.why)


def _pushes(at: Installation, base: str) -> int:
    """The sequence of the last delta on a base, of those read back."""
    reader = at.log.reader("deltas")
    first = max(reader.start(0), reader.end(0) - NEWEST)
    last = 0
    for record in reader.records(0, first):
        delta = decode(record.value)
        if isinstance(delta, Delta) and (delta.model, delta.base) == (at.model, base):
            last = delta.sequence
    return last


def _staleness(at: Installation) -> list[Staleness]:
    """Of each process that serves."""
    found = []
    for spec in Meter.reading(at.folder / "state" / "meters").total().values():
        if spec["name"] == "millstream_staleness_seconds":
            bounds, counts = tuple(cast(list[float], spec["bounds"])), cast(list[float], spec["values"])[:-1]
            process = cast(dict[str, str], spec["labels"]).get("process", "")
            p50, p99 = (round(quantile(bounds, counts, q), 3) for q in (0.5, 0.99))
            found.append(Staleness(process, p50, p99))
    return sorted(found, key=lambda one: one.process)
