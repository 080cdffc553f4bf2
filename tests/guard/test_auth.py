"""Keys open verbs of models; no file means anybody's data verbs; a broken file changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream import errors
from millstream.clock import FakeClock
from millstream.guard.auth import ANYBODY, DATA_VERBS, Keys, allowed, check, new_key
from millstream.meter import Meter
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


def limited(tmp_path: Path, clock: FakeClock, text: str, processes: int = 1) -> tuple[Keys, Meter]:
    path, meter = tmp_path / "keys.toml", Meter()
    path.write_text(text)
    return Keys.load(path, clock, meter, processes), meter


def spent(keys: Keys, name: str = "shop", most: int = 1000) -> int:
    """How many requests go through at this moment."""
    for at in range(most):
        try:
            keys.spend(Principal(name))
        except errors.Overloaded:
            return at
    return most


def test_a_rate_gives_a_burst_and_then_so_many_a_second(tmp_path: Path) -> None:
    clock = FakeClock()
    keys, meter = limited(tmp_path, clock, new_key("shop", rate=10.0, burst=25.0)[1] + new_key("free")[1])
    assert spent(keys) == 25 and spent(keys, "free") == 1000
    for _ in range(3):
        clock.advance(1.0)
        assert spent(keys) == 10
    clock.advance(3600.0)
    assert spent(keys) == 25
    with pytest.raises(errors.Overloaded, match="'shop' may send 10 requests a second") as refused:
        keys.spend(Principal("shop"))
    assert (refused.value.status, refused.value.code) == (429, "RESOURCE_EXHAUSTED")
    assert refused.value.retry_after_s == pytest.approx(0.1)
    assert meter.counter("millstream_rate_limited_total", "", {"key": "shop"}).value == 6


def test_processes_share_a_rate_and_the_burst_is_as_much_as_in_a_second(tmp_path: Path) -> None:
    clock = FakeClock()
    keys, _ = limited(tmp_path, clock, new_key("shop", rate=40.0)[1], processes=4)
    assert spent(keys) == 10
    clock.advance(1.0)
    assert spent(keys) == 10
    with pytest.raises(errors.Overloaded, match="40 requests a second, of which this process gives out its 1/4"):
        keys.spend(Principal("shop"))
    few, _ = limited(tmp_path, clock, new_key("shop", rate=1.0)[1], processes=4)
    assert spent(few) == 1
    clock.advance(4.0)
    assert spent(few) == 1


def test_a_file_that_is_read_again_gives_no_new_burst(tmp_path: Path) -> None:
    clock = FakeClock()
    key, entry = new_key("shop", rate=5.0, burst=100.0)
    keys, _ = limited(tmp_path, clock, entry)
    assert spent(keys) == 100
    (tmp_path / "keys.toml").write_text(entry.replace("rate = 5.0", "rate = 8.0"))
    clock.advance(1.0)
    keys.principal(key, loopback=True)
    assert spent(keys) == 5
    clock.advance(1.0)
    assert spent(keys) == 8


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("rate = -1.0", "rate wants requests a second"),
        ("burst = 5.0", "burst goes with it"),
        ("rate = inf", "rate wants requests a second"),
        ('rate = "fast"', "each .*key.* has name"),
    ],
)
def test_a_rate_that_is_none_is_refused(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(errors.Misconfigured, match=says):
        limited(tmp_path, FakeClock(), new_key("shop")[1] + more)


def test_keys_of_one_name_share_one_rate(tmp_path: Path) -> None:
    old, new = new_key("shop", rate=5.0)[1], new_key("shop", rate=5.0)[1]
    keys, _ = limited(tmp_path, FakeClock(), old + new)
    assert spent(keys) == 5
    with pytest.raises(errors.Misconfigured, match="share one rate"):
        limited(tmp_path, FakeClock(), old + new_key("shop", rate=6.0)[1])


def test_who_may_infer_may_describe_and_not_the_other_way_round() -> None:
    assert allowed(Principal("p", ("ranker:infer",)), "ranker", "describe")
    assert not allowed(Principal("p", ("ranker:infer",)), "speech", "describe")
    assert not allowed(Principal("p", ("ranker:describe",)), "ranker", "infer")
    assert not allowed(Principal("p", ("ranker:control", "*:outcomes")), "ranker", "describe")
