"""The best of an output, picked on the server: `top_k`, and `classification` as Triton's clients ask for it.

Rules of the room:
- Values descend; of equal ones the lower index comes first; NaN comes last. More than there are means all.
- What has no order (text, booleans) or more than two dimensions is refused before it is computed.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.types import Array, TensorSpec

INDEX = "_index"
# Above this many values of one list, the best are found first and only they are put in order.
SORT_WHOLE_MAX = 256


class Pick(msgspec.Struct, frozen=True):
    """The `count` best of an output; `labels`: as "value:index" text, else as values and their indexes."""

    count: int
    labels: bool = False


def check(spec: TensorSpec) -> None:
    """Raise BadInput where an output like `spec` has no best values."""
    if spec.datatype in ("BYTES", "BOOL") or len(spec.shape) not in (1, 2):
        raise errors.BadInput(
            f"output {spec.name!r}: {spec.datatype} {list(spec.shape)} has no best values; ask for top_k or "
            "classification of an output of numbers with one or two dimensions"
        )


def picked(name: str, datatype: str, array: Array, pick: Pick) -> list[tuple[str, str, Array]]:
    """(name, datatype, array) of what was picked out of a numeric [N] or [N, C].

    Labels: BYTES [min(K, N)], or [N, min(K, C)]. Else the values and `NAME_index` INT64: of one number a row ([N],
    [N, 1]) the best rows, as [K] or [K, 1] and [K]; of [N, C] the best of each row, [N, K] both.
    """
    if array.ndim not in (1, 2):
        raise errors.BadInput(f"output {name!r}: has shape {list(array.shape)}; top_k needs one or two dimensions")
    if pick.labels:
        return [(name, "BYTES", _labels(datatype, array, _best(datatype, array, pick.count)))]
    if array.ndim == 2 and array.shape[1] == 1:
        best = _best(datatype, array[:, 0], pick.count)
        return [(name, datatype, array[best]), (name + INDEX, "INT64", best)]
    best = _best(datatype, array, pick.count)
    return [(name, datatype, np.take_along_axis(array, best, -1)), (name + INDEX, "INT64", best)]


def _best(datatype: str, array: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Indexes of the `count` best along the last dimension."""
    if datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    # ~x is -x - 1 without its overflow; a negated NaN is still one, and sorts last.
    falling: NDArray[Any] = -array if array.dtype.kind == "f" else ~array
    if array.ndim > 1 or array.size <= max(SORT_WHOLE_MAX, count):
        return np.argsort(falling, -1, "stable")[..., :count].astype(np.int64, copy=False)
    edge = np.partition(falling, count - 1)[count - 1]
    rest = np.flatnonzero(~(falling > edge))  # a NaN at the edge keeps all: none is more than it
    return rest[np.argsort(falling[rest], kind="stable")[:count]]


def _labels(datatype: str, array: Array, best: NDArray[np.int64]) -> Array:
    values = np.take_along_axis(array, best, -1)
    if datatype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    form = "%f:%d" if values.dtype.kind == "f" else "%d:%d"
    labels = np.empty(best.size, object)
    labels[:] = [form % pair for pair in zip(values.ravel().tolist(), best.ravel().tolist(), strict=True)]
    return labels.reshape(best.shape)
