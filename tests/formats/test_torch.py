"""PyTorch files of every kind: what is read off them, what comes out, and what is refused by which sentence."""

import sys

import numpy as np
import pytest

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.types import TensorSpec

pytestmark = pytest.mark.slow

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.linear = torch.nn.Linear(width, 2)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(torch.relu(self.linear(x)))
"""


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.fixture(scope="module")
def runtime(torch):
    from millstream.models.runtimes import torch as runtime

    return runtime


@pytest.fixture
def net(torch, tmp_path, monkeypatch):
    """A module of a user's own, in training mode, its file beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    import net

    torch.manual_seed(1)
    made = net.Net()
    made.x = np.random.default_rng(3).random((5, 3), np.float32)
    made.y = made.eval()(torch.from_numpy(made.x)).detach().numpy()
    return made.train()


def found_and_loaded(runtime, folder, manifest, example=None):
    """What `inspect` says, and the model that loads from a manifest with that."""
    found = runtime.inspect(folder, manifest, example or {})
    whole = Manifest(
        **{f: getattr(manifest, f) for f in ("format", "file", "code", "entry", "settings")}
        | {"inputs": found.inputs, "outputs": found.outputs}
    )
    return found, runtime.load(folder, whole, "cpu")


def test_torchscript_is_told_by_an_example(torch, runtime, net, tmp_path):
    torch.jit.script(net).save(str(tmp_path / "m.pt"))
    manifest = Manifest(format="torch", file="m.pt")
    with pytest.raises(errors.Misconfigured, match=r"--input 'x:FP32\[-1,3\]'"):
        runtime.inspect(tmp_path, manifest, {})
    found, model = found_and_loaded(runtime, tmp_path, manifest, {"whatever": net.x.astype(np.float64)})
    assert found.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert found.outputs == (TensorSpec("output", "FP32", (-1, 2)),)
    assert any("rows join" in note for note in found.notes) and "TorchScript" in found.notes[0]
    np.testing.assert_allclose(model.predict({"x": net.x})["output"], net.y, rtol=1e-6)


def test_torchscript_is_told_by_what_is_typed(torch, runtime, net, tmp_path):
    torch.jit.trace(net.eval(), torch.zeros(1, 3)).save(str(tmp_path / "m.pt"))
    manifest = Manifest(format="torch", file="m.pt", inputs=(TensorSpec("features", "FP32", (-1, 3)),))
    found, model = found_and_loaded(runtime, tmp_path, manifest)
    assert any("made up" in note for note in found.notes) and len(found.example["features"]) == 3
    np.testing.assert_allclose(model.predict({"features": net.x})["output"], net.y, rtol=1e-6)


def test_an_exported_program_says_everything_itself(torch, runtime, tmp_path):
    class Two(torch.nn.Module):
        def forward(self, a, b):
            return {"sum": a + b.to(a.dtype), "mean": a.mean(1)}

    rows = torch.export.Dim("rows")
    given = (torch.ones(2, 4), torch.ones(2, 4, dtype=torch.int64))
    program = torch.export.export(Two(), given, dynamic_shapes={"a": {0: rows}, "b": {0: rows}})
    torch.export.save(program, str(tmp_path / "two.pt2"))
    found, model = found_and_loaded(runtime, tmp_path, Manifest(format="torch", file="two.pt2"))
    assert found.inputs == (TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "INT64", (-1, 4)))
    assert set(found.outputs) == {TensorSpec("sum", "FP32", (-1, 4)), TensorSpec("mean", "FP32", (-1,))}
    outputs = model.predict({"a": np.ones((7, 4), np.float32), "b": np.full((7, 4), 2)})
    assert outputs["sum"].tolist() == [[3.0] * 4] * 7 and outputs["mean"].tolist() == [1.0] * 7


def test_an_exported_program_of_one_size_takes_that_size(torch, runtime, net, tmp_path):
    torch.export.save(torch.export.export(net.eval(), (torch.ones(2, 3),)), str(tmp_path / "fixed.pt2"))
    found, _ = found_and_loaded(runtime, tmp_path, Manifest(format="torch", file="fixed.pt2"))
    assert found.inputs[0].shape == (2, 3) and found.outputs[0].shape == (2, 2)
    assert any("one by one" in note for note in found.notes)


def test_a_pickled_module_answers_as_in_evaluation(torch, runtime, net, tmp_path):
    torch.save(net.train(), tmp_path / "m.pth")
    manifest = Manifest(format="torch", file="m.pth", code=("net.py",))
    found, model = found_and_loaded(runtime, tmp_path, manifest, {"x": net.x})
    assert any("rows join" in note for note in found.notes)
    np.testing.assert_allclose(model.predict({"x": net.x})["output"], net.y, rtol=1e-6)


@pytest.mark.parametrize("around", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}], ids=["bare", "checkpoint"])
def test_weights_go_into_the_class_that_is_named(torch, runtime, net, tmp_path, around):
    torch.save(around(net.state_dict()), tmp_path / "weights.pt")
    with pytest.raises(errors.Misconfigured, match=r"weights alone \(2 tensors.*--entry net:Net --code net.py"):
        runtime.inspect(tmp_path, Manifest(format="torch", file="weights.pt"), {"x": net.x})
    manifest = Manifest(
        format="torch", file="weights.pt", code=("net.py",), entry="net:Net", settings={"arguments": {"width": 3}}
    )
    _, model = found_and_loaded(runtime, tmp_path, manifest, {"x": net.x})
    np.testing.assert_allclose(model.predict({"x": net.x})["output"], net.y, rtol=1e-6)


