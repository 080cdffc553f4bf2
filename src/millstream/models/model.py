"""What a model is to the rest of the house, and the one way to get one from a repository.

Rules of the room:
- Rows come first in every array; a single request is a batch of one, and no row's answer depends on its neighbours.
- `predict` may be called from several threads at once; `apply` only while no predict runs.
- A runtime is imported when its format is first loaded, so serving ONNX never imports the learner.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.repository import Repository
from millstream.types import Array, TensorSpec


class Model(Protocol):
    """Named arrays to named arrays; the specs say names, datatypes and shapes, -1 for a free dimension."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs for `inputs`, which match the specs. A value that the model cannot take: BadInput."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A model whose weights can change while it serves."""

    def apply(self, slots: NDArray[np.uint32], weights: NDArray[np.float32]) -> None:
        """Set the weights of `slots`: absolute values, all or none of them."""
        ...


def load(repository: Repository, model: str, version: str) -> Model:
    """The version, its files' digests checked, ready to predict. Damaged: Corrupt; unusable: Misconfigured."""
    manifest = repository.verify(model, version)
    path = repository.folder(model, version) / manifest.file
    loaded: Model
    match manifest.format:
        case "onnx":
            from millstream.models.runtimes.onnx import Onnx

            loaded = Onnx(path)
        case "ftrl":
            from millstream.models.online import ServedFtrl

            loaded = ServedFtrl.load(path)
        case other:
            raise errors.Misconfigured(f"{path.parent}: format {other!r} is not known here; there are: onnx, ftrl")
    for side, said, found in (
        ("inputs", manifest.inputs, loaded.inputs),
        ("outputs", manifest.outputs, loaded.outputs),
    ):
        if said and set(said) != set(found):
            raise errors.Misconfigured(
                f"{path.parent}: model.toml says {side} {_text(said)}, the file has {_text(found)}"
            )
    return loaded


def _text(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs)
