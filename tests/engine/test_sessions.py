"""Sessions: what a stream is answered depends on its own steps alone, whoever steps beside it, whatever fails, is given
up, swapped or handed over in between."""

import asyncio
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import rows, serving, until

import onnx_models
from millstream import errors
from millstream.clock import FakeClock
from millstream.engine import EngineLimits
from millstream.models import Manifest, Repository
from millstream.models.manifest import Sessions, State
from millstream.models.traffic import canary, promote, split
from millstream.types import Request, TensorSpec, Turn

STATES = (State("h", "h_out"), State("c", "c_out"))


class Scripted:
    """y = crc32 over every number that its session has been sent. `fail` names a number that it refuses; `gate`, when
    closed, holds a call. A slot that is stepped twice at once, or beside itself, is an error of the engine."""

    inputs = (TensorSpec("x", "INT64", (-1,)),)
    outputs = (TensorSpec("y", "INT64", (-1,)),)

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.calls = []
        self.fail = None

    def slots(self, count):
        self.state = [0] * count
        self.inside = set()
        return self

    def predict(self, inputs):
        raise AssertionError("a model with state is stepped")

    def step(self, inputs, slots):
        mine = [slot for slot in slots.tolist() if slot >= 0]
        assert len(set(mine)) == len(mine) and not self.inside.intersection(mine)
        self.inside.update(mine)
        self.calls.append(slots.tolist())
        try:
            assert self.gate.wait(20)
            numbers = inputs["x"].tolist()
            if self.fail in numbers:
                raise ValueError("as scripted")
            before = [self.state[slot] if slot >= 0 else 0 for slot in slots.tolist()]
            after = [chained(state, number) for state, number in zip(before, numbers, strict=True)]
            for slot, state in zip(slots.tolist(), after, strict=True):
                if slot >= 0:
                    self.state[slot] = state
            return {"y": np.array(after)}
        finally:
            self.inside.difference_update(mine)

    def reset(self, slots):
        for slot in slots.tolist():
            self.state[slot] = 0

    def save(self, slot):
        return {"state": np.array(self.state[slot])}

    def restore(self, slot, saved):
        self.state[slot] = int(saved["state"])


def chained(state, number):
    return zlib.crc32(number.to_bytes(8, "little", signed=True), state)


def scripted(root, versions=1, **sessions):
    """Put versions of a Scripted model `s`; gives (what Engine takes as `load`, version -> the loaded one)."""
    made = {}
    for number in range(versions):
        manifest = Manifest(format="scripted", file="s", sessions=Sessions(**sessions))
        Repository(root).put("s", manifest, {"s": bytes([number])})

    def load(repository, model, version):
        made[version] = Scripted()
        return made[version]

    return load, made


def step(number, ident="a", model="s", **turn):
    return Request(model, {"x": np.array([number])}, 1, turn=Turn(id=ident, **turn))


def plain(*numbers):
    return Request("s", {"x": np.array(numbers)}, len(numbers))


async def y(future):
    return (await future).outputs["y"].tolist()


def play(scene):
    asyncio.run(scene())


# What one stream is answered.


event = st.tuples(st.sampled_from("abcd"), st.sampled_from(["step", "end", "fail", "give up", "alone"]), st.booleans())


@settings(max_examples=80, deadline=None)
@given(st.lists(event, min_size=1, max_size=40), st.sampled_from([0, 10_000]), st.integers(1, 3), st.integers(1, 8))
def test_a_session_is_answered_as_if_it_were_alone(tmp_path_factory, events, inline_us, instances, rows_max):
    root = tmp_path_factory.mktemp("models")
    load, made = scripted(root, slots=4)
    limits = EngineLimits(inline_us_max=inline_us, instances=instances, rows_max=rows_max)

    async def scene():
        async with serving(root, limits, load=load) as engine:
            made["1"].fail = 13
            state, said = {}, []
            for number, (who, what, pause) in enumerate(events, 100):
                if what == "alone":
                    said.append(
                        (engine.submit(plain(number, number + 1)), [chained(0, number), chained(0, number + 1)])
                    )
                    continue
                start = who not in state
                sent = 13 if what == "fail" else number
                future = engine.submit(step(sent, who, start=start, end=what == "end"))
                state.setdefault(who, 0)
                if what == "give up":
                    future.cancel()
                elif what == "fail":
                    said.append((future, None))
                else:
                    state[who] = chained(state[who], number)
                    said.append((future, [state[who]]))
                if what == "end":
                    del state[who]
                    await asyncio.wait([future])
                if pause:
                    await asyncio.sleep(0)
            for future, expected in said:
                if expected is None:
                    with pytest.raises(errors.Error, match="as scripted"):
                        await future
                else:
                    assert await y(future) == expected

    play(scene)


