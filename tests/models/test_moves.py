"""A roll back never makes things worse, whoever asks for it and how often; what is recorded is text on one line."""

import resource

import msgspec
import pytest

from millstream import errors
from millstream.clock import FakeClock
from millstream.models import Manifest, Repository
from millstream.models.traffic import Learning, Promote, RollBack, Split, TryOut, make


class House:
    """A repository with the versions 1 to 4 of a model, and no policy."""

    def __init__(self, root):
        self.clock = FakeClock(1e9)
        self.repository = Repository(root, clock=self.clock)
        self.file = root / "m" / "history.jsonl"
        for _ in range(4):
            self.repository.put("m", Manifest(format="onnx", file="f"), {"f": b"x"})

    def promote(self, *versions):
        for version in versions:
            make(self.repository, "m", "promote", Promote(version=version, who="ann"))

    def back(self, to=""):
        policy = make(self.repository, "m", "rollback", RollBack(to=to, who="bob", why="it answers nonsense"))
        assert policy.pin == policy.live
        return policy.live


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def test_of_two_people_who_roll_back_the_second_is_told_and_nothing_moves(house):
    house.promote("1", "3")
    assert house.back() == "1"
    house.clock.advance(60)
    make(house.repository, "m", "split", Split(shares={"1": 1}, who="eve", why="later"))
    with pytest.raises(errors.Conflict) as caught:
        house.back()
    said = "m is already rolled back to 1 by bob at 2001-09-09T01:46:40Z: it answers nonsense; name a version with --to"
    assert str(caught.value).startswith(said)
    after = house.repository.policy("m")
    assert (after.live, after.pin, after.version) == ("1", "1", 4)
    assert house.back(to="2") == "2"


def test_learning_that_was_paused_without_a_reason_says_that_a_person_did_it(house):
    for state, why, said in (("paused", "", "paused by hand"), ("run", "", "resumed by hand"), ("run", "ok", "ok")):
        make(house.repository, "m", "learning", Learning(state=state, who="ann", why=why))
        assert (house.repository.policy("m").why, house.repository.policy("m").who) == (said, "ann")


def test_a_roll_back_is_decided_on_the_policy_that_it_replaces(house, monkeypatch):
    house.promote("1", "3")
    change = house.repository.change_policy

    def somebody_is_faster(*args, **said):
        monkeypatch.setattr(house.repository, "change_policy", change)
        house.back()
        return change(*args, **said)

    monkeypatch.setattr(house.repository, "change_policy", somebody_is_faster)
    with pytest.raises(errors.Conflict, match="already rolled back to 1"):
        house.back()
    assert house.repository.policy("m").live == "1"


def test_what_was_rolled_away_from_comes_back_only_by_its_name(house):
    house.promote("1", "2", "3")
    assert house.back() == "2"
    house.promote("2")
    assert house.back() == "1", "not 3"
    house.promote("4")
    assert house.back() == "1"
    house.promote("1")
    with pytest.raises(errors.NotFound, match="--to"):
        house.back()
    house.promote("3", "4")
    assert house.back() == "3", "somebody promoted it again"


def test_where_the_history_has_none_the_next_lower_version_is_the_one_before(house):
    assert house.back() == "3", "the highest version was live, for want of a policy"
    house.promote("3")
    house.repository.remove("m", "2")
    assert house.back() == "1"
    house.promote("1")
    with pytest.raises(errors.NotFound, match="no version of m was live before 1"):
        house.back()


@pytest.mark.parametrize("bad", ["two\nlines", "\x1b[2Jgone", "\x00", "\u2028", "\u202eright to left", "\x9b31m"])
def test_what_terminals_act_on_is_not_recorded(house, bad):
    for said in ({"who": bad}, {"why": bad}):
        with pytest.raises(errors.BadInput, match="terminals act on"):
            make(house.repository, "m", "promote", Promote(version="1", **said))
    assert not house.file.exists()
    make(house.repository, "m", "promote", Promote(version="1", who="Zoë Ο’Brien", why="50\u00a0% besser 👩\u200d🔬"))


def test_a_change_is_recorded_with_its_time_and_older_ones_have_none(house):
    house.promote("1")
    house.file.write_bytes(b'\n{"version":1,"live":"1","who":"ann","why":"traffic promote"}')
    house.clock.jump(3661)
    house.promote("2")
    assert [policy.when for policy in house.repository.history("m")] == ["", "2001-09-09T02:47:41Z"]
    assert house.repository.policy("m").when == "2001-09-09T02:47:41Z"


def test_only_the_end_of_a_long_history_is_read(house, monkeypatch):
    house.promote("1", "2")
    line = house.file.read_bytes().splitlines()[-1]
    house.file.write_bytes((b"\n" + line.replace(b'"version":2', b'"version":1')) * 50_000 + b"\n" + line)
    from millstream.models import policy as policies

    read = []
    real = policies.read_line
    monkeypatch.setattr(policies, "read_line", lambda line, where: read.append(1) or real(line, where))
    assert [one.version for one in house.repository.history("m", 2)] == [1, 2]
    house.promote("3")
    assert len(read) < 10
    assert house.back() == "2"
    assert len(read) < 1100
    monkeypatch.undo()
    assert len(house.repository.history("m")) == 50_003, "lines that lie across blocks too"


def test_a_policy_that_could_not_be_noted_is_said_to_be_in_force_and_is_noted_by_the_next(house):
    house.promote("1")
    house.file.write_bytes(b"\n" * (1 << 16) + house.file.read_bytes())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # the policy has room, its history has none
    try:
        with pytest.raises(errors.Full, match=r"policy 2 of m is in force \(live 2\), do not ask again"):
            house.promote("2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert house.repository.policy("m").live == "2"
    house.promote("3")
    assert [(one.version, one.live) for one in house.repository.history("m")] == [(1, "1"), (2, "2"), (3, "3")]


def test_a_move_out_of_bounds_is_told_without_lines_of_a_file_that_is_not_there(house):
    for verb, move in (("split", Split(shares={"1": -1.0})), ("canary", TryOut(version="1", share=7.0))):
        with pytest.raises(errors.Misconfigured, match="the new policy of m: Expected `float`") as caught:
            make(house.repository, "m", verb, move)
        assert "line " not in str(caught.value) and "correct it" not in str(caught.value)
    assert not house.file.exists()
    assert msgspec.to_builtins(house.repository.policy("m")) == {"live": "4"}
