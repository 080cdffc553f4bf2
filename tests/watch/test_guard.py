"""Canaries under a real engine: one that fails goes by itself, an equal one becomes live by itself, one process decides
for all, and a person who is faster wins."""

import asyncio
import fcntl
import logging
import multiprocessing
import os
import threading

import numpy as np
import pytest
from msgspec.structs import replace

import onnx_models
from millstream import errors
from millstream.clock import FakeClock, SystemClock
from millstream.engine import Engine, EngineLimits
from millstream.meter import Meter
from millstream.models import Guard, Repository
from millstream.models.model import load
from millstream.models.traffic import Copy, canary, make, promote, roll_back
from millstream.types import Request
from millstream.watch.canary.guard import Guards, last_word

QUICK = Guard(requests_min=50, requests=400)


def house(root, versions=(2, 2), guard=QUICK, share=0.5):
    for number, scale in enumerate(versions, 1):
        onnx_models.scaled(root / "m" / str(number) / "model.onnx", scale)
    repository = Repository(root)
    repository.change_policy("m", promote("1"), "test", "")
    repository.change_policy("m", canary("2", share, guard), "test", "")
    return repository


def failing(version, broken):
    """What Engine takes as `load`, with this version's predict spoiled by `broken(inputs)`."""

    def loaded(repository, model, number):
        made = load(repository, model, number)
        if number == version:
            predict = made.predict
            made.predict = lambda inputs: broken(inputs) or predict(inputs)
        return made

    return loaded


async def ask(engine, count, start=0):
    """So many requests of different users; how many failed."""
    random = np.random.default_rng(start)
    answers = [
        engine.submit(Request("m", {"x": random.normal(size=(1, 4)).astype(np.float32)}, 1, id=f"r{start + n}"))
        for n in range(count)
    ]
    done = await asyncio.gather(*answers, return_exceptions=True)
    return sum(isinstance(one, Exception) for one in done)


def judged(repository, loaded=load, rounds=12, each=100, meter=None, limits=None, between=None, first=True):
    """Serve with a guard looking after each round; the policy at the end."""

    async def main():
        engine = Engine(repository, SystemClock(), meter or Meter(), limits, load=loaded)
        await engine.start()
        guards = Guards(repository, engine_meter(engine), FakeClock(), engine.policies)
        if first:
            guards.look(guarded(engine))
        for number in range(rounds):
            await ask(engine, each, number * each)
            if between is not None:
                between(number)
            guards.look(guarded(engine))
            await engine.refresh()
            if not guarded(engine):
                guards.look({})
                break
        guards.close()
        await engine.stop()

    asyncio.run(main())
    return repository.policy("m")


def engine_meter(engine):
    return engine._watch._meter


def guarded(engine):
    return {name: policy for name, policy in engine.policies().items() if policy.canary and policy.canary.guard}


def test_a_canary_that_fails_is_taken_back_and_the_log_says_why(tmp_path, caplog):
    def broken(inputs):
        if (inputs["x"] > 1).any():
            raise ValueError("over one")

    policy = judged(house(tmp_path), failing("2", broken))
    assert (policy.live, policy.canary, policy.who) == ("1", None, "guard")
    assert "failed, live 0.00%" in policy.why and policy.why.startswith("canary 2: after ")
    assert [m for m in caplog.messages if m.startswith("m: canary 2 is taken back, 1 stays live: after")]
    word = last_word(Repository(tmp_path), "m")
    assert word.canary == "2" and word.said.startswith("took it back in policy 3: after") and word.requests >= 50


def test_answers_of_nan_count_as_failures(tmp_path):
    policy = judged(house(tmp_path), failing("2", lambda inputs: {"y": np.full_like(inputs["x"], np.nan)}))
    assert (policy.live, policy.canary) == ("1", None) and "100.00% failed" in policy.why