@pytest.mark.parametrize("axis", [0, 1])
@settings(max_examples=30, deadline=None)
@given(streams=st.lists(st.integers(1, 12), min_size=1, max_size=6), random=st.randoms(use_true_random=False))
def test_a_recurrent_file_carries_its_state_bit_for_bit(tmp_path_factory, axis, streams, random):
    root = tmp_path_factory.mktemp("rnn")
    states = tuple(State(one.input, one.output, axis) for one in STATES)
    file = onnx_models.recurrent(root / "one.onnx", axis).read_bytes()
    Repository(root / "models").put(
        "rnn", Manifest(format="onnx", file="m.onnx", sessions=Sessions(states=states)), {"m.onnx": file}
    )
    order = [who for who, steps in enumerate(streams) for _ in range(steps)]
    random.shuffle(order)

    async def scene():
        async with serving(root / "models", EngineLimits(rows_max=4, inline_us_max=0, instances=2)) as engine:
            assert [spec.name for spec in engine.describe("rnn").inputs] == ["x"]
            assert [spec.name for spec in engine.describe("rnn").outputs] == ["y"]
            h, c = (np.zeros((len(streams), 3), np.float32) for _ in range(2))
            begun, said = set(), []
            for at, who in enumerate(order):
                x = rows(1, 3, at) / 7
                h[who] = np.tanh(x[0] + h[who] * np.float32(0.5))
                c[who] = c[who] + h[who]
                request = Request("rnn", {"x": x}, 1, turn=Turn(id=str(who), start=who not in begun))
                begun.add(who)
                said.append((engine.submit(request), c[who] * 2))
            for future, expected in said:
                np.testing.assert_allclose((await future).outputs["y"][0], expected, rtol=1e-5, atol=1e-6)
            alone = await engine.submit(Request("rnn", {"x": rows(9, 3)}, 9))
            np.testing.assert_allclose(alone.outputs["y"], np.tanh(rows(9, 3)) * 2, rtol=1e-5)

    play(scene)


def test_an_lstm_steps_as_the_whole_sequence_would(tmp_path):
    import onnxruntime as ort

    file = onnx_models.lstm(tmp_path / "lstm.onnx")
    states = (State("h", "h_out", 1), State("c", "c_out", 1))
    manifest = Manifest(format="onnx", file="m.onnx", sessions=Sessions(states=states))
    Repository(tmp_path / "models").put("lstm", manifest, {"m.onnx": file.read_bytes()})
    frames = np.random.default_rng(1).normal(size=(20, 5, 3)).astype(np.float32)
    session = ort.InferenceSession(str(file))

    async def scene():
        async with serving(tmp_path / "models") as engine:
            h = c = np.zeros((1, 5, 4), np.float32)
            for at, frame in enumerate(frames):
                h, c, expected = session.run(["h_out", "c_out", "y"], {"x": frame, "h": h, "c": c})
                asked = [
                    Request("lstm", {"x": frame[who : who + 1]}, 1, turn=Turn(id=str(who), start=at == 0))
                    for who in range(5)
                ]
                got = [(await answer).outputs["y"][0] for answer in [engine.submit(one) for one in asked]]
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)

    play(scene)


