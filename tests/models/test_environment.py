"""What a version locks is what its process runs on: what is here already, or an environment of its own."""

import asyncio
import subprocess
import sys
import threading
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from millstream import config, errors
from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.meter import Meter
from millstream.models import Manifest, Repository, environment, load
from millstream.models.apart import Programs
from millstream.types import Request, TensorSpec

HERE = Path(sys.executable)
INICONFIG = metadata.version("iniconfig")
MSGSPEC = metadata.version("msgspec")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return config.cache_folder() / "environments"


def python_for(folder, lock=None, **more):
    if lock is not None:
        (folder / "lock.txt").write_text(lock)
        more["requirements"] = "lock.txt"
    return environment.python_for(folder, Manifest(format="sklearn", file="m", **more))


def test_without_a_lock_it_is_this_python(tmp_path):
    assert python_for(tmp_path) == HERE
    assert python_for(tmp_path, python=f"3.{sys.version_info[1]}") == HERE


@pytest.mark.parametrize(
    "lock",
    [
        f"msgspec=={MSGSPEC}\n",
        f"# made by hand\nMsgSpec == {MSGSPEC}  # the codec\n\n",
        f"msgspec=={MSGSPEC} \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{'1' * 64}\n",
        f"--index-url https://example.org/simple\nmsgspec=={MSGSPEC}\n",
        "",
    ],
)
def test_what_is_installed_here_needs_no_environment(tmp_path, lock, cache):
    assert python_for(tmp_path, lock) == HERE
    assert not cache.exists()


@pytest.mark.parametrize(
    "line",
    [
        "msgspec",
        "msgspec>=0.18",
        "msgspec==0.*",
        "msgspec===0.18",
        "msgspec @ https://example.org/msgspec.whl",
        "-r other.txt",
        "-e .",
        "./msgspec",
        "--find-links /tmp",
        "msgspec==0.18,<1",
    ],
)
def test_what_is_not_locked_is_refused_in_a_sentence(tmp_path, line):
    with pytest.raises(errors.Misconfigured, match=r"lock.txt: .* is not locked: a version carries name==version"):
        python_for(tmp_path, f"numpy==1.0\n{line}\n")


@pytest.mark.parametrize(
    ("lock", "enough"),
    [
        (f"msgspec=={MSGSPEC}", True),
        (f"msgspec=={MSGSPEC}; python_version > '3'", False),
        (f"msgspec[toml]=={MSGSPEC}", False),
        ("msgspec==0.0.1", False),
        ("no-such-package==1.0", False),
    ],
)
def test_anything_cleverer_than_a_name_and_a_version_is_not_taken_as_installed(lock, enough):
    assert environment.satisfied(environment.read_lock(lock, "lock.txt")) is enough


def test_a_local_build_satisfies_its_version_and_no_other(monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda _: "2.13.0+cpu")
    for version, enough in (("2.13.0", True), ("2.13.0+cpu", True), ("2.13.0+cu130", False), ("2.13", False)):
        assert environment.satisfied(environment.read_lock(f"torch=={version}", "lock.txt")) is enough


def test_a_lock_that_is_gone_is_said(tmp_path):
    with pytest.raises(errors.Misconfigured, match="locked dependencies cannot be read"):
        python_for(tmp_path, requirements="gone.txt")


@pytest.mark.parametrize("python", ["3.99", "3.9", "2.7", "3", "latest", "3.11.4; rm"])
def test_a_python_that_is_not_here_is_said(tmp_path, python):
    with pytest.raises(errors.Misconfigured, match=r"Python 3\.99|say one from"):
        python_for(tmp_path, python=python)


def test_a_python_that_does_not_run_is_as_good_as_none(tmp_path, monkeypatch):
    (tmp_path / "python3.99").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.99").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(errors.Misconfigured, match=r"no working python3\.99 is on PATH"):
        python_for(tmp_path, python="3.99")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_version_gets_an_environment_of_its_own_once(tmp_path, cache):
    lock = "iniconfig==2.0.0\n"
    assert INICONFIG != "2.0.0", "the test wants a version that is not installed here"
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(python_for(tmp_path, lock))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1] != HERE
    homes = [path for path in cache.iterdir() if path.is_dir()]
    assert len(homes) == 1, "two builders of one lock made two environments"
    told = "import iniconfig, msgspec, numpy; from importlib.metadata import version as v; print(v('iniconfig'))"
    said = subprocess.run([found[0], "-c", told], capture_output=True, text=True, check=True, cwd="/")
    assert said.stdout.strip() == "2.0.0"
    (homes[0] / environment._WHOLE).unlink()
    (homes[0] / "bin" / "python").unlink()
    assert python_for(tmp_path, lock) == found[0] and found[0].exists(), "a half-built environment is built again"


