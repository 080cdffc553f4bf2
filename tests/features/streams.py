"""Random definitions and random streams, placed where mistakes live: at the edges of hops and windows, on ties, late,
ahead of their arrival, as copies, with pieces missing.

Rules of the room:
- All is drawn in whole microseconds and handed on as unix seconds, which hold them exactly enough to come back.
- A stream is rows in the order in which they came, each with the name of its source: arrivals never fall.
- Keys, ids and texts come from small pools, so that things meet; empty texts and None are among them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from hypothesis import strategies as st

from millstream.features.define import Aggregate, Source, span
from millstream.features.sets import FeatureSet

Row = tuple[str, dict[str, Any]]

SECOND, DAY = 1_000_000, 86_400_000_000
START = 1_699_920_000 * SECOND  # the beginning of a day
WINDOWS = ("1m", "5m", "1h", "90m", "1d", "7d", "30d", "365d", "lifetime")
HALF_LIVES = ("1s", "1m", "3h", "30d")
AGAINS = ("1s", "1m", "1h", "2d")
KEYS = ("u1", "u2", "ü3")
WORDS = ("a", "b", "click", "like", "ünïcode", "Ω")
MANY = tuple(f"v{number}" for number in range(60))
NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.1, 2.5, -3.75, 1e-4, 1e-5, 4.0, 1e6, 1e12, -1e15, 123456.789, 1e100)
ODD = (None, math.nan, math.inf, -math.inf)
QS = (0.0, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0)
LATE = (0, 0, 0, 1, SECOND, 59 * SECOND, 3600 * SECOND, DAY, 8 * DAY, 40 * DAY)

IDS = ("", None, None, "e1", "e2", "e3", "e4")
ENTITIES = (KEYS[0], KEYS[1], KEYS[0], KEYS[0], "", None)
TEXTS = (*WORDS, *WORDS, *MANY, "", None)
FIGURES = (*NUMBERS, *NUMBERS, *range(-3, 4), *(random.Random(7).gauss(0, 100) for _ in range(30)), *ODD)

NUMBER_OPS = ("sum", "mean", "var", "std", "min", "max", "quantile", "decay")
BOTH_OPS = ("last", "last_n", "distinct_n", "top_k", "approx_distinct")
BARE_OPS = ("count", "since")


def sources(again: str) -> tuple[Source, Source]:
    """One whose events have ids, one whose events have none."""
    columns: dict[str, Any] = {
        "user": "text",
        "item": "text",
        "kind": "text",
        "id": "text",
        "value": "number",
        "score": "number",
    }
    plain: dict[str, Any] = {"who": "text", "item": "text", "label": "text", "amount": "number"}
    return (
        Source(name="outcomes", columns=columns, id="id", again=again),
        Source(name="orders", columns=plain),
    )


def wheres(source: Source) -> st.SearchStrategy[str]:
    """Conditions over its columns, of every comparison and up to a few deep."""
    return _wheres(tuple(source.columns.items()))


@cache  # a strategy is dear to make, and these are made for every feature
def _wheres(columns: tuple[tuple[str, str], ...]) -> st.SearchStrategy[str]:
    texts = [name for name, kind in columns if kind == "text"]
    numbers = [name for name, kind in columns if kind == "number"]
    word, number = st.sampled_from(WORDS + KEYS), st.sampled_from((-1, 0, 1, 0.1, 2.5, 4, 1e6, -1e15))
    both = st.sampled_from(("==", "!="))
    order = st.sampled_from(("==", "!=", "<", "<=", ">", ">="))
    listed = st.sampled_from(("in", "not in"))
    comparison = st.one_of(
        st.builds(lambda c, o, v: f"{c} {o} {v!r}", st.sampled_from(texts), both, word),
        st.builds(lambda c, o, v: f"{v!r} {o} {c}", st.sampled_from(texts), both, word),
        st.builds(lambda c, o, v: f"{c} {o} {v!r}", st.sampled_from(numbers), order, number),
        st.builds(lambda c, o, v: f"{v!r} {o} {c}", st.sampled_from(numbers), order, number),
        st.builds(lambda c, v, w: f"{v!r} <= {c} < {w!r}", st.sampled_from(numbers), number, number),
        st.builds(lambda c, o, v: f"{c} {o} {v!r}", st.sampled_from(texts), listed, st.lists(word, min_size=1)),
        st.builds(
            lambda c, o, v: f"{c} {o} {tuple(v)!r}", st.sampled_from(numbers), listed, st.lists(number, min_size=1)
        ),
    )
    return st.recursive(
        comparison,
        lambda inner: st.one_of(
            inner.map(lambda one: f"not ({one})"),
            st.builds(
                lambda parts, joined: f" {joined} ".join(f"({one})" for one in parts),
                st.lists(inner, min_size=2, max_size=3),
                st.sampled_from(("and", "or")),
            ),
        ),
        max_leaves=4,
    )


@st.composite
def aggregates(draw: st.DrawFn, name: str, source: Source, ops: Sequence[str] = ()) -> Aggregate:
    """Any feature of a source, of the entities `user` and `item`."""
    op: Any = draw(st.sampled_from(ops or (*NUMBER_OPS, *BOTH_OPS, *BARE_OPS)))
    more: dict[str, Any] = {}
    if op in NUMBER_OPS + BOTH_OPS:
        kinds = ("number",) if op in NUMBER_OPS else ("number", "text")
        more["column"] = draw(st.sampled_from([n for n, kind in source.columns.items() if kind in kinds and n != "id"]))
        if op != "approx_distinct" and source.columns[more["column"]] == "text":
            more["datatype"] = "UINT32"
    if op in ("last_n", "distinct_n", "top_k"):
        more["n"] = draw(st.integers(1, 3) | st.just(64))
    if op == "quantile":
        more["q"] = draw(st.sampled_from(QS))
    if op == "decay":
        more["half_life"] = draw(st.sampled_from(HALF_LIVES))
    else:
        more["window"] = draw(st.sampled_from(WINDOWS))
    if draw(st.sampled_from((False, False, True))):
        more["where"] = draw(wheres(source))
    more["entity"], more["key"] = draw(
        st.sampled_from((("user", "user" if "user" in source.columns else "who"), ("item", "item")))
    )
    return Aggregate(name=name, source=source, op=op, **more)


@st.composite
def feature_sets(draw: st.DrawFn, ops: Sequence[str] = (), most: int = 5) -> FeatureSet:
    """One to five features of two entities, some of which share a source."""
    pair = sources(draw(st.sampled_from(AGAINS)))
    count = draw(st.integers(1, most))
    found = [draw(aggregates(f"f{at}", draw(st.sampled_from(pair)), ops)) for at in range(count)]
    return FeatureSet(name="random", features=tuple(found))


def edges(features: FeatureSet, at: int) -> list[int]:
    """Where the windows of these features begin and end as of `at`, and the hops around their far edges."""
    found = [at]
    for one in features.aggregates:
        if one.span:
            far = (at - one.span) // one.hop * one.hop
            found += [far, at - one.span, far + one.hop, at // one.hop * one.hop, far - one.hop]
    return found


@st.composite
def readings(draw: st.DrawFn) -> list[int]:
    """One to four rising times, microseconds: on whole days, on whole hours, and anywhere."""
    at = START + draw(st.sampled_from((0, 1, 3600 * SECOND, 3600 * SECOND - 1)) | st.integers(0, 400 * DAY))
    steps = draw(
        st.lists(
            st.sampled_from((1, SECOND, 60 * SECOND, 300 * SECOND, 3600 * SECOND, DAY, 7 * DAY, 400 * DAY))
            | st.integers(1, 10 * DAY),
            max_size=3,
        )
    )
    found = [at]
    for step in steps:
        found.append(found[-1] + step)
    return found


class _Dice:
    """One draw for a whole event, taken apart: quick, and what shrinks is still the event."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data, "big")

    def pick(self, options: Sequence[Any]) -> Any:
        self._left, at = divmod(self._left, len(options))
        return options[at]


