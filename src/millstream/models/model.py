"""What a model is to the rest of the house, and the one way to get one from a repository.

Rules of the room:
- Rows come first in every array; a single request is a batch of one, and no row's answer depends on its neighbours.
- `predict` may be called from several threads at once; `apply` only while no predict runs.
- A runtime is imported when its format is first loaded, so serving ONNX never imports the learner.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.manifest import Manifest, check_tensors
from millstream.models.repository import Repository
from millstream.models.runtimes import FORMATS, PROGRAMS
from millstream.types import Array, TensorSpec

if TYPE_CHECKING:  # the rest of a server imports it when it allows code
    from millstream.models.apart import Programs


class Model(Protocol):
    """Named arrays to named arrays; the specs say names, datatypes and shapes, -1 for a free dimension."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs for `inputs`, which match the specs. A value that the model cannot take: BadInput."""
        ...


class Slots(Protocol):
    """The states of many sessions of one model, a slot each. Disjoint slots may step in several threads at once."""

    def step(self, inputs: dict[str, Array], slots: NDArray[np.intp]) -> dict[str, Array]:
        """Advance the sessions in `slots`: a number for each row of `inputs`, none twice; -1 is a session of length
        one, whose fresh state is dropped afterwards. Every other slot holds still. When it raises, none has moved."""
        ...

    def reset(self, slots: NDArray[np.intp]) -> None:
        """Make these as a session begins."""
        ...

    def save(self, slot: int) -> dict[str, Array]:
        """A copy of one state, to be carried elsewhere."""
        ...

    def restore(self, slot: int, saved: dict[str, Array]) -> None:
        """Put a saved state of the same version into a slot. ValueError: it is none."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A model that carries state from one step of a session to the next; its specs do not show it."""

    def slots(self, count: int) -> Slots:
        """Room for `count` sessions, all of them fresh."""
        ...


@runtime_checkable
class Closing(Protocol):
    """A model that holds more than memory of this process."""

    def close(self) -> None:
        """Let go of it: no call is under way, none will come. Blocks."""
        ...


@runtime_checkable
class Waiting(Protocol):
    """A model whose calls wait for others, so that none is made on a loop: `instances` at once."""

    instances: int


@runtime_checkable
class Elsewhere(Protocol):
    """A model that is computed in processes of its own."""

    @property
    def problem(self) -> str:
        """Why no process has answered for a while; "" while one does, or may soon."""
        ...

    def pids(self) -> list[int]:
        """Of the processes that can answer now."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A model whose weights can change while it serves."""

    def apply(
        self,
        slots: NDArray[np.uint32],
        weights: NDArray[np.float32],
        dense: NDArray[np.float32],
        calibration: NDArray[np.float64],
    ) -> None:
        """Set the weights of `slots` [n] (float32 [n], or [n, k] of a model with k to a slot), those that belong to no
        slot, and slope and intercept of its calibration; the last two may be empty and stay as they are then. Absolute
        values, all or none of them."""
        ...


def load(
    repository: Repository, model: str, version: str, device: str = "cpu", programs: Programs | None = None
) -> Model:
    """The version, its files' digests checked, ready to predict on its own device, else on `device`. `programs` loads
    what is a program; without it, such a version is refused. Damaged: Corrupt; unusable: Misconfigured."""
    manifest = repository.verify(model, version)
    return load_from(repository.folder(model, version), manifest, model, version, device, programs)


def load_from(
    folder: Path, manifest: Manifest, model: str, version: str, device: str = "cpu", programs: Programs | None = None
) -> Model:
    """`load`, of a version that lies in `folder`, whose digests were compared by the caller."""
    device = manifest.device or device
    path = folder / manifest.file
    loaded: Model
    match manifest.format:
        case "onnx":
            from millstream.models.runtimes.onnx import Onnx

            if states := manifest.sessions.states:
                from millstream.models.runtimes.recurrent import Recurrent

                loaded = Recurrent(Onnx(path, device), states)
            else:
                loaded = Onnx(path, device)
        case "ftrl" | "ftrl_table" | "fm" | "deepfm":
            from millstream.models import online

            loaded = online.load_served(path)
        case "whisper":
            from millstream.models.runtimes import whisper

            loaded = whisper.load(path.parent, manifest, device)
        case "pocketsphinx":
            from millstream.models.runtimes.pocketsphinx import Pocketsphinx

            loaded = Pocketsphinx(path)
        case "sherpa":
            from millstream.models.runtimes.sherpa import Sherpa

            loaded = Sherpa(path)
        case "scripted":
            from millstream.models.runtimes import scripted

            loaded = scripted.load(path)
        case program if program == "chain" or program in PROGRAMS:
            if programs is None:
                from millstream.models.apart import refusal

                raise errors.Misconfigured(refusal(path.parent, manifest))
            if program == "chain":
                from millstream.models.apart import check
                from millstream.models.chain import Chain

                check(path.parent, manifest)
                return Chain(f"{model} {version}", path.parent, manifest)
            return programs.load(model, version, path.parent, manifest, device)
        case other:
            known = ", ".join([*FORMATS, "chain", *PROGRAMS])
            raise errors.Misconfigured(f"{path.parent}: format {other!r} is not known here; there are: {known}")
    check_tensors(str(path.parent), manifest, loaded.inputs, loaded.outputs)
    return loaded
