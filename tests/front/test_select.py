"""The best of an output: as sorting all of it in plain Python finds them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from millstream import errors
from millstream.front import select
from millstream.front.select import SORT_WHOLE_MAX, Pick, picked
from millstream.types import DTYPES, Array, TensorSpec

NUMBERS = sorted(DTYPES.keys() - {"BOOL", "BYTES"})


def wide(datatype: str, array: Array) -> list[float]:
    """As Python numbers; BF16 is the upper half of a float32."""
    if datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32).tolist()  # type: ignore[no-any-return]
    return array.tolist()  # type: ignore[no-any-return]


def best(values: list[float], count: int) -> list[int]:
    def rank(at: int) -> tuple[bool, float]:
        return (True, 0.0) if math.isnan(values[at]) else (False, -values[at])

    return sorted(range(len(values)), key=rank)[:count]  # a stable sort: of equal ones the lower index is first


@given(st.sampled_from(NUMBERS), st.data(), st.integers(1, 12))
def test_as_sorting_everything(datatype: str, data: st.DataObject, count: int) -> None:
    array = data.draw(hnp.arrays(DTYPES[datatype], st.integers(1, 9)))
    wanted = best(wide(datatype, array), count)
    (_, kind, values), (name, index_kind, index) = picked("s", datatype, array, Pick(count))
    assert (kind, name, index_kind, index.dtype) == (datatype, "s_index", "INT64", np.int64)
    assert index.tolist() == wanted
    assert values.tobytes() == array[wanted].tobytes() and values.dtype == array.dtype
    (column, indexes) = picked("s", datatype, array.reshape(-1, 1), Pick(count))
    assert column[2].shape == (len(wanted), 1) and indexes[2].tolist() == wanted
    rows = np.stack([array, array[::-1]])
    if rows.shape[1] > 1:
        first, second = picked("s", datatype, rows, Pick(count))[1][2].tolist()
        assert (first, second) == (wanted, best(wide(datatype, array[::-1].copy()), count))


@pytest.mark.parametrize("nan", [0.0, 0.3, 0.999])
def test_a_long_list_is_not_sorted_whole_and_gives_the_same(nan: float) -> None:
    random = np.random.default_rng(7)
    scores = random.integers(-20, 20, 8 * SORT_WHOLE_MAX).astype(np.float32)
    scores[random.random(len(scores)) < nan] = np.nan
    scores[random.random(len(scores)) < 0.1] = -np.inf
    for count in (1, 10, SORT_WHOLE_MAX + 1, len(scores) - 1, len(scores) + 5):
        assert picked("s", "FP32", scores, Pick(count))[1][2].tolist() == best(scores.tolist(), count)


def test_labels() -> None:
    scores = np.array([[0.25, np.nan, 1e9], [-1, -0.0, 3]], np.float32)
    ((name, datatype, labels),) = picked("s", "FP32", scores, Pick(2, labels=True))
    assert (name, datatype) == ("s", "BYTES")
    assert labels.tolist() == [["1000000000.000000:2", "0.250000:0"], ["3.000000:2", "-0.000000:1"]]
    ((_, _, labels),) = picked("s", "INT8", np.array([-128, 127], np.int8), Pick(9, labels=True))
    assert labels.tolist() == ["127:1", "-128:0"]
    ((_, _, labels),) = picked("s", "BF16", np.array([[0x3FC0]], np.uint16), Pick(1, labels=True))
    assert labels.tolist() == [["1.500000:0"]]


@pytest.mark.parametrize("spec", [("BYTES", (-1,)), ("BOOL", (-1, 2)), ("FP32", (-1, 2, 2)), ("FP32", ())])
def test_what_has_no_order_is_refused(spec: tuple[str, tuple[int, ...]]) -> None:
    with pytest.raises(errors.BadInput, match="output 's'"):
        select.check(TensorSpec("s", *spec))
    with pytest.raises(errors.BadInput, match="output 's'"):
        picked("s", "FP32", np.zeros((2, 2, 2), np.float32), Pick(1))
