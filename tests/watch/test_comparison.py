"""A shadow's answers are compared by kind, within bounds, and what differs is kept for a person without what is
personal."""

import asyncio
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_models
from millstream.clock import FakeClock, SystemClock
from millstream.engine import Engine
from millstream.engine.shadow import Pair
from millstream.meter import Meter
from millstream.models import Repository
from millstream.models.traffic import promote, shadow
from millstream.types import Output, Ran, Request
from millstream.watch import shadow as comparing
from millstream.watch.shadow import Comparisons, edits, spearman


def pair(live, other, inputs=None, id="r1", version="2@0", live_version="1@0", **more):
    request = Request("m", inputs or {"x": np.zeros((1, 1), np.float32)}, 1, id=id)
    output = Output(live, "m", live_version, ran=Ran(1, 1, compute_s=0.001))
    return Pair(request, output, version, other, Ran(1, 1, compute_s=0.002), **more)


def numbers(*values):
    return {"y": np.array(values, np.float32)}


def texts(*values):
    return {"t": np.array(values, object)}


def compared(*pairs):
    comparisons = Comparisons(FakeClock(), random.Random(1))
    told = [comparisons(one) for one in pairs]
    (report,) = comparisons.reports("m")
    return told, report


def test_numbers_are_compared_by_delta_and_rank():
    told, report = compared(
        pair(numbers(1, 2, 3), numbers(1, 2, 3)),
        pair(numbers(1, 2, 3), numbers(1.5, 2, 1)),
        pair(numbers(5), numbers(5.0001)),
    )
    assert told == [False, True, False]
    y = report.outputs["y"]
    assert (report.compared, report.differing, y.elements, y.differing) == (3, 2 - 1, 7, 2)
    assert y.delta_max_abs == pytest.approx(2) and y.delta_mean_abs == pytest.approx(2.5 / 7, abs=1e-4)
    assert y.rank_correlation == pytest.approx((1 + spearman(np.array([1.0, 2, 3]), np.array([1.5, 2, 1]))) / 2)
    assert sum(y.deltas) == 7
    edges = (-np.inf, *comparing.DELTAS, np.inf)
    at = [n for n, count in enumerate(y.deltas) if count and edges[n + 1] < 0]
    assert [edges[n] < -2 <= edges[n + 1] for n in at] == [True]
    assert report.shadow_ms / report.live_ms == pytest.approx(2, rel=0.1)


def test_text_is_compared_by_character():
    told, report = compared(
        pair(texts("the cat", "a"), texts("the cat", "a")), pair(texts("kitten"), texts(b"sitting"))
    )
    assert told == [False, True]
    t = report.outputs["t"]
    assert (t.texts, t.exact, t.edits, t.characters) == (3, 2, 3, 14)
    assert t.character_error_rate == pytest.approx(3 / 14)


def test_of_what_a_recogniser_of_speech_hears_no_sample_is_kept():
    """The gate of samples knows no spoken numbers."""
    one, other = (
        {"heard": np.array([f"my number is four one five five five {last}"], object)} for last in ("five", "nine")
    )
    asked = {"audio": np.zeros((1, 8), np.float32), "prefix": np.array(["my number is four one five"], object)}
    told, report = compared(pair(one, other, asked))
    assert told == [True] and report.differing == 1 and report.samples == []
    assert report.outputs["heard"].edits > 0
    (sample,) = compared(pair(one, other))[1].samples  # not one: it takes no audio
    assert sample.live


def plain_edits(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@given(st.text("abc", max_size=80), st.text("abc", max_size=80))
def test_edits_are_levenshteins(one, other):
    assert edits(one, other) == plain_edits(one, other)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=20))
def test_rank_correlation_is_spearmans(rows):
    a, b = np.array(rows, float).T
    found = spearman(a, b)
    ranks = [[sum(o < v for o in side) + (sum(o == v for o in side) + 1) / 2 for v in side] for side in (a, b)]
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-9)


def test_both_nan_is_no_difference_and_one_is():
    told, report = compared(pair(numbers(np.nan), numbers(np.nan)), pair(numbers(1), numbers(np.nan)))
    assert told == [False, True]
    assert sum(report.outputs["y"].deltas) == 0


def test_outputs_that_are_unlike_are_said():
    told, report = compared(pair(numbers(1, 2), numbers(1)))
    assert told == [True] and "float32 [2], and float32 [1]" in report.unlike
    told, report = compared(pair(numbers(1), texts("a")))
    assert told == [True] and report.unlike == "only live has output 'y'; only the shadow has output 't'"


