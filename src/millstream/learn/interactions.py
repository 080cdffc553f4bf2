"""Who did what with which item when, out of a team's own table: read once into arrays, then told as history.

Rules of the room:
- Rows that name nobody, nothing or no time are left out and counted; more than ODD_SHARE of them is a wrong map, and
  BadInput with the first of them.
- What one user did with one item within FOLD_S is one showing, with all that came of it: a view and then a purchase is
  a view that was liked, not one that was not.
- Bounded: the `newest` interactions are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import BadInput
from millstream.learn.columns import Map, Row, is_blank, text_of, when

FOLD_S: Final = 1800.0
ODD_SHARE: Final = 0.05
KINDS_MAX: Final = 32
AHEAD_S: Final = 86400.0
SHOWN: Final = frozenset(["impression", "impressions", "show", "shown", "exposure", "display", "displayed"])
WEAK: Final = frozenset(
    ["view", "views", "pageview", "pv", "click", "clicked", "detail", "open", "read", "visit", "browse", "play", "seen",
     "remove_from_cart", "removefromcart", "skip"]
)  # fmt: skip
AGAINST: Final = frozenset(["dislike", "downvote", "hide", "block", "report", "unlike", "return", "refund"])
BOUGHT: Final = frozenset(["transaction", "purchase", "buy", "order", "checkout", "booking", "sale", "paid"])
LIKE: Final = "like"


class Liked(msgspec.Struct, frozen=True):
    """What counts as liked: one of `kinds`, or a rating of at least `least`; neither: every interaction."""

    kinds: tuple[str, ...] = ()
    least: float | None = None

    def __str__(self) -> str:
        return " ".join(self.kinds) if self.kinds else f"rating>={self.least:g}" if self.least is not None else "all"


class Interactions(msgspec.Struct):
    """Interactions in order of time, n of them: rows of `user_names` and `item_names` int32 [n], unix seconds float64
    [n], rows of `kind_names` int16 [n], ratings float32 [n], NaN where there is none. `read`: rows of the table;
    `odd`: those left out; `older`: those that were too many."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.float64]
    kinds: NDArray[np.int16]
    ratings: NDArray[np.float32]
    user_names: list[str]
    item_names: list[str]
    kind_names: list[str]
    read: int
    odd: int
    older: int

    def counts(self) -> dict[str, int]:
        """How often each kind came."""
        found = np.bincount(self.kinds[self.kinds >= 0], minlength=len(self.kind_names))
        return dict(zip(self.kind_names, found.tolist(), strict=True))

    def positives(self, liked: Liked) -> NDArray[np.bool_]:
        """Which of them say that the item was liked, bool [n]."""
        if liked.kinds:
            return np.isin(self.kinds, [n for n, name in enumerate(self.kind_names) if name in liked.kinds])
        if liked.least is not None:
            return self.ratings >= liked.least  # not true of NaN
        return np.ones(len(self.times), np.bool_)


def read(rows: Iterable[Row], map: Map, newest: int, now: float, where: str) -> Interactions:
    """The `newest` interactions of a table. Without `event_time` in the map they count in the order of the file, a
    second apart, the last one now. BadInput."""
    users, items, kinds = dict[str, int](), dict[str, int](), dict[str, int]()
    columns = _Columns()
    count, odd, first_odd = 0, 0, ""
    part = {field: map.get(field) for field in ("user", "item", "event_time", "kind", "rating")}
    for count, row in enumerate(rows, 1):
        told = {field: None if of is None else row.get(of.column) for field, of in part.items()}
        time = float(count) if part["event_time"] is None else when(told["event_time"], part["event_time"].type)
        rating = _rating(told["rating"]) if part["rating"] is not None else np.nan
        user, item, kind = told["user"], told["item"], told["kind"]
        wrong = _wrong(user, item, time, now, told, map)
        if wrong or time is None:
            odd += 1
            first_odd = first_odd or f"{where} row {count}: {wrong}"
            continue
        code = -1 if is_blank(kind) else kinds.setdefault(text_of(kind).lower(), len(kinds))
        if len(kinds) > KINDS_MAX:
            raise BadInput(
                f"{where}: column {map['kind'].column!r} has more than {KINDS_MAX} kinds of events: it is something "
                "else; say --map kind=COLUMN, or --map kind= for none"
            )
        columns.add(users.setdefault(text_of(user), len(users)), items.setdefault(text_of(item), len(items)), time,
                    code, rating)  # fmt: skip
        if columns.count >= 2 * newest + 100_000:
            columns.keep(newest)
    if not count:
        raise BadInput(f"{where}: it has no rows; it wants one for each time that a user did something with an item")
    if odd > ODD_SHARE * count:
        raise BadInput(f"{first_odd} (and {odd - 1:,} more of {count:,} rows); another column may be meant: --map")
    columns.keep(newest)
    if part["event_time"] is None:
        columns.times += now - count
    whose, what, times, codes, ratings = columns.arrays()
    return Interactions(
        whose, what, times, codes, ratings, list(users), list(items), list(kinds), count, odd,
        count - odd - columns.count,
    )  # fmt: skip


