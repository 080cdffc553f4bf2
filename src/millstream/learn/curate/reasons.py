"""Why a row is worth a person's look. Each reason finds rows, with how much they are worth it and a sentence.

| reason | rows |
|---|---|
| sample | drawn evenly: the gold slice, that everything else is measured on |
| correction | whose user contradicted the answer, by an outcome of a kind that says so |
| disagreement | of which two models, or versions, say things far apart |
| slice | recent ones of a slice whose scores, or their distance to the labels, surely moved |
| cluster | of nearly equal rows whose labels contradict, or whose scores lie on both sides of the threshold |
| uncertain | whose calibrated score lies near the threshold |

"Surely": by a bound SURE standard errors below what was seen, so that chance names no slice among hundreds. The limit
is on how far it moved, never on a p-value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.learn.curate.near import clusters
from millstream.learn.curate.scan import Scan
from millstream.learn.curate.settings import CurateSettings
from millstream.learn.validation import Slice

SURE: Final = 4.0
CONFLICT: Final = 0.25  # of a cluster's rows on the other side
CLUSTER_MOST: Final = 200
LEAST: Final = 30  # rows of a slice, on either side of the moment, that a mean is taken of
GOLD: Final = "sample"
SPEECH: Final = ("speech-failed", "speech-loop", "speech-thin", "speech-unsure", "speech-voices", "speech-edited")
"""Why a final text of speech is worth a look: flows/speech/look.py puts those into the queue."""

Floats = NDArray[np.float64]


class Pick(NamedTuple):
    """A row that is worth a look: in [0, 1] how much, and why."""

    row: int
    worth: float
    said: str


class Moved(NamedTuple):
    """A slice that surely moved by so much, at least; `what`: "score" or "calibration"."""

    slice: str
    what: str
    by: float


def identity(request: str, item: str) -> str:
    """The id of the review of an item of a request: 16 hex digits."""
    return blake2b(f"{request}\0{item}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def drawn(request: str, item: str) -> float:
    """A number in [0, 1) that stays a row's own: by it rows are drawn evenly, the same in every run."""
    digest = blake2b(f"{item}\0{request}".encode("utf-8", "surrogatepass"), digest_size=8, person=b"drawn").digest()
    return int.from_bytes(digest) / 2**64


def corrections(rows: Scan, settings: CurateSettings, slices: Sequence[Slice]) -> list[Pick]:
    """Those that the model was surest of come first."""
    found = []
    for row, told in rows.corrected.items():
        words = f": {told.text[:200]}" if told.text else ""
        found.append(Pick(row, _unit(rows.calibrated[row]), f"the user said {told.kind}{words}"))
    return found


def disagreements(rows: Scan, settings: CurateSettings, slices: Sequence[Slice]) -> list[Pick]:
    """Those furthest apart come first."""
    found: dict[int, Pick] = {}
    for name, said in rows.others.items():
        apart = np.abs(said.astype(np.float64) - rows.scores)
        for row in np.flatnonzero(apart >= settings.apart).tolist():  # NaN is none
            if row not in found or apart[row] > found[row].worth:
                words = f"{rows.models[row]} {rows.versions[row]} says {rows.scores[row]:.2f}, {name} {said[row]:.2f}"
                found[row] = Pick(row, _unit(apart[row]), words)
    return list(found.values())


def moves(rows: Scan, settings: CurateSettings, slices: Sequence[Slice]) -> list[Moved]:
    """Slices that surely moved: between the latest rows and those before, in mean score, or in how far mean label and
    mean score of labelled rows lie apart."""
    recent = _recent(rows, settings)
    labelled = ~np.isnan(rows.labels)
    gap = np.where(labelled, rows.labels.astype(np.float64) - rows.scores, 0.0)
    found = []
    for one in slices:
        inside = one.of(rows.tokens)
        for what, values, has in (("calibration", gap, inside & labelled), ("score", rows.scores, inside)):
            by = _surely(values[has & recent], values[has & ~recent])
            if by >= settings.drift:
                found.append(Moved(one.name, what, by))
    return found


