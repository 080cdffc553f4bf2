"""A model that a person writes: what it may look like, and what is said when it does not."""

import sys
from pathlib import Path

import numpy as np
import pytest
from apart_models import children, programs, put

from millstream import errors
from millstream.models import Manifest, Repository, load
from millstream.models.apart.inspect import look_into
from millstream.models.manifest import parse_spec
from millstream.types import TensorSpec

CLASS = """
import numpy as np

class Ranker:
    inputs = {"x": "FP32[-1,2]"}
    outputs = {"score": "FP32[-1]"}

    def __init__(self, folder):
        self.weights = np.load(folder / "weights.npy")

    def predict(self, inputs):
        return {"score": inputs["x"] @ self.weights}

    def example(self):
        return {"x": np.ones((2, 2), np.float32)}
"""
FUNCTION = """
def predict(inputs):
    return {"y": [2.0 * value for value in inputs["x"]]}

predict.inputs = {"x": "FP32[-1]"}
predict.outputs = {"y": "FP32[-1]"}
"""
MODULE = """
inputs = {"name": "BYTES[-1]"}
outputs = {"greeting": "BYTES[-1]"}

def predict(inputs):
    return {"greeting": ["hello " + (n if isinstance(n, str) else n.decode()) for n in inputs["name"]]}
"""


def look(folder, text, entry="", example=None, name="own.py"):
    (folder / name).write_text(text)
    return look_into(folder, Manifest(format="python", file=name, entry=entry), example or {}, Path(sys.executable))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("FP32[-1,4]", TensorSpec("x", "FP32", (-1, 4))),
        (" BYTES [ -1 ] ", TensorSpec("x", "BYTES", (-1,))),
        ("INT64[]", TensorSpec("x", "INT64", ())),
        ("INT64", TensorSpec("x", "INT64", ())),
    ],
)
def test_a_tensor_is_written_as_it_is_shown(text, spec):
    assert parse_spec("x", text) == spec


@pytest.mark.parametrize("text", ["", "FP31[-1]", "FP32[-2]", "FP32[a]", "FP32[-1", "FP32(-1)", "float32", "FP32[1.5]"])
def test_what_says_no_tensor_is_refused_with_an_example(text):
    with pytest.raises(errors.Misconfigured, match=r"says no tensor; write .*FP32\[-1,4\]"):
        parse_spec("x", text)


def test_a_class_is_made_with_the_versions_folder_and_answers(tmp_path):
    np.save(tmp_path / "weights.npy", np.array([1, 10], np.float32))
    found = look(tmp_path, CLASS)
    assert found.inputs == (TensorSpec("x", "FP32", (-1, 2)),)
    assert found.outputs == (TensorSpec("score", "FP32", (-1,)),)
    assert found.example["x"].tolist() == [[1, 1], [1, 1]]
    assert "the example is its own" in found.notes
    root = tmp_path / "models"
    files = {"weights.npy": (tmp_path / "weights.npy").read_bytes()}
    put(root, CLASS, "m", {"x": "FP32[-1,2]"}, {"score": "FP32[-1]"}, files, entry="own:Ranker")
    with programs() as made:
        model = load(Repository(root), "m", "1", programs=made)
        assert model.predict({"x": np.array([[1, 2], [3, 4]], np.float32)})["score"].tolist() == [21, 43]


@pytest.mark.parametrize(
    ("text", "entry", "inputs", "outputs"),
    [
        (FUNCTION, "own:predict", {"x": np.array([1.5], np.float32)}, {"y": [3.0]}),
        (MODULE, "", {"name": np.array(["Ada", b"Bo"], object)}, {"greeting": ["hello Ada", "hello Bo"]}),
        (MODULE, "own:predict", {"name": np.array(["Ada"], object)}, {"greeting": ["hello Ada"]}),
    ],
)
def test_a_function_will_do(tmp_path, text, entry, inputs, outputs):
    found = look(tmp_path, text, entry, inputs)
    root = tmp_path / "models"
    said = (
        {spec.name: f"{spec.datatype}[-1]" for spec in found.inputs},
        {s.name: f"{s.datatype}[-1]" for s in found.outputs},
    )
    put(root, text, "m", *said, entry=entry)
    with programs() as made:
        got = load(Repository(root), "m", "1", programs=made).predict(inputs)
        assert {name: array.tolist() for name, array in got.items()} == outputs


