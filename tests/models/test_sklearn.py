"""Pickled estimators as they are found in the wild: what is read off them, and that they answer as they do at home."""

import os
import pickle
import signal
import sys
import warnings
from pathlib import Path

import joblib
import lightgbm
import msgspec
import numpy as np
import pandas
import pytest
import xgboost
from apart_models import children, programs, until
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from millstream import errors
from millstream.models import Manifest, Repository, load
from millstream.models.apart.inspect import look_into
from millstream.models.apart.pickles import UNREAD, imports_of
from millstream.models.runtimes import sklearn as sklearn_runtime
from millstream.ops.add import Wish, add
from millstream.types import TensorSpec

HERE = Path(sys.executable)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 5))
Y = (X[:, 0] + X[:, 1] > 0).astype(int)
NAMES = np.array(["no", "yes"])[Y]
FRAME = pandas.DataFrame(
    {"age": RANDOM.integers(18, 90, 200), "income": X[:, 0], "city": RANDOM.choice(["Oslo", "Rome", "Kyiv"], 200)}
)
TEXTS = ["a good film", "a bad film", "good", "bad", "very bad indeed"] * 10


def added(tmp_path, estimator, example=None, dump=joblib.dump, **more):
    """A repository with the estimator in it, as `models add` would put it, and what was found."""
    file = tmp_path / "m.pkl"
    if dump is joblib.dump:
        joblib.dump(estimator, file)
    else:
        file.write_bytes(dump(estimator))
    manifest = Manifest(format="sklearn", file="m.pkl", **more)
    found = look_into(tmp_path, manifest, example or {}, HERE)
    kept = {
        name: [cell.decode() if isinstance(cell, bytes) else cell for cell in array.tolist()]
        for name, array in found.example.items()
    }
    manifest = msgspec.structs.replace(manifest, inputs=found.inputs, outputs=found.outputs, example=kept)
    Repository(tmp_path / "models").put("m", manifest, {"m.pkl": file})
    return Repository(tmp_path / "models"), found


def answered(repository, inputs):
    with programs() as made:
        return load(repository, "m", "1", programs=made).predict(inputs)


def spec(name, datatype, *shape):
    return TensorSpec(name, datatype, shape)


@pytest.mark.parametrize("dump", [joblib.dump, pickle.dumps])
def test_a_pipeline_of_a_classifier_gives_label_and_probability(tmp_path, dump):
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    repository, found = added(tmp_path, pipeline, dump=dump)
    assert found.inputs == (spec("x", "FP64", -1, 5),)
    assert found.outputs == (spec("label", "INT64", -1), spec("probability", "FP64", -1, 2))
    assert "a Pipeline of StandardScaler, LogisticRegression, read with scikit-learn" in found.notes[0]
    got = answered(repository, {"x": X})
    np.testing.assert_array_equal(got["label"], pipeline.predict(X))
    np.testing.assert_array_equal(got["probability"], pipeline.predict_proba(X))


