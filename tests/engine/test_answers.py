"""Answers under load are the answers alone, whatever arrives with whom; and every refusal is a sentence."""

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from rig import THREADS, Weight, ask, one_weight, rows, serving, until

import onnx_models
from millstream import errors
from millstream.engine import EngineLimits
from millstream.meter import Meter
from millstream.models import Batching, Manifest, Repository, load
from millstream.models.traffic import promote
from millstream.types import Request, TensorSpec

WIDTH = 4
MATRIX = np.arange(12, dtype=np.float32).reshape(WIDTH, 3) / 7


@pytest.fixture(scope="module", params=["on the loop", "in threads"])
def busy(request, tmp_path_factory):
    """(run, engine) over three models, with small batches so that joins, splits and pieces all happen."""
    root = tmp_path_factory.mktemp("models")
    onnx_models.scaled(root / "exact" / "1" / "model.onnx", 3.7)
    onnx_models.linear(root / "matrix" / "1" / "model.onnx", MATRIX, 0.5)
    onnx_models.sums(root / "lengths" / "1" / "model.onnx")
    inline = 10_000 if request.param == "on the loop" else 0
    with asyncio.Runner() as runner:
        context = serving(root, EngineLimits(rows_max=8, inline_us_max=inline, instances=2))
        engine = runner.run(context.__aenter__())
        yield runner.run, engine
        runner.run(context.__aexit__(None, None, None))


