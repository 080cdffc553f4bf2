"""Conditions on events: `kind == "like" and value >= 4`, written as Python writes them.

Rules of the room:
- A condition compares columns with constants: `==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `not in`; `and`, `or`, `not` and
  parentheses combine. Text is equal or not, it has no order.
- Logic is SQL's, of three values: a comparison with a missing value is unknown, and only what is true is selected.
- A condition is data: the same one selects from batches of events here, and is printed as SQL (sql.py).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors

Type = Literal["number", "text"]
Mask = NDArray[np.bool_]
Value = str | float

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.In: "in",
    ast.NotIn: "not in",
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
DEPTH_MAX, VALUES_MAX = 16, 1000


class Comparison(msgspec.Struct, frozen=True, tag="comparison"):
    """One column beside one constant, or with `in` and `not in` several."""

    column: str
    operator: str
    values: tuple[Value, ...]


class Both(msgspec.Struct, frozen=True, tag="combination"):
    """Conditions joined by `and`, or by `or`."""

    operator: Literal["and", "or"]
    parts: tuple[Condition, ...]


class Not(msgspec.Struct, frozen=True, tag="not"):
    """What is false becomes true; what is unknown stays so."""

    part: Condition


Condition = Comparison | Both | Not


def parse(text: str, columns: Mapping[str, Type], where: str) -> Condition:
    """The condition that `text` is, over these columns. Anything else: Misconfigured, which begins with `where`."""
    try:
        return _read(ast.parse(text.strip(), mode="eval").body, columns, where, text, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise _wrong(where, text, f"it is no condition ({error})") from None


def columns_of(condition: Condition) -> set[str]:
    """The columns that it looks at."""
    return {comparison.column for comparison in _comparisons(condition)}


def texts_of(condition: Condition, columns: Mapping[str, Type]) -> set[str]:
    """The texts that it compares with."""
    return {
        str(value)
        for comparison in _comparisons(condition)
        if columns[comparison.column] == "text"
        for value in comparison.values
    }


def select(
    condition: Condition, numbers: Mapping[str, NDArray[np.float64]], texts: Mapping[str, NDArray[np.uint64]],
    hashed: Callable[[str], int],
) -> Mask:  # fmt: skip
    """Which of n events it is true of. `numbers` [n] of number columns, NaN where missing; `texts` [n] of text columns
    as hashes, 0 where missing; `hashed` makes one of a constant."""
    return _evaluate(condition, numbers, texts, hashed)[0]


def _read(node: ast.expr, columns: Mapping[str, Type], where: str, text: str, depth: int) -> Condition:
    if depth > DEPTH_MAX:
        raise _wrong(where, text, f"it is nested more than {DEPTH_MAX} deep")
    match node:
        case ast.BoolOp(op, parts):
            read = tuple(_read(part, columns, where, text, depth + 1) for part in parts)
            return Both("and" if isinstance(op, ast.And) else "or", read)
        case ast.UnaryOp(ast.Not(), part):
            return Not(_read(part, columns, where, text, depth + 1))
        case ast.Compare(left, operators, rights):
            sides = [left, *rights]
            pairs = [
                _compare(sides[at], sides[at + 1], _COMPARISONS.get(type(one), "is"), columns, where, text)
                for at, one in enumerate(operators)
            ]
            return pairs[0] if len(pairs) == 1 else Both("and", tuple(pairs))
    raise _wrong(where, text, f"{ast.unparse(node)!r} is no comparison")


def _compare(
    left: ast.expr, right: ast.expr, name: str, columns: Mapping[str, Type], where: str, text: str
) -> Comparison:
    if not isinstance(left, ast.Name) and isinstance(right, ast.Name) and name in _FUNCTIONS:
        turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(name, name)
        return _compare(right, left, turned, columns, where, text)
    if not isinstance(left, ast.Name) or name == "is":
        raise _wrong(where, text, "compare a column with constants, by == != < <= > >= in or not in")
    if left.id not in columns:
        raise _wrong(where, text, f"no column {left.id!r}; there are {', '.join(sorted(columns))}")
    try:
        value = ast.literal_eval(right)
    except (ValueError, TypeError):
        raise _wrong(where, text, f"{ast.unparse(right)!r} is no constant") from None
    several = name in ("in", "not in")
    if several != isinstance(value, (tuple, list, set)):
        raise _wrong(where, text, f"{ast.unparse(right)!r} does not go with {name!r}")
    values = sorted(value, key=repr) if several else [value]
    if not 1 <= len(values) <= VALUES_MAX:
        raise _wrong(where, text, f"1 to {VALUES_MAX} values go with {name!r}")
    kind = columns[left.id]
    if kind == "text" and name not in ("==", "!=", "in", "not in"):
        raise _wrong(where, text, f"{left.id!r} is text, which has no order; use == != in or not in")
    return Comparison(left.id, name, tuple(_constant(one, kind, left.id, where, text) for one in values))


def _constant(value: object, kind: Type, column: str, where: str, text: str) -> Value:
    if kind == "text" and isinstance(value, str) and value:
        value.encode()  # half of a character is a ValueError
        return value
    if kind == "number" and type(value) in (int, float) and np.isfinite(float(value)):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    raise _wrong(where, text, f"{column!r} is a {kind} column, and {value!r} is no {kind} it could be equal to")


def _wrong(where: str, text: str, why: str) -> errors.Misconfigured:
    return errors.Misconfigured(f"{where}: where = {text[:120]!r}: {why}")


def _comparisons(condition: Condition) -> Iterator[Comparison]:
    match condition:
        case Comparison():
            yield condition
        case Both(_, parts):
            for part in parts:
                yield from _comparisons(part)
        case Not(part):
            yield from _comparisons(part)


def _evaluate(
    condition: Condition, numbers: Mapping[str, NDArray[np.float64]], texts: Mapping[str, NDArray[np.uint64]],
    hashed: Callable[[str], int],
) -> tuple[Mask, Mask]:  # fmt: skip
    """(of which events it is true, of which it is false): of the others it is unknown."""
    match condition:
        case Not(part):
            true, false = _evaluate(part, numbers, texts, hashed)
            return false, true
        case Both(joined, parts):
            found = [_evaluate(part, numbers, texts, hashed) for part in parts]
            every, some = (0, 1) if joined == "and" else (1, 0)
            all_of: Mask = np.logical_and.reduce([one[every] for one in found])
            any_of: Mask = np.logical_or.reduce([one[some] for one in found])
            return (all_of, any_of) if joined == "and" else (any_of, all_of)
        case Comparison(column, name, values):
            if column in numbers:
                array: NDArray[Any] = numbers[column]
                known, constants = ~np.isnan(array), list(values)
            else:
                array = texts[column]
                known, constants = array != 0, [hashed(str(value)) for value in values]
            if name in ("in", "not in"):
                inside = np.isin(array, constants)
                found_true = inside if name == "in" else ~inside
            else:
                found_true = _FUNCTIONS[name](array, constants[0])
            return found_true & known, ~found_true & known
    raise AssertionError(condition)
