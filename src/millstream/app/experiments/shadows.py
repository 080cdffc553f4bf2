"""What shadow versions of a model said to requests that another version answered, from the log.

A process compares all that it shadows (watch/shadow.py) and forgets it when it stops; the log has the scores of both,
so that what a shadow says can stand in a report, days later.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec
import numpy as np

from millstream.app.experiments.told import Shadowed
from millstream.app.installation import Installation
from millstream.meter import Meter
from millstream.stream import LenientReader
from millstream.stream.event import decode
from millstream.types import Forgotten, Shadow
from millstream.watch.shadow import spearman

KEPT: Final = 2000
"""Requests of a shadow version that are compared, the latest."""
VERSIONS_MAX: Final = 8
LATE_S: Final = 3600.0
"""How long after its request a copy may have been computed."""


class _Answered(msgspec.Struct, frozen=True, tag="served", gc=False):
    request: str
    model: str
    event_time: float
    scores: bytes = b""


def shadows(at: Installation, model: str, since: float, until: float) -> list[Shadowed]:
    """Each shadow version of the model that the log knows of, beside what was answered at `since` to `until`."""
    told: dict[str, OrderedDict[str, bytes]] = {}
    reader = LenientReader(at.log.reader("shadow"), Meter())
    for partition in reader.partitions():
        for record, event in reader.decoded(partition, 0, decode):
            if isinstance(event, Shadow) and event.model == model and since <= record.arrival <= until + LATE_S:
                kept = told.setdefault(event.version.partition("@")[0], OrderedDict())
                kept[event.request] = event.scores
                if len(kept) > KEPT:
                    kept.popitem(last=False)
                if len(told) > VERSIONS_MAX:
                    del told[next(iter(told))]
    if not told:
        return []
    answered = _answered(at, model, {request for kept in told.values() for request in kept}, since, until)
    return [_compared(version, kept, answered) for version, kept in told.items() if kept.keys() & answered.keys()]


def _answered(at: Installation, model: str, wanted: set[str], since: float, until: float) -> dict[str, bytes]:
    """Request -> the scores that were answered; of the log only what is wanted is decoded."""
    keys = {request.encode() for request in wanted}
    read = msgspec.msgpack.Decoder(_Answered | Forgotten).decode
    found: dict[str, bytes] = {}
    reader = LenientReader(at.log.reader("served"), Meter())
    for partition in reader.partitions():
        for record in reader.records(partition, 0):
            if record.key not in keys:
                continue
            try:
                event = read(record.value)
            except msgspec.MsgspecError:
                continue  # counted where the lists were matched
            if isinstance(event, _Answered) and event.model == model and since <= event.event_time <= until:
                found[event.request] = event.scores
    return found


def _compared(version: str, told: OrderedDict[str, bytes], answered: dict[str, bytes]) -> Shadowed:
    pairs = []
    for request, scores in told.items():
        live, other = (np.frombuffer(one, "<f4").astype(np.float64) for one in (answered.get(request, b""), scores))
        if len(live) and len(live) == len(other) and np.isfinite(live).all() and np.isfinite(other).all():
            pairs.append((live, other))
    if not pairs:
        return Shadowed(
            version=version, requests=0, correlation=None, rank_correlation=None, apart=None, other_first=None
        )
    lives, others = (np.concatenate(one) for one in zip(*pairs, strict=True))
    ranks = [rank for live, other in pairs if len(live) >= 3 and (rank := spearman(live, other)) is not None]
    several = [live.argmax() != other.argmax() for live, other in pairs if len(live) > 1]
    varies = lives.std() > 0 and others.std() > 0
    return Shadowed(
        version=version, requests=len(pairs),
        correlation=float(np.corrcoef(lives, others)[0, 1]) if varies else None,
        rank_correlation=float(np.mean(ranks)) if ranks else None,
        apart=float(np.abs(lives - others).mean()), other_first=float(np.mean(several)) if several else None,
    )  # fmt: skip
