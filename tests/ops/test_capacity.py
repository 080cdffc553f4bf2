"""The search on servers that are rules, the arithmetic, the verdicts, and the whole verb on a real server."""

import asyncio
import math
import os
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from millstream.errors import BadInput, Misconfigured
from millstream.models.manifest import Manifest
from millstream.models.manifest import render as manifest_text
from millstream.ops import search as searching
from millstream.ops.body import candidates, wire
from millstream.ops.capacity import DAY_S, Capacity, capacity, fleet
from millstream.ops.generator import Order, Tally
from millstream.ops.observe import Observer, Seen, _cpu_s, limit
from millstream.ops.probe import metadata, overloaded, serving, taken
from millstream.ops.report import render
from millstream.ops.search import TOLERANCE, WINDOWS_MAX, Tried, judge, search
from millstream.types import DTYPES, TensorSpec
from onnx_models import linear, same, scaled, sums, table


def tried(rate, p99_ms=1.0, goal_ms=10.0):
    held = p99_ms <= goal_ms
    return Tried(rate=rate, held=held, achieved=1.0, errors=0, late=0, p50_ms=0.5, p99_ms=p99_ms)


def find(p99_of, peak, goal_ms=10.0):
    """The search on a server whose p99 at a rate is `p99_of(rate)`."""

    async def attempt(rate):
        return tried(rate, p99_of(rate), goal_ms)

    return asyncio.run(search(attempt, peak))


@given(st.floats(5, 1e6), st.floats(0.35, 3))
def test_a_server_that_breaks_at_a_rate_is_found_to_within_the_tolerance(breaks, guess):
    found = find(lambda rate: 1.0 if rate <= breaks else 1e4, peak=breaks * guess)
    assert breaks / (1 + TOLERANCE) - 1e-6 <= found.rate <= breaks
    assert found.above and found.above.rate <= breaks * (1 + 2 * TOLERANCE) and not found.above.held
    assert len(found.tried) <= WINDOWS_MAX


@given(st.floats(5, 1e6), st.floats(0.5, 2), st.floats(1.5, 50))
def test_a_queue_is_found_at_the_load_that_its_goal_allows(most, guess, room):
    # The time in an M/M/1 queue is exponential: its p99 is ln(100) / (most - rate).
    alone_ms = math.log(100) / most * 1e3
    held = most * (1 - 1 / room)
    found = find(lambda r: 1e9 if r >= most else math.log(100) / (most - r) * 1e3, most * guess, alone_ms * room)
    assert held / (1 + TOLERANCE) * 0.999 <= found.rate <= held * 1.001


@given(st.floats(5, 1e5), st.floats(1.0, 5.0))
def test_a_faster_server_is_never_found_to_be_slower(breaks, faster):
    one, two = (find(lambda r, at=at: 1.0 if r <= at else 1e4, breaks).rate for at in (breaks, breaks * faster))
    assert two >= one


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_bad_luck_in_one_window_of_ten_does_not_move_the_result_far(seed):
    chance = random.Random(seed)
    found = find(lambda rate: 1.0 if rate <= 1000 and chance.random() > 0.1 else 1e4, peak=1100)
    assert 700 <= found.rate <= 1000


def test_good_luck_once_is_not_enough():
    lucky = iter([1.0] + [1e4] * 1000)
    found = find(lambda rate: next(lucky) if rate > 100 else 1.0, peak=1000)
    assert found.rate <= 100


def test_what_is_reported_held_in_most_of_its_windows():
    chance = random.Random(3)
    found = find(lambda rate: chance.uniform(8, 12) if rate > 500 else 1.0, peak=1000)
    assert sum(one.held for one in found.windows) > len(found.windows) / 2
    assert {one.rate for one in found.windows} == {found.rate}


def test_a_server_that_never_holds_has_no_rate_and_the_search_ends():
    found = find(lambda rate: 1e4, peak=1000)
    assert found.rate == 0 and found.windows == [] and found.above
    assert len(found.tried) <= WINDOWS_MAX


def test_a_server_without_a_limit_ends_the_search_too():
    found = find(lambda rate: 1.0, peak=1000)
    assert 2000 < found.rate <= 4000 and found.above is None


