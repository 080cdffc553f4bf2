"""From the log to what is said of an experiment.

served ─┐
        ├─► matching: lists with what was done ─► sums of each person, by arm and past ─► people, lifts, words
outcomes┘                                              ▲
settings and policies ─► who is in which arm ──────────┘
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.app.experiments.shadows import shadows
from millstream.app.experiments.split import Split, groups, split_of
from millstream.app.experiments.told import ArmFigures, ExperimentReport, Lift, Rail, SampleCheck
from millstream.app.installation import Installation
from millstream.app.report.matching import NAMED, Listed, Matched, Matching, Say, Span
from millstream.app.report.summary import check_tenant, items, meaning, nothing
from millstream.errors import BadInput, NotFound
from millstream.recall.catalogue import Catalogue
from millstream.watch.experiments import sample, verdict
from millstream.watch.experiments.effect import Effect, Moments, compare
from millstream.watch.experiments.metrics import COLUMNS, Metric, kinds, metric
from millstream.watch.experiments.people import PAST, Floats, People
from millstream.watch.experiments.settings import ExperimentSettings
from millstream.watch.experiments.verdict import Ruled
from millstream.watch.report.part import variety

ALWAYS: Final = Span()
FOLLOWED_LEAST: Final = 0.5
"""Share of an arm's lists that its version must have made, for the arm to be one; of FOLLOWED_OF lists or more."""
FOLLOWED_OF: Final = 20


def assess(
    at: Installation, asked: str | ExperimentSettings, span: Span = ALWAYS, say: Say = lambda line: None
) -> ExperimentReport:
    """An experiment by its name in the settings, or ad hoc; of the span, `since` and `until` count. It reads the whole
    log. NotFound: no such experiment, placement, model or arm; BadInput: there is no split, or no list of it."""
    name = asked if isinstance(asked, str) else ""
    settings = _named(at, asked) if isinstance(asked, str) else asked
    reading = Span(until=span.until, placement=settings.placement, tenant=settings.tenant)
    check_tenant(at, reading)
    split = split_of(at, settings, span.until)
    since = max(span.since, settings.since.timestamp() if settings.since else -math.inf)
    named = kinds((settings.metric, *settings.guardrails))
    main = metric(settings.metric, settings.per, named)
    rails = {metric(one, None, named): allowed for one, allowed in settings.guardrails.items()}
    seen = _read(at, split, reading, since, named, (main, *rails), say)
    return _judged(at, name, settings, split, main, rails, seen)


def _named(at: Installation, name: str) -> ExperimentSettings:
    if name not in at.settings.experiments:
        there = ", ".join(at.settings.experiments) or "none"
        raise NotFound(f"experiment {name!r} is not in [experiments]; there are: {there}")
    return at.settings.experiments[name]


class _Seen(msgspec.Struct, frozen=True):
    """What the log says: `columns` by name -> their place; of each arm its people, float64 [2 * columns, people], in
    the arm and in the past; `lists` of each arm and how many `followed` it; the first and last of them."""

    columns: dict[str, int]
    people: list[Floats]
    crossed: int
    lists: list[float]
    followed: list[float]
    first: float
    last: float

    def of(self, arm: int, one: Metric) -> Floats:
        """What a comparison needs of an arm's people, float64 [4, people]."""
        people, width = self.people[arm], len(self.columns)
        ones = np.ones(people.shape[1])
        above = self.columns[one.above]
        below = self.columns[one.below] if one.below else None
        return np.array(
            [
                people[above], ones if below is None else people[below],
                people[width + above], ones if below is None else people[width + below],
            ]
        )  # fmt: skip


def _read(
    at: Installation, split: Split, span: Span, since: float, named: list[str], metrics: tuple[Metric, ...], say: Say
) -> _Seen:
    needed = dict.fromkeys(["lists", *chain.from_iterable((one.above, one.below) for one in metrics)])
    columns: dict[str, int] = {name: place for place, name in enumerate(name for name in COLUMNS if name in needed)}
    means = meaning(at)
    means = means._replace(named={kind: means.positives.get(kind, math.nextafter(0.0, 1.0)) for kind in named})
    catalogue = items(at, ("category",), span, say) if "unlike" in columns else Catalogue()

    def beside(event: Listed) -> tuple[float, ...]:
        return float(bool(event.late or event.ranker)), float(split.followed(event)), 0.0, 0.0, 0.0

    matching = Matching(at.log, at.folder / "state", span, means, beside, say, name=split.name)
    people, arms = People(len(columns)), len(split.arms)
    lists, followed = np.zeros(arms), np.zeros(arms)
    first, last = math.inf, -math.inf
    try:
        if not matching.lists:
            raise nothing(span)
        for matched in matching.parts(catalogue, 1.0):
            group = groups(split, matching.policies, matched.part.policy, matched.time, since)
            counts = group >= 0
            if not counts.any():
                continue
            people.add(matched.part.person[counts], group[counts], _columns(matched, columns)[:, counts])
            treated = counts & (group != PAST)
            lists += np.bincount(group[treated], minlength=arms)
            followed += np.bincount(group[treated], matched.extra[treated, 1], arms)
            first = min(first, float(matched.time[treated].min(initial=math.inf)))
            last = max(last, float(matched.time[treated].max(initial=-math.inf)))
    finally:
        matching.close()
    if not lists.any():
        raise BadInput(f"the log has no list of {split.what} under its split as it is now, {', '.join(split.arms)}")
    apart, crossed = people.apart(arms)
    return _Seen(columns, apart, crossed, lists.tolist(), followed.tolist(), first, last)


