"""What several outputs of a ranker are worth together: `click * (1 + 2 * conversion) + 0.1 * log1p(dwell)`. Outputs of
a model beside it have that one's name before theirs: `0.7 * probability + 0.3 * online.probability`.

Rules of the room:
- A formula has names of outputs, numbers, `+ - * / **`, parentheses, and `min max log1p exp sqrt`. It is read once and
  is data from then on: nothing of it is run as Python.
- It is computed on whole columns of float32, so its cost does not depend on how many candidates there are.
- Its result always orders a list: what cannot be computed (0 / 0, log1p(-2)) is worth as little as the least candidate
  that can be, and what overflows as much as the best.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream.errors import Misconfigured, NotFound

Floats = NDArray[np.float32]
Heads = Mapping[str, Floats]
_Term = Callable[[Heads], Any]
"""Of the heads [n], a float32 or a column [n] of them."""

LENGTH_MAX, DEPTH_MAX = 1000, 64

_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.true_divide, ast.Pow: np.power,
}  # fmt: skip
_OF_ONE: Final[dict[str, Callable[[Any], Any]]] = {"log1p": np.log1p, "exp": np.exp, "sqrt": np.sqrt}
_OF_SEVERAL: Final[dict[str, Callable[[Any, Any], Any]]] = {"min": np.minimum, "max": np.maximum}
_MAY: Final = f"names of outputs, numbers, + - * / **, {', '.join((*_OF_SEVERAL, *_OF_ONE))}"


class Formula:
    """One that was read and can be computed. `names`: the outputs that it needs, at least one; `beside`: those of them
    that are of models beside the ranker, by model. A text that is none: Misconfigured."""

    def __init__(self, text: str) -> None:
        self.text = text = text.strip()
        self._names: set[str] = set()
        if len(text) > LENGTH_MAX:
            raise self._wrong(f"it has {len(text)} characters, and may have {LENGTH_MAX}")
        try:
            body = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            at = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
            raise self._wrong(f"it cannot be read{at}; write as in click * (1 + 2 * conversion)") from None
        self._term = self._read(body, 0)
        if not self._names:
            raise self._wrong("it names no output of the model, so all candidates would be worth the same")
        self.names = frozenset(self._names)
        self.beside: dict[str, tuple[str, ...]] = {}
        for model, _, output in (name.partition(".") for name in sorted(self._names) if "." in name):
            self.beside[model] = (*self.beside.get(model, ()), output)

    def of(self, heads: Heads) -> Floats:
        """What candidates are worth, float32 [n], all finite; `heads` [n] by name. One that is missing: NotFound."""
        if missing := sorted(self.names - heads.keys()):
            given = ", ".join(sorted(heads)) or "none"
            raise NotFound(
                f"score = {self.text!r}: the model gives no output {', '.join(map(repr, missing))}; it gives {given}"
            )
        with np.errstate(all="ignore"):
            return _ordering(np.asarray(self._term(heads), np.float32))

    def _read(self, node: ast.expr, depth: int) -> _Term:
        if depth > DEPTH_MAX:
            raise self._wrong(f"it is nested more than {DEPTH_MAX} deep")
        match node:
            case ast.Name(name):
                self._names.add(name)
                return lambda heads: heads[name]
            case ast.Attribute(ast.Name(model), output):
                joint = f"{model}.{output}"
                self._names.add(joint)
                return lambda heads: heads[joint]
            case ast.Constant(value) if type(value) in (int, float):
                return self._number(node, value)
            case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, operand):
                term = self._read(operand, depth + 1)
                return term if isinstance(sign, ast.UAdd) else lambda heads: np.negative(term(heads))
            case ast.BinOp(left, sign, right) if joined := _OPERATORS.get(type(sign)):
                one, other = self._read(left, depth + 1), self._read(right, depth + 1)
                return lambda heads: joined(one(heads), other(heads))
            case ast.Call(ast.Name(name), parts, []):
                return self._call(node, name, [self._read(part, depth + 1) for part in parts])
        raise self._wrong(f"{self._part(node)} cannot stand in a formula, which has {_MAY}")

    def _number(self, node: ast.expr, value: Any) -> _Term:
        with np.errstate(over="ignore"):
            number = np.float32(float(value) if abs(value) < 1e300 else math.inf)
        if not np.isfinite(number):
            raise self._wrong(f"{self._part(node)} is too large for a float32")
        return lambda heads: number

    def _call(self, node: ast.expr, name: str, parts: list[_Term]) -> _Term:
        if (single := _OF_ONE.get(name)) and len(parts) == 1:
            return lambda heads: single(parts[0](heads))
        if (several := _OF_SEVERAL.get(name)) and len(parts) > 1:
            first, *others = parts

            def folded(heads: Heads) -> Any:
                found = first(heads)
                for other in others:
                    found = several(found, other(heads))
                return found

            return folded
        if name in _OF_ONE or name in _OF_SEVERAL:
            need = "one value" if name in _OF_ONE else "two values or more"
            raise self._wrong(f"{self._part(node)}: {name} takes {need}, got {len(parts)}")
        raise self._wrong(f"{self._part(node)}: there is no function {name!r}; there are {_MAY.partition('**, ')[2]}")

    def _part(self, node: ast.expr) -> str:
        """A part of the text and where it begins, for a person."""
        return f"{ast.unparse(node)[:60]!r} at character {node.col_offset + 1}"

    def _wrong(self, why: str) -> Misconfigured:
        return Misconfigured(f"score = {self.text[:120]!r}: {why}")


def _ordering(values: Floats) -> Floats:
    """The same where finite; NaN and the infinities as the nearest finite one that there is, else 0."""
    finite = np.isfinite(values)
    if finite.all():
        return values
    if not finite.any():
        return np.zeros(values.shape, np.float32)
    low, high = values[finite].min(), values[finite].max()
    return np.nan_to_num(values, nan=low, posinf=high, neginf=low)