def test_steps_of_one_session_wait_for_each_other_and_share_calls_with_others(tmp_path):
    load, made = scripted(tmp_path)

    async def scene():
        async with serving(tmp_path, EngineLimits(inline_us_max=0, instances=2), load=load) as engine:
            made["1"].calls.clear()
            made["1"].gate.clear()
            first = [engine.submit(step(n, who, start=n == 0)) for n in range(3) for who in "abc"]
            await until(lambda: made["1"].calls)
            alone = engine.submit(plain(7))
            await asyncio.sleep(0.05)
            made["1"].gate.set()
            await asyncio.gather(*first, alone)
            used = [slot for call in made["1"].calls for slot in call if slot >= 0]
            assert len(used) == 9
            assert len(made["1"].calls) <= 5  # not nine: sessions share calls

    play(scene)


# Bounds, ends, and who may step.


def test_an_id_means_something_within_its_owner_and_a_token_anywhere(tmp_path):
    load, _ = scripted(tmp_path)

    async def scene():
        async with serving(tmp_path, load=load) as engine:
            mine = await engine.submit(step(1, owner="me", start=True))
            await engine.submit(step(5, owner="you", start=True))
            assert await y(engine.submit(step(2, owner="me"))) == [chained(chained(0, 1), 2)]
            assert await y(engine.submit(step(3, "", owner="another", token=mine.turn.token))) == [
                chained(chained(chained(0, 1), 2), 3)
            ]
            assert engine.session("s", mine.turn.token).step == 3
            with pytest.raises(errors.NotFound, match=r"no session 'a' is open here.*sequence_start"):
                engine.submit(step(4, owner="nobody"))

    play(scene)


def test_the_same_id_begins_anew_and_the_old_token_is_told(tmp_path):
    load, _ = scripted(tmp_path, slots=1)

    async def scene():
        async with serving(tmp_path, load=load) as engine:
            old = await engine.submit(step(1, start=True))
            new = await engine.submit(step(9, start=True))
            assert new.outputs["y"].tolist() == [chained(0, 9)] and new.turn.token != old.turn.token
            with pytest.raises(errors.Conflict, match="begun anew"):
                engine.submit(step(2, token=old.turn.token))
            again = await engine.submit(step(4, start=True, token=new.turn.token))  # in place: the same session
            assert again.outputs["y"].tolist() == [chained(0, 4)] and again.turn.token == new.turn.token

    play(scene)


def test_a_numbered_step_may_be_sent_again(tmp_path):
    load, made = scripted(tmp_path)

    async def scene():
        async with serving(tmp_path, load=load) as engine:
            first = await engine.submit(step(1, start=True, step=1))
            token = first.turn.token
            second = await engine.submit(step(2, step=2))
            assert second.turn.step == 2
            calls = len(made["1"].calls)
            assert (await engine.submit(step(2, step=2, token=token))).outputs["y"].tolist() == second.outputs[
                "y"
            ].tolist()
            assert len(made["1"].calls) == calls
            with pytest.raises(errors.Conflict, match="has done 2 steps, got sequence_step 5; send 3"):
                await engine.submit(step(9, step=5))
            assert await y(engine.submit(step(3, step=3))) == [chained(chained(chained(0, 1), 2), 3)]

    play(scene)


def test_an_end_that_did_not_happen_ends_nothing(tmp_path):
    load, made = scripted(tmp_path)

    async def scene():
        async with serving(tmp_path, EngineLimits(inline_us_max=0), load=load) as engine:
            await engine.submit(step(1, start=True))
            with pytest.raises(errors.Conflict):
                await engine.submit(step(9, step=7, end=True))
            made["1"].gate.clear()
            running = engine.submit(step(2))
            engine.submit(step(9, end=True)).cancel()
            made["1"].gate.set()
            await running
            made["1"].fail = 13
            with pytest.raises(errors.Error):
                await engine.submit(step(13, end=True))
            assert await y(engine.submit(step(3))) == [chained(chained(chained(0, 1), 2), 3)]

    play(scene)


