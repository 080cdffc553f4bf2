"""Shadows compute what was answered once more: later, bounded, dropped first, and never felt by a caller."""

import asyncio

import msgspec
import numpy as np
from rig import Weight, ask, delta, one_weight, rows, serving, until

import onnx_models
from millstream.engine import EngineLimits
from millstream.meter import Meter
from millstream.models import Repository


def shadowed(root, model="m", live="1", shadow=("2",)):
    Repository(root).change_policy(
        model, lambda before: msgspec.structs.replace(before, live=live, shadow=shadow), "test", ""
    )


def test_a_shadow_answers_the_same_inputs_later(tmp_path):
    onnx_models.scaled(tmp_path / "m" / "1" / "model.onnx", 2)
    onnx_models.scaled(tmp_path / "m" / "2" / "model.onnx", 3)
    shadowed(tmp_path)
    got = []

    async def main():
        async with serving(tmp_path, shadow=got.append) as engine:
            answers = await asyncio.gather(*[engine.submit(ask("m", rows(n), id=f"r{n}")) for n in (1, 2, 3)])
            assert {answer.version for answer in answers} == {"1@0"}
            await engine.submit(ask("m", rows(1), version="2", id="explicit"))
            await until(lambda: len(got) == 3)
            await asyncio.sleep(0.02)

    asyncio.run(main())
    assert [(s.request, s.model, s.version) for s in got] == [(f"r{n}", "m", "2@0") for n in (1, 2, 3)]
    for n, shadow in zip((1, 2, 3), got, strict=True):
        np.testing.assert_array_equal(np.frombuffer(shadow.scores, "<f4"), (rows(n) * 3).ravel())


def test_a_slow_shadow_delays_nobody_and_is_dropped_first(tmp_path):
    load, made = one_weight(tmp_path, versions=2)
    shadowed(tmp_path, "w")
    meter, got = Meter(), []

    async def main():
        limits = EngineLimits(instances=1, inline_us_max=0, queue_rows_max=4, rows_max=4)
        async with serving(tmp_path, limits, meter, load=load, shadow=got.append) as engine:
            made["2"].gate.clear()
            for _ in range(20):  # the shadow's queue takes 4 rows beside what it computes
                await engine.submit(ask("w", rows(1)))
            made["2"].gate.set()
            await until(lambda: len(got) >= 4)
            await asyncio.sleep(0.02)

    asyncio.run(main())
    lost = int(meter.counter("millstream_shadow_lost_total", "", {"model": "w", "version": "2"}).value)
    assert lost > 0
    assert len(got) + lost == 20
    assert meter.counter("millstream_requests_total", "", {"model": "w", "version": "2"}).value == 0


def test_a_shadow_that_fails_or_takes_other_inputs_is_counted_only(tmp_path):
    onnx_models.scaled(tmp_path / "m" / "1" / "model.onnx", 2)
    onnx_models.scaled(tmp_path / "m" / "2" / "model.onnx", 2, width=7)
    onnx_models.scaled(tmp_path / "m" / "3" / "model.onnx", 2)
    shadowed(tmp_path, shadow=("2", "3"))
    meter, got = Meter(), []

    def load(repository, model, version):
        from millstream.models import load as real

        loaded = real(repository, model, version)
        if version == "3":
            predict = loaded.predict
            loaded.predict = lambda inputs: predict(inputs) if inputs["x"].sum() == 0 else 1 / 0
        return loaded

    async def main():
        async with serving(tmp_path, meter=meter, load=load, shadow=got.append) as engine:
            await engine.submit(ask("m", rows(1)))
            counters = [
                meter.counter("millstream_shadow_lost_total", "", {"model": "m", "version": v}) for v in ("2", "3")
            ]
            await until(lambda: [counter.value for counter in counters] == [1, 1])
            assert (await engine.submit(ask("m", rows(1)))).version == "1@0"

    asyncio.run(main())
    assert got == []


def test_a_shadow_learns_too_between_its_batches(tmp_path):
    load, made = one_weight(tmp_path, versions=2)
    shadowed(tmp_path, "w")
    got = []

    async def main():
        async with serving(tmp_path, load=load, shadow=got.append) as engine:
            shadow: Weight = made["2"]
            shadow.gate.clear()
            inside = shadow.inside
            await engine.submit(ask("w", rows(1)))
            await until(lambda: shadow.inside > inside)
            engine.apply(delta(1, 0.5, base="2"))
            await engine.submit(ask("w", rows(1)))
            shadow.gate.set()
            await until(lambda: len(got) == 2)

    asyncio.run(main())
    assert [(s.version, np.frombuffer(s.scores, "<f4").tolist()) for s in got] == [("2@0", [0.0]), ("2@1", [0.5])]
