"""A sample of answered requests is kept, bounded and without what is personal, and a version that fails on them never
replaces one that answers."""

import asyncio
import logging
import random

import numpy as np
import orjson
import pytest

import onnx_models
from millstream import errors
from millstream.clock import FakeClock, SystemClock
from millstream.engine import Engine
from millstream.meter import Meter
from millstream.models import Repository, recorded
from millstream.models.model import load
from millstream.models.recorded import Recorder, RecordSettings
from millstream.models.traffic import promote
from millstream.types import Output, Request, Turn


def recorder(root, share=1.0, fault=None, **limits):
    def submit(request):
        future = asyncio.get_running_loop().create_future()
        if fault is None:
            future.set_result(Output({}, request.model, "1@0"))
        else:
            future.set_exception(fault)
        return future

    repository = Repository(root)
    (root / "m" / "1").mkdir(parents=True, exist_ok=True)
    return Recorder(repository, RecordSettings(share=share, **limits), FakeClock(), submit, random.Random(1))


def record(made, *requests):
    async def main():
        for request in requests:
            future = made.submit(request)
            await asyncio.wait([future])
            future.exception()
            await asyncio.sleep(0)

    asyncio.run(main())
    made.write()


def ask(**inputs):
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    return Request("m", arrays, 1)


def lines(root):
    return (root / "m" / "watch" / "recorded.jsonl").read_bytes().splitlines()


def test_what_is_recorded_is_read_back_bit_by_bit(tmp_path):
    inputs = {
        "f": np.array([[0.1, -3e38, np.nan]], np.float32), "d": np.array([1 / 3]), "i": np.array([2**62], np.int64),
        "b": np.array([True, False]), "h": np.array([0.5], np.float16), "t": np.array([["plain", "文"]], object),
    }  # fmt: skip
    record(recorder(tmp_path), ask(**inputs))
    (found,) = recorded.read(Repository(tmp_path), "m")
    for name, array in inputs.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_text_loses_what_is_personal_before_it_is_written(tmp_path):
    record(recorder(tmp_path), ask(t=np.array(["call 415-555-2671", b"ann@example.com"], object)))
    (line,) = lines(tmp_path)
    assert orjson.loads(line)["inputs"][0]["data"] == ["call [PHONE]", "[EMAIL]"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_request_with_bytes_that_may_be_text_is_left_out(tmp_path, dtype):
    secret = np.frombuffer(b"ann@example.com", dtype)
    record(recorder(tmp_path), ask(t=secret, x=np.array([1.0])), ask(x=np.array([2.0])))
    (line,) = lines(tmp_path)
    assert orjson.loads(line)["inputs"][0]["data"] == [2.0]


def test_what_a_recogniser_of_speech_is_asked_is_left_out(tmp_path):
    """That gate knows no spoken numbers, and a voice is somebody's, too."""
    made = recorder(tmp_path)
    said = np.array(["my number is four one five five five five oh one two three"], object)
    made._submit = lambda request: _given({"heard": said} if "audio" in request.inputs else {})
    record(made, ask(audio=np.zeros((1, 8), np.float32), prefix=said), ask(x=np.array([2.0])))
    (line,) = lines(tmp_path)
    assert [one["name"] for one in orjson.loads(line)["inputs"]] == ["x"]


def _given(outputs):
    future = asyncio.get_running_loop().create_future()
    future.set_result(Output(outputs, "m", "1@0"))
    return future


def test_the_newest_are_kept_within_both_bounds(tmp_path):
    made = recorder(tmp_path, requests_max=5)
    for at in (0, 3, 6):
        record(made, *[ask(x=np.array([at + n])) for n in range(3)])
    assert [int(one["x"][0]) for one in recorded.read(Repository(tmp_path), "m")] == [4, 5, 6, 7, 8]
    record(recorder(tmp_path, bytes_max=1024), *[ask(x=np.arange(50) + n) for n in range(20)])
    assert sum(len(line) + 1 for line in lines(tmp_path)) <= 1024 and len(lines(tmp_path)) >= 3
    record(recorder(tmp_path), ask(x=np.zeros(20_000)))  # larger than what is taken of one request
    assert all(one["x"].size == 50 for one in recorded.read(Repository(tmp_path), "m"))


def test_only_a_share_and_only_what_was_answered(tmp_path):
    made = recorder(tmp_path, share=0.25, requests_max=1000)
    for _ in range(4):
        record(made, *[ask(x=np.array([1])) for _ in range(100)])
    assert 60 < len(lines(tmp_path)) < 140
    for unwanted in (recorder(tmp_path / "f", fault=errors.Error("failed")), recorder(tmp_path / "o", share=0.0)):
        record(unwanted, ask(x=np.array([1])))
    step = ask(x=np.array([1]))
    step.turn = Turn("s", start=True)
    record(recorder(tmp_path / "s"), step)
    assert not list(tmp_path.glob("?/m/watch/*"))


def test_lines_that_cannot_be_read_are_passed_over(tmp_path):
    record(recorder(tmp_path), ask(x=np.array([1])))
    path = tmp_path / "m" / "watch" / "recorded.jsonl"
    whole = path.read_bytes()
    path.write_bytes(
        b'{"inputs": [{"name": "x"\n[]\n{}\n\xff\n' + whole + b'{"inputs": [{"name": "x", "datatype": "Z"}]}'
    )
    assert len(recorded.read(Repository(tmp_path), "m")) == 1
    assert recorded.read(Repository(tmp_path), "other") == []


def test_a_bare_file_has_no_recordings(tmp_path):
    file = onnx_models.scaled(tmp_path / "m.onnx", 2)
    assert recorded.read(Repository.open(file), "m") == []


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, caplog):
    made = recorder(tmp_path)
    (tmp_path / "m" / "watch").write_bytes(b"in the way")
    for _ in range(3):
        record(made, ask(x=np.array([1])))
    assert len([r for r in caplog.records if "are not recorded" in r.message]) == 1


