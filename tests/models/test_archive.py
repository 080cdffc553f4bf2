"""An archive is one version, whole, and nothing in it is believed before it is checked."""

import hashlib
import shutil
import zipfile
from pathlib import Path

import msgspec
import pytest

import onnx_models
from millstream import config, errors
from millstream.cli import main
from millstream.models import Manifest, Repository, environment, load
from millstream.models.archive import pack, unpack
from millstream.models.source import open_source


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path / "models")
    made.put(
        "ranker",
        Manifest(format="onnx", file="model.onnx"),
        {"model.onnx": onnx_models.scaled(tmp_path / "made.onnx", 2.0)},
    )
    files = {"m/model.bin": b"w" * 1000, "m/deep/vocabulary.txt": b"a\nb\n", "ranker.py": b"class Ranker: ...\n"}
    manifest = Manifest(
        format="python", file="m", code=("ranker.py",), entry="ranker:Ranker", lineage={"made_by": "somebody"}
    )
    made.put("ranker", manifest, files)
    return made


def packed(repository, tmp_path, version="2"):
    return Path(pack(repository, "ranker", version, tmp_path / "ranker.zip").file)


def test_a_version_comes_out_as_it_went_in(repository, tmp_path):
    made = pack(repository, "ranker", "2", tmp_path / "ranker.zip")
    assert (made.files, made.version) == (4, "2")
    other = Repository(tmp_path / "other")
    assert unpack(Path(made.file), other) == ("ranker", "1")
    assert unpack(Path(made.file), other, "again") == ("again", "1")
    before, after = repository.verify("ranker", "2"), other.verify("ranker", "1")
    assert before == after
    for name in repository.files("ranker", "2"):
        assert (other.folder("ranker", "1") / name).read_bytes() == (
            repository.folder("ranker", "2") / name
        ).read_bytes()


def test_the_same_version_packs_to_the_same_bytes(repository, tmp_path):
    one = pack(repository, "ranker", "2", tmp_path / "one.zip")
    (repository.folder("ranker", "2") / "__pycache__").mkdir()
    (repository.folder("ranker", "2") / "__pycache__" / "ranker.pyc").write_bytes(b"compiled")
    shutil.copytree(tmp_path / "models", tmp_path / "copy")
    two = pack(Repository(tmp_path / "copy"), "ranker", "2", tmp_path / "two.zip")
    assert one.digest == two.digest


def test_without_a_number_the_live_version_is_packed(repository, tmp_path):
    repository.change_policy("ranker", lambda policy: msgspec.structs.replace(policy, live="1"), "me", "test")
    assert pack(repository, "ranker", "", tmp_path / "ranker.zip").version == "1"


def test_a_bare_file_is_packed_and_served_with_what_it_goes_on_in(tmp_path):
    (tmp_path / "bare").mkdir()
    onnx_models.scaled(tmp_path / "bare" / "linear.onnx", 2.0)
    (tmp_path / "bare" / "linear.onnx.data").write_bytes(b"weights")
    onnx_models.scaled(tmp_path / "bare" / "other.onnx", 3.0)
    pack(Repository.open(tmp_path / "bare"), "linear", "", tmp_path / "linear.zip")
    other = Repository(tmp_path / "other")
    assert unpack(tmp_path / "linear.zip", other) == ("linear", "1")
    assert other.files("linear", "1") == ["linear.onnx", "linear.onnx.data"]


