"""The gate refuses what would do harm, says why, and lets everything else pass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.learn import Gate, GateSettings
from millstream.learn.gate import HISTORY

SETTINGS = GateSettings(weight_max=50.0, window=100, logloss_over=0.25)
FINE = np.zeros(3, np.float32)


def gate(predicted, labels) -> Gate:
    made = Gate(SETTINGS)
    made.observe(np.asarray(predicted, np.float32), np.asarray(labels, np.float32))
    return made


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    assert "1 of 3 weights are not finite" in Gate(SETTINGS).refuses(np.array([0, bad, 1], np.float32))


def test_a_weight_beyond_the_bound_is_refused_in_either_direction():
    for weight in (50.5, -1e6):
        assert "beyond the bound of 50" in Gate(SETTINGS).refuses(np.array([0, weight], np.float32))
    assert Gate(SETTINGS).refuses(np.array([50, -50], np.float32)) == ""
    assert Gate(SETTINGS).refuses(np.array([], np.float32)) == ""


def test_worse_than_the_plain_rate_is_refused_once_there_is_enough_to_judge():
    labels = np.arange(100) % 2
    assert "plain rate 0.500" in gate(np.where(labels, 0.1, 0.9), labels).refuses(FINE)
    assert gate(np.where(labels, 0.1, 0.9)[:99], labels[:99]).refuses(FINE) == "", "99 of 100 are too few to judge by"
    assert gate(np.where(labels, 0.9, 0.1), labels).refuses(FINE) == ""
    assert gate(np.full(100, 0.5), labels).refuses(FINE) == "", "no better is not worse"


def test_only_the_last_examples_count():
    labels = np.arange(100) % 2
    good, bad = np.where(labels, 0.9, 0.1), np.where(labels, 0.1, 0.9)
    made = gate(bad, labels)
    made.observe(good.astype(np.float32), labels.astype(np.float32))
    assert made.refuses(FINE) == ""
    made.observe(bad[:60].astype(np.float32), labels[:60].astype(np.float32))
    assert made.refuses(FINE) != ""


def test_one_class_alone_is_no_reason_to_refuse_a_model_that_sees_it():
    assert gate(np.full(100, 1e-7), np.zeros(100)).refuses(FINE) == ""


def fed(labels, predicted, made=None) -> Gate:
    made = made or Gate(GateSettings(window=1000))
    made.observe(np.full(len(labels), predicted, np.float32), np.asarray(labels, np.float32))
    return made


def test_when_traffic_stops_and_only_negatives_come_nothing_is_refused():
    usual = np.arange(20_000) % 5 == 0
    made = fed(usual, 0.2)
    for positives in (0, 11):  # none at all; and few, beside which their own rate would be a prophet
        last = np.arange(1000) < positives
        assert fed(last, 0.2, made).refuses(FINE) == ""


def test_at_a_start_with_only_positives_nothing_is_refused():
    assert fed(np.ones(1000), 0.3).refuses(FINE) == ""


def test_too_few_of_a_kind_are_not_judged_and_enough_are():
    usual = np.arange(20_000) % 5 == 0
    for positives, why in ((9, False), (10, True)):
        assert bool(fed(np.arange(1000) < positives, 0.99, fed(usual, 0.2)).refuses(FINE)) == why
    large = Gate(GateSettings(window=50_000))  # a model with few positives takes a larger window
    assert "plain rate" in fed(np.arange(50_000) % 1000 == 0, 0.5, large).refuses(FINE)


USUAL = np.arange(20_000) % 10 == 0


def used(times=False) -> Gate:
    """A gate that has seen a tenth of positives, honestly predicted, over 20 windows of 1,000."""
    made = Gate(
        GateSettings(
            window=1000,
            logloss_over=100.0,
            past_over=100.0,
            frozen_over=0.1,
            calibration_over=3.0,
            burst=5.0,
            leap=100.0,
        )
    )
    made.observe(
        np.full(20_000, 0.1, np.float32), USUAL.astype(np.float32), times=np.arange(20_000.0) if times else None,
        waited_s=30.0 if times else 0.0,
    )  # fmt: skip
    assert made.refuses(FINE) == ""
    return made


def test_worse_than_the_version_that_stands_still_is_refused():
    for ours, why in ((0.1, ""), (0.3, "learning began with")):
        made = used()
        labels = USUAL[:1000].astype(np.float32)
        made.observe(np.full(1000, ours, np.float32), labels, np.full(1000, 0.1, np.float32))
        assert why in made.refuses(FINE) and bool(why) == bool(made.refuses(FINE))


def test_a_mean_prediction_far_from_the_plain_rate_is_refused():
    for ours, refused in ((0.25, False), (0.4, True), (0.05, False), (0.02, True)):
        made = used()
        made.observe(np.full(1000, ours, np.float32), USUAL[:1000].astype(np.float32))
        assert ("a mean prediction of" in made.refuses(FINE)) == refused


def test_a_burst_of_positives_is_refused_and_a_good_day_is_not():
    for share, refused in ((0.3, False), (0.4, True)):
        made = used()
        made.observe(np.full(1000, share, np.float32), (np.arange(1000) < 1000 * share).astype(np.float32))
        assert ("are usual" in made.refuses(FINE)) == refused


def test_a_time_without_any_positive_is_refused_once_windows_have_closed_in_it():
    for seconds, refused in ((80.0, False), (200.0, True)):
        made = used(times=True)
        made.observe(
            np.full(1000, 0.1, np.float32), np.zeros(1000, np.float32),
            times=20_000 + np.arange(1000) * seconds / 1000, waited_s=30.0,
        )  # fmt: skip
        assert ("does anybody report them" in made.refuses(FINE)) == refused


def honest(seed: int, count: int, wrong: float = 0.0, rate: float = 0.3, only: float | None = None):
    """Scores that come true as they say, and labels, `wrong` of them the wrong way round; `only` one label."""
    random = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-random.normal(np.log(rate / (1 - rate)), 1.5, count)))
    labels = random.random(count) < scores
    flipped = random.random(count) < wrong
    kept = slice(None) if only is None else labels == only
    return scores[kept].astype(np.float32), (labels ^ flipped)[kept].astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_labels_that_are_wrong_now_and_then_are_refused_and_right_ones_never(seed):
    for wrong, refused in ((0.0, False), (0.3, True)):
        made = Gate(GateSettings())
        for number in range(60):
            made.observe(*honest(100 * seed + number, 1000))
            assert made.refuses(FINE) == "", number
        made.observe(*honest(seed, 5000, wrong))
        assert ("in the past: are these labels right" in made.refuses(FINE)) == refused


def test_another_mix_of_right_labels_is_no_reason():
    made = Gate(GateSettings(window=2000))
    for number in range(40):
        made.observe(*honest(number, 1000))
    for number in range(20):  # traffic stops: what is left are negatives
        made.observe(*honest(50 + number, 200, only=0.0))
        assert made.refuses(FINE) == ""


def test_looking_anew_keeps_what_is_usual():
    made = used()
    made.observe(np.full(1000, 0.9, np.float32), np.ones(1000, np.float32))
    assert made.refuses(FINE)
    made.look_anew()
    assert made.refuses(FINE) == "" and not made.full()
    made.observe(np.full(1000, 0.9, np.float32), np.ones(1000, np.float32))
    assert "are usual" in made.refuses(FINE)


@pytest.mark.parametrize("knows", [True, False])
def test_learning_resumes_on_bad_weights_where_who_stands_still_says_that_labels_are_right(knows):
    for wrong, resumes in ((0.0, knows), (0.4, False)):
        made = Gate(GateSettings(burst=100.0))
        for number in range(25):
            scores, labels = honest(number, 1000)
            made.observe(scores, labels, scores if knows else np.full(1000, 0.3, np.float32))
        made.look_anew()
        scores, labels = honest(99, 6000, wrong)
        bad = np.clip(scores + 0.5, 0, 0.99)
        made.observe(bad, labels, scores if knows else np.full(6000, 0.3, np.float32), passed_over=True)
        assert made.as_usual("gate: logloss 0.7") == resumes, wrong


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_pieces_and_the_whole_are_judged_alike(sizes, seed):
    random = np.random.default_rng(seed)
    total = sum(sizes)
    labels = random.integers(0, 2, total).astype(np.float32)
    predicted = np.clip(random.random(total) * 0.6 + labels * random.choice([-0.3, 0.4]), 0, 1).astype(np.float32)
    pieces, at = Gate(SETTINGS), 0
    for size in sizes:
        pieces.observe(predicted[at : at + size], labels[at : at + size])
        at += size
    last = slice(max(0, total - 100), total)
    p, y = np.clip(predicted[last].astype(float), 1e-6, 1 - 1e-6), labels[last].astype(float)
    fading = np.exp(-np.arange(total)[::-1] / (HISTORY * 100))
    rate = np.clip(fading @ labels / fading.sum(), 1e-6, 1 - 1e-6)
    ours = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    plain = -(y * np.log(rate) + (1 - y) * np.log(1 - rate)).mean()
    assert bool(pieces.refuses(FINE)) == (total >= 100 and ours > plain * 1.25)