def test_the_answer_to_the_last_step_may_be_asked_for_again(tmp_path):
    load, _ = scripted(tmp_path, slots=1)

    async def scene():
        async with serving(tmp_path, load=load) as engine:
            first = await engine.submit(step(1, start=True))
            last = await y(engine.submit(step(2, step=2, end=True)))
            assert await y(engine.submit(step(2, step=2, end=True, token=first.turn.token))) == last
            assert await y(engine.submit(step(2, step=2))) == last
            with pytest.raises(errors.NotFound):
                engine.submit(step(3, step=3))
            assert await y(engine.submit(step(5, start=True))) == [chained(0, 5)]  # its slot came back
            assert await y(engine.submit(step(6, step=2))) == [chained(chained(0, 5), 6)]
            assert await y(engine.submit(step(6, step=2, end=True))) == [chained(chained(0, 5), 6)]  # ends by a retry
            with pytest.raises(errors.NotFound):
                engine.submit(step(7))

    play(scene)


def test_a_reset_waits_for_nobody_and_gives_up_nobody(tmp_path):
    load, made = scripted(tmp_path)

    async def scene():
        async with serving(tmp_path, EngineLimits(inline_us_max=0), load=load) as engine:
            token = (await engine.submit(step(1, start=True))).turn.token
            made["1"].gate.clear()
            waiting = [engine.submit(step(n)) for n in (2, 3)]
            with pytest.raises(errors.Conflict, match="not answered yet; begin again when it is"):
                engine.submit(step(4, start=True, token=token))
            made["1"].gate.set()
            assert await y(waiting[1]) == [chained(chained(chained(0, 1), 2), 3)]

    play(scene)


def test_a_retry_may_ask_for_other_outputs(tmp_path):
    manifest = Manifest(format="onnx", file="m.onnx", sessions=Sessions(states=STATES[:1]))  # c_out is an output then
    file = onnx_models.recurrent(tmp_path / "one.onnx").read_bytes()
    Repository(tmp_path / "models").put("rnn", manifest, {"m.onnx": file})

    async def scene():
        async with serving(tmp_path / "models") as engine:
            inputs = {"x": rows(1, 3), "c": rows(1, 3)}
            await engine.submit(Request("rnn", inputs, 1, turn=Turn(id="a", start=True), outputs=("y",)))
            again = Request("rnn", inputs, 1, turn=Turn(id="a", step=1), outputs=("c_out",))
            assert list((await engine.submit(again)).outputs) == ["c_out"]

    play(scene)


def test_waiting_steps_count_against_the_queue(tmp_path):
    load, made = scripted(tmp_path)

    async def scene():
        limits = EngineLimits(inline_us_max=0, queue_rows_max=10)
        async with serving(tmp_path, limits, load=load) as engine:
            await engine.submit(step(1, start=True))
            made["1"].gate.clear()
            many = []
            with pytest.raises(errors.Overloaded, match="at most 10 may"):
                for n in range(50):
                    many.append(engine.submit(step(n)))  # noqa: PERF401
            assert len(many) in (10, 11)
            made["1"].gate.set()
            await asyncio.gather(*many)
            (lane,) = engine._served["s"].lanes.values()
            assert lane.steps_waiting == lane.rows_waiting == 0

    play(scene)


def test_a_call_that_answers_nonsense_is_not_stepped_twice(tmp_path):
    load, made = scripted(tmp_path)

    async def scene():
        async with serving(tmp_path, EngineLimits(inline_us_max=0), load=load) as engine:
            await asyncio.gather(*(engine.submit(step(1, who, start=True)) for who in "ab"))
            model = made["1"]
            honest, model.calls = model.step, []
            model.step = lambda inputs, slots: honest(inputs, slots) and {"z": np.zeros(len(slots))}
            model.gate.clear()
            asked = [engine.submit(step(n, who)) for n in (2,) for who in "ab"]
            model.gate.set()
            for one in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(one, errors.Error) and "answered without output 'y'" in str(one)
            assert sorted(slot for call in model.calls for slot in call) == sorted({*model.calls[0], *model.calls[-1]})
            model.step = honest
            with pytest.raises(errors.NotFound, match="begin it with sequence_start"):
                await engine.submit(step(2, "a"))
            assert await y(engine.submit(step(7, "a", start=True))) == [chained(0, 7)]

    play(scene)


