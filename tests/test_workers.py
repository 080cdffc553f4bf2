"""Several real processes at one port: they answer as one, and what becomes of one of them is no caller's concern."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import onnx_models
from millstream.app.plain import before
from millstream.app.service import ServeSettings
from millstream.app.workers import Workers, run_folder
from millstream.clock import SystemClock
from millstream.meter import Meter
from millstream.models.repository import Repository
from millstream.models.traffic import promote, roll_back
from millstream.ops import Supervisor
from millstream.stream import Log
from service import Connection, Served, alive, descendants, until

SCALES = {"1": 2.0, "2": 3.0}
X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def root(tmp_path):
    for version, scale in SCALES.items():
        onnx_models.scaled(tmp_path / "models" / "echo" / version / "model.onnx", scale)
    return tmp_path / "models"


@pytest.fixture
def served(root, tmp_path):
    with Served(root, tmp_path / "log", "--workers", "2") as made:
        yield made


async def everyone(port, count=2, seconds=60.0):
    """A connection to each of the processes, told apart by the ids that they give; waits for those that come."""
    found, end = {}, time.monotonic() + seconds
    while time.monotonic() < end:
        connection = await Connection.open(port)
        _, answer = await connection.infer("echo", X)
        if answer["id"][:12] in found:
            await connection.close()
            await asyncio.sleep(0.01)
        else:
            found[answer["id"][:12]] = connection
        if len(found) == count:
            return list(found.values())
    raise AssertionError(f"{len(found)} processes answered, not {count}")


async def versions(connections, model="echo"):
    """What each of them answers with: a version, or why not."""
    answers = [await connection.infer(model, X) for connection in connections]
    return [answer["model_version"] if status == 200 else status for status, answer in answers]


def test_processes_share_the_ports_and_each_tells_what_all_have_done(served):
    async def run():
        connections = await everyone(served.http)
        before = [served.metrics("millstream_requests_total")[0] for _ in range(8)]
        assert len(set(before)) == 1, "the sum depends on who is asked"
        for number in range(10):
            status, answer = await connections[number % 2].infer("echo", X)
            assert status == 200 and answer["outputs"][0]["data"] == (X * 3).ravel().tolist()
        assert served.metrics("millstream_requests_total")[0] == before[0] + 10
        # and the one that asks; that one asked before may not be told yet
        await until(lambda: served.metrics('millstream_connections{port="http"}')[0] == 2 + 1)
        for connection in connections:
            await connection.close()

    asyncio.run(run())
    assert sorted(served.workers()) == ["serve-0", "serve-1"]
    held = served.metrics(
        *(f'process_resident_memory_bytes{{role="{role}"}}' for role in (*served.workers(), "supervisor"))
    )
    assert all(size > 10e6 for size in held)


def test_grpc_is_shared_too(served):
    triton = pytest.importorskip("tritonclient.grpc")
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    with triton.InferenceServerClient(f"127.0.0.1:{served.grpc}") as client:
        assert client.infer("echo", [tensor]).as_numpy("y").tolist() == (X * 3).tolist()


def test_a_process_that_is_killed_comes_back_and_its_gauges_do_not_stay(served):
    async def run():
        connections = await everyone(served.http)
        victim = served.workers()["serve-1"]
        counted = served.metrics("millstream_requests_total")[0]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: served.workers().get("serve-1", victim) != victim)
        for connection in connections:
            await connection.close()
        again = await everyone(served.http)
        assert await versions(again) == ["2@0", "2@0"]
        assert served.metrics('millstream_worker_restarts_total{cause="signal SIGKILL"}') == [1]
        await until(lambda: served.metrics('millstream_connections{port="http"}') == [2 + 1])  # what was closed is gone
        assert served.metrics("millstream_requests_total")[0] >= counted + 2
        for connection in again:
            await connection.close()

    asyncio.run(run())
    assert re.search(r"serve-1 ended \(signal SIGKILL\) after [\d.]+ s; starting it again", served.log.read_text())


def test_a_roll_back_reaches_every_process(root, served):
    async def run():
        repository, connections = Repository(root), await everyone(served.http)
        for version in ("1", "2", "1"):
            change = promote(version) if version == "2" else roll_back(version)
            repository.change_policy("echo", change, who="test", why="back")

            async def everywhere(wanted=f"{version}@0"):
                return await versions(connections) == [wanted] * 2

            await until(everywhere)
        for connection in connections:
            await connection.close()

    asyncio.run(run())


def test_a_model_is_loaded_and_unloaded_in_every_process_also_in_one_that_comes_later(served):
    async def run():
        connections = await everyone(served.http)
        status, _ = await connections[0].ask("/v2/repository/models/echo/unload")
        assert status == 200
        assert [found >= 400 for found in await versions(connections)] == [True, True]
        victim = served.workers()["serve-0"]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: served.workers().get("serve-0", victim) != victim)
        served.said("serve-0 millstream INFO echo: 2@0", times=2)

        async def all_ready():
            probes = [await Connection.open(served.http) for _ in range(16)]
            found = [await probe.infer("echo", X) for probe in probes]
            for probe in probes:
                await probe.close()
            return found

        assert {status for status, _ in await all_ready()} != {200}, "a process that came later serves it all the same"
        living = await Connection.open(served.http)
        status, _ = await living.ask("/v2/repository/models/echo/load")
        assert status == 200
        assert {status for status, _ in await all_ready()} == {200}
        await living.close()
        for connection in connections:
            await connection.close()

    asyncio.run(run())


def test_an_order_that_cannot_be_followed_is_told_to_who_gave_it(served):
    async def run():
        async with await Connection.open(served.http) as connection:
            status, answer = await connection.ask("/v2/repository/models/nothing/load")
            assert status == 404 and "nothing" in answer["error"]

    asyncio.run(run())


def test_a_process_that_cannot_answer_what_the_others_answer_gets_no_traffic(root, served):
    """A model is deleted while it is live: who has it loaded goes on; who comes later waits until it is back."""
    onnx_models.scaled(root / "other" / "1" / "model.onnx", 2.0)

    async def run():
        connections = await everyone(served.http)
        shutil.move(root / "echo", root.parent / "away")
        victim = served.workers()["serve-0"]
        os.kill(victim, signal.SIGKILL)
        served.said("serve-0 .*no connection is taken here yet: other processes answer echo")
        for _ in range(30):
            async with await Connection.open(served.http) as probe:
                assert await versions([probe]) == ["2@0"]
        shutil.move(root.parent / "away", root / "echo")
        for connection in connections:
            await connection.close()
        for connection in await everyone(served.http):
            await connection.close()

    asyncio.run(run())


def test_a_stop_answers_what_is_under_way_and_leaves_nothing_behind(root, tmp_path):
    onnx_models.scaled(root / "echo" / "3" / "model.onnx", 2.0)
    (root / "echo" / "3" / "model.toml").write_text(
        'format = "onnx"\nfile = "model.onnx"\n[batching]\nmax_batch_size = 8\nmax_wait_time = "1s"\n'
    )
    with Served(root, tmp_path / "log", "--workers", "2") as served:
        tree, folder = descendants(served.pid), served.run_folder()

        async def run():
            connections = await everyone(served.http)
            asked = [asyncio.ensure_future(connection.infer("echo", X)) for connection in connections]
            await asyncio.sleep(0.3)
            served.process.terminate()
            answers = await asyncio.gather(*asked)
            assert [status for status, _ in answers] == [200, 200]
            for connection in connections:
                await connection.close()

        asyncio.run(run())
        assert served.process.wait(60) == 0
    assert folder.name.startswith("millstream-") and not folder.exists()
    assert not any(alive(pid) for pid in tree)


def test_processes_whose_parent_was_killed_end_and_free_the_port(root, tmp_path):
    with Served(root, tmp_path / "log", "--workers", "2") as served:
        tree, folder = descendants(served.pid), served.run_folder()
        served.process.kill()
        served.process.wait()
        asyncio.run(until(lambda: not any(alive(pid) for pid in tree)))
        assert not folder.exists()
        with Served(root, tmp_path / "log2", "--workers", "2", http_port=served.http) as again:
            assert again.http == served.http


def serve(root, *options):
    """What `serve` says and ends with where it cannot start."""
    command = [sys.executable, "-m", "millstream", "serve", str(root), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stderr


def test_a_port_that_somebody_has_is_not_shared_with_him(root, tmp_path):
    with Served(root, tmp_path / "log", "--workers", "2") as served:
        code, said = serve(root, "--workers", "2", "--http-port", str(served.http))
        assert code == 1 and f"cannot listen on 127.0.0.1:{served.http} (HTTP): Address already in use" in said
        code, said = serve(root, "--http-port", str(served.http))
        assert code == 1 and f"cannot listen on 127.0.0.1:{served.http} (HTTP): Address already in use" in said


def test_a_service_of_which_no_process_can_answer_does_not_start(root):
    for version in SCALES:
        (root / "echo" / version / "model.onnx").write_bytes(b"no model")
    code, said = serve(root, "--workers", "2", "--http-port", "0")
    assert code == 1
    assert "a process ended before it could answer; what it said stands above" in said and "model.onnx" in said


def test_sessions_are_handed_over_by_one_process_alone(root, tmp_path):
    code, said = serve(root, "--workers", "2", "--sessions", str(tmp_path / "sessions"))
    assert code == 1 and "--sessions hands sessions over to one process" in said


def test_what_several_processes_mean_for_sessions_is_said(root, tmp_path):
    onnx_models.recurrent(root / "rnn" / "1" / "model.onnx")
    (root / "rnn" / "1" / "model.toml").write_text(
        'format = "onnx"\nfile = "model.onnx"\n[sessions]\n'
        'states = [{ input = "h", output = "h_out" }, { input = "c", output = "c_out" }]\n'
    )
    with Served(root, tmp_path / "log", "--workers", "2") as served:
        assert served.log.read_text().count("rnn keeps sessions, and each lives in one of 2 processes") == 1

        async def run():
            async with await Connection.open(served.http) as connection:
                x = np.ones((1, 3), np.float32)
                status, found = await connection.infer("rnn", x, sequence_start=True)
                told = found["parameters"]
                more = {"sequence_id": told["sequence_id"], "resume_token": told["resume_token"], "sequence_step": 2}
                answers = []
                for _ in range(24):
                    async with await Connection.open(served.http) as other:
                        answers.append((await other.ask("/v2/models/rnn/infer", {
                            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}],
                            "parameters": more,
                        }))[0])  # fmt: skip
                assert status == 200 and set(answers) == {200, 404}, "it is known to one process"
                more = {"sequence_id": told["sequence_id"], "sequence_step": 3, "sequence_end": True}
                more["resume_token"] = told["resume_token"]
                assert (await connection.infer("rnn", x, **more))[0] == 200

        asyncio.run(run())


class Storm:
    """Clients that ask all the time, half of them over a new connection each time; every answer must be 200."""

    def __init__(self, port):
        self.port, self.stopping, self.answers, self.failed = port, asyncio.Event(), 0, []
        self.tasks = [asyncio.ensure_future(self._ask(at % 2 == 0)) for at in range(16)]

    async def _ask(self, anew):
        connection = None
        while not self.stopping.is_set():
            try:
                connection = connection or await Connection.open(self.port)
                status, answer = await connection.infer("echo", X)
                self.answers += status == 200
                if status != 200:
                    self.failed.append((status, answer))
                if anew:
                    await connection.close()
                    connection = None
                elif connection.reader.at_eof():  # told to go elsewhere, after its answer
                    connection = None
            except (OSError, EOFError) as error:
                if anew or connection is None:
                    self.failed.append(repr(error))
                connection = None  # a kept one may be closed between two requests: that is no failure
        if connection is not None:
            await connection.close()

    async def end(self):
        self.stopping.set()
        await asyncio.gather(*self.tasks)


@pytest.mark.parametrize("way", ["replace", "renew"])
def test_replacing_a_process_fails_no_request(root, way):
    """`renew` closes a socket that nobody takes over: a connection that waits in it just then is lost."""

    async def run():
        settings = ServeSettings(workers=2, http_port=0)
        line = [sys.executable, "-m", "millstream", "serve", str(root)]
        with run_folder() as folder, Workers(line, settings, folder) as workers:
            supervisor = Supervisor(
                workers.roles, SystemClock(), workers.grace_s, meter := Meter(folder / "meters", "s")
            )
            await supervisor.start()
            try:
                for role in workers.roles:
                    await asyncio.wait_for(supervisor.ready(role).wait(), 60)
                workers.first = False
                storm = Storm(workers.http[0].getsockname()[1])
                for role in (*workers.roles, *workers.roles):
                    before, answers = supervisor.pid(role), storm.answers
                    await getattr(supervisor, way)(role, "memory")
                    await asyncio.wait_for(supervisor.ready(role).wait(), 60)
                    assert supervisor.pid(role) != before and not alive(before)
                    await until(lambda seen=answers: storm.answers > seen + 50)
                await storm.end()
                lost = [one for one in storm.failed if "reset" in str(one).lower()]
                assert storm.failed == (lost if way == "renew" else [])
                assert len(lost) <= 4 * 3
                assert meter.sum("millstream_worker_restarts_total") == 4
                assert meter.sum("millstream_requests_total") == storm.answers
            finally:
                await supervisor.stop()

    asyncio.run(run())


TOML = """
http_port = 0
grpc_port = 0
workers = 2
[learn]
model = "ranker"
[ftrl]
bits = 10
[features]
user = [{ name = "id" }]
item = [{ name = "id" }]
"""


def test_an_installation_is_served_by_several_processes_and_each_writes_partitions_of_its_own(root, tmp_path):
    file = tmp_path / "millstream.toml"
    file.write_text(TOML)
    log = Log(tmp_path / "log", SystemClock())

    def logged(topic):
        reader = log.reader(topic)
        return {partition: reader.end(partition) for partition in reader.partitions()}

    async def run(served):
        connections = await everyone(served.http)
        before = logged("served")
        for connection in connections:
            assert (await connection.infer("echo", X))[0] == 200
        after = logged("served")
        assert sorted(after) == [0, 1] and all(after[partition] == before[partition] + 1 for partition in (0, 1))
        repository = Repository(root)
        victims = served.workers()
        for turn, version in enumerate(("1", "2", "1")):
            repository.change_policy("echo", promote(version), who="test", why="turn")
            await until(lambda turn=turn: logged("policy") == {0: turn + 1})
            if turn == 1:  # one of them has logged it: whichever that is, the other goes on
                for connection in connections:
                    await connection.close()
                os.kill(victims["serve-0"], signal.SIGKILL)
                await until(lambda: served.workers().get("serve-0", victims["serve-0"]) != victims["serve-0"])
        again = await everyone(served.http)

        async def moved():  # whichever process has not noted it may follow later than the one that has
            return await versions(again) == ["1@0", "1@0"]

        await until(moved)
        for connection in again:
            await connection.close()

    with Served(root, tmp_path / "out", verb=["up", "-c", str(file)]) as served:
        asyncio.run(run(served))
        tree = descendants(served.pid)
        assert len(tree) == 4, "two that serve, learn and watch"
        assert served.stop() == 0
    assert not any(alive(pid) for pid in tree)
    assert all(log.verify(topic).corrupt == [] for topic in ("served", "policy"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_closed_terminal_ends_nothing(root, tmp_path, workers):
    with Served(root, tmp_path / "log", "--workers", workers) as served:
        for pid in (served.pid, *descendants(served.pid)):
            os.kill(pid, signal.SIGHUP)
        time.sleep(0.5)

        async def ask():
            connection = await Connection.open(served.http)
            status, _ = await connection.infer("echo", X)
            await connection.close()
            return status

        assert served.process.poll() is None and asyncio.run(ask()) == 200
        served.process.terminate()
        assert served.process.wait(60) == 0
        assert "SIGHUP" not in served.log.read_text()


def test_who_is_asked_to_end_does_not_wait_for_its_peers():
    async def run():
        asked, waiting, ended = asyncio.Event(), asyncio.Event(), []

        async def work():
            waiting.set()
            try:
                await asyncio.Event().wait()  # peers that never answer
            finally:
                ended.append(True)

        doing = asyncio.ensure_future(before(asked, work()))
        await waiting.wait()
        asked.set()
        assert await doing is False and ended == [True]

        async def done():
            pass

        assert await before(asyncio.Event(), done()) is True

        async def fails():
            raise OSError("the port is taken")

        with pytest.raises(OSError, match="taken"):
            await before(asyncio.Event(), fails())

    asyncio.run(run())
