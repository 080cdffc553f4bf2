"""Implicit matrix factorisation: the kernel against solving densely, and tastes that must come out."""

import msgspec
import numpy as np
import pytest

from millstream import errors
from millstream.recall import factors
from millstream.recall.ann import Ann, Base, Places
from millstream.recall.cooccur import Csr
from millstream.recall.factors import Factors, fit
from millstream.recall.scene import Bits, History, Scene
from millstream.recall.settings import FactorSettings

SETTINGS = FactorSettings(width=6, unseen=0.1, penalty=0.4, power=0.7, turns=30, steps=8)


def liked(users: int = 60, items: int = 40, seed: int = 0) -> np.ndarray:
    """bool [users, items]: two tastes, and some chance."""
    random = np.random.default_rng(seed)
    taste = (np.arange(users)[:, None] % 2) == (np.arange(items)[None] % 2)
    return random.random((users, items)) < np.where(taste, 0.4, 0.02)


def rows_of(mask: np.ndarray) -> Csr:
    rows, columns = np.nonzero(mask)
    return Csr.of(rows.astype(np.int32), columns.astype(np.int32), len(mask))


def loss(mask: np.ndarray, users: np.ndarray, items: np.ndarray, s: FactorSettings) -> float:
    """What is minimised, as the paper writes it."""
    answers = users.astype(np.float64) @ items.T.astype(np.float64)
    error = (mask * (answers - 1) ** 2).sum() + s.unseen * (answers**2).sum()
    for vectors, known in ((users, mask.sum(1)), (items, mask.sum(0))):
        error += (s.penalty * known**s.power * (vectors.astype(np.float64) ** 2).sum(1)).sum()
    return float(error)


def dense(mask: np.ndarray, s: FactorSettings, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The same by solving each row densely in float64."""
    random = np.random.default_rng(seed)
    items = random.normal(size=(mask.shape[1], s.width)) * 0.1
    users = np.zeros((mask.shape[0], s.width))

    def solve(of: np.ndarray, others: np.ndarray) -> np.ndarray:
        out = []
        for row in of:
            ridge = s.penalty * max(row.sum(), 1) ** s.power * np.eye(s.width)
            left = s.unseen * others.T @ others + others[row].T @ others[row] + ridge
            out.append(np.linalg.solve(left, others[row].sum(0)))
        return np.array(out)

    for _ in range(60):
        users = solve(mask, items)
        items = solve(mask.T, users)
    return solve(mask, items), items


def test_it_comes_as_low_as_solving_densely():
    mask = liked()
    model, users = fit(rows_of(mask), mask.shape[1], SETTINGS)
    reached, wanted = loss(mask, users, model.items, SETTINGS), loss(mask, *dense(mask, SETTINGS), SETTINGS)
    assert reached == pytest.approx(wanted, rel=0.02)


def test_conjugate_gradients_need_no_more_steps_than_numbers():
    mask = liked()
    items = np.random.default_rng(4).normal(size=(mask.shape[1], 6)).astype(np.float32) * np.arange(
        1, 7, dtype=np.float32
    )
    users = np.zeros((len(mask), 6), np.float32)
    factors._solve(rows_of(mask), items, users, msgspec.structs.replace(SETTINGS, steps=8))
    model = factors.Model(items, items.T @ items, SETTINGS.unseen, SETTINGS.penalty, SETTINGS.power)
    np.testing.assert_allclose(users, [model.fold_in(items[row]) for row in mask], atol=1e-4)


def test_folding_in_is_the_exact_minimum_of_a_users_part():
    mask = liked()
    model, users = fit(rows_of(mask), mask.shape[1], SETTINGS)
    folded = np.array([model.fold_in(model.items[row]) for row in mask])
    np.testing.assert_allclose(folded, users, atol=2e-3)
    least = loss(mask, folded, model.items, SETTINGS)
    random = np.random.default_rng(3)
    for _ in range(20):
        assert loss(mask, folded + 1e-2 * random.normal(size=folded.shape), model.items, SETTINGS) > least


def test_the_same_rows_give_the_same_bits_and_a_start_saves_turns():
    mask = liked()
    first, users = fit(rows_of(mask), mask.shape[1], SETTINGS)
    again, _ = fit(rows_of(mask), mask.shape[1], SETTINGS)
    np.testing.assert_array_equal(first.items, again.items)
    one = FactorSettings(width=6, unseen=0.1, penalty=0.4, power=0.7, turns=1, steps=8)
    start = first.items.copy()
    start[0] = np.nan  # born since
    warm, warm_users = fit(rows_of(mask), mask.shape[1], one, start)
    cold, cold_users = fit(rows_of(mask), mask.shape[1], one)
    best = loss(mask, users, first.items, SETTINGS)
    assert loss(mask, warm_users, warm.items, SETTINGS) < 1.01 * best < loss(mask, cold_users, cold.items, SETTINGS)
    with pytest.raises(errors.BadInput, match="40, 6"):
        fit(rows_of(mask), mask.shape[1], one, start[1:])


def scene(numbers: list[int], allowed: Bits) -> Scene:
    history = History(np.array(numbers, np.int32), np.zeros(len(numbers), np.uint8), np.arange(float(len(numbers))))
    return Scene("u", 0.0, history, {}, {}, allowed, np.empty(0, np.int32), 0)


def test_the_path_finds_a_visitors_taste_after_two_items():
    mask = liked(200)
    model, _ = fit(rows_of(mask), 40, FactorSettings(width=2, turns=30))
    places = Places(40)
    places.set(np.arange(40, dtype=np.int32), np.arange(100, 140, dtype=np.int32))
    path = Factors(model, Ann(Base.build(model.items), places))
    for taste in (0, 1):
        found = path.recall(scene([100 + taste, 104 + taste], Bits.all(140)), 15)
        assert np.mean(found.numbers % 2 == taste) > 0.9
        assert (np.diff(found.scores) <= 0).all()
    allowed = Bits.none(140)
    allowed.set(np.array([101, 120], np.int32))
    assert set(path.recall(scene([100], allowed), 15).numbers.tolist()) == {101, 120}
    for strange in ([], [3], [-1, 9999]):
        assert not len(path.recall(scene(strange, Bits.all(140)), 5).numbers)


def test_nobody_and_nothing():
    model, users = fit(Csr(np.zeros(1, np.int64), np.empty(0, np.int32)), 3, SETTINGS)
    assert users.shape == (0, 6) and not model.items.any()
    model, _ = fit(Csr(np.zeros(4, np.int64), np.empty(0, np.int32)), 0, SETTINGS)
    assert model.items.shape == (0, 6)