@st.composite
def rows(draw: st.DrawFn, features: FeatureSet, times: Sequence[int], least: int = 0, most: int = 25) -> list[Row]:
    """Events of all sources in the order in which they came, around the edges of the windows as of `times`."""
    places = sorted({edge for at in times for edge in edges(features, at)})
    again = [span(one.again) for one in features.sources if one.id]
    late = (*LATE, *again, *(one + 1 for one in again))
    came: list[tuple[int, Row]] = []
    for data in draw(st.lists(st.binary(min_size=20, max_size=20), min_size=least, max_size=most)):
        dice = _Dice(data)
        source = dice.pick(features.sources)
        time = dice.pick(places) + dice.pick((0, 0, -1, 1, -SECOND, dice.pick(range(-3600 * SECOND, 3600 * SECOND))))
        ahead = dice.pick((0, 0, 0, 0, 0, 1, SECOND, DAY))  # a clock that runs ahead
        arrival = time if ahead else time + dice.pick(late)
        event: dict[str, Any] = {"event_time": (time + ahead) / SECOND, "arrival": arrival / SECOND}
        for name, kind in source.columns.items():
            if name == source.id:
                event[name] = dice.pick(IDS)
            elif name in ("user", "item", "who"):
                event[name] = dice.pick(ENTITIES)
            else:
                event[name] = dice.pick(TEXTS if kind == "text" else FIGURES)
            if event[name] is None and dice.pick((False, True)):
                del event[name]  # left out altogether
        came.append((arrival, (source.name, event)))
        for _ in range(dice.pick((0, 0, 1, 3)) if event.get(source.id) else 0):
            arrival += dice.pick((0, 1, -1, 0)) + dice.pick((0, span(source.again), span(source.again)))
            came.append((arrival, (source.name, event | {"arrival": arrival / SECOND})))
    came.sort(key=lambda one: one[0])
    return [row for _, row in came]


