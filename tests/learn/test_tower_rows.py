"""What two towers learn from, and how they are judged: by hand."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.learn.towers.judge import judged, popularity
from millstream.learn.towers.rows import Known, Likes
from millstream.recall.cooccur import Positives

LIKED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 20)), max_size=40)


def likes(rows, users=4, items=6) -> Likes:
    """Of (user, item, time)."""
    columns = np.array(rows, np.float64).reshape(-1, 3)
    known = Known(
        np.arange(users, dtype=np.uint32)[:, None] + 1, np.arange(items, dtype=np.uint32)[:, None] + 100,
        np.arange(items, dtype=np.uint32) + 100,
    )  # fmt: skip
    return Likes(Positives(columns[:, 0].astype("i4"), columns[:, 1].astype("i4"), columns[:, 2]), known)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(LIKED, st.integers(1, 4))
def test_a_history_is_what_came_before_and_nothing_twice(rows, h):
    made = likes(rows)
    once, past = [], {}
    for user, item, time in sorted(rows, key=lambda row: row[2]):
        if (user, item) not in [(one, what) for one, what, _ in once]:
            once.append((user, item, time))
    assert list(zip(made.whose.tolist(), made.what.tolist(), made.times.tolist(), strict=True)) == once
    histories = made.histories(np.arange(len(made)), h)
    for row, (user, item, _) in enumerate(once):
        had = past.setdefault(user, [])
        expected = [0] * (h - len(had[-h:])) + [100 + one for one in had[-h:]]
        assert histories[row].tolist() == expected
        assert made.liked(user, row).tolist() == had
        assert made.pasts(np.array([user]), row, h)[0].tolist() == expected
        had.append(item)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(LIKED, st.integers(0, 40), st.integers(0, 5))
def test_it_is_judged_as_the_formulas_say(rows, first, seed):
    made = likes(rows)
    first = min(first, len(made))
    scores = np.random.default_rng(seed).random((4, 6)).astype(np.float32)
    found = judged(made, first, lambda people: scores[people])
    recalls, gains = [], []
    for user in range(4):
        before = [what for who, what in zip(made.whose[:first], made.what[:first], strict=True) if who == user]
        after = {what for who, what in zip(made.whose[first:], made.what[first:], strict=True) if who == user}
        if after:
            order = sorted((item for item in range(6) if item not in before), key=lambda item: -scores[user, item])
            hits = [item in after for item in order[:20]]
            recalls.append(sum(hits) / min(len(after), 20))
            ideal = sum(1 / math.log2(place + 2) for place in range(len(after)))
            gains.append(sum(hit / math.log2(place + 2) for place, hit in enumerate(hits)) / ideal)
    if not recalls:
        assert found is None
    else:
        assert (found.people, found.recall) == (len(recalls), round(float(np.mean(recalls)), 4))
        assert abs(found.ndcg - np.mean(gains)) < 1e-4


def test_what_is_popular_is_counted_before_the_split():
    made = likes([(0, 1, 0), (1, 1, 1), (1, 2, 2), (0, 3, 3), (1, 3, 4), (2, 3, 5)])
    assert popularity(made, 3)(np.array([0, 2])).tolist() == [[0, 2, 1, 0, 0, 0]] * 2
