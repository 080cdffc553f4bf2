"""What is measured: a sum over a sum, by person.

Rules of the room:
- A metric is one of `MEASURES`, or a kind of outcome: items of lists with which somebody did that.
- A person's columns are counted as a report counts them (watch/report): told twice counts once, and what one did with
  an item says that it was shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

Per = Literal["list", "impression", "person"]
KINDS_MAX: Final = 2
"""Kinds of outcomes that one experiment may name."""
COLUMNS: Final = (
    "lists", "impressions", "positives", "conversions", "hidden", "revenue", "dwell_s", "unlike", "varied", "missed",
    "first", "second",
)  # fmt: skip
"""What is summed of each person; `first` and `second`: of the kinds that are named."""
BELOW: Final[dict[Per, str]] = {"list": "lists", "impression": "impressions", "person": ""}
_A: Final[dict[Per, str]] = {"list": "a", "impression": "an", "person": "a"}


class Metric(NamedTuple):
    """`above` over `below`, columns; `below` "": people. `better`: 1 where more is, -1 where less is; `words`: what it
    is called, with what it is of."""

    name: str
    above: str
    below: str
    better: int
    words: str


class _Measure(NamedTuple):
    above: str
    per: Per
    better: int = 1
    below: str = ""


MEASURES: Final = {
    "positives": _Measure("positives", "list"),
    "conversions": _Measure("conversions", "list"),
    "revenue": _Measure("revenue", "person"),
    "dwell_s": _Measure("dwell_s", "list"),
    "lists": _Measure("lists", "person"),
    "hidden": _Measure("hidden", "impression", -1),
    "missed": _Measure("missed", "list", -1),
    "diversity": _Measure("unlike", "list", 1, "varied"),
}
"""By name: what is summed, and of what it is where nobody says."""


def kinds(names: Iterable[str]) -> list[str]:
    """Of these metrics, those that are kinds of outcomes, each once."""
    return [name for name in dict.fromkeys(names) if name not in MEASURES]


def metric(name: str, per: Per | None, named: list[str]) -> Metric:
    """A metric by its name; `per`: of what, None as it usually is; `named`: the `kinds` of all of the experiment."""
    known = MEASURES.get(name)
    if known is None:
        known = _Measure(("first", "second")[named.index(name)], "list")
    chosen = known.per if per is None or known.above == "lists" or known.below else per
    return Metric(name, known.above, known.below or BELOW[chosen], known.better, f"{name} {_A[chosen]} {chosen}")