def test_an_equal_canary_becomes_live(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    policy = judged(house(tmp_path, guard=replace(QUICK, p99=0)))
    assert (policy.live, policy.canary, policy.who) == ("2", None, "guard") and "not worse" in policy.why
    assert any("canary 2 is live now instead of 1" in message for message in caplog.messages)


def test_scores_that_drift_take_it_back(tmp_path):
    policy = judged(house(tmp_path, versions=(2, 20), guard=replace(QUICK, requests=2000)), rounds=24)
    assert (policy.live, policy.canary) == ("1", None) and "from live's (0.1 is allowed)" in policy.why


def test_a_guard_that_does_not_promote_leaves_it_to_a_person(tmp_path):
    policy = judged(house(tmp_path, guard=replace(QUICK, promote=False, p99=0)))
    assert policy.version == 2 and policy.canary is not None
    assert "leaves it to you" in last_word(Repository(tmp_path), "m").said


def test_a_pinned_model_is_not_promoted(tmp_path):
    repository = house(tmp_path)
    repository.change_policy("m", roll_back("1"), "test", "")
    repository.change_policy("m", canary("2", 0.5, replace(QUICK, p99=0)), "test", "")
    policy = judged(repository)
    assert (policy.live, policy.pin, policy.version) == ("1", "1", 4)
    assert "is pinned" in last_word(repository, "m").said


def test_a_canary_without_traffic_is_left_and_that_is_said(tmp_path):
    repository = house(tmp_path, share=1e-9)
    assert judged(repository, rounds=6).canary is not None
    assert last_word(repository, "m").said.endswith("no request has reached it: it cannot be judged")


def test_late_requests_and_refused_ones_count_as_failures(tmp_path):
    import time

    policy = judged(
        house(tmp_path),
        failing("2", lambda inputs: time.sleep(0.05)),
        each=60,
        limits=EngineLimits(inline_us_max=0, timeout_ms=200, instances=1, rows_max=1),
    )
    assert policy.canary is None and policy.live == "1" and "failed" in policy.why


def test_callers_who_give_up_count_once_each_as_failures_of_their_arm(tmp_path):
    repository, meter, go_on = house(tmp_path), Meter(), threading.Event()
    limits = EngineLimits(inline_us_max=0, instances=1, rows_max=8)
    asked = lambda n: Request("m", {"x": np.ones((1, 4), np.float32)}, 1, key=f"user {n}")  # noqa: E731

    def hangs(inputs):
        if inputs["x"].all():  # not while it is warmed
            go_on.wait(30)

    async def main():
        engine = Engine(repository, SystemClock(), meter, limits, load=failing("2", hangs))
        await engine.start()
        guards = Guards(repository, meter, FakeClock(), engine.policies)
        guards.look(guarded(engine))
        answers = [engine.submit(asked(n)) for n in range(200)]
        tried = [answer for answer in answers if answer.arm.name == "canary"]
        await asyncio.gather(*(answer for answer in answers if answer.arm.name == "live"))
        for answer in tried:  # some are being computed, others wait
            assert answer.cancel()
        go_on.set()
        guards.look(guarded(engine))
        guards.close()
        await engine.stop()
        return len(tried)

    tried = asyncio.run(main())
    word, policy = last_word(repository, "m"), repository.policy("m")
    assert (word.requests, word.beside) == (tried, 200 - tried)
    assert policy.canary is None and "100.00% failed" in policy.why


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (canary("2", 0.6, QUICK), "at most 0.5"),
        (canary("1", 0.1), "is live already"),
        (lambda policy: replace(canary("2", 0.1, QUICK)(policy), split={"2": 1.0}), "nothing to compare it with"),
    ],
    ids=["share", "live", "split"],
)
def test_a_canary_that_nobody_could_judge_is_refused(tmp_path, change, said):
    with pytest.raises(errors.Misconfigured, match=said):
        house(tmp_path).change_policy("m", change, "test", "")


def test_the_live_version_is_no_shadow(tmp_path):
    with pytest.raises(errors.BadInput, match="1 of m is live"):
        make(house(tmp_path), "m", "shadow", Copy(versions=(1,)))


