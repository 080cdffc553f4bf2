"""Versions change under load without a failed or a mixed answer, and nothing bad ever replaces what is good."""

import asyncio
import gc
import threading
import weakref

import msgspec
import numpy as np
import pytest
from rig import Weight, ask, one_weight, rows, serving, until

import onnx_models
from millstream import errors
from millstream.clock import FakeClock, SystemClock
from millstream.engine import Engine, EngineLimits
from millstream.meter import Meter
from millstream.models import Canary, Manifest, Repository, load
from millstream.models.traffic import promote

FAST = EngineLimits(poll_s=0.002)


def put(root, number, model="m", **more):
    """A version whose answers say `number`."""
    file = onnx_models.stamped(root.parent / "made.onnx", number)
    return Repository(root).put(model, Manifest(format="onnx", file="f.onnx", **more), {"f.onnx": file})


def policy(root, model="m", **fields):
    change = lambda before: msgspec.structs.replace(before, **fields)  # noqa: E731
    return Repository(root).change_policy(model, change, "test", "because")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "models"


@pytest.mark.parametrize("inline_us_max", [10_000, 0])
def test_twenty_swaps_under_load_fail_and_mix_nothing(root, inline_us_max):
    for number in range(1, 5):
        put(root, number)
    policy(root, live="1")
    limits = EngineLimits(poll_s=0.002, rows_max=16, inline_us_max=inline_us_max, instances=2)
    seen, answers = [], 0

    async def caller(engine, done, n):
        nonlocal answers
        while not done.is_set():
            x = rows(n, 1, float(answers % 97))
            answer = await engine.submit(ask("m", x))
            number = np.float32(answer.version.partition("@")[0])
            assert (answer.outputs["version"] == number).all()
            np.testing.assert_array_equal(answer.outputs["y"], x + number)
            answers += 1

    async def main():
        done = asyncio.Event()
        async with serving(root, limits) as engine, asyncio.TaskGroup() as callers:
            for n in (1, 1, 2, 5, 20):
                callers.create_task(caller(engine, done, n))
            for swap in range(20):
                live = str(swap % 4 + 1)
                number = policy(root, live=live).version
                await until(lambda number=number: engine.views()[0].policy == number)
                answer = await engine.submit(ask("m", rows(1, 1)))
                seen.append((answer.version, answer.policy == number))
            done.set()

    asyncio.run(main())
    assert seen == [(f"{swap % 4 + 1}@0", True) for swap in range(20)]
    assert answers > 20


def test_requests_that_wait_on_the_old_version_are_answered_by_it(root):
    load, made = one_weight(root, versions=2)
    policy(root, "w", live="1")

    async def main():
        limits = EngineLimits(poll_s=0.002, inline_us_max=0, instances=1)
        async with serving(root, limits, load=load) as engine:
            made["1"].gate.clear()
            old = [engine.submit(ask("w", rows(n))) for n in (1, 2, 3)]
            policy(root, "w", live="2")
            await until(lambda: engine.views()[0].live == "2@0")
            new = engine.submit(ask("w", rows(1)))
            made["1"].gate.set()
            assert [(await answer).version for answer in (*old, new)] == ["1@0", "1@0", "1@0", "2@0"]
            gone = weakref.ref(made.pop("1"))
            old.clear()
            await asyncio.sleep(0.01)
            gc.collect()
            assert gone() is None
            assert engine.describe("w").versions == ("2",)

    asyncio.run(main())


def bad_digest(root):
    put(root, 2)
    with (root / "m" / "2" / "f.onnx").open("ab") as file:
        file.write(b"!")


def bad_bytes(root):
    Repository(root).put("m", Manifest(format="onnx", file="f.onnx"), {"f.onnx": b"junk"})


def bad_example(root):
    put(root, 2, example={"x": [[1.0, 2.0, 3.0]]})


def bad_answer(root):
    put(root, np.inf, example={"x": [[1.0]]})


