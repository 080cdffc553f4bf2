"""What became of the lists of the last hours, again and again, at a cost that does not grow with the log.

Rules of the room:
- The log is read from where it stood AGO_S before, never from its beginning: who has just begun to look has a short
  hour.
- Of more than LISTS_MAX lists one request in so many is taken, with all its outcomes; of more than RECORDS_MAX records
  the last ones are read.
- The items are followed, not read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from millstream.app.installation import Installation
from millstream.app.report.matching import Sample, Span
from millstream.app.report.summary import NEEDED, Difference, Figure, Items, Judged, report
from millstream.errors import BadInput, NotFound
from millstream.meter import Meter
from millstream.stream import LenientReader
from millstream.watch.monitors.lists import Arm, Worse
from millstream.watch.report.axes import MEASURES, Measure

AGO_S: Final = 3600.0
LISTS_MAX: Final = 20_000
RECORDS_MAX: Final = 400_000
TENANTS_MAX: Final = 4
_TOPICS: Final = ("served", "outcomes")
_MEASURES: Final = {one.name: one for one in MEASURES}


class Lately:
    """Called now and then with the time, unix seconds: the arms of every placement, and which is worse than the first.
    Of the first TENANTS_MAX tenants, where there are any."""

    def __init__(self, at: Installation) -> None:
        self._at = at
        self._readers = {topic: LenientReader(at.log.reader(topic), Meter()) for topic in _TOPICS}
        self._marks: deque[tuple[float, dict[str, dict[int, int]]]] = deque()
        tenants = list(at.settings.recommend.tenants) or [""]
        self._items = {name: Items(at, NEEDED, Span(tenant=name)) for name in tenants[:TENANTS_MAX]}

    def __call__(self, now: float) -> tuple[list[Arm], list[Worse]]:
        """What the log says of the lists since."""
        ends = {
            topic: {partition: reader.end(partition) for partition in reader.partitions()}
            for topic, reader in self._readers.items()
        }
        self._marks.append((now, ends))
        while len(self._marks) > 1 and self._marks[1][0] <= now - AGO_S:
            self._marks.popleft()
        begin = {topic: _bounded(self._marks[0][1].get(topic, {}), of) for topic, of in ends.items()}
        lists = sum(end - begin["served"].get(partition, 0) for partition, end in ends["served"].items())
        if not lists:
            return [], []
        sample = Sample(begin, max(1, -(-lists // LISTS_MAX)))
        arms: list[Arm] = []
        worse: list[Worse] = []
        for tenant, items in self._items.items():
            try:
                found = report(self._at, Span(tenant=tenant), sample=sample, known=items)
            except (BadInput, NotFound):  # it has no list, or more policies than a report tells apart
                continue
            for placed in found.placements:
                policies = {one.policy: one for one in placed.policies}
                arms += [_arm(tenant, placed.placement, one) for one in placed.policies]
                worse += [_worse(tenant, placed.placement, one, policies) for one in placed.differences if one.better]
        return arms, worse


def _bounded(begin: Mapping[int, int], ends: Mapping[int, int]) -> dict[int, int]:
    each = RECORDS_MAX // max(len(ends), 1)
    return {partition: max(begin.get(partition, 0), end - each) for partition, end in ends.items()}


def _arm(tenant: str, placement: str, one: Judged) -> Arm:
    figures = {
        name: (figure.value, _half(figure), _MEASURES[name].better)
        for name, figure in one.figures.items()
        if figure.low is not None
    }
    return Arm(tenant, placement, one.policy, figures)


def _half(figure: Figure) -> float:
    return (figure.high - figure.low) / 2 if figure.low is not None and figure.high is not None else float("inf")


def _worse(tenant: str, placement: str, one: Difference, policies: Mapping[str, Judged]) -> Worse:
    """By how much of the better one's figure the other surely is worse."""
    measure: Measure = _MEASURES[one.measure]
    loser = one.second if one.better == one.first else one.first
    against = abs(policies[one.better].figures[one.measure].value)
    surely = min(abs(one.low), abs(one.high)) if one.low * one.high > 0 else 0.0
    return Worse(tenant, placement, loser, measure.name, measure.axis, surely / against if against > 0 else 0.0)
