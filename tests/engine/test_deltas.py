"""Weights change between batches only, in sequence, and every answer names the weights that it came from."""

import asyncio
import threading

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import Weight, ask, delta, one_weight, rows, serving, until

from millstream import errors
from millstream.engine import EngineLimits
from millstream.models import Repository

LOOP = EngineLimits(inline_us_max=10_000)
ONE = EngineLimits(inline_us_max=0, instances=1)


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.mark.parametrize("limits", [LOOP, ONE])
def test_answers_carry_the_delta_that_they_contain(tmp_path, limits):
    load, _ = one_weight(tmp_path)
    first = []

    async def main():
        told = lambda *at: first.append(at)  # noqa: E731
        async with serving(tmp_path, limits, load=load, on_first_answer=told) as engine:
            assert (await engine.submit(ask("w", rows(1)))).version == "1@0"
            assert engine.apply(delta(1, 0.5))
            assert engine.apply(delta(2, 0.75))
            answer = await engine.submit(ask("w", rows(3)))
            assert answer.version == "1@2"
            assert answer.outputs["y"].tolist() == [0.75] * 3
            await engine.submit(ask("w", rows(3)))
            assert engine.apply(delta(3, 1))
            await engine.submit(ask("w", rows(1)))
            await asyncio.sleep(0)

    run(main())
    assert first == [("w", "1", 2), ("w", "1", 3)]


def test_a_duplicate_is_ignored_a_gap_and_damage_change_nothing(tmp_path):
    load, _ = one_weight(tmp_path)

    async def main():
        async with serving(tmp_path, LOOP, load=load) as engine:
            engine.apply(delta(1, 0.5))
            assert not engine.apply(delta(1, 99))
            for wrong, error, said in [
                (delta(3, 9), errors.Conflict, "delta 3 after 1; read the deltas of this base again from 2"),
                (delta(2, 9, checksum=1), errors.Corrupt, "delta 2 expected checksum 1, got"),
                (delta(2, 9, slots=b"", checksum=0), errors.Corrupt, "delta 2"),
                (delta(2, 9, dense=b"1234", checksum=delta(2, 9).checksum), errors.Corrupt, "delta 2"),
                (delta(2, 9, calibration=b"12345678"), errors.Corrupt, "of 4, 4, 0, 8 bytes; read it again"),
                (delta(2, 9, dense=b"12345"), errors.Corrupt, "of 4, 4, 5, 0 bytes"),
                (delta(2, 9, slots=b"12345678"), errors.Corrupt, "of 8, 4, 0, 0 bytes"),
                (delta(2, 9, slots=b""), errors.Corrupt, "of 0, 4, 0, 0 bytes"),
                (delta(2, 9, weights=b""), errors.Corrupt, "of 4, 0, 0, 0 bytes"),
                (delta(2, 9, base="7"), errors.NotFound, "w 7 is not loaded here"),
                (delta(2, 9, model="q"), errors.NotFound, "q 1 is not loaded here"),
            ]:
                with pytest.raises(error, match=said):
                    engine.apply(wrong)
            with pytest.raises(errors.Error, match="w 1 refuses delta 2, and stays as it is: a weight is not finite"):
                engine.apply(delta(2, np.nan))
            answer = await engine.submit(ask("w", rows(1)))
            assert (answer.version, answer.outputs["y"][0]) == ("1@1", 0.5)
            assert engine.apply(delta(2, 0.25))

    run(main())


def test_a_model_is_given_all_parts_of_a_delta(tmp_path):
    load, made = one_weight(tmp_path)
    slots, weights = np.array([4, 9], "<u4"), np.arange(6, dtype="<f4")
    dense, calibration = np.array([7], "<f4"), np.array([0.5, -1])
    got = []

    async def main():
        async with serving(tmp_path, LOOP, load=load) as engine:
            made["1"].apply = lambda *parts: got.append(parts)
            arrays = {"slots": slots, "weights": weights, "dense": dense, "calibration": calibration}
            assert engine.apply(delta(1, 0, **{name: array.tobytes() for name, array in arrays.items()}))
            assert engine.apply(delta(2, 0, slots=b"", weights=b"", dense=dense.tobytes()))
            assert engine.apply(delta(3, 2.0))

    run(main())
    assert [[part.tolist() for part in parts] for parts in got] == [
        [[4, 9], [[0, 1, 2], [3, 4, 5]], [7], [0.5, -1]],
        [[], [], [7], []],
        [[0], [2], [], []],
    ]


def test_a_model_that_does_not_learn_says_so(tmp_path):
    import onnx_models

    onnx_models.scaled(tmp_path / "w" / "1" / "model.onnx", 2)

    async def main():
        async with serving(tmp_path) as engine:
            with pytest.raises(errors.Conflict, match=r"w 1 \(format onnx\) takes no deltas"):
                engine.apply(delta(1, 1))

    run(main())


