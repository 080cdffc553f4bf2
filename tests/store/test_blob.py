"""Files are whole or absent."""

import errno
import os

import pytest

from millstream import errors
from millstream.store import digest, write_atomic


def test_replaces_in_one_step_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "policy.toml"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["policy.toml"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path, monkeypatch, code):
    path = tmp_path / "policy.toml"
    write_atomic(path, b"old")

    def no_room(fd):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(errors.Full, match=r"policy\.toml.*free some space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["policy.toml"]


def test_other_failures_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "file", b"")


def test_the_digest_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert digest(tmp_path / "f") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
