"""Versions are whole and immutable; no policy change is lost; a message says which file, field and version."""

import multiprocessing
import threading
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

import onnx_models
from millstream import errors
from millstream.models import Batching, Canary, Guard, Manifest, Policy, Repository, manifest, policy
from millstream.models.traffic import previous, promote
from millstream.types import TensorSpec

PLAIN = Manifest(format="onnx", file="m")


def put(repository, model="ranker", content=b"x", **more):
    return repository.put(model, Manifest(format="onnx", file="m", **more), {"m": content})


def test_put_gives_growing_numbers_and_verifies(tmp_path):
    repository = Repository(tmp_path)
    (tmp_path / "big").write_bytes(b"y" * 100_000)
    assert put(repository) == "1"
    assert repository.put("ranker", PLAIN, {"m": tmp_path / "big", "more": b"z"}) == "2"
    assert repository.versions("ranker") == ["1", "2"]
    assert set(repository.verify("ranker", "2").digests) == {"m", "more"}
    assert (repository.folder("ranker", "2") / "m").read_bytes() == b"y" * 100_000


def test_versions_are_ordered_as_numbers(tmp_path):
    for name in ("9", "10", "2", "x", "01", ".put"):
        (tmp_path / "ranker" / name).mkdir(parents=True)
    assert Repository(tmp_path).versions("ranker") == ["2", "9", "10"]


def test_a_number_is_never_given_twice(tmp_path):
    repository = Repository(tmp_path)
    put(repository), put(repository)
    repository.change_policy("ranker", lambda p: msgspec.structs.replace(p, live="1"), "me", "back")
    repository.remove("ranker", "2")
    assert put(repository) == "3"


def test_a_version_in_use_is_not_removed(tmp_path):
    repository = Repository(tmp_path)
    put(repository)
    with pytest.raises(errors.Conflict, match="ranker 1 is the policy's live"):
        repository.remove("ranker", "1")


def test_concurrent_puts_never_collide(tmp_path):
    repository, given_numbers = Repository(tmp_path), []
    threads = [
        threading.Thread(target=lambda i=i: given_numbers.append((put(repository, content=b"%d" % i), i)))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(number) for number, _ in given_numbers) == list(range(1, 13))
    for number, i in given_numbers:
        assert (repository.folder("ranker", number) / "m").read_bytes() == b"%d" % i


def test_what_a_dead_writer_left_is_swept_away(tmp_path):
    (tmp_path / "ranker" / ".put").mkdir(parents=True)
    (tmp_path / "ranker" / ".put" / "m").write_bytes(b"half")
    repository = Repository(tmp_path)
    assert repository.versions("ranker") == []
    assert put(repository) == "1"
    assert not (tmp_path / "ranker" / ".put").exists()


def test_a_changed_or_missing_file_is_corrupt_with_both_digests(tmp_path):
    repository = Repository(tmp_path)
    put(repository)
    path = repository.folder("ranker", "1") / "m"
    path.write_bytes(b"X")
    with pytest.raises(errors.Corrupt, match=r"ranker/1/m: expected sha256:2d71.*got sha256:4b68"):
        repository.verify("ranker", "1")
    path.unlink()
    with pytest.raises(errors.Corrupt, match="gone"):
        repository.verify("ranker", "1")


def test_a_file_may_not_leave_its_folder(tmp_path):
    repository = Repository(tmp_path)
    for name in ("../x", "a/../../b", "a//b", "/etc/passwd", "", "model.toml"):
        with pytest.raises(errors.Misconfigured):
            repository.put("ranker", Manifest(format="onnx", file=name), {name: b""})
    assert not (tmp_path / "ranker").exists()
    for model in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(errors.NotFound, match="not a model name"):
            repository.versions(model)


def test_manifest_survives_the_disk(tmp_path):
    repository = Repository(tmp_path)
    whole = Manifest(
        format="onnx",
        file="m",
        inputs=(TensorSpec("x", "FP32", (-1, 2)),),
        outputs=(TensorSpec("y", "BYTES", (-1,)),),
        batching=Batching(16),
        example={"x": [[1.5, 2], [3, 4]]},
        features="abc",
        non_finite="pass",
        settings={"bits": 20},
        lineage={"from": "a run"},
    )
    version = repository.put("ranker", whole, {"m": b"x"})
    assert msgspec.structs.replace(repository.manifest("ranker", version), digests={}) == whole


def test_an_unknown_key_in_a_manifest_is_named(tmp_path):
    path = tmp_path / "ranker" / "1" / "model.toml"
    path.parent.mkdir(parents=True)
    path.write_text('format = "onnx"\nfile = "m"\nbatchin = {}\n')
    with pytest.raises(errors.Misconfigured, match=r"model\.toml.*batchin"):
        Repository(tmp_path).manifest("ranker", "1")