@st.composite
def examples(draw: st.DrawFn, ops: Sequence[str] = ()) -> tuple[FeatureSet, list[int], list[Row]]:
    """(definition, times to read at, stream)."""
    features = draw(feature_sets(ops))
    times = draw(readings())
    least = draw(st.sampled_from((20, 10, 0)))
    return features, times, draw(rows(features, times, least, least + 10))


def long_stream(seed: int, features: FeatureSet, count: int, days: int) -> tuple[list[int], list[Row]]:
    """Many events over many days, by a plain generator, and when to read them: what short streams never reach."""
    rng = random.Random(seed)
    by_name = {one.name: one for one in features.sources}
    came: list[tuple[int, Row]] = []
    for at in range(count):
        source = by_name[rng.choice(sorted(by_name))]
        arrival = START + rng.randrange(days * DAY)
        if rng.random() < 0.5:
            arrival -= arrival % (3600 * SECOND)
        event_time = arrival - rng.choice((0, 0, 0, 0, -SECOND, rng.randrange(3600 * SECOND), rng.randrange(9 * DAY)))
        event: dict[str, Any] = {"event_time": event_time / SECOND, "arrival": arrival / SECOND}
        for name, kind in source.columns.items():
            if name == source.id:
                event[name] = rng.choice(("", None, f"e{at // 2}", f"e{at}"))
            elif name in ("user", "item", "who"):
                event[name] = rng.choice((*KEYS, KEYS[0], None))
            elif kind == "text":
                event[name] = rng.choice((*WORDS, None, rng.choice(MANY)))
            else:
                event[name] = rng.choice(
                    (None, rng.gauss(0, 1000), float(rng.randrange(-3, 4)), rng.lognormvariate(0, 3))
                )
        came.append((arrival, (source.name, event)))
    came.sort(key=lambda one: one[0])
    times = sorted(rng.randrange(START, START + days * DAY) for _ in range(4))
    return [*times, START + (days + 40) * DAY], [row for _, row in came]
