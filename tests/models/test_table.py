"""The table of tokens: who is in, who leaves, what servers hold; its learning is plain FTRL's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_house import stream

from millstream import errors
from millstream.models.online import Ftrl, FtrlTableSettings, Settings, begin
from millstream.models.online.table import FtrlTable, ServedFtrlTable

NOTHING = np.empty(0, np.float32)


def table(width: int = 1, **how: int) -> FtrlTable:
    made = begin("ftrl_table", FtrlTableSettings(bits=10, **{"seen": 1, "keep": 0} | how), width)  # type: ignore[arg-type]
    assert isinstance(made, FtrlTable)
    return made


def column(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.uint32)[:, None]


def learn(learner: FtrlTable, tokens: np.ndarray, label: float = 1.0) -> None:
    learner.learn(tokens, np.full(len(tokens), label, np.float32))


def tokens_in(learner: FtrlTable) -> set[int]:
    found = learner._table["token"]
    return set(found[found != 0].tolist())


def test_without_collisions_it_is_ftrl_bit_for_bit() -> None:
    """Distinct low bits for the one, whole tokens for the other; 600 tokens in 1024 places meet on the way."""
    tokens, labels, weights = stream(2000, vocabulary=600)
    distinct, index = np.unique(tokens, return_inverse=True)
    small = np.arange(len(distinct), dtype=np.uint32)[index.reshape(tokens.shape)]
    hashed, whole = Ftrl(Settings(bits=10), 5), table(5)
    assert whole.learn(tokens, labels, weights).tobytes() == hashed.learn(small, labels, weights).tobytes()
    assert tokens_in(whole) == set(distinct[1:].tolist())
    served = whole.served().weights()
    for token, weight in zip(distinct.tolist(), hashed.weights()[: len(distinct)].tolist(), strict=True):
        assert served.get(token, 0.0) == weight


def test_tokens_that_share_a_slot_have_weights_of_their_own() -> None:
    learner = table()
    tokens = column(5, 5 + 1024, 5 + 2048)
    for _ in range(30):
        learner.learn(tokens, np.array([1, 0, 1], np.float32))
    p = learner.predict({"tokens": tokens})["probability"]
    assert p[0] > 0.7 and p[1] < 0.3 and p[2] > 0.7


@pytest.mark.parametrize("seen", [2, 5, 20])
def test_a_token_gets_in_once_in_so_many_rows(seen: int) -> None:
    often = np.arange(1, 301, dtype=np.uint32) * 7919
    learner = table(seen=seen)
    learn(learner, column(*often.tolist()))
    assert learner.held == pytest.approx(300 / seen, abs=3.5 * (300 / seen) ** 0.5)
    for _ in range(seen - 1):
        learn(learner, column(*often.tolist()))
    assert learner.held == pytest.approx(300 * (1 - (1 - 1 / seen) ** seen), abs=35)


def test_who_is_not_in_answers_nothing_and_learns_nothing() -> None:
    learner = table(seen=1000)
    tokens = column(*range(1, 50))
    learn(learner, tokens)
    assert learner.held < 5
    outside = column(*sorted(set(range(1, 50)) - tokens_in(learner)))
    assert (learner.predict({"tokens": outside})["probability"] == 0.5).all()


@pytest.mark.parametrize("keep", [20, 100, 5000])
def test_a_token_leaves_between_keep_and_twice_keep_rows_after_its_last(keep: int) -> None:
    learner = table(keep=keep)
    random = np.random.default_rng(3)
    last: dict[int, int] = {}
    for row in range(1, 3 * keep + 200):
        token = int(random.integers(1, 300)) * 1_000_003 % 2**32
        learn(learner, column(token))
        last[token] = row
        if row % 37 == 0:
            there = tokens_in(learner)
            assert there == {t for t in last if t in there}
            assert all(t in there for t, at in last.items() if row - at <= keep)
            assert all(t not in there for t, at in last.items() if row - at > 2 * keep)
    assert learner.held == len(tokens_in(learner))


def test_a_full_table_lets_nobody_in_until_somebody_leaves() -> None:
    learner = table(keep=2000)
    learn(learner, column(*range(1, 769)))
    assert learner.held == 768 == 1024 * 3 // 4 and learner.turned_away == 0
    before = learner.predict({"tokens": column(1)})["probability"]
    for _ in range(2):
        learn(learner, column(5000, 1))
    assert learner.held == 768 and learner.turned_away == 2 and 5000 not in tokens_in(learner)
    assert learner.predict({"tokens": column(1)})["probability"] > before, "who is in goes on learning"
    for _ in range(4100):
        learn(learner, column(1))
    learn(learner, column(5000))
    assert tokens_in(learner) == {1, 5000} and learner.turned_away == 2


def test_a_token_twice_in_a_row_gets_in_once() -> None:
    learner = table(3, seen=2)
    for _ in range(8):
        learn(learner, np.array([[7, 7, 0]], np.uint32))
    assert learner.held == 1
    one, two = Ftrl(Settings(bits=10), 3), table(3)
    rows = np.array([[7, 7, 9]] * 20, np.uint32)
    labels = np.ones(20, np.float32)
    assert one.learn(rows, labels).tobytes() == two.learn(rows, labels).tobytes()


def test_a_delta_says_who_has_left() -> None:
    learner = table(keep=10)
    served = learner.served()
    learn(learner, column(*[1, 2, 3] * 3))
    served.apply(*learner.delta())
    assert set(served.weights()) == {1, 2, 3}
    learn(learner, column(*[3] * 25))
    change = learner.delta()
    assert change.slots.tolist() == [1, 2, 3] and change.weights[:2].tolist() == [0, 0] and change.weights[2] > 0
    served.apply(*change)
    assert set(served.weights()) == {3}
    learn(learner, column(*[4] * 30, 3))
    change = learner.delta()
    assert change.slots.tolist() == [3, 4] and change.weights[0] != 0, "it left and came back: it is there"


def test_who_was_told_by_an_earlier_life_leaves_too(tmp_path: Path) -> None:
    """A base, a delta that brings a token, a crash: the fold goes on from the base, and the token leaves meanwhile."""
    learner = table(keep=10)
    learn(learner, column(*[9] * 5))
    learner.delta()
    learner.save(tmp_path / "base")
    served = ServedFtrlTable.load(tmp_path / "base")
    learn(learner, column(*[1] * 5))
    served.apply(*learner.delta())
    assert set(served.weights()) == {1, 9}
    again, _ = FtrlTable.load(tmp_path / "base")
    learn(again, column(*[1] * 5))
    learn(again, column(*[2] * 40))
    served.apply(*again.delta())
    assert set(served.weights()) == {2}


def test_a_first_fold_remembers_nobody_who_left() -> None:
    learner = table(keep=10)
    learn(learner, column(*range(1, 500)))
    change = learner.delta()
    assert len(change.slots) == learner.held < 30


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.integers(1, 9), st.sampled_from([0.0, 0.5, -1.0])), min_size=2, max_size=12))
def test_a_server_holds_what_it_was_told(changes: list[dict[int, float]]) -> None:
    """Tokens of three homes beside each other, so that every gap has to be closed rightly."""
    homes = [token for token in range(1, 200_000) if _home(token) in (1022, 1023, 0)][:60]
    served, expected = ServedFtrlTable(10, 1), {}
    for change in changes:
        named = {homes[key - 1]: weight for key, weight in change.items()}
        slots = np.array(sorted(named), np.uint32)
        served.apply(slots, np.array([named[t] for t in slots.tolist()], np.float32))
        expected = {token: weight for token, weight in (expected | named).items() if weight}
        assert served.weights() == expected
        p = served.predict({"tokens": column(*homes)})["probability"]
        assert [one > 0.5 for one in p] == [expected.get(token, 0) > 0 for token in homes]


def _home(token: int) -> int:
    return (token * 0x9E3779B97F4A7C15 % 2**64 >> 32) % 1024


@pytest.mark.parametrize(
    ("slots", "weights", "says"),
    [
        ([2, 1], [1, 1], "must ascend"),
        ([1, 1], [1, 1], "none twice"),
        ([0, 1], [1, 1], "none 0"),
        ([1, 2], [1], "send one weight a token"),
        (list(range(1, 771)), [1] * 770, "770 tokens in a table of 1024 places"),
        ([1], [float("nan")], "not finite"),
    ],
)
def test_a_bad_delta_changes_nothing(slots: list[int], weights: list[float], says: str) -> None:
    served = ServedFtrlTable(10, 1)
    served.apply(np.array([5], np.uint32), np.array([0.5], np.float32))
    with pytest.raises(errors.BadInput, match=says):
        served.apply(np.array(slots, np.uint32), np.array(weights, np.float32), NOTHING)
    assert served.weights() == {5: 0.5}


def test_a_full_server_takes_a_delta_that_makes_room_first() -> None:
    served = ServedFtrlTable(10, 1)
    many = np.arange(1, 769, dtype=np.uint32)
    served.apply(many, np.ones(768, np.float32))
    swap = np.array([768, 4000], np.uint32)
    served.apply(swap, np.array([0, 2], np.float32))
    assert len(served.weights()) == 768 and served.weights()[4000] == 2


@pytest.mark.parametrize("wrong", [{"bits": 25}, {"seen": 0}, {"keep": -1}, {"alpha": 0}])
def test_settings_have_bounds(wrong: dict[str, int]) -> None:
    with pytest.raises(errors.Misconfigured, match="ftrl_table: " + next(iter(wrong))):
        FtrlTableSettings(**wrong)


def test_it_starts_from_no_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "start.npz", linear=np.zeros(1024, np.float32))
    with pytest.raises(errors.Misconfigured, match="begins from nothing or from a learner's file"):
        begin("ftrl_table", FtrlTableSettings(), 1, tmp_path / "start.npz")
