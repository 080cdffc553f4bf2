"""What lies elsewhere is fetched once, whole or not at all, and no name from there leaves the folder."""

import threading

import fsspec
import pytest

import onnx_models
from millstream import errors
from millstream.models import load
from millstream.models.source import open_source
from millstream.store import remote


@pytest.fixture
def memory(monkeypatch):
    """An empty object store in this process, that counts what is fetched from it."""
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    system.fetched = []
    get = type(system).get_file

    def counted(path, to, **more):
        system.fetched.append(path)
        return get(system, path, to, **more)

    monkeypatch.setattr(system, "get_file", counted)
    return system


def test_paths_are_no_addresses():
    for where in ("s3://bucket/models", "gs://b", "memory://m", "file:///tmp/m", "models:/ranker/3", "models:/r@live"):
        assert remote.is_remote(where), where
    for where in ("models", "./models:1", "/srv/models", "model.onnx", "C:/models", "models/ranker/3"):
        assert not remote.is_remote(where), where


def test_a_file_on_this_machine_is_not_copied(tmp_path):
    (tmp_path / "a b.onnx").write_bytes(b"x")
    assert remote.fetch(f"file://{tmp_path}/a%20b.onnx", tmp_path / "into") == tmp_path / "a b.onnx"
    assert not (tmp_path / "into").exists()