def _wrong(user: Any, item: Any, time: float | None, now: float, told: Mapping[str, Any], map: Map) -> str:
    """What is wrong with a row; "" for nothing."""
    for field, cell in (("user", user), ("item", item)):
        if is_blank(cell):
            return f"column {map[field].column!r} ({field}) is empty"
    if time is None or time <= 0 or time > now + AHEAD_S:
        part, cell = map["event_time"], told["event_time"]
        late = f", which would be {time - now:.0f} s in the future" if time is not None and time > now else ""
        return f"column {part.column!r} should be a time ({part.type}), got {str(cell)[:40]!r}{late}"
    return ""


def _rating(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


class _Columns:
    """Growing arrays of interactions, `count` of them."""

    def __init__(self) -> None:
        self._all: list[NDArray[Any]] = [np.empty(1024, kind) for kind in ("i4", "i4", "f8", "i2", "f4")]
        self.count = 0

    @property
    def times(self) -> NDArray[np.float64]:
        return self._all[2][: self.count]

    @times.setter
    def times(self, times: NDArray[np.float64]) -> None:
        self._all[2][: self.count] = times

    def add(self, *values: float) -> None:
        if self.count == len(self._all[0]):
            self._all = [np.concatenate((one, np.empty_like(one))) for one in self._all]
        for one, value in zip(self._all, values, strict=True):
            one[self.count] = value
        self.count += 1

    def keep(self, newest: int) -> None:
        """The newest, in order of time; of one time, in the order of the table."""
        order = np.argsort(self._all[2][: self.count], kind="stable")[-newest:]
        self._all, self.count = [one[order] for one in self._all], len(order)

    def arrays(self) -> list[NDArray[Any]]:
        return [one[: self.count] for one in self._all]


def propose(found: Interactions, amount: bool) -> Liked:
    """What most likely means that somebody liked an item. Of kinds: those that are more than a look, else all that are
    not told by the item being shown. Of ratings: four fifths of the scale; of `amount`s: more than half of them have.
    """
    counts = {kind: count for kind, count in found.counts().items() if count}
    if len(counts) > 1:
        strong = [kind for kind in counts if kind not in SHOWN | WEAK | AGAINST]
        weak = [kind for kind in counts if kind in WEAK and kind not in ("skip", "removefromcart", "remove_from_cart")]
        return Liked(kinds=tuple(strong or weak))
    known = found.ratings[~np.isnan(found.ratings)]
    if not len(known) or known.min() == known.max():
        return Liked()
    if amount:
        least = float(np.quantile(known, 0.5, method="higher"))
        return Liked(least=least if least > known.min() else float(known[known > least].min()))
    scale = np.unique(known[:1_000_000])
    low, high = float(scale[0]), float(scale[-1])
    whole = max(low, 1.0) if low >= 0 and high > 1 else low  # nobody gives 0 of 5 on a scale from 1
    aim = high - 0.25 * (high - whole)
    return Liked(least=float(scale[np.searchsorted(scale, aim - 1e-6)]))


def told(found: Interactions, liked: Liked) -> Iterator[dict[str, Any]]:
    """History as `learn/history.py` takes it: a showing a row, with a column for each kind that came of it, and `like`
    (1 or 0) where ratings decide."""
    order = np.lexsort((found.times, found.items, found.users))
    users, items, times = found.users[order], found.items[order], found.times[order]
    if found.kind_names and liked.least is None:
        same = (users[1:] == users[:-1]) & (items[1:] == items[:-1])
        begins = np.append(True, ~same | (times[1:] - times[:-1] > FOLD_S)) if len(order) else np.empty(0, np.bool_)
    else:
        begins = np.ones(len(order), np.bool_)
    positive, starts = found.positives(liked)[order], np.flatnonzero(begins)
    kinds, ratings = found.kinds[order], found.ratings[order]
    ends = np.append(starts[1:], len(order))
    for place in np.argsort(times[starts], kind="stable").tolist():
        start, end = int(starts[place]), int(ends[place])
        row: dict[str, Any] = {
            "user": found.user_names[users[start]],
            "item": found.item_names[items[start]],
            "event_time": float(times[start]),
        }
        for at in range(start, end):
            if (code := int(kinds[at])) >= 0 and (name := found.kind_names[code]) not in SHOWN:
                row[name] = 1.0
            if not np.isnan(ratings[at]) and liked.least is not None:
                row["rating"] = float(ratings[at])
        if not liked.kinds:
            row[LIKE] = float(positive[start:end].any())
        yield row


def window_s(found: Interactions, liked: Liked) -> float:
    """How long a like comes after its showing, for nine of ten, seconds: 60 to FOLD_S, whole minutes."""
    if not liked.kinds:
        return 60.0
    order = np.lexsort((found.times, found.items, found.users))
    users, items, times = found.users[order], found.items[order], found.times[order]
    if len(order) < 2:
        return 60.0
    step = np.diff(times)
    same = (np.diff(users) == 0) & (np.diff(items) == 0) & (step <= FOLD_S) & found.positives(liked)[order][1:]
    if not same.any():
        return 60.0
    return float(min(FOLD_S, max(60.0, 60.0 * np.ceil(np.quantile(step[same], 0.9) / 60.0))))
