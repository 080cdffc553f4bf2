"""What candidates are worth: the ranker's outputs, and those of models beside it, by a placement's formula.

Rules of the room:
- All models are asked in the same moment, with the same rows, and have as long (`rank_ms`).
- A ranker that fails or is late gives way to another loaded version, and that to recall's own scores; a model beside it
  gives way to the ranker. Which it was is told, so that the answer and the log can say so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import Error, NotFound
from millstream.flows.formula import Formula
from millstream.flows.predict import Submit
from millstream.flows.recommend.placement import Placement
from millstream.flows.recommend.rank import More, asking
from millstream.meter import Meter
from millstream.types import Beside, Output

Floats = NDArray[np.float32]
logger = logging.getLogger("millstream.flows")


class Ranked(msgspec.Struct):
    """Candidates with their scores [n]. `heads`: a ranker's outputs, and those of models `beside` it that the formula
    reads; `output`: None where no ranker answered; `instead`: what answered for it, "" when it did itself."""

    scores: Floats
    heads: dict[str, Floats]
    output: Output | None = None
    instead: str = ""
    beside: dict[str, Beside] = {}


class Scoring:
    """Of one model that ranks: `scores` are the formulas that placements have; `others(model)`: versions loaded beside
    the live one, the newest first."""

    def __init__(
        self, submit: Submit, others: Callable[[str], Sequence[str]], more: More, meter: Meter, model: str,
        scores: Sequence[str],
    ) -> None:  # fmt: skip
        self._submit, self._others, self._more, self._model = submit, others, more, model
        self._formulas = {score: Formula(score) for score in scores}
        self._instead = {
            instead: meter.counter(
                "millstream_rank_instead_total", "Lists that the live ranker did not score.", {"by": instead}
            )
            for instead in ("previous", "recall")
        }
        self._alone = {
            name: meter.counter(
                "millstream_beside_missed_total", "Lists scored without a model beside the ranker.", {"model": name}
            )
            for formula in self._formulas.values()
            for name in formula.beside
        }
        self._said: set[str] = set()

    async def of(
        self, ident: str, who: str, tokens: NDArray[np.uint32] | None, history: list[str], placement: Placement,
        recalled: Floats,
    ) -> Ranked:  # fmt: skip
        """Scores of the live version; of another one; of recall (`recalled` [n]), as where `tokens` [n, width] are
        None: there is nothing to rank, or nothing that ranks."""
        if tokens is None:
            return Ranked(recalled, {})
        formula = self._formulas[placement.score]

        async def scored(model: str, version: str, reads: Iterable[str]) -> Output:
            more = self._more(model, history)
            request = asking(model, tokens, more, tuple(reads), id=ident, key=who, version=version)
            return await asyncio.wait_for(self._submit(request), placement.rank_ms / 1e3)

        others = {model: asyncio.ensure_future(scored(model, "", reads)) for model, reads in formula.beside.items()}
        try:
            for version in ("", *self._others(self._model)[:1]):
                try:
                    output = await scored(self._model, version, (name for name in formula.names if "." not in name))
                    heads = _heads(output, len(tokens))
                    beside, theirs = await self._beside(formula, others, heads)
                    heads |= theirs
                    scores = formula.of(heads)
                except (Error, TimeoutError) as error:
                    self._say(self._model, version or "(live)", error)
                    continue
                if version:
                    self._instead["previous"].add()
                for model in silent(beside):
                    self._alone[model].add()
                return Ranked(scores, heads, output, "previous" if version else "", beside)
        finally:
            for one in others.values():
                if not one.cancel() and not one.cancelled():
                    one.exception()  # heard, where nobody came to ask
        self._instead["recall"].add()
        return Ranked(recalled, {}, instead="recall")

    async def _beside(
        self, formula: Formula, others: Mapping[str, asyncio.Future[Output]], heads: dict[str, Floats]
    ) -> tuple[dict[str, Beside], dict[str, Floats]]:
        """What models beside the ranker said, and what the formula reads of them [n]: of one that said nothing, the
        ranker's own output of that name in its place, else its `probability`."""
        told: dict[str, Beside] = {}
        found: dict[str, Floats] = {}
        rows = len(next(iter(heads.values())))
        for model, reads in formula.beside.items():
            try:
                output = await others[model]
                theirs = _heads(output, rows)
                if missing := [name for name in reads if name not in theirs]:
                    raise NotFound(f"model {model} {output.version} has no output {missing[0]!r}, one number a row")
            except (Error, TimeoutError) as error:
                self._say(model, "(live)", error)
                told[model] = Beside()
                own = {name: heads.get(name, heads.get("probability")) for name in reads}
                found |= {f"{model}.{name}": one for name, one in own.items() if one is not None}
                continue
            told[model] = Beside(output.version, {name: theirs[name].tobytes() for name in reads})
            found |= {f"{model}.{name}": theirs[name] for name in reads}
        return told, found

    def _say(self, model: str, version: str, error: Exception) -> None:
        """Once a model."""
        if model not in self._said:
            self._said.add(model)
            logger.warning("lists go on without %s %s: %s", model, version, str(error) or "too late")


def silent(beside: dict[str, Beside]) -> list[str]:
    """Models that were asked and said nothing."""
    return [name for name, said in beside.items() if not said.version]


def _heads(output: Output, rows: int) -> dict[str, Floats]:
    """A ranker's outputs that are one number a row; NaN becomes 0."""
    found = {
        name: np.ascontiguousarray(np.nan_to_num(values.reshape(-1), nan=0.0), np.float32)
        for name, values in output.outputs.items()
        if values.size == rows and values.dtype.kind in "fiu"
    }
    if not found:
        raise NotFound(f"model {output.model} {output.version} has no output with one number a candidate")
    return found
