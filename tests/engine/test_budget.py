"""A memory budget: the model that was asked least recently gives way, and its next caller only waits."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import ask, rows, serving, until

import onnx_models
from millstream import errors
from millstream.engine import EngineLimits
from millstream.engine.budget import Budget, Tenant
from millstream.meter import Meter
from millstream.models import Repository
from millstream.models.traffic import promote

tenants = st.lists(
    st.builds(Tenant, st.sampled_from("abcdef"), st.integers(0, 50), st.integers(0, 9), st.booleans()),
    max_size=6,
    unique_by=lambda one: one.name,
)


@given(tenants, st.sampled_from("abcdefg"), st.integers(0, 60), st.integers(0, 120))
def test_only_idle_others_leave_the_least_recently_used_first_and_no_more_than_needed(there, coming, size, bytes_max):
    leaving = Budget(bytes_max).leave(there, coming, size)
    by_name = {one.name: one for one in there}
    assert coming not in leaving and all(by_name[name].idle for name in leaving)
    assert [by_name[name].used for name in leaving] == sorted(by_name[name].used for name in leaving)
    staying = sum(one.size for one in there if one.name not in leaving) + size
    may = [one for one in there if one.idle and one.name != coming and one.name not in leaving and one.size]
    if bytes_max:
        assert staying <= bytes_max or not may
        if leaving:  # without the last of them it would not have been enough
            assert staying + by_name[leaving[-1]].size > bytes_max
        if may and leaving:
            assert min(one.used for one in may) >= max(by_name[name].used for name in leaving)
    else:
        assert leaving == []


MB = 1 << 20


def heavy(root, name, scale, version=1):
    """A model of 32 MB: y = x + scale, with a table that weighs."""
    return onnx_models.weighing(root / name / str(version) / "model.onnx", scale, 32 * MB)


def limits(megabytes, **more):
    return EngineLimits(memory_bytes_max=megabytes * MB, poll_s=0.01, **more)


def test_models_that_do_not_fit_together_are_all_served(tmp_path):
    for number, name in enumerate("abcd"):
        heavy(tmp_path, name, number)

    async def main():
        meter = Meter()
        async with serving(tmp_path, limits(80), meter=meter) as engine:
            assert engine.ready() and engine.models() == tuple("abcd")
            for _ in range(3):
                for number, name in enumerate("abcd"):
                    assert engine.describe(name).inputs[0].name == "x"
                    found = await engine.submit(ask(name, rows(2)))
                    assert (found.outputs["y"] == rows(2) + number).all()
            loaded = [one for one in engine.index() if one.state == "READY"]
            assert 1 <= len(loaded) < 4
            asleep = next(one for one in engine.index() if one.state != "READY")
            assert "gave way" in asleep.reason

    asyncio.run(main())


def test_many_callers_of_a_sleeping_model_wait_for_one_load(tmp_path):
    for number, name in enumerate("ab"):
        heavy(tmp_path, name, number)

    async def main():
        loads = []
        async with serving(tmp_path, limits(60), on_load=lambda model, version: loads.append(model)) as engine:
            await engine.submit(ask("b", rows(1)))
            before = loads.count("a")
            asked = [engine.submit(ask("a", rows(1, start=n))) for n in range(50)]
            for n, found in enumerate(await asyncio.gather(*asked)):
                assert (found.outputs["y"] == rows(1, start=n)).all()
            assert loads.count("a") <= before + 1

    asyncio.run(main())


def test_a_sleeping_model_wakes_as_its_policy_says_by_then(tmp_path):
    heavy(tmp_path, "a", 1)
    heavy(tmp_path, "a", 5, version=2)
    heavy(tmp_path, "b", 2)
    repository = Repository(tmp_path)
    repository.change_policy("a", promote("1"), who="test", why="")

    async def main():
        async with serving(tmp_path, limits(60)) as engine:
            await engine.submit(ask("a", rows(1)))
            await engine.submit(ask("b", rows(1)))
            await until(lambda: not engine._served["a"].lanes)
            repository.change_policy("a", promote("2"), who="test", why="")
            await asyncio.sleep(0.05)
            assert not engine._served["a"].lanes  # a change alone wakes nobody
            found = await engine.submit(ask("a", rows(1)))
            assert found.version == "2@0" and (found.outputs["y"] == rows(1) + 5).all()

    asyncio.run(main())


def test_a_sleeping_model_whose_file_is_damaged_meanwhile_says_so(tmp_path):
    heavy(tmp_path, "a", 1)
    heavy(tmp_path, "b", 2)

    async def main():
        async with serving(tmp_path, limits(60)) as engine:
            await engine.submit(ask("a", rows(1)))
            await engine.submit(ask("b", rows(1)))
            await until(lambda: not engine._served["a"].lanes)
            (tmp_path / "a" / "1" / "model.onnx").write_bytes(b"torn")
            with pytest.raises(errors.Misconfigured, match="not a whole ONNX model"):
                await engine.submit(ask("a", rows(1)))
            assert ((await engine.submit(ask("b", rows(1)))).outputs["y"] == rows(1) + 2).all()

    asyncio.run(main())


def test_a_version_that_does_not_fit_alone_is_refused(tmp_path):
    heavy(tmp_path, "a", 1)
    onnx_models.scaled(tmp_path / "small" / "1" / "model.onnx", 2.0)

    async def main():
        async with serving(tmp_path, EngineLimits(memory_bytes_max=2 * MB)) as engine:
            with pytest.raises(errors.Misconfigured, match="memory_bytes_max"):
                engine.submit(ask("a", np.zeros((1, 4), np.float32)))

    asyncio.run(main())
