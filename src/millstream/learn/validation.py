"""Scores beside labels, before the labels are learnt: AUC, log loss, calibration, overall and per slice.

Rules of the room:
- Whole requests are judged, not rows one by one: the *served* score was given to a request before anything of it was
  known. What is judged beside it (the weights a moment before they learn, the version before, the one that stands
  still) sees the same rows and labels, or the comparison says nothing.
- A label counts for what it says of the world, not for how it is learnt: a negative that stands for others (sampling)
  counts for all of them, a positive that comes after its own negative takes that back, a second telling counts nothing.
- The past fades, in steps that depend on how many rows there were: rows in pieces and rows at once give the same books.
- Log odds are kept in bins of 0.05: an AUC is exact up to ties within one, some 0.0003.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import Misconfigured
from millstream.features import Definition, Rows, Texts

Floats = NDArray[np.float64]

EDGE: Final = 12.0
STEP: Final = 0.05
BINS: Final = round(2 * EDGE / STEP)
STEPS: Final = 10  # so often in a window the past fades
GROUPS: Final = 10  # of equal weight, for the calibration error
WHO: Final = ("served", "learner", "previous", "frozen")


class ValidationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What scores are judged by."""

    window: Annotated[
        int, msgspec.Meta(ge=1000, le=100_000_000, description="examples after which a judged one counts 1/e")
    ] = 50_000
    slices: Annotated[
        dict[str, tuple[str, ...]],
        msgspec.Meta(description='columns whose values are judged apart: {"user.sex" = ["F", "M"]}'),
    ] = {}


class Labels(NamedTuple):
    """Labels as they are judged, each [n]: 0 or 1; `counts`, how many examples one stands for; `takes_back`, whether it
    comes after a negative of its own, which it unsays."""

    labels: Floats
    counts: Floats
    takes_back: NDArray[np.bool_]

    def some(self, rows: slice | NDArray[np.bool_]) -> Labels:
        """Those of some rows."""
        return Labels(self.labels[rows], self.counts[rows], self.takes_back[rows])


def pieces(seen: int, count: int, every: int) -> Iterator[tuple[slice, bool]]:
    """`count` rows in pieces that end where the number of all rows, `seen` before them, is a multiple of `every`; with
    each, whether it ends there."""
    at = 0
    while at < count:
        until = min(count, at + every - (seen + at) % every)
        yield slice(at, until), (seen + until) % every == 0
        at = until


class Figures(msgspec.Struct, frozen=True):
    """How good scores are. `examples` and `positives` that count (faded); `ece`: expected calibration error, over ten
    groups of equal weight; `ratio`: mean score over rate of positives, 1 is honest. NaN becomes None: not known."""

    examples: float
    positives: float
    auc: float | None
    logloss: float | None
    ece: float | None
    ratio: float | None


class Scores:
    """Fading books of one source of scores: positives, all, and sums of scores by log odds."""

    def __init__(self) -> None:
        self.table: Floats = np.zeros((3, BINS))
        self._loss = 0.0

    def add(self, scores: Floats, judged: Labels) -> None:
        """Probabilities [n] with their labels."""
        p = np.clip(scores, 1e-6, 1 - 1e-6)
        odds = np.log(p) - np.log1p(-p)
        at = np.clip(((odds + EDGE) / STEP).astype(np.int64), 0, BINS - 1)
        labels, counts, back = judged
        every = np.where(back, 0.0, counts)  # a positive that takes a negative back makes no example more
        np.add.at(self.table[0], at, counts * labels)
        np.add.at(self.table[1], at, every)
        np.add.at(self.table[2], at, every * p)
        losses = counts * np.where(labels > 0, -np.log(p) + np.where(back, np.log1p(-p), 0.0), -np.log1p(-p))
        self._loss = float(
            np.cumsum(np.append(self._loss, losses))[-1]
        )  # one by one: pieces and the whole add up alike

    def fade(self, by: float) -> None:
        self.table *= by
        self._loss *= by

    def figures(self) -> Figures:
        positive, every, sums = self.table
        negative = every - positive
        n, yes, no = float(every.sum()), float(positive.sum()), float(negative.sum())
        auc = ((np.cumsum(negative) - negative / 2) * positive).sum() / (yes * no) if yes > 0 and no > 0 else None
        return Figures(
            examples=round(n, 1),
            positives=round(yes, 1),
            auc=None if auc is None else float(auc),
            logloss=self._loss / n if n > 0 else None,
            ece=_ece(positive, every, sums) if n > 0 else None,
            ratio=float(sums.sum()) / yes if yes > 0 else None,
        )

    def state(self) -> tuple[bytes, float]:
        return self.table.tobytes(), self._loss

    def restore(self, state: tuple[bytes, float]) -> None:
        self.table[:] = np.frombuffer(state[0]).reshape(3, BINS)
        self._loss = state[1]


