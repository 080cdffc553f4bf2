"""`models add`: what it says, what it writes, what it refuses, and that what fails leaves nothing."""

import json
import pickle
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import onnx_models
from millstream import errors
from millstream.cli import main
from millstream.meter import Meter
from millstream.models import Repository
from millstream.models.apart import Programs
from millstream.models.archive import pack
from millstream.models.manifest import Manifest, example_arrays
from millstream.models.model import load
from millstream.ops import examples
from millstream.ops.add import EXAMPLE_CELLS_MAX, Wish, add

OWN = """
import numpy as np

class Doubles:
    inputs = {"x": "FP32[-1,2]"}
    outputs = {"y": "FP32[-1,2]"}

    def __init__(self, folder):
        self.by = np.load(folder / "by.npy")

    def predict(self, inputs):
        return {"y": inputs["x"] * self.by}
"""
CHAIN = """
inputs = {"x": "FP32[-1,4]"}
outputs = {"y": "FP32[-1,4]"}

def call(models, x):
    return {"y": models.ranker(x=x)["y"]}
"""


def put(root, file, **more):
    """Add a file; gives what was added, and the sentences."""
    said = []
    return add(root, Wish(source=str(file), **more), said.append), said


def nothing(root):
    """Whether no version and nothing half-made lies there."""
    return not any(path.is_file() and path.name != ".put.lock" for path in root.rglob("*"))


@pytest.fixture(scope="module")
def estimator():
    random = np.random.default_rng(0)
    x = random.normal(size=(100, 3))
    return LogisticRegression().fit(x, (x[:, 0] > 0).astype(int))


@pytest.fixture
def pickled(tmp_path, estimator):
    path = tmp_path / "fraud.joblib"
    joblib.dump(estimator, path)
    return path


def test_an_onnx_file_becomes_a_version_with_tensors_digest_and_example(tmp_path):
    file = onnx_models.linear(tmp_path / "ranker.onnx", np.ones((3, 2)))
    root = tmp_path / "models"
    added, said = put(root, file, why="first try", instances=2)
    assert (added.model, added.version, added.role) == ("ranker", "1", "live")
    assert added.serve == f"millstream serve {root}"
    assert added.inputs == "x:FP32[-1,3]" and added.outputs == "y:FP32[-1,2]"
    manifest = Repository(root).verify("ranker", "1")
    assert manifest.example["x"] and manifest.digests["ranker.onnx"].startswith("sha256:")
    assert manifest.lineage["why"] == "first try" and manifest.lineage["digest"] == manifest.digests["ranker.onnx"]
    assert manifest.batching.instances == 2
    assert any("an ONNX model" in one for one in said) and any("rows join" in one for one in said)
    assert put(root, file)[0].version == "2"


def test_a_program_is_only_told_of_until_it_is_allowed(tmp_path, pickled):
    said = []
    with pytest.raises(errors.Misconfigured, match=r"is a program \(sklearn\).*sha256:.*--allow-code"):
        add(tmp_path / "models", Wish(source=str(pickled)), said.append)
    assert any("would import" in one and "LogisticRegression" in one for one in said)
    assert not (tmp_path / "models").exists()


