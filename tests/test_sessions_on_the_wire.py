"""Sessions as clients have them, over HTTP and gRPC, on a real house: swaps to versions of other inputs, unloading, and
the next process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import onnx
import orjson
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http

import onnx_models
from millstream.app.borders import Borders
from millstream.app.house import House
from millstream.app.steering import Steering
from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.flows.predict import Predict
from millstream.meter import Meter
from millstream.models import Manifest, Repository
from millstream.models.manifest import Sessions, State
from millstream.models.traffic import promote
from millstream.watch.shadow import Comparisons

STATES = (State("h", "h_out"), State("c", "c_out"))


class Service:
    """A started house; `ask(kind)` gives a client's own way to make a step, for a thread."""

    def __init__(self, root):
        repository, clock, meter = Repository(root), SystemClock(), Meter()
        self.engine = Engine(repository, clock, meter)
        steering = Steering(repository, self.engine, meter, Comparisons(clock))
        house = House(self.engine, Predict(self.engine.submit, clock), meter, None, steering)
        self.borders = Borders(house, meter, SystemClock())

    async def __aenter__(self):
        self.thread = ThreadPoolExecutor(1)
        await self.engine.start()
        self.port = await self.borders.start("127.0.0.1", 0)
        (server,) = self.borders.grpc._servers
        ports = {"http": self.port, "grpc": server.sockets[0].getsockname()[1]}
        self.clients = {
            kind: (library, await self.aside(library.InferenceServerClient, f"127.0.0.1:{ports[kind]}"))
            for kind, library in (("http", http), ("grpc", grpc))
        }
        return self

    async def aside(self, call, *arguments, **more):
        """Call something that blocks, in the one thread that these clients want to live in."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, partial(call, *arguments, **more))

    async def __aexit__(self, *_):
        for _, client in self.clients.values():
            await self.aside(client.close)
        self.thread.shutdown()
        await self.borders.stop()
        await self.engine.stop()

    async def step(self, kind, x, **turn):
        """The outputs of one step; raises the client's own error."""
        library, client = self.clients[kind]
        tensor = library.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        found = await self.aside(client.infer, "rnn", [tensor], sequence_id=7, **turn)
        response = found.get_response()
        version = response["model_version"] if kind == "http" else response.model_version
        return version, found.as_numpy("y")


def versions(root):
    """Version 1 takes three numbers a step, version 2 five."""
    for width in (3, 5):
        file = onnx_models.recurrent(root / f"{width}.onnx", width=width).read_bytes()
        manifest = Manifest(format="onnx", file="m.onnx", sessions=Sessions(states=STATES))
        Repository(root / "models").put("rnn", manifest, {"m.onnx": file})
    Repository(root / "models").change_policy("rnn", promote("1"), who="test", why="begin")
    return root / "models"


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_session_outlives_a_swap_to_other_inputs_and_unloading(tmp_path, kind):
    root = versions(tmp_path)
    x3, x5 = np.ones((1, 3), np.float32), np.ones((1, 5), np.float32)

    async def scene():
        async with Service(root) as service:
            version, y1 = await service.step(kind, x3, sequence_start=True)
            assert version == "1@0"
            Repository(root).change_policy("rnn", promote("2"), who="test", why="swap")
            await service.engine.refresh()
            version, y2 = await service.step(kind, x3)
            assert version == "1@0" and (y2 > y1).all()
            with pytest.raises(Exception, match="input 'x'"):
                await service.step(kind, x5)
            await service.engine.unload("rnn")
            version, _ = await service.step(kind, x3, sequence_end=True)
            assert version == "1@0"
            with pytest.raises(Exception, match="unloaded"):
                await service.step(kind, x3, sequence_start=True)
            await service.engine.load("rnn")
            version, _ = await service.step(kind, x5, sequence_start=True)
            assert version == "2@0"
            with pytest.raises(Exception, match="input 'x'"):
                await service.step(kind, x3)

    asyncio.run(scene())


def test_a_session_begun_over_one_border_goes_on_over_the_other(tmp_path):
    root = versions(tmp_path)
    x = np.ones((1, 3), np.float32)

    async def scene():
        async with Service(root) as service:
            _, first = await service.step("http", x, sequence_start=True)
            _, second = await service.step("grpc", x)
            _, third = await service.step("http", x, sequence_end=True)
            h, c, told = np.zeros(3), np.zeros(3), []
            for _ in range(3):
                h = np.tanh(1 + h / 2)
                c = c + h
                told.append(c * 2)
            np.testing.assert_allclose(np.vstack([first, second, third]), told, rtol=1e-5)

    asyncio.run(scene())


def test_a_token_finds_its_session_and_says_where_it_stands(tmp_path):
    root = versions(tmp_path)
    body = {
        "parameters": {"sequence_start": True},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}],
    }

    async def ask(port, path, document=None):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = orjson.dumps(document) if document else b""
        verb = "POST" if document else "GET"
        head = f"{verb} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        whole = await reader.read()
        writer.close()
        return int(whole.split()[1]), orjson.loads(whole.partition(b"\r\n\r\n")[2])

    async def scene():
        async with Service(root) as service:
            told = (await ask(service.port, "/v2/models/rnn/infer", body))[1]["parameters"]
            assert told["sequence_step"] == 1
            path = f"/v2/models/rnn/sequences/{told['resume_token']}"
            status, where = await ask(service.port, path)
            assert status == 200 and where["sequence_id"] == told["sequence_id"] and where["sequence_step"] == 1
            body["parameters"] = {"resume_token": told["resume_token"], "sequence_step": 2}
            status, found = await ask(service.port, "/v2/models/rnn/infer", body)
            assert status == 200 and found["parameters"]["sequence_step"] == 2
            body["parameters"] = {"resume_token": "another"}
            assert (await ask(service.port, "/v2/models/rnn/infer", body))[0] == 404

    asyncio.run(scene())


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_session_outlives_a_swap_to_other_outputs(tmp_path, kind):
    """Version 2 takes the same and calls its answer otherwise: a step must be read and told as version 1 has it."""
    root = versions(tmp_path)
    renamed = onnx.load(tmp_path / "3.onnx")
    for name in (renamed.graph.node[-1].output, renamed.graph.output):
        if name is renamed.graph.output:
            name[0].name = "z"
        else:
            name[0] = "z"
    manifest = Manifest(format="onnx", file="m.onnx", sessions=Sessions(states=STATES))
    Repository(root).put("rnn", manifest, {"m.onnx": renamed.SerializeToString()})
    x = np.ones((1, 3), np.float32)

    async def scene():
        async with Service(root) as service:
            _, first = await service.step(kind, x, sequence_start=True)
            Repository(root).change_policy("rnn", promote("3"), who="test", why="swap")
            await service.engine.refresh()
            version, second = await service.step(kind, x)
            assert version == "1@0" and second is not None and (second > first).all()

    asyncio.run(scene())