def test_a_shadow_that_fails_is_counted_with_its_reason():
    told, report = compared(pair(numbers(1), None, why="m 2 failed on this request: call 555-123-4567"))
    assert told == [None]
    assert (report.compared, report.failed) == (0, 1) and "[PHONE]" in report.failure


def test_so_many_differing_requests_are_kept_each_with_the_same_chance():
    pairs = [pair(numbers(0), numbers(1), id=f"r{n}") for n in range(400)]
    ids = []
    for seed in range(60):
        comparisons = Comparisons(FakeClock(), random.Random(seed))
        for one in pairs:
            comparisons(one)
        (report,) = comparisons.reports("m")
        assert len(report.samples) == comparing.SAMPLES_MAX == len({s.request for s in report.samples})
        ids += [int(sample.request[1:]) for sample in report.samples]
    assert 170 < np.mean(ids) < 230


def test_what_is_kept_is_cut_and_has_nothing_personal():
    letter = "call me at 415-555-2671 or ann@example.com " * 200
    long = np.zeros((1, 5000), np.float32)
    _, report = compared(
        pair(texts(letter), texts("x"), inputs={"t": np.array([[letter]], object), "x": long}, id="ann@example.com")
    )
    (sample,) = report.samples
    kept = msgspec.json.encode(sample)
    assert b"2671" not in kept and b"example.com" not in kept and b"[PHONE]" in kept
    assert len(kept) < 3000 and sample.inputs["x"]["shape"] == [1, 5000]


def test_another_live_version_begins_anew_and_another_model_is_not_seen():
    _, report = compared(pair(numbers(1), numbers(2)), pair(numbers(1), numbers(1), live_version="3@0"))
    assert (report.live, report.compared, report.differing) == ("3", 1, 0)
    comparisons = Comparisons(FakeClock())
    assert comparisons.reports("other") == []
    for version in range(comparing.COMPARISONS_MAX + 9):
        comparisons(pair(numbers(1), numbers(1), version=f"{version}@0"))
    assert len(comparisons.reports("m")) == comparing.COMPARISONS_MAX


def test_comparing_takes_a_bounded_share_of_the_time():
    clock = FakeClock()
    comparisons = Comparisons(clock)
    one = pair(numbers(1), numbers(1))

    class Slow(dict):
        def __iter__(self):
            clock.advance(0.01)
            return super().__iter__()

    one.live.outputs = Slow(one.live.outputs)
    spent = sum(comparisons(one) is not None for _ in range(1000) if clock.advance(0.001) is None)
    (report,) = comparisons.reports("m")
    assert report.compared == spent and report.skipped == 1000 - spent
    assert spent * 0.01 <= 1.3 * comparing.SHARE * clock.monotonic()


def test_the_engine_hands_both_answers_over_and_counts_what_differs(tmp_path):
    for version, scale in (("1", 2), ("2", 2), ("3", 5)):
        onnx_models.scaled(tmp_path / "m" / version / "model.onnx", scale)
    onnx_models.scaled(tmp_path / "m" / "4" / "model.onnx", 2, width=7)
    repository, meter = Repository(tmp_path), Meter()
    repository.change_policy("m", promote("1"), "test", "")
    repository.change_policy("m", shadow(["2", "3", "4"]), "test", "")
    clock = SystemClock()
    comparisons = Comparisons(FakeClock())

    async def main():
        engine = Engine(repository, clock, meter, compare=comparisons)
        await engine.start()
        for n in range(20):
            await engine.submit(Request("m", {"x": np.full((3, 4), n + 1, np.float32)}, 3, id=f"r{n}"))
            await asyncio.sleep(0.002)
        for _ in range(3000):
            if sum(report.compared for report in comparisons.reports("m")) == 40:
                break
            await asyncio.sleep(0.01)
        await engine.stop()

    asyncio.run(main())
    reports = {report.shadow: report for report in comparisons.reports("m")}
    assert [(reports[v].compared, reports[v].differing, reports[v].failed) for v in "234"] == [
        (20, 0, 0), (20, 20, 0), (0, 0, 20),
    ]  # fmt: skip
    assert "expected FP32" in reports["4"].failure
    assert reports["3"].outputs["y"].delta_max_abs == pytest.approx(60) and reports["2"].live_ms > 0
    labels = {"model": "m", "version": "3"}
    assert meter.values("millstream_shadow_compared_total", labels) == [20]
    assert meter.values("millstream_shadow_differs_total", labels) == [20]
