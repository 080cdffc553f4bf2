"""The measures of a policy on three axes, and what their differences say in words.

Rules of the room:
- A measure is a sum over a sum of `COLUMNS`, by groups of people, or a figure of what the catalogue got, by blocks.
- Which of two policies is better is said for an axis as a whole. Several measures are looked at, of several pairs, so
  each interval behind the words is as much wider (Bonferroni): of the axes of policies that are the same, at most one
  in twenty is said to differ.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Axis = Literal["user experience", "content ecosystem", "revenue"]
AXES: Final[tuple[Axis, ...]] = ("user experience", "content ecosystem", "revenue")
ALPHA: Final = 0.05


class Measure(NamedTuple):
    """`above` over `below`, columns by groups, or neither: of the catalogue. `share`: each one below is above or not.
    `better`: 1 where more is, -1 where less is; `times`: in what it is told."""

    name: str
    axis: Axis
    above: str = ""
    below: str = ""
    share: bool = False
    better: int = 1
    times: float = 1.0


MEASURES: Final = (
    Measure("ctr", "user experience", "positives", "impressions", share=True),
    Measure("dwell_s", "user experience", "dwell_s", "dwelt"),
    Measure("back_1_day", "user experience", "back_1", "due_1", share=True),
    Measure("back_7_days", "user experience", "back_7", "due_7", share=True),
    Measure("visits_per_user", "user experience", "visits", "users"),
    Measure("hide_rate", "user experience", "hidden", "impressions", share=True, better=-1),
    Measure("coverage", "content ecosystem"),
    Measure("gini", "content ecosystem", better=-1),
    Measure("novelty_bits", "content ecosystem"),
    Measure("new_share", "content ecosystem", "new", "impressions", share=True),
    Measure("diversity", "content ecosystem", "unlike", "varied"),
    Measure("revenue_per_1000", "revenue", "revenue", "impressions", times=1000.0),
    Measure("revenue_per_user", "revenue", "revenue", "users"),
    Measure("conversion", "revenue", "converted", "impressions", share=True),
)


class Between(NamedTuple):
    """How much more the `first` of two policies has of a measure than the `second`, from where to where; `surely`:
    the same at the confidence of `verdict_confidence`."""

    measure: Measure
    first: str
    second: str
    difference: float
    low: float
    high: float
    surely: tuple[float, float]

    @property
    def winner(self) -> str:
        """The one that is shown to be better, "" where no difference is shown."""
        low, high = (self.surely[0], self.surely[1]) if self.measure.better > 0 else (-self.surely[1], -self.surely[0])
        return self.first if low > 0 else self.second if high < 0 else ""


def verdict_confidence(looks: int) -> float:
    """The confidence of an interval that is one of so many."""
    return 1.0 - ALPHA / max(looks, 1)


def verdict(axis: Axis, found: list[Between]) -> str:
    """A sentence on one axis, from the differences between two policies that there are on it."""
    mine = [one for one in found if one.measure.axis == axis]
    if not mine:
        return f"{axis}: nothing is known of it in this log"
    wins: dict[str, list[str]] = {}
    for one in mine:
        if one.winner:
            by = f"{one.measure.name} {abs(one.difference):.4g} {'more' if one.winner == _more(one) else 'less'}"
            wins.setdefault(one.winner, []).append(by)
    first, second = mine[0].first, mine[0].second
    if not wins:
        return f"{axis}: no difference shown between {first} and {second}"
    if len(wins) == 1:
        winner, told = next(iter(wins.items()))
        return f"{axis}: {winner} is better than {second if winner == first else first} ({', '.join(told)})"
    return f"{axis}: each is better at something: " + "; ".join(f"{who} ({', '.join(w)})" for who, w in wins.items())


def _more(one: Between) -> str:
    """Which of the two has more of the measure."""
    return one.first if one.difference > 0 else one.second