def not_admitted(root):
    put(root, 2, features="other")


def admit(model, manifest):
    if manifest.features:
        raise errors.Misconfigured(f"{model} was trained on features {manifest.features}")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bad_digest, "expected sha256:"),
        (bad_bytes, "not a whole ONNX model"),
        (bad_example, "fails on its own example"),
        (bad_answer, "NaN or infinity in 'y' to its own example"),
        (not_admitted, "trained on features other"),
    ],
)
def test_a_bad_version_never_replaces_a_good_one(root, caplog, make, said):
    put(root, 1)
    policy(root, live="1")
    meter = Meter()

    async def main():
        async with serving(root, FAST, meter, admit=admit) as engine:
            make(root)
            policy(root, live="2", why="to a bad one")
            await until(lambda: "2" in engine.views()[0].problems)
            await asyncio.sleep(0.05)
            answer = await engine.submit(ask("m", rows(1, 1)))
            assert (answer.version, answer.policy) == ("1@0", 1)
            view = engine.views()[0]
            assert (view.live, list(view.problems)) == ("1@0", ["2"])
            assert said in view.problems["2"]
            assert engine.ready()
            put(root, 3)
            policy(root, live="3")
            await until(lambda: engine.views()[0].live == "3@0")
            assert engine.views()[0].problems == {}

    asyncio.run(main())
    assert len([record for record in caplog.records if "m 2 is not served" in record.message]) == 1
    assert "millstream_refused_total 1\n" in meter.render()


def test_a_version_that_is_put_right_is_tried_again(root):
    put(root, 1)
    policy(root, live="1")

    async def main():
        async with serving(root, FAST) as engine:
            bad_bytes(root)
            policy(root, live="2")
            await until(lambda: engine.views()[0].problems)
            (root / "m" / "2" / "model.toml").unlink()
            onnx_models.stamped(root / "m" / "2" / "f.onnx", 7)
            await until(lambda: engine.views()[0].live == "2@0")

    asyncio.run(main())


def test_a_bad_canary_leaves_the_rest_of_the_policy_in_force(root):
    put(root, 1), put(root, 2)
    bad_bytes(root)
    policy(root, live="1")

    async def main():
        async with serving(root, FAST) as engine:
            policy(root, live="2", canary=Canary("3", 0.9), shadow=("3",))
            await until(lambda: engine.views()[0].live == "2@0" and engine.views()[0].problems)
            answers = await asyncio.gather(*[engine.submit(ask("m", rows(1, 1), key=str(i))) for i in range(20)])
            assert {(answer.version, answer.arm, answer.policy) for answer in answers} == {("2@0", "live", 2)}

    asyncio.run(main())


@pytest.mark.parametrize(
    "text", ["live = 9", "live = 2\ncanry = 1", "\xff", "live = 2\ncanary = {version = 1, share = 2}"]
)
def test_a_bad_policy_on_disk_is_shown_and_the_last_good_one_stays(root, text):
    put(root, 1), put(root, 2)
    policy(root, live="1")

    async def main():
        async with serving(root, FAST) as engine:
            (root / "m" / "policy.toml").write_bytes(text.encode("latin-1"))
            await until(lambda: "policy" in engine.views()[0].problems)
            assert "policy.toml" in engine.views()[0].problems["policy"]
            assert (await engine.submit(ask("m", rows(1, 1)))).version == "1@0"
            (root / "m" / "policy.toml").write_text("version = 8\nlive = 2\n")
            await until(lambda: engine.views()[0].live == "2@0")
            assert engine.views()[0].problems == {}

    asyncio.run(main())


