"""What every value is, recomputed slowly from all events, as docs/features.md says it and from nothing else.

Rules of the room:
- Written from the page, never from the compiled code: what the two have in common is the definitions alone. The hop of
  a window is taken from the definition, whose own tests say what it is.
- Plain Python, exact where Python can be: integers for times, fractions for sums of squares, fsum for sums.
- A missing value is None. Text stays text; whoever compares with tokens brings the function that makes them.
- `wrong` knows how far a value may be from the truth: it is the page's table again, as a check.
"""

from __future__ import annotations

import ast
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from millstream.features.define import Aggregate, Cross, Ratio, Source, Transform, span
from millstream.features.sets import FeatureSet

Event = Mapping[str, Any]
Value = float | str | None
Token = Callable[[str], float]

SECOND = 1_000_000
SEVERAL = ("last_n", "distinct_n", "top_k")
STANDARD_ERROR = 0.065
QUANTILE_ERROR = 0.025
QUANTILE_LEAST, QUANTILE_MOST = 1e-4, 1e6
TINY = 1e-290  # what float64 itself cannot tell apart down there is nobody's mistake


def plain(text: str) -> float:
    """Any one-to-one function does where nothing depends on which token is the smaller."""
    return float(int.from_bytes(text.encode(), "big"))


@lru_cache(1 << 16)
def micros(seconds: float) -> int:
    """Whole microseconds."""
    return round(Fraction(seconds) * SECOND)


# --- events -----------------------------------------------------------------------------------------------------------


def time_of(event: Event) -> int:
    """Nobody's clock runs ahead of what is known."""
    return min(micros(event["event_time"]), micros(event["arrival"]))


def filled(source: Source, event: Event, column: str) -> Value:
    """The value of a column, None where it is missing."""
    value = event.get(column)
    if value is None or (source.columns[column] == "text" and value == ""):
        return None
    if source.columns[column] == "number":
        return float(value) if math.isfinite(value) else None
    return str(value)


def firsts(source: Source, events: Sequence[Event]) -> Iterator[Event]:
    """The events that count, of events in the order in which they came: no copies."""
    last_came: dict[str, int] = {}
    for event in events:
        name = filled(source, event, source.id) if source.id else None
        if name is None:
            yield event
            continue
        assert isinstance(name, str)
        came = micros(event["arrival"])
        if name not in last_came or came - last_came[name] > span(source.again):
            yield event
        last_came[name] = came


def of_window(
    aggregate: Aggregate, events: Sequence[Event], key: str, at: float, earlier: int = 0
) -> list[tuple[int, Event]]:
    """(time, event) of all that a value as of `at` is made of, the oldest first. `events`: those of its source, in the
    order in which they came. `earlier`: as if the window began so many microseconds earlier."""
    source, now = aggregate.source, micros(at)
    far = (now - aggregate.span) // aggregate.hop * aggregate.hop - earlier if aggregate.span else -math.inf
    found = []
    for event in firsts(source, events):
        time = time_of(event)
        if not micros(event["arrival"]) < now or not far <= time < now:
            continue
        if not key or filled(source, event, aggregate.key) != key:
            continue
        if aggregate.where and holds(aggregate.where, source, event) is not True:
            continue
        if aggregate.column and filled(source, event, aggregate.column) is None:
            continue
        found.append((time, event))
    return sorted(found, key=lambda pair: pair[0])  # stable: those of one time stay in the order in which they came


# --- conditions -------------------------------------------------------------------------------------------------------


def holds(where: str, source: Source, event: Event) -> bool | None:
    """Whether a condition is true of an event, false, or (None) unknown."""
    return _holds(_tree(where.strip()), source, event)


@lru_cache(1 << 10)
def _tree(where: str) -> ast.expr:
    return ast.parse(where, mode="eval").body


def _holds(node: ast.expr, source: Source, event: Event) -> bool | None:
    if isinstance(node, ast.UnaryOp):
        assert isinstance(node.op, ast.Not)
        inner = _holds(node.operand, source, event)
        return None if inner is None else not inner
    if isinstance(node, ast.BoolOp):
        found = [_holds(part, source, event) for part in node.values]
        decided = isinstance(node.op, ast.Or)  # one true decides an `or`, one false an `and`
        if any(one is decided for one in found):
            return decided
        return None if None in found else not decided
    assert isinstance(node, ast.Compare), ast.dump(node)
    sides = [_side(one, source, event) for one in (node.left, *node.comparators)]
    steps = [_compared(sides[at], operator, sides[at + 1]) for at, operator in enumerate(node.ops)]
    if False in steps:
        return False
    return None if None in steps else True


def _side(node: ast.expr, source: Source, event: Event) -> Any:
    return filled(source, event, node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)


