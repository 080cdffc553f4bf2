"""Models in processes of their own: they answer as they would alone, and what they do to themselves is theirs alone."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from apart_models import (
    BAD,
    CRASH,
    EXIT,
    HANG,
    HUGE,
    PRINT,
    RAISE,
    SEGFAULT,
    SPAM,
    UNRULY,
    children,
    programs,
    put,
    put_unruly,
    until,
)

from millstream import errors
from millstream.meter import Meter
from millstream.models import Manifest, Repository, load
from millstream.models.apart.inspect import look_into
from millstream.models.manifest import Process


def x(*values):
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def meter():
    return Meter()


@pytest.fixture
def unruly(root, meter):
    put_unruly(root)
    with programs(meter) as made:
        yield load(Repository(root), "m", "1", programs=made)


def restarts(meter, cause):
    return meter.values("millstream_process_restarts_total", {"model": "m", "version": "1", "cause": cause})[0]


def answers(model, *values):
    """Its answer, as soon as it has one again."""

    def ask():
        try:
            return model.predict(x(*values))["y"].ravel().tolist()
        except errors.Lost:
            return None

    return until(ask)


def test_it_answers_from_another_process(unruly):
    assert unruly.predict(x(1, 2))["y"].tolist() == [[2], [3]]
    assert unruly.pids() and os.getpid() not in unruly.pids()
    assert set(unruly.pids()) <= children()


def test_without_opt_in_nothing_of_a_program_runs_and_the_refusal_says_how_to_allow_it(root, tmp_path):
    trace = tmp_path / "it-ran"
    text = f"open({str(trace)!r}, 'w')\n" + UNRULY.replace("ADD", "1")
    put(root, text)
    with pytest.raises(errors.Misconfigured, match=r"'python' is a program.*sha256:.*--allow-code.*allow_code = true"):
        load(Repository(root), "m", "1")
    assert not trace.exists()
    with programs() as made:
        load(Repository(root), "m", "1", programs=made)
    assert trace.exists()


def test_a_file_without_a_digest_is_refused(root):
    put_unruly(root)
    (root / "m" / "1" / "extra.py").write_text("import os")
    with programs() as made, pytest.raises(errors.Misconfigured, match=r"extra\.py has no digest"):
        load(Repository(root), "m", "1", programs=made)


def test_a_file_that_differs_from_its_digest_is_refused(root):
    put_unruly(root)
    (root / "m" / "1" / "own.py").write_text(UNRULY.replace("ADD", "2"))
    with programs() as made, pytest.raises(errors.Corrupt, match="expected sha256"):
        load(Repository(root), "m", "1", programs=made)


def test_what_was_checked_is_what_runs_also_at_a_restart(root, unruly, caplog):
    caplog.set_level(logging.INFO)
    (root / "m" / "1" / "own.py").write_text(UNRULY.replace("ADD", "2"))
    os.kill(unruly.pids()[0], signal.SIGKILL)
    until(lambda: "cannot be started again" in caplog.text)
    assert "differs from its digest in model.toml" in caplog.text
    with pytest.raises(errors.Lost, match="not ready yet"):
        unruly.predict(x(1))
    (root / "m" / "1" / "own.py").write_text(UNRULY.replace("ADD", "1"))
    assert answers(unruly, 1) == [2]


@pytest.mark.parametrize(
    ("value", "how"), [(CRASH, "SIGKILL, as when memory runs out"), (SEGFAULT, "SIGSEGV"), (EXIT, "exit code 3")]
)
def test_a_crash_fails_its_own_call_and_is_restarted_counted_and_said(unruly, meter, caplog, value, how):
    before = unruly.pids()
    with pytest.raises(errors.Lost, match="m 1: its process ended while it computed this; try again"):
        unruly.predict(x(value))
    assert answers(unruly, 1) == [2]
    assert unruly.pids() != before
    assert (restarts(meter, "died"), restarts(meter, "hung")) == (1, 0)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [
        f"m 1: its process (pid {before[0]}) died ({how}) in the middle of its work. The requests of the call under "
        "way got a 503 (try again). The next is started now; other models go on."
    ]


def test_a_death_between_calls_loses_no_request(unruly, meter, caplog):
    os.kill(unruly.pids()[0], signal.SIGTERM)
    until(lambda: restarts(meter, "died"))
    assert answers(unruly, 1) == [2]
    assert "died (SIGTERM) while nobody asked it anything. No request was lost." in caplog.text


def test_a_call_that_hangs_is_ended_and_says_where_it_was(root, meter, caplog):
    caplog.set_level(logging.INFO)
    put_unruly(root, call_s_max=0.5)
    with programs(meter) as made:
        model = load(Repository(root), "m", "1", programs=made)
        with pytest.raises(errors.Lost, match=r"took longer than 0\.5 s \(process\.call_s_max\)"):
            model.predict(x(HANG))
        assert answers(model, 1) == [2]
        assert (restarts(meter, "died"), restarts(meter, "hung")) == (0, 1)
    assert "so its process" in caplog.text and "was killed" in caplog.text
    assert 'own.py", line' in caplog.text and "in predict" in caplog.text


def test_a_process_that_keeps_dying_is_started_more_and_more_slowly(unruly, meter, caplog):
    for _ in range(4):
        with pytest.raises(errors.Lost):
            unruly.predict(x(CRASH))
        until(unruly.pids)
    assert restarts(meter, "died") == 4
    pauses = [record.getMessage().rpartition("The next is started ")[2] for record in caplog.records]
    assert [pause.partition(";")[0] for pause in pauses if pause] == ["now", "in 0.1 s", "in 0.2 s", "in 0.5 s"]


def test_an_exception_goes_back_as_words_and_the_process_lives_on(unruly):
    before = unruly.pids()
    with pytest.raises(
        errors.Error, match=r"m 1 failed on this request: KeyError: .*a mistake of the model's"
    ) as failed:
        unruly.predict(x(RAISE))
    assert failed.value.status == 500
    with pytest.raises(errors.BadInput, match="m 1: 671 cannot be ranked"):
        unruly.predict(x(BAD))
    assert unruly.predict(x(1))["y"].tolist() == [[2]]
    assert unruly.pids() == before


FORKER = """
import os, time
import numpy as np