def test_code_of_several_files_is_imported_from_the_version_alone(tmp_path):
    main = """
from helpers.more import add
import constants
class Own:
    inputs = {"x": "FP32[-1,1]"}
    outputs = {"y": "FP32[-1,1]"}
    def predict(self, inputs):
        return {"y": add(inputs["x"], constants.ONE)}
"""
    files = {
        "helpers/__init__.py": b"",
        "helpers/more.py": b"def add(a, b):\n    return a + b\n",
        "constants.py": b"ONE = 1\n",
    }
    root = tmp_path / "models"
    put(root, main, files=files, code=("own.py", "helpers/__init__.py", "helpers/more.py", "constants.py"))
    with programs() as made:
        model = load(Repository(root), "m", "1", programs=made)
        assert model.predict({"x": np.ones((1, 1), np.float32)})["y"].tolist() == [[2]]
    assert not list(root.rglob("__pycache__"))


def test_a_compiled_leftover_is_never_what_runs(tmp_path):
    import importlib.util
    import py_compile

    root = tmp_path / "models"
    put(root, CLASS.replace("np.load(folder / 'weights.npy')", "1"), "m", {"x": "FP32[-1,2]"}, {"score": "FP32[-1]"})
    file = root / "m" / "1" / "own.py"
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('the leftover ran')")
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(evil), importlib.util.cache_from_source(str(file)), invalidation_mode=unchecked)
    with programs() as made, pytest.raises(errors.Misconfigured, match="has no digest"):
        load(Repository(root), "m", "1", programs=made)


@pytest.mark.parametrize(
    ("text", "entry", "why"),
    [
        ("x = 1", "", "0 classes in it have a method predict"),
        (CLASS + CLASS.replace("Ranker", "Other"), "", "2 classes in it have a method predict; say which"),
        (CLASS, "own:Nobody", "there is no 'Nobody' in it"),
        (CLASS.replace("def predict", "def guess"), "own:Ranker", "Ranker has no method predict"),
        (CLASS.replace("inputs = ", "puts = ", 1), "", "it has no inputs; write inputs = "),
        (CLASS.replace("FP32[-1]", "FP99[-1]"), "", "'FP99\\[-1\\]' says no tensor"),
        (MODULE.replace('"greeting":', '"other":', 1), "", "without 'other'"),
        (MODULE.replace('return {"greeting"', 'return [{"greeting"').replace("]}", "]}]"), "", "gave a list; return"),
        (FUNCTION.replace('"FP32[-1]"}', '"FP32[-1,3]"}').replace('{"x": "FP32[-1,3]"}', '{"x": "FP32[-1]"}'),
         "own:predict", "by its `outputs`, and"),
        (FUNCTION.replace('.outputs = {"y": "FP32', '.outputs = {"y": "INT64'), "own:predict", "INT64 was promised"),
        ("def predict(inputs):\n    1 / 0\npredict.inputs = predict.outputs = {'x': 'FP32[-1]'}", "own:predict",
         "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_it_is_not_is_said(tmp_path, text, entry, why):
    np.save(tmp_path / "weights.npy", np.ones(2, np.float32))
    with pytest.raises(errors.Misconfigured, match=why):
        look(tmp_path, text, entry)
    assert not children()


def test_a_file_with_the_name_of_a_module_that_is_there_is_refused(tmp_path):
    with pytest.raises(errors.Misconfigured, match=r"'types' is already the name of .*call it otherwise"):
        look(tmp_path, MODULE, name="types.py")


def test_outputs_are_given_in_the_datatypes_that_were_promised(tmp_path):
    text = """
import numpy as np
inputs = {"x": "FP32[-1]"}
outputs = {"wide": "FP32[-1]", "narrow": "INT64[-1]", "text": "BYTES[-1]", "flag": "BOOL[-1]"}
def predict(inputs):
    x = inputs["x"].astype(np.float64)
    return {"wide": x, "narrow": x.astype(np.int32), "text": x.astype(int), "flag": (x > 1).tolist(), "more": x}
"""
    root = tmp_path / "models"
    outputs = {"wide": "FP32[-1]", "narrow": "INT64[-1]", "text": "BYTES[-1]", "flag": "BOOL[-1]"}
    put(root, text, "m", {"x": "FP32[-1]"}, outputs)
    with programs() as made:
        got = load(Repository(root), "m", "1", programs=made).predict({"x": np.array([1, 2], np.float32)})
    assert {name: array.dtype for name, array in got.items()} == {
        "wide": np.float32, "narrow": np.int64, "text": np.dtype(object), "flag": np.dtype(bool),
    }  # fmt: skip
    assert got["text"].tolist() == ["1", "2"]
