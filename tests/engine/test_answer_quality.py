"""What is counted of answers is what a plain look at all of them says; and the engine counts each answer that left."""

import asyncio
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import ask, rows, serving

import onnx_models
from millstream.engine.quality import MARKED, MOST, SCORES, SHORT, Quality
from millstream.engine.tally import Numbers
from millstream.errors import BadInput
from millstream.meter import Meter
from millstream.types import TensorSpec

LABELS = {"model": "m", "version": "1"}
X, P = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("p", "FP32", (-1, 1))


def made(*outputs, inputs=(X,)):
    meter = Meter()
    return meter, Quality(meter, LABELS, inputs, outputs or (P,))


def total(meter, name):
    return meter.values(f"millstream_quality_{name}", LABELS)


def one(value, shape=(1, 1)):
    return {"p": np.full(shape, value, np.float32)}


def asked(number=0.0):
    return {"x": np.full((1, 2), number, np.float32)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-2000, 2000, width=32), min_size=1, max_size=30))
def test_sums_squares_and_buckets_are_those_of_all_scores(scores):
    meter, quality = made()
    for number, score in enumerate(scores):
        quality.answered(asked(number), one(score))
    assert total(meter, "answers_total") == [len(scores)] and total(meter, "empty_total") == [0]
    above, below = total(meter, "score_above_total")[0], total(meter, "score_below_total")[0]
    assert above - below == pytest.approx(sum(scores), abs=1e-6)
    assert total(meter, "score_squares_total")[0] == pytest.approx(sum(score * score for score in scores))
    *counts, _ = total(meter, "score")
    edges = np.array([-np.inf, *SCORES, np.inf])
    assert counts == [sum(low < score <= high for score in scores) for low, high in itertools.pairwise(edges)]
    assert total(meter, "repeats_total") == [sum(a == b for a, b in itertools.pairwise(scores))]


@pytest.mark.parametrize(
    "answer, empty",
    [
        (one(0.3), 0),
        (one(np.nan), 1),
        (one(np.inf), 1),
        (one(0.0, (0, 1)), 1),
        ({"p": np.array([[np.nan], [0.5]], np.float32)}, 0),
    ],
)
def test_an_answer_without_a_finite_number_is_empty(answer, empty):
    meter, quality = made()
    quality.answered(asked(), answer)
    assert total(meter, "empty_total") == [empty]
    assert sum(total(meter, "score")[:-1]) == (not empty and answer["p"].item(0) == answer["p"].item(0))


def test_texts_are_empty_when_all_are_and_their_size_is_in_bytes():
    meter, quality = made(TensorSpec("said", "BYTES", (-1,)), inputs=(TensorSpec("asked", "BYTES", (-1,)),))
    for said in ([b"", b""], [b"", b"ab"], []):
        quality.answered({"asked": np.array([b"four"], object)}, {"said": np.array(said, object)})
    assert total(meter, "answers_total") == [3] and total(meter, "empty_total") == [2]
    assert total(meter, "output_size_total") == [2] and total(meter, "input_size_total") == [12]


@pytest.mark.parametrize(
    "datatype, answer",
    [
        ("FP32", np.array([None], object)),
        ("FP32", np.array(["0.5 or so"], object)),
        ("FP64", np.array([1 + 2j])),
        ("BYTES", np.array([7, None], object)),
        ("FP32", 0.5),
    ],
)
def test_an_answer_that_is_not_as_declared_breaks_nothing(datatype, answer):
    meter, quality = made(TensorSpec("p", datatype, (-1,)))
    for _ in range(2):
        quality.answered(asked(), {"p": answer})
    assert total(meter, "answers_total") == [2] and total(meter, "input_size_total") == [4]
    quality.answered(asked(), {"p": np.array([b"ab"], object) if datatype == "BYTES" else np.array([0.5], np.float32)})
    assert total(meter, "answers_total") == [3] and total(meter, "output_size_total")[0] > 0


@pytest.mark.parametrize("datatype, array, scores", [
    ("FP32", np.array(0.5, np.float32), 1), ("FP16", np.array([[0.25, 0.75]], np.float16), 1),
    ("BOOL", np.array(True), 1), ("UINT64", np.array([2**64 - 1], np.uint64), 1), ("BF16", np.array([1], np.uint16), 0),
    ("BYTES", np.array(b"ab", object), 0), ("BYTES", np.array([b"ab"], "S2"), 0),
])  # fmt: skip
def test_arrays_of_any_kind_that_may_be_declared_are_looked_at(datatype, array, scores):
    meter, quality = made(TensorSpec("p", datatype, (-1,)))
    quality.answered(asked(), {"p": array})
    assert total(meter, "empty_total") == [0] and sum(total(meter, "score")[:-1]) == scores
    assert total(meter, "output_size_total") == [2 if datatype == "BYTES" else array.size]


