"""What an experiment says, in words.

Rules of the room:
- People first: where they are not split as configured, that is all that is said.
- One metric decides. A guardrail is *kept* when it is shown not to be worse by more than it may, *broken* when it is
  shown to be, *open* while neither is.
- No difference is said to be shown where an interval holds 0, and none to be missing where it merely does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from millstream.watch.experiments.effect import DOERS_LEAST, PEOPLE_LEAST, Effect
from millstream.watch.experiments.metrics import Metric

Finding = Literal["better", "worse", "alike", "open", "early"]
State = Literal["kept", "broken", "open", "early"]
FAR: Final = 10.0
"""A lift above which none is told."""


class Ruled(NamedTuple):
    """A guardrail, of the arm `other` beside the control: the metric may be worse by the share `allowed`."""

    metric: Metric
    other: str
    allowed: float
    effect: Effect | None

    @property
    def state(self) -> State:
        """Whether it is kept."""
        if self.effect is None:
            return "early"
        low, high = self.effect.low, self.effect.high
        if self.metric.better < 0:  # as for a metric of which more is better
            low, high = -high, -low
        return "kept" if low > -self.allowed else "broken" if high < -self.allowed else "open"

    @property
    def said(self) -> str:
        """In words."""
        worse = f"worse by more than {_percent(self.allowed):g} %"
        if self.effect is None:
            return f"{self.metric.words}: too early to say that {self.other} is not {worse}"
        how = {"kept": f"{self.other} is not", "broken": f"{self.other} is"}
        said = how.get(self.state, f"not shown yet that {self.other} is not")
        return f"{self.metric.words}: {said} {worse} ({interval(self.effect)})"


def finding(metric: Metric, effect: Effect | None, least: float) -> Finding:
    """What an effect says of the other arm. `alike`: any difference there is is smaller than `least`."""
    if effect is None:
        return "early"
    if effect.low > 0.0 or effect.high < 0.0:
        return "better" if (effect.low > 0.0) == (metric.better > 0) else "worse"
    return "alike" if effect.low > -least and effect.high < least else "open"


def interval(effect: Effect) -> str:
    """A lift and its interval: `+3.1 %, +1.2 to +5 % valid at any look`."""
    low, high = (
        f"{_percent(one):+g}" if one < FAR else f"over {_percent(FAR):+g}" for one in (effect.low, effect.high)
    )
    return f"{_percent(effect.lift):+g} %, {low} to {high} % valid at any look"


def sentence(metric: Metric, control: str, other: str, effect: Effect | None, least: float, people: int) -> str:
    """What decides, of one arm beside the control, in a sentence; `people` there are in both."""
    found = finding(metric, effect, least)
    if effect is None:
        return (
            f"too early to compare {other} with {control}: it takes {PEOPLE_LEAST} people in each, {DOERS_LEAST} of "
            f"them with any of {metric.name}"
        )
    if found in ("better", "worse"):
        return f"{other} is {found} than {control}: {metric.words} {interval(effect)}"
    if found == "alike":
        return f"{other} and {control} differ by less than {_percent(least):g} %: {metric.words} {interval(effect)}"
    more = effect.wanted - people
    some = f"about {_rounded(more):,} more people" if more >= 1 else "a few more people"
    return (
        f"no difference shown between {other} and {control}: {metric.words} {interval(effect)}; {some} needed to see "
        f"{_percent(least):g} %"
    )


def together(sentences: Sequence[str], rails: Sequence[Ruled]) -> str:
    """All of it: what decides, then what guardrails have to say against it."""
    broken = [one.said for one in rails if one.state == "broken"]
    rest = [one.said for one in rails if one.state in ("open", "early")]
    parts = ["; ".join(sentences)]
    if broken:
        parts.append(f"but a guardrail is broken: {'; '.join(broken)}")
    if rest:
        parts.append(f"{'and' if broken else 'but'} undecided: {'; '.join(rest)}")
    return "; ".join(parts)


def unfit(counts: Sequence[int], arms: Sequence[str], shares: Sequence[float], chance: float) -> str:
    """People are not split as they were to be."""
    told = ", ".join(
        f"{arm} has {count:,} where {_percent(share):g} % of {sum(counts):,} were to be"
        for arm, count, share in zip(arms, counts, shares, strict=True)
    )
    odds = f"1 in {1 / max(chance, 1e-12):,.0f}" if chance > 1e-12 else "1 in a million millions"
    return (
        f"nothing can be concluded: people are not split as configured ({told}; chance does that in {odds} at any "
        "look): find out where people of an arm are lost"
    )


def strayed(crossed: int, people: int) -> str:
    """Too many people were in several arms."""
    return (
        f"nothing can be concluded: {crossed:,} of {people:,} people were in several arms; say with --since when the "
        "split became what it is"
    )


def unheard(arms: Sequence[str]) -> str:
    """Versions did not answer the people of their arm."""
    return (
        f"nothing can be concluded: most of what people of {', '.join(arms)} got was made by another version; see "
        "whether it is loaded, and takes and gives what the live one does (`millstream traffic show`)"
    )


def _percent(share: float) -> float:
    """As a number of two or three digits that matter."""
    return float(f"{100.0 * share:.3g}") if abs(share) >= 0.1 else round(100.0 * share, 1) + 0.0


def _rounded(number: float) -> int:
    """To two digits."""
    return int(float(f"{number:.2g}"))