class SometimesNan(Scripted):
    """A Scripted that answers NaN to 13."""

    outputs = (TensorSpec("y", "FP64", (-1,)),)

    def step(self, inputs, slots):
        found = super().step(inputs, slots)["y"].astype(np.float64)
        found[inputs["x"] == 13] = np.nan
        return {"y": found}


def test_a_session_that_was_answered_nan_ends_and_its_neighbours_go_on(tmp_path):
    Repository(tmp_path).put("s", Manifest(format="scripted", file="s", sessions=Sessions(slots=8)), {"s": b"-"})

    async def scene():
        async with serving(tmp_path, EngineLimits(inline_us_max=0), load=lambda *_: SometimesNan()) as engine:
            await asyncio.gather(*(engine.submit(step(1, who, start=True)) for who in "ab"))
            asked = [engine.submit(step(n, who)) for who, n in (("a", 13), ("b", 2))]
            first, second = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(first, errors.Error) and "NaN" in str(first)
            assert second.outputs["y"].tolist() == [chained(chained(0, 1), 2)]
            with pytest.raises(errors.NotFound, match="begin it with sequence_start"):
                await engine.submit(step(3, "a"))
            assert await y(engine.submit(step(3, "b"))) == [chained(chained(chained(0, 1), 2), 3)]

    play(scene)


def test_slots_and_waiting_steps_are_bounded_and_come_back(tmp_path):
    load, made = scripted(tmp_path, slots=2)

    async def scene():
        async with serving(tmp_path, EngineLimits(inline_us_max=0), load=load) as engine:
            await asyncio.gather(engine.submit(step(1, "a", start=True)), engine.submit(step(1, "b", start=True)))
            with pytest.raises(errors.Overloaded, match="all 2 sessions are taken"):
                engine.submit(step(1, "c", start=True))
            assert await y(engine.submit(step(2, "a", end=True))) == [chained(chained(0, 1), 2)]
            assert await y(engine.submit(step(6, "c", start=True))) == [chained(0, 6)]  # a reused slot is fresh
            made["1"].gate.clear()
            many = [engine.submit(step(n, "b")) for n in range(65)]
            with pytest.raises(errors.Overloaded, match="64 steps of session 'b' wait"):
                engine.submit(step(99, "b"))
            made["1"].gate.set()
            await asyncio.gather(*many)

    play(scene)


def test_a_slot_is_not_given_away_while_a_call_is_in_it(tmp_path):
    load, made = scripted(tmp_path, slots=1)

    async def scene():
        async with serving(tmp_path, EngineLimits(inline_us_max=0, instances=2), load=load) as engine:
            await engine.submit(step(1, start=True))
            made["1"].gate.clear()
            calls = len(made["1"].calls)
            running = engine.submit(step(2))
            await until(lambda: len(made["1"].calls) > calls)
            running.cancel()
            with pytest.raises(errors.Overloaded):
                engine.submit(step(3, start=True))  # begins anew, but the old one's slot is being computed in
            made["1"].gate.set()
            await until(lambda: not engine._running)
            assert await y(engine.submit(step(3, start=True))) == [chained(0, 3)]

    play(scene)


def test_an_idle_session_ends_and_says_so(tmp_path):
    load, _ = scripted(tmp_path, idle_s=30.0)
    clock = FakeClock()

    async def pass_time(seconds):
        for _ in range(int(seconds * 2)):
            clock.advance(0.5)
            await asyncio.sleep(0)

    async def scene():
        async with serving(tmp_path, clock=clock, load=load) as engine:
            await engine.submit(step(1, "idle", start=True))
            await engine.submit(step(1, "busy", start=True))
            await pass_time(20)
            await engine.submit(step(2, "busy"))
            await pass_time(20)
            assert await y(engine.submit(step(3, "busy"))) == [chained(chained(chained(0, 1), 2), 3)]
            with pytest.raises(errors.NotFound, match="idle too long"):
                engine.submit(step(2, "idle"))

    play(scene)