@pytest.mark.parametrize(
    ("estimator", "outputs"),
    [
        (LogisticRegression().fit(X, NAMES), [spec("label", "BYTES", -1), spec("probability", "FP64", -1, 2)]),
        (LinearRegression().fit(X, X[:, 0]), [spec("prediction", "FP64", -1)]),
        (LinearRegression().fit(X, X[:, :3]), [spec("prediction", "FP64", -1, 3)]),
        (RandomForestRegressor(5, n_jobs=-1).fit(X, X[:, 0]), [spec("prediction", "FP64", -1)]),
        (RandomForestClassifier(5, n_jobs=4).fit(X, np.stack([Y, 1 - Y], 1)), [spec("label", "INT64", -1, 2)]),
        (KMeans(3, n_init=1).fit(X), [spec("label", "INT64", -1)]),
        (IsolationForest(n_estimators=5).fit(X), [spec("label", "INT64", -1)]),
        (PCA(2).fit(X), [spec("transformed", "FP64", -1, 2)]),
        (
            GridSearchCV(LogisticRegression(), {"C": [1, 2]}, cv=2).fit(X, Y),
            [spec("label", "INT64", -1), spec("probability", "FP64", -1, 2)],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_outputs_are_named_for_what_an_estimator_does(tmp_path, estimator, outputs):
    repository, found = added(tmp_path, estimator)
    assert list(found.outputs) == outputs
    got = answered(repository, {"x": X})
    own = estimator.transform(X) if outputs[0].name == "transformed" else estimator.predict(X)
    if outputs[0].datatype == "BYTES":
        assert got["label"].tolist() == own.tolist()
    else:
        np.testing.assert_allclose(got[outputs[0].name], own, rtol=1e-5, atol=1e-5)


def boosted():
    small = X.astype(np.float32)
    warnings.simplefilter("ignore")
    yield "xgb classifier", xgboost.XGBClassifier(n_estimators=5, n_jobs=4).fit(small, Y), "probability"
    yield "xgb regressor", xgboost.XGBRegressor(n_estimators=5).fit(small, X[:, 0]), "prediction"
    yield "xgb booster", xgboost.train({"max_depth": 2}, xgboost.DMatrix(small, Y), 5), "prediction"
    yield "lgb classifier", lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, Y), "probability"
    yield "lgb regressor", lightgbm.LGBMRegressor(n_estimators=5, verbose=-1).fit(X, X[:, 0]), "prediction"
    yield "lgb booster", lightgbm.train({"verbose": -1}, lightgbm.Dataset(X, Y), 5), "prediction"


@pytest.mark.parametrize(("estimator", "output"), [pytest.param(*case[1:], id=case[0]) for case in boosted()])
def test_boosters_and_their_wrappers_answer_as_at_home(tmp_path, estimator, output):
    repository, found = added(tmp_path, estimator)
    assert found.inputs == (spec("x", "FP32" if "xgb" in type(estimator).__module__ else "FP64", -1, 5),)
    x = X.astype(np.float32) if found.inputs[0].datatype == "FP32" else X
    got = answered(repository, {"x": x})[output]
    if isinstance(estimator, xgboost.Booster):
        own = estimator.predict(xgboost.DMatrix(x))
    else:
        own = estimator.predict_proba(x) if output == "probability" else estimator.predict(x)
    np.testing.assert_allclose(got, own, rtol=1e-5)


def test_columns_that_are_told_apart_by_name_are_inputs_of_their_own(tmp_path):
    columns = ColumnTransformer([("numbers", StandardScaler(), ["age", "income"]), ("city", OneHotEncoder(), ["city"])])
    pipeline = make_pipeline(columns, LogisticRegression()).fit(FRAME, Y)
    repository, found = added(tmp_path, pipeline)
    assert found.inputs == (spec("age", "FP64", -1), spec("income", "FP64", -1), spec("city", "BYTES", -1))
    assert any("made up of the categories" in note for note in found.notes)
    inputs = {
        "age": FRAME["age"].to_numpy(np.float64),
        "income": FRAME["income"].to_numpy(),
        "city": FRAME["city"].to_numpy(object),
    }
    as_bytes = inputs | {"city": np.array([city.encode() for city in inputs["city"]], object)}
    for given in (inputs, as_bytes):
        got = answered(repository, given)
        np.testing.assert_array_equal(got["label"], pipeline.predict(FRAME))
        np.testing.assert_allclose(got["probability"], pipeline.predict_proba(FRAME), rtol=1e-6)
    with pytest.raises(errors.BadInput, match=r"refuses these values.*unknown categories"):
        answered(repository, inputs | {"city": np.full(200, "Atlantis", object)})


def test_an_example_with_columns_says_their_types(tmp_path):
    warnings.simplefilter("ignore")
    frame = FRAME.assign(city=FRAME["city"].astype("category"))
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(frame, Y)
    example = {name: FRAME[name].to_numpy()[:2] for name in ("age", "income")} | {
        "city": np.array(["Oslo", "Rome"], object)
    }
    repository, found = added(tmp_path, model, example)
    assert found.inputs == (spec("age", "INT64", -1), spec("income", "FP64", -1), spec("city", "BYTES", -1))
    inputs = {
        "age": FRAME["age"].to_numpy(),
        "income": FRAME["income"].to_numpy(),
        "city": FRAME["city"].to_numpy(object),
    }
    np.testing.assert_allclose(answered(repository, inputs)["probability"], model.predict_proba(frame), rtol=1e-6)


def test_numeric_columns_are_one_matrix_and_nothing_is_printed_a_call(tmp_path, caplog):
    caplog.set_level("INFO")
    frame = pandas.DataFrame(X, columns=list("abcde"))
    model = LogisticRegression().fit(frame, Y)
    repository, found = added(tmp_path, model)
    assert found.inputs == (spec("x", "FP64", -1, 5),)
    assert answered(repository, {"x": X})["label"].tolist() == model.predict(frame).tolist()
    assert "feature names" not in caplog.text


def test_a_model_of_text_takes_text(tmp_path):
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, [1, 0, 1, 0, 0] * 10)
    repository, found = added(tmp_path, pipeline, {"text": np.array(["good film"], object)})
    assert found.inputs == (spec("text", "BYTES", -1),)
    got = answered(repository, {"text": np.array([b"good", "bad"], object)})
    assert got["label"].tolist() == [1, 0]


def test_the_example_says_how_many_features_where_the_estimator_does_not(tmp_path):
    from sklearn.preprocessing import FunctionTransformer

    estimator = FunctionTransformer(np.log1p)
    with pytest.raises(errors.Misconfigured, match=r"does not say how many features it takes.*--example"):
        added(tmp_path, estimator)
    _, found = added(tmp_path, estimator, {"x": np.ones((2, 3))})
    assert found.inputs == (spec("x", "FP64", -1, 3),)
    assert found.outputs == (spec("transformed", "FP64", -1, 3),)


def test_what_is_no_estimator_is_refused_in_words(tmp_path):
    with pytest.raises(errors.Misconfigured, match=r"holds a builtins\.dict, which has neither predict nor transform"):
        added(tmp_path, {"model": LinearRegression().fit(X, Y)})


def test_only_what_the_manifest_names_is_computed(tmp_path):
    model = LogisticRegression().fit(X, Y)
    repository, found = added(tmp_path, model, outputs=(spec("probability", "FP64", -1, 2),))
    assert [one.name for one in found.outputs] == ["probability"]
    assert set(answered(repository, {"x": X})) == {"probability"}


class Trap:
    """A pickle that runs code: this one makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_runs_code_does_not_run_without_opt_in(tmp_path):
    trace = tmp_path / "it-ran"
    manifest = Manifest(
        format="sklearn", file="m.pkl", inputs=(spec("x", "FP32", -1, 1),), outputs=(spec("y", "FP32", -1),)
    )
    file = tmp_path / "m.pkl"
    file.write_bytes(pickle.dumps(Trap(trace)))
    repository = Repository(tmp_path / "models")
    repository.put("m", manifest, {"m.pkl": file})
    with pytest.raises(errors.Misconfigured, match=r"is a program.*(io|_io)\.open.*--allow-code"):
        load(repository, "m", "1")
    assert not trace.exists()
    imports_of(file)
    assert not trace.exists()
    with programs() as made, pytest.raises(errors.Misconfigured):
        load(repository, "m", "1", programs=made)
    assert trace.exists()  # the trap works, and only opt-in springs it
    assert not children()


def test_a_missing_module_is_told_with_how_to_get_it(tmp_path):
    file = tmp_path / "m.pkl"
    file.write_bytes(b"\x80\x04\x8c\x0bnot_there_x\x94\x8c\x05Model\x94\x93\x94)\x81\x94.")
    assert imports_of(file) == ["not_there_x.Model"]
    with pytest.raises(errors.Misconfigured, match=r"needs the module 'not_there_x'.*pip install.*`requirements`"):
        look_into(tmp_path, Manifest(format="sklearn", file="m.pkl"), {}, HERE)


# What a pickle would import.


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)])
def test_imports_of_joblib_files_are_read_to_the_end(tmp_path, compress):
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(3).fit(X, NAMES))
    joblib.dump(
        {"model": forest, "classes": np.array(["é", b"x", None], object), "last": Path("x")}, tmp_path / "m", compress
    )
    found = imports_of(tmp_path / "m")
    assert UNREAD not in found
    assert {"sklearn.ensemble._forest.RandomForestClassifier", "sklearn.tree._tree.Tree", "pathlib.PosixPath"} <= set(
        found
    )


@pytest.mark.parametrize("protocol", range(6))
def test_imports_of_pickles_of_every_protocol(tmp_path, protocol):
    (tmp_path / "m").write_bytes(pickle.dumps([LinearRegression().fit(X, Y), Trap("no")], protocol))
    found = imports_of(tmp_path / "m")
    assert "sklearn.linear_model._base.LinearRegression" in found
    assert "io.open" in found or "_io.open" in found
    assert UNREAD not in found
    assert not Path("no").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x05garbage", b"\x1f\x8bno", b"\x78\x9cno"])
def test_what_cannot_be_read_is_said(tmp_path, data):
    (tmp_path / "m").write_bytes(data)
    assert imports_of(tmp_path / "m")[-1] == UNREAD


def test_a_pickle_that_hides_its_end_shows_what_came_before(tmp_path):
    data = pickle.dumps([Path("x"), LinearRegression()])
    (tmp_path / "m").write_bytes(data[:-3])
    found = imports_of(tmp_path / "m")
    assert "pathlib.PosixPath" in found and found[-1] == UNREAD


def test_numbers_keep_the_precision_that_the_estimator_computed_them_in(tmp_path):
    large = 1e9 + np.arange(len(X)) / 8
    estimator = LinearRegression().fit(large[:, None], large)
    repository, _ = added(tmp_path, estimator)
    got = answered(repository, {"x": large[:, None]})["prediction"]
    np.testing.assert_array_equal(got, estimator.predict(large[:, None]))


def test_a_pickle_that_was_changed_after_it_was_checked_is_not_loaded(tmp_path):
    repository, _ = added(tmp_path, LinearRegression().fit(X, Y))
    manifest, folder = repository.manifest("m", "1"), repository.folder("m", "1")
    file = folder / manifest.file
    with programs() as made:
        model = load(repository, "m", "1", programs=made)
        before = file.read_bytes()
        file.write_bytes(pickle.dumps(LinearRegression().fit(X, 1 - Y)))
        os.kill(model.pids()[0], signal.SIGKILL)
        until(lambda: "differs from its digest" in model.problem)
        with pytest.raises(errors.Corrupt, match="differs from its digest"):
            sklearn_runtime.load(folder, manifest, "cpu")  # the bytes that it loads are compared, too
        file.write_bytes(before)
        until(model.pids)
        assert not model.problem


@pytest.mark.parametrize("left", [0, 5, 0.5, -40])
@pytest.mark.parametrize("compress", [0, 3])
def test_a_torn_pickle_is_said_to_be_one(tmp_path, left, compress):
    file = tmp_path / "m.joblib"
    joblib.dump(LinearRegression().fit(X, Y), file, compress=compress)
    data = file.read_bytes()
    file.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    with pytest.raises(errors.Misconfigured, match=r"m\.joblib is not a whole pickle .* copy or export it again"):
        sklearn_runtime.load(tmp_path, Manifest(format="sklearn", file=file.name), "cpu")


@pytest.mark.parametrize("suffix", ["json", "ubj", "txt", "xgb", "lgb"])
def test_boosters_in_the_files_of_their_own_libraries(tmp_path, suffix):
    file = tmp_path / f"m.{suffix}"
    if suffix in ("txt", "lgb"):
        own = lightgbm.train({"verbose": -1}, lightgbm.Dataset(X, Y), 5)
        own.save_model(file)
        x, expected = X, own.predict(X)
    else:
        x = X.astype(np.float32)
        own = xgboost.train({"max_depth": 2}, xgboost.DMatrix(x, Y), 5)
        file.write_bytes(own.save_raw("json" if suffix == "json" else "ubj"))
        expected = own.predict(xgboost.DMatrix(x))
    add(tmp_path / "models", Wish(source=str(file), allow_code=True), lambda _: None)
    repository = Repository(tmp_path / "models")
    assert repository.manifest("m", "1").format == "sklearn"
    np.testing.assert_allclose(answered(repository, {"x": x})["prediction"], expected, rtol=1e-6)
