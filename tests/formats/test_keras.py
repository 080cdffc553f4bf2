"""Keras files, new and old: names and shapes are read off them, code in them is asked about."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.types import TensorSpec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keras():
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    return keras


@pytest.fixture(scope="module")
def runtime(keras):
    from millstream.models.runtimes import keras as runtime

    return runtime


@pytest.fixture(scope="module")
def two(keras):
    """A model with two named inputs and two named outputs."""
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    both = keras.layers.Concatenate()([a, b])
    return keras.Model([a, b], [keras.layers.Dense(2, name="p")(both), keras.layers.Dense(1, name="q")(a)])


def loaded(runtime, folder, manifest, example=None):
    """What `inspect` says, and the model that loads from a manifest with that."""
    found = runtime.inspect(folder, manifest, example or {})
    whole = Manifest(
        format="keras",
        file=manifest.file,
        settings=manifest.settings,
        code=manifest.code,
        inputs=found.inputs,
        outputs=found.outputs,
    )
    return found, runtime.load(folder, whole, "cpu")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_names_and_shapes_are_read_off_the_file(runtime, two, tmp_path, suffix):
    two.save(str(tmp_path / f"m.{suffix}"))
    found, model = loaded(runtime, tmp_path, Manifest(format="keras", file=f"m.{suffix}"))
    assert found.inputs == (TensorSpec("a", "FP32", (-1, 3)), TensorSpec("b", "FP32", (-1, 2)))
    assert set(found.outputs) == {TensorSpec("p", "FP32", (-1, 2)), TensorSpec("q", "FP32", (-1, 1))}
    random = np.random.default_rng(1)
    a, b = random.random((5, 3), np.float32), random.random((5, 2), np.float32)
    p, q = two.predict_on_batch([a, b])
    outputs = model.predict({"b": b, "a": a})
    np.testing.assert_allclose(outputs["p"], p, rtol=1e-5)
    np.testing.assert_allclose(outputs["q"], q, rtol=1e-5)


def test_inputs_and_outputs_in_dicts_keep_their_keys(keras, runtime, tmp_path):
    a, b = keras.Input((1,), name="b_first"), keras.Input((1,), name="a_second")
    model = keras.Model({"z": a, "y": b}, {"minus": keras.layers.Subtract()([a, b])})
    model.save(str(tmp_path / "m.keras"))
    found, served = loaded(runtime, tmp_path, Manifest(format="keras", file="m.keras"))
    given = {"b_first": np.array([[5.0]], np.float32), "a_second": np.array([[2.0]], np.float32)}
    assert {spec.name for spec in found.inputs} == set(given)
    assert served.predict(given)["minus"].tolist() == [[3.0]]


def test_a_sequential_model_has_one_output(keras, runtime, tmp_path):
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    model.save(str(tmp_path / "m.keras"))
    columns = {name: np.arange(5.0) for name in "abcd"}
    found, served = loaded(runtime, tmp_path, Manifest(format="keras", file="m.keras"), columns)
    assert [spec.name for spec in found.outputs] == ["output"] and found.example["x"].shape == (4, 4)
    assert any("rows join" in note for note in found.notes)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(served.predict({"x": x})["output"], model.predict_on_batch(x), rtol=1e-5)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_code_in_a_layer_is_asked_about(keras, runtime, tmp_path, suffix):
    x = keras.Input((2,), name="x")
    keras.Model(x, keras.layers.Lambda(lambda t: t * 3, output_shape=(2,), name="y")(x)).save(
        str(tmp_path / f"m.{suffix}")
    )
    with pytest.raises(errors.Misconfigured, match="--setting safe_mode=false"):
        runtime.inspect(tmp_path, Manifest(format="keras", file=f"m.{suffix}"), {})
    _, served = loaded(runtime, tmp_path, Manifest(format="keras", file=f"m.{suffix}", settings={"safe_mode": False}))
    assert served.predict({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[3.0, 3.0]]


def test_layers_of_the_versions_own_code_are_known(keras, runtime, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    code = """
        import keras

        @keras.saving.register_keras_serializable("own")
        class Scale(keras.layers.Layer):
            def call(self, x):
                return x * 7
    """
    (tmp_path / "own_layers.py").write_text(textwrap.dedent(code))
    make = """
        import keras, own_layers
        keras.Sequential([keras.Input((1,), name="x"), own_layers.Scale()]).save("own.keras")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(make)], cwd=tmp_path, check=True, capture_output=True)
    manifest = Manifest(format="keras", file="own.keras", code=("own_layers.py",))
    _, served = loaded(runtime, tmp_path, manifest)
    assert served.predict({"x": np.ones((1, 1), np.float32)})["output"].tolist() == [[7.0]]


def test_a_size_that_a_layer_refuses_is_the_callers_mistake(keras, runtime, tmp_path):
    keras.Sequential([keras.Input((None, 2), name="x"), keras.layers.Reshape((6,))]).save(str(tmp_path / "m.keras"))
    manifest = Manifest(format="keras", file="m.keras")
    found, served = loaded(runtime, tmp_path, manifest, {"x": np.ones((1, 3, 2))})
    assert found.outputs[0].shape == (-1, 6) and any("twice the free sizes" in note for note in found.notes)
    with pytest.raises(errors.BadInput, match="refuses these values"):
        served.predict({"x": np.ones((1, 5, 2), np.float32)})


def test_a_broken_file_is_refused_by_name(runtime, tmp_path):
    (tmp_path / "m.keras").write_bytes(b"not a model")
    with pytest.raises(errors.Misconfigured, match=r"m\.keras: Keras .* cannot load it"):
        runtime.inspect(tmp_path, Manifest(format="keras", file="m.keras"), {})


def test_it_runs_on_torch_where_that_is_the_backend(two, tmp_path):
    two.save(str(tmp_path / "m.keras"))
    code = f"""
        from pathlib import Path
        import numpy as np
        from millstream.models.manifest import Manifest
        from millstream.models.runtimes import keras as runtime
        folder = Path({str(tmp_path)!r})
        found = runtime.inspect(folder, Manifest(format="keras", file="m.keras", settings={{"backend": "torch"}}), {{}})
        print(found.notes[0], [list(spec.shape) for spec in found.outputs])
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "on torch [[-1, 2], [-1, 1]]" in run.stdout