@pytest.mark.parametrize(
    ("request_", "error", "sentence"),
    [
        (
            lambda: Request("s", {"x": np.arange(2)}, 2, turn=Turn(id="a", start=True)),
            errors.BadInput,
            "one row at a time",
        ),
        (lambda: step(1, start=True, step=4), errors.BadInput, "sequence_start is step 1"),
        (lambda: step(1, model="other", start=True), errors.NotFound, "no model 'other'"),
        (lambda: step(1, token="nothing"), errors.NotFound, "no session 'a' is open"),
    ],
)
def test_a_mistaken_step_is_told(tmp_path, request_, error, sentence):
    load, _ = scripted(tmp_path)

    async def scene():
        async with serving(tmp_path, load=load) as engine:
            with pytest.raises(error, match=sentence):
                await engine.submit(request_())

    play(scene)


# Versions and processes.


def test_swaps_leave_no_threads_and_no_copies_behind(tmp_path):
    load, _ = scripted(tmp_path, versions=2)
    loads = []

    def counted(repository, model, version):
        loads.append(version)
        return load(repository, model, version)

    async def scene():
        async with serving(tmp_path, EngineLimits(wait_ms=20, keep_s=0), load=counted) as engine:
            await engine.submit(step(1, start=True))
            for swap in range(8):  # a session holds one of them; it is taken back, not loaded again
                waiting = [engine.submit(plain(n)) for n in range(3)]
                policy = promote(str(1 + swap % 2))
                Repository(tmp_path).change_policy("s", policy, who="test", why="swap")
                await engine.refresh()
                waiting[0].cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            await engine.submit(step(2, end=True))
            await until(lambda: len(engine._workers) == 1)
            assert not engine._retired and loads.count("2") == 1

    play(scene)


def test_open_sessions_finish_on_the_version_they_began_with(tmp_path):
    load, _ = scripted(tmp_path, versions=2)
    repository = Repository(tmp_path)
    repository.change_policy("s", promote("1"), who="test", why="begin")

    async def scene():
        async with serving(tmp_path, EngineLimits(keep_s=0), load=load) as engine:
            old = await engine.submit(step(1, "old", start=True))
            assert old.version == "1@0"
            repository.change_policy("s", promote("2"), who="test", why="swap")
            await engine.refresh()
            new = await engine.submit(step(1, "new", start=True))
            still = await engine.submit(step(2, "old"))
            assert (new.version, still.version) == ("2@0", "1@0")
            assert still.outputs["y"].tolist() == [chained(chained(0, 1), 2)]
            assert (await engine.submit(plain(1))).version == "2@0"
            threads = {thread.name for thread in threading.enumerate()}
            assert any("s 1" in name for name in threads)
            await engine.submit(step(3, "old", end=True))
            await until(lambda: not any("s 1" in thread.name for thread in threading.enumerate()))

    play(scene)


def test_a_split_is_sticky_by_session(tmp_path):
    load, _ = scripted(tmp_path, versions=2)
    Repository(tmp_path).change_policy("s", split({"1": 0.5, "2": 0.5}, "request"), who="test", why="split")

    async def scene():
        async with serving(tmp_path, load=load) as engine:
            seen, began = set(), {}
            for who in range(20):
                first = await engine.submit(step(1, str(who), start=True))
                later = {(await engine.submit(step(n, str(who)))).version for n in range(5)}
                assert later == {first.version}
                seen |= later
                began[str(who)] = first.version
            assert seen == {"1@0", "2@0"}
            other = {"1@0": "2", "2@0": "1"}[began["0"]]
            Repository(tmp_path).change_policy("s", canary(other, 1.0), who="test", why="all")
            await engine.refresh()
            assert (await engine.submit(step(9, "0"))).version == began["0"]  # not where the canary is

    play(scene)