def test_a_delta_waits_for_the_batch_under_way_and_no_new_one_overtakes_it(tmp_path):
    load, made = one_weight(tmp_path)

    async def main():
        async with serving(tmp_path, EngineLimits(inline_us_max=0, instances=2), load=load) as engine:
            weight = made["1"]
            weight.gate.clear()
            inside = weight.inside
            before = engine.submit(ask("w", rows(1)))
            await until(lambda: weight.inside > inside)
            assert engine.apply(delta(1, 0.5))
            assert engine.apply(delta(2, 0.75))
            assert not engine.apply(delta(2, 0.75))
            with pytest.raises(errors.Conflict, match="delta 4 after 2"):
                engine.apply(delta(4, 1))
            after = engine.submit(ask("w", rows(1)))
            await asyncio.sleep(0.02)
            assert weight.inside == inside + 1  # though an instance is free
            weight.gate.set()
            one, two = await asyncio.gather(before, after)
            assert (one.version, one.outputs["y"][0]) == ("1@0", 0)
            assert (two.version, two.outputs["y"][0]) == ("1@2", 0.75)

    run(main())


def test_a_delta_waits_for_every_batch_under_way(tmp_path):
    """Two batches run; the first ends; the second must still see the weights that it began with."""

    class Turns(Weight):
        def __init__(self):
            super().__init__()
            self.gates = {1: threading.Event(), 2: threading.Event()}

        def predict(self, inputs):
            if n := self.armed and len(inputs["x"]):
                self.gate = self.gates[n]
            return super().predict(inputs)

        armed = 0

    one_weight(tmp_path)
    weight = Turns()

    async def main():
        limits = EngineLimits(inline_us_max=0, instances=2)
        async with serving(tmp_path, limits, load=lambda *_: weight) as engine:
            weight.armed, inside = 1, weight.inside
            first = engine.submit(ask("w", rows(1)))
            await until(lambda: weight.inside == inside + 1)
            second = engine.submit(ask("w", rows(2)))
            await until(lambda: weight.inside == inside + 2)
            engine.apply(delta(1, 0.5))
            weight.gates[1].set()
            await first
            await asyncio.sleep(0.01)
            assert weight.weight == 0
            weight.gates[2].set()
            assert (await second).version == "1@0"
            assert (await engine.submit(ask("w", rows(1)))).version == "1@1"

    run(main())


def test_a_new_base_has_its_deltas_before_its_first_answer(tmp_path):
    load, _ = one_weight(tmp_path, versions=2)
    change = Repository(tmp_path).change_policy
    change("w", lambda before: msgspec.structs.replace(before, live="1"), "test", "")
    engine, seen = None, set()

    def catch_up(model, version):
        if engine:
            engine.apply(delta(1, 0.5, base=version))

    async def main():
        nonlocal engine
        limits = EngineLimits(inline_us_max=10_000, poll_s=0.002)
        async with serving(tmp_path, limits, load=load, on_load=catch_up) as engine:
            change("w", lambda before: msgspec.structs.replace(before, live="2"), "test", "")
            while "2@1" not in seen:
                seen.add((await engine.submit(ask("w", rows(1)))).version)

    run(main())
    assert seen == {"1@0", "2@1"}


def test_a_waiting_delta_that_the_model_refuses_is_given_up_and_shows_as_a_gap(tmp_path, caplog):
    load, made = one_weight(tmp_path)

    async def main():
        async with serving(tmp_path, ONE, load=load) as engine:
            weight = made["1"]
            weight.gate.clear()
            inside = weight.inside
            before = engine.submit(ask("w", rows(1)))
            await until(lambda: weight.inside > inside)
            for sequence, value in ((1, 0.5), (2, np.nan), (3, 0.75)):
                engine.apply(delta(sequence, value))
            weight.gate.set()
            await before
            assert (await engine.submit(ask("w", rows(1)))).version == "1@1"
            with pytest.raises(errors.Conflict, match="again from 2"):
                engine.apply(delta(4, 1))

    run(main())
    assert "not finite" in caplog.text


def test_deltas_that_wait_have_a_bound(tmp_path):
    load, made = one_weight(tmp_path)

    async def main():
        async with serving(tmp_path, ONE, load=load) as engine:
            weight = made["1"]
            weight.gate.clear()
            inside = weight.inside
            before = engine.submit(ask("w", rows(1)))
            await until(lambda: weight.inside > inside)
            with pytest.raises(errors.Busy, match="64 deltas wait"):
                for sequence in range(1, 100):
                    engine.apply(delta(sequence, sequence))
            weight.gate.set()
            await before
            assert (await engine.submit(ask("w", rows(1)))).version == "1@64"

    run(main())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 12), st.just("delta"), st.just("pause")), max_size=40),
    st.sampled_from([LOOP, EngineLimits(inline_us_max=0, instances=3, rows_max=8)]),
)
def test_every_answer_is_of_the_weights_it_names_and_no_batch_saw_two(tmp_path_factory, steps, limits):
    load, made = one_weight(root := tmp_path_factory.mktemp("models"))

    async def main():
        async with serving(root, limits, load=load) as engine:
            answers, sequence = [], 0
            for step in steps:
                if step == "delta":
                    sequence += 1
                    engine.apply(delta(sequence, sequence))
                elif step == "pause":
                    await asyncio.sleep(0)
                else:
                    answers.append((sequence, step, engine.submit(ask("w", rows(step)))))
            for applied, n, future in answers:
                answer = await future
                named = int(answer.version.partition("@")[2])
                assert named >= applied
                assert answer.outputs["y"].tolist() == [named] * n

    asyncio.run(main())
    assert all(before == after for _, before, after in made["1"].batches)