def test_a_folder_is_fetched_once_until_it_changes(memory, tmp_path):
    memory.pipe({"/models/ranker/1/model.onnx": b"one", "/models/ranker/policy.toml": b"live = 1\n"})
    found = remote.fetch("memory://models", tmp_path)
    assert found.name == "models"
    assert (found / "ranker" / "1" / "model.onnx").read_bytes() == b"one"
    assert remote.fetch("memory://models", tmp_path) == found
    assert len(memory.fetched) == 2
    memory.pipe("/models/ranker/2/model.onnx", b"two")
    newer = remote.fetch("memory://models", tmp_path)
    assert newer != found and (newer / "ranker" / "2" / "model.onnx").read_bytes() == b"two"
    assert found.exists(), "a process may still serve what it fetched before"
    for number in range(4):
        memory.pipe("/models/ranker/2/model.onnx", b"two" * number + b"x")
        remote.fetch("memory://models", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(list(next(tmp_path.iterdir()).iterdir())) == remote.KEPT


def test_a_file_alone_keeps_its_name(memory, tmp_path):
    memory.pipe("/models/ranker.onnx", b"one")
    found = remote.fetch("memory://models/ranker.onnx", tmp_path)
    assert found.name == "ranker.onnx" and found.read_bytes() == b"one"


def test_a_repository_elsewhere_is_served(memory, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory.pipe("/models/ranker/1/model.onnx", onnx_models.scaled(tmp_path / "m.onnx", 2.0).read_bytes())
    repository = open_source("memory://models")
    assert repository.models() == ["ranker"]
    assert load(repository, "ranker", "1").inputs


def test_what_is_not_there_is_said_at_once(memory, tmp_path):
    with pytest.raises(errors.NotFound, match="memory://nothing: nothing there"):
        remote.fetch("memory://nothing", tmp_path)


def test_a_fault_that_passes_is_tried_again_and_one_that_stays_is_said(memory, tmp_path, monkeypatch):
    memory.pipe("/models/ranker.onnx", b"one")
    get, faults = memory.get_file, [1, 1]

    def failing(path, to, **more):
        if faults:
            faults.pop()
            raise TimeoutError("no answer")
        return get(path, to, **more)

    monkeypatch.setattr(memory, "get_file", failing)
    assert remote.fetch("memory://models/ranker.onnx", tmp_path / "one").read_bytes() == b"one"
    faults += [1] * remote.TRIES
    with pytest.raises(errors.Misconfigured, match="not to be had after 3 tries: no answer"):
        remote.fetch("memory://models/ranker.onnx", tmp_path / "two")
    assert not faults, "it was tried more often than it may"
    assert not list(next((tmp_path / "two").iterdir()).iterdir()), "something half stayed"


def test_what_changes_while_it_is_fetched_is_fetched_again(memory, tmp_path, monkeypatch):
    memory.pipe({"/models/a": b"old", "/models/b": b"old"})
    get, changes = memory.get_file, [b"newer"]

    def changing(path, to, **more):
        get(path, to, **more)
        if changes:
            memory.pipe({"/models/a": changes[0], "/models/b": changes.pop()})

    monkeypatch.setattr(memory, "get_file", changing)
    found = remote.fetch("memory://models", tmp_path)
    assert (found / "a").read_bytes() == (found / "b").read_bytes() == b"newer"


def test_a_file_that_comes_short_is_not_taken(memory, tmp_path, monkeypatch):
    memory.pipe("/models/ranker.onnx", b"whole")
    monkeypatch.setattr(memory, "get_file", lambda path, to: open(to, "wb").close())
    with pytest.raises(errors.Misconfigured, match="came with 0 of 5 bytes"):
        remote.fetch("memory://models/ranker.onnx", tmp_path)


@pytest.mark.parametrize("name", ["../../evil", "a/../../../evil", "a\\..\\evil"])
def test_no_name_leaves_the_folder(memory, tmp_path, monkeypatch, name):
    memory.pipe("/models/fine", b"x")
    listed = {f"/models/{name}": {"name": "/models/fine", "size": 1, "type": "file"}}
    monkeypatch.setattr(memory, "find", lambda path, detail: listed)
    with pytest.raises(errors.Misconfigured, match="is no name for a file of a model"):
        remote.fetch("memory://models", tmp_path / "into")
    assert not list(tmp_path.rglob("*evil*"))


def test_two_that_fetch_the_same_end_with_one(memory, tmp_path):
    memory.pipe({f"/models/{number}": b"x" * 1000 for number in range(50)})
    found = []
    threads = [threading.Thread(target=lambda: found.append(remote.fetch("memory://models", tmp_path))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1] and len(list(found[0].iterdir())) == 50


def test_a_package_that_is_missing_is_named_with_its_install_line(tmp_path, monkeypatch):
    real = remote.importlib.import_module

    def without(name):
        if name.split(".")[0] in ("mlflow", "fsspec"):
            raise ImportError(f"no {name}")
        return real(name)

    monkeypatch.setattr(remote.importlib, "import_module", without)
    with pytest.raises(errors.Missing, match=r"pip install 'millstream\[s3\]'"):
        remote.fetch("s3://bucket/models", tmp_path)
    with pytest.raises(errors.Missing, match=r"pip install 'millstream\[mlflow\]'"):
        remote.fetch("models:/ranker/1", tmp_path)
    monkeypatch.undo()
    with pytest.raises((errors.Missing, errors.Misconfigured), match="nowhere://x"):
        remote.fetch("nowhere://x", tmp_path)


@pytest.mark.parametrize("uri", ["models:/ranker", "models:/ranker/latest", "models:/", "models:/a/b/3"])
def test_an_address_of_no_version_is_refused(tmp_path, uri):
    with pytest.raises(errors.BadInput, match="expected models:/NAME/VERSION or models:/NAME@ALIAS"):
        remote.fetch(uri, tmp_path)


@pytest.mark.slow
def test_s3_is_spoken(tmp_path, monkeypatch):
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        fsspec.config.conf.pop("s3", None)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("millstream-test")
        model = onnx_models.scaled(tmp_path / "m.onnx", 2.0).read_bytes()
        system.pipe("millstream-test/models/ranker/1/model.onnx", model)
        repository = open_source("s3://millstream-test/models")
        assert repository.models() == ["ranker"] and load(repository, "ranker", "1").inputs
        assert open_source("s3://millstream-test/models").root == repository.root
        system.pipe("millstream-test/models/ranker/2/model.onnx", model)
        assert open_source("s3://millstream-test/models").versions("ranker") == ["1", "2"]
        with pytest.raises(errors.NotFound):
            open_source("s3://millstream-test/elsewhere")
    finally:
        server.stop()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of MLflow in a database, and a function that registers a folder in it: the version's number."""
    import mlflow

    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    uri = f"sqlite:///{tmp_path / 'registry.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = mlflow.MlflowClient()
    client.create_registered_model("ranker")

    def register(folder, alias=""):
        version = client.create_model_version("ranker", str(folder)).version
        if alias:
            client.set_registered_model_alias("ranker", alias, version)
        return version

    yield register
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


FLAVORS = {
    "onnx: {data: model.onnx}": "model.onnx",
    "python_function: {loader_module: mlflow.sklearn}\n  sklearn: {pickled_model: model.pkl}": "model.pkl",
    "pytorch: {model_data: data}": "data/model.pth",
    "keras: {data: data}": "data/model.keras",
    "tensorflow: {data: data, model_type: keras, keras_model_file_extension: .h5}": "data/model.h5",
    "tensorflow: {saved_model_dir: tfmodel}": "tfmodel/saved_model.pb",
    "xgboost: {data: model.ubj}": "model.ubj",
    "lightgbm: {data: model.lgb}": "model.lgb",
}


def saved(folder, flavors, file):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(file.encode())
    (folder / "MLmodel").write_text(f"artifact_path: model\nflavors:\n  {flavors}\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("flavors", FLAVORS)
def test_a_version_of_mlflow_is_fetched_as_its_model_file(registry, tmp_path, flavors):
    file = FLAVORS[flavors]
    version = registry(saved(tmp_path / "saved", flavors, file), alias="champion")
    found = remote.fetch(f"models:/ranker/{version}", tmp_path / "into")
    file_itself = found / "saved_model.pb" if found.is_dir() else found
    assert file_itself.as_posix().endswith(f"/{file}") and file_itself.read_bytes() == file.encode()
    assert remote.fetch("models:/ranker@champion", tmp_path / "into").name == found.name


@pytest.mark.slow
def test_an_alias_that_moves_is_followed_and_nothing_is_fetched_twice(registry, tmp_path, monkeypatch):
    import mlflow

    registry(saved(tmp_path / "one", "onnx: {data: a.onnx}", "a.onnx"), alias="champion")
    first = remote.fetch("models:/ranker@champion", tmp_path / "into")
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.artifacts, "download_artifacts", None)
        assert remote.fetch("models:/ranker@champion", tmp_path / "into") == first
    registry(saved(tmp_path / "two", "onnx: {data: b.onnx}", "b.onnx"), alias="champion")
    assert remote.fetch("models:/ranker@champion", tmp_path / "into").name == "b.onnx"


@pytest.mark.slow
def test_what_mlflow_does_not_have_or_cannot_be_served_is_said(registry, tmp_path):
    with pytest.raises(errors.NotFound, match="models:/ranker/7: nothing there"):
        remote.fetch("models:/ranker/7", tmp_path / "into")
    with pytest.raises(errors.NotFound, match="models:/ranker@nobody: nothing there"):
        remote.fetch("models:/ranker@nobody", tmp_path / "into")
    version = registry(saved(tmp_path / "one", "python_function: {loader_module: mine}", "mine.py"))
    with pytest.raises(errors.Misconfigured, match="flavors python_function: none has a file that is served here"):
        remote.fetch(f"models:/ranker/{version}", tmp_path / "into")


@pytest.mark.slow
def test_an_onnx_file_in_mlflow_is_served_under_its_models_name(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "saved").mkdir()
    saved(tmp_path / "saved", "onnx: {data: model.onnx}", "model.onnx")
    onnx_models.scaled(tmp_path / "saved" / "model.onnx", 2.0)
    registry(tmp_path / "saved", alias="champion")
    repository = open_source("models:/ranker@champion")
    assert repository.models() == ["ranker"] and load(repository, "ranker", "1").inputs