arrival = st.tuples(
    st.sampled_from(["exact", "matrix", "lengths"]),
    st.integers(1, 40),
    st.integers(0, 3),
    st.integers(1, 5),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(arrival, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_answers_under_any_interleaving_are_the_answers_alone(busy, arrivals, random):
    run, engine = busy

    async def together():
        futures = []
        for model, n, pause, length in arrivals:
            width = length if model == "lengths" else WIDTH
            x = rows(n, width, random.random()) / 9
            futures.append((model, x, engine.submit(ask(model, x))))
            for _ in range(pause):
                await asyncio.sleep(0)
        return [(model, x, (await future).outputs["y"]) for model, x, future in futures]

    for model, x, y in run(together()):
        if model == "exact":
            assert y.tobytes() == (x * np.float32(3.7)).tobytes()
        elif model == "matrix":
            np.testing.assert_allclose(y, x @ MATRIX + np.float32(0.5), rtol=1e-5)
        else:
            np.testing.assert_allclose(y, x.sum(axis=1), rtol=1e-5)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 32),
)
@settings(max_examples=40, deadline=None)
def test_batches_keep_order_hold_whole_requests_and_stay_in_bound(tmp_path_factory, sizes, rows_max):
    load, made = one_weight(root := tmp_path_factory.mktemp("models"))

    async def main():
        async with serving(root, EngineLimits(rows_max=rows_max, inline_us_max=0, instances=1), load=load) as engine:
            made["1"].batches.clear()
            await asyncio.gather(*[engine.submit(ask("w", rows(n))) for n in sizes])

    asyncio.run(main())
    seen = [n for n, _, _ in made["1"].batches]
    assert max(seen) <= rows_max
    assert sum(seen) == sum(sizes)
    expected, batch = [], 0  # greedy, in order; a larger request alone, in pieces
    for n in sizes:
        if batch and batch + n > rows_max:
            expected.append(batch)
            batch = 0
        if n > rows_max:
            expected += [rows_max] * (n // rows_max) + ([n % rows_max] if n % rows_max else [])
        else:
            batch += n
    assert seen == expected + ([batch] if batch else [])


def run(coroutine):
    return asyncio.run(coroutine)


def one(tmp_path, **more):
    onnx_models.scaled(tmp_path / "m" / "1" / "model.onnx", 2)
    return serving(tmp_path, **more)


def test_an_answer_names_what_computed_it(tmp_path):
    async def main():
        async with one(tmp_path) as engine:
            answer = await engine.submit(ask("m", rows(2)))
            assert (answer.model, answer.version, answer.arm, answer.policy) == ("m", "1@0", "live", 0)
            assert engine.models() == ("m",)
            assert engine.ready()
            description = engine.describe("m")
            assert description.versions == ("1",)
            assert description.inputs == (TensorSpec("x", "FP32", (-1, 4)),)

    run(main())


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            Request("m", {"x": rows(2).astype(np.float64)}, 2),
            r"m 1: input 'x' expected FP32 \[2, 4\], got FP64 \[2, 4\]",
        ),
        (Request("m", {"x": rows(2, 5)}, 2), r"expected FP32 \[2, 4\], got FP32 \[2, 5\] in a request of 2 rows"),
        (Request("m", {"x": rows(2)}, 3), r"expected FP32 \[3, 4\], got FP32 \[2, 4\] in a request of 3 rows"),
        (Request("m", {"x": rows(2)[0]}, 4), r"got FP32 \[4\]"),
        (Request("m", {"x": np.float32(1).reshape(())}, 1), r"got FP32 \[\]"),
        (Request("m", {"x": rows(0)}, 0), "has 0 rows; send at least one"),
        (Request("m", {"z": rows(1)}, 1), "input 'x' is missing, input 'z' is not known; it takes: x"),
        (Request("m", {"x": rows(1), "z": rows(1)}, 1), "input 'z' is not known"),
        (Request("m", {}, 1), "input 'x' is missing"),
        (Request("m", {"x": rows(1)}, 1, outputs=("q",)), "no output 'q'; it has: y"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_at_once(tmp_path, request_, said):
    async def main():
        async with one(tmp_path) as engine:
            with pytest.raises(errors.BadInput, match=said):
                engine.submit(request_)

    run(main())


def test_unknown_models_and_versions_say_what_there_is(tmp_path):
    async def main():
        async with one(tmp_path) as engine:
            with pytest.raises(errors.NotFound, match="no model 'q' here; there are: m"):
                engine.submit(ask("q", rows(1)))
            with pytest.raises(errors.NotFound, match="m has no version '7' that answers now; these do: 1"):
                engine.submit(ask("m", rows(1), version="7"))
            with pytest.raises(errors.NotFound, match="these do: 1"):
                engine.describe("m", "7")
            assert (await engine.submit(ask("m", rows(1), version="1"))).arm == "explicit"
        with pytest.raises(errors.Busy, match="stopping"):
            engine.submit(ask("m", rows(1)))

    run(main())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("limits", [None, THREADS])
def test_non_finite_numbers_fail_their_own_request_alone(tmp_path, bad, limits):
    async def main():
        async with one(tmp_path, limits=limits) as engine:
            wrong = rows(3)
            wrong[1, 2] = bad
            huge = np.full((1, 4), 3e38, np.float32)  # finite, though its square is not
            asked = [rows(2), wrong, huge, wrong, rows(1)]
            got = await asyncio.gather(*[engine.submit(ask("m", x)) for x in asked], return_exceptions=True)
            assert [isinstance(answer, errors.BadInput) for answer in got] == [False, True, False, True, False]
            assert "input 'x' holds NaN or infinity" in str(got[1])
            np.testing.assert_array_equal(got[4].outputs["y"], rows(1) * 2)
            np.testing.assert_array_equal(got[2].outputs["y"], huge * np.float32(2))

    with np.errstate(over="ignore"):
        run(main())


def test_a_model_may_take_nan_as_missing(tmp_path):
    file = onnx_models.scaled(tmp_path / "file.onnx", 2)
    manifest = Manifest(format="onnx", file="f.onnx", non_finite="pass")
    Repository(tmp_path / "models").put("m", manifest, {"f.onnx": file})

    async def main():
        async with serving(tmp_path / "models") as engine:
            answer = await engine.submit(ask("m", np.full((1, 4), np.nan, np.float32)))
            assert np.isnan(answer.outputs["y"]).all()

    run(main())


def test_a_value_the_model_refuses_fails_its_own_request_alone(tmp_path):
    onnx_models.table(tmp_path / "t" / "1" / "model.onnx")

    async def main():
        async with serving(tmp_path) as engine:
            asked = [np.array(i) for i in ([1, 2], [99], [4])]
            got = await asyncio.gather(*[engine.submit(ask("t", i, "i")) for i in asked], return_exceptions=True)
            assert isinstance(got[1], errors.BadInput)
            assert got[0].outputs["y"].tolist() == [[2, 3], [4, 5]]
            assert got[2].outputs["y"].tolist() == [[8, 9]]

    run(main())


def test_a_model_that_breaks_is_our_error_and_the_next_request_is_served(tmp_path, caplog):
    load, made = one_weight(tmp_path)

    async def main():
        async with serving(tmp_path, THREADS, load=load) as engine:
            predict, made["1"].predict = made["1"].predict, lambda inputs: 1 / 0
            got = await asyncio.gather(*[engine.submit(ask("w", rows(1))) for _ in range(3)], return_exceptions=True)
            assert {type(answer) for answer in got} == {errors.Failed}
            assert "w 1 failed on this request: ZeroDivisionError" in str(got[0])
            made["1"].predict = lambda inputs: {"y": np.zeros(1, np.float32)}
            with pytest.raises(errors.Error, match=r"output 'y' has shape \[1\] for 2 rows"):
                await engine.submit(ask("w", rows(2)))
            made["1"].predict = predict
            assert (await engine.submit(ask("w", rows(1)))).version == "1@0"

    run(main())
    assert len([r for r in caplog.records if "ZeroDivision" in r.message]) == 1


def test_only_the_outputs_asked_for_come_back(tmp_path):
    onnx_models.stamped(tmp_path / "s" / "1" / "model.onnx", 5)

    async def main():
        async with serving(tmp_path) as engine:
            x = rows(2, 1)
            answers = await asyncio.gather(
                *[engine.submit(ask("s", x, outputs=asked)) for asked in ((), ("version",), ("y", "version"))]
            )
            assert [sorted(answer.outputs) for answer in answers] == [["version", "y"], ["version"], ["version", "y"]]

    run(main())


def test_a_model_with_fixed_rows_gets_each_request_alone(tmp_path):
    onnx_models.linear(tmp_path / "m" / "1" / "model.onnx", np.eye(4), rows=1)

    async def main():
        async with serving(tmp_path) as engine:
            answers = await asyncio.gather(*[engine.submit(ask("m", rows(1, start=i))) for i in range(5)])
            assert [answer.outputs["y"][0, 0] for answer in answers] == [0, 1, 2, 3, 4]
            with pytest.raises(errors.BadInput, match=r"expected FP32 \[1, 4\], got FP32 \[2, 4\]"):
                engine.submit(ask("m", rows(2)))

    run(main())


def test_a_model_that_only_claims_free_rows_is_found_out(tmp_path):
    """y has one row whatever x has: joining requests would give one caller the answer of all."""

    class Total(Weight):
        def predict(self, inputs):
            return {"y": inputs["x"].sum(keepdims=True)[0]}

    one_weight(tmp_path)
    meter = Meter()

    async def main():
        async with serving(tmp_path, meter=meter, load=lambda *_: Total()) as engine:
            answers = await asyncio.gather(*[engine.submit(ask("w", rows(2, start=i))) for i in range(3)])
            assert batches(meter, "w") == 3
            assert [answer.outputs["y"].tolist() for answer in answers] == [[28 + 8 * i] for i in range(3)]

    run(main())


def batches(meter, model):
    return meter.counter("millstream_batches_total", "", {"model": model, "version": "1"}).value


def test_only_requests_of_the_same_length_join(tmp_path):
    onnx_models.sums(tmp_path / "m" / "1" / "model.onnx")
    meter = Meter()

    async def main():
        async with serving(tmp_path, meter=meter) as engine:
            asked = [rows(n, length) for n, length in ((1, 2), (2, 3), (3, 2), (4, 3), (5, 2))]
            answers = await asyncio.gather(*[engine.submit(ask("m", x)) for x in asked])
            for x, answer in zip(asked, answers, strict=True):
                np.testing.assert_allclose(answer.outputs["y"], x.sum(axis=1))

    run(main())
    assert batches(meter, "m") == 2


def test_text_goes_through(tmp_path):
    onnx_models.same(tmp_path / "m" / "1" / "model.onnx", TensorProto.STRING)

    async def main():
        async with serving(tmp_path) as engine:
            asked = [np.array([[word]], object) for word in (b"one", "two")]
            answers = await asyncio.gather(*[engine.submit(ask("m", x)) for x in asked])
            assert [answer.outputs["y"].tolist() for answer in answers] == [[["one"]], [["two"]]]

    run(main())


def test_the_rows_of_a_manifest_bound_a_call(tmp_path):
    load, made = one_weight(tmp_path)
    Repository(tmp_path).put("w", Manifest(format="weight", file="w", batching=Batching(3)), {"w": b""})

    async def main():
        async with serving(tmp_path, load=load) as engine:
            await engine.submit(ask("w", rows(8)))

    run(main())
    assert [n for n, _, _ in made["2"].batches][-3:] == [3, 3, 2]


# The queue.


def held(tmp_path, limits):
    """An engine with one instance whose first batch waits for `made["1"].gate`."""
    load, made = one_weight(tmp_path)
    return made, serving(tmp_path, limits, load=load, meter=Meter())


async def occupy(engine, made) -> "asyncio.Future":
    made["1"].gate.clear()
    inside = made["1"].inside
    first = engine.submit(ask("w", rows(1)))
    await until(lambda: made["1"].inside > inside)
    return first


LIMITS = EngineLimits(instances=1, inline_us_max=0, queue_rows_max=10)


def test_a_full_queue_refuses_and_recovers(tmp_path):
    made, context = held(tmp_path, LIMITS)

    async def main():
        async with context as engine:
            first = await occupy(engine, made)
            waiting = [engine.submit(ask("w", rows(5))) for _ in range(2)]
            with pytest.raises(errors.Busy, match="10 rows wait already, at most 10") as caught:
                engine.submit(ask("w", rows(1)))
            assert caught.value.retry_after_s > 0
            with pytest.raises(errors.TooLarge, match="11 rows in one request, at most 10"):
                engine.submit(ask("w", rows(11)))
            made["1"].gate.set()
            await asyncio.gather(first, *waiting)
            await engine.submit(ask("w", rows(10)))

    run(main())


def test_a_cancelled_request_gives_its_place_up_and_is_never_computed(tmp_path):
    made, context = held(tmp_path, LIMITS)

    async def main():
        async with context as engine:
            first = await occupy(engine, made)
            gone, stays = engine.submit(ask("w", rows(7))), engine.submit(ask("w", rows(3)))
            assert gone.cancel()
            assert not gone.cancel()
            also = engine.submit(ask("w", rows(6)))
            made["1"].gate.set()
            await asyncio.gather(first, stays, also)
            assert gone.cancelled()
            assert engine.views()[0].rows_waiting == 0

    run(main())
    assert [n for n, _, _ in made["1"].batches][-2:] == [1, 9]


def test_cancelling_what_is_being_computed_harms_nobody(tmp_path):
    made, context = held(tmp_path, LIMITS)

    async def main():
        async with context as engine:
            first = await occupy(engine, made)
            task = asyncio.create_task(asyncio.wait_for(engine.submit(ask("w", rows(2))), 0.01))
            with pytest.raises(TimeoutError):
                await task
            first.cancel()
            made["1"].gate.set()
            assert (await engine.submit(ask("w", rows(2)))).version == "1@0"

    run(main())


def test_stopping_answers_everything_that_waits(tmp_path):
    made, context = held(tmp_path, LIMITS)

    async def main():
        async with context as engine:
            first = await occupy(engine, made)
            waiting = [engine.submit(ask("w", rows(4))) for _ in range(2)]
            asyncio.get_running_loop().call_later(0.05, made["1"].gate.set)
        assert first.done()
        assert all(len(future.result().outputs["y"]) == 4 for future in waiting)

    run(main())


def test_a_model_that_sleeps_never_runs_on_the_loop_and_a_quick_one_does(tmp_path):
    one_weight(tmp_path, "slow")
    onnx_models.scaled(tmp_path / "quick" / "1" / "model.onnx", 2)

    class Sleeps(Weight):
        def predict(self, inputs):
            time.sleep(0.02)
            return super().predict(inputs)

    def either(repository, model, version):
        return Sleeps() if model == "slow" else load(repository, model, version)

    async def main():
        limits = EngineLimits(inline_us_max=10_000)
        async with serving(tmp_path, limits, load=either) as engine:
            done = []
            slow = engine.submit(ask("slow", rows(1)))
            slow.add_done_callback(lambda _: done.append("slow"))
            quick = engine.submit(ask("quick", rows(1)))
            quick.add_done_callback(lambda _: done.append("quick"))
            await asyncio.gather(slow, quick)
            assert done == ["quick", "slow"]

    run(main())


def test_numbers_are_kept_by_version(tmp_path):
    meter = Meter()

    async def main():
        async with one(tmp_path, meter=meter) as engine:
            await asyncio.gather(*[engine.submit(ask("m", rows(2))) for _ in range(5)])

    run(main())
    text = meter.render()
    labels = '{model="m",version="1"}'
    for line in (f"requests_total{labels} 5", f"rows_total{labels} 10", f"failures_total{labels} 0"):
        assert f"millstream_{line}\n" in text
    assert f"millstream_queue_seconds_count{labels} 5\n" in text


def test_nan_is_no_answer_and_takes_no_neighbour_along(tmp_path):
    onnx_models.logarithm(tmp_path / "log" / "1" / "model.onnx")

    async def main():
        async with serving(tmp_path, EngineLimits(inline_us_max=0, instances=1)) as engine:
            good, bad, nothing = (np.full((2, 2), value, np.float32) for value in (1.0, -1.0, 0.0))
            futures = [engine.submit(ask("log", x)) for x in (good, bad, nothing, good)]
            found = await asyncio.gather(*futures, return_exceptions=True)
            assert isinstance(found[1], errors.Error) and found[1].status == 500
            assert "answered NaN in 'y'" in str(found[1])
            assert not found[0].outputs["y"].any() and not found[3].outputs["y"].any()
            assert np.isneginf(found[2].outputs["y"]).all()

    asyncio.run(main())


def test_a_model_that_means_nan_may_say_so(tmp_path):
    file = onnx_models.logarithm(tmp_path / "aside.onnx")
    manifest = Manifest(format="onnx", file="model.onnx", non_finite="pass")
    Repository(tmp_path / "models").put("log", manifest, {"model.onnx": file})

    async def main():
        async with serving(tmp_path / "models") as engine:
            found = await engine.submit(ask("log", np.full((1, 2), -1, np.float32)))
            assert np.isnan(found.outputs["y"]).all()

    asyncio.run(main())


def test_a_version_that_is_no_longer_loaded_has_no_series(tmp_path):
    load, _ = one_weight(tmp_path, versions=2)
    meter, repository = Meter(), Repository(tmp_path)

    async def main():
        async with serving(tmp_path, EngineLimits(keep_s=0, poll_s=0.01), meter, load=load) as engine:
            await engine.submit(ask("w", rows(1)))
            assert 'version="2"' in meter.render()
            repository.change_policy("w", promote("1"), "test", "")
            await until(lambda: 'version="2"' not in meter.render())
            await engine.submit(ask("w", rows(1)))
            assert meter.values("millstream_requests_total", {"model": "w", "version": "1"}) == [1]

    run(main())