OWN = """
from importlib.metadata import version
import numpy as np

class Told:
    inputs, outputs = {"x": "FP32[-1,1]"}, {"y": "BYTES[-1]"}

    def predict(self, inputs):
        return {"y": np.array([version("iniconfig")] * len(inputs["x"]), object)}
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_program_runs_on_what_its_version_locks_while_others_run_on_what_is_here(tmp_path):
    """Put, loaded by a real engine, and answered out of its own environment."""
    manifest = Manifest(
        format="python", file="told.py", code=("told.py",), entry="told:Told", requirements="lock.txt",
        inputs=(TensorSpec("x", "FP32", (-1, 1)),), outputs=(TensorSpec("y", "BYTES", (-1,)),),
    )  # fmt: skip
    repository, meter = Repository(tmp_path / "models"), Meter()
    for model, lock in (("own", b"iniconfig==2.0.0\n"), ("here", f"iniconfig=={INICONFIG}\n".encode())):
        repository.put(model, manifest, {"told.py": OWN.encode(), "lock.txt": lock})

    async def answers():
        programs = Programs(meter)
        engine = Engine(repository, SystemClock(), meter, load=partial(load, programs=programs))
        await engine.start()
        try:
            assert not any(view.problems for view in engine.views())
            x = np.zeros((2, 1), np.float32)
            return [(await engine.submit(Request(name, {"x": x}, 2))).outputs["y"].tolist() for name in ("own", "here")]
        finally:
            await engine.stop()
            programs.close()

    own, here = asyncio.run(answers())
    assert own == ["2.0.0"] * 2 and here == [INICONFIG] * 2


def test_a_lock_that_is_not_the_one_that_was_put_is_not_given_to_pip(tmp_path, cache):
    repository = Repository(tmp_path / "models")
    manifest = Manifest(format="python", file="told.py", code=("told.py",), requirements="lock.txt")
    repository.put("own", manifest, {"told.py": OWN.encode(), "lock.txt": b"iniconfig==2.0.0\n"})
    (repository.folder("own", "1") / "lock.txt").write_text("iniconfig==2.0.1\n")
    with pytest.raises(errors.Corrupt, match=r"lock\.txt"):
        load(repository, "own", "1", programs=Programs(Meter()))
    assert not cache.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("lock", "why"),
    [
        ("iniconfig==2.0.0.99", "No matching distribution found for iniconfig==2.0.0.99"),
        (f"iniconfig==2.0.0 --hash=sha256:{'0' * 64}", "(?i)hash"),
        ("python-dateutil==2.8.2", "the lock is not whole: python-dateutil 2.8.2 requires six"),
    ],
)
def test_what_pip_cannot_do_is_said_and_leaves_nothing(tmp_path, cache, lock, why):
    with pytest.raises(errors.Misconfigured, match=why):
        python_for(tmp_path, lock)
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_version_with_its_wheels_is_built_without_an_index(tmp_path):
    lock = "iniconfig==2.0.0\n"
    (tmp_path / "lock.txt").write_text(lock)
    manifest = Manifest(format="sklearn", file="m", requirements="lock.txt")
    fetched = environment.fetch_wheels(tmp_path, manifest, tmp_path / "fetched")
    assert {wheel.name.partition("-")[0] for wheel in fetched} == {"iniconfig", "msgspec", "numpy"}
    (tmp_path / "wheels").mkdir()
    with pytest.raises(errors.Misconfigured, match="No matching distribution"):
        python_for(tmp_path, lock + "# another key\n")
    for wheel in fetched:
        wheel.rename(tmp_path / "wheels" / wheel.name)
    assert python_for(tmp_path, lock + "# another key\n") != HERE
