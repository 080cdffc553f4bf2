"""Round trips of every V2 datatype, in JSON and in binary, through the codec and through the wire."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import orjson
import pytest
from front_house import Served, infer, models, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from millstream import errors
from millstream.front.codec import REMEMBERED_MAX, Plan
from millstream.front.tensor import DTYPES, from_binary, from_json, to_binary, to_json
from millstream.types import Array, Output, TensorSpec

FLOATS = ("FP16", "FP32", "FP64")
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@st.composite
def arrays(draw: st.DrawFn, finite: bool) -> tuple[str, Array]:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=4))
    if datatype == "BYTES":
        return datatype, draw(hnp.arrays(object, shape, elements=TEXT))
    if datatype == "BF16":  # bfloat16 is the upper half of a float32
        wide = draw(hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**99), 2.0**99, width=32)))
        return datatype, (wide.view(np.uint32) >> 16).astype(np.uint16)
    elements: Any = None
    if datatype in FLOATS:
        width: Any = int(datatype[2:])
        elements = st.floats(width=width, allow_nan=not finite, allow_infinity=not finite)
    return datatype, draw(hnp.arrays(DTYPES[datatype], shape, elements=elements))


def same(a: Array, b: Array) -> bool:
    if a.dtype == object:
        return a.shape == b.shape and a.tolist() == b.tolist()
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(arrays(finite=True), st.booleans())
def test_json_round_trip(case: tuple[str, Array], nested: bool) -> None:
    datatype, array = case
    flat = orjson.loads(orjson.dumps(to_json("v", datatype, array), option=orjson.OPT_SERIALIZE_NUMPY))
    width = array.shape[1]
    data = [flat[i : i + width] for i in range(0, len(flat), width)] if nested else flat
    assert same(from_json(TensorSpec("v", datatype, (-1, -1)), array.shape, data), array)


@given(arrays(finite=False))
def test_binary_round_trip_through_a_plan(case: tuple[str, Array]) -> None:
    datatype, array = case
    plan = Plan(models()[f"echo-{datatype}"])
    raw = to_binary(datatype, array)
    spec = tensor("v", datatype, list(array.shape), parameters={"binary_data_size": len(raw)})
    head = orjson.dumps({"inputs": [spec], "parameters": {"binary_data_output": True}})
    for body in (head + raw, bytearray(head + raw)):  # a body in pieces comes as a bytearray
        layout, inputs = plan.read(body, len(head))
        assert layout.rows == array.shape[0]
        assert same(inputs["v"], array)
    whole = plan.write(layout, b"i", Output(inputs, "echo", "1"))
    top, _, content = whole.partition(b"\r\n\r\n")
    length = int(top.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])
    assert int(top.split(b"\r\nContent-Length: ")[1].split(b"\r\n")[0]) == len(content)
    assert content[length:] == raw
    assert orjson.loads(content[:length])["outputs"] == [spec]


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_every_datatype_over_the_wire_json_and_binary_agree(datatype: str) -> None:
    values: list[Any] = [0, 1, 1, 0]
    if datatype == "BYTES":
        values = ["", "a", "é✓", "x" * 300]
    elif datatype == "BOOL":
        values = [False, True, True, False]
    elif "F" in datatype:
        values = [0.0, 1.5, -2.0, 0.25]

    async def run() -> None:
        async with Served() as served:
            binary = [{"name": "v", "parameters": {"binary_data": True}}]
            first = await served.ask(infer(f"echo-{datatype}", [tensor("v", datatype, [2, 2], data=values)], id="i"))
            assert first.json["outputs"] == [tensor("v", datatype, [2, 2], data=values)]
            asked = infer(f"echo-{datatype}", [tensor("v", datatype, [2, 2], data=values)], outputs=binary)
            second = await served.ask(asked)
            raw = second.body[int(second.headers["inference-header-content-length"]) :]
            spec = tensor("v", datatype, [2, 2], parameters={"binary_data_size": len(raw)})
            third = await served.ask(infer(f"echo-{datatype}", [spec], raw, id="i"))
            assert third.json == first.json

    asyncio.run(run())


def test_bf16_rounds_to_nearest_even() -> None:
    spec = TensorSpec("v", "BF16", (-1,))
    # 1 + 2^-8 lies halfway between two neighbours, and so does 1 + 3 * 2^-8: both go to the even one.
    found = from_json(spec, (3,), [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7])
    assert found.tolist() == [0x3F80, 0x3F82, 0x3F81]


@pytest.mark.parametrize(
    ("datatype", "most", "beyond"),
    [
        ("FP16", 65519.0, 65520.0),
        ("BF16", 3.3895313892515355e38, 3.4e38),
        ("FP32", 3.4028235e38, 3.4028236e38),
        ("FP64", 1.7976931348623157e308, math.inf),
    ],
)
def test_what_rounds_to_the_largest_number_is_taken_and_what_rounds_to_infinity_is_not(
    datatype: str, most: float, beyond: float
) -> None:
    spec = TensorSpec("v", datatype, (-1,))
    for sign in (1, -1):
        found = from_json(spec, (2,), [0.0, sign * most])
        again = orjson.dumps(to_json("v", datatype, found), option=orjson.OPT_SERIALIZE_NUMPY)
        assert math.isclose(orjson.loads(again)[1], sign * most, rel_tol=1e-2)
        with pytest.raises(errors.BadInput, match=f"more than {datatype} can hold"):
            from_json(spec, (2,), [0.0, sign * beyond])
    with pytest.raises(errors.BadInput):
        from_json(spec, (2,), [0.0, math.nan])


def test_non_finite_outputs_are_null_in_json_and_whole_in_binary() -> None:
    array = np.array([np.nan, np.inf, 1.0], np.float32)
    assert orjson.dumps(to_json("v", "FP32", array), option=orjson.OPT_SERIALIZE_NUMPY) == b"[null,null,1.0]"
    assert np.isnan(np.frombuffer(to_binary("FP32", array), "<f4")[0])


def test_uint64_keeps_all_its_bits() -> None:
    spec = TensorSpec("v", "UINT64", (-1,))
    assert from_json(spec, (2,), [2**64 - 1, 0]).tolist() == [2**64 - 1, 0]


@given(st.binary(max_size=64), st.integers(0, 4))
def test_any_bytes_as_bytes_tensor_are_read_or_refused(raw: bytes, count: int) -> None:
    try:
        array = from_binary(TensorSpec("v", "BYTES", (-1,)), (count,), memoryview(raw))
    except errors.BadInput:
        return
    assert to_binary("BYTES", array) == raw


@settings(max_examples=50)
@given(st.data())
def test_remembered_headers_do_not_mix_up_and_stay_bounded(data: st.DataObject) -> None:
    plan = Plan(models()["affine"])
    for rows in data.draw(st.lists(st.integers(1, 5), max_size=12)):
        array = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        spec = tensor("x", "FP32", [rows, 3], parameters={"binary_data_size": array.nbytes})
        ident = data.draw(st.sampled_from(["", "a", "b"]))
        head = orjson.dumps({"inputs": [spec], **({"id": ident} if ident else {})})
        layout, inputs = plan.read(head + array.tobytes(), len(head))
        assert (layout.id, layout.rows) == (ident, rows)
        assert same(inputs["x"], array)
        assert (head in plan._layouts) == (not ident), "a header with an id of its own will not come again"
    for rows in range(1, REMEMBERED_MAX + 10):
        spec = tensor("x", "FP32", [rows, 3], parameters={"binary_data_size": rows * 12})
        head = orjson.dumps({"inputs": [spec]})
        plan.read(head + bytes(rows * 12), len(head))
    assert len(plan._layouts) <= REMEMBERED_MAX


def test_a_wide_request_does_not_cost_its_square() -> None:
    """One long string among many short ones must not become a table as wide as the longest."""

    async def run() -> int:
        values = ["y" * 100_000] + ["n"] * 20_000
        async with Served() as served:
            return (await served.ask(infer("echo-FP32", [tensor("v", "FP32", [1, 20_001], data=values)]))).status

    assert asyncio.run(run()) == 400