class Forker:
    def predict(self, inputs):
        x = inputs["x"]
        if x[0] == 8 and os.fork() == 0:
            raise RuntimeError("the helper failed")  # and its author forgot os._exit
        if x[0] == 9 and os.fork() == 0:
            time.sleep(0.1)  # comes back while the next call is computed
        return {"y": x * 2}

    inputs = {"x": "FP32[-1]"}
    outputs = {"y": "FP32[-1]"}
"""


@pytest.mark.parametrize("fork", [8, 9])
def test_a_copy_that_a_model_makes_of_its_process_answers_nobody(root, fork, caplog):
    caplog.set_level(logging.INFO)
    put(root, FORKER, inputs={"x": "FP32[-1]"}, outputs={"y": "FP32[-1]"})
    with programs() as made:
        model = load(Repository(root), "m", "1", programs=made)
        before = model.pids()
        for turn in range(300):
            given = np.array([fork if turn == 3 else 1000 + turn], np.float32)
            assert model.predict({"x": given})["y"] == given * 2
        until(lambda: "a copy of the process" in caplog.text)
        assert model.pids() == before


def test_an_answer_to_another_call_is_refused_and_the_process_replaced(unruly, caplog):
    answers(unruly, 1)
    seat = unruly._free[-1]
    read = seat.slot.read

    def late():
        answer = read()
        seat.slot.call -= 1
        return answer

    seat.slot.read = late
    before = unruly.pids()
    with pytest.raises(errors.Lost):
        unruly.predict(x(1))
    assert "an answer to" in caplog.text
    assert answers(unruly, 1) == [2] and unruly.pids() != before


def test_a_model_that_closed_its_stderr_may_still_fail_a_call(root):
    put(root, UNRULY.replace("ADD", "1") + "\nimport sys\nsys.stderr.close()\nos.close(2)\n")
    with programs() as made:
        model = load(Repository(root), "m", "1", programs=made)
        before = model.pids()
        with pytest.raises(errors.Error, match="a mistake of the model's"):
            model.predict(x(RAISE))
        assert model.predict(x(1))["y"].tolist() == [[2]] and model.pids() == before


def test_what_it_prints_is_logged_and_bounded(root, meter, caplog):
    caplog.set_level(logging.INFO)
    put_unruly(root, call_s_max=2.0)
    with programs(meter) as made:
        model = load(Repository(root), "m", "1", programs=made)
        model.predict(x(PRINT))
        until(lambda: "and more on stdout" in caplog.text)
        assert f"m 1 (process {model.pids()[0]}): printed" in caplog.text
        with pytest.raises(errors.Lost):
            model.predict(x(SPAM))
        assert answers(model, 1) == [2]
    lines = [record.getMessage() for record in caplog.records]
    assert sum("x" * 400 in line for line in lines) <= 200
    assert any("prints more than is logged" in line for line in lines)
    assert max(map(len, lines)) < 1000


def test_an_answer_larger_than_goes_through_is_refused_and_the_process_lives_on(unruly):
    with pytest.raises(errors.TooLarge, match="fewer rows"):
        unruly.predict(x(HUGE))
    assert unruly.predict(x(1))["y"].tolist() == [[2]]


def test_answers_under_concurrent_load_are_those_alone_and_nobody_gets_anothers(root):
    put_unruly(root)
    with programs(instances=2) as made:
        model = load(Repository(root), "m", "1", programs=made)
        assert len(model.pids()) == 2

        def ask(number):
            rows = 1 + number % 50
            sent = np.arange(number, number + rows, dtype=np.float32).reshape(-1, 1)
            got = model.predict({"x": sent * 1000})["y"]
            np.testing.assert_array_equal(got, sent * 1000 + 1)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(2000)))


def test_crashes_under_load_fail_only_calls_of_that_process(root):
    put_unruly(root)
    with programs(instances=2) as made:
        model = load(Repository(root), "m", "1", programs=made)
        lost, wrong, done = [], [], threading.Event()

        def ask(_):
            while not done.is_set():
                try:
                    if model.predict(x(5))["y"].tolist() != [[6]]:
                        wrong.append(1)
                except errors.Lost:
                    lost.append(1)

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, n) for n in range(4)]
            for _ in range(5):
                os.kill(until(model.pids)[0], signal.SIGKILL)
                time.sleep(0.2)
            until(lambda: len(model.pids()) == 2)
            done.set()
            for one in asking:
                one.result()
        assert not wrong
        assert len(lost) <= 5 * 2 + 4  # two seats a process; a start that takes long fails who has waited

    assert not children()


def test_ten_loads_leave_no_process_and_no_descriptor(root):
    put_unruly(root)
    before = len(os.listdir("/proc/self/fd"))
    with programs() as made:
        for _ in range(10):
            model = load(Repository(root), "m", "1", programs=made)
            assert model.predict(x(1))["y"].tolist() == [[2]]
            model.close()
            with pytest.raises(errors.Busy, match="unloaded"):
                model.predict(x(1))
    assert not children()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nothing_of_that_name", "needs the module 'nothing_of_that_name'.*pip install.*requirements"),
        ("raise RuntimeError('no weights')", "m 1: RuntimeError: no weights"),
        ("import os; os._exit(7)", r"ended while it started \(exit code 7\)"),
        ("import sys; sys.exit('I will not')", r"ended while it started.*I will not"),
        ("import ctypes; ctypes.string_at(0)", r"ended while it started \(SIGSEGV\).*it said last"),
        ("x = 1", "0 classes in it have a method predict"),
        (UNRULY.replace("ADD", "1").replace('"FP32[-1,1]"}', '"FP32[-1,2]"}', 1), "model.toml says inputs"),
        (UNRULY.replace("ADD", "1").replace('"FP32[-1,1]"}', '"FP31"}', 1), "'FP31' says no tensor"),
    ],
)
def test_a_program_that_cannot_be_loaded_says_why_and_leaves_nothing(root, text, why):
    put(root, text)
    with programs() as made, pytest.raises(errors.Misconfigured, match=why):
        load(Repository(root), "m", "1", programs=made)
    assert not children()


def test_one_that_is_never_ready_is_given_up(root):
    put(root, "import time; time.sleep(3600)", process=Process(start_s_max=1.0))
    with programs() as made, pytest.raises(errors.Misconfigured, match="not ready within 1 s"):
        load(Repository(root), "m", "1", programs=made)
    assert not children()


def test_a_python_that_is_not_there_is_said(root):
    put_unruly(root)
    why = pytest.raises(errors.Misconfigured, match="/no/python cannot be started")
    with programs(python_for=lambda folder, manifest: Path("/no/python")) as made, why:
        load(Repository(root), "m", "1", programs=made)


def test_its_threads_are_bounded_and_it_does_not_see_the_house(root):
    text = """
