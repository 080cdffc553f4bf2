"""Keys open verbs of models; no file means anybody's data verbs; a broken file changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream import errors
from millstream.clock import FakeClock
from millstream.guard.auth import ANYBODY, DATA_VERBS, Keys, allowed, check, new_key
from millstream.types import Principal


def test_a_key_is_its_principal_and_the_file_does_not_hold_it(tmp_path: Path) -> None:
    shop, shop_entry = new_key("shop", ("ranker:infer", "*:outcomes"))
    admin, admin_entry = new_key('ad"min\\\n')
    path = tmp_path / "keys.toml"
    path.write_text(shop_entry + admin_entry)
    keys = Keys.load(path)
    assert shop not in path.read_text() and admin not in path.read_text()
    assert keys.principal(shop, loopback=False) == Principal("shop", ("ranker:infer", "*:outcomes"))
    assert keys.principal(admin, loopback=True) == Principal('ad"min\\\n', ("*:*",))


@pytest.mark.parametrize("key", [None, "", "ms_unknown", "\ud800", "x" * 1_000_000])
def test_with_a_file_nobody_is_let_in_without_a_known_key(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(new_key("shop")[1])
    for loopback in (True, False):
        with pytest.raises(errors.Unauthenticated):
            Keys.load(path).principal(key, loopback)


def test_the_digest_itself_is_not_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry := new_key("shop")[1])
    with pytest.raises(errors.Unauthenticated):
        Keys.load(path).principal(entry.split('sha256 = "')[1][:64], loopback=True)


def test_without_a_file_control_verbs_answer_on_this_machine_only() -> None:
    keys = Keys.load(None)
    near, far = keys.principal("whatever", loopback=True), keys.principal(None, loopback=False)
    for verb in DATA_VERBS:
        check(near, "ranker", verb)
        check(far, "ranker", verb)
    check(near, "ranker", "promote")
    with pytest.raises(errors.Forbidden, match=r"anonymous may not promote ranker.*from this machine"):
        check(far, "ranker", "promote")
    assert far is ANYBODY


names = st.sampled_from(["ranker", "speech", "infer", "promote", "*", ""])


@given(names, names, names, names)
def test_a_pattern_covers_its_model_and_verb_and_nothing_else(model: str, verb: str, asked: str, what: str) -> None:
    covers = model in ("*", asked) and verb in ("*", what)
    assert allowed(Principal("p", (f"{model}:{verb}",)), asked, what) == covers
    assert not allowed(Principal("p", ()), asked, what)


def test_forbidden_names_who_what_and_what_is_allowed() -> None:
    with pytest.raises(errors.Forbidden, match="shop may not infer speech; it may ranker:infer"):
        check(Principal("shop", ("ranker:infer",)), "speech", "infer")


def test_a_changed_file_is_read_again_and_a_broken_one_keeps_the_last_good_keys(tmp_path: Path) -> None:
    clock = FakeClock()
    path = tmp_path / "keys.toml"
    first, entry = new_key("first")
    second, other = new_key("second")
    path.write_text(entry)
    keys = Keys.load(path, clock)

    path.write_text(entry + other)
    with pytest.raises(errors.Unauthenticated):  # looked at most once a second
        keys.principal(second, loopback=True)
    clock.advance(1.0)
    assert keys.principal(second, loopback=True).name == "second"

    path.write_text("[[key]\n" + entry)
    clock.advance(1.0)
    assert keys.principal(first, loopback=True).name == "first"
    assert str(path) in keys.fault

    path.unlink()
    clock.advance(1.0)
    assert keys.principal(second, loopback=True).name == "second"
    assert "No such file" in keys.fault

    path.write_text(other)
    clock.advance(1.0)
    assert keys.principal(second, loopback=True).name == "second"
    assert keys.fault == ""
    with pytest.raises(errors.Unauthenticated):
        keys.principal(first, loopback=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[key]", "each .*key.* has name, sha256 and verbs"),
        ('[[key]]\nname = "a"\nverbs = []', "sha256"),
        ('[[key]]\nname = "a"\nsha256 = "00"\nverbs = []', "'a': sha256 wants 64 hex digits, got 2"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nverbs = ["infer"]', "model:verb.*got 'infer'"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nverbs = []\nkey = "oops"', "unknown field `key`"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nverbs = []\n' * 2, "the same key"),
    ],
)
def test_a_broken_file_at_the_start_is_refused_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(errors.Misconfigured, match=says):
        Keys.load(path)
    with pytest.raises(errors.Misconfigured, match="No such file"):
        Keys.load(tmp_path / "none.toml")