def window(rate, capacity, seconds=2.0, alone_ms=2.0, refused=0, lost=0):
    """A first-come-first-served server that answers `capacity` a second."""
    due = np.sort(np.random.default_rng(5).random(int(rate * seconds)) * seconds)
    free, took = 0.0, []
    for at in due:
        free = max(at, free) + 1 / capacity
        took.append((free - at) * 1e3 + alone_ms)
    keep = len(due) - refused - lost
    order = Order(rate=rate, seconds=seconds, connections=64)
    statuses = {200: keep} | ({429: refused} if refused else {})
    due, took = (np.array(column[:keep], "<f4").tobytes() for column in (due, took))
    return order, Tally(
        seconds=seconds, scheduled=int(rate * seconds), statuses=statuses, unanswered=lost, due=due, took_ms=took,
        served_ms=took, in_time=keep,
    )  # fmt: skip


def test_a_window_is_held_by_its_p99_alone_when_nothing_else_is_wrong():
    order, tally = window(500, 5000)
    one = judge(order, tally, 10)
    assert one.held and one.errors == one.late == 0 and one.achieved > 0.99 and 2 < one.p50_ms <= one.p99_ms < 10
    assert not judge(order, tally, one.p99_ms * 0.99).held
    assert judge(order, tally, one.p99_ms).held


@pytest.mark.parametrize("over", [1.05, 1.2, 2.0, 10.0])
def test_a_backlog_that_grows_is_not_held_however_far_away_the_goal(over):
    one = judge(*window(1000 * over, 1000, seconds=4.0), 60_000)
    assert not one.held
    assert one.achieved == pytest.approx(1 / over, abs=0.03)


def test_one_refusal_is_one_too_many_and_what_nobody_answered_is_slow():
    assert judge(*window(500, 5000, refused=1), 10).errors == 1
    assert not judge(*window(500, 5000, refused=1), 10).held
    assert judge(*window(500, 5000, lost=5), 10).held, "5 of 1000 are within the 1 % that a p99 allows"
    late = judge(*window(500, 5000, lost=15), 10)
    assert late.late == 15 and not late.held and late.p99_ms >= 2000
    nothing = Order(rate=10.0, seconds=1.0, connections=1)
    assert not judge(nothing, Tally(seconds=1.0, scheduled=0, statuses={}), 10).held


def test_machines_and_cost_are_plain_arithmetic():
    told = fleet(1000, 864_000_000, 3.0, 0.5)
    assert (told.average, told.peak) == (10_000, 30_000)
    assert told.machines == math.ceil(30_000 / 700) + 1 == 44
    assert told.cost_per_day == 44 * 0.5 * 24 == 528
    assert told.cost_per_million == pytest.approx(528 / 864)
    assert told.answers_per_day == 1000 * 0.7 * DAY_S
    assert told.full_cost_per_million == pytest.approx(12 / 60.48)
    small = fleet(1000, 1, 1.0, 0.0)
    assert small.machines == 2 and small.cost_per_day == 0
    assert fleet(1000, 0, 3.0, 0.5).machines == 0
    assert fleet(0, 1e6, 3.0, 0.5) is None


@given(st.floats(0.1, 1e6), st.floats(1, 1e12), st.floats(1, 20))
def test_the_machines_hold_the_peak_with_one_of_them_away(rate, requests, factor):
    told = fleet(rate, requests, factor, 1.0)
    assert (told.machines - 1) * rate * 0.7 >= told.peak * (1 - 1e-9)
    assert (told.machines - 2) * rate * 0.7 < told.peak


def seen(**told):
    base = {"seconds": 2.0, "cores": 8, "loop": 0.4, "workers": 0.5, "machine": 0.3, "client": 0.3, "memory_left": 0.5}
    return Seen(**(base | told))


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"loop": 0.97}, "the event loop"),
        ({"loop": 0.97, "workers": 0.0, "computing": 0.7}, "the model's compute"),  # on the loop
        ({"workers": 6.8, "computing": 6.6, "machine": 0.99}, "the model's compute"),
        ({"workers": 3.0, "computing": 3.4}, "latency"),  # of seven instances
        ({"memory_left": 0.02, "loop": 0.99}, "memory"),
        ({"gpu": 0.97, "workers": 0.2}, "the GPU"),
        ({"machine": 0.99}, "the machine's cores"),
        ({"loop": 0.55, "waited": 0.35, "machine": 0.93}, "the machine's cores"),
        ({"client": 0.99}, "the client"),
        ({"lag_ms": 8.0}, "the client"),
        ({}, "latency"),
        ({"loop": None, "workers": None}, "unknown"),
    ],
)
def test_a_limit_is_named_after_what_was_busy_and_shows_its_figure(told, what):
    found = limit(seen(**told), goal_ms=10.0, instances=7)
    assert found.what == what
    assert found.change and (any(character.isdigit() for character in found.figure) or what == "unknown")


