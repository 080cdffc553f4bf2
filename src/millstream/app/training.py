"""What a person says to learning, and what it says of itself: `millstream train`.

Nothing here talks to the role that learns: a person's word is the policy file, its own is a file in `state/learning`
and the counters of the servers. So all of it works while roles run, while they do not, and from another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec

from millstream.app.installation import Installation
from millstream.errors import NotFound
from millstream.learn.judge import Report, read_report
from millstream.learn.learning import group
from millstream.learn.rebuild import Rebuilt, rebuild
from millstream.learn.validation import Figures
from millstream.meter import Meter, quantile
from millstream.models import traffic
from millstream.models.policy import Policy
from millstream.stream import decode
from millstream.types import Delta

NEWEST = 1000  # deltas that are looked through for the last one


class Staleness(msgspec.Struct, frozen=True):
    """Of one process that serves, seconds from outcome to answer."""

    process: str
    p50_s: float
    p99_s: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a model learns. `learning`: run, paused, pinned or off; `live`: the base that is served; `pushed`: the
    example before which the served weights end, of `examples` in all; `watermark`: when the last of them came, unix
    seconds; `slope`, `intercept`: of the calibration; `figures`: by slice ("" for all) and source."""

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
        watermark=_arrival(at, pushed - 1),
        pushes_on_base=_pushes(at, policy.live),
        slope=round(report.slope, 4),
        intercept=round(report.intercept, 4),
        figures=report.figures,
        staleness=_staleness(at),
    )


def change(installation: Installation, state: str, who: str, why: str) -> Policy:
    """Pause learning (`paused`) or let it go on (`run`); the policy after it."""
    move = traffic.Learning(state="run" if state == "run" else "paused", who=who, why=why)
    return traffic.make(installation.repository, installation.model, "learning", move)


def roll_back(installation: Installation, to: float, who: str, why: str) -> Rebuilt:
    """Serve what had been learnt by `to` (unix seconds, when examples came), as a version of its own. Learning goes on
    from there with what comes from now on: what came between is not learnt again."""
    at, model = installation, installation.model
    examples = at.log.reader("examples")
    upto = examples.start(0)
    for record in examples.records(0):
        if record.arrival > to:
            break
        upto = record.offset + 1
    made = rebuild(at.repository, at.log, model, upto)
    at.repository.change_policy(model, traffic.promote(made.version), who=who, why=why or f"weights as of {to:.0f}")
    return made


def _state(at: Installation, policy: Policy) -> str:
    if at.settings.learn.model != at.model:
        return "off"
    return "pinned" if policy.pin else policy.learning


def _arrival(at: Installation, offset: int) -> float:
    """When an example came; 0 where it is gone."""
    reader = at.log.reader("examples")
    if not reader.start(0) <= offset < reader.end(0):
        return 0.0
    return reader.read(0, offset, 1)[0].arrival


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
