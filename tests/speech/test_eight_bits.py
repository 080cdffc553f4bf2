"""Networks in eight bits: nearly what they were, computed in whole numbers, a row's answer its own."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from millstream.errors import Misconfigured
from millstream.models.speech.eight_bits import between, convert, eight_bits


def network(dead=False):
    """Two residual blocks of 8 channels over one; what is between its layers has a magnitude of some 4."""
    chance = np.random.default_rng(3)

    def layer(name, taken, given, channels):
        weight = (chance.standard_normal((8, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
        bias = chance.standard_normal(8).astype(np.float32) * np.float32(0.2)
        if dead and name == "b":
            weight[3] = 1e-12
            bias[3] = 2.5
        values.extend([numpy_helper.from_array(weight, f"{name}.w"), numpy_helper.from_array(bias, f"{name}.b")])
        return helper.make_node("Conv", [taken, f"{name}.w", f"{name}.b"], [given], pads=[1, 1, 1, 1])

    values = []
    nodes = [layer("a", "x", "a", 1), helper.make_node("Relu", ["a"], ["ra"])]
    for one, taken in (("b", "ra"), ("d", "sum_b")):
        nodes += [layer(one, taken, one, 8), helper.make_node("Relu", [one], [f"r{one}"])]
        nodes += [
            layer(f"{one}2", f"r{one}", f"{one}2", 8),
            helper.make_node("Add", [f"{one}2", taken], [f"add_{one}"]),
        ]
        nodes.append(helper.make_node("Relu", [f"add_{one}"], [f"sum_{one}"]))
    nodes.append(helper.make_node("ReduceMean", ["sum_d"], ["y"], axes=[2, 3], keepdims=0))
    shown = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "t", 20])]
    told = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])]
    graph = helper.make_graph(nodes, "network", shown, told, values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def session(model, saved=None):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answers(model, given):
    return session(model).run(["y"], {"x": given})[0]


def most(model, given):
    """The largest magnitudes, by ONNX Runtime."""
    shown, names = onnx.ModelProto(), between(model.graph)
    shown.CopyFrom(model)
    for name in names:
        shown.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return [float(np.abs(one).max()) for one in session(shown).run(names, {"x": given})]


@pytest.fixture
def given():
    return np.random.default_rng(5).standard_normal((3, 1, 40, 20)).astype(np.float32)


@pytest.mark.parametrize("dead", [False, True])
def test_the_answer_is_nearly_the_same_and_comes_of_whole_numbers(given, dead, tmp_path):
    model = network(dead)
    exact, coarse = answers(model, given), eight_bits(model, most(model, given))
    found = session(coarse, tmp_path / "laid-out.onnx").run(["y"], {"x": given})[0]
    off = np.abs(found - exact).max() / np.abs(exact).max()
    assert 1e-6 < off < 0.02
    laid_out = [node.op_type for node in onnx.load(tmp_path / "laid-out.onnx").graph.node]
    assert laid_out.count("QLinearConv") == 4 and laid_out.count("QLinearAdd") == 2
    held = sum(np.prod(one.dims) for one in coarse.graph.initializer if one.data_type == TensorProto.INT8)
    assert held >= 4 * 8 * 8 * 9


def test_a_row_is_its_own_whoever_is_beside_it(given):
    coarse = eight_bits(network(), most(network(), given))
    for row, alone in zip(answers(coarse, given), given, strict=True):
        assert np.array_equal(answers(coarse, alone[None])[0], row)


def test_the_model_stays_as_it_was_and_what_is_beyond_is_cut_off(given):
    model = network()
    before, named = model.SerializeToString(), most(model, given)
    small = eight_bits(model, [one / 4 for one in named])
    assert model.SerializeToString() == before
    near, far = (np.abs(answers(one, given) - answers(model, given)).max() for one in (eight_bits(model, named), small))
    assert far > 10 * near


def test_the_tensors_behind_rectifiers_get_scales_and_their_number_must_be_known(given, tmp_path):
    model = network()
    assert between(model.graph) == ["b2", "d2", "ra", "rb", "rd", "sum_b", "sum_d"]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(Misconfigured, match="7 tensors between its layers, 2 magnitudes"):
        convert(tmp_path / "model.onnx", tmp_path / "coarse.onnx", [1.0, 2.0])
    convert(tmp_path / "model.onnx", tmp_path / "coarse.onnx", named := most(model, given))
    assert np.array_equal(answers(onnx.load(tmp_path / "coarse.onnx"), given), answers(eight_bits(model, named), given))
