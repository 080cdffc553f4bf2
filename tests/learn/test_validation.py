"""Figures of scores, against formulas written down plainly, and against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from millstream.errors import Misconfigured
from millstream.features import Definition, Entities
from millstream.learn.calibration import WINDOW, Calibration
from millstream.learn.validation import Labels, Scores, Slice, Validation, ValidationSettings, slices


def judged(labels, counts=None, takes_back=None) -> Labels:
    labels = np.asarray(labels, np.float64)
    counts = np.ones(len(labels)) if counts is None else np.asarray(counts, np.float64)
    back = np.zeros(len(labels), np.bool_) if takes_back is None else np.asarray(takes_back, np.bool_)
    return Labels(labels, counts, back)


def drawn(seed: int, n: int = 20_000, slope: float = 1.0, intercept: float = 0.0):
    """Scores, and labels that come with sigmoid(slope * log odds + intercept)."""
    random = np.random.default_rng(seed)
    odds = random.normal(-1.5, 1.5, n)
    truth = 1 / (1 + np.exp(-(slope * odds + intercept)))
    return 1 / (1 + np.exp(-odds)), (random.random(n) < truth).astype(np.float64), truth


def test_figures_are_those_of_another_implementation():
    p, y, _ = drawn(1)
    counts = np.where(y > 0, 1.0, np.random.default_rng(2).choice([1.0, 4.0], len(y)))
    books = Scores()
    books.add(p, judged(y, counts))
    found = books.figures()
    assert found.auc == pytest.approx(roc_auc_score(y, p, sample_weight=counts), abs=3e-4)
    assert found.logloss == pytest.approx(log_loss(y, p, sample_weight=counts), rel=1e-9)
    assert found.ratio == pytest.approx((counts * p).sum() / (counts * y).sum(), rel=1e-9)
    assert (found.examples, found.positives) == (round(counts.sum(), 1), y.sum())


def test_calibration_error_is_small_for_honest_scores_and_tells_dishonest_ones():
    p, y, _ = drawn(3)
    honest, bold = Scores(), Scores()
    honest.add(p, judged(y))
    bold.add(np.clip(p * 1.5, 0, 1), judged(y))
    assert honest.figures().ece < 0.01
    assert bold.figures().ece == pytest.approx((np.clip(p * 1.5, 0, 1) - p).mean(), abs=0.01)


def test_a_positive_after_its_own_negative_takes_that_back():
    once, twice = Scores(), Scores()
    once.add(np.array([0.3, 0.6]), judged([1, 0]))
    twice.add(np.array([0.3, 0.6, 0.3]), judged([0, 0, 1], takes_back=[False, False, True]))
    assert np.allclose(once.table, twice.table)
    assert once.figures().logloss == pytest.approx(twice.figures().logloss)


def test_what_nobody_scored_has_no_figures():
    assert Validation(ValidationSettings()).figures() == {}
    books = Scores()
    books.add(np.array([0.5]), judged([1]))
    assert books.figures().auc is None and books.figures().ratio == 0.5


SLICES = [Slice("user.sex=F", 1, 1, 7), Slice("item.genres=war", 2, 2, 9)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(0, 2**31), st.booleans())
def test_rows_in_pieces_and_rows_at_once_give_the_same_books(sizes, seed, restarted):
    total, random = sum(sizes), np.random.default_rng(seed)
    p, y, _ = drawn(seed, total)
    tokens = random.integers(5, 11, (total, 4)).astype(np.uint32)
    told = judged(y, random.choice([1.0, 3.0], total), (random.random(total) < 0.2) & (y > 0))
    made = [Validation(ValidationSettings(window=1000), SLICES) for _ in range(2)]
    fits = [Calibration(), Calibration()]
    made[0].observe({"served": p, "frozen": p / 2}, told, tokens)
    fits[0].observe(p, told)
    at = 0
    for size in sizes:
        part = slice(at, at + size)
        some = Labels(*(column[part] for column in told))
        made[1].observe({"served": p[part], "frozen": p[part] / 2}, some, tokens[part])
        fits[1].observe(p[part], some)
        at += size
        if restarted:
            again = Validation(ValidationSettings(window=1000), SLICES)
            again.restore(made[1].state())
            made[1], fits[1] = again, Calibration.load(fits[1].dump())
    assert made[0].state() == made[1].state()
    assert fits[0].dump() == fits[1].dump() and fits[0].fit() == fits[1].fit()


def test_a_restart_keeps_a_positive_whose_negative_was_told_elsewhere():
    one = Validation(ValidationSettings())
    one.observe({"served": np.array([0.3])}, judged([1], takes_back=[True]), np.zeros((1, 1), np.uint32))
    again = Validation(ValidationSettings())
    again.restore(one.state())
    for made in (one, again):
        made.observe({"served": np.array([0.3, 0.3])}, judged([0, 1]), np.zeros((2, 1), np.uint32))
    assert again.state() == one.state() and again.figures()[""]["served"].positives == 2


def test_slices_are_judged_apart():
    p, y, _ = drawn(5)
    tokens = np.random.default_rng(6).integers(5, 11, (len(p), 4)).astype(np.uint32)
    made = Validation(ValidationSettings(window=10**6), SLICES)
    made.observe({"served": p}, judged(y), tokens)
    women, war = tokens[:, 1] == 7, (tokens[:, 2:4] == 9).any(axis=1)
    found = made.figures()
    assert found["user.sex=F"]["served"].auc == pytest.approx(roc_auc_score(y[women], p[women]), abs=3e-4)
    assert found["item.genres=war"]["served"].examples == war.sum()
    assert set(found) == {"", "user.sex=F", "item.genres=war"}


def test_the_past_fades():
    made = Validation(ValidationSettings(window=1000))
    for seed, sign in ((1, -1), (2, 1)):
        p, y, _ = drawn(seed, 10_000)
        made.observe({"served": p if sign > 0 else 1 - p}, judged(y), np.zeros((len(p), 1), np.uint32))
    assert made.figures()[""]["served"].auc > 0.7, "ten windows ago it was the other way round"


def test_where_a_source_has_no_score_it_is_not_judged():
    p, y, _ = drawn(7)
    has = np.arange(len(p)) % 2 == 0
    made = Validation(ValidationSettings(window=10**6))
    made.observe({"served": p, "frozen": p}, judged(y), np.zeros((len(p), 1), np.uint32), {"served": has})
    found = made.figures()[""]
    assert (found["served"].examples, found["frozen"].examples) == (has.sum(), len(p))


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.6, -0.4), (1.5, 0.8)])
def test_calibration_finds_what_the_labels_say(slope, intercept):
    p, y, truth = drawn(8, 200_000, slope, intercept)
    made = Calibration()
    made.observe(p, judged(y))
    found = made.fit()
    assert found == pytest.approx((slope, intercept), abs=0.1)
    odds = np.log(p / (1 - p))
    mended = 1 / (1 + np.exp(-(found[0] * odds + found[1])))
    last = slice(-WINDOW, None)
    assert mended[last].mean() == pytest.approx(truth[last].mean(), rel=0.02)


def test_few_labels_mend_nothing_and_not_many_mend_little():
    p, y, _ = drawn(9, 60)
    made = Calibration()
    made.observe(p, judged(y))
    assert made.fit() == (1.0, 0.0)
    some = Calibration()
    some.observe(np.full(200, 0.5), judged(np.arange(200) % 4 == 0))
    assert -1.1 < some.fit()[1] < -0.8, "towards log(1/3), and drawn towards 0"


DEFINITION = Definition.read(
    {
        "user": [{"name": "id"}, {"name": "sex"}],
        "item": [{"name": "id"}, {"name": "year", "bucket": 10}, {"name": "genres", "places": 3}],
        "crosses": ["user.id*item.genres"],
    }
)


def test_slices_are_found_in_the_rows_that_serving_makes():
    entities = Entities(DEFINITION)
    entities.upsert("user", "a", {"sex": "F"})
    entities.upsert("user", "b", {"sex": "M"})
    entities.upsert("item", "i", {"year": 1994, "genres": ["war", "drama"]})
    rows = np.concatenate([entities.rows("a", ["i", "unknown"]), entities.rows("b", ["i"])])
    named = {"user.sex": ("F", "M"), "item.genres": ("drama", "comedy"), "item.year": ("1999",)}
    found = {one.name: one.of(rows).tolist() for one in slices(ValidationSettings(slices=named), DEFINITION)}
    assert found == {
        "user.sex=F": [True, True, False], "user.sex=M": [False, False, True], "item.genres=drama": [True, False, True],
        "item.genres=comedy": [False] * 3, "item.year=1999": [True, False, True],
    }  # fmt: skip


@pytest.mark.parametrize(("named", "why"), [({"user.age": ("1",)}, "user.sex"), ({"item.year": ("x",)}, "no value")])
def test_a_slice_that_cannot_be_is_said(named, why):
    with pytest.raises(Misconfigured, match=why):
        slices(ValidationSettings(slices=named), DEFINITION)