def test_a_broken_example_says_which_input():
    spec = (TensorSpec("x", "INT64", (-1, 2)),)
    with pytest.raises(errors.Misconfigured, match="'x' is no INT64 array"):
        manifest.example_arrays(Manifest(format="onnx", file="m", example={"x": [[1, 2], [3]]}), spec)
    with pytest.raises(errors.Misconfigured, match="no rows for input 'x'"):
        manifest.example_arrays(Manifest(format="onnx", file="m", example={"z": [[1, 2]]}), spec)


# What `open` makes of a path.


def test_open_takes_a_file_a_folder_of_files_and_a_repository(tmp_path):
    one = onnx_models.scaled(tmp_path / "files" / "a.onnx", 2)
    onnx_models.scaled(tmp_path / "files" / "b.onnx", 3)
    onnx_models.scaled(tmp_path / "models" / "ranker" / "7" / "model.onnx", 3)
    file, files, models = (Repository.open(path) for path in (one, one.parent, tmp_path / "models"))
    assert (file.models(), file.versions("a"), file.manifest("a", "1").file) == (["a"], ["1"], "a.onnx")
    assert files.models() == ["a", "b"]
    assert (models.models(), models.policy("ranker").live) == (["ranker"], "7")
    assert models.manifest("ranker", "7") == Manifest(format="onnx", file="model.onnx")
    with pytest.raises(errors.Misconfigured, match="folder of its own: models/a/1"):
        file.change_policy("a", lambda p: p, "me", "")
    with pytest.raises(errors.NotFound, match="there are: a, b"):
        files.versions("c")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "no such path; expected a .onnx file"),
        ("notes.md", "not a model file; expected"),
        ("empty", "no model in this folder; expected"),
        ("models/ranker", "serve the folder that holds it"),
    ],
)
def test_open_says_what_it_expected(tmp_path, path, said):
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "models" / "ranker" / "1").mkdir(parents=True)
    with pytest.raises(errors.Misconfigured, match=said):
        Repository.open(tmp_path / path)


# Policy.


@dataclass
class Disk:
    repository: Repository

    def write(self, text):
        (self.repository.root / "ranker" / "policy.toml").write_text(text)
        return self.repository.policy("ranker")


@pytest.fixture
def disk(tmp_path):
    repository = Repository(tmp_path)
    for _ in range(3):
        put(repository)
    return Disk(repository)


def test_without_a_file_the_highest_version_is_live(disk):
    assert disk.repository.policy("ranker") == Policy(live="3")


def test_a_person_may_write_numbers_or_text(disk):
    text = (
        'live = 1\ncanary = {version = 2, share = 0.05}\nsplit = {1 = 1, 3 = 2.5}\nshadow = [3]\nsticky_by = "user"\n'
    )
    expected = Policy(live="1", canary=Canary("2", 0.05), split={"1": 1, "3": 2.5}, shadow=("3",))
    assert disk.write(text) == expected
    assert disk.write(text.replace("= 1\n", '= "1"\n').replace("[3]", '["3"]')) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("live = 1\ncanry = {}", "line 2, 'canry = {}'.*canry"),
        ("live = 1\ncanary = {version = 2, share = 1.5}", r"line 2, .*share = 1\.5"),
        ("live = 1\nsplit = {1 = 0}", "split"),
        ("live = 9", "live names version 9, which does not exist .there are: 1, 2, 3"),
        ("live = 1\nshadow = [9]", "shadow names version 9"),
        ("live = 1\ncanary = {version = 9, share = 0.5}", "canary names version 9"),
        ("live = 1\ncanary = {version = 2, share = 0.5, guard = {p99 = 0.5}}", "wants `p99` from 1"),
        ("live = 1\ncanary = {version = 2, share = 0.5, guard = {error = 0.5}}", "unknown field `error`"),
        ("live = 1\n[canary]\nversion = 2\nshare = 0.5\n[canary.guard]\nrequests = 9", "`requests` of 200 or more"),
        ("live = 1\npin = 2", "pinned to 2; clear the pin first"),
        ("canary = {version = 2, share = 0.5}", "missing required field `live`"),
        ("live = true", "live = true"),
        ("live = ", "Invalid value"),
        ("live = 1\nlearning = 'off'", "line 2, .*'off'"),
        ("live = 1\nsticky_by = 'cookie'", "'cookie'"),
    ],
)
def test_a_policy_that_cannot_be_used_is_explained(disk, text, said):
    with pytest.raises(errors.Misconfigured, match=said) as caught:
        disk.write(text)
    assert "ranker/policy.toml" in str(caught.value)