def test_a_person_who_is_faster_wins(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    repository = house(tmp_path)

    def between(number):
        if repository.policy("m").version == 2:
            repository.change_policy("m", promote("2"), "ann", "I am sure")

    policy = judged(repository, failing("2", lambda inputs: 1 / 0), rounds=1, each=200, between=between)
    assert (policy.live, policy.who, policy.version) == ("2", "ann", 3)
    assert any("ann was faster" in message for message in caplog.messages)


def test_a_restart_goes_on_where_it_was_also_with_counters_that_begin_anew(tmp_path):
    repository = house(tmp_path, guard=replace(QUICK, p99=0))
    for round in range(4):
        each = 300 if round == 0 else 350  # more than before, so that nothing but the restart itself tells
        policy = judged(repository, rounds=1, each=each, meter=Meter(), first=round == 0)
        word = last_word(repository, "m")
        assert word.requests + word.beside == 300 + 350 * round
        if policy.canary is None:
            break
    assert policy.live == "2" and policy.who == "guard" and round == 2


def test_counters_that_somebody_emptied_do_not_undo_what_was_counted(tmp_path):
    repository = house(tmp_path / "models", guard=replace(QUICK, p99=0))
    for round in range(2):
        judged(repository, rounds=1, each=200 - 100 * round, meter=Meter(tmp_path / str(round), "a"), first=round == 0)
    word = last_word(repository, "m")
    assert word.requests + word.beside == 300


def test_a_new_canary_is_judged_afresh_and_another_share_is_not(tmp_path):
    repository, meter = house(tmp_path / "models"), Meter(tmp_path / "meters")
    judged(repository, rounds=1, each=60, meter=meter)
    repository.change_policy("m", canary("2", 0.4, replace(QUICK, p99=0)), "test", "")
    judged(repository, rounds=1, each=60, meter=meter)
    word = last_word(repository, "m")
    assert word.requests + word.beside == 120
    repository.change_policy("m", canary("2", 0), "test", "")
    repository.change_policy("m", canary("2", 0.4, QUICK), "test", "")
    judged(repository, rounds=1, each=60, meter=meter)
    word = last_word(repository, "m")
    assert word.requests + word.beside == 60


def test_asking_for_a_version_by_its_number_is_not_counted(tmp_path):
    repository = house(tmp_path)

    async def main():
        meter = Meter()
        engine = Engine(repository, SystemClock(), meter)
        await engine.start()
        guards = Guards(repository, meter, FakeClock(), engine.policies)
        guards.look(engine.policies())
        for _ in range(80):
            await engine.submit(Request("m", {"x": np.ones((1, 4), np.float32)}, 1, version="2"))
        guards.look(engine.policies())
        guards.close()
        await engine.stop()

    asyncio.run(main())
    assert last_word(repository, "m").requests == 0


def serve(root, meters, name, go, done, looks):
    """One serving process of several; `looks` collects whether it held the lock."""
    repository, meter = Repository(root), Meter(meters, name)

    async def main():
        engine = Engine(repository, SystemClock(), meter)
        await engine.start()
        guards = Guards(repository, meter, SystemClock(), engine.policies)
        guards.look(engine.policies())
        go.wait()
        for number in range(40):
            await ask(engine, 20, start=hash((name, number)) % 10**6)
            guards.look(engine.policies())
            looks.put((name, bool(guards._locks)))
            await asyncio.sleep(0.01)
        done.wait()
        guards.close()
        await engine.stop()

    asyncio.run(main())


def test_of_two_processes_one_decides_and_it_sees_the_traffic_of_both(tmp_path):
    repository = house(tmp_path / "models", guard=replace(QUICK, p99=0, requests=10_000))
    spawn = multiprocessing.get_context("spawn")
    go, done, looks = spawn.Barrier(2), spawn.Barrier(2), spawn.Queue()
    processes = [
        spawn.Process(target=serve, args=(tmp_path / "models", tmp_path / "meters", name, go, done, looks))
        for name in ("a", "b")
    ]
    for process in processes:
        process.start()
    seen = [looks.get(timeout=60) for _ in range(80)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert len({name for name, decides in seen if decides}) == 1
    word = last_word(repository, "m")
    assert word.requests + word.beside > 1000  # of 1600: more than one process had


def test_another_process_takes_over(tmp_path):
    repository = house(tmp_path)
    folder = tmp_path / "m" / "watch"
    folder.mkdir()
    other = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    policies = {"m": repository.policy("m")}
    guards = Guards(repository, Meter(), FakeClock(), lambda: policies)
    guards.look(policies)
    assert last_word(repository, "m") is None
    os.close(other)
    guards.look(policies)
    assert last_word(repository, "m").said == "watched from now on"
    guards.close()


def test_a_guard_that_cannot_act_says_so_once_and_acts_later(tmp_path, caplog, monkeypatch):
    repository = house(tmp_path)
    full = [True]
    change = repository.change_policy

    def without_room(*args, **more):
        if full[0]:
            raise OSError("no room")
        return change(*args, **more)

    monkeypatch.setattr(repository, "change_policy", without_room)

    def between(number):
        full[0] = number < 4

    policy = judged(repository, failing("2", lambda inputs: 1 / 0), between=between)
    assert policy.canary is None
    assert len([m for m in caplog.messages if "cannot act, and tries again: no room" in m]) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b'{"since": 1}'])
def test_a_damaged_state_begins_the_watch_anew(tmp_path, damage):
    repository = house(tmp_path)
    (tmp_path / "m" / "watch").mkdir()
    (tmp_path / "m" / "watch" / "guard.json").write_bytes(damage)
    assert last_word(repository, "m") is None
    policy = judged(repository, failing("2", lambda inputs: 1 / 0))
    assert policy.canary is None