def test_a_pickle_that_would_do_harm_does_none(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    said = []
    with pytest.raises(errors.Misconfigured, match="allow-code"):
        add(tmp_path / "models", Wish(source=str(tmp_path / "bomb.pkl")), said.append)
    assert not (tmp_path / "exploded").exists() and any("io.open" in one for one in said)


def test_a_pickled_estimator_is_tried_as_it_will_be_served(tmp_path, pickled, estimator):
    x = np.random.default_rng(1).normal(size=(6, 3))
    np.save(tmp_path / "rows.npy", x)
    root = tmp_path / "models"
    added, said = put(root, pickled, allow_code=True, example=tmp_path / "rows.npy", name="fraud-model")
    assert added.model == "fraud-model" and added.serve.endswith("--allow-code")
    assert said[-1] == "trying it as it will be served"
    repository = Repository(root)
    programs = Programs(Meter())
    try:
        model = load(repository, "fraud-model", "1", programs=programs)
        example = example_arrays(repository.manifest("fraud-model", "1"), model.inputs)
        np.testing.assert_allclose(example["x"], x[:4])  # rows of the file, to the last digit
        outputs = model.predict({"x": x.astype(example["x"].dtype)})
    finally:
        programs.close()
    np.testing.assert_allclose(outputs["probability"], estimator.predict_proba(x), rtol=1e-5)


def test_a_class_of_ones_own_brings_its_files(tmp_path):
    (tmp_path / "doubles.py").write_text(OWN)
    np.save(tmp_path / "by.npy", np.float32(2))
    root = tmp_path / "models"
    (tmp_path / "requirements.lock").write_text(f"numpy=={np.__version__}\n")
    added, _ = put(
        root,
        tmp_path / "doubles.py",
        allow_code=True,
        code=(tmp_path / "by.npy",),
        requirements=tmp_path / "requirements.lock",
    )
    manifest = Repository(root).verify("doubles", "1")
    assert added.format == "python" and manifest.code == ("doubles.py",)
    assert set(manifest.digests) == {"doubles.py", "by.npy", "requirements.lock"}
    assert manifest.requirements == "requirements.lock"


def test_a_version_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "doubles.py").write_text(OWN)
    root = tmp_path / "models"
    with pytest.raises(errors.Misconfigured, match=r"by\.npy"):
        put(root, tmp_path / "doubles.py", allow_code=True)
    assert nothing(root)


def test_a_version_that_fails_only_in_its_own_folder_leaves_nothing(tmp_path):
    elsewhere = OWN.replace('np.load(folder / "by.npy")', '2 if "millstream-add" in str(folder) else 1 / 0')
    (tmp_path / "doubles.py").write_text(elsewhere)
    root = tmp_path / "models"
    with pytest.raises(errors.Misconfigured, match="ZeroDivisionError"):
        put(root, tmp_path / "doubles.py", allow_code=True)
    assert nothing(root) and Repository(root).models() == []


def test_a_model_that_answers_nan_to_its_example_is_not_added(tmp_path):
    file = onnx_models.linear(tmp_path / "ranker.onnx", np.full((3, 2), np.nan))
    with pytest.raises(errors.Misconfigured, match="NaN"):
        put(tmp_path / "models", file)
    assert nothing(tmp_path / "models")


def test_a_chain_is_read_and_not_run(tmp_path):
    (tmp_path / "both.py").write_text(CHAIN)
    with pytest.raises(errors.Misconfigured, match=r"program \(chain\)"):
        put(tmp_path / "models", tmp_path / "both.py")
    added, said = put(tmp_path / "models", tmp_path / "both.py", allow_code=True)
    assert added.format == "chain" and added.inputs == "x:FP32[-1,4]" and any("its parts" in one for one in said)


def test_a_later_version_is_not_live_by_being_added(tmp_path):
    file = onnx_models.linear(tmp_path / "ranker.onnx", np.ones((3, 2)))
    root = tmp_path / "models"
    repository = Repository(root)
    assert put(root, file)[0].role == "live"
    first = repository.policy("ranker")
    assert (first.version, first.live, first.who) == (1, "1", "models add")
    added, said = put(root, file)
    assert added.role == "-" and said[-1].endswith(f"millstream traffic promote {root} ranker 2")
    assert repository.policy("ranker") == first

    for _ in range(2):  # a bare model, of which the highest version is live
        repository.put("bare", Manifest(format="onnx", file="m.onnx"), {"m.onnx": file})
    assert put(root, file, name="bare")[0].role == "-"
    assert repository.policy("bare").live == "2"


