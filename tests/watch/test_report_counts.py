"""What counts of lists say, beside the same told by hand and by loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.watch.report import axes, exposure, positions
from millstream.watch.report.part import BLOCKS, COLUMNS, DAY_S, GROUPS, Counts, Part, variety, visits


def part(of, position, item, shown=None, positive=None, **more):
    """Lists of one policy and placement, each of a person of its own."""
    n, lists = len(of), max(of, default=-1) + 1
    no = np.zeros(n, np.bool_)
    made = {
        "policy": np.zeros(lists, np.int64), "placement": np.zeros(lists, np.int64),
        "person": np.arange(lists, dtype=np.uint64), "of": np.array(of), "position": np.array(position),
        "item": np.array(item), "sources": np.ones(n, np.uint32),
        "shown": np.ones(n, np.bool_) if shown is None else np.array(shown, np.bool_),
        "positive": no if positive is None else np.array(positive, np.bool_),
        "converted": no, "hidden": no, "new": no, "category": np.array(item) % 3,
        "dwell_s": np.full(n, np.nan), "revenue": np.zeros(n),
    }  # fmt: skip
    return Part(**made | more)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_coverage_and_gini_are_what_their_definitions_say(counts):
    shown = np.array(counts)
    assert exposure.coverage(shown) == sum(one > 0 for one in counts) / len(counts)
    if sum(counts):
        # Gini by its other definition: half of the relative mean difference of all pairs
        apart = sum(abs(one - other) for one in counts for other in counts)
        assert exposure.gini(shown) == pytest.approx(apart / (2 * len(counts) * sum(counts)))
    else:
        assert np.isnan(exposure.gini(shown))


def test_what_is_well_known_is_no_news():
    bits = exposure.surprise(np.array([7, 3, 0]), np.array([1, 1, 1]))
    assert bits == pytest.approx([-np.log2(8 / 13), -np.log2(4 / 13), -np.log2(1 / 13)])
    assert exposure.novelty(np.array([1, 1, 2]), bits) == pytest.approx((bits[0] + bits[1] + 2 * bits[2]) / 4)
    by_shown = exposure.surprise(np.zeros(3, np.int64), np.array([7, 3, 0]))
    assert np.array_equal(by_shown, bits), "where nothing is liked, what is shown much is known"


def test_policies_are_compared_after_as_many_impressions():
    """An arm of a tenth of the people covers less of the catalogue, and is no worse for it."""
    random = np.random.default_rng(0)
    chance = random.dirichlet(np.ones(300))
    large, small = (
        np.array([random.multinomial(size, chance) for _ in range(BLOCKS)]).astype(np.uint32) for size in (2000, 200)
    )
    as_is = [exposure.coverage(block.sum(axis=0)) for block in (large, small)]
    assert as_is[0] > as_is[1] + 0.05
    found = exposure.alike([large, small])
    assert {int(row.sum()) for block in found for row in block} == {200}
    means = [np.mean([exposure.coverage(row) for row in block]) for block in found]
    assert means[0] == pytest.approx(means[1], abs=0.02)
    assert (found[0] <= large).all(), "drawn from what was shown"
    assert np.array_equal(found[0], exposure.alike([large, small])[0]), "the same each time"
    few = exposure.alike([np.full((BLOCKS, 3), 2, np.uint32)])
    assert few[0].shape == (0, 3), "of six impressions nothing is said"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3), st.booleans()), max_size=30))
def test_variety_is_the_share_of_pairs_that_differ(rows):
    rows.sort()
    made = part([row[0] for row in rows], range(len(rows)), range(len(rows)), [row[2] for row in rows])
    made = made._replace(category=np.array([row[1] for row in rows], np.int64))
    unlike, varied = variety(made)
    for place in range(len(made.policy)):
        mine = [category for of, category, shown in rows if of == place and shown and category >= 0]
        pairs = list(itertools.combinations(mine, 2))
        assert varied[place] == bool(pairs)
        assert unlike[place] == pytest.approx(np.mean([a != b for a, b in pairs]) if pairs else 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 96).map(lambda n: 3 * n)), max_size=60),
    st.sampled_from([0.5, 3.0, 24.0]),
)
@settings(max_examples=200)
def test_who_comes_back_is_counted_as_one_would(rows, gap_h):
    end = 12 * DAY_S
    policy, person, time = (np.array([row[at] for row in rows]) for at in range(3))
    _, _, found = visits(
        policy.astype(np.int64), person.astype(np.uint64), time * 3600.0, gap_h * 3600.0, end
    )  # fmt: skip
    sums = dict.fromkeys(("users", "visits", "due_1", "back_1", "due_7", "back_7"), 0)
    for who in {row[:2] for row in rows}:
        hours = sorted(row[2] for row in rows if row[:2] == who)
        began = [hours[0]] + [later for one, later in itertools.pairwise(hours) if later - one > gap_h]
        first_ends = hours[0]
        for one in hours:
            if one - first_ends <= gap_h:
                first_ends = one
        sums["users"] += 1
        sums["visits"] += len(began)
        for days in (1, 7):
            if first_ends <= 12 * 24 - days * 24:
                sums[f"due_{days}"] += 1
                sums[f"back_{days}"] += len(began) > 1 and began[1] - first_ends <= days * 24
    assert {name: int(values.sum()) for name, values in found.items()} == (sums if rows else {})


def test_counts_do_not_depend_on_how_the_log_is_cut():
    random = np.random.default_rng(1)
    parts = []
    for _ in range(6):
        lists, size = 20, 12
        of = np.repeat(np.arange(lists), size)
        n = len(of)
        parts.append(
            part(
                of, np.tile(np.arange(size), lists), random.integers(-1, 40, n), random.random(n) < 0.7,
                random.random(n) < 0.2, person=random.integers(0, 2**63, lists).astype(np.uint64),
                policy=random.integers(0, 2, lists), sources=random.integers(0, 8, n).astype(np.uint32),
                revenue=random.integers(0, 5, n).astype(np.float64), new=random.random(n) < 0.1,
                dwell_s=np.where(random.random(n) < 0.5, 3.0, np.nan),
            )
        )  # fmt: skip
    forward, backward = (Counts(2, 1, 40) for _ in range(2))
    for one, other in zip(parts, reversed(parts), strict=True):
        forward.add(one)
        backward.add(other)
    for name in ("sums", "exposure", "liked", "sources", "positions", "cells"):
        assert np.array_equal(getattr(forward, name), getattr(backward, name)), name
    shown = np.concatenate([one.shown for one in parts])
    columns = {"impressions": np.ones(len(shown)), "revenue": np.concatenate([one.revenue for one in parts])}
    for name, values in columns.items():
        assert forward.sums[COLUMNS.index(name)].sum() == (values * shown).sum(), name
    item = np.concatenate([one.item for one in parts])
    assert forward.exposure.sum() == (shown & (item >= 0)).sum() and forward.unknown == (shown & (item < 0)).sum()
    group = np.concatenate([one.person[one.of] for one in parts]) % GROUPS
    assert forward.sums[1].sum(axis=0)[int(group[shown][0])] == (group[shown] == group[shown][0]).sum()
    alone = np.concatenate([one.sources for one in parts]) == 4
    assert forward.sources[2, 0, 2] == (alone & shown).sum()
    assert forward.cells[0].sum() == (shown & (item >= 0)).sum()


def test_the_worth_of_a_position_is_found_under_items_of_different_worth():
    """Good items stand far up, so plain CTR says too much of the first positions."""
    random = np.random.default_rng(2)
    looks, items = np.array([1.0, 0.7, 0.5, 0.3, 0.2]), 200
    worth = np.linspace(0.02, 0.6, items)
    shown = random.poisson(60 * np.exp(2.5 * np.outer(worth / 0.6 - 0.5, np.linspace(1, -1, 5))))
    liked = random.binomial(shown, np.outer(worth, looks))
    found = positions.examination(shown, liked)
    assert found == pytest.approx(looks, rel=0.08)
    plain = liked.sum(axis=0) / shown.sum(axis=0)
    assert abs(plain[4] / plain[0] - looks[4]) > 0.08, "there was something to find"
    assert np.isnan(positions.examination(shown[:, :2], np.zeros((items, 2)))).all()


def between(name, low, high, difference=None):
    measure = next(one for one in axes.MEASURES if one.name == name)
    middle = (low + high) / 2 if difference is None else difference
    return axes.Between(measure, "a", "b", middle, low, high, (low, high))


def test_words_say_who_is_better_on_an_axis():
    ctr, hides, gini = (between(name, 0.01, 0.03) for name in ("ctr", "hide_rate", "gini"))
    assert (ctr.winner, hides.winner, gini.winner) == ("a", "b", "b"), "less is better of hides and of Gini"
    assert axes.verdict("user experience", [ctr]) == "user experience: a is better than b (ctr 0.02 more)"
    assert axes.verdict("content ecosystem", [gini]) == "content ecosystem: b is better than a (gini 0.02 less)"
    assert "each is better at something: a (ctr 0.02 more); b (hide_rate 0.02 less)" in axes.verdict(
        "user experience", [ctr, hides]
    )
    assert "no difference shown between a and b" in axes.verdict("user experience", [between("ctr", -0.1, 0.1)])
    assert "nothing is known" in axes.verdict("revenue", [ctr])
    assert axes.verdict_confidence(5) == pytest.approx(0.99)