import os, sys
class Env:
    inputs = {"x": "FP32[-1,1]"}
    outputs = {"y": "BYTES[-1]"}
    def predict(self, inputs):
        seen = [module in sys.modules for module in ("onnxruntime", "millstream.engine", "tomli_w")]
        return {"y": [f"{os.environ['OMP_NUM_THREADS']} {seen}"] * len(inputs["x"])}
"""
    put(root, text, outputs={"y": "BYTES[-1]"})
    with programs() as made:
        model = load(Repository(root), "m", "1", programs=made)
        assert model.predict(x(1))["y"].tolist() == ["1 [False, False, False]"]


def test_a_server_that_is_killed_leaves_no_process_also_in_the_middle_of_a_call(root, tmp_path):
    put_unruly(root)
    code = f"""
import sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from apart_models import HANG
from millstream.meter import Meter
from millstream.models import Repository, load
from millstream.models.apart import Programs
from pathlib import Path
model = load(Repository(Path({str(root)!r})), "m", "1", programs=Programs(Meter(), 2))
threading.Thread(target=lambda: model.predict({{"x": np.full((1, 1), HANG, np.float32)}}), daemon=True).start()
time.sleep(0.3)
print(*model.pids(), flush=True)
time.sleep(3600)
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in server.stdout.readline().split()]
    assert len(pids) == 2
    server.kill()
    server.wait()
    server.stdout.close()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_looking_into_a_program_is_done_elsewhere_too(tmp_path):
    (tmp_path / "own.py").write_text(UNRULY.replace("ADD", "1"))
    found = look_into(tmp_path, Manifest(format="python", file="own.py"), {}, Path(sys.executable))
    assert [spec.name for spec in found.inputs] == ["x"]
    assert "own" not in sys.modules
    with pytest.raises(errors.Misconfigured, match=r"own\.py: its process ended while it started \(SIGKILL"):
        look_into(
            tmp_path, Manifest(format="python", file="own.py"), {"x": np.full((1, 1), CRASH, np.float32)},
            Path(sys.executable),
        )  # fmt: skip
    assert not children()


