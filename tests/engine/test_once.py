"""Inputs that a version takes as one row for all rows of a call: not repeated, and the answers are the same."""

import asyncio

import numpy as np
import pytest
from onnx import TensorProto, helper
from rig import serving

import onnx_models
from millstream.engine import EngineLimits
from millstream.errors import Misconfigured
from millstream.models import Manifest, Repository
from millstream.models import load as real
from millstream.models.manifest import Batching
from millstream.models.runtimes.onnx import Onnx
from millstream.types import Request

WIDTH, HISTORY = 3, 6


def summed(file, width, history, once):
    """A model that adds up all the histories of a call: rows are not independent, and many are not as one."""
    onnx_models.graph(
        file,
        [
            helper.make_node("Cast", ["tokens"], ["rows"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["history"], ["past"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["rows", "columns"], ["of_rows"], keepdims=0),
            helper.make_node("ReduceSum", ["past", "all"], ["of_past"], keepdims=0),
            helper.make_node("Add", ["of_rows", "of_past"], ["probability"]),
        ],
        [("tokens", TensorProto.UINT32, ["rows", width]), ("history", TensorProto.UINT32, ["histories", history])],
        [("probability", TensorProto.FLOAT, ["rows"])],
        [("columns", np.array([1], np.int64)), ("all", np.array([0, 1], np.int64))],
    )


def put(root, names=("history",), made=onnx_models.attending):
    """A version that attends to a history, and what it says of rows with a history each."""
    file = root / "made.onnx"
    made(file, WIDTH, HISTORY, once=True)
    manifest = Manifest(format="onnx", file="model.onnx", batching=Batching(once=names))
    Repository(root / "models").put("m", manifest, {"model.onnx": file.read_bytes()})
    return Onnx(file)


def asked(number, rows):
    random = np.random.default_rng(number)
    inputs = {
        name: random.integers(1, 2**32, shape, np.uint32)
        for name, shape in (("tokens", (rows, WIDTH)), ("history", (1, HISTORY)))
    }
    return Request("m", inputs, rows)


def expected(model, request):
    many = {**request.inputs, "history": np.repeat(request.inputs["history"], request.rows, axis=0)}
    return model.predict(many)["probability"]


def test_one_row_stays_one_row_alone_and_is_every_rows_own_beside_others(tmp_path):
    model, given = put(tmp_path), []

    def load(repository, name, version):
        loaded = real(repository, name, version)
        predict = loaded.predict
        loaded.predict = lambda inputs: given.append({key: len(one) for key, one in inputs.items()}) or predict(inputs)
        return loaded

    async def main():
        limits = EngineLimits(rows_max=8, instances=1, inline_us_max=0)
        async with serving(tmp_path / "models", limits, load=load) as engine:
            given.clear()
            single, large = asked(1, 7), asked(2, 20)
            found = [await engine.submit(one) for one in (single, large)]
            assert given == [{"tokens": 7, "history": 1}, *({"tokens": n, "history": 1} for n in (8, 8, 4))]
            given.clear()
            together = [asked(number, number % 3 + 1) for number in range(3, 9)]
            found += await asyncio.gather(*[engine.submit(one) for one in together])
            assert any(one["history"] > 1 and one["history"] == one["tokens"] for one in given)
            for request, output in zip([single, large, *together], found, strict=True):
                np.testing.assert_array_equal(output.outputs["probability"], expected(model, request))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("names", "made", "said"),
    [
        (
            ("history", "tokens"),
            onnx_models.attending,
            r"once = history, tokens was tried and failed: .*1.* for 3 rows",
        ),
        (
            ("history",),
            summed,
            "output 'probability' is another with one row of history for all than with one for each",
        ),
        (
            ("mood",),
            onnx_models.attending,
            "'mood' is no input whose first dimension is free; there are: tokens, history",
        ),
    ],
)
def test_what_a_version_says_wrong_of_it_is_refused(tmp_path, names, made, said):
    put(tmp_path, names, made)

    async def main():
        async with serving(tmp_path / "models") as engine:
            with pytest.raises(Misconfigured, match=said):
                engine.submit(asked(1, 3))

    asyncio.run(main())