def test_weights_that_carry_code_do_not_run_it(torch, runtime, net, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"state_dict": net.state_dict(), "x": Bomb()}, tmp_path / "weights.pt")
    manifest = Manifest(format="torch", file="weights.pt", code=("net.py",), entry="net:Net")
    with pytest.raises(errors.Misconfigured, match="cannot load it"):
        runtime.inspect(tmp_path, manifest, {"x": net.x})
    assert not (tmp_path / "exploded").exists()


def test_several_outputs_get_names_in_order_and_bfloat16_is_its_bits(torch, runtime, tmp_path):
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x.to(torch.bfloat16) * 2, x.sum(1)

    torch.jit.script(Pair()).save(str(tmp_path / "pair.pt"))
    manifest = Manifest(format="torch", file="pair.pt", inputs=(TensorSpec("x", "BF16", (-1, 2)),))
    found, model = found_and_loaded(runtime, tmp_path, manifest, {"x": np.array([[1.0, 2.0]])})
    assert [(spec.name, spec.datatype) for spec in found.outputs] == [("output_0", "BF16"), ("output_1", "BF16")]
    bits = (np.array([[1.0, -2.5]], "<f4").view("<u4") >> 16).astype("<u2")
    outputs = model.predict({"x": bits})
    assert (outputs["output_0"].astype("<u4") << 16).view("<f4").tolist() == [[2.0, -5.0]]


def test_rows_that_mind_their_neighbours_are_taken_alone(torch, runtime, tmp_path):
    class Ranks(torch.nn.Module):
        def forward(self, x):
            return torch.softmax(x, 0)

    torch.jit.script(Ranks()).save(str(tmp_path / "ranks.pt"))
    manifest = Manifest(format="torch", file="ranks.pt", inputs=(TensorSpec("x", "FP32", (-1, 2)),))
    found = runtime.inspect(tmp_path, manifest, {})
    assert found.inputs[0].shape == (1, 2) and found.outputs[0].shape == (1, 2)
    assert any("rows beside it" in note for note in found.notes)


def test_a_sum_over_the_rows_is_not_taken_for_rows(torch, runtime, tmp_path):
    class Total(torch.nn.Module):
        def forward(self, x):
            return x.sum(0)

    torch.jit.script(Total()).save(str(tmp_path / "total.pt"))
    manifest = Manifest(format="torch", file="total.pt", inputs=(TensorSpec("x", "FP32", (-1, 3)),))
    found = runtime.inspect(tmp_path, manifest, {})
    assert found.outputs[0].shape == (3,) and any("does not follow the rows" in note for note in found.notes)


def test_free_sizes_of_the_input_are_free_in_the_output(torch, runtime, tmp_path):
    torch.jit.script(torch.nn.Conv2d(3, 4, 3, padding=1)).save(str(tmp_path / "conv.pt"))
    manifest = Manifest(format="torch", file="conv.pt", inputs=(TensorSpec("image", "FP32", (-1, 3, -1, -1)),))
    found = runtime.inspect(tmp_path, manifest, {})
    assert found.outputs == (TensorSpec("output", "FP32", (-1, 4, -1, -1)),)


def test_an_index_outside_a_table_is_the_callers_mistake(torch, runtime, tmp_path):
    rows = torch.export.Dim("rows")
    program = torch.export.export(
        torch.nn.Embedding(5, 2), (torch.zeros(2, dtype=torch.int64),), dynamic_shapes={"input": {0: rows}}
    )
    torch.export.save(program, str(tmp_path / "table.pt2"))
    _, model = found_and_loaded(runtime, tmp_path, Manifest(format="torch", file="table.pt2"))
    with pytest.raises(errors.BadInput, match="index out of range"):
        model.predict({"input": np.array([7])})


def test_a_gpu_that_is_not_there_is_said_and_the_cpu_computes(torch, runtime, net, tmp_path, caplog):
    if torch.cuda.is_available():
        pytest.fail("this test wants a machine without a GPU: say so to whoever runs it")
    torch.jit.script(net).save(str(tmp_path / "m.pt"))
    spec, out = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("output", "FP32", (-1, 2))
    model = runtime.load(tmp_path, Manifest(format="torch", file="m.pt", inputs=(spec,), outputs=(out,)), "cuda:0")
    assert model.device == "cpu" and "computed on the CPU instead" in caplog.text
    assert model.predict({"x": net.x})["output"].shape == (5, 2)


def test_a_broken_file_is_refused_by_name(runtime, tmp_path):
    (tmp_path / "m.pt").write_bytes(b"not a model")
    with pytest.raises(errors.Misconfigured, match=r"m\.pt: PyTorch .* cannot load it"):
        runtime.inspect(tmp_path, Manifest(format="torch", file="m.pt"), {"x": np.zeros((1, 3), np.float32)})