def crowd(goodput, refused=0, unsent=0, rate=10_000.0):
    order = Order(rate=rate, seconds=2.0, connections=1024, pipeline=16)
    good = int(goodput * 2)
    due = np.linspace(0, 1.9, good, dtype="<f4").tobytes()
    took = np.full(good, 50, "<f4").tobytes()
    statuses = {200: good} | ({429: refused} if refused else {})
    return order, Tally(
        seconds=2.0, scheduled=int(rate * 2), unsent=unsent, statuses=statuses, due=due, took_ms=took, served_ms=took
    )


@pytest.mark.parametrize(
    ("verdict", "goodput", "told"),
    [
        ("sheds", 1000, {"refused": 17_000}),
        ("queues", 1000, {"unsent": 10_000}),
        ("collapses", 500, {"refused": 17_000}),
        ("collapses", 500, {"unsent": 19_000}),
        ("not told", 1000, {"unsent": 17_500, "client": 0.99}),  # 1.25 times was all that it could send
        ("not told", 600, {"refused": 17_000, "cpu": 0.5}),
        ("collapses", 200, {"refused": 17_000, "cpu": 0.5}),
    ],
)
def test_overload_is_judged_by_the_answers_that_still_come(verdict, goodput, told):
    client, cpu = told.pop("client", 0.5), told.pop("cpu", 1.0)
    order, tally = crowd(goodput, **told)
    found = overloaded(order, tally, seen(client=client), 1000.0, 1000.0, cpu, True)
    assert found.verdict == verdict
    assert found.goodput == pytest.approx(goodput, rel=0.06)
    assert found.factor == pytest.approx((20_000 - told.get("unsent", 0)) / 2000)
    assert found.refused == ({"429": told["refused"]} if "refused" in told else {})


def test_only_the_second_half_of_an_overload_counts():
    order, tally = crowd(1000)
    early = np.linspace(0, 0.9, 2000, dtype="<f4").tobytes()
    found = overloaded(order, msgspec.structs.replace(tally, due=early), seen(), 1000.0, 1000.0, 1.0, True)
    assert found.goodput == 0 and found.verdict == "collapses"


def test_an_example_gives_its_rows_as_often_as_they_are_asked_for():
    specs = (TensorSpec("i", "INT64", (-1, 2)), TensorSpec("c", "FP32", (3,)))
    manifest = Manifest(format="onnx", file="m.onnx", example={"i": [[1, 2], [3, 4]], "c": [1, 2, 3]})
    for rows, expected in ((1, [[1, 2]]), (3, [[1, 2], [3, 4], [1, 2]])):
        (bodies,) = candidates("m", specs, manifest, rows)
        arrays = {"i": np.array(expected), "c": np.array([1, 2, 3])}
        assert bodies.requests == [wire("m", arrays, specs)]
        assert "example" in bodies.source
    assert bodies.rows == 3


def test_free_lengths_are_guessed_twice_and_said():
    first, second = candidates("m", (TensorSpec("x", "FP32", (-1, -1)),), Manifest(format="onnx", file="m"), 5)
    assert "16" in first.source and first.rows == second.rows == 5
    assert b'"shape":[5,16]' in first.requests[0] and b'"shape":[5,1]' in second.requests[0]
    assert len(set(first.requests)) == len(first.requests) > 30, "the same rows over and over would flatter a cache"


def repository(path: Path) -> Path:
    kinds = {"text": TensorProto.STRING, "half": TensorProto.FLOAT16, "flags": TensorProto.BOOL, "u": TensorProto.UINT8}
    for name, kind in kinds.items():
        same(path / name / "1" / "model.onnx", kind)
    scaled(path / "tiny" / "1" / "model.onnx", 2.0)
    table(path / "ids" / "1" / "model.onnx")
    sums(path / "free" / "1" / "model.onnx")
    linear(path / "fixed" / "1" / "model.onnx", np.ones((4, 2)), rows=3)
    table(path / "narrow" / "1" / "model.onnx", rows=1)  # 1 is no index here
    table(path / "told" / "1" / "model.onnx", rows=1)
    told = Manifest(format="onnx", file="model.onnx", example={"i": [0]})
    (path / "told" / "1" / "model.toml").write_bytes(manifest_text(told))
    return path


