"""`models add --to onnx`: the file that is written answers as the program did, or nothing is written."""

import joblib
import numpy as np
import pytest

from millstream import errors
from millstream.models import Repository
from millstream.models.model import load
from millstream.ops.add import Wish, add


def put(root, file, **more):
    """Convert a file; gives what was added, and the sentences."""
    said = []
    wish = Wish(source=str(file), allow_code=True, to_onnx=True, **more)
    return add(root, wish, said.append), said


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int)


def estimators():
    from lightgbm import LGBMClassifier, LGBMRegressor
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from xgboost import XGBClassifier, XGBRegressor

    return {
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
        "regression": LinearRegression(),
        "forest": RandomForestClassifier(8, random_state=0),
        "xgboost": XGBClassifier(n_estimators=8),
        "xgboost-regression": XGBRegressor(n_estimators=8),
        "lightgbm": LGBMRegressor(n_estimators=8, verbose=-1),
        "lightgbm-inside": make_pipeline(StandardScaler(), LGBMClassifier(n_estimators=8, verbose=-1)),
    }


@pytest.mark.parametrize("name", list(estimators()))
def test_estimators_answer_the_same_as_a_file_that_is_no_program(tmp_path, data, name):
    x, y = data
    estimator = estimators()[name].fit(x, y)
    joblib.dump(estimator, tmp_path / f"{name}.joblib")
    np.save(tmp_path / "x.npy", x)
    added, said = put(tmp_path / "models", tmp_path / f"{name}.joblib", example=tmp_path / "x.npy")
    assert added.format == "onnx" and "--allow-code" not in added.serve
    assert added.converted["rows"] == 256 and any("converted by skl2onnx" in one for one in said)
    repository = Repository(tmp_path / "models")
    model = load(repository, name, "1")
    outputs = model.predict({"x": x})
    if hasattr(estimator, "predict_proba"):
        assert added.converted["label_agreement"] == 1.0
        assert (outputs["label"] == estimator.predict(x)).all()
        np.testing.assert_allclose(outputs["probability"], estimator.predict_proba(x), atol=1e-4)
    else:
        assert outputs["prediction"].shape == (200,)
        np.testing.assert_allclose(outputs["prediction"], estimator.predict(x), rtol=1e-3, atol=1e-4)
    lineage = repository.manifest(name, "1").lineage
    assert lineage["digest"].startswith("sha256:") and "skl2onnx" in lineage["converted"]["converter"]


def labels_only():
    from sklearn.cluster import KMeans
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import LinearSVC

    return {
        "no-probability": lambda x, y: LinearSVC().fit(x, y),
        "clusters": lambda x, y: KMeans(3, n_init=1, random_state=0).fit(x),
        "several-labels": lambda x, y: RandomForestClassifier(5, random_state=0).fit(x, np.stack([y, 1 - y], 1)),
    }


@pytest.mark.parametrize("name", list(labels_only()))
def test_estimators_that_give_labels_alone(tmp_path, data, name):
    x, y = data
    estimator = labels_only()[name](x, y)
    joblib.dump(estimator, tmp_path / "m.joblib")
    np.save(tmp_path / "x.npy", x)
    added, _ = put(tmp_path / "models", tmp_path / "m.joblib", example=tmp_path / "x.npy")
    assert added.format == "onnx" and added.converted["label_agreement"] == 1.0
    outputs = load(Repository(tmp_path / "models"), "m", "1").predict({"x": x})
    assert list(outputs) == ["label"] and (outputs["label"] == estimator.predict(x)).all()


def test_text_is_lowered_on_a_machine_without_an_english_locale(tmp_path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["Good day", "BAD day", "a good night", "bad BAD night"] * 4
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0] * 4)
    joblib.dump(estimator, tmp_path / "m.joblib")
    put(tmp_path / "models", tmp_path / "m.joblib")
    outputs = load(Repository(tmp_path / "models"), "m", "1").predict({"text": np.array(texts, object)})
    assert (outputs["label"] == estimator.predict(texts)).all()