def test_a_change_counts_says_who_and_leaves_the_file_when_it_is_not_valid(disk):
    after = disk.repository.change_policy(
        "ranker", lambda p: msgspec.structs.replace(p, live="2", pin="2"), "ann", "a try"
    )
    assert (after.version, after.live, after.who, after.why) == (1, "2", "ann", "a try")
    assert disk.repository.policy("ranker") == after
    for live in ("9", "1"):
        with pytest.raises(errors.Misconfigured, match="the new policy of ranker"):
            disk.repository.change_policy("ranker", lambda p, v=live: msgspec.structs.replace(p, live=v), "bob", "")
    assert disk.repository.policy("ranker") == after


versions = st.sampled_from(["1", "2", "3"])
guards = st.builds(
    Guard,
    errors=st.floats(0, 0.99),
    p99=st.just(0.0) | st.floats(1, 1000),
    drift=st.floats(0, 0.99),
    requests_min=st.integers(1, 1000),
    requests=st.integers(1000, 10**9),
    promote=st.booleans(),
)


@given(
    live=versions,
    canary=st.none() | st.builds(Canary, versions, st.floats(0, 1, exclude_min=True), st.none() | guards),
    split=st.dictionaries(versions, st.floats(1e-6, 1e6)),
    shadow=st.lists(versions, max_size=3).map(tuple),
    learning=st.sampled_from(["run", "paused"]),
    why=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_what_is_rendered_is_parsed_back(why, **fields):
    whole = Policy(version=4, why=why, **fields)
    try:
        policy.check(whole, "here", {"1", "2", "3"})
    except errors.Misconfigured:  # a canary that nobody could judge; tests/watch has those
        reject()
    assert policy.parse(policy.render(whole), "here", {"1", "2", "3"}) == whole


def _bump(root, times):
    repository = Repository(root)
    for _ in range(times):
        repository.change_policy("ranker", lambda p: msgspec.structs.replace(p, split={"1": p.version + 1}), "p", "")


def test_no_change_is_lost_between_processes_and_threads(disk):
    root = disk.repository.root
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_bump, args=(root, 20)) for _ in range(2)]
    workers += [threading.Thread(target=_bump, args=(root, 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    after = disk.repository.policy("ranker")
    assert after.version == 80
    assert after.split == {"1": 80}


def test_the_stamp_moves_with_policy_versions_and_files(disk):
    repository = disk.repository
    stamps = [repository.stamp("ranker")]
    repository.change_policy("ranker", lambda p: p, "me", "")
    stamps.append(repository.stamp("ranker"))
    put(repository)
    stamps.append(repository.stamp("ranker"))
    assert len(set(stamps)) == 3
    assert repository.stamp("ranker") == stamps[-1]
    before = repository.stamp("ranker", "1")
    (repository.folder("ranker", "1") / "m").write_bytes(b"longer")
    assert repository.stamp("ranker", "1") != before
    assert repository.stamp("nobody", "3") == ((0, 0, 0),)


def test_the_history_holds_every_policy_also_one_that_a_crash_kept_from_it(tmp_path):
    repository = Repository(tmp_path)
    for version in ("1", "2", "3"):
        put(repository)
        repository.change_policy("ranker", promote(version), who="ann", why=f"try {version}")
    history = tmp_path / "ranker" / "history.jsonl"
    assert [policy.live for policy in repository.history("ranker")] == ["1", "2", "3"]
    assert previous(repository, "ranker", repository.policy("ranker")) == "2"

    lines = history.read_bytes().splitlines(keepends=True)
    history.write_bytes(b"".join(lines[:-1])[:-1] + b'\n{"live":"3","ver')  # died while it noted the last one
    repository.change_policy("ranker", promote("1"), who="ann", why="back")
    assert [(policy.version, policy.live) for policy in repository.history("ranker")] == [
        (1, "1"),
        (2, "2"),
        (3, "3"),
        (4, "1"),
    ]


def test_nothing_was_live_before_the_first(tmp_path):
    repository = Repository(tmp_path)
    put(repository)
    repository.change_policy("ranker", promote("1"), who="ann", why="first")
    with pytest.raises(errors.NotFound, match="--to"):
        previous(repository, "ranker", repository.policy("ranker"))


def test_a_version_may_hold_folders_and_nothing_outside_its_own(tmp_path):
    repository = Repository(tmp_path)
    manifest = Manifest(format="tensorflow", file="saved_model")
    files = {"saved_model/saved_model.pb": b"graph", "saved_model/variables/variables.index": b"index"}
    version = repository.put("net", manifest, files)
    assert repository.verify("net", version).digests.keys() == files.keys()
    before = repository.stamp("net", version)
    below = repository.folder("net", version) / "saved_model" / "variables" / "variables.index"
    below.write_bytes(b"other")
    assert repository.stamp("net", version) != before
    with pytest.raises(errors.Corrupt, match="variables"):
        repository.verify("net", version)