# In the engine.


sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
from rig import ask, serving  # noqa: E402

from millstream.engine import EngineLimits  # noqa: E402


@asynccontextmanager
async def served(root, meter=None, limits=None):
    with programs(meter) as made:
        limits = limits or EngineLimits(poll_s=0.01)
        async with serving(root, limits, meter, load=partial(load, programs=made)) as engine:
            yield engine


def test_a_crash_takes_no_other_model_down_and_a_crash_loop_neither(root, meter):
    put_unruly(root, model="m")
    put_unruly(root, model="other", add=10)

    async def crash(engine, done):
        lost = 0
        while not done.is_set():
            try:
                await engine.submit(ask("m", np.full((1, 1), CRASH, np.float32)))
            except errors.Lost:
                lost += 1
        return lost

    async def main():
        async with served(root, meter) as engine:
            done = asyncio.Event()
            crashing = asyncio.create_task(crash(engine, done))
            for number in range(300):
                answer = await engine.submit(ask("other", np.full((1, 1), number, np.float32)))
                assert answer.outputs["y"].tolist() == [[number + 10]]
            while restarts(meter, "died") < 3:
                answer = await engine.submit(ask("other", np.full((1, 1), 1, np.float32)))
            done.set()
            assert await crashing >= 3
        return True

    assert asyncio.run(main())
    assert not children()