def _ece(positive: Floats, every: Floats, sums: Floats) -> float:
    """Weighted mean distance of mean score and rate, over groups of neighbouring bins that hold a tenth each."""
    total = every.sum()
    group = np.minimum(((np.cumsum(every) - every / 2) / total * GROUPS).astype(np.int64), GROUPS - 1)
    apart = np.bincount(np.maximum(group, 0), sums - positive, GROUPS)
    return float(np.abs(apart).sum() / total)


class Slice(NamedTuple):
    """Rows that hold `token` in one of `places` places from `first`."""

    name: str
    first: int
    places: int
    token: int

    def of(self, tokens: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of the rows [n, width] are in it."""
        return np.asarray((tokens[:, self.first : self.first + self.places] == self.token).any(axis=1))


def slices(settings: ValidationSettings, definition: Definition) -> list[Slice]:
    """The slices that the settings name, as rows of this definition hold them. No such column: Misconfigured."""
    rows, found = Rows(definition), []
    for column, values in settings.slices.items():
        side, _, name = column.partition(".")
        if side not in ("user", "item") or column not in definition.spans:
            there = ", ".join(name for name in definition.spans if not name.startswith("set."))
            raise Misconfigured(f"learn.validate.slices: {column!r} is no column of [features]; there are: {there}")
        first, places = definition.spans[column]
        start = 0 if side == "user" else definition.user_width
        for value in values:
            made = rows.tokens("user" if side == "user" else "item", {name: Texts.of([value.encode()])})
            if not (token := int(made[0, first - start])):
                raise Misconfigured(f"learn.validate.slices: {value!r} is no value that {column} can have")
            found.append(Slice(f"{column}={value}", first, places, token))
    return found


class Validation:
    """The books of one model's scores, by source (`WHO`) and slice."""

    def __init__(self, settings: ValidationSettings, slices: Sequence[Slice] = ()) -> None:
        self._slices = slices
        self._every = max(1, settings.window // STEPS)
        self._fade = float(np.exp(-1 / STEPS))
        self._seen = 0
        self._books = {(who, name): Scores() for who in WHO for name in ("", *(one.name for one in slices))}

    def observe(
        self, scores: Mapping[str, NDArray[np.floating]], judged: Labels, tokens: NDArray[np.uint32],
        known: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> None:  # fmt: skip
        """`scores`: by source, probabilities [n]; `known`: of a source, where it has any (all, where it is left out);
        `tokens` [n, width]: their rows."""
        for part, ends in pieces(self._seen, len(judged.labels), self._every):
            self._add(scores, judged, tokens, known or {}, part)
            for books in self._books.values() if ends else ():
                books.fade(self._fade)
        self._seen += len(judged.labels)

    def _add(
        self, scores: Mapping[str, NDArray[np.floating]], judged: Labels, tokens: NDArray[np.uint32],
        known: Mapping[str, NDArray[np.bool_]], part: slice,
    ) -> None:  # fmt: skip
        whole = judged.some(part)
        rows = tokens[part]
        masks = {"": np.ones(len(rows), np.bool_)} | {one.name: one.of(rows) for one in self._slices}
        for who, found in scores.items():
            p = found[part].astype(np.float64)
            has = known[who][part] if who in known else masks[""]
            for name, mask in masks.items():
                if len(p) and (kept := mask & has).any():
                    self._books[who, name].add(p[kept], whole.some(kept))

    def figures(self) -> dict[str, dict[str, Figures]]:
        """Slice ("" for all) -> source -> figures, of sources that have scored anything."""
        found: dict[str, dict[str, Figures]] = {}
        for (who, name), books in self._books.items():
            if (figures := books.figures()).examples > 0:
                found.setdefault(name, {})[who] = figures
        return found

    def state(self) -> bytes:
        """All of it; `restore` takes it, of slices that are still there."""
        books = {f"{who} {name}": one.state() for (who, name), one in self._books.items() if one.table.any()}
        return msgspec.msgpack.encode(_State(self._seen, books))

    def restore(self, state: bytes) -> None:
        saved = msgspec.msgpack.decode(state, type=_State)
        self._seen = saved.seen
        for key, one in saved.books.items():
            who, _, name = key.partition(" ")
            if (who, name) in self._books and len(one[0]) == 3 * BINS * 8:
                self._books[who, name].restore(one)


class _State(msgspec.Struct):
    seen: int
    books: dict[str, tuple[bytes, float]]