def test_what_fails_leaves_no_policy_behind(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(errors.Error):
        put(tmp_path / "models", tmp_path / "bad.onnx")
    assert nothing(tmp_path / "models")


def test_an_archive_is_added_as_it_was_packed(tmp_path):
    file = onnx_models.linear(tmp_path / "ranker.onnx", np.ones((3, 2)))
    put(tmp_path / "there", file, why="packed")
    pack(Repository(tmp_path / "there"), "ranker", "1", tmp_path / "ranker.millstream.zip")
    added, _ = put(tmp_path / "here", tmp_path / "ranker.millstream.zip", name="other")
    assert (added.model, added.version) == ("other", "1")
    assert Repository(tmp_path / "here").verify("other", "1").lineage["why"] == "packed"
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["other"]


def test_an_archive_with_a_program_wants_trust_too(tmp_path, pickled):
    put(tmp_path / "there", pickled, allow_code=True)
    pack(Repository(tmp_path / "there"), "fraud", "1", tmp_path / "fraud.millstream.zip")
    with pytest.raises(errors.Misconfigured, match=r"holds a program \(sklearn\).*--allow-code"):
        put(tmp_path / "here", tmp_path / "fraud.millstream.zip")
    assert not list((tmp_path / "here").iterdir())


def test_a_file_uri_is_an_address_like_any_other(tmp_path):
    file = onnx_models.linear(tmp_path / "my ranker.onnx", np.ones((3, 2)))
    assert put(tmp_path / "models", f"file://{file}")[0].model == "my-ranker"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gone.onnx", "no such file"),
        ("model.docx", r"\.docx is no model; expected .*\.onnx, \.pkl"),
        ("folder", "it has saved_model.pb"),
        ("broken.onnx", "not a whole ONNX model"),
        ("broken.py", "not Python"),
        ("notes.txt", "not what XGBoost or LightGBM saves"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path, name, sentence):
    (tmp_path / "folder").mkdir()
    for other in ("model.docx", "broken.onnx", "broken.py", "notes.txt"):
        (tmp_path / other).write_bytes(b"(((")
    with pytest.raises(errors.Error, match=sentence):
        put(tmp_path / "models", tmp_path / name)
    assert not (tmp_path / "models").exists()


def test_a_repository_that_cannot_take_versions_is_refused_first(tmp_path):
    file = onnx_models.linear(tmp_path / "bare" / "ranker.onnx", np.ones((3, 2)))
    with pytest.raises(errors.Misconfigured, match="bare files"):
        put(tmp_path / "bare", file)
    put(tmp_path / "models", file)
    with pytest.raises(errors.Misconfigured, match="one model with versions"):
        put(tmp_path / "models" / "ranker", file)
    with pytest.raises(errors.Misconfigured, match="is a file"):
        put(file, file)


def test_what_would_mean_nothing_is_refused(tmp_path):
    file = onnx_models.linear(tmp_path / "ranker.onnx", np.ones((3, 2)))
    with pytest.raises(errors.Misconfigured, match="--entry, --to means nothing"):
        put(tmp_path / "models", file, entry="net:Net", to_onnx=True)


def test_a_repository_is_found_by_a_relative_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.py").write_text(OWN.replace('np.load(folder / "by.npy")', "2"))
    put(Path("models"), "twice.py", allow_code=True)
    assert Repository(Path("models")).verify("twice", "1").code == ("twice.py",)


def test_an_example_too_large_for_a_toml_is_left_out(tmp_path):
    file = onnx_models.sums(tmp_path / "sums.onnx")
    np.save(tmp_path / "long.npy", np.zeros((1, EXAMPLE_CELLS_MAX + 1), np.float32))
    _, said = put(tmp_path / "models", file, example=tmp_path / "long.npy")
    assert any("zeros will warm" in one for one in said)
    assert not Repository(tmp_path / "models").manifest("sums", "1").example


def test_examples_come_in_many_files(tmp_path):
    x = np.array([[1.5, 2.0], [3.0, 4.0]])
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x=x)
    (tmp_path / "c.json").write_text('{"x": [[1.5, 2.0], [3.0, 4.0]]}')
    (tmp_path / "d.json").write_text("[[1.5, 2.0], [3.0, 4.0]]")
    tensor = {"name": "x", "datatype": "FP64", "shape": [2, 2], "data": [1.5, 2, 3, 4]}
    (tmp_path / "e.json").write_text(json.dumps({"inputs": [tensor]}))
    for name in ("a.npy", "b.npz", "c.json", "d.json", "e.json"):
        assert examples.read(tmp_path / name)["x"].tolist() == x.tolist(), name