def test_requests_of_a_crashed_batch_are_not_computed_again(root, meter):
    put_unruly(root, model="m")

    async def main():
        async with served(root, meter, EngineLimits(poll_s=0.01, rows_max=64, wait_ms=50)) as engine:
            values = [1, 2, CRASH, 3, 4]
            answers = [engine.submit(ask("m", np.full((1, 1), value, np.float32))) for value in values]
            got = await asyncio.gather(*answers, return_exceptions=True)
            assert [type(one) for one in got] == [errors.Lost] * 5
            assert all(one.status == 503 and one.retry_after_s for one in got)
            await asyncio.sleep(0.5)
            assert restarts(meter, "died") == 1

    asyncio.run(main())


def test_one_requests_exception_fails_it_alone(root):
    put_unruly(root, model="m")

    async def main():
        async with served(root, limits=EngineLimits(poll_s=0.01, rows_max=64, wait_ms=50)) as engine:
            values = [1, RAISE, BAD, 3]
            answers = [engine.submit(ask("m", np.full((1, 1), value, np.float32))) for value in values]
            got = await asyncio.gather(*answers, return_exceptions=True)
            assert [got[0].outputs["y"].tolist(), got[3].outputs["y"].tolist()] == [[[2]], [[4]]]
            assert [type(one) for one in got[1:3]] == [errors.Failed, errors.BadInput]

    asyncio.run(main())


def test_ten_swaps_leave_one_process_and_a_stop_none(root):
    for number in range(1, 4):
        put_unruly(root, add=number)

    def live(version):
        change = lambda policy: msgspec.structs.replace(policy, live=version)  # noqa: E731
        Repository(root).change_policy("m", change, "test", "swap")

    live("1")

    async def main():
        async with served(root, limits=EngineLimits(poll_s=0.01, keep_s=0)) as engine:
            for swap in range(10):
                version = str(1 + swap % 3)
                live(version)
                await engine.refresh()
                answer = await engine.submit(ask("m", np.full((1, 1), 5, np.float32)))
                assert answer.outputs["y"].tolist() == [[5 + int(version)]]
            await asyncio.to_thread(until, lambda: len(children()) == 1)

    asyncio.run(main())
    assert not children()


def test_a_version_that_dies_of_its_own_example_is_refused_and_leaves_no_process(root):
    put_unruly(root, example={"x": [[float(CRASH)]]})

    async def main():
        async with served(root) as engine:
            assert not engine.models()
            (view,) = engine.views()
            assert "fails on its own example" in view.problems["1"]
            await asyncio.to_thread(until, lambda: not children())

    asyncio.run(main())


def test_a_program_is_never_computed_on_the_loop(root):
    put_unruly(root)

    async def main():
        async with served(root, limits=EngineLimits(poll_s=0.01, inline_us_max=10_000)) as engine:
            for value in range(50):
                await engine.submit(ask("m", np.full((1, 1), value, np.float32)))
            assert not engine.lane("m", "1").inline

    asyncio.run(main())


def test_a_model_whose_process_cannot_be_started_again_is_not_ready_and_says_why(root):
    put_unruly(root)

    async def run():
        async with served(root) as engine:
            assert engine.ready()
            own = root / "m" / "1" / "own.py"
            text = own.read_bytes()
            own.write_bytes(b"# " + text)
            os.kill(engine.lane("m", "1").loaded.pids()[0], signal.SIGKILL)
            await asyncio.to_thread(until, lambda: not engine.ready())
            assert "cannot be started again" in engine.views()[0].problems["1"]
            assert [(one.state, "digest" in one.reason) for one in engine.index()] == [("UNAVAILABLE", True)]
            own.write_bytes(text)
            await asyncio.to_thread(until, engine.ready)
            assert not engine.views()[0].problems

    asyncio.run(run())
