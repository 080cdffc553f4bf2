"""What was asked and answered, out of one served event: every candidate's way to its place.

Rules of the room:
- Arrays of an event that do not have a number for each candidate say nothing; that is a note, never an error.
- Names of items are those of the log here; `app/story.py` takes a tenant's part off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millstream.app.installation import Installation
from millstream.app.trace.told import SHADOWS_MAX, Answered, Asked, Candidate, Change
from millstream.errors import Error
from millstream.flows.recommend.score import silent
from millstream.types import Served, Shadow

HISTORY = "history"
"""What `log import` calls the version that answered."""
Floats = NDArray[np.float32]


def asked(at: Installation, served: Served, tenant: str, times: int) -> Asked:
    """Who asked for what."""
    return Asked(
        user=served.user, placement=served.placement, rules=served.rules, rules_hash=served.rules_hash,
        rules_same=_same_rules(at, served, tenant), context=served.context, history=served.history,
        event_time=served.event_time, times=times,
    )  # fmt: skip


def answered(at: Installation, served: Served, shadows: Sequence[Shadow]) -> Answered:
    """Who answered, and who had made the policy what it was."""
    lineage = lineage_of(at, served.model, served.version)
    definition: bool | None = None
    if served.definition and at.settings.features is not None:
        with suppress(Error):
            definition = at.definition.hash == served.definition
    said = {
        f"{one.model} {one.version}": _finite(np.frombuffer(one.scores, "<f4")[:SHADOWS_MAX])
        for one in shadows
        if not served.candidates and len(one.scores) % 4 == 0
    }
    return Answered(
        model=served.model, version=served.version, arm=served.arm, policy=served.policy,
        changed=changed(at, served.model, served.policy), made_by=str(lineage.get("made_by", "")),
        parent=str(lineage.get("parent", "")), instead=served.ranker, missed=[*served.late, *silent(served.beside)],
        beside={name: one.version for name, one in served.beside.items()}, definition=served.definition,
        definition_same=definition, shadows=said,
    )  # fmt: skip


def changed(at: Installation, model: str, number: int) -> Change | None:
    """Who made policy `number` of a model; None where there is no file of that number in the history."""
    if not number:
        return None
    with suppress(Error, OSError):
        for policy in at.repository.newest_first(model):
            if policy.version == number:
                return Change(policy.version, policy.who, policy.why, policy.when)
            if policy.version < number:
                break
    return None


def lineage_of(at: Installation, model: str, version: str) -> Mapping[str, object]:
    """What a version's manifest says of where it comes from; nothing of one that is gone."""
    base = version.partition("@")[0]
    if base.isdecimal():
        with suppress(Error, OSError):
            return at.repository.manifest(model, base).lineage
    return {}


def candidates(served: Served, shadows: Sequence[Shadow], notes: list[str]) -> list[Candidate]:
    """Every candidate, those of the answer first, in its order. What cannot be read is told in `notes`."""
    n = len(served.candidates)
    if not n:
        return []
    arrays = _Arrays(n, notes)
    recalled = arrays.floats("recalled", served.recalled)
    outputs = {"probability": arrays.floats("scores", served.scores)}
    for model, beside in served.beside.items():
        outputs |= {f"{model}.{name}": arrays.floats(f"{model}.{name}", raw) for name, raw in beside.outputs.items()}
    chances = arrays.floats("propensities", served.propensities)
    shadow = {f"{one.model} {one.version}": arrays.floats("shadow", one.scores) for one in shadows}
    final, order = _final(served, outputs["probability"], arrays), _order(served, outputs["probability"], arrays)
    position = {place: number for number, place in enumerate(order, 1)}
    sources = arrays.numbers("sources", served.sources)
    prices = np.frombuffer(served.prices, "<f4") if len(served.prices) == 4 * len(order) else None

    def one(place: int) -> Candidate:
        at = position.get(place, 0)
        return Candidate(
            item=served.candidates[place],
            position=at,
            sources=[] if sources is None else named(served.paths, int(sources[place])),
            recall=_number(recalled, place),
            outputs=_of(outputs, place),
            shadow=_of(shadow, place),
            score=_number(final, place),
            reasons=served.reasons[at - 1].split() if 0 < at <= len(served.reasons) else [],
            propensity=_number(chances, place),
            explored=place == served.explored,
            price=_number(prices, at - 1) if at else None,
        )

    rest = [place for place in range(n) if place not in position]
    return [one(place) for place in (*order, *rest)]


def named(paths: Sequence[str], bits: int) -> list[str]:
    """The paths of recall that a candidate's bits say."""
    return [name for bit, name in enumerate(paths) if bits >> bit & 1]


class _Arrays:
    """Reads an event's arrays of one number a candidate; what has another length is told once and is None."""

    def __init__(self, n: int, notes: list[str]) -> None:
        self._n, self.notes = n, notes

    def floats(self, name: str, raw: bytes) -> Floats | None:
        return self._read(name, raw, "<f4")

    def numbers(self, name: str, raw: bytes) -> NDArray[Any] | None:
        return self._read(name, raw, "<u4")

    def _read(self, name: str, raw: bytes, kind: str) -> NDArray[Any] | None:
        if not raw:
            return None
        if len(raw) != 4 * self._n:
            self.notes.append(f"{name} of the event has {len(raw)} bytes, and there are {self._n} candidates: left out")
            return None
        return np.frombuffer(raw, kind)


def _order(served: Served, scores: Floats | None, arrays: _Arrays) -> list[int]:
    """Places in the order of the answer."""
    n = len(served.candidates)
    if served.placement:
        order = np.frombuffer(served.order, "<u4").tolist() if len(served.order) % 4 == 0 else [n]
        if any(place >= n for place in order):
            arrays.notes.append("the order of the list names candidates that the event does not have: left out")
            return []
        return list(dict.fromkeys(order))
    if served.version == HISTORY or scores is None:
        return list(range(n))
    order = np.argsort(-scores, kind="stable").tolist()
    if 0 <= served.explored < n:
        order.insert(0, order.pop(order.index(served.explored)))
    return list(order)


def _final(served: Served, scores: Floats | None, arrays: _Arrays) -> Floats | None:
    """What a list was put in order by; of a ranking, its probability."""
    if not served.slate:
        return scores
    from millstream.flows.rerank.slate import Slate

    try:
        return Slate.unpack(served.slate, served.candidates).scores
    except Error as error:
        arrays.notes.append(str(error))
        return scores


def _same_rules(at: Installation, served: Served, tenant: str) -> bool | None:
    """Whether the settings have the rules still that a list was made by."""
    placement = at.settings.recommend.places.get(tenant, {}).get(served.placement)
    if not served.rules_hash or placement is None:
        return None if not served.rules_hash else False
    if served.rules and served.rules not in placement.arms:
        return False
    return placement.rules(served.rules).hash(placement.list_max) == served.rules_hash


def _of(several: Mapping[str, Floats | None], place: int) -> dict[str, float]:
    known = {name: _number(array, place) for name, array in several.items()}
    return {name: value for name, value in known.items() if value is not None}


def _number(array: NDArray[Any] | None, place: int) -> float | None:
    """A number as JSON can say it; None where there is none."""
    if array is None or not math.isfinite(value := float(array[place])):
        return None
    return value


def _finite(array: NDArray[Any]) -> list[float]:
    return [value if math.isfinite(value) else 0.0 for value in array.tolist()]
