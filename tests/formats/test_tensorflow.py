"""TensorFlow's two kinds of file: SavedModel folders by signature, frozen graphs by the names of their tensors."""

import numpy as np
import pytest

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.types import TensorSpec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tf():
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow

    return tensorflow


@pytest.fixture(scope="module")
def runtime(tf):
    from millstream.models.runtimes import tensorflow as runtime

    return runtime


@pytest.fixture(scope="module")
def saved(tf, tmp_path_factory):
    """A SavedModel with two signatures."""
    folder = tmp_path_factory.mktemp("saved")

    class Scorer(tf.Module):
        def __init__(self):
            self.w = tf.Variable([[1.0], [2.0], [3.0]])

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
        def score(self, x):
            return {"score": tf.matmul(x, self.w), "total": tf.reduce_sum(x, 1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text"), tf.TensorSpec([None], tf.int32, "n")])
        def words(self, text, n):
            return {"upper": tf.strings.upper(text), "length": tf.strings.length(text) + n}

    one = Scorer()
    tf.saved_model.save(one, str(folder / "scorer"), {"serving_default": one.score, "words": one.words})
    return folder


@pytest.fixture(scope="module")
def frozen(tf, tmp_path_factory):
    """A frozen graph y = softmax(x @ w), and z = 2 x under a name with a slash."""
    folder = tmp_path_factory.mktemp("frozen")
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], "x")
        tf.nn.softmax(tf.matmul(x, tf.constant([[1.0, 2.0], [3.0, 4.0]])), name="y")
        with tf.name_scope("side"):
            tf.add(x, x, name="double")
    (folder / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    return folder


def loaded(runtime, folder, manifest):
    """What `inspect` says, and the model that loads from a manifest with that."""
    found = runtime.inspect(folder, manifest, {})
    whole = Manifest(
        format="tensorflow",
        file=manifest.file,
        settings=manifest.settings,
        inputs=found.inputs,
        outputs=found.outputs,
    )
    return found, runtime.load(folder, whole, "cpu")


def test_a_saved_model_is_read_by_its_signature(runtime, saved):
    found, model = loaded(runtime, saved, Manifest(format="tensorflow", file="scorer"))
    assert found.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert set(found.outputs) == {TensorSpec("score", "FP32", (-1, 1)), TensorSpec("total", "FP32", (-1,))}
    assert any("rows join" in note for note in found.notes)
    outputs = model.predict({"x": np.array([[1, 2, 3], [0, 0, 1]], np.float32)})
    assert outputs["score"].tolist() == [[14.0], [3.0]] and outputs["total"].tolist() == [6.0, 1.0]


def test_another_signature_takes_and_gives_text(runtime, saved):
    found, model = loaded(runtime, saved, Manifest(format="tensorflow", file="scorer", settings={"signature": "words"}))
    assert {(s.name, s.datatype) for s in found.inputs} == {("text", "BYTES"), ("n", "INT32")}
    outputs = model.predict({"text": np.array(["ab", b"xyz"], object), "n": np.array([1, 1], np.int32)})
    assert outputs["upper"].tolist() == [b"AB", b"XYZ"] and outputs["length"].tolist() == [3, 4]


def test_a_signature_that_is_not_there_is_refused_with_those_that_are(runtime, saved):
    manifest = Manifest(format="tensorflow", file="scorer", settings={"signature": "rank"})
    with pytest.raises(errors.Misconfigured, match="no signature 'rank', it has: serving_default, words"):
        runtime.inspect(saved, manifest, {})


def test_a_frozen_graph_is_read_from_placeholders_to_sinks(runtime, frozen):
    found, model = loaded(runtime, frozen, Manifest(format="tensorflow", file="graph.pb"))
    assert found.inputs == (TensorSpec("x", "FP32", (-1, 2)),)
    assert set(found.outputs) == {TensorSpec("y", "FP32", (-1, 2)), TensorSpec("side/double", "FP32", (-1, 2))}
    outputs = model.predict({"x": np.array([[0, 0], [1, 1]], np.float32)})
    assert outputs["y"][0].tolist() == [0.5, 0.5] and outputs["side/double"].tolist() == [[0, 0], [2, 2]]


def test_tensors_of_a_frozen_graph_can_be_chosen_and_named(runtime, frozen):
    manifest = Manifest(
        format="tensorflow", file="graph.pb", settings={"tensors": {"rows": "x:0", "twice": "side/double:0"}}
    )
    found, model = loaded(runtime, frozen, manifest)
    assert [spec.name for spec in found.inputs] == ["rows"] and [spec.name for spec in found.outputs] == ["twice"]
    assert model.predict({"rows": np.ones((1, 2), np.float32)})["twice"].tolist() == [[2.0, 2.0]]


def test_a_value_that_the_graph_refuses_is_the_callers_mistake(tf, runtime, tmp_path):
    class Table(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "i")])
        def look(self, i):
            return {"y": tf.gather(tf.constant([1.0, 2.0]), i)}

    one = Table()
    tf.saved_model.save(one, str(tmp_path / "table"), {"serving_default": one.look})
    _, model = loaded(runtime, tmp_path, Manifest(format="tensorflow", file="table"))
    with pytest.raises(errors.BadInput, match="refuses these values"):
        model.predict({"i": np.array([9], np.int32)})


def test_a_broken_graph_is_refused_by_name(runtime, tmp_path):
    (tmp_path / "m.pb").write_bytes(b"\xff not a graph")
    with pytest.raises(errors.Misconfigured, match=r"m\.pb: TensorFlow .* cannot load it"):
        runtime.inspect(tmp_path, Manifest(format="tensorflow", file="m.pb"), {})


def test_a_gpu_that_is_not_there_is_said_and_the_cpu_computes(runtime, saved, caplog):
    spec, out = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("total", "FP32", (-1,))
    manifest = Manifest(format="tensorflow", file="scorer", inputs=(spec,), outputs=(out,))
    model = runtime.load(saved, manifest, "cuda:0")
    assert model.device == "cpu" and "computed on the CPU instead" in caplog.text
    assert model.predict({"x": np.ones((1, 3), np.float32)})["total"].tolist() == [3.0]
