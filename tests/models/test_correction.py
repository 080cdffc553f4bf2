"""What is served is the raw probability, corrected by plain formulas, in the order in which examples were bent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream import errors
from millstream.models.online import Correction

NEGATIVES = 0.1
corrections = st.builds(
    Correction,
    slope=st.floats(0.01, 100),
    intercept=st.floats(-50, 50),
    shift=st.floats(-10, 10),
    fake=st.booleans(),
)


def corrected(correction: Correction, *probabilities: float) -> list[float]:
    return [float(p) for p in correction.apply(np.array(probabilities, np.float32))]


def test_nothing_to_correct_is_the_same_array() -> None:
    raw = np.array([0.0, 0.3, 1.0], np.float32)
    assert Correction().apply(raw) is raw


def test_the_shift_undoes_the_sampling_of_negatives() -> None:
    """Of 1000 rows 20 are positives; a tenth of the negatives is kept: a model answers 20 / 118, and 0.02 is true."""
    assert corrected(Correction(shift=math.log(NEGATIVES)), 20 / 118) == pytest.approx([0.02], rel=1e-6)


def test_negatives_given_too_early_are_taken_back() -> None:
    """Each positive came with a negative before it: 20 positives in 1020 rows, and 0.02 is true."""
    assert corrected(Correction(fake=True), 20 / 1020, 0.5, 0.75) == pytest.approx([0.02, 1.0, 1.0], rel=1e-6)


def test_sampling_is_undone_before_the_early_negatives_are() -> None:
    """1000 rows, 20 positives, 1000 negatives given at once of which a tenth is kept."""
    both = Correction(shift=math.log(NEGATIVES), fake=True)
    assert corrected(both, 20 / 120) == pytest.approx([0.02], rel=1e-6)


@given(p=st.floats(0.001, 0.999), slope=st.floats(0.1, 5), intercept=st.floats(-3, 3))
def test_platt_is_a_line_on_the_log_odds(p: float, slope: float, intercept: float) -> None:
    p = float(np.float32(p))
    expected = 1 / (1 + ((1 - p) / p) ** slope * math.exp(-intercept))
    assert corrected(Correction(slope=slope, intercept=intercept), p) == pytest.approx([expected], rel=1e-5)


def test_platt_comes_last() -> None:
    odds = 0.02 / 0.98
    expected = odds**2 / (1 + odds**2)
    both = Correction(slope=2.0, shift=math.log(NEGATIVES), fake=True)
    assert corrected(both, 20 / 120) == pytest.approx([expected], rel=1e-4)


@given(correction=corrections, probabilities=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_order_is_kept_and_every_answer_is_a_probability(correction: Correction, probabilities: list[float]) -> None:
    raw = np.sort(np.array([0.0, *probabilities, 1.0], np.float32))
    answers = correction.apply(raw)
    assert answers.dtype == np.float32
    assert np.isfinite(answers).all() and answers.min() >= 0 and answers.max() <= 1
    assert (np.diff(answers) >= 0).all()


@given(correction=corrections)
def test_a_snapshots_metadata_says_it(correction: Correction) -> None:
    assert Correction.of({"upto": 7, **correction.metadata()}) == correction
    assert Correction.of({}) == Correction()


@pytest.mark.parametrize(
    "wrong", [{"slope": 0.0}, {"slope": -1.0}, {"slope": math.nan}, {"intercept": math.inf}, {"shift": -math.inf}]
)
def test_what_would_turn_the_order_or_is_not_finite_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(errors.BadInput, match="slope above 0"):
        Correction(**wrong)  # type: ignore[arg-type]
