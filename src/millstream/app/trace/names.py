"""What the tokens of a feature row stood for.

A token is a hash of a column and a text, so it is named by making the tokens of what is known of the user or the item
and looking which of them is in the row. What was known is what the log had told by the time of the request.

Rules of the room:
- Nothing is guessed: a token that nothing known makes stays hidden.
- A number of a feature set is a step on a scale (features/feature.py); a row tells the step, so the number is "about".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream.app.trace.told import Feature, Known
from millstream.errors import BadInput
from millstream.features import Definition, Entities, Rows
from millstream.features.feature import SEPARATOR, Column, Side

Attributes = Mapping[str, Any]
_STEP: Final = 49  # features/feature.py: what stays of a float64's bits are the ones above
_CHUNK: Final = 4096


class Naming:
    """Names tokens of rows of one definition."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._entities, self._rows = Entities(definition, limit=1), Rows(definition)

    def side(self, side: Side, id: str, attributes: Attributes, row: NDArray[np.uint32]) -> list[Feature]:
        """The columns of a user or an item in a row uint32 [width]."""
        return [self._column(side, column, id, attributes, row) for column in self.definition.side(side)]

    def of_set(self, rows: NDArray[np.uint32]) -> list[list[Feature]]:
        """The columns of the feature set in rows uint32 [n, width], of each row."""
        taken = self.definition.taken
        if taken is None:
            return [[] for _ in rows]
        first = self.definition.user_width + self.definition.item_width
        steps = self._steps(rows[:, first : first + self.definition.set_width])
        return [[self._kept(name, tokens, row, steps) for name, _, tokens in taken.features] for row in rows]

    def _column(self, side: Side, column: Column, id: str, attributes: Attributes, row: NDArray[np.uint32]) -> Feature:
        name = f"{side}.{column.name}"
        found = _tokens(self.definition, name, row)
        made = {} if not found else self._made(side, column, id, attributes)
        values = [made[token] for token in found if token in made]
        known: Known = "empty" if not found else "exact" if len(values) == len(found) else "hidden"
        return Feature(name, values, known)

    def _made(self, side: Side, column: Column, id: str, attributes: Attributes) -> dict[int, str]:
        """Token -> text, of all that is known of a column."""
        given = id if column.name == "id" else attributes.get(column.name)
        several = given if isinstance(given, list) else [given]
        place, _ = self.definition.spans[f"{side}.{column.name}"]
        place -= self.definition.user_width if side == "item" else 0
        made: dict[int, str] = {}
        for one in several:
            for text in one.split(SEPARATOR) if isinstance(one, str) and column.places > 1 else [one]:
                if text is None:
                    continue
                try:
                    token = int(self._entities.described(side, id, {column.name: text})[0, place])
                except BadInput:  # told before the definition wanted a text there
                    continue
                made[token] = str(text)
        return made

    def _kept(self, name: str, tokens: bool, row: NDArray[np.uint32], steps: Mapping[tuple[int, int], str]) -> Feature:
        first, places = self.definition.spans[f"set.{name}"]
        found = [(place, int(row[place])) for place in range(first, first + places) if row[place]]
        if not found:
            return Feature(f"set.{name}", [], "empty")
        begin = self.definition.user_width + self.definition.item_width
        values = [] if tokens else [steps[p - begin, token] for p, token in found if (p - begin, token) in steps]
        return Feature(f"set.{name}", values, "about" if len(values) == len(found) else "hidden")

    def _steps(self, tokens: NDArray[np.uint32]) -> dict[tuple[int, int], str]:
        """(column, token) -> the step that it is, of the tokens in these rows: all 32,768 steps are made, and looked
        up."""
        wanted = [set(tokens[:, column].tolist()) - {0} for column in range(tokens.shape[1])]
        found: dict[tuple[int, int], str] = {}
        if not any(wanted):
            return found
        for begin in range(0, 1 << (64 - _STEP), _CHUNK):
            bits = np.arange(begin, begin + _CHUNK + 1, dtype=np.uint64) << np.uint64(_STEP)
            edges = bits.view(np.float64)
            edges = np.where(np.isnan(edges), np.inf, edges)
            matrix = np.repeat(edges[:-1, None], tokens.shape[1], axis=1)
            made = self._rows.of_set(matrix, _CHUNK)
            for column, wants in enumerate(wanted):
                for at in np.flatnonzero(np.isin(made[:, column], list(wants))).tolist() if wants else ():
                    if np.isfinite(edges[at]):
                        found.setdefault((column, int(made[at, column])), _step(float(edges[at]), float(edges[at + 1])))
        return found


def _tokens(definition: Definition, name: str, row: NDArray[np.uint32]) -> list[int]:
    first, places = definition.spans[name]
    return [token for token in row[first : first + places].tolist() if token]


def _step(low: float, high: float) -> str:
    """A step as people read it: the whole number that is alone in it, else from where to where."""
    if not np.isfinite(high):
        return f"{low:.6g}"
    first, last = sorted((low, high))
    if low >= 0 and first == int(first) and last <= first + 1:
        return f"{first:g}"
    return f"{first:.4g} to {last:.4g}"


def matrix(tokens: bytes, rows: int, definition: Definition) -> NDArray[np.uint32] | None:
    """The logged rows uint32 [rows, width]; None where they are no rows of this definition."""
    if not rows or len(tokens) != 4 * rows * definition.width:
        return None
    return np.frombuffer(tokens, "<u4").reshape(rows, definition.width)
