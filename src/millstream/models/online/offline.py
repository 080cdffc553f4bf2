"""Where a learner begins: from nothing, from another learner's file, or from a model that was trained offline.

An offline model is a `.npz` of float arrays, S = 2**bits slots, k factors:

    linear [S]; factors [S, k]; bias [1]; layer0.weight [units, inputs], layer0.bias [units]; layer1.weight ...

A kind takes what it has: `linear` alone makes FTRL, with `factors` a factorisation machine, with layers DeepFM. The
last layer has one unit; hidden ones are ReLU. Slot and inputs are those of factors.py: a token's low `bits` bits, and
the factors of each place of a row one after the other, zeros where it is empty.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.online.learner import VALUE_MAX, Floats
from millstream.models.online.settings import FmSettings

Arrays = dict[str, Floats]
_FREE = {
    "alpha",
    "beta",
    "l1",
    "l2",
    "rate",
    "ease",
    "decay",
    "dense_rate",
    "seen",
    "keep",
}  # may change between two lives


def from_torch(state: Mapping[str, Any]) -> Arrays:
    """The arrays of a torch module's `state_dict()`, for `numpy.savez`. The module has, as far as its kind does:
    `linear` and `factors`, nn.Embedding(S, 1) and (S, k); `bias`, a Parameter of one; `layers`, an nn.Sequential of
    nn.Linear and nn.ReLU by turns, the last nn.Linear of one unit. Another name: BadInput."""
    found: Arrays = {}
    linears = sorted({int(m[1]) for name in state if (m := re.fullmatch(r"layers\.(\d+)\.weight", name))})
    for name, tensor in state.items():
        array = np.asarray(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor, np.float32)
        if name in ("linear.weight", "factors.weight"):
            found[name.removesuffix(".weight")] = array.reshape(len(array)) if name == "linear.weight" else array
        elif name == "bias":
            found["bias"] = array.reshape(1)
        elif (m := re.fullmatch(r"layers\.(\d+)\.(weight|bias)", name)) and int(m[1]) in linears:
            found[f"layer{linears.index(int(m[1]))}.{m[2]}"] = array
        else:
            raise errors.BadInput(f"{name!r}: the module may hold linear, factors, bias and layers; see learning.md")
    return found


def read(path: Path) -> Arrays:
    """The arrays of an `.npz`. None, or not all finite and moderate: Misconfigured."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name], np.float32) for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise errors.Misconfigured(f"{path}: no .npz of arrays ({error}); see learning.md for what it holds") from None
    for name, array in found.items():
        if not (np.abs(array) <= VALUE_MAX).all():
            raise errors.Misconfigured(f"{path}: {name} has a number that is not finite, or beyond {VALUE_MAX:g}")
    return found


def fitting(arrays: Arrays, where: object, expected: Mapping[str, tuple[int, ...]], optional: str = "-") -> Arrays:
    """`arrays`, of exactly these shapes; those that match `optional` may all be left out. Else Misconfigured."""
    needed = {name for name in expected if not re.match(optional, name)}
    if not any(re.match(optional, name) for name in arrays):
        expected = {name: shape for name, shape in expected.items() if name in needed}
    for name in sorted(set(arrays) | set(expected)):
        got = arrays[name].shape if name in arrays else None
        if name not in expected or got != expected[name]:
            raise errors.Misconfigured(
                f"{where}: {name} is {_shape(got)}; settings and features ask for {_shape(expected.get(name))}"
            )
    return arrays


def same_shape(where: object, before: msgspec.Struct, now: msgspec.Struct, widths: tuple[int, int]) -> None:
    """Misconfigured where a learner with settings `before` cannot go on with those of `now`: rates may change, sizes
    and the kind not."""
    if type(before) is not type(now):
        raise errors.Misconfigured(
            f"{where}: a learner of another kind; name its kind in learner.kind, or another file"
        )
    old, new = msgspec.structs.asdict(before) | {"width": widths[0]}, msgspec.structs.asdict(now) | {"width": widths[1]}
    for name in old:
        if name not in _FREE and old[name] != new[name]:
            raise errors.Misconfigured(
                f"{where}: its {name} is {old[name]}, and {new[name]} is asked for: its weights would mean something "
                f"else. Train anew, or keep {name} = {old[name]}"
            )


def linear_state(
    weights: Floats, squares: float, alpha: float, beta: float, l1: float, l2: float
) -> tuple[Floats, Floats]:
    """(z, n) of FTRL-proximal for weights that are given: a weight that is not 0 counts as having seen `squares`."""
    n = np.where(weights != 0, squares, 0.0)
    z = -(weights * ((beta + np.sqrt(n)) / alpha + l2) + np.sign(weights) * l1)
    return z.astype(np.float32), n.astype(np.float32)


def fm_shapes(settings: FmSettings, sizes: NDArray[np.int64]) -> dict[str, tuple[int, ...]]:
    """The arrays that a factorisation machine begins from, and DeepFM with layers of these sizes."""
    slots = 1 << settings.bits
    shapes: dict[str, tuple[int, ...]] = {"linear": (slots,), "factors": (slots, settings.factors), "bias": (1,)}
    for layer in range(len(sizes) - 1):
        inputs, units = int(sizes[layer]), int(sizes[layer + 1])
        shapes |= {f"layer{layer}.weight": (units, inputs), f"layer{layer}.bias": (units,)}
    return shapes


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))
