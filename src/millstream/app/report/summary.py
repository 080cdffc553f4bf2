"""`millstream report`: what became of the lists in the log, and which rules are better on which axis.

    served ─┐
            ├─► matching: lists with what was done ─► counts ─► measures, with intervals ─► differences ─► words
    outcomes┘                                   ▲
    items ──────────────────────────────────────┘

Rules of the room:
- All of it is from the log; nothing is written there.
- Each measure comes with its interval, each pair of policies with the interval of its difference, and what is said in
  words goes by intervals that take into account how many were looked at (watch/report/axes.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from millstream.app.installation import Installation
from millstream.app.report.matching import WHOLE, Matching, Meaning, Policy, Sample, Say, Span
from millstream.errors import BadInput, NotFound, TooLarge
from millstream.guard.tenants import start
from millstream.learn import estimate
from millstream.learn.estimate import Measured
from millstream.meter import Meter
from millstream.recall.catalogue import Catalogue
from millstream.stream import LenientReader
from millstream.types import Forgotten
from millstream.watch.report import axes, exposure, positions
from millstream.watch.report.axes import AXES, MEASURES, Between, Measure
from millstream.watch.report.part import OF_POSITION, OF_SOURCE, Counts, visits

NEEDED: Final = ("category", "created", "deleted")
"""What a report needs to know of items."""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A number with its interval of 95 %; None where the log is too small for one."""

    value: float
    low: float | None = None
    high: float | None = None