def test_columns_of_several_kinds_stay_inputs_of_their_own(tmp_path):
    import pandas
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    random = np.random.default_rng(1)
    frame = pandas.DataFrame({"age": random.normal(size=60), "city": random.choice(["Rome", "Bern", "Oslo"], 60)})
    columns = ColumnTransformer(
        [("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["city"])]
    )
    estimator = make_pipeline(columns, LogisticRegression()).fit(frame, (frame["age"] > 0).astype(int))
    joblib.dump(estimator, tmp_path / "people.joblib")
    frame.head(20).to_csv(tmp_path / "people.csv", index=False)
    put(tmp_path / "models", tmp_path / "people.joblib", example=tmp_path / "people.csv")
    model = load(Repository(tmp_path / "models"), "people", "1")
    assert {(spec.name, spec.shape) for spec in model.inputs} == {("age", (-1,)), ("city", (-1,))}
    outputs = model.predict({"age": frame["age"].to_numpy(np.float32), "city": frame["city"].to_numpy(object)})
    np.testing.assert_allclose(outputs["probability"], estimator.predict_proba(frame), atol=1e-4)


def test_a_conversion_that_differs_is_refused_and_nothing_is_written(tmp_path, data, monkeypatch):
    from sklearn.linear_model import LinearRegression

    from millstream.ops import convert

    x, y = data
    joblib.dump(LinearRegression().fit(x, y), tmp_path / "m.joblib")
    whole = convert._CONVERTERS["sklearn"]

    def wrong(folder, manifest, source):
        made, converter = whole(folder, manifest, source)
        for node in made.graph.node:
            for attribute in node.attribute:
                if attribute.name == "coefficients":
                    attribute.floats[0] += 0.01
        return made, converter

    monkeypatch.setitem(convert._CONVERTERS, "sklearn", wrong)
    with pytest.raises(errors.Misconfigured, match=r"differs by up to .* over the tolerance.*nothing was written"):
        put(tmp_path / "models", tmp_path / "m.joblib")
    assert not (tmp_path / "models").exists()
    put(tmp_path / "models", tmp_path / "m.joblib", tolerance=0.5)


def test_a_row_that_falls_to_the_other_side_of_a_tree_is_noticed(tmp_path, data):
    """XGBoost's thresholds are numbers of its training data; scaled in FP32 instead of FP64, some rows change sides."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from xgboost import XGBRegressor

    x, y = data
    joblib.dump(make_pipeline(StandardScaler(), XGBRegressor(n_estimators=8)).fit(x, y), tmp_path / "m.joblib")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(errors.Misconfigured, match=r"in \d+ of 256 numbers; nothing was written"):
        put(tmp_path / "models", tmp_path / "m.joblib", example=tmp_path / "x.npy")


def test_what_has_no_converter_is_refused_in_its_own_words(tmp_path, data):
    from sklearn.manifold import Isomap

    (tmp_path / "own.py").write_text(
        'class Own:\n    inputs = {"x": "FP32[-1,2]"}\n    outputs = {"x": "FP32[-1,2]"}\n\n'
        "    def predict(self, inputs):\n        return inputs\n"
    )
    with pytest.raises(errors.Misconfigured, match="format 'python' has no kept converter"):
        put(tmp_path / "models", tmp_path / "own.py")
    joblib.dump(Isomap().fit(data[0]), tmp_path / "isomap.joblib")
    with pytest.raises(errors.Misconfigured, match=r"cannot be converted: .*Isomap.*add it without --to"):
        put(tmp_path / "models", tmp_path / "isomap.joblib")


@pytest.mark.slow
def test_torch_in_each_of_its_files(tmp_path):
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    x = torch.randn(9, 3)
    expected = net(x).detach().numpy()
    rows = torch.export.Dim("rows")
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: rows},)), str(tmp_path / "exported.pt2"))
    torch.jit.script(net).save(str(tmp_path / "script.pt"))
    torch.save(net, tmp_path / "module.pth")
    np.save(tmp_path / "x.npy", x.numpy())
    for file in ("exported.pt2", "script.pt", "module.pth"):
        added, _ = put(tmp_path / "models", tmp_path / file, example=tmp_path / "x.npy")
        model = load(Repository(tmp_path / "models"), added.model, "1")
        (output,) = model.predict({model.inputs[0].name: x.numpy()}).values()
        np.testing.assert_allclose(output, expected, atol=1e-5, err_msg=file)
        assert "torch.onnx" in added.converted["converter"]


@pytest.mark.slow
def test_keras_and_tensorflow(tmp_path):
    import keras

    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    both = keras.layers.Concatenate()([a, b])
    model = keras.Model([a, b], [keras.layers.Dense(2, name="p")(both), keras.layers.Dense(1, name="q")(a)])
    model.save(str(tmp_path / "two.keras"))
    model.export(str(tmp_path / "saved"), verbose=False)
    one = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(4), keras.layers.Dense(1)])
    one.save(str(tmp_path / "one.h5"))
    given = {"a": np.ones((5, 3), np.float32), "b": np.full((5, 2), 0.5, np.float32)}
    p, q = model.predict_on_batch([given["a"], given["b"]])
    for file in ("two.keras", "saved"):
        added, _ = put(tmp_path / "models", tmp_path / file)
        outputs = load(Repository(tmp_path / "models"), added.model, "1").predict(given)
        by_shape = {array.shape[1]: array for array in outputs.values()}
        np.testing.assert_allclose(by_shape[2], p, atol=1e-5)
        np.testing.assert_allclose(by_shape[1], q, atol=1e-5)
    put(tmp_path / "models", tmp_path / "one.h5")
    outputs = load(Repository(tmp_path / "models"), "one", "1").predict({"x": given["a"]})
    np.testing.assert_allclose(outputs["output"], one.predict_on_batch(given["a"]), atol=1e-5)


@pytest.mark.slow
def test_a_frozen_graph(tmp_path):
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], "x")
        tf.nn.softmax(tf.matmul(x, tf.constant([[1.0, 2.0], [3.0, 4.0]])), name="y")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    added, _ = put(tmp_path / "models", tmp_path / "graph.pb")
    assert "tf2onnx" in added.converted["converter"]
    outputs = load(Repository(tmp_path / "models"), "graph", "1").predict({"x": np.zeros((1, 2), np.float32)})
    assert outputs["y"].tolist() == [[0.5, 0.5]]
