"""`millstream keys`: a key is shown once, its digest is written down, and nobody's change is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from millstream import errors
from millstream.cli import main
from millstream.guard.auth import Keys
from millstream.types import Principal


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a command prints; its sentence where it fails."""
    capsys.readouterr()
    try:
        main([str(one) for one in argv])
    except SystemExit as end:
        return str(end.code)
    return capsys.readouterr().out


def new(capsys: pytest.CaptureFixture[str], path: Path, name: str, *more: object) -> str:
    key: str = json.loads(call(capsys, "keys", "new", name, "--json", "-f", path, *more))["key"]
    return key


def test_a_new_key_opens_what_was_said_and_is_not_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.toml"
    shop = new(capsys, path, "shop", "--may", "ranker:infer", "*:outcomes", "--rate", 5)
    admin = new(capsys, path, "admin", "--may", "*:*")
    assert shop not in path.read_text() and admin not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    keys = Keys.load(path)
    assert keys.principal(shop, loopback=True) == Principal("shop", ("ranker:infer", "*:outcomes"))
    for _ in range(5):
        keys.spend(Principal("shop"))
    with pytest.raises(errors.Overloaded):
        keys.spend(Principal("shop"))
    listed = json.loads(call(capsys, "keys", "list", "--json", "-f", path))
    assert [one["name"] for one in listed] == ["shop", "admin"] and listed[0]["rate"] == 5.0
    assert "shop" in call(capsys, "keys", "list", "-f", path)


def test_a_revoked_key_is_gone_and_comments_and_the_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.toml"
    keys = {name: new(capsys, path, name, "--may", "*:infer") for name in ("a", "b", "c")}
    path.write_text("# ours\n" + path.read_text().replace('[[key]]\nname = "c"', '# of c\n[[ key ]]  # c\nname = "c"'))
    path.chmod(0o640)
    call(capsys, "keys", "revoke", "b", "-f", path)
    left = Keys.load(path)
    assert [left.principal(keys[name], True).name for name in "ac"] == ["a", "c"]
    with pytest.raises(errors.Unauthenticated):
        left.principal(keys["b"], True)
    assert "# ours" in path.read_text() and "# of c" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640


def test_mistakes_are_said_and_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    assert "No such file" in call(capsys, "keys", "list", "-f", path)
    new(capsys, path, "shop", "--may", "*:infer")
    before = path.read_text()
    assert "there is a key 'shop' already" in call(capsys, "keys", "new", "shop", "--may", "*:*", "-f", path)
    assert "model:verb" in call(capsys, "keys", "new", "x", "--may", "infer", "-f", path)
    assert "burst goes with it" in call(capsys, "keys", "new", "x", "--may", "*:*", "--burst", 3, "-f", path)
    assert "no key 'nobody'; there is shop" in call(capsys, "keys", "revoke", "nobody", "-f", path)
    assert "make the folder first" in call(capsys, "keys", "new", "x", "--may", "*:*", "-f", tmp_path / "no" / "k")
    assert path.read_text() == before
    path.write_text(f'key = [{{name = "shop", sha256 = "{"0" * 64}", verbs = []}}]')
    assert "remove 'shop' by hand" in call(capsys, "keys", "revoke", "shop", "-f", path)


def test_people_who_make_keys_at_once_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    command = [sys.executable, "-m", "millstream", "keys", "new", "--may", "*:infer", "-f", str(path)]
    made = [subprocess.Popen([*command, f"k{at}"], stdout=subprocess.DEVNULL) for at in range(4)]
    assert [one.wait(60) for one in made] == [0] * 4
    assert path.read_text().count("[[key]]") == 4


def test_a_link_to_the_file_stays_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link.toml").symlink_to("real.toml")
    new(capsys, tmp_path / "link.toml", "shop", "--may", "*:infer")
    assert (tmp_path / "link.toml").is_symlink() and "shop" in (tmp_path / "real.toml").read_text()