def _compared(left: Any, operator: ast.cmpop, right: Any) -> bool | None:
    if left is None or right is None:
        return None
    match operator:
        case ast.Eq():
            return bool(left == right)
        case ast.NotEq():
            return bool(left != right)
        case ast.Lt():
            return bool(left < right)
        case ast.LtE():
            return bool(left <= right)
        case ast.Gt():
            return bool(left > right)
        case ast.GtE():
            return bool(left >= right)
        case ast.In():
            return any(left == one for one in right)
        case ast.NotIn():
            return all(left != one for one in right)
    raise AssertionError(operator)


# --- values -----------------------------------------------------------------------------------------------------------


def value(
    aggregate: Aggregate, events: Sequence[Event], key: str, at: float, token: Token = plain
) -> Value | list[Value]:
    """The value as of `at`, unix seconds: a list of n of `last_n`, `distinct_n` and `top_k`, else one. `events`: of its
    source alone, in the order in which they came; what arrived at `at` or later changes nothing."""
    found = of_window(aggregate, events, key, at)
    if aggregate.op == "count":
        return float(len(found))
    if aggregate.op == "since":
        return (micros(at) - found[-1][0]) / SECOND if found else None
    values = [filled(aggregate.source, event, aggregate.column) for _, event in found]
    if aggregate.op in SEVERAL:
        listed = _several(aggregate, values, token)
        return [*listed, *[None] * (aggregate.n - len(listed))]
    if aggregate.op == "approx_distinct":
        return float(len(set(values)))
    if not values:
        return None
    if aggregate.op == "last":
        return values[-1]
    numbers = [float(one) for one in values if one is not None]
    if aggregate.op == "decay":
        return math.fsum(_weighed(aggregate, found, at))
    return _of_numbers(aggregate, numbers)


def _several(aggregate: Aggregate, values: Sequence[Value], token: Token) -> list[Value]:
    newest = list(reversed(values))
    if aggregate.op == "last_n":
        return newest[: aggregate.n]
    if aggregate.op == "distinct_n":
        return list(dict.fromkeys(newest))[: aggregate.n]
    often: dict[Value, int] = {}
    for one in values:
        often[one] = often.get(one, 0) + 1
    return sorted(often, key=lambda one: (-often[one], _number(one, token)))[: aggregate.n]


def _of_numbers(aggregate: Aggregate, numbers: Sequence[float]) -> float:
    exact = [Fraction(one) for one in numbers]
    match aggregate.op:
        case "sum":
            return math.fsum(numbers)
        case "mean":
            return float(sum(exact) / len(exact))
        case "var":
            return float(_variance(exact))
        case "std":
            return math.sqrt(_variance(exact))
        case "min":
            return min(numbers)
        case "max":
            return max(numbers)
        case "quantile":
            return _quantile(numbers, Fraction(str(aggregate.q)))
    raise AssertionError(aggregate.op)


def _variance(exact: Sequence[Fraction]) -> Fraction:
    mean = sum(exact) / len(exact)
    return sum(((one - mean) ** 2 for one in exact), Fraction(0)) / len(exact)


def _quantile(numbers: Sequence[float], q: Fraction) -> float:
    for one in sorted(numbers):
        if sum(1 for other in numbers if other <= one) >= q * len(numbers):
            return one
    return max(numbers)


def _weighed(aggregate: Aggregate, found: Sequence[tuple[int, Event]], at: float) -> list[float]:
    half_life, now = span(aggregate.half_life), micros(at)
    return [float(event[aggregate.column]) * 0.5 ** ((now - time) / half_life) for time, event in found]


def _number(one: Value, token: Token) -> float:
    if one is None:
        return math.nan
    return token(one) if isinstance(one, str) else float(one)


# --- how far from the truth a value may be ----------------------------------------------------------------------------


def encoded(aggregate: Aggregate, found: Value | list[Value], token: Token) -> list[float]:
    """Values as the rows hold them: numbers with NaN where missing, tokens with 0."""
    values = found if isinstance(found, list) else [found]
    missing = 0.0 if aggregate.tokens else math.nan
    return [missing if one is None else _number(one, token) for one in values]


def wrong(
    aggregate: Aggregate, got: Sequence[float], events: Sequence[Event], key: str, at: float, token: Token
) -> str:
    """What is wrong with the values `got` of an aggregate as of `at`, as a sentence; "" if nothing is."""
    wanted = encoded(aggregate, value(aggregate, events, key, at, token), token)
    found = of_window(aggregate, events, key, at)
    complaint = f"{aggregate.name} ({aggregate.op}) of {key!r} as of {micros(at)}: wanted {wanted}, got {list(got)}"
    if len(got) != len(wanted):
        return complaint
    if aggregate.op in ("sum", "mean", "var", "std", "decay"):
        return "" if _near(aggregate, got[0], wanted[0], found, at) else complaint
    if aggregate.op == "approx_distinct":
        allowed = max(4 * STANDARD_ERROR * wanted[0], 2.0) if wanted[0] else 0.0
        return "" if abs(got[0] - wanted[0]) <= allowed else complaint
    if aggregate.op == "quantile" and found:
        return "" if _near_quantile(aggregate, got[0], found) else complaint
    if aggregate.op == "top_k" and _crowded(aggregate, events, key, at):
        return ""  # past that it promises nothing
    return "" if all(_same(*pair) for pair in zip(got, wanted, strict=True)) else complaint