def test_an_answer_repeats_only_when_another_request_got_it():
    meter, quality = made()
    for request in (1, 1, 1, 2, 3):
        quality.answered(asked(request), one(0.5))
    assert total(meter, "repeats_total") == [2]
    quality.answered(asked(4), one(0.6))
    assert total(meter, "repeats_total") == [2]


@pytest.mark.parametrize("cells", [MARKED // 2, 5000 * MARKED])
def test_of_large_requests_too_only_an_answer_to_another_one_repeats(cells):
    meter, quality = made()
    for request in (1.0, 1.0, 1.0, 2.0, 3.0, 3.0):
        quality.answered({"x": np.full((cells // 2, 2), request, np.float32)}, one(0.5))
    assert total(meter, "repeats_total") == [2]
    meter, quality = made(inputs=(TensorSpec("said", "BYTES", (-1,)),))
    for request in (b"a", b"a", b"b", b"b"):
        quality.answered({"said": np.array([b"so " * cells + request], object)}, one(0.5))
    assert total(meter, "repeats_total") == [1] and len(quality._mark[0][2][0]) <= SHORT, "the request can go"


def test_labels_of_classes_repeat_by_nature_and_the_probabilities_beside_them_score():
    meter, quality = made(TensorSpec("label", "INT64", (-1,)), TensorSpec("p", "FP32", (-1, 3)))
    for number, row in enumerate([[0.2, 0.3, 0.5], [0.9, 0.05, 0.05]]):
        quality.answered(asked(number), {"label": np.array([1]), "p": np.array([row], np.float32)})
    assert total(meter, "repeats_total") == [0]
    assert total(meter, "confidence")[-1] == pytest.approx(1.4)
    assert total(meter, "confidence_squares_total")[0] == pytest.approx(0.25 + 0.81)
    meter, quality = made(TensorSpec("label", "INT64", (-1,)))
    for number in range(3):
        quality.answered(asked(number), {"label": np.array([7])})
    assert total(meter, "repeats_total") == [0] and total(meter, "score")[-1] == 21


@pytest.mark.parametrize("row", [[0.2, 0.2], [1.5, -0.5], [3.0]])
def test_what_is_no_probability_has_no_confidence(row):
    meter, quality = made(TensorSpec("p", "FP32", (-1, len(row))))
    for number in range(3):
        quality.answered(asked(number), {"p": np.array([row], np.float32)})
    assert sum(total(meter, "confidence")) == 0


def test_wide_rows_are_probabilities_too():
    row = np.random.default_rng(1).dirichlet(np.ones(1000)).astype(np.float32)[None]
    meter, quality = made(TensorSpec("p", "FP32", (-1, 1000)))
    quality.answered(asked(), {"p": row})
    assert total(meter, "confidence")[-1] == pytest.approx(row.max())


def test_one_score_beyond_measure_does_not_spoil_the_sums():
    meter, quality = made()
    for score in (3e38, -3e38, 0.5):
        quality.answered(asked(score), one(score))
    assert total(meter, "score_above_total")[0] == pytest.approx(MOST + 0.5)
    assert total(meter, "score_below_total")[0] == MOST


def test_counters_of_arms_come_and_go_with_their_version():
    meter = Meter()
    numbers = Numbers(meter, "m", "3", (X,), (P,))
    for arm in ("live", "split-3", "split-3", "canary"):
        numbers.arms[arm].add()
    by_arm = {arm: meter.values("millstream_arm_requests_total", {**LABELS, "version": "3", "arm": arm}) for arm in
              ("live", "canary", "split", "explicit")}  # fmt: skip
    assert by_arm == {"live": [1], "canary": [1], "split": [2], "explicit": [0]}
    numbers.release()
    assert meter.sum("millstream_arm_requests_total") == 0 and total(meter, "answers_total") == []


def test_the_engine_counts_every_answer_that_left_and_none_that_failed(tmp_path):
    meter = Meter()
    onnx_models.scaled(tmp_path / "m" / "1" / "model.onnx", 0.5)

    async def run():
        async with serving(tmp_path, meter=meter) as engine:
            asks = [engine.submit(ask("m", rows(2, start=number))) for number in range(-2, 3)]
            asks.append(engine.submit(ask("m", rows(2), version="1")))
            outputs = [(await one).outputs for one in asks]
            with pytest.raises(BadInput):
                await engine.submit(ask("m", rows(2) * np.nan))
            return outputs

    first = [float(output["y"].flat[0]) for output in asyncio.run(run())]
    assert meter.sum("millstream_quality_answers_total") == 6
    scores = meter.values("millstream_quality_score_above_total", LABELS)[0]
    scores -= meter.values("millstream_quality_score_below_total", LABELS)[0]
    assert scores == pytest.approx(sum(first)) and len(first) == 6
    arms = {
        arm: meter.values("millstream_arm_requests_total", {**LABELS, "arm": arm})[0] for arm in ("live", "explicit")
    }
    assert arms == {"live": 6, "explicit": 1}