def test_a_real_server_takes_guessed_requests_of_any_kind_or_says_what_to_add(tmp_path):
    path = repository(tmp_path / "models")

    async def run():
        async with serving(path) as (pid, port):
            for name in ("text", "half", "flags", "u", "tiny", "ids", "free", "fixed"):
                inputs = metadata(port, name).inputs
                offers = candidates(name, inputs, Manifest(format="onnx", file="model.onnx"), 3)
                assert taken(port, name, offers, False).rows == 3
            inputs = metadata(port, "narrow").inputs
            offers = list(candidates("narrow", inputs, Manifest(format="onnx", file="model.onnx"), 3))
            with pytest.raises(BadInput, match=r"narrow refuses .*guessed.*\(400: .*example.*model.toml"):
                taken(port, "narrow", offers, False)
            with pytest.raises(BadInput, match="refuses the example of its own"):
                taken(port, "narrow", offers, True)
            with pytest.raises(BadInput, match="nobody"):
                metadata(port, "nobody")
            loop, whole = _cpu_s(pid, Path("/proc"))
            assert 0 < loop <= whole
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(run())


def test_what_cannot_be_measured_says_why(tmp_path):
    path = repository(tmp_path / "models")

    def measure(path, **told):
        asyncio.run(capacity(path, **({"p99_ms": 10.0, "progress": lambda line: None} | told)))

    with pytest.raises(BadInput, match=r"--model.*fixed.*tiny"):
        measure(path)
    with pytest.raises(BadInput, match=r"no model 'nobody'.*tiny"):
        measure(path, model="nobody")
    for wrong in ({"p99_ms": 0}, {"rows": 0}, {"connections": 0}, {"seconds": 0}, {"peak_factor": 0.5}):
        with pytest.raises(BadInput, match="above 0"):
            measure(path, model="tiny", **wrong)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(Misconfigured, match=r"did not start.*not a whole ONNX model"):
        measure(broken)


@pytest.mark.parametrize("cause", ["queue", "compute"])
def test_the_observer_reads_the_servers_own_times(cause, monkeypatch):
    lines = (
        'bucket{model="m",version="1",le="1"} 9',
        'sum{model="m",version="1"} 1.5',
        'sum{model="m",version="2"} 2',
        'count{model="m",version="1"} 7',
        'sum{model="other",version="1"} 9',
    )
    text = "".join(f"millstream_{cause}_seconds_{line}\n" for line in lines)
    monkeypatch.setattr("millstream.ops.observe.ask", lambda *_: (200, text.encode()))
    assert Observer(1, 1, "m")._series() == {(cause, "sum"): 3.5, (cause, "count"): 7}


def test_the_whole_verb_on_a_real_server(tmp_path):
    said = []
    path = scaled(tmp_path / "tiny.onnx", 2.0)
    found = asyncio.run(
        capacity(
            path,
            p99_ms=200.0,
            connections=8,
            seconds=0.2,
            requests_per_day=1e6,
            machine_cost_per_hour=0.1,
            progress=said.append,
        )
    )
    assert found.model == "tiny" and found.version == "1" and found.rows == 1
    assert found.rate > 50 and 0 < found.p50_ms <= found.p99_ms <= 200 and found.p99_ms <= found.p99_worst_ms
    assert found.rate <= 4 * found.peak and found.alone_ms < 200
    assert found.seen.loop > 0 and found.seen.queue_ms > 0 and found.seen.requests_a_call >= 1
    assert found.cpu_us > 1 and found.seen.memory_mb > 20
    assert found.overload.verdict in ("sheds", "queues", "collapses", "not told") and found.overload.factor > 0
    assert any(" requests/s: p50" in line and "held" in line for line in said)
    text = render(found)
    for part in (
        f"{found.rate:,.0f} requests/s",
        found.limit.what,
        "at 10x",
        "ceil(",
        f"= {found.fleet.machines} machines",
    ):
        assert part in text
    assert msgspec.json.decode(msgspec.json.encode(found), type=Capacity) == found


def test_a_goal_that_one_request_alone_misses_is_said_so(tmp_path):
    path = scaled(tmp_path / "tiny.onnx", 2.0)
    found = asyncio.run(capacity(path, p99_ms=0.001, connections=2, seconds=0.1, progress=lambda line: None))
    assert found.rate == 0 and found.fleet is None and found.tried == []
    assert found.limit.what == "the model's latency"
    assert "no rate at p99 <= 0.001 ms" in render(found)


def test_datatypes_without_a_guess_are_none():
    for name in DTYPES:
        (bodies,) = candidates("m", (TensorSpec("x", name, (-1, 2)),), Manifest(format="onnx", file="m"), 2)
        assert f'"datatype":"{name}"'.encode() in bodies.requests[0]
    assert searching.RANGE[0] > 1