def test_columns_of_a_table_keep_names_and_kinds(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "t.csv").write_text("age,income,city\n30,1.5,Rome\n40,2,Bern\n")
    parquet.write_table(
        pyarrow.table({"age": [30, 40], "income": [1.5, 2.0], "city": ["Rome", "Bern"]}), tmp_path / "t.parquet"
    )
    for name in ("t.csv", "t.parquet"):
        found = examples.read(tmp_path / name)
        assert [array.dtype.kind for array in found.values()] == ["i", "f", "O"]
        assert found["age"].tolist() == [30, 40] and found["city"].tolist() == ["Rome", "Bern"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("e.json", "{}", "expected"),
        ("e.json", "[1", "no example can be read"),
        ("e.json", '{"inputs": [{"name": "x", "datatype": "F32", "data": [1]}]}', "datatype 'F32' is none of"),
        ("e.csv", "a,b\n1\n", "line 2 has 1 cells, the names are 2"),
        ("e.csv", "a,b\n", "no rows"),
        ("e.npy", "nonsense", "no example can be read"),
        ("e.txt", "1", "an example is a"),
    ],
)
def test_an_example_that_cannot_be_read_is_refused_by_place(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(errors.BadInput, match=sentence):
        examples.read(tmp_path / name)


def test_the_columns_of_a_table_make_the_matrix_of_a_model(tmp_path):
    file = onnx_models.linear(tmp_path / "ranker.onnx", np.ones((2, 1)))
    (tmp_path / "t.csv").write_text("age,income\n30,1.5\n40,2\n")
    put(tmp_path / "models", file, example=tmp_path / "t.csv")
    assert Repository(tmp_path / "models").manifest("ranker", "1").example["x"] == [[30.0, 1.5], [40.0, 2.0]]


def test_an_example_that_does_not_fit_is_refused_with_what_would(tmp_path):
    file = onnx_models.linear(tmp_path / "ranker.onnx", np.ones((2, 1)))
    (tmp_path / "e.json").write_text('{"x": [[1, 2, 3]]}')
    with pytest.raises(errors.Misconfigured, match=r"'x' is \[1, 3\], the model takes x:FP32\[-1,2\]"):
        put(tmp_path / "models", file, example=tmp_path / "e.json")


def run(capsys, monkeypatch, *argv):
    """The command, as typed: (stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["millstream", *map(str, argv)])
    main()
    return capsys.readouterr()


def test_the_command_says_what_it_found_and_prints_one_line(tmp_path, capsys, monkeypatch):
    file = onnx_models.linear(tmp_path / "ranker.onnx", np.ones((3, 2)))
    root = tmp_path / "models"
    told = run(capsys, monkeypatch, "models", "add", root, file)
    assert told.out == f"ranker 1 is there (live). Serve it: millstream serve {root}\n"
    assert "takes x:FP32[-1,3]" in told.err
    told = run(capsys, monkeypatch, "models", "add", root, file, "--json")
    assert json.loads(told.out)["version"] == "2"
    shown = run(capsys, monkeypatch, "models", "show", root, "ranker", "1")
    assert 'format = "onnx"' in shown.out
    run(capsys, monkeypatch, "models", "remove", root, "ranker", "2")
    assert Repository(root).versions("ranker") == ["1"]
    with pytest.raises(SystemExit, match="the policy's live"):
        run(capsys, monkeypatch, "models", "remove", root, "ranker", "1")


def test_what_is_typed_wrong_is_told_at_once(tmp_path, capsys, monkeypatch):
    for argv in (["--input", "x:F32[3]"], ["--input", "x"], ["--setting", "safe_mode"]):
        with pytest.raises(SystemExit):
            run(capsys, monkeypatch, "models", "add", tmp_path, "m.onnx", *argv)
        told = capsys.readouterr().err
        assert f"argument {argv[0]}" in told, told


def test_a_program_given_to_serve_is_sent_to_models_add(pickled):
    with pytest.raises(errors.Misconfigured, match=f"millstream models add models {pickled}"):
        Repository.open(pickled)


def test_a_small_zip_that_unpacks_to_more_than_a_disk_is_read_to_a_bound(tmp_path):
    import tracemalloc
    import zipfile

    file = tmp_path / "bomb.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as held, held.open("bomb/data.pkl", "w") as to:
        for _ in range(256):
            to.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(errors.Misconfigured, match="--allow-code"):
            put(tmp_path / "models", file)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_errors_name_the_file_that_was_named(tmp_path):
    file = tmp_path / "torn.pkl"
    file.write_bytes(b"\x80\x04")
    with pytest.raises(errors.Misconfigured, match="not a whole pickle") as caught:
        put(tmp_path / "models", file, allow_code=True)
    assert str(file) in str(caught.value) and "millstream-add-" not in str(caught.value)