def test_sessions_on_a_stateless_model_keep_their_version(tmp_path):
    onnx_models.scaled(tmp_path / "m" / "1" / "model.onnx", 2.0)

    async def scene():
        async with serving(tmp_path) as engine:
            first = await engine.submit(Request("m", {"x": rows(1)}, 1, turn=Turn(id="a", start=True)))
            again = await engine.submit(Request("m", {"x": rows(1)}, 1, turn=Turn(id="a", end=True)))
            assert first.outputs["y"].tolist() == again.outputs["y"].tolist() == (rows(1) * 2).tolist()
            assert again.turn.step == 2 and again.turn.end

    play(scene)


def test_a_drain_lets_sessions_end_and_begins_none(tmp_path):
    load, _ = scripted(tmp_path)

    async def scene():
        async with serving(tmp_path, EngineLimits(drain_s=20), load=load) as engine:
            await engine.submit(step(1, start=True))
            drained = asyncio.ensure_future(engine.drain())
            await asyncio.sleep(0.1)
            assert not engine.ready()
            with pytest.raises(errors.Busy, match="begins no sessions"):
                engine.submit(step(1, "late", start=True))
            assert await y(engine.submit(plain(4))) == [chained(0, 4)]  # requests are still answered
            assert await y(engine.submit(step(2, end=True))) == [chained(chained(0, 1), 2)]
            await asyncio.wait_for(drained, 1)

    play(scene)


@pytest.mark.parametrize("kind", ["scripted", "onnx"])
def test_sessions_go_on_in_the_next_process(tmp_path, kind, caplog):
    file, root = tmp_path / "state" / "sessions", tmp_path / "models"
    more = {}
    if kind == "scripted":
        more["load"], _ = scripted(root, versions=2)
        name, one = "s", lambda n, **turn: step(n, **turn)
    else:
        model = onnx_models.recurrent(tmp_path / "one.onnx").read_bytes()
        manifest = Manifest(format="onnx", file="m.onnx", sessions=Sessions(states=STATES))
        Repository(root).put("rnn", manifest, {"m.onnx": model})
        name, one = "rnn", lambda n, **turn: Request("rnn", {"x": rows(1, 3, n)}, 1, turn=Turn(id="a", **turn))

    async def through(handed):
        """Three steps, in one process or in two."""
        answers = []
        async with serving(root, **more) as engine:
            first = await engine.submit(one(1, start=True))
            answers.append((await engine.submit(one(2, step=2))).outputs["y"].tolist())
            if not handed:
                answers.append((await engine.submit(one(3, step=3))).outputs["y"].tolist())
                return answers
            await engine.stop(file)
            assert file.exists()
        async with serving(root, **more) as engine:
            assert engine.take_over(file) == 1 and not file.exists() and engine.take_over(file) == 0
            again = await engine.submit(one(2, step=2, token=first.turn.token))  # the end fell into this step
            assert again.outputs["y"].tolist() == answers[0]
            assert engine.session(name, first.turn.token).step == 2
            answers.append((await engine.submit(one(3, step=3))).outputs["y"].tolist())
        return answers

    async def scene():
        assert await through(True) == await through(False)

    play(scene)


def test_sessions_that_cannot_go_on_are_said(tmp_path, caplog):
    load, _ = scripted(tmp_path / "models", versions=2)
    file = tmp_path / "sessions"
    Repository(tmp_path / "models").change_policy("s", promote("1"), who="test", why="begin")

    async def scene():
        async with serving(tmp_path / "models", load=load) as engine:
            await engine.submit(step(1, start=True))
            await engine.stop(file)
        Repository(tmp_path / "models").change_policy("s", promote("2"), who="test", why="swap")
        async with serving(tmp_path / "models", load=load) as engine:
            assert engine.take_over(file) == 0
            assert "session a of s is lost: s has no version '1' that answers now" in caplog.text
            file.write_bytes(b"not what was written")
            assert engine.take_over(file) == 0 and "are lost" in caplog.text and not file.exists()

    play(scene)