def _columns(matched: Matched, wanted: dict[str, int]) -> Floats:
    """Of each list, float64 [columns, lists]."""
    part = matched.part
    count = len(part.policy)

    def places(of: NDArray[np.bool_], values: Floats | None = None) -> Floats:
        return np.asarray(np.bincount(part.of[of], None if values is None else values[of], count), np.float64)

    known = part.shown & np.isfinite(part.dwell_s)
    unlike, varied = variety(part)
    found: dict[str, Callable[[], Floats]] = {
        "lists": lambda: np.ones(count),
        "impressions": lambda: places(part.shown),
        "positives": lambda: places(part.shown & part.positive),
        "conversions": lambda: places(part.shown & part.converted),
        "hidden": lambda: places(part.shown & part.hidden),
        "revenue": lambda: places(part.shown, part.revenue),
        "dwell_s": lambda: places(known, part.dwell_s),
        "unlike": lambda: unlike,
        "varied": lambda: varied,
        "missed": lambda: matched.extra[:, 0],
        "first": lambda: places((matched.means & NAMED[0]) > 0),
        "second": lambda: places((matched.means & NAMED[1]) > 0),
    }
    return np.array([found[name]() for name in wanted])


def _judged(
    at: Installation, name: str, settings: ExperimentSettings, split: Split, main: Metric, rails: dict[Metric, float],
    seen: _Seen,
) -> ExperimentReport:  # fmt: skip
    check = _checked(split, seen)
    control = split.arms[split.control]
    others = [place for place in range(len(split.arms)) if place != split.control]
    alpha = (1.0 - settings.confidence) / len(others)

    def effects(one: Metric, least: float, alpha: float) -> dict[int, Effect | None]:
        before = Moments.of(seen.of(split.control, one))
        return {place: compare(before, Moments.of(seen.of(place, one)), least, alpha) for place in others}

    found = effects(main, settings.least, alpha) if check.fine else {}
    ruled = [
        Ruled(one, split.arms[place], allowed, effect)
        for one, allowed in (rails if check.fine else {}).items()
        for place, effect in effects(one, allowed, alpha / len(rails)).items()
    ]
    both = {place: seen.people[place].shape[1] + seen.people[split.control].shape[1] for place in found}
    said = [
        verdict.sentence(main, control, split.arms[place], effect, settings.least, both[place])
        for place, effect in found.items()
    ]
    return ExperimentReport(
        name=name, split=split.what, metric=main.words, control=control, least=settings.least,
        confidence=settings.confidence, since=seen.first, until=seen.last, past=_past(seen), sample=check,
        arms=_figures(split, seen, main),
        lifts=[_lift(main, control, split.arms[place], one, settings.least) for place, one in found.items()],
        rails=[_rail(one) for one in ruled],
        shadows=shadows(at, settings.model, seen.first, seen.last) if settings.model else [],
        verdict=verdict.together(said, ruled) if check.fine else check.why,
    )  # fmt: skip


def _checked(split: Split, seen: _Seen) -> SampleCheck:
    counts = [people.shape[1] for people in seen.people]
    chance, all_of_them = sample.chance(counts, split.shares), sum(counts) + seen.crossed
    why = ""
    unheard = [
        arm for arm, lists, followed in zip(split.arms, seen.lists, seen.followed, strict=True)
        if lists >= FOLLOWED_OF and followed < FOLLOWED_LEAST * lists
    ]  # fmt: skip
    if chance < sample.ALPHA:
        why = verdict.unfit(counts, split.arms, split.shares, chance)
    elif seen.crossed > sample.CROSSED_MAX * all_of_them:
        why = verdict.strayed(seen.crossed, all_of_them)
    elif unheard:
        why = verdict.unheard(unheard)
    return SampleCheck(fine=not why, chance=chance, crossed=seen.crossed, why=why)


def _past(seen: _Seen) -> float:
    """The share of the people who did anything before."""
    lists = len(seen.columns) + seen.columns["lists"]
    total = sum(people.shape[1] for people in seen.people)
    known = sum(int((people[lists] > 0).sum()) for people in seen.people)
    return float(known / max(total, 1))


def _figures(split: Split, seen: _Seen, main: Metric) -> list[ArmFigures]:
    values = [Moments.of(seen.of(place, main)).value for place in range(len(split.arms))]
    return [
        ArmFigures(
            arm=arm, share=split.shares[place], people=seen.people[place].shape[1], lists=int(seen.lists[place]),
            value=values[place] if math.isfinite(values[place]) else None,
            followed=seen.followed[place] / max(seen.lists[place], 1.0),
        )
        for place, arm in enumerate(split.arms)
    ]  # fmt: skip


def _lift(main: Metric, control: str, arm: str, effect: Effect | None, least: float) -> Lift:
    finding = verdict.finding(main, effect, least)
    if effect is None:
        return Lift(arm=arm, control=control, finding=finding)
    return Lift(
        arm=arm, control=control, finding=finding, lift=effect.lift, low=effect.low, high=effect.high,
        less=effect.less, wanted=math.ceil(effect.wanted),
    )  # fmt: skip


def _rail(one: Ruled) -> Rail:
    effect = one.effect
    lift, low, high = (effect.lift, effect.low, effect.high) if effect else (None, None, None)
    return Rail(
        metric=one.metric.words, arm=one.other, allowed=one.allowed, state=one.state, lift=lift, low=low, high=high,
        said=one.said,
    )  # fmt: skip