class Difference(msgspec.Struct, frozen=True):
    """How much more of a measure the `first` policy has than the `second`. `better`: which of the two is shown to be
    better, "" for none."""

    first: str
    second: str
    measure: str
    axis: str
    value: float
    low: float
    high: float
    better: str


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A policy. `figures` by measure, those that the log knows; `covered` and `gini`: of the catalogue, as it is, with
    all that the policy showed, where `figures` has them for as many impressions of each policy."""

    policy: str
    arm: str
    rules_hash: str
    lists: int
    impressions: int
    positives: int
    users: int
    revenue: float
    covered: float | None
    gini: float | None
    figures: dict[str, Figure]


class Source(msgspec.Struct, frozen=True):
    """A path of recall: how much of what was shown, and liked, it had found; and found alone."""

    source: str
    impressions: int
    positives: int
    ctr: float
    share: float
    share_of_positives: float
    only_share: float
    only_share_of_positives: float
    revenue: float


class Position(msgspec.Struct, frozen=True):
    """`examination`: how often it is looked at, beside the first position (watch/report/positions.py)."""

    position: int
    impressions: int
    positives: int
    ctr: float
    examination: float | None


class Placed(msgspec.Struct, frozen=True):
    """A placement. `verdicts`: a sentence for each axis and pair of policies."""

    placement: str
    policies: list[Judged]
    differences: list[Difference]
    verdicts: list[str]
    sources: list[Source]
    positions: list[Position]


class Report(msgspec.Struct, frozen=True):
    """`matched`: outcomes went to a list of the span; `unmatched`: all the others; `odd`: lists that could not be read;
    `unknown`: impressions of items that the log never told of."""

    lists: int
    unmatched: int
    odd: int
    unknown: int
    items: int
    placements: list[Placed]


def report(
    at: Installation, span: Span, say: Say = lambda line: None, sample: Sample = WHOLE, known: Items | None = None
) -> Report:
    """From the log alone, or from a part of it; `known`: the items, where somebody follows them. BadInput: there is no
    list in that span, or it does not say whose; NotFound: there is no such tenant."""
    check_tenant(at, span)
    catalogue = (known or Items(at, NEEDED, span)).follow(say)
    matching = Matching(at.log, at.folder / "state", span, meaning(at), None, say, sample=sample)
    try:
        if not matching.lists:
            raise nothing(span)
        counts = _count(at, matching, catalogue, say)
        return Report(
            lists=matching.lists, unmatched=matching.unmatched, odd=matching.odd, unknown=counts.unknown,
            items=int(catalogue.alive.sum()),
            placements=[
                _placed(counts, name, number, matching, catalogue) for number, name in enumerate(matching.placements)
            ],
        )  # fmt: skip
    finally:
        matching.close()


def check_tenant(at: Installation, span: Span) -> None:
    """Where there are tenants, a report is of one of them."""
    tenants = at.settings.recommend.tenants
    if tenants and not span.tenant:
        raise BadInput(f"--tenant: this installation serves several, and a report is of one of: {', '.join(tenants)}")
    if span.tenant and span.tenant not in tenants:
        raise NotFound(f"tenant {span.tenant!r} is not configured; there are: {', '.join(tenants) or 'none'}")


def nothing(span: Span) -> BadInput:
    """There is no list to report on."""
    where = f" of placement {span.placement!r}" if span.placement else ""
    return BadInput(f"the log has no list{where} in that span; `millstream log list` says what it has")


def meaning(at: Installation) -> Meaning:
    """What kinds of outcomes mean in this installation: a kind that several places name counts from the least value."""
    settings, positives = at.settings, dict(at.settings.histories.kinds)
    for name in settings.join.tasks:
        for kind, least in settings.join.kinds(name).items():
            positives[kind] = min(least, positives.get(kind, least))
    told = settings.report
    return Meaning(positives, told.conversions, told.paid, settings.histories.blocks, told.dwell)


class Items:
    """The catalogue (of a tenant) as the log tells of it, with these attributes alone, as `[catalogue]` calls them."""

    def __init__(self, at: Installation, attributes: Sequence[str], span: Span) -> None:
        self._settings, self._begins = at.settings.catalogue, start(span.tenant)
        self._catalogue, self._left_out = Catalogue(self._settings), 0
        wanted = {getattr(self._settings, name) for name in attributes}
        fields = [(f"a{number}", Any, None) for number in range(len(wanted))]
        self._rename = {f"a{number}": name for number, name in enumerate(sorted(wanted))}
        part = msgspec.defstruct("Part", fields, rename=self._rename, gc=False)  # what may be long is not decoded
        told = msgspec.defstruct("Told", [("id", str), ("attributes", part)], tag="entity", gc=False)
        self._decode = msgspec.msgpack.Decoder(told | Forgotten).decode
        self._reader, self._offsets = LenientReader(at.log.reader("items"), Meter()), dict[int, int]()

    def follow(self, say: Say) -> Catalogue:
        """As of now. Items over `catalogue.items_max` are left out, and it is said."""
        with self._catalogue.together():
            for partition in self._reader.partitions():
                begin = self._offsets.get(partition, 0)
                for record, event in self._reader.decoded(partition, begin, self._decode):
                    self._offsets[partition] = record.offset + 1
                    if event is None or isinstance(event, Forgotten) or not event.id.startswith(self._begins):
                        continue
                    known = {name: getattr(event.attributes, field) for field, name in self._rename.items()}
                    try:
                        kept = {name: value for name, value in known.items() if value is not None}
                        self._catalogue.upsert(event.id, kept, record.arrival)
                    except TooLarge:
                        self._left_out += 1
        if self._left_out:
            say(f"{self._left_out} items are left out: catalogue.items_max is {self._settings.items_max}")
        return self._catalogue


def items(at: Installation, attributes: Sequence[str], span: Span, say: Say) -> Catalogue:
    """The catalogue of a tenant as the log tells of it now."""
    return Items(at, attributes, span).follow(say)


def _count(at: Installation, matching: Matching, catalogue: Catalogue, say: Say) -> Counts:
    settings = at.settings.report
    counts = Counts(len(matching.policies), len(matching.placements), catalogue.count)
    for matched in matching.parts(catalogue, settings.new_s):
        counts.add(matched.part)
    say(f"{matching.lists:,} lists matched with what was done")
    for one in matching.visits():
        counts.add_people(*visits(one["policy"], one["person"], one["time"], settings.visit_s, matching.end))
    return counts


def names(policies: Sequence[Policy]) -> list[str]:
    """What policies are called: by their arm, and by their rules too where an arm had several."""
    arms = Counter((policy.placement, policy.arm) for policy in policies)
    return [
        (policy.arm or "all") + (f"#{policy.hash[:6] or 'unknown'}" if arms[policy.placement, policy.arm] > 1 else "")
        for policy in policies
    ]


def _placed(counts: Counts, placement: str, number: int, matching: Matching, catalogue: Catalogue) -> Placed:
    called = names(matching.policies)
    mine = [place for place, policy in enumerate(matching.policies) if policy.placement == placement]
    mine.sort(key=lambda place: -counts.column("lists", place).sum())
    measured = dict(zip(mine, _measured(counts, mine, catalogue), strict=True))
    judged = [
        _judged(counts, place, called[place], matching.policies[place], measured[place], catalogue) for place in mine
    ]
    pairs = [(mine[0], other) for other in mine[1:]]
    between = {
        (first, second): _between(measured[first], measured[second], called[first], called[second], len(pairs))
        for first, second in pairs
    }
    differences = [
        Difference(
            one.first, one.second, one.measure.name, one.measure.axis, one.difference, one.low, one.high, one.winner
        )
        for found in between.values()
        for one in found
    ]
    verdicts = [axes.verdict(axis, found) for found in between.values() for axis in AXES]
    return Placed(
        placement, judged, differences, verdicts, _sources(counts, number, mine, matching.sources),
        _positions(counts, number),
    )  # fmt: skip


def _measured(counts: Counts, places: list[int], catalogue: Catalogue) -> list[dict[str, Measured]]:
    """Every measure of each of these policies; what none of them has any of (no dwell told, nothing sold) is left out:
    the log does not say that it was none."""
    alive = catalogue.alive
    blocks = exposure.alike([counts.exposure[place][:, alive] for place in places])
    bits = exposure.surprise(counts.liked[alive], counts.exposure[places].sum(axis=(0, 1), dtype=np.int64)[alive])
    there = [one for one in MEASURES if one.above and any(counts.column(one.above, place).any() for place in places)]
    found = []
    for place, shown in zip(places, blocks, strict=True):
        mine = {
            one.name: estimate.ratio(counts.column(one.above, place), counts.column(one.below, place), one.share)
            for one in there
        }
        mine["coverage"] = estimate.mean([exposure.coverage(block) for block in shown])
        mine["gini"] = estimate.mean([exposure.gini(block) for block in shown])
        mine["novelty_bits"] = estimate.mean([exposure.novelty(block, bits) for block in shown])
        found.append({name: one for name, one in mine.items() if not math.isnan(one.value)})
    return found


def _judged(
    counts: Counts, place: int, called: str, policy: Policy, measured: dict[str, Measured], catalogue: Catalogue
) -> Judged:
    shown = counts.exposure[place].sum(axis=0, dtype=np.int64)[catalogue.alive]
    sums = {name: float(counts.column(name, place).sum()) for name in ("lists", "impressions", "positives", "users")}
    return Judged(
        policy=called, arm=policy.arm, rules_hash=policy.hash,
        **{name: int(value) for name, value in sums.items()},
        revenue=float(counts.column("revenue", place).sum()),
        covered=_known(exposure.coverage(shown)), gini=_known(exposure.gini(shown)),
        figures={one.name: _figure(measured[one.name], one.times) for one in MEASURES if one.name in measured},
    )  # fmt: skip


def _between(
    mine: dict[str, Measured], others: dict[str, Measured], first: str, second: str, pairs: int
) -> list[Between]:
    """Differences of two policies in what is known of both, with its interval."""
    both = [
        (one, mine[one.name].minus(others[one.name])) for one in MEASURES if one.name in mine and one.name in others
    ]
    known = [(one, difference) for one, difference in both if math.isfinite(difference.error)]
    looks = Counter(one.axis for one, _ in known)
    return [_said(one, difference, first, second, looks[one.axis] * pairs) for one, difference in known]


def _said(one: Measure, difference: Measured, first: str, second: str, looks: int) -> Between:
    low, high = (one.times * bound for bound in difference.interval())
    surely = difference.interval(axes.verdict_confidence(looks))
    return Between(
        one, first, second, one.times * difference.value, low, high, (one.times * surely[0], one.times * surely[1])
    )


def _figure(measured: Measured, times: float) -> Figure:
    low, high = (_known(times * bound) for bound in measured.interval())
    return Figure(times * measured.value, low, high)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sources(counts: Counts, placement: int, policies: list[int], named: list[str]) -> list[Source]:
    found = dict(zip(OF_SOURCE, counts.sources[:, placement], strict=True))
    shown, liked = (
        max(1.0, sum(float(counts.column(name, place).sum()) for place in policies))
        for name in ("impressions", "positives")
    )
    return [
        Source(
            source=name,
            impressions=int(found["impressions"][bit]),
            positives=int(found["positives"][bit]),
            ctr=float(found["positives"][bit] / found["impressions"][bit]),
            share=float(found["impressions"][bit] / shown),
            share_of_positives=float(found["positives"][bit] / liked),
            only_share=float(found["only_impressions"][bit] / shown),
            only_share_of_positives=float(found["only_positives"][bit] / liked),
            revenue=float(found["revenue"][bit]),
        )
        for bit, name in enumerate(named)
        if found["impressions"][bit]
    ]


def _positions(counts: Counts, placement: int) -> list[Position]:
    found = dict(zip(OF_POSITION, counts.positions[:, placement], strict=True))
    looks = positions.examination(counts.cells[0, placement], counts.cells[1, placement])
    return [
        Position(
            position=place + 1,
            impressions=int(shown),
            positives=int(found["positives"][place]),
            ctr=float(found["positives"][place] / shown),
            examination=_known(float(looks[place])),
        )
        for place, shown in enumerate(found["impressions"].tolist())
        if shown
    ]