def _crowded(aggregate: Aggregate, events: Sequence[Event], key: str, at: float) -> bool:
    """Whether more values came than `top_k` tells apart: those of a window before count too, as long as they were there
    when the first of this one came."""
    found = of_window(aggregate, events, key, at, aggregate.span)
    return len({event[aggregate.column] for _, event in found}) > 8 * aggregate.n


def _same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def _near(aggregate: Aggregate, got: float, wanted: float, found: Sequence[tuple[int, Event]], at: float) -> bool:
    if not found or math.isnan(got):
        return _same(got, wanted)
    numbers = [float(event[aggregate.column]) for _, event in found]
    sizes = math.fsum(abs(one) for one in numbers)
    square = float(sum(Fraction(one) ** 2 for one in numbers) / len(numbers))
    match aggregate.op:
        case "sum":
            return abs(got - wanted) <= 1e-9 * sizes + TINY
        case "mean":
            return abs(got - wanted) <= 1e-9 * sizes / len(numbers) + TINY
        case "var":
            return got >= 0 and abs(got - wanted) <= 1e-9 * square + TINY
        case "std":  # a root: what it says of the variance is what the page bounds
            return got >= 0 and abs(got * got - wanted * wanted) <= 1e-9 * square + TINY
    weighed = math.fsum(abs(one) for one in _weighed(aggregate, found, at))
    return abs(got - wanted) <= 1e-9 * weighed + TINY


def _near_quantile(aggregate: Aggregate, got: float, found: Sequence[tuple[int, Event]]) -> bool:
    """`q` is as it is written, or the float that comes of that: where 0.1 of 10 events end, the two differ by one."""
    numbers = [float(event[aggregate.column]) for _, event in found]
    for right in {_quantile(numbers, Fraction(str(aggregate.q))), _quantile(numbers, Fraction(aggregate.q))}:
        if QUANTILE_LEAST <= abs(right) <= QUANTILE_MOST:
            if abs(got - right) <= QUANTILE_ERROR * abs(right) * (1 + 1e-9):
                return True
        elif abs(right) < QUANTILE_LEAST:
            if abs(got) <= QUANTILE_LEAST * (1 + QUANTILE_ERROR):
                return True
        elif got * right > 0 and abs(got) >= QUANTILE_MOST * (1 - QUANTILE_ERROR):
            return True
    return False


# --- rows -------------------------------------------------------------------------------------------------------------


def row(
    features: FeatureSet,
    events: Mapping[str, Sequence[Event]],
    keys: Mapping[str, str],
    at: float,
    token: Token = plain,
    cross: Callable[[float, float], float] | None = None,
    request: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """A row of the model's matrix as of `at`: float64 by column, tokens as numbers, NaN or 0 where missing.
    `events`: by source, in the order in which they came; `keys`: by entity."""
    known: dict[str, list[float]] = {}
    for one in features.ordered:
        if isinstance(one, Aggregate):
            came = events.get(one.source.name, [])
            known[one.name] = encoded(one, value(one, came, keys.get(one.of, ""), at, token), token)
        elif isinstance(one, Ratio):
            over, under = known[one.over][0] + one.prior[0], known[one.under][0] + one.prior[1]
            known[one.name] = [math.nan if under == 0 or math.isnan(over) else over / under]
        elif isinstance(one, Cross):
            left, right = known[one.left][0], known[one.right][0]
            assert cross is not None, "the page does not say what the token of a cross is: bring the function"
            known[one.name] = [cross(left, right) if left and right else 0.0]
        else:
            known[one.name] = [_transformed(one, features, known, request or {})]
        if one.datatype == "FP32" and not isinstance(one, Aggregate):
            known[one.name] = [single(one) for one in known[one.name]]
    columns: dict[str, float] = {}
    for one in features.features:
        values = known[one.name]
        columns.update(
            {one.name: values[0]} if one.width == 1 else {f"{one.name}_{n}": v for n, v in enumerate(values)}
        )
    return columns


def _transformed(
    one: Transform, features: FeatureSet, known: Mapping[str, Sequence[float]], request: Mapping[str, float]
) -> float:
    import numpy as np  # the function's own language

    kinds = {name: np.uint32 if features.by_name[name].datatype == "UINT32" else np.float64 for name in one.inputs}
    given = {name: np.array(known[name][:1], kinds[name]) for name in one.inputs}
    given.update({name: np.array([request[name]], np.float64) for name in one.request})
    return float(one.function(given)[0])


def single(number: float) -> float:
    """A number as FP32 holds it; missing where that does not."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        return math.nan
