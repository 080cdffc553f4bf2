"""What a person says to learning, and what it says of itself: `millstream train`.

Nothing here talks to the role that learns: a person's word is the policy file, its own is a file in `state/learning`
and the counters of the servers. So all of it works while roles run, while they do not, and from another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from millstream.app.installation import Installation
from millstream.errors import Error, NotFound
from millstream.learn import offline
from millstream.learn.judge import Report, read_report
from millstream.learn.learning import group
from millstream.learn.offline import Plan, Progress, Source, Trained
from millstream.learn.rebuild import Rebuilt, rebuild
from millstream.learn.train import known_by
from millstream.learn.validation import Figures
from millstream.meter import Meter, quantile
from millstream.models import online, traffic
from millstream.models.manifest import Manifest
from millstream.models.policy import Guard, Policy
from millstream.stream import decode
from millstream.types import Delta, Example

NEWEST = 1000  # deltas that are looked through for the last one


class Staleness(msgspec.Struct, frozen=True):
    """Of one process that serves, seconds from outcome to answer."""

    process: str
    p50_s: float
    p99_s: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a model learns. `learning`: run, paused, pinned or off; `live`: the base that is served; `pushed`: the
    example before which the served weights end, of `examples` in all; `watermark`: when the label of the last of them
    was known, unix seconds; `slope`, `intercept`: of the calibration; `figures`: by slice ("" for all) and source."""

    model: str
    learning: str
    why: str
    who: str
    live: str
    pushed: int
    examples: int
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
    examples = at.log.reader("examples")
    pushed = at.log.committed(group(model), "examples").get(0, 0)
    report = read_report(folder_of(at) / model) or Report(0, 0.0, 1.0, 0.0, {})
    return Status(
        model=model,
        learning=_state(at, policy),
        why=policy.why,
        who=policy.who,
        live=policy.live,
        pushed=pushed,
        examples=examples.end(0),
        watermark=_known(at, pushed - 1),
        pushes_on_base=_pushes(at, policy.live),
        slope=round(report.slope, 4),
        intercept=round(report.intercept, 4),
        figures=report.figures,
        staleness=_staleness(at),
    )


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A version, trained offline on `examples`, with `settings` other than configured; `role`: what the policy gives
    it. Figures are of the examples that it was judged by: its own, the live version's, and of the scores served."""

    model: str
    version: str
    role: str
    examples: int
    settings: dict[str, Any]
    figures: dict[str, Figures]


def train(
    installation: Installation, plan: Plan | None = None, role: str = "", say: Progress = lambda line: None
) -> Made:
    """Join all that the log holds and train a version of the installation's model from it by `plan`. The first version
    goes live; another enters as `role` says: "shadow", "canary" with a guard, or "" for nobody."""
    operation = installation.join()
    while operation.step():
        pass
    operation.close()
    return train_joined(installation, plan or Plan(), role, say)


def train_joined(installation: Installation, plan: Plan, role: str = "", say: Progress = lambda line: None) -> Made:
    """As `train`, from the examples that are there."""
    at = installation
    source = Source(at.model, at.definition.hash, at.definition.width, at.task)
    kind, state = at.settings.learner.kind, at.folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    trained = offline.train(
        at.log.reader("examples"), source, plan, lambda other: at.learner(**other), kind, state, say
    )
    live = at.repository.policy(at.model).live if at.model in at.repository.models() else ""
    found = {"candidate": trained.figures, "live": _live(at, live, trained), "served": trained.served}
    figures = {name: one for name, one in found.items() if one is not None}
    version = at.repository.put(at.model, *_version(at, plan, trained, figures))
    return Made(
        model=at.model,
        version=version,
        role=_enter(at, version, live, role),
        examples=trained.examples,
        settings=msgspec.to_builtins(trained.learner.settings),
        figures=figures,
    )


def _version(
    at: Installation, plan: Plan, trained: Trained, figures: dict[str, Figures]
) -> tuple[Manifest, dict[str, bytes]]:
    learner = trained.learner
    learner.delta()  # a base carries these slots itself
    manifest = Manifest(
        format=learner.kind,
        file=f"model.{learner.kind}",
        features=at.definition.hash,
        settings=msgspec.to_builtins(learner.settings),
        lineage={
            "made_by": "millstream train",
            "examples": trained.examples,
            "upto": trained.upto,
            "passes": plan.passes,
            "figures": {name: _known_of(one) for name, one in figures.items()},
        },
    )
    slope, intercept = trained.calibration.fit() if at.settings.learn.calibrate else (1.0, 0.0)
    correction = msgspec.structs.replace(at.task.correction, slope=slope, intercept=intercept)
    metadata = {**correction.metadata(), "calibration": trained.calibration.dump()}
    return manifest, {manifest.file: learner.dump(metadata)}


def _known_of(one: Figures) -> dict[str, float]:
    return {name: value for name, value in msgspec.to_builtins(one).items() if value is not None}


def _live(at: Installation, live: str, trained: Trained) -> Figures | None:
    """How good the live version's file is on the same rows; None where it cannot be asked."""
    if not live or trained.first >= len(trained.rows):
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


def _enter(at: Installation, version: str, live: str, role: str) -> str:
    """Give a new version its part in the policy; what that is."""
    by = "millstream train"
    if not live:
        why = f"version {version} was trained, and is the first"
        at.repository.change_policy(at.model, lambda now: msgspec.structs.replace(now, live=version), who=by, why=why)
        return "live"
    why = f"version {version} was trained"
    if role == "shadow":
        shadows = (*at.repository.policy(at.model).shadow, version)
        traffic.make(at.repository, at.model, "shadow", traffic.Copy(versions=shadows, who=by, why=why))
    elif role == "canary":
        traffic.make(at.repository, at.model, "canary", traffic.TryOut(version=version, guard=Guard(), who=by, why=why))
    else:
        at.repository.change_policy(
            at.model, lambda now: msgspec.structs.replace(now, live=now.live or version), who=by,
            why=f"{why}; {live} stays live until somebody promotes it",
        )  # fmt: skip
    return role


def change(installation: Installation, state: str, who: str, why: str) -> Policy:
    """Pause learning (`paused`) or let it go on (`run`); the policy after it."""
    move = traffic.Learning(state="run" if state == "run" else "paused", who=who, why=why)
    return traffic.make(installation.repository, installation.model, "learning", move)


def roll_back(installation: Installation, to: float, who: str, why: str) -> Rebuilt:
    """Serve what had been learnt of labels that were known by `to` (unix seconds), as a version of its own. Learning
    goes on from there with what comes from now on: what came between is not learnt again."""
    at, model = installation, installation.model
    made = rebuild(at.repository, at.log, model, at.task.name, known_by(at.log.reader("examples"), to))
    at.repository.change_policy(model, traffic.promote(made.version), who=who, why=why or f"weights as of {to:.0f}")
    return made


def _state(at: Installation, policy: Policy) -> str:
    if at.settings.learn.model != at.model:
        return "off"
    return "pinned" if policy.pin else policy.learning


def _known(at: Installation, offset: int) -> float:
    """When the label of an example was known; 0 where it is gone, or none."""
    reader = at.log.reader("examples")
    if not reader.start(0) <= offset < reader.end(0):
        return 0.0
    event = decode(reader.read(0, offset, 1)[0].value)
    return event.arrival + event.wait_s if isinstance(event, Example) else 0.0


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