# Versions are tried on them.


def tries(root, requests, broken=None):
    """A repository with versions 1 and 2 of y = 2 x, and recorded requests; `broken(loaded)` spoils version 2."""
    for version in ("1", "2"):
        onnx_models.scaled(root / "m" / version / "model.onnx", 2)
    repository = Repository(root)
    repository.change_policy("m", promote("1"), "test", "")
    made = recorder(root, requests_max=1000)
    for at in range(0, len(requests), 200):
        record(made, *requests[at : at + 200])

    def loaded(repository, model, version):
        model_ = load(repository, model, version)
        if version == "2" and broken is not None:
            predict = model_.predict
            model_.predict = lambda inputs: broken(inputs) or predict(inputs)
        return model_

    return repository, loaded


def promoted(repository, loaded):
    """What answers after version 2 was promoted, and the problems then."""

    async def main():
        engine = Engine(repository, SystemClock(), Meter(), load=loaded)
        await engine.start()
        repository.change_policy("m", promote("2"), "test", "")
        await engine.refresh()
        answer = await engine.submit(Request("m", {"x": np.ones((1, 4), np.float32)}, 1))
        (view,) = engine.views()
        await engine.stop()
        return answer.version, view.problems

    return asyncio.run(main())


def x(value):
    return ask(x=np.full((1, 4), value, np.float32))


def raises_on_seven(inputs):
    if (inputs["x"] == 7).any():
        raise ValueError("seven")


def nan_on_seven(inputs):
    return {"y": np.full_like(inputs["x"], np.nan)} if (inputs["x"] == 7).any() else None


@pytest.mark.parametrize("broken", [raises_on_seven, nan_on_seven])
def test_a_version_that_fails_on_recorded_requests_never_replaces_one_that_answers(tmp_path, broken):
    repository, loaded = tries(tmp_path, [*[x(1)] * 20, x(7)], broken)
    version, problems = promoted(repository, loaded)
    assert version == "1@0"
    assert "fails on 1 of 21 recorded requests" in problems["2"] and "number 21" in problems["2"]


def test_a_version_that_does_well_on_them_is_served_and_how_many_were_run_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    repository, loaded = tries(tmp_path, [*[x(1)] * 20, ask(x=np.ones((1, 9), np.float32)), ask(z=np.ones(3))])
    assert promoted(repository, loaded) == ("2@0", {})
    assert "m 2: ran 20 recorded requests before it answers, 0 failed" in caplog.messages


def test_one_failure_of_hundreds_refuses_nothing(tmp_path):
    repository, loaded = tries(tmp_path, [*[x(1)] * 199, x(7)], raises_on_seven)
    assert promoted(repository, loaded)[0] == "2@0"


def test_where_no_other_version_answers_it_is_served_all_the_same_and_that_is_said(tmp_path, caplog):
    repository, loaded = tries(tmp_path, [x(7)] * 3, raises_on_seven)
    repository.change_policy("m", promote("2"), "test", "")

    async def main():
        engine = Engine(repository, SystemClock(), Meter(), load=loaded)
        await engine.start()
        answer = await engine.submit(Request("m", {"x": np.ones((1, 4), np.float32)}, 1))
        await engine.stop()
        return answer.version

    assert asyncio.run(main()) == "2@0"
    assert any("served all the same, as no other version answers" in message for message in caplog.messages)
