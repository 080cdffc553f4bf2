"""Counts of lists, a part of the log at a time: of policies by groups of people, of positions, of what found an item.

A *policy* is an arm of a placement, by the rules that it had. Counts are sums of float64, so parts can come in any
order and any number; what is kept does not grow with them.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

GROUPS: Final = 1024
BLOCKS: Final = 10
"""Tenths of the people: what an item got is kept by these, as groups would be too many."""
POSITIONS: Final = 50
"""Positions that are told one by one; those behind count in everything else."""
FITTED: Final = 50_000
"""Items, those told of first, by which the worth of a position is estimated."""
SOURCES: Final = 32
DAY_S: Final = 86400.0
COLUMNS: Final = (
    "lists", "impressions", "positives", "converted", "hidden", "dwell_s", "dwelt", "revenue", "new", "unlike",
    "varied", "users", "visits", "due_1", "back_1", "due_7", "back_7",
)  # fmt: skip
OF_SOURCE: Final = ("impressions", "positives", "only_impressions", "only_positives", "revenue")
OF_POSITION: Final = ("impressions", "positives", "revenue")


class Part(NamedTuple):
    """Some lists whole, with what was done with them. Of L lists: `policy` int [L], `placement` int [L], `person`
    uint64 [L], a hash of whose list it is. Of P places of lists: `of` int [P], which list; `position` int [P] from 0;
    `item` int [P], its number in the catalogue, -1 of an unknown one; `sources` uint32 [P], bit i for source i that
    found it; `shown`, `positive`, `converted`, `hidden` and `new` bool [P]; `category` int [P], -1 without one;
    `dwell_s` [P], NaN where none was told; `revenue` [P]."""

    policy: NDArray[np.integer[Any]]
    placement: NDArray[np.integer[Any]]
    person: NDArray[np.uint64]
    of: NDArray[np.integer[Any]]
    position: NDArray[np.integer[Any]]
    item: NDArray[np.integer[Any]]
    sources: NDArray[np.uint32]
    shown: Mask
    positive: Mask
    converted: Mask
    hidden: Mask
    new: Mask
    category: NDArray[np.integer[Any]]
    dwell_s: Floats
    revenue: Floats


class Counts:
    """Sums over all parts, of a known number of policies and placements and of `items`. `sums` float64 [columns,
    policies, GROUPS]; `exposure` uint32 [policies, BLOCKS, items], impressions; `liked` [items], positives; `sources`
    [OF_SOURCE, placements, SOURCES]; `positions` [OF_POSITION, placements, POSITIONS]; `cells` [2, placements, FITTED
    items, POSITIONS], impressions and positives; `unknown`: impressions of items that are not in the catalogue."""

    def __init__(self, policies: int, placements: int, items: int) -> None:
        self.sums: Floats = np.zeros((len(COLUMNS), policies, GROUPS))
        self.exposure = np.zeros((policies, BLOCKS, items), np.uint32)
        self.liked = np.zeros(items, np.int64)
        self.sources: Floats = np.zeros((len(OF_SOURCE), placements, SOURCES))
        self.positions: Floats = np.zeros((len(OF_POSITION), placements, POSITIONS))
        self.cells = np.zeros((2, placements, min(items, FITTED), POSITIONS), np.uint32)
        self.unknown = 0

    def column(self, name: str, policy: int) -> Floats:
        """A column of a policy by groups, float64 [GROUPS]."""
        found: Floats = self.sums[COLUMNS.index(name), policy]
        return found

    def add(self, part: Part) -> None:
        """Count a part."""
        self._add_lists(part)
        shown = np.flatnonzero(part.shown)
        of, item = part.of[shown], part.item[shown]
        policy, placement, person = part.policy[of], part.placement[of], part.person[of]
        positive, revenue = part.positive[shown], part.revenue[shown]
        known = np.isfinite(part.dwell_s[shown])
        group = policy.astype(np.int64) * GROUPS + (person % GROUPS).astype(np.int64)
        for name, values in (
            ("impressions", np.ones(len(shown))), ("positives", positive), ("converted", part.converted[shown]),
            ("hidden", part.hidden[shown]), ("revenue", revenue), ("new", part.new[shown]), ("dwelt", known),
            ("dwell_s", np.where(known, part.dwell_s[shown], 0.0)),
        ):  # fmt: skip
            self._add(name, group, values)
        there = item >= 0
        self.unknown += int((~there).sum())
        block = ((person // GROUPS) % BLOCKS).astype(np.int64)
        np.add.at(self.exposure, (policy[there], block[there], item[there]), 1)
        np.add.at(self.liked, item[there & positive], 1)
        self._add_sources(placement, part.sources[shown], positive, revenue)
        self._add_positions(placement, part.position[shown], item, positive, revenue)

    def add_people(self, policy: NDArray[np.integer[Any]], person: NDArray[np.uint64], of: dict[str, Floats]) -> None:
        """Count people, n of them: columns by name, float64 [n]."""
        group = policy.astype(np.int64) * GROUPS + (person % GROUPS).astype(np.int64)
        for name, values in of.items():
            self._add(name, group, values)

    def _add(self, name: str, group: NDArray[np.int64], values: NDArray[Any]) -> None:
        sums = self.sums[COLUMNS.index(name)]
        sums += np.bincount(group, values, sums.size).reshape(sums.shape)

    def _add_lists(self, part: Part) -> None:
        group = part.policy.astype(np.int64) * GROUPS + (part.person % GROUPS).astype(np.int64)
        self._add("lists", group, np.ones(len(group)))
        unlike, varied = variety(part)
        self._add("unlike", group, unlike)
        self._add("varied", group, varied)

    def _add_sources(
        self, placement: NDArray[np.integer[Any]], sources: NDArray[np.uint32], positive: Mask, revenue: Floats
    ) -> None:
        for bit in range(SOURCES):
            mine = np.uint32(1 << bit)
            found = (sources & mine) > 0
            if not found.any():
                continue
            only = sources == mine
            rows = (found, found & positive, only, only & positive, np.where(found, revenue, 0.0))
            for row, values in enumerate(rows):
                sums = self.sources[row, :, bit]
                sums += np.bincount(placement, values, len(sums))

    def _add_positions(
        self, placement: NDArray[np.integer[Any]], position: NDArray[np.integer[Any]],
        item: NDArray[np.integer[Any]], positive: Mask, revenue: Floats,
    ) -> None:  # fmt: skip
        near = position < POSITIONS
        place = placement[near].astype(np.int64) * POSITIONS + position[near]
        for row, values in enumerate((np.ones(len(place)), positive[near], revenue[near])):
            sums = self.positions[row]
            sums += np.bincount(place, values, sums.size).reshape(sums.shape)
        fit = near & (item >= 0) & (item < self.cells.shape[2])
        cell = (placement[fit], item[fit], position[fit])
        np.add.at(self.cells[0], cell, 1)
        liked = fit & positive
        np.add.at(self.cells[1], (placement[liked], item[liked], position[liked]), 1)


def variety(part: Part) -> tuple[Floats, Floats]:
    """Of each list, float64 [L]: how many of the pairs of its items that were shown are of two categories (intra-list
    distance with a distance of 0 or 1: Ziegler et al., "Improving recommendation lists through topic diversification",
    2005), and 1 where it has a pair. Items without a category do not count."""
    lists = len(part.policy)
    told = part.shown & (part.category >= 0)
    of, category = part.of[told].astype(np.int64), part.category[told].astype(np.int64)
    size = np.bincount(of, minlength=lists).astype(np.float64)
    kinds, times = np.unique(of << 32 | category, return_counts=True)
    same = np.bincount(kinds >> 32, times * (times - 1.0), lists)
    pairs = size * (size - 1.0)
    varied = pairs > 0
    return np.where(varied, 1.0 - same / np.where(varied, pairs, 1.0), 0.0), varied.astype(np.float64)


def visits(
    policy: NDArray[np.integer[Any]], person: NDArray[np.uint64], time: Floats, visit_s: float, end: float
) -> tuple[NDArray[np.integer[Any]], NDArray[np.uint64], dict[str, Floats]]:
    """Who came and came back, from n lists with their unix seconds: a policy, a person and columns for each of m pairs
    of these. A visit ends with the last list before a silence of `visit_s`. Of people whose first visit ended at least
    a day (7 days) before `end`, those who began another within as long of it came back: who was not watched for that
    long says nothing."""
    order = np.lexsort((time, person, policy))
    policy, person, time = policy[order], person[order], time[order]
    if not len(time):
        return policy, person, {}
    other = np.ones(len(time), np.bool_)
    other[1:] = (policy[1:] != policy[:-1]) | (person[1:] != person[:-1])
    fresh = other.copy()
    fresh[1:] |= np.diff(time) > visit_s
    first = np.flatnonzero(other)
    number = np.cumsum(fresh) - 1  # of visits
    begins = np.flatnonzero(fresh)
    ends = np.append(begins[1:], len(time)) - 1
    mine = number[first]  # each one's first visit
    count = np.diff(np.append(mine, len(begins)))
    until = time[ends[mine]]
    again = np.where(count > 1, time[begins[np.minimum(mine + 1, len(begins) - 1)]], np.inf)
    columns = {"users": np.ones(len(first)), "visits": count.astype(np.float64)}
    for days in (1, 7):
        due = until <= end - days * DAY_S
        columns[f"due_{days}"] = due.astype(np.float64)
        columns[f"back_{days}"] = (due & (again - until <= days * DAY_S)).astype(np.float64)
    return policy[first], person[first], columns