def drifting(rows: Scan, settings: CurateSettings, slices: Sequence[Slice]) -> list[Pick]:
    """Recent rows of slices that moved, drawn evenly: those of the slice that moved most come first."""
    by_name, recent = {one.name: one for one in slices}, _recent(rows, settings)
    found: dict[int, Pick] = {}
    for moved in sorted(moves(rows, settings, slices), key=lambda one: -one.by):
        words = f"{moved.what} of {moved.slice} moved by {moved.by:.2f} at least"
        for row in np.flatnonzero(by_name[moved.slice].of(rows.tokens) & recent).tolist():
            found.setdefault(row, Pick(row, _unit(moved.by), words))
    return list(found.values())


def undecided(rows: Scan, settings: CurateSettings, slices: Sequence[Slice]) -> list[Pick]:
    """Of each cluster on both sides the row without a label, or any, that lies nearest to the threshold; the most
    divided first."""
    found: dict[int, Pick] = {}
    labelled, above = ~np.isnan(rows.labels), rows.calibrated >= settings.threshold
    least = settings.cluster_rows
    for group in clusters(rows.tokens, settings.cluster, least, max(least, CLUSTER_MOST)):
        told = group[labelled[group]]
        by_labels = len(told) >= least
        rate = float((rows.labels[told] > 0.5).mean()) if by_labels else float(above[group].mean())
        if min(rate, 1 - rate) < CONFLICT:
            continue
        open_rows = group[~labelled[group]] if (~labelled[group]).any() else group
        row = int(open_rows[np.argmin(np.abs(rows.calibrated[open_rows] - settings.threshold))])
        what = "labels" if by_labels else "scores"
        words = f"of {len(told) if by_labels else len(group)} nearly equal rows {rate:.0%} have positive {what}"
        found[row] = Pick(row, _unit(2 * min(rate, 1 - rate)), words)
    return list(found.values())


def uncertain(rows: Scan, settings: CurateSettings, slices: Sequence[Slice]) -> list[Pick]:
    """Those nearest to the threshold come first."""
    off = np.abs(rows.calibrated - settings.threshold)
    return [
        Pick(row, _unit(1 - 2 * off[row]), f"calibrated score {rows.calibrated[row]:.2f}, near {settings.threshold:g}")
        for row in np.flatnonzero(off <= settings.uncertain).tolist()
    ]


def sample(rows: Scan, settings: CurateSettings, slices: Sequence[Slice]) -> list[Pick]:
    """All rows: drawn evenly, so nothing is said for one of them."""
    return [Pick(row, 0.0, "drawn by chance, to measure by") for row in range(len(rows))]


REASONS: Final[dict[str, Callable[[Scan, CurateSettings, Sequence[Slice]], list[Pick]]]] = {
    GOLD: sample,
    "correction": corrections,
    "disagreement": disagreements,
    "slice": drifting,
    "cluster": undecided,
    "uncertain": uncertain,
}
"""In the order in which they choose: the sample first, or what the others left would be no even one."""


def _recent(rows: Scan, settings: CurateSettings) -> NDArray[np.bool_]:
    """Which rows are the latest: by time, a share of them."""
    if not len(rows):
        return np.zeros(0, np.bool_)
    return np.asarray(rows.times >= np.quantile(rows.times, 1 - settings.recent), np.bool_)


def _surely(now: Floats, before: Floats) -> float:
    """How far two means lie apart at least; 0 where that may be nothing."""
    if min(len(now), len(before)) < LEAST:
        return 0.0
    error = np.sqrt(now.var(ddof=1) / len(now) + before.var(ddof=1) / len(before))
    return max(0.0, float(abs(now.mean() - before.mean()) - SURE * error))


def _unit(value: float) -> float:
    return float(min(1.0, max(0.0, value)))
