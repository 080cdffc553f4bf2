"""A model with explicit state (the h and c of an LSTM, a decoder's cache) as one that carries it by itself.

Rules of the room:
- All sessions of a state lie in one array, a row each; a step gathers the rows it needs, runs, and scatters them back.
- The last row is never written: it is the fresh state, which slot -1 means.
- Nothing is scattered before the model has answered and its states have the right shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.manifest import State
from millstream.models.runtimes.onnx import Onnx
from millstream.types import DTYPES, Array, TensorSpec


class Recurrent:
    """A Model over `inner` whose `states` do not show in `inputs` and `outputs`. Misconfigured: states that are not
    there, differ between input and output, or are not of one size a row."""

    def __init__(self, inner: Onnx, states: Sequence[State]) -> None:
        self.inner, self.states = inner, states
        inputs, outputs = ({spec.name: spec for spec in side} for side in (inner.inputs, inner.outputs))
        self.specs = [_fitting(state, inputs, outputs) for state in states]
        carried, given = {state.input for state in states}, {state.output for state in states}
        self.inputs = tuple(spec for spec in inner.inputs if spec.name not in carried)
        self.outputs = tuple(spec for spec in inner.outputs if spec.name not in given)

    def slots(self, count: int) -> RecurrentSlots:
        """Room for `count` sessions."""
        return RecurrentSlots(self, count)

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Every row as a session of length one."""
        rows = len(next(iter(inputs.values())))
        return RecurrentSlots(self, 0).step(inputs, np.full(rows, -1))


class RecurrentSlots:
    """Slots of a Recurrent: for every state an array of count + 1 rows."""

    def __init__(self, model: Recurrent, count: int) -> None:
        self._model = model
        self._kept = {
            state.input: np.zeros((count + 1, *_row_shape(spec, state.axis)), DTYPES[spec.datatype])
            for state, spec in zip(model.states, model.specs, strict=True)
        }

    def step(self, inputs: dict[str, Array], slots: NDArray[np.intp]) -> dict[str, Array]:
        """See models.model.Slots."""
        fed = dict(inputs)
        for state in self._model.states:
            rows = self._kept[state.input][slots]
            fed[state.input] = np.ascontiguousarray(np.moveaxis(rows, 0, state.axis)) if state.axis else rows
        outputs = self._model.inner.predict(fed)
        moved: dict[str, Array] = {}
        for state in self._model.states:
            rows = moved[state.input] = np.moveaxis(outputs.pop(state.output), state.axis, 0)
            wanted = (len(slots), *self._kept[state.input].shape[1:])
            if rows.shape != wanted:
                raise errors.Error(f"state {state.output!r} came as {list(rows.shape)}, expected {list(wanted)}")
        for name, array in outputs.items():
            if array.shape[:1] != slots.shape:
                raise errors.Error(f"output {name!r} came as {list(array.shape)}, expected {len(slots)} rows first")
        carried = slots >= 0
        for name, rows in moved.items():
            self._kept[name][slots[carried]] = rows[carried]
        return outputs

    def reset(self, slots: NDArray[np.intp]) -> None:
        """See models.model.Slots."""
        for kept in self._kept.values():
            kept[slots] = 0

    def save(self, slot: int) -> dict[str, Array]:
        """See models.model.Slots."""
        return {name: kept[slot].copy() for name, kept in self._kept.items()}

    def restore(self, slot: int, saved: dict[str, Array]) -> None:
        """See models.model.Slots."""
        for name, kept in self._kept.items():
            row = saved.get(name)
            if row is None or row.shape != kept.shape[1:] or row.dtype != kept.dtype or len(saved) != len(self._kept):
                raise ValueError(f"the saved state has no {name!r} of {kept.dtype} {list(kept.shape[1:])}")
        for name, kept in self._kept.items():
            kept[slot] = saved[name]


def _fitting(state: State, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec]) -> TensorSpec:
    """The state's input spec, once it is known to fit its output."""
    taken, given = inputs.get(state.input), outputs.get(state.output)
    if taken is None or given is None:
        missing = f"input {state.input!r}" if taken is None else f"output {state.output!r}"
        raise errors.Misconfigured(
            f"sessions: the model has no {missing}; inputs are {sorted(inputs)}, outputs {sorted(outputs)}"
        )
    if taken.datatype != given.datatype or taken.datatype == "BYTES":
        raise errors.Misconfigured(f"sessions: {taken.name} is {taken.datatype}, {given.name} is {given.datatype}")
    if state.axis >= len(taken.shape) or taken.shape[state.axis] != -1 or -1 in _row_shape(taken, state.axis):
        raise errors.Misconfigured(
            f"sessions: state {state.input!r} is {list(taken.shape)}; only its row, axis {state.axis}, may be free (-1)"
        )
    return taken


def _row_shape(spec: TensorSpec, axis: int) -> tuple[int, ...]:
    return spec.shape[:axis] + spec.shape[axis + 1 :]