def test_an_archive_is_served_from_the_cache_where_it_is_unpacked_once(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = packed(repository, tmp_path, "1")
    served = open_source(str(archive))
    assert served.models() == ["ranker"]
    assert load(served, "ranker", "1").inputs
    again = open_source(str(archive))
    assert again.root == served.root
    assert len(list((config.cache_folder() / "archives").iterdir())) == 1


def test_a_damaged_version_is_not_packed(repository, tmp_path):
    (repository.folder("ranker", "2") / "ranker.py").write_bytes(b"class Ranker: 1/0\n")
    with pytest.raises(errors.Corrupt, match=r"ranker.py: expected sha256"):
        packed(repository, tmp_path)
    assert not (tmp_path / "ranker.zip").exists()


def rewritten(archive, change):
    """The archive again, each entry as `change(name, bytes)` gives it: a list of (name, bytes)."""
    with zipfile.ZipFile(archive) as old:
        entries = [pair for name in old.namelist() for pair in change(name, old.read(name))]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries:
            new.writestr(name, content)
    return archive


def header(edit):
    def change(name, content):
        if name == "millstream.json":
            told = msgspec.json.decode(content)
            edit(told)
            content = msgspec.json.encode(told)
        return [(name, content)]

    return change


def described(content):
    return {"digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "bytes": len(content)}


EVIL = b"owned"
ATTACKS = {
    "a changed file": (
        lambda name, content: [(name, content.replace(b"class", b"clasz"))],
        errors.Corrupt,
        "ranker.py is not what was packed",
    ),
    "a longer file": (
        lambda name, content: [(name, content + b"#" * 50_000_000 if name.endswith("ranker.py") else content)],
        errors.Corrupt,
        "ranker.py is not what was packed",
    ),
    "a file too many": (
        lambda name, content: [(name, content)] + ([("files/extra", EVIL)] if name == "millstream.json" else []),
        errors.Corrupt,
        "its files are not those",
    ),
    "a file twice": (
        lambda name, content: [(name, content)] * (2 if name.endswith("ranker.py") else 1),
        errors.Corrupt,
        "its files are not those",
    ),
    "a file less": (
        lambda name, content: [] if name.endswith("ranker.py") else [(name, content)],
        errors.Corrupt,
        "its files are not those",
    ),
    "a later format": (
        header(lambda told: told.update(archive=2, files="other by then")),
        errors.Misconfigured,
        "written by a later Millstream",
    ),
    "no header": (
        lambda name, content: [] if name == "millstream.json" else [(name, content)],
        errors.BadInput,
        "is not its first entry",
    ),
    "a header that is none": (
        lambda name, content: [(name, b"{" if name == "millstream.json" else content)],
        errors.Corrupt,
        "millstream.json: ",
    ),
    "more than the machine holds": (
        header(lambda told: told["files"].update(big={"digest": "sha256:0", "bytes": 1 << 60})),
        errors.TooLarge,
        "over 100000 files or",
    ),
    "another manifest's digests": (
        header(lambda told: None),
        errors.Corrupt,
        "model.toml says sha256:",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_is_not_what_was_packed_adds_nothing(repository, tmp_path, attack):
    change, kind, why = ATTACKS[attack]
    archive = packed(repository, tmp_path)
    if attack == "another manifest's digests":
        other = b"class Ranker: evil = True\n"
        rewritten(archive, lambda name, content: [(name, other if name.endswith("ranker.py") else content)])
        change = header(lambda told: told["files"].update({"ranker.py": described(other)}))
    rewritten(archive, change)
    target = Repository(tmp_path / "target")
    with pytest.raises(kind, match=why):
        unpack(archive, target)
    assert not list((tmp_path / "target").rglob("*"))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "", ".", "a//b", "nul\0"])
def test_no_name_leaves_the_version(repository, tmp_path, name):
    archive = packed(repository, tmp_path)
    rewritten(archive, header(lambda told: told["files"].update({name: described(EVIL)})))
    with pytest.raises(errors.Misconfigured, match="is no file name for a version"):
        unpack(archive, Repository(tmp_path / "target"))
    assert not list(tmp_path.rglob("*evil*"))


def test_what_is_no_archive_is_said(tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(errors.BadInput, match="no whole archive of `millstream models pack`"):
        unpack(tmp_path / "text.zip", Repository(tmp_path / "target"))


def test_an_archive_cut_anywhere_adds_nothing(repository, tmp_path):
    whole = packed(repository, tmp_path).read_bytes()
    cut = tmp_path / "cut.zip"
    for length in range(0, len(whole), 61):
        cut.write_bytes(whole[:length])
        with pytest.raises((errors.BadInput, errors.Corrupt)):
            unpack(cut, Repository(tmp_path / "target"))
    assert not (tmp_path / "target" / "ranker").exists()


def test_the_command_packs_and_says_what(repository, tmp_path, capsys):
    main(["models", "pack", str(tmp_path / "models"), "ranker", "2", "-o", str(tmp_path / "r.zip"), "--json"])
    told = msgspec.json.decode(capsys.readouterr().out)
    assert (told["model"], told["version"], told["file"]) == ("ranker", "2", str(tmp_path / "r.zip"))
    assert unpack(tmp_path / "r.zip", Repository(tmp_path / "other")) == ("ranker", "1")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_with_its_wheels_it_runs_where_no_index_is_reached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = Manifest(format="sklearn", file="m", requirements="lock.txt")
    Repository(tmp_path / "models").put("own", manifest, {"m": b"x", "lock.txt": b"iniconfig==2.0.0\n"})
    pack(Repository(tmp_path / "models"), "own", "1", tmp_path / "own.zip", wheels=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    other = Repository(tmp_path / "other")
    unpack(tmp_path / "own.zip", other)
    found = other.verify("own", "1")
    assert sum(name.startswith("wheels/") for name in found.digests) == 3
    assert environment.python_for(other.folder("own", "1"), found).is_relative_to(tmp_path / "another machine")
