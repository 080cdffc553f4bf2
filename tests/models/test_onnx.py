"""ONNX files: what they say of themselves, what they refuse, and that a broken one is told from an odd one."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnx_models
from millstream import errors
from millstream.models import Manifest, Repository, load
from millstream.models.runtimes.onnx import Onnx
from millstream.types import TensorSpec


def test_specs_are_read_off_the_file(tmp_path):
    model = Onnx(onnx_models.linear(tmp_path / "m.onnx", np.ones((3, 2))))
    assert model.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert model.outputs == (TensorSpec("y", "FP32", (-1, 2)),)
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_allclose(model.predict({"x": x})["y"], [[6, 6], [15, 15]])


@pytest.mark.parametrize(
    ("kind", "datatype", "values"),
    [
        (TensorProto.FLOAT16, "FP16", np.array([[1.5]], np.float16)),
        (TensorProto.DOUBLE, "FP64", np.array([[1.5]])),
        (TensorProto.BOOL, "BOOL", np.array([[True]])),
        (TensorProto.UINT8, "UINT8", np.array([[200]], np.uint8)),
        (TensorProto.INT32, "INT32", np.array([[-3]], np.int32)),
        (TensorProto.UINT32, "UINT32", np.array([[2**32 - 1]], np.uint32)),
        (TensorProto.INT64, "INT64", np.array([[-(2**60)]])),
        (TensorProto.STRING, "BYTES", np.array([["é"]], object)),
    ],
)
def test_every_datatype_goes_through(tmp_path, kind, datatype, values):
    model = Onnx(onnx_models.same(tmp_path / "m.onnx", kind))
    assert model.inputs[0].datatype == datatype
    answer = model.predict({"x": values})["y"]
    assert answer.dtype == values.dtype
    assert answer.tolist() == values.tolist()


def test_bytes_are_read_as_utf8_text(tmp_path):
    model = Onnx(onnx_models.same(tmp_path / "m.onnx", TensorProto.STRING))
    assert model.predict({"x": np.array([["é".encode()], [b"ok"]], object)})["y"].tolist() == [["é"], ["ok"]]
    with pytest.raises(errors.BadInput, match="'x': a BYTES value is not UTF-8"):
        model.predict({"x": np.array([[b"\xff"]], object)})


def test_a_fixed_first_dimension_is_kept(tmp_path):
    assert Onnx(onnx_models.linear(tmp_path / "m.onnx", np.ones((3, 2)), rows=1)).inputs[0].shape == (1, 3)


def test_a_value_the_graph_refuses_is_the_callers_mistake(tmp_path):
    model = Onnx(onnx_models.table(tmp_path / "m.onnx"))
    with pytest.raises(errors.BadInput, match="idx=9"):
        model.predict({"i": np.array([9])})


def test_broken_files_are_corrupt(tmp_path):
    whole = onnx_models.scaled(tmp_path / "m.onnx", 2).read_bytes()
    for content in (b"", b"junk" * 50, whole[: len(whole) // 2]):
        (tmp_path / "n.onnx").write_bytes(content)
        with pytest.raises((errors.Corrupt, errors.Misconfigured), match=r"n\.onnx"):
            Onnx(tmp_path / "n.onnx")


def test_a_sequence_output_says_how_to_export(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], "g", [x], [sequence])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(errors.Misconfigured, match=r"'y' is a seq.*zipmap=False"):
        Onnx(tmp_path / "m.onnx")


def test_load_checks_format_specs_and_digest(tmp_path):
    file = onnx_models.scaled(tmp_path / "file.onnx", 2)
    repository = Repository(tmp_path / "models")
    says = (TensorSpec("x", "FP32", (-1, 5)),)
    repository.put("m", Manifest(format="onnx", file="file.onnx"), {"file.onnx": file})
    repository.put("m", Manifest(format="onnx", file="file.onnx", inputs=says), {"file.onnx": file})
    repository.put("m", Manifest(format="pickle", file="file.onnx"), {"file.onnx": file})
    assert load(repository, "m", "1").outputs[0].name == "y"
    with pytest.raises(errors.Misconfigured, match=r"inputs x FP32 \[-1, 5\], the file has x FP32 \[-1, 4\]"):
        load(repository, "m", "2")
    with pytest.raises(errors.Misconfigured, match="format 'pickle' is not known"):
        load(repository, "m", "3")
    with (repository.folder("m", "1") / "file.onnx").open("ab") as damaged:
        damaged.write(b"!")
    with pytest.raises(errors.Corrupt):
        load(repository, "m", "1")


def test_a_device_that_is_not_there_is_said_and_the_cpu_computes(tmp_path, caplog):
    model = Onnx(onnx_models.linear(tmp_path / "m.onnx", np.array([[2.0]])), "cuda:0")
    assert model.device == "cpu" and model.predict({"x": np.ones((1, 1), np.float32)})["y"].tolist() == [[2]]
    assert "device cuda:0 needs ONNX Runtime's CUDAExecutionProvider" in caplog.text
    assert "computed on the CPU instead" in caplog.text and "onnxruntime-gpu" in caplog.text


def test_a_device_that_nobody_knows_refuses_the_version(tmp_path):
    with pytest.raises(errors.Misconfigured, match="device 'gpu'; say 'cpu', 'cuda:0' or 'tensorrt:0'"):
        Onnx(onnx_models.linear(tmp_path / "m.onnx", np.array([[2.0]])), "gpu")


def test_a_version_says_its_device(tmp_path, caplog):
    file = onnx_models.linear(tmp_path / "m.onnx", np.array([[2.0]])).read_bytes()
    Repository(tmp_path / "models").put("m", Manifest(format="onnx", file="m", device="cuda:1"), {"m": file})
    load(Repository(tmp_path / "models"), "m", "1")
    assert "device cuda:1" in caplog.text


def test_bfloat16_goes_through_as_its_bits(tmp_path):
    path = onnx_models.graph(
        tmp_path / "m.onnx",
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "wide"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.BFLOAT16),
        ],
        [("x", TensorProto.BFLOAT16, ["rows", 2])],
        [("y", TensorProto.BFLOAT16, ["rows", 2])],
    )
    model = Onnx(path)
    assert model.inputs[0].datatype == model.outputs[0].datatype == "BF16"
    one_two, two_four = [[0x3F80, 0x4000]], [[0x4000, 0x4080]]
    assert model.predict({"x": np.array(one_two, np.uint16)})["y"].tolist() == two_four
    assert model.predict({"x": np.empty((0, 2), np.uint16)})["y"].shape == (0, 2)
