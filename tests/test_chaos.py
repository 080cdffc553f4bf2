"""A minute of everything at once against the real process: mixed models, sizes, lengths and sessions over HTTP and
gRPC, callers that hang up, cancel and run out of time, versions swapped under them, more work than can be done.
Afterwards the books balance: whatever was sent was answered rightly, or refused by a cause, or its caller went away."""

import asyncio
import os
import random
import re
from collections import Counter

import numpy as np
import orjson
import pytest
import tritonclient.grpc.aio as triton

import onnx_models
from millstream.models.repository import Repository
from millstream.models.traffic import promote
from service import Served, column, document

SCALES = {"1": 2.0, "2": 3.0}
CONNECTIONS = ('millstream_connections{port="http"}', 'millstream_connections{port="grpc"}')


def models(root):
    for version, scale in SCALES.items():
        onnx_models.scaled(root / "echo" / version / "model.onnx", scale)
    (root / "echo" / "1" / "model.toml").write_text(
        'format = "onnx"\nfile = "model.onnx"\n[batching]\nqueue_rows_max = 60'
    )
    onnx_models.pooled(root / "sum" / "1" / "model.onnx")
    (root / "sum" / "1" / "model.toml").write_text(
        'format = "onnx"\nfile = "model.onnx"\n[batching]\nmax_batch_size = 16\nmax_wait_time = "1ms"\ninstances = 2\n'
        '[batching.length]\nof = "audio"\nbuckets = [8, 32, 128]\nlengths = "sizes"\ntrim = ["z"]\n'
    )
    onnx_models.recurrent(root / "rnn" / "1" / "model.onnx")
    (root / "rnn" / "1" / "model.toml").write_text(
        'format = "onnx"\nfile = "model.onnx"\n[sessions]\nslots = 24\nidle_s = 3\n'
        'states = [{ input = "h", output = "h_out" }, { input = "c", output = "c_out" }]\n'
    )


class Books:
    """Of all clients: `sent`, `ended` by cause, `left` (hung up or cancelled before an answer)."""

    def __init__(self):
        self.sent = self.left = 0
        self.ended = Counter()
        self.wrong = []


class Http:
    """A connection that may hang up in the middle of anything."""

    def __init__(self, port, books, dice):
        self.port, self.books, self.dice = port, books, dice
        self.writer = None

    async def ask(self, model, body):
        """(status, document), or None when this caller hung up."""
        if self.writer is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        whole = orjson.dumps(body)
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(whole)}\r\n\r\n".encode()
        self.books.sent += 1
        if self.dice.random() < 0.03:
            self.writer.write((head + whole)[: self.dice.randrange(1, len(head) + len(whole) + 1)])
            await asyncio.sleep(self.dice.choice([0, 0.001, 0.01]))
            self.writer.close()
            self.books.left += 1
            return None
        self.writer.write(head + whole)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
        status = int(lines[0].split()[1])
        self.books.ended[status] += 1
        return status, orjson.loads(await self.reader.readexactly(length))

    async def close(self):
        """Not left to the garbage collector: the server counts a connection until its socket is closed."""
        if self.writer is not None:
            self.writer.close()
            await self.writer.wait_closed()


async def echoes(http, until):
    """Mixed sizes, some of them wrong, some in a hurry."""
    dice, books = http.dice, http.books
    while not until.is_set():
        n = dice.choice([1, 1, 1, 2, 7, 40])
        x = np.array([[dice.randrange(1000)] * 4 for _ in range(n)], np.float32)
        more = {"timeout": dice.choice([100, 2000, 10**6])} if dice.random() < 0.2 else {}
        if dice.random() < 0.1:
            more["priority"] = dice.randrange(4)
        body = document(x, **more)
        broken = dice.random() < 0.03
        if broken:
            body["inputs"][0]["data"].pop()
        answer = await http.ask("echo", body)
        if answer is None:
            continue
        status, found = answer
        if status == 200:
            scale = SCALES[found["model_version"].partition("@")[0]]
            if broken or column(found).tolist() != (x * np.float32(scale)).tolist():
                books.wrong.append((x, found))
        elif status not in ((400,) if broken else (429, 504)):
            books.wrong.append((status, found))


async def sums(http, until):
    dice, books = http.dice, http.books
    while not until.is_set():
        audio = np.array([[dice.randrange(100) for _ in range(dice.choice([1, 5, 30, 120]))]], np.float32)
        answer = await http.ask("sum", document(audio, "audio"))
        if answer is None:
            continue
        status, found = answer
        right = status == 200 and column(found).tolist() == audio.sum(axis=1).tolist()
        if not (right and column(found, "z").tolist() == (audio * 2).tolist()):
            books.wrong.append((status, found))