def test_a_bad_model_at_boot_stops_no_other_and_says_why(root):
    put(root, 1, "good")
    Repository(root).put("bad", Manifest(format="onnx", file="f"), {"f": b"junk"})

    async def main():
        async with serving(root, FAST) as engine:
            assert engine.models() == ("good",)
            assert not engine.ready()
            assert (await engine.submit(ask("good", rows(1, 1)))).version == "1@0"
            with pytest.raises(errors.Misconfigured, match=r"bad has no version that answers: bad 1: .*whole ONNX"):
                engine.submit(ask("bad", rows(1, 1)))
            put(root, 1, "bad")
            await until(engine.ready)

    asyncio.run(main())


def test_a_process_that_starts_with_a_broken_policy_serves_the_last_usable_one_and_says_so(root, caplog):
    put(root, 1), put(root, 2), put(root, 3)
    policy(root, live="2")
    policy(root, live="1")
    policy(root, live="3")
    Repository(root)._model("m").joinpath("3").rename(root.parent / "gone")
    (root / "m" / "policy.toml").write_text("live = \n")

    async def main():
        async with serving(root, FAST) as engine:
            assert (await engine.submit(ask("m", rows(1, 1)))).version == "1@0"
            assert engine.ready()
            (view,) = engine.views()
            assert view.policy == 2 and "policy.toml" in view.problems["policy"]
            assert "policy 2 of its history is in force (live = 1)" in caplog.text
            (root / "m" / "policy.toml").write_text("version = 4\nlive = 2\n")
            await until(lambda: engine.views()[0].live == "2@0")
            assert engine.views()[0].problems == {}

    asyncio.run(main())


def test_a_broken_policy_without_a_history_is_not_guessed_around(root, caplog):
    put(root, 1)
    (root / "m" / "policy.toml").write_text("live = \n")

    async def main():
        async with serving(root, FAST) as engine:
            with pytest.raises(errors.Misconfigured, match=r"policy\.toml"):
                engine.submit(ask("m", rows(1, 1)))
            assert "m does not answer until the file is corrected" in caplog.text
            assert "stays in force" not in caplog.text

    asyncio.run(main())


def test_canary_and_explicit_versions_answer_by_name(root):
    put(root, 1), put(root, 2), put(root, 3)
    policy(root, live="1", canary=Canary("2", 0.5), shadow=("3",))

    async def main():
        async with serving(root, FAST) as engine:
            answers = await asyncio.gather(*[engine.submit(ask("m", rows(1, 1), key=str(i))) for i in range(100)])
            assert {(a.version, a.arm, float(a.outputs["version"][0, 0])) for a in answers} == {
                ("1@0", "live", 1.0),
                ("2@0", "canary", 2.0),
            }
            assert (await engine.submit(ask("m", rows(1, 1), version="3"))).version == "3@0"
            assert engine.views()[0].versions == {"1@0": "live", "2@0": "canary", "3@0": "shadow"}

    asyncio.run(main())


def test_time_belongs_to_the_clock(root):
    put(root, 1)
    clock = FakeClock()

    async def main():
        async with serving(root, clock=clock) as engine:
            await asyncio.sleep(0)
            put(root, 2)
            await asyncio.sleep(0.05)
            assert engine.views()[0].live == "1@0"
            clock.advance(0.2)
            await until(lambda: engine.views()[0].live == "2@0")

    asyncio.run(main())


def test_loading_is_told_and_a_slow_load_delays_no_roll_back(root):
    one_weight(root, versions=3)
    policy(root, "w", live="2")
    told, slow = [], Weight()

    def load(repository, model, version):
        if version == "3":
            assert slow.gate.wait(20)
        return Weight()

    async def main():
        async with serving(root, FAST, load=load, on_load=lambda *at: told.append(at)) as engine:
            policy(root, "w", live="2", canary=Canary("1", 0.1))
            await until(lambda: ("w", "1") in told)
            slow.gate.clear()
            policy(root, "w", live="3")
            await asyncio.sleep(0.02)
            policy(root, "w", live="1", canary=None)
            await until(lambda: engine.views()[0].live == "1@0")
            slow.gate.set()
            await engine.refresh()
            assert engine.views()[0].live == "1@0"

    asyncio.run(main())
    assert told[:2] == [("w", "2"), ("w", "1")]


def counting(loads):
    def load_counted(repository, model, version):
        loads.append(version)
        return load(repository, model, version)

    return load_counted


@pytest.mark.parametrize(("slow", "quick"), [("python", "python"), ("python", "weight"), ("weight", "python")])
def test_a_program_that_takes_minutes_to_load_holds_up_no_other(tmp_path, slow, quick):
    """An environment may have to be built first; and no program waits for what loads in the serving process."""
    load, _ = one_weight(tmp_path, model="slow", format=slow)
    one_weight(tmp_path, model="quick", format=quick)
    gate = threading.Event()

    def loads(repository, model, version):
        assert model == "quick" or gate.wait(30.0)
        return load(repository, model, version)

    async def scene():
        engine = Engine(Repository(tmp_path), SystemClock(), Meter(), load=loads)
        starting = asyncio.create_task(engine.start())
        await until(lambda: "quick" in engine.models(), seconds=30.0)
        answer = await engine.submit(ask("quick", np.zeros((1, 4), np.float32)))
        assert answer.outputs["y"].tolist() == [0.0] and "slow" not in engine.models()
        gate.set()
        await starting
        assert sorted(engine.models()) == ["quick", "slow"]
        await engine.stop()

    asyncio.run(scene())


def test_a_roll_back_loads_nothing(tmp_path):
    for version in (1, 2):
        onnx_models.stamped(tmp_path / "m" / str(version) / "model.onnx", version)
    repository, loads = Repository(tmp_path), []
    repository.change_policy("m", promote("1"), who="test", why="")

    async def main():
        async with serving(tmp_path, load=counting(loads)) as engine:
            for version in ("2", "1", "2"):
                repository.change_policy("m", promote(version), who="test", why="")
                await engine.refresh()
                assert (await engine.submit(ask("m", rows(1, 1)))).version == f"{version}@0"
            assert loads == ["1", "2"]

    asyncio.run(main())


def test_what_was_live_before_is_kept_for_a_while_and_only_the_last_of_it(tmp_path):
    for version in (1, 2, 3):
        onnx_models.stamped(tmp_path / "m" / str(version) / "model.onnx", version)
    repository, loads, clock = Repository(tmp_path), [], FakeClock()
    repository.change_policy("m", promote("1"), who="test", why="")

    def loaded(engine):
        return sorted(lane.version for lane in engine._workers)

    async def main():
        async with serving(tmp_path, EngineLimits(keep_s=60), clock=clock, load=counting(loads)) as engine:
            for version in ("2", "3"):
                repository.change_policy("m", promote(version), who="test", why="")
                await engine.refresh()
            assert loaded(engine) == ["1", "2", "3"]
            for seconds, left in ((10, ["2", "3"]), (60, ["3"])):
                clock.advance(seconds)
                await asyncio.sleep(0.01)
                assert loaded(engine) == left

    asyncio.run(main())


def test_the_log_says_once_that_traffic_moved_from_what_to_what_and_who_moved_it(root, caplog):
    for number in (1, 2, 3):
        put(root, number)
    policy(root, live="1")

    async def main():
        async with serving(root, FAST) as engine:
            policy(root, live="3", shadow=("2",))
            await engine.refresh()
            Repository(root).change_policy("m", promote("3"), who="ann@example.org", why="call 13912345678")
            await engine.refresh()

    with caplog.at_level("INFO", "millstream.engine.watch"):
        asyncio.run(main())
    first, second, third = (one.getMessage() for one in caplog.records if ": policy " in one.getMessage())
    assert first == "m: policy 1 by test (because): live 1"
    assert second == "m: policy 2 by test (because): live 3, was 1, 2 shadow"
    assert third.startswith("m: policy 3 by [EMAIL#") and third.endswith("): live 3, 2 shadow")
    assert "13912345678" not in third