async def streams(http, until):
    """Sessions, of which some are left open to idle out. What is refused or hung up on ends a stream."""
    dice, books = http.dice, http.books
    while not until.is_set():
        h = c = np.zeros(3, np.float32)
        more = {"sequence_start": True}
        for at in range(dice.randrange(1, 8)):
            x = np.array([[dice.random() for _ in range(3)]], np.float32)
            answer = await http.ask("rnn", document(x, **more))
            if answer is None:
                break
            status, found = answer
            if status == 429 and "sequence_start" in more:
                await asyncio.sleep(0.05)
                break
            h = np.tanh(x[0] + h * np.float32(0.5))
            c = c + h
            if status != 200 or not np.allclose(column(found)[0], c * 2, rtol=1e-4):
                books.wrong.append((at, status, found))
                break
            told = found["parameters"]
            more = {"sequence_id": told["sequence_id"], "sequence_step": at + 2, "resume_token": told["resume_token"]}
            if dice.random() < 0.2:
                break


async def calls(port, books, dice, until):
    """Over gRPC, some cancelled, some with no time."""
    async with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        while not until.is_set():
            x = np.array([[dice.randrange(1000)] * 4], np.float32)
            tensor = triton.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(x)
            timeout = dice.choice([None, None, None, 0.0005, 1.0])
            books.sent += 1
            call = asyncio.ensure_future(client.infer("echo", [tensor], client_timeout=timeout))
            if dice.random() < 0.05:
                await asyncio.sleep(dice.choice([0, 0.001]))
                call.cancel()
            try:
                found = await call
            except asyncio.CancelledError:
                books.left += 1
                continue
            except Exception as error:
                code = re.search(r"StatusCode\.(\w+)", str(error))
                books.ended[code[1] if code else str(error)] += 1
                if code is None or code[1] not in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
                    books.wrong.append(error)
                continue
            books.ended["OK"] += 1
            scale = SCALES[found.get_response().model_version.partition("@")[0]]
            if found.as_numpy("y").tolist() != (x * np.float32(scale)).tolist():
                books.wrong.append((x, found.as_numpy("y")))


async def swapping(root, until):
    repository, live = Repository(root), 1
    while not until.is_set():
        live = 3 - live
        repository.change_policy("echo", promote(str(live)), who="test", why="chaos")
        await asyncio.sleep(0.5)


async def rage(root, served, seconds, seed):
    books, until = Books(), asyncio.Event()
    callers = []
    tasks = [asyncio.ensure_future(swapping(root, until))]
    for at in range(16):
        dice = random.Random(f"{seed} {at}")
        kind = (echoes, echoes, sums, streams)[at % 4]
        callers.append(Http(served.http, books, dice))
        tasks.append(asyncio.ensure_future(kind(callers[-1], until)))
    tasks += [asyncio.ensure_future(calls(served.grpc, books, random.Random(at), until)) for at in range(4)]
    await asyncio.sleep(seconds)
    until.set()
    for task in tasks:
        await asyncio.wait_for(task, 20)
    for caller in callers:
        await caller.close()
    return books


@pytest.mark.parametrize("seconds", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_the_books_balance_after_everything_at_once(tmp_path, seconds):
    models(tmp_path / "models")
    with Served(tmp_path / "models", tmp_path / "log", "--max-batch-size", "16") as served:
        books = asyncio.run(rage(tmp_path / "models", served, seconds, seed=os.environ.get("SEED", "1")))
        assert books.wrong == []
        ended = sum(books.ended.values())
        assert books.sent == ended + books.left
        answered = books.ended[200] + books.ended["OK"]
        assert answered > 0.5 * books.sent
        for _ in range(100):  # what was hung up on may still be computed; idle sessions end after some seconds
            left = served.metrics("millstream_rows_waiting", "millstream_sessions", *CONNECTIONS)
            if left[:3] == [0, 0, 1]:  # the connection that asks
                break
            asyncio.run(asyncio.sleep(0.1))
        assert left[:3] == [0, 0, 1]
        assert left[3] <= 1  # all channels of grpcio share one connection, which may outlive the last of them
        computed, failed, late, cancelled = served.metrics(
            *(f"millstream_{name}_total" for name in ("requests", "failures", "late", "cancelled"))
        )
        assert failed == 0
        assert answered <= computed <= answered + books.left + books.ended["DEADLINE_EXCEEDED"]
        assert late + cancelled >= books.ended[504]
        print(dict(books.ended), f"sent {books.sent}, left {books.left}")
        assert served.stop() == 0
